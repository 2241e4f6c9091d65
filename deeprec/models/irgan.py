"""IRGAN: a generator that draws items for a user, and a discriminator that tells these from what the user met.

Paper: Wang, Yu, Zhang, Gong, Xu, Wang, Zhang, Zhang 2017, "IRGAN: A Minimax Game for Unifying Generative and
Discriminative Information Retrieval Models" (SIGIR, arXiv 1705.10513). Code: geek-ai/irgan (item_recommendation, and
for pairs ltr-gan-pairwise). The generator is what is served.
Deviations: both players learn on each batch of users, the discriminator first, in place of a hundred epochs of one and
fifty of the other; for each user as many items are drawn (`samples`), those for the discriminator weighed so that they
count as much as what the user met; from each reward the mean of the other draws' is taken, which leaves the expected
gradient as it is; AdaGrad in place of SGD for the discriminator.
The defaults are those that ranked best by validation on the likes of MovieLens-100K: draws for the discriminator at the
generator's own temperature, where the authors have 0.2, and a strong `discriminator_l2`; with less of it the
discriminator learns by heart what was met, and teaches the generator to avoid all else.
Where not to use it: the start by BPR does most of the work, see results/adversarial.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.likes import Likes, UserBatch
from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, OptimizerOptions, Schema, Turn
from deeprec.data import Interactions
from deeprec.kernels.sums import take, take_by_column
from deeprec.models.base import Recommender
from deeprec.models.bpr import BPR
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import DotScorer

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
_UNITS = 1 << 40  # what the probabilities of a user are counted in; whole numbers add up in any order


@dataclass(frozen=True)
class IRGANConfig(TrainConfig):
    """Attributes:
    factors: size D of the vectors of both players, >= 1.
    init_std: standard deviation of the initial vectors, > 0.
    batch_size: users a step, >= 1.
    lr, l2: of the generator; `l2` by user and step, of the user's and the drawn items' rows.
    judges: what the discriminator is asked: "pointwise", whether the user met an item, or "pairwise", which of two.
    discriminator_lr, discriminator_optimizer: as `lr` and `optimizer`, of the discriminator.
    discriminator_l2: `l2` of the discriminator, by item that it judges, >= 0.
    samples: items drawn for each user and player in a step, >= 2.
    temperature: of the generator's softmax over all items, > 0.
    negatives_temperature: of that from which the discriminator's items are drawn, > 0; below `temperature` they are
        likelier ones.
    positives_share: omega in [0, 1): share of the generator's draws that come from what the user met, corrected by
        importance weights, which are at most 1 / (1 - omega).
    pretrain_epochs: epochs of BPR from which the generator begins, the best by validation, >= 0; 0: from `init_std`.
    pretrain_lr, pretrain_l2: `lr` and `l2` of these.
    pretrain_negatives: negatives of each positive in them, >= 1; the one with the highest score is learned from, which
        is what the authors begin with.
    """

    unused: ClassVar[tuple[str, ...]] = ("precision", "num_negatives", "reduction", "accumulate")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(
            ("pretrain_lr", "pretrain_l2", "pretrain_negatives"),
            "pretrain_epochs > 0",
            lambda config: config.pretrain_epochs > 0,
        ),
    )
    groups: ClassVar[tuple[str, ...]] = (GENERATOR, DISCRIMINATOR)

    factors: int = 32
    init_std: float = 0.1
    epochs: int = 40
    batch_size: int = 16
    lr: float = 0.3
    optimizer: str = "sgd"
    patience: int = 5
    judges: str = "pointwise"
    discriminator_lr: float = 0.05
    discriminator_optimizer: str = "adagrad"
    discriminator_l2: float = 0.3
    samples: int = 64
    temperature: float = 1.0
    negatives_temperature: float = 1.0
    positives_share: float = 0.2
    pretrain_epochs: int = 40
    pretrain_lr: float = 0.05
    pretrain_l2: float = 0.05
    pretrain_negatives: int = 4

    def __post_init__(self) -> None:
        self._check_types()
        for name, least in (("factors", 1), ("batch_size", 1), ("samples", 2), ("discriminator_l2", 0)):
            at_least(self, name, least)
        for name in ("pretrain_epochs", "pretrain_l2"):
            at_least(self, name, 0)
        at_least(self, "pretrain_negatives", 1)
        for name in ("init_std", "discriminator_lr", "temperature", "negatives_temperature", "pretrain_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"IRGANConfig: {name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.positives_share < 1:
            raise ValueError(f"IRGANConfig: positives_share must lie in [0, 1), got {self.positives_share}")
        one_of(self, "judges", ("pointwise", "pairwise"))
        one_of(self, "discriminator_optimizer", self.optimizers)
        self._check_shared()

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """Either player has its own."""
        options = super().optimizer_options(group)
        if group == GENERATOR:
            return options
        return options._replace(optimizer=self.discriminator_optimizer, lr=self.discriminator_lr)


class Player(nn.Module):
    """s(u, i) = b_i + v_u . v_i, which both players are."""

    def __init__(self, schema: Schema, factors: int, std: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.users = Embedding(schema.num_users, factors, name="user")
        self.items = Embedding(schema.num_items, factors, name="item")
        self.item_bias = Embedding(schema.num_items, 1, name="item")
        with torch.no_grad():
            for table in (self.users, self.items):
                table.weight.normal_(0.0, std, generator=generator)
            self.item_bias.weight.zero_()

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        scores: Tensor = (self.users(users) * self.items(items)).sum(-1) + self.item_bias(items).squeeze(-1)
        return scores

    def of_all(self, users: Tensor) -> Tensor:
        """Scores [b, num_items] of all items for users [b]."""
        return torch.addmm(self.item_bias.weight.T, self.users(users), self.items.weight.T)

    def squares(self, users: Tensor, items: Tensor) -> Tensor:
        """Squared norms of the rows of users and items [n], summed."""
        rows = (self.users(users), self.items(items), self.item_bias(items))
        return torch.stack([row.square().sum() for row in rows]).sum()


class Draws(NamedTuple):
    """Items drawn for the users of a batch, b of them.

    Attributes:
        items: [b, S], int64.
        weights: [b, S], p / p_n: of a mean over the draws they make that over the generator's distribution.
    """

    items: Tensor
    weights: Tensor


class IRGAN(Recommender):
    """p(i | u) = softmax over all items of s(u, i) / temperature, against a discriminator sigmoid(s'(u, i))."""

    name = "irgan"
    config_class: ClassVar[type[TrainConfig]] = IRGANConfig
    config: IRGANConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    trains_on_whole_rows: ClassVar[bool] = True  # what was met before is no invention of the generator

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        self.generator = Player(schema, config.factors, config.init_std, generator)
        self.discriminator = Player(schema, config.factors, config.init_std, generator)

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> Likes:
        """Users with all that they met."""
        return Likes(
            train, batch_size=self.config.batch_size, corruption=0.0, num_negatives=0, seed=seed, device=self.device
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The players."""
        return {
            GENERATOR: list(self.generator.parameters()),
            DISCRIMINATOR: list(self.discriminator.parameters()),
        }

    def turns(self) -> tuple[Turn, ...]:
        """The discriminator, and then the generator, whom it rewards as it has just become."""
        return (
            Turn(DISCRIMINATOR, (DISCRIMINATOR,), self._discriminate),
            Turn(GENERATOR, (GENERATOR,), self._generate),
        )

    def backward(self, batch: UserBatch) -> Tensor:
        """The gradients of both players, neither of which has stepped."""
        return self._discriminate(batch) + self._generate(batch)

    def warm_start(self, train_stage: Callable[[Any], Any]) -> bool:
        """Begin with the generator of BPR."""
        config = self.config
        if not config.pretrain_epochs:
            return False
        bpr = BPR(
            factors=config.factors,
            init_std=config.init_std,
            epochs=config.pretrain_epochs,
            lr=config.pretrain_lr,
            l2=config.pretrain_l2,
            num_negatives=config.pretrain_negatives,
            hardest=config.pretrain_negatives > 1,
            patience=config.patience,
        )
        self.start_from(train_stage(bpr))
        return True

    @torch.no_grad()
    def start_from(self, bpr: BPR) -> None:
        """The generator becomes that model."""
        for mine, other in zip(self.generator.parameters(), bpr.parameters(), strict=True):
            mine.copy_(other)

    def _discriminate(self, batch: UserBatch) -> Tensor:
        """The discriminator's gradients: cross-entropy of what users met, 1, and what the generator draws, 0."""
        config, judge = self.config, self.discriminator
        users, owners, num_likes = batch.users, _owners(batch), len(batch.indices)
        with torch.no_grad():
            drawn = draw(self._probabilities(users, config.negatives_temperature), config.samples)
        if config.judges == "pairwise":  # each like against one of the user's draws
            column = torch.randint(config.samples, (num_likes,), device=self.device)
            others, owners_of_others = drawn[owners, column], owners
        else:
            others, owners_of_others = (
                drawn.flatten(),
                torch.arange(drawn.numel(), device=self.device) // config.samples,
            )
        judged, whose = torch.cat([batch.indices, others]), torch.cat([owners, owners_of_others])
        rows = take(judge.users(users), 0, whose), judge.items(judged), judge.item_bias(judged)
        scores = (rows[0] * rows[1]).sum(1) + rows[2].squeeze(1)
        met, invented = scores[:num_likes], scores[num_likes:]
        if config.judges == "pairwise":
            loss = F.softplus(invented - met).sum()
        else:
            # The draws of a user weigh as much together as what the user met.
            shares = (batch.offsets.diff() / config.samples).unsqueeze(1).to(scores.dtype)
            loss = F.softplus(-met).sum() + (shares * F.softplus(invented.view_as(drawn))).sum()
        if config.discriminator_l2:
            loss = loss + config.discriminator_l2 / 2 * torch.stack([row.square().sum() for row in rows]).sum()
        loss = loss / max(1, num_likes)
        loss.backward()
        return loss.detach()

    def _generate(self, batch: UserBatch) -> Tensor:
        """The generator's policy gradient, E[w (reward - baseline) grad log p(i | u)], a mean over users."""
        config, users = self.config, batch.users
        logits = self.generator.of_all(users) / config.temperature
        with torch.no_grad():
            drawn = self._explore(logits.softmax(1), batch)
            rewards = drawn.weights * self._rewards(batch, drawn.items)
            # Those of the other draws say what is usual, and nothing of this one, so that the mean stays the same.
            usual = (rewards.sum(1, keepdim=True) - rewards) / (config.samples - 1)
            advantages = rewards - drawn.weights * usual
        chosen = take_by_column(logits.T, drawn.items.T).T - logits.logsumexp(1, keepdim=True)
        loss = -(advantages * chosen).sum() / (config.samples * len(users))
        if config.l2:
            squares = self.generator.squares(users.repeat_interleave(config.samples), drawn.items.flatten())
            loss = loss + config.l2 / 2 * squares / (config.samples * len(users))
        loss.backward()
        return -rewards.mean()

    def _probabilities(self, users: Tensor, temperature: float) -> Tensor:
        """The generator's, [b, num_items]."""
        with torch.enable_grad():  # so that rows which an optimizer has put off are brought up to date
            rows = self.generator.users(users).detach()
        scores = torch.addmm(self.generator.item_bias.weight.T, rows, self.generator.items.weight.T)
        return (scores / temperature).softmax(1)

    def _explore(self, probabilities: Tensor, batch: UserBatch) -> Draws:
        """Draws from p_n = (1 - omega) p + omega uniform over what the user met."""
        share, samples = self.config.positives_share, self.config.samples
        drawn = draw(probabilities, samples)
        if not share:
            return Draws(drawn, torch.ones_like(probabilities[:, :1]).expand(-1, samples))
        starts, counts = batch.offsets[:-1, None], batch.offsets.diff()[:, None]
        is_met = torch.rand(drawn.shape, device=self.device) < share
        drawn = torch.where(is_met, self._met(batch, samples), drawn)
        p = probabilities.gather(1, drawn)
        # Likes ascend within a user, and so do these numbers over the batch.
        num_items = probabilities.shape[1]
        keys = _owners(batch) * num_items + batch.indices
        asked = torch.arange(len(starts), device=self.device)[:, None] * num_items + drawn
        there = keys[torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)] == asked
        return Draws(drawn, p / ((1 - share) * p + share * there / counts))

    def _met(self, batch: UserBatch, samples: int) -> Tensor:
        """[b, samples] items that each user met, drawn evenly."""
        starts, counts = batch.offsets[:-1, None].long(), batch.offsets.diff()[:, None]
        draws = torch.rand(len(counts), samples, dtype=torch.float64, device=self.device)
        places = torch.minimum((draws * counts).long(), counts.long() - 1)
        return batch.indices[starts + places].long()

    def _rewards(self, batch: UserBatch, drawn: Tensor) -> Tensor:
        """[b, S] of drawn items: 2 sigmoid(s') - 1, or by pairs the log of the chance to rank before a like."""
        with torch.enable_grad():  # see `_probabilities`
            scores = self.discriminator(batch.users.unsqueeze(1), drawn).detach()
            if self.config.judges == "pointwise":
                return 2 * torch.sigmoid(scores) - 1
            met = self._met(batch, drawn.shape[1])
            rewards: Tensor = F.logsigmoid(scores - self.discriminator(batch.users.unsqueeze(1), met).detach())
            return rewards

    # -- scores ------------------------------------------------------------------------------------------------------

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """The generator's scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        scores: Tensor = self.generator(users, items)
        return scores

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.generator.users.weight.detach()[users.long()],)

    def forward_rows(self, rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        player, items = self.generator, items.long()
        return (rows[0] * player.items.weight.detach()[items]).sum(-1) + player.item_bias.weight.detach()[items, 0]

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        """v_u . v_i + b_i of the generator."""
        weights = self.generator.items.weight.detach(), self.generator.item_bias.weight.detach().squeeze(1)
        return DotScorer(state[0], *weights)

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.generator.items.weight.detach()


def _owners(batch: UserBatch) -> Tensor:
    """[nnz] which user of the batch has each like, int64."""
    rows = torch.arange(len(batch.users), device=batch.users.device)
    return torch.repeat_interleave(rows, batch.offsets.diff(), output_size=len(batch.indices))


def draw(probabilities: Tensor, samples: int) -> Tensor:
    """Columns [b, samples], int64, drawn with replacement by the probabilities [b, N] of each row.

    One below 2^-40 counts as none.
    """
    bounds = (probabilities.double() * _UNITS).long().cumsum(1)
    points = torch.rand(len(bounds), samples, dtype=torch.float64, device=bounds.device) * bounds[:, -1:]
    columns: Tensor = torch.searchsorted(bounds, points.long(), right=True).clamp(max=bounds.shape[1] - 1)
    return columns
