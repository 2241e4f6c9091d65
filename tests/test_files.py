"""Every writer leaves the old file or the whole new one, names what it could not write, and clears up after a kill."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import deeprec
from deeprec._files import WriteError, write_atomically
from deeprec._tensors import write_tensors
from deeprec.data import IdMap, synthetic
from deeprec.data.clicks import log as click_log
from deeprec.data.sets.click_datasets import synthetic_clicks
from deeprec.evaluate.click_metrics import plot_reliability, reliability
from deeprec.models import GMF, create
from deeprec.serve.predict import predict_file, predict_pairs_file
from deeprec.train.curves import plot_curves

HISTORY = [{"epoch": 1, "loss": 0.5, "seconds": 1.0, "samples_per_second": 2.0, "hr@10": 0.1}]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small():
    return synthetic(num_users=60, num_items=80, num_interactions=1500)


@pytest.fixture(scope="module")
def gmf(small):
    return GMF(factors=4, epochs=1, batch_size=512).fit(small, protocol="full")


@pytest.fixture(scope="module")
def clicks():
    frame, schema = synthetic_clicks(400, fields=2, values=20, numerics=1)
    return frame, schema, click_log.in_memory(frame, schema)


@pytest.fixture(scope="module")
def lr(clicks):
    return create("lr", epochs=1).fit(clicks[2])


@pytest.fixture
def writers(tmp_path, small, gmf, clicks, lr):
    """Name of the file or folder that is written -> a call that writes it."""
    frame, schema, log = clicks
    pairs, rows = tmp_path / "in" / "pairs.csv", tmp_path / "in" / "rows.parquet"
    pairs.parent.mkdir()
    frame.write_parquet(rows)
    pl.DataFrame({"user_id": small.user_ids.values[:3], "item_id": small.item_ids.values[:3]}).write_csv(pairs)
    labels = log.parts["test"].labels
    bins = {"test": reliability(np.zeros(len(labels), np.float32), labels)}
    return {
        "ids.parquet": small.user_ids.write_parquet,
        "x.safetensors": lambda path: write_tensors(path, gmf.state_dict()),
        "curves.png": lambda path: plot_curves(HISTORY, path, title="x"),
        "reliability.png": lambda path: plot_reliability(bins, path, title="x"),
        "model": gmf.save,
        "clicks-model": lr.save,
        "encoder": log.encoder.save,
        "log": lambda path: click_log.convert(frame, schema, path, overwrite=path.exists()),
        "pairs.parquet": lambda path: predict_pairs_file(gmf, pairs, path),
        "scores.csv": lambda path: predict_file(lr, rows, path),
        "scores.parquet": lambda path: predict_file(lr, rows, path),
    }


NAMES = ["ids.parquet", "x.safetensors", "curves.png", "reliability.png", "model", "clicks-model", "encoder", "log",
         "pairs.parquet", "scores.csv", "scores.parquet"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_named_with_path_cause_and_remedy_and_the_old_file_stays(
    writers, tmp_path, monkeypatch, name
) -> None:
    target = tmp_path / "out" / name
    target.parent.mkdir()
    writers[name](target)
    before = _files(target.parent)
    assert before

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="'No space left on device'; free space on its disk, then do it again") as got:
        writers[name](target)
    assert got.value.errno == errno.ENOSPC
    assert str(tmp_path / "out") in str(got.value)
    assert name in str(got.value)
    assert _files(target.parent) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_the_system_refuses_is_named(writers, tmp_path, name) -> None:
    """A limit of 64 bytes a file: errors come from write() itself, also where polars writes."""
    target = tmp_path / "out" / name
    target.parent.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"File too large.*; raise the limit") as got:
            writers[name](target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert name in str(got.value)
    assert not _files(target.parent)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_killed_writer_left_is_removed_by_the_next(writers, tmp_path, name) -> None:
    target = tmp_path / "out" / name
    target.parent.mkdir()
    writers[name](target)
    expected = set(_files(target.parent))
    for file in [path for path in target.parent.rglob("*") if path.is_file()]:
        file.with_name(f".{file.name}.unfinished-killed").write_bytes(b"half")
    if name == "log":
        target.rename(tmp_path / "out" / ".log.unfinished-killed")
    writers[name](target)
    assert set(_files(target.parent)) - {f"log/{name}" for name in expected} == expected


def test_a_file_that_a_living_process_writes_is_left_alone(tmp_path) -> None:
    code = (
        "import sys, pathlib\nfrom deeprec._files import replacing\n"
        "with replacing(sys.argv[1]) as file:\n    print('open', flush=True); sys.stdin.read(); file.write(b'theirs')"
    )
    target = tmp_path / "x"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        write_atomically(target, b"ours")
        assert len(list(tmp_path.iterdir())) == 2
        other.communicate()
    assert _files(tmp_path) == {"x": b"theirs"}


def test_a_picture_that_a_kill_left_is_removed_when_the_run_goes_on(tmp_path, small) -> None:
    left = tmp_path / ".curves.png.unfinished-abc"
    left.write_bytes(b"half")
    GMF(factors=4, epochs=1).fit(small, protocol="full", out=tmp_path)
    assert not left.exists()
    assert not [name for name in _files(tmp_path) if "unfinished" in name]


@pytest.mark.parametrize("is_click", [False, True])
def test_training_on_a_full_disk_goes_on_with_resume_wherever_it_stopped(
    tmp_path, monkeypatch, small, clicks, is_click
) -> None:
    def train(out: Path, **options):
        if is_click:
            return create("lr", epochs=2).fit(clicks[2], out=out, **options)
        return GMF(factors=4, epochs=2, batch_size=512).fit(small, protocol="full", out=out, **options)

    train(tmp_path / "whole")
    expected = deeprec.load(tmp_path / "whole").state_dict()
    real, calls = os.fsync, [0, 0]

    def full_from(handle: int) -> None:
        calls[0] += 1
        if calls[0] > calls[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_from)
    out, messages = tmp_path / "stopped", []
    for allowed in range(30):
        calls[:] = [0, allowed]
        try:
            train(out, resume=True)
        except WriteError as error:
            messages.append(str(error))
        else:
            break
    assert 3 < len(messages) < 29
    assert all("; free space on its disk, then go on with resume=True (--resume)" in text for text in messages)
    assert all(str(out) in text for text in messages)
    found = deeprec.load(out).state_dict()
    assert all(np.array_equal(found[key].numpy(), value.numpy()) for key, value in expected.items())
    assert set(_files(out)) == set(_files(tmp_path / "whole"))


@pytest.mark.parametrize("is_click", [False, True])
def test_saving_over_a_model_on_a_full_disk_leaves_the_one_that_was_there(
    tmp_path, monkeypatch, small, clicks, is_click
) -> None:
    def trained(seed: int):
        if is_click:
            return create("lr", epochs=1).fit(clicks[2], seed=seed)
        return GMF(factors=4, epochs=1).fit(small, protocol="full", seed=seed)

    folder, other, real, calls = trained(0).save(tmp_path / "model"), trained(1), os.fsync, [0, 0]
    before = _files(folder)

    def full_from(handle: int) -> None:
        calls[0] += 1
        if calls[0] > calls[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_from)
    for allowed in range(30):
        calls[:] = [0, allowed]
        try:
            other.save(folder)
        except WriteError:
            assert _files(folder) == before
        else:
            break
    assert 2 < allowed < 29
    assert _files(folder).keys() == before.keys()
    assert _files(folder)["model.safetensors"] != before["model.safetensors"]
    deeprec.load(folder)


def test_titles_that_matplotlib_takes_for_mathematics_are_drawn_as_they_are(tmp_path) -> None:
    plot_curves(HISTORY, tmp_path / "a.png", title="$\\frac{ on a$b.csv")
    bins = {"test": reliability(np.zeros(4, np.float32), np.array([0, 1, 0, 1], np.float32))}
    plot_reliability(bins, tmp_path / "b.png", title="$\\frac{ on a$b.csv")
    assert len(_files(tmp_path)) == 2


@pytest.mark.parametrize(
    ("place", "message"),
    [("missing/x", "make its folder"), ("file/x", "a part of its path is no folder"), ("folder", "it is a folder")],
)
def test_a_place_that_is_none_is_named(tmp_path, place, message) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=message):
        write_atomically(tmp_path / place, b"x")
    with pytest.raises(WriteError, match=message):
        IdMap(pl.Series("user", [1]), "user").write_parquet(tmp_path / place)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, clicks) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match=r"file/below.*no folder"):
        clicks[2].encoder.save(tmp_path / "file" / "below")
    with pytest.raises(WriteError, match=r"file/below.*a file is there"):
        click_log.convert(clicks[0], clicks[1], tmp_path / "file" / "below")
