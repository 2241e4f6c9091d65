"""Adversarial training of models that learn from pairs, and the attack that it defends against.

Paper: He, He, Du, Chua 2018, "Adversarial Personalized Ranking for Recommendation" (SIGIR, arXiv 1808.03908), section
3: L(Theta) + lambda L(Theta + Delta), where Delta moves each vector by epsilon the way in which the loss rises fastest.
Code: hexiangnan/adversarial_personalized_ranking (AMF.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.config import Only, TrainConfig, at_least, one_of
from deeprec.kernels.sums import add_rows
from deeprec.models.base import Recommender

PERTURBATIONS = ("adversarial", "random")
_OPTIONS = ("epsilon", "perturbation", "plain_epochs", "plain_lr")  # which mean something beside `adversarial`


@dataclass(frozen=True)
class AdversarialConfig(TrainConfig):
    """Attributes:
    adversarial: lambda >= 0, the weight of the loss where the vectors are perturbed; 0 trains without.
    epsilon: length by which each vector is moved, >= 0; it is of use beside the length that vectors have after training
        without, so that another scale of the weights needs another one.
    perturbation: "adversarial", along the gradient of the loss, or "random", any way, to compare it with.
    plain_epochs: epochs of training without perturbations first, >= 0, by default as many as `epochs`; adversarial
        training goes on from the one that validation chooses, with an optimizer that begins anew. 0: it begins from
        the initial weights, which the paper does not.
    plain_lr: learning rate of these, > 0, by default `lr`; a rate below it keeps the second start of the optimizer from
        undoing what the first has reached.
    """

    conditions: ClassVar[tuple[Only, ...]] = (Only(_OPTIONS, "adversarial > 0", lambda config: config.adversarial > 0),)

    adversarial: float = 0.0
    epsilon: float = 0.1
    perturbation: str = "adversarial"
    plain_epochs: int | None = None
    plain_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "adversarial", 0)
        at_least(self, "epsilon", 0)
        if self.plain_epochs is not None:
            at_least(self, "plain_epochs", 0)
        if self.plain_lr is not None and not self.plain_lr > 0:
            raise ValueError(f"{type(self).__name__}: plain_lr must be > 0, got {self.plain_lr}")
        one_of(self, "perturbation", PERTURBATIONS)

    def plain(self) -> AdversarialConfig:
        """The config of the training without perturbations that comes first."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        idle: dict[str, Any] = {name: defaults[name] for name in _OPTIONS}
        epochs, lr = self.plain_epochs or self.epochs, self.plain_lr or self.lr
        return dataclasses.replace(self, **idle, adversarial=0.0, epochs=epochs, lr=lr)


class AdversarialRecommender(Recommender):
    """A model that learns from pairs, whose training may be adversarial (`AdversarialConfig`)."""

    config: AdversarialConfig

    # -- what a model implements -------------------------------------------------------------------------------------

    def terms(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """The loss of a batch that perturbations are to raise, and its L2 term, None for none; both differentiable."""
        raise NotImplementedError

    def attacked(self) -> Sequence[Tensor]:
        """The tables [R, D] whose rows are perturbed, leaves that `terms` looks up; they need not be parameters."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what was computed from the tables before they were changed."""

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def is_adversarial(self) -> bool:
        """Whether training is; a model of one's own may have a config without the options."""
        return getattr(self.config, "adversarial", 0.0) > 0

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch without perturbations."""
        loss, l2 = self.terms(batch)
        return loss if l2 is None else loss + l2

    def backward(self, batch: Any) -> Tensor:
        """The gradients of loss(Theta) + lambda loss(Theta + Delta), Delta taken as a constant; L2 is not perturbed."""
        config = self.config
        if not self.is_adversarial:
            return super().backward(batch)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with _differentiable(self.attacked()) as tables:
            loss, l2 = self.terms(batch)
            leaves = [*parameters, *tables]
            gradients = torch.autograd.grad(loss, leaves, retain_graph=l2 is not None, allow_unused=True)
            moves = [_move(gradient, config) for gradient in gradients[len(parameters) :]]
        _accumulate(parameters, gradients)
        total = loss.detach()
        if l2 is not None:
            l2.backward()
            total = total + l2.detach()
        with _moved(tables, moves):
            loss = config.adversarial * self.terms(batch)[0]
            _accumulate(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
        return total + loss.detach()

    def warm_start(self, train_stage: Callable[[Any], Any]) -> bool:
        """Train without perturbations first."""
        if not self.is_adversarial or self.config.plain_epochs == 0:
            return super().warm_start(train_stage)
        plain = train_stage(type(self)(config=self.config.plain()))
        self.load_state_dict(plain.state_dict())
        return True

    # -- the attack --------------------------------------------------------------------------------------------------

    @contextmanager
    def under_attack(self, train: Any, epsilon: float, *, kind: str = "adversarial", seed: int = 0) -> Iterator[None]:
        """Within it each row of `attacked` is moved by epsilon, as the loss on all of `train` rises fastest (2.2).

        Args:
            train: interactions by the model's ids, best those it was trained on; an epoch of them with negatives by
                `seed` is gone through.
            epsilon: length of the moves, >= 0. A row without a gradient stays.
            kind: "adversarial", or "random" for moves of that length any way.
            seed: of the negatives, or of the random moves.
        Raises:
            ValueError: a negative epsilon, another kind, data of other sizes, or a model without weights.
        """
        if not epsilon >= 0 or kind not in PERTURBATIONS:
            raise ValueError(
                f"under_attack: epsilon must be >= 0 and kind one of {', '.join(PERTURBATIONS)}, got {epsilon} and "
                f"{kind!r}"
            )
        schema = self.require_built()
        if (train.num_users, train.num_items) != (schema.num_users, schema.num_items):
            raise ValueError(
                f"under_attack: train must have the {schema.num_users} users and {schema.num_items} items of the "
                f"model, got {train.num_users} and {train.num_items}; pass what it was trained on"
            )
        sums = [torch.zeros_like(table) for table in self.attacked()]
        if kind == "random":
            generator = torch.Generator().manual_seed(seed)
            sums = [torch.randn(each.shape, generator=generator).to(each) for each in sums]
        else:
            for batch in super().batches(train, seed).epoch(0):
                with _differentiable(self.attacked()) as tables:
                    loss = self.terms(batch)[0]
                    for each, gradient in zip(sums, torch.autograd.grad(loss, tables), strict=True):
                        if gradient.is_sparse:
                            add_rows(each, gradient._indices()[0], gradient._values())
                        else:
                            each.add_(gradient)
        moves = [(None, epsilon * F.normalize(each, dim=1)) for each in sums]
        with _moved(self.attacked(), moves):
            self.forget()
            yield
        self.forget()


_Move = tuple[Tensor | None, Tensor]  # rows [U], distinct, None for all; by how much, [U, D]


@contextmanager
def _differentiable(tables: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Tables that do not learn have gradients within it, too."""
    fixed = [table for table in tables if not table.requires_grad]
    for table in fixed:
        table.requires_grad_()
    try:
        yield tables
    finally:
        for table in fixed:
            table.requires_grad_(False)


@torch.no_grad()
def _move(gradient: Tensor | None, config: AdversarialConfig) -> _Move | None:
    """epsilon Gamma / |Gamma| of each row (eq. 9); Gamma of an item sums over all its roles in the batch."""
    if gradient is None:
        return None
    rows: Tensor | None = None
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        rows, gradient = gradient.indices()[0], gradient.values()
    if config.perturbation == "random":
        gradient = torch.randn_like(gradient)
    return rows, config.epsilon * F.normalize(gradient, dim=1)  # zeros, where there is no gradient, stay zeros


@contextmanager
def _moved(tables: Sequence[Tensor], moves: Sequence[_Move | None]) -> Iterator[None]:
    """Tables with their moves within it, and with the bits that they had after it."""
    kept = []
    with torch.no_grad():
        for table, move in zip(tables, moves, strict=True):
            if move is not None:
                rows, by = move
                before = table.clone() if rows is None else table.index_select(0, rows)
                kept.append((table, rows, before))
                _write(table, rows, before + by)
    try:
        yield
    finally:
        with torch.no_grad():
            for table, rows, before in kept:
                _write(table, rows, before)


def _write(table: Tensor, rows: Tensor | None, values: Tensor) -> None:
    if rows is None:
        table.copy_(values)
    else:
        table.index_copy_(0, rows, values)


def _accumulate(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those that the parameters have, as `backward` does; further gradients are passed over."""
    for parameter, gradient in zip(parameters, gradients, strict=False):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
