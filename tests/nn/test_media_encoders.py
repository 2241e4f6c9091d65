"""Encoders of texts, pictures, sounds and videos: padding, odd sizes, gradients, mel filters, files."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deeprec.nn import AudioCNN, ImageCNN, TextCNN, VideoCNN, mel_filters, timm_encoder
from deeprec.nn.media_encoder import MediaEncoder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(**options: Any) -> TextCNN:
    sizes = {"embedding_dim": 4, "filters": 3, "hidden": 5, "windows": (1, 3)} | options
    return TextCNN(11, 6, **sizes, generator=seeded())


def image() -> ImageCNN:
    return ImageCNN(6, channels=(8, 16), generator=seeded())


def audio() -> AudioCNN:
    return AudioCNN(6, sample_rate=800, window=64, hop=32, mels=4, channels=(5, 7), generator=seeded())


def video() -> VideoCNN:
    return VideoCNN(6, frame_width=5, channels=(8,), temporal=(4,), generator=seeded())


ENCODERS: dict[str, tuple[Callable[[], MediaEncoder], Tensor]] = {
    "TextCNN": (text, torch.randint(1, 11, (3, 7), generator=seeded())),
    "ImageCNN": (image, torch.rand(3, 3, 9, 5, generator=seeded())),
    "AudioCNN": (audio, torch.rand(3, 200, generator=seeded()) - 0.5),
    "VideoCNN": (video, torch.rand(3, 4, 3, 6, 5, generator=seeded())),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_becomes_vectors_the_same_in_every_call(name: str) -> None:
    make, batch = ENCODERS[name]
    encoder, again = make().eval(), make().eval()
    vectors = encoder(batch)
    assert vectors.shape == (3, encoder.width) == (3, 6)
    assert vectors.isfinite().all()
    assert torch.equal(vectors, again(batch))
    assert encoder(batch[:0]).shape == (0, 6)
    torch.testing.assert_close(encoder(batch[1:2]), vectors[1:2], rtol=1e-4, atol=1e-5)  # no row sees another


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_are_those_of_differences(name: str) -> None:
    make, batch = ENCODERS[name]
    encoder = make().double().eval()
    inputs: Any = batch[:2] if name == "TextCNN" else batch[:2].double().requires_grad_()
    if name == "AudioCNN":
        inputs = (batch[:2, :70].double() * 0.1).requires_grad_()
    parameters = [each for key, each in encoder.named_parameters() if "bias" in key or "output" in key]
    leaves = parameters if name == "TextCNN" else [inputs, *parameters]
    assert torch.autograd.gradcheck(lambda *_: encoder(inputs), leaves, atol=1e-5, fast_mode=True)


def text_loop(encoder: TextCNN, words: list[int]) -> Tensor:
    """The vector of one text, window by window."""
    x = encoder.words.weight[words]
    largest = []
    for size, convolution in zip(encoder.windows, encoder.convolutions, strict=True):
        padded = torch.cat([x, x.new_zeros(max(size - len(words), 0), x.shape[1])])
        values = [
            (convolution.weight * padded[at : at + size].T).sum((1, 2)) + convolution.bias
            for at in range(len(padded) - size + 1)
        ]
        largest.append(torch.stack(values).amax(0))
    hidden = torch.tanh(encoder.hidden(torch.cat(largest).relu()))
    return torch.tanh(encoder.output(hidden))


def test_text_is_its_windows_whatever_padding_follows() -> None:
    encoder = text().double().eval()
    texts = [[3, 5, 1, 10, 2, 7], [4, 4], [9], []]
    for width in (6, 9):
        batch = torch.tensor([words + [0] * (width - len(words)) for words in texts])
        expected = torch.stack([text_loop(encoder, words) for words in texts])
        torch.testing.assert_close(encoder(batch), expected)
    torch.testing.assert_close(encoder(torch.zeros(2, 0, dtype=torch.int64)), expected[[3, 3]])


def test_text_learns_from_its_words_alone() -> None:
    encoder = text(dropout=0.5)
    encoder(torch.tensor([[3, 5, 0, 0]])).sum().backward()
    touched = encoder.words.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 5]


def test_audio_hears_the_samples_of_a_clip_alone() -> None:
    encoder = audio().double().eval()
    clips = [torch.rand(count, generator=seeded(count), dtype=torch.float64) for count in (230, 64, 40, 1, 0)]
    alone = torch.cat([encoder(clip.unsqueeze(0)) for clip in clips])
    padded = torch.full((len(clips), 300), 9.0, dtype=torch.float64)  # what lies behind a clip does not matter
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    lengths = torch.tensor([len(clip) for clip in clips])
    torch.testing.assert_close(encoder(padded, lengths), alone)
    silent = encoder(torch.zeros(1, 500, dtype=torch.float64))
    torch.testing.assert_close(silent, alone[-1:])  # as an empty one: one frame of silence, or many


def test_video_sees_its_frames_alone() -> None:
    encoder = video().double().eval()
    frames = torch.rand(5, 3, 7, 6, generator=seeded(), dtype=torch.float64)
    padded = torch.full((3, 6, 3, 7, 6), 3.0, dtype=torch.float64)
    padded[0, :5], padded[1, :1] = frames, frames[:1]
    alone = torch.cat([encoder(frames.unsqueeze(0)), encoder(frames[None, :1]), encoder(0 * frames[None, :1])])
    torch.testing.assert_close(encoder(padded, torch.tensor([5, 1, 0])), alone)
    torch.testing.assert_close(encoder(frames[None, :0]), alone[2:])


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (2, 3)])
def test_odd_pictures_have_finite_vectors(size: tuple[int, int]) -> None:
    for value in (0.0, 1.0):
        assert image()(torch.full((2, 3, *size), value)).isfinite().all()
    assert video()(torch.zeros(1, 1, 3, *size)).isfinite().all()


def test_mel_filters_are_triangles_of_htk() -> None:
    filters = mel_filters(8000, 256, 10, low=100.0, high=3500.0)
    bounds = [2595 * math.log10(1 + f / 700) for f in (100.0, 3500.0)]
    corners = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(*bounds, 12)]
    for at in range(129):
        for k in range(10):
            expected = np.interp(at * 8000 / 256, corners[k : k + 3], [0, 1, 0], left=0, right=0)
            assert float(filters[at, k]) == pytest.approx(expected, abs=1e-12)
    assert 2595 * math.log10(1 + 1000 / 700) == pytest.approx(1000, abs=0.1)  # the scale's fixed point


def test_a_tone_is_loudest_in_its_band() -> None:
    encoder = AudioCNN(2, sample_rate=8000, window=256, hop=128, mels=20)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(2000) / 8000).unsqueeze(0)
    bands = encoder.log_mel(tone)
    assert bands.shape == (1, (2000 - 256) // 128 + 1, 20)
    strongest = mel_filters(8000, 256, 20)[32].argmax()  # 1000 Hz
    assert (bands.argmax(2) == strongest).all()
    power = bands.double().expm1().max() / 1e4
    assert float(power) == pytest.approx(0.25 * float(mel_filters(8000, 256, 20)[31:34, strongest].max()), rel=0.35)


@pytest.mark.parametrize("name", ENCODERS)
def test_saved_encoders_are_loaded_bit_by_bit(name: str, tmp_path: Any) -> None:
    make, batch = ENCODERS[name]
    encoder = make().eval()
    folder = encoder.save(tmp_path / "encoder")
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "weights.safetensors"]
    for kind in (MediaEncoder, type(encoder)):
        loaded = kind.load(folder)
        assert type(loaded) is type(encoder)
        assert not loaded.training
        assert torch.equal(loaded(batch), encoder(batch))
    other = make()
    with torch.no_grad():
        next(other.parameters()).zero_()
    other.load_weights(folder / "weights.safetensors")
    assert torch.equal(other.eval()(batch), encoder(batch))


def test_foreign_files_are_refused_and_named(tmp_path: Any) -> None:
    folder = image().save(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"^TextCNN\.load: .* must be of TextCNN, got 'ImageCNN'"):
        TextCNN.load(folder)
    with pytest.raises(FileNotFoundError, match="save the encoder anew"):
        ImageCNN.load(tmp_path)
    kept = image()
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    foreign = {
        "lacks": ({}, "lacks 'blocks"),
        "unknown": ({**before, "more": torch.ones(1)}, "has an unknown 'more'"),
        "shape": ({**before, "output.bias": torch.ones(9)}, r"output\.bias must be \[6\], got \[9\]"),
    }
    for name, (weights, message) in foreign.items():
        save_file(weights, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            kept.load_weights(tmp_path / name)
    (tmp_path / "broken").write_bytes(b"\x00" * 9)
    with pytest.raises(ValueError, match="must be a file of safetensors"):
        kept.load_weights(tmp_path / "broken")
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())
    (folder / "encoder.json").write_text(json.dumps({"encoder": "ImageCNN", "options": {"width": 6, "depth": 9}}))
    with pytest.raises(ValueError, match=r"must hold the options of ImageCNN, got .*depth"):
        ImageCNN.load(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextCNN(1), "vocabulary must be >= 2"),
        (lambda: TextCNN(9, windows=()), "windows must be sizes >= 1"),
        (lambda: TextCNN(9, dropout=1.0), r"dropout must lie in \[0, 1\)"),
        (lambda: ImageCNN(channels=(12,)), "channels must be multiples of 8"),
        (lambda: ImageCNN(0), "ImageCNN: width must be >= 1, got 0"),
        (lambda: AudioCNN(sample_rate=8000, window=64, mels=64), "each filter must have a frequency .* fewer mels"),
        (lambda: VideoCNN(temporal=()), "temporal must be sizes >= 1"),
        (lambda: text()(torch.ones(3, dtype=torch.int64)), r"ids must be \[B, T\], got \(3,\)"),
        (lambda: image()(torch.ones(2, 1, 4, 4)), r"images must be \[B, 3, H, W\]"),
        (lambda: audio()(torch.ones(2, 1, 9)), r"waveforms must be \[B, T\] of one channel"),
        (lambda: audio()(torch.ones(2, 9), torch.ones(3, dtype=torch.int64)), r"lengths must be \[2\], one for each"),
        (lambda: video()(torch.ones(2, 3, 4, 4)), r"videos must be \[B, F, 3, H, W\]"),
    ],
)
def test_bad_arguments_say_what_is_needed(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_are_refused_where_numbers_are_needed() -> None:
    for make, batch in (ENCODERS[name] for name in ("ImageCNN", "AudioCNN", "VideoCNN")):
        with pytest.raises(TypeError, match="floating-point"):
            make()(batch.long())
    with pytest.raises(TypeError, match="ids must be int32 or int64"):
        text()(torch.ones(2, 3))


def test_timm_is_asked_for_by_name_or_missed_with_a_remedy(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm, or take ImageCNN"):
        timm_encoder("resnet18")

    class Pooled(nn.Module):
        num_features = 3

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    stand_in = types.SimpleNamespace(create_model=lambda name, pretrained, num_classes: Pooled())
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    encoder = timm_encoder("pooled", 4)
    images = torch.rand(2, 3, 5, 5)
    assert encoder(images).shape == (2, 4)
    folder = encoder.save(tmp_path)
    assert torch.equal(MediaEncoder.load(folder)(images), encoder(images))
    assert torch.equal(timm_encoder("pooled", 4, weights=folder / "weights.safetensors")(images), encoder(images))
