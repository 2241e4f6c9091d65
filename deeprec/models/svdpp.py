"""SVD++: biases and factors, where a user is also the items that they rated.

Paper: Koren 2008, "Factorization Meets the Neighborhood: a Multifaceted Collaborative Filtering Model" (KDD), section
4, eq. 15.
Deviations: the biases start where `deeprec.models.bias` finds them, and what is learned, in units of the noise that
these leave, are corrections and factors: so few ratings leave the bias model, on any scale. Steps over mini-batches of
users with all their ratings, with Adam; one regulariser, under which each rating holds its item's y small instead of
those of all items of its user. N(u), all that the user gave implicit feedback on, are the items rated in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.config import TrainConfig, at_least
from deeprec.contract import NEW_USERS, RATES, RECOMMENDS, RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding import embedding
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import add_rows
from deeprec.models._autoencoder import refresh_codes
from deeprec.models.base import Recommender, check_pairs
from deeprec.models.bias import biases_of
from deeprec.nn.embedding import catch_up
from deeprec.nn.scoring import DotScorer, MappedScorer, owners_of

_PAIRS_A_BLOCK = 1 << 16


@dataclass(frozen=True)
class SVDPlusPlusConfig(TrainConfig):
    """Attributes:
    factors: size D of the vectors, >= 1.
    init_std: standard deviation of the initial vectors of users, items and rated items, > 0.
    l2: each rating adds l2 times the squares of its vectors, of its item's y and of what its biases are corrected by to
        its squared error, >= 0; errors are in standard deviations of the noise.
    batch_size: users a step, >= 1.
    epochs: passes over the ratings.
    """

    unused: ClassVar[tuple[str, ...]] = ("num_negatives", "reduction", "precision")

    factors: int = 32
    init_std: float = 0.01
    l2: float = 0.1
    epochs: int = 100
    batch_size: int = 64
    lr: float = 0.003
    num_negatives: int = 1
    patience: int = 5
    refit: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("factors", "batch_size"):
            at_least(self, name, 1)
        if not self.init_std > 0:
            raise ValueError(f"SVDPlusPlusConfig: init_std must be > 0, got {self.init_std}")
        self._check_shared()


class SVDPlusPlus(Recommender):
    """r_ui = mu + b_u + b_i + q_i . (p_u + |N(u)|^-1/2 sum over j in N(u) of y_j)."""

    name = "svd++"
    config_class: ClassVar[type[TrainConfig]] = SVDPlusPlusConfig
    config: SVDPlusPlusConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, RATES, RETRIEVES, NEW_USERS, SIMILAR_ITEMS})
    trains_on_whole_rows: ClassVar[bool] = True

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        factors, std = self.config.factors, self.config.init_std

        def normal(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, factors).normal_(0.0, std, generator=generator))

        self.users, self.items = normal(schema.num_users), normal(schema.num_items)
        self.rated = normal(schema.num_items)  # y
        self.user_bias = nn.Parameter(torch.zeros(schema.num_users, 1))
        self.item_bias = nn.Parameter(torch.zeros(schema.num_items, 1))
        # p_u with what the user rated: all that predictions need of the training ratings.
        self.register_buffer("codes", torch.zeros(schema.num_users, factors))
        self.register_buffer("user_start", torch.zeros(schema.num_users))  # mu + b_u where training starts
        self.register_buffer("item_start", torch.zeros(schema.num_items))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("noise", torch.ones(()))
        self.register_buffer("damping", torch.ones(()))  # of a user's bias, in ratings
        self.register_buffer("limits", torch.zeros(2))  # smallest and largest rating
        self.codes: Tensor
        self.user_start: Tensor
        self.item_start: Tensor
        self.mean: Tensor
        self.noise: Tensor
        self.damping: Tensor
        self.limits: Tensor
        self._rows: RatingRows | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    def batches(self, train: Interactions, seed: int) -> RatingRows:
        """Users in shuffled batches, each with all their ratings."""
        rows = RatingRows(train, side="user", batch_size=self.config.batch_size, seed=seed, device=self.device)
        biases = biases_of(train)
        self.mean.fill_(biases.mean)
        self.noise.fill_(biases.noise or 1.0)
        self.damping.fill_(min(biases.damping, 1e9))
        self.limits.copy_(torch.tensor(biases.limits))
        self.user_start.copy_(torch.from_numpy(biases.users + biases.mean))
        self.item_start.copy_(torch.from_numpy(biases.items))
        owners = torch.repeat_interleave(self.user_start, rows.counts, output_size=len(rows.ratings))
        rows.targets = (rows.ratings - owners - self.item_start[rows.indices]) / self.noise
        self._rows, self._is_stale = rows, True
        with torch.no_grad():  # without a rating they never learn, and zeros say so
            for table, counts in (
                (self.users, rows.counts), (self.items, rows.column_counts), (self.rated, rows.column_counts)
            ):  # fmt: skip
                table[counts == 0] = 0.0
        return rows

    def _codes(self, offsets: Tensor, indices: Tensor, vectors: Tensor | None) -> Tensor:
        """p_u + |N(u)|^-1/2 sum of y_j, [b, D], of users with these items; vectors are p_u, None: zeros."""
        counts = offsets.diff()
        shares = torch.repeat_interleave(counts.clamp(min=1).rsqrt(), counts, output_size=len(indices))
        codes = sparse_linear(offsets, indices, shares.to(self.rated.dtype), self.rated, sparse_grad=True)
        return codes if vectors is None else codes + vectors

    def loss(self, batch: RowBatch) -> Tensor:
        """Mean over the ratings of squared errors and L2, eq. 16."""
        self.require_built()
        if torch.is_grad_enabled():
            self._is_stale = True
            for table, ids in (
                (self.users, batch.rows), (self.user_bias, batch.rows), (self.rated, batch.indices),
                (self.items, batch.indices), (self.item_bias, batch.indices),
            ):  # fmt: skip
                catch_up(table, ids)
        counts = batch.offsets.diff()
        owners = torch.repeat_interleave(
            torch.arange(len(counts), device=counts.device), counts, output_size=len(batch)
        )
        vectors, levels = embedding(self.users, batch.rows), embedding(self.user_bias, batch.rows)
        codes = self._codes(batch.offsets, batch.indices, vectors)
        items, biases = embedding(self.items, batch.indices), embedding(self.item_bias, batch.indices)
        looked_up = embedding(torch.cat([codes, levels], 1), owners, sparse_grad=False)
        predicted = (looked_up[:, :-1] * items).sum(1) + looked_up[:, -1] + biases[:, 0]
        loss = (predicted - batch.labels).square().sum()
        if self.config.l2:
            of_users = counts.to(codes.dtype) @ (vectors.square().sum(1) + levels[:, 0].square())
            rated = embedding(self.rated, batch.indices).square().sum()
            loss = loss + self.config.l2 * (of_users + items.square().sum() + biases.square().sum() + rated)
        return loss / len(batch)

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._is_stale and self._rows is not None:
            self._is_stale = False
            for table in self.parameters():
                catch_up(table, torch.arange(len(table), device=table.device))
            self.codes.copy_(self._codes(self._rows.offsets, self._rows.indices, self.users))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the codes come with it, and are computed anew where the training ratings are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._rows is not None
        return result

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings of pairs of internal ids; shapes broadcast. Trained by `loss`, not by this."""
        self.require_built()
        self._refresh()
        users, items = users.long(), items.long()
        users, items = torch.broadcast_tensors(users, items)
        learned = (self.codes[users] * self.items[items]).sum(-1) + self.user_bias[users, 0] + self.item_bias[items, 0]
        ratings: Tensor = self.user_start[users] + self.item_start[items] + self.noise * learned
        return ratings

    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data."""
        check_pairs("predict_ratings", users, items, self.require_built())
        blocks = zip(users.split(_PAIRS_A_BLOCK), items.split(_PAIRS_A_BLOCK), strict=True)
        return torch.cat([torch.empty(0, device=users.device), *(self(*block) for block in blocks)])

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        users = users.long()
        return self.codes[users], self.user_start[users].unsqueeze(1) + self.noise * self.user_bias.detach()[users]

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Users without a vector and a bias of their own: what they rated speaks for them."""
        codes = self._codes(to_device(offsets, items.device), items, None).detach()
        return codes, self.mean.expand(len(codes), 1)

    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """The same, and a level that is their mean error, held towards the mean as the biases of others were."""
        codes, levels = self.history_rows(offsets, items)
        owners = owners_of(offsets, items.device)
        learned = (codes[owners] * self.items.detach()[items]).sum(1)
        errors = ratings.to(learned).clamp(*self.limits) - self.mean - self._item_levels()[items] - self.noise * learned
        counts = to_device(offsets, items.device).diff().to(errors)
        sums = add_rows(errors.new_zeros(len(codes)), owners, errors)
        return codes, levels + (sums / (counts + self.damping)).unsqueeze(1)

    def _item_levels(self) -> Tensor:
        return self.item_start + self.noise * self.item_bias.detach().squeeze(1)

    def scorer(self, state: tuple[Tensor, ...]) -> MappedScorer:
        """The rating ascends with q_i . code + b_i."""
        codes, levels = state
        return MappedScorer(DotScorer(codes * self.noise, self.items.detach(), self._item_levels()), _raised, levels)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.items.detach()


def _raised(scores: Tensor, by_user: Tensor | None) -> Tensor:
    """The scores and what is the user's own."""
    return scores if by_user is None else scores + by_user
