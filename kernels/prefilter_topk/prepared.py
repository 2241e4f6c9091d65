"""Item rows with a compressed copy for the scan of `prefilter_topk`."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.prefilter_topk.reference import MAX_DIM, TILE, words_shape

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = {"int8": torch.uint8, "bfloat16": torch.bfloat16}


class PreparedItems:
    """Item rows in float32, a compressed copy of them, and per tile of 64 rows how far off the copy can be.

    The rows are copied: what is done to the tensor they came from changes nothing here. The copy adds 25% to the memory
    of the rows (int8) or 50% (bfloat16); only a CPU has one, as no other device has the scan. Rows may change between
    two calls of `prefilter_topk`, not during one. There is no way to delete one: an item_bias of -inf keeps it out of
    every result at no cost.

    For cosine similarity give rows of unit length, of zeros where a vector has no direction.

    Attributes:
        dtype: "int8" or "bfloat16".
    """

    def __init__(self, items: Tensor, dtype: str) -> None:
        """Use `PreparedItems.of`."""
        self.dtype = dtype
        num_items, dim = items.shape
        self._num_items = num_items
        self._items = items.detach().to(torch.float32, copy=True).contiguous()
        num_tiles = self._num_tiles() if items.is_cpu else 0
        self._words = self._items.new_empty(words_shape(num_tiles, dim, dtype == "int8"), dtype=_DTYPES[dtype])
        self._scales, self._bounds = self._items.new_empty(num_tiles, TILE), self._items.new_empty(num_tiles, 2)
        if num_tiles:
            self._words, self._scales, self._bounds = torch.ops.deeprec.prefilter_pack(
                self._items, None, dtype == "int8"
            )

    @classmethod
    def of(cls, items: Tensor, dtype: str = "int8") -> PreparedItems:
        """Copy and compress item rows.

        Args:
            items: [N, D], float32, bfloat16 or float16; D at most 65,536. A row with NaN, infinity, a norm above 2^63
                or no element of 2^-60 or more (but some other than zero) is scored exactly in every call.
            dtype: of the compressed copy: "int8", the smaller, or "bfloat16", whose bounds are about six times closer.
        Raises:
            TypeError: items that are no such tensor.
            ValueError: items of another shape, an unknown dtype.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"PreparedItems: dtype must be 'int8' or 'bfloat16', got {dtype!r}")
        _check_rows("items", items)
        return cls(items, dtype)

    def __len__(self) -> int:
        return self._num_items

    @property
    def items(self) -> Tensor:
        """The rows [N, D], float32; not to be changed but by `update` and `append`."""
        return self._items[: self._num_items]

    @property
    def copy(self) -> tuple[Tensor, Tensor, Tensor]:
        """Words, scales and bounds of all tiles, as `prefilter_pack` gives them; empty but on a CPU."""
        num_tiles = self._num_tiles()
        return self._words[:num_tiles], self._scales[:num_tiles], self._bounds[:num_tiles]

    def update(self, rows: Tensor, items: Tensor) -> None:
        """Replace rows; the copy is then that of the new rows from the start.

        Args:
            rows: [n], int32 or int64, in [0, N); of a row that is named twice the last vector holds.
            items: [n, D], as in `of`.
        Raises:
            TypeError, ValueError: as `of`, and shapes that do not fit.
            IndexError: rows outside [0, N).
        """
        if not isinstance(rows, Tensor) or rows.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"PreparedItems.update: rows must be int32 or int64, got {_kind(rows)}")
        _check_rows("update: items", items, self._items.shape[1])
        if rows.shape != (len(items),):
            raise ValueError(
                f"PreparedItems.update: rows must be [{len(items)}], one for each vector, got {_kind(rows)}"
            )
        rows = rows.to(self._items.device, torch.int64)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self._num_items):
            raise IndexError(
                f"PreparedItems.update: rows must lie in [0, {self._num_items}), got {int(rows.min())} to "
                f"{int(rows.max())}; new items are appended"
            )
        # The last vector of each row: index_put_ leaves open which of several it takes.
        order = rows.argsort(stable=True)
        is_last = torch.ones_like(rows, dtype=torch.bool)
        is_last[:-1] = rows[order][1:] != rows[order][:-1]
        last = order[is_last]
        self._items[rows[last]] = items.detach().to(self._items.device, torch.float32)[last]
        self._pack(torch.unique(rows // TILE))

    def append(self, items: Tensor) -> None:
        """Add rows at the end; the first new one has id N. Memory grows by a quarter at a time.

        Args:
            items: [n, D], as in `of`.
        Raises:
            TypeError, ValueError: as `of`, and another D.
        """
        _check_rows("append: items", items, self._items.shape[1])
        first, end = self._num_items, self._num_items + len(items)
        if end > len(self._items):
            self._reserve(max(end, first + first // 4))
        self._items[first:end] = items.detach().to(self._items.device, torch.float32)
        self._num_items = end
        self._pack(torch.arange(first // TILE, self._num_tiles(), device=self._items.device))

    def _num_tiles(self) -> int:
        return -(-self._num_items // TILE)

    def _reserve(self, num_items: int) -> None:
        """Space for so many rows, of which the present ones are the first."""
        num_tiles = -(-num_items // TILE) if self._items.is_cpu else 0

        def longer(part: Tensor, length: int) -> Tensor:
            new = part.new_empty(length, *part.shape[1:])
            new[: len(part)] = part
            return new

        self._items = longer(self._items, num_items)
        self._words, self._scales, self._bounds = (
            longer(part, num_tiles) for part in (self._words, self._scales, self._bounds)
        )

    def _pack(self, tiles: Tensor) -> None:
        """The copy of these tiles anew."""
        if self._items.is_cpu and len(tiles):
            parts = torch.ops.deeprec.prefilter_pack(self.items, tiles, self.dtype == "int8")
            for whole, part in zip((self._words, self._scales, self._bounds), parts, strict=True):
                whole[tiles] = part


def _kind(given: object) -> str:
    return f"{list(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else repr(given)


def _check_rows(name: str, items: Tensor, dim: int | None = None) -> None:
    if not isinstance(items, Tensor) or items.dtype not in _FLOATS:
        raise TypeError(f"PreparedItems: {name} must be float32, bfloat16 or float16, got {_kind(items)}")
    if items.dim() != 2 or items.shape[1] > MAX_DIM or (dim is not None and items.shape[1] != dim):
        width = f"D at most {MAX_DIM:,}" if dim is None else f"D = {dim}"
        raise ValueError(f"PreparedItems: {name} must be [N, D], {width}, got {list(items.shape)}")
