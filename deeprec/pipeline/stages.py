"""The stages put together: candidates from several sources, filters, ranking, re-ranking, why each item is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.contract import SIMILAR_ITEMS, AnyModel
from deeprec.data import IdMap
from deeprec.pipeline.config import (
    MMR,
    Boost,
    ByClicks,
    ByModel,
    Calibration,
    ColumnFilter,
    Freshest,
    Fusion,
    ItemToItem,
    ModelSource,
    PipelineConfig,
    Popularity,
    ProviderQuota,
    SeenFilter,
)
from deeprec.pipeline.ranker import ByClickModel, ByReciprocalRanks, ByScore, Ranker, Tables
from deeprec.pipeline.rerank import (
    Boosting,
    Calibrating,
    Diversifying,
    Exploring,
    Limiting,
    Reranker,
    Values,
    unit_rows,
)
from deeprec.pipeline.rows import Asked, Candidates, Lists, Proposed, Ranked, merged, ranked
from deeprec.pipeline.sources import Fixed, Neighbors, OfModel, Source
from deeprec.serve.arguments import codes_of, pairs_of, require_flag, require_k
from deeprec.serve.folder import index_of
from deeprec.serve.recommend import UNKNOWN, similar_items
from deeprec.surroundings import computed

_USERS_A_BLOCK = 256
_MOST_SHARES = 1 << 28  # 1 GiB of float32
TRAIN, VALIDATION, TEST = 0, 1, 2
FALLBACK = "popularity (fallback)"
_SOURCES = pl.List(pl.Struct({"source": pl.String, "rank": pl.Int64}))
_FEATURES = pl.List(pl.Struct({"feature": pl.String, "logit": pl.Float64}))


class History(NamedTuple):
    """All interactions, those of a user in order.

    Attributes:
        lists: of each user.
        parts: [nnz], uint8: `TRAIN`, `VALIDATION` or `TEST` of the split.
    """

    lists: Lists
    parts: NDArray[np.uint8]

    def of_parts(self, *parts: int) -> Lists:
        """Those of some parts."""
        kept = np.isin(self.parts, parts)
        owners = self.lists.owners()[kept]
        offsets = np.searchsorted(owners, np.arange(len(self.lists.offsets))).astype(np.int64)
        return Lists(offsets, self.lists.items[kept])


@dataclass
class State:
    """What a pipeline knows beside its models.

    Attributes:
        user_ids, item_ids: of the data.
        history: all interactions.
        users, items: tables whose row i describes internal id i, or None.
        is_out: [N], items that may come to nobody; None: no filter takes any out.
        blocked: what may not come to single users, of each user; None: nothing.
        counts: [N], training interactions of each item.
        arrays: of the sources, by SOURCE/NAME.
        data: name, checksums and protocol of the data.
    """

    user_ids: IdMap
    item_ids: IdMap
    history: History
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    is_out: NDArray[np.bool_] | None
    blocked: Lists | None
    counts: NDArray[np.int64]
    arrays: dict[str, NDArray[Any]]
    data: dict[str, Any] = field(default_factory=dict)


class Answer(NamedTuple):
    """What a pipeline says to a block of people, stage by stage.

    Attributes:
        asked: who.
        proposed: by each source.
        candidates: all of them.
        stages: the list after the ranking, then after each re-ranking.
        is_fallback: [b], whether there was no candidate, so that popular items came.
    """

    asked: Asked
    proposed: list[Proposed]
    candidates: Candidates
    stages: list[Ranked]
    is_fallback: NDArray[np.bool_]


class Parts(NamedTuple):
    """What a pipeline is made of.

    Attributes:
        config: its stages.
        state: what it knows of users and items.
        models: fitted models by name of the source.
        ranker: fitted click model; None where the ranking needs none, or while it is trained.
    """

    config: PipelineConfig
    state: State
    models: Mapping[str, AnyModel]
    ranker: AnyModel | None = None


class Stages:
    """From the sources' candidates to a list.

    Safe to use from several threads: nothing changes when it is asked.

    Raises:
        ValueError: a model on other ids than the data's, or a stage that needs what the data has not.
    """

    name = "pipeline"

    def __init__(self, parts: Parts) -> None:
        config, state = parts.config, parts.state
        self.config, self.state, self.models, self.click_model = config, state, dict(parts.models), parts.ranker
        self.user_ids, self.item_ids = state.user_ids, state.item_ids
        for source in config.sources:
            if isinstance(source, ModelSource):
                self._require_same_ids(source.name)
        self.sources = [self._source(source) for source in config.sources]
        self.names = [source.name for source in config.sources]
        self._hides_seen = any(isinstance(each, SeenFilter) for each in config.filters)
        self._fallback = Fixed("fallback", 1000, state.counts.astype(np.float32))
        self._ranker = self._ranking()
        self._rerank: list[Reranker] = [self._reranker(stage) for stage in config.rerank]

    # -- stages ------------------------------------------------------------------------------------------------------

    def _require_same_ids(self, name: str) -> None:
        model = self.models[name]
        for mine, theirs in ((self.user_ids, model.user_ids), (self.item_ids, model.item_ids)):
            if theirs is None or mine.sha256() != theirs.sha256():
                got = "none" if theirs is None else f"{len(theirs):,} others"
                raise ValueError(
                    f"pipeline: source {name!r} must have been trained on the {mine.name}s of the pipeline, "
                    f"{len(mine):,} of them, got {got}; train it on the same data, or let the pipeline train it"
                )

    def _source(self, stage: Any) -> Source:
        arrays = self.state.arrays
        if isinstance(stage, ModelSource):
            model, index = self.models[stage.name], None
            if stage.index:
                index = index_of(model)
                if index is None:
                    raise ValueError(
                        f"pipeline: source {stage.name!r} with index: true needs an index in its folder, got none; "
                        "type deeprec index DIR"
                    )
            return OfModel(stage.name, stage.quota, model, index)
        if isinstance(stage, ItemToItem):
            neighbors, near = (arrays[f"{stage.name}/{each}"] for each in ("neighbors", "similarities"))
            return Neighbors(stage.name, stage.quota, stage.last, stage.decay, neighbors.astype(np.int64), near)
        assert isinstance(stage, Popularity | Freshest)
        return Fixed(stage.name, stage.quota, arrays[f"{stage.name}/values"])

    def _ranking(self) -> Ranker:
        stage = self.config.ranking
        if isinstance(stage, Fusion):
            return ByReciprocalRanks(stage, self.names)
        if isinstance(stage, ByModel):
            return ByScore(self.names.index(stage.of))
        if self.click_model is None:  # while it is trained
            return ByReciprocalRanks(Fusion(), self.names)
        return ByClickModel(self.tables(stage), self.click_model, len(self.user_ids), len(self.item_ids))

    def tables(self, stage: ByClicks) -> Tables:
        """What a click model reads."""
        state = self.state
        return Tables(stage, state.users, state.items, self.names, state.counts)

    def _reranker(self, stage: Any) -> Reranker:
        if isinstance(stage, Boost):
            return Boosting(stage, self.values(stage.kind, stage.column))
        if isinstance(stage, MMR):
            if stage.column:
                return Diversifying(stage, unit_rows(self._shares(stage.kind, stage.column)))
            model = self.models[stage.vectors]
            if SIMILAR_ITEMS not in model.capabilities:
                raise ValueError(
                    f"pipeline: mmr: vectors must be of a model that has item vectors, got {model.name}; take another "
                    "source, or a column"
                )
            return Diversifying(stage, unit_rows(_vectors(model)))
        if isinstance(stage, Calibration):
            return Calibrating(stage, self._shares(stage.kind, stage.column))
        if isinstance(stage, ProviderQuota):
            values = self.values(stage.kind, stage.column)
            counts = np.diff(values.lists.offsets)
            if counts.max(initial=0) > 1:
                raise ValueError(
                    f"pipeline: provider-quota: {stage.column!r} must have one value an item, got lists; take another "
                    "column"
                )
            codes = np.full(len(counts), -1, np.int64)
            codes[counts > 0] = values.lists.items
            return Limiting(stage, codes)
        return Exploring(stage)

    def _shares(self, stage: str, column: str) -> NDArray[np.float32]:
        """The shares of a column's values, [N, V], where they are not too many to be held."""
        values = self.values(stage, column)
        if len(values.names) * len(self.item_ids) > _MOST_SHARES:
            raise ValueError(
                f"pipeline: {stage}: {column!r} has {len(values.names):,} values, too many for {len(self.item_ids):,} "
                "items; take a column with fewer"
            )
        return values.shares()

    def values(self, stage: str, column: str) -> Values:
        """A column of the items' table.

        Raises:
            ValueError: there is no such column.
        """
        return values_of(self.state.items, stage, column)

    # -- asking ------------------------------------------------------------------------------------------------------

    def recommend(
        self,
        user_ids: Any,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
        unknown: str = "raise",
        explain: bool = False,
    ) -> pl.DataFrame:
        """The k best items for each user.

        Args:
            user_ids, k, allow, deny, unknown: as of `deeprec.serve.recommend`; unknown="popularity" runs the pipeline
                with nothing known, so that what is popular or new comes.
            exclude_seen: False: what was met may come again, whatever the filters say.
            explain: add columns sources (a source to the place it gave the item), because (items of the history that it
                is near to) and features (what the ranker found most in its favour, in units of its logit).
        Returns:
            user_id, rank (from 1), item_id, score; with unknown="popularity" also fallback.
        Raises:
            ValueError, TypeError: as `deeprec.serve.recommend`.
        """
        name = "recommend"
        if unknown not in UNKNOWN:
            raise ValueError(f"{name}: unknown must be one of {', '.join(UNKNOWN)}, got {unknown!r}; "
                             f"{did_you_mean(str(unknown), UNKNOWN)}")  # fmt: skip
        index = None if unknown == "raise" else -1
        remedy = "pass unknown='popularity' or 'skip', or what they did to recommend_for_history"
        users = codes_of(name, "user_ids", user_ids, self.user_ids, unknown=index, remedy=remedy).astype(np.int64)
        k = min(require_k(name, k), len(self.item_ids))
        ids = self.user_ids.typed(user_ids) if len(users) else self.user_ids.values[:0]
        if unknown == "skip":
            ids, users = ids.filter(pl.Series(users >= 0)), users[users >= 0]
        is_out = self.hidden_items(name, allow, deny)
        hides = require_flag(name, "exclude_seen", exclude_seen)
        frames = []
        for start in range(0, max(1, len(users)), _USERS_A_BLOCK):
            block = users[start : start + _USERS_A_BLOCK]
            answer = self.answer(self.asked(block, is_out=is_out, hides_seen=hides), k)
            frame = self.frame(answer, k, explain=explain)
            owners = ids.slice(start, len(block)).alias("user_id").gather(frame["row"])
            fallback = {"fallback": users[start:][frame["row"].to_numpy()] < 0} if unknown == "popularity" else {}
            frames.append(pl.DataFrame([owners, *frame.drop("row")]).with_columns(**_series(fallback)))
        return pl.concat(frames)

    def recommend_for_history(
        self,
        item_ids: Any,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
        unknown: str = "raise",
        explain: bool = False,
    ) -> pl.DataFrame:
        """The k best further items for somebody of whom a history is known: rank (from 1), item_id, score.

        Args:
            item_ids: external ids in the order they were met, at least one.
            unknown: what becomes of items that the data does not know: "raise" an error, or "skip" reads the others;
                with none left popular items come.
            k, exclude_seen, allow, deny, explain: as of `recommend`.
        Raises:
            ValueError: an empty history, an unknown item where `unknown` says so, or k < 1.
        """
        name = "recommend_for_history"
        if unknown not in ("raise", "skip"):
            raise ValueError(f"{name}: unknown must be raise or skip, got {unknown!r}; "
                             f"{did_you_mean(str(unknown), ('raise', 'skip'))}")  # fmt: skip
        codes = codes_of(name, "item_ids", item_ids, self.item_ids, unknown=None if unknown == "raise" else -1,
                         remedy="pass unknown='skip', or drop them")  # fmt: skip
        if not len(codes):
            raise ValueError(f"{name}: item_ids must hold at least one item, got none; pass what was met")
        k = min(require_k(name, k), len(self.item_ids))
        history = Lists.of([codes[codes >= 0]])
        is_out, hides = self.hidden_items(name, allow, deny), require_flag(name, "exclude_seen", exclude_seen)
        asked = self.asked(np.array([-1]), history=history, is_out=is_out, hides_seen=hides)
        return self.frame(self.answer(asked, k), k, explain=explain).drop("row")

    def similar_items(self, item_ids: Any, k: int = 10) -> pl.DataFrame:
        """The k nearest items to each: item_id, rank (from 1), similar_item_id, score; by the first source that knows.

        Raises:
            ValueError: no source has item vectors, or an unknown item.
        """
        for model in self.models.values():
            if SIMILAR_ITEMS in model.capabilities:
                return similar_items(model, item_ids, k)
        raise ValueError("similar_items: a source with item vectors is needed, got none; add one, such as ease or bpr")

    def score(self, pairs: Any) -> NDArray[np.float32]:
        """The ranking's scores [n], float32, of (user id, item id) pairs, whoever would propose the items.

        Raises:
            ValueError: an unknown user or item.
        """
        users, items = pairs_of("score", pairs)
        user_codes = codes_of("score", "user_id", users, self.user_ids).astype(np.int64)
        item_codes = codes_of("score", "item_id", items, self.item_ids).astype(np.int64)
        values = np.empty(len(user_codes), np.float32)
        distinct, rows = np.unique(user_codes, return_inverse=True)
        for start in range(0, len(distinct), _USERS_A_BLOCK):
            here = np.flatnonzero((rows >= start) & (rows < start + _USERS_A_BLOCK))
            keys, places = np.unique((rows[here] - start) << 32 | item_codes[here], return_inverse=True)
            count = len(distinct[start : start + _USERS_A_BLOCK])
            given = Lists(np.searchsorted(keys >> 32, np.arange(count + 1)), keys & 0xFFFFFFFF)
            asked = self.asked(distinct[start : start + _USERS_A_BLOCK])
            values[here] = self._scores_of(asked, given)[places]
        return values

    @computed
    def _scores_of(self, asked: Asked, given: Lists) -> NDArray[np.float32]:
        """The ranking's scores [nnz] of given items beside what the sources propose."""
        proposed, kept = self._proposed(asked)
        lists, _ = merged(proposed, len(asked.users))
        both = lists.joined(given).sets()
        sought = given.owners() << 32 | given.items
        place = np.searchsorted(both.owners() << 32 | both.items, sought)
        return self._ranker(asked, self._candidates(asked, proposed, kept, both))[place]

    def hidden_items(self, function: str, allow: Any, deny: Any) -> NDArray[np.bool_] | None:
        """[N], the items that may come to nobody: by the filters, and by a request."""
        is_out = self.state.is_out
        if allow is not None:
            only = np.ones(len(self.item_ids), np.bool_)
            only[codes_of(function, "allow", allow, self.item_ids)] = False
            is_out = only if is_out is None else is_out | only
        if deny is not None:
            is_out = np.zeros(len(self.item_ids), np.bool_) if is_out is None else is_out.copy()
            is_out[codes_of(function, "deny", deny, self.item_ids)] = True
        return is_out

    def asked(
        self,
        users: NDArray[np.int64],
        *,
        history: Lists | None = None,
        later: Lists | None = None,
        is_out: NDArray[np.bool_] | None = None,
        hides_seen: bool = True,
    ) -> Asked:
        """Who is asked for, by internal ids [b], -1 for people whom the data does not know.

        Args:
            history: what they met; None: what the data says of each.
            later: what each met since.
            is_out: what may come to nobody; None: what the filters say.
            hides_seen: False: what was met may come again.
        """
        known = self.state.history.lists.taken(users) if history is None else history
        is_changed = np.full(len(users), history is not None)
        if later is not None:
            known, is_changed = known.joined(later), is_changed | (np.diff(later.offsets) > 0)
        hidden = known.sets() if hides_seen and self._hides_seen else Lists.of([[]] * len(users))
        if self.state.blocked is not None:
            hidden = hidden.joined(self.state.blocked.taken(users)).sets()
        return Asked(users, known, is_changed, hidden, self.state.is_out if is_out is None else is_out)

    @computed
    def answer(self, asked: Asked, k: int) -> Answer:
        """All stages for a block of people."""
        proposed, kept = self._proposed(asked)
        lists, ranks = merged(proposed, len(asked.users))
        is_fallback = np.diff(lists.offsets) == 0
        if is_fallback.any():
            popular, _ = self._fallback.propose(asked)
            items = np.where(is_fallback[:, None], popular.items, -1)[:, :k]
            lists, ranks = merged([*proposed, Proposed(items, popular.scores[:, :k])], len(asked.users))
            ranks = ranks[:, :-1]
        candidates = self._candidates(asked, proposed, kept, lists, ranks)
        scores = self._ranker(asked, candidates)
        if is_fallback.any():
            own = is_fallback[lists.owners()]
            scores = np.where(own, self.state.counts[lists.items], scores).astype(np.float32)
        stages = [ranked(lists, scores, len(lists.items))]
        for stage in self._rerank:
            stages.append(stage(asked, stages[-1], candidates, k))
        return Answer(asked, proposed, candidates, stages, is_fallback)

    def _proposed(self, asked: Asked) -> tuple[list[Proposed], list[Any]]:
        both = [source.propose(asked) for source in self.sources]
        return [one for one, _ in both], [kept for _, kept in both]

    def _candidates(
        self,
        asked: Asked,
        proposed: list[Proposed],
        kept: list[Any],
        lists: Lists,
        ranks: NDArray[np.int32] | None = None,
    ) -> Candidates:
        if ranks is None:
            own, of_own = merged(proposed, len(asked.users))
            ranks = np.zeros((len(lists.items), len(self.sources)), np.int32)
            keys = lists.owners() << 32 | lists.items
            ranks[np.searchsorted(keys, own.owners() << 32 | own.items)] = of_own
        columns = [source.scores(asked, lists, each) for source, each in zip(self.sources, kept, strict=True)]
        return Candidates(lists, ranks, np.stack(columns, axis=1) if columns else np.empty((0, 0), np.float32))

    def frame(self, answer: Answer, k: int, *, explain: bool = False) -> pl.DataFrame:
        """The final lists as a frame: row (of `asked`), rank, item_id, score, and why."""
        final = answer.stages[-1].first(k)
        rows, columns = np.nonzero(final.items >= 0)
        items, places = final.items[rows, columns], final.places[rows, columns]
        made = {
            "row": pl.Series(rows.astype(np.int64)),
            "rank": pl.Series(columns + 1),
            "item_id": self.item_ids.values.gather(items),
            "score": pl.Series(answer.stages[0].scores[rows, self._rank_before(answer, final)[rows, columns]]),
        }
        if explain:
            owners = rows.tolist()
            sources = [self.sources_of(answer, row, place) for row, place in zip(owners, places.tolist(), strict=True)]
            made["sources"] = pl.Series(sources, dtype=_SOURCES)
            near = [self.because(answer.asked, row, item) for row, item in zip(owners, items.tolist(), strict=True)]
            made["because"] = pl.Series(near, dtype=pl.List(self.item_ids.values.dtype))
            made["features"] = pl.Series(self.reasons(answer, places), dtype=_FEATURES)
            made["is_explored"] = pl.Series(final.is_explored[rows, columns])
        return pl.DataFrame({name: column.alias(name) for name, column in made.items()})

    def _rank_before(self, answer: Answer, final: Ranked) -> NDArray[np.int64]:
        """The place that each item of the final lists had after the ranking."""
        first = answer.stages[0]
        before = np.zeros(len(answer.candidates.lists.items) + 1, np.int64)
        rows, columns = np.nonzero(first.places >= 0)
        before[first.places[rows, columns]] = columns
        return before[final.places]

    def sources_of(self, answer: Answer, row: int, place: int) -> list[dict[str, Any]]:
        """The sources that proposed the candidate at `place` to a person, and the rank that each gave it."""
        if answer.is_fallback[row]:
            return [{"source": FALLBACK, "rank": 1}]
        ranks = answer.candidates.ranks[place].tolist()
        return [{"source": name, "rank": rank} for name, rank in zip(self.names, ranks, strict=True) if rank]

    @computed
    def reasons(self, answer: Answer, places: Any) -> list[list[dict[str, Any]]]:
        """The features that a click ranker found most in favour of each of the candidates `places` [n]."""
        if not isinstance(self._ranker, ByClickModel) or not len(places):
            return [[]] * len(places)
        of_each = self._ranker.reasons(answer.asked, answer.candidates, places)
        return [[{"feature": name, "logit": fall} for name, fall in falls.items()] for falls in of_each]

    def because(self, asked: Asked, row: int, item: int, most: int = 3) -> list[Any]:
        """External ids of the items of a history to which an item is near, nearest first; [] where no source knows."""
        history = asked.history.items[asked.history.offsets[row] : asked.history.offsets[row + 1]]
        for source in self.sources:
            if isinstance(source, Neighbors) and len(history):
                codes = [code for code in source.because(history, item) if code != item][:most]
                if codes:
                    return list(self.item_ids.decode(np.array(codes)).tolist())
        return []

    def __repr__(self) -> str:
        stages = ", ".join(stage.kind for stage in (self.config.ranking, *self.config.rerank))
        return f"Pipeline({', '.join(self.names)} -> {stages})"


def values_of(items: pl.DataFrame | None, stage: str, column: str) -> Values:
    """A column of the items' table as values; ValueError where it is not there."""
    known = [] if items is None else [name for name in items.columns if name != "item_id"]
    if items is None or column not in known:
        remedy = did_you_mean(column, known) if known else "give item_features"
        raise ValueError(f"pipeline: {stage}: the items' table must have a column {column!r}, got {known}; {remedy}")
    values = items[column]
    flat = pl.DataFrame({"row": np.arange(len(values)), "value": values})
    flat = flat.explode("value") if isinstance(values.dtype, pl.List) else flat
    flat = flat.drop_nulls().unique().sort("row", "value")
    names = flat["value"].unique().sort()
    codes = pl.DataFrame({"value": names, "code": np.arange(len(names))})
    flat = flat.join(codes, on="value", how="left", maintain_order="left")
    offsets = np.searchsorted(flat["row"].to_numpy(), np.arange(len(values) + 1)).astype(np.int64)
    return Values(names.to_list(), Lists(offsets, flat["code"].to_numpy().astype(np.int64)))


def bounded(items: pl.DataFrame | None, stage: ColumnFilter) -> NDArray[np.bool_]:
    """[N], the items that a filter by a column takes out.

    Raises:
        ValueError: no such column, or bounds of a column without numbers.
    """
    if stage.values:
        fits = values_of(items, stage.kind, stage.column).having(stage.values)
    else:
        values_of(items, stage.kind, stage.column)
        assert items is not None
        column = items[stage.column]
        if not column.dtype.is_numeric():
            raise ValueError(
                f"pipeline: column: {stage.column!r} must hold numbers to be bounded, got {column.dtype}; give values"
            )
        fits = np.ones(len(column), np.bool_)
        numbers = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        if stage.at_least is not None:
            fits &= numbers >= stage.at_least
        if stage.at_most is not None:
            fits &= numbers <= stage.at_most
    return fits if stage.deny else ~fits


@computed
def _vectors(model: AnyModel) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = model.item_vectors().detach().float().cpu().numpy()
    return vectors


def _series(columns: dict[str, Any]) -> dict[str, pl.Series]:
    return {name: pl.Series(name, values, dtype=pl.Boolean) for name, values in columns.items()}
