"""Click logs that lie in files: their parts, and a schema for those that come without one."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeprec._suggest import listed
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.schema_inference import infer
from deeprec.data.reading.chunks import Source
from deeprec.data.reading.files import parts_of
from deeprec.data.reading.sources import open_source

_log = logging.getLogger("deeprec")

DRAFT = ("label", "positive", "group")  # options that a schema is drafted by
_LABELS = ("label", "click", "clicked")  # columns that are taken for the label where none is named


@dataclass(frozen=True)
class Clicks:
    """A log and its meaning.

    Attributes:
        source: what `open_source` takes; of a log with official parts, its train rows.
        schema: its features.
        validation, test: sources of the official parts, or None.
        options: of `open_source`.
        name: for people; "": that of the source.
    """

    source: Any
    schema: FeatureSchema
    validation: Any = None
    test: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""


def clicks_of(source: Any, schema: FeatureSchema | None, options: dict[str, Any]) -> Clicks:
    """A log of files or a frame; options as of `click_source`.

    Raises:
        ValueError: no schema and no column of labels, or a label beside a schema of another one.
    """
    options = dict(options)
    draft: dict[str, Any] = {name: options.pop(name) for name in DRAFT if name in options}
    parts: dict[str, Any] = {name: options.pop(name, None) for name in ("validation", "test")}
    if isinstance(source, str | Path):
        files = parts_of(source, **parts)
        parts = {"validation": files.validation, "test": files.test}
        source = files.train if len(files.train) > 1 else files.train[0]
    if schema is None:
        schema = drafted_schema(source, draft, options)
    elif draft.get("label") not in (None, schema.label) and not str(draft["label"]).isdigit():
        raise ValueError(
            f"load: the label of the schema is {schema.label!r}, got label {draft['label']!r}; leave it out"
        )
    return Clicks(source, schema, parts["validation"], parts["test"], options)


def drafted_schema(source: Any, draft: dict[str, Any], options: dict[str, Any]) -> FeatureSchema:
    """The schema that `infer_schema` makes of a source.

    Args:
        draft: label, positive, group as of `click_source`.
        options: of `open_source`.
    Raises:
        ValueError: no label is named, and no column called label or click; what `infer_schema` raises.
    """
    opened = open_source(source, **options)
    label = draft.get("label")
    if label is None:
        usual = [column for column in opened.columns if column.lower() in _LABELS]
        if len(usual) != 1:
            raise ValueError(
                f"load: a schema is needed for {opened.name}, or the column of labels (label=, its name or place from "
                f"0), got columns {listed(opened.columns)}; `deeprec schema FILE` (deeprec.data.infer_schema) drafts "
                "one to be corrected"
            )
        label = usual[0]
    label, group = (_column_of(opened, column) for column in (label, draft.get("group")))
    positive = draft.get("positive")
    is_number = isinstance(positive, int | float)
    texts = positive.split(",") if isinstance(positive, str) else () if is_number else tuple(positive or ())
    schema = infer(
        opened,
        str(label),
        positive_from=float(positive) if is_number else None,  # type: ignore[arg-type]
        positive_values=texts,
        group=group,
    )
    kinds = Counter(type(feature).__name__.lower() for feature in schema.features)
    _log.warning(
        "%s: a schema was drafted from the first rows (label %s; %s); `deeprec schema` writes it to be corrected",
        opened.name, label, ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
    )  # fmt: skip
    return schema


def _column_of(source: Source, column: Any) -> str | None:
    """A column by its name, or by its place from 0."""
    if column is None or str(column) in source.columns or not str(column).isdigit():
        return None if column is None else str(column)
    return source.columns[int(column)] if int(column) < len(source.columns) else str(column)
