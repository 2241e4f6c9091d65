"""AutoRec: ratings by an autoencoder over item columns (I-AutoRec) or user rows (U-AutoRec).

Paper: Sedhain, Menon, Sanner, Xie 2015, "AutoRec: Autoencoders Meet Collaborative Filtering" (WWW companion).
Code: mesuvash/NNRec.
Deviations: L2 acts, with a batch smaller than the data, on the rows that the batch touches; with the full batch, as in
the paper, on all. The authors' configuration thresholds the hidden units in the forward pass; the paper does not, nor
does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.data import Interactions
from deeprec.kernels.embedding_bag import BagPlan
from deeprec.kernels.sampled_linear_loss import csr_plan, sampled_linear_loss
from deeprec.kernels.score_topk import DotScorer, score_items, score_topk
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models.base import Batches, Recommender, Schema, Seen
from deeprec.models.config import FULL_BATCH_OPTIMIZERS, OPTIMIZERS, TrainConfig
from deeprec.nn.embedding import catch_up

SIDES = ("item", "user")
ACTIVATIONS = ("identity", "sigmoid")


@dataclass(frozen=True)
class AutoRecConfig(TrainConfig):
    """Attributes:
    side: "item" reconstructs item columns (I-AutoRec), "user" user rows (U-AutoRec).
    hidden: hidden units k, >= 1.
    output: f, "identity" or "sigmoid" (ratings are then mapped onto [0, 1]).
    activation: g of the hidden layer, "identity" or "sigmoid".
    epochs: passes over the ratings; with the full batch, iterations.
    batch_size: item columns or user rows a step, >= 1; 0: all of them.
    optimizer: "rprop" (full batch, as the paper), or those of the other models.
    lr: learning rate; of "rprop" the first step.
    l2: lambda of the paper's objective, sum of squared errors + lambda / 2 (|W|^2 + |V|^2); biases are free.
    init_std: standard deviation of the initial weights, > 0; a tenth of it for biases.
    """

    optimizers: ClassVar[tuple[str, ...]] = (*FULL_BATCH_OPTIMIZERS, *OPTIMIZERS)

    side: str = "item"
    hidden: int = 500
    output: str = "identity"
    activation: str = "sigmoid"
    init_std: float = 0.01
    epochs: int = 250
    batch_size: int = 0
    lr: float = 0.001
    optimizer: str = "rprop"
    l2: float = 240.0
    num_negatives: int = 1
    reduction: str = "sum"
    refit: bool = True

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if self.batch_size < 0:
            raise ValueError(f"{owner}: batch_size must be >= 0 (0: everything in one step), got {self.batch_size}")
        if self.batch_size and self.optimizer in FULL_BATCH_OPTIMIZERS:
            raise ValueError(
                f"{owner}: optimizer {self.optimizer!r} needs the full batch, got batch_size={self.batch_size}; take "
                "batch_size=0, or optimizer='adam'"
            )
        for field, choices in (("side", SIDES), ("output", ACTIVATIONS), ("activation", ACTIVATIONS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"{owner}: {field} must be {' or '.join(choices)}, got {getattr(self, field)!r}")
        if self.hidden < 1 or not self.init_std > 0:
            raise ValueError(f"{owner}: hidden must be >= 1 and init_std > 0, got {self.hidden} and {self.init_std}")
        if self.reduction != "sum":
            raise ValueError(f"{owner}: reduction must be 'sum', which lambda belongs to, got {self.reduction!r}")
        self._check_shared()


class RowBatch(NamedTuple):
    """Some rows of the rating matrix.

    Attributes:
        indptr: [b + 1], int64; indices: [nnz] columns, int64.
        labels: [nnz] ratings, float32.
        plan: entries by column, where it is used again; else None.
        share: share of the rows that these are: of the regulariser that they carry.
    """

    indptr: Tensor
    indices: Tensor
    labels: Tensor
    plan: BagPlan | None
    share: float


class RatingRows:
    """Rows of the rating matrix in shuffled batches; all of them in one, always the same, with batch_size 0."""

    def __init__(self, train: Interactions, *, side: str, batch_size: int, seed: int) -> None:
        if train.ratings is None:
            raise ValueError(f"autorec: the data must have ratings, got {train.name} without; take neumf or mf")
        rows, columns, self.num_rows, self.num_columns = train.users, train.items, train.num_users, train.num_items
        if side == "item":
            rows, columns, self.num_rows, self.num_columns = columns, rows, self.num_columns, self.num_rows
        order = np.lexsort((columns, rows))
        self.indices = torch.from_numpy(columns[order].astype(np.int64))
        self.ratings = torch.from_numpy(train.ratings[order])
        counts = np.bincount(rows, minlength=self.num_rows)
        self.indptr = torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int64))
        self.batch_size, self.seed = batch_size, seed
        self._whole: RowBatch | None = None

    @property
    def num_examples(self) -> int:
        """Ratings in an epoch."""
        return len(self.ratings)

    def whole(self) -> RowBatch:
        """All rows."""
        if self._whole is None:
            plan = csr_plan(self.indptr, self.indices, self.num_columns)
            self._whole = RowBatch(self.indptr, self.indices, self.ratings, plan, 1.0)
        return self._whole

    def epoch(self, number: int) -> Iterator[RowBatch]:
        """The batches of one epoch, rows without ratings left out."""
        if not self.batch_size:
            yield self.whole()
            return
        (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64) >> 1
        shuffled = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(int(seed)))
        lengths = self.indptr.diff()
        for rows in shuffled[lengths[shuffled] > 0].split(self.batch_size):
            counts = lengths[rows]
            indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            places = torch.arange(int(indptr[-1])) + torch.repeat_interleave(self.indptr[rows] - indptr[:-1], counts)
            yield RowBatch(indptr, self.indices[places], self.ratings[places], None, len(rows) / self.num_rows)


class AutoRec(Recommender):
    """r_hat = f(W g(V r + mu) + b) over the columns or rows r of the ratings, eq. 1; eq. 2 is the loss."""

    name = "autorec"
    config_class: ClassVar[type[TrainConfig]] = AutoRecConfig
    config: AutoRecConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        sizes = (schema.num_items, schema.num_users)
        rows, columns = sizes if config.side == "item" else sizes[::-1]

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=generator))

        std = config.init_std
        self.encoder, self.encoder_bias = normal(columns, config.hidden, std=std), normal(config.hidden, std=std / 10)
        self.decoder, self.decoder_bias = normal(columns, config.hidden, std=std), normal(columns, std=std / 10)
        # What the encoder says of every row of the training ratings: all that predictions need of them.
        self.register_buffer("codes", torch.zeros(rows, config.hidden))
        self.register_buffer("limits", torch.tensor([0.0, 1.0]))  # smallest and largest training rating
        self.codes: Tensor
        self.limits: Tensor
        self._rows: RatingRows | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(lambda module, *_: module._refresh())  # type: ignore[no-untyped-call]

    def batches(self, train: Interactions, seed: int) -> Batches:
        """Item columns or user rows of the ratings."""
        config = self.config
        self._rows = RatingRows(train, side=config.side, batch_size=config.batch_size, seed=seed)
        ratings = self._rows.ratings
        if config.output == "sigmoid" and not float(ratings.max()) > float(ratings.min()):
            raise ValueError("autorec: output='sigmoid' needs ratings of two values at least; take output='identity'")
        self.limits.copy_(torch.stack([ratings.min(), ratings.max()]))
        self._is_stale = True
        return self._rows

    def _scaled(self, ratings: Tensor) -> Tensor:
        if self.config.output == "identity":
            return ratings
        low, high = self.limits
        scaled: Tensor = (ratings - low) / (high - low)
        return scaled

    def encode(self, indptr: Tensor, indices: Tensor, ratings: Tensor, plan: BagPlan | None = None) -> Tensor:
        """Codes [b, hidden] of rows of ratings: columns [nnz], in the units of the data, as CSR."""
        return sparse_linear(
            indptr,
            indices,
            self._scaled(ratings),
            self.encoder,
            self.encoder_bias,
            activation=self.config.activation,
            sparse_grad=self.config.optimizer not in FULL_BATCH_OPTIMIZERS,
            plan=plan,
        )

    def loss(self, batch: RowBatch) -> Tensor:
        """Sum of squared errors at the observed ratings; `backward` adds the gradient of the regulariser."""
        self.require_built()
        if torch.is_grad_enabled():
            for table in (self.encoder, self.decoder):
                catch_up(table, batch.indices)
        codes = self.encode(*batch[:4])
        total, _ = sampled_linear_loss(
            codes,
            self.decoder,
            self.decoder_bias,
            batch.indptr,
            batch.indices,
            self._scaled(batch.labels),
            activation=self.config.output,
            sparse_grad=self.config.optimizer not in FULL_BATCH_OPTIMIZERS,
            plan=batch.plan,
        )
        return total

    def backward(self, batch: RowBatch) -> Tensor:
        """Gradients of loss + lambda / 2 (|W|^2 + |V|^2), the batch's share of it; returns the squared errors."""
        self._is_stale = True
        loss = super().backward(batch)
        if self.config.l2:
            factor = self.config.l2 * batch.share
            for weight in (self.encoder, self.decoder):
                grad = weight.grad
                assert grad is not None
                if grad.is_sparse:
                    grad._values().add_(weight.detach()[grad._indices()[0]], alpha=factor)
                else:
                    grad.add_(weight.detach(), alpha=factor)
        return loss

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._is_stale and self._rows is not None:
            self._is_stale = False
            rows = self._rows
            self.codes.copy_(self.encode(rows.indptr, rows.indices, rows.ratings))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the codes come with it."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = False
        return result

    def _sides(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """User vectors, item vectors, user biases, item biases: the logit is their product and sum."""
        self._refresh()
        if self.config.side == "item":
            return self.decoder, self.codes, self.decoder_bias, None
        return self.codes, self.decoder, None, self.decoder_bias

    def _rating_of(self, logits: Tensor) -> Tensor:
        if self.config.output == "identity":
            return logits
        low, high = self.limits
        ratings: Tensor = low + (high - low) * torch.sigmoid(logits)
        return ratings

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Predicted ratings of pairs of internal ids, not clipped; shapes broadcast."""
        self.require_built()
        p, q, b_u, b_i = self._sides()
        users, items = users.long(), items.long()
        logits = (p[users] * q[items]).sum(-1)
        logits = logits if b_u is None else logits + b_u[users]
        return self._rating_of(logits if b_i is None else logits + b_i[items])

    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, in the units of the data."""
        blocks = zip(users.split(1 << 16), items.split(1 << 16), strict=True)
        return torch.cat([self(*block) for block in blocks]) if len(users) else torch.empty(0)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self.require_built()
        p, _, b_u, _ = self._sides()
        some = p[users.long()].detach()
        one = torch.zeros(len(some), 1) if b_u is None else b_u.detach()[users.long()].unsqueeze(1)
        return some, one

    @torch.no_grad()
    def rows_for_history(self, history: Tensor) -> tuple[Tensor, ...]:
        """A user who gave each item of `history` [n] the largest rating.

        U-AutoRec encodes those ratings. I-AutoRec has a vector for each user: of all that fit these ratings, the one by
        ridge regression around the mean user, with the model's own regulariser.
        """
        self.require_built()
        p, q, b_u, _ = self._sides()
        most = self.limits[1].expand(len(history))
        if b_u is None:
            bounds = torch.tensor([0, len(history)])
            return self.encode(bounds, history.long(), most), torch.zeros(1, 1)
        mean, bias = p.mean(0, keepdim=True), b_u.mean().view(1, 1)
        codes = q[history.long()]
        # A sigmoid never reaches the largest rating: 0.95 of the way.
        goal = most if self.config.output == "identity" else torch.full_like(most, 0.95).logit()
        missing = goal.unsqueeze(1) - codes @ mean.T - bias
        gram = codes @ codes.T + max(self.config.l2 / 2, 1e-6) * torch.eye(len(codes))
        return mean + (codes.T @ torch.linalg.solve(gram, missing)).T, bias

    def forward_rows(self, user_rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        _, q, _, b_i = self._sides()
        logits = (user_rows[0] * q[items.long()].detach()).sum(-1) + user_rows[1].squeeze(-1)
        return self._rating_of(logits if b_i is None else logits + b_i.detach()[items.long()])

    def _scorer(self, user_rows: tuple[Tensor, ...]) -> DotScorer:
        """With a column for the user's own bias: it does not change the order, but the ratings."""
        _, q, _, b_i = self._sides()
        users = torch.cat([user_rows[0], user_rows[1]], 1).detach()
        items = torch.cat([q, q.new_ones(len(q), 1)], 1).detach()
        return DotScorer(users, items, None if b_i is None else b_i.detach())

    @torch.no_grad()
    def score_items_from_rows(self, user_rows: tuple[Tensor, ...]) -> Tensor:
        return self._rating_of(score_items(self._scorer(user_rows)))

    @torch.no_grad()
    def topk_from_rows(
        self, user_rows: tuple[Tensor, ...], k: int, seen: Seen | None, seen_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        scorer = self._scorer(user_rows)
        if seen is None:
            values, items = score_topk(scorer, k)
        else:
            values, items = score_topk(
                scorer,
                k,
                seen_indptr=torch.from_numpy(seen.offsets),
                seen_indices=torch.from_numpy(seen.items),
                seen_rows=seen_rows,
            )
        return self._rating_of(values), items

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._sides()[1].detach()
