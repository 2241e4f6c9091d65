"""VBPR: matrix factorisation by BPR where users also have a taste for what is seen, heard or read in an item.

Paper: He, McAuley 2016, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback" (AAAI, arXiv 1510.01784),
eq. 4 to 8. Code: PreferredAI/cornac.
Deviations: several columns of vectors stand side by side, each less its mean over the items with training rows and
scaled to a mean square length of 1. An item without training rows has neither a bias nor a vector of its own, so that
content alone ranks it, and it is nobody's negative: a model that saw it as one would have learned that nobody likes
what it looks like. Without `features` it is BPR. The user's bias cancels in BPR and is left out. AdaGrad in place of
SGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.pairs import PairBatch, PairwiseBatches
from deeprec.config import Only, TrainConfig, at_least
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import IdMap, Interactions
from deeprec.kernels.embedding import embedding
from deeprec.models._adversarial import AdversarialRecommender
from deeprec.models._item_vectors import scaled, scales_of, vector_parts
from deeprec.models._new_items import append_rows, growing, require_new_items
from deeprec.models.bpr import BPRConfig, with_hardest
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import DotScorer
from deeprec.surroundings import trained

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class VBPRConfig(BPRConfig):
    """Attributes:
    factors: width of gamma, >= 1.
    features: columns of the item table, of lists of fractions or of numbers, that say what is in an item; () for none.
    content_factors: K, width of theta, of a user's taste for content, >= 1.
    content_l2: each pair adds content_l2 / 2 times the squares of E and beta' to its loss, >= 0.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("content_factors", "content_l2"), "features", lambda config: bool(config.features)),
    )

    factors: int = 32
    features: tuple[str, ...] = ()
    content_factors: int = 32
    content_l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "content_factors", 1)
        at_least(self, "content_l2", 0)
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"VBPRConfig: features must name each column once, got {self.features}")


@dataclass(frozen=True)
class VBPRSizes(Schema):
    """What the model is built for.

    Attributes:
        widths: numbers of each column of `features`.
    """

    widths: tuple[int, ...] = ()


class VBPR(AdversarialRecommender):
    """x_ui = beta_i + gamma_u . gamma_i + theta_u . (E f_i) + beta' . f_i."""

    name = "vbpr"
    config_class: ClassVar[type[TrainConfig]] = VBPRConfig
    config: VBPRConfig
    capabilities: ClassVar[frozenset[str]] = AdversarialRecommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    takes: ClassVar[frozenset[str]] = AdversarialRecommender.takes | {"item_features"}
    sizes_class: ClassVar[type[Any]] = VBPRSizes

    # -- the data ----------------------------------------------------------------------------------------------------

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where `features` names columns."""
        return ("item_features",) if self.config.features else ()

    def schema_for(self, data: Interactions) -> VBPRSizes:
        """Sizes, with the widths of the columns.

        Raises:
            ValueError: a column that is not there, not known for every item, or with a number that is not finite.
        """
        widths = tuple(part.shape[1] for part in self._parts_of(data))
        return VBPRSizes(data.num_users, data.num_items, sum(widths), widths)

    def _parts_of(self, data: Interactions) -> list[np.ndarray]:
        """[num_items, width] for each column."""
        return vector_parts(data.item_features, self.config.features, data.item_ids)

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is that of a model without content."""
        if type(sizes) is Schema:
            sizes = VBPRSizes(sizes.num_users, sizes.num_items)
        return super().build(sizes, generator)

    def _build(self, schema: VBPRSizes, generator: torch.Generator | None) -> None:
        config, widths = self.config, schema.widths
        if len(widths) != len(config.features):
            raise ValueError(
                f"vbpr: schema must have a width for each of {config.features}, got {widths}; call fit(data)"
            )
        width, taste = sum(widths), config.content_factors if widths else 0
        self.users = Embedding(schema.num_users, config.factors + taste, name="user")  # gamma_u, theta_u
        self.items = Embedding(schema.num_items, config.factors, name="item")
        self.item_bias = Embedding(schema.num_items, 1, name="item")
        with torch.no_grad():
            for table in (self.users, self.items):
                table.weight.normal_(0.0, config.init_std, generator=generator)
            self.item_bias.weight.zero_()
        if widths:
            self.content = nn.Parameter(torch.empty(width, taste))  # E transposed
            nn.init.xavier_uniform_(self.content, generator=generator)
            self.content_bias = nn.Parameter(torch.zeros(width, 1))  # beta'
        self.register_buffer("vectors", torch.zeros(schema.num_items, width))  # f
        self.register_buffer("centers", torch.zeros(width))
        self.register_buffer("scales", torch.ones(len(widths)))
        self.register_buffer("is_known", torch.zeros(schema.num_items, 1))  # 1 for an item with training rows
        self.vectors: Tensor
        self.centers: Tensor
        self.scales: Tensor
        self.is_known: Tensor
        self._mapped: Tensor | None = None

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> PairwiseBatches:
        """Positives with negatives drawn anew every epoch."""
        counts = torch.from_numpy(train.item_counts() > 0).to(self.device)
        if self.config.features:
            parts = self._parts_of(train)
            if self.earlier is None:  # later rows go on with the scales that E was trained for
                centers, scales = scales_of(parts, train.item_counts() > 0)
                self.centers.copy_(centers)
                self.scales.copy_(scales)
            self.vectors.copy_(scaled(parts, self.centers, self.scales))
        with torch.no_grad():
            self.is_known.copy_(torch.maximum(self.is_known, counts.unsqueeze(1).to(self.is_known.dtype)))
            for table in (self.items.weight, self.item_bias.weight):
                table.mul_(self.is_known)  # without a row they never learn, and zeros say so
        self._mapped = None
        batches = super().batches(train, seed)
        assert isinstance(batches, PairwiseBatches)
        return batches

    def terms(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """-ln sigmoid(x_ui - x_uj) of the pairs of a positive i and each of its negatives j, and L2 of their rows."""
        self.require_built()
        self._mapped = None
        config = self.config
        if config.hardest:
            batch = with_hardest(batch, self(batch.users.unsqueeze(1), batch.items))
            self._mapped = None
        ids, users = batch.items.long(), self.users(batch.users)
        is_known = self.is_known[ids]
        items, bias = self.items(batch.items) * is_known, self.item_bias(batch.items) * is_known
        vectors, offsets = items, bias
        if config.features:
            seen = embedding(self.vectors, batch.items, sparse_grad=True)  # [b, 1 + n, F]
            vectors = torch.cat([items, seen @ self.content], 2)
            offsets = bias + seen @ self.content_bias
        scores = torch.baddbmm(offsets, vectors, users.unsqueeze(2)).squeeze(2)
        losses = -F.logsigmoid(scores[:, :1] - scores[:, 1:]) * is_known[:, 1:, 0]
        share = 1 / losses.numel() if config.reduction == "mean" else 1.0
        pairs, l2 = losses.shape[1], None
        if config.l2:
            squares = pairs * (users.square().sum() + items[:, 0].square().sum() + bias[:, 0].square().sum())
            squares = squares + items[:, 1:].square().sum() + bias[:, 1:].square().sum()
            l2 = share * config.l2 / 2 * squares
        if config.content_l2:
            squares = self.content.square().sum() + self.content_bias.square().sum()
            content_l2 = share * config.content_l2 / 2 * losses.numel() * squares
            l2 = content_l2 if l2 is None else l2 + content_l2
        return share * losses.sum(), l2

    def attacked(self) -> tuple[Tensor, ...]:
        """The vectors of what is in an item; without any, gamma, as BPR."""
        return (self.vectors,) if self.config.features else (self.users.weight, self.items.weight)

    def forget(self) -> None:
        self._mapped = None

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model; the features of known items must be what they were.

        Raises:
            ValueError: those of a known item are others now.
        """
        known = weights.get("vectors")
        if self.config.features and known is not None:
            now = [part[: len(known)] for part in self._parts_of(data)]
            if not torch.equal(scaled(now, weights["centers"].cpu(), weights["scales"].cpu()), known.cpu()):
                raise ValueError("vbpr: fit_more: features of known items must be as they were, got others; train anew")
        super().begin_from(weights, data)

    @trained
    @torch.no_grad()
    def add_items(self, items: Any) -> Self:
        """Items that came after the training, ranked by their content: they are recommended from now on.

        Args:
            items: frame with item_id, none of them known, and the columns of `features`.
        Returns:
            the model; `save` keeps them, and an index that it has takes them in.
        Raises:
            ValueError: a model without `features`, a column that is missing, an id that is known or comes twice.
        """
        frame, item_ids = require_new_items(self, items)
        if not self.config.features:
            raise ValueError("add_items: vbpr knows new items by their columns; train it with features=(...)")
        if not len(frame):
            return self
        parts = vector_parts(frame, self.config.features, IdMap(frame["item_id"], "item"))
        widths = tuple(part.shape[1] for part in parts)
        if widths != self.require_built().widths:
            raise ValueError(f"add_items: {self.config.features} must have {self.require_built().widths} numbers, got "
                             f"{widths}; make them as those that were trained on")  # fmt: skip
        with growing(self, item_ids):
            rows = scaled(parts, self.centers, self.scales)
            self.vectors = torch.cat([self.vectors, rows])
            self.is_known = torch.cat([self.is_known, self.is_known.new_zeros(len(frame), 1)])
            append_rows(self.items, rows.new_zeros(len(frame), self.config.factors))
            append_rows(self.item_bias, rows.new_zeros(len(frame), 1))
            self._mapped = None
        return self

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def _content_of_items(self) -> Tensor:
        """[num_items, K + 1] E f_i and beta' . f_i, made once after a step."""
        if self._mapped is None:
            self._mapped = self.vectors @ torch.cat([self.content, self.content_bias], 1)
        return self._mapped

    def _item_rows(self) -> tuple[Tensor, Tensor]:
        """gamma_i and E f_i, [num_items, D + K], and biases [num_items]."""
        items, bias = self.items.weight.detach(), self.item_bias.weight.detach().squeeze(1)
        if not self.config.features:
            return items, bias
        content = self._content_of_items()
        return torch.cat([items, content[:, :-1]], 1), bias + content[:, -1]

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """x_ui of pairs of internal ids; shapes broadcast. Trained by `loss`, not by this."""
        self.require_built()
        vectors, bias = self._item_rows()
        scores: Tensor = (self.users.weight[users.long()] * vectors[items.long()]).sum(-1) + bias[items.long()]
        return scores

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.users.weight.detach()[users.long()],)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        vectors, bias = self._item_rows()
        items = items.long()
        return (rows[0] * vectors[items]).sum(-1) + bias[items]

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """gamma_u . gamma_i + theta_u . (E f_i) + biases."""
        return DotScorer(state[0], *self._item_rows())

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._item_rows()[0]

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's."""
        self._mapped = None
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._mapped = None
        result: Self = super()._apply(fn, recurse)
        return result
