"""Optimizers that update only the rows a sparse gradient touches, and dense parameters as `torch.optim` does.

A parameter whose gradient is `torch.sparse_coo` (deeprec.nn.Embedding, torch.nn.Embedding(sparse=True), the fused
losses) goes through one fused kernel per step (deeprec.kernels.sparse_update); all others go through torch's own
fused updates. Row updates work on [R, D] parameters; their states are float32 (float64 for float64 weights).
`weight_decay` is L2; in all but Adam's dense mode it reaches a row when the row is touched.

Gradients accumulated over several backward passes, repeated rows, parameter groups, learning rate schedulers,
closures and state_dict / load_state_dict work as in torch.optim; resuming from a state dict is bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprec.kernels import sparse_update  # noqa: F401  (declares the operators that are called by name below)
from deeprec.kernels.embedding import embedding_plan
from deeprec.train._replay import CatchUp, Rule, StepHistory

__all__ = ["SGD", "Adagrad", "Adam", "RowWiseAdagrad"]

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]]
_ops = torch.ops.deeprec


def _require(condition: bool, owner: str, requirement: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{owner}: {requirement}, got {value}")


def _is_at_least(value: object, low: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= low


def _state_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


class _RowOptimizer(Optimizer):
    """What the optimizers share: telling sparse gradients from dense ones, checks, states of any dtype."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with options of its own, as in torch.optim; options are checked.

        Raises:
            ValueError: an option is out of range.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            hook = getattr(param, "_deeprec_catch_up", None)
            if hook is not None:  # left by an optimizer that served before this one
                hook.release()

    def _check(self, options: dict[str, Any]) -> None:
        owner = type(self).__name__
        for key in ("lr", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value"):
            if key in options:
                _require(_is_at_least(options[key], 0), owner, f"{key} must be a finite number >= 0", options[key])
        if "eps" in options:
            positive = _is_at_least(options["eps"], 0) and options["eps"] > 0
            _require(positive, owner, "eps must be a finite number > 0", options["eps"])

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.
        Returns:
            What closure returned, or None.
        Raises:
            ValueError: a sparse gradient is not [R, D] with rows as its one sparse dimension.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if grad.is_sparse:
                    self._step_rows(param, grad, group)
                elif "is_sparse" in self.state[param]:
                    every = torch.arange(param.shape[0], device=param.device)
                    self._update_rows(param, self.state[param], every, grad.contiguous(), group)
                else:
                    dense.append(param)
            if dense:
                self._update_dense(dense, group)
        return loss

    def _step_rows(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.sparse_dim() != 1 or grad.dim() != 2:
            raise ValueError(
                f"{type(self).__name__}: a sparse gradient must be [R, D] with rows as its sparse dimension, got "
                f"{tuple(grad.shape)} with {grad.sparse_dim()} sparse dimensions; use a dense gradient"
            )
        state = self.state[param]
        if "is_sparse" not in state:
            self._start_rows(param, state, group)
            state["is_sparse"] = True
        rows, values = grad._indices()[0], grad._values()
        try:
            # Autograd drops the coalesced flag of gradients that are; the kernel checks, which is cheaper than sorting.
            self._update_rows(param, state, rows, values, group)
        except RuntimeError as error:
            if "strictly ascending" not in str(error):
                raise
            plan = embedding_plan(rows, param.shape[0])
            values = _ops.embedding_grad(values, plan.rows, plan.offsets, plan.order)
            self._update_rows(param, state, plan.rows, values, group)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Create (or widen, after dense steps) the states of a parameter with sparse gradients."""
        raise NotImplementedError

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any]
    ) -> None:
        raise NotImplementedError

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Bring every row up to date; needed by Adam in dense mode only, and harmless elsewhere."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; unlike torch.optim, float32 states of bfloat16 weights and integers keep their dtype."""
        super().load_state_dict(state_dict)
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if name == "step":  # torch.optim keeps a tensor
                    self.state[param][name] = int(value)
                elif isinstance(value, Tensor):
                    self.state[param][name] = value.detach().to(param.device, copy=True)


def _by_kind(params: list[Tensor]) -> Iterable[list[Tensor]]:
    """Groups of one device and dtype, as torch's fused updates want them."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        kinds.setdefault((param.device, param.dtype), []).append(param)
    return kinds.values()


def _grads(params: list[Tensor]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def _step_tensors(states: list[dict[str, Any]], device: torch.device) -> list[Tensor]:
    """The step of each state as torch's fused updates want it; one tensor for all that agree."""
    made: dict[int, Tensor] = {}
    for state in states:
        step = state["step"]
        if step not in made:
            made[step] = torch.full((), step, dtype=torch.float32, device=device)
    return [made[state["step"]] for state in states]


class SGD(_RowOptimizer):
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

    def __init__(self, params: Params, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "momentum_buffer" in state:
            state["momentum_buffer"] = state["momentum_buffer"].to(_state_dtype(param))

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any]
    ) -> None:
        momentum, buffer = group["momentum"], state.get("momentum_buffer")
        if momentum and buffer is None:
            buffer = state["momentum_buffer"] = torch.zeros_like(param, dtype=_state_dtype(param))
        _ops.sgd_update_(
            param.data, buffer if momentum else None, rows, grads, float(group["lr"]), momentum, group["weight_decay"]
        )

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        for some in _by_kind(params):
            buffers = []
            if momentum:
                for param in some:
                    if "momentum_buffer" not in self.state[param]:
                        self.state[param]["momentum_buffer"] = torch.zeros_like(param)
                    buffers.append(self.state[param]["momentum_buffer"])
            torch._fused_sgd_(
                some,
                _grads(some),
                buffers,
                weight_decay=group["weight_decay"],
                momentum=momentum,
                lr=float(group["lr"]),
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )


class Adagrad(_RowOptimizer):
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

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
            },
        )

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        dtype = _state_dtype(param)
        state.setdefault("step", 0)
        if "sum" in state:
            state["sum"] = state["sum"].to(dtype)
        else:
            state["sum"] = torch.full_like(param, group["initial_accumulator_value"], dtype=dtype)

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any]
    ) -> None:
        lr = float(group["lr"]) / (1 + state["step"] * group["lr_decay"])
        self._rule(param.data, state["sum"], rows, grads, lr, group["eps"], group["weight_decay"])
        state["step"] += 1

    def _rule(self, *args: Any) -> None:
        _ops.adagrad_update_(*args)

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for some in _by_kind(params):
            states = [self.state[param] for param in some]
            for param, state in zip(some, states, strict=True):
                if not state:
                    state["step"] = 0
                    state["sum"] = torch.full_like(param, group["initial_accumulator_value"])
                state["step"] += 1
            torch._fused_adagrad_(
                some,
                _grads(some),
                [state["sum"] for state in states],
                _step_tensors(states, some[0].device),
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

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state.setdefault("step", 0)
        if "sum" in state:  # dense steps came before: go on from their mean over the row
            state["sum"] = state["sum"].to(_state_dtype(param)).mean(1)
        else:
            value = group["initial_accumulator_value"]
            state["sum"] = torch.full((param.shape[0],), value, dtype=_state_dtype(param), device=param.device)

    def _rule(self, *args: Any) -> None:
        _ops.rowwise_adagrad_update_(*args)


def _adam_rule(group: dict[str, Any]) -> Rule:
    beta1, beta2 = group["betas"]
    return beta1, beta2, group["eps"], group["weight_decay"]


class Adam(_RowOptimizer):
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
        mode: "lazy" or "dense", also by group.
    Raises:
        ValueError: an option is out of range.
    Reference: Kingma, Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        mode: str = "lazy",
    ) -> None:
        self._histories: dict[Tensor, StepHistory] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "mode": mode}
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        betas, mode = options["betas"], options["mode"]
        in_range = len(betas) == 2 and all(_is_at_least(beta, 0) and beta < 1 for beta in betas)
        _require(in_range, "Adam", "betas must be two numbers in [0, 1)", betas)
        _require(mode in ("lazy", "dense"), "Adam", 'mode must be "lazy" or "dense"', repr(mode))
        _require(not options.get("amsgrad"), "Adam", "amsgrad must be off, it is not supported", True)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        dtype = _state_dtype(param)
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

    def _step_rows(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        history = self._histories.get(param)
        if history is not None:
            rule = _adam_rule(group)
            if history.rule != rule:
                history.change_rule(rule)
        super()._step_rows(param, grad, group)

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any]
    ) -> None:
        step = state["step"] + 1
        if "last_step" not in state:
            moments = (state["exp_avg"], state["exp_avg_sq"])
            _ops.adam_update_(param.data, *moments, rows, grads, step, float(group["lr"]), *_adam_rule(group))
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
        for some in _by_kind(params):
            states = [self.state[param] for param in some]
            for param, state in zip(some, states, strict=True):
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                state["step"] += 1
            torch._fused_adam_(
                some,
                _grads(some),
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                _step_tensors(states, some[0].device),
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
