"""`Recommender`: models of users and items, which rank, and some of which rate.

A model implements its mathematics (`_build`, `forward`, `loss`, scoring) on internal ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deeprec.batches.pairs import PairwiseBatches
from deeprec.config import TrainConfig
from deeprec.contract import (
    NEW_ITEMS,
    NEW_USERS,
    RATES,
    RECOMMENDS,
    SIMILAR_ITEMS,
    Batches,
    Queries,
    Schema,
    Seen,
    merged,
)
from deeprec.data import IdMap, Interactions
from deeprec.device import Device, to_device
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models.fold_in import fold_in
from deeprec.models.model import Model
from deeprec.nn.scoring import AnyScorer, ItemFilter, KeptLists, TopK, as_sets, score_items, topk
from deeprec.registry import require_capability
from deeprec.serve.live import LiveStates

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from deeprec.serve import ItemIndex

_PAIRS_A_BLOCK = 1 << 16


def check_pairs(function: str, users: Any, items: Any, schema: Schema) -> None:
    """Raise TypeError, ValueError or IndexError unless users and items are internal ids [n] of pairs."""
    for name, given, size in (("users", users, schema.num_users), ("items", items, schema.num_items)):
        if not isinstance(given, Tensor) or given.dtype not in (torch.int32, torch.int64):
            got = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"{function}: {name} must be a tensor of internal ids, int32 or int64, got {got}; external "
                            "ids go into score")  # fmt: skip
        if given.dim() != 1 or len(given) != len(users):
            raise ValueError(
                f"{function}: {name} must be [n] with as many users as items, got {tuple(users.shape)} and "
                f"{tuple(items.shape)}; pass one of each for a pair"
            )
        if given.device.type != "cpu":
            continue  # a look at the values would wait for the device, whose lookup says it
        wrong = (given < 0) | (given >= size)
        if wrong.any():
            place = int(wrong.int().argmax())
            raise IndexError(
                f"{function}: {name} must be in [0, {size}), got {int(given[place])} at position {place}; external ids "
                "go into score"
            )


class Recommender(Model):
    """Base of the models of users and items: they rank, and some rate.

    Args:
        schema: sizes; None leaves the model unbuilt until `fit` sees the data.
        config: a full config; `options` are laid over it.
        generator: source of the initial weights.
        **options: fields of the model's config class.
    Raises:
        ValueError: an unknown option (with the nearest name) or one out of range.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, NEW_USERS})
    takes: ClassVar[frozenset[str]] = frozenset({"select", "best_on_test"})
    reads: ClassVar[str] = "interactions"
    sizes: ClassVar[str] = "schema"
    sizes_class: ClassVar[type[Any]] = Schema
    keeps: ClassVar[tuple[str, ...]] = ("user_ids", "item_ids", "seen")
    reads_tags: ClassVar[bool] = False  # whether it knows more of the rows of a `Folksonomy` than who met what
    learns_from_validation: ClassVar[bool] = False  # whether more than an epoch is chosen by the validation part
    trains_on_whole_rows: ClassVar[bool] = False  # of users or items: `fit_more` gives it those of earlier data too
    schema: Schema | None
    earlier: Seen | None = None  # while `fit_more` runs: what users met before, too, which is no negative

    def __init__(
        self,
        schema: Schema | None = None,
        config: TrainConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(schema, config, generator, options)
        self.user_ids: IdMap | None = None
        self.item_ids: IdMap | None = None
        self.seen: Seen | None = None
        self.item_index: ItemIndex | None = None
        self.index_folder: Path | None = None  # where the index lies that is not read yet
        self._seen_there = KeptLists()

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters for these sizes, replacing any there were."""
        super().build(sizes, generator)
        self.earlier = self.item_index = self.index_folder = None
        return self

    # -- what a model implements -----------------------------------------------------------------------------------

    def schema_for(self, data: Interactions) -> Schema:
        """The sizes for `data`; a model that needs more of the data than its rows checks here that it is there."""
        return Schema(data.num_users, data.num_items)

    def features_taken(self) -> tuple[str, ...]:
        """Tables of the data, "user_features" or "item_features", that the model takes with its present options."""
        return ()

    def batches(self, train: Interactions, seed: int) -> Batches:
        """What the model trains on; by default positives with negatives drawn anew every epoch."""
        config = self.config
        sizes = {"batch_size": config.batch_size, "num_negatives": config.num_negatives}
        avoid = None
        if self.earlier is not None:
            avoid = merged(Seen(*train.csr()), self.earlier, train.num_users, train.num_items)
        return PairwiseBatches(train, **sizes, seed=seed, avoid=avoid, device=self.device)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        """What the model knows of users [b] (internal ids): a state, most often one tensor [b, D] a table."""
        raise NotImplementedError

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The state of new users who liked items[offsets[j]:offsets[j + 1]]; fitted, where the model knows no way.

        Args:
            offsets: [b + 1], int64, on the CPU.
            items: [nnz], int64, where the model is; ascending and distinct within a row, or with `reads_history` as
                they were met.
        """
        return fold_in(self, offsets, items)

    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """The same for new users who gave these items the ratings [nnz], in the units of the data."""
        require_capability(self, f"{self.name}: ratings", RATES, NEW_USERS)
        raise NotImplementedError

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        """Scores of items [n] for the rows [n, D] of a state, differentiable in them; only `fold_in` asks."""
        raise NotImplementedError

    def scorer(self, state: tuple[Tensor, ...]) -> AnyScorer:
        """What scores all items for a state; see `deeprec.nn.scoring`."""
        raise NotImplementedError

    def rate_new_item(self, users: Tensor, ratings: Tensor) -> Tensor:
        """Ratings [num_users] that every user would give a new item which `users` [n] gave the ratings [n]."""
        require_capability(self, f"{self.name}: ratings", RATES, NEW_ITEMS)
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """[num_items, D] vectors whose cosine says how alike two items are."""
        require_capability(self, f"{self.name}: item_vectors", SIMILAR_ITEMS)
        raise NotImplementedError

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking or rating the interactions of `data`."""
        return InteractionTask.of(data, protocol)

    def evaluate(self, protocol: Any = None, data: Any = None, *, device: Device = "auto") -> dict[str, float]:
        """Metrics of the test part, e.g. {"hr@10": 0.7}; by default with the protocol and data of `fit`.

        With `device` the model is moved there for this call; "auto": where it is.
        """
        return self._evaluate(protocol, data, None, device)

    def live(self, *, max_users: int = 100_000, max_items: int = 1000) -> LiveStates:
        """Users and sessions to whom events are added while they are served; see `deeprec.serve.LiveStates`."""
        return LiveStates(self, max_users=max_users, max_items=max_items)

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, queries: Queries) -> tuple[Tensor, ...]:
        """What the model knows of those who ask, for `scorer`; without `reads_history` their histories are sets.

        Raises:
            ValueError: neither users nor histories, ratings for a model that predicts none, or a model without data.
        """
        self.require_built()
        if queries.history is None:
            if queries.users is None:
                raise ValueError(f"{self.name}: encode needs users or histories, got neither; pass Queries(users=...)")
            return self.user_rows(queries.users)
        require_capability(self, f"{self.name}: histories", NEW_USERS)
        offsets, items, ratings = *queries.history, queries.ratings
        if not self.reads_history:
            offsets, items, ratings = as_sets(offsets, items, ratings)
        items = to_device(items, self.device)
        if ratings is None:
            return self.history_rows(offsets, items)
        return self.rated_rows(offsets, items, to_device(ratings, self.device))

    @torch.no_grad()
    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [n], float32, of pairs of internal ids, each [n], a block at a time; larger is better."""
        check_pairs("score_pairs", users, items, self.require_built())
        blocks = zip(users.split(_PAIRS_A_BLOCK), items.split(_PAIRS_A_BLOCK), strict=True)
        return torch.cat([torch.empty(0, device=users.device), *(self(*block).float() for block in blocks)])

    @torch.no_grad()
    def score_items(self, users: Tensor) -> Tensor:
        """Scores [b, num_items], float32, of every item for users [b] (internal ids)."""
        return score_items(self.scorer(self.encode(Queries(users))))

    @torch.no_grad()
    def topk(
        self,
        users: Tensor,
        k: int,
        seen: Seen | None,
        *,
        allow: ItemFilter | None = None,
        deny: ItemFilter | None = None,
    ) -> TopK:
        """The k best items of users [b] (internal ids) that are not in their rows of `seen`.

        Args:
            allow, deny: the only items that may be returned, and items that may not: item indices [n] for all users, or
                (offsets, items) with a row for each of these users.
        Returns:
            scores [b, k] and item indices [b, k], (-inf, -1) where there are fewer.
        """
        lists = None if seen is None else self._seen_there.on(seen, self.device)
        scorer = self.scorer(self.encode(Queries(users)))
        return topk(scorer, k, seen=lists, seen_rows=users, allow=allow, deny=deny)
