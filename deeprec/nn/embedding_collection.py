"""Many embedding tables of mixed width as one layer: one call of the kernels instead of a loop over modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deeprec.kernels.embedding_bag import MODES, embedding_bags
from deeprec.nn._bag_inputs import BagInputs, Ids, bag_inputs
from deeprec.nn._in_backward import InBackward, OptimizerFactory
from deeprec.nn._rows import catch_up_tables
from deeprec.nn.embedding import Embedding

_TAKEN = frozenset(dir(nn.Module()))


class TableDict(nn.Module):
    """Modules by name. Unlike `nn.ModuleDict` it has no methods that would forbid names like "items" or "keys"."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def weights(self) -> list[nn.Parameter]:
        """The `weight` of each, in order."""
        return [module.weight for module in self._modules.values()]  # type: ignore[union-attr,misc]


@dataclass(frozen=True)
class Table:
    """One table of a collection.

    Attributes:
        name: unique; its parameter is `tables.NAME.weight`, and errors call it so.
        num_embeddings: rows R, >= 1.
        embedding_dim: columns D, >= 1.
        mode: "sum", "mean" or "max" of the rows of a bag; "none": the rows themselves.
        features: which columns of ids look up in it; default: one, named as the table.
        padding_idx: a row that starts as zeros, counts in no bag and gets no gradient; negative: from the end.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    mode: str = "sum"
    features: tuple[str, ...] = ()
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        if not self.name or "." in self.name or self.name in _TAKEN:
            raise ValueError(
                f"Table: name must be a word, no dot in it, and no attribute of torch.nn.Module, got {self.name!r}; "
                f"use Table({self.name.replace('.', '_') + '_table'!r}, ..., features=({self.name!r},))"
            )
        if self.mode not in MODES:
            raise ValueError(f"Table: mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if isinstance(self.features, str):
            raise ValueError(
                f"Table: features must be a tuple of names, got {self.features!r}; write ({self.features!r},)"
            )
        object.__setattr__(self, "features", tuple(self.features) or (self.name,))


def features_of_tables(
    owner: str, tables: Sequence[Table]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int | None, ...]]:
    """What a layer over tables knows of its features.

    Args:
        owner: the layer, for errors.
        tables: any number >= 1.
    Returns:
        names of the tables, names of the features, and the table and the padding id (>= 0) of each feature.
    Raises:
        ValueError: there is no table, or a name occurs twice.
    """
    names = tuple(table.name for table in tables)
    features = tuple(feature for table in tables for feature in table.features)
    for what, words in (("table", names), ("feature", features)):
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice or not words:
            raise ValueError(f"{owner}: each {what} must have a name of its own, got {twice or list(words)}")
    table_of = tuple(number for number, table in enumerate(tables) for _ in table.features)
    padding = tuple(
        None if table.padding_idx is None else table.padding_idx % table.num_embeddings
        for table in tables
        for _ in table.features
    )
    return names, features, table_of, padding


class EmbeddingCollection(nn.Module):
    """Embedding tables whose lookups, gradients and steps are one call each.

    Takes the place of a loop over `nn.Embedding` and `nn.EmbeddingBag`s: `EmbeddingCollection.of(modules)` takes over
    modules there are, with their parameters.

    Without `optimizer_in_backward` the tables are parameters with gradients, for any optimizer (sparse gradients: one
    of `deeprec.train.optim`, or torch's that take them). With it, `backward()` takes the optimizer's step as it goes:
    no table ever has a gradient, and `layer.optimizer` is there for schedules, `state_dict` and `flush`; leave these
    parameters out of your other optimizers. Each call is then a step of its own, on the gradient as it comes: leave it
    out to accumulate gradients, to call the layer twice for one loss, to scale the loss (torch.amp.GradScaler), or to
    train with DistributedDataParallel. Frozen tables (`requires_grad_(False)`) stand still.

    Args:
        tables: `Table`s, any number >= 1, any widths; one dtype and device together.
        optimizer_in_backward: makes an optimizer of `deeprec.train.optim` from parameters, for instance
            `functools.partial(RowWiseAdagrad, lr=0.05)`.
        sparse: gradients of the touched rows only; False gives dense ones, which pass torch.compile and any optimizer.
        device, dtype: of the tables; float32, float64, bfloat16 or float16.
    Raises:
        TypeError: optimizer_in_backward makes another kind of optimizer.
        ValueError: a size is below 1, or a name occurs twice.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        optimizer_in_backward: OptimizerFactory | None = None,
        sparse: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_up(tables)
        options: dict[str, Any] = {"sparse": sparse, "device": device, "dtype": dtype}
        self.tables = TableDict(
            {
                table.name: Embedding(
                    table.num_embeddings, table.embedding_dim, table.padding_idx, name=table.name, **options
                )
                for table in tables
            }
        )
        self.sparse = sparse
        self.step_in_backward(optimizer_in_backward)

    def _set_up(self, tables: Sequence[Table]) -> None:
        self.configs = tuple(tables)
        self._names, self.features, self._table_of, self._padding = features_of_tables("EmbeddingCollection", tables)
        self._modes = tuple(tables[number].mode for number in self._table_of)
        self._dims = tuple(tables[number].embedding_dim for number in self._table_of)

    def step_in_backward(self, factory: OptimizerFactory | None) -> None:
        """From now on take the step of the tables in the backward pass, as `optimizer_in_backward` says; None: no more.

        Raises:
            TypeError: factory makes another kind of optimizer.
        """
        self._in_backward = None if factory is None else InBackward("EmbeddingCollection", factory, self.weights())

    @property
    def optimizer(self) -> Any:
        """The optimizer whose step the backward pass takes, or None."""
        return None if self._in_backward is None else self._in_backward.optimizer

    @classmethod
    def of(
        cls,
        modules: Mapping[str, nn.Embedding | nn.EmbeddingBag],
        *,
        mode: str = "sum",
        optimizer_in_backward: OptimizerFactory | None = None,
        sparse: bool = True,
    ) -> EmbeddingCollection:
        """A collection of modules there are; parameters are taken over, not copied.

        Args:
            modules: name to `nn.Embedding` or `nn.EmbeddingBag`, an nn.ModuleDict for instance.
            mode: what to do with the rows of a bag of an `nn.Embedding`; with one id a bag all modes but "none" give
                the row. An `nn.EmbeddingBag` has its own.
            optimizer_in_backward, sparse: as in the constructor.
        Raises:
            ValueError: a module has options that a collection does not: max_norm, scale_grad_by_freq.
        """
        configs = []
        for name, module in modules.items():
            if module.max_norm is not None or module.scale_grad_by_freq:
                raise ValueError(
                    f"EmbeddingCollection: {name!r} must be without max_norm and scale_grad_by_freq; leave it a module "
                    "of its own (deeprec.nn.replace_embeddings)"
                )
            how = module.mode if isinstance(module, nn.EmbeddingBag) else mode
            shape = (module.num_embeddings, module.embedding_dim)
            configs.append(Table(name, *shape, how, padding_idx=module.padding_idx))
        collection = cls.__new__(cls)
        nn.Module.__init__(collection)
        collection._set_up(configs)
        collection.tables = TableDict(dict(modules.items()))
        collection.sparse = sparse
        collection.step_in_backward(optimizer_in_backward)
        return collection

    def weights(self) -> list[nn.Parameter]:
        """The tables, [R_t, D_t] each, in order."""
        return self.tables.weights()

    def forward(
        self,
        ids: Ids,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Rows of all features, pooled by bag.

        Args:
            ids: [B, F] with one id for each feature (their order: `self.features`); or [nnz], feature after feature,
                with offsets; or a mapping from feature to [B], [B, L] or ([nnz_f], offsets [B + 1]). int32 or int64.
            offsets: [F * B + 1], ascending from 0 to nnz: bag b of feature f is offsets[f * B + b] up to the next.
            per_sample_weights: one number an id, in the form of ids, dtype of the tables, where all modes are "sum";
                they get their gradient.
        Returns:
            [B, sum of the features' D], in the order of `self.features` (`split` takes it apart). If there are tables
            of mode "none", a pair: the same over the other features, and a mapping from each feature of mode "none" to
            its rows: [B, D], [B, L, D] or [nnz_f, D] after the form of its ids.
        Raises:
            IndexError: an id is out of range: names the table, the value and the position in the ids, feature after
                feature; nothing has been changed then.
            TypeError, ValueError: as the message says.
            RuntimeError: in a graph of torch.compile or torch.export, in place of any of these, with their text.
        """
        inputs = bag_inputs(
            "EmbeddingCollection", self.features, ids, offsets, per_sample_weights, "per_sample_weights"
        )
        has_rows = "none" in self._modes
        if has_rows and inputs.offsets is None:
            # The kernel takes bags of one id as pooled: bounds make it give their rows by themselves.
            count, some = inputs.ids.numel(), inputs.ids
            bounds = torch.arange(count + 1, dtype=some.dtype, device=some.device)
            inputs = inputs._replace(ids=some.reshape(-1), offsets=bounds)
        weights = self.weights()
        plan = None
        if torch.is_grad_enabled():
            plan = catch_up_tables((weights,), self._table_of, self._padding, inputs)
        pooled, rows = embedding_bags(
            weights,
            inputs.ids,
            inputs.offsets,
            per_sample_weights=inputs.values,
            tables=self._table_of,
            modes=self._modes,
            padding_idx=self._padding,
            sparse_grad=self.sparse,
            plan=plan,
            names=self._names,
            **({} if self._in_backward is None else self._in_backward.arguments()),
        )
        return (pooled, self._by_feature(rows, inputs)) if has_rows else pooled

    def _by_feature(self, rows: list[Tensor], inputs: BagInputs) -> dict[str, Tensor]:
        places = [f for f, mode in enumerate(self._modes) if mode == "none"]
        out = {}
        for place, some in zip(places, rows, strict=True):
            shape = inputs.shapes[place]
            if shape:  # [B, L] ids: as many rows as ids, L of them a bag
                some = some.reshape(inputs.batch, *shape, some.shape[1])
            out[self.features[place]] = some
        return out

    def split(self, pooled: Tensor) -> dict[str, Tensor]:
        """Take a pooled result apart.

        Args:
            pooled: [B, sum of D], as `forward` gave it.
        Returns:
            feature to [B, D], views.
        """
        dims = {f: d for f, d, mode in zip(self.features, self._dims, self._modes, strict=True) if mode != "none"}
        return dict(zip(dims, pooled.split(list(dims.values()), dim=1), strict=True))

    def _apply(self, fn: Any, recurse: bool = True) -> EmbeddingCollection:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._in_backward is not None:
            self._in_backward.bind()
        return self

    def extra_repr(self) -> str:
        """Features and how their bags are pooled."""
        return (
            f"features={len(self.features)}, sparse={self.sparse}, optimizer_in_backward={self.optimizer is not None}"
        )
