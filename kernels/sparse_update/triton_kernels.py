"""Triton kernels of the fused row updates, SGD, Adagrad and FTRL: one program updates one row, so rows never race.

Adam: triton_adam.py. Hyperparameters reach the kernels as float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.sparse_update.checks import check_eps, check_ftrl, check_momentum, check_rates
from deeprec.kernels.sparse_update.triton_adam import (
    adam_catch_up_,
    adam_dense_update_,
    adam_dense_update_tables_,
    adam_update_,
)
from deeprec.kernels.sparse_update.triton_rows import (
    SEEDS,
    case_in_order,
    check,
    store_weight,
    types_of,
    update_types,
)

__all__ = [
    "SEEDS",
    "adagrad_update_",
    "adam_catch_up_",
    "adam_dense_update_",
    "adam_dense_update_tables_",
    "adam_update_",
    "compile_cases",
    "ftrl_step",
    "ftrl_update_",
    "rowwise_adagrad_update_",
    "sgd_update_",
    "store_weight",
]


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


@triton.jit
def ftrl_step(g, w, sums, linear, mask, lr, l1, l2, beta):
    """The new weights of FTRL-proximal; its states, pointers of the shape of g, are changed."""
    before = tl.load(sums, mask=mask, other=1.0)
    n = before + g * g
    root = tl.sqrt(n)
    first_z = -w * (beta / lr + l2) - tl.where(w > 0, l1, tl.where(w < 0, -l1, 0.0))
    z = tl.where(before == 0, first_z, tl.load(linear, mask=mask, other=0.0))
    z += g - (root - tl.sqrt(before)) / lr * w
    tl.store(sums, n, mask=mask)
    tl.store(linear, z, mask=mask)
    excess = tl.where(z < 0, z + l1, z - l1)
    moved = tl.where(tl.abs(z) <= l1, 0.0, -excess / ((beta + root) / lr + l2))
    return tl.where(n == 0, w, moved)


@triton.jit(do_not_specialize=SEEDS)
def _ftrl_update_kernel(
    weight,  # [R, D]
    sums,  # [R, D]
    linear,  # [R, D]
    rows,  # [U]
    grads,  # [U, D], rows grad_stride elements apart
    grad_stride,
    dim,
    lr,
    l1,
    l2,
    beta,
    seed_low,
    seed_high,
    IS_STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """McMahan et al. 2013, algorithm 1; see `ftrl_step`."""
    i = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + i).to(tl.int64) * dim
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w = tl.load(weight + start + column, mask=in_row, other=0.0).to(ACC)
        g = tl.load(grads + i * grad_stride + column, mask=in_row, other=0.0).to(ACC)
        place = start + column
        new = ftrl_step(g, w, sums + place, linear + place, in_row, lr, l1, l2, beta)
        store_weight(weight + place, new.to(ACC), place, in_row, seed_low, seed_high, IS_STOCHASTIC)


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
    check_rates("sgd_update_", lr, weight_decay)
    check_momentum("sgd_update_", momentum)
    grads = check("sgd_update_", weight, rows, grads, momentum_buffer)
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
            **types_of(weight, rounding_seed),
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
    check_rates("adagrad_update_", lr, weight_decay)
    check_eps("adagrad_update_", eps)
    grads = check("adagrad_update_", weight, rows, grads, sum)
    if rows.numel():
        types = types_of(weight, rounding_seed)
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
    check_rates("rowwise_adagrad_update_", lr, weight_decay)
    check_eps("rowwise_adagrad_update_", eps)
    grads = check("rowwise_adagrad_update_", weight, rows, grads, sum)
    if rows.numel():
        types = types_of(weight, rounding_seed)
        _rowwise_adagrad_update_kernel[(rows.numel(),)](
            weight, sum, rows, grads, grads.stride(0), weight.shape[1], lr, eps, weight_decay, **types
        )


def ftrl_update_(
    weight: Tensor,
    sum: Tensor,
    linear: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    l1: float,
    l2: float,
    beta: float,
    rounding_seed: int = -1,
) -> None:
    """Launch `_ftrl_update_kernel`."""
    check_ftrl("ftrl_update_", lr, l1, l2, beta)
    grads = check("ftrl_update_", weight, rows, grads, sum, linear)
    if rows.numel():
        types = types_of(weight, rounding_seed)
        _ftrl_update_kernel[(rows.numel(),)](
            weight, sum, linear, rows, grads, grads.stride(0), weight.shape[1], lr, l1, l2, beta, **types
        )


def compile_cases() -> list[CompileCase]:
    """Each kernel for the element types at D = 64."""
    cases = []
    for element in ("fp32", "bf16", "fp16", "fp64"):
        state = "fp64" if element == "fp64" else "fp32"
        common, constants = update_types(element)
        common |= {"lr": "fp32"}
        ftrl = common | {"sums": f"*{state}", "linear": f"*{state}", **dict.fromkeys(("l1", "l2", "beta"), "fp32")}
        cases.append(CompileCase(f"ftrl_update_{element}", _ftrl_update_kernel, ftrl, constants))
        common |= {"weight_decay": "fp32"}
        sgd = common | {"buffer": f"*{state}", "momentum": "fp32", "HAS_MOMENTUM": "constexpr"}
        cases.append(CompileCase(f"sgd_update_{element}", _sgd_update_kernel, sgd, constants | {"HAS_MOMENTUM": True}))
        adagrad = common | {"sums": f"*{state}", "eps": "fp32"}
        cases.append(CompileCase(f"adagrad_update_{element}", _adagrad_update_kernel, adagrad, constants))
        name = f"rowwise_adagrad_update_{element}"
        cases.append(CompileCase(name, _rowwise_adagrad_update_kernel, adagrad, constants))
    return [case_in_order(case) for case in cases]
