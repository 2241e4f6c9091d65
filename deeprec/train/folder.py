"""The model folder: weights, config, id maps or encoder, and card; loading it executes nothing.

`config.json` is written last and lists the SHA-256 of every other file, so a folder is either whole or not a model.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from deeprec._files import make_folder, sha256_of, write_atomically
from deeprec.data import IdMap
from deeprec.data.encoder import Encoder
from deeprec.data.inputs import Inputs
from deeprec.evaluate import Card
from deeprec.models.base import Recommender, Schema, Seen
from deeprec.models.click import ClickModel
from deeprec.models.config import TrainConfig, config_from_dict
from deeprec.models.registry import config_class, create, is_click_model
from deeprec.train._tensors import write_tensors

FORMAT = 1
_ENCODER = "encoder"
_WEIGHTS, _SEEN, _USERS, _ITEMS = "model.safetensors", "seen.safetensors", "users.parquet", "items.parquet"


def save(model: Recommender | ClickModel, directory: str | Path, *, card: Card | None = None) -> Path:
    """Write `model` into `directory` (made if needed), each file atomically.

    Returns:
        the directory.
    Raises:
        ValueError: the model was never built or fitted.
        OSError: not writable or disk full; a model that was there stays loadable until the last file is replaced.
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
        model.encoder.save(folder / _ENCODER)
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
    make_folder(folder)
    digests = {_WEIGHTS: write_tensors(folder / _WEIGHTS, model.state_dict())}
    digests |= {name: sha256_of(content) for name, content in files.items()}
    config |= {"config": dataclasses.asdict(model.config), "sha256": digests}
    for name, content in files.items():
        write_atomically(folder / name, content)
    if card is not None:
        card.write(folder / "card.json")
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return folder


def load(directory: str | Path) -> Any:
    """The `Recommender` or `ClickModel` in a folder written by `save`, in evaluation mode.

    Raises:
        FileNotFoundError: no model there.
        ValueError: from a newer deeprec, damaged, or changed since it was written.
    """
    folder = Path(directory)
    config = _read_config(folder)
    contents = {name: _read_verified(folder / name, digest) for name, digest in config["sha256"].items()}
    settings = config_from_dict(config_class(config["model"]), config["config"])
    try:
        if is_click_model(config["model"]):
            return _load_click_model(folder, config, settings, contents)
        model: Recommender = create(config["model"], schema=Schema(**config["schema"]), config=settings)
        model.load_state_dict(load_tensors(contents[_WEIGHTS]))
        if _SEEN in contents:
            seen = load_tensors(contents[_SEEN])
            model.seen = Seen(*(seen[name].numpy() for name in Seen._fields))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"load: the weights in {folder} do not fit the model ({error}); train it anew") from error
    model.user_ids = IdMap.read_parquet(folder / _USERS, "user")
    model.item_ids = IdMap.read_parquet(folder / _ITEMS, "item")
    return model.eval()


def _load_click_model(
    folder: Path, config: dict[str, Any], settings: TrainConfig, contents: dict[str, bytes]
) -> ClickModel:
    inputs = Inputs.from_dict(config["inputs"])
    model: ClickModel = create(config["model"], inputs=inputs, config=settings)
    model.load_state_dict(load_tensors(contents[_WEIGHTS]))
    model.encoder, model.negative_rate = Encoder.load(folder / _ENCODER), config["negative_rate"]
    if model.encoder.inputs != inputs:
        raise ValueError(f"load: {folder / _ENCODER} belongs to another model; restore it or train the model anew")
    return model.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        hint = "training stopped early; go on with --resume" if any(folder.glob("checkpoint*")) else "check the path"
        raise FileNotFoundError(f"load: no model in {folder} (config.json is missing); {hint}")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(config["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"load: {path} is not a deeprec config ({error}); train the model anew") from error
    if version > FORMAT:
        raise ValueError(f"load: {folder} has format {version}, this deeprec reads up to {FORMAT}; upgrade deeprec")
    return config


def _read_verified(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"load: {path} is missing; the folder is incomplete, train the model anew") from error
    if sha256_of(content) != digest:
        raise ValueError(
            f"load: {path} was changed after it was written (its SHA-256 is not the one in config.json); "
            f"restore it or train the model anew"
        )
    return content


def _parquet(ids: IdMap) -> bytes:
    buffer = io.BytesIO()
    ids.values.alias(f"{ids.name}_id").to_frame().write_parquet(buffer)
    return buffer.getvalue()
