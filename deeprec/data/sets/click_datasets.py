"""Click logs by name or path: where the rows are, what their columns mean, and the parts that came with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.clicks.log import ClickLog, Progress, Split, convert, in_memory, is_log_of
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.schema import Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.interactions.features import movies_1m, users_1m
from deeprec.data.interactions.readers import read_movielens
from deeprec.data.reading.errors import did_you_mean, reading
from deeprec.data.reading.files import is_there
from deeprec.data.reading.sources import open_source
from deeprec.data.reading.tables import read_separated
from deeprec.data.reading.text import OnBad, read_bytes, with_gz
from deeprec.data.sets.click_files import Clicks, clicks_of
from deeprec.data.sets.click_histories import read_grocery, read_mind
from deeprec.data.sets.datasets import search_dirs

IN_MEMORY_BYTES = 256 << 20  # larger files are converted to memory-mapped ones


@dataclass(frozen=True)
class ClickDataset:
    """What is known about a click log before it is read.

    Attributes:
        name, title: for lists.
        folder, files: below a data directory; all files must be there, gzipped or not.
        rows: of all parts.
        terms, homepage: of the publisher.
        read: from the files' paths, in their order.
    """

    name: str
    title: str
    folder: str
    files: tuple[str, ...]
    rows: int
    terms: str
    homepage: str
    read: Callable[..., Clicks]


def list_click_datasets() -> list[ClickDataset]:
    """Every click log known by name, except `synthetic`, which needs no files."""
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def find_clicks(name: str, data_dir: str | Path | None = None) -> list[Path] | None:
    """The files of a named click log, or None where one is missing."""
    entry = _REGISTRY[name]
    for place in search_dirs(data_dir):
        paths = [with_gz(place / entry.folder / file) for file in entry.files]
        if all(paths):
            return [path for path in paths if path]
    return None


def click_source(
    source: Any, schema: FeatureSchema | None = None, *, data_dir: str | Path | None = None, **options: Any
) -> Clicks:
    """A log by name, or any source with its schema.

    Args:
        source: a name of `list_click_datasets`, "synthetic", `Clicks` such as those of `clicks_with_histories`, or what
            `open_source` takes.
        schema: wins over that of a log known by name; None: of another one it is drafted (`infer_schema`).
        data_dir: looked in first for a name.
        **options: of `open_source`, or of `synthetic_clicks`. Of files also validation and test, which become official
            parts, and without a schema what one is drafted by (`infer_schema`): label, a column or its place from 0;
            positive, the texts with commas between that mean 1, or the smallest number that does; group, a column.
    Raises:
        ValueError: no schema and no column of labels. FileNotFoundError: no such file or name, or the files of a name
            are nowhere. TypeError: options for a log that takes none.
    """
    if isinstance(source, Clicks):
        if options:
            raise TypeError(f"load: Clicks are read without options, got {sorted(options)}; leave them out")
        return source if schema is None else replace(source, schema=schema)
    if isinstance(source, str) and source == "synthetic":
        frame, own = synthetic_clicks(**options)
        return Clicks(frame, schema or own)
    if isinstance(source, str) and source in _REGISTRY:
        entry, paths = _REGISTRY[source], find_clicks(source, data_dir)
        if paths is None:
            places = ", ".join(str(place / entry.folder) for place in search_dirs(data_dir))
            raise FileNotFoundError(
                f"load: {source} is {' and '.join(entry.files)} (or .gz), not found in: {places}; get it from "
                f"{entry.homepage} and pass data_dir or set DEEPREC_DATA"
            )
        if options:
            raise TypeError(f"load: {source} is read without options, got {sorted(options)}; leave them out")
        clicks = entry.read(*paths)
        return clicks if schema is None else replace(clicks, schema=schema)
    if isinstance(source, str | Path) and not is_there(source):
        known = [*_REGISTRY, "synthetic"]
        raise FileNotFoundError(
            f"load: no file {source}, and no click log of that name{did_you_mean(str(source), known)}; known names "
            f"are {sorted(known)}"
        )
    return clicks_of(source, schema, options)


def load_clicks(
    source: Any,
    schema: FeatureSchema | None = None,
    *,
    holdout: str = "auto",
    shares: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
    data_dir: str | Path | None = None,
    directory: str | Path | None = None,
    encoder: Encoder | None = None,
    on_bad: OnBad = "raise",
    progress: Progress | None = None,
    **options: Any,
) -> ClickLog:
    """A click log encoded in parts, in memory or in memory-mapped files.

    Args:
        source: as in `click_source`; or the directory of a converted log, which is opened as it is, with its parts.
        schema: as in `click_source`.
        holdout: "random" or "tail" shares; "official" parts; "auto": official where there are any, random otherwise.
        shares: of validation and test rows; of a log with official parts but no validation part, the first is that of
            the train rows which become one.
        seed: of random parts.
        directory: converted into it (see `convert`), and opened where the same log is there already; None: in memory.
        encoder: as in `convert`; its schema is that of the rows. A log that is converted already keeps its own.
        on_bad, progress, **options: as in `convert`.
    Raises:
        ValueError: official parts are asked for and there are none; or as `click_source` and `convert`.
    """
    if isinstance(source, str | Path) and (Path(source) / "meta.json").is_file():
        opened = ClickLog.open(source)
        given = {"directory": directory is not None, "on_bad": on_bad != "raise", **dict.fromkeys(options, True)}
        unused = [name for name, is_given in given.items() if is_given]
        if unused:
            raise ValueError(
                f"load: {source} is converted already, so {', '.join(unused)} would change nothing; leave it out, or "
                "convert the rows anew"
            )
        if schema is not None and schema != opened.schema:
            raise ValueError(
                f"load: {source} was converted with another schema; leave it out, or convert the rows anew"
            )
        return opened
    schema = encoder.schema if schema is None and encoder is not None else schema
    clicks = click_source(source, schema, data_dir=data_dir, **options)
    has_parts = clicks.test is not None
    if holdout == "official" and not has_parts:
        raise ValueError(f"load: {_label(source)} carries no official parts; take holdout='random'")
    validation, test = shares
    if has_parts and holdout in ("auto", "official"):
        share = 0.0 if clicks.validation is not None else validation
        split = Split("files", (1.0 - share, share, 0.0), seed, validation=clicks.validation, test=clicks.test)
    else:
        kind = "random" if holdout == "auto" else holdout
        split = Split(kind, (1.0 - validation - test, validation, test), seed)
    how: dict[str, Any] = {"split": split, "encoder": encoder, "on_bad": on_bad, "progress": progress}
    if directory is None:
        log = in_memory(clicks.source, clicks.schema, **how, **clicks.options)
    elif (Path(directory) / "meta.json").is_file():
        log = ClickLog.open(directory)
        given = {"train": clicks.source, "validation": split.validation, "test": split.test}
        sources = [(part, open_source(rows, **clicks.options)) for part, rows in given.items() if rows is not None]
        checksums = [(part, opened.sha256) for part, opened in sources]
        if not is_log_of(log, checksums, clicks.schema, split, encoder, on_bad):
            raise ValueError(
                f"load: {directory} holds the log of other rows, another schema or another split; take another folder "
                "or remove it"
            )
    else:
        log = convert(clicks.source, clicks.schema, directory, **how, **clicks.options)
    is_named = isinstance(source, str) and source in ("synthetic", *_REGISTRY)
    return replace(log, name=source) if is_named else replace(log, name=clicks.name or log.name)


def _label(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def synthetic_clicks(
    rows: int = 50_000, *, fields: int = 8, values: int = 200, numerics: int = 3, factors: int = 4, seed: int = 0
) -> tuple[pl.DataFrame, FeatureSchema]:
    """A frame of clicks with a known truth: a factorisation machine over long-tailed fields, tags and numbers.

    Args:
        rows, fields, values, numerics, factors: sizes, each >= 1; values of a field.
        seed: of everything.
    Returns:
        the frame (columns "click", "c1".., "n1".., "tags") and its schema. About a quarter of the rows are clicks.
    """
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, values + 1) ** 0.8
    ids = rng.choice(values, size=(rows, fields), p=popularity / popularity.sum())
    numbers = rng.normal(size=(rows, numerics))
    tag_names = np.array([f"tag{n}" for n in range(20)])
    tags = rng.random((rows, len(tag_names))) < 0.1
    first = rng.normal(0, 0.4, (fields, values))
    vectors = rng.normal(0, 0.45, (fields, values, factors))
    chosen = vectors[np.arange(fields), ids]
    pairs = 0.5 * ((chosen.sum(1) ** 2).sum(1) - (chosen**2).sum((1, 2)))
    logit = -1.5 + first[np.arange(fields), ids].sum(1) * 0.5 + pairs + numbers @ rng.normal(0, 0.3, numerics)
    logit += tags @ rng.normal(0, 0.5, len(tag_names))
    clicks = rng.random(rows) < 1 / (1 + np.exp(-logit))
    columns: dict[str, Any] = {"click": clicks.astype(np.int8)}
    columns |= {f"c{f + 1}": [f"v{value}" for value in ids[:, f]] for f in range(fields)}
    columns |= {f"n{n + 1}": np.exp(numbers[:, n]) for n in range(numerics)}
    columns["tags"] = ["|".join(tag_names[row]) for row in tags]
    schema = FeatureSchema(
        (
            *(Categorical(f"c{f + 1}", min_count=2) for f in range(fields)),
            *(Numeric(f"n{n + 1}", transform="log-standardise") for n in range(numerics)),
            Bag("tags"),
        ),
        label="click",
    )
    return pl.DataFrame(columns), schema


def criteo_schema(min_count: int = 10) -> FeatureSchema:
    """Criteo's display advertising log: C1 to C26 as categories, log of I1 to I13."""
    return FeatureSchema(
        (
            *(Categorical(f"C{n}", min_count=min_count) for n in range(1, 27)),
            *(Numeric(f"I{n}", transform="log-standardise", missing_indicator=False) for n in range(1, 14)),
        )
    )


def _read_criteo(path: Path) -> Clicks:
    return Clicks(path, criteo_schema(min_count=2), options={"format": "criteo"})


def _read_criteo_mini(train: Path, test: Path) -> Clicks:
    schema = FeatureSchema(
        (
            *(Categorical(f"C{n}") for n in range(1, 27)),
            *(Numeric(f"I{n}", transform="none") for n in range(1, 14)),
        )
    )
    return Clicks(_mini_frame(train), schema, test=_mini_frame(test))


def _mini_frame(path: Path) -> pl.DataFrame:
    """13 scaled integers (those of value 0 stand there too) and 26 one-hot numbers in the order of their columns."""
    lines = _ascii_lines(path)
    tokens = lines.str.split(" ").list
    widths = sorted(tokens.len().unique().to_list())
    if widths != [40]:
        raise ValueError(f"read: {path} must hold a label and 39 features a line, got {widths} words; get it again")
    with reading(path, "rows 'label index:value ...'"):
        columns = [tokens.get(0).cast(pl.Int8).alias("label")]
        columns += [tokens.get(n).str.split(":").list.get(1).cast(pl.Float64).alias(f"I{n}") for n in range(1, 14)]
        columns += [tokens.get(13 + n).str.split(":").list.get(0).alias(f"C{n}") for n in range(1, 27)]
    return pl.DataFrame(columns)


def _ascii_lines(path: Path) -> pl.Series:
    data = read_bytes(path)
    with reading(path, "ASCII text"):
        return pl.Series("line", data.decode("ascii").splitlines())


_ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race",
    "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
]  # fmt: skip


def adult_schema() -> FeatureSchema:
    """The columns of TensorFlow's Wide & Deep tutorial on the census."""
    ages = (18.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0, 65.0)
    words = ("workclass", "education", "marital_status", "occupation", "relationship", "sex", "native_country")
    numbers = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
    logs = ("capital_gain", "capital_loss")
    return FeatureSchema(
        (
            *(Categorical(word) for word in words),
            Numeric("age_bucket", column="age", transform="bucketise", boundaries=ages),
            *(Numeric(name, transform="log-standardise" if name in logs else "standardise") for name in numbers),
            Cross(("education", "occupation"), num_buckets=1000),
            Cross(("age_bucket", "education", "occupation"), num_buckets=1000),
            Cross(("native_country", "occupation"), num_buckets=1000),
        ),
        label="income",
    )


def _read_adult(train: Path, test: Path) -> Clicks:
    return Clicks(_adult_frame(train), adult_schema(), test=_adult_frame(test))


def _adult_frame(path: Path) -> pl.DataFrame:
    lines = _ascii_lines(path)
    lines = lines.filter(lines.str.count_matches(",", literal=True) == len(_ADULT) - 1)
    if not len(lines):
        raise ValueError(f"read: {path} must hold {len(_ADULT)} fields a line, got none; get it again")
    fields = lines.str.split(",").list
    frame = pl.DataFrame([fields.get(n).str.strip_chars().alias(name) for n, name in enumerate(_ADULT)])
    numbers = ["age", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
    return frame.with_columns(
        pl.col(numbers).cast(pl.Float64), pl.col("income").str.starts_with(">50K").cast(pl.Int8)
    ).drop("fnlwgt", "race")


def _read_ml_1m_clicks(ratings: Path, users: Path, movies: Path) -> Clicks:
    data = read_movielens(ratings, name="ml-1m")
    frame = pl.DataFrame(
        {
            "user_id": data.user_ids.values.gather(data.users),
            "item_id": data.item_ids.values.gather(data.items),
            "rating": data.ratings,
        }
    )
    frame = frame.join(users_1m(users), on="user_id", how="left", maintain_order="left")
    frame = frame.join(movies_1m(movies), on="item_id", how="left", maintain_order="left")
    columns = ("user_id", "item_id", "gender", "age", "occupation", "zip", "year")
    schema = FeatureSchema(
        (*(Categorical(column) for column in columns), Bag("genres", pooling="mean")),
        label="rating",
        positive_from=4.0,
        group="user_id",
    )
    return Clicks(frame.select(*columns, "genres", "rating"), schema)


_INTEGER = re.compile("-?[0-9]{1,18}")
_FRAPPE = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")


def _read_frappe(raw: Path, validation: Path, test: Path) -> Clicks:
    """He and Chua's split: their validation and test rows, and a train part made as theirs was.

    Their numbers count the values of one column after the other, each in the order of its first appearance in the raw
    log: all 28,599 positives of the two published parts are found in it that way. The other 67,604 raw rows are the
    train positives. Each gets two negatives: the row with another item, drawn uniformly from those that the user never
    used; so are the published negatives (the same context, no pair of user and item in the log, all items alike).
    """
    with reading(raw, f"a table with the columns {', '.join(_FRAPPE)}"):
        log = read_separated(raw).frame.select(_FRAPPE)
    values = [log.get_column(name).unique(maintain_order=True) for name in _FRAPPE]
    starts = np.cumsum([0, *(len(kinds) for kinds in values)])[:-1]
    numbers = log.select(
        pl.col(name).replace_strict(kinds, np.arange(len(kinds)), return_dtype=pl.Int64)
        for name, kinds in zip(_FRAPPE, values, strict=True)
    ).to_numpy()
    parts = [_libfm(path, starts) for path in (validation, test)]
    held_out = np.concatenate([rows[labels == 1] for labels, rows in parts])
    positives = _without(numbers, held_out)
    taken = np.zeros((len(values[0]), len(values[1])), dtype=bool)
    taken[numbers[:, 0], numbers[:, 1]] = True
    rng = np.random.default_rng(2017)
    negatives = np.repeat(positives, 2, axis=0)
    again = np.ones(len(negatives), dtype=bool)
    while again.any():
        negatives[again, 1] = rng.integers(0, taken.shape[1], int(again.sum()))
        again = taken[negatives[:, 0], negatives[:, 1]]
    rows = np.concatenate([positives, negatives])
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    schema = FeatureSchema(tuple(Categorical(name) for name in _FRAPPE))

    def frame(labels: NDArray[np.int64], rows: NDArray[np.int64]) -> pl.DataFrame:
        columns = {name: kinds.gather(rows[:, n]) for n, (name, kinds) in enumerate(zip(_FRAPPE, values, strict=True))}
        return pl.DataFrame({**columns, "label": labels})

    return Clicks(frame(labels, rows), schema, frame(*parts[0]), frame(*parts[1]))


def _libfm(path: Path, starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(labels 0 or 1 [n], numbers of the values within their columns [n, F]) of a file of one-hot rows."""
    lines = [line.replace(":1", "").split() for line in _ascii_lines(path)]
    for number, line in enumerate(lines, 1):
        if len(line) != 1 + len(starts) or not all(_INTEGER.fullmatch(word) for word in line):
            raise ValueError(
                f"read: {path}, line {number}: a label and {len(starts)} features of value 1 are required, got "
                f"{' '.join(line)[:60]!r}; get it again"
            )
    whole = np.array(lines).astype(np.int64)
    return (whole[:, 0] == 1).astype(np.int64), whole[:, 1:] - starts


def _without(rows: NDArray[np.int64], less: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows [n, F] less each of `less` [m, F] once, which must all be there; the first ones of equal rows go."""
    _, kinds = np.unique(np.concatenate([rows, less]), axis=0, return_inverse=True)
    own, gone = kinds[: len(rows)], kinds[len(rows) :]
    order = np.argsort(own, kind="stable")
    sizes = np.bincount(own, minlength=kinds.max() + 1)
    place = np.empty(len(rows), dtype=np.int64)  # how many equal rows stand before a row
    place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    counts = np.bincount(gone, minlength=len(sizes))
    if (counts > sizes).any():
        raise ValueError("read: the published rows of frappe must stand in the raw log; get both again")
    return rows[place >= counts[own]]


_CRITEO_TERMS = "Criteo / Kaggle Display Advertising Challenge: non-commercial research; do not redistribute"
_GROUPLENS = "GroupLens: research use; no redistribution, no commercial use without permission"

# fmt: off
_REGISTRY = {
    entry.name: entry
    for entry in (
        ClickDataset("criteo-10k", "first 10,000 rows of Criteo's display advertising log",
                     "criteo", ("train_10k.txt",), 10_000, _CRITEO_TERMS,
                     "https://www.kaggle.com/c/criteo-display-ad-challenge", _read_criteo),
        ClickDataset("criteo-mini", "10,000 + 10,000 rows of Criteo, scaled and numbered",
                     "criteo/mini_libsvm", ("tr.mini.libsvm", "va.mini.libsvm"), 20_000, _CRITEO_TERMS,
                     "https://github.com/gutouyu/ML_CIA", _read_criteo_mini),
        ClickDataset("frappe", "app use in contexts: NFM's published validation and test rows, train rows made alike",
                     "frappe", ("frappe.csv", "frappe.validation.libfm", "frappe.test.libfm"), 289_394,
                     "research use; no redistribution without permission; cite Baltrunas et al. 2015 "
                     "(arXiv 1505.03014)", "https://arxiv.org/abs/1505.03014", _read_frappe),
        ClickDataset("adult", "census income: who earns more than 50,000 a year",
                     "adult", ("adult.data", "adult.test"), 48_842, "UCI: CC BY 4.0",
                     "https://archive.ics.uci.edu/dataset/2/adult", _read_adult),
        ClickDataset("ml-1m-clicks", "MovieLens 1M: whether a rating is 4 or 5, with users and films",
                     "ml-1m", ("ratings_rank.dat", "users.dat", "movies.dat"), 1_000_209, _GROUPLENS,
                     "https://grouplens.org/datasets/movielens/1m/", _read_ml_1m_clicks),
        ClickDataset("amazon-grocery-clicks", "groceries that a user reviewed next, with what came before",
                     "amazon-grocery-time", ("train.csv", "item_meta.csv"), 214_422,
                     "Amazon reviews (McAuley, UCSD): academic research",
                     "https://github.com/THUwangcy/ReChorus", read_grocery),
        ClickDataset("mind-clicks", "an extract of MIND: impressions of news, with what the reader clicked before",
                     "mind-extract", ("behaviors.tsv", "news.tsv"), 126_245,
                     "Microsoft Research License: non-commercial research; do not redistribute",
                     "https://msnews.github.io", read_mind),
    )
}
# fmt: on
