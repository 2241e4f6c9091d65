"""The step that the backward pass takes on the tables of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from deeprec.kernels.embedding_bag import GradStep, RowUpdate
from deeprec.train._dense_step import check_memory
from deeprec.train._options import require
from deeprec.train._row_grad import RowGrad

if TYPE_CHECKING:
    from deeprec.train._row_optimizer import RowOptimizer

# Gives the tables as they are now: a layer may get other tensors for them, by to_empty for instance.
Tables: TypeAlias = Callable[[], Sequence[Tensor]]


class RowStep:
    """The step on some tables of one parameter group, by the options of the moment.

    Where they have a fused rule, the learning rate stands in the group as a tensor, and the tables share one count of
    steps. Otherwise (Adam in dense mode, with amsgrad or decoupled weight decay; Adagrad with lr_decay; SGD with
    nesterov or dampening; maximize; tables that are not contiguous) the step is taken on the gradients by row, which
    live for as long as it takes.

    Calling it is traced by torch.compile: the options of the group are guarded on, the learning rate is a tensor.

    Args:
        optimizer: has the tables in one group.
        tables: gives the tables [R, D].
    Raises:
        ValueError: the tables are not of one group of the optimizer.
    """

    def __init__(self, optimizer: RowOptimizer, tables: Tables) -> None:
        self.optimizer = optimizer
        self.tables = tables
        self.params: list[Tensor] = list(tables())
        self.group = optimizer.number_of_group(self.params)
        self.step = torch.zeros((), dtype=torch.int64)
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []
        self.is_ready = self.is_fused = self.is_flat = False
        self.bind()

    def follows(self, params: Sequence[Tensor]) -> bool:
        """Whether these are the tables that it steps on, or only stand for them in a torch.func.functional_call."""
        is_same = len(params) == len(self.params) and all(map(is_, params, self.params))
        return is_same or not all(isinstance(param, nn.Parameter) for param in params)

    def follow(self) -> None:
        """Take up the tables as they are now.

        Raises:
            ValueError: one has another shape than before.
        """
        params = list(self.tables())
        if not self.follows(params):
            for old, new in zip(self.params, params, strict=True):
                if old.shape != new.shape:
                    raise ValueError(
                        f"{type(self.optimizer).__name__}: a table that is updated in the backward pass must keep its "
                        f"shape, got {tuple(new.shape)} in place of {tuple(old.shape)}; build its optimizer anew with "
                        "the layer's step_in_backward"
                    )
            self.optimizer.replace_params(self.params, params)
            self.params = params
            self.is_ready = False

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # states are made outside the graph
    def bind(self) -> None:
        """Take up tables and states as they are, states on the device and in the dtype of the tables.

        On the meta device there is nothing to do yet.

        Raises:
            ValueError: the tables are at different steps.
        """
        self.follow()
        self.is_ready = not any(param.is_meta for param in self.params)
        if not self.is_ready:
            return
        owner = type(self.optimizer).__name__
        for param in self.params:
            check_memory(owner, param)
        group = self.optimizer.param_groups[self.group]
        self.is_flat = all(param.is_contiguous() for param in self.params)
        self.is_fused = self._options(group) is not None
        states = []
        for param in self.params:
            state = self.optimizer.state[param]
            if "step" in state:
                state["step"] = int(state["step"])  # no longer that of all tables
            states.append(self.optimizer.start_rows(param, group))
            self.optimizer.move_state(param)
        if not self.is_fused:
            return
        steps = {state["step"] for state in states}
        require(len(steps) == 1, owner, "tables that are updated together must be at one step", sorted(steps))
        device = self._device_of_numbers(group)
        if self.step.device != device:
            self.step = self.step.to(device)
        self.step.fill_(steps.pop())
        for state in states:
            state["step"] = self.step
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64, device=device)
        self.first, self.second = self.optimizer.row_states(states)

    def _device_of_numbers(self, group: dict[str, Any]) -> torch.device:
        """Where the learning rate and the count of steps are."""
        return self.params[0].device if group["capturable"] else torch.device("cpu")

    def _options(self, group: dict[str, Any]) -> list[float] | None:
        return None if group["maximize"] or not self.is_flat else self.optimizer.rule_options(group)

    def __call__(self) -> RowUpdate | GradStep:
        """What `embedding_bags` takes as `update`, by the options that the parameter group has now."""
        group = self.optimizer.param_groups[self.group]
        options = self._options(group)
        is_elsewhere = options is not None and self.step.device != self._device_of_numbers(group)
        needs_state = options is not None and self.optimizer.RULE == 0 and options[2] and not self.first
        if not self.is_ready or self.is_fused != (options is not None) or needs_state or is_elsewhere:
            self.bind()
            group = self.optimizer.param_groups[self.group]
            options = self._options(group)
            if not self.is_ready:
                raise ValueError(
                    f"{type(self.optimizer).__name__}: tables that are updated in the backward pass must have memory, "
                    "got the meta device; use to_empty or load_state_dict(assign=True) of the module first"
                )
        if options is None:
            return self.take
        lr = group["lr"]
        if not isinstance(lr, Tensor):
            lr = torch.tensor(lr, dtype=torch.float64, device=self.step.device)
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

    @torch.no_grad()
    def take(self, rows: list[Tensor], values: list[Tensor]) -> None:
        """One step; rows [U_t], ascending, and gradients [U_t, D_t] of each table."""
        group = self.optimizer.param_groups[self.group]
        places = {id(member): place for place, member in enumerate(group["params"])}
        given = zip(self.params, rows, values, strict=True)
        self.optimizer.update_rows([RowGrad(places[id(param)], param, *grad) for param, *grad in given], group)
