"""DropoutNet: towers over given factors and content, some of whose factors are hidden, so that content can stand in.

Paper: Volkovs, Yu, Poutanen 2017, "DropoutNet: Addressing Cold Start in Recommender Systems" (NIPS), eq. 2 to 5 and
section 4.1. Code: layer6ai-labs/DropoutNet.
Deviations: the factors are those of ALS, trained here on the training part; each user of a step is beside all of its
items, of which half are some user's best, and the squared errors of a user's own best ones have half of the weight;
Adam in place of SGD with momentum; the weights of hidden layers begin as Xavier's. The mean of a user's item
factors, which new users are shown as, is taken in training for a share of the users. Without content it can but smooth
the factors.
Defaults: without a bound on the gradients the loss leaps up again at lr 0.003, seen on citeulike-a with a tenth of the
articles held out, and lr 0.001 learns half as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.preferences import ContentRows, PreferenceBatch, PreferenceBatches
from deeprec.batches.sides import Sides
from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.contract import NEW_USERS, RECOMMENDS, RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import Interactions, Terms
from deeprec.data.columns.terms import WEIGHTINGS
from deeprec.device import to_device
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models._autoencoder import refresh_codes
from deeprec.models._content_terms import content_terms
from deeprec.models.als import ALS, ALSConfig
from deeprec.models.base import Recommender
from deeprec.nn.mlp import BatchNorm
from deeprec.nn.scoring import DotScorer

_ROWS_A_BLOCK = 1 << 12
_OUTPUT_STD = 0.01  # so that products begin near 0, as most of those that are to be given


@dataclass(frozen=True)
class DropoutNetConfig(TrainConfig):
    """Attributes:
    factors: width D of the factors that are given, >= 1.
    als_alpha, als_l2, als_epochs: of the ALS that makes them, see its `alpha`, `l2` and `epochs`.
    layers: widths of the hidden layers of each tower, each >= 1; () has none.
    out_factors: width of what the towers give, >= 1.
    item_content, user_content: columns of the item and of the user table: texts, lists, categories, numbers, vectors.
    vocabulary: most terms of each column that are known, >= 1, the most frequent ones.
    weighting: of the terms, see `Terms.weighted`.
    hidden_share: share of the users of a step, and of its items, whose factors are hidden, in [0, 1).
    mean_share: share of the other users of a step who are shown as the mean of their items, in [0, 1].
    step_items: items a step, half of them of the users' best, >= 1.
    best: how many of the items with a user's largest products are the best, >= 1.
    batch_size: users a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "num_negatives", "reduction", "precision")
    optimizers: ClassVar[tuple[str, ...]] = ("adam", "sgd", "adagrad")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(
            ("vocabulary", "weighting"),
            "item_content or user_content",
            lambda config: bool(config.item_content or config.user_content),
        ),
    )

    factors: int = 200
    als_alpha: float = 20.0
    als_l2: float = 40.0
    als_epochs: int = 12
    layers: tuple[int, ...] = (800, 400)
    out_factors: int = 200
    item_content: tuple[str, ...] = ()
    user_content: tuple[str, ...] = ()
    vocabulary: int = 8000
    weighting: str = "tf-idf"
    hidden_share: float = 0.5
    mean_share: float = 0.25
    step_items: int = 512
    best: int = 500
    batch_size: int = 64
    epochs: int = 20
    patience: int = 5
    lr: float = 0.003
    clip_norm: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in ("factors", "als_epochs", "out_factors", "vocabulary", "step_items", "best"):
            at_least(self, each, 1)
        if min(self.layers, default=1) < 1:
            raise ValueError(f"DropoutNetConfig: layers must be widths >= 1, got {self.layers}; (800, 400) is usual")
        if not 0 <= self.hidden_share < 1:
            raise ValueError(f"DropoutNetConfig: hidden_share must lie in [0, 1), got {self.hidden_share}")
        if not 0 <= self.mean_share <= 1:
            raise ValueError(f"DropoutNetConfig: mean_share must lie in [0, 1], got {self.mean_share}")
        for each in ("item_content", "user_content"):
            if len(set(getattr(self, each))) < len(getattr(self, each)):
                raise ValueError(f"DropoutNetConfig: {each} must name each column once, got {getattr(self, each)}")
        one_of(self, "weighting", WEIGHTINGS)
        self.als_config()

    def als_config(self) -> ALSConfig:
        """Of the stage that makes the factors."""
        options = {"alpha": self.als_alpha, "l2": self.als_l2, "epochs": self.als_epochs, "patience": 0}
        return ALSConfig(factors=self.factors, **options, refit=False)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DropoutNetSizes(Schema):
    """What the model is built for.

    Attributes:
        user_terms, user_numbers, item_terms, item_numbers: columns of the content.
    """

    user_terms: int = 0
    user_numbers: int = 0
    item_terms: int = 0
    item_numbers: int = 0


class Tower(nn.Module):
    """[factors; content] -> tanh(batch_norm(linear)) for each hidden layer -> linear, [b, width].

    Args:
        factors: D; terms, numbers: of the content, >= 0; hidden: widths; width: of the output.
    """

    def __init__(
        self,
        factors: int,
        terms: int,
        numbers: int,
        hidden: tuple[int, ...],
        width: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        widths = (*hidden, width)
        self.first = nn.Linear(factors + numbers, widths[0])
        self.of_terms = nn.Parameter(torch.empty(terms, widths[0])) if terms else None
        self.norms = nn.ModuleList(BatchNorm(each) for each in hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for layer in (self.first, *self.layers):
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        last = self.layers[-1] if hidden else self.first
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=_OUTPUT_STD, generator=generator)
        if self.of_terms is not None:
            nn.init.normal_(self.of_terms, generator=generator)  # rows of terms have length 1

    def forward(self, factors: Tensor, content: ContentRows | None) -> Tensor:
        """Of factors [b, D] and the content of these rows."""
        dense = factors if content is None else torch.cat([factors, content.values], 1)
        hidden: Tensor = self.first(dense)
        if self.of_terms is not None and content is not None:
            rows = (content.offsets, content.terms, content.weights)
            hidden = hidden + sparse_linear(*rows, self.of_terms, sparse_grad=False)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            hidden = layer(torch.tanh(norm(hidden)))
        return hidden


class DropoutNet(Recommender):
    """score(u, i) = f_U([U_u, content_u]) . f_V([V_i, content_i]), trained to give U_u . V_i.

    Buffers: `user_factors`, `item_factors` [n, D], of ALS; `has_factors` [], 1 once these are made; `has_user`,
    `has_item` [n, 1], 1 where there are training rows; `means` [num_users, D], of the factors of a user's items;
    `standards` [6, D], mean and deviation of the factors of users, of items, and of the means; `user_codes`,
    `item_codes` [n, out_factors], what the towers give.
    """

    name = "dropoutnet"
    config_class: ClassVar[type[TrainConfig]] = DropoutNetConfig
    config: DropoutNetConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, NEW_USERS, RETRIEVES, SIMILAR_ITEMS})
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"item_features", "user_features"}
    sizes_class: ClassVar[type[Any]] = DropoutNetSizes
    trains_on_whole_rows: ClassVar[bool] = True
    user_factors: Tensor
    item_factors: Tensor
    has_user: Tensor
    has_item: Tensor
    has_factors: Tensor
    means: Tensor
    standards: Tensor
    user_codes: Tensor
    item_codes: Tensor

    # -- the data ----------------------------------------------------------------------------------------------------

    def features_taken(self) -> tuple[str, ...]:
        """The tables whose columns are named."""
        given = {"user_features": self.config.user_content, "item_features": self.config.item_content}
        return tuple(name for name, columns in given.items() if columns)

    def _content(self, data: Interactions, side: str) -> Terms | None:
        """Of all users or items; None without."""
        option = f"{side}_content"
        if not (names := getattr(self.config, option)):
            return None
        terms = content_terms(self.name, option, data, side, names, self.config.vocabulary)
        return terms.weighted(self.config.weighting).weighted("l2")

    def schema_for(self, data: Interactions) -> DropoutNetSizes:
        """Sizes, with those of the content.

        Raises:
            ValueError: a column that is not there, or of another kind.
        """
        sizes: dict[str, int] = {}
        for side in ("user", "item"):
            if (terms := self._content(data, side)) is not None:
                sizes |= {f"{side}_terms": terms.size, f"{side}_numbers": terms.num_values}
        return DropoutNetSizes(data.num_users, data.num_items, **sizes)

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Any:
        """Create the parameters; a plain `Schema` is that of a model without content."""
        if type(sizes) is Schema:
            sizes = DropoutNetSizes(sizes.num_users, sizes.num_items)
        return super().build(sizes, generator)

    def _build(self, schema: DropoutNetSizes, generator: torch.Generator | None) -> None:
        config, sides = self.config, (("user", schema.num_users), ("item", schema.num_items))
        for side, count in sides:
            content = getattr(schema, f"{side}_terms"), getattr(schema, f"{side}_numbers")
            columns = getattr(config, f"{side}_content")
            if bool(sum(content)) != bool(columns):
                raise ValueError(f"dropoutnet: schema must count the {side}s' {columns}, got {schema}; call fit(data)")
            tower = Tower(config.factors, *content, config.layers, config.out_factors, generator)
            setattr(self, f"{side}_tower", tower)
            self.register_buffer(f"{side}_factors", torch.zeros(count, config.factors))
            self.register_buffer(f"has_{side}", torch.zeros(count, 1))
            self.register_buffer(f"{side}_codes", torch.zeros(count, config.out_factors))
        self.register_buffer("has_factors", torch.zeros(()))
        self.register_buffer("means", torch.zeros(schema.num_users, config.factors))
        self.register_buffer("standards", torch.tensor([0.0, 1.0] * 3).unsqueeze(1).repeat(1, config.factors))
        self.user_tower: Tower
        self.item_tower: Tower
        self._content_there: tuple[Terms | None, Terms | None] | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model.

        Raises:
            ValueError: with content, of which later users and items have other terms.
        """
        if self.features_taken():
            raise ValueError("dropoutnet: fit_more: other users and items have other terms; train anew on all rows")
        super().begin_from(weights, data)
        self.has_factors.zero_()  # ALS goes on from those there are

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> PreferenceBatches:
        """Users with the items that go with them; what hides what is drawn for each step."""
        config, counts = self.config, {"user": train.user_counts(), "item": train.item_counts()}
        if not len(train):
            raise ValueError(f"dropoutnet: the training part must have an interaction, {train.name} has none")
        for side, each in counts.items():
            getattr(self, f"has_{side}").copy_(torch.from_numpy((each > 0).astype(np.float32)).unsqueeze(1))
        als = ALS(config=config.als_config())
        als.build(Schema(train.num_users, train.num_items), torch.Generator().manual_seed(seed))
        sides = als.to(self.device).batches(train, seed)
        rows = tuple(torch.from_numpy(part.astype(np.int64)) for part in train.csr())
        self._content_there, self._is_stale = (self._content(train, "user"), self._content(train, "item")), True
        return PreferenceBatches(
            np.flatnonzero(counts["user"]),
            np.flatnonzero(counts["item"]),
            lambda: self._made_factors(als, sides, rows),
            *self._content_there,
            batch_size=config.batch_size,
            num_items=config.step_items,
            best=config.best,
            hidden=config.hidden_share,
            means=config.mean_share,
            seed=seed,
            device=self.device,
        )

    @torch.no_grad()
    def _made_factors(self, als: ALS, sides: Sides, rows: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The factors, on the CPU; in the first epoch they are made. A run that is resumed has them already.

        No validation chooses their epoch: that of cold items knows nothing of it.
        """
        if not self.has_factors.item():
            is_known = self.item_factors.any(1, keepdim=True)
            als.item_factors.copy_(torch.where(is_known, self.item_factors, als.item_factors))
            als.item_gram.copy_(als.item_factors.T @ als.item_factors)
            for sweep in range(self.config.als_epochs):
                for batch in sides.epoch(sweep):
                    als.backward(batch)
            self.user_factors.copy_(als.user_factors)
            self.item_factors.copy_(als.item_factors)
            self._prepare(*(part.to(self.device) for part in rows))
            self.has_factors.fill_(1.0)
        return self.user_factors.cpu(), self.item_factors.cpu()

    def _prepare(self, offsets: Tensor, items: Tensor) -> None:
        """The means of users' items, and what standardises factors and means over users and items with rows."""
        self.means.copy_(self._mean_factors(offsets, items))
        standards = []
        for values, is_there in (
            (self.user_factors, self.has_user),
            (self.item_factors, self.has_item),
            (self.means, self.has_user),
        ):
            count = is_there.sum().clamp(min=1)
            mean = (values * is_there).sum(0) / count
            spread = (((values - mean) * is_there).square().sum(0) / count).sqrt()
            standards += [mean, torch.where(spread > 1e-8, spread, 1.0)]
        self.standards.copy_(torch.stack(standards))

    def _mean_factors(self, offsets: Tensor, items: Tensor) -> Tensor:
        """[b, D] of the item factors of rows; 0 for an empty one."""
        sums = sparse_linear(offsets, items, self.item_factors.new_ones(len(items)), self.item_factors)
        return sums / offsets.diff().clamp(min=1).unsqueeze(1)

    def _standard(self, place: int, values: Tensor) -> Tensor:
        """Less the mean, over the deviation: of users' factors (0), of items' (1), of means (2)."""
        return (values - self.standards[2 * place]) / self.standards[2 * place + 1]

    def loss(self, batch: PreferenceBatch) -> Tensor:
        """Half the mean squared error of U_u . V_i at each user's best items, and half that of all pairs in a step."""
        self._is_stale = True
        users, items = batch.users, batch.items
        of_users, of_items = self.user_factors[users], self.item_factors[items]
        is_mean = batch.is_mean.unsqueeze(1)
        shown = (1 - is_mean) * self._standard(0, of_users) + is_mean * self._standard(2, self.means[users])
        ours = self.user_tower(shown * batch.shows_user.unsqueeze(1), batch.of_users)
        theirs = self.item_tower(self._standard(1, of_items) * batch.shows_item.unsqueeze(1), batch.of_items)
        errors = (ours @ theirs.T - of_users @ of_items.T).square()
        count = len(users)
        own = errors[:, : count * batch.own].view(count, count, batch.own).diagonal()
        loss: Tensor = (own.mean() + errors.mean()) / 2
        return loss

    @torch.no_grad()
    def _refresh(self) -> None:
        """What the towers give for all users and items, where the content is at hand."""
        if not self._is_stale or self._content_there is None:
            return
        self._is_stale = False
        was_training = self.training
        self.eval()
        for place, (side, content) in enumerate(zip(("user", "item"), self._content_there, strict=True)):
            tower, factors = getattr(self, f"{side}_tower"), getattr(self, f"{side}_factors")
            inputs = self._standard(place, factors) * factors.any(1, keepdim=True)
            codes = getattr(self, f"{side}_codes")
            for start in range(0, len(inputs), _ROWS_A_BLOCK):
                end = min(start + _ROWS_A_BLOCK, len(inputs))
                rows = None
                if content is not None:
                    rows = ContentRows.of(content.take(np.arange(start, end))).to(self.device)
                codes[start:end] = tower(inputs[start:end], rows)
        self.train(was_training)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = False  # the codes came with the weights
        return result

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast. Trained by `loss`, not by this."""
        self.require_built()
        self._refresh()
        scores: Tensor = (self.user_codes[users.long()] * self.item_codes[items.long()]).sum(-1)
        return scores

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        return (self.user_codes[users.long()],)

    @torch.no_grad()
    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """What the tower gives for the mean of their items' factors, without content."""
        there = to_device(offsets, items.device)
        is_known = (there.diff() > 0).unsqueeze(1)
        inputs = self._standard(2, self._mean_factors(there, items)) * is_known
        schema, was_training = self.require_built(), self.training
        rows = None
        if schema.user_terms or schema.user_numbers:
            nothing = torch.zeros(0, dtype=torch.int64, device=items.device)
            values = inputs.new_zeros(len(inputs), schema.user_numbers)
            rows = ContentRows(torch.zeros_like(there), nothing, inputs.new_zeros(0), values)
        self.eval()
        codes: Tensor = self.user_tower(inputs, rows)
        self.train(was_training)
        return (codes,)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        self._refresh()
        return DotScorer(state[0], self.item_codes)

    def item_vectors(self) -> Tensor:
        self.require_built()
        self._refresh()
        return self.item_codes
