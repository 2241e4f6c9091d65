"""Optimizers that update only the rows a sparse gradient touches, and dense parameters as `torch.optim` does.

A parameter whose gradient is `torch.sparse_coo` (deeprec.nn.Embedding, torch.nn.Embedding(sparse=True), the fused
losses) goes through one fused kernel per step (deeprec.kernels.sparse_update); all others go through torch's own
fused updates. Row updates work on [R, D] parameters; their states are float32 (float64 for float64 weights).
`weight_decay` is L2; in all but Adam's dense mode it reaches a row when the row is touched. FTRL has l1 and l2.

Gradients accumulated over several backward passes, repeated rows, parameter groups, learning rate schedulers,
closures and state_dict / load_state_dict work as in torch.optim; resuming from a state dict is bit for bit.

All five take, for parameters with sparse gradients:
    max_grad_norm: the gradients of a group's tables together are scaled down to this norm (over their touched rows);
        None: as they are. `clip_grad_norm_` clips sparse and dense gradients together.
    stochastic_rounding: round bfloat16 weights up or down with the probability that makes it right on average, so that
        updates below half a unit in the last place are not lost.
    seed: of that rounding; the random bits are a function of seed, step, table, row and column alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from deeprec.train._replay import CatchUp, Rule, StepHistory, share_rates, table_lists
from deeprec.train._row_optimizer import (
    Params,
    RowGrad,
    RowOptimizer,
    by_kind,
    grads_of,
    is_at_least,
    require,
    state_dtype,
    step_tensors,
)

__all__ = ["FTRL", "SGD", "Adagrad", "Adam", "RowWiseAdagrad", "clip_grad_norm_"]

_ops = torch.ops.deeprec


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of all parameters together, sparse ones too, down to a norm.

    `torch.nn.utils.clip_grad_norm_` refuses sparse gradients. Here they are coalesced first: their norm is that of the
    dense gradient they stand for.

    Args:
        parameters: parameters with sparse, dense or no gradients.
        max_norm: > 0.
    Returns:
        The norm before, a scalar in float64.
    Raises:
        ValueError: max_norm is not a finite number > 0, or a sparse gradient has more than one sparse dimension.
    """
    require(is_at_least(max_norm, 0) and max_norm > 0, "clip_grad_norm_", "max_norm must be finite and > 0", max_norm)
    dense: list[Tensor] = []
    squares: list[Tensor] = []
    by_row: list[RowGrad] = []
    for param in [parameters] if isinstance(parameters, Tensor) else parameters:
        grad = param.grad
        if grad is None:
            continue
        if not grad.is_sparse:
            dense.append(grad)
            squares.append(grad.to(state_dtype(grad)).square().sum(dtype=torch.float64))
            continue
        require(
            grad.sparse_dim() == 1, "clip_grad_norm_", "sparse gradients must have one sparse dimension", grad.shape
        )
        by_row.append(RowGrad(len(by_row), param, grad._indices()[0], grad._values()).coalesced())
        squares.append(by_row[-1].square_sum())
    norm = torch.stack([square.cpu() for square in squares]).sum().sqrt() if squares else torch.zeros(()).double()
    if norm > max_norm:
        factor = float(max_norm / norm)
        for grad in dense:
            grad.mul_(factor)
        for part in by_row:
            rows, values = part.rows.long().unsqueeze(0), part.scaled(factor).values
            part.param.grad = torch.sparse_coo_tensor(
                rows, values, part.param.shape, is_coalesced=True, check_invariants=False
            )
    return norm


class SGD(RowOptimizer):
    """Stochastic gradient descent with momentum: buffer <- momentum buffer + g; w <- w - lr buffer.

    Of a parameter with sparse gradients, the buffers of untouched rows stand still.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: learning rate, >= 0.
        momentum: >= 0.
        weight_decay: L2, >= 0.
    Raises:
        ValueError: an option is out of range.
    """

    RULE = 0

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, max_grad_norm, stochastic_rounding, seed)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state.setdefault("step", 0)
        if "momentum_buffer" in state:
            state["momentum_buffer"] = state["momentum_buffer"].to(state_dtype(param))
        elif group["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(param, dtype=state_dtype(param))

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any], seed: int
    ) -> None:
        momentum, buffer = group["momentum"], state.get("momentum_buffer")
        if momentum and buffer is None:
            buffer = state["momentum_buffer"] = torch.zeros_like(param, dtype=state_dtype(param))
        rule = (float(group["lr"]), momentum, group["weight_decay"], seed)
        _ops.sgd_update_(param.data, buffer if momentum else None, rows, grads, *rule)
        state["step"] += 1

    def rule_options(self, group: dict[str, Any]) -> list[float] | None:
        """`RowUpdate.options` of a group."""
        return [0.0, group["weight_decay"], group["momentum"], 0.0]

    def row_states(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """The momentum buffers, where there are."""
        return [state["momentum_buffer"] for state in states if "momentum_buffer" in state], []

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        for some in by_kind(params):
            buffers = []
            if momentum:
                for param in some:
                    if "momentum_buffer" not in self.state[param]:
                        self.state[param]["momentum_buffer"] = torch.zeros_like(param)
                    buffers.append(self.state[param]["momentum_buffer"])
            torch._fused_sgd_(
                some,
                grads_of(some),
                buffers,
                weight_decay=group["weight_decay"],
                momentum=momentum,
                lr=float(group["lr"]),
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )


class Adagrad(RowOptimizer):
    """Adagrad: sum <- sum + g^2; w <- w - lr g / (sqrt(sum) + eps).

    Args:
        params: parameters or groups, as in torch.optim.
        lr: learning rate, >= 0; of step t it is lr / (1 + (t - 1) lr_decay).
        lr_decay: >= 0.
        weight_decay: L2, >= 0.
        initial_accumulator_value: of the sums, >= 0.
        eps: > 0.
    Raises:
        ValueError: an option is out of range.
    Reference: Duchi, Hazan, Singer 2011, JMLR 12.
    """

    RULE = 1

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
        }
        super().__init__(params, defaults, max_grad_norm, stochastic_rounding, seed)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        dtype = state_dtype(param)
        state.setdefault("step", 0)
        if "sum" in state:
            state["sum"] = state["sum"].to(dtype)
        else:
            state["sum"] = torch.full_like(param, group["initial_accumulator_value"], dtype=dtype)

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any], seed: int
    ) -> None:
        lr = float(group["lr"]) / (1 + state["step"] * group["lr_decay"])
        self._rule(param.data, state["sum"], rows, grads, lr, group["eps"], group["weight_decay"], seed)
        state["step"] += 1

    def rule_options(self, group: dict[str, Any]) -> list[float] | None:
        """`RowUpdate.options` of a group; None with lr_decay."""
        return None if group["lr_decay"] else [group["eps"], group["weight_decay"], 0.0, 0.0]

    def row_states(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """The sums of squares."""
        return [state["sum"] for state in states], []

    def _rule(self, *args: Any) -> None:
        _ops.adagrad_update_(*args)

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for some in by_kind(params):
            states = [self.state[param] for param in some]
            for param, state in zip(some, states, strict=True):
                if not state:
                    state["step"] = 0
                    state["sum"] = torch.full_like(param, group["initial_accumulator_value"])
                state["step"] += 1
            torch._fused_adagrad_(
                some,
                grads_of(some),
                [state["sum"] for state in states],
                step_tensors(states, some[0].device),
                lr=float(group["lr"]),
                lr_decay=group["lr_decay"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


class RowWiseAdagrad(Adagrad):
    """Adagrad with one accumulator a row: sum <- sum + mean_d g_d^2; w <- w - lr g / (sqrt(sum) + eps).

    For parameters with sparse gradients; dense ones get Adagrad. Options as in Adagrad.
    Reference: the rule of FBGEMM's EXACT_ROWWISE_ADAGRAD.
    """

    RULE = 2

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state.setdefault("step", 0)
        if "sum" in state:  # dense steps came before: go on from their mean over the row
            state["sum"] = state["sum"].to(state_dtype(param)).mean(1)
        else:
            value = group["initial_accumulator_value"]
            state["sum"] = torch.full((param.shape[0],), value, dtype=state_dtype(param), device=param.device)

    def _rule(self, *args: Any) -> None:
        _ops.rowwise_adagrad_update_(*args)


class FTRL(RowOptimizer):
    """FTRL-proximal: Adagrad's learning rates with an L1 that makes weights exactly zero.

        sigma = (sqrt(n + g^2) - sqrt(n)) / lr;  z <- z + g - sigma w;  n <- n + g^2
        w <- 0 where |z| <= l1, else -(z - sign(z) l1) / ((beta + sqrt(n)) / lr + l2)

    n stands in the state as `sum`, z as `linear`; sparse and dense parameters, 16-bit ones too, have both in float32
    (float64 for float64 parameters). A zero gradient changes nothing, so rows that a batch leaves out need no work.

    The paper starts at w = 0, z = 0. A weight that is not zero at its first gradient gets the z that gives this weight,
    -w (beta / lr + l2) - sign(w) l1: it goes on from where it is, and l1 counts from there. Weights that are to end at
    zero should start at zero. A learning rate that changes rescales what has been learnt, for w is computed anew from
    z: keep lr constant (n makes the steps smaller by itself).

    Args:
        params: parameters or groups, as in torch.optim.
        lr: alpha of the paper, > 0.
        l1: >= 0; the larger, the more weights are zero.
        l2: >= 0.
        beta: >= 0; the first steps are smaller the larger it is.
    Raises:
        ValueError: an option is out of range.
        RuntimeError: at a step, where a schedule has taken lr to 0.
    Reference: McMahan et al. 2013, Ad Click Prediction: a View from the Trenches (KDD), algorithm 1.
    """

    RULE = 4

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 1.0,
        *,
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "l1": l1, "l2": l2, "beta": beta}
        super().__init__(params, defaults, max_grad_norm, stochastic_rounding, seed)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        require(options["lr"] > 0, "FTRL", "lr must be a finite number > 0", options["lr"])
        for key in ("l1", "l2", "beta"):
            require(is_at_least(options[key], 0), "FTRL", f"{key} must be a finite number >= 0", options[key])
        decay = options.get("weight_decay", 0)
        require(not decay, "FTRL", "weight_decay must be 0, l2 is what it has", decay)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state.setdefault("step", 0)
        for name in ("sum", "linear"):
            if name not in state:
                state[name] = torch.zeros(param.shape, dtype=state_dtype(param), device=param.device)

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any], seed: int
    ) -> None:
        rule = (float(group["lr"]), group["l1"], group["l2"], group["beta"], seed)
        _ops.ftrl_update_(param.data, state["sum"], state["linear"], rows, grads, *rule)
        state["step"] += 1

    def rule_options(self, group: dict[str, Any]) -> list[float] | None:
        """`RowUpdate.options` of a group."""
        return [group["beta"], 0.0, group["l1"], group["l2"]]

    def row_states(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """The sums of squares and the linear terms."""
        return [state["sum"] for state in states], [state["linear"] for state in states]

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """The kernel of the rows on all elements, whatever the shape."""
        for param, grad in zip(params, grads_of(params), strict=True):
            state = self.state[param]
            if not state:
                self._start_rows(param, state, group)
            count = param.numel()
            width = math.gcd(count, 1024)
            shape = (count // width, width) if width >= 16 else (1, count)  # rows go to threads
            flat = (tensor.contiguous().view(shape) for tensor in (param.data, state["sum"], state["linear"], grad))
            weight, total, linear, grads = flat
            every = torch.arange(shape[0], device=param.device)
            rule = (float(group["lr"]), group["l1"], group["l2"], group["beta"])
            _ops.ftrl_update_(weight, total, linear, every, grads, *rule)
            if not param.is_contiguous():
                param.data.copy_(weight.view(param.shape))
            state["step"] += 1


def _adam_rule(group: dict[str, Any]) -> Rule:
    beta1, beta2 = group["betas"]
    return beta1, beta2, group["eps"], group["weight_decay"]


class Adam(RowOptimizer):
    """Adam, lazy or dense-equivalent for parameters with sparse gradients.

    mode="lazy" updates weights and moments of touched rows only, like torch.optim.SparseAdam. mode="dense" gives what
    torch.optim.Adam gives on the dense gradient (weights within 1e-5 after 1,000 steps), at about the price of the
    touched rows: a row catches up on the steps it missed just before it is read or updated. For that the optimizer
    leaves `_deeprec_catch_up` on the parameter, which deeprec.nn.Embedding and the fused losses call with the rows
    they are about to read for training. Call `flush()` before reading a whole table: before evaluation, before
    saving the model. Learning rates may change at every step; a change of betas, eps or weight_decay flushes.
    With weight decay each missed step is replayed one by one.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: learning rate, >= 0.
        betas: decay rates of the moments, in [0, 1).
        eps: > 0.
        weight_decay: L2, >= 0.
        mode: "lazy" or "dense", also by group; stochastic_rounding goes with "lazy" only.
    Raises:
        ValueError: an option is out of range.
    Reference: Kingma, Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    RULE = 3

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        mode: str = "lazy",
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self._histories: dict[Tensor, StepHistory] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "mode": mode}
        super().__init__(params, defaults, max_grad_norm, stochastic_rounding, seed)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        betas, mode = options["betas"], options["mode"]
        in_range = len(betas) == 2 and all(is_at_least(beta, 0) and beta < 1 for beta in betas)
        require(in_range, "Adam", "betas must be two numbers in [0, 1)", betas)
        require(mode in ("lazy", "dense"), "Adam", 'mode must be "lazy" or "dense"', repr(mode))
        require(not options.get("amsgrad"), "Adam", "amsgrad must be off, it is not supported", True)
        both = mode == "dense" and options["stochastic_rounding"]
        require(not both, "Adam", 'stochastic_rounding must be off with mode="dense", it is not supported', True)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        dtype = state_dtype(param)
        state.setdefault("step", 0)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].to(dtype) if name in state else torch.zeros_like(param, dtype=dtype)
        if group["mode"] == "dense":
            # 0 says "no gradient so far": such a row need not catch up, its moments are zero.
            state["last_step"] = torch.full((param.shape[0],), state["step"], dtype=torch.int32, device=param.device)
            self._remember(param, state, group)

    def _remember(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        history = StepHistory(param, state, _adam_rule(group))
        self._histories[param] = history
        param._deeprec_catch_up = CatchUp(history)  # type: ignore[attr-defined]

    @torch.no_grad()
    def flush(self) -> None:
        """Bring every row of every parameter in dense mode up to date; the tables may then be read as a whole."""
        for history in self._histories.values():
            history.flush()

    def state_dict(self) -> dict[str, Any]:
        """The state, after a flush: save the model's weights after this call, not before."""
        self.flush()
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for param in getattr(self, "_histories", {}):
            param._deeprec_catch_up = None  # what is loaded needs no catching up
        self._histories = {}
        for group in self.param_groups:
            for param in group["params"]:
                if "last_step" in self.state.get(param, {}):
                    self._remember(param, self.state[param], group)

    def _step_tables(self, grads: list[RowGrad], group: dict[str, Any]) -> None:
        if group["mode"] != "dense" or len(grads) == 1 or not self._step_together(grads, group):
            super()._step_tables(grads, group)

    def _step_together(self, grads: list[RowGrad], group: dict[str, Any]) -> bool:
        """One call for all tables; False, and nothing done, where they have not taken the same steps."""
        states = [self.start_rows(grad.param, group) for grad in grads]
        histories = [self._histories[grad.param] for grad in grads if grad.param in self._histories]
        rule = _adam_rule(group)
        if len(histories) < len(grads) or histories[0].rule != rule or not share_rates(histories):
            return False
        first = histories[0]
        step = states[0]["step"] + 1
        first.rates.put(step - 1 - first.start, float(group["lr"]))
        rows, values = [grad.rows for grad in grads], [grad.values for grad in grads]
        try:
            _ops.adam_dense_update_tables_(
                *table_lists(histories), rows, values, first.rates.values, first.start, step, *rule
            )
        except RuntimeError as error:
            if "strictly ascending" not in str(error):
                raise
            return False
        for state in states:
            state["step"] = step
        return True

    def _step_rows(self, grad: RowGrad, group: dict[str, Any]) -> None:
        history = self._histories.get(grad.param)
        if history is not None:
            rule = _adam_rule(group)
            if history.rule != rule:
                history.change_rule(rule)
        super()._step_rows(grad, group)

    def rule_options(self, group: dict[str, Any]) -> list[float] | None:
        """`RowUpdate.options` of a group; None in dense mode."""
        beta1, beta2 = group["betas"]
        return None if group["mode"] == "dense" else [group["eps"], group["weight_decay"], beta1, beta2]

    def row_states(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """The first and the second moments."""
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any], seed: int
    ) -> None:
        step = state["step"] + 1
        if "last_step" not in state:
            moments = (state["exp_avg"], state["exp_avg_sq"])
            rule = (step, float(group["lr"]), *_adam_rule(group), seed)
            _ops.adam_update_(param.data, *moments, rows, grads, *rule)
        else:
            history = self._histories[param]
            history.record(step, float(group["lr"]))
            _ops.adam_dense_update_(
                param.data,
                state["exp_avg"],
                state["exp_avg_sq"],
                state["last_step"],
                rows,
                grads,
                history.learning_rates,
                history.start,
                step,
                *history.rule,
            )
        state["step"] = step

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for some in by_kind(params):
            states = [self.state[param] for param in some]
            for param, state in zip(some, states, strict=True):
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                state["step"] += 1
            torch._fused_adam_(
                some,
                grads_of(some),
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                step_tensors(states, some[0].device),
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
