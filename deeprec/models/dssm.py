"""DSSM and two towers: the softmax of a user's and an item's vectors, each made of any columns by a network.

Paper: Huang, He, Gao, Deng, Acero, Heck 2013, "Learning Deep Structured Semantic Models for Web Search using
Clickthrough Data" (CIKM). The modern form: Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus
item recommendations" (RecSys); Yang et al. 2020, "Mixed negative sampling for learning two-tower neural networks in
recommendations" (WWW companion).
The paper's form, with a column of letter trigrams (`Text(tokens="trigrams")`) on both sides: user_inputs=features
item_inputs=features weighting=count layers=300,300 factors=128 last_activation=tanh fan_in=0 similarity=cosine gamma=10
negatives=row num_negatives=4 optimizer=sgd.
Deviations: the defaults are linear towers over what a user met and the number of an item, by the dot product, against
the positives of the other rows, which rank best where there is nothing to read; layers, columns and the rest are
options. The paper prints no gamma. Encoders of columns are fitted on all users and items that there are, clicked or
not; which terms were in a training row decides what is learnt of them.
Where not to use it: on dense sets without columns EASE ranks better (a random tenth held out, NDCG@20 of one split:
ml-100k 0.354 against 0.331, item-KNN 0.306; ml-1m 0.332 against 0.307, item-KNN 0.270).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from deeprec.config import ByData
from deeprec.models._tower_config import TowerConfig
from deeprec.models._tower_model import TowerModel


@dataclass(frozen=True)
class DSSMConfig(TowerConfig):
    """Attributes: those of `TowerConfig`."""

    by_data: ClassVar[Mapping[str, ByData]] = {
        "batch_size": ByData(
            lambda facts, config: min(1024, max(64, facts.rows // 100)),
            "100 steps an epoch, from 64 to 1024 pairs each",
        )
    }

    epochs: int = 30


class DSSM(TowerModel):
    """softmax of gamma s(f(x_u), g(x_i)) over candidates i, with separate towers f and g."""

    name = "dssm"
    config_class: ClassVar[type[TowerConfig]] = DSSMConfig
    config: DSSMConfig
