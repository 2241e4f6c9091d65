"""Checkpoints: one safetensors file that holds a run's weights, optimizer state and history, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deeprec._files import require_regular
from deeprec._record import typed
from deeprec._tensors import SEAL, require_sealed, write_tensors

FILE_NAME = "checkpoint.safetensors"
_FORMAT = 3
_PARTS = ("model", "average", "best")
_REMEDY = "remove it to start the run anew"


@dataclass(frozen=True)
class _Header:
    """What the file says beside its tensors."""

    format: int
    identity: dict[str, Any]
    progress: dict[str, Any]
    optimizer_state: dict[str, dict[str, Any]]
    optimizer_groups: list[dict[str, Any]]
    optimizer_extra: dict[str, Any]


@dataclass
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        identity: of the run, see `deeprec.train.identity`; a resumed run must match it.
        progress: JSON-ready counters and history.
        model, average, best: state dicts of the running weights, of their average (empty if unused), of the best ones.
        optimizer: the optimizer's state dict.
    """

    identity: dict[str, Any]
    progress: dict[str, Any]
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any]


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Replace the checkpoint in `directory`.

    Returns:
        its path.
    Raises:
        OSError: not writable or disk full; the previous checkpoint is then untouched.
    """
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        tensors.update({f"{part}/{key}": value for key, value in getattr(checkpoint, part).items()})
    plain_state: dict[str, dict[str, Any]] = {}
    for index, state in checkpoint.optimizer["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                plain_state.setdefault(str(index), {})[key] = value
    header = {
        "format": _FORMAT,
        "identity": checkpoint.identity,
        "progress": checkpoint.progress,
        "optimizer_state": plain_state,
        "optimizer_groups": checkpoint.optimizer["param_groups"],
        "optimizer_extra": {k: v for k, v in checkpoint.optimizer.items() if k not in ("state", "param_groups")},
    }
    write_tensors(directory / FILE_NAME, tensors, {"deeprec": json.dumps(header)}, sealed=True)
    return directory / FILE_NAME


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint in `directory`, None where there is none.

    Raises:
        ValueError: the file is damaged or from a newer version.
    """
    path = directory / FILE_NAME
    if not path.exists() and not path.is_symlink():
        return None
    try:
        with safe_open(str(require_regular(path, "resume", _REMEDY)), framework="pt") as file:
            values = json.loads((file.metadata() or {})["deeprec"])
            if values["format"] != _FORMAT:
                raise ValueError(
                    f"its format is {values['format']!r:.80}, this deeprec reads {_FORMAT}: finish the run with the "
                    "version that began it"
                )
            require_sealed(path)
            header: _Header = typed(_Header, values, "")
            names = [name for name in file.keys() if name != SEAL]  # noqa: SIM118 (safe_open is no mapping)
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        if str(error).startswith("resume: "):
            raise
        raise ValueError(f"resume: {path} is damaged or of another version ({error}); {_REMEDY}") from error
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in header.optimizer_state.items()}
    for key, value in tensors.items():
        part, _, rest = key.partition("/")
        if part == "optimizer":
            index, _, name = rest.partition("/")
            state.setdefault(int(index), {})[name] = value
        else:
            parts[part][rest] = value
    optimizer = {"state": state, "param_groups": header.optimizer_groups, **header.optimizer_extra}
    return Checkpoint(header.identity, header.progress, optimizer=optimizer, **parts)


@contextmanager
def restoring(directory: Path | None) -> Iterator[None]:
    """Around putting a checkpoint's state back: what does not fit is an error that names the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        path = (directory or Path()) / FILE_NAME
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"resume: {path} does not hold the state of this run ({what}); {_REMEDY}") from error


def has_checkpoint(directory: Path) -> bool:
    """Whether a run was interrupted in the folder, in one of its stages."""
    return directory.is_dir() and any((*directory.glob(FILE_NAME), *directory.glob(f"*/{FILE_NAME}")))


def remove_checkpoint(directory: Path) -> None:
    """Forget the checkpoint of a finished run."""
    (directory / FILE_NAME).unlink(missing_ok=True)


def copy_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A detached copy of a module's state dict."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
