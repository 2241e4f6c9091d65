"""What the command line keeps in a model folder beside the model: where its data came from, and titles to show.

Both are for convenience; a folder without them still loads, and ids are shown instead of titles.
"""

from __future__ import annotations

import inspect
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from deeprec import data
from deeprec._files import read_json, read_regular, sha256_of, write_atomically
from deeprec._record import RecordError, check_fields
from deeprec._suggest import did_you_mean
from deeprec.contract import Seen
from deeprec.data import Interactions
from deeprec.data.interactions.selection import SELECTION
from deeprec.data.reading.tables import read_table, typed
from deeprec.data.reading.text import with_gz
from deeprec.data.sets.datasets import domain_paths

_RUN, _TITLES, _EARLIER = "run.json", "titles.parquet", "earlier.safetensors"
_REMEDY = "pass --data NAME or --data PATH"
_logger = logging.getLogger("deeprec")


@dataclass(frozen=True)
class _Run:
    """What run.json holds.

    Attributes:
        data: its name or path.
        data_options: what it was read with.
        titles_sha256: of titles.parquet; "" where there is none.
        earlier_sha256: of earlier.safetensors, what users had met before the data; "" where there is none.
    """

    data: str
    data_options: dict[str, Any]
    titles_sha256: str = ""
    earlier_sha256: str = ""


def load_data(source: str, data_dir: Path | None, options: dict[str, Any]) -> Interactions:
    """The data set of a name or a path.

    Raises:
        ValueError: an option that `synthetic` does not have, or what `deeprec.data.load` raises.
    """
    require_named(source, data_dir, [entry.name for entry in data.list_datasets()])
    if source == "synthetic":
        known = [*inspect.signature(data.synthetic).parameters, *SELECTION]
        for key in options:
            if key not in known:
                raise ValueError(f"data: unknown option {key!r} of synthetic; {did_you_mean(key, known)}")
    return data.load(source, data_dir, **options)


def require_named(source: str, data_dir: Path | None, names: list[str]) -> None:
    """Raise ValueError for a --data-dir beside data that is not looked for there."""
    if data_dir is not None and source not in names:
        raise ValueError(f"data: --data-dir is where named data sets are looked for, got --data {source}; leave it out")


def with_tables(interactions: Interactions, users: Path | None, items: Path | None) -> Interactions:
    """The interactions with side information from tables (.parquet, .csv, .tsv, .jsonl) with user_id or item_id.

    Raises:
        ValueError: what `read_table` and `deeprec.data.with_features` raise.
    """
    tables = {}
    for name, path, ids in (("users", users, interactions.user_ids), ("items", items, interactions.item_ids)):
        if path is None:
            continue
        key = f"{ids.name}_id"
        frame = read_table(path).frame
        tables[name] = typed(frame)
        if key in frame.columns and frame.schema[key] == pl.String:
            tables[name] = tables[name].with_columns(ids.parse(frame[key]).alias(key))
    return data.with_features(interactions, **tables)


def remember(
    folder: Path,
    interactions: Interactions,
    source: str,
    options: dict[str, Any],
    *,
    titles: pl.DataFrame | None = None,
    earlier: Seen | None = None,
) -> list[str]:
    """Write run.json and, where there are titles, titles.parquet; returns the names of the files.

    Args:
        titles: frame of item_id and title, of items that the data does not say it of.
        earlier: what users had met before the data; written to earlier.safetensors.
    """
    checksums, written = {}, [_RUN]
    features = interactions.item_features
    own = None
    if features is not None and "title" in features.columns:
        own = pl.DataFrame({"item_id": interactions.item_ids.values, "title": features["title"].cast(pl.String)})
    if own is not None and titles is not None:
        own = pl.concat([own.drop_nulls("title"), titles]).unique("item_id", keep="first", maintain_order=True)
    own = titles if own is None else own
    if own is not None:
        buffer = io.BytesIO()
        own.write_parquet(buffer)
        write_atomically(folder / _TITLES, buffer.getvalue())
        checksums["titles_sha256"] = sha256_of(buffer.getvalue())
        written.append(_TITLES)
    if earlier is not None:
        content = save_arrays({name: np.ascontiguousarray(value) for name, value in earlier._asdict().items()})
        write_atomically(folder / _EARLIER, content)
        checksums["earlier_sha256"] = sha256_of(content)
        written.append(_EARLIER)
    remember_source(folder, source, options, **checksums)
    return written


def remember_source(folder: Path, source: str, options: dict[str, Any], **checksums: str) -> None:
    """Write run.json: the name or path of the data, the options it was read with, and checksums of files beside it."""
    places = [_whole(source)] if Path(source).expanduser().exists() else [_whole(one) for one in source.split(",")]
    if domains := domain_paths(source):
        places = [f"{name}={_whole(path)}" for name, path in domains.items()]
    options = {key: _whole(value) if key in ("validation", "test") else value for key, value in options.items()}
    run = {"data": ",".join(places), "data_options": options, "titles_sha256": "", **checksums}
    write_atomically(folder / _RUN, json.dumps(run, indent=2).encode() + b"\n")
    if "earlier_sha256" not in checksums:
        (folder / _EARLIER).unlink(missing_ok=True)  # of another run


def _whole(path: str) -> str:
    """The whole path of a file, or the text as it is where there is none (with .gz behind it)."""
    full = Path(path).expanduser()
    return str(full.resolve()) if full.exists() or with_gz(full) else path


def earlier_of(folder: Path) -> Seen | None:
    """What users had met before the data that the model in `folder` was trained on last, where `fit-more` trained it.

    Raises:
        ValueError: the file is missing or damaged.
    """
    run = _read_run(folder)
    if run is None or not run.earlier_sha256:
        return None
    path, remedy = folder / _EARLIER, "restore it, or run deeprec fit-more again"
    content = read_regular(path, "evaluate", remedy)
    if sha256_of(content) != run.earlier_sha256:
        raise ValueError(f"evaluate: {path} was changed after it was written (its SHA-256 is another); {remedy}")
    return Seen(**load_arrays(content))


def source_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """(name or path, options) of the data that the model in `folder` was trained on.

    Raises:
        ValueError: the folder does not say; pass --data.
    """
    run = _read_run(folder)
    if run is None:
        raise ValueError(f"{folder} does not say which data it was trained on; {_REMEDY}")
    return run.data, run.data_options


def _read_run(folder: Path) -> _Run | None:
    """What run.json says, None where there is none; ValueError where it is damaged."""
    try:
        return _Run(**check_fields(_Run, read_json(folder / _RUN, "run", _REMEDY), "", optional=True))
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise ValueError(f"run: {folder / _RUN}: {error}; {_REMEDY}") from None


def titles_of(folder: Path) -> pl.DataFrame | None:
    """Frame of item_id and title, or None."""
    path = folder / _TITLES
    if not path.is_file():
        return None
    try:
        run, content = _read_run(folder), path.read_bytes()
        # Checked before it is parsed: one wrong byte in a Parquet file can end the process.
        if run is not None and run.titles_sha256 not in ("", sha256_of(content)):
            raise ValueError("it was changed after it was written")
        return pl.read_parquet(io.BytesIO(content)).select("item_id", "title")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        _logger.warning("titles cannot be read from %s (%s); showing ids only", path, error)
        return None
