"""`Recommender`: models of users and items, which rank, and some of which rate.

A model implements its mathematics (`_build`, `forward`, `loss`, scoring) on internal ids.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deeprec.batches.pairs import PairwiseBatches
from deeprec.config import TrainConfig
from deeprec.contract import NEW_USERS, RECOMMENDS, Batches, Schema, Seen
from deeprec.data import IdMap, Interactions
from deeprec.device import Device, to_device
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models.model import Model


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
    schema: Schema | None

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
        self._seen_there: tuple[Seen, Tensor, Tensor] | None = None

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
        return PairwiseBatches(train, **sizes, seed=seed, device=self.device)

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [n] of pairs of internal ids, each [n]; larger is better."""
        with torch.no_grad():
            scores: Tensor = self(users, items)
        return scores.float()

    def score_items(self, users: Tensor) -> Tensor:
        """Scores [b, num_items] of every item for users [b] (internal ids)."""
        return self.score_items_from_rows(self.user_rows(users))

    def topk(self, users: Tensor, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
        """The k best unseen items of users [b]: scores [b, k] and item indices [b, k] (-1 where there are fewer)."""
        return self.topk_from_rows(self.user_rows(users), k, seen, users)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        """What the model knows of users [b]: one tensor [b, D] a table. These rows are what a new user is given."""
        raise NotImplementedError

    def rows_for_history(self, history: Tensor) -> tuple[Tensor, ...] | None:
        """User rows [1, D] of a new user who liked items [n], where the model knows a way; None: fit them."""
        return None

    def rows_for_ratings(self, history: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """User rows [1, D] of a new user who gave items `history` [n] the ratings [n]."""
        raise self._knows_no_ratings()

    def rate_new_item(self, users: Tensor, ratings: Tensor) -> Tensor:
        """Ratings [num_users] that every user would give a new item which `users` [n] gave the ratings [n]."""
        raise self._knows_no_ratings()

    def _knows_no_ratings(self) -> ValueError:
        return ValueError(f"{self.name}: this model does not predict ratings; train autorec or cfn")

    def forward_rows(self, user_rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        """Scores of items [n] for user rows [n, D], differentiable in the rows."""
        raise NotImplementedError

    def score_items_from_rows(self, user_rows: tuple[Tensor, ...]) -> Tensor:
        """Scores [b, num_items] for user rows [b, D]."""
        raise NotImplementedError

    def topk_from_rows(
        self, user_rows: tuple[Tensor, ...], k: int, seen: Seen | None, seen_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k best items for user rows [b, D] without those in rows `seen_rows` [b] of `seen` (by default row j)."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """[num_items, D] vectors whose cosine says how alike two items are."""
        raise ValueError(
            f"{self.name}: this model has no item vectors, so it knows no similar items; train mf or neumf"
        )

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking or rating the interactions of `data`."""
        return InteractionTask.of(data, protocol)

    def evaluate(self, protocol: Any = None, data: Any = None, *, device: Device = "auto") -> dict[str, float]:
        """Metrics of the test part, e.g. {"hr@10": 0.7}; by default with the protocol and data of `fit`.

        With `device` the model is moved there for this call; "auto": where it is.
        """
        return self._evaluate(protocol, data, None, device)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def seen_tensors(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Offsets [R + 1] and items [nnz] of `seen` where the model is; a GPU keeps those it was given last."""
        offsets, items, device = torch.from_numpy(seen.offsets), torch.from_numpy(seen.items), self.device
        if device.type == "cpu":
            return offsets, items
        kept = self._seen_there
        if kept is None or kept[0] is not seen or kept[1].device != device:
            kept = self._seen_there = seen, to_device(offsets, device), to_device(items, device)
        return kept[1:]
