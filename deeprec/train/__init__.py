"""Training: optimizers that understand sparse gradients, and the fit loop."""

from __future__ import annotations
