"""Converted logs: every row once and nothing but the rows, never half a log, shuffled the same for the same seed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from deeprec.data.clicks import files as click_files
from deeprec.data.clicks import log as click_log
from deeprec.data.clicks import part as click_part
from deeprec.data.clicks.log import ClickLog, Split, convert, in_memory
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Bags, Encoded
from deeprec.data.columns.rows import join, take
from deeprec.data.columns.schema import Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.reading.sources import open_source

DATA = Path(os.environ.get("DEEPREC_DATA", "missing"))


def table(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows whose number can be read off each column."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "site": [f"s{row % 17}" for row in range(rows)],
            "number": np.arange(rows, dtype=np.float64),
            "tags": [[f"t{tag}" for tag in range(row % 4)] for row in range(rows)],
            "user": np.arange(rows) % 5,
            "label": (random.random(rows) < 0.3).astype(np.int64),
        }
    )


SCHEMA = FeatureSchema(
    (Categorical("site"), Numeric("number", "none"), Bag("tags"), Cross(("site", "tags"), 1000)), group="user"
)


def same(one: Encoded, other: Encoded) -> None:
    """Raises unless all arrays are equal."""
    assert_array_equal(one.ids, other.ids)
    assert_array_equal(one.values, other.values)
    assert_array_equal(one.labels, other.labels)
    assert_array_equal(one.groups, other.groups)
    assert list(one.bags) == list(other.bags)
    for name, bags in one.bags.items():
        for mine, theirs in zip(bags, other.bags[name], strict=True):
            assert_array_equal(mine, theirs)


def whole(part: ClickPart) -> Encoded:
    return Encoded(part.ids, part.values, part.bags, part.labels, part.groups)


def test_files_hold_what_memory_holds(tmp_path: Path) -> None:
    frame = table(5000)
    stages: list[tuple[str, int, int]] = []
    converted = convert(frame, SCHEMA, tmp_path / "log", progress=lambda *stage: stages.append(stage))
    memory = in_memory(frame, SCHEMA)
    opened = ClickLog.open(tmp_path / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    for log in (converted, opened):
        assert log.counts == memory.counts
        assert log.sha256 == memory.sha256
        assert (log.inputs, log.schema, log.bad) == (memory.inputs, SCHEMA, 0)
        for name, part in log.parts.items():
            assert isinstance(part.ids, np.memmap)
            same(whole(part), whole(memory.parts[name]))
    assert sum(memory.counts.values()) == 5000
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["fit train", "encode train"]
    assert all(0 < done <= total for _, done, total in stages)
    assert stages[-1][1] == stages[-1][2]
    meta = json.loads((tmp_path / "log/meta.json").read_text())
    assert meta["parts"]["train"]["positives"] == memory.parts["train"].positives == memory.parts["train"].labels.sum()


def test_random_split_depends_on_seed_and_row_alone() -> None:
    rows = np.arange(100_000)
    split = Split(shares=(0.7, 0.2, 0.1), seed=3)
    parts = split.part_of(rows, 0)
    assert_array_equal(parts[500:777], split.part_of(rows[500:777], 9))
    assert np.abs(np.bincount(parts) / 100_000 - [0.7, 0.2, 0.1]).max() < 0.005
    assert (parts != Split(shares=(0.7, 0.2, 0.1), seed=4).part_of(rows, 0)).mean() > 0.3
    # Golden: the same rows next year.
    assert parts[:32].tolist() == GOLDEN_PARTS


GOLDEN_PARTS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0, 1, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 1]


def test_rows_stay_in_parts_that_have_a_share() -> None:
    almost = Split(shares=(0.7, 0.3 - 9e-10, 0.0))
    assert set(almost.part_of(np.arange(1000), 1000).tolist()) == {0, 1}
    with pytest.MonkeyPatch.context() as patch:  # the largest random number there is
        patch.setattr(click_log, "random_bits", lambda seed, stream, rows: np.full(len(rows), 2**64 - 1, np.uint64))
        assert almost.part_of(np.arange(3), 0).tolist() == [1] * 3
        assert Split(shares=(1 - 9e-10, 0, 0)).part_of(np.arange(3), 0).tolist() == [0] * 3
        assert Split().part_of(np.arange(3), 0).tolist() == [2] * 3


def numbered(rows: int) -> pl.DataFrame:
    """`table`, whose first row has the largest number: later ones are held to the range of the train rows."""
    numbers = np.arange(rows, dtype=np.float64)
    numbers[0] = rows
    return table(rows).with_columns(number=numbers)


def test_tail_split_takes_the_last_rows() -> None:
    log = in_memory(numbered(1000), SCHEMA, Split("tail", (0.7, 0.2, 0.1)))
    assert_array_equal(log.parts["train"].values[:, 0], [1000, *range(1, 700)])
    assert_array_equal(log.parts["validation"].values[:, 0], np.arange(700, 900))
    assert_array_equal(log.parts["test"].values[:, 0], np.arange(900, 1000))


def test_split_by_files_keeps_them_apart() -> None:
    frame = table(3000)
    log = in_memory(frame[:2000], SCHEMA, Split("files", (0.8, 0.2, 0), test=frame[2000:]))
    train = log.parts["train"].values[:, 0]
    held = (train.min(), train.max())  # numbers are held to the range of the train rows
    assert_array_equal(log.parts["test"].values[:, 0], np.clip(np.arange(2000, 3000), *held))
    assert_array_equal(log.parts["test"].labels, frame["label"][2000:])
    both = np.concatenate([log.parts[name].values[:, 0] for name in ("train", "validation")])
    assert_array_equal(np.sort(both), np.clip(np.arange(2000), *held))
    log = in_memory(frame[:2000], SCHEMA, Split("files", validation=frame[2000:2500], test=frame[2500:]))
    assert log.counts == {"train": 2000, "validation": 500, "test": 500}


def test_nothing_is_fitted_on_validation_and_test_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"x": ["a"] * 50 + ["b"] * 30 + ["late"] * 20, "n": [1.0, 3] * 40 + [1e6] * 20, "label": [0, 1] * 50}
    )
    schema = FeatureSchema((Categorical("x"), Numeric("n")))
    log = convert(frame, schema, tmp_path / "log", split=Split("tail", (0.8, 0, 0.2)))
    assert log.counts == {"train": 80, "test": 20}
    assert log.inputs.fields[0].size == 3
    assert log.parts["test"].ids.tolist() == [[0]] * 20
    assert set(log.parts["train"].values[:, 0].tolist()) == {-1, 1}


@pytest.mark.parametrize("window", [20, 300, None])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_epoch_has_each_row_once_and_an_order_of_its_own(tmp_path: Path, window: int | None, is_mapped: bool) -> None:
    frame = table(2000)
    split = Split(shares=(1, 0, 0))
    part = (
        convert(frame, SCHEMA, tmp_path / "log", split=split) if is_mapped else in_memory(frame, SCHEMA, split)
    ).parts["train"]
    rows = whole(part)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (None, 0)):
        batches = list(part.batches(64, seed=seed, epoch=epoch, window_rows=window))
        assert [len(batch) for batch in batches] == [64] * 31 + [16]
        joined = join(batches)
        order = joined.values[:, 0].astype(np.int64)
        same(joined, take(rows, order))
        assert_array_equal(np.sort(order), np.arange(2000))
        orders.append(order.tolist())
        again = join(list(part.batches(64, seed=seed, epoch=epoch, window_rows=window)))
        assert_array_equal(again.values, joined.values)
        for skip in (1, 7, 31, 32, 99):
            rest = list(part.batches(64, seed=seed, epoch=epoch, window_rows=window, skip=skip))
            assert_array_equal(join([*batches[:skip], *rest]).values, joined.values)
            assert len(rest) == max(0, 32 - skip)
        for batch in batches:
            assert batch.ids.flags.c_contiguous
            assert batch.ids.flags.writeable
            assert batch.values.flags.c_contiguous
    assert orders[3] == list(range(2000))
    assert len({tuple(order) for order in orders}) == 4
    assert np.abs(np.diff(orders[0])).mean() > 5


def test_small_window_still_mixes_the_whole_part(tmp_path: Path) -> None:
    part = convert(table(20_000), SCHEMA, tmp_path / "log", split=Split(shares=(1, 0, 0))).parts["train"]
    order = join(list(part.batches(500, seed=7, window_rows=2000))).values[:, 0]
    means = order.reshape(-1, 500).mean(axis=1)
    # Rows of a batch come from 8 blocks of 250 anywhere in the part, shuffled together.
    assert np.abs(means - 10_000).max() < 6000
    assert all(len(set((some // 250).tolist())) >= 7 for some in order.reshape(-1, 500))


def _threads() -> int:
    return sum(thread.name.startswith("deeprec-batches") for thread in threading.enumerate())


def test_thread_ends_with_the_iterator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = convert(table(5000), SCHEMA, tmp_path / "log", split=Split(shares=(1, 0, 0))).parts["train"]
    batches = part.batches(100, seed=0, window_rows=500)
    next(batches)
    assert _threads() == 1
    batches.close()  # type: ignore[attr-defined]
    assert _threads() == 0

    def consumer() -> None:
        for _ in part.batches(100, seed=0, window_rows=500):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consumer()
    assert _threads() == 0
    read = click_part._read_rows
    calls: list[int] = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 40:
            raise OSError("disk gone")
        return read(*arguments)

    monkeypatch.setattr(click_part, "_read_rows", failing)
    with pytest.raises(OSError, match="disk gone"):
        list(part.batches(100, seed=0, window_rows=500))
    assert _threads() == 0


@pytest.mark.parametrize("is_mapped", [False, True])
def test_downsampling_keeps_positives_and_a_share_of_negatives(tmp_path: Path, is_mapped: bool) -> None:
    frame, split = table(20_000), Split(shares=(1, 0, 0))
    log = convert(frame, SCHEMA, tmp_path / "log", split=split) if is_mapped else in_memory(frame, SCHEMA, split)
    part = log.parts["train"]
    view = part.downsampled(0.25, seed=2)
    assert view.negative_rate == 0.25
    assert part.negative_rate == 1
    assert view.positives == part.positives
    assert abs((len(view) - view.positives) / (len(part) - part.positives) - 0.25) < 0.015
    rows = view.values[:, 0].astype(np.int64)
    same(whole(view), take(whole(part), rows))
    for window in (300, None):
        order = join(list(view.batches(128, seed=1, window_rows=window))).values[:, 0]
        assert_array_equal(np.sort(order), rows)
        assert_array_equal(join(list(view.batches(128, window_rows=window))).values[:, 0], rows)
        late = join(list(view.batches(128, seed=1, window_rows=window, skip=9))).values[:, 0]
        assert_array_equal(late, order[9 * 128 :])
    assert_array_equal(part.downsampled(0.25, seed=2).values, view.values)
    assert len(np.setdiff1d(part.downsampled(0.25, seed=3).values, view.values)) > 1000
    with pytest.raises(ValueError, match=r"this part is at rate 0\.25; downsample the whole one"):
        view.downsampled(0.5)
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\], got 0"):
        part.downsampled(0)


def test_skipped_windows_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = convert(table(5000), SCHEMA, tmp_path / "log", split=Split(shares=(1, 0, 0))).parts["train"]
    read: list[int] = []
    original = ClickPart._read

    def counting(self: ClickPart, starts: Any, block_rows: int) -> Encoded:
        read.append(len(starts))
        return original(self, starts, block_rows)

    monkeypatch.setattr(ClickPart, "_read", counting)
    assert len(list(part.batches(100, seed=0, window_rows=500, skip=45))) == 5
    assert len(read) <= 2


def test_batches_refuse_numbers_out_of_range() -> None:
    part = in_memory(table(100), SCHEMA, Split(shares=(1, 0, 0))).parts["train"]
    for options, message in (
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 1, "epoch": -1}, "epoch must be >= 0, got -1"),
        ({"batch_size": 1, "skip": -1}, "skip must be >= 0, got -1"),
        ({"batch_size": 1, "window_rows": 0}, "window_rows must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            part.batches(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Split("radnom"), "did you mean 'random'"),
        (lambda: Split(shares=(0.5, 0.5)), r"three numbers >= 0 of sum 1, train first, got \(0.5, 0.5\)"),
        (lambda: Split(shares=(0, 0.5, 0.5)), "train first"),
        (lambda: Split(shares=(0.5, 0.5, 0.5)), "of sum 1"),
        (lambda: Split(test="x"), "test need kind 'files', got 'random'"),
        (lambda: Split("files"), "needs validation, test or shares, got none"),
        (lambda: Split("files", (0.9, 0, 0.1), test="x"), "its share must be 0, got 0.1"),
    ],
)
def test_impossible_splits_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_existing_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(FileExistsError, match="mine is there already; choose another name"):
        convert(table(100), SCHEMA, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/file").read_text() == "precious"
    first = convert(table(100), SCHEMA, tmp_path / "log")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        convert(table(200), SCHEMA, tmp_path / "log")
    assert ClickLog.open(tmp_path / "log").sha256 == first.sha256
    second = convert(table(200), SCHEMA, tmp_path / "log", overwrite=True)
    assert ClickLog.open(tmp_path / "log").sha256 == second.sha256 != first.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "mine"]


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(1000).with_columns(label=pl.when(pl.col("number") == 900).then(7).otherwise(pl.col("label")))
    with pytest.raises(ValueError, match=r"label label, row 900 \(from 0\): 0 or 1, or -1 or 1, is required, got 7.0"):
        convert(frame, SCHEMA, tmp_path / "log")
    assert list(tmp_path.iterdir()) == []

    def full(self: Any, rows: Encoded) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(click_files.FileWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        convert(table(100), SCHEMA, tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_no_log_and_the_next_conversion_clears_up(tmp_path: Path) -> None:
    code = """
import sys, time
import polars as pl
from deeprec.data.clicks.log import convert
from deeprec.data.columns.schema import Categorical, FeatureSchema
def wait(stage, done, total):
    if stage == "encode train":
        print("encoding", flush=True)
        time.sleep(600)
frame = pl.DataFrame({"x": ["a", "b"] * 50, "label": [0, 1] * 50})
convert(frame, FeatureSchema((Categorical("x"),)), sys.argv[1], progress=wait)
"""
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().strip() == "encoding"
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".log.unfinished-")
    # One that lives is not touched.
    other = convert(table(100), SCHEMA, tmp_path / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*left, "log"])
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    with pytest.raises(FileNotFoundError, match="no log in"):
        ClickLog.open(tmp_path / left[0])
    convert(table(100), SCHEMA, tmp_path / "log", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert ClickLog.open(tmp_path / "log").sha256 == other.sha256


def test_damaged_logs_are_refused(tmp_path: Path) -> None:
    convert(table(1000), SCHEMA, tmp_path / "log")
    with pytest.raises(FileNotFoundError, match=r"no log in .*nowhere; convert one first"):
        ClickLog.open(tmp_path / "nowhere")
    for name in ("ids.bin", "bag0_offsets.bin"):
        content = (tmp_path / "log/train" / name).read_bytes()
        (tmp_path / "log/train" / name).write_bytes(content[:-4])
        with pytest.raises(ValueError, match=f"{name} must be .* bytes, got .*; convert the log again"):
            ClickLog.open(tmp_path / "log")
        (tmp_path / "log/train" / name).write_bytes(content)
    meta = json.loads((tmp_path / "log/meta.json").read_text())
    (tmp_path / "log/meta.json").write_text(json.dumps({**meta, "version": 0}))
    with pytest.raises(ValueError, match="is of version 0, 1 is required; convert anew"):
        ClickLog.open(tmp_path / "log")
    for text in ("{", "[]", json.dumps({**meta, "parts": {"train": {}}})):
        (tmp_path / "log/meta.json").write_text(text)
        with pytest.raises(ValueError, match=r"meta\.json .*; convert the rows anew"):
            ClickLog.open(tmp_path / "log")


def test_bad_rows_are_counted_or_refused(tmp_path: Path) -> None:
    lines = ["x,n,label", *(f"v{row % 3},{row},{row % 2}" for row in range(100))]
    lines[10], lines[20], lines[30] = "v0,many,1", "v0,1,9", "v0,1"
    (tmp_path / "log.csv").write_text("\n".join(lines))
    schema = FeatureSchema((Categorical("x"), Numeric("n")))
    with pytest.raises(ValueError, match="line 11"):
        convert(tmp_path / "log.csv", schema, tmp_path / "log")
    log = convert(tmp_path / "log.csv", schema, tmp_path / "log", on_bad="skip")
    assert sum(log.counts.values()) == 97
    assert log.bad == 3
    assert log.sources[0]["bad_labels"] == 1
    assert [bad["line"] for bad in log.sources[0]["first_bad"]] == [11, 31]
    assert log.sha256 != in_memory(table(100), SCHEMA).sha256
    memory = in_memory(tmp_path / "log.csv", schema, on_bad="skip")
    same(whole(memory.parts["train"]), whole(log.parts["train"]))


def test_schema_that_does_not_fit_is_refused_before_a_pass(tmp_path: Path) -> None:
    schema = FeatureSchema((Categorical("sitee"),))
    with pytest.raises(ValueError, match="'sitee'; did you mean 'site'"):
        convert(table(100), schema, tmp_path / "log")
    with pytest.raises(ValueError, match="'site'"):
        in_memory(table(100), SCHEMA, Split("files", test=table(100).rename({"site": "Site"})))
    with pytest.raises(ValueError, match="part 'test' must have rows, got none"):
        in_memory(table(3), SCHEMA, Split("tail", (0.99, 0, 0.01)))


def test_schema_of_bags_alone_and_of_numbers_alone(tmp_path: Path) -> None:
    frame = table(500)
    for at, features in enumerate([(Bag("tags"),), (Numeric("number"),), (Categorical("site"),)]):
        log = convert(frame, FeatureSchema(features), tmp_path / f"log{at}", split=Split(shares=(1, 0, 0)))
        rows = join(list(log.parts["train"].batches(64, seed=0, window_rows=100)))
        assert rows.ids.shape == (500, len(log.inputs.fields))
        assert rows.values.shape == (500, len(log.inputs.numerics))
        assert rows.labels is not None
        assert rows.labels.sum() == frame["label"].sum()


bag = st.lists(st.integers(0, 9), max_size=4)


@settings(max_examples=50)
@given(st.lists(st.lists(bag, max_size=5), min_size=1, max_size=4), st.data())
def test_rows_can_be_taken_and_joined(parts: list[list[list[int]]], data: st.DataObject) -> None:
    def encoded(bags: list[list[int]], start: int) -> Encoded:
        rows = np.arange(start, start + len(bags))
        offsets = np.cumsum([0, *map(len, bags)])
        ids = np.array([i for some in bags for i in some], dtype=np.int32)
        made = {"b": Bags(ids, offsets, ids.astype(np.float32) / 2)}
        return Encoded(rows[:, None].astype(np.int32), rows[:, None].astype(np.float32), made, rows % 2 == 0, rows)

    flat = [some for part in parts for some in part]
    starts = np.cumsum([0, *map(len, parts)])
    joined = join([encoded(part, int(start)) for part, start in zip(parts, starts, strict=False)])
    same(joined, encoded(flat, 0))
    rows = data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=6)) if flat else []
    taken = take(joined, np.array(rows, dtype=np.int64))
    assert taken.ids[:, 0].tolist() == rows
    offsets, ids = taken.bags["b"].offsets, taken.bags["b"].ids
    assert [ids[a:b].tolist() for a, b in pairwise(offsets.tolist())] == [flat[row] for row in rows]
    assert_array_equal(taken.bags["b"].weights, ids / 2)


def test_importing_needs_no_torch() -> None:
    code = "import deeprec.data.clicks.log, sys; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not (DATA / "criteo").is_dir(), reason="needs the Criteo sample in DEEPREC_DATA")
def test_criteo_sample(tmp_path: Path) -> None:
    schema = FeatureSchema(
        (
            *(Numeric(f"I{i}", "log-standardise") for i in range(1, 14)),
            *(Categorical(f"C{i}", min_count=2) for i in range(1, 27)),
        )
    )
    path = DATA / "criteo/train_10k.txt.gz"
    log = convert(path, schema, tmp_path / "log", format="criteo")
    assert log.counts == {"train": 8010, "validation": 1012, "test": 978}
    assert sum(part.positives for part in log.parts.values()) == 2182
    small = in_memory(open_source(path, format="criteo", block_bytes=1 << 16), schema)
    same(whole(small.parts["test"]), whole(log.parts["test"]))  # however the text is cut into chunks
    with gzip.open(path, "rt") as text, (tmp_path / "plain.tsv").open("w") as plain:
        shutil.copyfileobj(text, plain)
    assert in_memory(tmp_path / "plain.tsv", schema, format="criteo").sha256 != log.sha256


# fmt: off
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship",
    "race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
]
# fmt: on


@pytest.mark.skipif(not (DATA / "adult").is_dir(), reason="needs Adult in DEEPREC_DATA")
def test_adult_with_the_classic_columns(tmp_path: Path) -> None:
    buckets = (18, 25, 30, 35, 40, 45, 50, 55, 60, 65)
    schema = FeatureSchema(
        (
            *(
                Categorical(name)
                for name in ADULT
                if name in ("workclass", "education", "marital_status", "relationship")
            ),
            Categorical("occupation", num_buckets=1000),
            *(Numeric(name) for name in ("age", "education_num", "hours_per_week")),
            *(Numeric(name, "log-standardise") for name in ("capital_gain", "capital_loss")),
            Numeric("age_bucket", "bucketise", boundaries=buckets, column="age"),
            Cross(("education", "occupation"), 1000),
            Cross(("age_bucket", "education", "occupation"), 1000),
        ),
        label="income",
        positive_values=(">50K", ">50K."),
    )
    lines = gzip.decompress((DATA / "adult/adult.test.gz").read_bytes()).split(b"\n", 1)
    (tmp_path / "adult.test.csv").write_bytes(lines[1])  # without the remark in its first line
    log = convert(
        DATA / "adult/adult.data.gz",
        schema,
        tmp_path / "log",
        split=Split("files", test=tmp_path / "adult.test.csv"),
        format="csv",
        columns=ADULT,
        separator=", ",
        missing=("?",),
    )
    assert log.counts == {"train": 32561, "test": 16281}
    assert (log.parts["train"].positives, log.parts["test"].positives) == (7841, 3846)
    assert [field.size for field in log.inputs.fields] == [10, 17, 8, 7, 1000, 12, 1000, 1000]
    assert abs(log.parts["train"].values.mean(axis=0)).max() < 1e-5


@pytest.mark.skipif(not (DATA / "frappe").is_dir(), reason="needs the Frappe log in DEEPREC_DATA")
def test_frappe_csv(tmp_path: Path) -> None:
    (tmp_path / "frappe.tsv").write_bytes(gzip.decompress((DATA / "frappe/frappe.csv.gz").read_bytes()))
    names = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
    schema = FeatureSchema(tuple(Categorical(name) for name in names), label="cnt", positive_from=2, group="user")
    log = convert(tmp_path / "frappe.tsv", schema, tmp_path / "log", split=Split(shares=(1, 0, 0)))
    assert log.counts == {"train": 96203}
    # 957 users and 4,082 apps; 5,382 features altogether as published, and one unknown id a field.
    sizes = [field.size - 1 for field in log.inputs.fields]
    assert sizes[:2] == [957, 4082]
    assert sum(sizes) == 5382
    groups = log.parts["train"].groups
    assert groups is not None
    assert len(np.unique(groups)) == 957


@pytest.mark.skipif(not (DATA / "ml-1m").is_dir(), reason="needs ML-1M in DEEPREC_DATA")
def test_movielens_1m_with_genres_as_a_bag(tmp_path: Path) -> None:
    from deeprec.data.interactions.features import movies_1m, users_1m

    text = gzip.decompress((DATA / "ml-1m/ratings_rank.dat.gz").read_bytes()).replace(b"::", b",")
    ratings = pl.read_csv(text, has_header=False, new_columns=["user_id", "item_id", "rating", "rank"])
    frame = ratings.join(users_1m(DATA / "ml-1m/users.dat.gz"), on="user_id").join(
        movies_1m(DATA / "ml-1m/movies.dat.gz"), on="item_id"
    )
    categorical = ("user_id", "item_id", "gender", "age", "occupation", "zip")
    schema = FeatureSchema(
        (
            *(Categorical(name) for name in categorical),
            Numeric("year"),
            Bag("genres"),
            Cross(("gender", "genres"), 1000),
        ),
        label="rating",
        positive_from=4,
        group="user_id",
    )
    log = in_memory(frame, schema, Split(shares=(0.8, 0.1, 0.1)))
    assert sum(log.counts.values()) == 1_000_209
    assert sum(part.positives for part in log.parts.values()) == 348_971 + 226_310
    part = log.parts["test"]
    assert {bag.name: bag.size for bag in log.inputs.bags} == {"genres": 19, "gender_x_genres": 1000}
    total = sum(len(some.bags["genres"].ids) for some in log.parts.values())
    assert total == frame["genres"].list.len().sum()
    batch = next(part.batches(4096, seed=0))
    assert batch.bags["genres"].offsets[-1] == len(batch.bags["genres"].ids)
    assert not (batch.bags["genres"].ids == 0).any()
