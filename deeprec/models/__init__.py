"""Models by name: `NeuMF(factors=32).fit(data)`, or `create("neumf", factors=32)`."""

from deeprec.batches.pairs import PairBatch as Batch
from deeprec.config import TrainConfig
from deeprec.contract import Schema, Seen
from deeprec.models.afm import AFM
from deeprec.models.autorec import AutoRec
from deeprec.models.base import Recommender
from deeprec.models.cdae import CDAE
from deeprec.models.cfn import CFN
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel
from deeprec.models.dcn_v2 import DCNV2
from deeprec.models.deepfm import DeepFM
from deeprec.models.dnn import DNN
from deeprec.models.ease import EASE
from deeprec.models.fm import FM
from deeprec.models.gmf import GMF
from deeprec.models.item_knn import ItemKNN
from deeprec.models.lr import LR
from deeprec.models.mf import MF
from deeprec.models.mlp import MLP
from deeprec.models.neumf import NeuMF
from deeprec.models.nfm import NFM
from deeprec.models.popularity import Popularity
from deeprec.models.wide_deep import WideDeep
from deeprec.registry import (
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
    "AFM",
    "CDAE",
    "CFN",
    "DCNV2",
    "DNN",
    "EASE",
    "FM",
    "GMF",
    "LR",
    "MF",
    "MLP",
    "NFM",
    "AutoRec",
    "Batch",
    "ClickBatch",
    "ClickConfig",
    "ClickModel",
    "DeepFM",
    "ItemKNN",
    "NeuMF",
    "Popularity",
    "Recommender",
    "Schema",
    "Seen",
    "TrainConfig",
    "WideDeep",
    "click_models",
    "config_class",
    "create",
    "is_click_model",
    "model_class",
    "names",
    "recommenders",
    "require_taken",
]
