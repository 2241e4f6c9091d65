"""What the columns of a log mean: features declared in Python or YAML, checked before a row is read.

    label: clicked
    features:
      - categorical: [site, device]     # two features with the same options
        min_count: 10
      - numeric: price
        transform: log-standardise
      - bag: genres
        separator: "|"
      - sequence: viewed                # ids of the items before, the last 50
        vocabulary: item
        length: 50
      - sequence: viewed_sites          # where each of them was viewed
        vocabulary: site
        parallel_to: viewed
        length: 50
      - text: title
        tokens: trigrams
      - vector: visual
        width: 128
      - image: poster
        folder: posters
      - cross: [site, device]
        num_buckets: 100000

`deeprec.data.columns.schema_inference.infer` drafts one from data.
"""

from __future__ import annotations

import collections.abc
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeprec._suggest import did_you_mean
from deeprec.data.columns.kinds import (
    KINDS,
    MEDIA,
    TRANSFORMS,
    Audio,
    Bag,
    Categorical,
    Cross,
    Feature,
    Image,
    Numeric,
    Sequence,
    Text,
    Vector,
    Video,
    WithIds,
    finite,
    named,
    quoted,
)
from deeprec.data.reading.chunks import BagColumn, ColumnsToRead, VectorColumn
from deeprec.data.reading.errors import naming

__all__ = [
    "TRANSFORMS",
    "Audio",
    "Bag",
    "Categorical",
    "Cross",
    "Feature",
    "FeatureSchema",
    "Image",
    "Numeric",
    "Sequence",
    "Text",
    "Vector",
    "Video",
]

KEYS = ("label", "positive_from", "positive_values", "group", "features")


@dataclass(frozen=True)
class FeatureSchema:
    """The features and the label of a log.

    Attributes:
        features: in the order of the model's inputs; names are unique.
        label: column of 0 and 1, of -1 and 1, or of booleans; None: rows have none, as those of users and items.
        positive_from: the label is 1 where the column is at least this (ratings, dwell times).
        positive_values: the label is 1 where the column's text is one of these.
        group: column whose values are the groups of grouped AUC, such as the user.
        notes: a remark for each of some columns, printed as comments; no part of equality.
    """

    features: tuple[Feature, ...]
    label: str | None = "label"
    positive_from: float | None = None
    positive_values: tuple[str, ...] = ()
    group: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        for feature in self.features:
            if not isinstance(feature, tuple(KINDS.values())):
                raise TypeError(f"FeatureSchema: features must be of the kinds {', '.join(KINDS)}, got {feature!r}")
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
            elif self.label in columns_of(feature):
                raise ValueError(f"FeatureSchema: {named(feature)} reads the label {self.label!r}; leave it out")
            if isinstance(feature, Sequence):
                self._check_partners(feature)
        separators: dict[str, tuple[str, str | None]] = {}
        listed: tuple[Bag | Sequence, ...] = (*self.bags, *self.sequences)
        for bag in listed:
            own = bag.separator, bag.weight_separator if isinstance(bag, Bag) else None
            if separators.setdefault(bag.column, own) != own:
                raise ValueError(
                    f"FeatureSchema: bags of one column must have the same separators, got {own} for {bag.name!r} and "
                    f"{separators[bag.column]} for another; make them one"
                )

    def _check_label(self) -> None:
        for option in ("label", "group"):
            value = getattr(self, option)
            if not (isinstance(value, str) and value) and value is not None:
                raise TypeError(f"FeatureSchema: {option} must be the name of a column, got {value!r}{quoted(value)}")
        if isinstance(self.positive_values, str):
            object.__setattr__(self, "positive_values", (self.positive_values,))
        object.__setattr__(self, "positive_values", tuple(self.positive_values))
        if not all(isinstance(value, str) for value in self.positive_values):
            raise TypeError(
                f"FeatureSchema: positive_values must be texts, got {list(self.positive_values)}; quote them, or use "
                "positive_from for numbers"
            )
        if self.label is None and (self.positive_values or self.positive_from is not None):
            raise ValueError("FeatureSchema: positive_from and positive_values say what a label is; name its column")
        if self.positive_from is not None:
            object.__setattr__(self, "positive_from", finite(self, "positive_from", self.positive_from))
            if self.positive_values:
                raise ValueError("FeatureSchema: positive_from and positive_values exclude each other; drop one")

    def _check_cross(self, cross: Cross) -> None:
        crossable = {f.name: f for f in self.features if not isinstance(f, Cross)}
        bags = 0
        for name in cross.columns:
            if name not in crossable:
                raise ValueError(f"{named(cross)}: no feature {name!r} to cross; {did_you_mean(name, crossable)}")
            feature = crossable[name]
            if isinstance(feature, Numeric) and not feature.is_bucketised:
                raise ValueError(
                    f"{named(cross)}: {name!r} must be categorical or bucketised, got transform {feature.transform!r}; "
                    f"add Numeric({name + '_bucket'!r}, transform='bucketise', column={feature.column!r}), cross that"
                )
            if not isinstance(feature, (Categorical, Numeric, Bag)):
                raise ValueError(
                    f"{named(cross)}: {name!r} must be categorical, bucketised or a bag, got {feature.kind}; leave "
                    "it out of the cross"
                )
            bags += isinstance(feature, Bag)
        if bags > 1:
            raise ValueError(
                f"{named(cross)}: at most one of the columns may be a bag, got {bags}; cross them one by one"
            )

    def _check_partners(self, sequence: Sequence) -> None:
        others = {f.name: f for f in self.sequences}
        if sequence.parallel_to:
            other = others.get(sequence.parallel_to)
            if other is None:
                raise ValueError(
                    f"{named(sequence)}: parallel_to must be a sequence of the schema, got {sequence.parallel_to!r}; "
                    f"{did_you_mean(sequence.parallel_to, others)}"
                )
            if other.parallel_to:
                raise ValueError(
                    f"{named(sequence)}: parallel_to must be a sequence that is parallel to none, got {other.name!r}; "
                    f"take {other.parallel_to!r}"
                )
            if other.length != sequence.length:
                raise ValueError(
                    f"{named(sequence)}: length must be that of {other.name!r}, {other.length}, got {sequence.length}; "
                    "give both the same"
                )
        known = {f.name: f for f in self.features if isinstance(f, Categorical)}
        if sequence.vocabulary and sequence.vocabulary not in known:
            raise ValueError(
                f"{named(sequence)}: vocabulary must be a categorical feature of the schema, got "
                f"{sequence.vocabulary!r}; {did_you_mean(sequence.vocabulary, known)}"
            )

    def __str__(self) -> str:
        return self.to_yaml()

    def columns_to_read(self, *, with_label: bool = True) -> ColumnsToRead:
        """The columns to read from a source; without label and group when serving."""
        categorical = [f.column for f in self.features if isinstance(f, Categorical)]
        numeric = [f.column for f in self.features if isinstance(f, Numeric)]
        bags = {f.column: BagColumn(f.column, f.separator, f.weight_separator) for f in self.bags}
        for sequence in self.sequences:
            bags.setdefault(sequence.column, BagColumn(sequence.column, sequence.separator))
        texts = [f.column for f in self.features if isinstance(f, (Text, *MEDIA))]
        vectors: dict[str, VectorColumn] = {}
        for vector in self.vectors:
            numeric += vector.columns
            if not vector.columns:
                vectors[vector.column] = VectorColumn(vector.column, vector.num_values)
        if with_label and self.label is not None:
            (categorical if self.positive_values else numeric).append(self.label)
        if with_label and self.group is not None:
            categorical.append(self.group)
        categories, numbers, kept = (tuple(dict.fromkeys(names)) for names in (categorical, numeric, texts))
        return ColumnsToRead(categories, numbers, tuple(bags.values()), kept, tuple(vectors.values()))

    @property
    def bags(self) -> tuple[Bag, ...]:
        """The features that are bags (crosses aside)."""
        return tuple(f for f in self.features if isinstance(f, Bag))

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The features that are sequences of ids."""
        return tuple(f for f in self.features if isinstance(f, Sequence))

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """The features that are vectors."""
        return tuple(f for f in self.features if isinstance(f, Vector))

    def with_vocabulary(self) -> tuple[WithIds, ...]:
        """The features with a vocabulary of their own, which is fitted on the train rows."""
        return tuple(f for f in self.features if isinstance(f, (Categorical, Bag, Sequence, Text)) and f.has_vocabulary)

    def ids_from(self, feature: WithIds) -> WithIds:
        """The feature whose vocabulary or hash buckets the ids of `feature` are: itself, or the one it shares."""
        if isinstance(feature, Sequence) and feature.vocabulary:
            return next(f for f in self.features if isinstance(f, Categorical) and f.name == feature.vocabulary)
        return feature

    def as_dict(self) -> dict[str, Any]:
        """JSON- and YAML-ready, defaults left out; `from_dict` takes it back."""
        options: dict[str, Any] = {"label": None} if self.label is None else {}
        options |= {
            option: list(value) if isinstance(value, tuple) else value
            for option in ("label", "positive_from", "positive_values", "group")
            if (value := getattr(self, option)) not in (None, ())
        }
        return options | {"features": [_feature_as_dict(feature) for feature in self.features]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSchema:
        """The schema that `as_dict` or a YAML file describes.

        Raises:
            ValueError, TypeError: an unknown key (with the nearest), a wrong value; the message names the feature.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"schema: a mapping with the key features is required, got {type(values).__name__}")
        known = list(KEYS)
        for key in values:
            if key not in known:
                raise ValueError(f"schema: unknown key {key!r}; {did_you_mean(str(key), known)}")
        listed = values.get("features")
        if not isinstance(listed, collections.abc.Sequence) or isinstance(listed, str):
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


def columns_of(feature: Feature) -> tuple[str, ...]:
    """The columns of a source that a feature reads; none for a cross."""
    if isinstance(feature, Cross):
        return ()
    return feature.columns if isinstance(feature, Vector) and feature.columns else (feature.column,)


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
    kinds = [key for key in entry if key in KINDS]
    if len(kinds) != 1:
        remedy = did_you_mean(str(next(iter(entry), "")), KINDS)
        raise ValueError(f"schema: a feature must have one of the keys {', '.join(KINDS)}, got {dict(entry)}; {remedy}")
    kind = KINDS[kinds[0]]
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
