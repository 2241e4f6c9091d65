"""The model folder: weights, config, id maps or encoder, and card; loading it executes nothing.

`config.json` is written last and lists the SHA-256 of every other file of the model and of itself, so a folder is
either whole or not a model. Card, pictures and what else lies there are no part of the model.
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from deeprec._files import (
    make_folder,
    read_json,
    read_regular,
    remove_unfinished,
    sha256_of,
    unfinished_directory,
    write_atomically,
)
from deeprec._record import RecordError, check_fields, typed
from deeprec._suggest import did_you_mean
from deeprec._tensors import write_tensors
from deeprec.config import config_from_dict
from deeprec.contract import Schema, Seen, check_rows
from deeprec.data import IdMap
from deeprec.data.columns.encoder import FILES as ENCODER_FILES
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Inputs
from deeprec.data.reading.arrays import require_pool
from deeprec.device import Device, resolve_device
from deeprec.evaluate import Card
from deeprec.models.base import Recommender
from deeprec.models.click import ClickModel
from deeprec.registry import config_class, create, is_click_model, names

FORMAT = 2  # 1 lists neither the encoder's files nor its own checksum
_REMEDY = "restore it or train the model anew"
_ENCODER = "encoder"
_WEIGHTS, _SEEN, _USERS, _ITEMS = "model.safetensors", "seen.safetensors", "users.parquet", "items.parquet"
_OF_ENCODER = tuple(f"{_ENCODER}/{name}" for name in ENCODER_FILES)
_FILES = (_WEIGHTS, _SEEN, _USERS, _ITEMS, *_OF_ENCODER)


@dataclass(frozen=True)
class _RecommenderHead:
    """config.json of a `Recommender`.

    Attributes:
        config: fields of the model's config class.
        sha256: of the other files, by name.
        checksum: of all the other keys; "" in format 1.
    """

    format: int
    model: str
    schema: Schema
    config: dict[str, Any]
    sha256: dict[str, str]
    checksum: str


@dataclass(frozen=True)
class _ClickHead:
    """config.json of a `ClickModel`."""

    format: int
    model: str
    inputs: Inputs
    negative_rate: float
    config: dict[str, Any]
    sha256: dict[str, str]
    checksum: str

    def __post_init__(self) -> None:
        if not 0 < self.negative_rate <= 1:
            raise ValueError(f"negative_rate must lie in (0, 1], got {self.negative_rate}")


def save(model: Recommender | ClickModel, directory: str | Path, *, card: Card | None = None) -> Path:
    """Write `model` into `directory` (made if needed): all files beside those of a model that is there, then renamed.

    Returns:
        the directory.
    Raises:
        ValueError: the model was never built or fitted, or a weight is NaN or infinite.
        OSError: not writable or disk full; a model that was there is as it was.
    """
    files: dict[str, bytes] = {}
    folder = Path(directory)
    config: dict[str, Any] = {"format": FORMAT, "model": model.name}
    if isinstance(model, ClickModel):
        inputs = model.require_built()
        if model.encoder is None:
            raise ValueError(
                f"save: {model.name} has no encoder; fit it first (a plain module: torch.save its state_dict)"
            )
        config |= {"inputs": inputs.as_dict(), "negative_rate": model.negative_rate}
    else:
        schema = model.require_built()
        if model.user_ids is None or model.item_ids is None:
            raise ValueError(
                f"save: {model.name} has no id maps; fit it first (a plain module: torch.save its state_dict)"
            )
        config["schema"] = dataclasses.asdict(schema)
        files |= {_USERS: _parquet(model.user_ids), _ITEMS: _parquet(model.item_ids)}
        if model.seen is not None:
            seen = {name: torch.from_numpy(np.ascontiguousarray(getattr(model.seen, name))) for name in Seen._fields}
            files[_SEEN] = save_tensors(seen)
    weights = model.state_dict()
    _require_finite(weights, f"save: the weights of {model.name}", "train it with a smaller lr")
    make_folder(folder)
    for place in (folder, folder / _ENCODER):
        remove_unfinished(place)
    with unfinished_directory(folder / "model") as beside:
        digests = {_WEIGHTS: write_tensors(beside / _WEIGHTS, weights)}
        if isinstance(model, ClickModel):
            written = model.encoder.save(beside / _ENCODER)
            digests |= {f"{_ENCODER}/{name}": digest for name, digest in written.items()}
        digests |= {name: sha256_of(content) for name, content in files.items()}
        config |= {"config": dataclasses.asdict(model.config), "sha256": digests}
        config["checksum"] = _checksum(config)
        files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
        for name, content in files.items():
            write_atomically(beside / name, content)
        if card is not None:
            card.write(beside / "card.json")
        names = [*digests, *(("card.json",) if card is not None else ()), "config.json"]
        _move_into_place(beside, folder, names)
    return folder


def _move_into_place(beside: Path, folder: Path, names: list[str]) -> None:
    """Rename files into `folder`, in order, and remove those of another model that was there."""
    for name in names:
        if "/" in name:
            make_folder((folder / name).parent)
        (beside / name).replace(folder / name)
    for name in _FILES:
        if name not in names:
            (folder / name).unlink(missing_ok=True)


def load(directory: str | Path, *, device: Device = "auto") -> Any:
    """The `Recommender` or `ClickModel` in a folder written by `save`, in evaluation mode.

    Args:
        device: where the model lives, whatever it was trained on: "cpu", "cuda", "cuda:1"; "auto": a GPU where torch
            sees one.
    Raises:
        FileNotFoundError: no model there.
        ValueError: from a newer deeprec, damaged, or changed since it was written; names the file. Or no such device.
    """
    target = resolve_device(device, "load")
    return _load(directory).to(target).eval()


def _load(directory: str | Path) -> Any:
    """The model on the CPU."""
    folder = Path(directory)
    head = _read_head(folder)
    contents = _read_files(folder, head)
    try:
        settings = config_from_dict(config_class(head.model), head.config)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"load: config in {folder / 'config.json'} is wrong ({error}); {_REMEDY}") from None
    if isinstance(head, _ClickHead):
        options: dict[str, Any] = {"inputs": head.inputs, "config": settings}
        click_model: ClickModel = _with_weights(folder, head.model, options, contents[_WEIGHTS])
        click_model.encoder, click_model.negative_rate = Encoder.load(folder / _ENCODER), head.negative_rate
        if click_model.encoder.inputs != head.inputs:
            raise ValueError(f"load: {folder / _ENCODER} belongs to another model; {_REMEDY}")
        return click_model
    users = _id_map(folder / _USERS, contents[_USERS], "user", head.schema.num_users)
    items = _id_map(folder / _ITEMS, contents[_ITEMS], "item", head.schema.num_items)
    seen = _seen(folder / _SEEN, contents[_SEEN], head.schema) if _SEEN in contents else None
    options = {"schema": head.schema, "config": settings}
    model: Recommender = _with_weights(folder, head.model, options, contents[_WEIGHTS])
    model.user_ids, model.item_ids, model.seen = users, items, seen
    return model


def _read_head(folder: Path) -> _RecommenderHead | _ClickHead:
    path = folder / "config.json"
    try:
        values = read_json(path, "load", _REMEDY)
    except FileNotFoundError:
        hint = "training stopped early; go on with --resume" if any(folder.glob("checkpoint*")) else "check the path"
        raise FileNotFoundError(f"load: no model in {folder} (config.json is missing); {hint}") from None
    version, name = values.get("format"), values.get("model")
    if type(version) is not int or version < 1:
        raise ValueError(f"load: format in {path} must be a whole number from 1 to {FORMAT}, got {version!r:.80}; "
                         f"{_REMEDY}")  # fmt: skip
    if version > FORMAT:
        raise ValueError(
            f"load: {path} has a newer format than the {FORMAT} that this deeprec reads up to; upgrade deeprec"
        )
    if not isinstance(name, str) or name not in names():
        raise ValueError(f"load: model in {path} is unknown, got {name!r:.80}; {did_you_mean(str(name), names())}")
    kind = _ClickHead if is_click_model(name) else _RecommenderHead
    try:
        if version == 1:
            values = {**values, "checksum": ""}
            if isinstance(values.get("schema"), dict):  # the first ones had no features
                values["schema"] = {"num_features": 0, **values["schema"]}
        head: _RecommenderHead | _ClickHead = typed(kind, values, "")
        check_fields(config_class(name), head.config, "config", optional=version == 1)
    except RecordError as error:
        raise ValueError(f"load: {path}: {error}; {_REMEDY}") from None
    if version > 1 and head.checksum != _checksum(values):
        raise ValueError(f"load: {path} was changed after it was written (its checksum is another); {_REMEDY}")
    return head


def _checksum(config: dict[str, Any]) -> str:
    """SHA-256 of everything in config.json but this."""
    return sha256_of(json.dumps({k: v for k, v in config.items() if k != "checksum"}, sort_keys=True).encode())


def _read_files(folder: Path, head: _RecommenderHead | _ClickHead) -> dict[str, bytes]:
    """The content of every file of the model; the files that are there and those that are listed must be the same."""
    if isinstance(head, _ClickHead):
        needed = {_WEIGHTS, *(_OF_ENCODER if head.format > 1 else ())}
    else:
        needed = {_WEIGHTS, _USERS, _ITEMS}
    allowed = needed | ({_SEEN} if isinstance(head, _RecommenderHead) else set())
    listed, config = set(head.sha256), folder / "config.json"
    if listed - allowed:
        raise ValueError(f"load: {config} lists {min(listed - allowed)!r:.80}, which is no file of {head.model}; "
                         f"{_REMEDY}")  # fmt: skip
    present = {name for name in allowed if (folder / name).is_symlink() or (folder / name).exists()}
    for name in sorted((needed | present) - listed):
        raise ValueError(f"load: {config} must list {name} under sha256, so that it can be checked; {_REMEDY}")
    contents = {}
    for name in sorted(listed):
        try:
            contents[name] = read_regular(folder / name, "load", _REMEDY)
        except FileNotFoundError as error:
            raise ValueError(f"{error} (the folder is incomplete)") from None
        if sha256_of(contents[name]) != head.sha256[name]:
            raise ValueError(
                f"load: {folder / name} was changed after it was written (its SHA-256 is not the one in config.json); "
                f"{_REMEDY}"
            )
    return contents


def _with_weights(folder: Path, name: str, options: dict[str, Any], content: bytes) -> Any:
    """The model with the weights of a file, which must be all of its tensors, of their shapes, and finite.

    A model without memory is made first: sizes that do not fit the file are seen before any memory is taken.
    """
    path = folder / _WEIGHTS
    try:
        weights = load_tensors(content)
        with torch.device("meta"):
            shell = create(name, **options)
        shapes = shell.state_dict()
        for key, value in weights.items():
            if key in shapes and not _same_kind(value.dtype, shapes[key].dtype):
                raise ValueError(f"{key} must be {shapes[key].dtype}, got {value.dtype}")
        shell.load_state_dict(weights, assign=True)
        _require_finite(weights, f"load: the weights in {path}", _REMEDY)
        model = create(name, **options)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, KeyError) as error:
        if str(error).startswith("load: "):
            raise
        raise ValueError(f"load: {path} does not fit the model of config.json ({error}); {_REMEDY}") from None
    return model


def _same_kind(ours: torch.dtype, theirs: torch.dtype) -> bool:
    """Weights of another precision are rounded as `load_state_dict` does; numbers never stand for indices."""
    return ours == theirs or (ours.is_floating_point and theirs.is_floating_point)


def _require_finite(weights: dict[str, Tensor], what: str, remedy: str) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ValueError(f"{what} must be finite, got values from {low} to {high} in {name}; {remedy}")


def _id_map(path: Path, content: bytes, name: str, count: int) -> IdMap:
    require_pool(f"load: reading {path}")
    try:
        frame = pl.read_parquet(io.BytesIO(content))
        if frame.columns != [f"{name}_id"] or len(frame) != count:
            raise ValueError(
                f"one column {name}_id with {count} rows is needed, got {frame.columns} with {len(frame)} rows"
            )
        return IdMap(frame.to_series(), name)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, TypeError, OSError) as error:
        raise ValueError(f"load: {path} holds no ids of this model ({error}); {_REMEDY}") from None


def _seen(path: Path, content: bytes, schema: Schema) -> Seen:
    try:
        tensors = load_tensors(content)
        if set(tensors) != set(Seen._fields):
            raise ValueError(f"tensors {', '.join(Seen._fields)} are needed, got {', '.join(sorted(tensors))}")
        seen = Seen(*(tensors[name].numpy() for name in Seen._fields))
        check_rows(seen.offsets, seen.items, schema.num_users, schema.num_items)
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"load: {path} holds no lists of seen items of this model ({error}); {_REMEDY}") from None
    return seen


def _parquet(ids: IdMap) -> bytes:
    buffer = io.BytesIO()
    ids.values.alias(f"{ids.name}_id").to_frame().write_parquet(buffer)
    return buffer.getvalue()
