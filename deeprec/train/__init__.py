"""Training: `fit`, sparse optimizers (`deeprec.train.optim`), checkpoints and model folders."""

from deeprec.serve.folder import load, save
from deeprec.train.fit import FitResult, Progress, evaluate_model, fit

__all__ = ["FitResult", "Progress", "evaluate_model", "fit", "load", "save"]
