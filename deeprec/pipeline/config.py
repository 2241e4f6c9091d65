"""A pipeline as data: sources, filters, ranking and re-ranking, a frozen dataclass each, read from YAML or Python.

data: ml-1m
protocol: {name: caser, metrics: [ndcg, recall], cutoffs: [10]}
sources:
  - {kind: model, name: ease, model: ease, options: {l2: 500}, quota: 150}
  - {kind: popularity, quota: 100}
  - {kind: item-to-item, of: ease, last: 5, quota: 100}
filters: [seen]
ranking: {kind: clicks, model: deepfm, negatives: 20}
rerank:
  - {kind: mmr, vectors: ease, diversity: 0.2}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from deeprec._record import RecordError, check_fields
from deeprec._suggest import did_you_mean
from deeprec.data.columns.schema_yaml import load as load_yaml

Id: TypeAlias = int | str


class _Stage:
    """What all stages share: a kind, and checks that name it."""

    kind: ClassVar[str]

    def _require(self, holds: bool, option: str, requirement: str, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{self.kind}: {option} must be {requirement}, got {getattr(self, option)!r}; {remedy}")


# -- sources ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSource(_Stage):
    """The best items by a model: one that the pipeline trains, or a fitted one in a folder.

    Attributes:
        name: of the source, unique.
        model: registered name, trained with `options` on the pipeline's data and split.
        folder: of a model that was fitted on the same data and split; instead of `model`.
        options: of the model.
        quota: items that it proposes, >= 1.
        index: ask the index that lies in the model's folder; nearly the same items, in less time.
    """

    kind: ClassVar[str] = "model"

    name: str
    model: str = ""
    folder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    quota: int = 100
    index: bool = False

    def __post_init__(self) -> None:
        self._require(bool(self.name), "name", "a word", "name the source")
        self._require(self.quota >= 1, "quota", ">= 1", "leave it out for 100")
        if bool(self.model) == bool(self.folder):
            raise ValueError(
                f"model: source {self.name!r} must have either a model to train or a folder, got model={self.model!r} "
                f"and folder={self.folder!r}; give one of them"
            )
        if self.folder and self.options:
            raise ValueError(f"model: options of source {self.name!r} are those of its folder; leave them out")


@dataclass(frozen=True)
class Popularity(_Stage):
    """The items with the most interactions.

    Attributes:
        name: of the source.
        quota: items that it proposes, >= 1.
        days: only interactions of so many days before the last one count, > 0; 0: all. Needs times.
    """

    kind: ClassVar[str] = "popularity"

    name: str = "popularity"
    quota: int = 100
    days: float = 0.0

    def __post_init__(self) -> None:
        self._require(self.quota >= 1, "quota", ">= 1", "leave it out for 100")
        self._require(0 <= self.days < float("inf"), "days", ">= 0", "leave it out for all interactions")


@dataclass(frozen=True)
class ItemToItem(_Stage):
    """The items nearest to the last items of the user, by the cosine of a model's item vectors.

    score(i) = sum over the last items j of decay^(place of j from the end) cos(i, j), of each j the nearest
    `neighbors`.

    Attributes:
        of: a source of kind "model" that knows item vectors.
        name: of the source.
        last: items of the history that count, >= 1.
        neighbors: items near to each of them, >= 1.
        decay: in (0, 1]; what an item counts beside the one after it.
        quota: items that it proposes, >= 1.
    """

    kind: ClassVar[str] = "item-to-item"

    of: str
    name: str = "item-to-item"
    last: int = 5
    neighbors: int = 50
    decay: float = 0.9
    quota: int = 100

    def __post_init__(self) -> None:
        for option in ("last", "neighbors", "quota"):
            self._require(getattr(self, option) >= 1, option, ">= 1", "leave it out")
        self._require(0 < self.decay <= 1, "decay", "in (0, 1]", "leave it out for 0.9")


@dataclass(frozen=True)
class Freshest(_Stage):
    """The newest items.

    Attributes:
        name: of the source.
        column: of the items' table, a number or time that is larger for newer items; "": the first interaction of each.
        quota: items that it proposes, >= 1.
    """

    kind: ClassVar[str] = "freshest"

    name: str = "freshest"
    column: str = ""
    quota: int = 20

    def __post_init__(self) -> None:
        self._require(self.quota >= 1, "quota", ">= 1", "leave it out for 20")


# -- filters: what they take out no source proposes, so that quotas are full -----------------------------------------


@dataclass(frozen=True)
class SeenFilter(_Stage):
    """Takes out what the user has met."""

    kind: ClassVar[str] = "seen"


@dataclass(frozen=True)
class AllowFilter(_Stage):
    """Keeps nothing but the items of a list.

    Attributes:
        items: their ids.
        file: a table with a column item_id, or a text of one id a line; beside or instead of `items`.
    """

    kind: ClassVar[str] = "allow"

    items: tuple[Id, ...] = ()
    file: str = ""

    def __post_init__(self) -> None:
        if not self.items and not self.file:
            raise ValueError(f"{self.kind}: items or a file are needed, got neither; leave the filter out")


@dataclass(frozen=True)
class DenyFilter(AllowFilter):
    """Takes out the items of a list, such as those that cannot be had now.

    Attributes:
        items: their ids.
        file: as of `AllowFilter`.
    """

    kind: ClassVar[str] = "deny"


@dataclass(frozen=True)
class ColumnFilter(_Stage):
    """Takes out items by a column of their table.

    Attributes:
        column: of the items' table; of lists any value counts.
        values: items with one of these come, or with `deny` do not; () where there are bounds.
        at_least, at_most: bounds of a number; None: none.
        deny: take out those that fit instead of the others.
    """

    kind: ClassVar[str] = "column"

    column: str
    values: tuple[Id, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    deny: bool = False

    def __post_init__(self) -> None:
        has_bounds = self.at_least is not None or self.at_most is not None
        if bool(self.values) == has_bounds:
            raise ValueError(f"column: {self.column!r} must be compared with values or with bounds, got "
                             f"{'both' if has_bounds else 'neither'}; give one of them")  # fmt: skip


@dataclass(frozen=True)
class PerUserFilter(_Stage):
    """Takes out items for single users, such as what they blocked.

    Attributes:
        file: a table with columns user_id and item_id; users whom the data does not know are passed over.
    """

    kind: ClassVar[str] = "per-user"

    file: str


# -- ranking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fusion(_Stage):
    """Ranks without training: score(i) = sum over the sources that proposed i of weight / (constant + rank).

    Reference: Cormack, Clarke, Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet" (SIGIR).

    Attributes:
        constant: > 0.
        weights: by name of the source; 1 where it is not named.
    """

    kind: ClassVar[str] = "fusion"

    constant: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._require(self.constant > 0, "constant", "> 0", "leave it out for 60")
        self._require(all(w >= 0 for w in self.weights.values()), "weights", ">= 0", "leave the source out")


@dataclass(frozen=True)
class ByModel(_Stage):
    """Ranks by the scores of a source's model.

    Attributes:
        of: a source of kind "model".
    """

    kind: ClassVar[str] = "model"

    of: str


@dataclass(frozen=True)
class ByClicks(_Stage):
    """Ranks by a click model that the pipeline trains on what the sources propose.

    The sources, trained without the validation part, propose items to its users; what a user went on to there has label
    1. The model's epoch is chosen on users whose rows it does not train on.

    Attributes:
        model: registered name of a click model.
        options: of the model.
        negatives: proposed items without an interaction for each with one, drawn anew for no epoch, >= 1.
        columns: of the users' and items' tables that it reads; None: all that have at most 1,000 values.
        ids: whether it has a vector of each item beside its columns.
        scores: whether it reads the sources' scores and ranks.
        users: most users of the validation part that give it rows, >= 20; 0: all.
    """

    kind: ClassVar[str] = "clicks"

    model: str = "deepfm"
    options: Mapping[str, Any] = field(default_factory=dict)
    negatives: int = 20
    columns: tuple[str, ...] | None = None
    ids: bool = True
    scores: bool = True
    users: int = 0

    def __post_init__(self) -> None:
        self._require(self.negatives >= 1, "negatives", ">= 1", "leave it out for 20")
        self._require(self.users == 0 or self.users >= 20, "users", ">= 20, or 0 for all", "leave it out")
        if not self.scores and not self.ids and self.columns == ():
            raise ValueError("clicks: the ranker must read columns, ids or scores, got none of them; leave one in")


# -- re-ranking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boost(_Stage):
    """Adds to the scores of items with a value of a column, in units of the list's standard deviation.

    Attributes:
        column: of the items' table; of lists any value counts.
        values: those that are boosted.
        by: standard deviations of the list's scores; below 0 it holds back.
    """

    kind: ClassVar[str] = "boost"

    column: str
    values: tuple[Id, ...]
    by: float = 1.0

    def __post_init__(self) -> None:
        self._require(bool(self.values), "values", "at least one", "leave the stage out")


@dataclass(frozen=True)
class MMR(_Stage):
    """Maximal marginal relevance: next comes the best (1 - diversity) score - diversity max cos to those taken.

    Scores are those of the list, brought to [0, 1].
    Reference: Carbonell, Goldstein 1998, "The use of MMR, diversity-based reranking" (SIGIR).

    Attributes:
        vectors: a source of kind "model" with item vectors; or
        column: of the items' table, whose values an item has or has not.
        diversity: in [0, 1].
        pool: first items of the list that it takes from, >= 1.
    """

    kind: ClassVar[str] = "mmr"

    vectors: str = ""
    column: str = ""
    diversity: float = 0.2
    pool: int = 100

    def __post_init__(self) -> None:
        if bool(self.vectors) == bool(self.column):
            raise ValueError("mmr: either vectors of a source or a column is needed; give one of them")
        self._require(0 <= self.diversity <= 1, "diversity", "in [0, 1]", "leave it out for 0.2")
        self._require(self.pool >= 1, "pool", ">= 1", "leave it out for 100")


@dataclass(frozen=True)
class Calibration(_Stage):
    """Lets the values of a column stand in a list as often as in the user's history.

    Greedily maximises (1 - weight) sum of scores - weight KL(p || (1 - alpha) q + alpha p), p of the history, q of the
    list; scores are those of the list, brought to [0, 1].
    Reference: Steck 2018, "Calibrated recommendations" (RecSys), eq. 2 to 6.

    Attributes:
        column: of the items' table; of lists each value counts in equal parts.
        weight: in [0, 1].
        alpha: in (0, 1).
        pool: first items of the list that it takes from, >= 1.
    """

    kind: ClassVar[str] = "calibration"

    column: str
    weight: float = 0.5
    alpha: float = 0.01
    pool: int = 100

    def __post_init__(self) -> None:
        self._require(0 <= self.weight <= 1, "weight", "in [0, 1]", "leave it out for 0.5")
        self._require(0 < self.alpha < 1, "alpha", "in (0, 1)", "leave it out for 0.01")
        self._require(self.pool >= 1, "pool", ">= 1", "leave it out for 100")


@dataclass(frozen=True)
class ProviderQuota(_Stage):
    """Lets no value of a column, such as a provider or artist, have more than so many places.

    Where too few other items are left, those beyond the quota come last.

    Attributes:
        column: of the items' table, one value an item; items without one are not counted.
        most: places of a value in a list, >= 1.
    """

    kind: ClassVar[str] = "provider-quota"

    column: str
    most: int = 3

    def __post_init__(self) -> None:
        self._require(self.most >= 1, "most", ">= 1", "leave the stage out")


@dataclass(frozen=True)
class Exploration(_Stage):
    """Gives the last places to candidates that the ranking left behind, drawn uniformly; the same user, the same draw.

    Attributes:
        places: how many, >= 1; at most k - 1 of a list are given away.
        seed: of the draws.
    """

    kind: ClassVar[str] = "exploration"

    places: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._require(self.places >= 1, "places", ">= 1", "leave the stage out")


Source: TypeAlias = ModelSource | Popularity | ItemToItem | Freshest
Filter: TypeAlias = SeenFilter | AllowFilter | DenyFilter | ColumnFilter | PerUserFilter
Ranking: TypeAlias = Fusion | ByModel | ByClicks
Rerank: TypeAlias = Boost | MMR | Calibration | ProviderQuota | Exploration
SOURCES: tuple[type[Any], ...] = (ModelSource, Popularity, ItemToItem, Freshest)
FILTERS: tuple[type[Any], ...] = (SeenFilter, AllowFilter, DenyFilter, ColumnFilter, PerUserFilter)
RANKINGS: tuple[type[Any], ...] = (Fusion, ByModel, ByClicks)
RERANKS: tuple[type[Any], ...] = (Boost, MMR, Calibration, ProviderQuota, Exploration)
_STAGES = {"sources": SOURCES, "filters": FILTERS, "ranking": RANKINGS, "rerank": RERANKS}


@dataclass(frozen=True)
class PipelineConfig:
    """From data to lists.

    Attributes:
        sources: who proposes candidates, at least one, each with a name of its own.
        data: name or path of the interactions; "": given to `fit`.
        data_options: of the reader of the data.
        user_features, item_features: tables with user_id or item_id, laid beside the data's own.
        protocol: options of the protocol that divides and measures, `name` among them.
        seed: of the models, and of the ranker's negatives.
        k: length of the lists that are measured, >= 1.
        filters: what may not come.
        ranking: what orders the candidates.
        rerank: what changes the order, one after the other.
    """

    sources: tuple[Source, ...]
    data: str = ""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    user_features: str = ""
    item_features: str = ""
    protocol: Mapping[str, Any] = field(default_factory=lambda: {"name": "full"})
    seed: int = 0
    k: int = 10
    filters: tuple[Filter, ...] = (SeenFilter(),)
    ranking: Ranking = Fusion()
    rerank: tuple[Rerank, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("pipeline: sources must be at least one, got none; add {kind: popularity}")
        if self.k < 1 or self.seed < 0:
            raise ValueError(f"pipeline: k must be >= 1 and seed >= 0, got {self.k} and {self.seed}; leave them out")
        if "name" not in self.protocol:
            raise ValueError("pipeline: protocol must have a name, got none; write protocol: {name: full}")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"pipeline: each source must have a name of its own, got {name!r} twice; give a name")
            if not name.replace("-", "").replace("_", "").isalnum() or "/" in name:
                raise ValueError(
                    f"pipeline: names of sources must be letters, digits, - and _, got {name!r}; take another"
                )
        models = [source.name for source in self.sources if isinstance(source, ModelSource)]
        for stage, option, named in self._named_models():
            if named not in models:
                remedy = did_you_mean(named, models)
                raise ValueError(
                    f"pipeline: {stage}: {option} must name a source of kind model, got {named!r}; {remedy}"
                )
        weights = self.ranking.weights if isinstance(self.ranking, Fusion) else {}
        for name in weights:
            if name not in names:
                raise ValueError(f"pipeline: fusion: weights must name sources, got {name!r}; "
                                 f"{did_you_mean(name, names)}")  # fmt: skip

    def _named_models(self) -> list[tuple[str, str, str]]:
        """(stage, option, name of a source) wherever a stage takes something of a model."""
        named = [(s.kind, "of", s.of) for s in (*self.sources, self.ranking) if isinstance(s, ItemToItem | ByModel)]
        return named + [(s.kind, "vectors", s.vectors) for s in self.rerank if isinstance(s, MMR) and s.vectors]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        values: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name in _STAGES:
                value = _of_stage(value) if each.name == "ranking" else [_of_stage(stage) for stage in value]
            values[each.name] = value if not isinstance(value, Mapping) else dict(value)
        return values

    @classmethod
    def from_dict(cls, values: Any) -> PipelineConfig:
        """The config of a mapping, as YAML or JSON gives it; a stage is {kind: KIND, ...}, or KIND alone.

        Raises:
            ValueError: an unknown key, kind or option, with the nearest name, or a value that does not fit.
        """
        if not isinstance(values, Mapping):
            raise ValueError(
                f"pipeline: a mapping with sources is needed, got {type(values).__name__}; see the example"
            )
        whole = dict(values)
        for name, kinds in _STAGES.items():
            if name not in whole:
                continue
            if name == "ranking":
                whole[name] = _stage(name, whole[name], kinds)
                continue
            if not isinstance(whole[name], Sequence) or isinstance(whole[name], str):
                raise ValueError(f"pipeline: {name} must be a list of stages, got {whole[name]!r}; write [...]")
            whole[name] = tuple(_stage(f"{name}[{at}]", stage, kinds) for at, stage in enumerate(whole[name]))
        others = {name: value for name, value in whole.items() if name not in _STAGES}
        try:
            known = {each.name for each in dataclasses.fields(cls)}
            for name in others:
                if name not in known:
                    raise RecordError(f"{name} is unknown; {did_you_mean(name, known)}")
            if "sources" not in whole:
                raise RecordError("sources is missing")
            checked = check_fields(_Plain, others, "", optional=True)
        except RecordError as error:
            raise ValueError(f"pipeline: {error}") from None
        return cls(**checked, **{name: whole[name] for name in _STAGES if name in whole})

    @classmethod
    def from_yaml(cls, source: str | Path) -> PipelineConfig:
        """The config of a YAML text, or of the file of a path; files that it names are looked for beside it."""
        return cls.from_dict(load_yaml(source, "pipeline"))


@dataclass(frozen=True)
class _Plain:
    """What a config has beside stages, for the check of its types."""

    data: str = ""
    data_options: dict[str, Any] = field(default_factory=dict)
    user_features: str = ""
    item_features: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    k: int = 10


def _of_stage(stage: Any) -> dict[str, Any]:
    values = {each.name: getattr(stage, each.name) for each in dataclasses.fields(stage)}
    plain = {
        key: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }
    return {"kind": stage.kind, **plain}


def _stage(key: str, value: Any, kinds: tuple[type[Any], ...]) -> Any:
    """The stage of {kind: KIND, ...} or of KIND."""
    by_kind = {kind.kind: kind for kind in kinds}
    if dataclasses.is_dataclass(value) and type(value) in kinds:
        return value
    options = {"kind": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping) or not isinstance(options.get("kind"), str):
        raise ValueError(
            f"pipeline: {key} must be a stage such as {{kind: {next(iter(by_kind))}}}, got {value!r:.80}; kinds are "
            f"{', '.join(by_kind)}"
        )
    options = dict(options)
    name = options.pop("kind")
    if name not in by_kind:
        raise ValueError(f"pipeline: {key}: unknown kind {name!r}; {did_you_mean(name, by_kind)}")
    try:
        return by_kind[name](**check_fields(by_kind[name], options, key, optional=True))
    except RecordError as error:
        raise ValueError(f"pipeline: {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"pipeline: {key}: {error}") from None
