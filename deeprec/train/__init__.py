"""Training: `fit`, `fit_more`, callbacks and loggers, sparse optimizers (`deeprec.train.optim`), checkpoints.

What is offered here is imported when it is first asked for, so that the optimizers need torch and numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeprec.serve.folder import load, save
    from deeprec.train.callbacks import Callback, CallbackError, Progress
    from deeprec.train.fitting import FitResult, evaluate_model, fit
    from deeprec.train.more import fit_more
    from deeprec.train.tuning import Range, Tuned, tune, usual_ranges

__all__ = [
    "Callback",
    "CallbackError",
    "FitResult",
    "Progress",
    "Range",
    "Tuned",
    "evaluate_model",
    "fit",
    "fit_more",
    "load",
    "save",
    "tune",
    "usual_ranges",
]

_MODULES = {
    "deeprec.serve.folder": ("load", "save"),
    "deeprec.train.callbacks": ("Callback", "CallbackError", "Progress"),
    "deeprec.train.fitting": ("FitResult", "evaluate_model", "fit"),
    "deeprec.train.more": ("fit_more",),
    "deeprec.train.tuning": ("Range", "Tuned", "tune", "usual_ranges"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = getattr(importlib.import_module(module), name)
            return globals()[name]
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")  # deeprec.train.optim, without importing it by name
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
