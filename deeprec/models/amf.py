"""AMF: matrix factorisation by BPR that is trained to rank well even where its vectors are moved against it.

Paper: He, He, Du, Chua 2018, "Adversarial Personalized Ranking for Recommendation" (SIGIR, arXiv 1808.03908), eq. 8 to
12. Code: hexiangnan/adversarial_personalized_ranking (AMF.py).
Deviations: none but those of `bpr`, item biases among them, which are not perturbed; validation chooses the epoch where
plain training ends, and the one that is kept. The paper's epsilon of 0.5 is for vectors that no L2 keeps short; beside
those of `bpr`, of length 2, it undoes the ranking of MovieLens-1M (validation), so that 0.1 is the default.
`bpr`, `vbpr`, `mf`, `gmf`, `mlp` and `neumf` take the same options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.config import TrainConfig
from deeprec.models.bpr import BPR, BPRConfig


@dataclass(frozen=True)
class AMFConfig(BPRConfig):
    """Options of `bpr`, with `adversarial` on."""

    adversarial: float = 1.0
    lr: float = 0.01
    plain_lr: float | None = 0.05


class AMF(BPR):
    """x_ui = b_i + p_u . q_i, trained by BPR and by BPR where p and q are perturbed."""

    name = "amf"
    config_class: ClassVar[type[TrainConfig]] = AMFConfig
    config: AMFConfig
