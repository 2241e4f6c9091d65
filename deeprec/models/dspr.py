"""DSPR: tag profiles of users and items through one network, and the softmax of gamma times the cosine.

Paper: Xu, Chen, Lukasiewicz, Miao, Meng 2016, "Tag-Aware Personalized Recommendation Using a Deep-Semantic Similarity
Model with Negative Sampling" (CIKM), sections 3 and 4.
As printed: weighting="count", gamma=1, include_positive=False, mask_known=False, positives="assignments",
optimizer="sgd", negatives="sampled", num_negatives=127, batch_size=128, log_q="none"; negatives="full" is the loss
without sampling.
Deviations: the denominator holds the positive, gamma sharpens the softmax of cosines, which is nearly flat without it,
counts are weighted, Adam learns, and initial weights are uniform (Glorot, Bengio 2010), where the paper has a normal
distribution of unnamed width. The items drawn for a step serve all its rows, the positives of the other rows are
negatives too, corrected for how often they come, and an item that a user is known to have met is none of theirs. A
vector of zeros, as of a profile without tags before the first step, has cosine 0 with all. A new user has the sum of
the vectors of their items. Data without tags is taken as if each item were its own tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deeprec.batches.towers import TowerBatches
from deeprec.config import one_of
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import Folksonomy, Interactions, Terms
from deeprec.data.interactions.tags import Side
from deeprec.device import to_device
from deeprec.evaluate.tasks import InteractionTask
from deeprec.kernels.sums import add_rows
from deeprec.models._tag_items import add_tagged_items
from deeprec.models._tags import TagRecommender, fitted_idf, num_tags, profiles, tags_of
from deeprec.models._tower_config import TowerConfig
from deeprec.models._tower_model import TowerModel
from deeprec.models._tower_terms import TowerSizes
from deeprec.nn.scoring import owners_of
from deeprec.nn.tower import TermBatch, TermRows, Tower

if TYPE_CHECKING:
    from typing_extensions import Self

POSITIVES = ("pairs", "assignments")


@dataclass(frozen=True)
class DSPRConfig(TowerConfig):
    """Attributes:
    weighting: of the counts in a profile, "log", "l2", "count", "binary" or "tf-idf" (by the items of training).
    positives: "pairs", each user and item that met once; "assignments", once for each tag.
    layers: widths of the layers before the vector, each >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = (*TowerConfig.unused, "user_inputs", "item_inputs", "encoders")

    user_inputs: tuple[str, ...] = ("features",)
    item_inputs: tuple[str, ...] = ("features",)
    weighting: str = "log"
    positives: str = "pairs"
    layers: tuple[int, ...] = (3000, 300)
    factors: int = 128
    last_activation: str = "tanh"
    fan_in: int = 30
    similarity: str = "cosine"
    gamma: float = 10.0
    negatives: str = "mixed"
    num_negatives: int = 512
    log_q: str = "negatives"
    epochs: int = 20
    batch_size: int = 512
    lr: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "positives", POSITIVES)


class DSPR(TagRecommender, TowerModel):
    """softmax of gamma cos(f(x_u), f(x_i)) over candidates i, x the weighted counts of tags, equations 1 to 5."""

    name = "dspr"
    config_class: ClassVar[type[TowerConfig]] = DSPRConfig
    capabilities: ClassVar[frozenset[str]] = TagRecommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    takes: ClassVar[frozenset[str]] = TagRecommender.takes
    config: DSPRConfig
    tower: Tower
    _assignments: Interactions | None = None  # while terms are made

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking the interactions of `data`."""
        return InteractionTask.of(data, protocol)

    def features_taken(self) -> tuple[str, ...]:
        """None: tags come with the rows."""
        return ()

    # -- sizes and terms -----------------------------------------------------------------------------------------------

    def schema_for(self, data: Interactions) -> TowerSizes:
        """Sizes with the number of tags.

        Raises:
            ValueError: a folksonomy without a single tag.
        """
        count = num_tags(self.name, data)
        return TowerSizes(data.num_users, data.num_items, user_terms=count, item_terms=count)

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the tower; a plain `Schema` is that of data without tags."""
        if type(sizes) is Schema:
            terms = sizes.num_features or sizes.num_items
            sizes = TowerSizes(sizes.num_users, sizes.num_items, user_terms=terms, item_terms=terms)
        return super().build(sizes, generator)

    def _build_towers(self, sizes: TowerSizes, generator: torch.Generator | None) -> None:
        self.tower = self._tower(sizes.item_terms, 0, generator)

    def user_terms(self, data: Interactions) -> Terms:
        """Weighted counts of the tags that each user gave."""
        return self._weighted_profiles(data, "user")

    def item_terms(self, data: Interactions) -> Terms:
        """Weighted counts of the tags that each item was given."""
        return self._weighted_profiles(data, "item")

    def _weighted_profiles(self, data: Interactions, side: Side) -> Terms:
        return self._weighted_counts(profiles(data if self._assignments is None else self._assignments, side))

    def _weighted_counts(self, counts: Terms) -> Terms:
        kind = self.config.weighting
        return counts.weighted(kind, self.item_idf.cpu().numpy() if kind == "tf-idf" else None)

    def _fit_idf(self, train: Interactions) -> None:
        if self.config.weighting == "tf-idf":
            factors = fitted_idf(train if self._assignments is None else self._assignments)
            for buffer in (self.user_idf, self.item_idf):
                buffer.copy_(torch.from_numpy(factors))

    # -- training ------------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> TowerBatches:
        """Pairs or assignments, and candidates; profiles are those of the training rows."""
        self.tag_ids, self._assignments = tags_of(train), train
        is_once = self.config.positives == "pairs" and isinstance(train, Folksonomy)
        try:
            return super().batches(train.pairs() if is_once and isinstance(train, Folksonomy) else train, seed)
        finally:
            self._assignments = None

    def begin_from(self, weights: Mapping[str, Tensor], data: Interactions) -> None:
        """As every model; the weights of a tag go to its place among the tags of the data.

        Raises:
            ValueError: tags that the model does not know by name, or a model of tags and data without.
        """
        tags = tags_of(data)
        if (tags is None) != (self.tag_ids is None):
            raise ValueError(
                f"dspr: fit_more: the data must {'have no' if tags is not None else 'have'} tags, as the model's did"
            )
        if tags is None or self.tag_ids is None:
            super().begin_from(weights, data)
            return
        places = torch.from_numpy(tags.encode(self.tag_ids.values, unknown=-1)).long()
        if (places < 0).any():
            lost = self.tag_ids.values[int((places < 0).int().argmax())]
            raise ValueError(
                f"dspr: fit_more: the data must hold all tags of the model, got no {lost!r}; pass old rows with the new"
            )
        moved = dict(weights)
        for name in ("tower.terms", "user_idf", "item_idf"):
            target = self.state_dict()[name]
            if len(target):
                moved[name] = target.clone()
                moved[name][to_device(places, target.device)] = weights[name].to(target.device)
        super().begin_from(moved, data)

    def add_items(self, items: Any) -> Self:
        """Items that came after the training, with vectors from their tags: they are recommended from now on.

        Args:
            items: frame with item_id, none of them known, and tag, a row each time that an item was given a tag.
        Returns:
            the model; `save` keeps them.
        Raises:
            ValueError: a model of data without tags, a column that is missing, a known item, an unknown tag.
        """
        add_tagged_items(self, items)
        return self

    # -- vectors -------------------------------------------------------------------------------------------------------

    def embed_users(self, batch: TermBatch) -> Tensor:
        vectors: Tensor = self.tower(batch)
        return vectors

    def embed_items(self, items: Tensor) -> Tensor:
        assert self._item_rows is not None
        vectors: Tensor = self.tower(self._item_rows.batch(items))
        return vectors

    def _readers(self, users_met: Tensor, items_met: Tensor) -> list[tuple[Tower, TermRows, Tensor]]:
        assert self._user_rows is not None
        assert self._item_rows is not None
        return [(self.tower, self._user_rows.whole, users_met), (self.tower, self._item_rows, items_met)]

    @torch.no_grad()
    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The sum of the vectors of the items, as they are scored."""
        vectors = self._vectors()[1][items]
        sums = vectors.new_zeros(len(offsets) - 1, vectors.shape[1])
        return (self._scored(add_rows(sums, owners_of(offsets, items.device), vectors)),)

    @torch.no_grad()
    def tag_rows(self, terms: Terms) -> tuple[Tensor, ...]:
        """Vectors of users with these counts of tags."""
        return (self._scored(self.tower(TermRows(self._weighted_counts(terms), self.device).whole())),)
