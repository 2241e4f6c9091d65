"""How click models with a network look at a history: pooled, or weighed by the candidate."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from deeprec.config import Only, at_least, one_of
from deeprec.data.columns.inputs import Inputs, SequenceField
from deeprec.models._click_sequences import Attend
from deeprec.models.click import ClickConfig
from deeprec.nn.target_attention import UNIT_ACTIVATIONS, WEIGHTS, ActivationUnit, BehaviorTransformer

_logger = logging.getLogger("deeprec")

ATTENTION = ("none", "din", "bst")


@dataclass(frozen=True)
class AttentionConfig(ClickConfig):
    """Options for sequences with the vocabulary of another column, such as the items before the item of the row.

    Attributes:
        attention: "none": they are pooled as the schema says; "din": a sum of the entries weighed by an
            `ActivationUnit`; "bst": a `BehaviorTransformer` over the entries and the row's own id, for which the schema
            must give a length. Other sequences are always pooled.
        attention_hidden: widths of the activation unit's hidden layers, each >= 1.
        attention_activation: of these, of `deeprec.nn.target_attention.UNIT_ACTIVATIONS`.
        attention_weights: "softmax" over a history, as the authors' code, or "raw", as the paper.
        attention_heads, attention_blocks: of the Transformer, >= 1; heads must divide its width, `factors` times the
            number of parallel sequences.
        attention_dropout: within the Transformer, in [0, 1).
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(
            ("attention_hidden", "attention_activation", "attention_weights"),
            "attention=din",
            lambda config: config.attention == "din",
        ),
        Only(
            ("attention_heads", "attention_blocks", "attention_dropout"),
            "attention=bst",
            lambda config: config.attention == "bst",
        ),
    )

    attention: str = "none"
    attention_hidden: tuple[int, ...] = (80, 40)
    attention_activation: str = "sigmoid"
    attention_weights: str = "softmax"
    attention_heads: int = 2
    attention_blocks: int = 1
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "attention", ATTENTION)
        one_of(self, "attention_activation", UNIT_ACTIVATIONS)
        one_of(self, "attention_weights", WEIGHTS)
        at_least(self, "attention_heads", 1)
        at_least(self, "attention_blocks", 1)
        name = type(self).__name__
        if not self.attention_hidden or min(self.attention_hidden) < 1:
            raise ValueError(f"{name}: attention_hidden must be one or more widths >= 1, got {self.attention_hidden}")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"{name}: attention_dropout must lie in [0, 1), got {self.attention_dropout}")


def attention_of(
    model: str, config: AttentionConfig, inputs: Inputs, generator: torch.Generator | None
) -> Attend | None:
    """What makes the attention that a config asks for; None where sequences are pooled.

    Raises (when it is called):
        ValueError: "bst" for a sequence without a length, or a width that the heads do not divide.
    """
    if config.attention == "none":
        return None
    if not any(sequence.vocabulary for sequence in inputs.sequences):
        _logger.warning(
            "%s: attention=%s has nothing to weigh: no sequence of the schema has the vocabulary of another column",
            model,
            config.attention,
        )

    def attend(sequence: SequenceField, width: int) -> nn.Module:
        if config.attention == "din":
            return ActivationUnit(
                width,
                config.attention_hidden,
                activation=config.attention_activation,
                weights=config.attention_weights,
                generator=generator,
            )
        if sequence.length is None:
            raise ValueError(
                f"{model}: attention=bst needs a length of {sequence.name!r}, got None; set length: 50 in the schema, "
                "or take attention=din"
            )
        if width % config.attention_heads:
            raise ValueError(
                f"{model}: attention_heads must divide the width of {sequence.name!r} with what is parallel to it, "
                f"{width}, got {config.attention_heads}; take other factors or heads"
            )
        return BehaviorTransformer(
            width,
            sequence.length,
            heads=config.attention_heads,
            blocks=config.attention_blocks,
            dropout=config.attention_dropout,
            generator=generator,
        )

    return attend
