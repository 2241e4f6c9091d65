"""DQN: the value of showing an item to somebody, later rewards included; double, duelling, with a target network.

Papers: Zheng et al. 2018, "DRN: A Deep Reinforcement Learning Framework for News Recommendation" (WWW): Q(s, a) = V(s)
+ A(s, a) with the target r + discount * Q'(s', argmax_a Q(s', a)), and exploration by duelling bandit gradient descent
(`explorer`, `interleaved`, `step_towards`). Zhao et al. 2018, "Recommendations with Negative Feedback via Pairwise Deep
Reinforcement Learning" (DEERS, KDD, arXiv 1802.06501): `two_sided` states, and `pair_weight`, which parts liked items
from others. Van Hasselt, Guez, Silver 2016 (AAAI, arXiv 1509.06461); Wang et al. 2016 (ICML, arXiv 1511.06581).
It learns from logs: each event, its reward and the one after it; the last event of a user ends the episode.
Deviations: items and states are vectors that are learnt, not columns of news and users; A is a product of the two less
its mean over all items, so that an index can serve it; the target network follows at each step (`target_rate`) instead
of being copied now and then; of DRN's printed update W' = W + rate W~, which makes the weights grow, the usual step
rate (W~ - W) is taken; DRN's activeness of users is left out. Of DEERS: one state h+ + P h- in place of two branches;
the competitor of an event is the last one before it with the opposite feedback, of any category; the squared difference
is capped at `pair_margin`, as it has no lower bound otherwise.
Defaults: discount of DRN; init_std as `reinforce`. `fit` chooses the epoch by how the protocol ranks what was logged.
Where not to use it: on data without ratings, whose rewards are all 1: nothing tells items apart. Q of items that are
hardly ever logged is a guess, and the maximum over all items finds the guesses that are too high. Where rewards do not
depend on what came before, discount=0 is the better choice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from deeprec.batches.feedback import FeedbackBatch
from deeprec.config import Only, TrainConfig, at_least
from deeprec.contract import Schema
from deeprec.kernels.score_topk import score_topk
from deeprec.kernels.sums import take
from deeprec.models._feedback_model import FeedbackConfig, FeedbackModel, States
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import DotScorer

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class DQNConfig(FeedbackConfig):
    """Attributes:
    discount: of later rewards, in [0, 1]; DRN 0.4, DEERS 0.95.
    target_rate: share of the weights that the target network takes over at each step, in (0, 1].
    pair_weight: of the squared difference between an event's value and its competitor's, >= 0; 0: none.
    pair_margin: the largest difference that is rewarded, > 0.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("pair_margin",), "pair_weight above 0", lambda config: config.pair_weight > 0),
    )

    discount: float = 0.4
    target_rate: float = 0.01
    pair_weight: float = 0.0
    pair_margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target_rate <= 1:
            raise ValueError(f"DQNConfig: target_rate must lie in (0, 1], got {self.target_rate}")
        at_least(self, "pair_weight", 0)
        if not self.pair_margin > 0:
            raise ValueError(f"DQNConfig: pair_margin must be > 0, got {self.pair_margin}")


class DQN(FeedbackModel):
    """Q(s, i) = V(s) + A(s, i) - mean over items of A(s, .), A(s, i) = W s . v_i + b_i.

    Parameters: `reader` and `heads`; `target` has both once more, follows them, and has no gradient.
    """

    name = "dqn"
    config_class: ClassVar[type[TrainConfig]] = DQNConfig
    config: DQNConfig

    def _build_network(self, schema: Schema, generator: torch.Generator | None) -> None:
        super()._build_network(schema, generator)
        # After the draw, so that both begin alike.
        self.target = copy.deepcopy(nn.ModuleDict({"reader": self.reader, "heads": self.heads})).requires_grad_(False)

    def _build_heads(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.heads = Heads(schema.num_items, self.config.factors)

    def backward(self, batch: FeedbackBatch) -> Tensor:
        """As every model; before it the target network follows."""
        self._follow()
        return super().backward(batch)

    @torch.no_grad()
    def _follow(self) -> None:
        online = [*self.reader.parameters(), *self.heads.parameters()]
        for kept, weight in zip(self.target.parameters(), online, strict=True):
            kept.lerp_(weight, self.config.target_rate)

    def loss(self, batch: FeedbackBatch) -> Tensor:
        """The mean of (y - Q(s, a))^2 over events, less what parts them from their competitors."""
        self.require_built()
        config = self.config
        states = self.states(batch)
        values = self.heads.values(states.before, states.items)
        errors = (self.targets(batch, states) - values).square()
        if config.pair_weight:
            places, has_one = competitors(batch.rewards > config.liked_above, batch.mask)
            others = self.heads.values(states.before, take(states.items, 0, places))
            apart = (values - others).square().clamp(max=config.pair_margin**2)
            errors = errors - config.pair_weight * apart * has_one
        loss: Tensor = (errors * states.mask).sum() / len(batch)
        return loss

    @torch.no_grad()
    def targets(self, batch: FeedbackBatch, states: States) -> Tensor:
        """y = r + discount Q'(s', argmax over a of Q(s', a)), [b * l]; r at the end of a window."""
        rewards = batch.rewards.flatten().to(states.after.dtype)
        if not self.config.discount:
            return rewards
        later = self.states(batch, self.target["reader"]).after  # type: ignore[arg-type]
        best = self.heads.best(states.after.detach())
        values = self.target["heads"].values(later, best)  # type: ignore[operator]
        goes_on = torch.ones_like(batch.mask)
        goes_on[:, -1] = False  # windows stand at the right end of their rows
        targets: Tensor = rewards + self.config.discount * values * goes_on.flatten()
        return targets

    def head(self, states: Tensor) -> Tensor:
        """W s."""
        codes: Tensor = self.heads.advantage(states)
        return codes

    def output_items(self) -> tuple[Tensor, Tensor]:
        """The vectors and biases of A."""
        return self.heads.actions.weight, self.heads.action_bias.weight.squeeze(1)

    # -- exploration ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explorer(self, generator: torch.Generator, scale: float = 0.1) -> Self:
        """A copy whose weights are W + scale u W, u uniform in [-1, 1], drawn for each by itself.

        Args:
            scale: > 0.
        Reference: DRN, section 4.4, alpha.
        """
        if not scale > 0:
            raise ValueError(f"dqn: explorer: scale must be > 0, got {scale}; 0.1 is that of the paper")
        other = copy.deepcopy(self)
        for weight in (*other.reader.parameters(), *other.heads.parameters()):
            drawn = torch.empty(weight.shape, dtype=weight.dtype).uniform_(-1.0, 1.0, generator=generator)
            weight.addcmul_(weight, drawn.to(weight.device), value=scale)
        return other

    @torch.no_grad()
    def step_towards(self, other: DQN, rate: float = 0.05) -> None:
        """W + rate (W~ - W), after the list of W~ got the better feedback.

        Args:
            rate: in (0, 1].
        Reference: DRN, section 4.4, eta; Yue, Joachims 2009 (ICML), duelling bandit gradient descent.
        """
        if not 0 < rate <= 1:
            raise ValueError(f"dqn: step_towards: rate must lie in (0, 1], got {rate}")
        pairs = ((self.reader, other.reader), (self.heads, other.heads))
        for own, theirs in pairs:
            for weight, explored in zip(own.parameters(), theirs.parameters(), strict=True):
                weight.lerp_(explored, rate)


class Heads(nn.Module):
    """V(s) and A(s, a) of states [n, D].

    Args:
        num_items: N. width: D.
    """

    def __init__(self, num_items: int, width: int) -> None:
        super().__init__()
        self.worth = nn.Linear(width, 1)  # V
        self.advantage = nn.Linear(width, width, bias=False)
        self.actions = Embedding(num_items, width, sparse=False, name="item")
        self.action_bias = Embedding(num_items, 1, sparse=False, name="item")

    def values(self, states: Tensor, items: Tensor) -> Tensor:
        """Q, [n], of items [n], int64."""
        codes = self.advantage(states)
        vectors = self.actions(items) - self.actions.weight.mean(0)
        biases = self.action_bias(items).squeeze(1) - self.action_bias.weight.mean()
        values: Tensor = self.worth(states).squeeze(1) + (codes * vectors).sum(1) + biases
        return values

    @torch.no_grad()
    def best(self, states: Tensor) -> Tensor:
        """The item with the largest Q of each state, [n], int64; of equal ones the first. No [n, N] is made."""
        parts = (self.advantage(states), self.actions.weight.detach(), self.action_bias.weight.detach()[:, 0])
        # The operator takes no float64; which item is best needs no more than float32.
        scorer = DotScorer(*(part.float() if part.dtype == torch.float64 else part for part in parts))
        return score_topk(scorer, 1).ids.squeeze(1)


def competitors(is_liked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each event the last one before it with the opposite feedback.

    Args:
        is_liked, mask: [b, l], bool.
    Returns:
        places [b * l], int64, in the flattened windows, their own where there is none; and whether there is one, as
        numbers [b * l].
    """
    rows, width = mask.shape
    columns = torch.arange(width, device=mask.device).expand(rows, width)
    liked, others = ((columns + 1) * (mask & each) for each in (is_liked, ~is_liked))  # 0: none
    last_liked, last_other = (each.cummax(1).values if width else each for each in (liked, others))
    last = torch.where(is_liked, last_other, last_liked)
    has_one = (last > 0) & mask
    starts = torch.arange(rows, device=mask.device).unsqueeze(1) * width
    places = starts + torch.where(has_one, last - 1, columns)
    return places.flatten(), has_one.flatten().float()


class Interleaved(NamedTuple):
    """Two lists as one.

    Attributes:
        items: [k], each once.
        owners: [k], 0 or 1: whose turn it was.
    """

    items: list[Any]
    owners: list[int]


def interleaved(first: list[Any], second: list[Any], k: int, generator: torch.Generator) -> Interleaved:
    """The lists of two models as one: in each round both, in random order, add their best item that is not there.

    Args:
        first, second: items by rank, each once.
        k: items of the result, >= 1; fewer where both end.
    Reference: Radlinski, Kurup, Joachims 2008 (CIKM), team draft interleaving.
    """
    if k < 1:
        raise ValueError(f"interleaved: k must be >= 1, got {k}")
    items: list[Any] = []
    owners: list[int] = []
    turns: list[int] = []
    while len(items) < k:
        if not turns:
            turns = [int(each) for each in torch.randperm(2, generator=generator)]
        owner = turns.pop()
        new = next((item for item in (first, second)[owner] if item not in items), None)
        if new is None:
            owner = 1 - owner
            new = next((item for item in (first, second)[owner] if item not in items), None)
        if new is None:
            break
        items.append(new)
        owners.append(owner)
    return Interleaved(items, owners)
