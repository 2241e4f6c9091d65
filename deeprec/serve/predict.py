"""Click probabilities for rows of a file or frame, streamed, and predicted ratings for a file of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean, listed
from deeprec.contract import RATES, AnyModel
from deeprec.data.columns.rows import take
from deeprec.data.reading.errors import check_file, reading
from deeprec.data.reading.layout import TEXT_OPTIONS, told
from deeprec.data.reading.sources import format_of, open_source
from deeprec.data.reading.tables import read_table
from deeprec.data.reading.text import OnBad
from deeprec.device import device_of, to_device
from deeprec.evaluate.click_metrics import probabilities
from deeprec.evaluate.tasks import logits_of_rows
from deeprec.serve.output import require_writable, write_frame
from deeprec.serve.recommend import id_maps
from deeprec.surroundings import served

COLUMN = "probability"
_BATCH_ROWS = 1 << 14
_PAIR = ("user_id", "item_id")


@served
def predict(
    model: AnyModel,
    source: Any,
    *,
    on_bad: OnBad = "raise",
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> NDArray[np.float32]:
    """Probabilities of a click, one a row.

    The features are made as in training; unseen categories are unknown ones. Negative down-sampling of the training
    has been corrected for.

    Args:
        model: fitted or loaded.
        source: what `deeprec.data.open_source` takes: a file, a frame, a list of files; no label is needed, and
            columns may stand in any order.
        on_bad: "raise" at a malformed row, or "skip" it: then there are fewer probabilities than rows.
        on_progress: called with (done, total), bytes of a file or rows of a frame.
        **options: of `open_source`.
    Returns:
        [n], float32, in the order of the rows; 4 bytes a row and one chunk are held.
    Raises:
        ValueError: the model was not fitted, a column is missing, of another type or infinite, or a row has no
            probability, as its numbers are too large for the model.
    """
    encoder = _encoder(model)
    opened = open_source(source, on_bad=on_bad, **options)
    blocks = []
    to_read = encoder.schema.columns_to_read(with_label=False)
    for chunk in opened.chunks(to_read, progress=on_progress):
        with opened.naming_rows(to_read):
            rows = encoder.encode(chunk, with_labels=False)
        for start in range(0, len(rows), _BATCH_ROWS):
            block = take(rows, np.arange(start, min(start + _BATCH_ROWS, len(rows))))
            logits = logits_of_rows(model, block)
            if np.isnan(logits).any():
                row = chunk.first_row + start + int(np.isnan(logits).argmax())
                raise ValueError(
                    f"predict: row {row} (from 0) must have numbers that the model can work with, got NaN from "
                    f"{model.name}; correct the row, or fit the model anew with standardised numbers"
                )
            blocks.append(probabilities(logits).astype(np.float32))
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def predict_file(
    model: AnyModel,
    source: str | Path,
    output: str | Path,
    *,
    keep: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> int:
    """Write the probabilities of a file's rows into a Parquet, CSV, TSV or JSON lines file, column "probability".

    Args:
        model, source: as in `predict`.
        output: ends in .parquet, .csv, .tsv or .jsonl; there is either the whole file or what was there before.
        keep: columns of the source, such as ids, that are written beside the probability.
        on_progress, **options: as in `predict`. Malformed rows raise: the rows of the two files belong together.
    Returns:
        rows written.
    Raises:
        ValueError: as `predict`, an output of another kind, or an unknown column in `keep`.
    """
    path = require_writable("predict", output)
    kept = _columns(source, keep, COLUMN, options) if keep else None
    scores = predict(model, source, on_progress=on_progress, **options)
    frame = pl.DataFrame({COLUMN: scores})
    if kept is not None:
        frame = kept.hstack(frame)
    write_frame(frame, path)
    return len(scores)


@served
def predict_pairs_file(
    model: AnyModel, source: str | Path, output: str | Path, *, keep: Sequence[str] = (), **options: Any
) -> tuple[int, str]:
    """Write what a recommender says of the pairs of a file: user_id, item_id and "rating", or "score".

    Args:
        model: fitted or loaded.
        source: a table (.parquet, .csv, .tsv, .jsonl) with columns user_id and item_id, of users and items of the
            training data.
        output: as in `predict_file`.
        keep: further columns of the source that are written too.
        **options: of the file, as of `predict_file`.
    Returns:
        rows written, and the name of the column: "rating" of models that predict ratings, within the range of the
        training ratings; "score" of the others, larger is better.
    Raises:
        ValueError: an unknown user or item, or an input or output of another kind.
    """
    users_map, items_map = id_maps(model)
    path = require_writable("predict", output)
    name = "rating" if RATES in model.capabilities else "score"
    frame = _columns(source, list(dict.fromkeys((*_PAIR, *keep))), name, options)
    codes = []
    for ids in (users_map, items_map):
        given = frame.get_column(f"{ids.name}_id")
        if given.dtype == pl.String:
            given = ids.parse(given.to_list())
            frame = frame.with_columns(given.alias(f"{ids.name}_id"))
        codes.append(to_device(torch.from_numpy(ids.encode(given)), device_of(model)).long())
    blocks = zip(*(indices.split(_BATCH_ROWS) for indices in codes), strict=True)
    scores = [model.score_pairs(users, items) for users, items in blocks]
    values = torch.cat(scores) if scores else torch.empty(0)
    limits = getattr(model, "limits", None)
    values = values if limits is None or not scores else values.clamp(*limits)
    write_frame(frame.with_columns(pl.Series(name, values.cpu().numpy())), path)
    return len(frame), name


def _encoder(model: AnyModel) -> Any:
    model.require_built()
    if model.encoder is None:
        raise ValueError(f"predict: {model.name} has no encoder; fit it, or load it with deeprec.load(dir)")
    return model.encoder


def _columns(source: str | Path, columns: Sequence[str], name: str, options: dict[str, Any]) -> pl.DataFrame:
    """The columns to be written beside the predictions, column `name`."""
    path, kind = Path(source), format_of(source, options.get("format"))
    if kind == "parquet":
        check_file(path, "predict")
        table = pl.scan_parquet(path, glob=False)
    elif kind in ("csv", "tsv", "jsonl"):
        text = {key: value for key, value in options.items() if key in TEXT_OPTIONS}
        table = read_table(path, told(**text), format="jsonl" if kind == "jsonl" else "text").frame.lazy()
    else:
        remedy = "leave it out" if name == COLUMN else "write one"
        raise ValueError(f"predict: keep and pairs go with tables such as .parquet and .csv, got {path.name} ({kind}); "
                         f"{remedy}")  # fmt: skip
    with reading(path, "a whole Parquet file", function="predict"):
        known = table.collect_schema().names()
    for column in columns:
        if column not in known:
            if column in _PAIR and name != COLUMN:
                raise ValueError(f"predict: pairs must have columns user_id and item_id, {path.name} has "
                                 f"{listed(known)}")  # fmt: skip
            raise ValueError(f"predict: keep must name columns of {path.name}, got {column!r}; "
                             f"{did_you_mean(column, known)}")  # fmt: skip
        if column == name:
            raise ValueError(f"predict: keep must not name {name!r}, which is written; rename that column")
    with reading(path, "a whole Parquet file", function="predict"):
        return table.select(columns).collect()
