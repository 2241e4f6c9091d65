"""Multi-View DNN: one tower for users, one for the items of each domain, so that one domain helps the others.

Paper: Elkahky, Song, He 2015, "A Multi-View Deep Learning Approach for Cross Domain User Modeling in Recommendation
Systems" (WWW).
The view of a user is what they met in all domains (and their columns); that of an item its number or its columns. A
step trains the user's tower and the item's tower of one domain, the domains by turns (algorithm 1).
Deviations: the objective is -log of the ratio, as the DSSM update that the paper takes over; equation 6 as printed has
no logarithm. By default the score is a dot product without layers between, and negatives are shared by the rows of a
step: on sparse domains this ranks better than cosines of tanh layers. Those of DSSM are `similarity="cosine"`,
`gamma=10`, `layers=(300, 300)`, `factors=128`, `last_activation="tanh"`, `negatives="row"`, `num_negatives=4`. A
positive is no part of the history that its row shows, and in some rows nothing of its domain is (`hide_own`): without
that the towers would learn nothing of users who are new to a domain. With dot products each domain adds a vector of its
own to the user's (`domain_bias`): without it what is popular must lie in the same direction in all domains.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.towers import APART
from deeprec.batches.user_rows import POWERS
from deeprec.batches.views import ViewBatch, ViewBatches, averages
from deeprec.contract import DOMAINS
from deeprec.data import Interactions, Terms
from deeprec.data.columns.reduction import Reduction, signs_of
from deeprec.data.interactions.domains import DOMAIN, ItemDomains, domains_of
from deeprec.device import to_device
from deeprec.kernels.softmax_loss import softmax_loss
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import take
from deeprec.models._tower_model import TowerModel
from deeprec.models._tower_terms import TowerSizes
from deeprec.models._view_config import ONE_DOMAIN, MultiViewConfig, ViewSizes
from deeprec.nn.tower import TermBatch, TermRows, Tower
from deeprec.serve.recommend import item_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


class MultiView(TowerModel):
    """score(u, i) = s(f(x_u) + b_a, g_a(x_i)) with a tower g_a and a vector b_a for each domain a, and one f for all.

    Parameters: beside the towers `domain_biases`, the b_a, [factors] each, none with cosines. With them the vectors
    that are kept and served have a column more: 1 of users, and b_a . g_a(x_i) of items.

    Buffers: `item_domains` [num_items], the place of each item's domain; `history_places`, what becomes of each item
    of a history, -1 for nothing.
    """

    name = "multi-view"
    config_class: ClassVar[type[MultiViewConfig]] = MultiViewConfig
    capabilities: ClassVar[frozenset[str]] = TowerModel.capabilities | {DOMAINS}
    sizes_class: ClassVar[type[Any]] = ViewSizes
    config: MultiViewConfig
    schema: ViewSizes | None
    item_domains: Tensor
    history_places: Tensor
    projections: Tensor

    # -- parameters ----------------------------------------------------------------------------------------------------

    def schema_for(self, data: Interactions) -> ViewSizes:
        """Sizes, with the domains of the items.

        Raises:
            ValueError: an option names a domain that is none; what the columns of `TowerModel` raise.
        """
        of_items = _domains(data)
        for name in (*self.config.user_domains, *self.config.item_domains):
            of_items.place("multi-view", name)
        return ViewSizes(**super().schema_for(data).as_dict(), domains=of_items.names)

    def _build(self, schema: TowerSizes, generator: torch.Generator | None) -> None:
        super()._build(schema, generator)
        if self.has_domain_bias:
            width = self.config.factors + 1
            self.vectors_of_users = torch.zeros(schema.num_users, width)
            self.vectors_of_items = torch.zeros(schema.num_items, width)
        count = schema.num_items - schema.added_items
        self.register_buffer("item_domains", torch.zeros(schema.num_items, dtype=torch.int64))
        self.register_buffer("history_places", torch.arange(count) if self.reads_items else torch.zeros(0).long())
        if self.config.history_reduction == "lsh":
            signs = torch.from_numpy(signs_of(count, self.config.history_width))
            self.register_buffer("projections", signs, persistent=False)
        self._codes: Tensor | None = None
        self._hidden: tuple[int, Tensor] | None = None
        self._new_codes: Tensor | None = None
        self._averages: dict[int, TermRows] = {}

    def _build_towers(self, sizes: TowerSizes, generator: torch.Generator | None) -> None:
        assert isinstance(sizes, ViewSizes)
        size, values = self._user_size(sizes), sizes.user_values
        if self.reads_items and self.config.history_reduction != "none":
            is_lsh, width = self.config.history_reduction == "lsh", self.config.history_width
            size, values = sizes.user_terms + width * (not is_lsh), values + width * is_lsh
        self.user_tower = self._tower(size, values, generator)
        self.item_towers = nn.ModuleList(
            self._tower(sizes.item_terms, sizes.item_values, generator) for _ in sizes.domains
        )
        width = self.config.factors
        count = len(sizes.domains) * self.has_domain_bias
        self.domain_biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(count))

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As `TowerModel`.

        Raises:
            ValueError: other domains, or a history that was reduced, by what other rows are like.
        """
        if self.config.history_reduction in ("top-k", "k-means"):
            raise ValueError(
                f"{self.name}: fit_more: a history reduced by {self.config.history_reduction} was fitted on the "
                "earlier rows; train anew on all rows"
            )
        known, codes = weights["item_domains"].cpu().numpy(), _domains(data).codes
        towers = {key.split(".")[1] for key in weights if key.startswith("item_towers.")}
        if len(towers) != len(self.item_towers) or (codes[: len(known)] != known).any():
            raise ValueError(
                f"{self.name}: fit_more: the items known before must be of the domains that they were of, and there "
                f"can be no new domain, got {self.require_built().domains}; train anew on all rows"
            )
        super().begin_from(weights, data)

    # -- vectors -------------------------------------------------------------------------------------------------------

    @property
    def has_domain_bias(self) -> bool:
        """Whether each domain adds a vector to the user's."""
        return self.config.domain_bias and self.config.similarity == "dot"

    def embed_users(self, batch: TermBatch) -> Tensor:
        """f(x_u) + b_a in a step of the domain a; otherwise f(x_u) and a 1, see `_of_domain`."""
        vectors: Tensor = self.user_tower(self._shown(batch) if self.reads_items else batch)
        if not self.has_domain_bias:
            return vectors
        if self._hidden is None:
            return F.pad(vectors, (0, 1), value=1.0)
        bias: Tensor = self.domain_biases[self._hidden[0]]
        return vectors + bias

    def _of_domain(self, view: int, batch: TermBatch) -> Tensor:
        """g_a(x_i); outside of a step beside b_a . g_a(x_i), so that one vector of a user serves all domains."""
        vectors: Tensor = self.item_towers[view](batch)
        if not self.has_domain_bias or self._hidden is not None:
            return vectors
        return torch.cat([vectors, (vectors @ self.domain_biases[view]).unsqueeze(1)], 1)

    @torch.no_grad()
    def _shown(self, batch: TermBatch) -> TermBatch:
        """The rows with what their histories show, reduced; weights are those of what is shown."""
        static, met = self.require_built().user_terms, batch.ids - self.require_built().user_terms
        is_met, items = met >= 0, met.clamp(min=0)
        places = self.history_places[items]
        is_shown = is_met & (places >= 0) & (batch.weights != 0)
        every = torch.arange(len(batch.values), device=items.device)
        owners = torch.repeat_interleave(every, batch.offsets.diff(), output_size=len(items))
        if self._hidden is not None:
            view, rows = self._hidden
            is_shown &= ~(rows[owners] & (self.item_domains[items] == view))
        counts = F.pad(is_shown.long().cumsum(0), (1, 0))[batch.offsets].diff()
        pooled = counts.clip(1).to(batch.weights.dtype) ** POWERS[self.config.pooling]
        weights = torch.where(is_shown, pooled[owners], 0.0)
        if self.config.history_reduction == "lsh":
            bits = (sparse_linear(batch.offsets, items, weights, self.projections) >= 0) & (counts > 0).unsqueeze(1)
            batch = batch._replace(values=torch.cat([batch.values, bits.to(batch.values.dtype)], 1))
            places, weights = torch.zeros_like(places), torch.zeros_like(weights)
            static = 0
        return batch._replace(
            ids=torch.where(is_met, places.clamp(min=0) + static, batch.ids),
            weights=torch.where(is_met, weights, batch.weights),
        )

    def embed_items(self, items: Tensor) -> Tensor:
        assert self._item_rows is not None
        assert self._codes is not None
        codes = self._codes[items]
        domains = codes.unique().tolist()
        if len(domains) == 1:  # every step
            return self._of_domain(domains[0], self.rows_of_items(items))
        rows = [torch.nonzero(codes == domain).flatten() for domain in domains]
        parts = [self._of_domain(at, self.rows_of_items(items[own])) for at, own in zip(domains, rows, strict=True)]
        order = torch.cat([items[:0], *rows]).argsort()
        return take(torch.cat([self.vectors_of_items[:0], *parts]), 0, to_device(order, self.device))

    def embed_new_items(self, batch: TermBatch) -> Tensor:
        assert self._new_codes is not None
        vectors = torch.stack([self._of_domain(view, batch) for view in range(len(self.item_towers))], 1)
        codes = to_device(self._new_codes, self.device)
        return vectors[torch.arange(len(codes), device=self.device), codes]

    def item_vectors(self) -> Tensor:
        """[num_items, factors]: what items are alike by, without the part that is the same for all users."""
        return super().item_vectors()[:, : self.config.factors]

    def _readers(self, users_met: Tensor, items_met: Tensor) -> list[tuple[Tower, TermRows, Tensor]]:
        assert self._user_rows is not None
        assert self._item_rows is not None
        assert self._codes is not None
        readers: list[tuple[Any, TermRows, Tensor]] = []
        if not self.reads_items or self.config.history_reduction == "none":
            readers.append((self.user_tower, self._user_rows.whole, users_met))
        for view, tower in enumerate(self.item_towers):
            is_trained = view in self._views()
            readers.append((tower, self._item_rows, items_met & (self._codes == view) & is_trained))
        return readers

    # -- training ------------------------------------------------------------------------------------------------------

    def _views(self) -> tuple[int, ...]:
        """Places of the domains whose pairs are trained on."""
        names = self.require_built().domains
        return tuple(at for at, name in enumerate(names) if name in (self.config.item_domains or names))

    def batches(self, train: Interactions, seed: int) -> ViewBatches:  # type: ignore[override]
        """Pairs of each domain and candidates of the same, the domains by turns.

        Raises:
            ValueError: a domain without a training row; domains that are not those that the model was built for.
        """
        config, names = self.config, self.require_built().domains
        of_items = _domains(train)
        if of_items.names != names:
            raise ValueError(f"{self.name}: the domains must be {names}, got {of_items.names}; call fit(data)")
        counts = np.bincount(of_items.codes[train.items], minlength=len(names))
        empty = [names[view] for view in self._views() if not counts[view]]
        if empty:
            raise ValueError(
                f"{self.name}: every domain must have a training row, got none of {empty[0]!r}; leave its items out, "
                "or name the others in item_domains"
            )
        self._codes = torch.from_numpy(of_items.codes.astype(np.int64))
        self.item_domains.copy_(self._codes)
        is_shown = np.isin(of_items.codes, [names.index(name) for name in config.user_domains or names])
        if self.reads_items:
            self.history_places.copy_(torch.from_numpy(self._fit_histories(train, is_shown)))
        super().batches(train, seed)
        if config.averaged:
            terms, codes = self.item_terms(train), of_items.codes
            self._averages = {
                view: TermRows(averages(train, terms, codes == view), self.device) for view in self._views()
            }
        return ViewBatches(
            train,
            of_items.codes,
            self._views(),
            averaged=config.averaged,
            hide_own=1.0 if config.averaged else config.hide_own,
            elsewhere=self._elsewhere(train, of_items.codes, is_shown) | config.averaged,
            batch_size=config.batch_size,
            negatives=config.negatives,
            num_negatives=config.num_negatives,
            alpha=config.alpha,
            has_log_q=config.log_q != "none",
            seed=seed,
        )

    def _fit_histories(self, train: Interactions, is_shown: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The place of each item of a history, -1 for one that is not shown."""
        kind, width = self.config.history_reduction, self.config.history_width
        if kind in ("none", "lsh"):
            return np.where(is_shown, np.arange(len(is_shown)), -1)
        met = train.take(is_shown[train.items])
        places = Reduction.fit(Terms.of_interactions(met), kind, width).places
        assert places is not None
        return places

    def _elsewhere(
        self, train: Interactions, codes: NDArray[np.integer], is_shown: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Whether each user met something that is shown outside of each view, [num_users, views]."""
        rows = train.take(is_shown[train.items])
        of = codes[rows.items]
        every = [np.bincount(rows.users[of != view], minlength=train.num_users) > 0 for view in self._views()]
        return np.stack(every, axis=1)

    def loss(self, batch: ViewBatch) -> Tensor:  # type: ignore[override]
        """Mean over the pairs of -log softmax of the positive among items of its domain."""
        self._hidden = batch.view, to_device(batch.hidden, self.device)
        try:
            return self._loss_of_averages(batch) if self.config.averaged else super().loss(batch)
        finally:
            self._hidden = None

    def _loss_of_averages(self, batch: ViewBatch) -> Tensor:
        """The positive of each row is the mean of what its user met in the domain."""
        assert self._user_rows is not None
        assert batch.candidates is not None
        assert batch.log_q is not None
        config, count = self.config, len(batch)
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        users = self.embed_users(self._user_rows.without(batch.epoch, batch.users, batch.items))
        means = self.item_towers[batch.view](self._averages[batch.view].batch(batch.users))
        known: dict[str, Any] = {}
        if self._known is not None:
            known = {"seen_indptr": self._known[0], "seen_indices": self._known[1]}
            known["seen_rows"] = to_device(batch.users, self.device)
        apart = torch.full((count,), APART)
        ids = torch.cat([len(self._codes) + torch.arange(count), batch.candidates])  # type: ignore[arg-type]
        loss: Tensor = softmax_loss(
            users,
            torch.cat([means, self.embed_items(batch.candidates)]),
            log_q=to_device(torch.cat([apart, batch.log_q]), self.device),
            item_ids=to_device(ids, self.device),
            similarity=config.similarity,
            gamma=config.gamma,
            include_positive=config.include_positive,
            **known,
        )
        return loss

    # -- serving -------------------------------------------------------------------------------------------------------

    def add_items(self, items: Any) -> Self:
        """As `TowerModel`; a column `domain` of the frame says of which each item is.

        Raises:
            ValueError: no such column where there are several domains, or a domain that is none; what it raises there.
        """
        names = ItemDomains(self.require_built().domains, np.empty(0, np.int32))
        given = [names.names[0]] * len(items)
        if len(names.names) > 1:
            if DOMAIN not in items.columns:
                raise ValueError(f"add_items: items must have a column {DOMAIN!r}, got {', '.join(items.columns)}")
            given = list(items[DOMAIN])
        codes = torch.tensor([names.place("add_items", name) for name in given], dtype=torch.int64)
        self._new_codes = codes
        try:
            super().add_items(items)
        finally:
            self._new_codes = None
        self.item_domains = torch.cat([self.item_domains, to_device(codes, self.device)])
        return self

    def _allowed(self, function: str, domain: str | None, allow: Any) -> Any:
        """The items that may come: those of a domain that was trained on, or of all of these, and in `allow`."""
        names, views = self.require_built().domains, self._views()
        if self.item_ids is None or (domain is None and len(views) == len(names)):
            return allow
        codes = self.item_domains.cpu().numpy()
        if domain is not None:
            view = ItemDomains(names, codes).place(function, domain)
            if view not in views:
                raise ValueError(
                    f"{function}: domain must be one that was trained on, of {self.config.item_domains}, got {domain!r}"
                )
            views = (view,)
        inside = np.isin(codes, views)
        if allow is not None:
            is_allowed = np.zeros(len(codes), dtype=np.bool_)
            is_allowed[item_filter(function, "allow", allow, self.item_ids)] = True
            inside &= is_allowed
        return self.item_ids.values.gather(np.flatnonzero(inside))

    def recommend(
        self, user_ids: Any, k: int = 10, *, domain: str | None = None, allow: Any = None, **options: Any
    ) -> pl.DataFrame:
        """As every model; with `domain` the items of one domain alone, whatever the users met elsewhere."""
        return super().recommend(user_ids, k, allow=self._allowed("recommend", domain, allow), **options)

    def recommend_file(self, output: str | Path, k: int = 10, *, domain: str | None = None, **options: Any) -> int:
        """As every model; with `domain` the items of one domain alone."""
        options["allow"] = self._allowed("recommend_file", domain, options.get("allow"))
        return super().recommend_file(output, k, **options)

    def recommend_for_history(
        self, item_ids: Any, k: int = 10, *, domain: str | None = None, allow: Any = None, **options: Any
    ) -> pl.DataFrame:
        """As every model; with `domain` the items of one domain alone, the history being of any."""
        allowed = self._allowed("recommend_for_history", domain, allow)
        return super().recommend_for_history(item_ids, k, allow=allowed, **options)

    def recommend_for_features(
        self, users: Any, k: int = 10, *, domain: str | None = None, allow: Any = None, **options: Any
    ) -> pl.DataFrame:
        """As every model; with `domain` the items of one domain alone."""
        allowed = self._allowed("recommend_for_features", domain, allow)
        return super().recommend_for_features(users, k, allow=allowed, **options)


def _domains(data: Interactions) -> ItemDomains:
    """The domain of each item; one for data that names none."""
    table = data.item_features
    if table is None or DOMAIN not in table.columns:
        return ItemDomains(ONE_DOMAIN, np.zeros(data.num_items, dtype=np.int32))
    return domains_of(data)
