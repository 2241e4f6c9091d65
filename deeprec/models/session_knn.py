"""Session-KNN: what came in the recent sessions that are most like the present one.

Paper: Jannach, Ludewig 2017, "When recurrent neural networks meet the neighborhood for session-based recommendation"
(RecSys), section 3.1; Ludewig, Jannach 2018, "Evaluation of session-based recommendation algorithms" (UMUAI 28, arXiv
1803.09587), section 3.2.
A session is a user of the data; users with long histories are sessions too, of which the last `length` items are read.
On a GPU: neighbours are searched on the CPU, and the scores brought to where the model is.
Deviations: of equally near sessions the more recent one counts first, so that no figure depends on the order of rows.
Data without an order is taken in the order of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig, one_of
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.models.base import Recommender
from deeprec.models.history import HistoryRecommender
from deeprec.nn.scoring import BlockScorer, Lists, rows_of

VARIANTS = ("s-knn", "v-sknn", "s-sknn")
_ENTRIES_A_BLOCK = 1 << 22  # of lists of sessions that are merged at a time: 32 MiB


@dataclass(frozen=True)
class SessionKNNConfig(TrainConfig):
    """Attributes (options of gradient training are refused); defaults as on the validation sessions of Diginetica:
    neighbors: k, the sessions nearest to the present one that count, >= 1.
    sample: m, the most recent sessions with an item of the present one, among which they are searched, >= 1.
    length: last items of the present session that are read, >= 1.
    variant: "s-knn": cosine of the sets of items. "v-sknn": the dot product, later items of the present session
        weighing more (place over length). "s-sknn": the cosine, and a neighbour's items weigh by the place of the
        latest item that it shares.
    """

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS

    neighbors: int = 500
    sample: int = 1000
    length: int = 50
    variant: str = "s-sknn"
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("neighbors", "sample", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"SessionKNNConfig: {name} must be >= 1, got {getattr(self, name)}")
        one_of(self, "variant", VARIANTS)


class _Index(NamedTuple):
    """Past sessions, the most recent first, and the sessions of each item.

    Attributes:
        offsets, items: int64 [S + 1] and int64 [nnz], the distinct items of each session.
        item_offsets, sessions: int64 [N + 1] and int64 [nnz], the sessions of each item, the most recent first.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    item_offsets: NDArray[np.int64]
    sessions: NDArray[np.int64]


class SessionKNN(HistoryRecommender):
    """score(s, i) = sum over the k sessions n nearest to s that hold i of sim(s, n) w(s, n).

    A state is offsets [b + 1] and items [nnz], both on the CPU, of sessions in order.
    """

    name = "session-knn"
    config_class: ClassVar[type[TrainConfig]] = SessionKNNConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities
    reads_history: ClassVar[bool] = True
    config: SessionKNNConfig

    def _build_weights(self, schema: Schema) -> None:
        self.register_buffer("recency", torch.zeros(schema.num_users, dtype=torch.int64))  # place by the last event
        self.recency: Tensor
        # Neighbours are searched on the CPU, wherever the model is; of one that was loaded these are made when needed.
        self._past: _Index | None = None
        self._kept: Lists | None = None

    def fit_directly(self, train: Interactions) -> None:
        """Keep the sessions in order; ratings are ignored."""
        rows = np.arange(len(train))
        order = rows if train.order is None else train.order
        ordered = np.lexsort((order, train.users))
        offsets = np.zeros(train.num_users + 1, dtype=np.int64)
        np.cumsum(train.user_counts(), out=offsets[1:])
        last = np.full(train.num_users, np.iinfo(np.int64).min)
        np.maximum.at(last, train.users, order if train.order_kind == "time" else rows)
        device, items = self.device, train.items[ordered]
        self.history_offsets = torch.from_numpy(offsets).to(device)
        self.history_items = torch.from_numpy(items).to(device)
        places = train.user_ids.ascending()[1]  # of equally recent ones the one with the larger id is the later
        recency = np.argsort(np.lexsort((places, last)))
        self.recency = torch.from_numpy(recency).to(device)
        self._kept = torch.from_numpy(offsets), torch.from_numpy(items)
        self._past = index_of_sessions(offsets, items, recency, train.num_items)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's."""
        self._past = self._kept = None
        return super().load_state_dict(state_dict, strict, assign)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        return offsets, items.cpu()

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        if self._kept is None:
            self._kept = self.history_offsets.cpu(), self.history_items.cpu()
        return rows_of(self._kept, users.cpu())

    def scorer(self, state: tuple[Tensor, ...]) -> BlockScorer:
        offsets, items = (part.numpy() for part in state)
        index, config = self._sessions(), self.config
        num_items, device = self.require_built().num_items, self.recency.device

        def scores(start: int, end: int) -> Tensor:
            bounds = offsets[start : end + 1]
            lists = bounds - bounds[0], items[bounds[0] : bounds[-1]].astype(np.int64)
            return to_device(torch.from_numpy(session_scores(index, *lists, num_items, config)), device)

        return BlockScorer(len(offsets) - 1, num_items, device, scores)

    def _sessions(self) -> _Index:
        if self._past is None:
            parts = (self.history_offsets, self.history_items, self.recency)
            offsets, items, recency = (part.cpu().numpy() for part in parts)
            self._past = index_of_sessions(offsets, items, recency, self.require_built().num_items)
        return self._past


def index_of_sessions(
    offsets: NDArray[np.int64], items: NDArray[np.int32], recency: NDArray[np.int64], num_items: int
) -> _Index:
    """The index of sessions with items[offsets[s]:offsets[s + 1]], the larger `recency` [S] the more recent."""
    num_sessions = len(recency)
    newest = num_sessions - 1 - recency
    owners = np.repeat(newest, np.diff(offsets))
    pairs = np.unique(owners * max(num_items, 1) + items)
    sessions, distinct = np.divmod(pairs, max(num_items, 1))
    bounds = np.zeros(num_sessions + 1, dtype=np.int64)
    np.cumsum(np.bincount(sessions, minlength=num_sessions), out=bounds[1:])
    item_offsets = np.zeros(num_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(distinct, minlength=num_items), out=item_offsets[1:])
    by_item = np.argsort(distinct, kind="stable")
    return _Index(bounds, distinct, item_offsets, sessions[by_item])


def session_scores(
    index: _Index, offsets: NDArray[np.int64], items: NDArray[np.int64], num_items: int, config: SessionKNNConfig
) -> NDArray[np.float32]:
    """Scores [b, num_items] of present sessions with items[offsets[j]:offsets[j + 1]], in order."""
    queries, present, weights = _present(offsets, items, num_items, config.length)
    counts = np.minimum(np.diff(index.item_offsets)[present], config.sample)
    scores = np.zeros((len(offsets) - 1, num_items), dtype=np.float32)
    lengths = np.bincount(queries, minlength=len(scores))
    entries = np.concatenate([[0], np.cumsum(np.bincount(queries, counts, minlength=len(scores)))])
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    start = 0
    while start < len(scores):
        # As many sessions as make a block of entries, and one at least.
        upto = int(np.searchsorted(entries, entries[start] + _ENTRIES_A_BLOCK, side="right")) - 1
        end = min(max(upto, start + 1), len(scores))
        own = slice(int(firsts[start]), int(firsts[end]))
        asked = _Asked(queries[own] - start, present[own], weights[own], counts[own], lengths[start:end])
        scores[start:end] = _scores_of_block(index, asked, num_items, config)
        start = end
    return scores


class _Asked(NamedTuple):
    """Distinct items of present sessions, session after session: whose, which, the place over the length, how many
    past sessions are searched; and by session how many items it has."""

    queries: NDArray[np.int64]
    items: NDArray[np.int64]
    weights: NDArray[np.float64]
    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _present(
    offsets: NDArray[np.int64], items: NDArray[np.int64], num_items: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Session, item and place over length of each distinct item among the last `length` events; its latest counts."""
    sizes = np.minimum(np.diff(offsets), length)
    queries = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes)
    places = np.arange(len(queries)) - np.repeat(ends - sizes, sizes)  # from 0
    read = items[np.repeat(offsets[1:] - sizes, sizes) + places]
    keys = queries * max(num_items, 1) + read
    _, last = np.unique(keys[::-1], return_index=True)
    last = np.sort(len(keys) - 1 - last)
    return queries[last], read[last], (places[last] + 1) / sizes[queries[last]]


def _scores_of_block(index: _Index, asked: _Asked, num_items: int, config: SessionKNNConfig) -> NDArray[np.float32]:
    num_queries = len(asked.lengths)
    queries, past, places = _shared(index, asked)
    begins = np.append(np.True_, (queries[1:] != queries[:-1]) | (past[1:] != past[:-1]))[: len(past)]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros((num_queries, num_items), dtype=np.float32)
    owners, sessions = queries[starts], past[starts]
    near = np.add.reduceat(asked.weights[places] if config.variant == "v-sknn" else np.ones(len(past)), starts)
    if config.variant != "v-sknn":
        near /= np.sqrt(np.diff(index.offsets)[sessions] * asked.lengths[owners])
    near = near.astype(np.float32)  # so that sums in another order do not part what is equally near
    scale = near
    if config.variant == "s-sknn":
        scale = near * np.maximum.reduceat(asked.weights[places], starts)
    # The most recent of those that share an item come first, as the entries are sorted.
    chosen = np.flatnonzero(_place_in(owners, num_queries) < config.sample)
    chosen = chosen[np.lexsort((sessions[chosen], -near[chosen], owners[chosen]))]
    chosen = chosen[_place_in(owners[chosen], num_queries) < config.neighbors]
    first, lengths = index.offsets[sessions[chosen]], np.diff(index.offsets)[sessions[chosen]]
    places = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    cells = np.repeat(owners[chosen], lengths) * num_items + index.items[places]
    sums = np.bincount(cells, np.repeat(scale[chosen], lengths), minlength=num_queries * num_items)
    return sums.reshape(num_queries, num_items).astype(np.float32)


def _shared(index: _Index, asked: _Asked) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(present session, past session, place in `asked`) of each item that two share, sorted by all three.

    Of each item the most recent sessions alone: those that are among the most recent of all items are among these.
    """
    counts = asked.counts
    places = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    within = np.arange(len(places)) - np.repeat(ends - counts, counts)
    past = index.sessions[index.item_offsets[asked.items[places]] + within]
    # One sort of whole numbers is several times faster than one of three columns.
    bits = max(1, len(counts)).bit_length()
    keys = (asked.queries[places] * (len(index.offsets) - 1) + past) << bits | places
    keys.sort()
    places = keys & ((1 << bits) - 1)
    queries, past = np.divmod(keys >> bits, max(len(index.offsets) - 1, 1))
    return queries, past, places


def _place_in(owners: NDArray[np.int64], num_owners: int) -> NDArray[np.int64]:
    """The place of each entry among those of its owner, in ascending order of owners."""
    counts = np.bincount(owners, minlength=num_owners)
    return np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
