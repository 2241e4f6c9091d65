"""The optimizers of a model as one: each group of its parameters has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeprec.contract import OptimizerOptions
from deeprec.train import optim
from deeprec.train._lbfgs import LBFGS
from deeprec.train._row_optimizer import RowOptimizer

_RPROP_STEPS = (1e-6, 1.0)  # the largest as in the NumPy reproduction of AutoRec on the reference sheet


def make_optimizer(options: OptimizerOptions, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that the options name; its groups remember their first learning rate as `initial_lr`."""
    name, lr, decay = options.optimizer, options.lr, options.weight_decay
    made: torch.optim.Optimizer
    if name == "rprop":
        made = torch.optim.Rprop(parameters, lr=lr, step_sizes=_RPROP_STEPS)
    elif name == "lbfgs":
        made = LBFGS(parameters)
    elif name == "ftrl":
        made = optim.FTRL(parameters, lr=lr, l1=options.l1, l2=options.l2, beta=options.beta)
    elif name == "sgd":
        made = optim.SGD(parameters, lr=lr, momentum=options.momentum, weight_decay=decay)
    elif name == "adagrad":
        momentum, start = options.momentum, options.start
        made = optim.Adagrad(parameters, lr=lr, weight_decay=decay, initial_accumulator_value=start, momentum=momentum)
    else:
        made = optim.Adam(parameters, lr=lr, weight_decay=decay, mode="dense" if name == "adam" else "lazy")
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


class Optimizers:
    """The optimizers of a built model.

    Args:
        model: with `step_in_backward` in its config its tables get their optimizers here.
    Attributes:
        by_group: name of the group to its optimizer.
        in_backward: those whose steps the backward pass takes.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        options = {group: config.optimizer_options(group) for group in config.groups}
        self.by_group: dict[str, torch.optim.Optimizer] = {}
        self.in_backward: list[torch.optim.Optimizer] = []
        if getattr(config, "step_in_backward", False):
            self.in_backward = model.step_in_backward({g: partial(make_optimizer, o) for g, o in options.items()})
        for group, parameters in model.parameter_groups().items():
            self.by_group[group] = make_optimizer(options[group], parameters)
        self.parameters: list[Tensor] = [p for one in self.each for group in one.param_groups for p in group["params"]]
        self._of_group = {
            name: [p for group in one.param_groups for p in group["params"]] for name, one in self.by_group.items()
        }
        self._steps = {
            name: one.update if isinstance(one, RowOptimizer) else one.step for name, one in self.by_group.items()
        }

    @property
    def each(self) -> list[torch.optim.Optimizer]:
        """Those that the training loop steps."""
        return list(self.by_group.values())

    @property
    def line_search(self) -> LBFGS | None:
        """The optimizer that evaluates the objective itself, several times a step; it must be the only one."""
        for one in self.each:
            if isinstance(one, LBFGS):
                return one
        return None

    @property
    def puts_rows_off(self) -> bool:
        """Whether rows are behind until they are read or `flush` is called, as those of dense Adam."""
        groups = [group for one in (*self.each, *self.in_backward) for group in one.param_groups]
        return any(group.get("mode") == "dense" for group in groups)

    def set_rates(self, rate: Callable[[float], float]) -> None:
        """Each learning rate becomes `rate(its first)`.

        FTRL's stays, as another would rescale all it has learnt, and so does that of a line search, which tries a whole
        step first.
        """
        for one in (*self.each, *self.in_backward):
            if not isinstance(one, optim.FTRL | LBFGS):
                for group in one.param_groups:
                    group["lr"] = rate(group["initial_lr"])

    def rates(self) -> dict[str, float]:
        """The learning rate of each group now."""
        return {name: float(one.param_groups[0]["lr"]) for name, one in self.by_group.items()}

    def clear(self) -> None:
        """Forget the gradients; what zero_grad does, without its bookkeeping."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, groups: Sequence[str] | None = None, *, share: float = 1.0, largest_norm: float = 0.0) -> None:
        """The step of the groups of a player, by default of all, on the gradients that there are.

        Args:
            share: what the gradients are multiplied with first, 1 / n where n batches were added up.
            largest_norm: their joint L2 norm is brought down to it where it is larger; 0: it may be any.
        """
        names = [name for name in (self._steps if groups is None else groups) if name in self._steps]
        if share != 1.0 or largest_norm:
            parameters = [parameter for name in names for parameter in self._of_group[name]]
            _scale([parameter for parameter in parameters if parameter.grad is not None], share, largest_norm)
        for name in names:
            self._steps[name]()

    def flush(self) -> None:
        """Bring every row up to date."""
        for one in (*self.each, *self.in_backward):
            if isinstance(one, RowOptimizer):
                one.flush()

    def state_dict(self) -> dict[str, Any]:
        """One state dict, as `Checkpoint` takes it: parameters are counted through all optimizers."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        shift = 0
        for one in (*self.each, *self.in_backward):
            own = one.state_dict()
            state.update({int(key) + shift: value for key, value in own["state"].items()})
            for group in own["param_groups"]:
                moved = {**group, "params": [key + shift for key in group["params"]]}
                groups.append({key: float(v) if isinstance(v, Tensor) else v for key, v in moved.items()})
            shift += sum(len(group["params"]) for group in own["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        groups = list(saved["param_groups"])
        shift = 0
        for one in (*self.each, *self.in_backward):
            own, groups = groups[: len(one.param_groups)], groups[len(one.param_groups) :]
            keys = [key for group in own for key in group["params"]]
            one.load_state_dict(
                {
                    "state": {key - shift: saved["state"][key] for key in keys if key in saved["state"]},
                    "param_groups": [{**group, "params": [key - shift for key in group["params"]]} for group in own],
                }
            )
            shift += len(keys)


@torch.no_grad()
def _scale(parameters: list[Tensor], share: float, largest_norm: float) -> None:
    """Gradients times `share`, then cut to the norm."""
    values = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:  # rows that occur twice count with their sum
            gradient = parameter.grad = gradient.coalesce()
        values.append(gradient._values() if gradient.is_sparse else gradient)
    for each in values:
        if share != 1.0:
            each.mul_(share)
    if largest_norm and values:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each.float()) for each in values]))
        factor = (largest_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
        for each in values:
            each.mul_(factor.to(each.dtype))
