"""What the command line keeps in a model folder beside the model: where its data came from, and titles to show.

Both are for convenience; a folder without them still loads, and ids are shown instead of titles.
"""

from __future__ import annotations

import inspect
import io
import json
import logging
from pathlib import Path
from typing import Any

import polars as pl

from deeprec import data
from deeprec._files import write_atomically
from deeprec._suggest import did_you_mean
from deeprec.data import Interactions
from deeprec.data.selection import SELECTION
from deeprec.data.tables import read_parquet, read_separated, typed

_RUN, _TITLES = "run.json", "titles.parquet"
_logger = logging.getLogger("deeprec")


def load_data(source: str, data_dir: Path | None, options: dict[str, Any]) -> Interactions:
    """The data set of a name or a path.

    Raises:
        ValueError: an option that `synthetic` does not have, or what `deeprec.data.load` raises.
    """
    if source == "synthetic":
        known = [*inspect.signature(data.synthetic).parameters, *SELECTION]
        for key in options:
            if key not in known:
                raise ValueError(f"data: unknown option {key!r} of synthetic; {did_you_mean(key, known)}")
    return data.load(source, data_dir, **options)


def with_tables(interactions: Interactions, users: Path | None, items: Path | None) -> Interactions:
    """The interactions with side information from .parquet, .csv or .tsv files with a column user_id or item_id.

    Raises:
        ValueError: a file of another kind, or what `deeprec.data.with_features` raises.
    """
    tables = {}
    for name, path, ids in (("users", users, interactions.user_ids), ("items", items, interactions.item_ids)):
        if path is None:
            continue
        key = f"{ids.name}_id"
        if path.suffix == ".parquet":
            tables[name] = read_parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            text = read_separated(path, "\t" if path.suffix == ".tsv" else ",").frame
            tables[name] = typed(text)
            if key in text.columns:
                tables[name] = tables[name].with_columns(ids.parse(text[key]).alias(key))
        else:
            raise ValueError(f"train: --{ids.name}-features must end in .parquet, .csv or .tsv, got {path.name}")
    return data.with_features(interactions, **tables)


def remember(folder: Path, interactions: Interactions, source: str, options: dict[str, Any]) -> list[str]:
    """Write run.json and, where the data has titles, titles.parquet; returns the names of the files."""
    remember_source(folder, source, options)
    features = interactions.item_features
    if features is None or "title" not in features.columns:
        return [_RUN]
    buffer = io.BytesIO()
    titles = pl.DataFrame({"item_id": interactions.item_ids.values, "title": features["title"].cast(pl.String)})
    titles.write_parquet(buffer)
    write_atomically(folder / _TITLES, buffer.getvalue())
    return [_RUN, _TITLES]


def remember_source(folder: Path, source: str, options: dict[str, Any]) -> None:
    """Write run.json: the name or path of the data, and the options it was read with."""
    place = str(Path(source).expanduser().resolve()) if Path(source).expanduser().exists() else source
    write_atomically(folder / _RUN, json.dumps({"data": place, "data_options": options}, indent=2).encode() + b"\n")


def source_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """(name or path, options) of the data that the model in `folder` was trained on.

    Raises:
        ValueError: the folder does not say; pass --data.
    """
    try:
        run = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        return str(run["data"]), dict(run["data_options"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} does not say which data it was trained on; pass --data NAME or --data PATH"
        ) from None


def titles_of(folder: Path) -> pl.DataFrame | None:
    """Frame of item_id and title, or None."""
    path = folder / _TITLES
    if not path.is_file():
        return None
    try:
        return pl.read_parquet(path, glob=False).select("item_id", "title")
    except (pl.exceptions.PolarsError, OSError) as error:
        _logger.warning("titles cannot be read from %s (%s); showing ids only", path, error)
        return None
