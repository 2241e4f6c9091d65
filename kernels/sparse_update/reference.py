"""What the fused row updates mean, in plain PyTorch: `w` is weight[rows], `g` the gradient plus weight_decay * w."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.sparse_update.checks import (
    AdamRule,
    Replay,
    check_adagrad_update,
    check_adam_catch_up,
    check_adam_update,
    check_dense_steps,
    check_each_table,
    check_ftrl_update,
    check_sgd_update,
    of_one_dtype,
    wide_dtype,
)

__all__ = ["of_one_dtype"]  # with the references, what the operators are declared by

_U32 = 0xFFFFFFFF


def rounding_seed(seed: int, step: int, table: int = 0) -> int:
    """The seed of one update, a stream of its own for each step and table; -1 (round to nearest) for a negative one."""
    if seed < 0:
        return -1
    return (seed + step * 0x9E3779B97F4A7C15 + table * 0xBF58476D1CE4E5B9) & (2**63 - 1)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits (in int64) whose output bits depend evenly on all input bits."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _U32
    x = (x ^ (x >> 15)) * 0x846CA68B & _U32
    return x ^ (x >> 16)


def round_stochastically(x: Tensor, rows: Tensor, seed: int) -> Tensor:
    """float32 [U, D] to bfloat16, up with the probability of what would be cut off: right on average.

    The random bits of weight[rows[u], d] are a function of (seed, rows[u] * D + d) alone.
    """
    element = rows.to(torch.int64)[:, None] * x.shape[1] + torch.arange(x.shape[1], device=x.device)
    bits = _mix(_mix((element & _U32) ^ (seed & _U32)) ^ ((element >> 32) + (seed >> 32) & _U32))
    whole = x.contiguous().view(torch.int32).to(torch.int64) & _U32
    rounded = (whole + (bits & 0xFFFF)) >> 16
    rounded = torch.where(x.isfinite(), rounded, whole >> 16 | x.isnan().to(torch.int64) << 6)
    return torch.where(rounded >= 2**15, rounded - 2**16, rounded).to(torch.int16).view(torch.bfloat16)


def _store(weight: Tensor, rows: Tensor, w: Tensor, seed: int) -> None:
    index = rows.to(torch.int64)
    is_stochastic = seed >= 0 and weight.dtype == torch.bfloat16
    weight[index] = round_stochastically(w, index, seed) if is_stochastic else w.to(weight.dtype)


def _wide(weight: Tensor, rows: Tensor, grads: Tensor, weight_decay: float) -> tuple[Tensor, Tensor]:
    """The touched rows and their gradients in the accumulator's dtype."""
    dtype = wide_dtype(weight)
    w = weight[rows.to(torch.int64)].to(dtype)
    return w, grads.to(dtype) + weight_decay * w


def sgd_update_reference(
    weight: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    """buffer <- momentum buffer + g; w <- w - lr buffer."""
    check_sgd_update(weight, momentum_buffer, rows, grads, lr, momentum, weight_decay)
    w, g = _wide(weight, rows, grads, weight_decay)
    if momentum_buffer is not None:
        momentum_buffer = momentum_buffer.view(weight.shape)
        g = momentum * momentum_buffer[rows.to(torch.int64)] + g
        momentum_buffer[rows.to(torch.int64)] = g
    _store(weight, rows, w - lr * g, rounding_seed)


def _adagrad(
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    rule: tuple[float, float, float],
    seed: int,
    is_by_row: bool,
) -> None:
    """sum <- sum + g^2 (is_by_row: + mean_d g^2, one number a row); w <- w - lr g / (sqrt(sum) + eps).

    Args:
        rule: lr, eps, weight_decay.
    """
    lr, eps, weight_decay = rule
    check_adagrad_update(weight, sum, rows, grads, lr, eps, weight_decay, is_by_row=is_by_row)
    w, g = _wide(weight, rows, grads, weight_decay)
    sum = sum.view(-1, 1) if is_by_row else sum.view(weight.shape)
    index = rows.to(torch.int64)
    sum[index] += (g * g).mean(1, keepdim=True) if is_by_row else g * g
    _store(weight, rows, w - lr * g / (sum[index].sqrt() + eps), seed)


def adagrad_update_reference(
    weight: Tensor, sum: Tensor, rows: Tensor, grads: Tensor, lr: float, eps: float, weight_decay: float, seed: int = -1
) -> None:
    """sum <- sum + g^2; w <- w - lr g / (sqrt(sum) + eps)."""
    _adagrad(weight, sum, rows, grads, (lr, eps, weight_decay), seed, is_by_row=False)


def rowwise_adagrad_update_reference(
    weight: Tensor, sum: Tensor, rows: Tensor, grads: Tensor, lr: float, eps: float, weight_decay: float, seed: int = -1
) -> None:
    """sum <- sum + mean_d g^2, one number a row; w <- w - lr g / (sqrt(sum) + eps)."""
    _adagrad(weight, sum, rows, grads, (lr, eps, weight_decay), seed, is_by_row=True)


def _adam(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, lr: float, rule: AdamRule
) -> tuple[Tensor, Tensor, Tensor]:
    beta1, beta2, eps, _ = rule
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w = w - lr / (1 - beta1**step) * m / (v.sqrt() / math.sqrt(1 - beta2**step) + eps)
    return w, m, v


def adam_update_reference(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor, grads: Tensor, step: int, lr: float, *args: Any
) -> None:
    """One step of Adam on the touched rows; the moments of the others stand still.

    Args:
        args: the fields of `AdamRule`, and perhaps the seed of stochastic rounding.
    """
    rule, seed = AdamRule(*args[:4]), args[4] if len(args) > 4 else -1
    check_adam_update(weight, exp_avg, exp_avg_sq, rows, grads, step, lr, *rule)
    w, g = _wide(weight, rows, grads, rule.weight_decay)
    exp_avg, exp_avg_sq = exp_avg.view(weight.shape), exp_avg_sq.view(weight.shape)
    index = rows.to(torch.int64)
    w, m, v = _adam(w, g, exp_avg[index], exp_avg_sq[index], step, lr, rule)
    exp_avg[index], exp_avg_sq[index] = m, v
    _store(weight, rows, w, seed)


def ftrl_update_reference(
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
    """McMahan et al. 2013, algorithm 1, on the touched rows; their alpha is lr, n is sum, z is linear.

    A weight without a gradient so far (n = 0) stands, and its z is the one that gives this weight: 0 for w = 0.
    """
    check_ftrl_update(weight, sum, linear, rows, grads, lr, l1, l2, beta)
    w, g = _wide(weight, rows, grads, 0.0)
    sum, linear = sum.view(weight.shape), linear.view(weight.shape)
    index = rows.to(torch.int64)
    before = sum[index]
    n = before + g * g
    z = torch.where(before == 0, -w * (beta / lr + l2) - w.sign() * l1, linear[index])
    z = z + (g - (n.sqrt() - before.sqrt()) / lr * w)
    sum[index], linear[index] = n, z
    moved = torch.where(z.abs() <= l1, 0.0, -(z - z.sign() * l1) / ((beta + n.sqrt()) / lr + l2))
    _store(weight, rows, torch.where(n == 0, w, moved), rounding_seed)


def adam_catch_up_reference(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, rows: Tensor | None, *args: Any
) -> None:
    """Replay Adam's steps last_step + 1 ... step with a zero gradient, one after another.

    Args:
        args: the fields of `Replay`, then those of `AdamRule`.
    """
    check_adam_catch_up(weight, exp_avg, exp_avg_sq, last_step, rows, *args)
    (lr_history, history_start, step), rule = Replay(*args[:3]), AdamRule(*args[3:])
    weight_decay = rule.weight_decay
    exp_avg, exp_avg_sq = exp_avg.view(weight.shape), exp_avg_sq.view(weight.shape)
    last_step, lr_history = last_step.view(-1), lr_history.view(-1)
    index = torch.arange(weight.shape[0], device=weight.device) if rows is None else rows.to(torch.int64).unique()
    if weight_decay == 0:
        index = index[last_step[index] > 0]  # before its first gradient a row does not move
    if index.numel() == 0:
        return
    dtype = wide_dtype(weight)
    learning_rates = lr_history.tolist()
    for now in range(int(last_step[index].min()) + 1, step + 1):
        behind = index[last_step[index] < now]
        w = weight[behind].to(dtype)
        lr = learning_rates[now - 1 - history_start]
        w, m, v = _adam(w, weight_decay * w, exp_avg[behind], exp_avg_sq[behind], now, lr, rule)
        weight[behind], exp_avg[behind], exp_avg_sq[behind] = w.to(weight.dtype), m, v
    last_step[index] = torch.clamp(last_step[index], min=step)


def adam_dense_update_reference(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor,
    grads: Tensor,
    *args: Any,
) -> None:
    """Catch up to step - 1, then take the gradient of step `step`.

    Args:
        args: the fields of `Replay`, then those of `AdamRule`.
    """
    replay, rule = Replay(*args[:3]), AdamRule(*args[3:])
    check_dense_steps("adam_dense_update_", [(weight, exp_avg, exp_avg_sq, last_step, rows, grads)], replay, rule)
    missed = replay._replace(step=replay.step - 1)
    adam_catch_up_reference(weight, exp_avg, exp_avg_sq, last_step, rows, *missed, *rule)
    lr = float(replay.lr_history.view(-1)[replay.step - 1 - replay.history_start])
    adam_update_reference(weight, exp_avg, exp_avg_sq, rows, grads, replay.step, lr, *rule)
    last_step.view(-1)[rows.to(torch.int64)] = replay.step


def adam_catch_up_tables_reference(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    last_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    *history_and_rule: Any,
) -> None:
    """`adam_catch_up_` on each table."""
    check_each_table("adam_catch_up_tables_", (weights, exp_avgs, exp_avg_sqs, last_steps, rows), *history_and_rule)
    for table in zip(weights, exp_avgs, exp_avg_sqs, last_steps, rows, strict=True):
        torch.ops.deeprec.adam_catch_up_(*table, *history_and_rule)


def adam_dense_update_tables_reference(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    last_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    *history_and_rule: Any,
) -> None:
    """`adam_dense_update_` on each table."""
    tables = (weights, exp_avgs, exp_avg_sqs, last_steps, rows, grads)
    check_each_table("adam_dense_update_tables_", tables, *history_and_rule)
    for table in zip(weights, exp_avgs, exp_avg_sqs, last_steps, rows, grads, strict=True):
        torch.ops.deeprec.adam_dense_update_(*table, *history_and_rule)
