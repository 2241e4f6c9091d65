"""Names of the models. One line a model; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deeprec._suggest import did_you_mean

if TYPE_CHECKING:
    from deeprec.config import TrainConfig

_RECOMMENDERS = {
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
_CLICK_MODELS = {
    "afm": "deeprec.models.afm:AFM",
    "dcn-v2": "deeprec.models.dcn_v2:DCNV2",
    "deepfm": "deeprec.models.deepfm:DeepFM",
    "dnn": "deeprec.models.dnn:DNN",
    "fm": "deeprec.models.fm:FM",
    "lr": "deeprec.models.lr:LR",
    "nfm": "deeprec.models.nfm:NFM",
    "wide-deep": "deeprec.models.wide_deep:WideDeep",
}
_MODELS = {**_RECOMMENDERS, **_CLICK_MODELS}


def names() -> list[str]:
    """Registered model names, of both families."""
    return sorted(_MODELS)


def recommenders() -> list[str]:
    """Names of the models that rank items for users."""
    return sorted(_RECOMMENDERS)


def click_models() -> list[str]:
    """Names of the models that predict clicks from the columns of a log."""
    return sorted(_CLICK_MODELS)


def is_click_model(name: str) -> bool:
    """Whether a name is that of a click model."""
    return name in _CLICK_MODELS


def model_class(name: str) -> type[Any]:
    """The `Recommender` or `ClickModel` behind a name; an unknown name raises ValueError with the nearest one."""
    if name not in _MODELS:
        raise ValueError(f"model: unknown name {name!r}; {did_you_mean(name, names())}")
    module, _, attribute = _MODELS[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def config_class(name: str) -> type[TrainConfig]:
    """The config dataclass of a model."""
    found: type[TrainConfig] = model_class(name).config_class
    return found


TAKEN = {"report_best_on_test": "best_on_test", "schema": "schema"}  # keywords of `fit` that not every model takes


def may_take(kind: type[Any], keyword: str) -> bool:
    """Whether a class of models takes a keyword of `fit`; see `require_taken`."""
    return keyword not in TAKEN or TAKEN[keyword] in kind.takes


def require_taken(kind: type[Any], given: Mapping[str, str], where: str) -> None:
    """Raise ValueError for the first input of a run that a class of models does not use.

    Args:
        given: inputs as they were spelled, such as "--best-on-test", to what models declare in `takes`: "select",
            "best_on_test", "user_features", "item_features", "schema", "log" or "on_bad".
        where: beginning of the message.
    """
    for spelled, each in given.items():
        if each not in kind.takes:
            users = ", ".join(other for other in names() if each in model_class(other).takes)
            raise ValueError(f"{where}: {kind.name} does not use {spelled}; leave it out (it goes with {users})")


def create(name: str, **options: Any) -> Any:
    """A model by name; options as its class takes them."""
    return model_class(name)(**options)
