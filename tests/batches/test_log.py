"""Claims about rows of a log: the order is that of `ClickPart.batches`, in memory and on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deeprec import models
from deeprec.batches import LogBatch, LogBatches
from deeprec.data.clicks.part import ClickPart
from deeprec.data.columns.inputs import Encoded


def part(count: int, folder: Path | None = None) -> ClickPart:
    """Rows that hold their own number."""
    labels = (np.arange(count) % 3 == 0).astype(np.float32)
    if folder is not None:
        np.save(folder / "labels.npy", labels)
        labels = np.load(folder / "labels.npy", mmap_mode="r")
    ids = np.arange(2 * count, dtype=np.int32).reshape(-1, 2)
    return ClickPart(Encoded(ids, np.zeros((count, 0), np.float32), {}, labels))


@pytest.mark.parametrize("on_disk", [False, True])
def test_batches_are_those_of_the_part(on_disk: bool, tmp_path: Path) -> None:
    rows = part(100, tmp_path if on_disk else None)
    batches = LogBatches(rows, batch_size=7, seed=5)
    assert len(batches) == 15
    for number, skip in ((0, 0), (3, 4)):
        expected = list(rows.batches(7, seed=5, epoch=number, skip=skip))
        got = list(batches.epoch(number, skip))
        assert [len(batch) for batch in got] == [len(rows) for rows in expected]
        for batch, block in zip(got, expected, strict=True):
            assert torch.equal(batch.ids, torch.from_numpy(block.ids))
            assert block.labels is not None
            assert batch.labels is not None
            assert torch.equal(batch.labels, torch.from_numpy(block.labels))


def test_rows_without_labels_become_a_batch_without() -> None:
    batch = LogBatch.of(Encoded(np.zeros((3, 1), np.int32), np.ones((3, 2), np.float32)))
    assert batch.labels is None
    assert len(batch) == 3
    assert batch.to(torch.device("meta")).labels is None


def test_its_other_name_is_the_same_class() -> None:
    assert models.ClickBatch is LogBatch


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        LogBatches(part(4), batch_size=0, seed=0)
    with pytest.raises(ValueError, match="skip must be >= 0"):
        LogBatches(part(4), batch_size=2, seed=0).epoch(0, -1)
