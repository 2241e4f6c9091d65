"""Next items asked for one by one: every held-out event after everything that its user or session did before it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.contract import NEW_USERS, Queries, Scorable
from deeprec.device import to_device
from deeprec.evaluate.histories import HistoryScorer
from deeprec.evaluate.ranking import Progress, Ranking, Scorer, candidate_ranks, full_ranks
from deeprec.nn.scoring import AnyScorer, Lists, score_rows

if TYPE_CHECKING:
    from deeprec.data import Interactions, Split
    from deeprec.evaluate.protocols import Protocol

Int64Array = NDArray[np.int64]

_EVENTS_AT_ONCE = 1024  # that are encoded together
_EVENTS_A_PART = 1 << 14  # that are ranked together
_MASKED_A_PART = 1 << 22  # items in the histories of these, where they are masked
_ITEMS_AT_ONCE = 1 << 20  # in the histories of these: 8 MiB


@dataclass(frozen=True, eq=False)
class Events:
    """The held-out events [E] of a part that have an event of the same user or session before them.

    The history of event e is items[starts[e]:places[e]]: of one array that all events of a user share, in which nothing
    stands at `places[e]` or behind it that the event could see. Users without training rows come last; among the
    others and these, events go by the length of their histories, so that those of like length are asked together.

    Attributes:
        items: int64 [nnz], of all users who have an event, each user's in order.
        starts: [E], where the user's own begin.
        places: [E], where the event itself stands.
        users: [E], internal ids.
        rows: [E], of the part.
        num_known: events of users with training rows; they come first.
    """

    items: Int64Array
    starts: Int64Array
    places: Int64Array
    users: Int64Array
    rows: Int64Array
    num_known: int

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def of(cls, split: Split, part: Literal["validation", "test"], users: NDArray[Any] | None = None) -> Events:
        """The events of a part; `users`: those of these internal ids alone.

        Of equal times training comes before validation and that before the test; within a part rows stay in their
        order, which is that of the file.

        Raises:
            ValueError: the data has no order.
        """
        asked = getattr(split, part)
        parts = [split.train, asked] if part == "validation" else [split.train, split.validation, asked]
        if any(each.order is None for each in parts):
            raise ValueError(f"evaluate: next items need the order of the events, got {asked.name} without timestamps")
        is_asked = np.zeros(asked.num_users, dtype=np.bool_)
        is_asked[np.unique(asked.users)] = True
        if users is not None:
            is_asked &= np.isin(np.arange(asked.num_users), users)
        taken = [np.flatnonzero(is_asked[each.users]) for each in parts]
        owners, items, order = (
            np.concatenate([getattr(each, column)[rows] for each, rows in zip(parts, taken, strict=True)])
            for column in ("users", "items", "order")
        )
        row = np.concatenate([*(np.full(len(rows), -1) for rows in taken[:-1]), taken[-1]])
        ordered = np.lexsort((order, owners))  # stable: then by part, then by row
        owners, row = owners[ordered].astype(np.int64), row[ordered]
        begins = np.append(np.True_, owners[1:] != owners[:-1])[: len(owners)]
        first = np.maximum.accumulate(np.where(begins, np.arange(len(owners)), 0))
        places = np.flatnonzero((row >= 0) & ~begins)
        is_new = split.train.user_counts()[owners[places]] == 0
        places = places[np.lexsort((places - first[places], is_new))]
        return cls(
            items[ordered].astype(np.int64), first[places], places, owners[places], row[places], int((~is_new).sum())
        )

    @property
    def targets(self) -> Int64Array:
        """[E] the items that came."""
        return self.items[self.places]

    def histories(self, start: int, end: int) -> Lists:
        """The items before events start to end, in order: offsets [b + 1] and items [nnz], on the CPU."""
        lengths = self.places[start:end] - self.starts[start:end]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.starts[start:end] - offsets[:-1], lengths)
        return torch.from_numpy(offsets), torch.from_numpy(self.items[np.arange(offsets[-1]) + shift])

    def as_part(self, like: Interactions, start: int, end: int) -> Interactions:
        """Events start to end as a part whose users they are, from 0, with their items."""
        return self._part(like, np.arange(end - start), self.targets[start:end], end - start)

    def met(self, like: Interactions, start: int, end: int) -> Interactions:
        """What stands in the histories of events start to end, as such a part."""
        offsets, items = self.histories(start, end)
        return self._part(like, np.repeat(np.arange(end - start), offsets.diff().numpy()), items.numpy(), end - start)

    @staticmethod
    def _part(like: Interactions, users: Int64Array, items: Int64Array, count: int) -> Interactions:
        from deeprec.data import IdMap, Interactions  # here, so that importing this brings torch and numpy only

        ids = IdMap(np.arange(count), "user")
        return Interactions(users.astype(np.int32), items.astype(np.int32), ids, like.item_ids, name=like.name)


def asks_by_history(model: Any) -> bool:
    """Whether a model is asked with histories: one that reads them in order, or that knows new users by a set."""
    reads = getattr(model, "reads_history", False)
    return bool(reads or (NEW_USERS in getattr(model, "capabilities", ()) and hasattr(model, "encode")))


class EventScorer(HistoryScorer):
    """The `Scorer` of a model for events [E], numbers that stand for users; each is asked with its own history.

    Users without training rows are asked without a number, others with it beside their history. As many events are
    encoded at a time as suits a model, however few are scored.

    Args:
        model: see `deeprec.contract.Scorable`.
        events: what is asked.
        device: where the model is; the events that are asked for come on the CPU.
    """

    def __init__(self, model: Scorable, events: Events, device: torch.device) -> None:
        super().__init__(model, (torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)), device)
        self._events = events
        self._ends = np.cumsum(events.places - events.starts)
        self._ready: tuple[int, int, AnyScorer] | None = None

    def score_items(self, users: Tensor) -> Tensor:
        """Scores [b, num_items], on the model's device, for events int64 [b], ascending."""
        numbers = users.numpy()
        parts = []
        at = 0
        while at < len(numbers):
            start, end, scorer = self._encoded(int(numbers[at]))
            stop = at + int(np.searchsorted(numbers[at:], end))
            first, last = int(numbers[at]) - start, int(numbers[stop - 1]) - start
            scores = score_rows(scorer, first, last + 1)
            if last + 1 - first > stop - at:
                places = torch.from_numpy(numbers[at:stop] - start - first)
                scores = scores[to_device(places, scores.device)]
            parts.append(scores)
            at = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _encoded(self, event: int) -> tuple[int, int, AnyScorer]:
        """(first, end, scorer) of a run of events with this one."""
        if self._ready is not None and self._ready[0] <= event < self._ready[1]:
            return self._ready
        events, known = self._events, self._events.num_known
        limit = known if event < known else len(events)
        done = int(self._ends[event - 1]) if event else 0
        upto = int(np.searchsorted(self._ends, done + _ITEMS_AT_ONCE, side="right"))
        end = min(max(upto, event + 1), event + _EVENTS_AT_ONCE, limit)
        users = None
        if event < known:
            users = to_device(torch.from_numpy(events.users[event:end]), self._device)
        queries = Queries(users, events.histories(event, end))
        self._ready = event, end, self._model.scorer(self._model.encode(queries))
        return self._ready


class AsTrained:
    """The `Scorer` of a model that knows users alone, for events: it is asked for the user of each.

    Args:
        model: with `score_items` and `score_pairs`.
        users: internal ids [E], where the events that are asked for are.
    """

    def __init__(self, model: Any, users: Tensor) -> None:
        self._model, self._users = model, users

    def score_items(self, users: Tensor) -> Tensor:
        """Scores [b, num_items] for events [b]."""
        scores: Tensor = self._model.score_items(self._users[users])
        return scores

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [n] of pairs of events and items."""
        scores: Tensor = self._model.score_pairs(self._users[users], items)
        return scores


class _From:
    """A scorer of events, numbered anew from `start`; of all items alone."""

    def __init__(self, scorer: Scorer, start: int) -> None:
        self._scorer, self._start = scorer, start

    def score_items(self, users: Tensor) -> Tensor:
        return self._scorer.score_items(users + self._start)

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        return self._scorer.score_pairs(users + self._start, items)


def negatives_of(split: Split, protocol: Protocol, part: Literal["validation", "test"]) -> NDArray[Any]:
    """The sampled items [n, num_negatives] of the rows of a part; ValueError where they are not there."""
    negatives = split.validation_negatives if part == "validation" else split.test_negatives
    if negatives is None or len(negatives) != len(getattr(split, part)):
        raise ValueError(f"evaluate: the {part} part has no negatives; take the split of protocol.split(data)")
    if negatives.ndim != 2 or negatives.shape[1] != protocol.candidates:
        raise ValueError(
            f"evaluate: the protocol asks for {protocol.candidates} negatives, the {part} part has "
            f"{negatives.shape[1:]}; take the split of protocol.split(data)"
        )
    return negatives


def rank_events(
    model: Any,
    split: Split,
    protocol: Protocol,
    part: Literal["validation", "test"],
    *,
    users: NDArray[Any] | None,
    top: int,
    device: torch.device,
    progress: Progress | None,
) -> Ranking:
    """The rank of every event of a part, an entry each; arguments as of `evaluator.rank` and `ranking.full_ranks`."""
    events = Events.of(split, part, users)
    ids_on = device
    if asks_by_history(model):
        scorer: Scorer = EventScorer(model, events, device)
        ids_on = torch.device("cpu")  # where the lengths of histories are known without waiting
    else:
        scorer = AsTrained(model, to_device(torch.from_numpy(events.users), device))
    if isinstance(protocol.candidates, int):
        drawn, numbers = negatives_of(split, protocol, part)[events.rows], np.arange(len(events))
        how: dict[str, Any] = {"ties": protocol.ties, "top": top, "device": ids_on, "progress": progress}
        ranking = candidate_ranks(scorer, numbers, events.targets, drawn, **how)
        return dataclasses.replace(ranking, users=events.users)
    like, blocks, start = getattr(split, part), [], 0
    ends = np.cumsum(events.places - events.starts)
    while start < len(events):
        end, masked = min(start + _EVENTS_A_PART, len(events)), []
        if protocol.mask:
            done = int(ends[start - 1]) if start else 0
            end = min(end, max(int(np.searchsorted(ends, done + _MASKED_A_PART, side="right")), start + 1))
            masked = [events.met(like, start, end)]
        rows = events.as_part(like, start, end)
        blocks.append(full_ranks(_From(scorer, start), rows, masked, top=top, device=device, ids_on=ids_on))
        if progress is not None:
            progress(end, len(events))
        start = end
    if not blocks:
        none = np.zeros(0, dtype=np.int64)
        return Ranking(none, none, np.zeros(1, dtype=np.int64), none)
    lists = None if blocks[0].top_items is None else np.concatenate([block.top_items for block in blocks])  # type: ignore[misc]
    ranks, counts = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("ranks", "num_candidates"))
    return Ranking(events.users, ranks, np.arange(len(events) + 1), counts, lists)
