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
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.numbered import Numbered, NumberedBatches
from deeprec.config import TrainConfig, one_of
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import AliasTable, alias_table
from deeprec.kernels.softmax_loss.reference import unit
from deeprec.models._attention_config import AttentionConfig
from deeprec.models._item_losses import Targets, binary_loss, full_loss, gbce_beta, sampled_loss, shared_loss
from deeprec.models._sequence_model import SequenceModel
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import Lists
from deeprec.nn.sequence_encoder import Places, SequenceEncoder, in_line

_SPARSE_FROM = 20_000  # rows of a table: below that a dense gradient costs less than sorting the ids of a batch


@dataclass(frozen=True)
class SASRecConfig(AttentionConfig):
    """Attributes:
    targets: "all" places of a window are trained, or the "last".
    """

    targets: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "targets", ("all", "last"))


class SASRec(SequenceModel):
    """score(history, i) = f(history) . v_i, f the state of a causal Transformer at the last item."""

    name = "sasrec"
    config_class: ClassVar[type[TrainConfig]] = SASRecConfig
    config: SASRecConfig

    def _build_network(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        self.items = self._table(schema.num_items, generator)
        self.outputs = None if config.tied else self._table(schema.num_items, generator)
        self.encoder = SequenceEncoder(
            config.factors,
            config.length,
            config.blocks,
            config.heads,
            config.width,
            block=config.block,
            feed_forward=config.feed_forward,
            positions=config.positions,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            scale=config.scale,
            generator=generator,
        )
        self._known: Lists | None = None
        self._popularity: AliasTable | None = None
        self._log_q: Tensor | None = None

    def _table(self, count: int, generator: torch.Generator | None) -> Embedding:
        is_sparse = count >= _SPARSE_FROM and self.config.loss != "full" and not self.config.shared
        table = Embedding(count, self.config.factors, sparse=is_sparse, name="item")
        nn.init.normal_(table.weight, 0.0, self.config.init_std, generator=generator)
        return table

    @property
    def _scored(self) -> Embedding:
        return self.items if self.outputs is None else self.outputs

    # -- training ------------------------------------------------------------------------------------------------------

    def training_batches(self, train: Interactions, seed: int) -> NumberedBatches:
        """Windows, each with the seed of its draws.

        Raises:
            ValueError: a user who met all items, where others are to be drawn.
        """
        offsets, items = train.csr()
        config = self.config
        if config.loss in ("bce", "gbce") or (config.loss == "sampled" and config.mask_known):
            most = int(np.diff(offsets).argmax())
            if offsets[most + 1] - offsets[most] >= train.num_items:
                raise ValueError(
                    f"{self.name}: each user must leave an item to sample, got user {train.user_ids.values[most]!r} "
                    f"who met all {train.num_items}; leave the user out, or take loss='full'"
                )
        self._known = (
            to_device(torch.from_numpy(offsets), self.device),
            to_device(torch.from_numpy(items), self.device),
        )
        self._set_draws(train)
        return NumberedBatches(super().training_batches(train, seed), seed)

    def _set_draws(self, train: Interactions) -> None:
        """How likely each item is to be drawn."""
        config = self.config
        self._popularity = self._log_q = None
        if config.loss != "sampled":
            return
        weights = train.item_counts().astype(np.float64) ** config.alpha
        if config.alpha:
            self._popularity = alias_table(torch.from_numpy(weights)).to(self.device)
        if config.log_q and config.shared:
            with np.errstate(divide="ignore"):
                log_q = np.log(config.num_negatives * weights / weights.sum())
            self._log_q = to_device(torch.from_numpy(log_q.astype(np.float32)), self.device)

    def loss(self, batch: Numbered) -> Tensor:
        """The mean over the targets of the batch."""
        windows = batch.batch
        assert self._known is not None
        mask, width = windows.mask, windows.mask.shape[1]
        lengths = mask.sum(1)
        states = self._states(windows.items, lengths)
        if self.config.targets == "last":
            last = states[torch.arange(len(lengths), device=states.device), lengths - 1]
            return self._item_loss(last, Targets(windows.targets[:, -1], windows.users, self._known, batch.seed))
        places = Places.of(lengths, width, windows.num_targets)
        # Windows come at the right end of their rows.
        at_right = places.in_rows + (width - lengths)[places.owners]
        targets = Targets(windows.targets.flatten()[at_right], windows.users[places.owners], self._known, batch.seed)
        return self._item_loss(in_line(states, places), targets)

    def _item_loss(self, states: Tensor, targets: Targets) -> Tensor:
        config, table = self.config, self._scored
        vectors, num_items = table.weight, table.num_embeddings
        if config.loss in ("bce", "gbce"):
            beta = gbce_beta(config.calibration, config.num_negatives, num_items) if config.loss == "gbce" else 1.0
            return binary_loss(states, vectors, targets, config.num_negatives, beta=beta, sparse=table.sparse)
        options: dict[str, Any] = {"similarity": config.similarity, "gamma": config.gamma}
        options["mask_known"] = config.mask_known
        if config.loss == "full":
            return full_loss(states, vectors, targets, **options)
        draws = {"popularity": self._popularity}
        if config.shared:
            return shared_loss(states, vectors, targets, config.num_negatives, log_q=self._log_q, **draws, **options)
        return sampled_loss(
            states, vectors, targets, config.num_negatives, log_q=config.log_q, sparse=table.sparse, **draws, **options
        )

    # -- states --------------------------------------------------------------------------------------------------------

    def _states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """States [b, l, D] of windows [b, l] at the right end of their rows, each moved to the left end of its row."""
        width = items.shape[1]
        columns = torch.arange(width, device=items.device)
        # Behind a window its first item once more: no other row of the table is touched.
        at = torch.where(columns < lengths.unsqueeze(1), columns, 0) + (width - lengths).unsqueeze(1)
        moved = items.gather(1, at.clamp(max=width - 1)).clamp(min=0)
        states: Tensor = self.encoder(self.items(moved), lengths)
        return states

    def encode_windows(self, items: Tensor, mask: Tensor) -> Tensor:
        lengths, width = mask.sum(1), mask.shape[1]
        columns = torch.arange(width, device=mask.device)
        at = (columns - (width - lengths).unsqueeze(1)).clamp(min=0)
        states = self._states(items, lengths).gather(1, at.unsqueeze(2).expand(-1, -1, self.config.factors))
        return states * mask.unsqueeze(2)

    def encode_last(self, items: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1)
        last = self._states(items, lengths)[torch.arange(len(lengths), device=mask.device), (lengths - 1).clamp(min=0)]
        return unit(last) if self.config.similarity == "cosine" else last

    def output_items(self) -> tuple[Tensor, None]:
        vectors = self._scored.weight
        return (unit(vectors) if self.config.similarity == "cosine" else vectors), None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if self._known is not None and self._known[0].device != self.device:
            self._known = to_device(self._known[0], self.device), to_device(self._known[1], self.device)
            self._popularity = None if self._popularity is None else self._popularity.to(self.device)
            self._log_q = None if self._log_q is None else to_device(self._log_q, self.device)
        return result
