"""What the fused row updates mean, in plain PyTorch: `w` is weight[rows], `g` the gradient plus weight_decay * w."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_index, kind_of
from deeprec.kernels.sparse_update.checks import (
    AdamRule,
    Replay,
    check_adam,
    check_eps,
    check_ftrl,
    check_momentum,
    check_rates,
    check_replay,
    check_replayed_step,
)

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


def _refuse(op: str, requirement: str, given: object) -> NoReturn:
    raise RuntimeError(f"{op}: {requirement}, got {kind_of(given)}")


def _wide_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _check_table(op: str, weight: Tensor, states: dict[str, Tensor | None], is_by_row: bool = False) -> None:
    """A table and its states, of which one with a number a row is [R]."""
    check_float(op, "weight", weight)
    if weight.dim() != 2 or not weight.is_contiguous():
        _refuse(op, "weight must be contiguous [R, D]", weight)
    count, wide = weight.shape[0] if is_by_row else weight.numel(), _wide_dtype(weight)
    for name, state in states.items():
        if state is not None and (state.numel() != count or state.dtype != wide or not state.is_contiguous()):
            _refuse(op, f"{name} must be contiguous with {count} values of {wide}", state)


def _check_rows(op: str, weight: Tensor, rows: Tensor, grads: Tensor | None) -> None:
    """Distinct rows of a table in order, and a gradient for each."""
    check_index(op, "rows", rows)
    count, dim = rows.numel(), weight.shape[1]
    if rows.dim() != 1 or not (count <= 1 or rows.stride(0) == 1):
        _refuse(op, "rows must be one contiguous dimension", rows)
    if grads is not None and (grads.shape != (count, dim) or not (dim <= 1 or grads.stride(1) == 1)):
        _refuse(op, f"grads must be [{count}, {dim}], columns adjacent", grads)
    index = rows.to(torch.int64)
    if count and not (bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < weight.shape[0]):
        requirement = f"rows must be strictly ascending in [0, {weight.shape[0]}); coalesce the gradient"
        raise RuntimeError(f"{op}: {requirement}")


def of_one_dtype(op: str, place: int, reference: Callable[..., None]) -> Callable[..., None]:
    """A reference as the operator takes its arguments: gradients, number `place`, in the dtype of the weight.

    The references themselves take others: a step in the backward pass does not round its gradients before it.
    """

    def call(weight: Any, *args: Any, **options: Any) -> None:
        pairs = zip(weight, args[place - 1], strict=False) if isinstance(weight, list) else [(weight, args[place - 1])]
        for table, grads in pairs:
            if grads.dtype != table.dtype:
                _refuse(op, f"grads must be of {table.dtype} like the weight", grads)
        reference(weight, *args, **options)

    return call


def _wide(weight: Tensor, rows: Tensor, grads: Tensor, weight_decay: float) -> tuple[Tensor, Tensor]:
    """The touched rows and their gradients in the accumulator's dtype."""
    dtype = _wide_dtype(weight)
    w = weight[rows.to(torch.int64)].to(dtype)
    return w, grads.to(dtype) + weight_decay * w


def _check_history(
    op: str,
    weight: Tensor,
    last_step: Tensor,
    rows: Tensor | None,
    replay: Replay,
    weight_decay: float,
) -> None:
    """What a replay reads: the last step of each row, and the learning rates since."""
    lr_history, history_start, step = replay
    count = weight.shape[0]
    if last_step.numel() != count or last_step.dtype != torch.int32 or not last_step.is_contiguous():
        _refuse(op, f"last_step must be int32 [{count}]", last_step)
    if lr_history.dtype != torch.float64 or not lr_history.is_contiguous():
        _refuse(op, "lr_history must be contiguous float64", lr_history)
    last = last_step.reshape(-1) if rows is None else last_step.reshape(-1)[rows.reshape(-1).to(torch.int64)]
    if weight_decay == 0:
        last = last[last != 0]
    oldest = min(int(last.min()), step) if last.numel() else step
    if oldest < history_start:
        _refuse(op, f"a row reached step {oldest} only, but lr_history begins after step {history_start}", oldest)
    _check_finite(op, lr_history.reshape(-1)[oldest - history_start : step - history_start])


def _check_finite(op: str, rates: Tensor) -> None:
    if not bool(rates.isfinite().all()):
        raise RuntimeError(f"{op}: lr_history must be finite in every step, got {rates[~rates.isfinite()][0]}")


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
    _check_table("sgd_update_", weight, {"momentum_buffer": momentum_buffer})
    _check_rows("sgd_update_", weight, rows, grads)
    check_rates("sgd_update_", lr, weight_decay)
    check_momentum("sgd_update_", momentum)
    w, g = _wide(weight, rows, grads, weight_decay)
    if momentum_buffer is not None:
        momentum_buffer = momentum_buffer.view(weight.shape)
        g = momentum * momentum_buffer[rows.to(torch.int64)] + g
        momentum_buffer[rows.to(torch.int64)] = g
    _store(weight, rows, w - lr * g, rounding_seed)


def _adagrad(
    op: str,
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
    _check_table(op, weight, {"sum": sum}, is_by_row=is_by_row)
    _check_rows(op, weight, rows, grads)
    check_rates(op, lr, weight_decay)
    check_eps(op, eps)
    w, g = _wide(weight, rows, grads, weight_decay)
    sum = sum.view(-1, 1) if is_by_row else sum.view(weight.shape)
    index = rows.to(torch.int64)
    sum[index] += (g * g).mean(1, keepdim=True) if is_by_row else g * g
    _store(weight, rows, w - lr * g / (sum[index].sqrt() + eps), seed)


def adagrad_update_reference(
    weight: Tensor, sum: Tensor, rows: Tensor, grads: Tensor, lr: float, eps: float, weight_decay: float, seed: int = -1
) -> None:
    """sum <- sum + g^2; w <- w - lr g / (sqrt(sum) + eps)."""
    _adagrad("adagrad_update_", weight, sum, rows, grads, (lr, eps, weight_decay), seed, is_by_row=False)


def rowwise_adagrad_update_reference(
    weight: Tensor, sum: Tensor, rows: Tensor, grads: Tensor, lr: float, eps: float, weight_decay: float, seed: int = -1
) -> None:
    """sum <- sum + mean_d g^2, one number a row; w <- w - lr g / (sqrt(sum) + eps)."""
    _adagrad("rowwise_adagrad_update_", weight, sum, rows, grads, (lr, eps, weight_decay), seed, is_by_row=True)


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
    _check_table("adam_update_", weight, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    _check_rows("adam_update_", weight, rows, grads)
    check_adam("adam_update_", step, lr, rule)
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
    _check_table("ftrl_update_", weight, {"sum": sum, "linear": linear})
    _check_rows("ftrl_update_", weight, rows, grads)
    check_ftrl("ftrl_update_", lr, l1, l2, beta)
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
    op, replay, rule = "adam_catch_up_", Replay(*args[:3]), AdamRule(*args[3:])
    (lr_history, history_start, step), weight_decay = replay, rule.weight_decay
    _check_table(op, weight, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    check_replay(op, replay, rule)
    if rows is not None:
        check_index(op, "rows", rows)
        bad = ((rows < 0) | (rows >= weight.shape[0])).flatten().nonzero().flatten()
        if bad.numel():
            value, position = int(rows.flatten()[bad[0]]), int(bad[0])
            raise RuntimeError(f"{op}: rows must be in [0, {weight.shape[0]}), got {value} at position {position}")
    _check_history(op, weight, last_step, rows, replay, weight_decay)
    exp_avg, exp_avg_sq = exp_avg.view(weight.shape), exp_avg_sq.view(weight.shape)
    last_step, lr_history = last_step.view(-1), lr_history.view(-1)
    index = torch.arange(weight.shape[0], device=weight.device) if rows is None else rows.to(torch.int64).unique()
    if weight_decay == 0:
        index = index[last_step[index] > 0]  # before its first gradient a row does not move
    if index.numel() == 0:
        return
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
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
    table = (weight, exp_avg, exp_avg_sq, last_step, rows, grads)
    _check_dense_step("adam_dense_update_", table, replay, rule)
    missed = replay._replace(step=replay.step - 1)
    adam_catch_up_reference(weight, exp_avg, exp_avg_sq, last_step, rows, *missed, *rule)
    lr = float(replay.lr_history.view(-1)[replay.step - 1 - replay.history_start])
    adam_update_reference(weight, exp_avg, exp_avg_sq, rows, grads, replay.step, lr, *rule)
    last_step.view(-1)[rows.to(torch.int64)] = replay.step


def _check_dense_step(op: str, table: Sequence[Any], replay: Replay, rule: AdamRule) -> None:
    """One table of a replay, or with gradients of its last step after a replay up to the one before.

    Args:
        table: weight, exp_avg, exp_avg_sq, last_step, rows, gradients or None.
    """
    weight, exp_avg, exp_avg_sq, last_step, rows, grads = table
    _check_table(op, weight, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    _check_rows(op, weight, rows, grads)
    lr_history, history_start, step = replay
    if grads is None:
        check_replay(op, replay, rule)
    else:
        check_replayed_step(op, replay, rule)
        _check_finite(op, lr_history.reshape(-1)[step - 1 - history_start : step - history_start])
    missed = replay._replace(step=step - (grads is not None))
    _check_history(op, weight, last_step, rows, missed, rule.weight_decay)


def _check_each_table(op: str, tables: Sequence[Sequence[Tensor]], *history_and_rule: Any) -> None:
    """All tables of one call, before any is changed; `tables` are the operator's lists."""
    replay, rule = Replay(*history_and_rule[:3]), AdamRule(*history_and_rule[3:])
    count = len(tables[0])
    for others in tables:
        if len(others) != count:
            _refuse(op, f"needs one tensor of each kind for each of {count} tables", len(others))
    for weight, *rest in zip(*tables, strict=True):
        if weight.dtype != tables[0][0].dtype:
            _refuse(op, f"tables must have one dtype ({tables[0][0].dtype})", weight)
        exp_avg, exp_avg_sq, last_step, rows, *grads = rest
        table = (weight, exp_avg, exp_avg_sq, last_step, rows, grads[0] if grads else None)
        _check_dense_step(op, table, replay, rule)


def adam_catch_up_tables_reference(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    last_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    *history_and_rule: Any,
) -> None:
    """`adam_catch_up_` on each table."""
    _check_each_table("adam_catch_up_tables_", (weights, exp_avgs, exp_avg_sqs, last_steps, rows), *history_and_rule)
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
    _check_each_table("adam_dense_update_tables_", tables, *history_and_rule)
    for table in zip(weights, exp_avgs, exp_avg_sqs, last_steps, rows, grads, strict=True):
        torch.ops.deeprec.adam_dense_update_(*table, *history_and_rule)
