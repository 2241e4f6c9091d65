"""Rivals that need more than a line, by device: torch.compile, FBGEMM, TorchRec, losses over all items, faiss.

Imported only when they are to be timed: a function here raises ImportError where its package is missing, and
`Trial.add_rival` notes why.
"""

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


def fbgemm_name(device: str) -> str:
    """As tables and targets call it."""
    return "FBGEMM CPU" if device == "cpu" else "FBGEMM TBE"


def fbgemm_tables(
    weights: Sequence[Tensor],
    *,
    pooling: str = "sum",
    optimizer: str = "EXACT_ROWWISE_ADAGRAD",
    lr: float = 0.05,
    eps: float = 1e-8,
) -> Any:
    """FBGEMM's table-batched embedding where the weights are, with the optimizer inside its backward pass.

    Args:
        weights: copied in; all of one dtype.
        optimizer: name of an `EmbOptimType`; on the CPU there is no Adam.
    """
    import fbgemm_gpu  # noqa: F401  (loads its operators)
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    if weights[0].device.type != "cpu":
        place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    precision = {torch.float32: SparseType.FP32, torch.float16: SparseType.FP16}[weights[0].dtype]
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(*weight.shape, *place) for weight in weights],
        optimizer=EmbOptimType[optimizer],
        learning_rate=lr,
        eps=eps,
        pooling_mode={"sum": PoolingMode.SUM, "mean": PoolingMode.MEAN, "none": PoolingMode.NONE}[pooling],
        weights_precision=precision,
        output_dtype=SparseType.FP32,
    )
    for mine, weight in zip(module.split_embedding_weights(), weights, strict=True):
        mine.copy_(weight)
    return module


def linear_losses(device: str) -> dict[str, Callable[[], Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Mean cross entropy over all items that never holds [B, N], by name: called, a function of x [B, D], items [N, D]
    and targets [B] that differentiates both.

    Raises:
        ImportError: from a call, where the package is missing.
    """
    if device == "cpu":
        return {}
    return {"cut cross entropy": _cut_cross_entropy, "Liger": _liger}


def _cut_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    return lambda x, items, targets: linear_cross_entropy(x, items, targets)


def _liger() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda x, items, targets: liger_fused_linear_cross_entropy(x, items, targets)


def faiss_topk(items: Tensor, seen_indptr: Tensor, seen_indices: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    """The k largest dot products of users [B, D] with items that each has not seen, by faiss's exact index on a GPU.

    faiss cannot leave out items by user: it is asked for as many more as the longest list holds.
    """
    import faiss
    import faiss.contrib.torch_utils

    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), items.shape[1])
    index.add(items)
    lengths = seen_indptr.diff()
    most = int(lengths.max())
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=items.device), lengths)
    keys = (owners * len(items) + seen_indices).sort().values

    def best(users: Tensor) -> Tensor:
        values, found = index.search(users, k + most)
        every = torch.arange(len(users), device=items.device).unsqueeze(1) * len(items) + found
        place = torch.searchsorted(keys, every).clamp_(max=len(keys) - 1)
        unseen: Tensor = values.masked_fill(keys[place] == every, float("-inf"))
        return unseen.topk(k).values

    return best


def exact_searches(items: Tensor, k: int, threads: int) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """Makers of exact searches on the CPU by other packages: the k largest dot products [B, k] of users [B, D].

    Each in its exact form, float32, with `threads` threads; whatever it prepares once is prepared by its maker.
    """
    vectors = items.numpy()

    def by_faiss() -> Callable[[Tensor], Tensor]:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return lambda users: torch.from_numpy(index.search(users.numpy(), k)[0])

    def by_usearch() -> Callable[[Tensor], Tensor]:
        from usearch.index import MetricKind, search

        def best(users: Tensor) -> Tensor:
            matches = search(vectors, users.numpy(), k, MetricKind.IP, exact=True, threads=threads)
            return 1.0 - torch.from_numpy(matches.distances).view(len(users), k)

        return best

    def by_implicit() -> Callable[[Tensor], Tensor]:
        from implicit.cpu.topk import topk
        from threadpoolctl import ThreadpoolController

        # It splits the users among threads of its own, and asks for a BLAS with one.
        ThreadpoolController().select(prefix="libscipy_openblas").limit(limits=1)
        return lambda users: torch.from_numpy(topk(vectors, users.numpy(), k, num_threads=threads)[1])

    return {"faiss, flat": by_faiss, "usearch, exact": by_usearch, "implicit, topk": by_implicit}


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
    module = EmbeddingBagCollection(tables=configs, device=weights[0].device)
    with torch.no_grad():
        for number, weight in enumerate(weights):
            module.embedding_bags[f"t{number}"].weight.copy_(weight)

    def prepare(ids: Tensor) -> Any:
        return KeyedJaggedTensor(
            names, ids.flatten(), lengths=torch.ones(ids.numel(), dtype=torch.int64, device=ids.device)
        )

    return lambda features: module(features).values(), prepare
