"""Launchers of Adam: lazy, equal to dense Adam, catching up, and dense on several tables; see triton_adam.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._door import launch
from deeprec.kernels.embedding_bag.triton_tables import new_flag, sent
from deeprec.kernels.sparse_update.checks import (
    AdamRule,
    Replay,
)
from deeprec.kernels.sparse_update.triton_adam import _adam_tables_kernel, _adam_update_kernel, warps_of
from deeprec.kernels.sparse_update.triton_rows import types_of


class _Schedule(NamedTuple):
    """The numbers of the steps for a kernel.

    Attributes:
        step_sizes, scales: of each step.
        numbers: the kernel's arguments from `step` to `weight_decay`.
        ok: [1] int32, 1; the kernel sets it to 0 for a row behind the history.
    """

    step_sizes: Tensor
    scales: Tensor
    numbers: tuple[float, ...]
    ok: Tensor

    def finish(self, op: str) -> None:
        """Refuse a row behind the history, which the kernel has left as it was, without waiting for the GPU."""
        torch._assert_async(self.ok, f"{op}: lr_history must begin at the step that the oldest row has reached")


def _schedule_of(weight: Tensor, replay: Replay, rule: AdamRule) -> _Schedule:
    (learning_rates, history_start, step), (beta1, beta2, eps, weight_decay) = replay, rule
    state = torch.float64 if weight.dtype == torch.float64 else torch.float32
    steps = torch.arange(history_start + 1, step + 1, dtype=torch.float64, device=weight.device)
    step_sizes = (learning_rates.view(-1)[: steps.numel()] / (1 - beta1**steps)).to(state)
    scales = (1 - beta2**steps).rsqrt().to(state)
    ratio = beta1 / math.sqrt(beta2) if beta2 > 0 else 1.0
    is_endless = ratio > 0.99 or state == torch.float64
    max_counted = 2**31 - 1 if is_endless else 1 if ratio <= 0 else math.ceil(-23.0 / math.log(ratio))
    numbers = (step, history_start, max_counted, beta1, 1 - beta1, beta2, 1 - beta2, math.sqrt(beta2))
    logarithms = (math.log2(beta) if beta > 0 else -1e4 for beta in (beta1, beta2))
    return _Schedule(step_sizes, scales, (*numbers, *logarithms, eps, weight_decay), new_flag(weight.device))


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


def _launch_adam(op: str, table: _Table, replay: Replay, rule: AdamRule, seed: int = -1) -> None:
    weight, exp_avg, exp_avg_sq, last_step, rows, grads = table
    count = weight.shape[0] if rows is None else rows.numel()
    if count == 0 or replay.step == replay.history_start:
        return
    schedule = _schedule_of(weight, replay, rule)
    launch(
        _adam_update_kernel,
        (count,),
        weight,
        exp_avg,
        exp_avg_sq,
        weight if last_step is None else last_step,
        weight if rows is None else rows,
        weight if grads is None else grads,
        schedule.step_sizes,
        schedule.scales,
        0 if grads is None else grads.stride(0),
        weight.shape[1],
        *schedule.numbers,
        ok=schedule.ok,
        HAS_GRAD=grads is not None,
        IS_DENSE=last_step is not None,
        ALL_ROWS=rows is None,
        HAS_DECAY=rule.weight_decay != 0,
        **types_of(weight, seed),
    )
    if last_step is not None:
        schedule.finish(op)


def adam_update_(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor, grads: Tensor, step: int, lr: float, *args: Any
) -> None:
    """Launch `_adam_update_kernel` for one step of lazy Adam.

    Args:
        args: the fields of `AdamRule`, and perhaps the seed of stochastic rounding.
    """
    rule, seed = AdamRule(*args[:4]), args[4] if len(args) > 4 else -1
    lrs = torch.full((1,), lr, dtype=torch.float64, device=weight.device)
    table = _Table(weight, exp_avg, exp_avg_sq, None, rows, grads)
    _launch_adam("adam_update_", table, Replay(lrs, step - 1, step), rule, seed)


def adam_catch_up_(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, rows: Tensor | None, *args: Any
) -> None:
    """Launch `_adam_update_kernel` without a gradient.

    Args:
        args: the fields of `Replay`, then those of `AdamRule`.
    """
    replay, rule = Replay(*args[:3]), AdamRule(*args[3:])
    unique = None if rows is None else rows.unique()  # one program a row, whatever the caller repeats
    _launch_adam("adam_catch_up_", _Table(weight, exp_avg, exp_avg_sq, last_step, unique, None), replay, rule)


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
    _launch_adam("adam_dense_update_", _Table(weight, exp_avg, exp_avg_sq, last_step, rows, grads), replay, rule)


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
    tables = [t for t in zip(weights, exp_avgs, exp_avg_sqs, last_steps, rows, grads, strict=True) if t[4].numel()]
    if not tables or replay.step == replay.history_start:
        return
    schedule = _schedule_of(weights[0], replay, rule)
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
        launch(
            _adam_tables_kernel,
            (count,),
            sent(lines, torch.int64, weight.device),
            weight,
            exp_avg,
            last_step,
            some_rows,
            some_grads,
            schedule.step_sizes,
            schedule.scales,
            len(group),
            len(group).bit_length(),
            *schedule.numbers,
            schedule.ok,
            HAS_DECAY=rule.weight_decay != 0,
            ACC=types_of(weight)["ACC"],
            VEC=1 if any((*places, *widths)) else elements,
            BLOCK_D=block,
            num_warps=warps_of(block),
        )
    schedule.finish("adam_dense_update_tables_")
