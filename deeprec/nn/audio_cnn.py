"""Sounds to vectors: the log-mel spectrogram of a waveform, and convolutions along time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeprec.nn.layer import check_floating, layer_forward
from deeprec.nn.media_encoder import MediaEncoder, at_least_one, check_lengths, draw_weights
from deeprec.nn.temporal import TemporalConvolution

_LOUDNESS = 1e4  # log(1 + 1e4 power): silence is 0, and so is its gradient finite


def mel_filters(sample_rate: int, window: int, mels: int, low: float = 0.0, high: float | None = None) -> Tensor:
    """Triangles on the mel scale of HTK, m(f) = 2595 log10(1 + f / 700), each of height 1.

    Filter k rises from m_k to m_(k + 1) and falls to m_(k + 2), linearly in f, where m_0 .. m_(K + 1) lie at equal
    distances from m(low) to m(high).

    Args:
        sample_rate: samples a second, >= 1.
        window: samples of the spectrum, >= 2.
        mels: K, >= 1.
        low, high: in Hz, 0 <= low < high <= sample_rate / 2; None: that half.
    Returns:
        [window // 2 + 1, K], float64 on the CPU, of power at the frequencies 0, sample_rate / window, ...
    Raises:
        ValueError: an argument is out of range, or a filter that lies between two frequencies of the spectrum.
    Reference: Young et al., "The HTK Book", section 5.4.
    """
    top = sample_rate / 2 if high is None else high
    at_least_one("mel_filters", sample_rate=sample_rate, mels=mels)
    if window < 2 or not 0 <= low < top <= sample_rate / 2:
        raise ValueError(
            f"mel_filters: window must be >= 2 and 0 <= low < high <= {sample_rate / 2:g}, got {window}, {low} and "
            f"{top}"
        )
    # On the CPU, whatever torch's default device is: what is made for the meta device can be looked at too.
    on_cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    frequencies = torch.arange(window // 2 + 1, **on_cpu) * (sample_rate / window)
    points = torch.linspace(_mel(low), _mel(top), mels + 2, **on_cpu)
    corners = 700 * (10 ** (points / 2595) - 1)
    rises = (frequencies.unsqueeze(1) - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falls = (corners[2:] - frequencies.unsqueeze(1)) / (corners[2:] - corners[1:-1])
    filters = torch.minimum(rises, falls).clamp(min=0)
    empty = int((filters.sum(0) <= 0).sum())
    if empty:
        raise ValueError(
            f"mel_filters: each filter must have a frequency of the spectrum, got {empty} of {mels} without at "
            f"{sample_rate} Hz and a window of {window}; take fewer mels or a longer window"
        )
    return filters


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


class AudioCNN(MediaEncoder):
    """log(1 + 1e4 mel power) of windows of a waveform, convolutions along time, mean and maximum, a linear layer.

    The spectrum is that of a Hann window divided by its sum, so that a tone of amplitude 1 has a power of 1/4. Windows
    lie within the clip, from its first sample on, `hop` apart: what is left at the end, less than a hop, is not heard.
    A clip that is shorter than a window, or empty, has one, with zeros behind its samples. A clip has the same vector
    however much padding follows it.

    Where bits are to be the same on a GPU, set `torch.backends.cudnn.deterministic`.

    Args:
        width: D, >= 1.
        sample_rate: of the clips, samples a second.
        window: samples of a spectrum, >= 2; hop: between two, >= 1.
        mels: bands, see `mel_filters`.
        channels: of the blocks, each of which halves the number of frames, each >= 1.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: van den Oord, Dieleman, Schrauwen 2013 (NIPS), section 5, for windows of 1,024 and hops of 512 samples at
        22,050 Hz, and convolutions along time alone. Ours: normalisation, and mean and maximum at the end.
    """

    def __init__(
        self,
        width: int = 50,
        *,
        sample_rate: int = 22050,
        window: int = 1024,
        hop: int = 512,
        mels: int = 64,
        channels: Sequence[int] = (64, 96, 128),
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"sample_rate": sample_rate, "window": window, "hop": hop, "mels": mels}
        super().__init__(width, {**sizes, "channels": list(channels)})
        at_least_one("AudioCNN", hop=hop)
        if not channels or min(channels) < 1:
            raise ValueError(f"AudioCNN: channels must be sizes >= 1, got {tuple(channels)}")
        self.window, self.hop = window, hop
        # Both follow from the options, and are no part of the state.
        filters = mel_filters(sample_rate, window, mels).float().to(torch.get_default_device())
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(window, dtype=torch.float32), persistent=False)
        self.filters: Tensor
        self.hann: Tensor
        self.layers = TemporalConvolution(mels, tuple(channels), halves=True)
        self.output = nn.Linear(self.layers.out_features, width)
        draw_weights(self, generator)

    @layer_forward
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Vectors of clips.

        Args:
            waveforms: [B, T], one channel, samples in [-1, 1], floating point; T may be 0.
            lengths: [B], whole numbers in [0, T], samples of each clip: what lies behind is padding. None: T.
        Returns:
            [B, D], dtype of the parameters.
        Raises:
            ValueError: a shape is another. TypeError: a dtype is.
        """
        if waveforms.dim() != 2:
            raise ValueError(f"AudioCNN: waveforms must be [B, T] of one channel, got {tuple(waveforms.shape)}")
        check_floating("AudioCNN", waveforms)
        frames = None
        if lengths is not None:
            check_lengths("AudioCNN", lengths, len(waveforms))
            samples = torch.arange(waveforms.shape[1], device=waveforms.device)
            waveforms = waveforms * (samples < lengths.unsqueeze(1))
            frames = (lengths.clamp(min=self.window) - self.window) // self.hop + 1
        x = self.log_mel(waveforms).to(self.output.weight.dtype).transpose(1, 2)
        vectors: Tensor = self.output(self.layers(x, frames))
        return vectors

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """[B, frames, mels] of waveforms [B, T]: float64 of float64, float32 otherwise."""
        dtype = torch.float64 if waveforms.dtype == torch.float64 else torch.float32
        if waveforms.shape[1] < self.window:
            waveforms = nn.functional.pad(waveforms, (0, self.window - waveforms.shape[1]))
        if not len(waveforms):  # of no clips torch.stft makes an error
            count = (waveforms.shape[1] - self.window) // self.hop + 1
            return waveforms.new_zeros(0, count, self.filters.shape[1], dtype=dtype)
        hann = self.hann.to(dtype)
        spectrum = torch.stft(
            waveforms.to(dtype), self.window, self.hop, window=hann / hann.sum(), center=False, return_complex=True
        )
        parts = torch.view_as_real(spectrum)
        power = parts.square().sum(-1).transpose(1, 2)  # [B, frames, bins]
        return torch.log1p(_LOUDNESS * (power @ self.filters.to(dtype)))
