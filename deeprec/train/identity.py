"""What makes a run the run it is, so that `resume` goes on with no other.

Everything that shapes the result is compared: model, every option (the number of epochs too, on which learning rates
and stopping depend), protocol, seed, what chooses the epoch, and checksums of the data, its split and the side
information that the model takes. Free to change are: where the data and the folder lie, threads, machine and device,
and what is shown or logged.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deeprec.evaluate import Card, protocol_from_dict, read_card
from deeprec.evaluate.card import CHECKSUMS
from deeprec.registry import config_class, names
from deeprec.serve.folder import load
from deeprec.train.checkpoint import has_checkpoint

START = "start_sha256"  # key of a card's data: of the weights that `fit_more` went on from
_SHOWN = 12  # digits of a checksum


def identity_of(
    model: str,
    config: Mapping[str, Any],
    protocol: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    seed: int,
    select: str | None,
    best_on_test: bool,
    stage: str = "",
) -> dict[str, Any]:
    """One flat, JSON-ready entry for each thing that a resumed run must share.

    Args:
        config: the model's options.
        data: as on the card; its checksums are taken.
        select: the figure that chooses the epoch; None: not known.
        best_on_test: whether the test part is looked at after every epoch.
        stage: of a checkpoint, such as "neumf (refit)"; "" for a whole run.
    """
    entries = {
        "model": model,
        "stage": stage,
        "seed": seed,
        "select": select,
        "best_on_test": best_on_test,
        **{f"config.{name}": value for name, value in config.items()},
        **{f"protocol.{name}": value for name, value in protocol.items()},
        **{f"data.{name}": data[name] for name in (*CHECKSUMS, START) if name in data},
    }
    plain: dict[str, Any] = json.loads(json.dumps(entries))
    return plain


def require_same_run(there: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raise ValueError with what differs, unless a folder's run is the one that is to go on.

    Args:
        there: identity there; a `select` that is None is not known and not compared.
        expected: identity of the run.
        where: "runs/x holds a finished run" or the like.
    """
    different = [
        f"{key} is {_shown(key, there.get(key))} there and {_shown(key, expected.get(key))} here"
        for key in dict.fromkeys((*expected, *there))
        if there.get(key) != expected.get(key) and not (key == "select" and there.get(key) is None)
    ]
    if different:
        raise ValueError(
            f"resume: {where} of other settings: {', '.join(different)}; take these, or another out (--out), or leave "
            "out resume (--resume) to start anew there"
        )


def finished_card(directory: Path) -> Card | None:
    """The card of the run that has ended in a folder; None where there is none, or one goes on.

    Raises:
        ValueError: a damaged card.
    """
    is_whole = (directory / "config.json").exists() and (directory / "card.json").exists()
    return read_card(directory) if is_whole and not has_checkpoint(directory) else None


def identity_of_card(card: Card) -> dict[str, Any]:
    """The identity of a finished run; options that an older deeprec did not have are as if left out."""
    defaults = {}
    if card.model in names():
        fields = dataclasses.fields(config_class(card.model))
        defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return identity_of(
        card.model,
        {**defaults, **card.config},
        protocol_from_dict(card.protocol).as_dict(),
        card.data,
        seed=card.seed,
        select=card.select,
        best_on_test=card.best_on_test is not None,
    )


def require_out(resume: bool, out: str | Path | None) -> None:
    """A run can only go on in the folder where it was."""
    if resume and out is None:
        raise ValueError("fit: resume needs out, the folder of the run that is to go on, got None; pass it")


def adopt_finished(model: Any, directory: Path) -> None:
    """Give a model that `fit` was asked to train the weights of the same model in a folder.

    Raises:
        ValueError: the folder holds another one than its card says.
    """
    saved = load(directory, device="cpu")
    if saved.name != model.name or saved.config != model.config:
        raise ValueError(f"resume: the card in {directory} is that of another model; take another out (--out)")
    model.build(getattr(saved, saved.sizes), torch.Generator())
    model.load_state_dict(saved.state_dict())
    if "models" in saved.keeps:  # that it is made of
        model.models = saved.models


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "none"
    return str(value)[:_SHOWN] if key.endswith("sha256") else repr(value)
