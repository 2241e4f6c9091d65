"""What the models of two towers share: pairs against candidates, and vectors of all users and items after training.

A tower makes a vector of what is known of a user or an item, as sparse terms and numbers (`Terms`); the score is the
dot product or the cosine of two vectors. Known users and items have theirs in a table that is computed after training,
and saved; users who come later get one from their history or their columns, items from their columns.

A model over other columns says what `user_terms`, `item_terms` and `unknown_user_terms` are; one with other towers says
`_build_towers`, `embed_users` and `embed_items`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.batches.towers import TowerBatch, TowerBatches
from deeprec.contract import SIMILAR_ITEMS, Schema
from deeprec.data import DataSchema, Interactions, Terms
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Encoded
from deeprec.data.columns.terms import joined
from deeprec.data.interactions.encoded import EncodedTables, encode_tables
from deeprec.device import to_device
from deeprec.evaluate.tasks import InteractionTask
from deeprec.kernels.softmax_loss import softmax_loss
from deeprec.kernels.sums import take
from deeprec.models._tower_config import TowerConfig
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer, owners_of
from deeprec.nn.tower import TermBatch, TermRows, Tower

if TYPE_CHECKING:
    from typing_extensions import Self

_ROWS_A_BLOCK = 4096
_HISTORIES = 11  # a stream of the run's seed


@dataclass(frozen=True)
class TowerSizes(Schema):
    """What the towers are built for.

    Attributes:
        user_terms, user_values: columns of a user's terms, but for the history, and numbers.
        item_terms, item_values: the same of an item.
        added_items: items that came after the training: the last ones of num_items, which no history holds.
    """

    user_terms: int = 0
    user_values: int = 0
    item_terms: int = 0
    item_values: int = 0
    added_items: int = 0


class TowerModel(Recommender):
    """score(u, i) = s(f(x_u), g(x_i)), trained by the softmax of gamma s over candidates.

    Buffers: `vectors_of_users` [num_users, D] and `vectors_of_items` [num_items, D], with cosines of length 1;
    `user_idf` and `item_idf`, factors of the terms of columns.

    Attributes:
        user_encoder, item_encoder: of the columns; None where a tower reads none.
    """

    name = "towers"
    config_class: ClassVar[type[TowerConfig]] = TowerConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS}
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"user_features", "item_features", "schema"}
    sizes_class: ClassVar[type[Any]] = TowerSizes
    keeps: ClassVar[tuple[str, ...]] = (*Recommender.keeps, "user_encoder", "item_encoder")
    trains_on_whole_rows: ClassVar[bool] = True
    config: TowerConfig
    schema: TowerSizes | None
    user_tower: Tower
    item_tower: Tower
    vectors_of_users: Tensor
    vectors_of_items: Tensor
    user_idf: Tensor
    item_idf: Tensor

    def __init__(self, schema: Schema | None = None, *args: Any, **options: Any) -> None:
        super().__init__(None, *args, **options)
        self._columns: DataSchema | None = None
        self._tables = EncodedTables(None, None)
        self.user_encoder: Encoder | None = None
        self.item_encoder: Encoder | None = None
        if schema is not None:
            self.build(schema, options.get("generator"))

    # -- what a subclass may say otherwise -----------------------------------------------------------------------------

    def user_terms(self, data: Interactions) -> Terms:
        """A row of terms for each user, but for the history; `data` holds the training rows, or, for sizes, all."""
        return self._terms_of("user", data)

    def item_terms(self, data: Interactions) -> Terms:
        """A row of terms for each item."""
        return self._terms_of("item", data)

    def unknown_user_terms(self, count: int) -> Terms:
        """Rows of terms of users of whom nothing is known but a history."""
        sizes = self.require_built()
        of_ids = Terms.of_entries([], [], None, count, sizes.num_users if "id" in self.config.user_inputs else 0)
        if self.user_encoder is None:
            return of_ids
        return joined(of_ids, self._weighted("user", self.user_encoder, self.user_encoder.unknown(count)))

    def _build_towers(self, sizes: TowerSizes, generator: torch.Generator | None) -> None:
        self.user_tower = self._tower(self._user_size(sizes), sizes.user_values, generator)
        self.item_tower = self._tower(sizes.item_terms, sizes.item_values, generator)

    def embed_users(self, batch: TermBatch) -> Tensor:
        """Vectors [b, D] of rows of users' terms, the history's last."""
        vectors: Tensor = self.user_tower(batch)
        return vectors

    def embed_items(self, items: Tensor) -> Tensor:
        """Vectors [n, D] of items (internal ids on the CPU) while the terms of the training data are at hand."""
        assert self._item_rows is not None
        vectors: Tensor = self.item_tower(self._item_rows.batch(items))
        return vectors

    def _readers(self, users_met: Tensor, items_met: Tensor) -> list[tuple[Tower, TermRows, Tensor]]:
        """Each tower with the rows of terms that it reads, and which of these are in a training row, [rows] bool."""
        assert self._user_rows is not None
        assert self._item_rows is not None
        return [(self.user_tower, self._user_rows, users_met), (self.item_tower, self._item_rows, items_met)]

    # -- sizes and terms -----------------------------------------------------------------------------------------------

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking the interactions of `data`.

        Args:
            schema: what the columns of its tables of users and items mean, a `DataSchema`.
        """
        if schema is not None:
            if not isinstance(schema, DataSchema):
                raise TypeError(
                    f"{self.name}: schema must be a DataSchema, with the columns of users and items, got "
                    f"{type(schema).__name__}; pass DataSchema(users=..., items=...)"
                )
            self._columns = schema
        return super().task_for(data, protocol)

    def features_taken(self) -> tuple[str, ...]:
        """The tables whose columns are read."""
        sides = (("user", self.config.user_inputs), ("item", self.config.item_inputs))
        return tuple(f"{side}_features" for side, inputs in sides if "features" in inputs)

    def schema_for(self, data: Interactions) -> TowerSizes:
        """Sizes, with encoders fitted on the columns of all users and items.

        Raises:
            ValueError: columns that are to be read without a table or a schema of theirs.
        """
        self._encode_tables(data)
        users, items = self.user_terms(data), self.item_terms(data)
        return TowerSizes(
            data.num_users,
            data.num_items,
            user_terms=users.size,
            user_values=users.num_values,
            item_terms=items.size,
            item_values=items.num_values,
        )

    def _encode_tables(self, data: Interactions) -> None:
        """The columns that the towers read, and their encoders."""
        parts = [name.partition("_")[0] + "s" for name in self.features_taken()]
        for part in parts:
            if getattr(self._columns, part, None) is None:
                raise ValueError(
                    f"{self.name}: columns of {part} are an input, so a schema must say what they mean, got none; pass "
                    f"schema=DataSchema({part}=FeatureSchema(...)) to fit, or drop 'features' from the inputs"
                )
        taken = {part: getattr(self._columns, part) for part in parts}
        self._tables = encode_tables(data, DataSchema(**taken)) if taken else EncodedTables(None, None)
        self.user_encoder, self.item_encoder = (None if each is None else each.encoder for each in self._tables)

    def _terms_of(self, side: str, data: Interactions) -> Terms:
        is_user = side == "user"
        inputs = self.config.user_inputs if is_user else self.config.item_inputs
        count = data.num_users if is_user else data.num_items
        parts = [Terms.of_ids(count)] if "id" in inputs else []
        if "features" in inputs:
            table = self._tables[0 if is_user else 1]
            if table is None or len(table) != count:
                raise ValueError(f"{self.name}: the table of {side}s must be that of the data; call fit(data)")
            parts.append(self._weighted(side, table.encoder, table.rows))
        return joined(*parts) if parts else Terms.of_entries([], [], None, count, 0)

    def _weighted(self, side: str, encoder: Encoder, rows: Encoded) -> Terms:
        """Terms of encoded rows, by the idf of training where there is one."""
        idf = getattr(self, f"{side}_idf", None) if self.config.weighting == "tf-idf" else None
        factors = None if idf is None or not len(idf) else idf.cpu().numpy()
        return Terms.of_rows(encoder, rows, None, self.config.weighting, factors)

    def _fit_idf(self, train: Interactions) -> None:
        """Factors of terms by the users and items with a training row."""
        if self.config.weighting != "tf-idf":
            return
        for side, table, met in zip(("user", "item"), self._tables, (train.users, train.items), strict=True):
            if table is not None:
                is_counted = np.bincount(met, minlength=len(table)) > 0
                factors = Terms.of_table(table).idf(is_counted)
                getattr(self, f"{side}_idf").copy_(torch.from_numpy(factors))

    # -- parameters ----------------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the towers; a plain `Schema` is that of towers over ids and histories alone."""
        if type(sizes) is Schema:
            if self.features_taken():
                raise ValueError(f"{self.name}: schema must be TowerSizes where columns are an input; call fit(data)")
            counts = {"user": sizes.num_users, "item": sizes.num_items}
            inputs = {"user": self.config.user_inputs, "item": self.config.item_inputs}
            terms = {f"{side}_terms": counts[side] * ("id" in inputs[side]) for side in counts}
            sizes = TowerSizes(sizes.num_users, sizes.num_items, **terms)
        return super().build(sizes, generator)

    def _build(self, schema: TowerSizes, generator: torch.Generator | None) -> None:
        width = self.config.factors
        self._build_towers(schema, generator)
        self.register_buffer("vectors_of_users", torch.zeros(schema.num_users, width))
        self.register_buffer("vectors_of_items", torch.zeros(schema.num_items, width))
        is_weighted = self.config.weighting == "tf-idf"
        for side, terms, ids in (
            ("user", schema.user_terms, schema.num_users * ("id" in self.config.user_inputs)),
            ("item", schema.item_terms, schema.num_items * ("id" in self.config.item_inputs)),
        ):
            self.register_buffer(f"{side}_idf", torch.zeros(terms - ids if is_weighted and terms > ids else 0))
        self._user_terms: Terms | None = None
        self._user_rows: TermRows | None = None
        self._item_rows: TermRows | None = None
        self._known: tuple[Tensor, Tensor] | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_vectors)  # type: ignore[no-untyped-call]

    def _tower(self, size: int, values: int, generator: torch.Generator | None) -> Tower:
        """A tower by the config."""
        config = self.config
        fan_in = config.fan_in or None
        activations = (config.activation, config.last_activation)
        return Tower(size, values, config.widths, *activations, fan_in=fan_in, generator=generator)

    @property
    def reads_items(self) -> bool:
        """Whether the history is an input of the user's tower."""
        return "history" in self.config.user_inputs

    def _user_size(self, sizes: TowerSizes) -> int:
        """Terms of a user with those of the history."""
        return sizes.user_terms + (sizes.num_items - sizes.added_items) * self.reads_items

    # -- training ------------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> TowerBatches:
        """Pairs and candidates; the terms of all users and items go to where the model is."""
        config = self.config
        self.require_built()
        self._fit_idf(train)
        self._user_terms, items = self.user_terms(train), self.item_terms(train)
        self._history = train.csr() if self.reads_items else None
        self._user_rows, self._item_rows = self._full_users(), TermRows(items, self.device)
        self._epoch_rows: tuple[int, TermRows] | None = None
        self._seed, self._is_stale = seed, True
        self._zero_unmet(train)
        batches = TowerBatches(
            train,
            batch_size=config.batch_size,
            negatives=config.negatives,
            num_negatives=config.num_negatives,
            alpha=config.alpha,
            has_log_q=config.log_q != "none",
            seed=seed,
        )
        self._known = None
        if config.mask_known:
            self._known = to_device(batches.seen_offsets, self.device), to_device(batches.seen, self.device)
        return batches

    @torch.no_grad()
    def _zero_unmet(self, train: Interactions) -> None:
        """Weights of terms that no training row has: they never learn, and zeros say so."""
        users_met, items_met = train.user_counts() > 0, train.item_counts() > 0
        used: dict[Tower, Tensor] = {}
        for tower, rows, met in self._readers(torch.from_numpy(users_met), torch.from_numpy(items_met)):
            is_used = used.setdefault(tower, torch.zeros(tower.size, dtype=torch.bool))
            is_used[rows.batch(torch.nonzero(met).flatten()).ids.cpu()] = True
        for tower, is_used in used.items():
            tower.terms.mul_(to_device(is_used.to(tower.terms.dtype).unsqueeze(1), self.device))

    def _full_users(self) -> TermRows:
        """Terms of users with their whole histories."""
        assert self._user_terms is not None
        if self._history is None:
            return TermRows(self._user_terms, self.device)
        offsets, items = self._history
        lengths = np.diff(offsets)
        weights = np.repeat(self._pooled(lengths), lengths).astype(np.float32)
        return TermRows(joined(self._user_terms, self._history_terms(offsets, items, weights)), self.device)

    def _history_terms(self, offsets: Any, items: Any, weights: Any) -> Terms:
        sizes = self.require_built()
        values = np.empty((len(offsets) - 1, 0), np.float32)
        return Terms(offsets, items, weights, values, sizes.num_items - sizes.added_items)

    def _pooled(self, lengths: Any) -> Any:
        """The weight of each of so many items: an array, a tensor or a number."""
        at_least_one = lengths.clip(1)
        power = {"mean": -1.0, "sqrt": -0.5, "sum": 0.0}[self.config.pooling]
        return at_least_one.astype(np.float64) ** power if isinstance(lengths, np.ndarray) else at_least_one**power

    def _rows_of_epoch(self, epoch: int) -> TermRows:
        """Terms of users with what is drawn of their histories for an epoch; weights are those of the whole ones."""
        assert self._user_rows is not None
        length = self.config.history_length
        if self._history is None or not length:
            return self._user_rows
        if self._epoch_rows is None or self._epoch_rows[0] != epoch:
            offsets, items = self._history
            draw = np.random.default_rng((self._seed, _HISTORIES, epoch)).random(len(items))
            owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            order = np.lexsort((draw, owners))
            rank = np.arange(len(items)) - offsets[:-1][owners]
            kept = np.sort(order[rank < length])
            bounds = np.concatenate([[0], np.cumsum(np.minimum(np.diff(offsets), length))])
            drawn = self._history_terms(bounds, items[kept], np.ones(len(kept), np.float32))
            assert self._user_terms is not None
            self._epoch_rows = epoch, TermRows(joined(self._user_terms, drawn), self.device)
        return self._epoch_rows[1]

    def _without(self, rows: TermRows, users: Tensor, items: Tensor) -> TermBatch:
        """The rows of users (on the CPU) as if they had not met the items [b], weights as of a history without it."""
        batch = rows.batch(users)
        if self._history is None:
            return batch
        assert self._user_terms is not None
        device, sizes = batch.ids.device, self.require_built()
        counts = torch.from_numpy(np.diff(self._history[0]))[users]
        static = torch.from_numpy(np.diff(self._user_terms.offsets))[users]
        shown = rows.lengths[users] - static
        owners = owners_of(torch.cat([shown.new_zeros(1), rows.lengths[users].cumsum(0)]), device)
        is_history = batch.ids >= sizes.user_terms
        is_hidden = batch.ids == to_device(items, device)[owners] + sizes.user_terms
        before = F.pad(is_hidden.long().cumsum(0), (1, 0))[batch.offsets]
        others, shown = (to_device(each, device).float() for each in (counts - 1, shown))
        kept = shown - before.diff()
        weights = self._pooled(others) * others / kept.clip(1)
        of_history = torch.where(is_hidden, 0.0, weights.to(batch.weights.dtype)[owners])
        return batch._replace(weights=torch.where(is_history, of_history, batch.weights))

    def loss(self, batch: TowerBatch) -> Tensor:
        """Mean over the pairs of -log softmax of the positive among the candidates."""
        config = self.config
        self.require_built()
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        users = self.embed_users(self._without(self._rows_of_epoch(batch.epoch), batch.users, batch.items))
        candidates = torch.arange(len(self.vectors_of_items)) if batch.candidates is None else batch.candidates
        items = self.embed_items(candidates)
        if batch.negatives is not None:
            return self._loss_of_rows(users, items, batch)
        there: dict[str, Any] = {} if batch.candidates is None else {"item_ids": to_device(candidates, self.device)}
        if self._known is not None:
            there |= {"seen_indptr": self._known[0], "seen_indices": self._known[1]}
            there["seen_rows"] = to_device(batch.users, self.device)
        loss: Tensor = softmax_loss(
            users,
            items,
            to_device(batch.targets, self.device),
            log_q=None if batch.log_q is None else to_device(batch.log_q, self.device),
            similarity=config.similarity,
            gamma=config.gamma,
            include_positive=config.include_positive,
            correct_positive=config.log_q == "all" and batch.log_q is not None,
            **there,
        )
        return loss

    def _loss_of_rows(self, users: Tensor, items: Tensor, batch: TowerBatch) -> Tensor:
        """Each row by its own few negatives."""
        assert batch.negatives is not None
        if self.config.similarity == "cosine":
            users, items = self._unit(users), self._unit(items)
        places = torch.cat([batch.targets.unsqueeze(1), batch.negatives], 1)
        chosen = take(items, 0, to_device(places.reshape(-1), self.device)).view(*places.shape, -1)
        scores = self.config.gamma * (chosen @ users.unsqueeze(2)).squeeze(2)
        against = scores if self.config.include_positive else scores[:, 1:]
        return (against.logsumexp(1) - scores[:, 0]).mean()

    # -- vectors -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _unit(vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)

    def _scored(self, vectors: Tensor) -> Tensor:
        """Vectors as they are scored."""
        return self._unit(vectors) if self.config.similarity == "cosine" else vectors

    @torch.no_grad()
    def _refresh(self) -> None:
        """Vectors of all users and items by the present weights, where the training rows are at hand."""
        if not self._is_stale or self._user_rows is None:
            return
        self._is_stale = False
        self._finish_rows()
        was_training = self.training
        self.eval()
        count = self.require_built().num_items
        for users in torch.arange(len(self.vectors_of_users)).split(_ROWS_A_BLOCK):
            vectors = self._scored(self.embed_users(self._user_rows.batch(users)))
            self.vectors_of_users[int(users[0]) : int(users[-1]) + 1] = vectors
        for items in torch.arange(count).split(_ROWS_A_BLOCK):
            self.vectors_of_items[int(items[0]) : int(items[-1]) + 1] = self._scored(self.embed_items(items))
        self.train(was_training)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the vectors come with it, and are computed anew where the training rows are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._user_rows is not None
        return result

    @torch.inference_mode(False)
    def _vectors(self) -> tuple[Tensor, Tensor]:
        """Of users and items, up to date."""
        self._refresh()
        return self.vectors_of_users, self.vectors_of_items

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        p, q = self._vectors()
        return (p[users.long()] * q[items.long()]).sum(-1)

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self._vectors()[0][users.long()],)

    @torch.no_grad()
    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """By the user's tower, where histories are an input; fitted otherwise."""
        if not self.reads_items:
            return super().history_rows(offsets, items)
        return (self._of_histories(self.unknown_user_terms(len(offsets) - 1), offsets, items),)

    def _of_histories(self, static: Terms, offsets: Tensor, items: Tensor) -> Tensor:
        """Vectors of users of these terms who met items[offsets[j]:offsets[j + 1]]."""
        sizes, device = self.require_built(), self.device
        own, counts = torch.from_numpy(np.diff(static.offsets)), offsets.diff()
        bounds = torch.cat([offsets.new_zeros(1), (own + counts).cumsum(0)])
        places = torch.cat(
            [
                torch.repeat_interleave(bounds[:-1] - torch.from_numpy(static.offsets[:-1]), own)
                + torch.arange(int(own.sum())),
                torch.repeat_interleave(bounds[:-1] + own - offsets[:-1], counts) + torch.arange(int(counts.sum())),
            ]
        )
        order = to_device(places.argsort(), device)
        owners = owners_of(offsets, device)
        weights = self._pooled(to_device(counts, device).float())[owners]
        is_trained = items < sizes.num_items - sizes.added_items
        ids = torch.where(is_trained, items + sizes.user_terms, sizes.user_terms)
        terms = [to_device(torch.from_numpy(each), device) for each in (static.ids.astype(np.int64), static.weights)]
        batch = TermBatch(
            to_device(bounds, device),
            torch.cat([terms[0], ids])[order],
            torch.cat([terms[1], torch.where(is_trained, weights, 0.0)])[order],
            to_device(torch.from_numpy(static.values), device),
        )
        return self._scored(self.embed_users(batch))

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        return (rows[0] * self._vectors()[1][items.long()]).sum(-1)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """Dot products; of vectors of length 1 they are cosines."""
        return DotScorer(state[0], self._vectors()[1])

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._vectors()[1]


def refresh_vectors(module: Any, *_: Any) -> None:
    """State-dict hook; a function with a name, so that models can be pickled."""
    module._refresh()
