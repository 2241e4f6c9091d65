"""What the contenders of `bench/deepfm.py` share: the same rows of a synthetic log, and the same first weights."""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIELDS, NUMERICS = 26, 13


class Rows(NamedTuple):
    """Rows of a log of Criteo's shape.

    Attributes:
        ids: [n, 26], int32, uniform in [0, rows a field): the worst case, every batch touches most rows it can.
        values: [n, 13], float32, in [0, 1).
        labels: [n], float32, 0 or 1, drawn from a logistic model of the first fields and the values.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]

    @classmethod
    def draw(cls, count: int, rows_a_field: int, seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, rows_a_field, (count, FIELDS)).astype(np.int32)
        values = rng.random((count, NUMERICS), dtype=np.float32)
        logits = (values - 0.5) @ rng.normal(0, 1.5, NUMERICS) - 1.2
        for field in range(5):  # a field of many rows says as much as one of few: by ranges of ids
            logits += rng.normal(0, 0.7, 16)[ids[:, field].astype(np.int64) * 16 // rows_a_field]
        labels = rng.random(count) < 1 / (1 + np.exp(-logits))
        return cls(ids, values, labels.astype(np.float32))


class Weights(NamedTuple):
    """First weights of a DeepFM.

    Attributes:
        tables: [rows, D] for each field, N(0, 0.01^2).
        linear: [rows] for each field, 0.
        numerics: [13], 0.
        layers: (weight [out, in], bias [out]) of the hidden layers; the input is the embeddings field by field, then
            the numbers.
        output: [1, last hidden]; the bias of the logit is 0.
    """

    tables: list[NDArray[np.float32]]
    linear: list[NDArray[np.float32]]
    numerics: NDArray[np.float32]
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    output: NDArray[np.float32]

    @classmethod
    def draw(cls, rows_a_field: int, dim: int, hidden: list[int], seed: int) -> Weights:
        rng = np.random.default_rng(seed + 1)

        def normal(std: float, *shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)

        widths = [FIELDS * dim + NUMERICS, *hidden]
        tables = [normal(0.01, rows_a_field, dim) for _ in range(FIELDS)]
        linear = [np.zeros(rows_a_field, np.float32) for _ in range(FIELDS)]
        layers = [(normal((2 / a) ** 0.5, b, a), np.zeros(b, np.float32)) for a, b in itertools.pairwise(widths)]
        return cls(tables, linear, np.zeros(NUMERICS, np.float32), layers, normal(0.05, 1, widths[-1]))


def log_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean log loss."""
    p = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.where(labels == 1, np.log(p), np.log1p(-p)).mean())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes, for every contender."""
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400, 400])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=80, help="of an epoch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)


def of_arguments(args: argparse.Namespace, rows_a_field: int) -> tuple[Rows, Weights]:
    """Rows to train on, and first weights."""
    rows = Rows.draw(args.batches * args.batch, rows_a_field, args.seed)
    return rows, Weights.draw(rows_a_field, args.dim, args.hidden, args.seed)
