"""Triton kernel of score_topk for dot products: a program walks its share of the catalogue and keeps the K best keys.

The network's is in triton_ncf.py, what both share in triton_keys.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.faults import claim_of
from deeprec.kernels.score_topk.checks import SIMILARITIES, TopKOptions
from deeprec.kernels.score_topk.reference import score_topk_reference, unit_rows
from deeprec.kernels.score_topk.triton_keys import (
    BAD_INDPTR,
    BAD_ROWS,
    MAX_K,
    NO_ITEM,
    PRECISION,
    by_place,
    dot,
    is_seen,
    keys_of,
    merge,
    named,
    seen_arguments,
    seen_lists,
    splits_of,
    unpack,
)
from deeprec.kernels.score_topk.triton_ncf import score_items_ncf, score_topk_ncf

__all__ = ["compile_cases", "score_items_ncf", "score_topk", "score_topk_ncf"]


@triton.jit(do_not_specialize=("num_lists", "num_seen"))
def _score_topk_dot_kernel(
    users,
    items,
    item_bias,
    seen_indptr,
    seen_indices,
    seen_rows,
    num_lists,
    num_seen,
    out,
    claim,
    num_users,
    num_items,
    dim,
    per_split,
    HAS_BIAS: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys [B, splits, KP] of users . items + item_bias over [split * per_split, (split + 1) * per_split)."""
    split = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_user = rows < num_users
    if HAS_SEEN:
        first, length = seen_lists(
            claim, seen_indptr, seen_rows, rows.to(tl.int64), is_user, num_lists, num_seen,
            HAS_ROWS, BAD_ROWS, BAD_INDPTR,
        )  # fmt: skip
        span = tl.max(length)
    best = tl.full((BLOCK_B, KP), NO_ITEM, tl.int64)
    begin = split * per_split
    end = tl.minimum(begin + per_split, num_items)
    for start in tl.range(begin, end, BLOCK_N, num_stages=1):
        ids = start + tl.arange(0, BLOCK_N)
        is_item = ids < end
        scores = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
        for d in tl.range(0, dim, BLOCK_D, num_stages=1):
            columns = d + tl.arange(0, BLOCK_D)
            inside = columns < dim
            u = tl.load(
                users + rows[:, None].to(tl.int64) * dim + columns[None, :],
                mask=is_user[:, None] & inside[None, :],
                other=0.0,
            )
            v = tl.load(
                items + ids[None, :].to(tl.int64) * dim + columns[:, None],
                mask=is_item[None, :] & inside[:, None],
                other=0.0,
            )
            scores = dot(u, v, scores, PRECISION)
        if HAS_BIAS:
            scores += tl.load(item_bias + ids, mask=is_item, other=0.0)[None, :]
        wide_ids = tl.broadcast_to(ids[None, :], (BLOCK_B, BLOCK_N))
        keys = keys_of(scores, wide_ids, is_user[:, None] & is_item[None, :])
        worst = tl.min(best, axis=1)
        candidates = keys > worst[:, None]
        if tl.max(candidates.to(tl.int32)) > 0:
            if HAS_SEEN:
                seen = is_seen(wide_ids, candidates, seen_indices, first[:, None], length[:, None], span)
                keys = tl.where(seen, NO_ITEM, keys)
            best = merge(best, keys, KP)
    to = out + (rows[:, None].to(tl.int64) * tl.num_programs(1) + split) * KP + tl.arange(0, KP)[None, :]
    tl.store(to, best, mask=is_user[:, None])


def score_topk(users: Tensor, items: Tensor, item_bias: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Launcher of `score_topk` for vectors.

    A list of allowed items costs a copy of their rows, and cosine a copy of all rows at unit length. The reference
    serves k > MAX_K, a list of allowed items for each user, distances, and where there is nothing to score.

    Args:
        arguments: the fields of `TopKOptions`.
    """
    options = TopKOptions(*arguments)
    num_items, allowed = items.shape[0], options.allow_indices
    is_served = 0 < options.k <= MAX_K and users.shape[0] > 0 and 0 < num_items < 2**31
    is_nearest = options.similarity == SIMILARITIES.index("l2")
    if not is_served or is_nearest or options.allow_indptr is not None or (allowed is not None and not allowed.numel()):
        return score_topk_reference(users, items, item_bias, *options)
    seen: Sequence[Tensor | None] = options.seen
    if allowed is not None:
        allowed = allowed.reshape(-1).long()
        items = items.index_select(0, allowed)
        item_bias = None if item_bias is None else item_bias.reshape(-1).index_select(0, allowed)
        seen = by_place(seen, allowed, num_items)
    if options.similarity == SIMILARITIES.index("cosine"):
        users, items = unit_rows(users), unit_rows(items)
    values, ids = unpack(_launch_dot(users, items, item_bias, options.k, seen), options.k)
    return values, ids if allowed is None else named(ids, allowed)


def _launch_dot(
    users: Tensor, items: Tensor, item_bias: Tensor | None, k: int, seen: Sequence[Tensor | None]
) -> Tensor:
    """Keys [B, splits * KP] of the best items."""
    num_users, num_items, dim = users.shape[0], items.shape[0], users.shape[1]
    if users.dtype != items.dtype or users.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        users, items = users.float(), items.float()
    users, items = users.contiguous(), items.contiguous()
    kp = triton.next_power_of_2(k)
    block_b, block_n = 16, 64
    blocks = triton.cdiv(num_users, block_b)
    splits, per_split = splits_of(blocks, num_items, block_n)
    keys = torch.empty((num_users, splits, kp), dtype=torch.int64, device=users.device)
    launch(
        _score_topk_dot_kernel,
        (blocks, splits),
        users,
        items,
        item_bias.float().reshape(-1).contiguous() if item_bias is not None else users,
        *seen_arguments(seen, users),
        keys,
        claim_of(users.device),
        num_users,
        num_items,
        dim,
        per_split,
        HAS_BIAS=item_bias is not None,
        HAS_SEEN=seen[0] is not None,
        HAS_ROWS=seen[2] is not None,
        BLOCK_B=block_b,
        BLOCK_N=block_n,
        BLOCK_D=32,
        KP=kp,
        PRECISION=PRECISION,
    )
    return keys.view(num_users, -1)


def compile_cases() -> list[CompileCase]:
    """Every K in float32; in bfloat16 that of one, 10 and 50."""
    constants: dict[str, Any]
    cases = []
    for kind, (backend, precision) in itertools.product(("fp32", "bf16"), (("cuda", "tf32x3"), ("hip", "ieee"))):
        for k in (1, 2, 4, 8, 16, 32, 64) if kind == "fp32" else (1, 16, 64):
            constants = {"HAS_BIAS": True, "HAS_SEEN": True, "HAS_ROWS": True}
            constants |= {"BLOCK_B": 16, "BLOCK_N": 64, "BLOCK_D": 32, "KP": k, "PRECISION": precision}
            signature = dict.fromkeys(("users", "items"), f"*{kind}") | {"item_bias": "*fp32"}
            signature |= {"seen_indptr": "*i64", "seen_indices": "*i32", "seen_rows": "*i64", "num_lists": "i32"}
            signature |= {"num_seen": "i32", "out": "*i64", "claim": "*i64"}
            signature |= dict.fromkeys(("num_users", "num_items", "dim", "per_split"), "i32")
            signature |= dict.fromkeys(constants, "constexpr")
            name = f"score_topk_dot_{kind}_k{k}"
            cases.append(CompileCase(name, _score_topk_dot_kernel, signature, constants, (backend,)))
    return cases
