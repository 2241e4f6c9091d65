"""AutoRec: ratings by an autoencoder over item columns (I-AutoRec) or user rows (U-AutoRec).

Paper: Sedhain, Menon, Sanner, Xie 2015, "AutoRec: Autoencoders Meet Collaborative Filtering" (WWW companion).
Code: mesuvash/NNRec.
Deviations: L2 acts, with a batch smaller than the data, on the rows that the batch touches; with the full batch, as in
the paper, on all. The authors' configuration thresholds the hidden units in the forward pass; the paper does not, nor
does this. The deep model's layers are pre-trained on the codes of the model without them (the paper says "greedy
pretraining" and no more). A column without training ratings is predicted as the mean column of the ratings, a row
without as the mean hidden layer has it; the paper's 3 for both is `default_rating=3` of the rating protocol.
With `from_biases` (which `fit` chooses where nothing is said) the network learns what biases leave of the ratings, is
shown standardised ones, and its codes are taken from 0.5: on few ratings it then is no worse than biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.config import FULL_BATCH_OPTIMIZERS, ByData, Only, TrainConfig
from deeprec.contract import Facts, Schema
from deeprec.kernels.embedding_bag import BagPlan
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models._autoencoder import RatingAutoencoder
from deeprec.models._autoencoder_config import AutoencoderConfig
from deeprec.models._inner_layers import InnerLayers
from deeprec.models.base import Recommender

ACTIVATIONS = ("identity", "sigmoid")
_LEVEL = 3.0  # standard deviations that the mean of five stars is above none, about


def _batch_size(facts: Facts, options: Any) -> int:
    if options.optimizer in FULL_BATCH_OPTIMIZERS:
        return 0
    rows = facts.items if options.side == "item" else facts.users
    return max(1, min(64, rows // 4))


def _l2(facts: Facts, options: Any) -> float:
    if not options.from_biases:
        return float(options.l2)
    a_user, an_item = (facts.rows / max(1, count) for count in (facts.users, facts.items))
    return round(12 * (math.sqrt(a_user) + math.sqrt(an_item)), 1)


@dataclass(frozen=True)
class AutoRecConfig(AutoencoderConfig):
    """Attributes:
    side: "item" reconstructs item columns (I-AutoRec), "user" user rows (U-AutoRec).
    hidden: hidden units k, >= 1.
    inner: (250,) for the paper's deep model 500-250-500; () for one hidden layer.
    output: f, "identity" or "sigmoid" (ratings are then mapped onto [0, 1]).
    rating_range: smallest and largest rating there can be; None: those of the training ratings.
    activation: g of the hidden layers, "identity" or "sigmoid".
    epochs: passes over the ratings; with the full batch, iterations ("lbfgs": ten of them).
    batch_size: item columns or user rows a step, >= 1; 0: all of them.
    optimizer: "rprop" or "lbfgs" (full batch, as the paper), or those of the other models.
    lr: learning rate; of "rprop" the first step; "lbfgs" searches for its own.
    l2: lambda of the paper's objective, sum of squared errors + lambda / 2 (|W|^2 + |V|^2), inner weights too; biases
        are free.
    init_std: standard deviation of the initial weights, > 0; a tenth of it for biases.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("from_biases",), "output=identity", lambda config: config.output == "identity"),
    )
    by_data: ClassVar[Mapping[str, ByData]] = {
        "optimizer": ByData(lambda facts, options: "adam", "adam"),
        "batch_size": ByData(_batch_size, "64, less where an epoch would have fewer than 4 steps; 0 with rprop, lbfgs"),
        "epochs": ByData(lambda facts, options: 20 if options.batch_size else 250, "20; 250 of all rows in one step"),
        "lr": ByData(lambda facts, options: 0.005 if "adam" in options.optimizer else options.lr, "0.005 with adam"),
        "lr_schedule": ByData(lambda facts, options: "linear", "linear"),
        "l2": ByData(_l2, "12 (sqrt(ratings a user) + sqrt(ratings an item)) with from_biases, as their noise grows"),
    }

    output: str = "identity"
    activation: str = "sigmoid"
    init_std: float = 0.01
    epochs: int = 250
    batch_size: int = 0
    lr: float = 0.001
    optimizer: str = "rprop"
    l2: float = 240.0
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        for field in ("output", "activation"):
            if getattr(self, field) not in ACTIVATIONS:
                raise ValueError(f"{owner}: {field} must be {' or '.join(ACTIVATIONS)}, got {getattr(self, field)!r}")
        if not self.init_std > 0:
            raise ValueError(f"{owner}: init_std must be > 0, got {self.init_std}")


class AutoRec(RatingAutoencoder):
    """r_hat = f(W g(V r + mu) + b) over the columns or rows r of the ratings, eq. 1; eq. 2 is the loss."""

    name = "autorec"
    config_class: ClassVar[type[TrainConfig]] = AutoRecConfig
    config: AutoRecConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        _, columns = self._sizes(schema)

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=generator))

        std = config.init_std
        self.encoder, self.encoder_bias = normal(columns, config.hidden, std=std), normal(config.hidden, std=std / 10)
        self.decoder, self.decoder_bias = normal(columns, config.hidden, std=std), normal(columns, std=std / 10)
        self.layers: InnerLayers | None = None
        if config.inner:
            activation = torch.sigmoid if config.activation == "sigmoid" else torch.clone
            self.layers = InnerLayers(config.hidden, config.inner, 0, activation, generator)
        self._build_shared(schema, config.hidden, has_means=False)

    def warm_start(self, train_stage: Callable[[Recommender], Recommender]) -> bool:
        """With `pretrain`: the model without inner layers first, then these, layer by layer."""
        if not self.config.pretrain:
            return self.config.from_biases  # its beginning, the biases, is a candidate
        self._start_from(train_stage(_ShallowAutoRec(config=self.config.shallow())))
        return True

    def _targets(self, rows: RatingRows) -> Tensor:
        ratings = rows.ratings
        low, high = self.config.rating_range or (float(ratings.min()), float(ratings.max()))
        if self.config.output == "sigmoid" and not low < high:
            raise ValueError(
                f"autorec: output='sigmoid' needs ratings of two values at least, got {low:g} only; pass rating_range, "
                "or take output='identity'"
            )
        self.limits.copy_(torch.tensor([low, high]))
        return self._scaled(ratings)

    def _scaled(self, ratings: Tensor) -> Tensor:
        if self.config.output == "identity":
            return ratings
        low, high = self.limits
        scaled: Tensor = (ratings - low) / (high - low)
        return scaled

    @property
    def middle(self) -> float:
        # Around 0 no direction of the codes is a bias, which would be learned without the damping that it has.
        return 0.5 if self.config.from_biases and self.config.activation == "sigmoid" else 0.0

    @property
    def _gives_sparse_grad(self) -> bool:
        return self.sparse_grad and self.config.optimizer not in FULL_BATCH_OPTIMIZERS

    def _encode(self, offsets: Tensor, indices: Tensor, targets: Tensor, plan: BagPlan | None = None) -> Tensor:
        codes = sparse_linear(
            offsets,
            indices,
            targets.to(self.encoder.dtype),
            self.encoder,
            self.encoder_bias,
            activation=self.config.activation,
            sparse_grad=self._gives_sparse_grad,
            plan=plan,
        )
        codes = codes if self.layers is None else self.layers(codes, codes.new_empty(len(codes), 0))
        return codes - self.middle if self.middle else codes

    def loss(self, batch: RowBatch) -> Tensor:
        """Sum of squared errors at the observed ratings; `backward` adds the gradient of the regulariser."""
        self._before_loss(batch)
        total, _ = sampled_linear_loss(
            self._encode(batch.offsets, batch.indices, batch.inputs, batch.plan),
            self.decoder,
            self.decoder_bias,
            batch.offsets,
            batch.indices,
            batch.labels.to(wide_dtype(self.decoder.dtype)),
            activation=self.config.output,
            sparse_grad=self._gives_sparse_grad,
            plan=batch.plan,
        )
        return total

    def _regularised(self) -> list[nn.Parameter]:
        return [self.encoder, self.decoder, *([] if self.layers is None else self.layers.weights)]

    def backward(self, batch: RowBatch) -> Tensor:
        """Gradients of loss + lambda / 2 (|W|^2 + |V|^2), the batch's share of it; returns the squared errors."""
        loss = super().backward(batch)
        if self.config.l2:
            factor = self.config.l2 * batch.share
            for weight in self._regularised():
                grad = weight.grad
                assert grad is not None
                if grad.is_sparse:
                    grad._values().add_(weight.detach()[grad._indices()[0]], alpha=factor)
                else:
                    grad.add_(weight.detach(), alpha=factor)
        return loss

    def penalty(self) -> float:
        """lambda / 2 (|W|^2 + |V|^2)."""
        return self.config.l2 / 2 * sum(float(weight.detach().square().sum()) for weight in self._regularised())

    def _encode_whole(self, batch: RowBatch) -> Tensor:
        return self._encode(batch.offsets, batch.indices, batch.inputs)

    def _shown(self, standard: Tensor, targets: Tensor) -> Tensor:
        # Above zero, as stars are: that somebody rated at all says much, and a zero would hide it.
        return standard + _LEVEL

    def _encode_row(self, indices: Tensor, shown: Tensor) -> Tensor:
        return self._encode(torch.arange(2, device=indices.device) * len(indices), indices, shown)

    def _encode_new(self, indices: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._encode_row(indices, self._scaled(ratings)), None

    def _output(self, logits: Tensor) -> Tensor:
        return logits

    def _logit(self, outputs: Tensor) -> Tensor:
        return outputs

    def _rating_of(self, logits: Tensor, means: Tensor | None) -> Tensor:
        if self.config.output == "identity":
            return logits
        low, high = self.limits
        ratings: Tensor = low + (high - low) * torch.sigmoid(logits)
        return ratings

    def _logit_of(self, ratings: Tensor, means: Tensor | None) -> Tensor:
        # A sigmoid never reaches the extremes: 0.95 of the way.
        scaled = self._scaled(ratings)
        return scaled if self.config.output == "identity" else scaled.clamp(0.05, 0.95).logit()

    def _ridge(self) -> float:
        return self.config.l2 / 2


class _ShallowAutoRec(AutoRec):
    """The stage before the deep model; a name of its own keeps their chosen epochs apart."""

    name = "autorec-shallow"
