"""What the columns of a log mean: features declared in Python or YAML, checked before a row is read.

    label: clicked
    features:
      - categorical: [site, device]     # two features with the same options
        min_count: 10
      - numeric: price
        transform: log-standardise
      - bag: genres
        separator: "|"
      - cross: [site, device]
        num_buckets: 100000

`deeprec.data.columns.schema_inference.infer` drafts one from data.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from deeprec._suggest import did_you_mean
from deeprec.data.columns.inputs import POOLINGS
from deeprec.data.reading.chunks import BagColumn, Wanted
from deeprec.data.reading.errors import naming

TRANSFORMS = ("standardise", "log", "log-standardise", "quantile", "min-max", "none", "bucketise")
MISSING = ("mean", "raise")
MAX_SIZE = 2**31 - 1  # ids are int32
_INTEGERS = ("min_count", "max_size", "num_buckets", "max_length", "num_quantiles")


@dataclass(frozen=True)
class Categorical:
    """One id a row: a vocabulary fitted on the train rows, or hash buckets.

    Attributes:
        name: of the feature, unique.
        min_count: values seen in fewer train rows share id 0 with the unseen ones, >= 1.
        max_size: keep at most this many values, the most frequent, >= 1; None: all.
        num_buckets: id = hash modulo this instead of a vocabulary, in [1, 2^31); nothing is fitted, values may collide.
        column: of the source; "": the name.
    """

    kind: ClassVar[str] = "categorical"

    name: str
    min_count: int = 1
    max_size: int | None = None
    num_buckets: int | None = None
    column: str = ""

    def __post_init__(self) -> None:
        _check_named(self)
        _check_vocabulary(self)


@dataclass(frozen=True)
class Numeric:
    """A number a row, as a field's value; with transform "bucketise" as an id (one-hot).

    With x the column's number, log(x) standing for sign(x) ln(1 + |x|), and all statistics those of the train rows:
    "standardise" (x - mean) / deviation; "log" log(x); "log-standardise" both; "min-max" (x - min) / (max - min);
    "quantile" (i - 1) / (n_q - 1) for x in the i-th of n_q quantiles; "none" x. A column that is
    constant in train becomes 0 where it would be divided by nothing. "bucketise": id 0 is missing, id i is the i-th
    interval [b_(i-1), b_i). Later numbers outside of the range of the train rows are held to it.

    Attributes:
        name, column: as of a `Categorical`.
        transform: one of the above.
        num_quantiles: n_q >= 2 of "quantile" (default 100), or of "bucketise" without boundaries (default 10).
        boundaries: of "bucketise": finite, increasing; () takes the quantiles.
        missing: what stands for a missing value: "mean" of the transformed train values, a number (put in before the
            transform), or "raise". "bucketise" has an id for it instead.
        missing_indicator: a second value NAME_missing, 1 where the value is missing.

    Reference for "quantile": Cheng et al. 2016 (arXiv 1606.07792), section 4.1.
    """

    kind: ClassVar[str] = "numeric"

    name: str
    transform: str = "standardise"
    num_quantiles: int | None = None
    boundaries: tuple[float, ...] = ()
    missing: float | str = "mean"
    missing_indicator: bool = False
    column: str = ""

    def __post_init__(self) -> None:
        _check_named(self)
        _check_choice(self, "transform", TRANSFORMS)
        _check_integer(self, "num_quantiles", 2)
        if isinstance(self.missing, str):
            _check_choice(self, "missing", MISSING)
        else:
            object.__setattr__(self, "missing", _finite(self, "missing", self.missing))
        if not isinstance(self.missing_indicator, bool):
            raise TypeError(f"{_of(self)}: missing_indicator must be true or false, got {self.missing_indicator!r}")
        if isinstance(self.boundaries, str) or not isinstance(self.boundaries, Sequence):
            raise TypeError(f"{_of(self)}: boundaries must be a list of numbers, got {self.boundaries!r}")
        object.__setattr__(self, "boundaries", tuple(_finite(self, "boundaries", b) for b in self.boundaries))
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"{_of(self)}: boundaries must increase, got {list(self.boundaries)}; sort them")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.boundaries and self.transform != "bucketise":
            raise ValueError(f"{_of(self)}: boundaries need transform 'bucketise', got {self.transform!r}; drop one")
        if self.num_quantiles is not None and (self.transform not in ("quantile", "bucketise") or self.boundaries):
            raise ValueError(
                f"{_of(self)}: num_quantiles needs transform 'quantile', or 'bucketise' without boundaries, got "
                f"transform {self.transform!r}; drop num_quantiles"
            )
        if self.is_bucketised and (self.missing != "mean" or self.missing_indicator):
            raise ValueError(
                f"{_of(self)}: with transform 'bucketise' a missing value has id 0; drop missing and missing_indicator"
            )

    @property
    def is_bucketised(self) -> bool:
        """Whether it is an id rather than a value."""
        return self.transform == "bucketise"

    @property
    def quantiles(self) -> int:
        """n_q, or 0 where no quantiles are needed."""
        if self.boundaries or self.transform not in ("quantile", "bucketise"):
            return 0
        return self.num_quantiles or (100 if self.transform == "quantile" else 10)


@dataclass(frozen=True)
class Bag:
    """Any number of ids a row: a list column, or text with a separator.

    Attributes:
        name, column, min_count (rows or repeats within one both count), max_size, num_buckets: as of a `Categorical`.
        separator: between the values of a text cell; lists do not need it.
        weight_separator: between a value and its weight, as in "news:0.7|sport:0.3"; None: no weights. Later ones are
            held to the range of those in the train rows.
        pooling: "sum" or "mean" of the embeddings; an empty bag is zeros.
        max_length: keep the first so many values of a row, >= 1; None: all.
    """

    kind: ClassVar[str] = "bag"

    name: str
    separator: str = "|"
    weight_separator: str | None = None
    pooling: str = "mean"
    min_count: int = 1
    max_size: int | None = None
    num_buckets: int | None = None
    max_length: int | None = None
    column: str = ""

    def __post_init__(self) -> None:
        _check_named(self)
        _check_vocabulary(self)
        _check_choice(self, "pooling", POOLINGS)
        _check_integer(self, "max_length", 1)
        for option in ("separator", "weight_separator"):
            value = getattr(self, option)
            if not (isinstance(value, str) and value) and (value is not None or option == "separator"):
                raise ValueError(f"{_of(self)}: {option} must be text such as '|' or ':', got {value!r}")
        if self.separator == self.weight_separator:
            raise ValueError(f"{_of(self)}: separator and weight_separator must differ, got {self.separator!r} twice")

    @property
    def is_weighted(self) -> bool:
        """Whether each value has a weight."""
        return self.weight_separator is not None


@dataclass(frozen=True)
class Cross:
    """The cross product of features, hashed: 1 where all of them have the given values; for the wide part.

    Attributes:
        columns: two or more names of categorical or bucketised features, at most one of them a bag (which makes the
            cross a bag).
        num_buckets: id = hash of the features' ids modulo this, in [1, 2^31).
        name: default "a_x_b".

    Reference: Cheng et al. 2016 (arXiv 1606.07792), eq. 1.
    """

    kind: ClassVar[str] = "cross"

    columns: tuple[str, ...]
    num_buckets: int
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.columns, str) or not all(isinstance(column, str) for column in self.columns):
            raise TypeError(f"Cross: columns must be a list of names, got {self.columns!r}")
        object.__setattr__(self, "columns", tuple(self.columns))
        if len(set(self.columns)) != len(self.columns) or len(self.columns) < 2:
            raise ValueError(f"Cross: columns must be two or more different features, got {list(self.columns)}")
        object.__setattr__(self, "name", self.name or "_x_".join(self.columns))
        _check_integer(self, "num_buckets", 1)


Feature: TypeAlias = Categorical | Numeric | Bag | Cross
_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Categorical, Numeric, Bag, Cross)}


@dataclass(frozen=True)
class FeatureSchema:
    """The features and the label of a log.

    Attributes:
        features: in the order of the model's inputs; names are unique.
        label: column of 0 and 1, of -1 and 1, or of booleans.
        positive_from: the label is 1 where the column is at least this (ratings, dwell times).
        positive_values: the label is 1 where the column's text is one of these.
        group: column whose values are the groups of grouped AUC, such as the user.
        notes: a remark for each of some columns, printed as comments; no part of equality.
    """

    features: tuple[Feature, ...]
    label: str = "label"
    positive_from: float | None = None
    positive_values: tuple[str, ...] = ()
    group: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        for feature in self.features:
            if not isinstance(feature, tuple(_KINDS.values())):
                raise TypeError(f"FeatureSchema: features must be Categorical, Numeric, Bag or Cross, got {feature!r}")
        self._check_label()
        names = [feature.name for feature in self.features]
        names += [f"{n.name}_missing" for n in self.features if isinstance(n, Numeric) and n.missing_indicator]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(
                f"FeatureSchema: each feature must have a name of its own, got {', '.join(twice)} again; to use "
                "a column twice, give one of them another name and set its column"
            )
        if not names:
            raise ValueError("FeatureSchema: at least one feature is required, got none")
        for feature in self.features:
            if isinstance(feature, Cross):
                self._check_cross(feature)
            elif feature.column == self.label:
                raise ValueError(f"FeatureSchema: {_of(feature)} reads the label {self.label!r}; leave it out")
        separators: dict[str, tuple[str, str | None]] = {}
        for bag in self.bags:
            own = bag.separator, bag.weight_separator
            if separators.setdefault(bag.column, own) != own:
                raise ValueError(
                    f"FeatureSchema: bags of one column must have the same separators, got {own} for {bag.name!r} and "
                    f"{separators[bag.column]} for another; make them one"
                )

    def _check_label(self) -> None:
        for option in ("label", "group"):
            value = getattr(self, option)
            if not (isinstance(value, str) and value) and (value is not None or option == "label"):
                raise TypeError(f"FeatureSchema: {option} must be the name of a column, got {value!r}{_quote(value)}")
        if isinstance(self.positive_values, str):
            object.__setattr__(self, "positive_values", (self.positive_values,))
        object.__setattr__(self, "positive_values", tuple(self.positive_values))
        if not all(isinstance(value, str) for value in self.positive_values):
            raise TypeError(
                f"FeatureSchema: positive_values must be texts, got {list(self.positive_values)}; quote them, or use "
                "positive_from for numbers"
            )
        if self.positive_from is not None:
            object.__setattr__(self, "positive_from", _finite(self, "positive_from", self.positive_from))
            if self.positive_values:
                raise ValueError("FeatureSchema: positive_from and positive_values exclude each other; drop one")

    def _check_cross(self, cross: Cross) -> None:
        crossable = {f.name: f for f in self.features if not isinstance(f, Cross)}
        bags = 0
        for name in cross.columns:
            if name not in crossable:
                raise ValueError(f"{_of(cross)}: no feature {name!r} to cross; {did_you_mean(name, crossable)}")
            feature = crossable[name]
            if isinstance(feature, Numeric) and not feature.is_bucketised:
                raise ValueError(
                    f"{_of(cross)}: {name!r} must be categorical or bucketised, got transform {feature.transform!r}; "
                    f"add Numeric({name + '_bucket'!r}, transform='bucketise', column={feature.column!r}), cross that"
                )
            bags += isinstance(feature, Bag)
        if bags > 1:
            raise ValueError(
                f"{_of(cross)}: at most one of the columns may be a bag, got {bags}; cross them one by one"
            )

    def __str__(self) -> str:
        return self.to_yaml()

    def wanted(self, *, with_label: bool = True) -> Wanted:
        """The columns to read from a source; without label and group when serving."""
        categorical = [f.column for f in self.features if isinstance(f, Categorical)]
        numeric = [f.column for f in self.features if isinstance(f, Numeric)]
        bags = {f.column: BagColumn(f.column, f.separator, f.weight_separator) for f in self.bags}
        if with_label:
            (categorical if self.positive_values else numeric).append(self.label)
            categorical += [self.group] if self.group else []
        return Wanted(tuple(dict.fromkeys(categorical)), tuple(dict.fromkeys(numeric)), tuple(bags.values()))

    @property
    def bags(self) -> tuple[Bag, ...]:
        """The features that are bags (crosses aside)."""
        return tuple(f for f in self.features if isinstance(f, Bag))

    def as_dict(self) -> dict[str, Any]:
        """JSON- and YAML-ready, defaults left out; `from_dict` takes it back."""
        options = {
            option: list(value) if isinstance(value, tuple) else value
            for option in ("label", "positive_from", "positive_values", "group")
            if (value := getattr(self, option)) not in (None, ())
        }
        return {**options, "features": [_feature_as_dict(feature) for feature in self.features]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSchema:
        """The schema that `as_dict` or a YAML file describes.

        Raises:
            ValueError, TypeError: an unknown key (with the nearest), a wrong value; the message names the feature.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"schema: a mapping with the key features is required, got {type(values).__name__}")
        known = ["label", "positive_from", "positive_values", "group", "features"]
        for key in values:
            if key not in known:
                raise ValueError(f"schema: unknown key {key!r}; {did_you_mean(str(key), known)}")
        listed = values.get("features")
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise ValueError(f"schema: features must be a list, got {listed!r}; write '- categorical: NAME' for each")
        features = [feature for entry in listed for feature in _features_from_dict(entry)]
        return cls(tuple(features), **{key: value for key, value in values.items() if key != "features"})

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back, with the notes as comments."""
        from deeprec.data.columns.schema_yaml import dump

        return dump(self.as_dict(), self.notes)

    @classmethod
    def from_yaml(cls, source: str | Path) -> FeatureSchema:
        """A schema from a YAML file (a path, or text of one line that ends in .yaml or .yml) or from YAML text.

        Raises:
            FileNotFoundError. ValueError, TypeError: not YAML, a key twice, an unknown key or a wrong value.
        """
        from deeprec.data.columns.schema_yaml import file_of, load

        path = file_of(source)
        if path is None:
            return cls.from_dict(load(source))
        with naming(path):
            return cls.from_dict(load(path))


def _feature_as_dict(feature: Feature) -> dict[str, Any]:
    values: dict[str, Any] = {
        feature.kind: list(feature.columns) if isinstance(feature, Cross) else feature.name,
    }
    for option in dataclasses.fields(feature):
        value = getattr(feature, option.name)
        if isinstance(feature, Cross):
            is_implied = option.name == "columns" or value == "_x_".join(feature.columns)
        else:
            is_implied = option.name == "name" or value == option.default
            is_implied |= option.name == "column" and value == feature.name
        if not is_implied:
            values[option.name] = list(value) if isinstance(value, tuple) else value
    return values


def _features_from_dict(entry: Any) -> Iterable[Feature]:
    """One feature, or one for each name of a list."""
    if not isinstance(entry, Mapping):
        raise TypeError(f"schema: a feature must be a mapping such as 'categorical: NAME', got {entry!r}")
    kinds = [key for key in entry if key in _KINDS]
    if len(kinds) != 1:
        remedy = did_you_mean(str(next(iter(entry), "")), _KINDS)
        raise ValueError(
            f"schema: a feature must have one of the keys {', '.join(_KINDS)}, got {dict(entry)}; {remedy}"
        )
    kind = _KINDS[kinds[0]]
    names = entry[kinds[0]]
    options = {key: value for key, value in entry.items() if key != kinds[0]}
    known = [f.name for f in dataclasses.fields(kind) if kind is Cross or f.name != "name"]
    for key in options:
        if key not in known:
            raise ValueError(f"schema: {kinds[0]} {names!r}: unknown option {key!r}; {did_you_mean(str(key), known)}")
    if kind is Cross:
        if "num_buckets" not in options:
            raise ValueError(f"schema: cross {names!r}: num_buckets is required; 100000 is a good start")
        return [Cross(names, **options)]
    if isinstance(names, list) and "column" in options and len(names) > 1:
        raise ValueError(f"schema: {kinds[0]} {names!r}: column belongs to one feature; list them one by one")
    return [kind(name, **options) for name in (names if isinstance(names, list) else [names])]


def _of(item: Any) -> str:
    name = getattr(item, "name", "")
    return f"{type(item).__name__} {name!r}" if name else type(item).__name__


def _quote(value: Any) -> str:
    """YAML reads unquoted yes, no, on, off and digits as other things than text."""
    return f"; quote it as '{value}' in YAML" if value is not None and not isinstance(value, str) else ""


def _check_named(feature: Any) -> None:
    for option in ("name", "column"):
        value = getattr(feature, option)
        if not isinstance(value, str) or (option == "name" and not value):
            raise TypeError(f"{type(feature).__name__}: {option} must be text, got {value!r}{_quote(value)}")
    object.__setattr__(feature, "column", feature.column or feature.name)


def _check_vocabulary(feature: Any) -> None:
    _check_integer(feature, "min_count", 1, is_optional=False)
    _check_integer(feature, "max_size", 1)
    _check_integer(feature, "num_buckets", 1)
    if feature.num_buckets is not None and (feature.min_count != 1 or feature.max_size is not None):
        raise ValueError(
            f"{_of(feature)}: num_buckets hashes without a vocabulary; drop it, or drop min_count and max_size"
        )


def _check_integer(feature: Any, option: str, least: int, *, is_optional: bool = True) -> None:
    value = getattr(feature, option)
    if value is None and is_optional:
        if isinstance(feature, Cross):
            raise TypeError(f"{_of(feature)}: {option} must be an integer, got None; 100000 is a good start")
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{_of(feature)}: {option} must be an integer, got {value!r}")
    if not least <= value <= MAX_SIZE:
        raise ValueError(f"{_of(feature)}: {option} must lie in [{least}, 2^31), got {value}")


def _check_choice(feature: Any, option: str, options: tuple[str, ...]) -> None:
    value = getattr(feature, option)
    if value not in options:
        wanted = f"{option} must be one of {', '.join(options)}"
        wanted += " or a number" if option == "missing" else ""
        raise ValueError(f"{_of(feature)}: {wanted}; got {value!r}; {did_you_mean(str(value), options)}")


def _finite(item: Any, option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{_of(item)}: {option} must be a finite number, got {value!r}")
    return float(value)
