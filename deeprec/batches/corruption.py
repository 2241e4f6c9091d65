"""What an autoencoder is shown of the ratings that it reconstructs: noise, drawn on the CPU for every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from deeprec.device import to_device

# (inputs [nnz], offsets [b + 1], generator) -> (inputs [nnz], weights [nnz] or None)
Corrupt: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Corruption:
    """Noise on the targets, each entry by one kind at most, and the weights of the errors that go with it.

    The shares lie in [0, 1) and are less than 1 together; the targets on the scale -1 to 1.

    Attributes:
        hide: share of the entries that are hidden.
        gaussian: share that gets normal noise of standard deviation `noise_std`, >= 0.
        salt_pepper: share that becomes -1 or 1.
        corrupted_weight: of the squared errors of all these, >= 0; other_weight: of the rest.
    """

    hide: float = 0.0
    gaussian: float = 0.0
    noise_std: float = 0.02
    salt_pepper: float = 0.0
    corrupted_weight: float = 1.0
    other_weight: float = 1.0

    def __call__(self, targets: Tensor, offsets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """What the encoder is shown of targets [nnz], and the weights [nnz] of their errors."""
        device, count = targets.device, len(targets)
        draw = to_device(torch.rand(count, generator=generator), device)
        is_hidden = draw < self.hide
        every = torch.arange(len(offsets) - 1, device=device)
        rows = torch.repeat_interleave(every, offsets.diff(), output_size=count)
        shown = torch.zeros_like(every).index_add_(0, rows, (~is_hidden).long())
        # A row whose entries were all drawn keeps them all, as in the authors' code.
        is_hidden &= shown[rows] > 0
        inputs = targets.masked_fill(is_hidden, 0.0)
        limit = self.hide + self.gaussian
        is_noisy = (draw >= self.hide) & (draw < limit)
        if self.gaussian:
            noise = to_device(torch.randn(count, generator=generator), device) * self.noise_std
            inputs = torch.where(is_noisy, inputs + noise, inputs)
        is_extreme = (draw >= limit) & (draw < limit + self.salt_pepper)
        if self.salt_pepper:
            sign = to_device(torch.randint(2, (count,), generator=generator), device).float() * 2 - 1
            inputs = torch.where(is_extreme, sign, inputs)
        weights = torch.where(is_hidden | is_noisy | is_extreme, self.corrupted_weight, self.other_weight)
        return inputs, weights
