"""How the Triton kernels of softmax_loss are launched: their shared arguments, tiles and shares of the work."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from deeprec.kernels.embedding_bag.triton_tables import rows_adjacent
from deeprec.kernels.score_topk.triton_keys import PRECISION
from deeprec.kernels.softmax_loss.checks import SoftmaxArguments

# Rows, candidates, widths of a product and of a gradient, and warps, so that all stays in registers.
_FLOAT32, _SIXTEEN_BITS, _HIP = (32, 16, 16, 64, 8), (64, 32, 32, 128, 8), (32, 16, 16, 32, 8)
_MANY_PROGRAMS, _MOST_SHARES = 512, 32


class Prepared(NamedTuple):
    """The arguments that both kernels share, in their order, and their constants.

    Attributes:
        tensors: queries to seen_rows.
        sizes: batch, num_items, dim, and the strides of queries and items.
        lists: how many lists of known positives there are, and the entries of all.
        num_warps: of a program.
    """

    tensors: tuple[Tensor, ...]
    sizes: tuple[int, int, int, int, int]
    lists: tuple[int, int]
    constants: dict[str, Any]
    num_warps: int


def inverse_lengths(x: Tensor) -> Tensor:
    """One over the length of each row of x [N, D], in float32; 0 for a row of zeros."""
    lengths = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return torch.where(lengths == 0, 0, 1 / lengths)


def prepare(given: SoftmaxArguments) -> Prepared:
    """The tensors as the kernels read them; what is not given is stood in for by `scale`, and not read."""
    queries, items = rows_adjacent(given.queries), rows_adjacent(given.items)
    scale = torch.full((queries.shape[0],), given.gamma, dtype=torch.float32, device=queries.device)
    inverse = None
    if given.cosine:
        inverse = inverse_lengths(items)
        scale = scale * inverse_lengths(queries)
    shift, log_q = None, None if given.log_q is None else given.log_q.contiguous()
    if given.bias is not None:
        shift = given.bias.float() if log_q is None else given.bias.float() - log_q
    elif log_q is not None:
        shift = -log_q
    optional = (
        inverse,
        None if shift is None else shift.contiguous(),
        None if given.correct_positive else log_q,
        None if given.item_ids is None else given.item_ids.contiguous(),
        None if given.item_ids is None or given.seen_indptr is None else given.item_ids.argsort(stable=True),
        *(None if x is None else x.contiguous() for x in (given.seen_indptr, given.seen_indices, given.seen_rows)),
    )
    names = ("HAS_INVERSE", "HAS_SHIFT", "HAS_LOG_Q", "HAS_IDS", "", "HAS_SEEN", "", "HAS_ROWS")
    constants: dict[str, Any] = {name: x is not None for name, x in zip(names, optional, strict=True) if name}
    tile = tile_of(queries.shape[1], queries.dtype == torch.float32, PRECISION)
    constants |= tile.constants
    constants["INCLUDE_POSITIVE"] = given.include_positive
    return Prepared(
        (queries, items, given.targets.contiguous(), scale, *(scale if x is None else x for x in optional)),
        (queries.shape[0], items.shape[0], queries.shape[1], queries.stride(0), items.stride(0)),
        (0, 0) if given.seen_indptr is None else (given.seen_indptr.numel() - 1, given.seen_indices.numel()),
        constants,
        tile.num_warps,
    )


class Tile(NamedTuple):
    """The constants that follow from width, element type and GPU, and `num_warps`."""

    constants: dict[str, Any]
    num_warps: int


def tile_of(dim: int, is_float32: bool, exact: str) -> Tile:
    """Rounding the factors of a gradient to TF32 costs less than that of a 16-bit result."""
    is_hip = exact == "ieee"
    block_b, block_n, block_k, most, num_warps = _HIP if is_hip else _FLOAT32 if is_float32 else _SIXTEEN_BITS
    block_d = max(16, min(triton.next_power_of_2(max(dim, 1)), most))
    constants: dict[str, Any] = {"BLOCK_B": block_b, "BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_D": block_d}
    constants |= {"PRECISION": exact, "GRAD_PRECISION": exact if is_float32 or is_hip else "tf32"}
    return Tile(constants, num_warps)


def shares_of(programs: int, size: int, block: int) -> tuple[int, int]:
    """(shares, size of each): enough programs to fill a GPU, whole blocks each."""
    blocks = max(1, triton.cdiv(size, block))
    shares = max(1, min(blocks, _MOST_SHARES, _MANY_PROGRAMS // max(1, programs)))
    per_share = triton.cdiv(blocks, shares) * block
    return max(1, triton.cdiv(size, per_share)), per_share
