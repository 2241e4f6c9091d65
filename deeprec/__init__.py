"""deeprec: deep recommender models for PyTorch on fused kernels.

    import deeprec
    model = deeprec.models.NeuMF(factors=32).fit("ml-1m", protocol="ncf")
    model.recommend(user_ids=[1, 2], k=10)
    model.save("my-model"); deeprec.load("my-model")

Submodules are imported when first used, so `import deeprec` is quick and `deeprec.kernels` needs torch alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeprec import data, evaluate, models, nn, pipeline, serve, train
    from deeprec import http as http
    from deeprec.serve.folder import load

__version__ = "0.1.0"
__all__ = ["__version__", "data", "evaluate", "load", "models", "nn", "pipeline", "serve", "train"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("deeprec.serve.folder").load
    if name in (*__all__, "http"):  # the service needs packages that not everybody has
        return importlib.import_module(f"deeprec.{name}")
    raise AttributeError(f"module 'deeprec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
