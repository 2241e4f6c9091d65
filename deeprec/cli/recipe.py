"""What `deeprec train` is asked for, completed by a recipe of the result pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from deeprec.cli.console import figure, say
from deeprec.cli.settings import Settings
from deeprec.recipes import Recipe, recipe
from deeprec.registry import create


class Asked(NamedTuple):
    """What a training is asked for; None where nothing was said.

    Attributes:
        settings: the KEY=VALUE words and those of --config.
        data, protocol, select, seed: the options of these names.
    """

    settings: Settings
    data: str | None = None
    protocol: str | None = None
    select: str | None = None
    seed: int | None = None


def chosen(model: str | None, words: list[str], name: str | None) -> tuple[str, list[str], Recipe | None]:
    """The model, its words KEY=VALUE, and the recipe of a name, beside which the model may be left out.

    Raises:
        ValueError: neither a model nor a recipe, an unknown recipe, or one of another model.
    """
    if model is not None and "=" in model:
        words = [model, *words]
        model = None
    if name is None:
        if model is None:
            raise ValueError("train: a model or --recipe is needed; deeprec models and deeprec recipes list them")
        return model, words, None
    known = recipe(name)
    if model is not None and model != known.model:
        raise ValueError(f"train: --recipe {known.name} is one of {known.model}, got {model}; leave the model out")
    return known.model, words, known


def completed(asked: Asked, known: Recipe) -> Asked:
    """What the recipe says where nothing was asked for; other data is read as it would be without the recipe."""
    settings, seed = asked.settings, 1 if asked.seed is None else asked.seed
    if asked.protocol is None:
        usual = known.protocol_options(seed)
        if asked.data is not None and usual.get("holdout") == "official":  # the other data has no split of its own
            usual = {"name": usual["name"]}
        name = usual.pop("name")
        settings = replace(settings, protocol={**usual, **settings.protocol})
        asked = asked._replace(protocol=name, select=asked.select or known.select)
    if asked.data is None:
        settings = replace(settings, data={**known.reading(seed), **settings.data})
        asked = asked._replace(data=known.data)
    return asked._replace(settings=settings, seed=seed)


def model_of(name: str, settings: Settings, known: Recipe | None) -> Any:
    """The model that is trained: of the recipe with the options given over it, or of these alone."""
    return create(name, **settings.model) if known is None else create(name, config=known.config(settings.model))


def announce(known: Recipe) -> None:
    """A line about the recipe."""
    there = ", ".join(f"{name} {figure(value)}" for name, value in list(known.figures.items())[:2])
    say(f"recipe    {known.name}: {there or 'no figures yet'} on {known.data}")
