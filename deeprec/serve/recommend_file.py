"""Recommendations for any number of users into a file: in parts, so that memory is bounded and a killed run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec._files import make_folder, only_process, read_json, replacing, write_atomically, writing
from deeprec.contract import AnyModel
from deeprec.data.reading.arrays import require_pool
from deeprec.data.reading.hashing import hash_series
from deeprec.serve.arguments import require_flag, require_k
from deeprec.serve.index import ItemIndex
from deeprec.serve.output import require_writable, write_frame
from deeprec.serve.recommend import asked_users, id_maps, item_filter, recommend
from deeprec.surroundings import served

_NAME = "recommend_file"
_USERS_A_PART = 1024  # at least, unless their lists are long
_MOST_PARTS = 256  # until parts have as many rows as memory shall hold
_ROWS_A_PART = 1 << 20
_PLAN = "plan.json"
_REMEDY = "start anew without resume (--resume)"


@served
def recommend_file(
    model: AnyModel,
    output: str | Path,
    k: int = 10,
    *,
    users: Any = None,
    exclude_seen: bool = True,
    allow: Any = None,
    deny: Any = None,
    unknown: str = "raise",
    index: ItemIndex | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the k best items for all users, or for those named, into a Parquet, CSV, TSV or JSON lines file.

    Users are served a part at a time; finished parts lie in a folder OUTPUT.parts until the file is whole, so that
    what a process holds does not grow with their number. The file is the same, row for row, whether it was written in
    one go or resumed, and separated text and JSON lines are the same byte for byte.

    Args:
        output: ends in .parquet, .csv, .tsv or .jsonl; there is either the whole file or what was there before.
        k, exclude_seen, allow, deny, unknown, index: as in `recommend`.
        users: external ids of those who are served, in this order; None: all that the model knows.
        resume: keep the parts that a killed run with the same model and arguments has finished.
        on_progress: called with (users served, users in all) after each part.
    Returns:
        rows written: columns user_id, rank (from 1), item_id, score, and with unknown="popularity" fallback.
    Raises:
        ValueError: as `recommend`; an output of another kind; or resume, and the parts there are those of another model
            or of other arguments. WriteError: the disk is full or the folder cannot be written.
    """
    path = require_writable(_NAME, output)
    users_map, items_map = id_maps(model)
    k = min(require_k(_NAME, k), len(items_map))
    ids, _ = asked_users(_NAME, users_map.values if users is None else users, users_map, unknown)
    filters = {"allow": allow, "deny": deny}
    chosen = {each: item_filter(_NAME, each, items, items_map) for each, items in filters.items()}
    plan = {
        "model": model_digest(model),
        **{each: None if items is None else _digest(items) for each, items in chosen.items()},
        "k": k,
        "exclude_seen": require_flag(_NAME, "exclude_seen", exclude_seen),
        "unknown": unknown,
        "index": None if index is None else index.state_sha256(),
    }

    def lists_of(asked: pl.Series) -> pl.DataFrame:
        return recommend(model, asked, k, exclude_seen=exclude_seen, **filters, unknown=unknown, index=index)

    return write_in_parts(path, ids, k, plan, lists_of, resume=resume, on_progress=on_progress)


def write_in_parts(
    path: Path,
    ids: pl.Series,
    k: int,
    plan: dict[str, Any],
    lists_of: Callable[[pl.Series], pl.DataFrame],
    *,
    resume: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the lists of users into a file, a part at a time; `recommend_file` says how.

    Args:
        path: that `require_writable` let through.
        ids: of the users.
        k: length of a list.
        plan: all that shapes a list beside the users, JSON-ready: parts of another plan are not kept.
        lists_of: makes the lists of part of the users.
        resume, on_progress: as of `recommend_file`.
    Returns:
        rows written.
    """
    size = _users_a_part(len(ids), k)
    if path.suffix == ".parquet":
        require_pool(f"{_NAME}: writing {path}")
    folder = path.with_name(f"{path.name}.parts")
    with _parts_folder(folder, {**plan, "users": _ids_digest(ids), "users_a_part": size}, resume):
        parts, rows = [], 0
        for start in range(0, max(1, len(ids)), size):
            part = _kept_part(folder, start, path.suffix)
            if part is None:
                frame = lists_of(ids.slice(start, size))
                part = folder / f"{start:012d}-{len(frame)}{path.suffix}"
                write_frame(frame, part, header=start == 0)
            parts.append(part)
            rows += _rows_of(part)
            if on_progress is not None:
                on_progress(min(start + size, len(ids)), len(ids))
        _join(parts, path)
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _users_a_part(count: int, k: int) -> int:
    """Users of a part: not too many parts, and not too many rows in one."""
    blocks = -(-count // (_MOST_PARTS * _USERS_A_PART))
    return max(1, min(max(1, blocks) * _USERS_A_PART, _ROWS_A_PART // k))


@contextlib.contextmanager
def _parts_folder(folder: Path, plan: dict[str, Any], resume: bool) -> Iterator[None]:
    """The folder of parts for a plan, this process's alone; without `resume` what was there is removed.

    Raises:
        ValueError: resume, and the parts there are of another plan; or another process is writing them.
    """
    make_folder(folder)
    with only_process(folder, f"{_NAME}: {folder}", "wait for it, or take another output"):
        there = folder / _PLAN
        if resume and there.exists():
            known = read_json(there, _NAME, _REMEDY)
            if different := [key for key in plan if known.get(key) != plan[key]]:
                raise ValueError(
                    f"{_NAME}: resume needs the model and arguments that the parts in {folder} were made with, got "
                    f"another {' and '.join(different)}; give the same, or {_REMEDY}"
                )
        else:
            for left in folder.glob("[0-9]*"):
                left.unlink()
        write_atomically(there, json.dumps(plan, indent=2).encode() + b"\n")
        yield


def _kept_part(folder: Path, start: int, suffix: str) -> Path | None:
    """The finished part of the users from `start` on; written atomically, so it is whole."""
    return next(iter(folder.glob(f"{start:012d}-*{suffix}")), None)


def _rows_of(part: Path) -> int:
    return int(part.stem.partition("-")[2])


def _join(parts: list[Path], path: Path) -> None:
    """One file out of all parts, a piece in memory at a time."""
    if path.suffix != ".parquet":
        with replacing(path) as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)
        return
    whole_file = parts[0].with_name("whole.parquet")
    with writing(path):
        pl.scan_parquet(parts, glob=False).sink_parquet(whole_file)
        with whole_file.open("rb") as file:
            os.fsync(file.fileno())
        whole_file.replace(path)


def model_digest(model: AnyModel) -> str:
    """Of everything that shapes a list: weights, ids, and what users have seen."""
    digest = hashlib.sha256(f"{model.name} {model.config}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data.cast("B") if tensor.numel() else b"")
    for array in model.seen or ():
        digest.update(np.ascontiguousarray(array).tobytes())
    for ids in id_maps(model):
        digest.update(ids.sha256().encode())
    return digest.hexdigest()


def _ids_digest(ids: pl.Series) -> str:
    return hashlib.sha256(f"{ids.dtype} ".encode() + hash_series(ids).tobytes()).hexdigest()


def _digest(items: NDArray[np.int32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(items).tobytes()).hexdigest()
