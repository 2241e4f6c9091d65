"""What SASRec and BERT4Rec share: tables of item vectors, a Transformer over them, and losses against all or draws."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.numbered import NumberedBatches
from deeprec.batches.sequences import SequenceBatches
from deeprec.config import TrainConfig
from deeprec.contract import Batches
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding import embedding
from deeprec.kernels.sample_negatives import AliasTable, alias_table
from deeprec.models._attention_config import AttentionConfig
from deeprec.models._item_columns import ItemColumns, ItemSizes
from deeprec.models._item_losses import Targets, binary_loss, full_loss, gbce_beta, sampled_loss, shared_loss
from deeprec.models._sequence_model import SequenceModel
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import Lists
from deeprec.nn.sequence_encoder import SequenceEncoder

_SPARSE_FROM = 20_000  # rows of a table: below that a dense gradient costs less than sorting the ids of a batch


class AttentionModel(ItemColumns, SequenceModel):
    """Base of the models with a `SequenceEncoder`; `is_causal` says whether a place sees what comes after it.

    Parameters: `items.weight` [N, D] unless item_inputs has no "id", `outputs.weight` where the scored vectors are
    others, those of `encoder`, and of `towers` (see `ItemColumns`).
    """

    config_class: ClassVar[type[TrainConfig]] = AttentionConfig
    is_causal: ClassVar[bool] = True
    config: AttentionConfig

    def _build_network(self, schema: ItemSizes, generator: torch.Generator | None) -> None:
        config, count = self.config, schema.num_items - schema.added_items
        has_ids = "id" in config.item_inputs
        self.items = self._table(count, generator) if has_ids else None
        self.outputs = self._table(count, generator) if has_ids and not config.tied else None
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
        self._build_columns(schema, 1 if config.tied else 2, config.init_std, generator)
        self._known: Lists | None = None
        self._popularity: AliasTable | None = None
        self._log_q: Tensor | None = None

    def _table(self, count: int, generator: torch.Generator | None) -> Embedding:
        config = self.config
        is_sparse = count >= _SPARSE_FROM and config.loss != "full" and not config.shared and not self.reads_columns
        table = Embedding(count, config.factors, sparse=is_sparse, name="item")
        nn.init.normal_(table.weight, 0.0, config.init_std, generator=generator)
        return table

    # -- vectors of items ----------------------------------------------------------------------------------------------

    def _vector_tables(self) -> list[Embedding | None]:
        return [self.items] if self.config.tied else [self.items, self.outputs]

    def _trained_vectors(self) -> tuple[Tensor | None, Tensor]:
        """Vectors that are read, None for the rows of `items`, and vectors [N, D] that are scored, with gradients."""
        if self.reads_columns:
            tables = self._with_columns(self._vector_tables())
            return tables[0], tables[-1]
        return None, self._scored_vectors()

    def _read_vectors(self) -> Tensor | None:
        """Vectors that are read after training; None for the rows of `items`."""
        return self._kept_vectors()[0] if self.reads_columns else None

    def _scored_vectors(self) -> Tensor:
        """Vectors [N, D] that are scored after training, but for the length that cosines take from them."""
        if self.reads_columns:
            return self._kept_vectors()[-1]
        table = self.items if self.outputs is None else self.outputs
        assert table is not None
        return table.weight

    def _rows(self, items: Tensor, vectors: Tensor | None) -> Tensor:
        """Rows of the vectors that are read."""
        if vectors is not None:
            return embedding(vectors, items, sparse_grad=False, name="item")
        assert self.items is not None
        rows: Tensor = self.items(items)
        return rows

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
        self._prepare_columns(train, [table for table in self._vector_tables() if table is not None])
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

    def _item_loss(self, states: Tensor, targets: Targets, vectors: Tensor, bias: Tensor | None = None) -> Tensor:
        """Of states [T, D] against the vectors of items, with a bias [N] where the model has one."""
        config, num_items = self.config, len(vectors)
        is_sparse = self.items is not None and self.items.sparse
        if self._absent is not None:
            bias = self._absent if bias is None else bias + self._absent
        if config.loss in ("bce", "gbce"):
            beta = gbce_beta(config.calibration, config.num_negatives, num_items) if config.loss == "gbce" else 1.0
            return binary_loss(states, vectors, targets, config.num_negatives, beta=beta, bias=bias, sparse=is_sparse)
        options: dict[str, Any] = {"similarity": config.similarity, "gamma": config.gamma}
        options |= {"mask_known": config.mask_known, "bias": bias}
        if config.loss == "full":
            return full_loss(states, vectors, targets, **options)
        draws: dict[str, Any] = {"popularity": self._popularity}
        if config.shared:
            return shared_loss(states, vectors, targets, config.num_negatives, log_q=self._log_q, **draws, **options)
        return sampled_loss(
            states, vectors, targets, config.num_negatives, log_q=config.log_q, sparse=is_sparse, **draws, **options
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if self._known is not None and self._known[0].device != self.device:
            self._known = to_device(self._known[0], self.device), to_device(self._known[1], self.device)
            self._popularity = None if self._popularity is None else self._popularity.to(self.device)
            self._log_q = None if self._log_q is None else to_device(self._log_q, self.device)
        return result
