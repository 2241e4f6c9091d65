"""Factorisation-machine layers."""

from __future__ import annotations

from torch import Tensor, nn

from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction


class FMInteraction(nn.Module):
    """Sum of the pairwise dot products of the fields; no parameters.

    Reference: Rendle 2010, lemma 3.1; Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """sum_{f<g} x_f . x_g.

        Args:
            x: field embeddings, [B, F, D], float32, bfloat16, float16 or float64.
        Returns:
            [B], dtype of x.
        """
        return fm_interaction(x)


class BiInteraction(nn.Module):
    """Sum of the pairwise element-wise products of the fields (bi-interaction pooling); no parameters.

    Reference: He, Chua 2017 (arXiv 1708.05027), eq. 3 and 4.
    """

    def forward(self, x: Tensor) -> Tensor:
        """sum_{f<g} x_f * x_g.

        Args:
            x: field embeddings, [B, F, D], float32, bfloat16, float16 or float64.
        Returns:
            [B, D], dtype of x.
        """
        return bi_interaction(x)
