"""deeprec: deep recommender models for PyTorch on fused kernels."""

from __future__ import annotations

__version__ = "0.1.0"
