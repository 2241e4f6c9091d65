"""FM: a factorisation machine over the columns of a log.

Paper: Rendle 2010, "Factorization Machines", eq. 1; for the logistic loss Rendle 2012 (libFM), section 3.2.
Official code: github.com/srendle/libfm.
Deviations: by default a bag of ids is one variable, the pooled vector of its ids, so that ids of one bag do not
interact, and so is a sequence; with pairs "entries" each id is a variable, as in libFM, those of a sequence with
vectors of their own. Crosses have first-order weights only. Trained by mini-batches of any optimizer; libFM's groups of
regularisation constants are `weight_decay` and `embedding_l2`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.config import ByData, one_of
from deeprec.data.columns.inputs import Inputs
from deeprec.models._click_defaults import VECTORS
from deeprec.models._click_inputs import FMTerms, LinearTerms, Part, fm_tables, require_width, without_crosses
from deeprec.models.click import ClickBatch, ClickConfig, ClickModel, FirstOrderConfig
from deeprec.nn import FactorizationMachine

_logger = logging.getLogger("deeprec")

PAIRS = ("inputs", "entries")


@dataclass(frozen=True)
class FMConfig(FirstOrderConfig):
    """Attributes: those of `FirstOrderConfig`; a numeric is a field with a value. And
    pairs: "inputs": of fields, numerics and pooled bags; "entries": of all ids, those of one bag too, which is what a
        log of a single bag (libSVM's format) needs.
    """

    unused: ClassVar[tuple[str, ...]] = (*FirstOrderConfig.unused, "precision")
    by_data: ClassVar[Mapping[str, ByData]] = VECTORS

    pairs: str = "inputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "pairs", PAIRS)


class FM(ClickModel):
    """logit = w_0 + sum_i w_i x_i + sum_{i<j} v_i . v_j x_i x_j, Rendle 2010, eq. 1."""

    name = "fm"
    config_class: ClassVar[type[ClickConfig]] = FMConfig
    config: FMConfig

    def _build(self, inputs: Inputs, generator: torch.Generator | None) -> None:
        part = without_crosses(inputs)
        require_width(self.name, part, 1, "the inputs")
        if part.width == 1 and self.config.pairs == "inputs":
            what = (
                "pairs=entries pairs its ids" if part.bags or part.sequences else "the model is a logistic regression"
            )
            _logger.warning("fm: the one input has nothing to pair with; %s", what)
        factors = self.config.factors
        self.terms: FMTerms | EntryTerms
        if self.config.pairs == "entries":
            self.terms = EntryTerms(inputs, factors, generator)
        else:
            self.terms = FMTerms(inputs, factors, generator, return_embeddings=False)

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v."""
        return self.terms.embedding_tables()

    def output_bias(self) -> nn.Parameter | None:
        """w_0."""
        return self.terms.bias

    def forward(self, batch: ClickBatch) -> Tensor:
        """Logits [B]."""
        self.check(batch)
        logit: Tensor
        logit, _ = self.terms(batch)
        return logit


class EntryTerms(nn.Module):
    """As `FMTerms`, with a variable for each id of a bag: x is its weight, by the number of ids with pooling "mean".

    Args:
        inputs: of the model.
        dim: D.
        generator: source of the initial weights.
    """

    def __init__(self, inputs: Inputs, dim: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.part = without_crosses(inputs).with_sequences_as_bags()
        self.fm = FactorizationMachine(fm_tables(self.part, dim, bags=True), generator=generator)
        numbers = tuple(number for number, field in enumerate(inputs.fields) if field.is_cross)
        crosses = Part(inputs, numbers, False, tuple(bag for bag in inputs.bags if bag.is_cross))
        self.rest = LinearTerms(crosses, bias=False) if crosses.width else None

    @property
    def bias(self) -> nn.Parameter | None:
        """w_0."""
        return self.fm.bias

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v, [R, D] each."""
        return self.fm.weights()

    def forward(self, batch: ClickBatch) -> tuple[Tensor, None]:
        """Logits [B]."""
        inputs, dtype = self.part.inputs, self.fm.weights()[0].dtype
        ids: dict[str, Tensor | tuple[Tensor, Tensor]] = {
            inputs.fields[number].name: batch.ids[:, number] for number in self.part.fields
        }
        values: dict[str, Tensor] = {}
        for number, name in enumerate(inputs.numerics):
            ids[name] = batch.ids.new_full((len(batch.ids),), number)
            values[name] = batch.values[:, number].to(dtype)
        for bag in self.part.bags:
            bag_ids, offsets, weights = batch.bags[bag.name]
            ids[bag.name] = (bag_ids, offsets)
            if weights is not None:
                values[bag.name] = weights.to(dtype)
            if bag.pooling == "mean":
                count = offsets.diff()
                share = count.to(dtype).reciprocal().repeat_interleave(count, output_size=len(bag_ids))
                values[bag.name] = values[bag.name] * share if bag.name in values else share
        logit = self.fm(ids, values=values)
        return (logit if self.rest is None else logit + self.rest(batch)), None
