"""CVAE: matrix factorisation of likes whose items are held near to the mean of a variational autoencoder's code.

Paper: Li, She 2017, "Collaborative Variational Autoencoder for Recommender Systems" (KDD), eq. 3 to 13.
Code: eelxpeng/CollaborativeVAE.
Deviations: the cross-entropy of the reconstruction is taken at an item's own terms and at drawn ones that stand for the
rest, not over the whole vocabulary; the encoder is shown TF-IDF rows of length 1; the output begins at the frequencies
of the terms; there is no pre-training of layers one by one; one sample of the code a pass. An item without training
rows is where the encoder puts it, and draws the encoder nowhere. Without `content` it is weighted matrix factorisation.
Defaults: by recall@300 of the validation part of citeulike-a with one training item a user: of user_l2 0.1, 1, 10 and
100, divergence 1, 0.1 and 0.01, and item_l2 1, 10 and 100, which matters little there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.batches.term_bags import TermBatch
from deeprec.config import Only, TrainConfig, at_least
from deeprec.models._content_factors import ContentFactors, ContentFactorsConfig


@dataclass(frozen=True)
class CVAEConfig(ContentFactorsConfig):
    """Attributes:
    divergence: weight of the Kullback-Leibler divergence from N(0, 1), >= 0; the paper's is 1.
    """

    conditions: ClassVar[tuple[Only, ...]] = (Only(("divergence",), "content", lambda config: bool(config.content)),)

    user_l2: float = 100.0
    divergence: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "divergence", 0)


class CVAE(ContentFactors):
    """score(u, i) = u . v_i, v_i ~ N(z_i, 1 / lambda_v), z_i ~ N(mu_i, sigma_i^2) of the encoder."""

    name = "cvae"
    config_class: ClassVar[type[TrainConfig]] = CVAEConfig
    code_parts: ClassVar[int] = 2
    config: CVAEConfig

    def code(self, encoded: Tensor) -> Tensor:
        """mu."""
        return encoded[:, : self.config.factors]

    def content_loss(self, batch: TermBatch, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """mu, and cross-entropy with the divergence 1/2 sum(mu^2 + sigma^2 - ln sigma^2 - 1)."""
        assert self.network is not None
        mean, log_variance = encoded.chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum() / 2
        return mean, self.network.reconstruction(code, batch, "cross_entropy") + self.config.divergence * divergence
