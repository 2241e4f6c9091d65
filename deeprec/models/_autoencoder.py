"""What the autoencoders of ratings share (AutoRec, CFN): training on rows of ratings, and predictions from codes.

Such a model encodes a row of ratings (an item's column or a user's row, as `side` says) into a code, and has a vector
for every column: logit = code . vector + bias. Everything after training needs the codes and the vectors alone, so
users and items are two tables again, and a constant 1 beside the code carries the bias.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.corruption import Corrupt
from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.contract import NEW_ITEMS, RATES, SIMILAR_ITEMS, Schema
from deeprec.data import Interactions
from deeprec.models._inner_layers import InnerLayers
from deeprec.models.base import Recommender, check_pairs
from deeprec.models.bias import biases_of
from deeprec.nn.embedding import catch_up
from deeprec.nn.scoring import AnyScorer, BlockScorer, DotScorer, MappedScorer, score_items

if TYPE_CHECKING:
    from typing_extensions import Self

_RATED_AT_ONCE = 1 << 16


def refresh_codes(module: Any, *_: Any) -> None:
    """State-dict hook of the models with codes; a function with a name, so that they can be pickled."""
    module._refresh()


class RatingAutoencoder(Recommender):
    """Base: a subclass has `decoder` [columns, C], `decoder_bias` [columns], and says how rows are encoded.

    Buffers: `codes` [rows, C + 1], what predictions need of the training ratings, the last column 1; `center`
    [C + 1], the mean column of the ratings, all that is known of a new one; `limits` [2], smallest and largest rating;
    `means` [rows] or None, what is added to the network's output for each row. With `from_biases`: `means` are
    mu + b_row, `column_means` [columns] b_column, and `units` [5] mu, the standard deviation of the ratings, the rating
    units of an output, and the dampings of a row's and a column's deviation (see `bias.Biases`).

    Attributes:
        sparse_grad: whether mini-batches give encoder and decoder sparse gradients; set it to False for optimizers that
            take dense ones only, such as torch.optim.Adam.
    """

    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RATES, NEW_ITEMS, SIMILAR_ITEMS}
    sparse_grad: bool = True
    trains_on_whole_rows: ClassVar[bool] = True
    config: Any
    encoder: nn.Parameter
    decoder: nn.Parameter
    decoder_bias: nn.Parameter
    codes: Tensor
    center: Tensor
    limits: Tensor
    means: Tensor | None
    column_means: Tensor | None
    units: Tensor | None

    def _build_shared(self, schema: Schema, code_dim: int, *, has_means: bool) -> None:
        rows, columns = self._sizes(schema)
        is_residual = self.config.from_biases
        self.register_buffer("codes", torch.zeros(rows, code_dim + 1))
        self.register_buffer("center", torch.zeros(code_dim + 1))
        self.register_buffer("limits", torch.arange(2, dtype=torch.float32))
        self.register_buffer("means", torch.zeros(rows) if has_means or is_residual else None)
        self.register_buffer("column_means", torch.zeros(columns) if is_residual else None)
        self.register_buffer("units", torch.zeros(5) if is_residual else None)
        if is_residual:  # it begins as the biases, and these stay what they are
            self.decoder.detach().zero_()
            self.decoder_bias.detach().zero_()
            self.decoder_bias.requires_grad_(False)
        self._rows: RatingRows | None = None
        self._vectors: Tensor | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    def _sizes(self, schema: Schema) -> tuple[int, int]:
        """Rows and columns of the matrix as the model sees it."""
        sizes = (schema.num_items, schema.num_users)
        return sizes if self.config.side == "item" else sizes[::-1]

    # -- what a subclass says ----------------------------------------------------------------------------------------

    @property
    def middle(self) -> float:
        """What is taken from the codes of the hidden layer."""
        return 0.0

    reach: ClassVar[float] = 1.0  # with `from_biases`: standard deviations of what these leave, of an output of 1

    def _targets(self, rows: RatingRows) -> Tensor:
        """What the network is to reconstruct [nnz]; sets limits and means."""
        raise NotImplementedError

    def _shown(self, standard: Tensor, targets: Tensor) -> Tensor:
        """With `from_biases`: what the encoder is shown [n], of standardised ratings and what is left of them."""
        return targets

    def _encode_row(self, indices: Tensor, shown: Tensor) -> Tensor:
        """Code [1, C] of a row that the model never saw, from what the encoder is shown of it [n]."""
        raise NotImplementedError

    def _output(self, logits: Tensor) -> Tensor:
        """What the network puts out."""
        raise NotImplementedError

    def _logit(self, outputs: Tensor) -> Tensor:
        """The reverse, where need be of the nearest output that a finite logit gives."""
        raise NotImplementedError

    def _encode_whole(self, batch: RowBatch) -> Tensor:
        """Codes [rows, C] of all rows."""
        raise NotImplementedError

    def _encode_new(self, indices: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor | None]:
        """Code [1, C] and mean [1] of a row that the model never saw, from its ratings [n] in the units of the data."""
        raise NotImplementedError

    def _rating_of(self, logits: Tensor, means: Tensor | None) -> Tensor:
        """Ratings from logits and the means of their rows."""
        raise NotImplementedError

    def _logit_of(self, ratings: Tensor, means: Tensor | None) -> Tensor:
        """The reverse, where need be of the nearest rating that a finite logit gives."""
        raise NotImplementedError

    def _ridge(self) -> float:
        """Regulariser of a new column's vector w: sum of squared errors + ridge |w|^2."""
        raise NotImplementedError

    # -- training ----------------------------------------------------------------------------------------------------

    layers: InnerLayers | None

    def _corrupt(self) -> Corrupt | None:
        return None

    @torch.no_grad()
    def _start_from(self, shallow: Recommender) -> None:
        """Weights of the model without inner layers, and inner layers trained on its codes."""
        assert isinstance(shallow, RatingAutoencoder)
        assert self.layers is not None
        assert shallow._rows is not None
        mine = dict(self.named_parameters())
        for name, parameter in shallow.named_parameters():
            mine[name].copy_(parameter)
        for name in ("limits", "means", "column_means", "units"):
            if getattr(self, name) is not None:
                getattr(self, name).copy_(getattr(shallow, name))
        # The start is a candidate of its own, measured before this model has batches.
        self._rows, self._is_stale = shallow._rows, True
        batch = shallow._rows.whole()
        codes = shallow._encode_whole(batch)[shallow._rows.counts > 0]
        hidden = self.config.hidden
        with torch.enable_grad():
            inner = codes[:, :hidden] + shallow.middle
            self.layers.fit_greedily(inner, codes[:, hidden:], self.config.layer_epochs, shallow._rows.seed)

    def schema_for(self, data: Interactions) -> Schema:
        """Sizes.

        Raises:
            ValueError: no ratings, or one outside `rating_range`.
        """
        if data.ratings is None or not len(data):
            raise ValueError(
                f"{self.name}: the data must have ratings, got {data.name} without; take neumf or mf, or pass rating= "
                "when reading it"
            )
        self._check_range(torch.from_numpy(data.ratings))
        return super().schema_for(data)

    def _check_range(self, ratings: Tensor) -> None:
        if self.config.rating_range is None:
            return
        low, high = self.config.rating_range
        is_outside = (ratings < low) | (ratings > high)
        if is_outside.any():
            row = int(is_outside.to(torch.uint8).argmax())
            raise ValueError(
                f"{self.name}: ratings must lie in rating_range {low:g} to {high:g}, got {float(ratings[row]):g} at "
                f"row {row}; widen the range or mend the row"
            )

    def batches(self, train: Interactions, seed: int) -> RatingRows:
        """Item columns or user rows of the ratings."""
        config = self.config
        sizes = {"batch_size": config.batch_size, "seed": seed}
        rows = RatingRows(train, side=config.side, **sizes, corrupt=self._corrupt(), device=self.device)
        self._check_range(torch.from_numpy(train.ratings))
        rows.targets = self._residuals(train, rows) if config.from_biases else self._targets(rows)
        self._rows, self._is_stale = rows, True
        is_cold = rows.column_counts == 0
        with torch.no_grad():  # these never learn, and zeros say so
            self.decoder[is_cold], self.decoder_bias[is_cold] = 0.0, 0.0
        return rows

    def _residuals(self, train: Interactions, rows: RatingRows) -> Tensor:
        """What the biases leave of the ratings [nnz], in `units`; sets these, limits and means."""
        assert train.ratings is not None
        assert self.means is not None
        assert self.column_means is not None
        assert self.units is not None
        known = biases_of(train)
        self.limits.copy_(torch.tensor(self.config.rating_range or known.limits))
        sides = [(known.users, known.damping), (known.items, known.item_damping)]
        (of_rows, row_damping), (of_columns, column_damping) = sides[::-1] if self.config.side == "item" else sides
        unit = self.reach * known.noise or 1.0  # nothing is left to learn where all is 0
        spread = float(train.ratings.std(dtype=np.float64)) or 1.0
        self.units.copy_(torch.tensor([known.mean, spread, unit, row_damping, column_damping]))
        self.means.copy_(torch.from_numpy(of_rows + known.mean))
        self.column_means.copy_(torch.from_numpy(of_columns))
        owners = torch.repeat_interleave(
            torch.arange(rows.num_rows, device=rows.indices.device), rows.counts, output_size=len(rows.ratings)
        )
        targets = (rows.ratings - self.means[owners] - self.column_means[rows.indices]) / unit
        rows.shown = self._shown((rows.ratings - known.mean) / spread, targets)
        return targets

    def _before_loss(self, batch: RowBatch) -> None:
        """What a step, whoever takes it, needs: rows that are up to date; and codes are computed anew after it."""
        self.require_built()
        if torch.is_grad_enabled():
            self._is_stale = True
            for table in (self.encoder, self.decoder):
                catch_up(table, batch.indices)

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._is_stale and self._rows is not None:
            self._is_stale = False
            for table in (self.encoder, self.decoder):
                catch_up(table, torch.arange(len(table), device=table.device))
            codes = self._encode_whole(self._rows.whole())
            self.codes.copy_(torch.cat([codes, codes.new_ones(len(codes), 1)], 1))
            self._finish_codes(self._rows)
            counts = self._rows.column_counts.to(self.decoder.dtype)
            self.center.copy_(torch.cat([counts @ self.decoder, (counts @ self.decoder_bias).view(1)]) / counts.sum())
            self._vectors = None

    def _finish_codes(self, rows: RatingRows) -> None:
        """A row without ratings is nothing that the network was trained on: it gets the others' mean hidden layer.

        With `from_biases` none, so that these say it all. Its side information, beside the hidden layer, stays its own.
        """
        is_cold, hidden = rows.counts == 0, self.config.hidden
        if is_cold.any():
            others = self.codes[~is_cold, :hidden].mean(0)
            self.codes[is_cold, :hidden] = torch.zeros_like(others) if self.config.from_biases else others

    def _cold_column(self) -> Tensor:
        """Vector and bias [C + 1] of a column without ratings."""
        return self.center

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the codes come with it, and are computed anew where the training ratings are at hand."""
        if "center" not in state_dict and "decoder" in state_dict:  # written before there was one
            columns = torch.cat([state_dict["decoder"], state_dict["decoder_bias"].unsqueeze(1)], 1)
            state_dict = {**state_dict, "center": columns.mean(0)}
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale, self._vectors = self._rows is not None, None
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._vectors = None  # they go to no other type or device by themselves
        result: Self = super()._apply(fn, recurse)
        return result

    # -- predictions -------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def _columns(self) -> Tensor:
        """[columns, C + 1]: the vectors with their biases."""
        if self._vectors is None or self._is_stale:
            self._refresh()
            vectors = torch.cat([self.decoder, self.decoder_bias.unsqueeze(1)], 1)
            cold = torch.zeros_like(self.center) if self.config.from_biases else self._cold_column()
            self._vectors = torch.where(vectors.any(1, keepdim=True), vectors, cold)
        return self._vectors

    def _sides(self) -> tuple[Tensor, Tensor]:
        """User vectors and item vectors, whose product is the logit."""
        columns = self._columns()
        return (columns, self.codes) if self.config.side == "item" else (self.codes, columns)

    def _means_of(self, side: str) -> Tensor | None:
        """What is added to the network's output for each user or item."""
        return self.means if side == self.config.side else self.column_means

    def _rating(self, logits: Tensor, *means: Tensor | None) -> Tensor:
        """Ratings from logits and what is added for users and items."""
        there = [each for each in means if each is not None]
        total = sum(there[1:], there[0]) if there else None
        if self.units is None:
            return self._rating_of(logits, total)
        assert total is not None
        return total + self.units[2] * self._output(logits)

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Predicted ratings of pairs of internal ids, not clipped; shapes broadcast."""
        self.require_built()
        p, q = self._sides()
        users, items = users.long(), items.long()
        of_users, of_items = self._means_of("user"), self._means_of("item")
        means = (None if of_users is None else of_users[users], None if of_items is None else of_items[items])
        return self._rating((p[users] * q[items]).sum(-1), *means)

    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data."""
        check_pairs("predict_ratings", users, items, self.require_built())
        blocks = zip(users.split(_RATED_AT_ONCE), items.split(_RATED_AT_ONCE), strict=True)
        return torch.cat([self(*block) for block in blocks]) if len(users) else torch.empty(0, device=users.device)

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        vectors = self._sides()[0][users.long()]
        means = self._means_of("user")
        return (vectors,) if means is None else (vectors, means[users.long()].unsqueeze(1))

    @torch.no_grad()
    def _new(self, side: str, others: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vector [1, C + 1] and mean of a new user or item (`side`) who rated, or was rated by, `others` [n].

        A row is encoded. A column has a vector of its own: of all that fit these ratings the one by ridge regression
        around the center, with the model's own regulariser, or with `from_biases` one by the spread of the others.
        """
        self.require_built()
        self._check_range(ratings)
        self._refresh()
        ratings = ratings.clamp(*self.limits)
        others, mean = others.long(), None
        if side == self.config.side:
            if self.units is None:
                code, mean = self._encode_new(others, ratings)
            else:
                assert self.column_means is not None
                mu, spread, unit, damping, _ = self.units
                left = ratings - mu - self.column_means[others]
                mean = left.sum().view(1) / (len(left) + damping)
                code = self._encode_row(others, self._shown((ratings - mu) / spread, (left - mean) / unit))
                mean = mean + mu
            return torch.cat([code, code.new_ones(1, 1)], 1), mean
        codes = self.codes[others]
        center = self.center.unsqueeze(0).clone()
        means = None if self.means is None else self.means[others]
        if self.units is None:
            logits = self._logit_of(ratings, means)
        else:
            assert means is not None
            left = ratings - means
            mean = left.sum().view(1) / (len(left) + self.units[4])
            logits = self._logit((left - mean) / self.units[2])
        missing = logits.unsqueeze(1) - codes @ center.T
        codes = codes[:, :-1]
        ridge = max(self._ridge(), 1e-6)
        if self.units is not None:  # variance of what the biases leave, over that of the vectors there are
            ridge = 1 / (self.reach**2 * max(float(self.decoder.square().mean()), 1e-12))
        # The same vector by the smaller of two systems, [n, n] and [C, C].
        if len(codes) <= codes.shape[1]:
            gram = codes @ codes.T + ridge * torch.eye(len(codes), device=codes.device)
            center[:, :-1] += (codes.T @ torch.linalg.solve(gram, missing)).T
        else:
            gram = codes.T @ codes + ridge * torch.eye(codes.shape[1], device=codes.device)
            center[:, :-1] += torch.linalg.solve(gram, codes.T @ missing).T
        return center, mean

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Users who gave each of their items the largest rating."""
        return self.rated_rows(offsets, items, self.limits[1].expand(len(items)))

    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """Users who gave their items the ratings, in the units of the data."""
        bounds = offsets.tolist()
        users = [self._new("user", items[a:b], ratings[a:b]) for a, b in pairwise(bounds)]
        vectors = torch.cat([self.center.new_empty(0, len(self.center)), *(vector for vector, _ in users)])
        if self._means_of("user") is None:
            return (vectors,)
        means = [mean for _, mean in users if mean is not None]
        return vectors, torch.cat([vectors.new_empty(0), *means]).unsqueeze(1)

    @torch.no_grad()
    def rate_new_item(self, users: Tensor, ratings: Tensor) -> Tensor:
        """Ratings [num_users] that every user would give a new item which `users` [n] gave `ratings` [n]."""
        vector, mean = self._new("item", users, ratings)
        return self._rating(self._sides()[0] @ vector[0], self._means_of("user"), mean)

    def scorer(self, state: tuple[Tensor, ...]) -> AnyScorer:
        """Ratings ascend with the logits of a user, unless each item has a mean of its own to be added."""
        users, *means = state
        items, of_items = self._sides()[1], self._means_of("item")
        if of_items is None:
            return MappedScorer(DotScorer(users, items), self._rating, means[0] if means else None)

        def ratings(start: int, end: int) -> Tensor:
            of_users = (each[start:end] for each in means)
            return self._rating(score_items(DotScorer(users[start:end], items)), of_items, *of_users)

        return BlockScorer(len(users), len(items), users.device, ratings)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._sides()[1][:, :-1].detach()
