"""BPR, SVD++ and SLIM: their formulas, and what they are worth on real data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec._compiled import host
from deeprec.batches.pairs import PairBatch
from deeprec.data import from_frame, load, synthetic
from deeprec.models import Schema, create, slim
from deeprec.train import fit

DATA = synthetic(num_users=60, num_items=50, num_interactions=1500, seed=3)


# -- BPR ---------------------------------------------------------------------------------------------------------------


def _bpr_batch(negatives: int = 2) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(9, (7,), generator=generator)
    items = torch.randint(11, (7, 1 + negatives), generator=generator)
    return PairBatch(users, items, torch.zeros(7, 1 + negatives))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_bpr_is_the_log_likelihood_of_the_order(reduction: str) -> None:
    model = create("bpr", factors=5, l2=0.03, reduction=reduction).build(Schema(9, 11)).double()
    torch.nn.init.normal_(model.item_bias.weight)
    batch = _bpr_batch()
    expected = torch.zeros((), dtype=torch.float64)
    p, q, b = (table.weight for table in (model.users, model.items, model.item_bias))
    for user, (positive, *negatives) in zip(batch.users.tolist(), batch.items.tolist(), strict=True):
        for negative in negatives:
            x = p[user] @ (q[positive] - q[negative]) + b[positive, 0] - b[negative, 0]
            rows = [p[user], q[positive], q[negative], b[positive], b[negative]]
            expected = expected - torch.log(torch.sigmoid(x)) + 0.03 / 2 * sum(row.square().sum() for row in rows)
    expected = expected / 14 if reduction == "mean" else expected
    tables = (p, q, b)
    wanted = torch.autograd.grad(expected, tables)
    loss = model.loss(batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, tables), wanted, strict=True):
        torch.testing.assert_close(mine.to_dense(), theirs)


def test_bpr_learns_what_popularity_does_not_know() -> None:
    card = fit(create("bpr", factors=16, epochs=30), load("ml-100k"), protocol="full", seed=1).card
    assert card.metrics["hr@10"] > 1.2 * card.baselines["popularity"]["hr@10"]


# -- SVD++ -------------------------------------------------------------------------------------------------------------


def test_svdpp_predicts_by_the_formula() -> None:
    model = create("svd++", factors=4, init_std=0.5)
    model.build(model.schema_for(DATA), torch.Generator().manual_seed(0))
    rows = model.batches(DATA, seed=0)
    torch.nn.init.normal_(model.user_bias)
    torch.nn.init.normal_(model.item_bias)
    y, q, p = model.rated.detach(), model.items.detach(), model.users.detach()
    for user in (0, 7, 59):
        mine = torch.from_numpy(np.unique(DATA.items[DATA.users == user])).long()
        code = p[user] + y[mine].sum(0) / len(mine) ** 0.5
        learned = q @ code + model.user_bias[user] + model.item_bias[:, 0]
        expected = model.user_start[user] + model.item_start + model.noise * learned
        got = model.predict_ratings(torch.full((50,), user), torch.arange(50))
        torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.score_items(torch.tensor([user]))[0], got, rtol=1e-4, atol=1e-4)
    batch = rows.whole()
    owners = torch.repeat_interleave(batch.rows, batch.offsets.diff())
    errors = (model(owners, batch.indices) - rows.ratings) / model.noise
    squares = p[owners].square().sum() + q[batch.indices].square().sum() + y[batch.indices].square().sum()
    squares = squares + model.user_bias[owners].square().sum() + model.item_bias[batch.indices].square().sum()
    expected = (errors.square().sum() + model.config.l2 * squares) / len(owners)
    assert float(model.loss(batch)) == pytest.approx(float(expected), rel=1e-4)


def test_svdpp_has_the_same_gradients_with_one_thread_and_with_two() -> None:
    """Of a batch so large that torch splits the sums of an index that autograd takes."""
    place = np.flatnonzero(np.random.default_rng(0).random(300 * 300) < 0.5)
    columns = {"user_id": place // 300, "item_id": place % 300, "rating": 1.0 + place % 5}
    data, threads, gradients = from_frame(pl.DataFrame(columns)), torch.get_num_threads(), []
    assert len(data) > 32768
    for count in (1, 2, 2, 2):
        model = create("svd++", factors=4)
        model.build(model.schema_for(data), torch.Generator().manual_seed(0))
        batch = model.batches(data, seed=0).whole()
        torch.set_num_threads(count)
        try:
            model.loss(batch).backward()
        finally:
            torch.set_num_threads(threads)
        gradients.append([parameter.grad.to_dense() for parameter in model.parameters()])
    for other in gradients[1:]:
        assert all(map(torch.equal, other, gradients[0]))


def test_svdpp_is_the_same_on_any_scale() -> None:
    frame = DATA.to_frame().drop("timestamp")
    scaled = frame.with_columns(rating=pl.col("rating") * 25.0 - 10)
    options = {"factors": 4, "epochs": 3}
    cards = [fit(create("svd++", **options), from_frame(each), protocol="rating").card for each in (frame, scaled)]
    assert cards[1].validation_metrics["rmse"] == pytest.approx(25 * cards[0].validation_metrics["rmse"], rel=1e-3)


def test_svdpp_serves_somebody_new_as_somebody_known() -> None:
    """Without vectors and corrections of users, what a user rated is all there is, known or new."""
    model = create("svd++", factors=4, epochs=3, refit=False).fit(DATA, protocol="rating")
    train = model._fitted_on.train(0)
    with torch.no_grad():
        model.users.zero_()
        model.user_bias.zero_()
        model.item_bias.zero_()
    model._is_stale = True
    mine = train.users == 5
    new = model.predict_for_user(DATA.item_ids.decode(train.items[mine]), train.ratings[mine])
    known = model.predict_ratings(torch.full((DATA.num_items,), 5), torch.arange(DATA.num_items))
    for item, rating in new.iter_rows():
        # The user's bias was found beside those of the items, a new one after them.
        assert rating == pytest.approx(float(known[DATA.item_ids.encode([item])[0]]), abs=0.15)


def test_svdpp_beats_the_biases_on_movielens_and_keeps_them_on_few_ratings() -> None:
    card = fit(create("svd++", epochs=25), load("ml-100k"), protocol="rating", seed=1).card
    assert card.metrics["rmse"] < 0.975 * card.baselines["biases"]["rmse"]
    data = load("ml-100k")
    few = data.take(np.flatnonzero(np.random.default_rng(0).random(len(data)) < 0.03))
    card = fit(create("svd++"), few, protocol="rating", seed=1).card
    assert card.metrics["rmse"] < 1.02 * card.baselines["biases"]["rmse"]


# -- SLIM --------------------------------------------------------------------------------------------------------------


def _dense(data: Any) -> np.ndarray:
    matrix = np.zeros((data.num_users, data.num_items))
    matrix[data.users, data.items] = 1
    return matrix


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 1.0), (0.5, 2.0), (3.0, 10.0)])
def test_slim_is_the_minimum(l1: float, l2: float) -> None:
    model = create("slim", l1=l1, l2=l2)
    model.build(model.schema_for(DATA)).fit_directly(DATA)
    weights, matrix = model.item_vectors().double().numpy().T, _dense(DATA)
    assert (np.diag(weights) == 0).all()
    assert (weights >= 0).all()
    # Karush-Kuhn-Tucker: the gradient is 0 where there is a weight, and not negative where there is none.
    gradient = matrix.T @ (matrix @ weights - matrix) + l2 * weights + l1
    np.fill_diagonal(gradient, 0.0)
    scale = matrix.sum(0).max()
    assert np.abs(gradient[weights > 0]).max() < 2e-3 * scale
    assert gradient[weights == 0].min() > -2e-3 * scale
    scores = model.score_items(torch.arange(DATA.num_users)).numpy()
    np.testing.assert_allclose(scores, matrix @ weights, atol=1e-5)


@pytest.mark.skipif(host is None, reason="without a compiler there is one way only")
@pytest.mark.parametrize("threads", [1, 3])
def test_slim_s_two_ways_agree(threads: int) -> None:
    gram, own = slim._gram(*DATA.csr(), DATA.num_items)
    options = (1.0, 5.0, 100, 1e-4, 3, 40, threads)
    compiled, plain = host.slim_columns(*gram, own, *options), slim._columns(*gram, own, *options)
    assert np.array_equal(compiled[0], plain[0])
    assert np.array_equal(compiled[1], plain[1])
    np.testing.assert_allclose(compiled[2], plain[2], atol=1e-5)
    assert all((np.diff(compiled[1][a:b]) > 0).all() for a, b in pairwise(compiled[0]))


@pytest.mark.skipif(host is None, reason="the compiled function's own checks")
def test_slim_refuses_what_is_no_matrix() -> None:
    gram, own = slim._gram(*DATA.csr(), DATA.num_items)
    options = (1.0, 5.0, 100, 1e-4, 0, len(own), 1)
    for wrong in (gram[1] - 1, gram[1] + np.int32(len(own))):
        with pytest.raises(ValueError, match=r"items lie in \[0, N\)"):
            host.slim_columns(gram[0], wrong, gram[2], own, *options)
    with pytest.raises(ValueError, match="offsets must ascend"):
        host.slim_columns(gram[0][::-1].copy(), *gram[1:], own, *options)
    with pytest.raises(ValueError, match="counts"):
        host.slim_columns(*gram[:2], gram[2][:-1], own, *options)


def test_slim_beats_item_knn_on_movielens() -> None:
    card = fit(create("slim"), load("ml-100k"), protocol="full").card
    assert card.metrics["hr@10"] > card.baselines["item-knn"]["hr@10"]


def test_dynamic_negatives_are_those_of_the_highest_score() -> None:
    generator = torch.Generator().manual_seed(0)
    model = create("bpr", schema=Schema(5, 8), factors=3, num_negatives=3, hardest=True, l2=0.2, generator=generator)
    users, items = torch.tensor([0, 3]), torch.tensor([[1, 2, 3, 4], [5, 0, 7, 6]])
    scores = model(users.unsqueeze(1), items).detach()
    kept = items.gather(1, torch.cat([torch.zeros(2, 1).long(), 1 + scores[:, 1:].argmax(1, keepdim=True)], 1))
    alone = create("bpr", schema=Schema(5, 8), factors=3, num_negatives=1, l2=0.2)
    alone.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        model.loss(PairBatch(users, items, torch.zeros(2, 4))), alone.loss(PairBatch(users, kept, torch.zeros(2, 2)))
    )
    with pytest.raises(ValueError, match=r"hardest has no effect here.*num_negatives > 1"):
        create("bpr", hardest=True)
