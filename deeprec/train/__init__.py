"""Training: `fit`, `fit_more`, callbacks and loggers, sparse optimizers (`deeprec.train.optim`), checkpoints."""

from deeprec.serve.folder import load, save
from deeprec.train.callbacks import Callback, CallbackError, Progress
from deeprec.train.fit import FitResult, evaluate_model, fit
from deeprec.train.more import fit_more

__all__ = ["Callback", "CallbackError", "FitResult", "Progress", "evaluate_model", "fit", "fit_more", "load", "save"]
