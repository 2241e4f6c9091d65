"""CDL: matrix factorisation of likes whose items are held near to the code of a denoising autoencoder of their content.

Paper: Wang, Wang, Yeung 2015, "Collaborative Deep Learning for Recommender Systems" (KDD, arXiv 1409.2944), eq. 1 to 5.
Code: js05212/CDL.
Deviations: the squared error of the reconstruction is taken at an item's own terms and at drawn ones that stand for the
rest, not over the whole vocabulary; the encoder is shown TF-IDF rows of length 1, and hidden layers but the code are
tanh; the output begins at the frequencies of the terms; noise is drawn anew in every pass; all layers are trained
together from the start, with Adam. An item without training rows is where the encoder puts it, and draws the encoder
nowhere. Without `content` it is weighted matrix factorisation. The vocabulary and the autoencoder know the content of
all items of the table, as in the paper.
Defaults: by recall@300 of the validation part of citeulike-a, its tags as content, with one training item a user: of
user_l2 from 0.01 to 100; sigmoid layers and count rows learn several times as slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.batches.term_bags import TermBatch
from deeprec.config import Only, TrainConfig
from deeprec.models._content_factors import ContentFactors, ContentFactorsConfig


@dataclass(frozen=True)
class CDLConfig(ContentFactorsConfig):
    """Attributes:
    reconstruction: lambda_n, of the squared error of an item's terms, > 0.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("reconstruction",), "content", lambda config: bool(config.content)),
    )

    reconstruction: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reconstruction > 0:
            raise ValueError(f"CDLConfig: reconstruction must be > 0, got {self.reconstruction}")


class CDL(ContentFactors):
    """score(u, i) = u . v_i, v_i ~ N(e_i, 1 / lambda_v), e_i = sigmoid of the middle of the autoencoder."""

    name = "cdl"
    config_class: ClassVar[type[TrainConfig]] = CDLConfig
    config: CDLConfig

    def code(self, encoded: Tensor) -> Tensor:
        return torch.sigmoid(encoded)

    def content_loss(self, batch: TermBatch, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """The code, and lambda_n / 2 times the squared errors."""
        assert self.network is not None
        code = self.code(encoded)
        return code, self.config.reconstruction / 2 * self.network.reconstruction(code, batch, "squared")
