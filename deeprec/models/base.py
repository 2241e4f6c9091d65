"""`Recommender`: what every model offers, with external ids in and out.

A model implements its mathematics (`_build`, `forward`, `loss`, scoring); this class validates, maps ids, and passes
the work on to `deeprec.train`, `deeprec.evaluate` and `deeprec.serve`. Those layers lie above this one, so the facade
methods below import them when called; it is the only such place (see tests/test_layering.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec import serve
from deeprec.batches.pairs import PairwiseBatches
from deeprec.config import TrainConfig, make_config, require_keywords
from deeprec.contract import Batches, Queries, Schema, Seen, Turn
from deeprec.data import IdMap, Interactions
from deeprec.device import Device, device_of, to_device
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models.fold_in import fold_in
from deeprec.nn._rows import WholeTables
from deeprec.nn.scoring import AnyScorer, ItemFilter, KeptLists, TopK, as_sets, score_items, topk
from deeprec.surroundings import trained
from deeprec.train import evaluate_model, fit

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Self

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


class Recommender(WholeTables):
    """Base of every model.

    Args:
        schema: sizes; None leaves the model unbuilt until `fit` sees the data.
        config: a full config; `options` are laid over it.
        generator: source of the initial weights.
        **options: fields of the model's config class.
    Raises:
        ValueError: an unknown option (with the nearest name) or one out of range.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[TrainConfig]]
    trains_by_gradient: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"select", "best_on_test"})  # beside data and options; see `registry`
    reads: ClassVar[str] = "interactions"
    sizes: ClassVar[str] = "schema"
    sizes_class: ClassVar[type[Any]] = Schema
    keeps: ClassVar[tuple[str, ...]] = ("user_ids", "item_ids", "seen")

    def __init__(
        self,
        schema: Schema | None = None,
        config: TrainConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = make_config(self.config_class, config, options)
        self.schema: Schema | None = None
        self.user_ids: IdMap | None = None
        self.item_ids: IdMap | None = None
        self.seen: Seen | None = None
        self._fitted_on: Any = None
        self._seen_there = KeptLists()
        if schema is not None:
            self.build(schema, generator)

    @trained
    def build(self, schema: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters for `schema`, replacing any there were."""
        if not isinstance(schema, Schema):
            raise TypeError(f"{self.name}: schema must be a Schema, got {schema!r}; pass Schema(num_users, num_items)")
        self._build(schema, generator)
        self.schema = schema
        return self

    # -- what a model implements -----------------------------------------------------------------------------------

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        raise NotImplementedError

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

    def loss(self, batch: Any) -> Tensor:
        """Scalar training loss of a batch."""
        raise NotImplementedError

    def backward(self, batch: Any) -> Tensor:
        """Add the gradients of the batch's loss to every parameter's `.grad`; returns the loss, detached."""
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def turns(self) -> tuple[Turn, ...]:
        """Who steps on a batch, in order; one player with all parameters, unless the model says otherwise."""
        return (Turn("", self.config.groups, self.backward),)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by how they are trained (`TrainConfig.optimizer_options`)."""
        return {"": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def penalty(self) -> float:
        """What the gradients of `backward` hold beside the loss it returns; only full-batch line searches ask."""
        return 0.0

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        """What the model knows of users [b] (internal ids): a state, most often one tensor [b, D] a table."""
        raise NotImplementedError

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The state of new users who liked items[offsets[j]:offsets[j + 1]]; fitted, where the model knows no way.

        Args:
            offsets: [b + 1], int64, on the CPU.
            items: [nnz], int64, where the model is; ascending and distinct within a row.
        """
        return fold_in(self, offsets, items)

    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """The same for new users who gave these items the ratings [nnz], in the units of the data."""
        raise self._knows_no_ratings()

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        """Scores of items [n] for the rows [n, D] of a state, differentiable in them; only `fold_in` asks."""
        raise NotImplementedError

    def scorer(self, state: tuple[Tensor, ...]) -> AnyScorer:
        """What scores all items for a state; see `deeprec.nn.scoring`."""
        raise NotImplementedError

    def rate_new_item(self, users: Tensor, ratings: Tensor) -> Tensor:
        """Ratings [num_users] that every user would give a new item which `users` [n] gave the ratings [n]."""
        raise self._knows_no_ratings()

    def _knows_no_ratings(self) -> ValueError:
        return ValueError(f"{self.name}: this model does not predict ratings; train autorec or cfn")

    def item_vectors(self) -> Tensor:
        """[num_items, D] vectors whose cosine says how alike two items are."""
        raise ValueError(
            f"{self.name}: this model has no item vectors, so it knows no similar items; train mf or neumf"
        )

    def fit_directly(self, train: Interactions) -> None:
        """Fit without gradient steps; only models with `trains_by_gradient = False` implement it."""
        raise NotImplementedError

    def warm_start(self, train_stage: Any) -> bool:
        """Called before training with a function that trains another model on the same split; for pre-training.

        Returns:
            whether the weights now come from somewhere else; then epoch 0 is a candidate too.
        """
        return False

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking or rating the interactions of `data`."""
        return InteractionTask.of(data, protocol)

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, queries: Queries) -> tuple[Tensor, ...]:
        """What the model knows of those who ask, for `scorer`; it takes their histories as sets.

        Raises:
            ValueError: neither users nor histories, ratings for a model that predicts none, or a model without data.
        """
        self.require_built()
        if queries.history is None:
            if queries.users is None:
                raise ValueError(f"{self.name}: encode needs users or histories, got neither; pass Queries(users=...)")
            return self.user_rows(queries.users)
        offsets, items, ratings = as_sets(*queries.history, queries.ratings)
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

    # -- the facade --------------------------------------------------------------------------------------------------

    def fit(self, data: Any, **options: Any) -> Self:
        """Train on `data` (Interactions, a polars or pandas frame, a data set's name or a path).

        Args:
            data: what to learn from; a frame has columns user_id and item_id, and rating, timestamp if known.
            **options: of `deeprec.train.fit` (protocol, seed, out, resume, device, ...).
        Returns:
            the model, with the weights of the best validation epoch.
        Raises:
            TypeError: an option that there is not, or that is one of the model's own.
        """
        require_keywords(fit, options, self)
        fit(self, data, **options)
        return self

    def evaluate(self, protocol: Any = None, data: Any = None, *, device: Device = "auto") -> dict[str, float]:
        """Metrics of the test part, e.g. {"hr@10": 0.7}; by default with the protocol and data of `fit`.

        With `device` the model is moved there for this call; "auto": where it is.
        """
        return evaluate_model(self, protocol, data, device=device)

    def recommend(
        self, user_ids: Any, k: int = 10, *, exclude_seen: bool = True, allow: Any = None, deny: Any = None
    ) -> pl.DataFrame:
        """The k best items for each user: a frame with user_id, rank (from 1), item_id, score.

        `allow` are the only items that may come, `deny` items that may not.
        """
        return serve.recommend(self, user_ids, k, exclude_seen=exclude_seen, allow=allow, deny=deny)

    def recommend_for_history(
        self, item_ids: Any, k: int = 10, *, ratings: Any = None, allow: Any = None, deny: Any = None
    ) -> pl.DataFrame:
        """The k best further items for a user whom the model never saw, from the items they liked or rated, in order.

        `allow` are the only items that may come, `deny` items that may not.
        """
        return serve.recommend_for_history(self, item_ids, k, ratings=ratings, allow=allow, deny=deny)

    def predict_for_user(self, item_ids: Any, ratings: Any) -> pl.DataFrame:
        """Ratings that a new user, who gave `item_ids` the `ratings`, would give every item: item_id, rating."""
        return serve.predict_for_user(self, item_ids, ratings)

    def predict_for_item(self, user_ids: Any, ratings: Any) -> pl.DataFrame:
        """Ratings that every user would give a new item, which `user_ids` gave the `ratings`: user_id, rating."""
        return serve.predict_for_item(self, user_ids, ratings)

    def similar_items(self, item_ids: Any, k: int = 10) -> pl.DataFrame:
        """The k nearest items to each item: a frame with item_id, rank, similar_item_id, score (cosine)."""
        return serve.similar_items(self, item_ids, k)

    def score(self, pairs: Any) -> np.ndarray:
        """Scores of (user id, item id) pairs: a frame, or a sequence of pairs; float32, larger is better."""
        return serve.score(self, pairs)

    def save(self, directory: str | Path) -> Path:
        """Write the model folder; see `deeprec.load`."""
        return serve.save(self, directory)

    # -- helpers -----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model's weights are, and so where it is trained and asked."""
        return device_of(self)

    def require_built(self) -> Schema:
        """The schema, or an error that says how to get one."""
        if self.schema is None:
            raise ValueError(
                f"{self.name}: the model has no data yet; call fit(data) or load one with deeprec.load(dir)"
            )
        return self.schema
