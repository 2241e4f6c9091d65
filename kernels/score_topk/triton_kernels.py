"""Triton kernels of score_topk: a program walks its share of the catalogue and keeps the K best keys of its users.

A key is one int64: the score's bits in an order-preserving form above, the complement of the item id below. So a
larger key is a better recommendation, equal scores prefer the lower id, and keys never tie: the result does not depend
on how the catalogue is split. Seen items are looked up (binary search in the user's list) only where a score would
enter the K best.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.score_topk.reference import (
    score_items_ncf_reference,
    score_topk_ncf_reference,
    score_topk_reference,
)

MAX_K = 64  # above it the running list no longer fits registers, and the PyTorch reference serves
MAX_LAYERS = 3  # hidden layers after the first
MAX_WEIGHT_BYTES = 32768  # of one padded layer: it is held in shared memory
_NO_ITEM = -(2**63)
# Triton's interpreter would multiply the bit patterns of bfloat16.
_WIDEN = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Products of float32. NVIDIA has them on CUDA cores only, where a tile wants 6 KB a thread (spilled); three TF32
# products of split operands are as exact to within a few units in the last place, and stay in registers.
_PRECISION = "ieee" if torch.version.hip else "tf32x3"
_NUM_WARPS = {torch.float32: 8, torch.bfloat16: 4}  # of the network: a tile of float32 fills four warps' registers
_WANTED_PROGRAMS = 1024  # several for each multiprocessor of today's GPUs


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32 (no plain TF32)."""
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _keys_of(scores, items, valid):
    """int64 keys of scores; the smallest int64 where not valid, NaN or -inf."""
    scores = tl.where(scores == 0.0, 0.0, scores)  # -0.0 equals 0.0
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - items).to(tl.int64)
    return tl.where(valid & (scores > float("-inf")), keys, -9223372036854775808)


@triton.jit
def _is_seen(items, candidates, seen_indices, first, length, span):
    """Whether each item is in seen_indices[first : first + length] (sorted; length <= span); candidates only."""
    low = tl.zeros_like(items)
    high = low + length
    while span > 0:
        active = candidates & (low < high)
        middle = (low + high) // 2
        value = tl.load(seen_indices + first + middle, mask=active, other=0)
        low = tl.where(active & (value < items), middle + 1, low)
        high = tl.where(active & (value >= items), middle, high)
        span = span // 2
    found = tl.load(seen_indices + first + low, mask=candidates & (low < length), other=-1)
    return found == items


@triton.jit
def _merge(best, keys, KP: tl.constexpr):
    """The KP largest of best (descending) and keys, descending."""
    # The elementwise maximum of a falling and a rising list holds their KP largest, as a bitonic sequence.
    return tl.bitonic_merge(tl.maximum(best, tl.flip(tl.topk(keys, KP), 1)), descending=True)


@triton.jit
def _score_topk_dot_kernel(
    users,
    items,
    item_bias,
    seen_indptr,
    seen_indices,
    seen_rows,
    out,
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
        lists = rows.to(tl.int64)
        if HAS_ROWS:
            lists = tl.load(seen_rows + rows, mask=is_user, other=0)
        first = tl.load(seen_indptr + lists, mask=is_user, other=0)
        length = (tl.load(seen_indptr + lists + 1, mask=is_user, other=0) - first).to(tl.int32)
        span = tl.max(length)
    best = tl.full((BLOCK_B, KP), -9223372036854775808, tl.int64)
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
            scores = _dot(u, v, scores, PRECISION)
        if HAS_BIAS:
            scores += tl.load(item_bias + ids, mask=is_item, other=0.0)[None, :]
        wide_ids = tl.broadcast_to(ids[None, :], (BLOCK_B, BLOCK_N))
        keys = _keys_of(scores, wide_ids, is_user[:, None] & is_item[None, :])
        worst = tl.min(best, axis=1)
        candidates = keys > worst[:, None]
        if tl.max(candidates.to(tl.int32)) > 0:
            if HAS_SEEN:
                seen = _is_seen(wide_ids, candidates, seen_indices, first[:, None], length[:, None], span)
                keys = tl.where(seen, -9223372036854775808, keys)
            best = _merge(best, keys, KP)
    to = out + (rows[:, None].to(tl.int64) * tl.num_programs(1) + split) * KP + tl.arange(0, KP)[None, :]
    tl.store(to, best, mask=is_user[:, None])


@triton.jit
def _layer(
    x,
    weights,
    biases,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    OF_WEIGHTS: tl.constexpr,
    OF_BIASES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(x W^T + b), x [BLOCK_N, IN], W padded to [OUT, IN] at weights + OF_WEIGHTS."""
    rows = tl.arange(0, IN)
    columns = tl.arange(0, OUT)
    w = tl.load(weights + OF_WEIGHTS + columns[None, :] * IN + rows[:, None])
    y = _dot(x.to(w.dtype), w, tl.zeros((x.shape[0], OUT), tl.float32), PRECISION)
    return tl.maximum(y + tl.load(biases + OF_BIASES + columns)[None, :], 0.0)


@triton.jit
def _first(user_hidden, item_hidden, user, items, is_item, hidden, num_hidden):
    """relu of the split first layer for one user and some of the hidden units, [BLOCK_N, hidden]."""
    inside = hidden < num_hidden
    a = tl.load(user_hidden + user * num_hidden + hidden, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(
        item_hidden + items[:, None] * num_hidden + hidden[None, :], mask=is_item[:, None] & inside[None, :], other=0.0
    )
    return tl.maximum(a[None, :] + c.to(tl.float32), 0.0)


@triton.jit
def _score_topk_ncf_kernel(
    user_hidden,
    item_hidden,
    user_factors,
    item_factors,
    weights,
    biases,
    hidden_weight,
    out_bias,
    seen_indptr,
    seen_indices,
    seen_rows,
    out,
    num_items,
    num_hidden,
    num_factors,
    per_split,
    DENSE: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    LAYERS: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    PD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    KP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One user and one part of the catalogue: logits [B, N] where DENSE, else keys [B, splits, KP]."""
    user = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    bias = tl.load(out_bias)
    if HAS_FACTORS:
        factors = tl.arange(0, PD)
        g = tl.load(user_factors + user * num_factors + factors, mask=factors < num_factors, other=0.0).to(tl.float32)
    if HAS_SEEN:
        row = user
        if HAS_ROWS:
            row = tl.load(seen_rows + user)
        first = tl.load(seen_indptr + row)
        length = (tl.load(seen_indptr + row + 1) - first).to(tl.int32)
    if not DENSE:
        best = tl.full((1, KP), -9223372036854775808, tl.int64)
    begin = split * per_split
    end = tl.minimum(begin + per_split, num_items)
    for start in tl.range(begin, end, BLOCK_N, num_stages=1):
        ids = start + tl.arange(0, BLOCK_N)
        is_item = ids < end
        wide = ids.to(tl.int64)
        WIDTH: tl.constexpr = P0 if LAYERS == 0 else (P1 if LAYERS == 1 else (P2 if LAYERS == 2 else P3))
        if LAYERS == 0:
            x = _first(user_hidden, item_hidden, user, wide, is_item, tl.arange(0, P0), num_hidden)
        else:  # the widest product, in slices that fit registers
            y = tl.zeros((BLOCK_N, P1), tl.float32)
            for h in tl.range(0, P0, BLOCK_H, num_stages=1):
                hidden = h + tl.arange(0, BLOCK_H)
                x = _first(user_hidden, item_hidden, user, wide, is_item, hidden, num_hidden)
                w = tl.load(weights + tl.arange(0, P1)[None, :] * P0 + hidden[:, None])
                y = _dot(x.to(w.dtype), w, y, PRECISION)
            x = tl.maximum(y + tl.load(biases + tl.arange(0, P1))[None, :], 0.0)
        if LAYERS > 1:
            x = _layer(x, weights, biases, P2, P1, P1 * P0, P1, PRECISION)
        if LAYERS > 2:
            x = _layer(x, weights, biases, P3, P2, P1 * P0 + P2 * P1, P1 + P2, PRECISION)
        scores = bias + tl.sum(x * tl.load(hidden_weight + tl.arange(0, WIDTH))[None, :], axis=1)
        if HAS_FACTORS:
            gi = tl.load(
                item_factors + wide[:, None] * num_factors + factors[None, :],
                mask=is_item[:, None] & (factors < num_factors)[None, :],
                other=0.0,
            )
            scores += tl.sum(g[None, :] * gi.to(tl.float32), axis=1)
        if DENSE:
            tl.store(out + user * num_items + ids, scores, mask=is_item)
        else:
            keys = _keys_of(scores, ids, is_item)[None, :]
            candidates = keys > tl.min(best)
            if tl.max(candidates.to(tl.int32)) > 0:
                if HAS_SEEN:
                    seen = _is_seen(ids[None, :], candidates, seen_indices, first, length, length)
                    keys = tl.where(seen, -9223372036854775808, keys)
                best = _merge(best, keys, KP)
    if not DENSE:
        to = out + (user * tl.num_programs(1) + split) * KP + tl.arange(0, KP)[None, :]
        tl.store(to, best)


def _power_of_two(n: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(max(n, 1)))


def _splits(num_programs: int, num_items: int, block_n: int) -> tuple[int, int]:
    """(splits, items a split): enough programs to fill a GPU, whole tiles a split."""
    tiles = triton.cdiv(num_items, block_n)
    splits = max(1, min(tiles, _WANTED_PROGRAMS // max(1, num_programs)))
    per_split = triton.cdiv(tiles, splits) * block_n
    return triton.cdiv(num_items, per_split), per_split


def _unpack(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of [B, anything] keys as (values, ids)."""
    kept = min(k, keys.shape[1])
    best = keys.topk(kept, dim=1).values
    ordered = (best >> 32).to(torch.int32)
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    missing = best == _NO_ITEM
    values = values.masked_fill(missing, float("-inf"))
    ids = (0x7FFFFFFF - (best & 0xFFFFFFFF)).masked_fill(missing, -1)
    if kept < k:
        values = torch.nn.functional.pad(values, (0, k - kept), value=float("-inf"))
        ids = torch.nn.functional.pad(ids, (0, k - kept), value=-1)
    return values, ids


def score_topk_triton(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    k: int,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launcher of `score_topk` for the dot scorer; the reference where k > MAX_K or there is nothing to score."""
    num_users, num_items, dim = users.shape[0], items.shape[0], users.shape[1]
    if not 0 < k <= MAX_K or num_users == 0 or num_items == 0 or num_items >= 2**31:
        return score_topk_reference(users, items, item_bias, k, seen_indptr, seen_indices, seen_rows)
    if users.dtype != items.dtype:
        users, items = users.float(), items.float()
    users, items = users.contiguous(), items.contiguous()
    kp = triton.next_power_of_2(k)
    block_b, block_n = 16, 64
    blocks = triton.cdiv(num_users, block_b)
    splits, per_split = _splits(blocks, num_items, block_n)
    keys = torch.empty((num_users, splits, kp), dtype=torch.int64, device=users.device)
    _score_topk_dot_kernel[(blocks, splits)](
        users,
        items,
        item_bias.float().contiguous() if item_bias is not None else users,
        seen_indptr if seen_indptr is not None else users,
        seen_indices if seen_indices is not None else users,
        seen_rows if seen_rows is not None else users,
        keys,
        num_users,
        num_items,
        dim,
        per_split,
        HAS_BIAS=item_bias is not None,
        HAS_SEEN=seen_indptr is not None,
        HAS_ROWS=seen_rows is not None,
        BLOCK_B=block_b,
        BLOCK_N=block_n,
        BLOCK_D=32,
        KP=kp,
        PRECISION=_PRECISION,
    )
    return _unpack(keys.view(num_users, -1), k)


def _pack_network(
    weights: list[Tensor], biases: list[Tensor], widths: list[int], padded: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Every layer padded with zeros to powers of two, one after the other."""
    like = weights[0]
    packed = torch.zeros(sum(o * i for i, o in itertools.pairwise(padded)), dtype=dtype, device=like.device)
    shifts = torch.zeros(sum(padded[1:]), dtype=torch.float32, device=like.device)
    at = at_bias = 0
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        inputs, outputs = padded[layer], padded[layer + 1]
        block = packed[at : at + outputs * inputs].view(outputs, inputs)
        block[: widths[layer + 1], : widths[layer]] = weight.to(dtype)
        shifts[at_bias : at_bias + widths[layer + 1]] = bias
        at, at_bias = at + outputs * inputs, at_bias + outputs
    return packed, shifts


def _fits(padded: list[int], use_bfloat16: bool) -> bool:
    size = 2 if use_bfloat16 else 4
    return len(padded) - 1 <= MAX_LAYERS and all(
        i * o * size <= MAX_WEIGHT_BYTES for i, o in itertools.pairwise(padded)
    )


def _launch_ncf(
    user_hidden: Tensor,
    item_hidden: Tensor,
    user_factors: Tensor,
    item_factors: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None,
    use_bfloat16: bool,
    kp: int,
    seen: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Tensor | None:
    """Logits [B, N] for kp = 0, else keys [B, splits * kp]; None where the network does not fit the kernel."""
    num_users, num_items, num_hidden = user_hidden.shape[0], item_hidden.shape[0], user_hidden.shape[1]
    num_factors, device = user_factors.shape[1], user_hidden.device
    widths = [num_hidden, *(weight.shape[0] for weight in weights)]
    padded = [_power_of_two(width) for width in widths]
    if num_hidden == 0 or not _fits(padded, use_bfloat16) or num_factors > 256 or max(padded) > 256:
        return None
    weight = out_weight.float()
    hidden_weight = torch.nn.functional.pad(weight[num_factors:], (0, padded[-1] - widths[-1]))
    dtype = torch.bfloat16 if use_bfloat16 else torch.float32
    packed, shifts = _pack_network(weights, biases, widths, padded, dtype) if weights else (weight, weight)
    block_n = 64
    splits, per_split = _splits(num_users, num_items, block_n)
    shape = (num_users, splits * kp) if kp else (num_users, num_items)
    out = torch.empty(shape, dtype=torch.int64 if kp else torch.float32, device=device)
    padded += [16] * (MAX_LAYERS + 1 - len(padded))
    _score_topk_ncf_kernel[(num_users, splits)](
        user_hidden.contiguous(),
        item_hidden.contiguous(),
        (user_factors.float() * weight[:num_factors]).contiguous(),
        item_factors.contiguous(),
        packed,
        shifts,
        hidden_weight,
        out_bias.float() if out_bias is not None else torch.zeros(1, device=device),
        *(part if part is not None else weight for part in seen),
        out,
        num_items,
        num_hidden,
        num_factors,
        per_split,
        DENSE=kp == 0,
        HAS_FACTORS=num_factors > 0,
        HAS_SEEN=seen[0] is not None,
        HAS_ROWS=seen[2] is not None,
        LAYERS=len(weights),
        P0=padded[0],
        P1=padded[1],
        P2=padded[2],
        P3=padded[3],
        PD=_power_of_two(num_factors),
        BLOCK_N=block_n,
        BLOCK_H=16,
        KP=max(kp, 1),
        PRECISION=_PRECISION,
        num_warps=_NUM_WARPS[packed.dtype],
    )
    return out


def score_items_ncf_triton(
    user_hidden: Tensor,
    item_hidden: Tensor,
    user_factors: Tensor,
    item_factors: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None = None,
    use_bfloat16: bool = False,
) -> Tensor:
    """Launcher of `score_items` for the network; the reference where the network does not fit the kernel."""
    network = (
        user_hidden,
        item_hidden,
        user_factors,
        item_factors,
        weights,
        biases,
        out_weight,
        out_bias,
        use_bfloat16,
    )
    if user_hidden.shape[0] == 0 or item_hidden.shape[0] == 0:
        return score_items_ncf_reference(*network)
    scores = _launch_ncf(*network, 0, (None, None, None))
    return scores if scores is not None else score_items_ncf_reference(*network)


def score_topk_ncf_triton(
    user_hidden: Tensor,
    item_hidden: Tensor,
    user_factors: Tensor,
    item_factors: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None,
    use_bfloat16: bool,
    k: int,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launcher of `score_topk` for the network; the reference where it does not fit or k > MAX_K."""
    network = (
        user_hidden,
        item_hidden,
        user_factors,
        item_factors,
        weights,
        biases,
        out_weight,
        out_bias,
        use_bfloat16,
    )
    seen = (seen_indptr, seen_indices, seen_rows)
    keys = None
    if 0 < k <= MAX_K and user_hidden.shape[0] > 0 and 0 < item_hidden.shape[0] < 2**31:
        keys = _launch_ncf(*network, triton.next_power_of_2(k), seen)
    return _unpack(keys, k) if keys is not None else score_topk_ncf_reference(*network, k, *seen)


def compile_cases() -> list[CompileCase]:
    """Both kernels in float32 and bfloat16, as launched for K = 10 and K = 50; NeuMF-32's network."""
    constants: dict[str, Any]
    cases = []
    for kind, (backend, precision) in itertools.product(("fp32", "bf16"), (("cuda", "tf32x3"), ("hip", "ieee"))):
        for k in (16, 64):
            constants = {"HAS_BIAS": True, "HAS_SEEN": True, "HAS_ROWS": True}
            constants |= {"BLOCK_B": 16, "BLOCK_N": 64, "BLOCK_D": 32, "KP": k, "PRECISION": precision}
            signature = dict.fromkeys(("users", "items"), f"*{kind}") | {"item_bias": "*fp32"}
            signature |= {"seen_indptr": "*i64", "seen_indices": "*i32", "seen_rows": "*i64", "out": "*i64"}
            signature |= dict.fromkeys(("num_users", "num_items", "dim", "per_split"), "i32")
            signature |= dict.fromkeys(constants, "constexpr")
            name = f"score_topk_dot_{kind}_k{k}"
            cases.append(CompileCase(name, _score_topk_dot_kernel, signature, constants, (backend,)))
        for dense in (False, True):
            constants = {"DENSE": dense, "HAS_FACTORS": True, "HAS_SEEN": not dense, "HAS_ROWS": not dense}
            constants |= {"LAYERS": 2, "P0": 128, "P1": 64, "P2": 32, "P3": 16, "PD": 32}
            constants |= {"BLOCK_N": 64, "BLOCK_H": 16, "KP": 1 if dense else 16, "PRECISION": precision}
            names = ("user_hidden", "item_hidden", "user_factors", "item_factors")
            signature = dict.fromkeys(names, "*fp32") | {"weights": f"*{kind}", "biases": "*fp32"}
            signature |= {"hidden_weight": "*fp32", "out_bias": "*fp32", "seen_indptr": "*i64"}
            signature |= {"seen_indices": "*i32", "seen_rows": "*i64", "out": "*fp32" if dense else "*i64"}
            signature |= dict.fromkeys(("num_items", "num_hidden", "num_factors", "per_split"), "i32")
            signature |= dict.fromkeys(constants, "constexpr")
            name = f"{'score_items' if dense else 'score_topk'}_ncf_{kind}"
            num_warps = 8 if kind == "fp32" else 4
            cases.append(CompileCase(name, _score_topk_ncf_kernel, signature, constants, (backend,), num_warps))
    return cases
