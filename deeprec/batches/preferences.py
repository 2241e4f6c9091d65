"""Batches of models that learn to give the products of given factors from content: users, items, and what is hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.data import Terms
from deeprec.device import to_device


class ContentRows(NamedTuple):
    """Rows of terms and numbers.

    Attributes:
        offsets: [b + 1], int64; terms, weights: [nnz], int64 and float32.
        values: [b, v], float32.
    """

    offsets: Tensor
    terms: Tensor
    weights: Tensor
    values: Tensor

    @classmethod
    def of(cls, rows: Terms) -> ContentRows:
        """On the CPU."""
        parts = (rows.offsets, rows.ids.astype(np.int64), rows.weights, rows.values)
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))

    def to(self, device: torch.device) -> ContentRows:
        """On a device."""
        return ContentRows(*(to_device(part, device) for part in self))


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """Users and items, each user beside all items; the first `own` items a user of these are among the user's best.

    Attributes:
        users: [b], int64; items: [m], int64: first b * own, those of the first user and so on, then random ones.
        of_users, of_items: their content; None without.
        shows_user: [b], float32, 1 or 0: whether the encoder sees the user's factors; is_mean: [b], float32, whether
            the mean of the user's items in their place; shows_item: [m], float32.
        own: best items of each user, >= 1.
    """

    users: Tensor
    items: Tensor
    of_users: ContentRows | None
    of_items: ContentRows | None
    shows_user: Tensor
    is_mean: Tensor
    shows_item: Tensor
    own: int

    def __len__(self) -> int:
        return len(self.users)

    def to(self, device: torch.device) -> PreferenceBatch:
        """The batch on a device; itself where it is there."""
        if self.users.device == device:
            return self
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        there: dict[str, Any] = {name: to_device(x, device) for name, x in given.items() if isinstance(x, Tensor)}
        there |= {name: x.to(device) for name, x in given.items() if isinstance(x, ContentRows)}
        return PreferenceBatch(**{**given, **there})


class PreferenceBatches:
    """The users in random order, so many a step, with the items that go with them.

    Args:
        users: [n], those that have rows; items: [m], likewise.
        factors: gives the factors of all users [num_users, D] and items [num_items, D], on the CPU; asked for once an
            epoch.
        of_users, of_items: content of all; None without.
        batch_size: users a step, >= 1.
        num_items: items a step, half of them of the users' best, at least one of each, >= 1.
        best: how many of a user's items with the largest products are the best, >= 1.
        hidden: share of the users, and of the items drawn apart from that, whose factors are hidden, in [0, 1); so many
            of each step, rounded.
        means: share of the other users who are shown as the mean of their items, in [0, 1].
        seed: of all draws.
        device: where batches go; None: the CPU.
    """

    def __init__(
        self,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        factors: Callable[[], tuple[Tensor, Tensor]],
        of_users: Terms | None,
        of_items: Terms | None,
        *,
        batch_size: int,
        num_items: int,
        best: int,
        hidden: float,
        means: float,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.users, self.items, self.factors = users, items, factors
        self.of_users, self.of_items = of_users, of_items
        self.batch_size, self.num_items, self.best = batch_size, num_items, best
        self.hidden, self.means, self.seed = hidden, means, seed
        self.device = torch.device("cpu") if device is None else device

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Users."""
        return len(self.users)

    def epoch(self, number: int, skip: int = 0) -> Iterator[PreferenceBatch]:
        """The batches, without the first `skip`."""
        order = np.random.default_rng((self.seed, number)).permutation(self.users)
        user_factors, item_factors = self.factors()
        known = item_factors[torch.from_numpy(self.items)]
        for step in range(skip, len(self)):
            draw = np.random.default_rng((self.seed, number, step))
            users = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = max(1, self.num_items // (2 * self.batch_size))
            best = (user_factors[torch.from_numpy(users)] @ known.T).topk(min(self.best, len(self.items)), 1).indices
            places = draw.integers(best.shape[1], size=(len(users), own))
            theirs = self.items[np.take_along_axis(best.numpy(), places, 1).ravel()]
            others = draw.choice(self.items, max(self.num_items - self.batch_size * own, 1))
            items = np.concatenate([theirs, others])
            shows_user, shows_item = self._shown(len(users), draw), self._shown(len(items), draw)
            is_mean = shows_user * (draw.random(len(users)) < self.means)
            yield PreferenceBatch(
                torch.from_numpy(users),
                torch.from_numpy(items),
                None if self.of_users is None else ContentRows.of(self.of_users.take(users)),
                None if self.of_items is None else ContentRows.of(self.of_items.take(items)),
                torch.from_numpy(shows_user),
                torch.from_numpy(is_mean.astype(np.float32)),
                torch.from_numpy(shows_item),
                own,
            ).to(self.device)

    def _shown(self, count: int, draw: np.random.Generator) -> NDArray[np.float32]:
        """1 for all but the share that is hidden, exactly so many."""
        shown = np.ones(count, np.float32)
        shown[draw.permutation(count)[: int(count * self.hidden + 0.5)]] = 0
        return shown
