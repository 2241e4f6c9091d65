"""DeepCoNN: a rating from what the user wrote of other items, and what other users wrote of the item.

Paper: Zheng, Noroozi, Yu 2017, "Joint Deep Modeling of Users and Items Using Reviews for Recommendation" (WSDM, arXiv
1701.04783), section 3.
Deviations: the review of the pair that is rated is in neither document, neither in training (`with_own` puts it there,
as the paper does) nor in predictions, where the paper's figures come from documents that hold it (Catherine, Cohen
2017, "TransNets", RecSys, arXiv 1704.02298, table 2). Words are vectors that are learned, not those of word2vec; tanh,
a vocabulary of the most frequent words and the sizes of the factorisation machine are those of TransNets. Ratings stand
as they are less their mean; Adam in place of RMSprop. A user or an item without reviews has an empty document. Where
the data have no texts (see `deeprec.data.Reviews`), a document is the items that a user rated, or the users who rated
an item, a word for each.
Where not to use it: with few reviews a user the bias model is better, see results/content.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprec.batches.reviews import ReviewBatch, ReviewBatches, ReviewDocuments
from deeprec.config import TrainConfig, at_least
from deeprec.contract import RATES, RECOMMENDS, RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import EncodedTable, FeatureSchema, Interactions, Reviews, Text
from deeprec.device import to_device
from deeprec.models._autoencoder import refresh_codes
from deeprec.models.base import Recommender, check_pairs
from deeprec.nn.fm import FMInteraction
from deeprec.nn.scoring import DotScorer
from deeprec.nn.text_cnn import TextCNN
from deeprec.surroundings import fork_safe

if TYPE_CHECKING:
    from typing_extensions import Self

_PAIRS_A_BLOCK = 1 << 16
_OWN = ("own_pairs", "own_ratings")


@dataclass(frozen=True)
class DeepCoNNConfig(TrainConfig):
    """Attributes:
    factors: width of the factorisation machine's vectors, >= 1.
    width: of what a document becomes, >= 1.
    length: most words of a document, >= 1.
    vocabulary: most words that are known, >= 1.
    embedding_dim, filters, window, dropout: of the two `TextCNN`s: width of the words, filters, words that one sees,
        >= 1; share of the filters' values that is dropped, in [0, 1).
    with_own: whether in training the documents of a rating hold the review that was written with it. This is the leak
        of the paper, to be measured: predictions never have it.
    batch_size: ratings a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "num_negatives", "reduction", "precision")

    factors: int = 8
    width: int = 50
    length: int = 300
    vocabulary: int = 20_000
    embedding_dim: int = 64
    filters: int = 100
    window: int = 3
    dropout: float = 0.5
    with_own: bool = False
    batch_size: int = 100
    lr: float = 0.001
    num_negatives: int = 1
    epochs: int = 30
    patience: int = 5

    def __post_init__(self) -> None:
        self._check_types()
        sizes = ("factors", "width", "length", "vocabulary", "embedding_dim", "filters", "window", "batch_size")
        for name in sizes:
            at_least(self, name, 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"DeepCoNNConfig: dropout must lie in [0, 1), got {self.dropout}")
        self._check_shared()


@dataclass(frozen=True)
class DeepCoNNSizes(Schema):
    """What the model is built for.

    Attributes:
        words: ids of words with the padding; 0: documents are ids of items and users.
    """

    words: int = 0


class DeepCoNN(Recommender):
    """r_ui = mu + w_0 + w . z + sum over a < b of z_a z_b v_a . v_b, z = [cnn(document of u); cnn'(document of i)].

    Buffers: `user_texts` and `item_texts`, what the documents become; `own_pairs`, user * num_items + item of the
    training ratings, ascending, and `own_ratings`, what is predicted for them without their reviews.
    """

    name = "deepconn"
    config_class: ClassVar[type[TrainConfig]] = DeepCoNNConfig
    config: DeepCoNNConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, RATES, RETRIEVES, SIMILAR_ITEMS})
    trains_on_whole_rows: ClassVar[bool] = True
    sizes_class: ClassVar[type[Any]] = DeepCoNNSizes

    def schema_for(self, data: Interactions) -> DeepCoNNSizes:
        """Sizes.

        Raises:
            ValueError: no ratings.
        """
        if data.ratings is None:
            raise ValueError(
                f"deepconn: the data must have ratings, got {data.name} without; pass rating= when reading"
            )
        words = self.config.vocabulary + 1 if isinstance(data, Reviews) else 0
        return DeepCoNNSizes(data.num_users, data.num_items, words=words)

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is that of data without texts."""
        if type(sizes) is Schema:
            sizes = DeepCoNNSizes(sizes.num_users, sizes.num_items)
        return super().build(sizes, generator)

    def _build(self, schema: DeepCoNNSizes, generator: torch.Generator | None) -> None:
        config = self.config

        def network(words: int) -> TextCNN:
            return TextCNN(
                words,
                config.width,
                embedding_dim=config.embedding_dim,
                windows=(config.window,),
                filters=config.filters,
                hidden=0,
                dropout=config.dropout,
                generator=generator,
            )

        self.user_cnn = network(schema.words or schema.num_items + 1)
        self.item_cnn = network(schema.words or schema.num_users + 1)
        std = config.width**-0.5
        self.fm_bias = nn.Parameter(torch.zeros(()))
        self.fm_linear = nn.Parameter(torch.empty(2 * config.width).normal_(0.0, std, generator=generator))
        vectors = torch.empty(2 * config.width, config.factors).normal_(0.0, 0.1, generator=generator)
        self.fm_vectors = nn.Parameter(vectors)
        self.interaction = FMInteraction()
        self.register_buffer("user_texts", torch.zeros(schema.num_users, config.width))
        self.register_buffer("item_texts", torch.zeros(schema.num_items, config.width))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("own_pairs", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("own_ratings", torch.zeros(0))
        self.user_texts: Tensor
        self.item_texts: Tensor
        self.mean: Tensor
        self.own_pairs: Tensor
        self.own_ratings: Tensor
        self._rows: ReviewBatches | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model; what is said of the training pairs follows from the rows.

        Raises:
            ValueError: with texts, of which later ones have other words.
        """
        words = weights.get("user_cnn.words.weight")
        if self.require_built().words or (words is not None and len(words) > len(self.user_cnn.words.weight)):
            raise ValueError("deepconn: fit_more: later reviews have other words; train anew on all rows")
        super().begin_from({**weights, **{name: getattr(self, name) for name in _OWN}}, data)

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> ReviewBatches:
        """Ratings with the documents of their users and items."""
        if train.ratings is None or not len(train):
            raise ValueError(
                f"deepconn: the training part must have ratings, got {train!r}; pass rating= when reading it"
            )
        keys = train.pair_keys()
        order = np.argsort(keys, kind="stable")
        repeated = np.flatnonzero(np.diff(keys[order]) == 0)
        if len(repeated):
            row = order[repeated[0]]
            pair = train.user_ids.values[int(train.users[row])], train.item_ids.values[int(train.items[row])]
            raise ValueError(
                f"deepconn: a user may rate an item once, got {len(repeated)} more in {train.name}, the first of user "
                f"{pair[0]!r} and item {pair[1]!r}; read the data with duplicates='latest'"
            )
        mean = float(train.ratings.mean(dtype=np.float64))
        self.mean.fill_(mean)
        of_users, of_items = self._documents(train)
        self._rows = ReviewBatches(
            train.users,
            train.items,
            train.ratings - np.float32(mean),
            of_users,
            of_items,
            with_own=self.config.with_own,
            batch_size=self.config.batch_size,
            seed=seed,
            device=self.device,
        )
        self.own_pairs = torch.from_numpy(keys[order]).to(self.device)
        self.own_ratings = torch.zeros(len(keys), device=self.device)
        self._own_order = order
        self._is_stale = self.earlier is None  # what was known before later rows stays until a step
        return self._rows

    def _documents(self, train: Interactions) -> tuple[ReviewDocuments, ReviewDocuments]:
        """Of users and of items."""
        if self.require_built().words:
            assert isinstance(train, Reviews)
            column = Text("review", tokens="words", max_size=self.config.vocabulary)
            texts = train.row_texts().fill_null("").to_frame()
            bags = EncodedTable.fit(FeatureSchema((column,), label=None), texts).rows.bags["review"]
            is_known = bags.ids > 0
            owners = np.repeat(np.arange(len(train)), np.diff(bags.offsets))[is_known]
            ends = np.bincount(owners, minlength=len(train)).cumsum()
            offsets: NDArray[np.int64] = np.concatenate([[0], ends]).astype(np.int64)
            by_user = by_item = bags.ids[is_known]
        else:
            offsets = np.arange(len(train) + 1)
            by_user, by_item = train.items + np.int32(1), train.users + np.int32(1)
        length = self.config.length
        return (
            ReviewDocuments(train.users, offsets, by_user, train.num_users, train.order, length),
            ReviewDocuments(train.items, offsets, by_item, train.num_items, train.order, length),
        )

    def loss(self, batch: ReviewBatch) -> Tensor:
        """Mean squared error, section 3.5."""
        self.require_built()
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        errors = self._machine(self.user_cnn(batch.user_words), self.item_cnn(batch.item_words)) - batch.ratings
        return errors.square().mean()

    def _machine(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [b] less their mean of what documents become, [b, W] each, eq. 6."""
        z = torch.cat([users, items], 1)
        pairs: Tensor = self.interaction(z.unsqueeze(2) * self.fm_vectors)
        return self.fm_bias + z @ self.fm_linear + pairs

    @torch.inference_mode(False)
    @torch.no_grad()
    def _refresh(self) -> None:
        """Read all documents anew, where they are at hand and a step was taken."""
        rows = self._rows
        if not self._is_stale or rows is None:
            return
        self._is_stale = False
        parts = (self.user_cnn, self.item_cnn)
        was_training = [part.training for part in parts]
        for part in parts:
            part.eval()
        for table, cnn, documents in (
            (self.user_texts, self.user_cnn, rows.of_users),
            (self.item_texts, self.item_cnn, rows.of_items),
        ):
            for owners in torch.arange(len(table)).split(self.config.batch_size):
                words = to_device(documents.batch(owners.numpy()), self.device)
                table[int(owners[0]) : int(owners[0]) + len(owners)] = cnn(words)
        for start in range(0, len(self._own_order), self.config.batch_size):
            chosen = self._own_order[start : start + self.config.batch_size]
            users = to_device(rows.of_users.batch(rows.users[chosen].astype(np.int64), chosen), self.device)
            items = to_device(rows.of_items.batch(rows.items[chosen].astype(np.int64), chosen), self.device)
            ratings = self._machine(self.user_cnn(users), self.item_cnn(items)) + self.mean
            self.own_ratings[start : start + len(chosen)] = ratings
        for part, before in zip(parts, was_training, strict=True):
            part.train(before)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; there are as many training pairs as the file has, and what follows from documents is computed
        anew where these are at hand."""
        for name in _OWN:
            if name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[name], device=self.device))
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._rows is not None
        return result

    # -- predictions -------------------------------------------------------------------------------------------------

    def _user_codes(self, texts: Tensor) -> Tensor:
        """[b, K + 1] of what documents of users become: with the items' codes their product is a rating's part."""
        linear, vectors = (part[: self.config.width] for part in (self.fm_linear, self.fm_vectors))
        own = texts @ linear + self.interaction(texts.unsqueeze(2) * vectors)
        return torch.cat([texts @ vectors, own.unsqueeze(1)], 1)

    def _item_codes(self) -> tuple[Tensor, Tensor]:
        """[num_items, K + 1], the last column 1, and levels [num_items]."""
        linear, vectors = (part[self.config.width :] for part in (self.fm_linear, self.fm_vectors))
        texts = self.item_texts
        levels = texts @ linear + self.interaction(texts.unsqueeze(2) * vectors) + self.fm_bias + self.mean
        return torch.cat([texts @ vectors, texts.new_ones(len(texts), 1)], 1), levels

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings of pairs of internal ids; shapes broadcast. Documents are whole; trained by `loss`, not by this."""
        self.require_built()
        self._refresh()
        codes, levels = self._item_codes()
        items = items.long()
        ratings: Tensor = (self._user_codes(self.user_texts)[users.long()] * codes[items]).sum(-1) + levels[items]
        return ratings

    @fork_safe
    @torch.no_grad()
    def predict_ratings(self, users: Tensor, items: Tensor) -> Tensor:
        """Ratings [n] of pairs of internal ids, each [n], in the units of the data.

        The review of a pair, where the pair was trained on, is left out of both documents.
        """
        schema = self.require_built()
        check_pairs("predict_ratings", users, items, schema)
        blocks = zip(users.split(_PAIRS_A_BLOCK), items.split(_PAIRS_A_BLOCK), strict=True)
        ratings = torch.cat([self.mean.new_empty(0), *(self(*block) for block in blocks)])
        if not len(self.own_pairs):
            return ratings
        keys = users.long() * schema.num_items + items.long()
        places = torch.searchsorted(self.own_pairs, keys).clamp(max=len(self.own_pairs) - 1)
        return torch.where(self.own_pairs[places] == keys, self.own_ratings[places], ratings)

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        return (self._user_codes(self.user_texts[users.long()]),)

    @torch.no_grad()
    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """The factorisation machine as a product: what two entries of one side add is that side's level."""
        return DotScorer(state[0], *self._item_codes())

    def item_vectors(self) -> Tensor:
        self.require_built()
        self._refresh()
        return self.item_texts
