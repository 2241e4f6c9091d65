"""The options of GRU4Rec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.batches.sessions import SESSION_ORDERS
from deeprec.config import Only, at_least, one_of
from deeprec.contract import OptimizerOptions
from deeprec.models._sequence_model import SequenceConfig
from deeprec.models._session_losses import PAIRWISE_LOSSES, SESSION_LOSSES

INPUTS = ("constrained", "separate", "one-hot")
NEGATIVES = ("mixed", "in-batch", "full")
BATCHINGS = ("sessions", "windows")
_EPS = 1e-6  # of the authors' AdaGrad, inside the root


@dataclass(frozen=True)
class GRU4RecConfig(SequenceConfig):
    """Attributes:
    factors: H, width of the states and of the item vectors, >= 1.
    num_layers: GRU layers, >= 1.
    input: "constrained": the item vectors of the output; "separate": vectors of their own; "one-hot": the rows of the
        first layer's input matrix, an embedding of width 3H.
    embedding_dim: width of separate input vectors, >= 1; 0: H.
    dropout_embed, dropout_hidden: shares in [0, 1) of the input vectors, and of every layer's states, that are zeroed.
    loss: "cross-entropy", "top1", "bpr", "top1-max" or "bpr-max", see `pairwise_losses`.
    negatives: what a target stands against: "in-batch", the targets of the other lanes; "mixed", these and
        `num_negatives` items drawn for the step; "full", all items (cross-entropy only).
    num_negatives: items drawn for a step, shared by all lanes, >= 1.
    alpha: they are drawn by popularity^alpha, >= 0; 0: uniformly.
    log_q: logits are lowered by log_q times the logarithm of an item's count, alpha times that for drawn ones, the
        target's own too, as the authors do; >= 0, 0: not.
    mask_targets: leave out negatives that are the row's own target; the authors leave them in.
    bpreg, elu: of BPR-max, see `pairwise_losses`.
    momentum: of the steps, in [0, 1); AdaGrad only.
    batching: "sessions": session-parallel; "windows": the last `length` items of each user at once, cross-entropy over
        all items.
    session_order: "time": sessions by their first event, in every epoch; "shuffled": anew in each.
    length: of windows, >= 1; states are of whole histories.
    batch_size: lanes B, or windows a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "reduction", "precision", "accumulate")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("num_negatives", "alpha"), "negatives of mixed", lambda config: config.negatives == "mixed"),
        Only(
            ("log_q",),
            "a loss of cross-entropy and negatives of mixed or in-batch",
            lambda config: config.loss == "cross-entropy" and config.negatives != "full",
        ),
        Only(("mask_targets",), "negatives of mixed or in-batch", lambda config: config.negatives != "full"),
        Only(("bpreg", "elu"), "a loss of bpr-max", lambda config: config.loss == "bpr-max"),
        Only(("embedding_dim",), "an input of separate", lambda config: config.input == "separate"),
        Only(("dropout_embed",), "an input of constrained or separate", lambda config: config.input != "one-hot"),
        Only(("momentum",), "the optimizer adagrad", lambda config: config.optimizer == "adagrad"),
        Only(("length",), "batching of windows", lambda config: config.batching == "windows"),
        Only(("session_order",), "batching of sessions", lambda config: config.batching == "sessions"),
    )

    factors: int = 100
    num_layers: int = 1
    input: str = "constrained"
    embedding_dim: int = 0
    dropout_embed: float = 0.0
    dropout_hidden: float = 0.0
    loss: str = "cross-entropy"
    negatives: str = "mixed"
    num_negatives: int = 2048
    alpha: float = 0.5
    log_q: float = 0.0
    mask_targets: bool = False
    bpreg: float = 1.0
    elu: float = 0.5
    momentum: float = 0.0
    batching: str = "sessions"
    session_order: str = "time"
    length: int = 200
    batch_size: int = 64
    optimizer: str = "adagrad"
    lr: float = 0.05
    epochs: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        at_least(self, "num_layers", 1)
        for name in ("embedding_dim", "alpha", "log_q", "bpreg", "elu"):
            at_least(self, name, 0)
        for name in ("dropout_embed", "dropout_hidden", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{owner}: {name} must lie in [0, 1), got {getattr(self, name)}")
        one_of(self, "input", INPUTS)
        one_of(self, "loss", SESSION_LOSSES)
        one_of(self, "negatives", NEGATIVES)
        one_of(self, "batching", BATCHINGS)
        one_of(self, "session_order", SESSION_ORDERS)
        if self.loss in PAIRWISE_LOSSES and self.negatives == "full":
            raise ValueError(
                f"{owner}: negatives 'full' go with the loss cross-entropy, got {self.loss!r}; take 'mixed'"
            )
        if self.batching == "windows" and (self.loss != "cross-entropy" or self.negatives != "full"):
            raise ValueError(
                f"{owner}: batching 'windows' goes with cross-entropy over all items, got loss {self.loss!r} and "
                f"negatives {self.negatives!r}; take negatives='full', or batching='sessions'"
            )

    def optimizer_options(self, group: str) -> OptimizerOptions:
        """Of all parameters."""
        options = super().optimizer_options(group)
        if self.optimizer != "adagrad":
            return options
        return options._replace(start=_EPS, momentum=self.momentum)
