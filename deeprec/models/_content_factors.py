"""What CDL and CVAE share: factors of users and items by least squares, items held near to the code of an autoencoder.

Users u and items v minimise sum_ij C_ij (R_ij - u_i . v_j)^2 + l_u sum |u_i|^2 + l_v sum_j |v_j - e_j|^2, C_ij being
`confidence` for what was met and `unseen_confidence` for all else; e_j is what the encoder says of the terms of item j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.documents import DocumentsAndSides
from deeprec.batches.sides import SideBatch, Sides
from deeprec.batches.term_bags import TermBags, TermBatch
from deeprec.config import GRADIENT_OPTIONS, Only, TrainConfig, at_least, one_of
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import Interactions, Terms
from deeprec.data.columns.terms import WEIGHTINGS
from deeprec.device import to_device
from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models._content_terms import content_terms
from deeprec.models._own_entries import with_own_entries
from deeprec.models.base import Recommender
from deeprec.nn.dropout import Dropout
from deeprec.nn.mlp import ACTIVATIONS
from deeprec.nn.scoring import DotScorer

_OF_CONTENT = ("lr", "batch_size", "weight_decay", "vocabulary", "weighting", "layers", "activation", "noise",
               "dropout", "absent", "content_epochs", "pretrain_epochs")  # fmt: skip


@dataclass(frozen=True)
class ContentFactorsConfig(TrainConfig):
    """Attributes:
    factors: width D of the vectors and of the code, >= 1.
    content: columns of the item table whose terms the autoencoder reads, lists of values or texts; (): none, which is
        weighted matrix factorisation.
    confidence, unseen_confidence: C of what a user met (a), and of everything else (b); a > b > 0.
    user_l2, item_l2: lambda_u and lambda_v, > 0; the latter holds items near to what the encoder says.
    vocabulary: most terms of each column that are known, >= 1, the most frequent ones.
    weighting: of the terms that the encoder is shown, "tf-idf", "log", "binary" or "count"; each row has length 1.
    layers: widths between the terms and the code, one or more, each >= 1; the decoder has them in reverse.
    activation: of the hidden layers, such as "sigmoid" or "tanh".
    noise: share of an item's terms that is hidden from the encoder in training, in [0, 1).
    dropout: share of the hidden layers that is dropped in training, in [0, 1).
    absent: terms that an item lacks, drawn for each item of a step, which stand for all of these, >= 1.
    pretrain_epochs: passes over the items before the first sweep, >= 0.
    content_epochs: passes over the items before each other sweep, >= 1.
    batch_size: items a step of these, >= 1.
    weight_decay: of all weights of the autoencoder, lambda_w, >= 0.
    epochs: sweeps over users and items.
    """

    unused: ClassVar[tuple[str, ...]] = tuple(
        name for name in GRADIENT_OPTIONS if name not in ("epochs", "patience", *_OF_CONTENT)
    )
    optimizers: ClassVar[tuple[str, ...]] = ("adam",)
    conditions: ClassVar[tuple[Only, ...]] = (Only(_OF_CONTENT, "content", lambda config: bool(config.content)),)

    factors: int = 50
    content: tuple[str, ...] = ()
    confidence: float = 1.0
    unseen_confidence: float = 0.01
    user_l2: float = 10.0
    item_l2: float = 10.0
    vocabulary: int = 8000
    weighting: str = "tf-idf"
    layers: tuple[int, ...] = (200,)
    activation: str = "tanh"
    noise: float = 0.3
    dropout: float = 0.0
    absent: int = 64
    pretrain_epochs: int = 15
    content_epochs: int = 1
    batch_size: int = 256
    lr: float = 0.003
    epochs: int = 20
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        for each in ("factors", "vocabulary", "absent", "content_epochs"):
            at_least(self, each, 1)
        at_least(self, "pretrain_epochs", 0)
        if not self.confidence > self.unseen_confidence > 0:
            raise ValueError(
                f"{name}: confidence must be > unseen_confidence > 0, got {self.confidence} and "
                f"{self.unseen_confidence}; 1 and 0.01 are the paper's"
            )
        for each in ("user_l2", "item_l2"):
            if not getattr(self, each) > 0:
                raise ValueError(f"{name}: {each} must be > 0, got {getattr(self, each)}")
        for each in ("noise", "dropout"):
            if not 0 <= getattr(self, each) < 1:
                raise ValueError(f"{name}: {each} must lie in [0, 1), got {getattr(self, each)}")
        one_of(self, "weighting", WEIGHTINGS)
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"{name}: layers must be widths >= 1, at least one, got {self.layers}; (200,) is usual")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"{name}: activation must be one of {known}; got {self.activation!r}")
        if len(set(self.content)) < len(self.content):
            raise ValueError(f"{name}: content must name each column once, got {self.content}")


class ContentAutoencoder(nn.Module):
    """terms -> hidden -> code [b, D] -> hidden in reverse -> terms; the first and the last layer are over sparse rows.

    Parameters: `first` [S, H], `first_bias` [H], `inner.I.*` up to the code, `outer.I.*` from it, `last` [S, H] and
    `last_bias` [S]. Weights begin as Xavier's uniform ones, those of the first layer N(0, 1), as rows have length
    1 however few terms they have; biases at 0.

    Args:
        size: S, terms, >= 1.
        hidden: widths, each >= 1.
        code_width: what `encode` gives, >= 1; factors: what `decoded` takes, >= 1.
        activation: f of the hidden layers; dropout: share of these that is dropped in training.
    """

    def __init__(
        self,
        size: int,
        hidden: tuple[int, ...],
        code_width: int,
        factors: int,
        *,
        activation: str,
        dropout: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.activate, self.dropout = ACTIVATIONS[activation], Dropout(dropout)
        self.first = nn.Parameter(torch.empty(size, hidden[0]))
        self.first_bias = nn.Parameter(torch.zeros(hidden[0]))
        self.inner = _linears((*hidden, code_width))
        self.outer = _linears((factors, *hidden[::-1]))
        self.last = nn.Parameter(torch.empty(size, hidden[0]))
        self.last_bias = nn.Parameter(torch.zeros(size))
        weights = [layer.weight for part in (self.inner, self.outer) for layer in part if isinstance(layer, nn.Linear)]
        nn.init.normal_(self.first, generator=generator)
        for weight in (*weights, self.last):
            nn.init.xavier_uniform_(weight, generator=generator)

    def encode(self, offsets: Tensor, terms: Tensor, values: Tensor) -> Tensor:
        """The last layer of the encoder without an activation, [b, code_width], of compressed rows."""
        hidden = sparse_linear(offsets, terms, values, self.first, self.first_bias, sparse_grad=False)
        for layer in self.inner:
            hidden = layer(self.dropout(self.activate(hidden)))
        return hidden

    def reconstruction(self, code: Tensor, batch: TermBatch, loss: str) -> Tensor:
        """Sum over the batch of the loss of sigmoid outputs at its targets, from codes [b, factors]."""
        for layer in self.outer:
            code = self.dropout(self.activate(layer(code)))
        arguments = (code, self.last, self.last_bias, batch.target_offsets, batch.target_terms, batch.targets)
        options: dict[str, Any] = {"activation": "sigmoid", "loss": loss, "sparse_grad": False}
        total, _ = sampled_linear_loss(*arguments, entry_weights=batch.target_weights, **options)
        return total


def _linears(widths: tuple[int, ...]) -> nn.ModuleList:
    layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.bias)
    return layers


class ContentFactors(Recommender):
    """Base: a subclass says what the code is, and its loss.

    Buffers: `user_factors`, `item_factors` and `prior`, e, [n, D]; `is_solved` [num_items, 1], 1 for an item that has
    training rows and was solved for, 0 for one that is where the encoder puts it; `item_gram` [D, D].
    """

    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"item_features"}
    trains_on_whole_rows: ClassVar[bool] = True
    code_parts: ClassVar[int] = 1  # widths D that the encoder gives
    config: ContentFactorsConfig
    user_factors: Tensor
    item_factors: Tensor
    prior: Tensor
    is_solved: Tensor
    item_gram: Tensor

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def code(self, encoded: Tensor) -> Tensor:
        """e [b, D] of what the encoder gives."""
        raise NotImplementedError

    def content_loss(self, batch: TermBatch, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Of what the encoder gives in training: the code [b, D] to hold near the items, and the loss of the rest."""
        raise NotImplementedError

    # -- the data ----------------------------------------------------------------------------------------------------

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where `content` names columns."""
        return ("item_features",) if self.config.content else ()

    def schema_for(self, data: Interactions) -> Schema:
        """Sizes, with the number of terms as that of features.

        Raises:
            ValueError: a column that is not there or of another kind, or columns without a term.
        """
        return Schema(data.num_users, data.num_items, self._terms_of(data).size if self.config.content else 0)

    def _terms_of(self, data: Interactions) -> Terms:
        """The terms of all items, each by its count over the largest count of the item."""
        names = self.config.content
        terms = content_terms(self.name, "content", data, "item", names, self.config.vocabulary)
        if terms.num_values:
            raise ValueError(
                f"{self.name}: content must be columns of texts, lists or categories, got numbers in "
                f"{', '.join(names)}; leave them out"
            )
        if not len(terms.ids):
            raise ValueError(f"{self.name}: content must hold a term at least, got none in {', '.join(names)}")
        counts = np.diff(terms.offsets)
        largest = np.maximum.reduceat(np.append(terms.weights, 0.0), terms.offsets[:-1])
        weights = (terms.weights / np.repeat(largest, counts)).astype(np.float32)
        return Terms(terms.offsets, terms.ids, weights, terms.values, terms.size)

    # -- the parameters ----------------------------------------------------------------------------------------------

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        if bool(schema.num_features) != bool(config.content):
            raise ValueError(
                f"{self.name}: schema must count the terms of {config.content}, got {schema}; call fit(data)"
            )
        items = torch.empty(schema.num_items, config.factors)
        items.normal_(0.0, 0.1 * config.factors**-0.5, generator=generator)
        self.register_buffer("user_factors", torch.zeros(schema.num_users, config.factors))
        self.register_buffer("item_factors", items)
        self.register_buffer("prior", torch.zeros(schema.num_items, config.factors))
        self.register_buffer("is_solved", torch.zeros(schema.num_items, 1))
        self.register_buffer("item_gram", items.T @ items)
        self.network: ContentAutoencoder | None = None
        if schema.num_features:
            self.network = ContentAutoencoder(
                schema.num_features,
                config.layers,
                self.code_parts * config.factors,
                config.factors,
                activation=config.activation,
                dropout=config.dropout,
                generator=generator,
            )
        self._contents: TermBags | None = None
        self._user_gram: Tensor | None = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the autoencoder; the factors are solved for."""
        return {} if self.network is None else super().parameter_groups()

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model.

        Raises:
            ValueError: with content, of which later items have other terms.
        """
        if self.config.content:
            raise ValueError(f"{self.name}: fit_more: other items have other terms; train anew on all rows")
        super().begin_from(weights, data)
        self.item_gram.copy_(self.item_factors.T @ self.item_factors)

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> DocumentsAndSides:
        """The terms of all items, then whole rows of users and of items."""
        config, self._contents = self.config, None
        sides = Sides(train, device=self.device)
        if config.content:
            terms = self._terms_of(train)
            inputs = terms.weighted(config.weighting).weighted("l2").weights
            self._contents = TermBags(
                terms,
                inputs,
                batch_size=config.batch_size,
                noise=config.noise,
                absent=config.absent,
                seed=seed,
                device=self.device,
            )
            self._begin_from_frequencies(terms)
        return DocumentsAndSides(sides, self._contents, config.content_epochs, config.pretrain_epochs)

    @torch.no_grad()
    def _begin_from_frequencies(self, terms: Terms) -> None:
        """The output without a code: the mean of each term, so that what is learned is what tells items apart."""
        assert self.network is not None
        sums = np.bincount(terms.ids, terms.weights, minlength=terms.size)
        means = (sums + 0.5) / (len(terms) + 1)
        self.network.last_bias.copy_(torch.from_numpy(np.log(means / (1 - means))))

    def loss(self, batch: TermBatch) -> Tensor:
        """Mean over the items of l_v / 2 |v - e|^2, for those that were solved for, and of the autoencoder's own."""
        assert self.network is not None
        code, rest = self.content_loss(batch, self.network.encode(batch.offsets, batch.terms, batch.values))
        distances = (code - self.item_factors[batch.items]).square() * self.is_solved[batch.items]
        return (self.config.item_l2 / 2 * distances.sum() + rest) / len(batch)

    def backward(self, batch: TermBatch | SideBatch) -> Tensor:
        """Gradients of the autoencoder, or the solved rows of the batch and their mean loss an entry."""
        if isinstance(batch, TermBatch):
            return super().backward(batch)
        with torch.no_grad():
            if batch.of_users:
                if batch.is_first:
                    self._read_contents()
                mine, others, prior, l2, gram = self.user_factors, self.item_factors, None, self.config.user_l2, None
                gram = self.item_gram
            else:
                if batch.is_first or self._user_gram is None:
                    self._user_gram = self.user_factors.T @ self.user_factors
                mine, others, l2, gram = self.item_factors, self.user_factors, self.config.item_l2, self._user_gram
                prior = self.prior[batch.begin : batch.end]
            rows, losses = self._solved(batch.offsets, batch.indices, others, prior, l2, gram)
            if not batch.of_users:
                has_rows = (batch.offsets.diff() > 0).unsqueeze(1)
                if self.network is not None:  # what nobody met stays where its content puts it
                    rows = torch.where(has_rows, rows, self.prior[batch.begin : batch.end])
                self.is_solved[batch.begin : batch.end] = has_rows.to(self.is_solved.dtype)
            mine[batch.begin : batch.end] = rows
            if batch.is_last and not batch.of_users:
                self.item_gram.copy_(self.item_factors.T @ self.item_factors)
                self._user_gram = None
            return losses.sum() / len(batch)

    def _solved(
        self, offsets: Tensor, indices: Tensor, others: Tensor, prior: Tensor | None, l2: float, gram: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x = (b G + (a - b) sum_p y_p y_p' + l2 I)^-1 (a sum_p y_p + l2 m) of each row, and what its loss is.

        m is the prior, None: 0. `als_solve` has the same equation over b.
        """
        a, b = self.config.confidence, self.config.unseen_confidence
        offsets, indices = offsets.long(), indices.long()
        right = a * sparse_linear(offsets, indices, others.new_ones(len(indices)), others)
        constant = a * offsets.diff().to(others.dtype)
        weights = others.new_full((len(indices),), (a - b) / b)
        if prior is None:
            rows = als_solve(offsets, indices, weights, others, ridge=l2 / b, gram=gram).rows
        else:
            right, constant = right + l2 * prior, constant + l2 * prior.square().sum(1)
            bounds, entries = with_own_entries(offsets, indices, len(others))
            weights = (entries < len(others)).to(others.dtype) * ((a - b) / b)
            factors = torch.cat([others, l2 / b * prior])
            rows = als_solve(bounds, entries, weights, factors, ridge=l2 / b, gram=gram).rows
        return rows, constant - (right * rows).sum(1)

    def _read_contents(self) -> None:
        """e of all items; those that were not solved for yet are put there."""
        if self.network is None or self._contents is None:
            return
        was_training = self.network.training
        self.network.eval()
        codes = [
            self.code(self.network.encode(each.offsets, each.terms, each.values)) for each in self._contents.whole()
        ]
        self.prior.copy_(torch.cat(codes))
        self.network.train(was_training)
        self.item_factors.copy_(torch.where(self.is_solved > 0, self.item_factors, self.prior))
        self.item_gram.copy_(self.item_factors.T @ self.item_factors)

    # -- scores ------------------------------------------------------------------------------------------------------

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        return (self.user_factors[users.long()] * self.item_factors[items.long()]).sum(-1)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.user_factors[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The exact solution for new users."""
        there = to_device(offsets, items.device)
        return (self._solved(there, items, self.item_factors, None, self.config.user_l2, self.item_gram)[0],)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self.item_factors)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.item_factors
