"""What a layer over several tables is made from: the tables, and the features that look up in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from deeprec.kernels.embedding_bag import MODES
from deeprec.nn._bag_inputs import Features
from deeprec.nn._torchrec import dtype_of
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


def table_names(names: Sequence[str]) -> list[str]:
    """Names by which a module can hold tables: no dots, no attributes of modules, each once."""
    made: list[str] = []
    for name in names:
        word = name.replace(".", "_") or "unnamed"
        while word in _TAKEN or word in made:
            word += "_table"
        made.append(word)
    return made


@dataclass(frozen=True)
class Table:
    """One table of a collection. TorchRec's EmbeddingBagConfig and EmbeddingConfig serve where a Table does.

    Attributes:
        name: unique; its parameter is `tables.NAME.weight`, and errors call it so.
        num_embeddings: rows R, >= 1.
        embedding_dim: columns D, >= 1.
        mode: "sum", "mean" or "max" of the rows of a bag; "none": the rows themselves.
        features: which columns of ids look up in it; default: one, named as the table.
        padding_idx: a row that starts as zeros, counts in no bag and gets no gradient; negative: from the end.
        init_fn: called once on the new weight [R, D], which it fills in place; default: as the layer says.
        data_type: float32, float64, bfloat16 or float16, or TorchRec's DataType; default: the `dtype` of the layer.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    mode: str = "sum"
    features: tuple[str, ...] = ()
    padding_idx: int | None = None
    init_fn: Callable[[Tensor], Any] | None = None
    data_type: torch.dtype | None = None

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
        features = tuple(self.features) or (self.name,)
        if len(set(features)) < len(features):
            raise ValueError(f"Table: features must differ from one another, got {features}")
        object.__setattr__(self, "features", features)
        if self.data_type is not None:
            object.__setattr__(self, "data_type", dtype_of(self.data_type))

    @torch.no_grad()
    def initialise(self, weight: Tensor) -> None:
        """Let init_fn, if there is one, fill the new weight [R, D]; the row of padding_idx is 0 after it.

        Raises:
            ValueError: init_fn made another tensor.
        """
        if self.init_fn is None:
            return
        filled = self.init_fn(weight)
        if isinstance(filled, Tensor) and filled.data_ptr() != weight.data_ptr():
            raise ValueError(
                f"Table: init_fn of {self.name!r} must fill the weight in place, got a new tensor; use weight.copy_()"
            )
        if self.padding_idx is not None:
            weight[self.padding_idx].zero_()


# A Table, or TorchRec's EmbeddingBagConfig or EmbeddingConfig, which are known by their attributes.
AnyTable: TypeAlias = "Table | Any"


def as_table(owner: str, config: AnyTable) -> Table:
    """The Table that one of TorchRec's configs describes; a Table itself.

    Raises:
        TypeError: it is neither.
        ValueError: it has an option that no table here can have.
    """
    if isinstance(config, Table):
        return config
    if not all(hasattr(config, key) for key in ("num_embeddings", "embedding_dim", "feature_names", "data_type")):
        raise TypeError(
            f"{owner}: tables must be Tables, or EmbeddingBagConfigs or EmbeddingConfigs of TorchRec, got "
            f"{type(config).__name__}"
        )
    mode = str(config.pooling.value).lower() if hasattr(config, "pooling") else "none"
    return Table(
        config.name,
        config.num_embeddings,
        config.embedding_dim,
        mode,
        tuple(config.feature_names),
        init_fn=config.init_fn,
        data_type=config.data_type,
    )


def features_of_tables(owner: str, tables: Sequence[Table]) -> Features:
    """What a layer over tables knows of its features.

    Args:
        owner: the layer, for errors.
        tables: any number >= 1.
    Raises:
        ValueError: there is no table, or a name occurs twice.
    """
    names = tuple(table.name for table in tables)
    lookups = tuple(feature for table in tables for feature in table.features)
    count = Counter(lookups)
    outputs = tuple(
        feature if count[feature] == 1 else f"{feature}@{table.name}" for table in tables for feature in table.features
    )
    for what, words in (("table", names), ("result", outputs)):
        twice = sorted(word for word, number in Counter(words).items() if number > 1)
        if twice or not words:
            raise ValueError(f"{owner}: each {what} must have a name of its own, got {twice or list(words)}")
    return Features(
        names,
        tuple(dict.fromkeys(lookups)),
        lookups,
        outputs,
        tuple(number for number, table in enumerate(tables) for _ in table.features),
        tuple(
            None if table.padding_idx is None else table.padding_idx % table.num_embeddings
            for table in tables
            for _ in table.features
        ),
    )


def dtype_of_tables(owner: str, tables: Sequence[Table], dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that a layer gives its tables; None: torch's default.

    Args:
        owner: the layer, for errors.
        tables: which may say it (`data_type`).
        dtype: of those that do not.
    Raises:
        ValueError: they do not have one dtype together.
    """
    kinds = {table.name: table.data_type or dtype or torch.get_default_dtype() for table in tables}
    if len({*kinds.values(), *(() if dtype is None else (dtype,))}) > 1:
        raise ValueError(
            f"{owner}: all tables must have one data_type, and dtype must be that or absent, got {kinds} and dtype "
            f"{dtype}; use a layer for each"
        )
    return next(iter(kinds.values()))


def make_tables(
    tables: Sequence[Table],
    *,
    sparse: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    embedding_dim: int | None = None,
) -> TableDict:
    """An `Embedding` for each table, torch's initial weights in it.

    Args:
        tables, sparse, device, dtype: of the layer.
        embedding_dim: columns of all of them instead of their own.
    """
    return TableDict(
        {
            table.name: Embedding(
                table.num_embeddings,
                embedding_dim or table.embedding_dim,
                table.padding_idx,
                sparse=sparse,
                device=device,
                dtype=dtype,
                name=table.name,
            )
            for table in tables
        }
    )
