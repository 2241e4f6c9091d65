"""Triton kernels of Adam: lazy, equal to dense Adam, catching up, and dense on several tables in one launch.

Dense Adam replays missed steps in registers from tables of the steps' scalars (sparse_update_adam_dense.cpp has the
formula); only the steps whose contribution float32 can see are replayed. Of several tables a program finds its own in
a list of addresses.
Hyperparameters reach the kernels as float32; 1 - beta is formed in float64 first, for 1 - float32(0.999) is 5e-5 off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.embedding_bag.triton_tables import pointer_at, sent
from deeprec.kernels.sparse_update.checks import (
    AdamRule,
    Replay,
    check_adam,
    check_replay,
    check_replayed_step,
)
from deeprec.kernels.sparse_update.triton_rows import (
    SEEDS,
    case_in_order,
    check,
    check_flat,
    check_tables,
    store_weight,
    types_of,
    update_types,
)


@triton.jit
def _adam_row(
    weight,  # [R, D]
    exp_avg,  # [R, D]
    exp_avg_sq,  # [R, D]
    last_step,  # [R], where IS_DENSE
    grads,  # [U, D], where HAS_GRAD
    step_sizes,
    scales,
    i,  # row of grads
    row,
    grad_stride,
    dim,
    numbers,  # the kernels' arguments from `step` to `weight_decay`
    seeds,
    HAS_GRAD: tl.constexpr,
    IS_DENSE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Catch one row up to step - 1 (to step without a gradient), then step `step` of Adam with the gradient."""
    step, history_start, max_counted, beta1, rest1, beta2, rest2 = numbers[:7]
    root_beta2, log2_beta1, log2_beta2, eps, weight_decay = numbers[7:]
    if IS_DENSE:
        last = tl.load(last_step + row)
        goal = step
        if HAS_GRAD:
            goal = step - 1
        missed = tl.maximum(goal - last, 0)
        if not HAS_DECAY:
            missed = tl.where(last == 0, 0, missed)  # before its first gradient a row stands still
        counted = tl.minimum(missed, max_counted)
        first_missed = last - history_start
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w = tl.load(weight + row * dim + column, mask=in_row, other=0.0).to(ACC)
        m = tl.load(exp_avg + row * dim + column, mask=in_row, other=0.0)
        v = tl.load(exp_avg_sq + row * dim + column, mask=in_row, other=1.0)
        if IS_DENSE:
            if HAS_DECAY:
                for k in range(missed):
                    g = weight_decay * w
                    m = (beta1 * m + rest1 * g).to(ACC)
                    v = (beta2 * v + rest2 * g * g).to(ACC)
                    size = tl.load(step_sizes + first_missed + k)
                    scale = tl.load(scales + first_missed + k)
                    w = (w - size * m / (tl.sqrt(v) * scale + eps)).to(ACC)
            else:
                r = tl.sqrt(v)
                moved = tl.zeros([BLOCK_D], ACC)
                decay1 = tl.full([1], 1.0, ACC)
                decay2 = tl.full([1], 1.0, ACC)
                for k in range(counted):
                    decay1 = (decay1 * beta1).to(ACC)
                    decay2 = (decay2 * root_beta2).to(ACC)
                    size = tl.load(step_sizes + first_missed + k) * decay1
                    scale = tl.load(scales + first_missed + k) * decay2
                    moved += size / (r * scale + eps)
                w -= m * moved
                m = (m * tl.exp2(missed * log2_beta1)).to(ACC)
                v = (v * tl.exp2(missed * log2_beta2)).to(ACC)
        if HAS_GRAD:
            g = tl.load(grads + i * grad_stride + column, mask=in_row, other=0.0).to(ACC) + weight_decay * w
            m = (beta1 * m + rest1 * g).to(ACC)
            v = (beta2 * v + rest2 * g * g).to(ACC)
            size = tl.load(step_sizes + (step - 1 - history_start))
            scale = tl.load(scales + (step - 1 - history_start))
            w = (w - size * m / (tl.sqrt(v) * scale + eps)).to(ACC)
        place = row * dim + column
        store_weight(weight + place, w, place, in_row, seeds[0], seeds[1], IS_STOCHASTIC)
        tl.store(exp_avg + row * dim + column, m, mask=in_row)
        tl.store(exp_avg_sq + row * dim + column, v, mask=in_row)
    if IS_DENSE:
        if HAS_GRAD:
            tl.store(last_step + row, step)
        else:
            tl.store(last_step + row, tl.where(missed > 0, step, last))


@triton.jit(do_not_specialize=("step", "history_start", *SEEDS))  # they change at every step
def _adam_update_kernel(
    weight,  # [R, D]
    exp_avg,  # [R, D]
    exp_avg_sq,  # [R, D]
    last_step,  # [R] int32, or anything where IS_DENSE is off
    rows,  # [U], or anything where ALL_ROWS is on
    grads,  # [U, D], rows grad_stride elements apart, or anything where HAS_GRAD is off
    step_sizes,  # lr_t / (1 - beta1^t) of step t at [t - 1 - history_start]
    scales,  # 1 / sqrt(1 - beta2^t), likewise
    grad_stride,
    dim,
    step,
    history_start,
    max_counted,
    beta1,
    rest1,
    beta2,
    rest2,
    root_beta2,
    log2_beta1,
    log2_beta2,
    eps,
    weight_decay,
    seed_low,
    seed_high,
    HAS_GRAD: tl.constexpr,
    IS_DENSE: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Catch up to step - 1 (to step without a gradient), then step `step` of Adam with the gradient."""
    i = tl.program_id(0).to(tl.int64)
    row = i
    if not ALL_ROWS:
        row = tl.load(rows + i).to(tl.int64)
    numbers = (step, history_start, max_counted, beta1, rest1, beta2, rest2)
    numbers += (root_beta2, log2_beta1, log2_beta2, eps, weight_decay)
    _adam_row(
        weight,
        exp_avg,
        exp_avg_sq,
        last_step,
        grads,
        step_sizes,
        scales,
        i,
        row,
        grad_stride,
        dim,
        numbers,
        (seed_low, seed_high),
        HAS_GRAD,
        IS_DENSE,
        HAS_DECAY,
        IS_STOCHASTIC,
        ACC,
        BLOCK_D,
    )


# Columns of a table's line: addresses, then numbers; the last is the rows of the tables before it.
_WEIGHT, _AVG, _AVG_SQ, _LAST, _ROWS, _GRADS, _GRAD_STRIDE, _DIM, _FIRST = (tl.constexpr(k) for k in range(9))
_FIELDS = tl.constexpr(9)


@triton.jit(do_not_specialize=("num_tables", "table_steps", "step", "history_start"))
def _adam_tables_kernel(
    lines,  # [T, _FIELDS]
    weight_like,  # of the types that the addresses point to
    state_like,
    last_like,
    rows_like,
    grads_like,
    step_sizes,
    scales,
    num_tables,
    table_steps,
    step,
    history_start,
    max_counted,
    beta1,
    rest1,
    beta2,
    rest2,
    root_beta2,
    log2_beta1,
    log2_beta2,
    eps,
    weight_decay,
    HAS_DECAY: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,  # elements by which all rows are aligned
    BLOCK_D: tl.constexpr,
):
    """`_adam_update_kernel`, dense and with a gradient, for the rows of several tables."""
    program = tl.program_id(0).to(tl.int64)
    low = tl.program_id(0) * 0
    high = low + num_tables
    for _ in range(table_steps):  # the last table that begins at this program or before
        middle = (low + high) // 2
        is_before = tl.load(lines + middle * _FIELDS + _FIRST) <= program
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    line = lines + low * _FIELDS
    i = program - tl.load(line + _FIRST)
    row = tl.load(tl.load(line + _ROWS).to(rows_like.dtype) + i).to(tl.int64)
    weight = pointer_at(tl.load(line + _WEIGHT), weight_like, VEC > 1)
    exp_avg = pointer_at(tl.load(line + _AVG), state_like, VEC > 1)
    exp_avg_sq = pointer_at(tl.load(line + _AVG_SQ), state_like, VEC > 1)
    last_step = tl.load(line + _LAST).to(last_like.dtype)
    grads = pointer_at(tl.load(line + _GRADS), grads_like, VEC > 1)
    grad_stride = tl.multiple_of(tl.load(line + _GRAD_STRIDE), VEC)
    dim = tl.multiple_of(tl.load(line + _DIM), VEC)
    seed = program.to(tl.int32)  # no rounding at random: nobody reads the seeds
    HAS_GRAD: tl.constexpr = True
    IS_DENSE: tl.constexpr = True
    IS_STOCHASTIC: tl.constexpr = False
    numbers = (step, history_start, max_counted, beta1, rest1, beta2, rest2)
    numbers += (root_beta2, log2_beta1, log2_beta2, eps, weight_decay)
    _adam_row(
        weight,
        exp_avg,
        exp_avg_sq,
        last_step,
        grads,
        step_sizes,
        scales,
        i,
        row,
        grad_stride,
        dim,
        numbers,
        (seed, seed),
        HAS_GRAD,
        IS_DENSE,
        HAS_DECAY,
        IS_STOCHASTIC,
        ACC,
        BLOCK_D,
    )


def _numbers(weight: Tensor, replay: Replay, rule: AdamRule) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """step_sizes and scales of the steps, and the kernels' arguments from `step` to `weight_decay`."""
    (learning_rates, history_start, step), (beta1, beta2, eps, weight_decay) = replay, rule
    state = torch.float64 if weight.dtype == torch.float64 else torch.float32
    steps = torch.arange(history_start + 1, step + 1, dtype=torch.float64, device=weight.device)
    step_sizes = (learning_rates[: steps.numel()] / (1 - beta1**steps)).to(state)
    scales = (1 - beta2**steps).rsqrt().to(state)
    ratio = beta1 / math.sqrt(beta2) if beta2 > 0 else 1.0
    is_endless = ratio > 0.99 or state == torch.float64
    max_counted = 2**31 - 1 if is_endless else 1 if ratio <= 0 else math.ceil(-23.0 / math.log(ratio))
    numbers = (step, history_start, max_counted, beta1, 1 - beta1, beta2, 1 - beta2, math.sqrt(beta2))
    logarithms = (math.log2(beta) if beta > 0 else -1e4 for beta in (beta1, beta2))
    return step_sizes, scales, (*numbers, *logarithms, eps, weight_decay)


class _Table(NamedTuple):
    """A table and what a launch reads beside it.

    Attributes:
        weight, exp_avg, exp_avg_sq: [R, D].
        last_step: [R] int32; None for lazy Adam.
        rows: [U] ascending; None: all rows.
        grads: [U, D]; None: catch up only.
    """

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    last_step: Tensor | None
    rows: Tensor | None
    grads: Tensor | None


def _launch_adam(table: _Table, replay: Replay, rule: AdamRule, seed: int = -1) -> None:
    weight, exp_avg, exp_avg_sq, last_step, rows, grads = table
    count = weight.shape[0] if rows is None else rows.numel()
    if count == 0 or replay.step == replay.history_start:
        return
    step_sizes, scales, numbers = _numbers(weight, replay, rule)
    _adam_update_kernel[(count,)](
        weight,
        exp_avg,
        exp_avg_sq,
        weight if last_step is None else last_step,
        weight if rows is None else rows,
        weight if grads is None else grads,
        step_sizes,
        scales,
        0 if grads is None else grads.stride(0),
        weight.shape[1],
        *numbers,
        HAS_GRAD=grads is not None,
        IS_DENSE=last_step is not None,
        ALL_ROWS=rows is None,
        HAS_DECAY=rule.weight_decay != 0,
        **types_of(weight, seed),
    )


def adam_update_(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor, grads: Tensor, step: int, lr: float, *args: Any
) -> None:
    """Launch `_adam_update_kernel` for one step of lazy Adam.

    Args:
        args: the fields of `AdamRule`, and perhaps the seed of stochastic rounding.
    """
    rule, seed = AdamRule(*args[:4]), args[4] if len(args) > 4 else -1
    check_adam("adam_update_", step, lr, rule)
    grads = check("adam_update_", weight, rows, grads, exp_avg, exp_avg_sq)
    lrs = torch.full((1,), lr, dtype=torch.float64, device=weight.device)
    table = _Table(weight, exp_avg, exp_avg_sq, None, rows, grads)
    _launch_adam(table, Replay(lrs, step - 1, step), rule, seed)


def adam_catch_up_(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, rows: Tensor | None, *args: Any
) -> None:
    """Launch `_adam_update_kernel` without a gradient.

    Args:
        args: the fields of `Replay`, then those of `AdamRule`.
    """
    replay, rule = Replay(*args[:3]), AdamRule(*args[3:])
    check_replay("adam_catch_up_", replay, rule)
    check_flat("adam_catch_up_", [weight], [exp_avg, exp_avg_sq, last_step])
    unique = None
    if rows is not None:
        unique = rows.unique()  # sorted: one program a row, whatever the caller repeats
        if unique.numel() and bool((unique[0] < 0) | (unique[-1] >= weight.shape[0])):
            raise RuntimeError(f"adam_catch_up_: rows must be in [0, {weight.shape[0]})")
    _launch_adam(_Table(weight, exp_avg, exp_avg_sq, last_step, unique, None), replay, rule)


def adam_dense_update_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor,
    grads: Tensor,
    *args: Any,
) -> None:
    """Launch `_adam_update_kernel` with catch-up and gradient.

    Args:
        args: the fields of `Replay`, then those of `AdamRule`.
    """
    replay, rule = Replay(*args[:3]), AdamRule(*args[3:])
    check_replayed_step("adam_dense_update_", replay, rule)
    grads = check("adam_dense_update_", weight, rows, grads, exp_avg, exp_avg_sq, last_step)
    _launch_adam(_Table(weight, exp_avg, exp_avg_sq, last_step, rows, grads), replay, rule)


def _warps_of(block: int) -> int:
    """Of a program of one row: each thread reads four columns, where there are as many."""
    return min(max(block // 128, 1), 8)


def adam_dense_update_tables_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    last_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    *args: Any,
) -> None:
    """Launch `_adam_tables_kernel`, once for all tables whose rows fill the same block.

    Args:
        args: the fields of `Replay`, then those of `AdamRule`.
    """
    replay, rule = Replay(*args[:3]), AdamRule(*args[3:])
    check_replayed_step("adam_dense_update_tables_", replay, rule)
    grads = check_tables("adam_dense_update_tables_", weights, rows, grads, [*exp_avgs, *exp_avg_sqs, *last_steps])
    tables = [t for t in zip(weights, exp_avgs, exp_avg_sqs, last_steps, rows, grads, strict=True) if t[4].numel()]
    if not tables or replay.step == replay.history_start:
        return
    step_sizes, scales, numbers = _numbers(weights[0], replay, rule)
    groups: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}
    for table in tables:
        key = (types_of(table[0])["BLOCK_D"], *(x.dtype for x in table))
        groups.setdefault(key, []).append(table)
    for (block, *_), group in groups.items():
        lines, count = [], 0
        for table in group:
            lines += [*(x.data_ptr() for x in table), table[5].stride(0), table[0].shape[1], count]
            count += table[4].numel()
        weight, exp_avg, _, last_step, some_rows, some_grads = group[0]
        elements = 16 // weight.element_size()
        places = [x.data_ptr() % 16 for w, m, v, _, _, g in group for x in (w, m, v, g)]
        widths = [n % elements for w, _, _, _, _, g in group for n in (w.shape[1], g.stride(0))]
        _adam_tables_kernel[(count,)](
            sent(lines, torch.int64, weight.device),
            weight,
            exp_avg,
            last_step,
            some_rows,
            some_grads,
            step_sizes,
            scales,
            len(group),
            len(group).bit_length(),
            *numbers,
            HAS_DECAY=rule.weight_decay != 0,
            ACC=types_of(weight)["ACC"],
            VEC=1 if any((*places, *widths)) else elements,
            BLOCK_D=block,
            num_warps=_warps_of(block),
        )


def compile_cases() -> list[CompileCase]:
    """Adam in each of its uses for the element types at D = 64, several tables at D = 128."""
    cases = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        state = "fp64" if element == "fp64" else "fp32"
        adam, constants = update_types(element)
        adam |= {"exp_avg": f"*{state}", "exp_avg_sq": f"*{state}", "last_step": "*i32"}
        adam |= {"step_sizes": f"*{state}", "scales": f"*{state}"}
        adam |= dict.fromkeys(("step", "history_start", "max_counted"), "i32")
        scalars = "beta1 rest1 beta2 rest2 root_beta2 log2_beta1 log2_beta2 eps weight_decay"
        adam |= dict.fromkeys(scalars.split(), "fp32")
        adam |= dict.fromkeys(("HAS_GRAD", "IS_DENSE", "ALL_ROWS", "HAS_DECAY"), "constexpr")
        for name, has_grad, is_dense, has_decay in (
            ("adam_update", True, False, False),
            ("adam_dense_update", True, True, False),
            ("adam_dense_update_decay", True, True, True),
            ("adam_catch_up", False, True, False),
        ):
            options = {"HAS_GRAD": has_grad, "IS_DENSE": is_dense, "ALL_ROWS": not has_grad, "HAS_DECAY": has_decay}
            cases.append(CompileCase(f"{name}_{element}", _adam_update_kernel, adam, constants | options))
        adam |= {"weight_like": f"*{element}", "state_like": f"*{state}", "last_like": "*i32", "rows_like": "*i64"}
        adam |= {"grads_like": f"*{element}", "lines": "*i64", "num_tables": "i32", "table_steps": "i32"}
        adam |= {"VEC": "constexpr"}
        vec = 16 // {"fp32": 4, "fp64": 8}.get(element, 2)
        many = {"HAS_DECAY": False, "ACC": constants["ACC"], "VEC": vec, "BLOCK_D": 128}
        name = f"adam_dense_update_tables_{element}"
        cases.append(CompileCase(name, _adam_tables_kernel, adam, many, num_warps=_warps_of(128)))
    return [case_in_order(case) for case in cases]
