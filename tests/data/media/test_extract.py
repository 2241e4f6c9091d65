"""Claims about features: what is kept is not decoded again, a killed run goes on, bad media are zeros and named."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.data.media import extract as module
from deeprec.data.media.cache import ContentCache, cache_folder, content_key, reading_cache, writing_cache
from deeprec.data.media.decoders import AudioDecoder, ImageDecoder, MediaBatch, VideoDecoder
from deeprec.data.media.errors import MediaError
from deeprec.data.media.extract import extract, report, text_weights, vector_cache, vector_table, write_vectors
from deeprec.data.media.features import AudioFeatures, ImageFeatures, TextFeatures, VideoFeatures
from deeprec.data.media.files import MediaFiles


@pytest.fixture
def covers(made, tmp_path: Path) -> Path:
    """A folder of eight covers; two are the same, one is broken and one empty."""
    folder = tmp_path / "covers"
    (folder / "deep").mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(made.picture(size=(40 + 8 * number, 32)))
    (folder / "deep" / "same.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    return folder


KEYS = [*(f"{number}.png" for number in range(6)), "deep/same.png", "broken.png", None, "empty.png", "nowhere.png", ""]


def run(covers: Path, cache: Path, keys=KEYS, encoder=None, **options):
    encoder = encoder or ImageFeatures()
    with vector_cache(cache, encoder) as opened:
        done = extract(range(len(keys)), keys, encoder, MediaFiles(covers), opened, batch_size=3, **options)
        write_vectors(cache / "out.npy", done.rows, opened)
    return done, np.load(cache / "out.npy")


def test_each_item_has_its_vector_or_zeros_and_a_reason(covers: Path, tmp_path: Path) -> None:
    done, vectors = run(covers, tmp_path / "cache", workers=3)
    assert vectors.shape == (12, ImageFeatures.width)
    assert (done.rows >= 0).tolist() == [True] * 7 + [False] * 5
    assert not vectors[7:].any()
    assert (vectors[6] == vectors[0]).all()
    assert (done.num_missing, done.num_new) == (2, 6)
    table = report(done.bad)
    assert table["item_id"].to_list() == ["7", "9", "10"]
    assert table["file"].to_list() == ["broken.png", "empty.png", "nowhere.png"]
    assert table["fault"][1:].to_list() == ["is empty (0 bytes)", "is not there"]
    frame = vector_table(pl.Series("item_id", range(12)), "cover", tmp_path / "cache" / "out.npy", done.rows >= 0)
    assert frame.columns == ["item_id", "cover_vector", "cover_ok"]
    assert frame["cover_vector"].dtype == pl.List(pl.Float32)
    assert (np.array(frame["cover_vector"].to_list(), dtype=np.float32) == vectors).all()


def test_another_run_decodes_what_is_new_alone(covers: Path, tmp_path: Path, monkeypatch) -> None:
    _, first = run(covers, tmp_path / "cache")
    decoded = []
    decode = ImageDecoder.decode
    monkeypatch.setattr(ImageDecoder, "decode", lambda self, file: (decoded.append(file), decode(self, file))[1])
    done, again = run(covers, tmp_path / "cache")
    assert (first == again).all()
    assert done.num_new == 0
    assert len(decoded) == 1  # the broken one is tried again
    (covers / "new.png").write_bytes((covers / "1.png").read_bytes() + b"tail")
    (covers / "broken.png").write_bytes((covers / "2.png").read_bytes())  # mended, by what is known
    done, later = run(covers, tmp_path / "cache", [*KEYS, "new.png"])
    assert done.num_new == 1
    assert (later[:7] == first[:7]).all()
    assert (later[7] == first[2]).all()


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_and_the_batch_change_no_bit(covers: Path, tmp_path: Path, workers: int) -> None:
    _, one = run(covers, tmp_path / "one")
    encoder = ImageFeatures()
    with vector_cache(tmp_path / "other", encoder) as cache:
        done = extract(range(12), KEYS, encoder, MediaFiles(covers), cache, workers=workers, batch_size=100)
        write_vectors(tmp_path / "other.npy", done.rows, cache)
    assert (np.load(tmp_path / "other.npy") == one).all()


def test_the_first_bad_medium_ends_a_run_that_is_to_raise(covers: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"media: item 7: broken\.png is no whole image"):
        run(covers, tmp_path / "cache", on_bad="raise")
    assert run(covers, tmp_path / "cache")[0].num_new <= 3  # what came before is kept


def test_an_archive_is_the_same_as_its_folder(covers: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "covers.tar", "w") as archive:
        archive.add(covers, arcname=".")
    in_folder, in_archive = MediaFiles(covers), MediaFiles(tmp_path / "covers.tar")
    assert in_folder.names() == in_archive.names()
    for key in sorted(in_folder.names()):
        if key != "empty.png":
            assert in_folder.open(key).read() == in_archive.open(key).read(), key
    assert "0.png" in in_archive
    assert "none.png" not in in_archive
    with pytest.raises(MediaError, match=r"none\.png is not in covers\.tar"):
        in_archive.open("none.png")
    with pytest.raises(MediaError, match="is empty"):
        in_archive.open("empty.png")


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch) -> None:
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a.bin").write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.bin", "a.bin")
    monkeypatch.setattr("deeprec.data.media.files._IN_MEMORY", 1000)
    for source in (tmp_path, tmp_path / "a.tar"):
        with MediaFiles(source).open("a.bin") as file:
            assert isinstance(file, io.BufferedReader)
            assert content_key(file) == content_key(io.BytesIO(content))
            assert file.seek(-10, 2) == 299_990
            assert file.read() == content[-10:]
            file.seek(7)
            assert file.read(5) == content[7:12]


def test_no_key_leads_out_of_the_folder(covers: Path) -> None:
    files = MediaFiles(covers)
    for key in ("../covers/0.png", "deep/../../x.png", "/etc/passwd", "a\0b"):
        with pytest.raises(MediaError, match=r"leads out of|lies outside of"):
            files.open(key)
        assert key not in files
    assert files.open(str(covers / "0.png")).read() == files.open("0.png").read()
    os.mkfifo(covers / "pipe.png")
    with pytest.raises(MediaError, match="is no regular file"):
        files.open("pipe.png")
    with pytest.raises(FileNotFoundError, match=r"no folder or \.tar"):
        MediaFiles(covers / "nowhere")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + b"x" * 2000)
    with pytest.raises(ValueError, match=r"a\.tar must be an uncompressed \.tar, got one that cannot be read"):
        MediaFiles(tmp_path / "a.tar")


def rows_of(cache: ContentCache, keys: list[bytes]) -> np.ndarray:
    return cache.take(np.array([cache.row(key) for key in keys], dtype=np.int64))[0]


def test_what_a_killed_process_left_half_written_is_written_over(tmp_path: Path) -> None:
    keys = [bytes([number]) * 16 for number in range(8)]
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    with writing_cache(tmp_path, "x", (3,), np.float32) as cache:
        cache.add(keys[:4], values[:4], [0] * 4)
    folder = cache_folder(tmp_path, "x")
    whole = {name: (folder / name).read_bytes() for name in ("rows.bin", "index.bin")}
    size = len(whole["index.bin"]) // 4
    for rows, index, kept in (
        (whole["rows.bin"] + b"part", whole["index.bin"], 4),
        (whole["rows.bin"] + b"part of rows", whole["index.bin"] + b"part of an entry", 4),
        (whole["rows.bin"], whole["index.bin"] + bytes(size), 4),  # blocks that were never filled
        (whole["rows.bin"][:-1], whole["index.bin"], 3),
        (whole["rows.bin"], whole["index.bin"][: size + 5], 1),
    ):
        (folder / "rows.bin").write_bytes(rows)
        (folder / "index.bin").write_bytes(index)
        with writing_cache(tmp_path, "x", (3,), np.float32) as cache:
            assert len(cache) == kept
            cache.add(keys, values, [0] * 8)
            assert (rows_of(cache, keys) == values).all()
        reader = reading_cache(tmp_path, "x", (3,), np.float32)
        assert reader is not None
        assert (rows_of(reader, keys) == values).all()


def test_a_killed_run_goes_on_where_it_was(covers: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys
from deeprec.data.media import extract as module
from deeprec.data.media.features import ImageFeatures
from deeprec.data.media.files import MediaFiles
encoder = ImageFeatures()
with module.vector_cache(module.Path({str(tmp_path / "cache")!r}), encoder) as cache:
    keys = [f"{{number}}.png" for number in range(6)]
    module.extract(range(6), keys, encoder, MediaFiles({str(covers)!r}), cache, batch_size=2,
                   on_progress=lambda done: os._exit(9) if done == 5 else None)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    done, vectors = run(covers, tmp_path / "cache")
    assert done.num_new == 2
    assert (vectors == run(covers, tmp_path / "whole")[1]).all()


def test_two_runs_at_once_are_refused_and_readers_are_not(tmp_path: Path) -> None:
    with writing_cache(tmp_path, "x", (3,), np.float32) as cache:
        cache.add([b"k" * 16], np.ones((1, 3), dtype=np.float32), [5])
        with pytest.raises(ValueError, match="in use by another process"), writing_cache(tmp_path, "x", (3,), "f4"):
            pass
        reader = reading_cache(tmp_path, "x", (3,), np.float32)
        assert reader is not None
        values, lengths = reader.take(np.array([0, 0]))
        assert values.tolist() == [[1.0] * 3] * 2
        assert lengths.tolist() == [5, 5]
        with pytest.raises(ValueError, match="open for reading"):
            reader.add([b"j" * 16], np.ones((1, 3)), [0])
    assert reading_cache(tmp_path, "y", (3,), np.float32) is None
    folder = cache_folder(tmp_path, "x")
    (folder / "cache.json").write_text((folder / "cache.json").read_text().replace('"x"', '"z"'))
    with pytest.raises(ValueError, match="identity must be x, got z; delete the folder"):
        reading_cache(tmp_path, "x", (3,), np.float32)


def test_little_is_in_memory_whatever_the_number_of_items(covers: Path, tmp_path: Path, monkeypatch) -> None:
    alive, most, lock = [0], [0], threading.Lock()
    prepare = module.prepare

    def counted(*arguments):
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return prepare(*arguments)

    class Counting(ImageFeatures):
        def __call__(self, batch: MediaBatch):
            with lock:
                alive[0] -= len(batch.values)
            return super().__call__(batch)

    monkeypatch.setattr(module, "prepare", counted)
    for number in range(120):
        (covers / f"n{number}.png").write_bytes((covers / "0.png").read_bytes() + bytes([number]))
    done, _ = run(covers, tmp_path / "cache", [f"n{number}.png" for number in range(120)], Counting(), workers=2)
    assert done.num_new == 120
    assert most[0] <= 4 * 2 + 1 + 3 + 2


def test_vectors_that_are_not_finite_are_not_kept(covers: Path, tmp_path: Path) -> None:
    class Wrong(ImageFeatures):
        def __call__(self, batch: MediaBatch):
            return np.full((len(batch.values), self.width), np.nan, dtype=np.float32)

    with pytest.raises(ValueError, match=r"image-features-1 must make finite vectors of 384 numbers"):
        run(covers, tmp_path / "cache", ["0.png"], Wrong())


def test_features_of_images_say_what_they_are_said_to() -> None:
    black = np.zeros((3, 16, 16), dtype=np.uint8)
    red, edge = black.copy(), black.copy()
    red[0] = 255
    edge[:, :, 8:] = 255
    vectors = ImageFeatures(ImageDecoder((16, 16)))(MediaBatch(np.stack([black, red, edge]), np.zeros(3, np.int64)))
    assert vectors.dtype == np.float32
    assert vectors[:, :64].sum(axis=1).tolist() == [1.0] * 3
    assert vectors[1, 48] == 1.0  # the brightest red, without green and blue
    assert vectors[1, 64:128].tolist() == [1.0] * 64
    assert not vectors[1, 128:].any()
    directions = vectors[2, 256:].reshape(4, 4, 8)
    assert directions[:, :, 1:].max() == 0  # brightness grows to the right alone
    assert (directions[:, 1:3, 0] == pytest.approx(1 / np.sqrt(8))) & (directions[:, [0, 3]].max() == 0)
    with pytest.raises(ValueError, match="sides must be multiples of 8, got 20 x 16"):
        ImageFeatures(ImageDecoder((20, 16)))


def test_features_of_sounds_know_the_pitch_and_not_the_padding() -> None:
    seconds = np.arange(16_000) / 16_000
    waves = np.stack([0.5 * np.sin(2 * np.pi * hertz * seconds) for hertz in (200, 3000)]).astype(np.float32)
    encoder = AudioFeatures(AudioDecoder(16_000, 1.0))
    vectors = encoder(MediaBatch(waves, np.array([16_000, 16_000])))
    low, high = vectors[:, :40].argmax(axis=1)
    assert low < 8 < 25 < high
    padded = np.concatenate([waves[:, :8000], np.zeros((2, 8000), np.float32)], axis=1)
    short = encoder(MediaBatch(padded, np.array([8000, 8000])))
    longer = AudioFeatures(AudioDecoder(16_000, 0.5))(MediaBatch(waves[:, :8000], np.array([8000, 8000])))
    assert (short == longer).all()
    silent = encoder(MediaBatch(np.zeros((1, 16_000), np.float32), np.array([3])))
    assert not silent.any()


def test_features_of_videos_know_still_from_moving() -> None:
    still = np.full((4, 3, 16, 16), 90, dtype=np.uint8)
    moving = still.copy()
    moving[1::2, :, :2, :2] = 190
    vectors = VideoFeatures(VideoDecoder(4, (16, 16)))(MediaBatch(np.stack([still, moving]), np.zeros(2, np.int64)))
    assert not vectors[0, 384:].any()
    assert vectors[1, 384] == pytest.approx(100 / 255)
    assert not vectors[1, 385:].any()
    assert np.isfinite(VideoFeatures(VideoDecoder(1))(MediaBatch(still[None, :1], np.zeros(1, np.int64)))).all()


def test_texts_become_tf_idf_that_later_texts_do_not_change(tmp_path: Path) -> None:
    texts = ["the red dragon", "the blue comet", "the red comet, the red", None, "   ", "x" * 10]
    encoder = TextFeatures()

    def vectors(keys: list[str | None]) -> tuple[np.ndarray, list[MediaError]]:
        with vector_cache(tmp_path / "cache", encoder) as cache:
            done = extract(range(len(keys)), keys, encoder, None, cache)
            weights = text_weights(tmp_path / "words.npy", encoder, done.rows, cache)
            write_vectors(tmp_path / "out.npy", done.rows, cache, weights)
        return np.load(tmp_path / "out.npy"), done.bad

    first, bad = vectors(texts)
    assert [error.what for error in bad] == ["is an empty text"]
    norms = np.linalg.norm(first, axis=1)
    assert norms[[0, 1, 2, 5]] == pytest.approx(1, abs=1e-6)
    assert not norms[[3, 4]].any()
    assert first[0] @ first[2] > first[0] @ first[1] > 0  # "red" is rarer than "the"
    later, _ = vectors([*texts, "something else"])
    assert (later[:6] == first).all()
    (tmp_path / "words.npy").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"words\.npy must hold 512 weights; delete it"):
        vectors(texts)
