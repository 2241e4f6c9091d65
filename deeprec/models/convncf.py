"""ConvNCF: convolutions over the outer product of a user's and an item's vector, trained to rank pairs.

Paper: He, Du, Wang, Tian, Tang, Chua 2018, "Outer Product-based Neural Collaborative Filtering" (IJCAI, arXiv
1808.03912), section 3. Code: duxy-me/ConvNCF.
Deviations: an item has a bias, as in `deeprec.models.bpr`, whose vectors and biases training starts from; one
coefficient of L2 for both tables, and `weight_decay` for the network's; steps over mini-batches, each positive with
negatives of its own. Windows of 2 x 2 that do not overlap are products of matrices; the first takes its windows from
the two vectors.
Where not to use it: for the sake of rankings. Matrix factorisation ranks about as well in a fraction of the time, see
results/content.md, and the places in a map of products have no order that a convolution could use (Ferrari Dacrema,
Parroni, Cremonesi, Jannach 2020, "Critically Examining the Claimed Value of Convolutions over User-Item Embedding Maps
for Recommender Systems", CIKM, arXiv 2007.11893).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.pairs import PairBatch
from deeprec.config import Only, TrainConfig, at_least
from deeprec.contract import SIMILAR_ITEMS, Schema
from deeprec.models.base import Recommender
from deeprec.models.bpr import BPR, BPRConfig, bpr_terms
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import BlockScorer

_PAIRS_A_BLOCK = 1 << 11
_OUTPUT_STD = 0.01


@dataclass(frozen=True)
class ConvNCFConfig(TrainConfig):
    """Attributes:
    factors: size D of the vectors, a power of 2, >= 2; there are log2(D) convolutions.
    channels: maps of each, >= 1.
    init_std: standard deviation of the initial vectors, > 0.
    pretrain: train BPR first, and start from its vectors.
    pretrain_epochs, pretrain_lr, pretrain_l2: of that stage; validation chooses the epoch.
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("pretrain_epochs", "pretrain_lr", "pretrain_l2"), "pretrain=True", lambda config: config.pretrain),
    )

    factors: int = 32
    channels: int = 32
    init_std: float = 0.1
    pretrain: bool = True
    pretrain_epochs: int = 40
    pretrain_lr: float = 0.05
    pretrain_l2: float = 0.01
    l2: float = 0.0001
    lr: float = 0.001
    epochs: int = 20
    batch_size: int = 1024
    num_negatives: int = 1
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "channels", 1)
        at_least(self, "pretrain_epochs", 1)
        if self.factors < 2 or self.factors & (self.factors - 1):
            raise ValueError(f"ConvNCFConfig: factors must be a power of 2, >= 2, got {self.factors}; take 32 or 64")
        for name in ("init_std", "pretrain_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ConvNCFConfig: {name} must be > 0, got {getattr(self, name)}")
        at_least(self, "pretrain_l2", 0)

    def pretrain_config(self) -> BPRConfig:
        """That of the first stage."""
        return BPRConfig(
            factors=self.factors,
            init_std=self.init_std,
            epochs=self.pretrain_epochs,
            lr=self.pretrain_lr,
            l2=self.pretrain_l2,
            batch_size=self.batch_size,
            num_negatives=self.num_negatives,
            patience=self.patience,
            refit=self.refit,
        )


class OuterProductCNN(nn.Module):
    """w . g, g the last of log2(D) maps relu(conv(...)) of 2 x 2 windows, two places apart, over p q'.

    Args:
        factors: D, a power of 2. channels: of each map.
        generator: source of the initial weights; torch's global one by default.
    """

    def __init__(self, factors: int, channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        widths = [1, *[channels] * (factors.bit_length() - 1)]
        self.layers = nn.ModuleList(nn.Linear(4 * a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(channels, 1, bias=False)
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                layer.bias.zero_()
            self.output.weight.normal_(0.0, _OUTPUT_STD, generator=generator)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """[B] of vectors [B, D] each."""
        count, size = len(p), p.shape[1] // 2
        p, q = p.view(count, size, 1, 2, 1), q.view(count, 1, size, 1, 2)
        windows = (p * q).view(count, size, size, 4)
        for number, layer in enumerate(self.layers):
            x = F.relu(layer(windows))  # [B, size, size, C]
            if number + 1 < len(self.layers):
                size //= 2
                x = x.view(count, size, 2, size, 2, -1).transpose(2, 3)
                windows = x.reshape(count, size, size, -1)
        scores: Tensor = self.output(x.view(count, -1)).squeeze(1)
        return scores


class ConvNCF(Recommender):
    """x_ui = b_i + w . g(p_u q_i'), trained to maximise the mean of ln sigmoid(x_ui - x_uj)."""

    name = "convncf"
    config_class: ClassVar[type[TrainConfig]] = ConvNCFConfig
    config: ConvNCFConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS}

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        self.users = Embedding(schema.num_users, config.factors, name="user")
        self.items = Embedding(schema.num_items, config.factors, name="item")
        self.item_bias = Embedding(schema.num_items, 1, name="item")
        with torch.no_grad():
            for table in (self.users, self.items):
                table.weight.normal_(0.0, config.init_std, generator=generator)
            self.item_bias.weight.zero_()
        self.network = OuterProductCNN(config.factors, config.channels, generator)

    def warm_start(self, train_stage: Callable[[Recommender], Recommender]) -> bool:
        """Train BPR with `train_stage` and start from its tables, section 3.4."""
        if not self.config.pretrain:
            return False
        first = train_stage(BPR(config=self.config.pretrain_config()))
        assert isinstance(first, BPR)
        with torch.no_grad():
            for name in ("users", "items", "item_bias"):
                getattr(self, name).weight.copy_(getattr(first, name).weight)
        return True

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """x_ui of pairs of internal ids; shapes broadcast."""
        self.require_built()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        p, q = self.users(users), self.items(items)
        scores: Tensor = self.network(p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1]))
        return torch.add(scores.view(users.shape), self.item_bias(items).squeeze(-1))

    def loss(self, batch: PairBatch) -> Tensor:
        """-ln sigmoid(x_ui - x_uj) of the pairs of a positive i and each of its negatives j, with L2 of their rows."""
        users, items, bias = self.users(batch.users), self.items(batch.items), self.item_bias(batch.items)
        rows = users.unsqueeze(1).expand_as(items)
        scores = self.network(rows.reshape(-1, rows.shape[2]), items.view(-1, rows.shape[2]))
        scores = scores.view(items.shape[:2]) + bias.squeeze(2)
        loss, l2 = bpr_terms(scores, users, items, bias, self.config.l2, self.config.reduction)
        return loss if l2 is None else loss + l2

    @torch.no_grad()
    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """As of every model, in blocks that hold their maps."""
        if len(users) <= _PAIRS_A_BLOCK:
            return super().score_pairs(users, items)
        blocks = zip(users.split(_PAIRS_A_BLOCK), items.split(_PAIRS_A_BLOCK), strict=True)
        return torch.cat([super(ConvNCF, self).score_pairs(*block) for block in blocks])

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.users.weight.detach()[users.long()],)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        items = items.long()
        scores: Tensor = self.network(rows[0], self.items.weight.detach()[items])
        return torch.add(scores, self.item_bias.weight.detach()[items, 0])

    def scorer(self, state: tuple[Tensor, ...]) -> BlockScorer:
        """Each pair by itself: no vector of an item alone says its score."""
        (rows,) = state
        items, bias = self.items.weight.detach(), self.item_bias.weight.detach().squeeze(1)

        def scores(first: int, end: int) -> Tensor:
            users, every = rows[first:end], torch.arange((end - first) * len(items), device=rows.device)
            parts = [
                self.network(users[places // len(items)], items[places % len(items)])
                for places in every.split(_PAIRS_A_BLOCK)
            ]
            return torch.cat([rows.new_empty(0), *parts]).view(end - first, len(items)).float() + bias

        return BlockScorer(len(rows), len(items), rows.device, scores)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.items.weight.detach()
