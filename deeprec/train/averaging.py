"""The moving average of a model's weights, by epoch or by step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """average = decay * average + (1 - decay) * weights; at the first update, the weights themselves.

    Updated after each epoch it is `weight_averaging`, after each step the exponential moving average (EMA). Tensors
    that are not floating-point, such as counters, are copied.

    The weights must be up to date when `update` is called: optimizers of rows (`deeprec.train.optim`) leave rows that a
    step did not touch behind, so `optimizer.flush()` comes first. After every step that costs as much as dense
    optimizers do; after every epoch it costs nothing, as the loop flushes there anyway.

    Args:
        decay: in [0, 1); 0: the average is what the weights were at the last update.
    Raises:
        ValueError: `decay` is out of its range.
    Reference: Polyak and Juditsky 1992; the step-wise form as `torch.optim.swa_utils.get_ema_multi_avg_fn`.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: decay must lie in [0, 1), got {decay}")
        self.decay = float(decay)
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Tensors that are averaged: 0 before the first update."""
        return len(self._tensors)

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take in the weights; returns `state_dict()`.

        Args:
            weights: by name, such as `model.state_dict()` or `dict(model.named_parameters())`; any shapes and devices,
                the same at every call. They are not kept.
        Raises:
            ValueError: other names or shapes than before.
        """
        if not self._tensors:
            self._tensors = {name: weight.detach().clone() for name, weight in weights.items()}
            return self.state_dict()
        self._require_same(weights)
        for name, average in self._tensors.items():
            weight = weights[name]
            if average.is_floating_point() or average.is_complex():
                torch.lerp(weight, average, self.decay, out=average)
            else:
                average.copy_(weight)
        return self.state_dict()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, {} before the first update: the tensors themselves, which the next update changes."""
        return dict(self._tensors)

    def load_state_dict(self, tensors: Mapping[str, Tensor], device: torch.device | str | None = None) -> None:
        """Go on from what `state_dict` gave; the tensors are copied, to `device` where it is given."""
        self._tensors = {name: tensor.detach().to(device, copy=True) for name, tensor in tensors.items()}

    def _require_same(self, weights: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if shapes != given:
            other = sorted(name for name in {*shapes, *given} if shapes.get(name) != given.get(name))
            raise ValueError(
                f"WeightAverage: the weights must be those of the update before, got another {other[0]!r}: "
                f"{given.get(other[0])}, before {shapes.get(other[0])}; average each model by itself"
            )
