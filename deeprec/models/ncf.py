"""What GMF, MLP, NeuMF and MF share: they are all an `NCFNetwork` with parts left out.

Where not to use them: on few interactions an item (below about 20) or few users, weights between items, item-knn and
ease, rank better than vectors that each id has to learn for itself; of these four MF loses least.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deeprec.batches.pairs import PairBatch
from deeprec.config import ByData
from deeprec.contract import SIMILAR_ITEMS
from deeprec.models._adversarial import AdversarialRecommender
from deeprec.nn.ncf import NCFNetwork
from deeprec.nn.scoring import BlockScorer, NCFScorer

LAYOUTS = ("code", "paper")

_MOST_LAYERS = 30  # the first of more would be wider than 2^30
PATIENCE = {"patience": ByData(lambda facts, options: 5, "5")}


class NCFRecommender(AdversarialRecommender):
    """A recommender whose scores come from an `NCFNetwork` called `network`."""

    capabilities: ClassVar[frozenset[str]] = AdversarialRecommender.capabilities | {SIMILAR_ITEMS}
    network: NCFNetwork

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of pairs of internal ids; shapes broadcast."""
        self.require_built()
        logits: Tensor = self.network(users, items)
        return logits

    def loss(self, batch: PairBatch) -> Tensor:
        """Binary cross-entropy (He et al. 2017, eq. 7) with L2 (Rendle et al. 2020, arXiv 2005.09683, 3.1)."""
        return self._loss(batch, accumulate_grad=False)

    def backward(self, batch: PairBatch) -> Tensor:
        """The loss's gradients, without a detour through autograd where training is not adversarial."""
        return super().backward(batch) if self.is_adversarial else self._loss(batch, accumulate_grad=True)

    def terms(self, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
        """Binary cross-entropy and L2, apart."""
        config, loss = self.config, self._loss(batch, accumulate_grad=False, l2=0.0)
        if not config.l2:
            return loss, None
        return loss, self.network.penalty(batch.users, batch.items, config.l2, reduction=config.reduction)

    def attacked(self) -> tuple[Tensor, ...]:
        """The embeddings of either half."""
        return self.network.tables()

    def _loss(self, batch: PairBatch, *, accumulate_grad: bool, l2: float | None = None) -> Tensor:
        config = self.config
        return self.network.loss(
            batch.users,
            batch.items,
            batch.labels,
            reduction=config.reduction,
            precision=config.precision,
            l2=config.l2 if l2 is None else l2,
            accumulate_grad=accumulate_grad,
        )

    @torch.no_grad()
    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits [n] of pairs of internal ids, each [n]; what they share of the first hidden layer is computed once."""
        self.require_built()
        return self.network.score_pairs(users, items).float()

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return self.network.user_rows(users)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        return self.network.forward_rows(rows, items)

    def scorer(self, state: tuple[Tensor, ...]) -> NCFScorer | BlockScorer:
        return self.network.scorer(state)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.network.item_vectors()


def mlp_layers(factors: int, num_layers: int, layout: str, layers: tuple[int, ...], *, owner: str) -> tuple[int, ...]:
    """Widths (2E, H_1, ..., H_L) of the MLP half: a tower whose last hidden layer has `factors` units.

    The paper's text and the authors' code size the embeddings differently (He et al. 2017, section 4.1): for 8 factors
    and 3 hidden layers the code runs 64 -> 32 -> 16 -> 8 (embeddings of 32 a side, "code"), the text says embeddings
    of 16 a side, that is 32 -> 32 -> 16 -> 8 ("paper").

    Args:
        factors: width of the last hidden layer, >= 1.
        num_layers: hidden layers L, 0 to 30; 0 feeds the concatenated embeddings to the output.
        layout: "code" or "paper"; ignored where `layers` is given.
        layers: explicit widths as the authors' `--layers`, or ().
        owner: config class for error messages.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"{owner}: layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    if factors < 1 or num_layers < 0:
        raise ValueError(f"{owner}: factors must be >= 1 and num_layers >= 0, got {factors} and {num_layers}")
    if num_layers > _MOST_LAYERS:
        raise ValueError(f"{owner}: num_layers must be <= {_MOST_LAYERS}, got {num_layers}; each halves the one below")
    if layers:
        if layers[0] % 2 or min(layers) < 1:
            raise ValueError(f"{owner}: layers must be widths >= 1 that start with an even one, got {layers}")
        return layers
    hidden = tuple(factors << (num_layers - 1 - i) for i in range(num_layers))
    if not hidden:
        return (2 * factors,)
    return (2 * hidden[0] if layout == "code" else hidden[0], *hidden)
