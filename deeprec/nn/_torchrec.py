"""TorchRec's classes at the doors of our layers. They are known by their methods: nothing here imports TorchRec before
one of its results is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn


class JaggedTensor(Protocol):
    """What is used of `torchrec.JaggedTensor`: the bags of one feature."""

    def values(self) -> Tensor:
        """[nnz]."""

    def lengths_or_none(self) -> Tensor | None:
        """[B], or [F, B]."""

    def offsets(self) -> Tensor:
        """[B + 1]; none at all where B is 0."""

    def weights_or_none(self) -> Tensor | None:
        """[nnz]."""


class KeyedJaggedTensor(JaggedTensor, Protocol):
    """What is used of `torchrec.KeyedJaggedTensor`: the bags of several features, key after key."""

    def keys(self) -> list[str]:
        """The features."""

    def variable_stride_per_key(self) -> bool:
        """Whether the keys have numbers of bags of their own."""

    def stride_per_key(self) -> list[int]:
        """Those numbers."""

    def inverse_indices_or_none(self) -> Any:
        """Which bag serves which sample, where bags are shared."""


def is_jagged(value: Any) -> TypeGuard[JaggedTensor]:
    """Whether it is a JaggedTensor or a KeyedJaggedTensor."""
    return not isinstance(value, Tensor) and hasattr(value, "weights_or_none")


def is_keyed_jagged(value: Any) -> TypeGuard[KeyedJaggedTensor]:
    """Whether it is a KeyedJaggedTensor."""
    return not isinstance(value, Tensor) and hasattr(value, "stride_per_key") and hasattr(value, "weights_or_none")


def jagged_offsets(jagged: JaggedTensor) -> Tensor:
    """[F * B + 1]; also where B is 0, and where lengths are [F, B]."""
    lengths = jagged.lengths_or_none()
    if lengths is not None and lengths.dim() > 1:  # TorchRec would sum them row by row, and keep the result
        lengths = lengths.reshape(-1)
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
    offsets = jagged.offsets()
    return offsets if offsets.shape[0] else offsets.new_zeros(1)


def check_one_stride(owner: str, keyed: KeyedJaggedTensor) -> None:
    """Raise ValueError for keys with numbers of bags of their own."""
    if keyed.inverse_indices_or_none() is not None:
        raise ValueError(
            f"{owner}: a KeyedJaggedTensor must be without inverse_indices, got some; repeat the bags of each key, or "
            "index the result of a call for each batch size"
        )
    if keyed.variable_stride_per_key() and len(set(keyed.stride_per_key())) > 1:
        strides = dict(zip(keyed.keys(), keyed.stride_per_key(), strict=True))
        raise ValueError(
            f"{owner}: all keys of a KeyedJaggedTensor must have one number of bags, got {strides}; make a call for "
            "each batch size"
        )


def classes() -> tuple[Any, Any]:
    """`KeyedTensor` and `JaggedTensor` of TorchRec.

    Raises:
        ImportError: TorchRec is not installed.
    """
    try:
        from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor
    except ImportError as error:
        raise ImportError(
            f"EmbeddingCollection: keyed=True gives TorchRec's classes, which do not import here ({error}); install "
            "torchrec with an fbgemm-gpu of its version, or leave keyed out"
        ) from error
    return KeyedTensor, JaggedTensor


def keyed_tensor(keys: Sequence[str], dims: Sequence[int], pooled: Tensor) -> Any:
    """A `KeyedTensor` of pooled rows [B, sum of dims], not copied."""
    return classes()[0](list(keys), list(dims), pooled)


def jagged_tensor(rows: Tensor, offsets: Tensor) -> Any:
    """A `JaggedTensor` of the rows [nnz, D] of bags; offsets [B + 1] may begin anywhere."""
    return classes()[1](values=rows, lengths=offsets.diff())


def dtype_of(data_type: Any) -> torch.dtype:
    """A floating-point dtype from itself or from TorchRec's DataType.

    Raises:
        ValueError: the tables cannot have it.
    """
    dtypes = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}
    dtype = data_type if isinstance(data_type, torch.dtype) else dtypes.get(getattr(data_type, "value", ""))
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(
            f"Table: data_type must be float32, float64, bfloat16 or float16 of torch, or FP32, FP16 or BF16 of "
            f"TorchRec, got {data_type!r}"
        )
    return dtype


def parts_of_collection(module: Any) -> tuple[list[Any], str, nn.ModuleDict, bool] | None:
    """What is in an unsharded EmbeddingBagCollection or EmbeddingCollection of TorchRec.

    Returns:
        its configs, the name of the ModuleDict of its tables, that ModuleDict, and whether weights count; or None
        where module is neither.
    Raises:
        TypeError: it is sharded or quantized.
        ValueError: it gives indices as well.
    """
    for of_configs, place in (("embedding_bag_configs", "embedding_bags"), ("embedding_configs", "embeddings")):
        if hasattr(module, of_configs):
            tables = getattr(module, place, None)
            if not isinstance(tables, nn.ModuleDict) or not all(
                isinstance(table, (nn.Embedding, nn.EmbeddingBag)) for table in tables.values()
            ):
                raise TypeError(
                    f"EmbeddingCollection: a collection of TorchRec must hold modules of torch.nn, got "
                    f"{type(module).__name__}, which does not; give the one before it is sharded or quantized"
                )
            if hasattr(module, "need_indices") and module.need_indices():
                raise ValueError(
                    "EmbeddingCollection: module must be without need_indices, got True; the ids are what you pass in"
                )
            is_weighted = hasattr(module, "is_weighted") and bool(module.is_weighted())
            return getattr(module, of_configs)(), place, tables, is_weighted
    return None
