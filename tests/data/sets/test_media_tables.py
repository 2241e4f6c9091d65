"""Claims about real media by name, and about those that `with_media` draws: they show what the truth says."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.data import Image, interactions_of_labels, load, load_media, synthetic, with_media
from deeprec.data.columns.table import missing_files
from deeprec.data.media.decoders import AudioDecoder, ImageDecoder, VideoDecoder
from deeprec.data.media.extract import extract, vector_cache
from deeprec.data.media.features import AudioFeatures, ImageFeatures, VideoFeatures
from deeprec.data.media.files import MediaFiles

real = pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
for package in ("av", "soundfile", "soxr", "PIL.Image"):
    pytest.importorskip(package)


def vectors(keys, files: MediaFiles, encoder, folder: Path) -> np.ndarray:
    with vector_cache(folder, encoder) as cache:
        done = extract(range(len(keys)), keys, encoder, files, cache, workers=2)
        assert not done.bad
        return cache.take(done.rows)[0]


def told(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> float:
    """How many of the held-out labels the nearest centre of standardised features tells."""
    train = ~held_out
    scaled = (features - features[train].mean(axis=0)) / (features[train].std(axis=0) + 1e-6)
    names = np.unique(labels[train])
    centres = np.stack([scaled[train & (labels == name)].mean(axis=0) for name in names])
    distances = ((scaled[held_out, None] - centres) ** 2).sum(axis=2)
    return float((names[distances.argmin(axis=1)] == labels[held_out]).mean())


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        ("image", ImageFeatures(ImageDecoder((32, 32)))),
        ("audio", AudioFeatures(AudioDecoder(8_000, 0.5))),
        ("video", VideoFeatures(VideoDecoder(4, (32, 32)))),
    ],
)
def test_drawn_media_tell_the_genres(kind: str, encoder, tmp_path: Path) -> None:
    data = with_media(synthetic(40, 96, 800), tmp_path, (kind,))
    assert data.item_features is not None
    assert data.truth is not None
    features = vectors(data.item_features[kind].to_list(), MediaFiles(tmp_path), encoder, tmp_path / "cache")
    genres = data.truth.item_genres.argmax(axis=1)
    held_out = np.arange(96) % 4 == 0
    assert told(features, genres, held_out) > 0.5  # of 12
    shuffled = np.random.default_rng(0).permutation(features)
    assert told(shuffled, genres, held_out) < 0.25


def test_drawn_media_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    data = synthetic(20, 12, 100)
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        with_media(data, tmp_path / folder, ("image", "audio", "video"), seed=seed)
    for kind, name in (("image", "3.png"), ("audio", "3.wav"), ("video", "3.mp4")):
        first, again, other = ((tmp_path / folder / kind / name).read_bytes() for folder in "abc")
        assert first == again
        assert first != other
    with pytest.raises(ValueError, match="kinds must be of image, audio, video, got 'picture'"):
        with_media(data, tmp_path, ("picture",))


def test_tastes_for_labels_are_met(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [f"i{number}" for number in range(90)], "what": ["x", "y", "z"] * 30})
    data = interactions_of_labels(items, "what", 200, 3000, seed=3)
    assert (data.num_users, data.num_items, len(data)) == (200, 90, 3000)
    assert data.truth is not None
    assert data.item_features is not None
    assert data.truth.genres == ("x", "y", "z")
    genres = data.item_features["what"].to_numpy()[data.items]
    liked = np.array(data.truth.genres)[data.truth.user_genres.argmax(axis=1)][data.users]
    assert (genres == liked).mean() > 0.45  # by chance a third
    assert data.sha256 == interactions_of_labels(items[::-1], "what", 200, 3000, seed=3).sha256
    assert data.sha256 != interactions_of_labels(items, "what", 200, 3000, seed=4).sha256
    with pytest.raises(ValueError, match="label must be a column with two labels at least"):
        interactions_of_labels(items, "which")


def test_an_archive_is_a_folder_of_a_media_column(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "covers.tar", "w") as archive:
        member = tarfile.TarInfo("1.jpg")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    keys = pl.Series(["1.jpg", "2.jpg", "", None])
    assert missing_files(Image("cover", str(tmp_path / "covers.tar")), keys).tolist() == [1]
    assert missing_files(Image("cover", str(tmp_path / "nowhere")), keys).tolist() == [0, 1]


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("DEEPREC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'video-fights'"):
        load_media("video-fight")
    with pytest.raises(FileNotFoundError, match=r"no folder video-fights in .*pass data_dir or set DEEPREC_DATA"):
        load_media("video-fights")
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978302109\n")
    with pytest.raises(FileNotFoundError, match=r"media must be movie_overviews\.csv or"):
        load("ml-1m", tmp_path, media=True)


@real
def test_real_media_are_as_published() -> None:
    for name, count, labels in (
        ("audio-spoken-digits", 2000, 10), ("audio-instruments", 200, 10), ("video-fights", 202, 2),
        ("video-exercises", 196, 9),
    ):  # fmt: skip
        table = load_media(name)
        assert (len(table.items), table.items[table.label].n_unique()) == (count, labels)
        assert all(key in table.files for key in table.items["file"])
        held_out = table.held_out(0.2, seed=1)
        assert 0.15 < held_out.mean() < 0.4
        if table.group:
            groups = table.items[table.group].to_numpy()
            assert not set(groups[held_out]) & set(groups[~held_out])
    films = load_media("ml-1m")
    assert len(films.items["file"].drop_nulls()) == 3256


@real
def test_films_have_plots_and_posters_when_asked_for() -> None:
    data = load("ml-1m", media=True)
    assert data.item_features is not None
    assert data.item_features.columns == ["item_id", "title", "genres", "year", "plot", "abstract", "poster"]
    toy = data.item_features.filter(pl.col("title") == "Toy Story (1995)")
    assert toy["poster"].to_list() == ["posters_64x96/1.jpg"]
    assert "Woody" in toy["plot"][0]
    assert data.item_features["poster"].null_count() == 450


@real
def test_simple_features_of_real_sounds_tell_the_digits(tmp_path: Path) -> None:
    table = load_media("audio-spoken-digits")
    items = table.items[::13]
    features = vectors(items["file"].to_list(), table.files, AudioFeatures(AudioDecoder(8_000, 1.0)), tmp_path)
    held_out = table._replace(items=items, group="").held_out(0.3, seed=0)
    assert told(features, items["digit"].to_numpy(), held_out) > 0.25  # of ten
