"""Models by name: `NeuMF(factors=32).fit(data)`, or `create("neumf", factors=32)`."""

from deeprec.models.autorec import AutoRec
from deeprec.models.base import Batch, Recommender, Schema, Seen
from deeprec.models.cdae import CDAE
from deeprec.models.cfn import CFN
from deeprec.models.config import TrainConfig
from deeprec.models.ease import EASE
from deeprec.models.gmf import GMF
from deeprec.models.item_knn import ItemKNN
from deeprec.models.mf import MF
from deeprec.models.mlp import MLP
from deeprec.models.neumf import NeuMF
from deeprec.models.popularity import Popularity
from deeprec.models.registry import config_class, create, model_class, names

__all__ = [
    "CDAE",
    "CFN",
    "EASE",
    "GMF",
    "MF",
    "MLP",
    "AutoRec",
    "Batch",
    "ItemKNN",
    "NeuMF",
    "Popularity",
    "Recommender",
    "Schema",
    "Seen",
    "TrainConfig",
    "config_class",
    "create",
    "model_class",
    "names",
]
