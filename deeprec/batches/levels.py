"""Rows of ratings on a scale of levels: split at random into what is shown and what is asked, or with noise for chains.

A level is the number of a rating on its scale, from 0. All is drawn on the CPU: the same batches on every device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.device import to_device

MOST_LEVELS = 32
_SPLITS, _CHAINS = 13, 14  # streams of the run's seed: those before are of other draws


def distinct_levels(ratings: NDArray[np.float32]) -> tuple[float, ...]:
    """The distinct ratings, ascending; () where there are none, or more than MOST_LEVELS."""
    levels: list[float] = []
    while len(ratings):
        if len(levels) == MOST_LEVELS:
            return ()
        levels.append(float(ratings[0]))
        ratings = ratings[ratings != ratings[0]]
    return tuple(sorted(levels))


@dataclass(frozen=True, slots=True)
class SplitBatch:
    """Rows of ratings, each split into a part that is shown and one that is asked.

    Attributes:
        offsets: [b + 1]; columns, levels: [n] of what is shown; all int64.
        num_lookups: sum of levels + 1 over these.
        asked_offsets: [b + 1]; asked_columns, asked_levels: [m] of the others; all int64. No row has none.
        weights: [m], float32: ratings of the row over those of them that are asked.
    """

    offsets: Tensor
    columns: Tensor
    levels: Tensor
    num_lookups: int
    asked_offsets: Tensor
    asked_columns: Tensor
    asked_levels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.columns) + len(self.asked_columns)

    def to(self, device: torch.device) -> SplitBatch:
        """The batch on a device; itself where it is there."""
        there: SplitBatch = _moved(self, device)
        return there


@dataclass(frozen=True, slots=True)
class ChainBatch:
    """Rows of ratings, and what k steps of Gibbs sampling from them draw on.

    Attributes:
        offsets: [b + 1]; columns, levels: [n]; all int64.
        hidden_noise: [k, b, H], float32: uniform in [0, 1), or normal.
        visible_noise: [k, n], float32, uniform in [0, 1).
    """

    offsets: Tensor
    columns: Tensor
    levels: Tensor
    hidden_noise: Tensor
    visible_noise: Tensor

    def __len__(self) -> int:
        return len(self.columns)

    def to(self, device: torch.device) -> ChainBatch:
        """The batch on a device; itself where it is there."""
        there: ChainBatch = _moved(self, device)
        return there


def _moved(batch: Any, device: torch.device) -> Any:
    if batch.offsets.device == device:
        return batch
    parts = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return type(batch)(*(to_device(each, device) if isinstance(each, Tensor) else each for each in parts))


class _LevelBatches:
    """Batches made of those of rows whose targets are levels.

    Args:
        rows: on the CPU, with `targets` the levels.
        device: where the batches go.
    """

    stream: int

    def __init__(self, rows: RatingRows, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_examples(self) -> int:
        """Ratings in an epoch."""
        return self.rows.num_examples

    def _generator(self, number: int) -> torch.Generator:
        (seed,) = np.random.SeedSequence((self.rows.seed, self.stream, number)).generate_state(1, np.uint64) >> 1
        return torch.Generator().manual_seed(int(seed))


class Splits(_LevelBatches):
    """Rows in shuffled batches; of a row with D ratings 0 to D - 1, all numbers as likely, are shown, drawn at random.

    That is an ordering of the ratings and a place in it, both uniform, as CF-NADE trains (Zheng et al. 2016). Drawn
    anew every epoch.
    """

    stream = _SPLITS

    def epoch(self, number: int, skip: int = 0) -> Iterator[SplitBatch]:
        """The batches of one epoch without the first `skip`; rows without ratings are left out."""
        generator = self._generator(number)
        batches = (_split(batch, generator) for batch in self.rows.epoch(number))
        return (batch.to(self.device) for batch in islice(batches, skip, None))


def _split(batch: RowBatch, generator: torch.Generator) -> SplitBatch:
    lengths = batch.offsets.diff()
    owners = torch.repeat_interleave(lengths)
    share = torch.rand(len(lengths), generator=generator)[owners]
    is_shown = torch.rand(len(owners), generator=generator) < share
    # One rating of a row, any, is asked in any case. Each of the other D - 1 is shown by a chance that is uniform
    # itself, so that their number is uniform on 0 to D - 1.
    first = torch.rand(len(lengths), generator=generator, dtype=torch.float64) * lengths
    is_shown[batch.offsets[:-1] + first.long()] = False
    ends = F.pad(is_shown.long().cumsum(0), (1, 0))
    offsets = ends[batch.offsets]
    asked_offsets = batch.offsets - offsets
    levels = batch.labels.long()
    shown, asked = is_shown.nonzero().squeeze(1), (~is_shown).nonzero().squeeze(1)
    return SplitBatch(
        offsets,
        batch.indices[shown],
        levels[shown],
        int(levels[shown].sum()) + len(shown),
        asked_offsets,
        batch.indices[asked],
        levels[asked],
        (lengths / asked_offsets.diff())[owners[asked]].float(),
    )


class Chains(_LevelBatches):
    """Rows in shuffled batches, with noise for as many steps of a chain as the epoch asks for.

    Args:
        rows, device: as above.
        steps: of an epoch's number, gives the steps of its chains, >= 1.
        hidden: units of the hidden layer.
        is_normal: whether their noise is normal, not uniform.
    """

    stream = _CHAINS

    def __init__(
        self, rows: RatingRows, device: torch.device, *, steps: Callable[[int], int], hidden: int, is_normal: bool
    ) -> None:
        super().__init__(rows, device)
        self.steps, self.hidden, self.draw = steps, hidden, torch.randn if is_normal else torch.rand

    def epoch(self, number: int, skip: int = 0) -> Iterator[ChainBatch]:
        """The batches of one epoch without the first `skip`; rows without ratings are left out."""
        generator, steps = self._generator(number), self.steps(number)
        batches = (self._with_noise(batch, steps, generator) for batch in self.rows.epoch(number))
        return (batch.to(self.device) for batch in islice(batches, skip, None))

    def _with_noise(self, batch: RowBatch, steps: int, generator: torch.Generator) -> ChainBatch:
        hidden = self.draw((steps, len(batch.rows), self.hidden), generator=generator)
        visible = torch.rand((steps, len(batch.indices)), generator=generator)
        return ChainBatch(batch.offsets, batch.indices, batch.labels.long(), hidden, visible)
