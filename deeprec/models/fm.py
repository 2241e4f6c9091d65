"""FM: a factorisation machine over the columns of a log.

Paper: Rendle 2010, "Factorization Machines", eq. 1; for the logistic loss Rendle 2012 (libFM), section 3.2.
Official code: github.com/srendle/libfm.
Deviations: a bag of ids is one variable, the pooled vector of its ids, so that ids of one bag do not interact (libFM
takes each id as a variable). Crosses have first-order weights only. Trained by mini-batches of any optimizer; libFM's
groups of regularisation constants are `weight_decay` and `embedding_l2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.data.inputs import Inputs
from deeprec.models._click_inputs import FMTerms, require_width, without_crosses
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel


@dataclass(frozen=True)
class FMConfig(ClickConfig):
    """Attributes: those of `ClickConfig`; a numeric is a field with a value."""


class FM(ClickModel):
    """logit = w_0 + sum_i w_i x_i + sum_{i<j} v_i . v_j x_i x_j, Rendle 2010, eq. 1."""

    name = "fm"
    config_class: ClassVar[type[ClickConfig]] = FMConfig
    config: FMConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        require_width(self.name, without_crosses(inputs), 1, "the inputs")
        self.terms = FMTerms(inputs, self.config.factors, generator, return_embeddings=False)

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v."""
        return self.terms.embedding_tables()

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        logit: Tensor
        logit, _ = self.terms(batch)
        return logit
