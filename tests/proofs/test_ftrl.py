"""FTRL-proximal on real clicks: l1 makes weights of a logistic regression exactly zero, and the losses stay sane."""

from __future__ import annotations

import gzip
import os
import zlib
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.nn import EmbeddingCollection, Table
from deeprec.train.optim import FTRL

CRITEO = Path(os.environ.get("DEEPREC_DATA", "")) / "criteo" / "train_10k.txt.gz"
FIELDS, BUCKETS, BATCH = 39, 1 << 18, 100
TRAIN = 8000


class Fitted(NamedTuple):
    log_loss: float
    zero_share: float
    auc: float


def clicks() -> tuple[Tensor, Tensor]:
    """Hashed ids [n, 39], a table of their own for each column, and labels; integers as log-spaced buckets."""
    ids, labels = [], []
    with gzip.open(CRITEO, "rt") as lines:
        for line in lines:
            label, *columns = line.rstrip("\n").split("\t")
            labels.append(float(label))
            for i in range(13):
                value = columns[i]
                columns[i] = (
                    str(int(torch.log1p(torch.tensor(float(value))) * 2)) if value and int(value) > 0 else value
                )
            ids.append([zlib.crc32(f"{i}:{token}".encode()) % BUCKETS for i, token in enumerate(columns)])
    return torch.tensor(ids, dtype=torch.int32), torch.tensor(labels)


def fit(ids: Tensor, labels: Tensor, l1: float) -> Fitted:
    """One pass over the first 8,000 rows in the order of the file; scores of the others."""
    features = tuple(f"c{i}" for i in range(FIELDS))
    factory = partial(FTRL, lr=0.1, l1=l1)
    layer = EmbeddingCollection([Table("w", BUCKETS, 1, features=features)], optimizer_in_backward=factory)
    weight = layer.weights()[0]
    weight.data.zero_()
    for some, clicked in zip(ids[:TRAIN].split(BATCH), labels[:TRAIN].split(BATCH), strict=True):
        F.binary_cross_entropy_with_logits(layer(some).sum(1), clicked, reduction="sum").backward()
    with torch.no_grad():
        logits, wanted = layer(ids[TRAIN:]).sum(1), labels[TRAIN:]
    seen = ids[:TRAIN].unique().long()
    ranks = logits.argsort().argsort().double() + 1
    positives = wanted.sum().double()
    auc = (ranks[wanted == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(wanted) - positives))
    loss = F.binary_cross_entropy_with_logits(logits, wanted)
    return Fitted(float(loss), float((weight.detach()[seen] == 0).double().mean()), float(auc))


@pytest.mark.skipif(not CRITEO.is_file(), reason="needs DEEPREC_DATA/criteo/train_10k.txt.gz")
def test_share_of_zero_weights_grows_with_l1_and_the_model_stays_sane() -> None:
    ids, labels = clicks()
    rate = labels[:TRAIN].mean()
    constant = float(F.binary_cross_entropy(rate.expand(len(labels) - TRAIN), labels[TRAIN:]))
    fits = [fit(ids, labels, l1) for l1 in (0.0, 0.3, 1.0, 3.0, 1e6)]
    shares = [found.zero_share for found in fits]
    assert shares[0] < 0.01
    assert all(low < high for low, high in pairwise(shares))
    assert shares[2] > 0.5
    assert shares[-1] == 1
    assert fits[-1].log_loss == pytest.approx(0.6931472)  # all weights zero: the logit is 0
    for found in fits[:4]:
        assert found.log_loss < constant
        assert found.auc > 0.65
