"""Pictures to vectors by any network of timm, where that is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deeprec.nn.layer import check_floating
from deeprec.nn.media_encoder import MediaEncoder


class TimmImage(MediaEncoder):
    """A network of timm without its classifier, and a linear layer to [B, width]; made by `timm_encoder`.

    Args:
        width: D, >= 1.
        network: name of a model of timm, such as "resnet18".
    Raises:
        ImportError: timm is not installed.
    """

    def __init__(self, width: int, network: str) -> None:
        super().__init__(width, {"network": network})
        try:
            timm: Any = importlib.import_module("timm")
        except ImportError:
            raise ImportError(
                f"TimmImage: {network!r} needs timm, which is not installed; pip install timm, or take ImageCNN"
            ) from None
        self.network = timm.create_model(network, pretrained=False, num_classes=0)
        self.output = nn.Linear(self.network.num_features, width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, D] of images [B, 3, H, W], scaled as the network was trained."""
        check_floating("TimmImage", images)
        vectors: Tensor = self.output(self.network(images))
        return vectors


def timm_encoder(network: str, width: int = 64, *, weights: str | Path | None = None) -> TimmImage:
    """An encoder over a network of timm; nothing is fetched.

    Args:
        network: name of a model of timm.
        width: D, >= 1.
        weights: file of safetensors with the weights of the network and of the linear layer, as `save` writes it; None:
            random ones.
    Raises:
        ImportError: timm is not installed. ValueError: weights of another network.
    """
    encoder = TimmImage(width, network)
    if weights is not None:
        encoder.load_weights(weights)
    return encoder
