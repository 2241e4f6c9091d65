"""What orders the candidates: reciprocal ranks, a source's model, or a click model with features fetched once."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from deeprec.batches.log import LogBatch
from deeprec.contract import AnyModel
from deeprec.data import Bag, Categorical, FeatureSchema, Numeric
from deeprec.data.columns.inputs import Bags, Encoded
from deeprec.data.columns.rows import join, take, take_bags
from deeprec.device import device_of
from deeprec.evaluate.click_metrics import correct_for_sampling
from deeprec.evaluate.tasks import logits_of_rows
from deeprec.pipeline.config import ByClicks, Fusion
from deeprec.pipeline.rows import Asked, Candidates, Ints

Floats = NDArray[np.float32]
MOST_VALUES = 1000  # of a column that is read without being named
_USER, _ITEM = "user.", "item."


class Ranker(Protocol):
    """A stage."""

    def __call__(self, asked: Asked, candidates: Candidates) -> Floats:
        """Scores [nnz] of the candidates; larger is better."""


class ByReciprocalRanks:
    """See `Fusion`."""

    def __init__(self, stage: Fusion, names: list[str]) -> None:
        self.constant = np.float32(stage.constant)
        self.weights = np.array([stage.weights.get(name, 1.0) for name in names], np.float32)

    def __call__(self, asked: Asked, candidates: Candidates) -> Floats:
        parts = np.where(candidates.ranks > 0, self.weights / (self.constant + candidates.ranks), 0)
        total: Floats = parts.sum(1).astype(np.float32)
        return total


class ByScore:
    """By the scores of a source; what it has no score for comes last, by the place that others gave it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, asked: Asked, candidates: Candidates) -> Floats:
        scores = candidates.scores[:, self.number]
        if not np.isnan(scores).any():
            return scores
        least = np.nanmin(scores) if (~np.isnan(scores)).any() else np.float32(0)
        place = np.where(candidates.ranks > 0, candidates.ranks, 1 << 20).min(1, initial=1 << 20)
        return np.where(np.isnan(scores), least - place.astype(np.float32), scores).astype(np.float32)


class Tables:
    """The columns of users and items that a click model reads, and the frames of its rows.

    Args:
        stage: of the config.
        users, items: frames whose row i describes internal id i; None where nothing is known.
        names: of the sources.
        counts: interactions of each item, [N].
    """

    def __init__(
        self,
        stage: ByClicks,
        users: pl.DataFrame | None,
        items: pl.DataFrame | None,
        names: list[str],
        counts: NDArray[Any],
    ) -> None:
        self.stage, self.names, self.counts = stage, names, counts
        self.users, self.items = _columns(users, stage.columns), _columns(items, stage.columns)

    def schema(self) -> FeatureSchema:
        """The features of the click model."""
        features: list[Any] = [Categorical("item.id")] if self.stage.ids else []
        for side, frame in ((_USER, self.users), (_ITEM, self.items)):
            for column, kind in frame.schema.items():
                if isinstance(kind, pl.List):
                    features.append(Bag(side + column))
                elif kind.is_float():
                    features.append(Numeric(side + column, missing_indicator=True))
                else:
                    features.append(Categorical(side + column))
        if self.stage.scores:
            for name in self.names:
                features += [Numeric(f"{name}.score", transform="none", missing=0.0), Numeric(f"{name}.rank")]
        features += [Numeric("item.popularity"), Numeric("user.interactions")]
        return FeatureSchema(tuple(features), label="label", group="group")

    def context(self, asked: Asked, candidates: Candidates) -> dict[str, Floats]:
        """What is known of a candidate beside its user's and item's columns, by name, [nnz] each."""
        lists = candidates.lists
        owners = lists.owners()
        columns = {}
        if self.stage.scores:
            unit = standard_scores(candidates)
            for number, name in enumerate(self.names):
                ranks = candidates.ranks[:, number]
                columns[f"{name}.score"] = unit[:, number]
                columns[f"{name}.rank"] = np.where(ranks > 0, 1 / np.sqrt(np.maximum(ranks, 1)), 0).astype(np.float32)
        columns["item.popularity"] = np.log1p(self.counts[lists.items]).astype(np.float32)
        columns["user.interactions"] = np.log1p(np.diff(asked.history.offsets)[owners]).astype(np.float32)
        return columns

    def frame(self, users: Ints, items: Ints, context: dict[str, Floats] | None) -> pl.DataFrame:
        """Rows for the pairs of users [n], -1 for none, and items [n], -1 for none."""
        parts = []
        for side, table, codes in ((_USER, self.users, users), (_ITEM, self.items, items)):
            if table.width:
                known = pl.Series("code", np.where(codes < 0, 0, codes))
                rows = table[known].with_columns(pl.when(pl.Series(codes >= 0)).then(pl.all()))
                parts.append(rows.rename({column: side + column for column in table.columns}))
        if self.stage.ids:
            parts.append(pl.DataFrame({"item.id": pl.Series(items).cast(pl.String)}))
        if context is None:
            names = [f.name for f in self.schema().features if f.name not in _names(parts)]
            context = {name: np.zeros(len(users), np.float32) for name in names}
        return pl.concat([*parts, pl.DataFrame(context)], how="horizontal")


class ByClickModel:
    """See `ByClicks`: the columns of users and items are encoded once, and a candidate's row is put together of them.

    Args:
        tables: of the columns.
        model: a fitted click model of `tables.schema()`.
        num_users, num_items: of the data.
    """

    def __init__(self, tables: Tables, model: AnyModel, num_users: int, num_items: int) -> None:
        self.tables, self.model, encoder = tables, model, model.encoder
        if encoder.schema != tables.schema():
            known = {f.name for f in tables.schema().features}
            lacking = [f.name for f in encoder.schema.features if f.name not in known]
            what = f"lacks the columns {', '.join(lacking)}" if lacking else "has other columns"
            raise ValueError(
                f"pipeline: the ranker {model.name} must have been trained on the columns of this pipeline, which "
                f"{what}; fit the pipeline anew"
            )
        none_users, none_items = np.full(num_items, -1), np.full(num_users + 1, -1)
        every = np.append(np.arange(num_users), -1)  # the last row is somebody of whom nothing is known
        self._users = join(list(encoder.stream(tables.frame(every, none_items, None))))
        self._items = join(list(encoder.stream(tables.frame(none_users, np.arange(num_items), None))))
        inputs = encoder.inputs
        self._of_item = np.array([field.name.startswith(_ITEM) for field in inputs.fields], np.bool_)
        self._item_bags = {bag.name for bag in inputs.bags if bag.name.startswith(_ITEM)}
        context = [(at, f) for at, f in _numerics(encoder) if f.name in self._names_of_context()]
        states = [encoder.numbers[f.name] for _, f in context]
        self._places, self._names = [at for at, _ in context], [f.name for _, f in context]
        # (x - shift) scale between the bounds of training, as `transformed` has it, of all columns at once.
        self._shift, self._scale, self._low, self._high = (
            np.array([getattr(state, name) for state in states]) for name in ("shift", "scale", "low", "high")
        )
        self._item_values = np.array([name.startswith(_ITEM) for name in inputs.numerics], np.bool_)

    def _names_of_context(self) -> set[str]:
        scored = {f"{name}.{what}" for name in self.tables.names for what in ("score", "rank")}
        return scored | {"item.popularity", "user.interactions"}

    def rows(self, asked: Asked, candidates: Candidates) -> Encoded:
        """The rows of all candidates as the model takes them."""
        items, owners = candidates.lists.items, candidates.lists.owners()
        users = asked.users[owners]
        users = np.where(users < 0, len(self._users) - 1, users)
        of_user, of_item = self._users, self._items
        ids = np.where(self._of_item, of_item.ids[items], of_user.ids[users])
        values = np.where(self._item_values, of_item.values[items], of_user.values[users])
        context = self.tables.context(asked, candidates)
        numbers = np.stack([context[name] for name in self._names], axis=1).astype(np.float64)
        values[:, self._places] = np.clip((numbers - self._shift) * self._scale, self._low, self._high)
        bags: dict[str, Bags] = {
            name: take_bags(of_item.bags[name], items)
            if name in self._item_bags
            else take_bags(of_user.bags[name], users)
            for name in of_user.bags
        }
        return Encoded(ids.astype(np.int32), values.astype(np.float32), bags)

    def __call__(self, asked: Asked, candidates: Candidates) -> Floats:
        return self._logits(self.rows(asked, candidates))

    @torch.no_grad()
    def _logits(self, rows: Encoded) -> Floats:
        """Logits [n], without the way through training mode and back where the model is not in it."""
        if self.model.training:
            return logits_of_rows(self.model, rows)
        logits: Floats = self.model(LogBatch.of(rows).to(device_of(self.model))).float().cpu().numpy()
        return correct_for_sampling(logits, self.model.negative_rate)

    def reasons(self, asked: Asked, candidates: Candidates, places: Ints, most: int = 3) -> list[dict[str, float]]:
        """The features that count most for some candidates: by how much the logit falls when each is made unknown.

        Args:
            places: [n], rows of the candidates.
        Returns:
            for each of them, name of a feature to that difference, largest first.
        """
        encoded = take(self.rows(asked, candidates), places)
        unknown = self.model.encoder.unknown(len(places))
        inputs = self.model.encoder.inputs
        names, variants = [], [encoded]
        for at, field in enumerate(inputs.fields):
            ids = encoded.ids.copy()
            ids[:, at] = unknown.ids[:, at]
            variants.append(Encoded(ids, encoded.values, encoded.bags))
            names.append(field.name)
        for at, name in enumerate(inputs.numerics):
            values = encoded.values.copy()
            values[:, at] = 0 if name.endswith(".rank") else unknown.values[:, at]
            variants.append(Encoded(encoded.ids, values, encoded.bags))
            names.append(name)
        for name in encoded.bags:
            variants.append(Encoded(encoded.ids, encoded.values, {**encoded.bags, name: unknown.bags[name]}))
            names.append(name)
        logits = self._logits(join(variants)).reshape(len(variants), len(places))
        falls = logits[0] - logits[1:]
        best = np.argsort(-falls, axis=0, kind="stable")[:most]
        return [
            {names[each]: float(falls[each, row]) for each in best[:, row] if falls[each, row] > 0}
            for row in range(len(places))
        ]


def standard_scores(candidates: Candidates) -> Floats:
    """Scores [nnz, S] of each source less their mean over a person's candidates, by their deviation; 0 for none."""
    scores, offsets = candidates.scores.astype(np.float64), candidates.lists.offsets
    is_known = ~np.isnan(scores)
    filled = np.where(is_known, scores, 0)
    starts, counts = offsets[:-1], np.diff(offsets)
    if not len(scores):
        return candidates.scores
    used = np.flatnonzero(counts)
    owners = np.repeat(np.arange(len(used)), counts[used])
    known = np.maximum(np.add.reduceat(is_known, starts[used], axis=0, dtype=np.int64), 1)
    mean = np.add.reduceat(filled, starts[used], axis=0) / known
    centred = np.where(is_known, scores - mean[owners], 0)
    spread = np.sqrt(np.add.reduceat(centred**2, starts[used], axis=0) / known)
    unit: Floats = (centred / np.maximum(spread, 1e-9)[owners]).astype(np.float32)
    return unit


def _columns(table: pl.DataFrame | None, named: tuple[str, ...] | None) -> pl.DataFrame:
    """The columns that are read, lists and bounded vocabularies among them, without the ids."""
    if table is None:
        return pl.DataFrame()
    kept = {}
    for column, kind in table.schema.items():
        if column in ("user_id", "item_id") or (named is not None and column not in named):
            continue
        values = table[column]
        if isinstance(kind, pl.List):
            inner = values.explode()
            if inner.dtype.is_nested() or inner.dtype.is_float():
                continue
            if named is None and inner.n_unique() > MOST_VALUES:
                continue
            kept[column] = values.cast(pl.List(pl.String))
        elif kind.is_nested():
            continue
        elif kind.is_float():
            kept[column] = values
        elif named is not None or values.n_unique() <= MOST_VALUES:
            kept[column] = values.cast(pl.String)
    return pl.DataFrame(kept)


def _names(parts: list[pl.DataFrame]) -> set[str]:
    return {column for part in parts for column in part.columns}


def _numerics(encoder: Any) -> list[tuple[int, Numeric]]:
    """Place among the values, and the feature, of each number."""
    places = {name: at for at, name in enumerate(encoder.inputs.numerics)}
    return [(places[f.name], f) for f in encoder.schema.features if isinstance(f, Numeric)]
