"""What SASRec and BERT4Rec share: tables of item vectors, a Transformer over them, and losses against all or draws."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.numbered import NumberedBatches
from deeprec.batches.sequences import SequenceBatches
from deeprec.config import TrainConfig
from deeprec.contract import Batches, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import AliasTable, alias_table
from deeprec.models._attention_config import AttentionConfig
from deeprec.models._item_losses import Targets, binary_loss, full_loss, gbce_beta, sampled_loss, shared_loss
from deeprec.models._sequence_model import SequenceModel
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import Lists
from deeprec.nn.sequence_encoder import SequenceEncoder

_SPARSE_FROM = 20_000  # rows of a table: below that a dense gradient costs less than sorting the ids of a batch


class AttentionModel(SequenceModel):
    """Base of the models with a `SequenceEncoder`; `is_causal` says whether a place sees what comes after it.

    Parameters: `items.weight` [N, D], `outputs.weight` where the scored vectors are others, and those of `encoder`.
    """

    config_class: ClassVar[type[TrainConfig]] = AttentionConfig
    is_causal: ClassVar[bool] = True
    config: AttentionConfig

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
            causal=self.is_causal,
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

    @property
    def window_length(self) -> int:
        """Items of the windows that are trained on, each with a target."""
        return self.config.length

    # -- training ------------------------------------------------------------------------------------------------------

    def training_batches(self, train: Interactions, seed: int) -> Batches:
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
        options: dict[str, Any] = {"batch_size": config.batch_size, "length": self.window_length, "device": self.device}
        return NumberedBatches(SequenceBatches(train, seed=seed, **options), seed)

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

    def _item_loss(self, states: Tensor, targets: Targets, bias: Tensor | None = None) -> Tensor:
        """Of states [T, D] against the vectors of items, with a bias [N] where the model has one."""
        config, table = self.config, self._scored
        vectors, num_items = table.weight, table.num_embeddings
        if config.loss in ("bce", "gbce"):
            beta = gbce_beta(config.calibration, config.num_negatives, num_items) if config.loss == "gbce" else 1.0
            return binary_loss(states, vectors, targets, config.num_negatives, beta=beta, sparse=table.sparse)
        options: dict[str, Any] = {"similarity": config.similarity, "gamma": config.gamma}
        options |= {"mask_known": config.mask_known, "bias": bias}
        if config.loss == "full":
            return full_loss(states, vectors, targets, **options)
        draws: dict[str, Any] = {"popularity": self._popularity}
        if config.shared:
            return shared_loss(states, vectors, targets, config.num_negatives, log_q=self._log_q, **draws, **options)
        return sampled_loss(
            states, vectors, targets, config.num_negatives, log_q=config.log_q, sparse=table.sparse, **draws, **options
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if self._known is not None and self._known[0].device != self.device:
            self._known = to_device(self._known[0], self.device), to_device(self._known[1], self.device)
            self._popularity = None if self._popularity is None else self._popularity.to(self.device)
            self._log_q = None if self._log_q is None else to_device(self._log_q, self.device)
        return result
