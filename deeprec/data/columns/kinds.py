"""The kinds of columns: what each is declared as, checked before a row is read."""

from __future__ import annotations

import collections.abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from deeprec._suggest import did_you_mean
from deeprec.data.columns.inputs import POOLINGS

TRANSFORMS = ("standardise", "log", "log-standardise", "quantile", "min-max", "none", "bucketise")
MISSING = ("mean", "raise")
MAX_SIZE = 2**31 - 1  # ids are int32
TOKENS = ("words", "trigrams", "characters", "raw")
_LONGEST_SIDE, _MOST_FRAMES = 4096, 256  # of media, as `deeprec.data.media` decodes them


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
        check_named(self)
        _check_vocabulary(self)

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has a vocabulary, fitted on the train rows."""
        return self.num_buckets is None


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
        check_named(self)
        check_choice(self, "transform", TRANSFORMS)
        check_integer(self, "num_quantiles", 2)
        if isinstance(self.missing, str):
            check_choice(self, "missing", MISSING)
        else:
            object.__setattr__(self, "missing", finite(self, "missing", self.missing))
        if not isinstance(self.missing_indicator, bool):
            raise TypeError(f"{named(self)}: missing_indicator must be true or false, got {self.missing_indicator!r}")
        if isinstance(self.boundaries, str) or not isinstance(self.boundaries, collections.abc.Sequence):
            raise TypeError(f"{named(self)}: boundaries must be a list of numbers, got {self.boundaries!r}")
        object.__setattr__(self, "boundaries", tuple(finite(self, "boundaries", b) for b in self.boundaries))
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"{named(self)}: boundaries must increase, got {list(self.boundaries)}; sort them")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.boundaries and self.transform != "bucketise":
            raise ValueError(f"{named(self)}: boundaries need transform 'bucketise', got {self.transform!r}; drop one")
        if self.num_quantiles is not None and (self.transform not in ("quantile", "bucketise") or self.boundaries):
            raise ValueError(
                f"{named(self)}: num_quantiles needs transform 'quantile', or 'bucketise' without boundaries, got "
                f"transform {self.transform!r}; drop num_quantiles"
            )
        if self.is_bucketised and (self.missing != "mean" or self.missing_indicator):
            raise ValueError(
                f"{named(self)}: with transform 'bucketise' a missing value has id 0; drop missing and "
                "missing_indicator"
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
        check_named(self)
        _check_vocabulary(self)
        check_choice(self, "pooling", POOLINGS)
        check_integer(self, "max_length", 1)
        for option in ("separator", "weight_separator"):
            value = getattr(self, option)
            if not (isinstance(value, str) and value) and (value is not None or option == "separator"):
                raise ValueError(f"{named(self)}: {option} must be text such as '|' or ':', got {value!r}")
        if self.separator == self.weight_separator:
            raise ValueError(f"{named(self)}: separator and weight_separator must differ, got {self.separator!r} twice")

    @property
    def is_weighted(self) -> bool:
        """Whether each value has a weight."""
        return self.weight_separator is not None

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has a vocabulary, fitted on the train rows."""
        return self.num_buckets is None


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
        check_integer(self, "num_buckets", 1)


@dataclass(frozen=True)
class Sequence:
    """Ids of a row in the order they stand: a list column, or text with a separator; such as the items a user met.

    Attributes:
        name, column, separator, min_count, max_size, num_buckets: as of a `Bag`.
        length: the last so many entries of a row are kept, >= 1; None: all.
        vocabulary: a categorical feature whose ids these are too, such as the item of the row; values that are not in
            its vocabulary are unknown, and min_count, max_size and num_buckets are those of that feature. Click models
            have one table for both, and can weigh the entries by the feature (target attention).
        parallel_to: another sequence, entry by entry of which this one says something else, such as the category of
            each item; a row whose two lists differ in length is refused.
        pooling: "mean" or "sum" of the embeddings where a model pools the entries; an empty sequence is zeros.
    """

    kind: ClassVar[str] = "sequence"

    name: str
    separator: str = "|"
    length: int | None = None
    vocabulary: str = ""
    parallel_to: str = ""
    pooling: str = "mean"
    min_count: int = 1
    max_size: int | None = None
    num_buckets: int | None = None
    column: str = ""

    def __post_init__(self) -> None:
        check_named(self)
        _check_vocabulary(self)
        check_integer(self, "length", 1)
        if not (isinstance(self.separator, str) and self.separator):
            raise ValueError(f"{named(self)}: separator must be text such as '|', got {self.separator!r}")
        for option, kind in (("vocabulary", "categorical feature"), ("parallel_to", "sequence")):
            if not isinstance(value := getattr(self, option), str):
                raise TypeError(f"{named(self)}: {option} must be the name of a {kind}, got {value!r}")
        if self.parallel_to == self.name:
            raise ValueError(f"{named(self)}: parallel_to must be another sequence, got its own name; leave it out")
        check_choice(self, "pooling", POOLINGS)
        if self.vocabulary and (self.min_count, self.max_size, self.num_buckets) != (1, None, None):
            raise ValueError(
                f"{named(self)}: the ids are those of {self.vocabulary!r}; set min_count, max_size and num_buckets "
                "there"
            )

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has a vocabulary of its own, fitted on the train rows."""
        return self.num_buckets is None and not self.vocabulary


@dataclass(frozen=True)
class Text:
    """A text a row: ids of its tokens in their order, or the text itself for an encoder module.

    Attributes:
        name, column, min_count (repeats within a row count), max_size, num_buckets: as of a `Categorical`, of tokens.
        tokens: "words" are runs of letters and digits, in small letters; "trigrams" three neighbouring characters of
            "#word#" for each word (a word of one letter gives one), "characters" all of them, spaces too, in small
            letters; "raw" keeps the text as it is, without ids.
        length: the first so many tokens are kept, >= 1; None: all.

    A missing text is an empty one.
    Reference for "trigrams": Huang et al. 2013 (DSSM, doi 10.1145/2505515.2505665), section 3.2.
    """

    kind: ClassVar[str] = "text"

    name: str
    tokens: str = "words"
    length: int | None = None
    min_count: int = 1
    max_size: int | None = None
    num_buckets: int | None = None
    column: str = ""

    def __post_init__(self) -> None:
        check_named(self)
        check_choice(self, "tokens", TOKENS)
        _check_vocabulary(self)
        check_integer(self, "length", 1)
        options = (self.length, self.min_count, self.max_size, self.num_buckets)
        if self.is_raw and options != (None, 1, None, None):
            raise ValueError(
                f"{named(self)}: tokens 'raw' has no ids; drop length, min_count, max_size and num_buckets"
            )

    @property
    def is_raw(self) -> bool:
        """Whether it is kept as text."""
        return self.tokens == "raw"

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has a vocabulary of its own, fitted on the train rows."""
        return self.num_buckets is None and not self.is_raw


@dataclass(frozen=True)
class Vector:
    """As many numbers for every row, taken as they are: a column of lists, or several columns of numbers.

    A NumPy array, or a memory map of a .npy file, whose row i belongs to row i of a polars frame becomes a column of
    lists by `frame.with_columns(pl.Series("visual", array))`.

    Attributes:
        name: of the feature, unique.
        width: numbers in each list, >= 1.
        columns: of one number each, instead of column and width.
        missing: "zeros" stand for a vector that is missing as a whole; "raise" refuses it. A number that is missing
            or infinite within a vector is refused.
        column: of lists; "": the name.
    """

    kind: ClassVar[str] = "vector"

    name: str
    width: int | None = None
    columns: tuple[str, ...] = ()
    missing: str = "zeros"
    column: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.columns, str) or not all(isinstance(column, str) for column in self.columns):
            raise TypeError(f"Vector {self.name!r}: columns must be a list of names, got {self.columns!r}")
        object.__setattr__(self, "columns", tuple(self.columns))
        check_choice(self, "missing", ("zeros", "raise"))
        if self.columns and (self.width is not None or self.column not in ("", self.name)):
            raise ValueError(f"{named(self)}: columns are one number each; drop width and column")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{named(self)}: columns must be different ones, got {list(self.columns)}")
        check_named(self)
        if self.width is None and not self.columns:
            raise ValueError(f"{named(self)}: width is required, the numbers in each list of {self.column!r}")
        check_integer(self, "width", 1)

    @property
    def num_values(self) -> int:
        """How many numbers a row has."""
        return self.width or len(self.columns)


@dataclass(frozen=True)
class _Media:
    """A file a row, by its path or key; it is kept as text and decoded by the encoder module that takes it.

    Attributes:
        name, column: as of a `Categorical`; an empty or missing key is no file.
        folder: that the paths are relative to, or a .tar that they are names in; they do not lead out of it.
    """

    kind: ClassVar[str]

    name: str
    folder: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        check_named(self)
        if not isinstance(self.folder, str):
            raise TypeError(f"{named(self)}: folder must be text, got {self.folder!r}; pass str(folder)")


@dataclass(frozen=True)
class Image(_Media):
    """An image of each row.

    Attributes:
        size: height and width that it is brought to where a model reads it, in [1, 4096].
    """

    kind: ClassVar[str] = "image"

    size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self)


@dataclass(frozen=True)
class Audio(_Media):
    """A sound of each row.

    Attributes:
        rate: samples a second that a model reads, >= 1.
        seconds: of each sound, from its beginning, > 0.
    """

    kind: ClassVar[str] = "audio"

    rate: int = 16_000
    seconds: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "rate", 1, is_optional=False)
        object.__setattr__(self, "seconds", finite(self, "seconds", self.seconds))
        if not self.seconds > 0:
            raise ValueError(f"{named(self)}: seconds must be > 0, got {self.seconds}")


@dataclass(frozen=True)
class Video(_Media):
    """A video of each row.

    Attributes:
        frames: of each video, at equal distances, in [1, 256].
        size: height and width of a frame where a model reads it, in [1, 4096].
    """

    kind: ClassVar[str] = "video"

    frames: int = 8
    size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self)
        check_integer(self, "frames", 1, is_optional=False)
        if self.frames > _MOST_FRAMES:
            raise ValueError(f"{named(self)}: frames must be <= {_MOST_FRAMES}, got {self.frames}")


Media: TypeAlias = Image | Audio | Video
Feature: TypeAlias = Categorical | Numeric | Bag | Cross | Sequence | Text | Vector | Image | Audio | Video
WithIds: TypeAlias = Categorical | Bag | Sequence | Text
MEDIA = (Image, Audio, Video)
KINDS: dict[str, type[Any]] = {
    kind.kind: kind for kind in (Categorical, Numeric, Bag, Cross, Sequence, Text, Vector, *MEDIA)
}


def named(item: Any) -> str:
    """A feature by its kind and name, for messages."""
    name = getattr(item, "name", "")
    return f"{type(item).__name__} {name!r}" if name else type(item).__name__


def quoted(value: Any) -> str:
    """YAML reads unquoted yes, no, on, off and digits as other things than text."""
    return f"; quote it as '{value}' in YAML" if value is not None and not isinstance(value, str) else ""


def check_named(feature: Any) -> None:
    """Raise TypeError unless name and column are text; the column is the name where there is none."""
    for option in ("name", "column"):
        value = getattr(feature, option)
        if not isinstance(value, str) or (option == "name" and not value):
            raise TypeError(f"{type(feature).__name__}: {option} must be text, got {value!r}{quoted(value)}")
    object.__setattr__(feature, "column", feature.column or feature.name)


def _check_side(feature: Any) -> None:
    check_integer(feature, "size", 1, is_optional=False)
    if feature.size > _LONGEST_SIDE:
        raise ValueError(f"{named(feature)}: size must be <= {_LONGEST_SIDE}, got {feature.size}")


def _check_vocabulary(feature: Any) -> None:
    check_integer(feature, "min_count", 1, is_optional=False)
    check_integer(feature, "max_size", 1)
    check_integer(feature, "num_buckets", 1)
    if feature.num_buckets is not None and (feature.min_count != 1 or feature.max_size is not None):
        raise ValueError(
            f"{named(feature)}: num_buckets hashes without a vocabulary; drop it, or drop min_count and max_size"
        )


def check_integer(feature: Any, option: str, least: int, *, is_optional: bool = True) -> None:
    """Raise TypeError or ValueError unless an option is an integer from `least`."""
    value = getattr(feature, option)
    if value is None and is_optional:
        if isinstance(feature, Cross):
            raise TypeError(f"{named(feature)}: {option} must be an integer, got None; 100000 is a good start")
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{named(feature)}: {option} must be an integer, got {value!r}")
    if not least <= value <= MAX_SIZE:
        raise ValueError(f"{named(feature)}: {option} must lie in [{least}, 2^31), got {value}")


def check_choice(feature: Any, option: str, options: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest, unless an option is one of these texts."""
    value = getattr(feature, option)
    if value not in options:
        requirement = f"{option} must be one of {', '.join(options)}"
        requirement += " or a number" if option == "missing" and isinstance(feature, Numeric) else ""
        raise ValueError(f"{named(feature)}: {requirement}; got {value!r}; {did_you_mean(str(value), options)}")


def finite(item: Any, option: str, value: Any) -> float:
    """The number of an option; TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{named(item)}: {option} must be a finite number, got {value!r}")
    return float(value)
