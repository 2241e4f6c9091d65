"""Options that all models of two towers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.batches.towers import LOG_Q, NEGATIVES
from deeprec.batches.user_rows import POOLINGS
from deeprec.config import Only, TrainConfig, at_least, chosen_of, one_of
from deeprec.data.columns.terms import WEIGHTINGS
from deeprec.models._item_encoders import check_encoders
from deeprec.nn.mlp import ACTIVATIONS

USER_INPUTS = ("id", "history", "features")
ITEM_INPUTS = ("id", "features")
SIMILARITIES = ("dot", "cosine")

_DRAWS = ("sampled", "mixed", "row")


@dataclass(frozen=True)
class TowerConfig(TrainConfig):
    """Attributes:
    user_inputs: what a user's tower reads: "id"; "history", the items met, as a multi-hot, in training without the
        positive of the row; "features", the columns of the data's user table.
    item_inputs: what an item's tower reads: "id"; "features", the columns of the item table.
    encoders: columns of the table of items that a network reads, trained with the model: texts with tokens (`TextCNN`),
        images, sounds and videos (`ImageCNN`, `AudioCNN`, `VideoCNN`), each NAME, or NAME=FOLDER for an encoder that
        `MediaEncoder.save` wrote, pretrained or of another size. Their vectors are numbers of the item's tower.
    weighting: of columns of bags and tokens, one of "count", "binary", "log", "l2" and "tf-idf" (fitted on the items or
        users with a training row).
    pooling: weights of a history of n items: "mean" 1 / n, "sqrt" 1 / sqrt(n), "sum" 1.
    history_length: at most so many items of a history in training, drawn anew every epoch, >= 1; 0: all.
    layers: widths of the layers before the vector, each >= 1; () has none.
    factors: width of the vectors, >= 1.
    activation: of the layers, a key of `deeprec.nn.mlp.ACTIVATIONS`.
    last_activation: of the vector, the same; "identity" for none.
    fan_in: for the initial weights of terms, uniform in +-sqrt(6 / (fan_in + width)), >= 1; 0: as many as there are, as
        in DSSM.
    similarity: "dot" or "cosine" of the vectors.
    gamma: > 0, what similarities are multiplied with in the softmax: one over the temperature.
    negatives: what a positive stands against: "in-batch", "sampled", "mixed", "row" or "full", see
        `deeprec.batches.towers.TowerBatches`.
    num_negatives: items drawn for a step; with negatives "row" for each pair, >= 1.
    alpha: items are drawn by popularity^alpha, 0 for uniformly.
    log_q: "none"; "negatives" corrects the logits of candidates for how often they are drawn, so that the sum is in
        expectation that over the catalogue; "all" that of the positive too, as Yi et al. 2019 print it.
    hard_negatives: items drawn for each pair out of the `hard_pool` that the model ranks best among those that the user
        has not met, ranked anew every epoch from the second on, >= 0.
    hard_pool: size of that pool, >= 1.
    mask_known: whether items that a user is known to have met are left out of the candidates.
    include_positive: whether the denominator holds the positive; False as DSPR prints it.
    batch_size: pairs a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "reduction", "precision")
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(
            ("num_negatives", "alpha"),
            f"negatives of {', '.join(_DRAWS)}",
            lambda config: config.negatives in _DRAWS,
        ),
        Only(("hard_negatives",), "negatives other than full", lambda config: config.negatives != "full"),
        Only(
            ("encoders",),
            'item_inputs with "features"',
            lambda config: "features" in config.item_inputs,
        ),
        Only(("hard_pool",), "hard_negatives > 0", lambda config: config.hard_negatives > 0),
        Only(
            ("log_q",),
            "negatives of in-batch, sampled or mixed",
            lambda config: config.negatives in ("in-batch", "sampled", "mixed"),
        ),
        Only(
            ("pooling", "history_length"),
            'user_inputs with "history"',
            lambda config: "history" in config.user_inputs,
        ),
    )

    user_inputs: tuple[str, ...] = ("history",)
    item_inputs: tuple[str, ...] = ("id",)
    encoders: tuple[str, ...] = ()
    weighting: str = "binary"
    pooling: str = "mean"
    history_length: int = 0
    layers: tuple[int, ...] = ()
    factors: int = 64
    activation: str = "tanh"
    last_activation: str = "identity"
    fan_in: int = 1
    similarity: str = "dot"
    gamma: float = 1.0
    negatives: str = "in-batch"
    num_negatives: int = 1000
    alpha: float = 0.0
    log_q: str = "negatives"
    hard_negatives: int = 0
    hard_pool: int = 100
    mask_known: bool = True
    include_positive: bool = True
    epochs: int = 20
    batch_size: int = 1024
    lr: float = 0.003
    patience: int = 5

    def __post_init__(self) -> None:
        self._check_types()
        owner = type(self).__name__
        chosen_of(self, "user_inputs", USER_INPUTS)
        chosen_of(self, "item_inputs", ITEM_INPUTS)
        check_encoders(owner, self.encoders)
        if self.layers and min(self.layers) < 1:
            raise ValueError(f"{owner}: layers must be widths >= 1, got {self.layers}")
        for name in ("factors", "batch_size"):
            at_least(self, name, 1)
        at_least(self, "history_length", 0)
        at_least(self, "fan_in", 0)
        at_least(self, "hard_negatives", 0)
        at_least(self, "hard_pool", 1)
        at_least(self, "alpha", 0)
        if not self.gamma > 0:
            raise ValueError(f"{owner}: gamma must be > 0, got {self.gamma}; 10 is usual with cosines, 1 without")
        one_of(self, "weighting", WEIGHTINGS)
        one_of(self, "pooling", POOLINGS)
        one_of(self, "similarity", SIMILARITIES)
        one_of(self, "negatives", NEGATIVES)
        one_of(self, "log_q", LOG_Q)
        one_of(self, "activation", tuple(ACTIVATIONS))
        one_of(self, "last_activation", tuple(ACTIVATIONS))
        if self.negatives == "sampled" and self.log_q == "all":
            raise ValueError(
                f"{owner}: log_q 'all' needs positives that are candidates of other rows, got negatives 'sampled'; "
                "take 'negatives', or mixed negatives"
            )
        self._check_shared()

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the layers of a tower."""
        return (*self.layers, self.factors)
