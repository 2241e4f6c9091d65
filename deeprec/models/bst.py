"""BST: a network over the candidate as a Transformer sees it at the end of its history.

Paper: Chen, Zhao, Li, Huang, Ou 2019, "Behavior Sequence Transformer for E-commerce Recommendation in Alibaba"
(arXiv 1905.06874), eq. 1 to 7: one block, leaky ReLU, a network of 1024, 512 and 256.
Official code: none.
Deviations: places are counted in entries, where the paper has differences of time; of the Transformer's outputs the
network takes the candidate's alone, where the paper takes all, so that its width does not depend on the length; 2 heads
instead of 8, for narrower embeddings, and the smaller networks of `fit` by the data. Histories are `Sequence` columns
with the vocabulary of a candidate column and a length; without one it is the network of `dnn`.
Where not to use it: see `din`, which costs less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.models.click import ClickConfig
from deeprec.models.dnn import DNN, DNNConfig


@dataclass(frozen=True)
class BSTConfig(DNNConfig):
    """Attributes: those of `DNNConfig`."""

    factors: int = 16
    hidden: tuple[int, ...] = (1024, 512, 256)
    activation: str = "leaky-relu"
    dropout: float = 0.0
    attention: str = "bst"


class BST(DNN):
    """logit = MLP([Transformer(history, candidate), candidate, rest]), Chen et al. 2019, eq. 7."""

    name = "bst"
    config_class: ClassVar[type[ClickConfig]] = BSTConfig
    config: BSTConfig
