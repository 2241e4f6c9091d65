"""ACF: matrix factorisation where a user is also what they met, each item of it as much as attention says.

Paper: Chen, Zhang, He, Nie, Liu, Chua 2017, "Attentive Collaborative Filtering: Multimedia Recommendation with Item-
and Component-Level Attention" (SIGIR), eq. 3 to 9. `pooling="average"` is SVD++ for implicit feedback; with `features`
each named column of vectors of the item table is a component of the item, such as its picture and its sound.
Deviations: the positive of a training triple is no part of its own neighbourhood, where attention would learn to find
it; the paper does not speak of it. L2 pulls weights towards zero: the update as printed pushes them away. It acts on
what a triple touches, on the neighbours by their mean. Components of several widths are brought to one by a linear map
each, after division by the root of their mean square. The constants c_1 and c_2 cancel in the softmax and are left
out. AdaGrad in place of SGD. For users unknown in training the mean of all user vectors stands for their own; content
shapes attention alone, so that items without training rows rank by their initial vectors: leave them out with `deny`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.neighbours import NeighbourBatch, NeighbourBatches
from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema, Seen, merged
from deeprec.data import Interactions
from deeprec.data.interactions.features import feature_matrix
from deeprec.device import to_device
from deeprec.kernels.sums import sum_rows, take
from deeprec.models._autoencoder import refresh_codes
from deeprec.models.base import Recommender
from deeprec.nn.embedding import Embedding, catch_up
from deeprec.nn.neighbour_attention import ComponentAttention, NeighbourAttention
from deeprec.nn.scoring import DotScorer, owners_of

if TYPE_CHECKING:
    from typing_extensions import Self

_ENTRIES_A_BLOCK = 1 << 16
_CONTENTS = ("attention", "average")


@dataclass(frozen=True)
class ACFConfig(TrainConfig):
    """Attributes:
    factors: D, width of the vectors of users and items, >= 1.
    attention_factor: A, hidden width of the attention, >= 1.
    pooling: of the items of a user: "attention", or "average".
    features: columns of the item table, of numbers or lists of numbers, that are the components of an item; () for
        attention without content.
    content: how the components of an item become one: by "attention", or their "average".
    component_width: to which each component is brought, >= 1.
    init_std: standard deviation of the initial vectors, > 0.
    l2: each triple adds l2 / 2 times the squares of its vectors to its loss, >= 0.
    batch_size: positives a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("attention_factor", "features"), "pooling='attention'", lambda c: c.pooling == "attention"),
        Only(("content", "component_width"), "features", lambda c: bool(c.features)),
    )

    factors: int = 64
    attention_factor: int = 64
    pooling: str = "attention"
    features: tuple[str, ...] = ()
    content: str = "attention"
    component_width: int = 64
    init_std: float = 0.1
    l2: float = 0.01
    epochs: int = 40
    lr: float = 0.05
    optimizer: str = "adagrad"
    batch_size: int = 256
    num_negatives: int = 1
    patience: int = 5

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("factors", "attention_factor", "component_width", "batch_size"):
            at_least(self, name, 1)
        one_of(self, "pooling", ("attention", "average"))
        one_of(self, "content", _CONTENTS)
        if not self.init_std > 0:
            raise ValueError(f"ACFConfig: init_std must be > 0, got {self.init_std}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"ACFConfig: features must name each column once, got {self.features}")
        self._check_shared()


@dataclass(frozen=True)
class ACFSizes(Schema):
    """What the model is built for.

    Attributes:
        widths: of the components of an item.
    """

    widths: tuple[int, ...] = ()


class ACF(Recommender):
    """score(u, j) = (u + sum over l in R(u) of alpha(u, l) p_l) . v_j."""

    name = "acf"
    config_class: ClassVar[type[TrainConfig]] = ACFConfig
    config: ACFConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    trains_on_whole_rows: ClassVar[bool] = True
    sizes_class: ClassVar[type[Any]] = ACFSizes

    # -- the data ----------------------------------------------------------------------------------------------------

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where `features` names columns."""
        return ("item_features",) if self.config.features else ()

    def schema_for(self, data: Interactions) -> ACFSizes:
        """Sizes, with the widths of the components.

        Raises:
            ValueError: a column that is not there or not known for every item.
        """
        widths = tuple(part.shape[1] for part in self._components_of(data))
        return ACFSizes(data.num_users, data.num_items, sum(widths), widths)

    def _components_of(self, data: Interactions) -> list[np.ndarray]:
        """[num_items, d_m] for each component."""
        return [feature_matrix(data.item_features, (name,), data.item_ids) for name in self.config.features]

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is that of a model without content."""
        if type(sizes) is Schema:
            sizes = ACFSizes(sizes.num_users, sizes.num_items)
        return super().build(sizes, generator)

    def _build(self, schema: ACFSizes, generator: torch.Generator | None) -> None:
        config, widths = self.config, schema.widths
        if len(widths) != len(config.features):
            raise ValueError(
                f"acf: schema must have a width for each of {config.features}, got {widths}; call fit(data)"
            )
        self.users = Embedding(schema.num_users, config.factors, name="user")
        self.items = Embedding(schema.num_items, config.factors, name="item")
        self.neighbours = Embedding(schema.num_items, config.factors, name="item")  # p
        with torch.no_grad():
            for table in (self.users, self.items, self.neighbours):
                table.weight.normal_(0.0, config.init_std, generator=generator)
        if config.pooling == "attention":
            width = 2 * config.factors + (config.component_width if widths else 0)
            self.attention = NeighbourAttention(config.factors, width, config.attention_factor, generator=generator)
        if widths:
            self.maps = nn.ModuleList(nn.Linear(width, config.component_width, bias=False) for width in widths)
            for each in self.maps:
                assert isinstance(each, nn.Linear)
                nn.init.xavier_uniform_(each.weight, generator=generator)
            if config.content == "attention":
                self.component_attention = ComponentAttention(
                    config.factors, config.component_width, config.attention_factor, generator=generator
                )
        self.register_buffer("components", torch.zeros(schema.num_items, sum(widths)))
        self.register_buffer("scales", torch.ones(len(widths)))
        # u with what the user met: all that scores need of the training rows.
        self.register_buffer("codes", torch.zeros(schema.num_users, config.factors))
        self.components: Tensor
        self.scales: Tensor
        self.codes: Tensor
        self._rows: NeighbourBatches | None = None
        self._is_stale = False
        self.register_state_dict_pre_hook(refresh_codes)  # type: ignore[no-untyped-call]

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> NeighbourBatches:
        """Each training row with the other items of its user."""
        config, avoid = self.config, None
        if self.earlier is not None:
            avoid = merged(Seen(*train.csr()), self.earlier, train.num_users, train.num_items)
        if config.features:
            parts = self._components_of(train)
            if self.earlier is None:  # later rows go on with the scales that the maps were trained for
                scales = [max(float(np.sqrt(np.square(part, dtype=np.float64).mean())), 1e-12) for part in parts]
                self.scales.copy_(torch.tensor(scales))
            self.components.copy_(torch.from_numpy(np.concatenate(parts, 1)))
        self._rows = NeighbourBatches(
            train,
            batch_size=config.batch_size,
            num_negatives=config.num_negatives,
            seed=seed,
            avoid=avoid,
            device=self.device,
        )
        self._is_stale = True
        return self._rows

    def loss(self, batch: NeighbourBatch) -> Tensor:
        """-ln sigmoid(score of the positive - score of a negative), with L2 of the vectors."""
        self.require_built()
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        users, items = self.users(batch.users), self.items(batch.items)
        neighbours = self.neighbours(batch.neighbours)
        codes = users + self._pooled(users, batch.neighbours, neighbours, batch.owners, batch.counts)
        scores = torch.bmm(items, codes.unsqueeze(2)).squeeze(2)
        losses = -F.logsigmoid(scores[:, :1] - scores[:, 1:])
        loss = losses.sum()
        if self.config.l2:
            shares = neighbours.square().sum(1) / batch.counts.to(neighbours.dtype)[batch.owners]
            squares = losses.shape[1] * (users.square().sum() + items[:, 0].square().sum() + shares.sum())
            loss = loss + self.config.l2 / 2 * (squares + items[:, 1:].square().sum())
        return loss / losses.numel() if self.config.reduction == "mean" else loss

    def _pooled(self, users: Tensor, items: Tensor, neighbours: Tensor, owners: Tensor, counts: Tensor) -> Tensor:
        """sum of alpha(u, l) p_l, [b, D].

        Args:
            users: [b, D]; items: [nnz] whom the rows met; neighbours: [nnz, D], p of these.
            owners: [nnz] row of each; counts: [b] entries of each row.
        """
        if self.config.pooling == "average":
            return sum_rows(neighbours, owners, len(users)) / counts.clamp(min=1).unsqueeze(1).to(neighbours.dtype)
        known = [self.items(items), neighbours]
        if self.config.features:
            known.append(self._content(take(users, 0, owners), items))
        attended: Tensor = self.attention(users, torch.cat(known, 1), owners, neighbours)
        return attended

    def _content(self, users: Tensor, items: Tensor) -> Tensor:
        """[nnz, C] what is known of items, as users [nnz, D] look at them."""
        parts = self.components[items].split(list(self.require_built().widths), 1)
        brought = [each(part / scale) for each, part, scale in zip(self.maps, parts, self.scales, strict=True)]
        components = torch.stack(brought, 1)
        return self.component_attention(users, components) if self.config.content == "attention" else components.mean(1)

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _codes(self, users: Tensor, offsets: Tensor, items: Tensor) -> Tensor:
        """u + sum of alpha p, [b, D]: users [b, D] with items[offsets[j]:offsets[j + 1]], offsets on the CPU."""
        codes, bounds = [], offsets.tolist()
        start = 0
        while start < len(users):
            stop = start + 1
            while stop < len(users) and bounds[stop + 1] - bounds[start] <= _ENTRIES_A_BLOCK:
                stop += 1
            part, met = users[start:stop], items[bounds[start] : bounds[stop]]
            here = offsets[start : stop + 1] - bounds[start]
            owners, counts = owners_of(here, items.device), to_device(here.diff(), items.device)
            codes.append(part + self._pooled(part, met, self.neighbours(met), owners, counts))
            start = stop
        return torch.cat(codes) if codes else users

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._is_stale and self._rows is not None:
            self._is_stale = False
            for table in (self.users.weight, self.items.weight, self.neighbours.weight):
                catch_up(table, torch.arange(len(table), device=table.device))
            self.codes.copy_(self._codes(self.users.weight, self._rows.offsets.cpu(), self._rows.met.long()))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the codes come with it, and are computed anew where the training rows are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._rows is not None
        return result

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model; the components of known items must be what they were.

        Raises:
            ValueError: those of a known item are others now.
        """
        known = weights.get("components")
        if self.config.features and known is not None:
            now = torch.from_numpy(np.concatenate(self._components_of(data), 1))[: len(known)]
            if not torch.equal(now, known.cpu()):
                raise ValueError("acf: fit_more: features of known items must be as they were, got others; train anew")
        super().begin_from(weights, data)

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast. Trained by `loss`, not by this."""
        self.require_built()
        self._refresh()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        scores: Tensor = (self.codes[users] * self.items.weight[items]).sum(-1)
        return scores

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        return (self.codes[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Users without a vector of their own: the mean of all looks at what they met."""
        mean = self.users.weight.detach().mean(0).expand(len(offsets) - 1, -1)
        return (self._codes(mean, offsets, items),)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self.items.weight.detach())

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.items.weight.detach()
