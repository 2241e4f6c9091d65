"""Batches with a number of their own, from which a loss draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deeprec.contract import Batches


@dataclass(frozen=True, slots=True)
class Numbered:
    """A training step's batch, and the seed of what is drawn for it.

    Attributes:
        batch: as its sampler made it.
        seed: in [0, 2^63).
    """

    batch: Any
    seed: int

    def __len__(self) -> int:
        return len(self.batch)

    def to(self, device: torch.device) -> Numbered:
        """The batch on a device."""
        return Numbered(self.batch.to(device), self.seed)


class NumberedBatches:
    """Other batches, each with a seed that is a function of (seed, epoch, place in the epoch) alone.

    Args:
        batches: of which the steps are.
        seed: of all draws, >= 0.
    """

    def __init__(self, batches: Batches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_examples(self) -> int:
        """Those of the batches in an epoch."""
        return self.batches.num_examples

    def epoch(self, number: int, skip: int = 0) -> Iterator[Numbered]:
        """The batches of one epoch, without the first `skip`."""
        for place, batch in enumerate(self.batches.epoch(number, skip), skip):
            (word,) = np.random.SeedSequence((self.seed, number, place, 1)).generate_state(1, np.uint64)
            yield Numbered(batch, int(word >> 1))
