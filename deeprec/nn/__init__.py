"""Layers over the kernels: plain `torch.nn.Module`s that drop into any PyTorch model."""

from __future__ import annotations

from deeprec.nn.embedding import Embedding
from deeprec.nn.fm import BiInteraction, FMInteraction

__all__ = ["BiInteraction", "Embedding", "FMInteraction"]
