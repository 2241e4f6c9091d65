"""Checks of values that references and public functions share; the C++ kernels make the same ones."""

from __future__ import annotations

from torch import Tensor


def check_offsets(function: str, ids: Tensor, offsets: Tensor | None) -> None:
    """Raise ValueError unless offsets ascend from 0 to the number of ids."""
    if offsets is None:
        return
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else (0, 0)
    if ends != (0, ids.numel()) or not offsets.numel() or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(
            f"{function}: offsets must ascend from 0 to the number of ids ({ids.numel()}), got {ends[0]} to {ends[1]}"
        )
