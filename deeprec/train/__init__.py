"""Training: `fit`, sparse optimizers (`deeprec.train.optim`), checkpoints and model folders."""

from deeprec.train.fit import FitResult, Progress, evaluate_model, fit
from deeprec.train.folder import load, save

__all__ = ["FitResult", "Progress", "evaluate_model", "fit", "load", "save"]
