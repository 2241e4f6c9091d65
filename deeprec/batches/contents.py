"""What encoders read of items, by number: the tokens of their texts and their decoded media."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deeprec.batches.media import ItemMedia, module_input
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Bags, Encoded
from deeprec.data.columns.kinds import MEDIA, Audio, Image, Media, Text, Video
from deeprec.data.media.decoders import ArrayDecoder, AudioDecoder, ImageDecoder, VideoDecoder
from deeprec.data.media.files import MediaFiles

_log = logging.getLogger("deeprec")

_SHOWN = 3  # faulty media in a line of the log


class Content(NamedTuple):
    """Of one column, for a batch of items.

    Attributes:
        values: token ids int64 [n, T], 0 behind a text, or media as in `MediaTensors`.
        lengths: int64 [n], of sounds; zeros otherwise.
        is_known: bool [n], whether the item has any.
    """

    values: Tensor
    lengths: Tensor
    is_known: Tensor

    def vectors(self, module: nn.Module, device: torch.device) -> Tensor:
        """[n, width] of the module, zeros where an item has nothing."""
        values, lengths, is_known = (part.to(device, non_blocking=True) for part in self)
        made = module(values) if values.dtype == torch.int64 else module_input(module, values, lengths)
        return made * is_known.unsqueeze(1).to(made.dtype)


class ItemContents:
    """Columns of the rows of a table, for encoders. Copies share it; pickled, it brings its rows along.

    Media are decoded when they are first asked for and kept on the disk, in a folder that goes with the object. One
    that cannot be decoded is as one that is not there, and the log names it.

    Args:
        encoder: of the table.
        rows: its encoded rows.
        names: of the columns, texts with ids, images, sounds or videos.
        items: ids of the rows, for messages; None: their numbers.
    """

    def __init__(
        self, encoder: Encoder, rows: Encoded, names: Sequence[str], items: Sequence[Any] | None = None
    ) -> None:
        self._made_of = encoder, rows, tuple(names), items
        self._tokens: dict[str, Bags] = {}
        self._media: dict[str, ItemMedia] = {}
        self._told: dict[str, int] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="deeprec-media-", ignore_cleanup_errors=True)
        for feature in features_of(encoder, names):
            bags = rows.bags[feature.name]
            if isinstance(feature, Text):
                self._tokens[feature.name] = bags
            else:
                folder = f"{self._folder.name}/{len(self._media)}"
                files = MediaFiles(feature.folder)
                self._media[feature.name] = ItemMedia(bags.texts(), files, decoder_of(feature), folder, items=items)

    def __deepcopy__(self, memo: dict[int, Any]) -> ItemContents:
        return self

    def __reduce__(self) -> Any:
        return ItemContents, self._made_of

    def gather(self, name: str, numbers: Tensor) -> Content:
        """A column of items [n], int64 on the CPU, in any order, repeats too."""
        if name in self._media:
            media = self._media[name]
            batch = media.gather(numbers)
            if len(media.bad) > self._told.get(name, 0):
                self._tell(name, media)
            return Content(*batch)
        bags = take_tokens(self._tokens[name], numbers.numpy())
        return Content(bags, torch.zeros(len(numbers), dtype=torch.int64), (bags != 0).any(1))

    def _tell(self, name: str, media: ItemMedia) -> None:
        new = media.bad[self._told.get(name, 0) :]
        self._told[name] = len(media.bad)
        shown = "; ".join(str(fault) for fault in new[:_SHOWN])
        more = f"; and {len(new) - _SHOWN:,} more" if len(new) > _SHOWN else ""
        _log.warning("%s: %d media cannot be decoded and count as not there: %s%s", name, len(new), shown, more)


def take_tokens(bags: Bags, numbers: Any) -> Tensor:
    """Ids of rows, one higher than in `bags`, with zeros behind: int64 [n, length of the longest]."""
    starts, lengths = bags.offsets[numbers], np.diff(bags.offsets)[numbers]
    columns = np.arange(max(1, int(lengths.max(initial=0))))
    there = columns < lengths[:, None]
    places = np.where(there, starts[:, None] + columns, 0)
    ids = bags.ids[places] if len(bags.ids) else np.zeros_like(places)
    return torch.from_numpy(np.where(there, ids.astype(np.int64) + 1, 0))


def features_of(encoder: Encoder, names: Sequence[str]) -> list[Any]:
    """The features of these names.

    Raises:
        ValueError: one that is not there, or that no encoder reads.
    """
    features = {feature.name: feature for feature in encoder.schema.features}
    able = [name for name, feature in features.items() if is_encodable(feature)]
    for name in names:
        if name not in able:
            there = f"got a {features[name].kind}" if name in features else "which the schema has not"
            raise ValueError(
                f"encoders: {name!r} must be a column of text with tokens or of images, sounds or videos, {there}; "
                f"those that can be read: {', '.join(able) or 'none'}"
            )
    return [features[name] for name in names]


def is_encodable(feature: Any) -> bool:
    """Whether an encoder can read a feature."""
    return isinstance(feature, MEDIA) or (isinstance(feature, Text) and not feature.is_raw)


def decoder_of(feature: Media) -> ArrayDecoder:
    """How the files of a column are decoded, as the schema says."""
    if isinstance(feature, Image):
        return ImageDecoder((feature.size, feature.size))
    if isinstance(feature, Audio):
        return AudioDecoder(feature.rate, feature.seconds)
    assert isinstance(feature, Video)
    return VideoDecoder(feature.frames, (feature.size, feature.size))
