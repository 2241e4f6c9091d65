"""The optimizer's step inside the backward pass, for layers that hold tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

# Makes an optimizer of deeprec.train.optim from parameters, e.g. functools.partial(Adagrad, lr=0.05).
OptimizerFactory: TypeAlias = Callable[[list[nn.Parameter]], Any]


class InBackward:
    """An optimizer whose step on some tables is taken in the backward pass.

    It follows the tables: where the layer has others in their place (`to_empty`, `load_state_dict(assign=True)`, a
    parameter set by hand), the optimizer goes on with those, its states as they were.

    Args:
        owner: the layer, for errors.
        factory: makes the optimizer.
        tables: gives the tables as the layer has them now, [R, D] each.
    Raises:
        TypeError: what the factory makes cannot step in the backward pass.
    """

    def __init__(self, owner: str, factory: OptimizerFactory, tables: Callable[[], list[nn.Parameter]]) -> None:
        self._owner = owner
        self._optimizer = factory(tables())
        if not hasattr(self._optimizer, "row_step"):
            raise TypeError(
                f"{owner}: optimizer_in_backward must make an optimizer of deeprec.train.optim, got "
                f"{type(self._optimizer).__name__}; for example functools.partial(deeprec.train.optim.Adagrad, lr=0.05)"
            )
        self._row_step = self._optimizer.row_step(tables)
        self.bind()

    @property
    def optimizer(self) -> Any:
        """The optimizer, with the tables that the layer has now."""
        self._row_step.follow()
        return self._optimizer

    def bind(self) -> None:
        """Go where the tables have gone: to another device or dtype, or into other tensors."""
        self._row_step.bind()
        # It leads the backward pass here; inside a compiled graph it could not be made.
        self._trigger = torch.zeros((), device=self._row_step.params[0].device, requires_grad=True)

    def arguments(self, tables: list[nn.Parameter]) -> dict[str, Any]:
        """`update` and `trigger` as the kernels take them, by the options of the moment; nothing for frozen tables.

        Raises:
            ValueError: some tables are frozen (requires_grad_(False)), others are not; or a table has another shape
                than before.
        """
        frozen = sum(not table.requires_grad for table in tables)
        if not torch.is_grad_enabled() or frozen == len(tables):
            return {}
        if frozen:
            raise ValueError(
                f"{self._owner}: all tables that are updated in the backward pass must require gradients, or none, got "
                f"{frozen} of {len(tables)} frozen; put those into a layer of their own"
            )
        if not torch.compiler.is_compiling() and not self._row_step.follows(tables):
            self.bind()
        return {"update": self._row_step(), "trigger": self._trigger}
