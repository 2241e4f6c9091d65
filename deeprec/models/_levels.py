"""What the models of rating levels share (CF-NADE, RBM): a scale of levels, codes of rows, and predictions from them.

Such a model makes a code of a row of ratings (an item's column or a user's row, as `side` says), and has for every
column a few vectors with biases: their products with the code give a score for each level of a rating, the softmax of
the scores is its distribution, and the prediction is the expected rating. Everything after training needs the codes
and the vectors alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprec.batches.levels import MOST_LEVELS, distinct_levels
from deeprec.batches.ratings import SIDES, RatingRows
from deeprec.config import ByData, TrainConfig, at_least, one_of
from deeprec.contract import NEW_ITEMS, RATES, SIMILAR_ITEMS, Facts, OptimizerOptions, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.models._autoencoder import refresh_codes
from deeprec.models._level_scores import level_lookups, sampled_linear
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.embedding import catch_up
from deeprec.nn.scoring import BlockScorer, DotScorer, score_items
from deeprec.surroundings import fork_safe

_ENTRIES_A_BLOCK = 1 << 20
_NUMBERS_A_BLOCK = 1 << 23
_STEPS, _LR = 100, 0.05  # of fitting a new column
_PRIOR_RATINGS = 5.0  # of the frequencies of all columns, in those of one


def a_share_of_rows(steps: int, most: int) -> ByData:
    """The rule for a batch size that gives an epoch so many steps, with `most` rows at the most."""

    def choose(facts: Facts, options: Any) -> int:
        rows = facts.items if options.side == "item" else facts.users
        return max(1, min(most, rows // steps))

    return ByData(choose, f"such that an epoch has {steps} steps, {most} at the most")


@dataclass(frozen=True)
class LevelConfig(TrainConfig):
    """Options of every model of levels; the models' own configs describe them.

    Attributes:
        side: "item" models item columns, "user" user rows.
        hidden: hidden units, >= 1.
        rank: the tables of vectors have this width and are multiplied by a matrix [rank, hidden]; 0: no such matrix.
        levels: the ratings that there can be, ascending, two at least.
        batch_size: item columns or user rows a step, >= 1.
        epochs: passes over the ratings.
        weight_decay: times the weights, but not the biases, is added to the gradient of a step, which is of the mean
            over its rows; >= 0.
    """

    unused: ClassVar[tuple[str, ...]] = ("num_negatives", "reduction", "precision", "l2")
    groups: ClassVar[tuple[str, ...]] = ("weights", "biases")
    by_data: ClassVar[Mapping[str, ByData]] = {
        "levels": ByData(
            lambda facts, options: facts.levels if len(facts.levels) > 1 else options.levels,
            "the distinct ratings of the data",
        )
    }

    side: str = "item"
    hidden: int = 500
    rank: int = 0
    levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    num_negatives: int = 1

    def __post_init__(self) -> None:
        self._check_types()
        one_of(self, "side", SIDES)
        for name, least in (("hidden", 1), ("rank", 0), ("batch_size", 1)):
            at_least(self, name, least)
        if len(self.levels) < 2 or not all(np.float32(a) < np.float32(b) for a, b in pairwise(self.levels)):
            raise ValueError(
                f"{type(self).__name__}: levels must be two ratings at least, ascending, got {self.levels}; for five "
                "stars take (1, 2, 3, 4, 5)"
            )
        self._check_shared()

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """Biases are free of weight decay."""
        options = super().optimizer_options(group)
        return options._replace(weight_decay=0.0) if group == "biases" else options


class LevelModel(Recommender):
    """Base: a subclass has `decoder` [columns * R, C] and `decoder_bias` [columns * R], R vectors a column.

    It says how rows are encoded, and how the products of a code with R vectors become scores of K levels.

    Buffers: `codes` [rows, S, C], S codes whose distributions are averaged; `center` [R, C + 1], the mean column of the
    ratings, all that is known of a new one; `scale` [K], the ratings of the levels.

    Attributes:
        sparse_grad: whether tables get sparse gradients; set it to False for optimizers that take dense ones only, such
            as torch.optim.Adam.
    """

    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RATES, NEW_ITEMS, SIMILAR_ITEMS}
    trains_on_whole_rows: ClassVar[bool] = True
    sparse_grad: bool = True
    config: Any
    decoder: nn.Parameter
    decoder_bias: nn.Parameter
    codes: Tensor
    center: Tensor
    scale: Tensor

    def _build_shared(self, schema: Schema, num_codes: int = 1, code_width: int | None = None) -> None:
        rows, columns = self._sizes(schema)
        self.per_column = len(self.decoder) // columns
        width = self.decoder.shape[1]
        self.register_buffer("codes", torch.zeros(rows, num_codes, width if code_width is None else code_width))
        self.register_buffer("center", torch.zeros(self.per_column, width + 1))
        self.register_buffer("scale", torch.tensor(self.config.levels))
        self._rows: RatingRows | None = None
        self._is_stale = self._reaches_all = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    def _sizes(self, schema: Schema) -> tuple[int, int]:
        """Rows and columns of the matrix as the model sees it."""
        sizes = (schema.num_items, schema.num_users)
        return sizes if self.config.side == "item" else sizes[::-1]

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def _tables(self) -> list[nn.Parameter]:
        """Parameters with rows for the columns, that have optimizers of rows."""
        raise NotImplementedError

    def _encode(self, offsets: Tensor, columns: Tensor, levels: Tensor, total: int) -> Tensor:
        """Codes [b, S, C] of rows that hold the levels at the columns; `total` is the sum of levels + 1."""
        raise NotImplementedError

    def _levels_of(self, products: Tensor) -> Tensor:
        """Scores [..., K] of products [..., R] of a code with the vectors of a column, biases added."""
        raise NotImplementedError

    def _start_biases(self, log_shares: Tensor) -> Tensor:
        """Biases [columns, R] by which the scores of a code of zeros are these [columns, K]; as near as may be."""
        raise NotImplementedError

    def _costs(self, scores: Tensor, levels: Tensor) -> Tensor:
        """Loss [n] of levels [n] under scores [n, K]."""
        raise NotImplementedError

    def _all_scores(self, codes: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """Scores [a, c, K] of codes [a, C] with the vectors [c, R, C] and biases [c, R] of columns."""
        flat = score_items(DotScorer(codes, vectors.flatten(0, 1), biases.flatten()))
        return self._levels_of(flat.view(len(codes), *biases.shape))

    def _pair_scores(self, codes: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """Scores [n, S, K] of codes [n, S, C] with the vectors [n, R, C] and biases [n, R] of one column each."""
        return self._levels_of(codes @ vectors.transpose(1, 2) + biases.unsqueeze(1))

    @property
    def _gives_sparse_grad(self) -> bool:
        return self.sparse_grad and not self._reaches_all

    # -- the scale ---------------------------------------------------------------------------------------------------

    def schema_for(self, data: Interactions) -> Schema:
        """Sizes.

        Raises:
            ValueError: no ratings, too many distinct ones or one only, or one that is not among `levels`.
        """
        if data.ratings is None or not len(data):
            raise ValueError(
                f"{self.name}: the data must have ratings, got {data.name} without; take neumf or mf, or pass rating= "
                "when reading it"
            )
        there = distinct_levels(data.ratings)
        if len(there) == 1:
            raise ValueError(
                f"{self.name}: ratings of two levels at least are needed, got {there[0]:g} only; take bias, or a model "
                "of likes such as bpr"
            )
        self._levels_of_ratings(data.ratings, data)
        return super().schema_for(data)

    def _levels_of_ratings(self, ratings: NDArray[np.float32], data: Interactions) -> NDArray[np.int64]:
        """The level of each rating of the data.

        Raises:
            ValueError: one is not among `levels`.
        """
        scale = np.asarray(self.config.levels, np.float32)
        levels = np.searchsorted(scale, ratings).clip(max=len(scale) - 1)
        is_off = scale[levels] != ratings
        if is_off.any():
            row = int(is_off.argmax())
            user, item = data.user_ids.values[int(data.users[row])], data.item_ids.values[int(data.items[row])]
            raise ValueError(
                f"{self.name}: ratings must be among the levels {', '.join(f'{each:g}' for each in scale)}, got "
                f"{ratings[row]:g} of user {user!r} and item {item!r}; pass all there are as levels=, or where these "
                f"are more than {MOST_LEVELS} round them or take autorec"
            )
        return levels.astype(np.int64)

    def _nearest(self, ratings: Tensor) -> Tensor:
        """Levels [n] nearest to ratings [n] of somebody new, which may lie between or beyond them."""
        middles = (self.scale[1:] + self.scale[:-1]) / 2
        return torch.bucketize(ratings.to(self.scale.dtype).contiguous(), middles)

    # -- training ----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Weights, and the biases, which are not decayed."""
        biases = [each for name, each in self.named_parameters() if name.endswith("bias")]
        weights = [each for name, each in self.named_parameters() if not name.endswith("bias")]
        return {"weights": weights, "biases": biases}

    def _rows_of(self, train: Interactions, seed: int) -> RatingRows:
        """Rows of levels, on the CPU; what the columns begin with and codes that are to be made follow."""
        assert train.ratings is not None
        config = self.config
        self._levels_of_ratings(train.ratings, train)
        rows = RatingRows(train, side=config.side, batch_size=config.batch_size, seed=seed)
        levels = self._levels_of_ratings(rows.ratings.numpy(), train)
        rows.targets = torch.from_numpy(levels).float()
        counts = torch.zeros(rows.num_columns * len(config.levels), dtype=torch.int64)
        places = rows.indices * len(config.levels) + torch.from_numpy(levels)
        counts.index_add_(0, places, torch.ones_like(places))
        self._begin(counts.view(rows.num_columns, -1))
        # Where the entries of a batch reach most rows of the tables anyway, steps by row would only cost.
        share = config.batch_size / max(1, int((rows.lengths > 0).sum()))
        self._reaches_all = len(rows.indices) * share * self.per_column >= len(self.decoder)
        self._rows, self._is_stale = rows, True
        return rows

    @torch.no_grad()
    def _begin(self, counts: Tensor) -> None:
        """Columns without ratings never learn, and zeros say so; others begin at the shares [columns, K] of levels."""
        device, is_cold = self.decoder.device, counts.sum(1) == 0
        whole = counts.sum(0) + 1.0
        shares = counts + _PRIOR_RATINGS * whole / whole.sum()
        log_shares = (shares / shares.sum(1, keepdim=True)).log().to(self.decoder.dtype)
        biases = self._start_biases(log_shares).masked_fill(is_cold.unsqueeze(1), 0.0)
        # What was learned before, as `fit_more` brings it, stays.
        is_new = to_device(is_cold, device) | ~self.decoder_bias.view(len(counts), -1).any(1)
        own = self.decoder_bias.view(len(counts), -1)
        own.copy_(torch.where(is_new.unsqueeze(1), to_device(biases, device), own))
        for table in self._tables():
            table.view(len(counts), -1).masked_fill_(to_device(is_cold, device).unsqueeze(1), 0.0)

    def _scores(self, codes: Tensor, offsets: Tensor, columns: Tensor) -> Tensor:
        """Scores [n, K] at columns [n], those of offsets[j]:offsets[j + 1] for code j of [b, C]."""
        each = self.per_column
        lookups = level_lookups(columns, each)
        if torch.is_grad_enabled():
            catch_up(self.decoder, lookups)
        products = sampled_linear(
            codes, self.decoder, self.decoder_bias, offsets * each, lookups, self._gives_sparse_grad
        )
        return self._levels_of(products.view(len(columns), each))

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._is_stale and self._rows is not None:
            self._is_stale = False
            for table in self._tables():
                catch_up(table, torch.arange(len(table), device=table.device))
            for first, end, entries in self._blocks(self._rows):
                self.codes[first:end] = self._encode(*entries)
            counts = to_device(self._rows.column_counts, self.device).to(self.decoder.dtype)
            columns = torch.cat([self.decoder, self.decoder_bias.unsqueeze(1)], 1).view(len(counts), -1)
            self.center.copy_((counts @ columns / counts.sum()).view_as(self.center))

    def _blocks(self, rows: RatingRows) -> Iterator[tuple[int, int, tuple[Tensor, Tensor, Tensor, int]]]:
        """First row, end, and the entries of about a million ratings at a time, where the model is."""
        first = 0
        while first < rows.num_rows:
            limit = rows.offsets[first] + _ENTRIES_A_BLOCK
            end = max(first + 1, int(torch.searchsorted(rows.offsets, limit, right=True)) - 1)
            low, high = int(rows.offsets[first]), int(rows.offsets[end])
            levels = rows.targets[low:high].long()
            parts = (rows.offsets[first : end + 1] - low, rows.indices[low:high], levels)
            offsets, columns, there = (to_device(each, self.device) for each in parts)
            yield first, end, (offsets, columns, there, int(levels.sum()) + len(levels))
            first = end

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the codes come with it, and are computed anew where the training ratings are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._rows is not None
        return result

    # -- predictions -------------------------------------------------------------------------------------------------

    def _columns(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [c, R, C] and biases [c, R] of columns [c]; of one without ratings those of the mean column."""
        lookups = level_lookups(columns, self.per_column)
        vectors = self.decoder.detach()[lookups].view(len(columns), *self.center[:, :-1].shape)
        biases = self.decoder_bias.detach()[lookups].view(len(columns), self.per_column)
        is_cold = ~(vectors.flatten(1).any(1) | biases.any(1))
        vectors = torch.where(is_cold.view(-1, 1, 1), self.center[:, :-1], vectors)
        return vectors, torch.where(is_cold.view(-1, 1), self.center[:, -1], biases)

    def _expected(self, scores: Tensor) -> Tensor:
        """Ratings [...] of scores [..., S, K]: the expectation under the mean of the S distributions."""
        shares: Tensor = scores.softmax(-1).mean(-2)
        return (shares * self.scale).sum(-1)

    def _rate(self, codes: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """Ratings [a, c] of codes [a, S, C] and columns, a block of codes at a time."""
        num_codes, per_block = codes.shape[1], codes.shape[1] * len(self.scale) * max(len(vectors), 1)
        blocks = []
        for block in codes.split(max(1, _NUMBERS_A_BLOCK // per_block)):
            scores = self._all_scores(block.flatten(0, 1), vectors, biases)
            scores = scores.view(len(block), num_codes, len(vectors), -1).transpose(1, 2)
            blocks.append(self._expected(scores))
        return torch.cat(blocks) if blocks else codes.new_empty(0, len(vectors))

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Expected ratings of pairs of internal ids; shapes broadcast."""
        self.require_built()
        self._refresh()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        rows, columns = (items, users) if self.config.side == "item" else (users, items)
        rated = [
            self._expected(self._pair_scores(self.codes[of_rows], *self._columns(of_columns)))
            for of_rows, of_columns in self._pair_blocks(rows.flatten(), columns.flatten())
        ]
        return torch.cat([self.scale.new_empty(0), *rated]).view(users.shape)

    def _pair_blocks(self, rows: Tensor, columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        width = self.per_column * self.decoder.shape[1] * self.codes.shape[1]
        step = max(1, _NUMBERS_A_BLOCK // width)
        return zip(rows.split(step), columns.split(step), strict=True)

    @fork_safe
    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data."""
        check_pairs("predict_ratings", users, items, self.require_built())
        ratings: Tensor = self(users, items)
        return ratings

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        if self.config.side == "item":
            vectors, biases = self._columns(users.long())
            return vectors.flatten(1), biases
        return (self.codes[users.long()].flatten(1),)

    def scorer(self, state: tuple[Tensor, ...]) -> BlockScorer:
        """Expected ratings of all items."""
        self._refresh()
        schema, each = self.require_built(), self.per_column

        def of_items(start: int, end: int) -> Tensor:
            vectors, biases = (part[start:end] for part in state)
            return self._rate(self.codes, vectors.view(len(biases), each, -1), biases).T.contiguous()

        def of_users(start: int, end: int) -> Tensor:
            codes = state[0][start:end]
            items = torch.arange(schema.num_items, device=codes.device)
            return self._rate(codes.view(len(codes), *self.codes.shape[1:]), *self._columns(items))

        scores = of_items if self.config.side == "item" else of_users
        return BlockScorer(len(state[0]), schema.num_items, state[0].device, scores)

    def item_vectors(self) -> Tensor:
        self.require_built()
        self._refresh()
        if self.config.side == "item":
            return self.codes.flatten(1)
        return self._columns(torch.arange(len(self.decoder) // self.per_column, device=self.device))[0].flatten(1)

    # -- whom the model never saw ------------------------------------------------------------------------------------

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Users who gave each of their items the largest rating."""
        return self.rated_rows(offsets, items, self.scale[-1].expand(len(items)))

    @torch.no_grad()
    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """Users who gave their items the ratings; one between two levels counts as the nearest."""
        self.require_built()
        self._refresh()
        levels = self._nearest(ratings)
        if self.config.side == "user":
            return (self._encode_new(offsets, items, levels).flatten(1),)
        fitted = [self._fit_column(items[a:b], levels[a:b]) for a, b in pairwise(offsets.tolist())]
        vectors = torch.stack([self.center.new_empty(self.center.shape), *fitted])[1:]
        return vectors[:, :, :-1].flatten(1), vectors[:, :, -1]

    @torch.no_grad()
    def rate_new_item(self, users: Tensor, ratings: Tensor) -> Tensor:
        """Ratings [num_users] that every user would give a new item which `users` [n] gave `ratings` [n]."""
        self.require_built()
        self._refresh()
        levels = self._nearest(ratings)
        if self.config.side == "user":
            column = self._fit_column(users.long(), levels).unsqueeze(0)
            return self._rate(self.codes, column[:, :, :-1], column[:, :, -1]).squeeze(1)
        order = users.long().argsort()
        codes = self._encode_new(torch.tensor([0, len(users)]), users.long()[order], levels[order])
        every = torch.arange(len(self.decoder) // self.per_column, device=self.device)
        return self._rate(codes, *self._columns(every)).squeeze(0)

    def _encode_new(self, offsets: Tensor, columns: Tensor, levels: Tensor) -> Tensor:
        """Codes [b, S, C] of rows that the model never saw; offsets on the CPU."""
        offsets = to_device(offsets, columns.device)
        return self._encode(offsets, columns.long(), levels, int(levels.sum()) + len(levels))

    def _fit_column(self, rows: Tensor, levels: Tensor) -> Tensor:
        """Vectors with biases [R, C + 1] of a new column with levels [n] at rows [n].

        Those of the largest posterior: a normal prior around the mean column, as wide as the columns there are spread
        around it, and the loss of training.
        """
        if not len(rows):
            return self.center
        columns = torch.cat([self.decoder.detach(), self.decoder_bias.detach().unsqueeze(1)], 1)
        spread = (columns.view(-1, *self.center.shape) - self.center).square().mean(0).clamp(min=1e-8)
        codes = self.codes[rows.long()].flatten(0, 1).unsqueeze(0)
        levels = levels.repeat_interleave(self.codes.shape[1])
        column = self.center.clone().requires_grad_()
        optimizer = torch.optim.Adam([column], lr=_LR)
        with torch.enable_grad():
            for step in range(_STEPS):
                scores = self._pair_scores(codes, column[None, :, :-1], column[None, :, -1]).squeeze(0)
                fit = self._costs(scores, levels).sum() / self.codes.shape[1]
                loss = fit + ((column - self.center).square() / spread).sum() / 2
                optimizer.param_groups[0]["lr"] = _LR * (1 - step / _STEPS)
                (column.grad,) = torch.autograd.grad(loss, [column])
                optimizer.step()
        return column.detach()
