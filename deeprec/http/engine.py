"""A saved model or pipeline as the service asks it: by texts, a block of requests at a time; it never changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._files import read_regular, sha256_of
from deeprec.contract import RECOMMENDS, AnyModel
from deeprec.data import IdMap
from deeprec.device import Device
from deeprec.pipeline import Pipeline, is_pipeline
from deeprec.pipeline.config import ByModel, ModelSource, PipelineConfig
from deeprec.pipeline.folder import HEAD
from deeprec.pipeline.rows import Lists
from deeprec.pipeline.stages import TRAIN, Answer, History, Parts, State
from deeprec.serve.folder import load as load_model
from deeprec.serve.recommend import id_maps

Titles = Callable[[Path], pl.DataFrame | None]
_MOST_MASKS = 64
_DESCRIBED = ("title", "name", "genres", "year", "poster", "image")  # columns that answers may carry


@dataclass(frozen=True)
class Ask:
    """What a request asks for.

    Attributes:
        user: id as text; None for a history.
        events: ids as texts, in order: what the user did since the training, or the history.
        k: length of the list, >= 1.
        exclude_seen: what was met does not come again.
        allow: the only items that may come, as texts; None: all.
        deny: items that may not.
        explain: say why each is there.
    """

    user: str | None
    events: tuple[str, ...] = ()
    k: int = 10
    exclude_seen: bool = True
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    explain: bool = False


class Listing(NamedTuple):
    """An answer.

    Attributes:
        items: external ids, best first.
        scores: of the ranking.
        is_known: whether anything is known of who asks.
        fallback: "" or why these are popular items: "unknown", "timeout".
        reasons: for each item sources, because and features; [] unless asked for.
        unknown_items: of the history, that the model does not know.
        stages: for each stage its name and its first items; [] unless asked for.
    """

    items: list[Any]
    scores: list[float]
    is_known: bool
    fallback: str = ""
    reasons: Sequence[dict[str, Any]] = ()
    unknown_items: tuple[str, ...] = ()
    stages: Sequence[tuple[str, list[Any]]] = ()


class Engine:
    """What answers requests.

    Safe to use from several threads.

    Args:
        pipeline: of all stages; a model alone is one source and no more.
        folder: where it came from.
        version: a mark of its content.
        kind: "pipeline" or the name of the model.
        titles: frame of item_id and title, or None.
    """

    def __init__(
        self, pipeline: Pipeline, folder: Path, version: str, kind: str, titles: pl.DataFrame | None = None
    ) -> None:
        self.pipeline, self.folder, self.version, self.kind = pipeline, folder, version, kind
        self.items: list[Any] = pipeline.item_ids.values.to_list()
        self._item_codes = _codes(pipeline.item_ids)
        self._user_codes = _codes(pipeline.user_ids)
        self._descriptions = _described(pipeline, titles)
        counts = pipeline.state.counts
        order = np.lexsort((np.arange(len(counts)), -counts))
        is_out = pipeline.state.is_out
        self._popular = (order if is_out is None else order[~is_out[order]]).tolist()
        self._counts = counts
        self._masks: dict[Any, NDArray[np.bool_]] = {}  # of the filters that were asked for last

    @classmethod
    def load(cls, folder: Path, *, device: Device = "auto", max_k: int = 200, titles: Titles | None = None) -> Engine:
        """The model or pipeline of a folder.

        Args:
            max_k: the longest list that is asked of a model.
            titles: what reads the titles of a model's folder.
        Raises:
            FileNotFoundError: neither is there. ValueError: damaged, or a model that recommends nothing.
        """
        folder = Path(folder)
        if is_pipeline(folder):
            made = Pipeline.load(folder, device=device)
            return cls(made, folder, sha256_of(read_regular(folder / HEAD, "serve", "restore it"))[:12], "pipeline")
        model = load_model(folder, device=device)
        version = sha256_of(read_regular(folder / "config.json", "serve", "restore it"))[:12]
        return cls(of_model(model, max_k), folder, version, model.name, titles(folder) if titles else None)

    # -- ids -----------------------------------------------------------------------------------------------------------

    def item_code(self, text: str) -> int:
        """Internal id of an item; -1 for an unknown one."""
        return self._item_codes.get(text, -1)

    def user_code(self, text: str) -> int:
        """Internal id of a user; -1 for an unknown one."""
        return self._user_codes.get(text, -1)

    def described(self, item: Any) -> dict[str, Any]:
        """Columns of an item that a person reads."""
        return self._descriptions.get(str(item), {})

    # -- answers -------------------------------------------------------------------------------------------------------

    def recommend(self, asks: Sequence[Ask], out: frozenset[str] = frozenset()) -> list[Listing]:
        """Answers to a block of requests.

        Args:
            out: items that may come to nobody at present, as texts.
        """
        answers: list[Listing | None] = [None] * len(asks)
        groups: dict[Any, list[int]] = {}
        for place, ask in enumerate(asks):
            groups.setdefault((ask.allow, ask.deny, ask.exclude_seen), []).append(place)
        for (allow, deny, hides), places in groups.items():
            is_out = self._is_out(allow, deny, out)
            for place, listing in zip(places, self._block([asks[p] for p in places], is_out, hides), strict=True):
                answers[place] = listing
        return [each for each in answers if each is not None]

    def _is_out(
        self, allow: tuple[str, ...] | None, deny: tuple[str, ...], out: frozenset[str]
    ) -> NDArray[np.bool_] | None:
        known = self.pipeline.state.is_out
        if allow is None and not deny and not out:
            return known
        key = allow, deny, out
        if (kept := self._masks.get(key)) is not None:
            return kept
        is_out = np.zeros(len(self.items), np.bool_) if known is None else known.copy()
        if allow is not None:
            only = np.ones(len(self.items), np.bool_)
            only[[code for code in map(self.item_code, allow) if code >= 0]] = False
            is_out |= only
        is_out[[code for code in map(self.item_code, (*deny, *out)) if code >= 0]] = True
        if len(self._masks) >= _MOST_MASKS:
            self._masks.clear()
        self._masks[key] = is_out
        return is_out

    def _block(self, asks: list[Ask], is_out: NDArray[np.bool_] | None, hides: bool) -> list[Listing]:
        users = np.array([-1 if ask.user is None else self.user_code(ask.user) for ask in asks], np.int64)
        codes = [[self.item_code(text) for text in ask.events] for ask in asks]
        later = Lists.of([[code for code in row if code >= 0] for row in codes])
        asked = self.pipeline.asked(users, later=later, is_out=is_out, hides_seen=hides)
        k = max(ask.k for ask in asks)
        answer = self.pipeline.answer(asked, k)
        final = answer.stages[-1].first(k)
        scores = np.take_along_axis(_scores(answer), np.maximum(final.places, 0).ravel()[None], 1).reshape(
            final.places.shape
        )
        listings = []
        lengths = np.diff(asked.history.offsets)
        for row, ask in enumerate(asks):
            items = final.items[row, : ask.k]
            count = int((items >= 0).sum())
            is_known = bool(lengths[row])
            listings.append(
                Listing(
                    [self.items[item] for item in items[:count].tolist()],
                    scores[row, :count].tolist(),
                    is_known,
                    "" if is_known else "unknown",
                    self._reasons(answer, row, count) if ask.explain else (),
                    tuple(text for text, code in zip(ask.events, codes[row], strict=True) if code < 0),
                    self._stages(answer, row, ask.k) if ask.explain else (),
                )
            )
        return listings

    def _stages(self, answer: Answer, row: int, k: int) -> list[tuple[str, list[Any]]]:
        """The first items of each source alone, and of the list after each stage."""
        config = self.pipeline.config
        stages = [f"ranking: {config.ranking.kind}", *(stage.kind for stage in config.rerank)]
        lists = [one.items[row] for one in answer.proposed] + [stage.items[row] for stage in answer.stages]
        names = [f"source: {name}" for name in self.pipeline.names] + stages
        return [
            (name, [self.items[item] for item in items[:k].tolist() if item >= 0])
            for name, items in zip(names, lists, strict=True)
        ]

    def met(self, user: str, most: int) -> list[Any]:
        """The last items that the data knows of a user, latest last."""
        code = self.user_code(user)
        items = self.pipeline.state.history.lists.taken([code]).items[-most:]
        return [self.items[item] for item in items.tolist()]

    def _reasons(self, answer: Answer, row: int, count: int) -> list[dict[str, Any]]:
        made, final = self.pipeline, answer.stages[-1]
        places, items = final.places[row, :count], final.items[row, :count].tolist()
        features = made.reasons(answer, places)
        return [
            {
                "sources": made.sources_of(answer, row, int(place)),
                "because": made.because(answer.asked, row, item),
                "features": feature,
                "is_explored": bool(final.is_explored[row, number]),
            }
            for number, (place, item, feature) in enumerate(zip(places.tolist(), items, features, strict=True))
        ]

    def popular(self, ask: Ask, fallback: str, out: frozenset[str] = frozenset()) -> Listing:
        """What is popular, in no time: the answer where there is none in time."""
        hidden = {self.item_code(text) for text in (*ask.deny, *out)}
        if ask.exclude_seen:
            hidden |= {self.item_code(text) for text in ask.events}
            user = -1 if ask.user is None else self.user_code(ask.user)
            hidden |= set(self.pipeline.state.history.lists.taken([user]).items.tolist())
        only = None if ask.allow is None else {self.item_code(text) for text in ask.allow}
        items = []
        for item in self._popular:
            if item not in hidden and (only is None or item in only):
                items.append(item)
                if len(items) == ask.k:
                    break
        scores = [float(self._counts[item]) for item in items]
        return Listing([self.items[item] for item in items], scores, False, fallback)

    def similar(self, item: str, k: int) -> list[tuple[Any, float]]:
        """The k nearest items with their cosines.

        Raises:
            KeyError: an unknown item. ValueError: nothing knows item vectors.
        """
        code = self.item_code(item)
        if code < 0:
            raise KeyError(item)
        frame = self.pipeline.similar_items([self.items[code]], k)
        return list(zip(frame["similar_item_id"].to_list(), frame["score"].to_list(), strict=True))

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """The ranking's score of each pair; None where the user or the item is unknown."""
        codes = [(self.user_code(user), self.item_code(item)) for user, item in pairs]
        known = [place for place, pair in enumerate(codes) if min(pair) >= 0]
        users = self.pipeline.user_ids.values
        result: list[float | None] = [None] * len(pairs)
        if known:
            given = [(users[codes[place][0]], self.items[codes[place][1]]) for place in known]
            for place, score in zip(known, self.pipeline.score(given).tolist(), strict=True):
                result[place] = score
        return result

    def sample_users(self, count: int) -> list[str]:
        """Users spread evenly over those it knows, as texts."""
        users = self.pipeline.user_ids.values
        places = np.unique(np.linspace(0, len(users) - 1, min(count, len(users))).astype(np.int64))
        return [str(user) for user in users.gather(places).to_list()]


def _scores(answer: Answer) -> NDArray[np.float32]:
    """[1, nnz]: the ranking's score of every candidate."""
    first = answer.stages[0]
    scores = np.zeros((1, max(1, len(answer.candidates.lists.items))), np.float32)
    is_item = first.places >= 0
    scores[0, first.places[is_item]] = first.scores[is_item]
    return scores


def of_model(model: AnyModel, quota: int) -> Pipeline:
    """A pipeline of nothing but a model.

    Raises:
        ValueError: it does not recommend items to users.
    """
    if RECOMMENDS not in model.capabilities:
        raise ValueError(
            f"serve: a model is needed that recommends items to a user, got {model.name}; serve a pipeline that "
            "ranks by it"
        )
    users, items = id_maps(model)
    offsets, met = _histories(model, len(users))
    history = History(Lists(offsets, met), np.full(len(met), TRAIN, np.uint8))
    counts = np.bincount(met, minlength=len(items)).astype(np.int64)
    state = State(users, items, history, None, None, None, None, counts, {}, {"name": model.name})
    config = PipelineConfig(
        (ModelSource(model.name, model.name, quota=min(quota, len(items))),), ranking=ByModel(model.name)
    )
    return Pipeline(Parts(config, state, {model.name: model}))


def _histories(model: AnyModel, num_users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets and items of what users met: in order where the model keeps that, with what it has seen before."""
    offsets = getattr(model, "history_offsets", None)
    ordered = None
    if offsets is not None and getattr(model, "reads_history", False):
        ordered = Lists(offsets.cpu().numpy().astype(np.int64), model.history_items.cpu().numpy().astype(np.int64))
    if model.seen is None:
        empty = Lists(np.zeros(num_users + 1, np.int64), np.empty(0, np.int64))
        return ordered if ordered is not None else empty
    seen = Lists(model.seen.offsets.astype(np.int64), model.seen.items.astype(np.int64))
    if ordered is None:
        return seen
    keys = seen.owners() << 32 | seen.items
    is_new = ~np.isin(keys, ordered.owners() << 32 | ordered.items)
    owners = seen.owners()[is_new]
    others = Lists(np.searchsorted(owners, np.arange(num_users + 1)).astype(np.int64), seen.items[is_new])
    return ordered.joined(others)


def _codes(ids: IdMap) -> dict[str, int]:
    return {str(value): code for code, value in enumerate(ids.values.to_list())}


def _described(pipeline: Pipeline, titles: pl.DataFrame | None) -> dict[str, dict[str, Any]]:
    """By the text of an id: the columns that a person reads."""
    table = pipeline.state.items
    if table is not None:
        columns = [name for name in _DESCRIBED if name in table.columns]
        ids = pipeline.item_ids.values.to_list()
        return {str(item): row for item, row in zip(ids, table.select(columns).to_dicts(), strict=True)}
    if titles is None:
        return {}
    return {str(item): {"title": title} for item, title in titles.select("item_id", "title").iter_rows()}
