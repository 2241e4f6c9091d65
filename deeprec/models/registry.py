"""Names of the models. One line a model; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from deeprec._suggest import did_you_mean
from deeprec.models.base import Recommender
from deeprec.models.config import TrainConfig

_MODELS = {
    "autorec": "deeprec.models.autorec:AutoRec",
    "cdae": "deeprec.models.cdae:CDAE",
    "ease": "deeprec.models.ease:EASE",
    "cfn": "deeprec.models.cfn:CFN",
    "gmf": "deeprec.models.gmf:GMF",
    "item-knn": "deeprec.models.item_knn:ItemKNN",
    "mf": "deeprec.models.mf:MF",
    "mlp": "deeprec.models.mlp:MLP",
    "neumf": "deeprec.models.neumf:NeuMF",
    "popularity": "deeprec.models.popularity:Popularity",
}


def names() -> list[str]:
    """Registered model names."""
    return sorted(_MODELS)


def model_class(name: str) -> type[Recommender]:
    """The class behind a name; an unknown name raises ValueError with the nearest one."""
    if name not in _MODELS:
        raise ValueError(f"model: unknown name {name!r}; {did_you_mean(name, names())}")
    module, _, attribute = _MODELS[name].partition(":")
    found: type[Recommender] = getattr(importlib.import_module(module), attribute)
    return found


def config_class(name: str) -> type[TrainConfig]:
    """The config dataclass of a model."""
    return model_class(name).config_class


def create(name: str, **options: Any) -> Recommender:
    """A model by name; options as its class takes them."""
    return model_class(name)(**options)
