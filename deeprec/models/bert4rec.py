"""BERT4Rec: items of a history are masked, and told from what stands on both sides of them.

Paper: Sun, Liu, Wu, Pei, Lin, Ou, Jiang 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder
Representations from Transformer" (CIKM, arXiv 1904.06690). Code: FeiSun/BERT4Rec.
The paper's sizes: factors=64 heads=2 hidden=256 length=200 (ML-1M) or 50, mask_share=0.2 (ML-1M) or 0.6 (Beauty).
Deviations: the masked places of a step are drawn together from all of its windows; in a share of the steps only the
last item of each window is masked, where the authors add such windows to the data. No mask is left unmasked or replaced
by another item. Of a history the last `length` items are read, once an epoch.
Where not to use it: SASRec with the same loss ranks as well or better after a fraction of the epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.numbered import Numbered
from deeprec.config import TrainConfig
from deeprec.kernels.softmax_loss.reference import unit
from deeprec.models._attention_config import AttentionConfig
from deeprec.models._attention_model import AttentionModel
from deeprec.models._item_columns import ItemSizes
from deeprec.models._item_losses import Targets
from deeprec.nn.sequence_encoder import Places, at_left, in_line


@dataclass(frozen=True)
class BERT4RecConfig(AttentionConfig):
    """Attributes:
    mask_share: of the items of a step that are masked, in (0, 1).
    last_share: of the steps in which the last item of each window is masked alone, as at serving, in [0, 1].
    """

    losses: ClassVar[tuple[str, ...]] = ("full", "sampled")

    heads: int = 2
    block: str = "post-norm"
    feed_forward: str = "gelu"
    scale: bool = False
    mask_share: float = 0.2
    last_share: float = 0.1
    epochs: int = 200
    patience: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_share < 1 or not 0 <= self.last_share <= 1:
            raise ValueError(
                "BERT4RecConfig: mask_share must lie in (0, 1) and last_share in [0, 1], got "
                f"{self.mask_share} and {self.last_share}; 0.2 and 0.1 are usual"
            )
        if self.length < 2:
            raise ValueError(f"BERT4RecConfig: length must be >= 2, an item and the mask, got {self.length}")


class BERT4Rec(AttentionModel):
    """score(history, i) = f(history, mask) . v_i + b_i, f what a Transformer in both directions says of the mask."""

    name = "bert4rec"
    config_class: ClassVar[type[TrainConfig]] = BERT4RecConfig
    is_causal: ClassVar[bool] = False
    config: BERT4RecConfig

    def _build_network(self, schema: ItemSizes, generator: torch.Generator | None) -> None:
        super()._build_network(schema, generator)
        dim = self.config.factors
        self.mask_vector = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_vector, 0.0, self.config.init_std, generator=generator)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        first = self.head[0]
        assert isinstance(first, nn.Linear)
        nn.init.xavier_normal_(first.weight, generator=generator)
        nn.init.zeros_(first.bias)
        self.item_bias = nn.Parameter(torch.zeros(schema.num_items - schema.added_items))

    @property
    def window_length(self) -> int:
        """A window is the items of a batch and the target of its last."""
        return self.config.length - 1

    def loss(self, batch: Numbered) -> Tensor:
        """The mean over the masked places."""
        windows = batch.batch
        assert self._known is not None
        rows, width = windows.mask.shape
        lengths = windows.mask.sum(1) + 1
        whole = torch.cat([windows.items, windows.targets[:, -1:]], 1)
        count = windows.num_targets + rows
        generator = torch.Generator().manual_seed(batch.seed)
        if float(torch.rand((), generator=generator)) < self.config.last_share:
            places = Places.last(lengths, width + 1)
        else:
            is_chosen = torch.zeros(count, dtype=torch.bool)
            is_chosen[torch.randperm(count, generator=generator)[: max(1, round(self.config.mask_share * count))]] = (
                True
            )
            places = Places.of(lengths, width + 1, count).chosen(is_chosen)
        moved = at_left(whole, lengths)
        read, scored = self._trained_vectors()
        states = in_line(self._states(moved, lengths, places.there, read), places)
        items = moved.flatten()[places.in_rows]
        targets = Targets(items, windows.users[places.owners], self._known, batch.seed)
        return self._item_loss(self.head(states), targets, scored, self.item_bias)

    def _states(self, items: Tensor, lengths: Tensor, is_masked: Tensor, vectors: Tensor | None) -> Tensor:
        """States [b, l, D] of windows at the left end of their rows, some items of which are masked."""
        states: Tensor = self.encoder(self._masked(items, is_masked, vectors), lengths)
        return states

    def _masked(self, items: Tensor, is_masked: Tensor, vectors: Tensor | None) -> Tensor:
        """Vectors of items, some of which are masked."""
        return torch.where(is_masked.unsqueeze(2), self.mask_vector, self._rows(items, vectors))

    def encode_last(self, items: Tensor, mask: Tensor) -> Tensor:
        """As in `SequenceModel`; of L items the first is left out, as the mask takes a place."""
        items, mask = items[:, -self.window_length :], mask[:, -self.window_length :]
        lengths = mask.sum(1) + 1
        moved = at_left(F.pad(items, (0, 1), value=0), lengths)
        is_masked = torch.arange(moved.shape[1], device=mask.device) == (lengths - 1).unsqueeze(1)
        last: Tensor = self.head(self.encoder.last(self._masked(moved, is_masked, self._read_vectors()), lengths))
        return unit(last) if self.config.similarity == "cosine" else last

    def output_items(self) -> tuple[Tensor, Tensor | None]:
        vectors = self._scored_vectors()
        bias = F.pad(self.item_bias, (0, len(vectors) - len(self.item_bias)))  # of items that came later 0
        return (unit(vectors) if self.config.similarity == "cosine" else vectors), bias
