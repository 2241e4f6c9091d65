"""Names of the models. One line a model; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deeprec._suggest import did_you_mean
from deeprec.contract import CAPABILITIES

if TYPE_CHECKING:
    from deeprec.config import TrainConfig

_MODELS = {
    "acf": "deeprec.models.acf:ACF",
    "afm": "deeprec.models.afm:AFM",
    "als": "deeprec.models.als:ALS",
    "amf": "deeprec.models.amf:AMF",
    "amr": "deeprec.models.amr:AMR",
    "autorec": "deeprec.models.autorec:AutoRec",
    "base-rate": "deeprec.models.base_rate:BaseRate",
    "bert4rec": "deeprec.models.bert4rec:BERT4Rec",
    "bias": "deeprec.models.bias:Bias",
    "bm25": "deeprec.models.text_baselines:BM25",
    "bpr": "deeprec.models.bpr:BPR",
    "bst": "deeprec.models.bst:BST",
    "caser": "deeprec.models.caser:Caser",
    "cdae": "deeprec.models.cdae:CDAE",
    "cdl": "deeprec.models.cdl:CDL",
    "cf-nade": "deeprec.models.cf_nade:CFNADE",
    "cfn": "deeprec.models.cfn:CFN",
    "convmf": "deeprec.models.convmf:ConvMF",
    "convncf": "deeprec.models.convncf:ConvNCF",
    "cvae": "deeprec.models.cvae:CVAE",
    "dcn-v2": "deeprec.models.dcn_v2:DCNV2",
    "deep-music": "deeprec.models.deep_music:DeepMusic",
    "deepconn": "deeprec.models.deepconn:DeepCoNN",
    "deepfm": "deeprec.models.deepfm:DeepFM",
    "din": "deeprec.models.din:DIN",
    "dnn": "deeprec.models.dnn:DNN",
    "dqn": "deeprec.models.dqn:DQN",
    "dropoutnet": "deeprec.models.dropoutnet:DropoutNet",
    "dspr": "deeprec.models.dspr:DSPR",
    "dssm": "deeprec.models.dssm:DSSM",
    "ease": "deeprec.models.ease:EASE",
    "fm": "deeprec.models.fm:FM",
    "gmf": "deeprec.models.gmf:GMF",
    "gru4rec": "deeprec.models.gru4rec:GRU4Rec",
    "hybrid": "deeprec.models.hybrid:Hybrid",
    "ips-mf": "deeprec.models.ips_mf:IPSMF",
    "irgan": "deeprec.models.irgan:IRGAN",
    "item-knn": "deeprec.models.item_knn:ItemKNN",
    "lr": "deeprec.models.lr:LR",
    "mf": "deeprec.models.mf:MF",
    "mlp": "deeprec.models.mlp:MLP",
    "multi-view": "deeprec.models.multi_view:MultiView",
    "neumf": "deeprec.models.neumf:NeuMF",
    "nfm": "deeprec.models.nfm:NFM",
    "popularity": "deeprec.models.popularity:Popularity",
    "rbm": "deeprec.models.rbm:RBM",
    "reinforce": "deeprec.models.reinforce:Reinforce",
    "sasrec": "deeprec.models.sasrec:SASRec",
    "session-knn": "deeprec.models.session_knn:SessionKNN",
    "slim": "deeprec.models.slim:SLIM",
    "svd++": "deeprec.models.svdpp:SVDPlusPlus",
    "tag-cosine": "deeprec.models.tag_cosine:TagCosine",
    "tf-idf": "deeprec.models.text_baselines:TFIDF",
    "vbpr": "deeprec.models.vbpr:VBPR",
    "wide-deep": "deeprec.models.wide_deep:WideDeep",
}


def names() -> list[str]:
    """Registered model names."""
    return sorted(_MODELS)


def class_names() -> dict[str, str]:
    """Names of the models by those of their classes; nothing is imported."""
    return {place.partition(":")[2]: name for name, place in _MODELS.items()}


def register(name: str, place: str) -> None:
    """Make a model of your own one by name: for the command line of this process, `create` and saved folders.

    Args:
        name: not taken yet.
        place: "package.module:Class", imported when it is first asked for.
    Raises:
        ValueError: a name that is taken by another place, or a place of another form.
    """
    if not all(part and part.replace(".", "").isidentifier() for part in place.partition(":")[::2]):
        raise ValueError(f"register: place must be 'package.module:Class', got {place!r}")
    if _MODELS.get(name, place) != place:
        raise ValueError(f"register: name must be new, got {name!r}, which is {_MODELS[name]}; take another")
    _MODELS[name] = place


def recommenders() -> list[str]:
    """Names of the models that learn from interactions: those that rank or rate."""
    return [name for name in names() if model_class(name).reads == "interactions"]


def click_models() -> list[str]:
    """Names of the models that learn from the columns of a log: those that predict clicks."""
    return [name for name in names() if model_class(name).reads == "log"]


def is_click_model(name: str) -> bool:
    """Whether a name is that of a model that learns from a log."""
    return name in _MODELS and model_class(name).reads == "log"


def with_capabilities(*capabilities: str) -> list[str]:
    """Names of the models that have all of these `deeprec.contract.CAPABILITIES`."""
    return [name for name in names() if set(capabilities) <= model_class(name).capabilities]


def require_capability(model: Any, function: str, *capabilities: str) -> None:
    """Raise ValueError, with the models that can, unless a model has all capabilities that a function needs."""
    missing = [each for each in capabilities if each not in model.capabilities]
    if missing:
        what = " and ".join(CAPABILITIES[each] for each in missing)
        able = ", ".join(with_capabilities(*capabilities)) or "none yet"
        raise ValueError(f"{function}: a model is needed that {what}, got {model.name}; such are {able}")


def module_of(name: str) -> str:
    """The module of a model, which is not imported; an unknown name raises ValueError with the nearest one."""
    if name not in _MODELS:
        raise ValueError(f"model: unknown name {name!r}; {did_you_mean(name, names())}")
    return _MODELS[name].partition(":")[0]


def model_class(name: str) -> type[Any]:
    """The class behind a name; an unknown name raises ValueError with the nearest one."""
    module, attribute = module_of(name), _MODELS[name].partition(":")[2]
    kind: type[Any] = getattr(importlib.import_module(module), attribute)
    return kind


def config_class(name: str) -> type[TrainConfig]:
    """The config dataclass of a model."""
    kind: type[TrainConfig] = model_class(name).config_class
    return kind


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
