"""Claims about media in batches: each file is decoded once, what cannot be is zeros, an encoder learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deeprec.batches.media import ItemMedia, ModuleEncoder
from deeprec.data import synthetic, with_media
from deeprec.data.media.decoders import AudioDecoder, ImageDecoder, MediaBatch
from deeprec.data.media.files import MediaFiles

for package in ("soundfile", "soxr", "PIL.Image"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(data, folder) of 40 items with images and sounds."""
    folder = tmp_path_factory.mktemp("media")
    return with_media(synthetic(20, 40, 200), folder, ("image", "audio")), folder


def keys_of(data, kind: str) -> list[str | None]:
    return [*data.item_features[kind].to_list(), None, "image/nowhere.png"]


def test_each_file_is_decoded_once_in_any_order_and_number(drawn, tmp_path: Path, monkeypatch) -> None:
    data, folder = drawn
    count = [0]
    decode = ImageDecoder.decode

    def counted(self, file):
        count[0] += 1
        return decode(self, file)

    monkeypatch.setattr(ImageDecoder, "decode", counted)
    files, decoder = MediaFiles(folder), ImageDecoder((16, 16))
    with ItemMedia(keys_of(data, "image"), files, decoder, tmp_path) as media:
        batches = [np.array([3, 3, 40]), np.array([41, 0, 3]), np.arange(42)]
        got = list(media.ahead(batches))
        assert count[0] == 40
        assert got[0].values.shape == (3, 3, 16, 16)
        assert got[0].values.dtype == torch.uint8
        assert got[0].is_known.tolist() == [True, True, False]
        assert not got[0].values[2].any()
        assert torch.equal(got[0].values[0], got[2].values[3])
        assert [fault.item for fault in media.bad] == ["41"]
        assert torch.equal(media.gather(torch.arange(42)).values, got[2].values)
    with ItemMedia(keys_of(data, "image"), files, decoder, tmp_path) as again:  # another run
        assert torch.equal(again.gather(np.arange(42)).values, got[2].values)
        assert count[0] == 40
        with pytest.raises(IndexError, match=r"numbers must be in \[0, 42\), got 0 to 42"):
            again.gather(np.array([0, 42]))
        assert len(again.gather(np.array([], dtype=np.int64)).values) == 0
        with pytest.raises(ValueError, match="in use by another process"):
            ItemMedia(keys_of(data, "image"), files, decoder, tmp_path)


def test_sounds_come_with_their_lengths(drawn, tmp_path: Path) -> None:
    data, folder = drawn
    with ItemMedia(keys_of(data, "audio")[:3], MediaFiles(folder), AudioDecoder(8_000, 0.75), tmp_path) as media:
        waves, lengths, _ = media.gather(np.arange(3))
        assert waves.shape == (3, 6_000)
        assert lengths.tolist() == [4_000] * 3
        assert not waves[:, 4_000:].any()
        assert waves[:, :4_000].abs().amax(1).min() > 0.3


def test_an_encoder_learns_from_the_images_of_a_batch(drawn, tmp_path: Path) -> None:
    data, folder = drawn
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    genres = torch.from_numpy(data.truth.item_genres.argmax(1))
    with ItemMedia(keys_of(data, "image")[:40], MediaFiles(folder), ImageDecoder((16, 16)), tmp_path) as media:
        losses = []
        for batch in media.ahead([np.arange(40)] * 30):
            loss = nn.functional.cross_entropy(batch.encode(network), genres)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


class Mean(nn.Module):
    """The mean of each colour times a weight."""

    width = 3

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.weight * images.mean((2, 3))


def test_a_module_is_an_encoder_named_by_its_weights() -> None:
    images = np.stack([np.full((3, 4, 4), shade, dtype=np.uint8) for shade in (0, 51, 255)])
    encoder = ModuleEncoder(Mean(), ImageDecoder((4, 4)), "cpu")
    vectors = encoder(MediaBatch(images, np.zeros(3, np.int64)))
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(np.array([[0.0] * 3, [0.4] * 3, [2.0] * 3]))
    assert encoder.width == 3
    assert encoder.name == ModuleEncoder(Mean(), ImageDecoder((8, 8)), "cpu").name
    assert encoder.name != ModuleEncoder(Mean(2.5), ImageDecoder((4, 4)), "cpu").name


def test_a_module_of_another_rate_is_refused() -> None:
    module = Mean()
    module.options = {"sample_rate": 22_050}
    with pytest.raises(ValueError, match=r"the module's 22,050 samples a second, got 8,000; pass --rate 22050"):
        ModuleEncoder(module, AudioDecoder(8_000, 1.0), "cpu")
