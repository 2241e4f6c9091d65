"""What the models of two towers share: pairs against candidates, and vectors of all users and items after training.

A tower makes a vector of what is known of a user or an item, as sparse terms and numbers (`Terms`); the score is the
dot product or the cosine of two vectors. Known users and items have theirs in a table that is computed after training,
and saved; users who come later get one from their history or their columns, items from their columns.

A model over other columns says what `user_terms`, `item_terms` and `new_user_terms` are; one with other towers says
`_build_towers`, `embed_users`, `embed_items` and `_readers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.batches.contents import ItemContents
from deeprec.batches.towers import TowerBatch, TowerBatches
from deeprec.batches.user_rows import UserRows, rows_of_histories
from deeprec.data import Interactions, Terms
from deeprec.data.columns.rows import join
from deeprec.device import to_device
from deeprec.kernels.softmax_loss import softmax_loss
from deeprec.kernels.softmax_loss.reference import unit
from deeprec.kernels.sums import take
from deeprec.models._item_encoders import load_pretrained
from deeprec.models._tower_items import add_items
from deeprec.models._tower_terms import TowerSizes, TowerTerms
from deeprec.nn.scoring import DotScorer, topk
from deeprec.nn.tower import TermBatch, TermRows, Tower

if TYPE_CHECKING:
    from typing_extensions import Self

_ROWS_A_BLOCK = 4096


class TowerModel(TowerTerms):
    """score(u, i) = s(f(x_u), g(x_i)), trained by the softmax of gamma s over candidates."""

    name = "towers"
    hard_items: Tensor
    _user_rows: UserRows | None = None
    _item_rows: TermRows | None = None
    _contents: ItemContents | None = None
    _known: tuple[Tensor, Tensor] | None = None
    _is_stale = False

    # -- what a subclass may say otherwise -----------------------------------------------------------------------------

    def embed_users(self, batch: TermBatch) -> Tensor:
        """Vectors [b, D] of rows of users' terms, the history's last."""
        vectors: Tensor = self.user_tower(typed(batch, self.user_tower))
        return vectors

    def embed_items(self, items: Tensor) -> Tensor:
        """Vectors [n, D] of items (internal ids on the CPU) while the terms of the training data are at hand."""
        return self.embed_new_items(self.rows_of_items(items))

    def rows_of_items(self, items: Tensor) -> TermBatch:
        """Terms and numbers of items (internal ids on the CPU) while those of the training data are at hand."""
        assert self._item_rows is not None
        batch = self._item_rows.batch(items)
        if self.item_encoders is None:
            return batch
        assert self._contents is not None
        return self.item_encoders.with_vectors(batch, self._contents, items)

    def embed_new_items(self, batch: TermBatch) -> Tensor:
        """Vectors [b, D] of rows of `new_item_terms`."""
        vectors: Tensor = self.item_tower(typed(batch, self.item_tower))
        return vectors

    def _readers(self, users_met: Tensor, items_met: Tensor) -> list[tuple[Tower, TermRows, Tensor]]:
        """Each tower with the rows of terms that it reads, and which of these are in a training row, [rows] bool."""
        assert self._user_rows is not None
        assert self._item_rows is not None
        return [(self.user_tower, self._user_rows.whole, users_met), (self.item_tower, self._item_rows, items_met)]

    # -- training ------------------------------------------------------------------------------------------------------

    def _build(self, schema: TowerSizes, generator: torch.Generator | None) -> None:
        super()._build(schema, generator)
        pool = min(self.config.hard_pool, schema.num_items) if self.config.hard_negatives else 0
        self.register_buffer("hard_items", torch.full((schema.num_users, pool), -1, dtype=torch.int32))
        self._user_rows = self._item_rows = self._known = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_vectors)  # type: ignore[no-untyped-call]

    def batches(self, train: Interactions, seed: int) -> TowerBatches:
        """Pairs and candidates; the terms of all users and items go to where the model is."""
        config = self.config
        self.require_built()
        self._fit_idf(train)
        self._user_rows = UserRows(
            self.user_terms(train),
            train.csr() if self.reads_items else None,
            self._num_trained,
            pooling=config.pooling,
            length=config.history_length,
            seed=seed,
            device=self.device,
        )
        self._item_rows = TermRows(self.item_terms(train), self.device)
        self._prepare_encoders(train)
        self._is_stale = True
        self._zero_unmet(train)
        batches = TowerBatches(
            train,
            batch_size=config.batch_size,
            negatives=config.negatives,
            num_negatives=config.num_negatives,
            alpha=config.alpha,
            has_log_q=config.log_q != "none",
            seed=seed,
            num_hard=config.hard_negatives,
            mine=self._mine,
        )
        self._known = None
        if config.mask_known or config.hard_negatives:
            self._known = to_device(batches.seen_offsets, self.device), to_device(batches.seen, self.device)
        return batches

    def forget_training(self) -> None:
        """Let go of the training rows: from now on vectors stay as they are."""
        self._refresh()
        self._user_rows = self._item_rows = self._contents = self._known = self._fitted_on = None

    def _prepare_encoders(self, train: Interactions) -> None:
        """What they read, and the weights of saved ones; a run that goes on puts its own in their place."""
        if self.item_encoders is None:
            return
        table = self._tables.items
        assert table is not None
        names = self.item_encoders.names
        self._contents = ItemContents(table.encoder, table.rows, names, train.item_ids.values.to_list())
        load_pretrained(self.item_encoders, self.config.encoders)

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

    @torch.no_grad()
    def _mine(self, epoch: int, has_begun: bool) -> Tensor | None:
        """The best items of each user that they have not met, [num_users, M] on the CPU; none before the second epoch.

        They are a buffer, so that a run that is resumed within an epoch goes on with those of its beginning.
        """
        if not epoch:
            return None
        if not has_begun:
            users, items = self._vectors()
            for start in range(0, len(users), _ROWS_A_BLOCK):
                rows = torch.arange(start, min(start + _ROWS_A_BLOCK, len(users)), device=self.device)
                best = topk(DotScorer(users[rows], items), self.hard_items.shape[1], seen=self._known, seen_rows=rows)
                self.hard_items[start : start + len(rows)] = best.ids.to(torch.int32)
        return self.hard_items.cpu()

    def loss(self, batch: TowerBatch) -> Tensor:
        """Mean over the pairs of -log softmax of the positive among the candidates."""
        config = self.config
        self.require_built()
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        assert self._user_rows is not None
        users = self.embed_users(self._user_rows.without(batch.epoch, batch.users, batch.items))
        candidates = torch.arange(len(self.vectors_of_items)) if batch.candidates is None else batch.candidates
        items = self.embed_items(candidates)
        if batch.negatives is not None:
            return self._loss_of_rows(users, items, batch)
        there: dict[str, Any] = {} if batch.candidates is None else {"item_ids": to_device(candidates, self.device)}
        if config.mask_known and self._known is not None:
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
            users, items = unit(users), unit(items)
        places = torch.cat([batch.targets.unsqueeze(1), batch.negatives], 1)
        chosen = take(items, 0, to_device(places.reshape(-1), self.device)).view(*places.shape, -1)
        scores = self.config.gamma * (chosen @ users.unsqueeze(2)).squeeze(2)
        is_same = F.pad(places[:, 1:] == places[:, :1], (1, 0))  # the positive in place of a hard negative
        scores = scores.masked_fill(to_device(is_same, self.device), -torch.inf)
        against = scores if self.config.include_positive else scores[:, 1:]
        return (against.logsumexp(1) - scores[:, 0]).mean()

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model; the terms of a history lie after those of the users, who have become more.

        Raises:
            ValueError: columns are an input: encoders of other rows know other values.
        """
        if self.features_taken():
            raise ValueError(
                f"{self.name}: fit_more: towers over columns do not go on with other encoders; train anew on all "
                "rows, or serve what is new by recommend_for_features and add_items"
            )
        moved, sizes = dict(weights), self.require_built()
        if "user_tower.terms" in weights and self.reads_items:
            old, items = weights["user_tower.terms"], len(weights["vectors_of_items"])
            static, terms = len(old) - items, self.user_tower.terms.detach().clone()
            terms[:static] = old[:static]
            terms[sizes.user_terms : sizes.user_terms + items] = old[static:]
            moved["user_tower.terms"] = terms
        super().begin_from(moved, data)

    # -- vectors -------------------------------------------------------------------------------------------------------

    def _scored(self, vectors: Tensor) -> Tensor:
        """Vectors as they are scored."""
        return unit(vectors) if self.config.similarity == "cosine" else vectors

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
            vectors = self._scored(self.embed_users(self._user_rows.whole.batch(users)))
            self.vectors_of_users[int(users[0]) : int(users[-1]) + 1] = vectors
        for items in torch.arange(count).split(_ROWS_A_BLOCK):
            self.vectors_of_items[int(items[0]) : int(items[-1]) + 1] = self._scored(self.embed_items(items))
        self.train(was_training)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the vectors come with it, and are computed anew where the training rows are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._user_rows is not None
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        result: Self = super()._apply(fn, recurse)
        if self._user_rows is not None and self._user_rows.device != self.device:
            assert self._item_rows is not None
            self._user_rows.move(self.device)
            self._item_rows.move(self.device)
            if self._known is not None:
                self._known = to_device(self._known[0], self.device), to_device(self._known[1], self.device)
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
        return (self._of_histories(self.new_user_terms(len(offsets) - 1), offsets, items),)

    def _of_histories(self, static: Terms, offsets: Tensor, items: Tensor) -> Tensor:
        """Vectors of users of these terms who met items[offsets[j]:offsets[j + 1]]."""
        batch = rows_of_histories(static, offsets, items, self._num_trained, self.config.pooling, self.device)
        return self._scored(self.embed_users(batch))

    @torch.no_grad()
    def feature_rows(self, frame: Any, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Users who came later, by the columns of a frame [b] and what they met, as in `history_rows`.

        Raises:
            ValueError: the user's tower reads no columns, or no histories and one is given.
        """
        if self.user_encoder is None:
            raise ValueError(
                f"{self.name}: users are served from their columns where user_inputs has 'features', got "
                f"{self.config.user_inputs}; train with them, or pass a history to recommend_for_history"
            )
        if len(items) and not self.reads_items:
            raise ValueError(
                f"{self.name}: histories need 'history' in user_inputs, got {self.config.user_inputs}; leave them out"
            )
        parts = list(self.user_encoder.stream(frame)) if len(frame) else [self.user_encoder.unknown(0)]
        rows = join(parts)
        return (self._of_histories(self.new_user_terms(len(frame), rows), offsets, items),)

    def add_items(self, items: Any) -> Self:
        """Items that came after the training, with vectors from their columns: they are recommended from now on.

        Args:
            items: frame with item_id, none of them known, and the columns of the item table.
        Returns:
            the model; `save` keeps them.
        Raises:
            ValueError: the item's tower reads no columns, a column that is missing, an id that is known or comes twice.
        """
        add_items(self, items)
        return self

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        return (rows[0] * self._vectors()[1][items.long()]).sum(-1)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """Dot products; of vectors of length 1 they are cosines."""
        return DotScorer(state[0], self._vectors()[1])

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._vectors()[1]


def typed(batch: TermBatch, tower: Tower) -> TermBatch:
    """The batch in the dtype of a tower."""
    dtype = tower.terms.dtype
    return batch._replace(weights=batch.weights.to(dtype), values=batch.values.to(dtype))


def refresh_vectors(module: Any, *_: Any) -> None:
    """State-dict hook; a function with a name, so that models can be pickled."""
    module._refresh()
