"""Options of the models that read histories by attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.config import Only, at_least, chosen_of, one_of
from deeprec.models._item_encoders import check_encoders
from deeprec.models._sequence_model import SequenceConfig
from deeprec.models._tower_config import ITEM_INPUTS
from deeprec.nn.sequence_encoder import check_encoder

SIMILARITIES = ("dot", "cosine")
_SAMPLED = ("sampled", "bce", "gbce")


@dataclass(frozen=True)
class AttentionConfig(SequenceConfig):
    """Attributes:
    item_inputs: what an item's vector is made of, added up: "id", a vector of its own; "features", a linear map of the
        columns of the item table, which items without a training row have too.
    encoders: columns of the table of items that a network reads, trained with the model: texts with tokens (`TextCNN`),
        images, sounds and videos (`ImageCNN`, `AudioCNN`, `VideoCNN`), each NAME, or NAME=FOLDER for an encoder that
        `MediaEncoder.save` wrote, pretrained or of another size. Their vectors are numbers of the item's tower.
    blocks: of attention and a network each, >= 0.
    heads: of attention, >= 1; factors must be a multiple.
    hidden: width of the network at each place, >= 1; 0: `factors`.
    block: "sasrec", "pre-norm", "post-norm" or "ligr", see `deeprec.nn.SequenceEncoder`.
    feed_forward: "relu" or "gelu" in the network at each place.
    positions: "learned", "rotary" or "none".
    scale: whether item vectors are multiplied with sqrt(factors) where they are read.
    dropout: of the item vectors and in the blocks, in [0, 1).
    attention_dropout: of the weights of attention, in [0, 1).
    tied: whether the items that are read and those that are scored have the same vectors.
    init_std: standard deviation of the initial item vectors, > 0.
    loss: "full", softmax over all items; "sampled", over the positive and `num_negatives` draws; "bce", binary
        cross-entropy with `num_negatives` draws for each positive; "gbce", the same, calibrated.
    num_negatives: items drawn for each target, >= 1.
    calibration: t of gBCE in [0, 1]: 0 is BCE; 1 makes the scores' sigmoids probabilities.
    shared: whether the targets of a step share the draws of "sampled".
    alpha: the draws of "sampled" are by popularity^alpha, 0 for uniformly.
    log_q: whether "sampled" corrects its logits for how often items are drawn.
    mask_known: whether items of a user's training rows are left out of the negatives; of "bce" and "gbce" they are in
        any case. With a full softmax this takes out of the denominator what came earlier and later.
    similarity: "dot" or "cosine" of the softmax losses and the scores.
    gamma: > 0, what similarities are multiplied with in these losses: one over the temperature.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("num_negatives",), f"a loss of {', '.join(_SAMPLED)}", lambda config: config.loss in _SAMPLED),
        Only(
            ("encoders",),
            'item_inputs with "features"',
            lambda config: "features" in config.item_inputs,
        ),
        Only(("calibration",), "loss=gbce", lambda config: config.loss == "gbce"),
        Only(("shared", "alpha", "log_q"), "loss=sampled", lambda config: config.loss == "sampled"),
        Only(
            ("mask_known", "similarity", "gamma"),
            "a loss of full or sampled",
            lambda config: config.loss in ("full", "sampled"),
        ),
    )

    item_inputs: tuple[str, ...] = ("id",)
    encoders: tuple[str, ...] = ()
    blocks: int = 2
    heads: int = 1
    hidden: int = 0
    block: str = "sasrec"
    feed_forward: str = "relu"
    positions: str = "learned"
    scale: bool = True
    dropout: float = 0.2
    attention_dropout: float = 0.0
    tied: bool = True
    init_std: float = 0.02
    loss: str = "full"
    num_negatives: int = 256
    calibration: float = 0.75
    shared: bool = False
    alpha: float = 0.0
    log_q: bool = True
    mask_known: bool = False
    similarity: str = "dot"
    gamma: float = 1.0
    epochs: int = 100
    patience: int = 5

    losses: ClassVar[tuple[str, ...]] = ("full", "sampled", "bce", "gbce")

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        at_least(self, "hidden", 0)
        at_least(self, "alpha", 0)
        check_encoder(owner, {**vars(self), "dim": self.factors, "hidden": self.width})
        one_of(self, "loss", self.losses)
        one_of(self, "similarity", SIMILARITIES)
        chosen_of(self, "item_inputs", ITEM_INPUTS)
        check_encoders(owner, self.encoders)
        for name in ("init_std", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{owner}: {name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"{owner}: calibration must lie in [0, 1], got {self.calibration}; 0.75 is usual")

    @property
    def width(self) -> int:
        """Of the network at each place."""
        return self.hidden or self.factors
