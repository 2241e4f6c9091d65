"""AMR: VBPR that is trained to rank well even where what is seen, heard or read in an item is moved against it.

Paper: Tang, Du, He, Yuan, Tian, Chua 2019, "Adversarial Training Towards Robust Multimedia Recommender System" (TKDE,
arXiv 1809.07062), section 3. Code: duxy-me/AMR.
Deviations: those of `vbpr`. Its vectors have a mean square length of 1 a column, beside which `epsilon` is to be seen.
Without `features` it is AMF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.config import TrainConfig
from deeprec.models.vbpr import VBPR, VBPRConfig


@dataclass(frozen=True)
class AMRConfig(VBPRConfig):
    """Options of `vbpr`, with `adversarial` on."""

    adversarial: float = 1.0
    lr: float = 0.01
    plain_lr: float | None = 0.05


class AMR(VBPR):
    """x_ui of VBPR, trained by BPR and by BPR where the vectors f_i are perturbed."""

    name = "amr"
    config_class: ClassVar[type[TrainConfig]] = AMRConfig
    config: AMRConfig
