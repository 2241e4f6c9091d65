"""Triton kernels of the fused row updates: one program updates one row, so rows never race.

Hyperparameters reach the kernels as float32; 1 - beta is formed in float64 first, for 1 - float32(0.999) is 5e-5 off.
Dense Adam replays missed steps in registers from tables of the steps' scalars (sparse_update_adam_dense.cpp has the
formula); only the steps whose contribution float32 can see are replayed.
Stochastic rounding draws the bits of `round_stochastically` (reference.py), so every device stores the same weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase

SEEDS = ("seed_low", "seed_high")  # the halves of the seed as int32; they change at every step


@triton.jit
def _mix(x):
    """The bijection of 32 bits by which the reference mixes; x is uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def store_weight(pointer, value, element, mask, seed_low, seed_high, IS_STOCHASTIC: tl.constexpr):
    """Store value in the dtype of the table; element is the place row * D + d in it, int64."""
    if IS_STOCHASTIC:
        low = (element & 0xFFFFFFFF).to(tl.uint32) ^ seed_low.to(tl.uint32, bitcast=True)
        high = (element >> 32).to(tl.uint32) + seed_high.to(tl.uint32, bitcast=True)
        bits = _mix(_mix(low) ^ high)
        whole = value.to(tl.uint32, bitcast=True)
        rounded = (whole + (bits & 0xFFFF)) >> 16
        is_nan = (whole & 0x7FFFFFFF) > 0x7F800000
        is_finite = (whole & 0x7F800000) != 0x7F800000
        rounded = tl.where(is_finite, rounded, (whole >> 16) | (is_nan.to(tl.uint32) << 6))
        tl.store(pointer, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SEEDS)
def _sgd_update_kernel(
    weight,  # [R, D]
    buffer,  # [R, D], or anything where HAS_MOMENTUM is off
    rows,  # [U]
    grads,  # [U, D], rows grad_stride elements apart
    grad_stride,
    dim,
    lr,
    momentum,
    weight_decay,
    seed_low,
    seed_high,
    HAS_MOMENTUM: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """buffer <- momentum buffer + g; w <- w - lr buffer."""
    i = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + i).to(tl.int64) * dim
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w = tl.load(weight + start + column, mask=in_row, other=0.0).to(ACC)
        g = tl.load(grads + i * grad_stride + column, mask=in_row, other=0.0).to(ACC) + weight_decay * w
        if HAS_MOMENTUM:
            g += momentum * tl.load(buffer + start + column, mask=in_row, other=0.0)
            tl.store(buffer + start + column, g, mask=in_row)
        place = start + column
        store_weight(weight + place, w - lr * g, place, in_row, seed_low, seed_high, IS_STOCHASTIC)


@triton.jit(do_not_specialize=SEEDS)
def _adagrad_update_kernel(
    weight,  # [R, D]
    sums,  # [R, D]
    rows,  # [U]
    grads,  # [U, D], rows grad_stride elements apart
    grad_stride,
    dim,
    lr,
    eps,
    weight_decay,
    seed_low,
    seed_high,
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sum <- sum + g^2; w <- w - lr g / (sqrt(sum) + eps)."""
    i = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + i).to(tl.int64) * dim
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w = tl.load(weight + start + column, mask=in_row, other=0.0).to(ACC)
        g = tl.load(grads + i * grad_stride + column, mask=in_row, other=0.0).to(ACC) + weight_decay * w
        total = tl.load(sums + start + column, mask=in_row, other=1.0) + g * g
        tl.store(sums + start + column, total, mask=in_row)
        new = w - lr * g / (tl.sqrt(total) + eps)
        place = start + column
        store_weight(weight + place, new, place, in_row, seed_low, seed_high, IS_STOCHASTIC)


@triton.jit(do_not_specialize=SEEDS)
def _rowwise_adagrad_update_kernel(
    weight,  # [R, D]
    sums,  # [R]
    rows,  # [U]
    grads,  # [U, D], rows grad_stride elements apart
    grad_stride,
    dim,
    lr,
    eps,
    weight_decay,
    seed_low,
    seed_high,
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sum <- sum + mean_d g^2; w <- w - lr g / (sqrt(sum) + eps)."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i).to(tl.int64)
    squares = tl.zeros([BLOCK_D], ACC)
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w = tl.load(weight + row * dim + column, mask=in_row, other=0.0).to(ACC)
        g = tl.load(grads + i * grad_stride + column, mask=in_row, other=0.0).to(ACC) + weight_decay * w
        squares += g * g
    total = tl.load(sums + row) + tl.sum(squares, 0) / dim
    tl.store(sums + row, total)
    scale = lr / (tl.sqrt(total) + eps)
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w = tl.load(weight + row * dim + column, mask=in_row, other=0.0).to(ACC)
        g = tl.load(grads + i * grad_stride + column, mask=in_row, other=0.0).to(ACC) + weight_decay * w
        place = row * dim + column
        store_weight(weight + place, w - scale * g, place, in_row, seed_low, seed_high, IS_STOCHASTIC)


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
        store_weight(weight + place, w, place, in_row, seed_low, seed_high, IS_STOCHASTIC)
        tl.store(exp_avg + row * dim + column, m, mask=in_row)
        tl.store(exp_avg_sq + row * dim + column, v, mask=in_row)
    if IS_DENSE:
        if HAS_GRAD:
            tl.store(last_step + row, step)
        else:
            tl.store(last_step + row, tl.where(missed > 0, step, last))


def seed_halves(seed: int) -> tuple[int, int]:
    """Low and high 32 bits of a seed >= 0 as int32, zeros for -1."""
    halves = (max(seed, 0) & 0xFFFFFFFF, max(seed, 0) >> 32)
    low, high = (half - 2**32 if half >= 2**31 else half for half in halves)
    return low, high


def _types(weight: Tensor, seed: int = -1) -> dict[str, Any]:
    dim = weight.shape[1]
    low, high = seed_halves(seed)
    return {
        "seed_low": low,
        "seed_high": high,
        "IS_STOCHASTIC": seed >= 0 and weight.dtype == torch.bfloat16,
        "ACC": tl.float64 if weight.dtype == torch.float64 else tl.float32,
        "BLOCK_D": min(triton.next_power_of_2(max(dim, 16)), 1024),
    }


def _check(op: str, weight: Tensor, rows: Tensor, grads: Tensor) -> Tensor:
    """Rows ascending and in range, as on the CPU; returns grads with adjacent columns."""
    if not weight.is_contiguous():
        raise RuntimeError(f"{op}: weight must be contiguous [R, D]")
    ascending = rows.numel() == 0 or bool((rows[1:] > rows[:-1]).all() & (rows[0] >= 0) & (rows[-1] < weight.shape[0]))
    if not ascending:
        raise RuntimeError(
            f"{op}: rows must be strictly ascending in [0, {weight.shape[0]}); "
            "coalesce the gradient with embedding_plan"
        )
    return grads if grads.shape[1] <= 1 or grads.stride(1) == 1 else grads.contiguous()


def sgd_update_(
    weight: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    """Launch `_sgd_update_kernel`."""
    grads = _check("sgd_update_", weight, rows, grads)
    if rows.numel():
        _sgd_update_kernel[(rows.numel(),)](
            weight,
            weight if momentum_buffer is None else momentum_buffer,
            rows,
            grads,
            grads.stride(0),
            weight.shape[1],
            lr,
            momentum,
            weight_decay,
            HAS_MOMENTUM=momentum_buffer is not None,
            **_types(weight, rounding_seed),
        )


def adagrad_update_(
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    """Launch `_adagrad_update_kernel`."""
    grads = _check("adagrad_update_", weight, rows, grads)
    if rows.numel():
        types = _types(weight, rounding_seed)
        _adagrad_update_kernel[(rows.numel(),)](
            weight, sum, rows, grads, grads.stride(0), weight.shape[1], lr, eps, weight_decay, **types
        )


def rowwise_adagrad_update_(
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    """Launch `_rowwise_adagrad_update_kernel`."""
    grads = _check("rowwise_adagrad_update_", weight, rows, grads)
    if rows.numel():
        types = _types(weight, rounding_seed)
        _rowwise_adagrad_update_kernel[(rows.numel(),)](
            weight, sum, rows, grads, grads.stride(0), weight.shape[1], lr, eps, weight_decay, **types
        )


def _launch_adam(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor | None,
    rows: Tensor | None,
    grads: Tensor | None,
    learning_rates: Tensor,
    history_start: int,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    seed: int = -1,
) -> None:
    count = weight.shape[0] if rows is None else rows.numel()
    if count == 0 or step == history_start:
        return
    state = torch.float64 if weight.dtype == torch.float64 else torch.float32
    steps = torch.arange(history_start + 1, step + 1, dtype=torch.float64, device=weight.device)
    step_sizes = (learning_rates[: steps.numel()] / (1 - beta1**steps)).to(state)
    scales = (1 - beta2**steps).rsqrt().to(state)
    ratio = beta1 / math.sqrt(beta2) if beta2 > 0 else 1.0
    is_endless = ratio > 0.99 or state == torch.float64
    max_counted = 2**31 - 1 if is_endless else 1 if ratio <= 0 else math.ceil(-23.0 / math.log(ratio))
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
        step,
        history_start,
        max_counted,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        math.sqrt(beta2),
        math.log2(beta1) if beta1 > 0 else -1e4,
        math.log2(beta2) if beta2 > 0 else -1e4,
        eps,
        weight_decay,
        HAS_GRAD=grads is not None,
        IS_DENSE=last_step is not None,
        ALL_ROWS=rows is None,
        HAS_DECAY=weight_decay != 0,
        **_types(weight, seed),
    )


def adam_update_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    """Launch `_adam_update_kernel` for one step of lazy Adam."""
    grads = _check("adam_update_", weight, rows, grads)
    lrs = torch.full((1,), lr, dtype=torch.float64, device=weight.device)
    rule = (beta1, beta2, eps, weight_decay, rounding_seed)
    _launch_adam(weight, exp_avg, exp_avg_sq, None, rows, grads, lrs, step - 1, step, *rule)


def adam_catch_up_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor | None,
    lr_history: Tensor,
    history_start: int,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Launch `_adam_update_kernel` without a gradient."""
    unique = None
    if rows is not None:
        unique = rows.unique()  # sorted: one program a row, whatever the caller repeats
        if unique.numel() and bool((unique[0] < 0) | (unique[-1] >= weight.shape[0])):
            raise RuntimeError(f"adam_catch_up_: rows must be in [0, {weight.shape[0]})")
    rule = (beta1, beta2, eps, weight_decay)
    _launch_adam(weight, exp_avg, exp_avg_sq, last_step, unique, None, lr_history, history_start, step, *rule)


def adam_dense_update_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr_history: Tensor,
    history_start: int,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Launch `_adam_update_kernel` with catch-up and gradient."""
    grads = _check("adam_dense_update_", weight, rows, grads)
    rule = (beta1, beta2, eps, weight_decay)
    _launch_adam(weight, exp_avg, exp_avg_sq, last_step, rows, grads, lr_history, history_start, step, *rule)


def compile_cases() -> list[CompileCase]:
    """Each kernel for the element types at D = 64, and Adam in each of its three uses."""
    cases = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        state = "fp64" if element == "fp64" else "fp32"
        types = {"ACC": tl.float64 if element == "fp64" else tl.float32, "BLOCK_D": 64}
        types["IS_STOCHASTIC"] = element == "bf16"
        common = {"weight": f"*{element}", "rows": "*i64", "grads": f"*{element}", "grad_stride": "i64", "dim": "i32"}
        common |= {"lr": "fp32", "weight_decay": "fp32", **dict.fromkeys(SEEDS, "i32")}
        common |= dict.fromkeys(("IS_STOCHASTIC", "ACC", "BLOCK_D"), "constexpr")
        sgd = common | {"buffer": f"*{state}", "momentum": "fp32", "HAS_MOMENTUM": "constexpr"}
        cases.append(CompileCase(f"sgd_update_{element}", _sgd_update_kernel, sgd, types | {"HAS_MOMENTUM": True}))
        adagrad = common | {"sums": f"*{state}", "eps": "fp32"}
        cases.append(CompileCase(f"adagrad_update_{element}", _adagrad_update_kernel, adagrad, types))
        cases.append(CompileCase(f"rowwise_adagrad_update_{element}", _rowwise_adagrad_update_kernel, adagrad, types))
        adam = {key: common[key] for key in ("weight", "rows", "grads", "grad_stride", "dim", *SEEDS)}
        adam |= {"exp_avg": f"*{state}", "exp_avg_sq": f"*{state}", "last_step": "*i32"}
        adam |= {"step_sizes": f"*{state}", "scales": f"*{state}"}
        adam |= dict.fromkeys(("step", "history_start", "max_counted"), "i32")
        scalars = "beta1 rest1 beta2 rest2 root_beta2 log2_beta1 log2_beta2 eps weight_decay"
        adam |= dict.fromkeys(scalars.split(), "fp32")
        adam |= dict.fromkeys(("HAS_GRAD", "IS_DENSE", "ALL_ROWS", "HAS_DECAY"), "constexpr")
        adam |= dict.fromkeys(("IS_STOCHASTIC", "ACC", "BLOCK_D"), "constexpr")
        for name, has_grad, is_dense, has_decay in (
            ("adam_update", True, False, False),
            ("adam_dense_update", True, True, False),
            ("adam_dense_update_decay", True, True, True),
            ("adam_catch_up", False, True, False),
        ):
            options = {"HAS_GRAD": has_grad, "IS_DENSE": is_dense, "ALL_ROWS": not has_grad, "HAS_DECAY": has_decay}
            cases.append(CompileCase(f"{name}_{element}", _adam_update_kernel, adam, types | options))
    # The order of a signature is that of the kernel's arguments.
    out = []
    for case in cases:
        signature = {key: case.signature[key] for key in case.kernel.arg_names}
        aligned = ("dim", "grad_stride", *(key for key, kind in signature.items() if kind.startswith("*")))
        out.append(replace(case, signature=signature, aligned=aligned))
    return out
