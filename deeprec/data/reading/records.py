"""Files of one record a line that are no separated table: JSON lines, and MIND's impressions."""

from __future__ import annotations

import io
import json
from itertools import chain
from pathlib import Path

import polars as pl

from deeprec.data.reading.chunks import BadRow
from deeprec.data.reading.frames import plain_texts, series_of_values, table_of
from deeprec.data.reading.text import OnBad

_MIND_TIME = "%m/%d/%Y %I:%M:%S %p"
_MIND = {
    "user": pl.String(), "time": pl.Datetime("us"), "item": pl.String(), "label": pl.Int8(),
    "history": pl.List(pl.String()),
}  # fmt: skip


def records(
    text: bytes,
    kind: str,
    path: Path,
    on_bad: OnBad = "raise",
    schema: pl.Schema | None = None,
    first_line: int = 1,
) -> tuple[pl.DataFrame, list[BadRow]]:
    """(the records of whole lines, the lines that hold none).

    Args:
        kind: "jsonl" or "mind".
        schema: of the frame; None: as the lines show it.
        first_line: number of the first line, for messages.
    Raises:
        ValueError: a line that holds no record, where `on_bad` is "raise".
    """
    read = _json_lines if kind == "jsonl" else _impressions
    frame = read(text, schema)
    bad: list[BadRow] = []
    if frame is None:
        lines = text.split(b"\n")
        for at, line in enumerate(lines):
            if line.strip() and not _is_record(line, kind):
                bad.append(BadRow(first_line + at, "", line[:60].decode("utf-8", "replace"), str(path)))
                lines[at] = b""
        if bad and on_bad == "raise":
            needed = 'an object such as {"user_id": 1}' if kind == "jsonl" else "an impression of MIND, five fields"
            raise ValueError(
                f"read: {path}, line {bad[0].line}: a line must be {needed}, got {bad[0].text!r}; correct it or pass "
                "on_bad='skip'"
            )
        frame = read(b"\n".join(lines), schema)
    if frame is None:
        raise ValueError(f"read: {path} must hold values of one type under each key, got others; write it as Parquet")
    return frame, bad


def _is_record(line: bytes, kind: str) -> bool:
    if kind == "mind":
        return line.count(b"\t") == 4
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _json_lines(text: bytes, schema: pl.Schema | None) -> pl.DataFrame | None:
    text = b"\n".join(line for line in text.split(b"\n") if line.strip()) if b"\n\n" in text else text
    if not text.strip():
        return pl.DataFrame(schema=schema)
    try:
        frame = pl.read_ndjson(io.BytesIO(text), schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return _by_values(text, schema)
    is_text = [column for column in frame.get_columns() if column.dtype == pl.String]
    has_lists = any(column.str.starts_with("[").any() for column in is_text)  # lists beside lone values
    return _by_values(text, schema) if has_lists else frame


def _by_values(text: bytes, schema: pl.Schema | None) -> pl.DataFrame | None:
    """The records of lines whose values have several types under a key, as `frames` has them; None where that fails."""
    try:
        rows = [json.loads(line) for line in text.split(b"\n") if line.strip()]
        names = list(schema or dict.fromkeys(chain.from_iterable(rows)))
        columns = [plain_texts(series_of_values([row.get(name) for row in rows], name)) for name in names]
        for at, column in enumerate(columns if schema else ()):
            kind = schema[column.name]  # type: ignore[index]
            if isinstance(kind, pl.List) and not isinstance(column.dtype, pl.List):
                lists = [None if value is None else [value] for value in column.to_list()]
                column = pl.Series(column.name, lists, dtype=pl.List(column.dtype))
            columns[at] = column.cast(kind)
    except (ValueError, TypeError, AttributeError, pl.exceptions.PolarsError):  # no records, or of another type
        return None
    return table_of(columns)


def _impressions(text: bytes, schema: pl.Schema | None) -> pl.DataFrame | None:
    """MIND's behaviors.tsv: impression, user, time, history, "item-label item-label ..."; a row for each item."""
    lines = pl.Series("line", text.decode("utf-8", "replace").split("\n")).str.strip_suffix("\r")
    lines = lines.filter(lines.str.strip_chars() != "")
    if not len(lines):
        return pl.DataFrame(schema=_MIND)
    if (lines.str.count_matches("\t", literal=True) != 4).any():
        return None
    fields = lines.str.split("\t").list
    words = fields.get(3).str.split(" ")
    frame = pl.DataFrame(
        {
            "user": fields.get(1),
            "time": fields.get(2).str.to_datetime(_MIND_TIME, time_unit="us", strict=False),
            "shown": fields.get(4).str.strip_chars().str.split(" "),
            "history": words.list.filter(pl.element() != ""),
        }
    )
    shown = frame.explode("shown").filter(pl.col("shown") != "")
    item = shown.get_column("shown").str.replace(r"-[01]$", "")
    label = shown.get_column("shown").str.extract(r"-([01])$").cast(pl.Int8, strict=False)
    return shown.select("user", "time", item.alias("item"), label.alias("label"), "history")
