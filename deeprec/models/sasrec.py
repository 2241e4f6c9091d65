"""SASRec: the next item by attention over the last ones.

Paper: Kang, McAuley 2018, "Self-Attentive Sequential Recommendation" (ICDM, arXiv 1808.09781). Code: kang205/SASRec.
Losses: Klenitskiy, Vasilev 2023 (arXiv 2309.07602) for the full and the sampled softmax; Petrov, Macdonald 2023
(gSASRec, arXiv 2308.07192) for gBCE. The block "ligr": Borisyuk et al. 2025 (arXiv 2502.03417), as in eSASRec.
The paper's form: loss=bce num_negatives=1 length=200 (ML-1M; 50 elsewhere) batch_size=128 attention_dropout=0.2.
Deviations: the default loss is a softmax over all items, which ranks far better than BCE with one negative at the same
cost; attention has a projection behind it; its weights have no dropout unless asked for; the loss of BCE is divided by
the negatives and the positive. Of a history of n items the last min(n - 1, length) are targets, once an epoch.
Where not to use it: on sets where order says little, such as ratings entered in one sitting, EASE ranks as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deeprec.batches.numbered import Numbered
from deeprec.config import TrainConfig, one_of
from deeprec.kernels.softmax_loss.reference import unit
from deeprec.models._attention_config import AttentionConfig
from deeprec.models._attention_model import AttentionModel
from deeprec.models._item_losses import Targets
from deeprec.nn.sequence_encoder import Places, at_left, in_line


@dataclass(frozen=True)
class SASRecConfig(AttentionConfig):
    """Attributes:
    targets: "all" places of a window are trained, or the "last".
    """

    targets: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "targets", ("all", "last"))


class SASRec(AttentionModel):
    """score(history, i) = f(history) . v_i, f the state of a causal Transformer at the last item."""

    name = "sasrec"
    config_class: ClassVar[type[TrainConfig]] = SASRecConfig
    config: SASRecConfig

    def loss(self, batch: Numbered) -> Tensor:
        """The mean over the targets of the batch."""
        windows = batch.batch
        assert self._known is not None
        mask, width = windows.mask, windows.mask.shape[1]
        lengths = mask.sum(1)
        read, scored = self._trained_vectors()
        states = self._states(windows.items, lengths, read)
        is_last = self.config.targets == "last"
        places = Places.last(lengths, width) if is_last else Places.of(lengths, width, windows.num_targets)
        # Windows come at the right end of their rows.
        at_right = places.in_rows + (width - lengths)[places.owners]
        targets = Targets(windows.targets.flatten()[at_right], windows.users[places.owners], self._known, batch.seed)
        return self._item_loss(in_line(states, places), targets, scored)

    # -- states --------------------------------------------------------------------------------------------------------

    def _states(self, items: Tensor, lengths: Tensor, vectors: Tensor | None) -> Tensor:
        """States [b, l, D] of windows [b, l] at the right end of their rows, each moved to the left end of its row."""
        states: Tensor = self.encoder(self._rows(at_left(items, lengths), vectors), lengths)
        return states

    def encode_windows(self, items: Tensor, mask: Tensor) -> Tensor:
        lengths, width = mask.sum(1), mask.shape[1]
        columns = torch.arange(width, device=mask.device)
        at = (columns - (width - lengths).unsqueeze(1)).clamp(min=0)
        states = self._states(items, lengths, self._read_vectors())
        states = states.gather(1, at.unsqueeze(2).expand(-1, -1, self.config.factors))
        return states * mask.unsqueeze(2)

    def encode_last(self, items: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1)
        last: Tensor = self.encoder.last(self._rows(at_left(items, lengths), self._read_vectors()), lengths)
        return unit(last) if self.config.similarity == "cosine" else last

    def output_items(self) -> tuple[Tensor, None]:
        vectors = self._scored_vectors()
        return (unit(vectors) if self.config.similarity == "cosine" else vectors), None
