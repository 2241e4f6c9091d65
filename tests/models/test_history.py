"""Claims about item-KNN and EASE: their formulas against dense linear algebra, ties, limits."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.data import Interactions, from_frame
from deeprec.models import EASE, ItemKNN, Schema, Seen, create, item_knn
from deeprec.models import history as module
from deeprec.models.history import cooccurrences
from deeprec.train import fit


def likes(num_users: int = 50, num_items: int = 23, seed: int = 0) -> Interactions:
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((num_users, num_items)) < draw.random(num_items))
    return from_frame(pl.DataFrame({"user_id": users, "item_id": items}))


def matrix_of(data: Interactions) -> np.ndarray:
    matrix = np.zeros((data.num_users, data.num_items))
    matrix[data.users, data.items] = 1
    return matrix


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
def test_cooccurrences_are_the_gram_matrix_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAIRS_A_BLOCK", block)
    data = likes()
    blocks = list(cooccurrences(*data.csr(), data.num_items))
    np.testing.assert_array_equal(np.concatenate([counts for _, counts in blocks]), matrix_of(data).T @ matrix_of(data))
    assert [start for start, _ in blocks] == list(range(0, data.num_items, max(1, block // data.num_items)))


@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
@pytest.mark.parametrize("neighbors", [1, 4, 1000])
def test_item_knn_sums_the_cosines_of_the_nearest_items(neighbors: int, shrinkage: float) -> None:
    data = likes()
    x = matrix_of(data)
    gram = x.T @ x
    norms = np.sqrt(np.diag(gram))
    cosines = gram / (np.outer(norms, norms) + shrinkage)
    np.fill_diagonal(cosines, 0)
    for row in cosines:  # the entries beyond the k nearest
        row[np.argsort(-row, kind="stable")[neighbors:]] = 0
    model = ItemKNN(Schema(data.num_users, data.num_items), neighbors=neighbors, shrinkage=shrinkage)
    model.fit_directly(data)
    scores = model.score_items(torch.arange(data.num_users)).numpy()
    np.testing.assert_allclose(scores, x @ cosines.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_ease_is_the_closed_form_and_minimises_its_objective(l2: float) -> None:
    data = likes()
    x = matrix_of(data)
    p = np.linalg.inv(x.T @ x + l2 * np.eye(data.num_items))
    want = np.eye(data.num_items) - p / np.diag(p)
    model = EASE(Schema(data.num_users, data.num_items), l2=l2)
    model.fit_directly(data)
    np.testing.assert_allclose(model.weights.numpy(), want, rtol=1e-5, atol=1e-6)
    scores = model.score_items(torch.arange(data.num_users)).numpy()
    np.testing.assert_allclose(scores, x @ want, rtol=1e-4, atol=1e-5)

    def objective(weights: np.ndarray) -> float:
        return float(np.square(x - x @ weights).sum() + l2 * np.square(weights).sum())

    draw = np.random.default_rng(1)
    for _ in range(20):
        step = draw.normal(size=want.shape) * 0.01
        np.fill_diagonal(step, 0)
        assert objective(want + step) > objective(want)


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_top_k_is_the_sorted_list_without_what_was_seen(name: str) -> None:
    data = likes(60, 40)
    model = create(name, schema=Schema(60, 40))
    model.fit_directly(data)
    users = torch.tensor([3, 50, 3])
    scores = model.score_items(users)
    seen = Seen(*data.csr())
    values, items = model.topk(users, 45, seen)
    assert values.shape == items.shape == (3, 45)
    for row, user in enumerate(users.tolist()):
        unseen = sorted(set(range(40)) - set(seen.items[seen.offsets[user] : seen.offsets[user + 1]].tolist()))
        order = sorted(unseen, key=lambda item: (-float(scores[row, item]), item))
        assert items[row].tolist() == order + [-1] * (45 - len(order))
        torch.testing.assert_close(values[row, : len(order)], scores[row, order])
    assert torch.equal(model.topk(users, 5, None)[0], scores.sort(1, descending=True).values[:, :5])


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_fit_reports_validation_and_refits_on_it(name: str) -> None:
    data = likes(80, 30)
    plain, again = create(name, refit=False), create(name, refit=True)
    first, second = (fit(model, data, protocol="cdae") for model in (plain, again))
    assert first.card.validation_metrics.keys() == first.card.metrics.keys()
    assert first.card.validation_metrics == second.card.validation_metrics
    split = again._fitted_on.split
    assert len(plain.history_items) == len(split.train)
    assert len(again.history_items) == len(split.train) + len(split.validation)


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_a_user_without_history_is_scored_zero(name: str) -> None:
    data = likes()
    model = create(name, schema=Schema(data.num_users + 1, data.num_items))
    offsets, items = data.csr()
    model.history_offsets = torch.from_numpy(np.append(offsets, offsets[-1]))
    model.history_items = torch.from_numpy(items)
    assert (model.score_items(torch.tensor([data.num_users])) == 0).all()
    assert model.score_items(torch.tensor([], dtype=torch.int64)).shape == (0, data.num_items)


def test_ease_refuses_a_catalogue_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"200,000 items needs 745\.1 GiB .* max_memory_gib=8 \(20,724 items\)"):
        EASE(Schema(10, 200_000))
    with pytest.raises(ValueError, match="l2 and max_memory_gib must be > 0"):
        EASE(l2=0.0)
    with pytest.raises(ValueError, match="neighbors must be >= 1"):
        ItemKNN(neighbors=0)


def test_item_vectors_that_do_not_fit_are_refused() -> None:
    model = ItemKNN(Schema(2_000_000, 1_000))
    with pytest.raises(ValueError, match=r"would take 7\.5 GiB"):
        model.item_vectors()


@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
@pytest.mark.parametrize("neighbors", [1, 4, 1000])
def test_item_knn_is_the_same_with_and_without_compiled_code(
    neighbors: int, shrinkage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, every = likes(), torch.arange(50)
    models = []
    for _ in range(2):
        model = ItemKNN(Schema(data.num_users, data.num_items), neighbors=neighbors, shrinkage=shrinkage)
        model.fit_directly(data)
        models.append((model, model.score_items(every)))
        monkeypatch.setattr(item_knn, "host_function", lambda name: None)
    (compiled, ours), (plain, theirs) = models
    assert torch.equal(compiled.similarities, plain.similarities)
    counted = compiled.similarities > 0
    assert torch.equal(compiled.neighbors[counted], plain.neighbors[counted])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_equally_near_items_count_by_their_ids() -> None:
    # Items b to e are met by the same users as a, in whatever order they first appear.
    for names in ("abcde", "edcba", "cbeda"):
        rows = [(user, item) for user in range(3) for item in names]
        data = from_frame(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"))
        model = ItemKNN(Schema(3, 5), neighbors=2)
        model.fit_directly(data)
        of_c = model.neighbors[data.item_ids.encode(["c"])[0]].tolist()
        assert data.item_ids.decode(of_c).tolist() == ["a", "b"]
