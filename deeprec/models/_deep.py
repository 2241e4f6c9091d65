"""What click models with a network share: its options, and how it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.config import ByData, Only, one_of
from deeprec.data.columns.inputs import Inputs
from deeprec.models._click_attention import AttentionConfig
from deeprec.models._click_defaults import DEEP, NETWORK
from deeprec.models._click_inputs import Part, require_width, without_crosses
from deeprec.models.click import ClickBatch
from deeprec.nn.mlp import MLP, MLP_ACTIVATIONS

NUMERICS = ("embedding", "input")


@dataclass(frozen=True)
class NetworkConfig(AttentionConfig):
    """Options of the network.

    Attributes:
        hidden: widths of the hidden layers, each >= 1.
        activation: of the hidden layers, of `deeprec.nn.mlp.MLP_ACTIVATIONS`.
        dropout: share of a hidden layer's outputs that is dropped, in [0, 1).
        batch_norm: normalise before each activation.
    """

    compiles: ClassVar[bool] = True
    by_data: ClassVar[Mapping[str, ByData]] = NETWORK
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("activation", "dropout"), "hidden layers", lambda config: len(config.hidden) > 0),
    )

    hidden: tuple[int, ...] = (400, 400, 400)
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "activation", MLP_ACTIVATIONS)
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"{type(self).__name__}: hidden must be widths >= 1, got {self.hidden}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{type(self).__name__}: dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class DeepConfig(NetworkConfig):
    """Options of a network over the embeddings of all inputs.

    Attributes:
        numerics: "embedding": a numeric is a field whose vector is multiplied by the value; "input": the numbers go
            into the network as they are.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("batch_norm",), "hidden layers", lambda config: len(config.hidden) > 0),
    )
    by_data: ClassVar[Mapping[str, ByData]] = DEEP

    numerics: str = "embedding"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "numerics", NUMERICS)


def deep_part(model: str, inputs: Inputs, config: DeepConfig) -> tuple[Part, int]:
    """The inputs with embeddings, and the width of what the network is fed: all embeddings, then the raw numbers.

    Raises:
        ValueError: there is no input but crosses.
    """
    require_width(model, without_crosses(inputs), 1, "the deep part")
    part = without_crosses(inputs, numerics=config.numerics == "embedding")
    return part, part.width * config.factors + len(inputs.numerics) - part.num_numerics


def deep_input(embeddings: Tensor | None, batch: ClickBatch, config: DeepConfig) -> Tensor:
    """What the network is fed, [B, width] as `deep_part` says, of embeddings [B, M, D]."""
    if embeddings is None:
        return batch.values
    flat = embeddings.flatten(1)
    if config.numerics == "embedding" or not batch.values.shape[1]:
        return flat
    return torch.cat([flat, batch.values.to(flat.dtype)], 1)


def network(
    config: NetworkConfig, in_features: int, out_features: int | None, generator: torch.Generator | None
) -> MLP:
    """The MLP of a config."""
    return MLP(
        in_features,
        config.hidden,
        out_features=out_features,
        activation=config.activation,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        precision=config.precision,
        generator=generator,
    )


def output_bias_of(mlp: MLP) -> nn.Parameter | None:
    """The bias [1] of the network's one output; None where the last hidden layer is the result."""
    return None if mlp.output is None else mlp.output.bias
