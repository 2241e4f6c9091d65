"""Training batches of several views: pairs of a user and an item of one domain, the domains by turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches.towers import TowerBatch, TowerBatches
from deeprec.data import IdMap, Interactions, Terms

_HIDDEN = 12  # a stream of the run's seed


@dataclass(frozen=True, slots=True)
class ViewBatch(TowerBatch):
    """A step of one view; all candidates are items of its domain.

    Attributes:
        view: place of the domain.
        hidden: [b], bool: of these rows the user's tower does not see what the user met in this domain.
    """

    view: int
    hidden: Tensor

    def to(self, device: torch.device) -> ViewBatch:
        """Itself, as every `TowerBatch`."""
        return self


class ViewBatches:
    """Batches of `TowerBatches` of each domain alone; the larger a domain, the more often it has its turn.

    A (seed, epoch) yields the same batches on every machine. With negatives of each row alone ("row") there are no rows
    of users who met every item of the domain.

    Args:
        train: rows of all domains; the items and rows of the domains that take part.
        domains: [num_items], the domain of each item; views: those that take part, ascending.
        averaged: whether a user is one pair of a domain, whose positive stands for all items met there.
        hide_own: share of the rows in which the user's tower does not see what the user met in the domain; only of
            users who met something in another one, see `elsewhere`.
        elsewhere: [num_users, views], bool, whether each user met something outside of the domain that is shown.
        seed: of everything that is drawn.
        options: of `TowerBatches`.
    Raises:
        ValueError: a domain without a row.
    """

    def __init__(
        self,
        train: Interactions,
        domains: NDArray[np.integer],
        views: tuple[int, ...],
        *,
        averaged: bool,
        hide_own: float,
        elsewhere: NDArray[np.bool_],
        seed: int,
        **options: object,
    ) -> None:
        self.seed, self.hide_own = seed, hide_own
        self.views, self._items = views, [torch.from_numpy(np.flatnonzero(domains == view)) for view in views]
        self._elsewhere = torch.from_numpy(elsewhere)
        parts = [_of_domain(train, items.numpy(), averaged) for items in self._items]
        if options.get("negatives") == "row":
            parts = [_with_negatives(part) for part in parts]
        self._parts = [TowerBatches(part, seed=seed + at, **options) for at, part in enumerate(parts)]  # type: ignore[arg-type]
        turns = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in self._parts])
        owners = np.repeat(np.arange(len(self._parts)), [len(part) for part in self._parts])
        self._order: list[int] = owners[np.lexsort((owners, turns))].tolist()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_examples(self) -> int:
        """Pairs in an epoch, of all domains."""
        return sum(part.num_examples for part in self._parts)

    def epoch(self, number: int, skip: int = 0) -> Iterator[ViewBatch]:
        """The batches of one epoch, without the first `skip`."""
        done = self._order[:skip]
        streams = [part.epoch(number, done.count(at)) for at, part in enumerate(self._parts)]
        for step, at in enumerate(self._order[skip:], skip):
            yield self._of_view(at, next(streams[at]), step)

    def _of_view(self, at: int, batch: TowerBatch, step: int) -> ViewBatch:
        """A batch of a domain, by the ids of all items."""
        items = self._items[at]
        draw = np.random.default_rng((self.seed, _HIDDEN, batch.epoch, step)).random(len(batch))
        hidden = torch.from_numpy(draw < self.hide_own) & self._elsewhere[batch.users, at]
        return ViewBatch(
            batch.epoch,
            batch.users,
            items[batch.items],
            items if batch.candidates is None else items[batch.candidates],
            batch.targets,
            batch.log_q,
            batch.negatives,
            self.views[at],
            hidden,
        )


def _of_domain(train: Interactions, items: NDArray[np.int64], averaged: bool) -> Interactions:
    """The rows of these items, numbered from 0; averaged: the first row of each user."""
    place = np.full(train.num_items, -1, dtype=np.int32)
    place[items] = np.arange(len(items), dtype=np.int32)
    rows = np.flatnonzero(place[train.items] >= 0)
    if averaged:
        rows = rows[np.unique(train.users[rows], return_index=True)[1]]
    ids = IdMap(train.item_ids.values.gather(items), "item")
    return Interactions(train.users[rows], place[train.items[rows]], train.user_ids, ids, name=train.name)


def _with_negatives(part: Interactions) -> Interactions:
    """Without the rows of users who met every item: against nothing there is nothing to learn."""
    met = np.diff(part.csr()[0])
    return part.take(met[part.users] < part.num_items)


def averages(train: Interactions, terms: Terms, is_counted: NDArray[np.bool_]) -> Terms:
    """The mean of the terms of the items that each user met, a row a user.

    Args:
        terms: a row an item.
        is_counted: [num_items], which items count; a user who met none of these has an empty row.
    Reference: Elkahky, Song and He 2015, section 6.4.
    """
    offsets, items = train.csr()
    users = np.repeat(np.arange(train.num_users), np.diff(offsets))
    kept = is_counted[items]
    users, met = users[kept], terms.take(items[kept])
    shares = 1 / np.maximum(np.bincount(users, minlength=train.num_users), 1)
    owners = np.repeat(users, np.diff(met.offsets))
    made = Terms.of_entries(owners, met.ids, met.weights * shares[owners], train.num_users, terms.size)
    values = np.zeros((train.num_users, terms.num_values))
    np.add.at(values, users, met.values * shares[users, None])
    return replace(made, values=values.astype(np.float32))
