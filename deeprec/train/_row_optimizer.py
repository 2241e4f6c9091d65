"""What the optimizers of `deeprec.train.optim` share: telling sparse gradients from dense ones, clipping, states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprec.kernels import sparse_update  # noqa: F401  (declares the operators that are called by name)
from deeprec.kernels._door import refuse_capture
from deeprec.kernels.embedding_bag import mark_changed
from deeprec.kernels.sparse_update.reference import rounding_seed
from deeprec.train._dense_step import (
    State,
    check_memory,
    make_flat,
    state_dtype,
    step_dense,
    step_rows_apart,
)
from deeprec.train._options import ABSENT, SHARED, Group, Shared, check_names, check_options, require
from deeprec.train._row_grad import RowGrad, clipped
from deeprec.train._row_step import RowStep, Tables

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]]
Tensors: TypeAlias = list[Tensor]
# A step of a fused kernel on rows, operator(weight, *states, rows, grads, *numbers): an operator of torch.ops.deeprec,
# its states (None for one that the options leave out), and the numbers of the rule, the rounding seed last. A plain
# tuple, for it is made at every step of every table.
RowRule: TypeAlias = tuple[Callable[..., Any], tuple[Tensor | None, ...], tuple[Any, ...]]


class RowOptimizer(Optimizer):
    """Base of the optimizers; a subclass gives the rules for rows and for dense parameters.

    Attributes:
        RULE: number of the rule in `deeprec.kernels.embedding_bag.RowUpdate`.
        STATES: the tensors that a parameter's state must have once it has a state.
        FIRST: a tensor that the state of a table has, if it has any.
        DENSE: all tensors that the state of a parameter with dense gradients may have.
    """

    RULE: int
    STATES: ClassVar[tuple[str, ...]]
    FIRST: ClassVar[str]
    DENSE: ClassVar[tuple[str, ...]]

    def __init__(self, params: Params, shared: Shared, **options: Any) -> None:
        """What a subclass calls.

        Args:
            params: parameters or groups, as in torch.optim.
            shared: options that every optimizer has, as they were given.
            options: of the rule, described in `deeprec.train._options`.
        """
        self._row_steps: list[RowStep] = []
        known = {**options, **SHARED}
        check_names(type(self).__name__, shared, known)
        super().__init__(params, {**known, **shared})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group with options of its own, as in torch.optim; options are checked.

        Raises:
            ValueError: an option is unknown or out of range, or a parameter is complex.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        unreal = next((param.dtype for param in params if param.is_complex()), None)
        if unreal is not None:
            self.param_groups.pop()
            raise ValueError(
                f"{type(self).__name__}: parameters must be real, got one of {unreal}; use torch.view_as_real of it as "
                "parameter, or torch.optim"
            )
        for param in params:
            hook = getattr(param, "_deeprec_catch_up", None)
            if hook is not None:  # left by an optimizer that served before this one
                hook.release()

    def _check(self, options: dict[str, Any]) -> None:
        owner = type(self).__name__
        check_names(owner, options, self.defaults)
        check_options(owner, options)

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
            ValueError: a sparse gradient is not [R, D] with rows as its one sparse dimension, or elements of a
                parameter share memory.
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
            for param in (*(grad.param for grad in by_row), *dense):
                reason = "the learning rate and the count of steps are on the host, and a graph would repeat them"
                remedy = "take the step of tables in the backward pass with capturable=True, others by torch.optim"
                refuse_capture(f"{type(self).__name__}.step", param.device, reason, remedy)
            if by_row:
                self.update_rows(by_row, group)
            if dense:
                self._update_dense(dense, group)

    def update_rows(self, grads: list[RowGrad], group: Group) -> None:
        """One step on the parameters of a group that have gradients by row, clipped as the group says."""
        if group["max_grad_norm"]:
            grads = clipped(grads, group["max_grad_norm"])
        if group["maximize"]:
            grads = [grad._replace(values=-grad.values) for grad in grads]
        self._step_tables(grads, group)
        mark_changed(grad.param for grad in grads)

    def _step_tables(self, grads: list[RowGrad], group: Group) -> None:
        """One step on the parameters of a group that have gradients by row."""
        for grad in grads:
            self._step_rows(grad, group)

    def _gradients(self, group: Group) -> tuple[list[RowGrad], list[Tensor]]:
        """The gradients by row, and the parameters with dense ones."""
        by_row, dense = [], []
        in_backward = {id(param) for step in self._row_steps for param in step.params}
        for index, param in enumerate(group["params"]):
            grad = param.grad
            if grad is None:
                continue
            if id(param) in in_backward:
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
            elif "is_sparse" in self.state.get(param, {}):
                every = torch.arange(param.shape[0], device=param.device)
                by_row.append(RowGrad(index, param, every, grad.contiguous()))
            else:
                dense.append(param)
        return by_row, dense

    def start_rows(self, param: Tensor, group: Group) -> State:
        """The state of a parameter with gradients by row, made if need be."""
        state: State = self.state[param]
        if "is_sparse" not in state or not self._is_started(state, group):
            check_memory(type(self).__name__, param)
            self._start_rows(param, state, group)
            state["is_sparse"] = True
        moments = state.get(self.FIRST)
        if moments is not None and (moments.dtype != state_dtype(param) or moments.device != param.device):
            self.move_state(param)  # the model has been moved since
        return state

    def _is_started(self, state: State, group: Group) -> bool:
        """Whether a state by row has all that the options of the moment ask for."""
        return True

    def _step_rows(self, grad: RowGrad, group: Group) -> None:
        state = self.start_rows(grad.param, group)
        seed = rounding_seed(group["seed"], state["step"] + 1, grad.place) if group["stochastic_rounding"] else -1
        if self._has_no_kernel(group):
            grad = grad.coalesced()
            step_rows_apart(grad.param, state, grad.rows, grad.values, group, self._step_flat, seed)
            return
        weight = grad.param.data.contiguous()
        operator, states, numbers = self._row_rule(grad.param, state, group, seed)
        try:
            # Autograd drops the coalesced flag of gradients that are; the kernel checks, which is cheaper than sorting.
            operator(weight, *states, grad.rows, grad.values, *numbers)
        except RuntimeError as error:
            if "strictly ascending" not in str(error):
                raise
            grad = grad.coalesced()
            operator(weight, *states, grad.rows, grad.values, *numbers)
        state["step"] += 1
        if not grad.param.is_contiguous():
            grad.param.data.copy_(weight)

    def _has_no_kernel(self, group: Group) -> bool:
        """Whether rows must be stepped by `_step_flat`, because the kernels lack an option of this group."""
        return False

    def _start_rows(self, param: Tensor, state: State, group: Group) -> None:
        """Create (or widen, after dense steps) the states of a parameter with sparse gradients."""
        raise NotImplementedError

    def _row_rule(self, param: Tensor, state: State, group: Group, seed: int) -> RowRule:
        """The next step of the fused kernel on rows of a parameter."""
        raise NotImplementedError

    def _update_dense(self, params: list[Tensor], group: Group) -> None:
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            self._start_dense(param, state, group)
        grads = [param.grad for param in params if param.grad is not None]
        step_dense(type(self).__name__, params, grads, states, group, self._step_flat, self.DENSE)

    def _start_dense(self, param: Tensor, state: State, group: Group) -> None:
        """Create what is missing of the states of a parameter with dense gradients."""
        raise NotImplementedError

    def _step_flat(self, weights: Tensors, grads: Tensors, states: list[State], group: Group) -> None:
        """The rule for dense parameters, a `FlatRule`; `maximize` is in the gradients already."""
        raise NotImplementedError

    def flush(self) -> None:
        """Bring every row up to date; needed by Adam in dense mode only, and harmless elsewhere."""

    def rule_options(self, group: Group) -> list[float] | None:
        """`RowUpdate.options` of a group; None where its options have no fused rule."""
        raise NotImplementedError

    def row_states(self, states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
        """`RowUpdate.first` and `.second` of the tables with these states."""
        raise NotImplementedError

    def row_step(self, tables: Tables) -> RowStep:
        """The step on tables that are updated in the backward pass.

        Args:
            tables: gives the tables [R, D] as they are now; all of one parameter group.
        Returns:
            A callable that gives what `embedding_bags` takes as `update`, by the options of the moment.
        Raises:
            ValueError: the tables are not of one group of this optimizer.
        """
        step = RowStep(self, tables)
        self._row_steps.append(step)
        self._opt_called = True  # or torch's schedulers warn that step() never was
        return step

    def number_of_group(self, params: Iterable[Tensor]) -> int:
        """The one group that has all these parameters.

        Raises:
            ValueError: the parameters are not of one group of this optimizer.
        """
        members = [{id(param) for param in group["params"]} for group in self.param_groups]
        places = {next((n for n, ids in enumerate(members) if id(param) in ids), None) for param in params}
        if len(places) != 1 or None in places:
            raise ValueError(
                f"{type(self).__name__}: tables that are updated together must be of one parameter group, got "
                f"{len(places)} groups; use a layer for each group"
            )
        return next(place for place in places if place is not None)

    def replace_params(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Go on with other tensors of the same shapes in place of parameters; states stay with them."""
        states = [self.state.pop(old, None) for old in before]
        for new, state in zip(after, states, strict=True):
            if state is not None:
                self.state[new] = state
        by_id = {id(old): new for old, new in zip(before, after, strict=True)}
        for group in self.param_groups:
            group["params"] = [by_id.get(id(param), param) for param in group["params"]]

    def move_state(self, param: Tensor) -> None:
        """Bring the state of a table to the device and the dtype of the table."""
        make_flat(self.state[param], param)

    def state_dict(self) -> dict[str, Any]:
        """The state: `load_state_dict` of ours and, where the rule is torch's, of torch.optim's take it."""
        self._follow()
        saved = super().state_dict()
        # Of tables that are updated in the backward pass these are tensors, the step one that they share.
        for group in saved["param_groups"]:
            group["lr"] = float(group["lr"])
        for key, state in saved["state"].items():
            if isinstance(state.get("step"), Tensor):
                saved["state"][key] = {**state, "step": int(state["step"])}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state: one of this class, or of the optimizer of torch.optim that has the rule.

        Unlike torch.optim, float32 states of 16-bit weights and integers keep their dtype. Options that the state lacks
        have the value that they had where it was saved: off.

        Raises:
            ValueError: the state is of another rule, has an option that is unknown or out of range, or its tensors are
                not of the shape of the parameters; nothing has been changed then.
        """
        self._follow()
        saved: dict[str, Any] = {}

        def check(_: Optimizer, given: dict[str, Any]) -> None:
            saved.update(given)
            self._check_saved(given)

        hook = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for key, param in self._by_key(saved):
            state = self.state[param]
            for name, value in saved["state"].get(key, {}).items():
                if name == "step":  # torch.optim keeps a tensor
                    state[name] = int(value)
                elif value is None:  # torch's SGD before a first step
                    del state[name]
                elif isinstance(value, Tensor):
                    value = value.detach().to_dense() if value.is_sparse else value.detach()
                    state[name] = value.to(param.device, copy=True)
            if state:
                make_flat(state, param)
        for step in self._row_steps:
            step.bind()

    def _by_key(self, saved: dict[str, Any]) -> list[tuple[Any, Tensor]]:
        """The parameter of each key of a saved state."""
        keys = [key for group in saved["param_groups"] for key in group["params"]]
        return list(zip(keys, (param for group in self.param_groups for param in group["params"]), strict=False))

    def _check_saved(self, saved: dict[str, Any]) -> None:
        owner = type(self).__name__
        for group in saved["param_groups"]:
            self._check(self._completed(group))
        for key, param in self._by_key(saved):
            state = saved["state"].get(key, {})
            require(
                not (state and param.is_meta),
                owner,
                "a state must be loaded for parameters that have memory; use to_empty or load_state_dict(assign=True) "
                "of the module first",
                param.device,
            )
            missing = [name for name in self.STATES if state and name not in state]
            require(not missing, owner, f"the state of a parameter must have {', '.join(self.STATES)}", sorted(state))
            for name, value in state.items():
                shape = self._shape_of(name, param, state)
                if isinstance(value, Tensor) and shape is not None:
                    require(
                        value.shape == shape,
                        owner,
                        f"{name} in the state of a parameter must be {tuple(shape)}, as the rule and the parameter ask",
                        tuple(value.shape),
                    )

    def _shape_of(self, name: str, param: Tensor, state: Mapping[str, Any]) -> torch.Size | None:
        """The shape of a tensor in the state of a parameter; None: any."""
        return None if name == "step" else param.shape

    def _completed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A saved group, with the options that it lacks."""
        return {**self.defaults, **{key: ABSENT[key] for key in self.defaults if key in ABSENT}, **group}

    def _follow(self) -> None:
        """Take up the parameters that layers with steps in the backward pass have now."""
        for step in self._row_steps:
            step.follow()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_row_steps": self._row_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for key, value in SHARED.items():  # pickled before the option existed
            self.defaults.setdefault(key, value)
        for group in self.param_groups:
            group.update(self._completed(group))
