"""Models by name: `NeuMF(factors=32).fit(data)`, or `create("neumf", factors=32)`.

The class of every registered model is an attribute here, imported when it is first asked for.
"""

from typing import Any

from deeprec.batches.pairs import PairBatch as Batch
from deeprec.config import TrainConfig
from deeprec.contract import Schema, Seen
from deeprec.models.base import Recommender
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel
from deeprec.registry import (
    class_names,
    click_models,
    config_class,
    create,
    is_click_model,
    model_class,
    names,
    recommenders,
    require_taken,
)

__all__ = [
    "Batch",
    "ClickBatch",
    "ClickConfig",
    "ClickModel",
    "Recommender",
    "Schema",
    "Seen",
    "TrainConfig",
    "click_models",
    "config_class",
    "create",
    "is_click_model",
    "model_class",
    "names",
    "recommenders",
    "require_taken",
    *class_names(),
]


def __getattr__(name: str) -> Any:
    models = class_names()
    if name in models:
        return model_class(models[name])
    raise AttributeError(f"module 'deeprec.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *class_names()})  # of models registered since, too
