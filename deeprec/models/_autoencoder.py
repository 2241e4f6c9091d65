"""What the autoencoders of ratings share (AutoRec, CFN): rows of the rating matrix, and predictions from codes.

Such a model encodes a row of ratings (an item's column or a user's row, as `side` says) into a code, and has a vector
for every column: logit = code . vector + bias. Everything after training needs the codes and the vectors alone, so
users and items are two tables again, and a constant 1 beside the code carries the bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.config import FULL_BATCH_OPTIMIZERS, OPTIMIZERS, Only, TrainConfig
from deeprec.contract import Batches, Schema, Seen
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.embedding_bag import BagPlan
from deeprec.kernels.sampled_linear_loss import csr_plan
from deeprec.kernels.score_topk import DotScorer, score_items, score_topk
from deeprec.models.base import Recommender, check_pairs
from deeprec.models.history import topk_of_scores
from deeprec.nn.embedding import catch_up

if TYPE_CHECKING:
    from typing_extensions import Self

SIDES = ("item", "user")
_RATED_AT_ONCE, _SCORES_A_BLOCK = 1 << 16, 1 << 22
_LAYER_BATCH, _LAYER_LR = 256, 0.003


@dataclass(frozen=True)
class AutoencoderConfig(TrainConfig):
    """Options of every autoencoder of ratings; the models' own configs describe them.

    Attributes:
        side: "item" reconstructs item columns, "user" user rows.
        hidden: width of the first and the last hidden layer, >= 1.
        inner: widths of the layers between them down to the middle, (250,) for hidden-250-hidden; () for one layer.
        pretrain: with `inner`: train the model without them first, then each inner layer as an autoencoder of the codes
            below it, and start from there.
        pretrain_epochs: of the model without inner layers, >= 1.
        pretrain_lr: its learning rate; 0: the same.
        layer_epochs: of each inner layer's own autoencoder, >= 1.
        rating_range: smallest and largest rating there can be; None: those of the training ratings.
        epochs: passes over the ratings; with the full batch, iterations ("lbfgs": ten iterations).
        batch_size: item columns or user rows a step, >= 1; 0: all of them.
    """

    optimizers: ClassVar[tuple[str, ...]] = (*FULL_BATCH_OPTIMIZERS, *OPTIMIZERS)
    unused: ClassVar[tuple[str, ...]] = ("num_negatives", "reduction", "precision")  # the paper's loss is a sum
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("pretrain_epochs", "pretrain_lr", "layer_epochs"), "pretrain=True", lambda config: config.pretrain),
        Only(
            ("lr_schedule", "lr_decay"),
            "an optimizer whose rate changes, such as adam",
            lambda config: config.optimizer not in FULL_BATCH_OPTIMIZERS,
        ),
        Only(("lr",), "an optimizer with a rate, such as rprop", lambda config: config.optimizer != "lbfgs"),
    )

    side: str = "item"
    hidden: int = 500
    inner: tuple[int, ...] = ()
    pretrain: bool = False
    pretrain_epochs: int = 100
    pretrain_lr: float = 0.0
    layer_epochs: int = 100
    rating_range: tuple[float, float] | None = None
    num_negatives: int = 1
    reduction: str = "sum"

    def __post_init__(self) -> None:
        self._check_types()
        owner = type(self).__name__
        if self.batch_size < 0:
            raise ValueError(f"{owner}: batch_size must be >= 0 (0: everything in one step), got {self.batch_size}")
        if self.batch_size and self.optimizer in FULL_BATCH_OPTIMIZERS:
            raise ValueError(
                f"{owner}: optimizer {self.optimizer!r} needs the full batch, got batch_size={self.batch_size}; take "
                "batch_size=0, or optimizer='adam'"
            )
        if self.weight_decay and self.optimizer in FULL_BATCH_OPTIMIZERS:
            raise ValueError(f"{owner}: weight_decay must be 0 with {self.optimizer}, got {self.weight_decay}; take l2")
        if self.side not in SIDES:
            raise ValueError(f"{owner}: side must be {' or '.join(SIDES)}, got {self.side!r}")
        if min(self.hidden, *self.inner, self.pretrain_epochs, self.layer_epochs) < 1:
            raise ValueError(
                f"{owner}: hidden, inner, pretrain_epochs and layer_epochs must be >= 1, got {self.hidden}, "
                f"{self.inner}, {self.pretrain_epochs} and {self.layer_epochs}"
            )
        if self.pretrain_lr < 0:
            raise ValueError(f"{owner}: pretrain_lr must be >= 0 (0: lr), got {self.pretrain_lr}")
        if self.pretrain and not self.inner:
            raise ValueError(f"{owner}: pretrain needs inner layers, got inner=(); take e.g. inner=(250,)")
        if self.rating_range is not None and not self.rating_range[0] < self.rating_range[1]:
            raise ValueError(f"{owner}: rating_range must ascend, got {self.rating_range}; for five stars take (1, 5)")
        self._check_shared()

    def shallow(self) -> Self:
        """The config of the model without inner layers that the deep one starts from."""
        lr = self.pretrain_lr or self.lr
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unused = {name: defaults[name] for name in ("pretrain_epochs", "pretrain_lr", "layer_epochs")}
        options: dict[str, Any] = {"inner": (), "pretrain": False, "epochs": self.pretrain_epochs, "lr": lr, **unused}
        return dataclasses.replace(self, **options)


class RowBatch(NamedTuple):
    """Some rows of the rating matrix.

    Attributes:
        rows: [b], int64.
        indptr: [b + 1], int64; indices: [nnz] columns, int64.
        labels: [nnz] targets, float32.
        inputs: [nnz] what the encoder is shown of them, float32.
        weights: [nnz] of the squared errors, float32; None: all 1.
        plan: entries by column, where it is used again; else None.
        share: share of the rows that these are: of the regulariser that they carry.
    """

    rows: Tensor
    indptr: Tensor
    indices: Tensor
    labels: Tensor
    inputs: Tensor
    weights: Tensor | None
    plan: BagPlan | None
    share: float


# (targets [nnz], indptr [b + 1], generator) -> (inputs [nnz], weights [nnz] or None)
Corrupt: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor | None]]


class RatingRows:
    """Rows of the rating matrix in shuffled batches; all of them in one, always the same, with batch_size 0.

    The order and the noise are drawn on the CPU: the same batches on every device.

    Attributes:
        lengths: [num_rows] ratings of each row, on the CPU, so that sizes are known without waiting for a device.
        indptr, indices, ratings: the matrix as CSR, in the units of the data.
        column_counts: [num_columns] ratings of each column.
        targets: [nnz] what is to be reconstructed, the ratings by default.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        side: str,
        batch_size: int,
        seed: int,
        corrupt: Corrupt | None = None,
        device: torch.device | None = None,
    ) -> None:
        device = torch.device("cpu") if device is None else device
        if train.ratings is None:
            raise ValueError(
                f"autoencoder: the data must have ratings, got {train.name} without; take neumf or mf, or pass rating="
            )
        if not len(train):
            raise ValueError(f"autoencoder: the training part must have a rating, {train.name} has none; hold out less")
        rows, columns, self.num_rows, self.num_columns = train.users, train.items, train.num_users, train.num_items
        if side == "item":
            rows, columns, self.num_rows, self.num_columns = columns, rows, self.num_columns, self.num_rows
        order = np.lexsort((columns, rows))
        is_twice = (np.diff(rows[order]) == 0) & (np.diff(columns[order]) == 0)
        if is_twice.any():
            place = order[int(is_twice.argmax())]
            user, item = train.user_ids.values[int(train.users[place])], train.item_ids.values[int(train.items[place])]
            raise ValueError(
                f"autoencoder: a user may rate an item once, got {int(is_twice.sum())} more in {train.name}, the first "
                f"of user {user!r} and item {item!r}; read the data with duplicates='latest'"
            )
        self.indices = to_device(torch.from_numpy(columns[order].astype(np.int64)), device)
        self.ratings = to_device(torch.from_numpy(train.ratings[order]), device)
        counts = np.bincount(rows, minlength=self.num_rows)
        self.lengths = torch.from_numpy(counts)
        self.indptr = to_device(torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int64)), device)
        column_counts = np.bincount(columns, minlength=self.num_columns)
        self.column_counts = to_device(torch.from_numpy(column_counts), device)
        self.targets = self.ratings
        self.batch_size, self.seed, self.corrupt = batch_size, seed, corrupt
        self._plan: BagPlan | None = None

    @property
    def num_examples(self) -> int:
        """Ratings in an epoch."""
        return len(self.ratings)

    @property
    def counts(self) -> Tensor:
        """[num_rows] ratings of each row."""
        return self.indptr.diff()

    def whole(self) -> RowBatch:
        """All rows, nothing hidden."""
        if self._plan is None:
            self._plan = csr_plan(self.indptr, self.indices, self.num_columns)
        every = torch.arange(self.num_rows, device=self.indptr.device)
        return RowBatch(every, self.indptr, self.indices, self.targets, self.targets, None, self._plan, 1.0)

    def epoch(self, number: int, skip: int = 0) -> Iterator[RowBatch]:
        """The batches of one epoch without the first `skip`; rows without ratings are left out."""
        return islice(self._epoch(number), skip, None)  # the noise of those before is drawn, as it comes in order

    def _epoch(self, number: int) -> Iterator[RowBatch]:
        (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64) >> 1
        generator = torch.Generator().manual_seed(int(seed))
        if not self.batch_size:
            yield self._corrupted(self.whole(), generator)
            return
        shuffled = torch.randperm(self.num_rows, generator=generator)
        device = self.indptr.device
        for chosen in shuffled[self.lengths[shuffled] > 0].split(self.batch_size):
            lengths = self.lengths[chosen]
            nnz = int(lengths.sum())
            rows, counts = to_device(chosen, device), to_device(lengths, device)
            indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            first = self.indptr[rows] - indptr[:-1]
            places = torch.arange(nnz, device=device) + torch.repeat_interleave(first, counts, output_size=nnz)
            targets = self.targets[places]
            share = len(rows) / self.num_rows
            batch = RowBatch(rows, indptr, self.indices[places], targets, targets, None, None, share)
            yield self._corrupted(batch, generator)

    def _corrupted(self, batch: RowBatch, generator: torch.Generator) -> RowBatch:
        if self.corrupt is None:
            return batch
        inputs, weights = self.corrupt(batch.labels, batch.indptr, generator)
        return batch._replace(inputs=inputs, weights=weights)


def refresh_codes(module: Any, *_: Any) -> None:
    """State-dict hook of the models with codes; a function with a name, so that they can be pickled."""
    module._refresh()


class InnerLayers(nn.Module):
    """Dense layers hidden -> inner -> ... -> hidden, the same activation after each; side information into each."""

    def __init__(
        self,
        hidden: int,
        inner: tuple[int, ...],
        num_features: int,
        activation: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        widths = (hidden, *inner, *inner[-2::-1], hidden)
        self.activation = activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for below, above in pairwise(widths):
            bound = (below + num_features) ** -0.5
            weight = torch.empty(below + num_features, above).uniform_(-bound, bound, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(above)))

    def forward(self, codes: Tensor, features: Tensor) -> Tensor:
        """[b, hidden] from codes [b, hidden] and side information [b, P]."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            codes = self.activation(torch.addmm(bias, torch.cat([codes, features], 1), weight))
        return codes

    def fit_greedily(self, codes: Tensor, features: Tensor, epochs: int, seed: int) -> None:
        """Each layer with its mirror image as an autoencoder of the codes below it, by Adam on the squared error."""
        generator = torch.Generator().manual_seed(seed)
        for level in range(len(self.weights) // 2):
            places = (level, len(self.weights) - 1 - level)
            parameters = [stack[place] for place in places for stack in (self.weights, self.biases)]
            optimizer = torch.optim.Adam(parameters, lr=_LAYER_LR)

            def through(x: Tensor, z: Tensor, place: int) -> Tensor:
                x = torch.cat([x, z], 1)
                return self.activation(torch.addmm(self.biases[place], x, self.weights[place]))

            for _ in range(epochs):
                order = to_device(torch.randperm(len(codes), generator=generator), codes.device)
                for rows in order.split(_LAYER_BATCH):
                    x, z = codes[rows], features[rows]
                    loss = (through(through(x, z, places[0]), z, places[1]) - x).square().sum(1).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                codes = through(codes, features, places[0])


class RatingAutoencoder(Recommender):
    """Base: a subclass has `decoder` [columns, C], `decoder_bias` [columns], and says how rows are encoded.

    Buffers: `codes` [rows, C + 1], what predictions need of the training ratings, the last column 1; `center`
    [C + 1], the mean column of the ratings, all that is known of a new one; `limits` [2], smallest and largest rating;
    `means` [rows] or None, what is added to the network's output for each row.

    Attributes:
        sparse_grad: whether mini-batches give encoder and decoder sparse gradients; set it to False for optimizers that
            take dense ones only, such as torch.optim.Adam.
    """

    sparse_grad: bool = True
    config: Any
    encoder: nn.Parameter
    decoder: nn.Parameter
    decoder_bias: nn.Parameter
    codes: Tensor
    center: Tensor
    limits: Tensor
    means: Tensor | None

    def _build_shared(self, schema: Schema, code_dim: int, *, has_means: bool) -> None:
        rows, _ = self._sizes(schema)
        self.register_buffer("codes", torch.zeros(rows, code_dim + 1))
        self.register_buffer("center", torch.zeros(code_dim + 1))
        self.register_buffer("limits", torch.arange(2, dtype=torch.float32))
        self.register_buffer("means", torch.zeros(rows) if has_means else None)
        self._rows: RatingRows | None = None
        self._vectors: Tensor | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    def _sizes(self, schema: Schema) -> tuple[int, int]:
        """Rows and columns of the matrix as the model sees it."""
        sizes = (schema.num_items, schema.num_users)
        return sizes if self.config.side == "item" else sizes[::-1]

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def _targets(self, rows: RatingRows) -> Tensor:
        """What the network is to reconstruct [nnz]; sets limits and means."""
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
        for name in ("limits", "means"):
            if getattr(self, name) is not None:
                getattr(self, name).copy_(getattr(shallow, name))
        # The start is a candidate of its own, measured before this model has batches.
        self._rows, self._is_stale = shallow._rows, True
        batch = shallow._rows.whole()
        some = shallow._rows.counts > 0
        codes = shallow._encode_whole(batch)[some]
        hidden = self.config.hidden
        with torch.enable_grad():
            self.layers.fit_greedily(codes[:, :hidden], codes[:, hidden:], self.config.layer_epochs, shallow._rows.seed)

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

    def batches(self, train: Interactions, seed: int) -> Batches:
        """Item columns or user rows of the ratings."""
        config = self.config
        sizes = {"batch_size": config.batch_size, "seed": seed}
        rows = RatingRows(train, side=config.side, **sizes, corrupt=self._corrupt(), device=self.device)
        self._check_range(torch.from_numpy(train.ratings))
        rows.targets = self._targets(rows)
        self._rows, self._is_stale = rows, True
        is_cold = rows.column_counts == 0
        with torch.no_grad():  # these never learn, and zeros say so
            self.decoder[is_cold], self.decoder_bias[is_cold] = 0.0, 0.0
        return rows

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

        Its side information, beside the hidden layer, stays its own.
        """
        is_cold, hidden = rows.counts == 0, self.config.hidden
        if is_cold.any():
            self.codes[is_cold, :hidden] = self.codes[~is_cold, :hidden].mean(0)

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
            self._vectors = torch.where(vectors.any(1, keepdim=True), vectors, self._cold_column())
        return self._vectors

    def _sides(self) -> tuple[Tensor, Tensor]:
        """User vectors and item vectors, whose product is the logit."""
        columns = self._columns()
        return (columns, self.codes) if self.config.side == "item" else (self.codes, columns)

    def _means_of(self, user_rows: tuple[Tensor, ...], items: Tensor | None) -> Tensor | None:
        """Means that go with logits of user rows and items (None: all of them), ready to broadcast."""
        if self.means is None:
            return None
        if self.config.side == "user":
            return user_rows[1] if items is None else user_rows[1].squeeze(1)
        return self.means if items is None else self.means[items]

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Predicted ratings of pairs of internal ids, not clipped; shapes broadcast."""
        self.require_built()
        p, q = self._sides()
        users, items = users.long(), items.long()
        means = None if self.means is None else self.means[items if self.config.side == "item" else users]
        return self._rating_of((p[users] * q[items]).sum(-1), means)

    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data."""
        check_pairs("predict_ratings", users, items, self.require_built())
        blocks = zip(users.split(_RATED_AT_ONCE), items.split(_RATED_AT_ONCE), strict=True)
        return torch.cat([self(*block) for block in blocks]) if len(users) else torch.empty(0, device=users.device)

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Predicted ratings [n] of pairs of internal ids, each [n], a block at a time."""
        return self.predict_ratings(users, items).float()

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self.require_built()
        some = self._sides()[0][users.long()]
        if self.means is None or self.config.side == "item":
            return (some,)
        return some, self.means[users.long()].unsqueeze(1)

    @torch.no_grad()
    def _new(self, side: str, others: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vector [1, C + 1] and mean of a new user or item (`side`) who rated, or was rated by, `others` [n].

        A row is encoded. A column has a vector of its own: of all that fit these ratings the one by ridge regression
        around the center, with the model's own regulariser.
        """
        self.require_built()
        self._check_range(ratings)
        self._refresh()
        ratings = ratings.clamp(*self.limits)
        if side == self.config.side:
            code, mean = self._encode_new(others.long(), ratings)
            return torch.cat([code, code.new_ones(1, 1)], 1), mean
        codes = self.codes[others.long()]
        center = self.center.unsqueeze(0).clone()
        means = None if self.means is None else self.means[others.long()]
        missing = self._logit_of(ratings, means).unsqueeze(1) - codes @ center.T
        codes = codes[:, :-1]
        ridge = max(self._ridge(), 1e-6)
        # The same vector by the smaller of two systems, [n, n] and [C, C].
        if len(codes) <= codes.shape[1]:
            gram = codes @ codes.T + ridge * torch.eye(len(codes), device=codes.device)
            center[:, :-1] += (codes.T @ torch.linalg.solve(gram, missing)).T
        else:
            gram = codes.T @ codes + ridge * torch.eye(codes.shape[1], device=codes.device)
            center[:, :-1] += torch.linalg.solve(gram, codes.T @ missing).T
        return center, None

    def rows_for_history(self, history: Tensor) -> tuple[Tensor, ...]:
        """A user who gave each item of `history` [n] the largest rating."""
        return self.rows_for_ratings(history, self.limits[1].expand(len(history)))

    def rows_for_ratings(self, history: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """User rows [1, D] of a new user who rated items `history` [n], in the units of the data."""
        some, mean = self._new("user", history, ratings)
        return (some,) if mean is None else (some, mean.unsqueeze(1))

    @torch.no_grad()
    def rate_new_item(self, users: Tensor, ratings: Tensor) -> Tensor:
        """Ratings [num_users] that every user would give a new item which `users` [n] gave `ratings` [n]."""
        some, mean = self._new("item", users, ratings)
        means = self.means if self.config.side == "user" else mean
        return self._rating_of(self._sides()[0] @ some[0], means)

    def forward_rows(self, user_rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        q, items = self._sides()[1], items.long()
        return self._rating_of((user_rows[0] * q[items]).sum(-1), self._means_of(user_rows, items))

    @torch.no_grad()
    def score_items_from_rows(self, user_rows: tuple[Tensor, ...]) -> Tensor:
        return self._rating_of(score_items(self._scorer(user_rows)), self._means_of(user_rows, None))

    def _scorer(self, user_rows: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(user_rows[0].detach(), self._sides()[1], None)

    @torch.no_grad()
    def topk_from_rows(
        self, user_rows: tuple[Tensor, ...], k: int, seen: Seen | None, seen_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.means is not None and self.config.side == "item":
            return self._topk_with_item_means(user_rows, k, seen, seen_rows)
        scorer = self._scorer(user_rows)
        if seen is None:
            values, items = score_topk(scorer, k)
        else:
            offsets, hidden = self.seen_tensors(seen)
            values, items = score_topk(scorer, k, seen_indptr=offsets, seen_indices=hidden, seen_rows=seen_rows)
        return self._rating_of(values, self._means_of(user_rows, None)), items

    def _topk_with_item_means(
        self, user_rows: tuple[Tensor, ...], k: int, seen: Seen | None, seen_rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Means that differ by item change the order, so the ratings of all items are needed: of some users at once."""
        count, device = len(user_rows[0]), user_rows[0].device
        wanted = torch.arange(count, device=device) if seen_rows is None else seen_rows.long()
        hidden = None if seen is None else self.seen_tensors(seen)
        size = max(1, _SCORES_A_BLOCK // self.codes.shape[0])
        values, items = [torch.empty(0, k, device=device)], [torch.empty(0, k, dtype=torch.int64, device=device)]
        for start in range(0, count, size):
            ratings = self.score_items_from_rows(tuple(rows[start : start + size] for rows in user_rows))
            best = topk_of_scores(ratings, k, hidden, wanted[start : start + size])
            values.append(best[0])
            items.append(best[1])
        return torch.cat(values), torch.cat(items)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._sides()[1][:, :-1].detach()
