"""Side information as frames whose row i describes internal id i: of MovieLens' files, your own; and as numbers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._suggest import listed
from deeprec.data.columns.kinds import Bag, Categorical, Feature, Numeric, Vector
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.table import EncodedTable
from deeprec.data.interactions.ids import IdMap, normalise_ids, stripped_ids
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.reading.errors import did_you_mean
from deeprec.data.reading.frames import frame_of, is_frame, plain_texts
from deeprec.data.reading.hashing import Vocabulary, hash_series
from deeprec.data.reading.text import read_bytes

_log = logging.getLogger("deeprec")

# fmt: off
_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


def _fields(path: Path, separator: str, names: list[str]) -> pl.DataFrame:
    """All fields of a file as text, one column a name; ValueError names a line with too few."""
    lines = pl.Series(read_bytes(path).decode("latin-1").splitlines())
    lines = lines.filter(lines.str.len_chars() > 0)
    frame: pl.DataFrame = lines.str.splitn(separator, len(names)).struct.unnest()
    frame = frame.rename(dict(zip(frame.columns, names, strict=True)))
    short = frame.get_column(names[-1]).is_null()
    if short.any():
        line = int(short.arg_max() or 0)
        raise ValueError(
            f"read: {path}, line {line + 1} must have {len(names)} fields separated by {separator!r}, "
            f"got {lines[line]!r}; download it again"
        )
    return frame


def _integers(frame: pl.DataFrame, path: Path, *columns: str) -> pl.DataFrame:
    try:
        return frame.with_columns(pl.col(*columns).cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"read: {path}: {columns} must be integers, got {str(error).splitlines()[0]}") from None


def _with_year(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32))


def movies_1m(path: Path) -> pl.DataFrame:
    """movies.dat: item_id, title, genres (list), year."""
    frame = _integers(_fields(path, "::", ["item_id", "title", "genres"]), path, "item_id")
    return _with_year(frame.with_columns(pl.col("genres").str.split("|")))


def users_1m(path: Path) -> pl.DataFrame:
    """users.dat: user_id, gender, age (lower bound of a bracket), occupation (code), zip."""
    frame = _fields(path, "::", ["user_id", "gender", "age", "occupation", "zip"])
    return _integers(frame, path, "user_id", "age", "occupation")


def items_100k(path: Path) -> pl.DataFrame:
    """u.item: item_id, title, release_date, url, genres (list), year."""
    names = ["item_id", "title", "release_date", "video_release_date", "url", *_GENRES_100K]
    frame = _integers(_fields(path, "|", names), path, "item_id")
    genres = pl.concat_list(
        pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K
    ).list.drop_nulls()
    return _with_year(frame.select("item_id", "title", "release_date", "url", genres=genres))


def users_100k(path: Path) -> pl.DataFrame:
    """u.user: user_id, age, gender, occupation, zip."""
    frame = _fields(path, "|", ["user_id", "age", "gender", "occupation", "zip"])
    return _integers(frame, path, "user_id", "age")


def align(frame: pl.DataFrame, ids: IdMap) -> pl.DataFrame:
    """Rows in the order of the id map; an id without a row gets nulls."""
    key = f"{ids.name}_id"
    order = ids.values.alias(key).to_frame()
    return order.join(frame.unique(key, keep="first"), on=key, how="left", maintain_order="left")


def with_features(data: Interactions, *, users: Any = None, items: Any = None) -> Interactions:
    """The same interactions with side information; what is known of the domains of items stays.

    Args:
        users: polars or pandas frame with a column user_id, each user of the data once; None: as it is.
        items: the same with item_id.
    Raises:
        ValueError: a frame without the id column, with an id twice, or with ids missing or unknown to the data.
    """
    aligned = {
        f"{ids.name}_features": _checked(table, ids)
        for table, ids in ((users, data.user_ids), (items, data.item_ids))
        if table is not None
    }
    table, known = aligned.get("item_features"), data.item_features
    if table is not None and known is not None and "domain" in known.columns and "domain" not in table.columns:
        aligned["item_features"] = table.with_columns(known.get_column("domain"))
    return replace(data, **aligned)  # type: ignore[arg-type]


def _checked(table: Any, ids: IdMap) -> pl.DataFrame:
    key = f"{ids.name}_id"
    if not is_frame(table):
        raise TypeError(
            f"with_features: the {ids.name} table must be a polars or pandas frame, got {type(table).__name__}"
        )
    frame = _usable(frame_of(table, "with_features"), ids)
    if key not in frame.columns:
        raise ValueError(
            f"with_features: the {ids.name} table must have a column {key}, got {listed(frame.columns)}"
            f"{did_you_mean(key, frame.columns)}"
        )
    stripped, changed = stripped_ids(frame.get_column(key))
    if changed:
        _log.warning("with_features: the %s table: ids_with_blanks_stripped %s", ids.name, f"{changed:,}")
    own = normalise_ids(stripped)
    if own.dtype != ids.values.dtype and not (own.dtype.is_integer() and ids.values.dtype.is_integer()):
        raise ValueError(
            f"with_features: {key} must be {ids.values.dtype} as in the data, got {own.dtype}; cast the column"
        )
    own = own.cast(ids.values.dtype)
    known = ids.values.alias(key)
    problems = {
        "twice": own.filter(own.is_duplicated()).unique(maintain_order=True),
        "not at all": known.filter(~known.is_in(own.implode())),
        "unknown to the data": own.filter(own.is_null() | ~own.is_in(known.implode())),
    }
    for what, wrong in problems.items():
        if len(wrong):
            raise ValueError(
                f"with_features: the {ids.name} table must hold each {ids.name} of the data once and no other, got "
                f"{len(wrong)} {what}: {wrong.head(3).to_list()}"
            )
    return align(frame.with_columns(own), ids)


def _usable(frame: pl.DataFrame, ids: IdMap) -> pl.DataFrame:
    """Without columns of Python objects that are no values, which are named in a note; mixed values as text."""
    columns = [plain_texts(column) for column in frame.get_columns()]
    odd = [column.name for column in columns if column.dtype == pl.Object and column.name != f"{ids.name}_id"]
    if odd:
        _log.warning("with_features: the %s table: left out, as no values are in them: %s", ids.name, listed(odd))
    return pl.DataFrame([column for column in columns if column.name not in odd])


def features_sha256(frame: pl.DataFrame) -> str:
    """Hash of the columns of side information by name, with their values; widths of numbers do not enter."""
    digest = hashlib.sha256()
    for column in sorted(frame.columns):
        digest.update(f"{column!r};".encode())
        for piece in _bytes_of(frame.get_column(column)):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def _bytes_of(values: pl.Series) -> Iterator[bytes]:
    """What tells a column from another: its kind, where it is null, the lengths of lists, and the values."""
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values, dtype = values.cast(pl.String), pl.String()
    yield np.packbits(values.is_null().to_numpy()).tobytes()
    if isinstance(dtype, pl.Struct):
        for name in values.struct.fields:
            yield name.encode()
            yield from _bytes_of(values.struct.field(name))
    elif isinstance(dtype, pl.List | pl.Array):
        lists = values.cast(pl.List(dtype.inner))
        yield lists.list.len().fill_null(0).cast(pl.Int64).to_numpy().astype("<i8").tobytes()
        yield from _bytes_of(lists.filter(lists.list.len().fill_null(0) > 0).explode())
    elif dtype.is_float():
        yield b"fractions"
        yield values.cast(pl.Float64).fill_null(0.0).to_numpy().astype("<f8").tobytes()
    elif dtype.is_temporal() or dtype == pl.Boolean or (dtype.is_integer() and dtype != pl.UInt64):
        yield b"whole" if dtype.is_integer() else str(dtype).encode()
        yield values.to_physical().cast(pl.Int64).fill_null(0).to_numpy().astype("<i8").tobytes()
    else:
        yield str(dtype).encode()
        text = values if dtype == pl.Binary else values.cast(pl.String).cast(pl.Binary)
        yield text.bin.size().fill_null(0).cast(pl.Int64).to_numpy().astype("<i8").tobytes()
        yield b"".join(text.drop_nulls().to_list())


def schema_of(frame: pl.DataFrame, columns: Sequence[str], ids: IdMap) -> FeatureSchema:
    """Columns of side information as what they are: text, booleans and whole numbers categorical, lists of text or
    whole numbers bags, fractions numeric and lists of as many fractions vectors, these as they are.

    Raises:
        ValueError: an unknown column, or one of another kind.
    """
    features: list[Feature] = []
    for column in columns:
        if column not in frame.columns:
            raise ValueError(
                f"features: a column of {ids.name}s must be one of {listed(frame.columns)}, got {column!r}"
                f"{did_you_mean(column, frame.columns)}"
            )
        values = frame.get_column(column)
        inner = values.dtype.inner if isinstance(values.dtype, pl.List | pl.Array) else None
        if values.dtype.is_float():
            features.append(Numeric(column, transform="none", missing="raise"))
        elif inner is not None and inner.is_float():
            features.append(Vector(column, _width(values, column, ids), missing="raise"))
        elif isinstance(values.dtype, pl.List) and _is_value(inner):
            features.append(Bag(column))
        elif _is_value(values.dtype):
            features.append(Categorical(column))
        else:
            raise ValueError(f"features: {column} must be text, lists of text or numbers, got {values.dtype}")
    return FeatureSchema(tuple(features), label=None)


def feature_matrix(frame: pl.DataFrame | None, columns: Sequence[str], ids: IdMap) -> NDArray[np.float32]:
    """Columns of a feature frame as numbers.

    Text, lists of text, booleans and whole numbers become one indicator for each value, in ascending order; fractions,
    and lists of as many fractions for each, are taken as they are. Spellings of one value ("12" and "12.0", see
    `deeprec.data.reading.hashing`) are one, and an empty text in a list is none.

    Args:
        frame: row i describes internal id i; None: there is none.
        columns: which of its columns.
        ids: for messages.
    Returns:
        float32 [len(ids), P].
    Raises:
        ValueError: no frame, an unknown column, a value missing or not finite in float32, or a column of another kind.
    """
    if frame is None:
        raise ValueError(
            f"features: the data must have a table of {ids.name}s for {list(columns)}, got none; pass one with "
            f"deeprec.data.with_features, or --{ids.name}-features on the command line"
        )
    if len(frame) != len(ids):
        raise ValueError(
            f"features: the table must have a row for each of the {len(ids)} {ids.name}s, got {len(frame)} rows; pass "
            "it with deeprec.data.with_features"
        )
    schema = schema_of(frame, columns, ids)
    for feature in schema.features:
        _check_known(frame.get_column(feature.name), feature.name, ids)
    table = EncodedTable.fit(schema, frame.select(list(columns)))
    parts = [_dense(table, feature, frame.get_column(feature.name)) for feature in schema.features]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _check_known(values: pl.Series, column: str, ids: IdMap) -> None:
    """Raise ValueError unless each value is known, and finite in float32."""
    bad = values.is_null()
    if values.dtype.is_float():
        bad |= ~_finite(values)
    elif isinstance(values.dtype, pl.List | pl.Array) and values.dtype.inner.is_float():
        lists = values.cast(pl.List(pl.Float64))
        rows = np.repeat(np.arange(len(lists)), lists.list.len().fill_null(0).to_numpy())
        entries = lists.filter(lists.list.len().fill_null(0) > 0).explode()
        is_bad = np.zeros(len(lists), dtype=np.bool_)
        is_bad[rows[~(_finite(entries) & entries.is_not_null()).to_numpy()]] = True
        bad |= pl.Series(is_bad)
    if bad.any():
        first = int(bad.arg_max() or 0)
        (got,) = values.slice(first, 1).to_list()
        raise ValueError(
            f"features: {column} must be known and finite for every {ids.name}, got {got} for {ids.name} "
            f"{ids.values[first]!r} and {int(bad.sum())} in all; fill them in"
        )


def _finite(values: pl.Series) -> pl.Series:
    with np.errstate(over="ignore"):
        return pl.Series(np.isfinite(values.to_numpy().astype(np.float32)))


def _width(values: pl.Series, column: str, ids: IdMap) -> int:
    """How many numbers each list of a column holds."""
    lengths = values.cast(pl.List(pl.Float64)).list.len().drop_nulls().to_numpy()
    width = int(lengths.max(initial=0))
    if not width or (lengths != width).any():
        raise ValueError(
            f"features: {column} must hold as many numbers for every {ids.name}, at least one, got lists of "
            f"{lengths.min(initial=width)} to {width}"
        )
    return width


def _is_value(dtype: Any) -> bool:
    return dtype.is_integer() or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)


def _dense(table: EncodedTable, feature: Feature, values: pl.Series) -> NDArray[np.float32]:
    """The columns of a feature in the matrix: its numbers, or an indicator for each value, in ascending order."""
    inputs, rows = table.inputs, table.rows
    if isinstance(feature, Numeric):
        return rows.values[:, [inputs.numerics.index(feature.name)]]
    if isinstance(feature, Vector):
        return rows.values[:, inputs.columns_of(feature.name)]
    if isinstance(feature, Bag):
        bags = rows.bags[feature.name]
        ids, row = bags.ids, np.repeat(np.arange(len(rows)), np.diff(bags.offsets))
        values = values.explode()
    else:
        column = [field.name for field in inputs.fields].index(feature.name)
        ids, row = rows.ids[:, column], np.arange(len(rows))
    values = values if values.dtype.is_integer() else values.cast(pl.String)
    hashes = hash_series(values.unique().drop_nulls().sort())
    place = Vocabulary(table.encoder.hashes[feature.name]).lookup(hashes)  # vocabularies are by frequency
    order = list(dict.fromkeys(place[place > 0].tolist()))
    column_of = np.empty(len(order) + 1, dtype=np.int64)
    column_of[order] = np.arange(len(order))
    result = np.zeros((len(rows), len(order)), dtype=np.float32)
    result[row, column_of[ids]] = 1.0
    return result
