"""The model folder: weights, config, id maps or encoder, and card; loading it executes nothing.

`config.json` is written last and lists the SHA-256 of every other file of the model and of itself, so a folder is
either whole or not a model. Card, pictures and what else lies there are no part of the model.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from deeprec.contract import AnyModel, Schema, Seen, check_rows
from deeprec.data import IdMap
from deeprec.data.columns.encoder import FILES as ENCODER_FILES
from deeprec.data.columns.encoder import Encoder
from deeprec.data.reading.arrays import require_pool
from deeprec.device import Device, resolve_device
from deeprec.evaluate import Card
from deeprec.registry import config_class, create, model_class, names
from deeprec.serve.index import ItemIndex
from deeprec.serve.index_folder import is_index

FORMAT = 2  # 1 lists neither the encoder's files nor its own checksum
_REMEDY = "restore it or train the model anew"
_ENCODER = "encoder"
_TABLE_ENCODERS = ("user_encoder", "item_encoder")
_WEIGHTS, _SEEN, _USERS, _ITEMS = "model.safetensors", "seen.safetensors", "users.parquet", "items.parquet"
_TAGS = "tags.parquet"
_OF_ENCODER = tuple(f"{_ENCODER}/{name}" for name in ENCODER_FILES)
_OF_TABLES = {each: tuple(f"{each}/{name}" for name in ENCODER_FILES) for each in _TABLE_ENCODERS}
_FILES = (
    _WEIGHTS,
    _SEEN,
    _USERS,
    _ITEMS,
    _TAGS,
    *_OF_ENCODER,
    *(name for names in _OF_TABLES.values() for name in names),
)
_CONFIG, _INDEX = "config.json", "index"


@dataclass(frozen=True)
class _Head:
    """config.json, but for what the model is built for and the numbers that it keeps.

    Attributes:
        config: fields of the model's config class.
        sha256: of the other files, by name.
        checksum: of all the other keys; "" in format 1.
    """

    format: int
    model: str
    config: dict[str, Any]
    sha256: dict[str, str]
    checksum: str


class _Kept(NamedTuple):
    """How something that a model keeps beside its weights lies in the folder.

    Attributes:
        files: their names.
        since: first format that lists them.
        is_optional: whether it may be None, and its files missing.
    """

    files: tuple[str, ...]
    since: int = 1
    is_optional: bool = False


_KEPT = {
    "user_ids": _Kept((_USERS,)),
    "item_ids": _Kept((_ITEMS,)),
    "seen": _Kept((_SEEN,), is_optional=True),
    "tag_ids": _Kept((_TAGS,), since=2, is_optional=True),
    "encoder": _Kept(_OF_ENCODER, since=2),
    **{each: _Kept(files, since=2, is_optional=True) for each, files in _OF_TABLES.items()},
}
_RATE = "negative_rate"  # a number in config.json itself
_MODELS = "models"  # those that a model is made of, each in a folder of its own, by number


def save(model: AnyModel, directory: str | Path, *, card: Card | None = None) -> Path:
    """Write `model` into `directory` (made if needed): all files beside those of a model that is there, then renamed.

    Returns:
        the directory.
    Raises:
        ValueError: the model was never built or fitted, or a weight is NaN or infinite.
        OSError: not writable or disk full; a model that was there is as it was.
    """
    folder = Path(directory)
    sizes = model.require_built()
    _require_kept(model)
    weights = model.state_dict()
    _require_finite(weights, f"save: the weights of {model.name}", "train it with a smaller lr")
    config: dict[str, Any] = {"format": FORMAT, "model": model.name, model.sizes: sizes.as_dict()}
    if _RATE in model.keeps:
        config[_RATE] = model.negative_rate
    make_folder(folder)
    for place in (folder, folder / _ENCODER, *(folder / each for each in _TABLE_ENCODERS)):
        remove_unfinished(place)
    with unfinished_directory(folder / "model") as beside:
        digests = {_WEIGHTS: write_tensors(beside / _WEIGHTS, weights)}
        for name in model.keeps:
            if name == _MODELS:
                digests |= _write_models(beside, getattr(model, name))
            elif name != _RATE and (value := getattr(model, name)) is not None:
                digests |= _write_kept(beside, name, value)
        config |= {"config": dataclasses.asdict(model.config), "sha256": digests}
        config["checksum"] = _checksum(config)
        write_atomically(beside / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        if card is not None:
            card.write(beside / "card.json")
        names = [*digests, *(("card.json",) if card is not None else ()), _CONFIG]
        _move_into_place(beside, folder, names)
    _keep_index(model, folder / _INDEX)
    return folder


def _keep_index(model: AnyModel, place: Path) -> None:
    """Write the index of a model beside it, and remove that of a model that was there before."""
    index = index_of(model)
    if index is not None:
        index.save(place)
    elif is_index(place):
        shutil.rmtree(place)


def index_of(model: AnyModel) -> ItemIndex | None:
    """The index that a model keeps, read from its folder when it is first asked for; None without one.

    Raises:
        ValueError: the files of the index are damaged. ImportError: its library is not installed.
    """
    if getattr(model, "item_index", None) is None and getattr(model, "index_folder", None) is not None:
        model.item_index, model.index_folder = ItemIndex.load(model.index_folder), None
    kept: ItemIndex | None = getattr(model, "item_index", None)
    return kept


def _require_kept(model: AnyModel) -> None:
    for name in model.keeps:
        if name in _KEPT and not _KEPT[name].is_optional and getattr(model, name) is None:
            what = "encoder" if name == "encoder" else "id maps"
            raise ValueError(
                f"save: {model.name} has no {what}; fit it first (a plain module: torch.save its state_dict)"
            )


def _write_models(directory: Path, models: Sequence[AnyModel]) -> dict[str, str]:
    """Write the models that a model is made of; SHA-256 of their files by name."""
    digests: dict[str, str] = {}
    for number, model in enumerate(models):
        place = f"{_MODELS}/{number}"
        folder = save(model, directory / place)
        own = read_json(folder / _CONFIG, "save", _REMEDY)
        digests |= {f"{place}/{name}": digest for name, digest in own["sha256"].items()}
        digests[f"{place}/{_CONFIG}"] = sha256_of((folder / _CONFIG).read_bytes())
    return digests


def _number_of(name: str) -> int | None:
    """Which of these models a file belongs to; None where it is no file of them."""
    top, _, rest = name.partition("/")
    number, _, file = rest.partition("/")
    is_theirs = top == _MODELS and number.isdecimal() and file in (*_FILES, _CONFIG)
    return int(number) if is_theirs else None


def _write_kept(directory: Path, name: str, value: Any) -> dict[str, str]:
    """Write what a model keeps; SHA-256 of its files by name."""
    if name in (_ENCODER, *_TABLE_ENCODERS):
        return {f"{name}/{file}": digest for file, digest in value.save(directory / name).items()}
    (file,) = _KEPT[name].files
    if name == "seen":
        content = save_tensors(
            {part: torch.from_numpy(np.ascontiguousarray(getattr(value, part))) for part in Seen._fields}
        )
    else:
        content = _parquet(value)
    write_atomically(directory / file, content)
    return {file: sha256_of(content)}


def _move_into_place(beside: Path, folder: Path, names: list[str]) -> None:
    """Rename files into `folder`, in order, and remove those of another model that was there."""
    for name in names:
        if "/" in name:
            make_folder((folder / name).parent)
        (beside / name).replace(folder / name)
    for name in _FILES:
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    numbers = {number for number in map(_number_of, names) if number is not None}
    if numbers:
        for place in (folder / _MODELS).iterdir():
            if place.name.isdecimal() and int(place.name) not in numbers:
                shutil.rmtree(place)


def load(directory: str | Path, *, device: Device = "auto") -> Any:
    """The model in a folder written by `save`, in evaluation mode.

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
    head, sizes, kept = _read_head(folder)
    kind = model_class(head.model)
    contents = _read_files(folder, head, kind.keeps)
    try:
        settings = config_from_dict(config_class(head.model), head.config)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"load: config in {folder / 'config.json'} is wrong ({error}); {_REMEDY}") from None
    for name in kind.keeps:
        if name in _KEPT:
            kept[name] = _read_kept(folder, name, contents, sizes)
        elif name == _MODELS:
            numbers = sorted({number for number in map(_number_of, contents) if number is not None})
            if numbers != list(range(sizes.num_members)):
                raise ValueError(f"load: {folder} must hold {sizes.num_members} models, got {numbers}; {_REMEDY}")
            kept[name] = [_load(folder / _MODELS / str(number)) for number in numbers]
    model = _with_weights(folder, head.model, {kind.sizes: sizes, "config": settings}, contents[_WEIGHTS])
    for name, value in kept.items():
        setattr(model, name, value)
    if is_index(folder / _INDEX):
        model.index_folder = folder / _INDEX
    return model


def _read_kept(folder: Path, name: str, contents: dict[str, bytes], sizes: Any) -> Any:
    """What a model built for `sizes` keeps, out of the files' contents; the encoder reads its own."""
    if name == "encoder":
        encoder = Encoder.load(folder / _ENCODER)
        if encoder.inputs != sizes:
            raise ValueError(f"load: {folder / _ENCODER} belongs to another model; {_REMEDY}")
        return encoder
    if name in _TABLE_ENCODERS:  # whether it is the model's own its sizes say
        return Encoder.load(folder / name) if _KEPT[name].files[0] in contents else None
    (file,) = _KEPT[name].files
    if name == "seen":
        return _seen(folder / file, contents[file], sizes) if file in contents else None
    if name == "tag_ids":
        count = getattr(sizes, "item_terms", 0) or sizes.num_features
        return _id_map(folder / file, contents[file], "tag", count) if file in contents else None
    count = sizes.num_users if name == "user_ids" else sizes.num_items
    return _id_map(folder / file, contents[file], name.removesuffix("_ids"), count)


def _read_head(folder: Path) -> tuple[_Head, Any, dict[str, Any]]:
    """config.json: the head, what the model is built for, and the numbers that it keeps."""
    path = folder / _CONFIG
    try:
        values = read_json(path, "load", _REMEDY)
    except FileNotFoundError:
        hint = "training stopped early; go on with --resume" if any(folder.glob("checkpoint*")) else "check the path"
        if (folder / "pipeline.json").is_file():
            hint = "it holds a pipeline: deeprec.pipeline.Pipeline.load"
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
    kind = model_class(name)
    own = {field.name for field in dataclasses.fields(_Head)}
    numbers = [_RATE] if _RATE in kind.keeps else []
    whole = {"checksum": "", **values} if version == 1 else values
    if version == 1 and isinstance(whole.get("schema"), dict):  # the first ones had no features
        whole = {**whole, "schema": {"num_features": 0, **whole["schema"]}}
    try:
        for key in (kind.sizes, *numbers):
            if key not in whole:
                raise RecordError(f"{key} is missing")
        head: _Head = typed(_Head, {k: v for k, v in whole.items() if k in own or k not in (kind.sizes, *numbers)}, "")
        sizes = typed(kind.sizes_class, whole[kind.sizes], kind.sizes)
        kept = {key: typed(float, whole[key], key) for key in numbers}
        if numbers and not 0 < kept[_RATE] <= 1:
            raise RecordError(f"{_RATE} must lie in (0, 1], got {kept[_RATE]}")
        # An option that is younger than the folder has its default there.
        check_fields(config_class(name), head.config, "config", optional=True)
    except RecordError as error:
        raise ValueError(f"load: {path}: {error}; {_REMEDY}") from None
    if version > 1 and head.checksum != _checksum(values):
        raise ValueError(f"load: {path} was changed after it was written (its checksum is another); {_REMEDY}")
    return head, sizes, kept


def _checksum(config: dict[str, Any]) -> str:
    """SHA-256 of everything in config.json but this."""
    return sha256_of(json.dumps({k: v for k, v in config.items() if k != "checksum"}, sort_keys=True).encode())


def _read_files(folder: Path, head: _Head, keeps: Sequence[str]) -> dict[str, bytes]:
    """The content of every file of the model; the files that are there and those that are listed must be the same."""
    kept = [_KEPT[name] for name in keeps if name in _KEPT]
    needed = {_WEIGHTS, *(f for each in kept for f in each.files if each.since <= head.format and not each.is_optional)}
    allowed = needed | {file for each in kept for file in each.files if each.since <= head.format}
    listed, config = set(head.sha256), folder / _CONFIG
    if _MODELS in keeps:
        allowed |= {name for name in listed if _number_of(name) is not None}
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
