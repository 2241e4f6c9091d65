"""Claims about ALS: its sweeps against dense linear algebra, confidences, new users, batches that change nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from deeprec.batches.sides import Sides
from deeprec.data import Interactions, from_frame
from deeprec.models import ALS, Schema
from deeprec.train import fit, fit_more


def plays(num_users: int = 30, num_items: int = 23, seed: int = 0) -> Interactions:
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((num_users, num_items)) < draw.random(num_items))
    ratings = draw.integers(1, 50, len(users)).astype(np.float32)
    return from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": ratings}))


def built(data: Interactions, **options: object) -> ALS:
    generator = torch.Generator().manual_seed(3)
    return ALS(Schema(data.num_users, data.num_items), generator=generator, **options)


def sweep(model: ALS, data: Interactions) -> list[float]:
    return [float(model.backward(batch)) for batch in model.batches(data, 0).epoch(0)]


def matrix_of(data: Interactions, values: np.ndarray) -> Tensor:
    matrix = np.zeros((data.num_users, data.num_items))
    np.add.at(matrix, (data.users, data.items), values)
    return torch.from_numpy(matrix)


def solved(r: Tensor, others: Tensor, alpha: float, l2: float, exponent: float) -> Tensor:
    """Equation 4 of Hu et al., row by row."""
    rows = []
    for row in r:
        confidence = 1 + alpha * row
        ridge = l2 * confidence.sum() ** exponent * torch.eye(others.shape[1], dtype=torch.float64)
        weighted = confidence[:, None] * others
        rows.append(torch.linalg.solve(others.T @ weighted + ridge, weighted.T @ (row > 0).double()))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("confidence", "alpha", "l2", "exponent"),
    [("constant", 10.0, 2.0, 0.0), ("rating", 0.5, 0.1, 0.5), ("log-rating", 3.0, 0.01, 1.0)],
)
def test_a_sweep_solves_users_then_items(confidence: str, alpha: float, l2: float, exponent: float) -> None:
    data = plays()
    assert data.ratings is not None
    value = {"constant": np.ones(len(data)), "rating": data.ratings, "log-rating": np.log1p(data.ratings)}[confidence]
    options = {"confidence": confidence, "alpha": alpha, "l2": l2, "l2_exponent": exponent}
    model = built(data, factors=7, solver="cholesky", **options)
    r = matrix_of(data, value)
    users = solved(r, model.item_factors.double(), alpha, l2, exponent)
    items = solved(r.T, users, alpha, l2, exponent)
    sweep(model, data)
    torch.testing.assert_close(model.user_factors.double(), users, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.item_factors.double(), items, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.item_gram, model.item_factors.T @ model.item_factors)


def test_conjugate_gradient_arrives_where_the_exact_solver_does() -> None:
    data = plays()
    cg, exact = (built(data, factors=7, solver=solver) for solver in ("cg", "cholesky"))
    for _ in range(40):
        losses = [sweep(model, data) for model in (cg, exact)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    users = torch.arange(data.num_users)
    torch.testing.assert_close(cg.score_items(users), exact.score_items(users), rtol=0.02, atol=0.02)


def test_the_objective_never_rises() -> None:
    data = plays()
    model = built(data, factors=7)
    values = []
    for _ in range(8):
        of_items = sweep(model, data)[1] * len(data)  # with the items' share of the regulariser
        values.append(of_items + model.config.l2 * float(model.user_factors.square().sum()))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(values))


def test_batches_hold_each_row_once_and_change_nothing() -> None:
    data = plays()
    whole, cut = Sides(data), Sides(data, entries_a_batch=40)
    assert len(whole) == 2
    assert len(cut) > 10
    assert whole.num_examples == cut.num_examples == 2 * len(data)
    for of_users, num_rows in ((True, data.num_users), (False, data.num_items)):
        batches = [batch for batch in cut.epoch(0) if batch.of_users == of_users]
        assert [batch.begin for batch in batches] == [0, *(batch.end for batch in batches[:-1])]
        assert batches[-1].end == num_rows
        assert [batch.is_first for batch in batches] == [True, *[False] * (len(batches) - 1)]
        assert [batch.is_last for batch in batches] == [*[False] * (len(batches) - 1), True]
        assert all(len(batch) for batch in batches)
        (one,) = (batch for batch in whole.epoch(0) if batch.of_users == of_users)
        assert torch.equal(torch.cat([batch.indices for batch in batches]), one.indices)
    assert [batch.begin for batch in cut.epoch(1, skip=3)] == [batch.begin for batch in cut.epoch(0)][3:]
    models = [built(data, factors=7) for _ in range(2)]
    for model, sides in zip(models, (whole, cut), strict=True):
        for batch in sides.epoch(0):
            model.backward(batch)
    assert torch.equal(models[0].item_factors, models[1].item_factors)


def test_values_of_a_pair_are_added_up() -> None:
    rows = {"user_id": [0, 1, 0, 0], "item_id": [1, 0, 1, 0], "rating": [2.0, 5.0, 4.0, 1.0]}
    data = from_frame(pl.DataFrame(rows), duplicates="keep")
    users, items = Sides(data, data.ratings).epoch(0)
    assert users.values.tolist() == [6.0, 1.0, 5.0] or users.sums.tolist() == [7.0, 5.0]
    assert sorted(items.sums.tolist()) == [6.0, 6.0]
    assert Sides(data).num_examples == 6


def test_a_new_user_with_the_items_of_a_known_one_is_the_exact_solution() -> None:
    data = plays()
    model = built(data, factors=7, solver="cholesky")
    sweep(model, data)
    offsets, items = (torch.from_numpy(each.astype(np.int64)) for each in data.csr())
    new = model.history_rows(offsets, items)[0]
    value = torch.ones(len(data), dtype=torch.float64).numpy()
    want = solved(matrix_of(data, value), model.item_factors.double(), model.config.alpha, model.config.l2, 0.0)
    torch.testing.assert_close(new.double(), want, rtol=1e-3, atol=1e-4)
    assert not model.history_rows(torch.tensor([0, 0]), items[:0])[0].any()


def test_ratings_are_asked_for_where_they_are_confidences() -> None:
    data = plays()
    model = ALS(confidence="rating", epochs=2, factors=4)
    with pytest.raises(ValueError, match=r"needs ratings, got .* without"):
        fit(model, replace(data, ratings=None))
    assert data.ratings is not None
    with pytest.raises(ValueError, match="must be >= 0, got -3"):
        fit(model, replace(data, ratings=data.ratings - 4))
    for options in ({"l2_exponent": 1.5}, {"alpha": 0.0}, {"cg_steps": 0}, {"solver": "lu"}, {"lr": 0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ALS(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cg_steps"):
        ALS(solver="cholesky", cg_steps=5)


def test_users_and_items_that_come_later_are_solved_too() -> None:
    data = plays()
    early, late = data.users < 25, data.users >= 20
    model = ALS(factors=5, epochs=3)
    frame = data.to_frame()
    fit(model, frame.filter(pl.Series(early)), protocol="full")
    fit_more(model, frame.filter(pl.Series(late)), protocol="full", epochs=2)
    assert model.user_factors.shape[0] == 30
    assert model.user_factors.any(1).all()
    torch.testing.assert_close(model.item_gram, model.item_factors.T @ model.item_factors)
