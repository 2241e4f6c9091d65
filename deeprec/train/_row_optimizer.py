"""What the optimizers of `deeprec.train.optim` share: telling sparse gradients from dense ones, clipping, states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprec.kernels import sparse_update  # noqa: F401  (declares the operators that are called by name)
from deeprec.kernels.embedding import embedding_plan
from deeprec.kernels.embedding_bag import GradStep, RowUpdate, mark_changed
from deeprec.kernels.sparse_update.reference import rounding_seed

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]]
_ops = torch.ops.deeprec


def require(condition: bool, owner: str, requirement: str, value: object) -> None:
    """Raise ValueError(owner: requirement, got value) unless the condition holds."""
    if not condition:
        raise ValueError(f"{owner}: {requirement}, got {value}")


def is_at_least(value: object, low: float) -> bool:
    """Whether value is a finite number (or a tensor of one) of at least `low`."""
    if isinstance(value, Tensor):
        value = float(value) if value.numel() == 1 else None
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= low


def state_dtype(param: Tensor) -> torch.dtype:
    """float32, float64 for a float64 table."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


class RowGrad(NamedTuple):
    """The gradient of the touched rows of one parameter.

    Attributes:
        place: number of the parameter in its group.
        param: the table, [R, D].
        rows: [U].
        values: [U, D].
    """

    place: int
    param: Tensor
    rows: Tensor
    values: Tensor

    def coalesced(self) -> RowGrad:
        """The same with strictly ascending rows."""
        if bool((self.rows[1:] > self.rows[:-1]).all()):
            return self
        plan = embedding_plan(self.rows, self.param.shape[0])
        values = _ops.embedding_grad(self.values, plan.rows, plan.offsets, plan.order)
        return self._replace(rows=plan.rows, values=values)

    def square_sum(self) -> Tensor:
        """Sum of the squares, a scalar in float64."""
        return self.values.to(state_dtype(self.values)).square().sum(dtype=torch.float64)

    def scaled(self, factor: float) -> RowGrad:
        """The gradient times a factor."""
        values = self.values.to(state_dtype(self.values)) * factor
        return self._replace(values=values.to(self.values.dtype))


def clipped(grads: list[RowGrad], max_norm: float) -> list[RowGrad]:
    """Coalesced gradients whose norm together is at most max_norm."""
    grads = [grad.coalesced() for grad in grads]
    norm = sum(float(grad.square_sum()) for grad in grads) ** 0.5
    return [grad.scaled(max_norm / norm) for grad in grads] if norm > max_norm else grads


class RowOptimizer(Optimizer):
    """Base of the optimizers; a subclass gives the rules for rows and for dense parameters.

    Attributes:
        RULE: number of the rule in `deeprec.kernels.embedding_bag.RowUpdate`.
    """

    RULE: int

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        max_grad_norm: float | None,
        stochastic_rounding: bool,
        seed: int,
    ) -> None:
        self._row_steps: list[RowStep] = []
        shared = {"max_grad_norm": max_grad_norm, "stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, {**defaults, **shared})

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
                require(is_at_least(options[key], 0), owner, f"{key} must be a finite number >= 0", options[key])
        if "eps" in options:
            positive = is_at_least(options["eps"], 0) and options["eps"] > 0
            require(positive, owner, "eps must be a finite number > 0", options["eps"])
        norm, seed = options["max_grad_norm"], options["seed"]
        positive = norm is None or (is_at_least(norm, 0) and norm > 0)
        require(positive, owner, "max_grad_norm must be None or a finite number > 0", norm)
        require(isinstance(seed, int) and 0 <= seed < 2**63, owner, "seed must be an integer in [0, 2^63)", seed)

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.
        Returns:
            What closure returned, or None.
        Raises:
            ValueError: a sparse gradient is not [R, D] with rows as its one sparse dimension.
            RuntimeError: a table that is updated in the backward pass has a `.grad` as well.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        """`step()` without hooks and the profiler's mark, which cost the training of a small model some per cent."""
        for group in self.param_groups:
            by_row, dense = self._gradients(group)
            if by_row:
                self.update_rows(by_row, group)
            if dense:
                self._update_dense(dense, group)

    def update_rows(self, grads: list[RowGrad], group: dict[str, Any]) -> None:
        """One step on the parameters of a group that have gradients by row, clipped as the group says."""
        if group["max_grad_norm"]:
            grads = clipped(grads, group["max_grad_norm"])
        self._step_tables(grads, group)
        mark_changed(grad.param for grad in grads)

    def _step_tables(self, grads: list[RowGrad], group: dict[str, Any]) -> None:
        """One step on the parameters of a group that have gradients by row."""
        for grad in grads:
            self._step_rows(grad, group)

    def _gradients(self, group: dict[str, Any]) -> tuple[list[RowGrad], list[Tensor]]:
        """The gradients by row, and the parameters with dense ones."""
        by_row, dense = [], []
        for index, param in enumerate(group["params"]):
            grad, state = param.grad, self.state.get(param, {})
            if grad is None:
                continue
            if isinstance(state.get("step"), Tensor):
                raise RuntimeError(
                    f"{type(self).__name__}: a table that is updated in the backward pass must have no .grad, got one "
                    f"of {tuple(grad.shape)}; use its rows through its layer only, or leave optimizer_in_backward out"
                )
            if grad.is_sparse:
                if grad.sparse_dim() != 1 or grad.dim() != 2:
                    raise ValueError(
                        f"{type(self).__name__}: a sparse gradient must be [R, D] with rows as its sparse dimension, "
                        f"got {tuple(grad.shape)} with {grad.sparse_dim()} sparse dimensions; use a dense gradient"
                    )
                by_row.append(RowGrad(index, param, grad._indices()[0], grad._values()))
            elif "is_sparse" in state:
                every = torch.arange(param.shape[0], device=param.device)
                by_row.append(RowGrad(index, param, every, grad.contiguous()))
            else:
                dense.append(param)
        return by_row, dense

    def start_rows(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter with gradients by row, made if need be."""
        state: dict[str, Any] = self.state[param]
        if "is_sparse" not in state:
            self._start_rows(param, state, group)
            state["is_sparse"] = True
        return state

    def _step_rows(self, grad: RowGrad, group: dict[str, Any]) -> None:
        state = self.start_rows(grad.param, group)
        seed = rounding_seed(group["seed"], state["step"] + 1, grad.place) if group["stochastic_rounding"] else -1
        try:
            # Autograd drops the coalesced flag of gradients that are; the kernel checks, which is cheaper than sorting.
            self._update_rows(grad.param, state, grad.rows, grad.values, group, seed)
        except RuntimeError as error:
            if "strictly ascending" not in str(error):
                raise
            grad = grad.coalesced()
            self._update_rows(grad.param, state, grad.rows, grad.values, group, seed)

    def _start_rows(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Create (or widen, after dense steps) the states of a parameter with sparse gradients."""
        raise NotImplementedError

    def _update_rows(
        self, param: Tensor, state: dict[str, Any], rows: Tensor, grads: Tensor, group: dict[str, Any], seed: int
    ) -> None:
        raise NotImplementedError

    def _update_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Bring every row up to date; needed by Adam in dense mode only, and harmless elsewhere."""

    def rule_options(self, group: dict[str, Any]) -> list[float] | None:
        """`RowUpdate.options` of a group; None where its options have no fused rule."""
        raise NotImplementedError

    def row_states(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """`RowUpdate.first` and `.second` of the tables with these states."""
        raise NotImplementedError

    def row_step(self, params: Sequence[Tensor]) -> RowStep | UnfusedStep:
        """The step on tables that are updated in the backward pass, their states created.

        Where the options have a fused rule, the learning rate stands in its group as a tensor from here on, and the
        tables share one count of steps. Adam in dense mode and Adagrad with lr_decay have none: their step is taken on
        the gradients by row, which live for as long as the step takes.

        Args:
            params: tables [R, D] of one parameter group.
        Returns:
            A callable that gives what `embedding_bags` takes as `update`, by the options of the moment.
        Raises:
            ValueError: the parameters are not of one group of this optimizer.
        """
        groups = {
            number
            for number, group in enumerate(self.param_groups)
            for param in group["params"]
            if any(param is wanted for wanted in params)
        }
        if len(groups) != 1 or sum(len(group["params"]) for group in self.param_groups) < len(params):
            raise ValueError(
                f"{type(self).__name__}: tables that are updated together must be of one parameter group, got "
                f"{len(groups)} groups; use a layer for each group"
            )
        number = groups.pop()
        self._opt_called = True  # or torch's schedulers warn that step() never was
        if self.rule_options(self.param_groups[number]) is None:
            return UnfusedStep(self, number, list(params))
        step = RowStep(self, number, list(params))
        self._row_steps.append(step)
        return step

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
        for step in self._row_steps:
            step.bind()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_row_steps": self._row_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():  # saved by torch.optim or before the option existed
                group.setdefault(key, value)


class RowStep:
    """The step that the backward pass takes on some tables, see `RowOptimizer.row_step`.

    Calling it is traced by torch.compile: the options of the group are guarded on, the learning rate is a tensor.
    """

    def __init__(self, optimizer: RowOptimizer, group: int, params: list[Tensor]) -> None:
        self.optimizer = optimizer
        self.group = group
        self.params = params
        self.step = torch.zeros((), dtype=torch.int64)
        self.bind()

    def bind(self) -> None:
        """Take up the states as the optimizer has them, on the device and in the dtype of the tables.

        Raises:
            ValueError: the tables are at different steps.
        """
        group = self.optimizer.param_groups[self.group]
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64, device="cpu")
        states = [self.optimizer.start_rows(param, group) for param in self.params]
        steps = {int(state["step"]) for state in states}
        owner = type(self.optimizer).__name__
        require(len(steps) == 1, owner, "tables that are updated together must be at one step", sorted(steps))
        self.step.fill_(steps.pop())
        for param, state in zip(self.params, states, strict=True):
            state["step"] = self.step
            for name, value in state.items():
                if isinstance(value, Tensor) and name != "step":
                    state[name] = value.to(param.device, state_dtype(param))
        self.first, self.second = self.optimizer.row_states(states)

    def __call__(self) -> RowUpdate:
        """The update by the options that the parameter group has now."""
        group = self.optimizer.param_groups[self.group]
        lr = group["lr"]
        if not isinstance(lr, Tensor):
            lr = torch.tensor(lr, dtype=torch.float64)
        options = self.optimizer.rule_options(group)
        if options is None or (self.optimizer.RULE == 0 and options[2] and not self.first):
            raise ValueError(
                f"{type(self.optimizer).__name__}: mode, lr_decay and momentum 0 must stay what they were when the "
                "layer was made; make the layer with the option set"
            )
        return RowUpdate(
            self.optimizer.RULE,
            self.first,
            self.second,
            lr,
            self.step,
            options,
            group["max_grad_norm"] or 0.0,
            group["seed"] if group["stochastic_rounding"] else -1,
        )


class UnfusedStep:
    """The step on the gradients by row in the backward pass, see `RowOptimizer.row_step`."""

    def __init__(self, optimizer: RowOptimizer, group: int, params: list[Tensor]) -> None:
        self.optimizer = optimizer
        self.group = group
        self.params = params
        members = optimizer.param_groups[group]["params"]
        self.places = [next(i for i, member in enumerate(members) if member is param) for param in params]

    def bind(self) -> None:
        """Nothing is held here that the optimizer could replace."""

    def __call__(self) -> GradStep:
        return self.take

    @torch.no_grad()
    def take(self, rows: list[Tensor], values: list[Tensor]) -> None:
        """One step; rows [U_t], ascending, and gradients [U_t, D_t] of each table."""
        given = zip(self.places, self.params, rows, values, strict=True)
        self.optimizer.update_rows([RowGrad(*some) for some in given], self.optimizer.param_groups[self.group])


def by_kind(params: list[Tensor]) -> Iterable[list[Tensor]]:
    """Groups of one device and dtype, as torch's fused updates want them."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        kinds.setdefault((param.device, param.dtype), []).append(param)
    return kinds.values()


def grads_of(params: list[Tensor]) -> list[Tensor]:
    """The dense gradients."""
    return [param.grad for param in params if param.grad is not None]


def step_tensors(states: list[dict[str, Any]], device: torch.device) -> list[Tensor]:
    """The step of each state as torch's fused updates want it; one tensor for all that agree."""
    made: dict[int, Tensor] = {}
    for state in states:
        step = state["step"]
        if step not in made:
            made[step] = torch.full((), step, dtype=torch.float32, device=device)
    return [made[state["step"]] for state in states]
