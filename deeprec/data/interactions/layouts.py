"""One file of interactions of any layout as rows: tables, lists and sessions of items, matrices, JSON lines, MIND."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from deeprec._suggest import did_you_mean
from deeprec.data.interactions.prefixes import PATTERN, read_prefixes
from deeprec.data.interactions.roles import Column, Roles, roles_of
from deeprec.data.reading.errors import START_BYTES
from deeprec.data.reading.layout import SPACES, TEXT_OPTIONS, TextOptions, layout_of, told
from deeprec.data.reading.rows import Dialect, plain, split_rows
from deeprec.data.reading.tables import SeparatedText, numbers_of, read_separated, read_table
from deeprec.data.reading.text import OnBad, read_bytes

_log = logging.getLogger("deeprec")

FORMATS = ("table", "csv", "tsv", "lists", "sessions", "prefixes", "rsc15", "matrix", "jsonl", "mind", "parquet")
_CLICKS = ("criteo", "libsvm", "libffm", "libfm", ".libsvm", ".svm", ".libffm", ".ffm", ".libfm")
_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_RSC15 = re.compile(r"^\d+,\d{4}-\d\d-\d\dT[\d:.]+Z,\d+,\w+$")
_PATTERNS = {
    "prefixes": "prefixes of sessions and the item after each (item item ...<TAB>item)",
    "rsc15": "the clicks of RSC15 (session,time,item,category)",
}
_SHARE_SORTED = 0.95  # of the lists, from which on their order is that of the ids


@dataclass(frozen=True)
class FileOptions:
    """How a file of interactions is read; `file_options` makes one of what callers pass.

    Attributes:
        format: one of `FORMATS`, or None: by the file's name and first rows.
        columns: by role (user, item, rating, timestamp, label, tag, review, domain, session) the name of a column, or
            its place from 0.
        time_format: of the column of times where it is neither numbers nor ISO 8601, as of `from_frame`.
        order: "file": the rows stand in the order of time; None: a column says it, if any.
        counted: lists whose first number is how many items follow; None: as the lines show it.
        ordered: whether lists are in the order of time; None: unless they are sorted by item.
        integers: ids must be whole numbers.
    """

    format: str | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    time_format: str | None = None
    order: Literal["file"] | None = None
    counted: bool | None = None
    ordered: bool | None = None
    integers: bool = False
    text: TextOptions = field(default_factory=TextOptions)
    on_bad: OnBad = "raise"


ROLES = ("user", "item", "rating", "timestamp", "label", "tag", "review", "domain", "session")
OPTIONS = ("format", *ROLES, "time_format", "order", "counted", "ordered", *(name for name in TEXT_OPTIONS), "on_bad")


def file_options(**options: Any) -> FileOptions:
    """Options of a file as keywords: `OPTIONS`, of which `order` names the column of times or ranks, or is "file".

    Raises:
        ValueError: values that do not fit, an unknown format.
    """
    text = told(**{name: options.pop(name) for name in TEXT_OPTIONS if name in options})
    order = options.pop("order", None)
    if order is not None and order != "file":
        if options.get("timestamp") is not None:
            raise ValueError(f"load: order and timestamp name the same column, got {order!r} and "
                             f"{options['timestamp']!r}; leave one out")  # fmt: skip
        options["timestamp"] = order
    columns = {role: options.pop(role) for role in ROLES if options.get(role) is not None}
    kind = options.get("format")
    if kind in _CLICKS:
        raise ValueError(f"load: format {kind} is of click logs; take a click model (deeprec models)")
    if kind is not None and kind not in FORMATS:
        raise ValueError(
            f"load: format must be one of {', '.join(FORMATS)}, got {kind!r}; {did_you_mean(kind, FORMATS)}"
        )
    for name in ("counted", "ordered"):
        if options.get(name) not in (None, True, False):
            raise ValueError(f"load: {name} must be true or false, got {options[name]!r}")
    given = {name: value for name, value in options.items() if name not in ROLES}
    return FileOptions(columns=columns, order="file" if order == "file" else None, text=text, **given)


class Rows(NamedTuple):
    """Rows of a file, columns by `columns`; ids that are all plain integers are integers.

    Attributes:
        order_kind: what the order is; None: there is none, or its values must tell.
        of_sessions: whether the users are sessions, in which an item may come again.
    """

    frame: pl.DataFrame
    columns: dict[str, str]
    place: Callable[[int], str] = "row {}".format
    dropped: int = 0
    order_kind: Literal["rank"] | None = None
    has_names: bool = True
    of_sessions: bool = False


def read_rows(path: Path, options: FileOptions) -> Rows:
    """The rows of one file.

    Raises:
        ValueError: a damaged file, columns that are not there or that nothing tells.
    """
    kind = (
        options.format
        or _SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix.lower())
        or _guess_format(path, options)
    )
    if kind in ("lists", "sessions"):
        return _read_lists(path, kind, options)._replace(of_sessions=kind == "sessions")
    if kind == "prefixes":
        return _read_prefixes(path, options)
    if kind == "rsc15":
        kind, options = "table", _as_rsc15(path, options)
    if kind == "matrix":
        return _read_matrix(path, options)
    rows = _read_table(path, kind, options)
    if options.order == "file":
        user = rows.columns.get("session", rows.columns["user"])
        places = rows.frame.select(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(user)).to_series()
        frame = rows.frame.with_columns(places.alias("order in the file"))
        return rows._replace(frame=frame, columns={**rows.columns, "timestamp": frame.columns[-1]}, order_kind="rank")
    return rows


def _read_table(path: Path, kind: str, options: FileOptions) -> Rows:
    if kind in ("jsonl", "mind", "parquet"):
        table = read_table(path, options.text, options.on_bad, kind)
        given = dict(options.columns)
        if kind == "mind":
            given = {"user": "user", "item": "item", "timestamp": "time", "label": "label", **given}
        roles = roles_of(table.frame.head(100), given, path, has_names=True)
        return _with_integers(Rows(table.frame, roles.columns, table.place, table.dropped), roles, path)
    text = SeparatedText.read(path, options.text)
    roles = roles_of(text.head(100), options.columns, path, has_names=text.has_names)
    kinds = {role: "f" if role in ("rating", "label") else "i" for role in roles.columns}
    frame = None if options.text.missing else numbers_of(text, {roles.columns[role]: kinds[role] for role in kinds})
    if frame is not None:
        return Rows(frame, roles.columns, _line_of(text), has_names=text.has_names)
    table = read_separated(path, options.text, options.on_bad, text)
    rows = Rows(table.frame, roles.columns, table.place, table.dropped, has_names=table.has_names)
    return _with_integers(rows, roles, path, required=options)


def _line_of(text: SeparatedText) -> Callable[[int], str]:
    """Places of the rows of a text without bad rows and quotes."""
    lines: list[int] = []

    def place(row: int) -> str:
        if not lines:
            lines.extend(one.line for one in split_rows(text.body, text.dialect))
        return f"line {text.first_line + lines[row]}"

    return place


def _with_integers(rows: Rows, roles: Roles, path: Path, required: FileOptions | None = None) -> Rows:
    """Ids that are all plain integers as integers; where nearly all are, a warning names the first other one."""
    frame, dropped = rows.frame, rows.dropped
    for role in ("user", "item", "session"):
        if role not in roles.columns:
            continue
        column = frame.get_column(roles.columns[role])
        if column.dtype != pl.String:
            continue
        column = column.str.strip_chars(" \t").replace("", None)
        numbers = column.cast(pl.Int64, strict=False)
        is_plain = (numbers.cast(pl.String) == column).fill_null(False) | column.is_null()
        others = np.flatnonzero(~is_plain.to_numpy())
        if len(others) and required is not None and required.integers:
            if required.on_bad == "raise":
                row = int(others[0])
                raise ValueError(f"read: {path}, {rows.place(row)}: {role} must be a whole number, got {column[row]!r} "
                                 f"({len(others):,} bad rows); correct it or pass on_bad='skip'")  # fmt: skip
            column = numbers.set(pl.Series(~is_plain), None)
        elif not len(others):
            column = numbers
        elif len(others) * 10 < len(column):
            row = int(others[0])
            _log.warning(
                "%s: %s ids are texts, as %s of %s are no whole numbers, the first of them %r in %s",
                path.name, role, f"{len(others):,}", f"{len(column):,}", column[row], rows.place(row),
            )  # fmt: skip
        frame = frame.with_columns(column.alias(roles.columns[role]))
    return rows._replace(frame=frame, dropped=dropped)


def _read_prefixes(path: Path, options: FileOptions) -> Rows:
    """Lines `item item ...<TAB>item` as the sessions, numbered from 0, that they are the prefixes of."""
    if options.columns:
        raise ValueError(f"load: {path} is read as prefixes of sessions, which have no columns, got "
                         f"{next(iter(options.columns))}; leave it out, or pass format='table'")  # fmt: skip
    rows = read_prefixes(path)
    if rows.num_unlisted:
        _log.warning("%s: %s events of its sessions are no target of any line; they are told apart by nothing from "
                     "those that are", path.name, f"{rows.num_unlisted:,}")  # fmt: skip
    frame = pl.DataFrame({"user_id": rows.sessions, "item_id": rows.items, "place": rows.places})
    columns = {"user": "user_id", "item": "item_id", "timestamp": "place"}
    return Rows(frame, columns, lambda row: f"line {rows.lines[row]}", 0, "rank", has_names=False, of_sessions=True)


def _as_rsc15(path: Path, options: FileOptions) -> FileOptions:
    """The options that read `session,time,item,category`, without names: the clicks of the RecSys Challenge 2015."""
    if options.columns:
        raise ValueError(f"load: {path} is read as the clicks of RSC15, whose columns are known, got "
                         f"{next(iter(options.columns))}; leave it out, or pass format='table'")  # fmt: skip
    columns: dict[str, Column] = {"session": 0, "user": 0, "timestamp": 1, "item": 2}
    return replace(options, columns=columns, text=replace(options.text, header=False))


def _by_pattern(data: bytes) -> str | None:
    """ "prefixes" or "rsc15" where the first lines say so."""
    lines = data.decode("utf-8", "replace").splitlines()[:1000]
    lines = [line.rstrip() for line in (lines[:-1] if len(lines) > 1 else lines) if line.strip()]
    if not lines:
        return None
    if all(re.match(PATTERN, line) for line in lines) and any(" " in line for line in lines):
        return "prefixes"
    return "rsc15" if all(_RSC15.match(line) for line in lines) else None


def _guess_format(path: Path, options: FileOptions) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in _CLICKS:
        raise ValueError(
            f"load: {path} is a click log by its name; take a click model (deeprec models), or pass format="
        )
    data = read_bytes(path)[:START_BYTES]
    if data.lstrip().startswith(b"{"):
        return "jsonl"
    if not options.columns and (kind := _by_pattern(data)) is not None:
        _log.warning("%s: taken as %s; format= says otherwise", path.name, _PATTERNS[kind])
        return kind
    layout = layout_of(path, data, options.text)
    if layout.has_names or layout.dialect.separator == b"::":
        return "table"
    rows = _sample(data[layout.start :], layout.dialect)
    widths = [len(row) for row in rows]
    differing = sum(width != max(set(widths), key=widths.count) for width in widths)
    if len(set(widths)) < 3 or differing * 5 < len(widths):
        return "table"
    firsts = [row[0] for row in rows]
    is_counted = all(row[0] == str(len(row) - 1) for row in rows)
    kind = "lists" if is_counted or len(set(firsts)) == len(firsts) else "sessions"
    what = {"lists": "user item item ..., a line a user", "sessions": "item item ..., a line a user or session"}[kind]
    what = "count item item ..., a line a user" if is_counted else what
    _log.warning("%s: taken as %s (%s); format= says otherwise", path.name, kind, what)
    return kind


def _sample(data: bytes, dialect: Dialect, rows: int = 1000) -> list[list[str]]:
    text = plain(data, dialect._replace(quote=b""))
    out: list[list[str]] = []
    for row in split_rows(text, dialect._replace(quote=b"")):
        if row.has_end or not out:
            out.append([field.decode("utf-8", "replace") for field in row.fields if field])
        if len(out) == rows:
            break
    return out


def _read_lists(path: Path, kind: str, options: FileOptions) -> Rows:
    """A line of items for each user, whose id comes first ("lists"), or is the number of the line, from 0."""
    if options.columns:
        raise ValueError(f"load: {path} is read as {kind}, which have no columns, got {next(iter(options.columns))}; "
                         "leave it out, or pass format='table'")  # fmt: skip
    lines, first_line, separator = _lines(path, options)
    fields = lines.str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    lengths = fields.list.len()
    numbers = pl.Series(np.arange(1, len(lines) + 1)) + (first_line - 1)
    is_filled = lengths > 0
    fields, lengths, numbers = fields.filter(is_filled), lengths.filter(is_filled), numbers.filter(is_filled)
    firsts = fields.list.first()
    fits = (firsts.cast(pl.Int64, strict=False) == lengths.cast(pl.Int64) - 1).fill_null(False)
    counted = kind == "lists" and (bool(fits.all()) if options.counted is None else options.counted)
    if counted and not fits.all():
        row = int(np.flatnonzero(~fits.to_numpy())[0])
        raise ValueError(
            f"read: {path}, line {numbers[row]}: the first number must count the items behind it, got {firsts[row]!r} "
            f"before {lengths[row] - 1}; pass counted=False if it is the user"
        )
    is_line_user = counted or kind == "sessions"
    users = pl.Series(np.arange(len(fields))) if is_line_user else firsts
    frame = pl.DataFrame({
        "user_id": users,
        "item_id": fields.list.slice(0 if kind == "sessions" else 1),
        "line": numbers,
    })  # fmt: skip
    frame = frame.explode("item_id").drop_nulls("item_id")
    line_numbers = frame.get_column("line")
    columns = {"user": "user_id", "item": "item_id"}
    rows = Rows(frame.drop("line"), columns, lambda row: f"line {line_numbers[row]}", has_names=False)
    rows = _with_integers(rows, Roles(columns), path)
    return _in_order(rows, path, options, kind)


def _in_order(rows: Rows, path: Path, options: FileOptions, kind: str) -> Rows:
    """The rows with their places in the lists, unless these are sorted by item."""
    ordered = options.ordered
    if ordered is None:
        ordered = kind == "sessions" or not _is_sorted(rows.frame)
        if not ordered:
            _log.warning("%s: the lists are sorted by item, so their order is not taken for that of time (ordered=true "
                         "takes it)", path.name)  # fmt: skip
    if not ordered:
        return rows
    places = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("user_id").alias("place")
    return rows._replace(
        frame=rows.frame.with_columns(places), columns={**rows.columns, "timestamp": "place"}, order_kind="rank"
    )


def _is_sorted(frame: pl.DataFrame) -> bool:
    by_user = frame.group_by("user_id", maintain_order=True)
    lists = by_user.agg(ascends=(pl.col("item_id").diff() >= 0).all() if frame["item_id"].dtype.is_integer()
                        else (pl.col("item_id") >= pl.col("item_id").shift(1)).all(), length=pl.len())  # fmt: skip
    long = lists.filter(pl.col("length") > 3)
    return bool(long.height) and float(long["ascends"].mean() or 0) >= _SHARE_SORTED  # type: ignore[arg-type]


def _lines(path: Path, options: FileOptions) -> tuple[pl.Series, int, str]:
    """(lines of a text, number of the first one, separator)."""
    data = read_bytes(path)
    text = replace(options.text, header=False) if options.text.header is None else options.text
    layout = layout_of(path, data[:START_BYTES], text, default=SPACES)
    body = bytes(plain(data[layout.start :], layout.dialect._replace(quote=b"")))
    try:
        lines = pl.Series("lines", body.decode().split("\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"read: {path} must be UTF-8, got {error.object[error.start:][:20]!r}; convert the file "
                         "(iconv -f LATIN1 -t UTF-8)") from None  # fmt: skip
    return lines.str.strip_suffix("\r"), 1 + data.count(b"\n", 0, layout.start), layout.dialect.separator.decode()


def _read_matrix(path: Path, options: FileOptions) -> Rows:
    """A row of numbers for each user and a column for each item, both counted from 0; 0 is no interaction."""
    if options.columns:
        raise ValueError(f"load: {path} is read as a matrix, whose columns are the items, got "
                         f"{next(iter(options.columns))}; leave it out, or pass format='table'")  # fmt: skip
    text = replace(options.text, header=False) if options.text.header is None else options.text
    table = read_separated(path, text, options.on_bad)
    numbers = table.frame.select(pl.all().str.strip_chars(" \t").cast(pl.Float64, strict=False))
    values = numbers.fill_null(0).to_numpy()
    is_bad = numbers.select(pl.all().is_null()).to_numpy() & table.frame.select(pl.all().is_not_null()).to_numpy()
    is_bad |= ~np.isfinite(values)
    dropped = table.dropped
    if is_bad.any():
        row, column = (int(places[0]) for places in np.nonzero(is_bad))
        if options.on_bad == "raise":
            raise ValueError(f"read: {path}, {table.place(row)}: a matrix must hold numbers, got "
                             f"{table.frame[row, column]!r}; correct it or pass on_bad='skip'")  # fmt: skip
        dropped += int(is_bad.sum())
        values = np.where(is_bad, 0, values)
    users, items = np.nonzero(values)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "rating": values[users, items]})
    columns = {"user": "user_id", "item": "item_id", "rating": "rating"}
    return Rows(frame, columns, lambda row: table.place(int(users[row])), dropped, has_names=False)
