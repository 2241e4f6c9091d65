"""Tag-cosine: items whose tags are most like those that the user gives, without learning.

Paper: Cantador, Bellogin, Vallet 2010, "Content-based Recommendation in Social Tagging Systems" (RecSys), profiles of
counts and of tf-idf; the baseline that tag-aware models have to clear.
Deviations: idf counts items, as of documents. A new user has the sum of the profiles of their items, each of length 1.
Data without tags is taken as if each item were its own tag: then an item that a user has not met has score 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.config import GRADIENT_OPTIONS, TrainConfig, one_of
from deeprec.contract import SIMILAR_ITEMS, Schema, check_rows
from deeprec.data import Interactions, Terms
from deeprec.data.columns.terms import WEIGHTINGS
from deeprec.device import to_device
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import add_rows
from deeprec.models._tags import TagRecommender, fitted_idf, num_tags, profiles, tags_of
from deeprec.models.history import pair_scores
from deeprec.nn.scoring import BlockScorer, owners_of, rows_of

_MOST_VECTOR_VALUES = 1 << 30  # 4 GiB of float32
_SIDES = ("user", "item")


@dataclass(frozen=True)
class TagCosineConfig(TrainConfig):
    """Attributes (options of gradient training are refused):
    weighting: of the counts in a profile, "tf-idf", "log", "binary" or "count"; "l2" is the same as "count" here.
    """

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS

    weighting: str = "tf-idf"
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "weighting", WEIGHTINGS)


class TagCosine(TagRecommender):
    """score(u, i) = cos(x_u, x_i), x the weighted counts of tags; 0 for a user or an item without tags.

    A state is offsets [b + 1] on the CPU, tags [nnz] and their weights [nnz].
    """

    name = "tag-cosine"
    config_class: ClassVar[type[TrainConfig]] = TagCosineConfig
    capabilities: ClassVar[frozenset[str]] = TagRecommender.capabilities | {SIMILAR_ITEMS}
    trains_by_gradient: ClassVar[bool] = False
    trains_on_whole_rows: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset()
    config: TagCosineConfig
    item_offsets: Tensor
    item_tags: Tensor
    item_weights: Tensor
    idf: Tensor

    def schema_for(self, data: Interactions) -> Schema:
        """Sizes, with the number of tags as that of features.

        Raises:
            ValueError: a folksonomy without a single tag.
        """
        return Schema(data.num_users, data.num_items, num_tags(self.name, data))

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        for side, count in zip(_SIDES, (schema.num_users, schema.num_items), strict=True):
            self.register_buffer(f"{side}_offsets", torch.zeros(count + 1, dtype=torch.int64))
            self.register_buffer(f"{side}_tags", torch.zeros(0, dtype=torch.int32))
            self.register_buffer(f"{side}_weights", torch.zeros(0))
        has_idf = self.config.weighting == "tf-idf"
        self.register_buffer("idf", torch.zeros((schema.num_features or schema.num_items) * has_idf))

    @property
    def _num_tags(self) -> int:
        schema: Schema = self.require_built()
        return schema.num_features or schema.num_items

    def fit_directly(self, train: Interactions) -> None:
        """The profiles of the training rows, each of length 1; idf by the items that have a row."""
        kind, device = self.config.weighting, self.device
        self.tag_ids = tags_of(train)
        if kind == "tf-idf":
            self.idf.copy_(torch.from_numpy(fitted_idf(train)))
        for side in ("user", "item"):
            terms = self._weighted(profiles(train, side))
            for name, values in (("offsets", terms.offsets), ("tags", terms.ids), ("weights", terms.weights)):
                setattr(self, f"{side}_{name}", torch.from_numpy(values.copy()).to(device))

    def _weighted(self, counts: Terms) -> Terms:
        """Of length 1."""
        kind = self.config.weighting
        return counts.weighted(kind, self.idf.cpu().numpy() if kind == "tf-idf" else None).weighted("l2")

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the lengths of the profiles are those of the file.

        Raises:
            ValueError: tags that are none, or offsets that do not ascend.
        """
        schema = self.require_built()
        for side, count in zip(_SIDES, (schema.num_users, schema.num_items), strict=True):
            names = [f"{side}_{name}" for name in ("offsets", "tags", "weights")]
            if not set(names) <= set(state_dict):
                continue
            offsets, tags = (state_dict[name].cpu().numpy() for name in names[:2])
            check_rows(offsets, tags, count, self._num_tags)
            for name in names[1:]:
                setattr(self, name, torch.empty_like(state_dict[name], device=self.device))
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        return pair_scores(self, users, items)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return self._entries("user", users)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        bounds, tags, weights = self._entries("item", items)
        return bounds[offsets], tags, weights

    def tag_rows(self, terms: Terms) -> tuple[Tensor, ...]:
        """Profiles of users with these counts of tags."""
        terms = self._weighted(terms)
        tags, weights = (to_device(torch.from_numpy(part), self.device) for part in (terms.ids, terms.weights))
        return torch.from_numpy(terms.offsets), tags, weights

    def _entries(self, side: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The profiles of these rows [b]: offsets [b + 1] on the CPU, tags and weights [nnz]."""
        offsets, tags, weights = (getattr(self, f"{side}_{name}") for name in ("offsets", "tags", "weights"))
        every = torch.arange(len(tags), dtype=torch.int32, device=tags.device)
        bounds, entries = rows_of((offsets, every), rows)
        return bounds, tags[entries], weights[entries]

    def scorer(self, state: tuple[Tensor, ...]) -> BlockScorer:
        offsets, tags, weights = state
        num_items = self.require_built().num_items

        def scores(start: int, end: int) -> Tensor:
            part = slice(int(offsets[start]), int(offsets[end]))
            owners = owners_of(offsets[start : end + 1], tags.device)
            users = self._dense(owners, end - start, tags[part], weights[part])
            by_item = sparse_linear(self.item_offsets, self.item_tags.long(), self.item_weights, users)
            return by_item.T.contiguous()

        return BlockScorer(len(offsets) - 1, num_items, tags.device, scores)

    def _dense(self, owners: Tensor, count: int, tags: Tensor, weights: Tensor) -> Tensor:
        """Profiles of length 1, a column each, [num_tags, count], of entries with the number of their column."""
        sums = weights.new_zeros(self._num_tags * count)
        add_rows(sums, tags.long() * count + owners, weights)
        return F.normalize(sums.view(self._num_tags, count), dim=0, eps=torch.finfo(sums.dtype).tiny)

    def item_vectors(self) -> Tensor:
        """[num_items, num_tags] profiles of length 1."""
        count = self.require_built().num_items
        if count * self._num_tags > _MOST_VECTOR_VALUES:
            raise ValueError(
                f"tag-cosine: item vectors of {count} x {self._num_tags} values would take "
                f"{count * self._num_tags * 4 / 2**30:.1f} GiB, the limit is {_MOST_VECTOR_VALUES * 4 / 2**30:.0f}; "
                "read item_offsets, item_tags and item_weights of the model"
            )
        every = torch.arange(count, device=self.device)
        owners = torch.repeat_interleave(every, self.item_offsets.diff(), output_size=len(self.item_tags))
        return self._dense(owners, count, self.item_tags, self.item_weights).T.contiguous()
