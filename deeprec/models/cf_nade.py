"""CF-NADE: ratings by neural autoregressive distribution estimation over item columns (I-) or user rows (U-CF-NADE).

Paper: Zheng, Tang, Ding, Zhou 2016, "A Neural Autoregressive Approach to Collaborative Filtering" (ICML).
Code: Ian09/CF-NADE.
Deviations: the average over orderings that `contexts` asks for is ours; a column without training ratings is predicted
as the mean column of the ratings, where the paper's 3 is `default_rating=3` of the rating protocol. The learning rate
falls to nothing over the training. The defaults of rate and batch were chosen on validation ratings of MovieLens-1M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.levels import SplitBatch, Splits
from deeprec.config import ByData, TrainConfig, at_least
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import running_sums
from deeprec.models._level_scores import level_costs, lookups_up_to
from deeprec.models._levels import LevelConfig, LevelModel, a_share_of_rows
from deeprec.nn.embedding import catch_up


@dataclass(frozen=True)
class CFNADEConfig(LevelConfig):
    """Attributes:
    side: "item" models item columns (I-CF-NADE), "user" user rows (U-CF-NADE).
    hidden: hidden units H, >= 1.
    inner: widths of further hidden layers, (500,) for the paper's model of two layers; () for one.
    rank: J of the factored model, W^k = B A^k and V^k = P^k Q, >= 1; 0: whole matrices.
    shared: whether the vectors of a level are sums of those up to it (CF-NADE-S).
    ordinal: lambda, the share of the ordinal cost in the loss, in [0, 1].
    contexts: 1: a prediction knows all ratings of its row; n >= 2: it is the mean over n contexts, each without another
        n-th of them.
    levels: the ratings that there can be, ascending, two at least.
    batch_size: item columns or user rows a step, >= 1.
    epochs: passes over the ratings.
    """

    by_data: ClassVar[Mapping[str, ByData]] = {"batch_size": a_share_of_rows(16, 256)}

    inner: tuple[int, ...] = ()
    shared: bool = True
    ordinal: float = 1.0
    contexts: int = 1
    epochs: int = 60
    batch_size: int = 256
    lr: float = 0.002
    lr_schedule: str = "linear"
    weight_decay: float = 0.015
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "contexts", 1)
        if min(self.inner, default=1) < 1:
            raise ValueError(f"CFNADEConfig: inner must be widths >= 1, got {self.inner}")
        if not 0 <= self.ordinal <= 1:
            raise ValueError(f"CFNADEConfig: ordinal must lie in [0, 1], got {self.ordinal}")


class CFNADE(LevelModel):
    """p(r_m = k | shown) = softmax_k(s_m), s_m^k = sum over j <= k of b_m^j + V_m^j h.

    h = tanh(c + sum over the ratings r_i that are shown of sum over j <= r_i of W_i^j). Trained on the ordinal cost of
    the ratings that are not shown.
    """

    name = "cf-nade"
    config_class: ClassVar[type[TrainConfig]] = CFNADEConfig
    config: CFNADEConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        rows, width = self._sizes(schema)[1] * len(config.levels), config.rank or config.hidden
        last = config.inner[-1] if config.inner else config.hidden

        def uniform(inputs: int, outputs: int) -> nn.Parameter:
            bound = (6 / (inputs + outputs)) ** 0.5
            return nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator))

        self.encoder = uniform(rows, width)
        self.encoder_bias = nn.Parameter(torch.zeros(config.hidden))
        self.decoder = uniform(rows, config.rank or last)
        self.decoder_bias = nn.Parameter(torch.zeros(rows))
        self.register_parameter("encoder_factors", uniform(width, config.hidden) if config.rank else None)  # B
        self.register_parameter("decoder_factors", uniform(last, width) if config.rank else None)  # Q
        self.encoder_factors: nn.Parameter | None
        self.decoder_factors: nn.Parameter | None
        widths = (config.hidden, *config.inner)
        self.inner_weights = nn.ParameterList([uniform(*pair) for pair in pairwise(widths)])
        self.inner_biases = nn.ParameterDict(
            {f"{place}_bias": nn.Parameter(torch.zeros(size)) for place, size in enumerate(config.inner)}
        )
        self._build_shared(schema, config.contexts)

    def _tables(self) -> list[nn.Parameter]:
        return [self.encoder, self.decoder]

    def batches(self, train: Interactions, seed: int) -> Splits:
        """Rows of ratings, each split at random into what is shown and what is asked."""
        return Splits(self._rows_of(train, seed), self.device)

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, batch: SplitBatch) -> Tensor:
        """Cost of what is asked, weighed as if all of each row were, by the number of ratings."""
        return self._total(batch) / len(batch)

    def backward(self, batch: SplitBatch) -> Tensor:
        """Gradients of the mean over the rows; returns the loss."""
        total = self._total(batch)
        (total / (len(batch.offsets) - 1)).backward()
        return total.detach() / len(batch)

    def _total(self, batch: SplitBatch) -> Tensor:
        self.require_built()
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        codes = self._code(batch.offsets, batch.columns, batch.levels, batch.num_lookups)
        scores = self._scores(codes, batch.asked_offsets, batch.asked_columns)
        return (self._costs(scores, batch.asked_levels) * batch.weights).sum()

    def _code(self, offsets: Tensor, columns: Tensor, levels: Tensor, total: int) -> Tensor:
        """What the decoder's table is multiplied with, [b, C]."""
        num_levels = len(self.config.levels)
        if self.config.shared:
            offsets, lookups = lookups_up_to(offsets, columns, levels, num_levels, total)
        else:
            lookups = columns * num_levels + levels
        if torch.is_grad_enabled():
            catch_up(self.encoder, lookups)
        ones = self.encoder.new_ones(len(lookups))
        if self.encoder_factors is None:
            hidden = sparse_linear(
                offsets,
                lookups,
                ones,
                self.encoder,
                self.encoder_bias,
                activation="tanh",
                sparse_grad=self._gives_sparse_grad,
            )
        else:
            sums = sparse_linear(offsets, lookups, ones, self.encoder, sparse_grad=self._gives_sparse_grad)
            hidden = torch.tanh(torch.addmm(self.encoder_bias, sums, self.encoder_factors))
        for weight, bias in zip(self.inner_weights, self.inner_biases.values(), strict=True):
            hidden = torch.tanh(torch.addmm(bias, hidden, weight))
        return hidden if self.decoder_factors is None else hidden @ self.decoder_factors

    def _levels_of(self, products: Tensor) -> Tensor:
        return running_sums(products, -1) if self.config.shared else products

    def _start_biases(self, log_shares: Tensor) -> Tensor:
        if not self.config.shared:
            return log_shares
        return torch.cat([log_shares[:, :1], log_shares.diff(dim=1)], 1)

    def _costs(self, scores: Tensor, levels: Tensor) -> Tensor:
        return level_costs(scores, levels, self.config.ordinal)

    # -- predictions -------------------------------------------------------------------------------------------------

    def _encode(self, offsets: Tensor, columns: Tensor, levels: Tensor, total: int) -> Tensor:
        contexts = self.config.contexts
        if contexts == 1:
            return self._code(offsets, columns, levels, total).unsqueeze(1)
        # Which context lacks an entry is a matter of its column alone, so that a row has one code whoever else is
        # encoded: Knuth's multiplicative hash.
        lacking = (columns * 2654435761 % (1 << 32)) * contexts >> 32
        codes = []
        for context in range(contexts):
            is_in = lacking != context
            ends = torch.cat([offsets.new_zeros(1), is_in.long().cumsum(0)])
            kept = levels[is_in]
            codes.append(self._code(ends[offsets], columns[is_in], kept, int(kept.sum()) + len(kept)))
        return torch.stack(codes, 1)
