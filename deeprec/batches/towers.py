"""Training batches of two towers: pairs of a user and an item, and the candidates that each positive stands against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.data import Interactions
from deeprec.kernels.sample_negatives import AliasTable, alias_table, sample_negatives

NEGATIVES = ("in-batch", "sampled", "mixed", "row", "full")
LOG_Q = ("none", "negatives", "all")

APART = 1e4  # in place of log_q: such a candidate's logit is exactly nothing beside the others


@dataclass(frozen=True, slots=True)
class TowerBatch:
    """A training step's pairs, by internal ids, all on the CPU: the rows of terms that they name are gathered there.

    Attributes:
        epoch: number of the epoch.
        users: [b], int64; items: [b], int64, the positives.
        candidates: [c], int64, ascending and distinct, the positives among them; None: the whole catalogue.
        targets: [b], int64, where each row's positive is among the candidates.
        log_q: [c], float32, the logarithm of the probability that a candidate is one; APART for one that stands
            against no other row. None: no correction.
        negatives: [b, n], int64, of each row alone; None: all rows share the candidates.
    """

    epoch: int
    users: Tensor
    items: Tensor
    candidates: Tensor | None
    targets: Tensor
    log_q: Tensor | None
    negatives: Tensor | None

    def __len__(self) -> int:
        return len(self.users)

    def to(self, device: torch.device) -> TowerBatch:
        """Itself: numbers of rows stay on the CPU, so that sizes are known there."""
        return self


class TowerBatches:
    """Shuffled pairs with their candidates; a (seed, epoch) yields the same batches on every machine.

    "in-batch": the positives of all rows; "sampled": items drawn for the batch, shared by its rows; "mixed": both;
    "row": items drawn for each row alone among those that its user has not met (Huang et al. 2013); "full": all items.
    An item is a candidate once, however often it was drawn. Items are drawn by popularity^alpha, uniformly for alpha 0.

    The correction is the logarithm of the probability that an item is a candidate: with p = count / rows and q the
    chance of a draw it is 1 - (1 - p)^b (1 - q)^s, with the part of each kind that there is. Then the sum over the
    candidates, each by its probability, is in expectation that over the catalogue (Yi et al. 2019; for mixed negatives
    Yang et al. 2020).

    Args:
        train: every row is a positive.
        batch_size: pairs a step, >= 1.
        negatives: one of NEGATIVES.
        num_negatives: items drawn for a batch, with "row" for each of its rows, >= 1.
        alpha: >= 0.
        has_log_q: whether batches bring the correction.
        seed: of shuffling and drawing.
        num_hard: items of those that `mine` gives drawn for each pair, which stand beside the others: for the row with
            "row", for all rows otherwise, without a correction, for they are there for certain.
        mine: of an epoch, and whether it has begun already, gives items for each user that are no positives of theirs,
            [num_users, M], -1 where there are fewer; None: there are none in this epoch.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        negatives: str,
        num_negatives: int,
        alpha: float,
        has_log_q: bool,
        seed: int,
        num_hard: int = 0,
        mine: Callable[[int, bool], Tensor | None] | None = None,
    ) -> None:
        self.batch_size, self.kind, self.num_negatives, self.seed = batch_size, negatives, num_negatives, seed
        self.num_items, self.has_log_q = train.num_items, has_log_q
        self.num_hard, self.mine = num_hard, mine if num_hard else None
        self._users, self._items = (torch.from_numpy(x.astype(np.int64)) for x in (train.users, train.items))
        counts = train.item_counts()
        self.shares: NDArray[np.float64] = counts / max(1, counts.sum())
        self.popularity: AliasTable | None = None
        self.chances = np.full(self.num_items, 1 / self.num_items)
        if alpha and negatives in ("sampled", "mixed", "row"):
            self.popularity = alias_table(torch.from_numpy(counts), alpha)
            self.chances = self.popularity.probabilities().numpy()
        offsets, seen = train.csr()
        self.seen_offsets, self.seen = torch.from_numpy(offsets), torch.from_numpy(seen)
        self._none = torch.zeros(2, dtype=torch.int64), torch.empty(0, dtype=torch.int32)

    def __len__(self) -> int:
        return -(-len(self._users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Pairs in an epoch."""
        return len(self._users)

    def epoch(self, number: int, skip: int = 0) -> Iterator[TowerBatch]:
        """The batches of one epoch, without the first `skip`."""
        order_seed, draw_seed = (
            int(seed) for seed in np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
        )
        order = torch.randperm(len(self._users), generator=torch.Generator().manual_seed(order_seed))
        pool = None if self.mine is None else self.mine(number, skip > 0)
        for step, rows in enumerate(order.split(self.batch_size)):
            if step >= skip:
                users, items = self._users[rows], self._items[rows]
                hard = self._hard(pool, users, items, (draw_seed, step))
                yield self._batch(number, step, users, items, hard, draw_seed)

    def _hard(self, pool: Tensor | None, users: Tensor, items: Tensor, seed: tuple[int, int]) -> Tensor:
        """Items of the pool for each row, [b, n]; the positive, which stands against nothing, where there are none."""
        if pool is None or not pool.shape[1]:
            return items.new_empty(len(items), 0)
        places = np.random.default_rng(seed).integers(0, pool.shape[1], (len(items), self.num_hard))
        hard = pool[users].gather(1, torch.from_numpy(places)).long()
        return torch.where(hard < 0, items.unsqueeze(1), hard)

    def _batch(self, epoch: int, step: int, users: Tensor, items: Tensor, hard: Tensor, seed: int) -> TowerBatch:
        if self.kind == "full":
            return TowerBatch(epoch, users, items, None, items, None, None)
        if self.kind == "row":
            negatives = sample_negatives(
                users,
                self.seen_offsets,
                self.seen,
                self.num_items,
                self.num_negatives,
                seed=seed,
                offset=step * self.batch_size,
                popularity=self.popularity,
            )
            negatives = torch.cat([negatives, hard], 1)
            candidates, places = torch.unique(torch.cat([items, negatives.reshape(-1)]), return_inverse=True)
            targets, others = places[: len(items)], places[len(items) :].view(negatives.shape)
            return TowerBatch(epoch, users, items, candidates, targets, None, others)
        drawn = items[:0] if self.kind == "in-batch" else self._drawn(step, seed)
        candidates, places = torch.unique(torch.cat([items, drawn, hard.reshape(-1)]), return_inverse=True)
        log_q = self._log_q(candidates, len(items), drawn, hard)
        return TowerBatch(epoch, users, items, candidates, places[: len(items)], log_q, None)

    def _drawn(self, step: int, seed: int) -> Tensor:
        """Items for a batch, [num_negatives]."""
        nobody = torch.zeros(1, dtype=torch.int64)
        drawn = sample_negatives(
            nobody,
            *self._none,
            self.num_items,
            self.num_negatives,
            seed=seed,
            offset=step,
            popularity=self.popularity,
        )
        return drawn[0]

    def _log_q(self, candidates: Tensor, rows: int, drawn: Tensor, hard: Tensor) -> Tensor | None:
        if self.kind != "sampled" and not self.has_log_q:
            return None
        here = candidates.numpy()
        with np.errstate(divide="ignore"):
            missed = np.zeros(len(here))  # logarithm of the probability that an item is no candidate
            if self.kind != "sampled":
                missed += rows * np.log1p(-self.shares[here])
            if self.kind != "in-batch":
                missed += self.num_negatives * np.log1p(-self.chances[here])
            log_q = np.log(-np.expm1(missed)) if self.has_log_q else np.zeros(len(here))
        if self.kind == "sampled":
            log_q[~np.isin(here, drawn.numpy())] = APART
        log_q[np.isin(here, hard.numpy())] = 0.0
        return torch.from_numpy(log_q.astype(np.float32))
