"""The popularity floor of the NCF authors' ML-1M split, on the real files (DEEPREC_DATA)."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deeprec.evaluate import evaluate, protocol

_FOLDER = Path(os.environ.get("DEEPREC_DATA", "")) / "ncf"


def _pairs(path: Path) -> np.ndarray:
    with gzip.open(path, "rt") as file:
        return np.array([line.split("\t", 2)[:2] for line in file], dtype=np.int32)


class _Popularity:
    def __init__(self, counts: np.ndarray) -> None:
        self.counts = torch.from_numpy(counts.astype(np.float32))

    def score_pairs(self, users, items):
        return self.counts[items]


@pytest.mark.skipif(not (_FOLDER / "ml-1m.test.negative.gz").is_file(), reason="DEEPREC_DATA has no ncf/ml-1m files")
@pytest.mark.parametrize("ties", ["pessimistic", "authors"])
def test_popularity_on_ml_1m_equals_the_published_figure(interactions, ties) -> None:
    train, test = _pairs(_FOLDER / "ml-1m.train.rating.gz"), _pairs(_FOLDER / "ml-1m.test.rating.gz")
    with gzip.open(_FOLDER / "ml-1m.test.negative.gz", "rt") as file:
        negatives = np.array([line.split("\t")[1:] for line in file], dtype=np.int32)
    users, items = int(train[:, 0].max()) + 1, int(max(train[:, 1].max(), test[:, 1].max())) + 1
    train, test = (interactions(part, users, items) for part in (train, test))
    split = SimpleNamespace(train=train, validation=None, test=test, test_negatives=negatives)
    figures = evaluate(_Popularity(train.item_counts()), split, protocol("ncf", ties=ties))
    # Rendle et al. 2020 (arXiv 2005.09683), table of results
    assert figures["hr@10"] == pytest.approx(0.4535, abs=0.001)
    assert figures["ndcg@10"] == pytest.approx(0.2543, abs=0.001)
