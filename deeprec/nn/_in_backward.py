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

    Args:
        owner: the layer, for errors.
        factory: makes the optimizer.
        params: the tables, [R, D] each.
    Raises:
        TypeError: what the factory makes cannot step in the backward pass.
    """

    def __init__(self, owner: str, factory: OptimizerFactory, params: list[nn.Parameter]) -> None:
        self._owner = owner
        self.optimizer = factory(params)
        if not hasattr(self.optimizer, "row_step"):
            raise TypeError(
                f"{owner}: optimizer_in_backward must make an optimizer of deeprec.train.optim, got "
                f"{type(self.optimizer).__name__}; for example functools.partial(deeprec.train.optim.Adagrad, lr=0.05)"
            )
        self._row_step = self.optimizer.row_step(params)
        self._params = params
        self.bind()

    def bind(self) -> None:
        """Go where the tables have gone: to another device or dtype."""
        self._row_step.bind()
        # It leads the backward pass here; inside a compiled graph it could not be made.
        self._trigger = torch.zeros((), device=self._params[0].device, requires_grad=True)

    def arguments(self) -> dict[str, Any]:
        """`update` and `trigger` as the kernels take them, by the options of the moment; nothing for frozen tables.

        Raises:
            ValueError: some tables are frozen (requires_grad_(False)), others are not.
        """
        frozen = sum(not param.requires_grad for param in self._params)
        if not torch.is_grad_enabled() or frozen == len(self._params):
            return {}
        if frozen:
            raise ValueError(
                f"{self._owner}: all tables that are updated in the backward pass must require gradients, or none, got "
                f"{frozen} of {len(self._params)} frozen; put those into a layer of their own"
            )
        return {"update": self._row_step(), "trigger": self._trigger}
