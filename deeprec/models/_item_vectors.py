"""Columns of vectors of items as a matrix, each column less its mean and in its own unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.data import IdMap
from deeprec.data.interactions.features import feature_matrix

_SHORTEST = 1e-12


def vector_parts(table: pl.DataFrame | None, columns: Sequence[str], ids: IdMap) -> list[NDArray[np.float32]]:
    """[num_items, width] for each column.

    Raises:
        ValueError: a column that is not there, not known for every item, or with a number that is not finite.
    """
    return [feature_matrix(table, (name,), ids) for name in columns]


def scales_of(parts: Sequence[NDArray[np.float32]], is_met: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Over the items with rows, the mean of each number, and for each column the root of the mean square length of
    what is left."""
    centers = [part[is_met].mean(0, dtype=np.float64) for part in parts]
    left = [part[is_met] - center for part, center in zip(parts, centers, strict=True)]
    scales = [max(float(np.sqrt(np.square(each).sum(1).mean())), _SHORTEST) for each in left]
    return torch.from_numpy(np.concatenate(centers)), torch.tensor(scales)


def scaled(parts: Sequence[NDArray[np.float32]], centers: Tensor, scales: Tensor) -> Tensor:
    """(x - centers) / scales, [num_items, sum of the widths], where these are."""
    widths = torch.tensor([part.shape[1] for part in parts], device=scales.device)
    whole = torch.from_numpy(np.concatenate(parts, 1)).to(centers.device)
    return (whole - centers) / scales.repeat_interleave(widths)
