"""Fewer terms: the most frequent, clusters that share rows, and bits whose agreement follows the cosine."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.data.columns.reduction import REDUCTIONS, Reduction, signs_of
from deeprec.data.columns.terms import Terms


def terms_of(dense: np.ndarray) -> Terms:
    rows, ids = np.nonzero(dense)
    return Terms.of_entries(rows, ids, dense[rows, ids], *dense.shape)


def dense_of(terms: Terms) -> np.ndarray:
    out = np.zeros((len(terms), terms.size), np.float32)
    out[np.repeat(np.arange(len(terms)), np.diff(terms.offsets)), terms.ids] = terms.weights
    return out


GROUPS = np.kron(np.eye(3), np.ones((8, 4)))  # 24 rows, 12 terms in three groups that share rows among themselves alone


def test_top_k_keeps_the_most_frequent_terms_and_of_equal_ones_the_lower() -> None:
    dense = np.array([[1, 0, 2, 0, 0], [1, 0, 1, 1, 0], [0, 0, 1, 1, 0]], np.float32)
    reduction = Reduction.fit(terms_of(dense), "top-k", 2)
    assert reduction.places.tolist() == [1, -1, 0, -1, -1]
    np.testing.assert_array_equal(dense_of(reduction.apply(terms_of(dense))), dense[:, [2, 0]])
    assert Reduction.fit(terms_of(dense), "top-k", 9).places.tolist() == [1, -1, 0, 2, -1]


def test_k_means_puts_terms_of_the_same_rows_together_and_sums_them() -> None:
    draw = np.random.default_rng(0)
    dense = (GROUPS * (draw.random(GROUPS.shape) < 0.7)).astype(np.float32)
    dense[:8, 0] = dense[8:16, 4] = dense[16:, 8] = 1  # the most frequent, from which the clusters begin
    reduction = Reduction.fit(terms_of(dense), "k-means", 3)
    groups = [set(reduction.places[at : at + 4].tolist()) for at in (0, 4, 8)]
    assert all(len(group) == 1 for group in groups)
    assert set.union(*groups) == {0, 1, 2}
    for group, at in zip(groups, (0, 4, 8), strict=True):
        sums = dense_of(reduction.apply(terms_of(dense)))[:, group.pop()]
        np.testing.assert_allclose(sums, dense[:, at : at + 4].sum(axis=1))


def test_k_means_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(1)
    dense = (draw.random((40, 30)) < 0.2) * draw.random((40, 30))
    dense[:, 29] = 0  # a term that no row has
    x = dense.T / np.maximum(np.linalg.norm(dense.T, axis=1, keepdims=True), 1e-30)
    order = np.argsort(-(dense > 0).sum(axis=0), kind="stable")[:5]
    places = np.full(30, -1)
    places[order] = np.arange(5)
    for _ in range(10):
        centres = np.stack([x[places == at].sum(axis=0) for at in range(5)])
        scores = x @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
        places = np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), places)
    assert Reduction.fit(terms_of(dense), "k-means", 5).places.tolist() == places.tolist()
    assert places[29] == -1


def test_bits_of_projections_agree_as_often_as_the_angle_says() -> None:
    draw = np.random.default_rng(2)
    dense = draw.random((6, 300)) * (draw.random((6, 300)) < 0.3)
    reduction = Reduction.fit(terms_of(dense), "lsh", 4_000)
    made = reduction.apply(terms_of(dense))
    assert (made.size, made.num_values) == (0, 4_000)
    np.testing.assert_array_equal(made.values, (dense @ signs_of(300, 4_000) >= 0).astype(np.float32))
    lengths = np.linalg.norm(dense, axis=1)
    angles = np.arccos((dense @ dense.T / lengths / lengths[:, None]).clip(-1, 1)) / np.pi
    differing = (made.values[:, None] != made.values).mean(axis=2)
    np.testing.assert_allclose(differing, angles, atol=0.03)


def test_projections_of_a_term_do_not_depend_on_how_many_there_are() -> None:
    signs = signs_of(50, 70)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.1
    np.testing.assert_array_equal(signs_of(80, 70)[:50], signs)
    assert (signs_of(50, 70, seed=1) != signs).any()


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_an_empty_row_and_numbers_stay(kind: str) -> None:
    terms = terms_of(np.concatenate([GROUPS, np.zeros((1, 12))]))
    terms = Terms(terms.offsets, terms.ids, terms.weights, np.arange(25, dtype=np.float32)[:, None], 12)
    made = Reduction.fit(terms, kind, 3).apply(terms)
    np.testing.assert_array_equal(made.values[:, 0], terms.values[:, 0])
    assert made.offsets[-1] == made.offsets[-2]
    assert not made.values[-1, 1:].any()


def test_what_does_not_go_is_refused() -> None:
    terms = terms_of(GROUPS)
    with pytest.raises(ValueError, match=r"kind must be one of top-k, k-means, lsh, got 'pca'"):
        Reduction.fit(terms, "pca", 3)
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        Reduction.fit(terms, "top-k", 0)
    with pytest.raises(ValueError, match="terms must be of the size 12 that it was fitted on, got 4"):
        Reduction.fit(terms, "lsh", 3).apply(terms_of(np.ones((2, 4))))
