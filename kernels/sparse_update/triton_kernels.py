"""Triton kernels of the fused row updates, SGD, Adagrad and FTRL: one program updates one row, so rows never race.

Adam: triton_adam.py and triton_adam_steps.py. Hyperparameters reach the kernels as float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.sparse_update.triton_adam_steps import (
    adam_catch_up_,
    adam_dense_update_,
    adam_dense_update_tables_,
    adam_update_,
)
from deeprec.kernels.sparse_update.triton_rows import (
    SEEDS,
    case_in_order,
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


@triton.jit
def load_row(weight, grads, column, in_row, weight_decay, ACC: tl.constexpr):
    """Columns of a weight's row, and of its gradient with weight decay; both pointers to the begin of the row."""
    w = tl.load(weight + column, mask=in_row, other=0.0).to(ACC)
    return w, tl.load(grads + column, mask=in_row, other=0.0).to(ACC) + weight_decay * w


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
        w, g = load_row(weight + start, grads + i * grad_stride, column, in_row, weight_decay, ACC)
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
        w, g = load_row(weight + start, grads + i * grad_stride, column, in_row, weight_decay, ACC)
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
        w, g = load_row(weight + row * dim, grads + i * grad_stride, column, in_row, weight_decay, ACC)
        squares += g * g
    total = tl.load(sums + row) + tl.sum(squares, 0) / dim
    tl.debug_barrier()  # all threads have read the row and its sum, which are written from here on
    tl.store(sums + row, total)
    scale = lr / (tl.sqrt(total) + eps)
    for begin in range(0, dim, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        in_row = column < dim
        w, g = load_row(weight + row * dim, grads + i * grad_stride, column, in_row, weight_decay, ACC)
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


def _launch(
    kernel: Any,
    weight: Tensor,
    states: Sequence[Tensor | None],
    rows: Tensor,
    grads: Tensor,
    numbers: Sequence[float],
    seed: int,
    **constants: bool,
) -> None:
    """A program for each row; in place of a state that is None the kernel gets the weight."""
    if rows.numel():
        launch(
            kernel,
            (rows.numel(),),
            weight,
            *(weight if state is None else state for state in states),
            rows,
            grads,
            grads.stride(0),
            weight.shape[1],
            *numbers,
            **constants,
            **types_of(weight, seed),
        )


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
    numbers, has_momentum = (lr, momentum, weight_decay), momentum_buffer is not None
    states = (momentum_buffer,)
    _launch(_sgd_update_kernel, weight, states, rows, grads, numbers, rounding_seed, HAS_MOMENTUM=has_momentum)


def _adagrad(
    kernel: Any,
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    _launch(kernel, weight, (sum,), rows, grads, (lr, eps, weight_decay), rounding_seed)


adagrad_update_ = functools.partial(_adagrad, _adagrad_update_kernel)
rowwise_adagrad_update_ = functools.partial(_adagrad, _rowwise_adagrad_update_kernel)


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
    numbers = (lr, l1, l2, beta)
    _launch(_ftrl_update_kernel, weight, (sum, linear), rows, grads, numbers, rounding_seed)


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
