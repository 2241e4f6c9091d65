"""The synthetic Criteo log: what is written is what was drawn, whatever the threads, and its truth can be found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deeprec.data.reading.chunks import CRITEO_COLUMNS, ColumnsToRead
from deeprec.data.reading.sources import open_source
from deeprec.evaluate.click_metrics import auc

ROWS = 20_000  # more than a block


@pytest.fixture(scope="module")
def criteo_log() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import bench.criteo_log

    yield bench.criteo_log
    sys.path.pop(0)


def test_text_reads_back_as_the_rows(criteo_log: ModuleType, tmp_path: Path) -> None:
    log = criteo_log.Log(3)
    truth = log.write(tmp_path / "log.tsv", ROWS)
    blocks = [log.rows(0), log.rows(1, ROWS - criteo_log.BLOCK_ROWS)]
    drawn = [np.concatenate([block[part] for block in blocks]) for part in range(4)]
    wanted = ColumnsToRead(CRITEO_COLUMNS[14:], CRITEO_COLUMNS[:14])
    chunks = list(open_source(tmp_path / "log.tsv", format="criteo").chunks(wanted))
    categories, integers, logits, labels = drawn
    for place in range(13):
        read = np.concatenate([chunk.numbers[f"I{place + 1}"] for chunk in chunks])
        np.testing.assert_array_equal(np.nan_to_num(read, nan=-1), integers[:, place])
        assert abs((integers[:, place] < 0).mean() - criteo_log.EMPTY_INTEGERS[place]) < 0.02
    for place, cardinality in enumerate(criteo_log.CARDINALITIES):
        read = np.concatenate([chunk.hashes[f"C{place + 1}"] for chunk in chunks])
        ranks = categories[:, place]
        np.testing.assert_array_equal(read == 0, ranks < 0)
        pairs = np.unique(np.stack([read, ranks.astype(np.uint64)]), axis=1)
        assert pairs.shape[1] == len(np.unique(read)) == len(np.unique(ranks))
        assert ranks.max() < cardinality
    np.testing.assert_array_equal(np.concatenate([chunk.numbers["label"] for chunk in chunks]), labels)
    assert truth["clicks"] == labels.mean()
    assert abs(truth["clicks"] - criteo_log.CLICK_SHARE) < 0.02
    assert truth["auc"] == pytest.approx(auc(logits, labels.astype(np.float32)), abs=1e-4)
    assert truth["auc"] > 0.7


def test_text_is_the_seeds_alone(criteo_log: ModuleType, tmp_path: Path) -> None:
    for name, seed, threads in (("one", 1, 1), ("again", 1, 3), ("other", 2, 1)):
        criteo_log.Log(seed).write(tmp_path / name, ROWS, threads=threads)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "again").read_bytes()
    assert one != (tmp_path / "other").read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))
