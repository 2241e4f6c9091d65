"""Caser: convolutions over the last few items, as over a small picture, beside a vector of the user.

Paper: Tang, Wang 2018, "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding" (WSDM).
Code: graytowne/caser_pytorch, by the first author. Ablations of the paper's table 3: `use_users` is part p,
`horizontal_filters` and `vertical_filters` h and v.
Deviations: as in the authors' PyTorch code, and not in equation 10, positives and negatives are averaged apart, so that
the negatives of a target weigh as much as the target itself, and what is before the first item of a short history is a
vector; here zeros, there one that is learnt. A history shorter than L + T gives one window, whose targets are its last
ones. Users unknown in training have no vector of their own: the mean of all stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.sliding import SlidingBatches, WindowBatch
from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.contract import Queries, Schema, Seen, merged
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.softmax_loss import sampled_softmax_loss, softmax_loss
from deeprec.models._sequence_model import SequenceConfig, SequenceModel
from deeprec.nn.dropout import Dropout
from deeprec.nn.embedding import Embedding, catch_up
from deeprec.nn.mlp import ACTIVATIONS
from deeprec.nn.scoring import rows_of
from deeprec.nn.sequence_convolution import SequenceConvolution

_LOSSES = ("bce", "sampled-softmax", "softmax")
_ACTIVATIONS = ("relu", "identity", "sigmoid", "tanh")
_LONGEST = 32  # the matrix of the filters at all places grows with L^3


@dataclass(frozen=True)
class CaserConfig(SequenceConfig):
    """Attributes:
    factors: d, width of the vectors of users, items and the network's output, >= 1.
    length: L, the last items that are read, in [1, 32].
    num_targets: T, items after a window that it is trained to expect, >= 1.
    horizontal_filters: of each height from 1 to L, >= 0.
    vertical_filters: >= 0; with neither the vector of the user alone ranks.
    use_users: whether each user has a vector of their own, which stands beside what the filters say.
    conv_activation: of the horizontal filters, "relu", "identity", "sigmoid" or "tanh".
    activation: of the layer behind the filters, one of these.
    dropout: share of what the filters say that is dropped in training, in [0, 1).
    loss: "bce", binary cross-entropy of each target and `num_negatives` for it; "softmax", each target against all
        items; "sampled-softmax", against `num_negatives`, corrected for how they are drawn.
    batch_size: windows a step, >= 1.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("num_negatives",), "a loss with negatives, 'bce' or 'sampled-softmax'", lambda c: c.loss != "softmax"),
        Only(("conv_activation",), "horizontal_filters", lambda c: c.horizontal_filters > 0),
        Only(
            ("activation", "dropout"),
            "horizontal_filters or vertical_filters",
            lambda c: c.horizontal_filters + c.vertical_filters > 0,
        ),
    )

    factors: int = 50
    length: int = 5
    num_targets: int = 3
    horizontal_filters: int = 16
    vertical_filters: int = 4
    use_users: bool = True
    conv_activation: str = "relu"
    activation: str = "relu"
    dropout: float = 0.5
    loss: str = "bce"
    num_negatives: int = 3
    batch_size: int = 512
    epochs: int = 50
    lr: float = 0.001
    weight_decay: float = 1e-6
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "num_targets", 1)
        for name in ("horizontal_filters", "vertical_filters"):
            at_least(self, name, 0)
        for name in ("conv_activation", "activation"):
            one_of(self, name, _ACTIVATIONS)
        one_of(self, "loss", _LOSSES)
        if self.length > _LONGEST:
            raise ValueError(
                f"CaserConfig: length must lie in [1, {_LONGEST}], got {self.length}; what is older than the last "
                "few items is for models that read whole histories"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"CaserConfig: dropout must lie in [0, 1), got {self.dropout}; it is the share dropped")
        if not (self.use_users or self.horizontal_filters or self.vertical_filters):
            raise ValueError(
                "CaserConfig: one of use_users, horizontal_filters and vertical_filters is needed, got none; take "
                "vertical_filters=4"
            )


class Caser(SequenceModel):
    """score(u, history, i) = W'_i . [z, P_u] + b'_i with z = f(W [o, u] + b) of the filters o and u."""

    name = "caser"
    config_class: ClassVar[type[TrainConfig]] = CaserConfig
    config: CaserConfig

    def _build_network(self, schema: Schema, generator: torch.Generator | None) -> None:
        config, width = self.config, 0
        tables = []
        if self._has_filters:
            self.items = Embedding(schema.num_items, config.factors, name="item")
            self.convolution = SequenceConvolution(
                config.length,
                config.factors,
                horizontal_filters=config.horizontal_filters,
                vertical_filters=config.vertical_filters,
                activation=config.conv_activation,
                generator=generator,
            )
            self.dropout = Dropout(config.dropout)
            self.hidden = nn.Linear(self.convolution.out_features, config.factors)
            tables.append(self.items)
            width += config.factors
        if config.use_users:
            self.users = Embedding(schema.num_users, config.factors, name="user")
            tables.append(self.users)
            width += config.factors
        self._met: tuple[Tensor, Tensor] | None = None
        self.output = Embedding(schema.num_items, width, name="item")
        self.output_bias = nn.Parameter(torch.zeros(schema.num_items))
        with torch.no_grad():
            for table in (*tables, self.output):
                table.weight.normal_(0.0, 1 / table.embedding_dim, generator=generator)
            if self._has_filters:
                bound = self.convolution.out_features**-0.5
                for weight in (self.hidden.weight, self.hidden.bias):
                    weight.uniform_(-bound, bound, generator=generator)

    @property
    def _has_filters(self) -> bool:
        return self.config.horizontal_filters + self.config.vertical_filters > 0

    # -- training ----------------------------------------------------------------------------------------------------

    def training_batches(self, train: Interactions, seed: int) -> SlidingBatches:
        """Every window of each history, with its targets and their negatives."""
        config, avoid = self.config, None
        if self.earlier is not None:
            avoid = merged(Seen(*train.csr()), self.earlier, train.num_users, train.num_items)
        batches = SlidingBatches(
            train,
            batch_size=config.batch_size,
            length=config.length,
            num_targets=config.num_targets,
            num_negatives=config.num_negatives if config.loss == "bce" else 0,
            seed=seed,
            avoid=avoid,
            device=self.device,
        )
        self._met = batches.met if config.loss == "sampled-softmax" else None
        return batches

    def loss(self, batch: WindowBatch) -> Tensor:
        """Mean over the targets, of which those of a window share its vector."""
        self.require_built()
        parts = [self._read(batch.items)] if self._has_filters else []
        if self.config.use_users:
            parts.append(self.users(batch.users))
        vectors = torch.cat(parts, 1)
        return self._bce(vectors, batch) if self.config.loss == "bce" else self._softmax(vectors, batch)

    def _bce(self, vectors: Tensor, batch: WindowBatch) -> Tensor:
        """-log s(target) averaged over the targets, and -log(1 - s(negative)) over their negatives."""
        assert batch.negatives is not None
        items = torch.cat([batch.targets, batch.negatives], 1)
        is_target = batch.targets >= 0
        # Negatives are drawn for T targets; of those of a window with fewer only their share counts.
        shares = is_target.sum(1, keepdim=True) / (is_target.shape[1] * self.config.num_negatives)
        weights = torch.cat([is_target.to(shares.dtype), shares.expand_as(batch.negatives)], 1) / batch.num_targets
        labels = torch.ones_like(weights)
        labels[:, is_target.shape[1] :] = -1
        entries = items.clamp(min=0).flatten()
        catch_up(self.output.weight, entries)
        wide = wide_dtype(vectors.dtype)
        total, _ = sampled_linear_loss(
            vectors,
            self.output.weight,
            self.output_bias,
            torch.arange(len(items) + 1, device=items.device) * items.shape[1],
            entries,
            labels.flatten().to(wide),
            entry_weights=weights.flatten().to(wide),
            loss="logistic",
        )
        return total

    def _softmax(self, vectors: Tensor, batch: WindowBatch) -> Tensor:
        """Each target against all items, or against some that the user has not met."""
        count = batch.targets.shape[1]
        queries, targets = vectors.repeat_interleave(count, 0), batch.targets.flatten()
        weights = (targets >= 0).to(wide_dtype(vectors.dtype)) / batch.num_targets
        options: dict[str, Any] = {"bias": self.output_bias, "weights": weights, "reduction": "sum"}
        items, targets = self.output.weight, targets.clamp(min=0)
        if self.config.loss == "softmax":
            return softmax_loss(queries, items, targets, **options)
        assert self._met is not None
        return sampled_softmax_loss(
            queries,
            items,
            targets,
            self.config.num_negatives,
            seed=batch.seed,
            offset=batch.offset * count,
            seen_indptr=self._met[0],
            seen_indices=self._met[1],
            seen_rows=batch.users.repeat_interleave(count),
            sparse_grad=False,  # what it draws cannot be caught up before
            **options,
        )

    # -- what the network says ---------------------------------------------------------------------------------------

    def _read(self, items: Tensor) -> Tensor:
        """z [b, d] of windows [b, L], -1 where there is no item."""
        vectors = self.items(items.clamp(min=0)) * (items >= 0).unsqueeze(2)
        hidden: Tensor = self.hidden(self.dropout(self.convolution(vectors)))
        return ACTIVATIONS[self.config.activation](hidden)

    def encode_last(self, items: Tensor, mask: Tensor) -> Tensor:
        """z [b, d] of windows [b, l]."""
        return self._read(F.pad(items, (self.config.length - items.shape[1], 0), value=-1))

    @torch.no_grad()
    def _states(self, offsets: Tensor, items: Tensor, users: Tensor | None) -> tuple[Tensor, ...]:
        """[z, P_u] of histories; the mean of all P for those who are no users."""
        parts = list(super().history_rows(offsets, items)) if self._has_filters else []
        if self.config.use_users:
            table, count = self.users.weight.detach(), len(offsets) - 1
            parts.append(table.mean(0).expand(count, -1) if users is None else table[users.long()])
        return (torch.cat(parts, 1),)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        return self._states(offsets, items, None)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return self._states(*rows_of((self.history_offsets, self.history_items), users), users)

    def encode(self, queries: Queries) -> tuple[Tensor, ...]:
        """As every model; who has a history and is a known user keeps their vector."""
        if queries.history is None or queries.users is None or queries.ratings is not None:
            return super().encode(queries)
        self.require_built()
        offsets, items = queries.history
        return self._states(offsets, to_device(items, self.device), to_device(queries.users, self.device))

    def output_items(self) -> tuple[Tensor, Tensor | None]:
        return self.output.weight, self.output_bias
