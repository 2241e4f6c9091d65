"""RBM: ratings by a restricted Boltzmann machine over user rows (U-RBM) or item columns (I-RBM).

Paper: Salakhutdinov, Mnih, Hinton 2007, "Restricted Boltzmann Machines for Collaborative Filtering" (ICML).
Code: none of the authors'; another one in mesuvash/NNRec.
Deviations: the conditional model knows which items were rated from the training ratings alone, where the paper adds
those of the test part. Gaussian hidden units have variance 1, as their scale is that of the weights. In both phases
the hidden units enter the gradient by their probabilities (the free energy's), samples only lead the chain.
`visible="binomial"`, the visible units that softmax ones are compared with, is the softmax model whose vectors of a
level are the level times one vector: a rating is the number of successes in K - 1 trials. A column without training
ratings is predicted as the mean column of the ratings. Adam, whose steps do not depend on how many rated a column,
takes the place of the paper's steps with momentum (`optimizer="sgd"`, `momentum=0.9`); rate and batch were chosen on
validation ratings of MovieLens-100K and MovieLens-1M.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.levels import ChainBatch, Chains
from deeprec.config import ByData, Only, TrainConfig, one_of
from deeprec.contract import OptimizerOptions, Schema
from deeprec.data import Interactions
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import running_sums
from deeprec.models._level_scores import level_lookups
from deeprec.models._levels import LevelConfig, LevelModel, a_share_of_rows
from deeprec.nn.embedding import catch_up

VISIBLE = ("softmax", "binomial")
HIDDEN = ("bernoulli", "gaussian")
PREDICTIONS = ("mean-field", "exact")
_NUMBERS_A_BLOCK = 1 << 22


@dataclass(frozen=True)
class RBMConfig(LevelConfig):
    """Attributes:
    side: "user" models user rows, as the paper, "item" item columns.
    visible: units of the ratings, "softmax" or "binomial".
    units: hidden units, "bernoulli" or "gaussian".
    hidden: how many, >= 1.
    conditional: whether the hidden units depend on which columns a row has, too.
    rank: C of the factored model, W^k = A^k B, >= 1; 0: whole matrices.
    cd_steps: steps of the chains of contrastive divergence, each >= 1; equal parts of the training take them in turn.
    prediction: "mean-field" or "exact", with the hidden units summed out; it takes longer.
    momentum: of the steps, in [0, 1); "sgd" only.
    init_std: standard deviation of the initial weights, > 0.
    levels: the ratings that there can be, ascending, two at least.
    batch_size: user rows or item columns a step, >= 1.
    epochs: passes over the ratings.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("momentum",), "the optimizer sgd", lambda config: config.optimizer == "sgd"),
    )

    by_data: ClassVar[Mapping[str, ByData]] = {"batch_size": a_share_of_rows(32, 128)}

    side: str = "user"
    visible: str = "softmax"
    units: str = "bernoulli"
    hidden: int = 100
    conditional: bool = True
    cd_steps: tuple[int, ...] = (1, 3, 5, 9)
    prediction: str = "mean-field"
    momentum: float = 0.0
    init_std: float = 0.01
    epochs: int = 40
    batch_size: int = 128
    lr: float = 0.005
    lr_schedule: str = "linear"
    weight_decay: float = 0.001
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (("visible", VISIBLE), ("units", HIDDEN), ("prediction", PREDICTIONS)):
            one_of(self, name, options)
        if min(self.cd_steps, default=0) < 1:
            raise ValueError(f"RBMConfig: cd_steps must be one number or more, each >= 1, got {self.cd_steps}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"RBMConfig: momentum must lie in [0, 1), got {self.momentum}")
        if not self.init_std > 0:
            raise ValueError(f"RBMConfig: init_std must be > 0, got {self.init_std}")

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """With the momentum."""
        return super().optimizer_options(group)._replace(momentum=self.momentum)


class RBM(LevelModel):
    """E(V, h) = -sum of W_mj^k h_j v_m^k - sum of v_m^k b_m^k - sum of h_j b_j, over the columns m that a row has.

    With Gaussian hidden units the sum of (h_j - b_j)^2 / 2 in place of the last one. Trained by contrastive divergence.
    """

    name = "rbm"
    config_class: ClassVar[type[TrainConfig]] = RBMConfig
    config: RBMConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        columns = self._sizes(schema)[1]
        rows = columns * (len(config.levels) if config.visible == "softmax" else 1)
        std = config.init_std

        def normal(count: int, width: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, width).normal_(0.0, std, generator=generator))

        # Of the factored model A, and B such that their product has the standard deviation.
        self.decoder = normal(rows, config.rank or config.hidden, std)
        self.decoder_bias = nn.Parameter(torch.zeros(rows))
        self.register_parameter(
            "factors", normal(config.rank, config.hidden, config.rank**-0.5) if config.rank else None
        )
        self.factors: nn.Parameter | None
        self.hidden_bias = nn.Parameter(torch.zeros(config.hidden))
        self.register_parameter(
            "rated", nn.Parameter(torch.zeros(columns, config.hidden)) if config.conditional else None
        )
        self.rated: nn.Parameter | None  # D
        counts = torch.tensor([math.log(math.comb(len(config.levels) - 1, k)) for k in range(len(config.levels))])
        self.register_buffer("log_ways", counts, persistent=False)
        self.log_ways: Tensor
        self._build_shared(schema, code_width=config.hidden if config.prediction == "exact" else None)

    def _tables(self) -> list[nn.Parameter]:
        return [self.decoder, *([] if self.rated is None else [self.rated])]

    def batches(self, train: Interactions, seed: int) -> Chains:
        """Rows of ratings with the noise of their chains."""
        config = self.config

        def steps(epoch: int) -> int:
            place = epoch * len(config.cd_steps) // config.epochs
            return config.cd_steps[min(place, len(config.cd_steps) - 1)]

        rows = self._rows_of(train, seed)
        return Chains(rows, self.device, steps=steps, hidden=config.hidden, is_normal=config.units == "gaussian")

    # -- the machine -------------------------------------------------------------------------------------------------

    def _visible(self, columns: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table for entries [n], and what they count with."""
        if self.config.visible == "binomial":
            return columns, levels.to(self.decoder.dtype)
        return columns * self.per_column + levels, self.decoder.new_ones(len(columns))

    def _inputs(self, offsets: Tensor, columns: Tensor, levels: Tensor) -> Tensor:
        """What the hidden units of rows get from the ratings, W^T v, [b, H]."""
        places, values = self._visible(columns, levels)
        sums = sparse_linear(offsets, places, values, self.decoder, sparse_grad=self._gives_sparse_grad)
        return sums if self.factors is None else sums @ self.factors

    def _from_rated(self, offsets: Tensor, columns: Tensor) -> Tensor:
        """What they get beside that, b + D^T r, [b, H] or [1, H]."""
        if self.rated is None:
            return self.hidden_bias.unsqueeze(0)
        ones = self.rated.new_ones(len(columns))
        return sparse_linear(offsets, columns, ones, self.rated, self.hidden_bias, sparse_grad=self._gives_sparse_grad)

    def _means(self, totals: Tensor) -> Tensor:
        """Expected hidden units of what they get."""
        return torch.sigmoid(totals) if self.config.units == "bernoulli" else totals

    def _log_sums(self, totals: Tensor) -> Tensor:
        """Logarithm of the sum over the states of a hidden unit, by what it gets."""
        return F.softplus(totals) if self.config.units == "bernoulli" else totals.square() / 2

    def _to_code(self, hidden: Tensor) -> Tensor:
        """What the table is multiplied with, [b, C]."""
        return hidden if self.factors is None else hidden @ self.factors.T

    def _levels_of(self, products: Tensor) -> Tensor:
        if self.config.visible == "softmax":
            return products
        each = torch.arange(len(self.scale), device=products.device, dtype=products.dtype)
        return products * each + self.log_ways

    def free_energy(self, offsets: Tensor, columns: Tensor, levels: Tensor, rated: Tensor | None = None) -> Tensor:
        """-log of the sum over h of exp(-E(V, h)), [b], of rows with the levels at the columns, both int64 [n].

        Args:
            offsets: [b + 1], int64.
            rated: [b, H] what the hidden units get of which columns there are; None: it is computed.
        """
        places, values = self._visible(columns, levels)
        rated = self._from_rated(offsets, columns) if rated is None else rated
        totals = self._inputs(offsets, columns, levels) + rated
        biases = sparse_linear(offsets, places, values, self.decoder_bias.unsqueeze(1), sparse_grad=False).squeeze(1)
        if self.config.visible == "binomial":
            ways = sparse_linear(offsets, levels, torch.ones_like(values), self.log_ways.unsqueeze(1)).squeeze(1)
            biases = biases + ways
        # A normal hidden unit has the energy (h - b)^2 / 2, of which b^2 / 2 stays.
        sums = self._log_sums(totals) if self.config.units == "bernoulli" else (totals.square() - rated.square()) / 2
        return -biases - sums.sum(1)

    @torch.no_grad()
    def chain(self, batch: ChainBatch, rated: Tensor) -> Tensor:
        """Levels [n] that Gibbs sampling from those of the batch ends at; `rated` as in `free_energy`."""
        levels = batch.levels
        for of_hidden, of_visible in zip(batch.hidden_noise, batch.visible_noise, strict=True):
            means = self._means(self._inputs(batch.offsets, batch.columns, levels) + rated)
            is_bernoulli = self.config.units == "bernoulli"
            hidden = (of_hidden < means).to(means.dtype) if is_bernoulli else means + of_hidden
            shares = self._scores(self._to_code(hidden), batch.offsets, batch.columns).softmax(1)
            levels = (running_sums(shares, 1)[:, :-1] < of_visible.unsqueeze(1)).sum(1)
        return levels

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, batch: ChainBatch) -> Tensor:
        """Free energy of the rows less that of where their chains end, by the number of ratings.

        Its gradient is that of contrastive divergence; its value says little, as it compares no two epochs.
        """
        return self._total(batch) / len(batch)

    def backward(self, batch: ChainBatch) -> Tensor:
        """Gradients of the mean over the rows; returns the loss."""
        total = self._total(batch)
        (total / (len(batch.offsets) - 1)).backward()
        return total.detach() / len(batch)

    def _total(self, batch: ChainBatch) -> Tensor:
        self.require_built()
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        if torch.is_grad_enabled():  # also before the chain, which reads the table without a gradient
            catch_up(self.decoder, level_lookups(batch.columns, self.per_column))
            if self.rated is not None:
                catch_up(self.rated, batch.columns)
        rated = self._from_rated(batch.offsets, batch.columns).expand(len(batch.offsets) - 1, -1)
        sampled = self.chain(batch, rated.detach())
        # Both in one pass: 2 b rows, of which each entry has two.
        offsets = torch.cat([batch.offsets, batch.offsets[1:] + len(batch)])
        columns, levels = torch.cat([batch.columns, batch.columns]), torch.cat([batch.levels, sampled])
        first, second = self.free_energy(offsets, columns, levels, torch.cat([rated, rated])).chunk(2)
        return (first - second).sum()

    def _start_biases(self, log_shares: Tensor) -> Tensor:
        if self.config.visible == "softmax":
            return log_shares
        # The binomial with the same mean.
        each = torch.arange(log_shares.shape[1], dtype=log_shares.dtype)
        mean = (log_shares.exp() @ each).unsqueeze(1) / (len(each) - 1)
        return torch.logit(mean, eps=1e-4)

    def _costs(self, scores: Tensor, levels: Tensor) -> Tensor:
        return F.cross_entropy(scores, levels, reduction="none")

    # -- predictions -------------------------------------------------------------------------------------------------

    def _all_scores(self, codes: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        if self.config.prediction == "mean-field":
            return super()._all_scores(codes, vectors, biases)
        weights, biases = self._of_levels(vectors, biases)
        step = max(1, _NUMBERS_A_BLOCK // max(1, weights.numel()))
        blocks = [self._log_sums(block[:, None, None] + weights).sum(-1) for block in codes.split(step)]
        return torch.cat([codes.new_empty(0, *biases.shape), *blocks]) + biases

    def _pair_scores(self, codes: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        if self.config.prediction == "mean-field":
            return super()._pair_scores(codes, vectors, biases)
        weights, biases = self._of_levels(vectors, biases)
        return self._log_sums(codes.unsqueeze(2) + weights.unsqueeze(1)).sum(-1) + biases.unsqueeze(1)

    def _of_levels(self, vectors: Tensor, biases: Tensor) -> tuple[Tensor, Tensor]:
        """W [n, K, H] and b [n, K] of columns, of their vectors and biases in the table."""
        weights = vectors if self.factors is None else vectors @ self.factors
        if self.config.visible == "softmax":
            return weights, biases
        each = torch.arange(len(self.scale), device=weights.device, dtype=weights.dtype)
        return weights * each.unsqueeze(1), biases * each + self.log_ways

    def _encode(self, offsets: Tensor, columns: Tensor, levels: Tensor, total: int) -> Tensor:
        totals = self._inputs(offsets, columns, levels) + self._from_rated(offsets, columns)
        if self.config.prediction == "exact":
            return totals.unsqueeze(1)
        return self._to_code(self._means(totals)).unsqueeze(1)
