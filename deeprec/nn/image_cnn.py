"""Pictures to vectors: a compact residual network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.nn.layer import check_floating, layer_forward
from deeprec.nn.media_encoder import MediaEncoder, at_least_one, draw_weights

_CHANNELS_A_GROUP = 8  # of group normalisation: no picture depends on those that it is batched with


class ImageCNN(MediaEncoder):
    """A convolution of 3 x 3, stages of residual blocks that halve the picture, the mean over places, a linear layer.

    Block: relu(x' + norm(conv(relu(norm(conv(x)))))), convolutions of 3 x 3, x' = x, or a convolution of 1 x 1 where
    the size changes; norm is group normalisation. 0.3 million parameters with the default channels. A picture of any
    size of 1 x 1 and more has a vector; all pictures of a batch are of one size.

    Where bits are to be the same on a GPU, set `torch.backends.cudnn.deterministic`.

    Args:
        width: D, >= 1.
        channels: of the stages, each a multiple of 8; the first has the stem's.
        blocks: of each stage, >= 1.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: He et al. 2016 (arXiv 1512.03385), figure 2; Wu, He 2018 (arXiv 1803.08494) for the normalisation.
        Ours: fewer stages, a stem of 3 x 3.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(width, {"channels": list(channels), "blocks": blocks})
        at_least_one("ImageCNN", blocks=blocks)
        if not channels or any(each < 1 or each % _CHANNELS_A_GROUP for each in channels):
            raise ValueError(f"ImageCNN: channels must be multiples of {_CHANNELS_A_GROUP}, got {tuple(channels)}")
        self.stem = nn.Conv2d(3, channels[0], 3, stride=2, padding=1, bias=False)
        self.norm = _norm(channels[0])
        self.blocks = nn.ModuleList()
        before = channels[0]
        for stage, count in enumerate(channels):
            for number in range(blocks):
                self.blocks.append(_Block(before, count, 2 if stage and not number else 1))
                before = count
        self.output = nn.Linear(before, width)
        draw_weights(self, generator)

    @layer_forward
    def forward(self, images: Tensor) -> Tensor:
        """Vectors of pictures.

        Args:
            images: [B, 3, H, W], red, green and blue in [0, 1], dtype of the parameters; H and W >= 1.
        Returns:
            [B, D].
        Raises:
            ValueError: images is not of that shape. TypeError: it is not of a floating-point dtype.
        """
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 1:
            raise ValueError(f"ImageCNN: images must be [B, 3, H, W] with H and W >= 1, got {tuple(images.shape)}")
        check_floating("ImageCNN", images)
        x = F.relu(self.norm(self.stem(2 * images - 1)))
        for block in self.blocks:
            x = block(x)
        vectors: Tensor = self.output(x.mean((2, 3)))
        return vectors


class _Block(nn.Module):
    """Two convolutions and a shortcut, [B, C, H, W] to [B, C', H / stride, W / stride]."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList((_norm(channels), _norm(channels)))
        is_same = before == channels and stride == 1
        self.shortcut = None if is_same else nn.Conv2d(before, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _CHANNELS_A_GROUP, channels)
