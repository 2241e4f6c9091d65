"""`Model`: what people call on every model. What one cannot do is an error that says which models can."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from operator import gt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec import serve
from deeprec.config import TrainConfig, make_config, require_keywords
from deeprec.contract import (
    FROM_COLUMNS,
    NEW_ITEMS,
    NEW_USERS,
    PREDICTS,
    RATES,
    RECOMMENDS,
    RETRIEVES,
    SIMILAR_ITEMS,
    Batches,
    Facts,
    Task,
    Turn,
)
from deeprec.device import Device, device_of
from deeprec.nn._rows import WholeTables
from deeprec.option_help import show_options
from deeprec.registry import require_capability
from deeprec.serve.arguments import require_flag
from deeprec.serve.folder import index_of
from deeprec.serve.predict import predict as predict_rows
from deeprec.surroundings import trained
from deeprec.train import evaluate_model, fit, fit_more

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Self

    from deeprec.serve import ItemIndex


class Model(WholeTables):
    """Base of every model; a plain nn.Module that also trains, measures, saves and serves itself.

    Args:
        sizes: what it is built for, of `sizes_class`; None leaves it unbuilt until `fit` sees the data.
        config: a full config; `options` are laid over it.
        generator: source of the initial weights.
        options: fields of the model's config class.
    Attributes:
        config: its options.
        chosen: names of those that the data of the last `fit` chose.
    Raises:
        ValueError: an unknown option (with the nearest name) or one out of range.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[TrainConfig]]
    capabilities: ClassVar[frozenset[str]] = frozenset()  # of `deeprec.contract.CAPABILITIES`
    trains_by_gradient: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]]  # inputs of a run beside data and options; see `deeprec.registry.require_taken`
    reads: ClassVar[str]  # "interactions" or "log"
    reads_history: ClassVar[bool] = False  # whether `encode` is to be asked with ordered histories for the next item
    sizes: ClassVar[str]  # this and the next two: see `deeprec.contract.Stored`
    sizes_class: ClassVar[type[Any]]
    keeps: ClassVar[tuple[str, ...]]
    item_index: ItemIndex | None

    def __init_subclass__(cls, **options: Any) -> None:
        """Let help() and signatures show the options of the model."""
        super().__init_subclass__(**options)
        show_options(cls)

    def __init__(
        self, sizes: Any, config: TrainConfig | None, generator: torch.Generator | None, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.config: Any = make_config(self.config_class, config, options)
        self.chosen: tuple[str, ...] = ()
        self.hold(self.config)
        if config is None:
            self._given = frozenset(options)  # what is left out may be chosen by the data
        setattr(self, self.sizes, None)
        self._fitted_on: Task | None = None
        if sizes is not None:
            self.build(sizes, generator)

    def adapt(self, facts: Facts) -> None:
        """Choose the options that nobody gave by what the training rows are like; `fit` does so before it builds.

        A second `fit` chooses anew. Options given by name, and all of a `config`, stay.
        """
        self.config, self.chosen = self._asked.for_data(facts, self._given)

    def hold(self, config: TrainConfig) -> None:
        """Go on with a config as it is: no `fit` changes it by the data from now on."""
        self.config = self._asked = config
        self._given = frozenset(field.name for field in dataclasses.fields(config))

    @trained
    def build(self, sizes: Any, generator: torch.Generator | None = None) -> Self:
        """Create the parameters for `sizes`, replacing any there were."""
        if not isinstance(sizes, self.sizes_class):
            raise TypeError(
                f"{self.name}: {self.sizes} must be {self.sizes_class.__name__}, got {sizes!r}; pass those of the "
                "data, or call fit(data)"
            )
        self._build(sizes, generator)
        setattr(self, self.sizes, sizes)
        return self

    def require_built(self) -> Any:
        """What the model was built for, or an error that says how to get it."""
        sizes = getattr(self, self.sizes)
        if sizes is None:
            raise ValueError(
                f"{self.name}: the model has no data yet; call fit(data), or load one with deeprec.load(dir)"
            )
        return sizes

    @property
    def device(self) -> torch.device:
        """Where the model's weights are, and so where it is trained and asked."""
        return device_of(self)

    # -- what a model implements, as `deeprec.contract.Trainable` says ------------------------------------------------

    def _build(self, sizes: Any, generator: torch.Generator | None) -> None:
        raise NotImplementedError

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> Any:
        """The task of learning from `data`."""
        raise NotImplementedError

    def batches(self, train: Any, seed: int) -> Batches:
        """What the model trains on."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Scalar training loss of a batch."""
        raise NotImplementedError

    def backward(self, batch: Any) -> Tensor:
        """Add the gradients of the batch's loss to every parameter's `.grad`; returns the loss, detached."""
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def turns(self) -> Sequence[Turn]:
        """Who steps on a batch, in order; one player with all parameters, unless the model says otherwise."""
        return (Turn("", self.config.groups, self.backward),)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by how they are trained (`TrainConfig.optimizer_options`)."""
        return {"": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def penalty(self) -> float:
        """What the gradients of `backward` hold beside the loss it returns; only full-batch line searches ask."""
        return 0.0

    def fit_directly(self, train: Any) -> None:
        """Fit without gradient steps; only models with `trains_by_gradient = False` implement it."""
        raise NotImplementedError

    def warm_start(self, train_stage: Any) -> bool:
        """Called before training with a function that trains another model on the same split; for pre-training.

        Returns:
            whether the weights now come from somewhere else; then epoch 0 is a candidate too.
        """
        return False

    def dense_parts(self) -> list[nn.Module]:
        """The parts that `compile=True` runs through torch.compile: children with weights and without tables."""
        return [
            part
            for part in self.children()
            if any(True for _ in part.parameters())
            and not any(isinstance(each, WholeTables) for each in part.modules())
        ]

    @torch.no_grad()
    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """Take over the weights of the same model for fewer users, items or values; only `fit_more` asks.

        Each tensor becomes the leading corner of its own, so that what was known keeps its rows; the others begin as
        in a new model. A model for which more than that is to be done does it here.

        Args:
            weights: the state dict of the smaller model.
            data: what is trained on now: Interactions, or the log.
        Raises:
            ValueError: other names, or a tensor that does not fit.
        """
        mine = self.state_dict()
        for name in dict.fromkeys((*weights, *mine)):
            old, new = weights.get(name), mine.get(name)
            if old is None or new is None or old.dim() != new.dim() or any(map(gt, old.shape, new.shape)):
                shapes = [None if each is None else tuple(each.shape) for each in (old, new)]
                raise ValueError(
                    f"{self.name}: fit_more: {name} must be as large as it was or larger, got {shapes[1]} for "
                    f"{shapes[0]}; train anew"
                )
            new[tuple(map(slice, old.shape))] = old

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(self, data: Any, schema: Any = None, **options: Any) -> Self:
        """Train on `data`, choose the epoch on its validation part, and measure the test part once.

        Args:
            data: Interactions or a log, as the model `reads`; a polars or pandas frame, a data set's name or a path.
                A frame of interactions has columns user_id and item_id, and rating and timestamp if known.
            schema: what the columns of a log mean, a `FeatureSchema`; not needed for a log by name, or a converted one.
            **options: of `deeprec.train.fit` (protocol, seed, out, resume, callbacks, device, ...).
        Returns:
            the model, with the weights of the best validation epoch.
        Raises:
            TypeError: an option that there is not, or that is one of the model's own.
        """
        given = options if schema is None else {**options, "schema": schema}
        require_keywords(fit, given, self)
        fit(self, data, **given)
        return self

    def fit_more(self, data: Any, schema: Any = None, **options: Any) -> Self:
        """Go on training on rows that came later, new users, items and values among them.

        Args:
            data: as of `fit`, the later rows; see `deeprec.train.fit_more` for models that need the earlier ones too.
            schema: as of `fit`; that of the model by itself, and it can be no other.
            **options: of `deeprec.train.fit_more` (epochs, lr, protocol, seed, out, resume, callbacks, device, ...).
        Returns:
            the model; the weights of the best validation epoch, or those that it had where no epoch was better.
        Raises:
            TypeError: an option that there is not, or that is one of the model's own.
            ValueError: a model that was never fitted, or data that does not go with it.
        """
        given = options if schema is None else {**options, "schema": schema}
        require_keywords(fit_more, given, self)
        fit_more(self, data, **given)
        return self

    def save(self, directory: str | Path) -> Path:
        """Write the model folder; see `deeprec.load`."""
        return serve.save(self, directory)

    # -- serving -----------------------------------------------------------------------------------------------------

    def recommend(
        self,
        user_ids: Any,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
        unknown: str = "raise",
        approximate: bool = False,
    ) -> pl.DataFrame:
        """The k best items for each user: a frame with user_id, rank (from 1), item_id, score.

        `allow` are the only items that may come, `deny` items that may not. Users whom the model does not know raise an
        error, or get what is popular (unknown="popularity"; a column fallback says who), or are left out ("skip").
        With `approximate` the index answers that `build_index` made.
        """
        require_capability(self, "recommend", RECOMMENDS)
        filters = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny}
        index = self._index("recommend", approximate)
        return serve.recommend(self, user_ids, k, **filters, unknown=unknown, index=index)

    def build_index(self, kind: str | None = None, **options: Any) -> ItemIndex:
        """Make an index of the item vectors, which `recommend` with approximate=True asks; the model's folder keeps it.

        Args:
            kind: "exact", "voyager", "usearch" or "faiss"; None: exact up to a million items, beyond that voyager.
            **options: of `deeprec.serve.ItemIndex.build`: recall, recall_at, items, connectivity, ...
        Returns:
            the index; `recall_report()` says how much of the exact answer it gives, and how fast.
        Raises:
            ValueError: a model whose scores are no dot product, or an option that there is not.
            ImportError: the library of the kind is not installed.
        """
        require_capability(self, "build_index", RETRIEVES)
        self.item_index = serve.ItemIndex.build(self, kind=kind, **options)
        return self.item_index

    def _index(self, function: str, approximate: Any) -> ItemIndex | None:
        if not require_flag(function, "approximate", approximate):
            return None
        require_capability(self, f"{function}: approximate=True", RETRIEVES)
        index = index_of(self)
        if index is None:
            raise ValueError(
                f"{function}: approximate=True needs an index, and {self.name} has none; call build_index(), or type "
                "deeprec index DIR"
            )
        return index

    def recommend_file(self, output: str | Path, k: int = 10, **options: Any) -> int:
        """Write the k best items of all users, or of those in `users`, into a file; see `deeprec.serve.recommend_file`.

        Args:
            output: ends in .parquet, .csv, .tsv or .jsonl.
            **options: users, exclude_seen, allow, deny, unknown, approximate, resume, on_progress.
        Returns:
            rows written.
        """
        require_capability(self, "recommend_file", RECOMMENDS)
        index = self._index("recommend_file", options.pop("approximate", False))
        return serve.recommend_file(self, output, k, **options, index=index)

    def recommend_for_history(
        self,
        item_ids: Any,
        k: int = 10,
        *,
        ratings: Any = None,
        exclude_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
        unknown: str = "raise",
        approximate: bool = False,
    ) -> pl.DataFrame:
        """The k best further items for a user whom the model never saw, from the items they liked or rated, in order.

        Without `exclude_seen` these may come again. `allow` are the only items that may come, `deny` items that may
        not; unknown="skip" passes over items that the model does not know. With `approximate` the index answers that
        `build_index` made.
        """
        require_capability(self, "recommend_for_history", NEW_USERS, *([RATES] if ratings is not None else []))
        index = self._index("recommend_for_history", approximate)
        filters = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny, "unknown": unknown}
        return serve.recommend_for_history(self, item_ids, k, ratings=ratings, **filters, index=index)

    def recommend_for_histories(self, histories: Any, k: int = 10, **options: Any) -> pl.DataFrame:
        """The k best further items for many users or sessions; see `deeprec.serve.recommend_for_histories`.

        Args:
            histories: frame with session_id or user_id, item_id and, where there is one, timestamp.
            **options: exclude_seen, allow, deny, unknown, approximate.
        """
        require_capability(self, "recommend_for_histories", NEW_USERS)
        index = self._index("recommend_for_histories", options.pop("approximate", False))
        return serve.recommend_for_histories(self, histories, k, **options, index=index)

    def recommend_for_features(
        self,
        users: Any,
        k: int = 10,
        *,
        histories: Any = None,
        allow: Any = None,
        deny: Any = None,
        approximate: bool = False,
    ) -> pl.DataFrame:
        """The k best items for users whom the model never saw, from a frame with the columns of the user table.

        `histories` are the items that each met, `allow` the only items that may come, `deny` those that may not. With
        `approximate` the index answers that `build_index` made.
        """
        require_capability(self, "recommend_for_features", FROM_COLUMNS)
        filters = {"histories": histories, "allow": allow, "deny": deny}
        index = self._index("recommend_for_features", approximate)
        return serve.recommend_for_features(self, users, k, **filters, index=index)

    def similar_items(self, item_ids: Any, k: int = 10) -> pl.DataFrame:
        """The k nearest items to each item: a frame with item_id, rank, similar_item_id, score (cosine)."""
        require_capability(self, "similar_items", SIMILAR_ITEMS)
        return serve.similar_items(self, item_ids, k)

    def score(self, pairs: Any) -> np.ndarray:
        """Scores of (user id, item id) pairs: a frame, or a sequence of pairs; float32, larger is better."""
        require_capability(self, "score", RECOMMENDS)
        return serve.score(self, pairs)

    def predict_for_user(self, item_ids: Any, ratings: Any) -> pl.DataFrame:
        """Ratings that a new user, who gave `item_ids` the `ratings`, would give every item: item_id, rating."""
        require_capability(self, "predict_for_user", RATES, NEW_USERS)
        return serve.predict_for_user(self, item_ids, ratings)

    def predict_for_item(self, user_ids: Any, ratings: Any) -> pl.DataFrame:
        """Ratings that every user would give a new item, which `user_ids` gave the `ratings`: user_id, rating."""
        require_capability(self, "predict_for_item", RATES, NEW_ITEMS)
        return serve.predict_for_item(self, user_ids, ratings)

    def predict(self, source: Any, **options: Any) -> np.ndarray:
        """Probabilities [n] of a click for the rows of a file or frame; see `deeprec.serve.predict.predict`."""
        require_capability(self, "predict", PREDICTS)
        return predict_rows(self, source, **options)

    def _evaluate(self, protocol: Any, data: Any, schema: Any, device: Device) -> dict[str, float]:
        return evaluate_model(self, protocol, data, device=device, schema=schema)
