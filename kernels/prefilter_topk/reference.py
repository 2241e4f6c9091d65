"""prefilter_pack, prefilter_scan and prefilter_topk in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import require

TILE = 64  # items of a tile
MAX_DIM = 1 << 16  # columns for which the bound holds
_OP = "prefilter_topk"
SMALLEST, LARGEST = 2.0**-60, 2.0**63  # elements and norms for which the bound holds
_SLACK = 1.0 + 2.0**-18  # covers rounding in float64


def words_shape(num_tiles: int, dim: int, is_int8: bool) -> tuple[int, int, int, int]:
    """Of the compressed columns of so many tiles."""
    per_word = 4 if is_int8 else 2
    return num_tiles, -(-dim // per_word), TILE, per_word


def _scales(largest: Tensor, is_int8: bool) -> Tensor:
    if is_int8:
        return largest / 127.0
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)


def prefilter_pack_reference(items: Tensor, tiles: Tensor | None, is_int8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The compressed copy of 64 item rows each: row i as scale[i] * q[i], and how far off that can be.

    Args:
        items: [N, D], float32.
        tiles: [n], int64: rows 64 t to 64 t + 63 for each tile t; None for all tiles in order.
        is_int8: q in [-127, 127] by the largest element of the row, or bfloat16 by the power of two above it.
    Returns:
        words [n, ceil(D / 4), 64, 4], uint8, q + 128, or [n, ceil(D / 2), 64, 2], bfloat16; scales [n, 64], float32: 0
        of a row of zeros and NaN of one that the bound does not cover; bounds [n, 2], float32: the largest |error| /
        scale and |q| of a tile.
    """
    if items.dim() != 2 or items.dtype != torch.float32:
        raise TypeError("prefilter_pack: items must be [N, D], float32")
    num_items, dim = items.shape
    num_tiles = -(-num_items // TILE)
    if tiles is None:
        tiles = torch.arange(num_tiles, device=items.device)
    elif tiles.dim() != 1 or tiles.dtype != torch.int64:
        raise TypeError("prefilter_pack: tiles must be [n], int64")
    elif tiles.device.type == "cpu" and bool(((tiles < 0) | (tiles >= num_tiles)).any()):
        raise IndexError(f"prefilter_pack: tiles must lie in [0, {num_tiles})")
    shape = words_shape(tiles.numel(), dim, is_int8)
    places = (tiles[:, None] * TILE + torch.arange(TILE, device=items.device)).reshape(-1)
    width = shape[1] * shape[3]
    rows = torch.zeros(places.numel(), max(width, 1), device=items.device)
    is_there = places < num_items
    rows[is_there, :dim] = items[places[is_there]]
    largest, norms = rows.abs().amax(1), rows.double().norm(dim=1)
    is_regular = (norms <= LARGEST) & (largest >= SMALLEST)
    scales = _scales(torch.where(is_regular, largest, 1.0), is_int8)
    exact = torch.where(is_regular[:, None], rows, 0.0).double()
    scaled = exact / scales.double()[:, None]
    if is_int8:
        q = scaled.round()
        stored = (q + 128).to(torch.uint8)
    else:
        stored = torch.where(scaled.abs() < 2.0**-100, 0.0, scaled).float().bfloat16()
        q = stored.double()
    errors = (exact - q * scales.double()[:, None]).norm(dim=1) / scales
    words = stored[:, :width].reshape(shape[0], TILE, shape[1], shape[3]).transpose(1, 2).contiguous()
    bounds = torch.stack([errors.reshape(-1, TILE), q.norm(dim=1).reshape(-1, TILE)], 2).amax(1) * _SLACK
    scales = torch.where(is_regular, scales, torch.where(norms == 0, 0.0, torch.nan))
    return words, scales.reshape(-1, TILE), bounds.float()


def check_copy(rows: Tensor, words: Tensor, scales: Tensor, bounds: Tensor) -> None:
    """Raise unless a copy has the shapes and dtypes of one of these rows."""
    if rows.dtype != torch.float32 or scales.dtype != torch.float32 or bounds.dtype != torch.float32:
        raise TypeError(f"{_OP}: rows, scales and bounds must be float32")
    require(rows.dim() == 2 and rows.shape[1] <= MAX_DIM, _OP, f"rows must be [N, D], D at most {MAX_DIM}", rows)
    require(words.dtype in (torch.uint8, torch.bfloat16), _OP, "words must be uint8 or bfloat16", words)
    num_tiles = -(-rows.shape[0] // TILE)
    shape = words_shape(num_tiles, rows.shape[1], words.dtype == torch.uint8)
    require(words.shape == shape, _OP, f"words must be {list(shape)}", words)
    require(scales.numel() == num_tiles * TILE, _OP, f"scales must be [{num_tiles}, {TILE}]", scales)
    require(bounds.numel() == num_tiles * 2, _OP, f"bounds must be [{num_tiles}, 2]", bounds)


def prefilter_scan_reference(
    users: Tensor,
    rows: Tensor,
    item_bias: Tensor | None,
    words: Tensor,
    scales: Tensor,
    bounds: Tensor,
    k: int,
    *lists: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best items by `score_topk` itself, where the scan goes by the copy.

    Args:
        users: [B, D]. rows: [N, D], float32, and words, scales and bounds what `prefilter_pack` makes of them.
        k, lists: as in `score_topk`.
    Returns:
        values and ids [B, k], and gave_up [B], bool: of users that the bound does not cover. The scan also gives up for
        those for whom it would leave too many items. Their values are -inf and their ids -1.
    """
    check_copy(rows, words, scales, bounds)
    values, ids = torch.ops.deeprec.score_topk(users, rows, item_bias, k, *lists)
    wide = users.float().double()
    gave_up = ~((wide.norm(dim=1) <= LARGEST) & (wide.abs() >= SMALLEST).any(1))
    return values.masked_fill(gave_up[:, None], -torch.inf), ids.masked_fill(gave_up[:, None], -1), gave_up


def prefilter_topk_reference(
    users: Tensor,
    rows: Tensor,
    item_bias: Tensor | None,
    words: Tensor,
    scales: Tensor,
    bounds: Tensor,
    k: int,
    *lists: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The best items by `score_topk`, of which the scan is a faster way where there is a copy."""
    if words.numel():
        check_copy(rows, words, scales, bounds)
    best: tuple[Tensor, Tensor] = torch.ops.deeprec.score_topk(users, rows, item_bias, k, *lists)
    return best
