"""The pipeline folder: config, ids, tables, arrays, and the model folders of its sources and its ranker.

It is written beside what is there and renamed as a whole; loading executes nothing. `pipeline.json` lists the SHA-256
of every other file and of itself, and of each model that of its config.json, which lists the model's own files.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from deeprec._files import (
    make_folder,
    read_json,
    read_regular,
    replace_directory,
    sha256_of,
    unfinished_directory,
    write_atomically,
)
from deeprec._suggest import did_you_mean
from deeprec._tensors import write_tensors
from deeprec.contract import check_rows
from deeprec.data import IdMap
from deeprec.data.reading.arrays import require_pool
from deeprec.device import Device
from deeprec.pipeline.config import ByClicks, ModelSource, PipelineConfig
from deeprec.pipeline.rows import Lists
from deeprec.pipeline.stages import History, Parts, Stages, State
from deeprec.serve.folder import load as load_model
from deeprec.serve.folder import save as save_model

FORMAT = 1
HEAD = "pipeline.json"
_ARRAYS, _USERS, _ITEMS = "arrays.safetensors", "users.parquet", "items.parquet"
_USER_IDS, _ITEM_IDS = "user_ids.parquet", "item_ids.parquet"
_RANKER, _SOURCES, _MODEL = "ranker", "sources", "config.json"
_KEYS = ("format", "config", "data", "report", "sha256", "checksum")
_REMEDY = "restore the folder, or fit the pipeline anew"


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder is that of a pipeline."""
    return (Path(folder) / HEAD).is_file()


def save(pipeline: Stages, report: dict[str, Any], directory: str | Path) -> Path:
    """Write a pipeline and its figures into `directory`, in the place of a pipeline that is there.

    Returns:
        the directory.
    Raises:
        ValueError: something that is no pipeline is there. WriteError: not writable or disk full; a pipeline that was
            there is as it was.
    """
    folder, state = Path(directory), pipeline.state
    if folder.exists() and not is_pipeline(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"pipeline: {folder} must be new, empty or a pipeline, got something else; take another folder"
        )
    with unfinished_directory(folder) as beside:
        digests = {}
        for name, model in pipeline.models.items():
            save_model(model, beside / _SOURCES / name)
        if pipeline.click_model is not None:
            save_model(pipeline.click_model, beside / _RANKER)
        for name, table in ((_USERS, state.users), (_ITEMS, state.items)):
            if table is not None:
                digests[name] = _write(beside / name, table)
        for name, ids in ((_USER_IDS, state.user_ids), (_ITEM_IDS, state.item_ids)):
            digests[name] = _write(beside / name, ids.values.alias(f"{ids.name}_id").to_frame())
        digests[_ARRAYS] = write_tensors(beside / _ARRAYS, _tensors(state))
        for path in _model_folders(pipeline.config):
            digests[f"{path}/{_MODEL}"] = sha256_of((beside / path / _MODEL).read_bytes())
        head = {
            "format": FORMAT,
            "config": pipeline.config.as_dict(),
            "data": state.data,
            "report": report,
            "sha256": digests,
        }
        head["checksum"] = _checksum(head)
        write_atomically(beside / HEAD, (json.dumps(head, indent=2) + "\n").encode())
        make_folder(folder.parent)
        replace_directory(beside, folder)
    return folder


def load(directory: str | Path, *, device: Device = "auto") -> tuple[Parts, dict[str, Any]]:
    """The pipeline in a folder written by `save`, and its figures.

    Args:
        device: where its models live; "auto": a GPU where torch sees one.
    Raises:
        FileNotFoundError: no pipeline there. ValueError: from a newer deeprec, damaged, or with a model of other ids.
    """
    folder = Path(directory)
    head = _read_head(folder)
    try:
        config = PipelineConfig.from_dict(head["config"])
    except ValueError as error:
        raise ValueError(f"pipeline: config in {folder / HEAD} is wrong ({error}); {_REMEDY}") from None
    contents = {name: _checked(folder, name, digest) for name, digest in head["sha256"].items()}
    for name in (_ARRAYS, _USER_IDS, _ITEM_IDS, *(f"{path}/{_MODEL}" for path in _model_folders(config))):
        if name not in contents:
            raise ValueError(f"pipeline: {folder / HEAD} must list {name}, so that it can be checked; {_REMEDY}")
    require_pool(f"pipeline: reading {folder}")
    try:
        tables = {name: pl.read_parquet(io.BytesIO(contents[name])) for name in contents if name.endswith(".parquet")}
        ids = [IdMap(tables[name].to_series(), each) for name, each in ((_USER_IDS, "user"), (_ITEM_IDS, "item"))]
        state = _state(load_arrays(contents[_ARRAYS]), ids, tables, head["data"])
    except (pl.exceptions.PolarsError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"pipeline: {folder} holds no pipeline that can be read ({error}); {_REMEDY}") from None
    models = {source.name: load_model(folder / _SOURCES / source.name, device=device)
              for source in config.sources if isinstance(source, ModelSource)}  # fmt: skip
    ranker = load_model(folder / _RANKER, device=device) if isinstance(config.ranking, ByClicks) else None
    return Parts(config, state, models, ranker), head["report"]


def digest_of(pipeline: Stages) -> str:
    """SHA-256 of everything that shapes a list."""
    models = [*pipeline.models.values(), *([] if pipeline.click_model is None else [pipeline.click_model])]
    digest = hashlib.sha256(json.dumps(pipeline.config.as_dict(), sort_keys=True).encode())
    for model in models:
        digest.update(f"{model.name} {model.config}".encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    for name, values in sorted(_tensors(pipeline.state).items()):
        digest.update(name.encode() + values.numpy().tobytes())
    for ids in (pipeline.user_ids, pipeline.item_ids):
        digest.update(ids.sha256().encode())
    return digest.hexdigest()


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / HEAD
    try:
        head = read_json(path, "pipeline", _REMEDY)
    except FileNotFoundError:
        hint = "it holds a model; take deeprec.load" if (folder / _MODEL).is_file() else "check the path"
        raise FileNotFoundError(f"pipeline: no pipeline in {folder} ({HEAD} is missing); {hint}") from None
    version = head.get("format")
    if type(version) is not int or version < 1:
        raise ValueError(f"pipeline: format in {path} must be a whole number, got {version!r:.80}; {_REMEDY}")
    if version > FORMAT:
        raise ValueError(
            f"pipeline: {path} has a newer format than the {FORMAT} that this deeprec reads; upgrade deeprec"
        )
    for key in _KEYS:
        if key not in head:
            raise ValueError(f"pipeline: {path}: {key} is missing; {_REMEDY}")
    for key in head:
        if key not in _KEYS:
            raise ValueError(f"pipeline: {path}: {key} is unknown; {did_you_mean(key, _KEYS)}")
    if head["checksum"] != _checksum(head) or not isinstance(head["sha256"], dict):
        raise ValueError(f"pipeline: {path} was changed after it was written (its checksum is another); {_REMEDY}")
    return head


def _checksum(head: dict[str, Any]) -> str:
    return sha256_of(json.dumps({k: v for k, v in head.items() if k != "checksum"}, sort_keys=True).encode())


def _checked(folder: Path, name: str, digest: str) -> bytes:
    try:
        content = read_regular(folder / name, "pipeline", _REMEDY)
    except FileNotFoundError as error:
        raise ValueError(f"{error} (the folder is incomplete)") from None
    if sha256_of(content) != digest:
        raise ValueError(
            f"pipeline: {folder / name} was changed after it was written (its SHA-256 is not the one in {HEAD}); "
            f"{_REMEDY}"
        )
    return content


def _model_folders(config: PipelineConfig) -> list[str]:
    folders = [f"{_SOURCES}/{source.name}" for source in config.sources if isinstance(source, ModelSource)]
    return folders + ([_RANKER] if isinstance(config.ranking, ByClicks) else [])


def _write(path: Path, table: pl.DataFrame) -> str:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_atomically(path, buffer.getvalue())
    return sha256_of(buffer.getvalue())


def _tensors(state: State) -> dict[str, torch.Tensor]:
    arrays = {
        "history/offsets": state.history.lists.offsets,
        "history/items": state.history.lists.items.astype(np.int32),
        "history/parts": state.history.parts,
        "counts": state.counts,
        **{f"source/{name}": values for name, values in state.arrays.items()},
    }
    if state.is_out is not None:
        arrays["is_out"] = state.is_out
    if state.blocked is not None:
        arrays |= {"blocked/offsets": state.blocked.offsets, "blocked/items": state.blocked.items}
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def _state(arrays: dict[str, Any], ids: list[IdMap], tables: dict[str, pl.DataFrame], data: dict[str, Any]) -> State:
    """Out of the files' contents; KeyError or ValueError where something is missing or does not fit."""
    lists = Lists(arrays["history/offsets"], arrays["history/items"].astype(np.int64))
    check_rows(lists.offsets, arrays["history/items"], len(ids[0]), len(ids[1]))
    blocked = Lists(arrays["blocked/offsets"], arrays["blocked/items"]) if "blocked/offsets" in arrays else None
    return State(
        ids[0],
        ids[1],
        History(lists, arrays["history/parts"]),
        tables.get(_USERS),
        tables.get(_ITEMS),
        arrays.get("is_out"),
        blocked,
        arrays["counts"],
        {name.removeprefix("source/"): values for name, values in arrays.items() if name.startswith("source/")},
        data,
    )
