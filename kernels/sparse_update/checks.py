"""What the row updates ask of their arguments; references, Triton launchers and the C++ wrappers ask the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from deeprec.kernels._checks import check_float, check_index, kind_of, outside
from deeprec.kernels._door import refuse_capture


class AdamRule(NamedTuple):
    """Adam's numbers that all steps share, as the operators take them: decay rates in [0, 1), eps > 0, decay >= 0."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Replay(NamedTuple):
    """The steps that rows catch up on, as the operators take them.

    Attributes:
        lr_history: learning rate of step t at [t - 1 - history_start], float64.
        history_start: the step before the first one in lr_history.
        step: the last step, or that of the gradient.
    """

    lr_history: Tensor
    history_start: int
    step: int


def check_number(op: str, name: str, value: float, holds: bool, requirement: str) -> None:
    """Raise RuntimeError where a number of a rule is not finite or not in its domain."""
    if not (holds and math.isfinite(value)):
        raise RuntimeError(f"{op}: {name} must be {requirement}, got {value}")


def check_rates(op: str, lr: float, weight_decay: float) -> None:
    """The domains of what all rules but FTRL have."""
    check_number(op, "lr", lr, True, "a finite number")
    check_number(op, "weight_decay", weight_decay, weight_decay >= 0, "a finite number >= 0")


def check_momentum(op: str, momentum: float) -> None:
    """The domain of SGD's momentum."""
    check_number(op, "momentum", momentum, momentum >= 0, "a finite number >= 0")


def check_eps(op: str, eps: float) -> None:
    """The domain of what Adagrad and Adam add to a divisor that may be 0."""
    check_number(op, "eps", eps, eps > 0, "a finite number > 0")


def check_betas(op: str, beta1: float, beta2: float) -> None:
    """The domain of Adam's decay rates."""
    check_number(op, "beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
    check_number(op, "beta2", beta2, 0 <= beta2 < 1, "in [0, 1)")


def check_step(op: str, step: int) -> None:
    """The number of a step, which Adam divides by a function of: from 1."""
    if not 1 <= step < 2**31:
        raise RuntimeError(f"{op}: step must be in [1, 2^31), got {step}")


def check_adam(op: str, step: int, lr: float, rule: AdamRule) -> None:
    """All numbers of one step of Adam."""
    check_step(op, step)
    check_rates(op, lr, rule.weight_decay)
    check_betas(op, rule.beta1, rule.beta2)
    check_eps(op, rule.eps)


def check_replay(op: str, replay: Replay, rule: AdamRule) -> None:
    """All numbers of a replay but the learning rates, which may be on a GPU."""
    check_number(op, "weight_decay", rule.weight_decay, rule.weight_decay >= 0, "a finite number >= 0")
    check_betas(op, rule.beta1, rule.beta2)
    check_eps(op, rule.eps)
    lr_history, history_start, step = replay
    if not 0 <= history_start <= step or lr_history.numel() < step - history_start:
        raise RuntimeError(
            f"{op}: lr_history must be float64 with the learning rate of each step from {history_start + 1} to {step}, "
            f"got {lr_history.numel()}"
        )


def check_replayed_step(op: str, replay: Replay, rule: AdamRule) -> None:
    """All numbers of a step after a replay up to the step before."""
    check_step(op, replay.step)
    check_replay(op, replay, rule)
    if replay.step == replay.history_start:
        raise RuntimeError(f"{op}: step must be after history_start, got {replay.step}")


def check_ftrl(op: str, lr: float, l1: float, l2: float, beta: float) -> None:
    """What the rule needs of its numbers; it divides by lr."""
    if not (lr > 0 and l1 >= 0 and l2 >= 0 and beta >= 0 and all(map(math.isfinite, (lr, l1, l2, beta)))):
        raise RuntimeError(
            f"{op}: FTRL needs lr > 0 and l1, l2, beta >= 0, all finite; a schedule of lr must not reach 0, got lr "
            f"{lr}, l1 {l1}, l2 {l2}, beta {beta}"
        )


def check_options(op: str, rule: int, lr: float, step: int, options: Sequence[float]) -> None:
    """The numbers of step `step` of an update in the backward pass, see `deeprec.kernels.embedding_bag.RowUpdate`."""
    eps, decay, beta1, beta2 = options
    if rule == 4:
        check_ftrl(op, lr, beta1, beta2, eps)
        if decay:
            raise RuntimeError(f"{op}: FTRL takes no weight_decay but l2, got {decay}")
    elif rule == 3:
        check_adam(op, step, lr, AdamRule(beta1, beta2, eps, decay))
    else:
        check_rates(op, lr, decay)
        check_momentum(op, beta1) if rule == 0 else check_eps(op, eps)


def wide_dtype(weight: Tensor) -> torch.dtype:
    """Of states, and of what is computed."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _refuse(op: str, requirement: str, given: object) -> NoReturn:
    raise RuntimeError(f"{op}: {requirement}, got {kind_of(given)}")


def _check_table(op: str, weight: Tensor, states: dict[str, Tensor | None], is_by_row: bool = False) -> None:
    """A table and its states, of which one with a number a row is [R]."""
    check_float(op, "weight", weight)
    if weight.dim() != 2 or not weight.is_contiguous():
        _refuse(op, "weight must be contiguous [R, D]", weight)
    count, wide = weight.shape[0] if is_by_row else weight.numel(), wide_dtype(weight)
    for name, state in states.items():
        if state is not None and (state.numel() != count or state.dtype != wide or not state.is_contiguous()):
            _refuse(op, f"{name} must be contiguous with {count} values of {wide}", state)


def _check_shapes(op: str, weight: Tensor, rows: Tensor, grads: Tensor | None) -> None:
    """Rows of a table, and a gradient for each."""
    check_index(op, "rows", rows)
    count, dim = rows.numel(), weight.shape[1]
    if rows.dim() != 1 or not (count <= 1 or rows.stride(0) == 1):
        _refuse(op, "rows must be one contiguous dimension", rows)
    if grads is not None and (grads.shape != (count, dim) or not (dim <= 1 or grads.stride(1) == 1)):
        _refuse(op, f"grads must be [{count}, {dim}], columns adjacent", grads)


def _check_rows(op: str, weight: Tensor, rows: Tensor, grads: Tensor) -> None:
    """Distinct rows of a table in order, and a gradient for each."""
    _check_shapes(op, weight, rows, grads)
    _require_ascending(op, [weight], [rows])


def _require_ascending(op: str, weights: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
    """Distinct rows of their tables; waits for a GPU, once."""
    if rows:
        reason = "it waits for the GPU to tell whether rows ascend"
        refuse_capture(op, rows[0].device, reason, "take the step in the backward pass (optimizer_in_backward=)")
    filled = [(weight.shape[0], r) for weight, r in zip(weights, rows, strict=True) if r.numel()]
    ascending = [(r[1:] > r[:-1]).all() & (r[0] >= 0) & (r[-1] < count) for count, r in filled]
    for (count, _), is_ascending in zip(filled, torch.stack(ascending).tolist() if ascending else (), strict=True):
        if not is_ascending:
            raise RuntimeError(
                f"{op}: rows must be strictly ascending in [0, {count}); coalesce the gradient with embedding_plan"
            )


def of_one_dtype(op: str, place: int, function: Callable[..., None]) -> Callable[..., None]:
    """A reference, or its check, as the operator takes its arguments: gradients in the dtype of the weight.

    The references themselves take others: a step in the backward pass does not round its gradients before it.

    Args:
        place: number of the gradients among the arguments.
    """

    def call(weight: Any, *args: Any, **options: Any) -> None:
        pairs = zip(weight, args[place - 1], strict=False) if isinstance(weight, list) else [(weight, args[place - 1])]
        for table, grads in pairs:
            if grads.dtype != table.dtype:
                _refuse(op, f"grads must be of {table.dtype} like the weight", grads)
        function(weight, *args, **options)

    return call


def _check_history(
    op: str,
    weight: Tensor,
    last_step: Tensor,
    rows: Tensor | None,
    replay: Replay,
    weight_decay: float,
    looks_back: bool,
) -> None:
    """What a replay reads: the last step of each row, and the learning rates since, of which `looks_back` waits."""
    lr_history, history_start, step = replay
    count = weight.shape[0]
    if last_step.numel() != count or last_step.dtype != torch.int32 or not last_step.is_contiguous():
        _refuse(op, f"last_step must be int32 [{count}]", last_step)
    if lr_history.dtype != torch.float64 or not lr_history.is_contiguous():
        _refuse(op, "lr_history must be contiguous float64", lr_history)
    if not looks_back:
        return
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


def check_sgd_update(
    weight: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    rounding_seed: int = -1,
) -> None:
    """The arguments of sgd_update_; gradients of any dtype."""
    _check_table("sgd_update_", weight, {"momentum_buffer": momentum_buffer})
    _check_rows("sgd_update_", weight, rows, grads)
    check_rates("sgd_update_", lr, weight_decay)
    check_momentum("sgd_update_", momentum)


def check_adagrad_update(
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    rounding_seed: int = -1,
    *,
    is_by_row: bool = False,
) -> None:
    """The arguments of adagrad_update_, is_by_row: of rowwise_adagrad_update_; gradients of any dtype."""
    op = "rowwise_adagrad_update_" if is_by_row else "adagrad_update_"
    _check_table(op, weight, {"sum": sum}, is_by_row=is_by_row)
    _check_rows(op, weight, rows, grads)
    check_rates(op, lr, weight_decay)
    check_eps(op, eps)


def check_adam_update(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor, grads: Tensor, step: int, lr: float, *args: Any
) -> None:
    """The arguments of adam_update_; gradients of any dtype."""
    _check_table("adam_update_", weight, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    _check_rows("adam_update_", weight, rows, grads)
    check_adam("adam_update_", step, lr, AdamRule(*args[:4]))


def check_ftrl_update(
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
    """The arguments of ftrl_update_; gradients of any dtype."""
    _check_table("ftrl_update_", weight, {"sum": sum, "linear": linear})
    _check_rows("ftrl_update_", weight, rows, grads)
    check_ftrl("ftrl_update_", lr, l1, l2, beta)


def check_adam_catch_up(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor | None,
    *args: Any,
    looks_back: bool = True,
) -> None:
    """The arguments of adam_catch_up_; its rows are of any order."""
    op, replay, rule = "adam_catch_up_", Replay(*args[:3]), AdamRule(*args[3:])
    _check_table(op, weight, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    check_replay(op, replay, rule)
    if rows is not None:
        check_index(op, "rows", rows)
        _check_places(op, rows.flatten(), weight.shape[0])
    _check_history(op, weight, last_step, rows, replay, rule.weight_decay, looks_back)


def _check_places(op: str, rows: Tensor, count: int) -> None:
    bad = outside(rows, count).nonzero().flatten()
    if bad.numel():
        value, position = int(rows[bad[0]]), int(bad[0])
        raise RuntimeError(f"{op}: rows must be in [0, {count}), got {value} at position {position}")


def check_dense_steps(
    op: str, tables: Sequence[Sequence[Any]], replay: Replay, rule: AdamRule, looks_back: bool = True
) -> None:
    """Tables of a replay, or with gradients of its last step after a replay up to the one before.

    Args:
        tables: of each weight, exp_avg, exp_avg_sq, last_step, rows, gradients or None.
        looks_back: whether to look at the last steps and learning rates, which waits for a GPU.
    """
    has_grads = any(table[5] is not None for table in tables)
    for weight, exp_avg, exp_avg_sq, _, rows, grads in tables:
        _check_table(op, weight, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
        _check_shapes(op, weight, rows, grads)
    _require_ascending(op, [table[0] for table in tables], [table[4] for table in tables])
    lr_history, history_start, step = replay
    if has_grads:
        check_replayed_step(op, replay, rule)
    else:
        check_replay(op, replay, rule)
    missed = replay._replace(step=step - has_grads)
    for weight, _, _, last_step, rows, _ in tables:
        _check_history(op, weight, last_step, rows, missed, rule.weight_decay, looks_back)
    if has_grads and looks_back:
        _check_finite(op, lr_history.reshape(-1)[step - 1 - history_start : step - history_start])


def check_each_table(
    op: str, tables: Sequence[Sequence[Tensor]], *history_and_rule: Any, looks_back: bool = True
) -> None:
    """All tables of one call, before any is changed; `tables` are the operator's lists."""
    replay, rule = Replay(*history_and_rule[:3]), AdamRule(*history_and_rule[3:])
    count = len(tables[0])
    for others in tables:
        if len(others) != count:
            _refuse(op, f"needs one tensor of each kind for each of {count} tables", len(others))
    for weight in tables[0]:
        if weight.dtype != tables[0][0].dtype:
            _refuse(op, f"tables must have one dtype ({tables[0][0].dtype})", weight)
    by_table = [(*table, None)[:6] for table in zip(*tables, strict=True)]
    if by_table:
        check_dense_steps(op, by_table, replay, rule, looks_back)


# Of the launchers: on a GPU the kernel looks at the last steps, and learning rates are taken as they are.


def _refuse_replay(op: str, device: torch.device) -> None:
    """No CUDA graph of what replays missed steps."""
    reason = "how many steps it replays is on the host, and a graph would repeat them"
    refuse_capture(op, device, reason, 'use mode="lazy" with optimizer_in_backward= and capturable=True')


def _check_adam_catch_up(weight: Tensor, *args: Any) -> None:
    _refuse_replay("adam_catch_up_", weight.device)
    check_adam_catch_up(weight, *args, looks_back=weight.device.type == "cpu")


def _check_adam_dense_update(*args: Any) -> None:
    _refuse_replay("adam_dense_update_", args[0].device)
    replay, rule = Replay(*args[6:9]), AdamRule(*args[9:])
    check_dense_steps("adam_dense_update_", [args[:6]], replay, rule, args[0].device.type == "cpu")


def _check_adam_dense_update_tables(weights: Sequence[Tensor], *args: Any) -> None:
    if weights:
        _refuse_replay("adam_dense_update_tables_", weights[0].device)
    looks_back = bool(weights) and weights[0].device.type == "cpu"
    check_each_table("adam_dense_update_tables_", (weights, *args[:5]), *args[5:], looks_back=looks_back)


CHECKS = {
    "sgd_update_": of_one_dtype("sgd_update_", 3, check_sgd_update),
    "adagrad_update_": of_one_dtype("adagrad_update_", 3, check_adagrad_update),
    "rowwise_adagrad_update_": of_one_dtype(
        "rowwise_adagrad_update_", 3, functools.partial(check_adagrad_update, is_by_row=True)
    ),
    "adam_update_": of_one_dtype("adam_update_", 4, check_adam_update),
    "ftrl_update_": of_one_dtype("ftrl_update_", 4, check_ftrl_update),
    "adam_catch_up_": _check_adam_catch_up,
    "adam_dense_update_": of_one_dtype("adam_dense_update_", 5, _check_adam_dense_update),
    "adam_dense_update_tables_": of_one_dtype("adam_dense_update_tables_", 5, _check_adam_dense_update_tables),
}
