"""DIN: a network over the candidate and the history as the candidate sees it.

Paper: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction" (KDD, arXiv 1706.06978): the
activation unit (eq. 1), Dice (eq. 3), the mini-batch-aware L2 (eq. 4 to 6).
Official code: github.com/zhougr1993/DeepInterestNetwork; from it come the input of the activation unit, its widths 80
and 40 with sigmoids, the softmax over sqrt(E), and the network of 80 and 40.
Deviations: Adam, where the code has SGD at rate 1.0 with clipping. The weighed history goes into the network as it is,
where the code normalises it and passes it through a dense layer; the bias of an item is left to its vector.
Histories are `Sequence` columns with the vocabulary of a candidate column (deeprec.data.clicks_with_histories makes
them); without one it is the network of `dnn`.
Where not to use it: where histories hold next to nothing (one or two entries) or the candidates are new, `lr`, `deepfm`
or `dnn` do as well at less cost.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deeprec.batches.log import LogBatches
from deeprec.config import at_least
from deeprec.data.clicks.part import ClickPart
from deeprec.models.click import ClickConfig
from deeprec.models.dnn import DNN, DNNConfig

_ROWS = 1 << 16


@dataclass(frozen=True)
class DINConfig(DNNConfig):
    """Attributes: those of `DNNConfig`, and
    mini_batch_l2: lambda of eq. 6: each step adds lambda / 2 times |w|^2 / n of each row of a table that it touches to
        the loss, n being how often the id occurs in the training rows, >= 0.
    """

    factors: int = 16
    hidden: tuple[int, ...] = (80, 40)
    activation: str = "dice"
    dropout: float = 0.0
    attention: str = "din"
    mini_batch_l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "mini_batch_l2", 0)
        self._not_in_backward("mini_batch_l2")


class DIN(DNN):
    """logit = MLP([v_U(A), v_A, rest]), v_U(A) = sum_j a(e_j, v_A) e_j, Zhou et al. 2018, eq. 1."""

    name = "din"
    config_class: ClassVar[type[ClickConfig]] = DINConfig
    config: DINConfig

    _shares: list[Tensor] | None = None  # 1 / n of each row of each table, from the training rows

    def batches(self, train: ClickPart, seed: int) -> LogBatches:
        """The rows of the log, shuffled anew every epoch; how often each id occurs is counted where it matters."""
        if self.config.mini_batch_l2:
            self._shares = self._counted(train)
        return super().batches(train, seed)

    def _counted(self, train: ClickPart) -> list[Tensor]:
        tables = [] if self.embeddings is None else self.embeddings.readers()
        counts = [np.zeros(len(weight), np.int64) for weight, _ in tables]
        place = {field.name: number for number, field in enumerate(self.require_built().fields)}
        for rows in train.batches(_ROWS):
            for count, (weight, names) in zip(counts, tables, strict=True):
                for name in names:
                    ids = rows.ids[:, place[name]] if name in place else rows.bags[name].ids
                    count += np.bincount(ids, minlength=len(weight))
        shares = [torch.from_numpy((1 / np.maximum(count, 1)).astype(np.float32)) for count in counts]
        return [share.to(weight.device) for share, (weight, _) in zip(shares, tables, strict=True)]

    def _hold_embeddings_small(self) -> None:
        """From now on the gradients of the tables hold that of `mini_batch_l2` too."""
        super()._hold_embeddings_small()
        if self.config.mini_batch_l2 and self.embeddings is not None:
            for number, (weight, _) in enumerate(self.embeddings.readers()):
                weight.register_hook(partial(_with_mini_batch_l2, model=weakref.ref(self), number=number))

    def __getstate__(self) -> dict[str, Any]:
        """Without the counts, which are those of a training."""
        return {**self.__dict__, "_shares": None}


def _with_mini_batch_l2(gradient: Tensor, *, model: weakref.ref[DIN], number: int) -> Tensor:
    """The gradient with lambda / n times the weights added, of the rows that are touched."""
    din = model()
    if din is None or din._shares is None or din.embeddings is None:
        return gradient
    weight, share = din.embeddings.readers()[number][0].detach(), din._shares[number]
    scale = share.to(weight.dtype).unsqueeze(1) * din.config.mini_batch_l2
    if not gradient.is_sparse:
        touched = gradient.ne(0).any(1, keepdim=True)
        return gradient + touched * scale * weight
    rows = gradient._indices()[0]
    gradient._values().add_(scale[rows] * weight[rows])
    return gradient
