"""Convolutions along time over rows of several lengths, exact whatever padding follows: for sounds and videos."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TemporalConvolution(nn.Module):
    """Blocks x <- relu(norm(conv(x))), then optionally the larger of each two frames; mean and maximum of what is left.

    A convolution sees three frames, zeros before the first and after the last one; the normalisation is over the
    channels of a frame, so that no frame depends on how long the row is. Frames past a row's length are zeros before
    and after every block.

    Args:
        in_channels: C, >= 1.
        channels: of the blocks, each >= 1.
        halves: whether each block halves the number of frames.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], *, halves: bool) -> None:
        super().__init__()
        before = (in_channels, *channels[:-1])
        self.convolutions = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in zip(before, channels, strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        self.halves, self.out_features = halves, 2 * channels[-1]

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """[B, 2 C'] of x [B, C, T], T >= 1; lengths [B] frames of each row, in [1, T], None: T."""
        if lengths is not None:
            x = _masked(x, lengths)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x).transpose(1, 2))).transpose(1, 2)
            if lengths is not None:
                x = _masked(x, lengths)
            if self.halves:  # zeros change no maximum of values that are >= 0
                x = F.max_pool1d(x, 2, ceil_mode=True)
                lengths = None if lengths is None else (lengths + 1) // 2
        if lengths is None:
            return torch.cat([x.mean(2), x.amax(2)], 1)
        return torch.cat([x.sum(2) / lengths.unsqueeze(1).to(x.dtype), x.amax(2)], 1)


def _masked(x: Tensor, lengths: Tensor) -> Tensor:
    is_frame = torch.arange(x.shape[2], device=x.device) < lengths.unsqueeze(1)
    return x * is_frame.unsqueeze(1)
