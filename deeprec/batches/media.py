"""Media of items as tensors, batch by batch: what trains an encoder end to end, and how a trained one makes vectors."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprec.data.media.cache import ContentCache, writing_cache
from deeprec.data.media.decoders import ArrayDecoder, AudioDecoder, MediaBatch
from deeprec.data.media.errors import MediaError
from deeprec.data.media.extract import Prepared, prepare
from deeprec.data.media.features import Vectors
from deeprec.data.media.files import MediaFiles
from deeprec.device import resolve_device

Of = TypeVar("Of")

_UNKNOWN, _ABSENT = -2, -1  # rows of items that were not looked at yet, and of those without a medium


class MediaTensors(NamedTuple):
    """Media of a batch of items.

    Attributes:
        values: [B, *shape of the decoder]: images [B, 3, H, W] and videos [B, F, 3, H, W] of uint8, sounds [B, T] of
            float32; zeros where there is none.
        lengths: int64 [B], samples of sounds before the padding; zeros of other media.
        is_known: bool [B], whether the item has a medium that could be decoded.
    """

    values: Tensor
    lengths: Tensor
    is_known: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MediaTensors:
        """The same on a device."""
        return MediaTensors(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    def encode(self, module: nn.Module) -> Tensor:
        """The module's vectors of the batch, [B, D]; images and frames go in as fractions in [0, 1]."""
        return module_input(module, self.values, self.lengths)


class ItemMedia:
    """The media of items, decoded when they are first asked for and kept on the disk, for later epochs and runs.

    Within a run each file is read and decoded once; another run reads the files again, to see that they are the same,
    and decodes what is new. What cannot be decoded is zeros, and listed in `bad`.

    Args:
        keys: of each item's medium, [N]; None or "": it has none.
        files: where they lie. decoder: of all of them.
        folder: of caches; this one must be closed (`close`, or `with`) before another process adds to it.
        workers: threads that decode, >= 1.
        items: ids, [N], for messages; None: the numbers.
    Attributes:
        bad: faults, as far as items were asked for.
    Raises:
        ValueError: arguments that do not fit; another process adds to the cache.
    """

    def __init__(
        self,
        keys: Sequence[str | None],
        files: MediaFiles,
        decoder: ArrayDecoder,
        folder: str | Path,
        *,
        workers: int = 2,
        items: Sequence[Any] | None = None,
    ) -> None:
        if workers < 1 or (items is not None and len(items) != len(keys)):
            raise ValueError(
                f"ItemMedia: workers must be >= 1 and items as many as the {len(keys)} keys, got {workers} and "
                f"{len(keys) if items is None else len(items)}"
            )
        self.keys, self.files, self.decoder = list(keys), files, decoder
        self.items = range(len(keys)) if items is None else items
        self.bad: list[MediaError] = []
        self._open = contextlib.ExitStack()
        self._cache: ContentCache = self._open.enter_context(
            writing_cache(Path(folder), decoder.identity, decoder.shape, decoder.dtype)
        )
        self._pool = self._open.enter_context(ThreadPoolExecutor(workers))
        self._lock = threading.Lock()  # batches are prepared by one thread ahead of another
        self._rows = np.array([_UNKNOWN if key else _ABSENT for key in keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def __enter__(self) -> ItemMedia:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes add to the cache."""
        self._open.close()

    def gather(self, numbers: NDArray[Any] | Tensor) -> MediaTensors:
        """The media of items, [B] integers in [0, len(self)), in any order and as often as they come.

        Raises:
            IndexError: a number out of range.
        """
        asked = np.asarray(numbers, dtype=np.int64)
        if len(asked) and not 0 <= asked.min() <= asked.max() < len(self):
            raise IndexError(
                f"ItemMedia.gather: numbers must be in [0, {len(self)}), got {asked.min()} to {asked.max()}"
            )
        with self._lock:
            self._decode(np.unique(asked[self._rows[asked] == _UNKNOWN]))
            rows = self._rows[asked]
            values = np.zeros((len(rows), *self.decoder.shape), dtype=self.decoder.dtype)
            lengths = np.zeros(len(rows), dtype=np.int64)
            values[rows >= 0], lengths[rows >= 0] = self._cache.take(rows[rows >= 0])
        return MediaTensors(torch.from_numpy(values), torch.from_numpy(lengths), torch.from_numpy(rows >= 0))

    def ahead(self, batches: Iterable[NDArray[Any] | Tensor], depth: int = 2) -> Iterator[MediaTensors]:
        """`gather` of each batch, `depth` batches ahead of the one that is used, >= 1."""
        yield from _ahead(self.gather, batches, depth)

    def _decode(self, numbers: NDArray[np.int64]) -> None:
        """Find or make the rows of items; faults make them absent."""
        step = 64  # what is decoded and not yet on the disk
        for start in range(0, len(numbers), step):
            part = numbers[start : start + step].tolist()
            media = list(self._pool.map(self._prepare, part))
            new = [(number, medium) for number, medium in zip(part, media, strict=True) if medium.decoded is not None]
            for number, medium in zip(part, media, strict=True):
                if medium.fault is not None:
                    self.bad.append(medium.fault)
                self._rows[number] = _ABSENT if medium.row is None else medium.row
            if new:
                decoded = [medium.decoded for _, medium in new if medium.decoded is not None]
                values, lengths = np.stack([each.values for each in decoded]), [each.length for each in decoded]
                rows = self._cache.add([medium.key for _, medium in new], values, lengths)
                self._rows[[number for number, _ in new]] = rows

    def _prepare(self, number: int) -> Prepared:
        key = self.keys[number]
        assert key
        return prepare(self.items[number], key, self.files, self.decoder, self._cache)


class ModuleEncoder:
    """A module as what `features extract` takes: media in, vectors out, without gradients.

    Args:
        module: from a batch to [B, D], with an attribute `width`: images [B, 3, H, W] and videos [B, F, 3, H, W] of
            fractions in [0, 1], sounds [B, T] with their lengths.
        decoder: of its media.
        device: as of `deeprec.device`.
    Attributes:
        name: of the class, and the hash of the weights and options.
    Raises:
        ValueError: sounds decoded at another rate than the module's.
    """

    def __init__(self, module: nn.Module, decoder: ArrayDecoder, device: str = "auto") -> None:
        options = getattr(module, "options", {})
        own_rate = options.get("sample_rate") if isinstance(decoder, AudioDecoder) else None
        if isinstance(decoder, AudioDecoder) and own_rate not in (None, decoder.rate):
            raise ValueError(
                f"ModuleEncoder: sounds must have the module's {own_rate:,} samples a second, got {decoder.rate:,}; "
                f"pass --rate {own_rate}"
            )
        self.device = resolve_device(device, "ModuleEncoder")
        self.module, self.decoder = module.eval().to(self.device), decoder
        digest = hashlib.blake2b(repr(sorted(options.items())).encode(), digest_size=16)
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.name = f"{type(module).__name__}-{digest.hexdigest()}"
        self.width = int(module.width)  # type: ignore[arg-type]

    @torch.inference_mode()
    def __call__(self, batch: MediaBatch) -> Vectors:
        values, lengths = (torch.from_numpy(np.asarray(part)).to(self.device) for part in batch)
        vectors = module_input(self.module, values, lengths)
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)


def module_input(module: nn.Module, values: Tensor, lengths: Tensor) -> Tensor:
    """A module's vectors of decoded media: sounds with lengths, images and frames as fractions of its dtype."""
    if values.dtype != torch.uint8:
        vectors: Tensor = module(values, lengths)
        return vectors
    dtype = next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
    vectors = module(values.to(dtype) / 255)
    return vectors


def _ahead(work: Any, batches: Iterable[Of], depth: int) -> Iterator[Any]:
    """`work` of each batch in order, done by another thread `depth` batches ahead."""
    if depth < 1:
        raise ValueError(f"ahead: depth must be >= 1, got {depth}")
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
