"""Recipes of the result pages by name: the options, the data and the protocol that a published figure was made with.

Each is a file SET/NAME.json beside this one. `bench.reproduce` trains them and keeps the figures that came out in them;
`deeprec train --recipe SET/NAME` does the same once, or on other data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deeprec._suggest import did_you_mean
from deeprec.config import TrainConfig, config_from_dict, ineffective, make_config
from deeprec.registry import config_class

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """How a figure of the result pages is made.

    Attributes:
        name: SET/NAME, such as "frappe-click/deepfm".
        model: registered name.
        data: name of the data set.
        protocol: options of the protocol, its name among them.
        options: of the model; those left out have their class's default.
        data_options: what the data is read with.
        select: the figure that chooses the epoch; None: the headline of the protocol.
        repeats: what a seed N changes beside the training: "seeds" nothing, "splits" the split, "folds": the published
            fold uN is read.
        best_on_test: whether the best epoch on the test list is looked for, too.
        figures: mean test figures over the runs of the result pages; empty where there are none yet.
        runs: how many these are.
        target, paper: the figures that it was to reach, and those published, in words.
    """

    name: str
    model: str
    data: str
    protocol: Mapping[str, Any]
    options: Mapping[str, Any]
    data_options: Mapping[str, Any] = field(default_factory=dict)
    select: str | None = None
    repeats: str = "seeds"
    best_on_test: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)
    runs: int = 0
    target: str = "-"
    paper: str = "-"

    def config(self, given: Mapping[str, Any] | None = None) -> TrainConfig:
        """The model's options, with those given over them; what loses its effect by these is left out.

        Raises:
            ValueError: an option that is unknown, out of range, or without an effect.
        """
        kind, given = config_class(self.model), given or {}
        base = config_from_dict(kind, self.options)
        if not given:
            return base
        mine = {name: value for name, value in dataclasses.asdict(base).items() if name not in given}
        for name, _ in list(ineffective(kind, SimpleNamespace(**mine, **given))):
            mine.pop(name, None)
        return make_config(kind, None, {**mine, **given})

    def protocol_options(self, seed: int) -> dict[str, Any]:
        """Options of the protocol for a seed, `name` among them."""
        return {**self.protocol, **({"seed": seed} if self.repeats == "splits" else {})}

    def reading(self, seed: int) -> dict[str, Any]:
        """What the data is read with for a seed."""
        return {**self.data_options, **({"fold": f"u{seed}"} if self.repeats == "folds" else {})}


def names() -> list[str]:
    """SET/NAME of every recipe."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.json"))


def recipe(name: str) -> Recipe:
    """The recipe of a name; of SET what stands before a dash is enough, where that means one: frappe/deepfm.

    Raises:
        ValueError: no such name, or several recipes that it could be.
    """
    known = names()
    first, _, last = name.partition("/")
    meant = [each for each in known if each == name] or [
        each for each in known if each.startswith(f"{first}-") and each.partition("/")[2] == last
    ]
    if len(meant) != 1:
        remedy = f"it could be {' or '.join(meant)}" if meant else did_you_mean(name, known)
        raise ValueError(f"recipe: unknown name {name!r}; {remedy} (deeprec recipes lists them)")
    return read(FOLDER / f"{meant[0]}.json")


def read(path: Path) -> Recipe:
    """The recipe in a file, named by its folder and itself."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Recipe(name=f"{path.parent.name}/{path.stem}", **values)
