"""Columns of items that networks read, trained with the model: tokens of texts, images, sounds, videos.

Each is a module from a batch to [n, width] (`deeprec.nn.MediaEncoder`); their vectors, side by side, are numbers of the
item to its tower, beside those of its other columns. An item without a text or a medium has zeros there.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deeprec._files import read_json
from deeprec.batches.contents import ItemContents, features_of
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.kinds import Audio, Text
from deeprec.nn.audio_cnn import AudioCNN
from deeprec.nn.image_cnn import ImageCNN
from deeprec.nn.media_encoder import OPTIONS, WEIGHTS, MediaEncoder
from deeprec.nn.text_cnn import TextCNN
from deeprec.nn.tower import TermBatch
from deeprec.nn.video_cnn import VideoCNN

_ITEMS_A_PASS = 256  # more are encoded in parts, and once more in the backward pass, so that memory is bounded
# Smaller than the modules' own sizes: hundreds of items are encoded, and learnt from, in every step.
_SIZES: dict[str, dict[str, Any]] = {
    "text": {"embedding_dim": 64, "filters": 64, "hidden": 0},
    "image": {"channels": [16, 32, 64]},
}
_KINDS: dict[str, type[MediaEncoder]] = {"text": TextCNN, "image": ImageCNN, "audio": AudioCNN, "video": VideoCNN}


class ItemEncoders(nn.Module):
    """The encoders of a model's items.

    Args:
        described: of each, JSON of "column", "encoder" and "options", as `described_encoders` makes them.
        generator: source of the initial weights; torch's global one by default.
    Attributes:
        names: the columns.
        width: numbers of an item.
    """

    def __init__(self, described: Sequence[str], generator: torch.Generator | None = None) -> None:
        super().__init__()
        parts = [json.loads(each) for each in described]
        self.names = tuple(part["column"] for part in parts)
        # By number: a column may have a name that no module can have.
        self.modules_by_number = nn.ModuleList(_made(part, generator) for part in parts)
        self.width = width_of(described)

    def forward(self, contents: ItemContents, numbers: Tensor, like: Tensor) -> Tensor:
        """[n, width] of items [n] (int64, on the CPU), dtype and device of `like`."""
        parts = [
            self._of_column(contents, name, module, numbers, like.device)
            for name, module in zip(self.names, self.modules_by_number, strict=True)
        ]
        return torch.cat(parts, 1).to(like.dtype)

    def _of_column(
        self, contents: ItemContents, name: str, module: nn.Module, numbers: Tensor, device: torch.device
    ) -> Tensor:
        def encoded(block: Tensor) -> Tensor:
            return contents.gather(name, block).vectors(module, device)

        blocks = numbers.split(_ITEMS_A_PASS)
        if len(blocks) > 1 and torch.is_grad_enabled():
            again: Callable[..., Tensor] = checkpoint
            return torch.cat([again(encoded, block, use_reentrant=False) for block in blocks])
        return torch.cat([encoded(block) for block in blocks])

    def with_vectors(self, batch: TermBatch, contents: ItemContents, numbers: Tensor) -> TermBatch:
        """Rows of terms of items with the vectors behind their numbers."""
        return batch._replace(values=torch.cat([batch.values, self(contents, numbers, batch.values)], 1))


def _made(part: dict[str, Any], generator: torch.Generator | None) -> MediaEncoder:
    kind: Any = MediaEncoder.kinds[part["encoder"]]
    drawn = {"generator": generator} if "generator" in inspect.signature(kind).parameters else {}
    encoder: MediaEncoder = kind(**part["options"], **drawn)
    return encoder


def names_of(encoders: Sequence[str]) -> tuple[str, ...]:
    """The columns of the option `encoders`."""
    return tuple(each.partition("=")[0] for each in encoders)


def check_encoders(owner: str, encoders: Sequence[str]) -> None:
    """Raise ValueError unless the option `encoders` names columns, each once."""
    names = names_of(encoders)
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{owner}: encoders must be columns, NAME or NAME=FOLDER, each once, got {tuple(encoders)}; drop one"
        )


def described_encoders(encoders: Sequence[str], encoder: Encoder, width: int) -> tuple[str, ...]:
    """What the sizes of a model keep of its encoders, in JSON.

    Args:
        encoders: the option: NAME for the network of the column's kind, NAME=FOLDER for a saved one.
        encoder: of the table of items.
        width: of the vectors of networks that are not saved ones.
    Raises:
        ValueError: a column that no encoder reads, a saved encoder of another kind, or of other tokens or sounds.
        FileNotFoundError: no encoder in the folder.
    """
    described = []
    for each, feature in zip(encoders, features_of(encoder, names_of(encoders)), strict=True):
        name, _, folder = each.partition("=")
        fixed = _fixed_by(encoder, feature)
        kind, options = _KINDS[feature.kind].__name__, {"width": width, **_SIZES.get(feature.kind, {}), **fixed}
        if folder:
            saved = read_json(Path(folder) / OPTIONS, "encoders", "save the encoder anew")
            kind, options = str(saved.get("encoder")), dict(saved.get("options", {}))
            if kind not in MediaEncoder.kinds or not _reads(MediaEncoder.kinds[kind], feature.kind):
                raise ValueError(
                    f"encoders: {folder} must hold an encoder of {feature.kind}, got {kind}; name another folder"
                )
            for option, value in fixed.items():
                if options.get(option, value) != value:
                    raise ValueError(
                        f"encoders: {option} of {folder} must be {value}, as the column {name} has it, got "
                        f"{options[option]}; change the schema, or train the encoder for it"
                    )
        described.append(json.dumps({"column": name, "encoder": kind, "options": options}, sort_keys=True))
    return tuple(described)


def _fixed_by(encoder: Encoder, feature: Any) -> dict[str, Any]:
    """Options of an encoder that the column decides."""
    if isinstance(feature, Text):
        size = next(field.size for field in encoder.inputs.sequences if field.name == feature.name)
        return {"vocabulary": size + 1}  # 0 is the padding
    return {"sample_rate": feature.rate} if isinstance(feature, Audio) else {}


def _reads(kind: type[MediaEncoder], medium: str) -> bool:
    """Whether an encoder is of a medium; one of frames or pictures from elsewhere is of images."""
    own = [name for name, each in _KINDS.items() if issubclass(kind, each)]
    return medium in (own or ["image"])


def width_of(described: Sequence[str]) -> int:
    """Numbers of an item that the encoders make."""
    return sum(int(json.loads(each)["options"]["width"]) for each in described)


def load_pretrained(module: ItemEncoders, encoders: Sequence[str]) -> None:
    """Put the weights of the folders that the option names into the encoders."""
    for each, part in zip(encoders, module.modules_by_number, strict=True):
        _, _, folder = each.partition("=")
        if folder:
            assert isinstance(part, MediaEncoder)
            part.load_weights(Path(folder) / WEIGHTS)


def plain_columns(encoder: Encoder, encoders: Sequence[str]) -> list[str] | None:
    """The inputs of a table that no encoder reads; None: all."""
    if not encoders:
        return None
    names = names_of(encoders)
    features_of(encoder, names)
    inputs = encoder.inputs
    every = [*(field.name for field in inputs.fields), *inputs.numerics]
    every += [each.name for each in (*inputs.vectors, *inputs.compressed)]
    return [name for name in every if name not in names]
