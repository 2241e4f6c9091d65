"""What sums floats on a GPU in no fixed order, or leaves open which of several values a place keeps.

From the lists of `torch.use_deterministic_algorithms` (PyTorch 2.13), and attention's gradient. By these lists
`index_put_` with accumulate sums in order on a GPU, but not on a CPU. Sums of whole numbers are exact in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
# Always.
SUMS = {
    *(aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_, aten.index_reduce, aten.index_reduce_),
    *(aten.cumsum, aten.cumsum_, aten.histc, aten.bincount, aten.put, aten.put_),
    *(aten.nll_loss_forward, aten.nll_loss2d_forward, aten._ctc_loss_backward, aten._embedding_bag_dense_backward),
    *(aten.grid_sampler_2d_backward, aten.grid_sampler_3d_backward, aten.avg_pool3d_backward),
    *(aten._adaptive_avg_pool2d_backward, aten._adaptive_avg_pool3d_backward, aten.adaptive_max_pool2d_backward),
    *(aten.fractional_max_pool2d_backward, aten.fractional_max_pool3d_backward, aten.max_pool3d_with_indices_backward),
    *(aten.reflection_pad1d_backward, aten.reflection_pad2d_backward, aten.reflection_pad3d_backward),
    *(aten.replication_pad1d_backward, aten.replication_pad2d_backward, aten.replication_pad3d_backward),
    *(aten.upsample_linear1d_backward, aten.upsample_bilinear2d_backward, aten.upsample_bicubic2d_backward),
    *(aten.upsample_trilinear3d_backward, aten.max_unpool2d, aten.max_unpool3d, aten._sparse_mm, aten.median),
    *(aten._scaled_dot_product_flash_attention_backward, aten._scaled_dot_product_efficient_attention_backward),
}
# By how they reduce: the largest and the smallest are the same in any order.
REDUCTIONS = {aten.scatter, aten.scatter_, aten.scatter_reduce, aten.scatter_reduce_}
ORDERED = {"amax", "amin"}
# Where the index repeats, and the values differ.
WRITES = {aten.index_put, aten.index_put_, aten._index_put_impl_, aten.index_copy, aten.index_copy_}


def _reduction(args: Any, kwargs: Any) -> str:
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, str)), "")


def _has_floats(args: Any, kwargs: Any) -> bool:
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    return any(x.is_floating_point() for x in tensors) or kwargs.get("dtype") in (torch.float32, torch.float64)


def _accumulates(args: Any, kwargs: Any) -> bool:
    return bool(args[3] if len(args) > 3 else kwargs.get("accumulate", False))


def is_unordered_sum(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call of an operator of ATen sums floats in no fixed order on a GPU."""
    packet = func.overloadpacket
    if packet in REDUCTIONS:
        reduction = _reduction(args, kwargs)
        return bool(reduction) and reduction not in ORDERED and _has_floats(args, kwargs)
    return packet in SUMS and _has_floats(args, kwargs)


def is_unordered_write(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call of an operator of ATen writes several floats by an index, which must not repeat then."""
    packet = func.overloadpacket
    if packet in REDUCTIONS:
        return "src" in func._overloadname and not _reduction(args, kwargs) and _has_floats(args, kwargs)
    if packet not in WRITES or not args[0].is_floating_point():
        return False
    if packet in (aten.index_copy, aten.index_copy_):
        return True
    is_mask = any(index is not None and index.dtype == torch.bool for index in args[1])
    return not is_mask and not _accumulates(args, kwargs) and args[2].numel() > 1


def is_sum_of_index_put(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call of an operator of ATen is `index_put_` with accumulate for floats: in order on a GPU alone."""
    puts = (aten.index_put, aten.index_put_, aten._index_put_impl_)
    return func.overloadpacket in puts and _accumulates(args, kwargs) and args[0].is_floating_point()
