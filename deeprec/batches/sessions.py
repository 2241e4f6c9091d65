"""Session-parallel mini-batches: lanes that walk through one session each, and take the next one where it ends."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches.sequences import Histories
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import AliasTable, sample_negatives

SESSION_ORDERS = ("time", "shuffled")
_STEPS_A_BLOCK = 256  # that are brought to the device, and whose negatives are drawn, together
_DRAWS_A_BLOCK = 1 << 19


class Lanes(NamedTuple):
    """Which lane walks through each session, and from which step on.

    Attributes:
        lanes: [num_sessions], int64, in [0, num_lanes).
        starts: [num_sessions], int64, the step of the session's first event.
    """

    lanes: NDArray[np.int64]
    starts: NDArray[np.int64]


def schedule_lanes(steps: NDArray[np.int64], num_lanes: int) -> Lanes:
    """Sessions of so many steps each, in order, into lanes: the next one goes to the lane that is free first.

    Of lanes that become free at the same step the lowest takes the next session, as in the authors' code.

    Args:
        steps: [num_sessions], each >= 1.
        num_lanes: >= 1.
    """
    # step * num_lanes + lane: one number that sorts by the step, then by the lane.
    free = list(range(num_lanes))
    keys = np.empty(len(steps), dtype=np.int64)
    for place, taken in enumerate((steps * num_lanes).tolist()):
        keys[place] = key = free[0]
        heapq.heapreplace(free, key + taken)
    starts, lanes = np.divmod(keys, num_lanes)
    return Lanes(lanes, starts)


@dataclass(frozen=True, slots=True)
class SessionBatch:
    """One step of the lanes that are alive: an event of a session each, and the one after it.

    Attributes:
        items, targets: [m], int64, internal ids; m <= num_lanes.
        lanes: [m], int64, ascending; None: every lane, in order.
        is_first: [m], bool, whether the event is the first of its session, before which the lane knows nothing; None:
            no lane begins a session.
        negatives: [n], int64, items that all lanes share; None without.
    """

    items: Tensor
    targets: Tensor
    lanes: Tensor | None
    is_first: Tensor | None
    negatives: Tensor | None

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device) -> SessionBatch:
        """The batch on a device; itself where it is there."""
        if self.items.device == device:
            return self
        parts = (self.items, self.targets, self.lanes, self.is_first, self.negatives)
        return SessionBatch(*(None if part is None else to_device(part, device) for part in parts))  # type: ignore[arg-type]


class SessionBatches:
    """Each session of two events or more once an epoch, `num_lanes` at a time; a user's whole history is a session.

    When a session ends, the next one that nobody has taken goes on in its lane; when there is none, the lane is dropped
    and steps become narrower. The plan of all lanes is made before the epoch begins, so that an epoch can start at any
    step, and a (seed, epoch) yields the same batches on every machine, device and thread count.

    Args:
        train: interactions with an order; the rows of a user, in order, are a session.
        num_lanes: B, sessions at a time, >= 1; fewer where there are fewer sessions.
        seed: of shuffling and sampling.
        num_negatives: n, items drawn for each step, >= 0.
        popularity: of the draws, see `alias_table`; None: uniform.
        session_order: "time": by their first event, equal ones as in the data; "shuffled": anew in each epoch.
        min_lanes: an epoch ends where fewer lanes are left, for losses that need another one's target; >= 1.
        device: where the batches are cut; None: the CPU.
    Attributes:
        num_lanes: as many as there are.
        item_counts: [num_items], int64: how often each item is a row of `train`.
    Raises:
        ValueError: no order, no session of two events, a number out of range.
    Reference: Hidasi et al. 2016 (arXiv 1511.06939), section 3.1.1.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        num_lanes: int,
        seed: int,
        num_negatives: int = 0,
        popularity: AliasTable | None = None,
        session_order: str = "time",
        min_lanes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if num_lanes < 1 or num_negatives < 0 or min_lanes < 1:
            raise ValueError(
                "SessionBatches: num_lanes and min_lanes must be >= 1 and num_negatives >= 0, got "
                f"{num_lanes}, {min_lanes} and {num_negatives}"
            )
        if session_order not in SESSION_ORDERS:
            raise ValueError(
                f"SessionBatches: session_order must be one of {', '.join(SESSION_ORDERS)}, got {session_order!r}"
            )
        self._device = torch.device("cpu") if device is None else device
        self.num_negatives, self.num_items, self.seed = num_negatives, train.num_items, seed
        self._popularity = None if popularity is None else AliasTable(*(to_device(x, self._device) for x in popularity))
        self._is_shuffled, self._min_lanes = session_order == "shuffled", min_lanes
        self.item_counts = train.item_counts()
        offsets, self._items = Histories.of(train)
        sessions = np.flatnonzero(np.diff(offsets) > 1)
        if len(sessions) < min_lanes:
            raise ValueError(
                f"SessionBatches: sessions of two events or more are needed, {min_lanes} at least, got {len(sessions)} "
                f"in {train.name}; hold out less, or draw negatives"
            )
        assert train.order is not None  # Histories asked for it
        first = np.full(train.num_users, np.iinfo(np.int64).max)
        np.minimum.at(first, train.users, train.order)
        sessions = sessions[np.argsort(first[sessions], kind="stable")]
        self.num_lanes = min(num_lanes, len(sessions))
        self._begins, self._steps = offsets[sessions], np.diff(offsets)[sessions] - 1
        self._none_met = (
            torch.zeros(_STEPS_A_BLOCK, dtype=torch.int64, device=self._device),
            torch.zeros(2, dtype=torch.int64, device=self._device),
            torch.zeros(0, dtype=torch.int32, device=self._device),
        )
        self._planned: tuple[int, _Plan] | None = None
        self._plan(0)

    def __len__(self) -> int:
        """Steps in an epoch; with shuffled sessions those of the first, another may have a few more or fewer."""
        return self._num_steps

    @property
    def num_examples(self) -> int:
        """Targets in an epoch; with shuffled sessions and `min_lanes` another epoch may end a few earlier or later."""
        return self._num_targets

    def epoch(self, number: int, skip: int = 0) -> Iterator[SessionBatch]:
        """The steps of one epoch, without the first `skip`."""
        plan = self._plan(number)
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64)[1] >> 1)
        block = _STEPS_A_BLOCK
        if self.num_negatives:
            block = max(1, min(block, _DRAWS_A_BLOCK // self.num_negatives))
        for start in range(skip, len(plan.bounds) - 1, block):
            yield from self._block(plan, start, min(start + block, len(plan.bounds) - 1), seed)

    def _plan(self, number: int) -> _Plan:
        """Of an epoch; the last one that was made is kept, and it is that of every epoch without shuffling."""
        key = number if self._is_shuffled else 0
        if self._planned is None or self._planned[0] != key:
            begins, steps = self._begins, self._steps
            if self._is_shuffled:
                draw = np.random.default_rng(np.random.SeedSequence((self.seed, number)))
                order = draw.permutation(len(begins))
                begins, steps = begins[order], steps[order]
            plan = _plan_of(begins, steps, self.num_lanes, self._min_lanes)
            if self._planned is None:
                self._num_steps, self._num_targets = len(plan.bounds) - 1, len(plan.places)
            self._planned = key, plan
        return self._planned[1]

    def _block(self, plan: _Plan, start: int, stop: int, seed: int) -> Iterator[SessionBatch]:
        """Steps `start` to `stop`, brought to the device together."""
        first, last = int(plan.bounds[start]), int(plan.bounds[stop])
        sizes = np.diff(plan.bounds[start : stop + 1]).tolist()
        places = plan.places[first:last]

        def there(values: NDArray[np.generic]) -> tuple[Tensor, ...]:
            parts: tuple[Tensor, ...] = to_device(torch.from_numpy(values), self._device).split(sizes)
            return parts

        items, targets = there(self._items[places].astype(np.int64)), there(self._items[places + 1].astype(np.int64))
        lanes, is_first = there(plan.lanes[first:last]), there(plan.is_first[first:last])
        negatives: tuple[Tensor | None, ...] = (None,) * (stop - start)
        if self.num_negatives:
            rows, offsets, met = self._none_met
            drawn = sample_negatives(
                rows[: stop - start],
                offsets,
                met,
                self.num_items,
                self.num_negatives,
                seed=seed,
                offset=start,
                popularity=self._popularity,
            )
            negatives = drawn.unbind()
        for step in range(stop - start):
            yield SessionBatch(
                items[step],
                targets[step],
                None if sizes[step] == self.num_lanes else lanes[step],
                is_first[step] if plan.begins[start + step] else None,
                negatives[step],
            )


class _Plan(NamedTuple):
    """Every step of every lane, by step and then by lane.

    Attributes:
        bounds: [num_steps + 1], int64: step s has the entries bounds[s] to bounds[s + 1].
        places: [nnz], int64, of the events among all items of the histories; the target is one further.
        lanes: [nnz], int64. is_first: [nnz], bool, the first event of a session.
        begins: [num_steps], bool: whether any lane begins a session.
    """

    bounds: NDArray[np.int64]
    places: NDArray[np.int64]
    lanes: NDArray[np.int64]
    is_first: NDArray[np.bool_]
    begins: NDArray[np.bool_]


def _plan_of(begins: NDArray[np.int64], steps: NDArray[np.int64], num_lanes: int, min_lanes: int) -> _Plan:
    """The plan of sessions in order, whose first events and numbers of steps these are."""
    lanes, starts = schedule_lanes(steps, num_lanes)
    ends = np.cumsum(steps)
    within = np.arange(ends[-1]) - np.repeat(ends - steps, steps)
    keys = np.repeat(starts * num_lanes + lanes, steps) + within * num_lanes
    order = np.argsort(keys)
    at, lanes_of = np.divmod(keys[order], num_lanes)
    alive = np.bincount(at)
    # Lanes are only ever dropped, so the steps with enough of them come first.
    alive = alive[: int((alive >= min_lanes).sum())]
    bounds = np.concatenate([[0], np.cumsum(alive)]).astype(np.int64)
    order, count = order[: bounds[-1]], int(bounds[-1])
    is_first = within[order] == 0
    places = np.repeat(begins, steps)[order] + within[order]
    return _Plan(bounds, places, lanes_of[:count], is_first, np.logical_or.reduceat(is_first, bounds[:-1]))
