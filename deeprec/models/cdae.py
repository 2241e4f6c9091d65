"""CDAE: a collaborative denoising autoencoder over likes, with a vector for every user.

Paper: Wu, DuBois, Zheng, Ester 2016, "Collaborative Denoising Auto-Encoders for Top-N Recommender Systems" (WSDM).
Code: jasonyaw/CDAE.
Deviations: steps over several users, with the sum of their losses, instead of one. The regulariser acts once for each
of a step's users on the rows that the step touches (on a whole matrix of the items where a step has more entries than
there are items); with one user a step that is the authors' code, with all users in one step the paper's formula. The
weights start as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.likes import Likes, UserBatch
from deeprec.config import ByData, Only, TrainConfig
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Batches, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding import embedding
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss import ACTIVATIONS, sampled_linear_loss
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import add_rows
from deeprec.models._autoencoder import refresh_codes
from deeprec.models.base import Recommender
from deeprec.nn.embedding import catch_up
from deeprec.nn.scoring import DotScorer

VARIANTS = {
    "m1": ("identity", "squared"),
    "m2": ("identity", "cross_entropy"),
    "m3": ("sigmoid", "squared"),
    "m4": ("sigmoid", "cross_entropy"),
}
LOSSES = ("squared", "cross_entropy", "hinge")


@dataclass(frozen=True)
class CDAEConfig(TrainConfig):
    """Attributes:
    hidden: hidden units K, >= 1.
    corruption: q in [0, 1]: each like of the input is dropped with this probability, the others grow by 1 / (1 - q);
        with 1 the model is V_u alone, in predictions too, as in the authors' code.
    activation: h of the hidden layer, "identity", "sigmoid" or "tanh".
    loss: "squared" (half the square), "cross_entropy" (of the sigmoid of the output) or "hinge".
    variant: "m1" to "m4" set activation and loss as the paper's table 2 does; "" leaves them as they are.
    tied: one matrix for both layers; the paper's best is False.
    num_negatives: NS, sampled items for each like, anew in every step.
    batch_size: users a step, >= 1.
    reduction: "sum" or "mean" over the users of a step; over a user's items it is always the sum.
    l2: lambda, see the module; with the mean, lambda / 2 times the squared norms, with the sum as many times as users.
    user_l2: lambda of the user vectors alone. They are touched once an epoch and the items' at every step, so that the
        paper's formula asks for l2 times the number of steps; None: l2, as in the authors' code.
    adagrad_start: beta of the paper's AdaGrad, what the sums of squares start from, >= 0.
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("adagrad_start",), "optimizer=adagrad", lambda config: config.optimizer == "adagrad"),
    )

    by_data: ClassVar[Mapping[str, ByData]] = {"patience": ByData(lambda facts, options: 10, "10")}

    hidden: int = 50
    corruption: float = 0.5
    activation: str = "sigmoid"
    loss: str = "cross_entropy"
    variant: str = ""
    tied: bool = False
    user_l2: float | None = None
    adagrad_start: float = 1.0
    epochs: int = 50
    batch_size: int = 64
    lr: float = 0.1
    optimizer: str = "adagrad"
    l2: float = 0.001
    num_negatives: int = 5
    reduction: str = "sum"
    refit: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        owner = type(self).__name__
        if self.variant:
            if self.variant not in VARIANTS:
                raise ValueError(f"{owner}: variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
            for field, value in zip(("activation", "loss"), VARIANTS[self.variant], strict=True):
                if getattr(self, field) not in (value, getattr(CDAEConfig, field)):
                    raise ValueError(
                        f"{owner}: {field} must be {value} with variant={self.variant}, which sets it, got "
                        f"{getattr(self, field)!r}; leave one of them out"
                    )
                object.__setattr__(self, field, value)
        for field, choices in (("activation", ACTIVATIONS), ("loss", LOSSES)):
            if getattr(self, field) not in choices:
                raise ValueError(f"{owner}: {field} must be {' or '.join(choices)}, got {getattr(self, field)!r}")
        for field in ("hidden", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{owner}: {field} must be >= 1, got {getattr(self, field)}")
        if not 0 <= self.corruption <= 1:
            raise ValueError(f"{owner}: corruption must lie in [0, 1], got {self.corruption}; 0.5 is usual")
        for field in ("adagrad_start", "user_l2"):
            value = getattr(self, field)
            if value is not None and not value >= 0:
                raise ValueError(f"{owner}: {field} must be >= 0, got {value}")
        self._check_shared()


class CDAE(Recommender):
    """logit = W'_i . h(W^T y + V_u + b) + b'_i, eq. 9 and 10; y are the user's likes, corrupted in training.

    Attributes:
        sparse_grad: whether the tables get sparse gradients; set it to False for optimizers that take dense ones only,
            such as torch.optim.Adam.
    """

    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    sparse_grad: bool = True
    trains_on_whole_rows: ClassVar[bool] = True
    name = "cdae"
    config_class: ClassVar[type[TrainConfig]] = CDAEConfig
    config: CDAEConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        hidden = self.config.hidden
        scale = 4 * math.sqrt(6 / (schema.num_items + hidden))

        def uniform(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, hidden).uniform_(-scale, scale, generator=generator))

        self.encoder, self.encoder_bias = uniform(schema.num_items), nn.Parameter(torch.zeros(hidden))
        self.users = uniform(schema.num_users)
        self.register_parameter("decoder_weight", None if self.config.tied else uniform(schema.num_items))
        self.decoder_bias = nn.Parameter(torch.zeros(schema.num_items))
        # The hidden layer of every user's training likes: all that predictions need of them.
        self.register_buffer("codes", torch.zeros(schema.num_users, hidden))
        self.codes: Tensor
        self.decoder_weight: nn.Parameter | None
        self._likes: Likes | None = None
        self._is_stale = self._is_input_dense = self._is_output_dense = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    @property
    def decoder(self) -> nn.Parameter:
        """W' [num_items, hidden]; W where they are tied."""
        return self.encoder if self.decoder_weight is None else self.decoder_weight

    def batches(self, train: Interactions, seed: int) -> Batches:
        """Users with their likes, corrupted, and sampled items."""
        config = self.config
        self._likes = Likes(
            train,
            batch_size=config.batch_size,
            corruption=config.corruption,
            num_negatives=config.num_negatives,
            negative_label=-1.0 if config.loss == "hinge" else 0.0,
            seed=seed,
            device=self.device,
        )
        # Where the entries of a batch reach most items anyway, steps by row would only cost.
        likes, num_items = self._likes.likes_a_batch, train.num_items
        self._is_input_dense = likes * (1 - config.corruption) >= num_items
        self._is_output_dense = likes * (1 + config.num_negatives) >= num_items
        self._is_stale = True
        return self._likes

    def code(self, offsets: Tensor, indices: Tensor, values: Tensor, vectors: Tensor | None = None) -> Tensor:
        """h(W^T y + V_u + b) [b, hidden] of likes in compressed rows; vectors are V_u [b, hidden], None: zeros."""
        values = values.to(self.encoder.dtype)
        codes = sparse_linear(offsets, indices, values, self.encoder, self.encoder_bias, sparse_grad=self.sparse_grad)
        codes = codes if vectors is None else codes + vectors
        if self.config.activation == "identity":
            return codes
        return torch.sigmoid(codes) if self.config.activation == "sigmoid" else torch.tanh(codes)

    def loss(self, batch: UserBatch) -> Tensor:
        """Loss at the likes and sampled items, summed over items; `backward` adds the gradient of the regulariser."""
        self.require_built()
        if torch.is_grad_enabled():
            self._is_stale = True
            for table, rows in (
                (self.encoder, batch.input_indices),
                (self.decoder, batch.indices),
                (self.users, batch.users),
            ):
                catch_up(table, rows)  # of Adam's rows; nothing where gradients are dense
        vectors = embedding(self.users, batch.users, sparse_grad=self.sparse_grad)
        codes = self.code(batch.input_offsets, batch.input_indices, batch.input_values, vectors)
        total, _ = sampled_linear_loss(
            codes,
            self.decoder,
            self.decoder_bias,
            batch.offsets,
            batch.indices,
            batch.labels.to(wide_dtype(self.decoder.dtype)),
            activation="sigmoid" if self.config.loss == "cross_entropy" else "identity",
            loss=self.config.loss,
            sparse_grad=self.sparse_grad,
        )
        total = total / 2 if self.config.loss == "squared" else total
        return total / len(batch.users) if self.config.reduction == "mean" else total

    def backward(self, batch: UserBatch) -> Tensor:
        """Gradients of the loss and of lambda / 2 times the squares of what the batch touches; returns the loss."""
        loss = super().backward(batch)
        times = len(batch.users) if self.config.reduction == "sum" else 1
        for table, is_dense in ((self.encoder, self._is_input_dense), (self.decoder, self._is_output_dense)):
            if is_dense and table.grad is not None and table.grad.is_sparse:
                table.grad = _dense(table.grad)
        for weight in self.parameters():
            grad, factor = weight.grad, self._decay_of(weight) * times
            if factor and grad is not None:
                if grad.is_sparse:
                    grad = weight.grad = grad.coalesce()
                    grad._values().add_(weight.detach()[grad._indices()[0]], alpha=factor)
                else:
                    grad.add_(weight.detach(), alpha=factor)
        return loss

    def _decay_of(self, weight: Tensor) -> float:
        user_l2 = self.config.user_l2
        return self.config.l2 if weight is not self.users or user_l2 is None else user_l2

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._is_stale and self._likes is not None:
            self._is_stale = False
            likes = self._likes
            for table in (self.encoder, self.decoder, self.users):
                catch_up(table, torch.arange(len(table), device=table.device))
            offsets, items = likes.offsets.int(), likes.items
            if self.config.corruption == 1:
                offsets, items = torch.zeros_like(offsets), items[:0]
            ones = torch.ones(len(items), device=items.device)
            self.codes.copy_(self.code(offsets, items, ones, self.users))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the codes come with it, and are computed anew where the training likes are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = True
        return result

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of pairs of internal ids, from uncorrupted likes; shapes broadcast. Trained by `loss`, not by this."""
        self.require_built()
        self._refresh()
        users, items = users.long(), items.long()
        return (self.codes[users] * self.decoder[items]).sum(-1) + self.decoder_bias[items]

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        return (self.codes[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The hidden layer of the likes of users without a vector of their own: V_u = 0."""
        if self.config.corruption == 1:  # likes say nothing: the hidden layer is fitted to them
            return super().history_rows(offsets, items)
        ones = torch.ones(len(items), device=items.device)
        return (self.code(to_device(offsets, items.device), items, ones),)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        items = items.long()
        return (rows[0] * self.decoder.detach()[items]).sum(-1) + self.decoder_bias.detach()[items]

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0].detach(), self.decoder.detach(), self.decoder_bias.detach())

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.decoder.detach()


def _dense(grad: Tensor) -> Tensor:
    """The dense tensor of a gradient by row."""
    whole = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
    return add_rows(whole, grad._indices()[0], grad._values())
