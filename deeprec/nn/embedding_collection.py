"""Many embedding tables of mixed width as one layer: one call of the kernels instead of a loop over modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeprec.kernels.embedding_bag import embedding_bags
from deeprec.nn._bag_inputs import BagInputs, Ids, bag_inputs
from deeprec.nn._in_backward import InBackward, OptimizerFactory
from deeprec.nn._nested import like_nested
from deeprec.nn._rows import WholeTables, catch_up_tables
from deeprec.nn._torchrec import classes, jagged_tensor, keyed_tensor, parts_of_collection
from deeprec.nn.layer import layer_forward
from deeprec.nn.tables import AnyTable, Table, TableDict, as_table, dtype_of_tables, features_of_tables, make_tables

__all__ = ["EmbeddingCollection", "Table"]

# Where the tables of a state dict may lie, beside where a layer has its own: TorchRec's names, and none at all.
_PLACES = ("tables", "embedding_bags", "embeddings", "")


class EmbeddingCollection(WholeTables):
    """Embedding tables whose lookups, gradients and steps are one call each.

    Takes the place of a loop over `nn.Embedding` and `nn.EmbeddingBag`s: `EmbeddingCollection.of(modules)` takes over
    modules there are, with their parameters. It also takes the place of TorchRec's two collections, whose configs,
    inputs and results it shares, without a need for TorchRec where none of them is used. Several tables may name one
    feature: its ids look up in each of them.

    A table's parameter is `tables.NAME.weight`; made from EmbeddingBagConfigs `embedding_bags.NAME.weight`, from
    EmbeddingConfigs `embeddings.NAME.weight`. A state dict with any of these names loads, and one without the first
    part.

    Without `optimizer_in_backward` the tables are parameters with gradients, for any optimizer (sparse gradients: one
    of `deeprec.train.optim`, or torch's that take them). With it, `backward()` takes the optimizer's step as it goes:
    no table ever has a gradient, and `layer.optimizer` is there for schedules, `state_dict` and `flush`; leave these
    parameters out of your other optimizers. Each call is then a step of its own, on the gradient as it comes: leave it
    out to accumulate gradients, to call the layer twice for one loss, to scale the loss (torch.amp.GradScaler), or to
    train with DistributedDataParallel. Frozen tables (`requires_grad_(False)`) stand still. The optimizer follows the
    tables wherever `.to`, `to_empty`, `load_state_dict` (assign=True too), a copy or your own hand puts them.

    Args:
        tables: `Table`s, any number >= 1, any widths, or TorchRec's EmbeddingBagConfigs and EmbeddingConfigs (mode
            "none"); one dtype and device together.
        optimizer_in_backward: makes an optimizer of `deeprec.train.optim` from parameters, for instance
            `functools.partial(RowWiseAdagrad, lr=0.05)`.
        sparse: gradients of the touched rows only; False gives dense ones, which pass torch.compile and any optimizer.
        device, dtype: of the tables; float32, float64, bfloat16 or float16.
        keyed: `forward` gives TorchRec's classes: a KeyedTensor, and for tables of mode "none" a dict of JaggedTensors.
        is_weighted: whether the weights of a KeyedJaggedTensor are per_sample_weights: True, False, or None: where it
            has them.
    Raises:
        ImportError: keyed, and TorchRec is not installed.
        TypeError: optimizer_in_backward makes another kind of optimizer.
        ValueError: a size is below 1, a name occurs twice, or the tables differ in data_type.
    """

    # Where the tables are in the state dict: the submodule of that name, or ("") modules of the layer itself.
    _place = "tables"

    def __init__(
        self,
        tables: Sequence[AnyTable],
        *,
        optimizer_in_backward: OptimizerFactory | None = None,
        sparse: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        keyed: bool = False,
        is_weighted: bool | None = None,
    ) -> None:
        super().__init__()
        owner = "EmbeddingCollection"
        places = {_place_of(table) for table in tables}
        self._place = places.pop() if len(places) == 1 else "tables"
        tables = [as_table(owner, table) for table in tables]
        self._set_up(tables, keyed, is_weighted, sparse)
        modules = make_tables(tables, sparse=sparse, device=device, dtype=dtype_of_tables(owner, tables, dtype))
        setattr(self, self._place, modules)
        for table, weight in zip(tables, self.weights(), strict=True):
            table.initialise(weight)
        self.step_in_backward(optimizer_in_backward)

    def _set_up(self, tables: Sequence[Table], keyed: bool, is_weighted: bool | None, sparse: bool) -> None:
        self.configs = tuple(tables)
        self._lookups = features_of_tables("EmbeddingCollection", tables)
        self.features, self.outputs = self._lookups.names, self._lookups.outputs
        self._modes = tuple(tables[number].mode for number in self._lookups.table_of)
        self._dims = tuple(tables[number].embedding_dim for number in self._lookups.table_of)
        self.sparse, self.keyed, self.is_weighted = sparse, keyed, is_weighted
        if keyed:
            classes()  # an import that fails is better known now

    @property
    def tables(self) -> TableDict:
        """The tables by name."""
        return self._modules[self._place] if self._place else TableDict(self._modules)  # type: ignore[return-value,arg-type]

    def step_in_backward(self, factory: OptimizerFactory | None) -> None:
        """From now on take the step of the tables in the backward pass, as `optimizer_in_backward` says; None: no more.

        Raises:
            TypeError: factory makes another kind of optimizer.
        """
        self._in_backward = None if factory is None else InBackward("EmbeddingCollection", factory, self.weights)

    @property
    def optimizer(self) -> Any:
        """The optimizer whose step the backward pass takes, or None."""
        return None if self._in_backward is None else self._in_backward.optimizer

    @classmethod
    def of(
        cls,
        modules: Mapping[str, nn.Embedding | nn.EmbeddingBag] | nn.Module,
        *,
        mode: str = "sum",
        optimizer_in_backward: OptimizerFactory | None = None,
        sparse: bool = True,
        keyed: bool = False,
    ) -> EmbeddingCollection:
        """A collection of modules there are; parameters are taken over, not copied.

        The state dict of a module keeps its names: what was saved of an nn.ModuleDict or of TorchRec's collection loads
        in its place, and the other way round. (Tables called as an attribute of this layer, "features" for instance,
        make an nn.ModuleDict's names `tables.NAME.weight`.)

        Args:
            modules: name to `nn.Embedding` or `nn.EmbeddingBag`, an nn.ModuleDict for instance; or TorchRec's
                EmbeddingBagCollection or EmbeddingCollection, unsharded.
            mode: what to do with the rows of a bag of an `nn.Embedding`; with one id a bag all modes but "none" give
                the row. An `nn.EmbeddingBag` has its own, and an EmbeddingCollection of TorchRec "none".
            optimizer_in_backward, sparse, keyed: as in the constructor.
        Raises:
            TypeError: a collection of TorchRec is sharded or quantized.
            ValueError: a module has options that a collection does not: max_norm, scale_grad_by_freq.
        """
        features: dict[str, tuple[str, ...]] = {}
        place, is_weighted = "" if isinstance(modules, nn.ModuleDict) else "tables", None
        of_torchrec = parts_of_collection(modules)
        if of_torchrec is not None:
            configs, place, modules, is_weighted = of_torchrec
            features, mode = {config.name: tuple(config.feature_names) for config in configs}, "none"
        named: Mapping[str, Any] = dict(modules.items())  # type: ignore[operator]
        tables = []
        for name, module in named.items():
            if module.max_norm is not None or module.scale_grad_by_freq:
                raise ValueError(
                    f"EmbeddingCollection: {name!r} must be without max_norm and scale_grad_by_freq; leave it a module "
                    "of its own (deeprec.nn.replace_embeddings)"
                )
            how = module.mode if isinstance(module, nn.EmbeddingBag) else mode
            shape = (module.num_embeddings, module.embedding_dim)
            tables.append(Table(name, *shape, how, features.get(name, ()), module.padding_idx))
        collection = cls.__new__(cls)
        nn.Module.__init__(collection)
        collection._set_up(tables, keyed, is_weighted, sparse)
        if any(hasattr(collection, name) for name in named):
            place = place or "tables"
        collection._place = place
        if place:
            setattr(collection, place, TableDict(named))
        else:
            collection._modules.update(named)
        collection.step_in_backward(optimizer_in_backward)
        return collection

    def weights(self) -> list[nn.Parameter]:
        """The tables, [R_t, D_t] each, in order."""
        holder = self._modules[self._place]._modules if self._place else self._modules  # type: ignore[union-attr]
        return [module.weight for module in holder.values()]  # type: ignore[union-attr,misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        def key_of(place: str, name: str) -> str:
            return f"{prefix}{place}.{name}.weight" if place else f"{prefix}{name}.weight"

        for name in self._lookups.tables:
            own = key_of(self._place, name)
            other = next((key for place in _PLACES if (key := key_of(place, name)) in state_dict), own)
            if own not in state_dict and other in state_dict:
                state_dict[own] = state_dict.pop(other)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @layer_forward
    def forward(
        self,
        ids: Ids,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Rows of all features, pooled by bag.

        Args:
            ids: [B, F] with one id for each feature (their order: `self.features`); or [nnz], feature after feature,
                with offsets; or a mapping from feature to [B], [B, L], ([nnz_f], offsets [B + 1]), a nested tensor
                [B, ragged] or a JaggedTensor of TorchRec; or a KeyedJaggedTensor, whose keys may come in any order,
                with others between them (it is not copied where they are `self.features`). int32 or int64.
            offsets: [F * B + 1], ascending from 0 to nnz: bag b of feature f is offsets[f * B + b] up to the next.
            per_sample_weights: one number an id, in the form of ids, dtype of the tables, where all modes are "sum";
                they get their gradient. Jagged tensors bring theirs.
        Returns:
            [B, sum of D], in the order of `self.outputs`: the features, or FEATURE@TABLE where several tables have it
            (`split` takes it apart). If there are tables of mode "none", a pair: the same over the others, and a
            mapping from each output of mode "none" to its rows: [B, D], [B, L, D], nested or [nnz_f, D] after the form
            of its ids. With `keyed` a KeyedTensor [B, sum of D] and a dict of JaggedTensors, dtype of the tables; the
            dict alone where all tables are of mode "none".
        Raises:
            IndexError: an id is out of range: names the table, the value and the position in the ids, feature after
                feature; nothing has been changed then.
            TypeError, ValueError: as the message says.
            RuntimeError: in a graph of torch.compile or torch.export, in place of any of these, with their text.
        """
        weights = self.weights()
        lookups = self._lookups
        inputs = bag_inputs(
            "EmbeddingCollection",
            lookups,
            weights[0],
            ids,
            offsets,
            per_sample_weights,
            "per_sample_weights",
            is_weighted=self.is_weighted,
        )
        has_rows = "none" in self._modes
        if has_rows and inputs.offsets is None:
            # The kernel takes bags of one id as pooled: bounds make it give their rows by themselves.
            count, ids = inputs.ids.numel(), inputs.ids
            bounds = torch.arange(count + 1, dtype=ids.dtype, device=ids.device)
            inputs = inputs._replace(ids=ids.reshape(-1), offsets=bounds)
        plan = None
        if torch.is_grad_enabled():
            plan = catch_up_tables((weights,), lookups.table_of, lookups.padding, inputs)
        pooled, rows = embedding_bags(
            weights,
            inputs.ids,
            inputs.offsets,
            per_sample_weights=inputs.values,
            tables=lookups.table_of,
            modes=self._modes,
            padding_idx=lookups.padding,
            sparse_grad=self.sparse,
            plan=plan,
            names=lookups.tables,
            **({} if self._in_backward is None else self._in_backward.arguments(weights)),
        )
        if self.keyed:
            return self._keyed(pooled, rows, inputs)
        return (pooled, self._by_output(rows, inputs)) if has_rows else pooled

    def _by_output(self, rows: list[Tensor], inputs: BagInputs) -> dict[str, Tensor]:
        places = [f for f, mode in enumerate(self._modes) if mode == "none"]
        out = {}
        for place, of_feature in zip(places, rows, strict=True):
            shape = inputs.shapes[place]
            if isinstance(shape, Tensor):
                of_feature = like_nested("EmbeddingCollection", shape, of_feature)
            elif shape:  # [B, L] ids: as many rows as ids, L of them a bag
                of_feature = of_feature.reshape(inputs.batch, *shape, of_feature.shape[1])
            out[self.outputs[place]] = of_feature
        return out

    def _pooled_dims(self) -> dict[str, int]:
        return {f: d for f, d, mode in zip(self.outputs, self._dims, self._modes, strict=True) if mode != "none"}

    def _keyed(self, pooled: Tensor, rows: list[Tensor], inputs: BagInputs) -> Any:
        dims, batch, offsets = self._pooled_dims(), inputs.batch, inputs.offsets
        jagged = {}
        if offsets is not None and rows:
            places = [f for f, mode in enumerate(self._modes) if mode == "none"]
            for place, of_feature in zip(places, rows, strict=True):
                own = offsets[place * batch : (place + 1) * batch + 1]
                jagged[self.outputs[place]] = jagged_tensor(of_feature, own)
        if not dims:
            return jagged
        keyed = keyed_tensor(list(dims), list(dims.values()), pooled)
        return (keyed, jagged) if jagged else keyed

    def split(self, pooled: Tensor) -> dict[str, Tensor]:
        """Take a pooled result apart.

        Args:
            pooled: [B, sum of D], as `forward` gave it.
        Returns:
            output to [B, D], views.
        """
        dims = self._pooled_dims()
        parts = pooled.split(list(dims.values()), dim=1)
        return {name: parts[number] for number, name in enumerate(dims)}  # by number: torch.fx cannot run over them

    def _apply(self, fn: Any, recurse: bool = True) -> EmbeddingCollection:
        super()._apply(fn, recurse)
        if self._in_backward is not None:
            self._in_backward.bind()
        return self

    def extra_repr(self) -> str:
        """Features and how their bags are pooled."""
        return (
            f"features={len(self.features)}, sparse={self.sparse}, optimizer_in_backward={self.optimizer is not None}"
        )


def _place_of(table: AnyTable) -> str:
    """Where a state dict of TorchRec has the tables that such configs make."""
    return "tables" if isinstance(table, Table) else "embedding_bags" if hasattr(table, "pooling") else "embeddings"
