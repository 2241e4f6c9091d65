"""Triton kernel of score_topk and score_items for the network: a program scores one user on its share of the catalogue.

See triton_keys.py for the keys.
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
from deeprec.kernels.score_topk.checks import Network, TopKOptions
from deeprec.kernels.score_topk.reference import score_items_ncf_reference, score_topk_ncf_reference
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

MAX_LAYERS = 3  # hidden layers after the first
MAX_WEIGHT_BYTES = 32768  # of one padded layer: it is held in shared memory


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
    y = dot(x.to(w.dtype), w, tl.zeros((x.shape[0], OUT), tl.float32), PRECISION)
    return tl.maximum(y + tl.load(biases + OF_BIASES + columns)[None, :], 0.0)


@triton.jit
def _first(user_hidden, item_hidden, user, items, is_item, hidden, num_hidden):
    """relu of the split first layer for one user and the hidden units `hidden`, [BLOCK_N, units]."""
    inside = hidden < num_hidden
    a = tl.load(user_hidden + user * num_hidden + hidden, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(
        item_hidden + items[:, None] * num_hidden + hidden[None, :], mask=is_item[:, None] & inside[None, :], other=0.0
    )
    return tl.maximum(a[None, :] + c.to(tl.float32), 0.0)


@triton.jit(do_not_specialize=("num_lists", "num_seen"))
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
    num_lists,
    num_seen,
    out,
    claim,
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
        it = tl.arange(0, 1)
        firsts, lengths = seen_lists(
            claim, seen_indptr, seen_rows, user + it, it == 0, num_lists, num_seen, HAS_ROWS, BAD_ROWS, BAD_INDPTR
        )
        first, length = tl.sum(firsts, 0), tl.sum(lengths, 0)
    if not DENSE:
        best = tl.full((1, KP), NO_ITEM, tl.int64)
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
                y = dot(x.to(w.dtype), w, y, PRECISION)
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
            keys = keys_of(scores, ids, is_item)[None, :]
            candidates = keys > tl.min(best)
            if tl.max(candidates.to(tl.int32)) > 0:
                if HAS_SEEN:
                    seen = is_seen(ids[None, :], candidates, seen_indices, first, length, length)
                    keys = tl.where(seen, NO_ITEM, keys)
                best = merge(best, keys, KP)
    if not DENSE:
        to = out + (user * tl.num_programs(1) + split) * KP + tl.arange(0, KP)[None, :]
        tl.store(to, best)


def _num_warps(dtype: torch.dtype, kp: int) -> int:
    """Eight for float32, unless the list of the best is long: then eight keep it in memory, and four do not."""
    return 8 if dtype == torch.float32 and kp < 32 else 4


def _power_of_two(n: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(max(n, 1)))


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
        shifts[at_bias : at_bias + widths[layer + 1]] = bias.reshape(-1)
        at, at_bias = at + outputs * inputs, at_bias + outputs
    return packed, shifts


def _fits(padded: list[int], use_bfloat16: bool) -> bool:
    size = 2 if use_bfloat16 else 4
    return len(padded) - 1 <= MAX_LAYERS and all(
        i * o * size <= MAX_WEIGHT_BYTES for i, o in itertools.pairwise(padded)
    )


def _launch_ncf(
    network: Network,
    kp: int,
    seen: Sequence[Tensor | None],
) -> Tensor | None:
    """Logits [B, N] for kp = 0, else keys [B, splits * kp]; None where the network does not fit the kernel."""
    user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight, out_bias, use_bfloat16 = network
    num_users, num_items, num_hidden = user_hidden.shape[0], item_hidden.shape[0], user_hidden.shape[1]
    num_factors, device = user_factors.shape[1], user_hidden.device
    widths = [num_hidden, *(weight.shape[0] for weight in weights)]
    padded = [_power_of_two(width) for width in widths]
    if num_hidden == 0 or not _fits(padded, use_bfloat16) or num_factors > 256 or max(padded) > 256:
        return None
    weight = out_weight.float().reshape(-1)
    hidden_weight = torch.nn.functional.pad(weight[num_factors:], (0, padded[-1] - widths[-1]))
    dtype = torch.bfloat16 if use_bfloat16 else torch.float32
    packed, shifts = _pack_network(weights, biases, widths, padded, dtype) if weights else (weight, weight)
    block_n = 64
    splits, per_split = splits_of(num_users, num_items, block_n)
    shape = (num_users, splits * kp) if kp else (num_users, num_items)
    out = torch.empty(shape, dtype=torch.int64 if kp else torch.float32, device=device)
    padded += [16] * (MAX_LAYERS + 1 - len(padded))
    launch(
        _score_topk_ncf_kernel,
        (num_users, splits),
        user_hidden.contiguous(),
        item_hidden.contiguous(),
        (user_factors.float() * weight[:num_factors]).contiguous(),
        item_factors.contiguous(),
        packed,
        shifts,
        hidden_weight,
        out_bias.float().reshape(-1) if out_bias is not None else torch.zeros(1, device=device),
        *seen_arguments(seen, weight),
        out,
        claim_of(device),
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
        PRECISION=PRECISION,
        num_warps=_num_warps(packed.dtype, kp),
    )
    return out


def score_items_ncf(*arguments: Any) -> Tensor:
    """Launcher of `score_items` for the network; the reference where the network does not fit the kernel.

    Args:
        arguments: the fields of `Network`.
    """
    network = Network(*arguments)
    if network.user_hidden.shape[0] == 0 or network.item_hidden.shape[0] == 0:
        return score_items_ncf_reference(*network)
    scores = _launch_ncf(network, 0, (None, None, None))
    return scores if scores is not None else score_items_ncf_reference(*network)


def score_topk_ncf(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Launcher of `score_topk` for the network; a list of allowed items costs a copy of their rows.

    The reference serves k > MAX_K, a list of allowed items for each user, and a network that does not fit.

    Args:
        arguments: the fields of `Network`, then those of `TopKOptions`.
    """
    network, options = Network(*arguments[:9]), TopKOptions(*arguments[9:])
    num_items, allowed = network.item_hidden.shape[0], options.allow_indices
    is_served = 0 < options.k <= MAX_K and network.user_hidden.shape[0] > 0 and 0 < num_items < 2**31
    if not is_served or options.allow_indptr is not None or (allowed is not None and not allowed.numel()):
        return score_topk_ncf_reference(*network, *options)
    kept = network
    seen: Sequence[Tensor | None] = options.seen
    if allowed is not None:
        allowed = allowed.reshape(-1).long()
        kept = network._replace(
            item_hidden=network.item_hidden.index_select(0, allowed),
            item_factors=network.item_factors.index_select(0, allowed),
        )
        seen = by_place(seen, allowed, num_items)
    keys = _launch_ncf(kept, triton.next_power_of_2(options.k), seen)
    if keys is None:
        return score_topk_ncf_reference(*network, *options)
    values, ids = unpack(keys, options.k)
    return values, ids if allowed is None else named(ids, allowed)


def compile_cases() -> list[CompileCase]:
    """NeuMF-32's network: all scores, and every K in float32; in bfloat16 that of one and of 10."""
    cases = []
    for kind, (backend, precision) in itertools.product(("fp32", "bf16"), (("cuda", "tf32x3"), ("hip", "ieee"))):
        widths = (0, 1, 2, 4, 8, 16, 32, 64) if kind == "fp32" else (0, 1, 16)
        cases += [_case(kind, kp, backend, precision) for kp in widths]
    return cases


def _case(kind: str, kp: int, backend: str, precision: str) -> CompileCase:
    dense = kp == 0
    constants: dict[str, Any] = {"DENSE": dense, "HAS_FACTORS": True, "HAS_SEEN": not dense, "HAS_ROWS": not dense}
    constants |= {"LAYERS": 2, "P0": 128, "P1": 64, "P2": 32, "P3": 16, "PD": 32}
    constants |= {"BLOCK_N": 64, "BLOCK_H": 16, "KP": max(kp, 1), "PRECISION": precision}
    names = ("user_hidden", "item_hidden", "user_factors", "item_factors")
    types = dict.fromkeys(names, "*fp32") | {"weights": f"*{kind}", "biases": "*fp32"}
    types |= {"hidden_weight": "*fp32", "out_bias": "*fp32", "seen_indptr": "*i64", "seen_indices": "*i32"}
    types |= {"seen_rows": "*i64", "out": "*fp32" if dense else "*i64", "claim": "*i64"}
    sizes = ("num_lists", "num_seen", "num_items", "num_hidden", "num_factors", "per_split")
    types |= dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {key: types[key] for key in _score_topk_ncf_kernel.arg_names}
    name = f"score_items_ncf_{kind}" if dense else f"score_topk_ncf_{kind}_k{kp}"
    num_warps = _num_warps(torch.float32 if kind == "fp32" else torch.bfloat16, kp)
    return CompileCase(name, _score_topk_ncf_kernel, signature, constants, (backend,), num_warps)
