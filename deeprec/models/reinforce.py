"""REINFORCE: a policy learnt from another one's log, for the K items of a page, corrected for what was logged.

Paper: Chen, Beutel, Covington, Jain, Belletti, Chi 2019, "Top-K Off-Policy Correction for a REINFORCE Recommender
System" (WSDM, arXiv 1812.02353).
The loss is - sum over events of sg[ min(pi / beta, c) K (1 - pi)^(K-1) R ] log pi(a | s): the gradient of the policy's
value, event by event, where R are the rewards from the event on, beta the policy that was logged, and nothing in sg is
differentiated. beta is another softmax on the same state, whose gradient stops before it; or what the data logged.
Ratings are rewards (see `_feedback_model`); events with reward 0 give no gradient and count in the normalisation.
Deviations: a GRU in place of the paper's cell without chaos; the state reads liked items, without their contexts.
Defaults: those of the other recurrent model; init_std by the validation part of `synthetic`. In the worlds of
`bench/reinforcement.py`, with ten items and rewards of 0 and 1, init_std=0.5 baseline=mean normalise=True learn faster.
`fit` chooses the epoch by the protocol's figures, which measure imitation: see below.
Where not to use it: with learnt propensities, or rewards of 1 alone, nothing offline tells a better policy from a worse
one; next-item figures measure imitation. With known propensities `deeprec.evaluate.off_policy_value` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deeprec.batches.feedback import FeedbackBatch
from deeprec.batches.numbered import Numbered, NumberedBatches
from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.contract import Batches, Schema
from deeprec.data import Interactions
from deeprec.kernels.softmax_loss import sampled_softmax_loss, softmax_loss
from deeprec.models._feedback_model import FeedbackConfig, FeedbackModel
from deeprec.models._policy import policy_weights
from deeprec.nn.embedding import Embedding


@dataclass(frozen=True)
class ReinforceConfig(FeedbackConfig):
    """Attributes:
    correction: "off-policy", events are weighted with pi / beta; or "none", which copies what was logged.
    top_k: K, items of a page, >= 1; 1 is the plain correction.
    weight_cap: c, the largest pi / beta, > 0.
    baseline: what returns are measured from: "none", 0, or "mean", that of the step. With "none" nothing that was shown
        becomes less likely but by others becoming more so, and events with reward 0 teach nothing.
    normalise: whether the weights pi / beta of a step are divided by their mean.
    behaviour: beta: "learned" from the log, or "logged", the propensities of the data.
    softmax: "full", pi and beta over all items; or "sampled", over the item and `num_negatives` draws, for catalogues
        of millions: then both are estimates.
    num_negatives: of "sampled", >= 1.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(
            ("weight_cap", "normalise", "behaviour"),
            "correction=off-policy",
            lambda config: config.correction == "off-policy",
        ),
        Only(("num_negatives",), "softmax=sampled", lambda config: config.softmax == "sampled"),
    )

    correction: str = "off-policy"
    top_k: int = 10
    weight_cap: float = 10.0
    baseline: str = "none"
    normalise: bool = False
    behaviour: str = "learned"
    softmax: str = "full"
    num_negatives: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "correction", ("off-policy", "none"))
        one_of(self, "behaviour", ("learned", "logged"))
        one_of(self, "softmax", ("full", "sampled"))
        one_of(self, "baseline", ("none", "mean"))
        at_least(self, "top_k", 1)
        if not self.weight_cap > 0:
            raise ValueError(f"ReinforceConfig: weight_cap must be > 0, got {self.weight_cap}; 10 is usual")


class Reinforce(FeedbackModel):
    """pi(i | s) = softmax(s . v_i + b_i), s the state after what the user liked.

    Parameters: `reader`, `actions` and `action_bias` of pi, `logged` and `logged_bias` of beta, if it is learnt.
    """

    name = "reinforce"
    config_class: ClassVar[type[TrainConfig]] = ReinforceConfig
    config: ReinforceConfig

    def _build_heads(self, schema: Schema, generator: torch.Generator | None) -> None:
        def table(width: int) -> Embedding:
            return Embedding(schema.num_items, width, sparse=False, name="item")

        width = self.config.factors
        self.actions, self.action_bias = table(width), table(1)
        self.logged = self.logged_bias = None
        if self._learns_behaviour:
            self.logged, self.logged_bias = table(width), table(1)

    @property
    def _learns_behaviour(self) -> bool:
        return self.config.correction == "off-policy" and self.config.behaviour == "learned"

    def training_batches(self, train: Interactions, seed: int) -> Batches:
        """Windows of events, each with the seed of its draws.

        Raises:
            ValueError: propensities that are to be read, and are not there.
        """
        config = self.config
        if config.correction == "off-policy" and config.behaviour == "logged" and not hasattr(train, "propensities"):
            raise ValueError(
                f"{self.name}: behaviour 'logged' needs the propensities of the events, {train.name} has none; add "
                "them by deeprec.data.with_propensities, or take behaviour='learned'"
            )
        return NumberedBatches(super().training_batches(train, seed), seed)

    def loss(self, batch: Numbered) -> Tensor:
        """The mean over events, and that of -log beta beside it."""
        self.require_built()
        events, config = batch.batch, self.config
        states = self.states(events)
        losses = self._surprise(states.before, states.items, self.actions, self.action_bias, batch.seed)
        log_beta, behind = None, losses.new_zeros(())
        if self._learns_behaviour:
            of_logged = self._surprise(states.before.detach(), states.items, self.logged, self.logged_bias, batch.seed)
            log_beta, behind = -of_logged.detach(), (of_logged * states.mask).sum() / len(batch)
        elif config.correction == "off-policy":
            log_beta = _logged(events)
        weights = policy_weights(
            -losses.detach(),
            log_beta,
            top_k=config.top_k,
            cap=config.weight_cap,
            mask=states.mask if config.normalise else None,
        )
        returns = events.returns.flatten()
        if config.baseline == "mean":
            returns = returns - (returns * states.mask).sum() / len(batch)
        gains = weights * returns * states.mask
        loss: Tensor = (gains * losses).sum() / len(batch) + behind
        return loss

    def _surprise(self, states: Tensor, items: Tensor, table: Any, bias: Any, seed: int) -> Tensor:
        """-log of the probability of the items, [n]."""
        given: dict[str, Any] = {"bias": bias.weight.squeeze(1), "reduction": "none"}
        if self.config.softmax == "sampled":
            given |= {"seed": seed, "sparse_grad": False}
            losses: Tensor = sampled_softmax_loss(states, table.weight, items, self.config.num_negatives, **given)
        else:
            losses = softmax_loss(states, table.weight, items, **given)
        return losses

    def output_items(self) -> tuple[Tensor, Tensor]:
        """The vectors and biases of pi."""
        return self.actions.weight, self.action_bias.weight.squeeze(1)


def _logged(events: FeedbackBatch) -> Tensor:
    assert events.propensities is not None  # the batches asked for them
    return events.propensities.flatten().log()
