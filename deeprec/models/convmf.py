"""ConvMF: matrix factorisation of ratings whose items are held near to what a CNN reads in their texts.

Paper: Kim, Park, Oh, Lee, Yu 2016, "Convolutional Matrix Factorization for Document Context-Aware Recommendation"
(RecSys), eq. 5 to 13. Code: cartopy/ConvMF. Without `text` it is probabilistic matrix factorisation (PMF, Mnih,
Salakhutdinov 2007), the paper's ablation.
Deviations: ratings stand as they are less their mean; Adam in place of RMSprop; the vocabulary is the most frequent
words, not those of the largest TF-IDF; no list of stop words, but words in more than half of the texts are left out;
the first sweep precedes the first pass over the texts. An item without ratings is where the CNN puts it.
Defaults: of (10, 10), the paper's (100, 10), (100, 20) and (100, 30) for (user_l2, item_l2), and of 5 passes over the
texts in an epoch and 2, (100, 30) with 2 has the lowest error on the validation part of ML-1M. Without texts others are
better, see bench/content.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprec.batches.documents import DocumentBatch, Documents, DocumentsAndSides
from deeprec.batches.sides import SideBatch, Sides
from deeprec.config import GRADIENT_OPTIONS, Only, TrainConfig, at_least
from deeprec.contract import NEW_USERS, RATES, RECOMMENDS, RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import DataSchema, Encoder, FeatureSchema, Interactions, Text, encode_tables
from deeprec.data.columns.inputs import Bags
from deeprec.data.columns.rows import join
from deeprec.device import to_device
from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models._new_items import growing, require_new_items
from deeprec.models._own_entries import owners, with_own_entries
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.scoring import DotScorer
from deeprec.nn.text_cnn import TextCNN
from deeprec.surroundings import fork_safe, trained

if TYPE_CHECKING:
    from typing_extensions import Self

_ENTRIES_A_BATCH = 1 << 18
_PAIRS_A_BLOCK = 1 << 16
_MOST_TEXTS = 0.5  # share of the texts from which on a word says nothing
_OF_TEXT = ("lr", "batch_size", "weight_decay", "length", "vocabulary", "embedding_dim", "filters", "text_hidden",
            "dropout", "text_epochs")  # fmt: skip


@dataclass(frozen=True)
class ConvMFConfig(TrainConfig):
    """Attributes:
    factors: width D of the vectors, >= 1.
    text: column of the item table with a text for each item; "": none.
    user_l2, item_l2: lambda_U and lambda_V, > 0; the latter holds items near to what their texts say.
    length: words of a text that are read, >= 1.
    vocabulary: most words that are known, >= 1.
    embedding_dim, filters, text_hidden, dropout: of the `TextCNN`: width of the words, filters of each window, width of
        the layer between, >= 1; share of that layer that is dropped, in [0, 1).
    text_epochs: passes over the texts in an epoch, >= 1.
    batch_size: texts a step, >= 1.
    epochs: sweeps over users and items.
    """

    unused: ClassVar[tuple[str, ...]] = tuple(
        name for name in GRADIENT_OPTIONS if name not in ("epochs", "patience", *_OF_TEXT)
    )
    optimizers: ClassVar[tuple[str, ...]] = ("adam",)
    conditions: ClassVar[tuple[Only, ...]] = (Only(_OF_TEXT, "text", lambda config: bool(config.text)),)

    factors: int = 50
    text: str = ""
    user_l2: float = 100.0
    item_l2: float = 30.0
    length: int = 300
    vocabulary: int = 8000
    embedding_dim: int = 200
    filters: int = 100
    text_hidden: int = 200
    dropout: float = 0.2
    text_epochs: int = 2
    batch_size: int = 128
    epochs: int = 50
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("factors", "length", "vocabulary", "embedding_dim", "filters", "text_hidden", "text_epochs"):
            at_least(self, name, 1)
        for name in ("user_l2", "item_l2"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ConvMFConfig: {name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"ConvMFConfig: dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class ConvMFSizes(Schema):
    """What the model is built for.

    Attributes:
        words: ids of words with the padding; 0: there are no texts.
    """

    words: int = 0


class ConvMF(Recommender):
    """r_ui = mu + u_u . v_i, v_i ~ N(cnn(X_i), 1 / lambda_V), rows solved by turns."""

    name = "convmf"
    config_class: ClassVar[type[TrainConfig]] = ConvMFConfig
    config: ConvMFConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, RATES, RETRIEVES, NEW_USERS, SIMILAR_ITEMS})
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"item_features"}
    trains_on_whole_rows: ClassVar[bool] = True
    sizes_class: ClassVar[type[Any]] = ConvMFSizes
    keeps: ClassVar[tuple[str, ...]] = (*Recommender.keeps, "item_encoder")

    def __init__(self, schema: Schema | None = None, *args: Any, **options: Any) -> None:
        super().__init__(None, *args, **options)
        self.item_encoder: Encoder | None = None
        if schema is not None:
            self.build(schema, options.get("generator"))

    # -- the data ----------------------------------------------------------------------------------------------------

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where `text` names a column."""
        return ("item_features",) if self.config.text else ()

    def schema_for(self, data: Interactions) -> ConvMFSizes:
        """Sizes.

        Raises:
            ValueError: no ratings, no such column, or an item without a text.
        """
        if data.ratings is None:
            raise ValueError(f"convmf: the data must have ratings, got {data.name} without; pass rating= when reading")
        words = len(self._texts_of(data)[1]) if self.config.text else 0
        return ConvMFSizes(data.num_users, data.num_items, words=words)

    def _texts_of(self, data: Interactions) -> tuple[Bags, NDArray[np.bool_]]:
        """The words of the texts, and which words are read, by id."""
        name, frame = self.config.text, data.item_features
        if frame is None or name not in frame.columns:
            known = "no table of items" if frame is None else f"columns {', '.join(frame.columns)}"
            raise ValueError(f"convmf: text must be a column of the item table, got {name!r} and {known}")
        column = Text(name, tokens="words", length=self.config.length, max_size=self.config.vocabulary)
        table = encode_tables(data, DataSchema(items=FeatureSchema((column,), label=None))).items
        assert table is not None
        bags = table.rows.bags[name]
        self.item_encoder = table.encoder
        _require_texts(bags, name, data.item_ids.values)
        size = max(2, next(each.size for each in table.inputs.sequences if each.name == name))
        count = len(bags.offsets) - 1
        owners = np.repeat(np.arange(count), np.diff(bags.offsets))
        texts = np.bincount(np.unique(owners * size + bags.ids) % size, minlength=size)
        return bags, (np.arange(size) > 0) & (texts <= max(_MOST_TEXTS * count, 1))

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is that of a model without texts."""
        if type(sizes) is Schema:
            sizes = ConvMFSizes(sizes.num_users, sizes.num_items)
        return super().build(sizes, generator)

    def _build(self, schema: ConvMFSizes, generator: torch.Generator | None) -> None:
        config = self.config
        if bool(schema.words) != bool(config.text):
            raise ValueError(f"convmf: schema must count the words of {config.text!r}, got {schema}; call fit(data)")
        items = torch.empty(schema.num_items, config.factors)
        items.normal_(0.0, config.factors**-0.5, generator=generator)
        self.register_buffer("user_factors", torch.zeros(schema.num_users, config.factors))
        self.register_buffer("item_factors", items)
        self.register_buffer("prior", torch.zeros(schema.num_items, config.factors))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("limits", torch.zeros(2))  # smallest and largest rating
        self.register_buffer("is_read", torch.zeros(schema.words, dtype=torch.bool))  # by word
        self.is_read: Tensor
        self.user_factors: Tensor
        self.item_factors: Tensor
        self.prior: Tensor
        self.mean: Tensor
        self.limits: Tensor
        self.cnn: TextCNN | None = None
        if schema.words:
            self.cnn = TextCNN(
                schema.words,
                config.factors,
                embedding_dim=config.embedding_dim,
                filters=config.filters,
                hidden=config.text_hidden,
                dropout=config.dropout,
                generator=generator,
            )
        self._documents: Documents | None = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the CNN; the factors are solved for."""
        return {} if self.cnn is None else super().parameter_groups()

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model.

        Raises:
            ValueError: with texts, of which later ones have other words.
        """
        if self.config.text:
            raise ValueError("convmf: fit_more: texts of other items have other words; train anew on all rows")
        super().begin_from(weights, data)

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> DocumentsAndSides:
        """Texts, then whole rows of users and of items."""
        if train.ratings is None or not len(train):
            raise ValueError(
                f"convmf: the training part must have ratings, got {train!r}; pass rating= when reading it"
            )
        mean = float(train.ratings.mean(dtype=np.float64))
        self.mean.fill_(mean)
        self.limits.copy_(torch.tensor([float(train.ratings.min()), float(train.ratings.max())]))
        sides = Sides(train, train.ratings - np.float32(mean), entries_a_batch=_ENTRIES_A_BATCH, device=self.device)
        self._documents = None
        if self.config.text:
            bags, is_read = self._texts_of(train)
            self.is_read.copy_(torch.from_numpy(is_read))
            self._documents = self._documents_of(bags, is_read, seed)
        return DocumentsAndSides(sides, self._documents, self.config.text_epochs)

    def loss(self, batch: DocumentBatch) -> Tensor:
        """Mean squared distance of the items from where the CNN puts them, eq. 12."""
        assert self.cnn is not None
        distances: Tensor = (self.cnn(batch.words) - self.item_factors[batch.items]).square().sum(1)
        return distances.mean()

    def backward(self, batch: DocumentBatch | SideBatch) -> Tensor:
        """Gradients of the CNN, or the solved rows of the batch and their mean squared error, eq. 9 and 10."""
        if isinstance(batch, DocumentBatch):
            return super().backward(batch)
        with torch.no_grad():
            if batch.of_users:
                mine, others, prior, l2 = self.user_factors, self.item_factors, None, self.config.user_l2
            else:
                if batch.is_first:
                    self._read_texts()
                mine, others, l2 = self.item_factors, self.user_factors, self.config.item_l2
                prior = self.prior[batch.begin : batch.end]
            rows = _solved(batch.offsets, batch.indices, batch.values, others, prior, l2)
            mine[batch.begin : batch.end] = rows
            of_entries = owners(batch.offsets, len(batch))
            errors = (rows[of_entries] * others[batch.indices.long()]).sum(1) - batch.values
            return errors.square().mean()

    def _documents_of(self, bags: Bags, is_read: NDArray[np.bool_], seed: int = 0) -> Documents:
        """The texts without the words that are not read."""
        owners, kept = np.repeat(np.arange(len(bags.offsets) - 1), np.diff(bags.offsets)), is_read[bags.ids]
        ends = np.bincount(owners[kept], minlength=len(bags.offsets) - 1).cumsum()
        offsets = np.concatenate([[0], ends]).astype(np.int64)
        size = self.config.batch_size
        return Documents(offsets, bags.ids[kept], batch_size=size, seed=seed, device=self.device)

    def _read_texts(self) -> None:
        """cnn(X) of all items."""
        if self._documents is not None:
            self.prior.copy_(self._read(self._documents))

    def _read(self, documents: Documents) -> Tensor:
        """cnn(X) of texts, [n, D]."""
        assert self.cnn is not None
        was_training = self.cnn.training
        self.cnn.eval()
        rows = torch.cat([self.cnn(batch.words) for batch in documents.whole()])
        self.cnn.train(was_training)
        return rows

    @trained
    @torch.no_grad()
    def add_items(self, items: Any) -> Self:
        """Items that came after the training, where the CNN puts their texts: they are recommended from now on.

        Args:
            items: frame with item_id, none of them known, and the column `text`.
        Returns:
            the model; `save` keeps them, and an index that it has takes them in.
        Raises:
            ValueError: a model without texts, no such column, an item without a text, an id that is known or comes
                twice.
        """
        frame, item_ids = require_new_items(self, items)
        if not self.config.text or self.item_encoder is None:
            raise ValueError("add_items: convmf knows new items by their texts; train it with text=COLUMN")
        if not len(frame):
            return self
        bags = join(list(self.item_encoder.stream(frame))).bags[self.config.text]
        _require_texts(bags, self.config.text, frame["item_id"])
        rows = self._read(self._documents_of(bags, self.is_read.cpu().numpy()))
        with growing(self, item_ids):
            self._documents = None
            self.prior = torch.cat([self.prior, rows])
            self.item_factors = torch.cat([self.item_factors, rows])
        return self

    # -- predictions -------------------------------------------------------------------------------------------------

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings of pairs of internal ids; shapes broadcast."""
        self.require_built()
        return (self.user_factors[users.long()] * self.item_factors[items.long()]).sum(-1) + self.mean

    @fork_safe
    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data."""
        check_pairs("predict_ratings", users, items, self.require_built())
        blocks = zip(users.split(_PAIRS_A_BLOCK), items.split(_PAIRS_A_BLOCK), strict=True)
        return torch.cat([torch.empty(0, device=users.device), *(self(*block) for block in blocks)])

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.user_factors[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """As if all of them had the largest rating."""
        return self.rated_rows(offsets, items, self.limits[1].expand(len(items)))

    def rated_rows(self, offsets: Tensor, items: Tensor, ratings: Tensor) -> tuple[Tensor, ...]:
        """The solution for users who gave these ratings."""
        values = ratings.to(self.item_factors.dtype).clamp(*self.limits) - self.mean
        there = to_device(offsets, items.device)
        return (_solved(there, items, values, self.item_factors, None, self.config.user_l2),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self.item_factors, self.mean.expand(len(self.item_factors)).contiguous())

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.item_factors


def _require_texts(bags: Bags, name: str, ids: pl.Series) -> None:
    """Raise ValueError for an item without a text."""
    missing = np.flatnonzero(np.diff(bags.offsets) == 0)
    if len(missing):
        raise ValueError(
            f"convmf: every item must have a text in {name!r}, got {len(missing)} without, the first "
            f"{ids[int(missing[0])]!r}; write its title there, or leave such items out"
        )


def _solved(
    offsets: Tensor, indices: Tensor, values: Tensor, others: Tensor, prior: Tensor | None, l2: float
) -> Tensor:
    """x_b = (sum_p y_p y_p' + l2 I)^-1 (sum_p r_p y_p + l2 m_b), [b, D]; m is the prior, None: 0.

    `als_solve` with weights of 1 has 2 sum_p y_p for the second factor. What is missing to it is a vector of the row's
    own that comes as one more entry, of a weight of 0, which leaves the first factor as it is.
    """
    offsets, indices = offsets.long(), indices.long()
    missing = sparse_linear(offsets, indices, values - 2, others)
    if prior is not None:
        missing = missing + l2 * prior
    offsets, entries = with_own_entries(offsets, indices, len(others))
    weights = (entries < len(others)).to(others.dtype)
    gram = others.new_zeros(others.shape[1], others.shape[1])
    return als_solve(offsets, entries, weights, torch.cat([others, missing]), ridge=l2, gram=gram).rows
