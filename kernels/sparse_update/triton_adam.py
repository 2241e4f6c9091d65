"""Triton kernels of Adam: lazy, equal to dense Adam, catching up, and dense on several tables in one launch.

Dense Adam replays missed steps in registers from tables of the steps' scalars (sparse_update_adam_dense.cpp has the
formula); only the steps whose contribution float32 can see are replayed. Of several tables a program finds its own in
a list of addresses. The launchers are in triton_adam_steps.py.
Hyperparameters reach the kernels as float32; 1 - beta is formed in float64 first, for 1 - float32(0.999) is 5e-5 off.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.embedding_bag.triton_tables import pointer_at
from deeprec.kernels.sparse_update.triton_rows import SEEDS, case_in_order, store_weight, update_types


@triton.jit
def _adam_row(
    table,  # weight, exp_avg, exp_avg_sq [R, D], last_step [R] where IS_DENSE, grads [U, D] where HAS_GRAD
    place,  # row of grads and row of the table; grad_stride, dim
    schedule,  # step_sizes, scales; ok [1] where IS_DENSE, set to 0 for a row behind the first of them
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
    weight, exp_avg, exp_avg_sq, last_step, grads = table
    i, row, grad_stride, dim = place
    step_sizes, scales, ok = schedule
    columns = dim
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
        is_behind = (missed > 0) & (last < history_start)
        tl.store(ok, 0, mask=is_behind)
        missed = tl.where(is_behind, 0, missed)
        columns = tl.where(is_behind, 0, dim)  # such a row stays as it is
        counted = tl.minimum(missed, max_counted)
        first_missed = last - history_start
    for begin in range(0, columns, BLOCK_D):
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
        element = row * dim + column
        store_weight(weight + element, w, element, in_row, seeds[0], seeds[1], IS_STOCHASTIC)
        tl.store(exp_avg + row * dim + column, m, mask=in_row)
        tl.store(exp_avg_sq + row * dim + column, v, mask=in_row)
    if IS_DENSE:
        tl.debug_barrier()  # all threads of the row have read the step that one of them now replaces
        if HAS_GRAD:
            tl.store(last_step + row, step, mask=is_behind == 0)
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
    ok,  # [1] int32 where IS_DENSE, set to 0 where a row is behind the history
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
    table = (weight, exp_avg, exp_avg_sq, last_step, grads)
    place = (i, row, grad_stride, dim)
    schedule = (step_sizes, scales, ok)
    seeds = (seed_low, seed_high)
    _adam_row(table, place, schedule, numbers, seeds, HAS_GRAD, IS_DENSE, HAS_DECAY, IS_STOCHASTIC, ACC, BLOCK_D)


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
    ok,
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
    table = (weight, exp_avg, exp_avg_sq, last_step, grads)
    place = (i, row, grad_stride, dim)
    schedule = (step_sizes, scales, ok)
    seeds = (seed, seed)
    _adam_row(table, place, schedule, numbers, seeds, HAS_GRAD, IS_DENSE, HAS_DECAY, IS_STOCHASTIC, ACC, BLOCK_D)


def warps_of(block: int) -> int:
    """Of a program of one row: each thread reads four columns, where there are as many."""
    return min(max(block // 128, 1), 8)


def compile_cases() -> list[CompileCase]:
    """Adam in each of its uses for the element types at D = 64, several tables at D = 128."""
    cases = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        state = "fp64" if element == "fp64" else "fp32"
        adam, constants = update_types(element)
        adam |= {"exp_avg": f"*{state}", "exp_avg_sq": f"*{state}", "last_step": "*i32"}
        adam |= {"step_sizes": f"*{state}", "scales": f"*{state}", "ok": "*i32"}
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
        cases.append(CompileCase(name, _adam_tables_kernel, adam, many, num_warps=warps_of(128)))
    return [case_in_order(case) for case in cases]
