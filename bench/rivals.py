"""Rivals that need more than a line: torch.compile, FBGEMM on the CPU. Imported only when they are to be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def compiled(function: Callable[..., Any], *, max_autotune: bool = False) -> Callable[..., Any]:
    """The function under torch.compile, for exactly the shapes it will be called with."""
    torch.compiler.reset()
    return torch.compile(
        function, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs" if max_autotune else None
    )


def fbgemm_tables(weights: Sequence[Tensor], *, pooling: str = "sum", lr: float = 0.05, eps: float = 1e-8) -> Any:
    """FBGEMM's table-batched embedding on the CPU with row-wise Adagrad inside its backward pass, weights copied in."""
    import fbgemm_gpu  # noqa: F401  (loads its operators)
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    precision = {torch.float32: SparseType.FP32, torch.float16: SparseType.FP16}[weights[0].dtype]
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(*weight.shape, EmbeddingLocation.HOST, ComputeDevice.CPU) for weight in weights],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=lr,
        eps=eps,
        pooling_mode={"sum": PoolingMode.SUM, "mean": PoolingMode.MEAN, "none": PoolingMode.NONE}[pooling],
        weights_precision=precision,
        output_dtype=SparseType.FP32,
    )
    for mine, weight in zip(module.split_embedding_weights(), weights, strict=True):
        mine.copy_(weight)
    return module


def torchrec_tables(weights: Sequence[Tensor]) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Any]]:
    """TorchRec's EmbeddingBagCollection, a feature a table: its forward pass, and ids [T, B] as it wants them."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    names = [f"f{number}" for number in range(len(weights))]
    configs = [
        EmbeddingBagConfig(
            name=f"t{number}",
            num_embeddings=weight.shape[0],
            embedding_dim=weight.shape[1],
            feature_names=[names[number]],
        )
        for number, weight in enumerate(weights)
    ]
    module = EmbeddingBagCollection(tables=configs)
    with torch.no_grad():
        for number, weight in enumerate(weights):
            module.embedding_bags[f"t{number}"].weight.copy_(weight)

    def prepare(ids: Tensor) -> Any:
        return KeyedJaggedTensor(names, ids.flatten(), lengths=torch.ones(ids.numel(), dtype=torch.int64))

    return lambda features: module(features).values(), prepare
