"""Videos to vectors: a network for each frame, and convolutions along time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeprec.nn.image_cnn import ImageCNN
from deeprec.nn.layer import check_floating, layer_forward
from deeprec.nn.media_encoder import MediaEncoder, at_least_one, check_lengths, draw_weights
from deeprec.nn.temporal import TemporalConvolution


class VideoCNN(MediaEncoder):
    """`ImageCNN` of every frame, convolutions over three frames each, mean and maximum over time, a linear layer.

    A video has the same vector however many frames of padding follow it; one without frames that of one black frame.

    Args:
        width: D, >= 1.
        frame_width: of the vectors of frames, >= 1.
        channels: of `ImageCNN`.
        temporal: channels of the convolutions along time, each >= 1.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Karpathy et al. 2014 (CVPR), "Large-scale Video Classification with Convolutional Neural Networks",
        section 3.1, for the fusion of frames; the network of a frame is our own.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        frame_width: int = 64,
        channels: Sequence[int] = (16, 32, 64),
        temporal: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"frame_width": frame_width, "channels": list(channels), "temporal": list(temporal)}
        super().__init__(width, sizes)
        at_least_one("VideoCNN", frame_width=frame_width)
        if not temporal or min(temporal) < 1:
            raise ValueError(f"VideoCNN: temporal must be sizes >= 1, got {tuple(temporal)}")
        self.frames = ImageCNN(frame_width, channels=channels, generator=generator)
        self.layers = TemporalConvolution(frame_width, tuple(temporal), halves=False)
        self.output = nn.Linear(self.layers.out_features, width)
        for part in (self.layers, self.output):
            draw_weights(part, generator)

    @layer_forward
    def forward(self, videos: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Vectors of videos.

        Args:
            videos: [B, F, 3, H, W], frames as `ImageCNN` takes them, dtype of the parameters; F may be 0.
            lengths: [B], whole numbers in [0, F], frames of each video: what lies behind is padding. None: F.
        Returns:
            [B, D].
        Raises:
            ValueError: a shape is another. TypeError: a dtype is.
        """
        if videos.dim() != 5 or videos.shape[2] != 3:
            raise ValueError(f"VideoCNN: videos must be [B, F, 3, H, W], got {tuple(videos.shape)}")
        check_floating("VideoCNN", videos)
        if lengths is not None:
            check_lengths("VideoCNN", lengths, len(videos))
        if not videos.shape[1]:
            videos = videos.new_zeros(len(videos), 1, *videos.shape[2:])
        count = videos.shape[1]
        if lengths is not None:  # of a video without frames the first one is black
            is_frame = torch.arange(count, device=videos.device) < lengths.unsqueeze(1)
            videos = videos * is_frame.view(len(videos), count, 1, 1, 1)
            lengths = lengths.clamp(min=1)
        vectors = self.frames(videos.flatten(0, 1)).view(len(videos), count, self.frames.width)
        result: Tensor = self.output(self.layers(vectors.transpose(1, 2), lengths))
        return result
