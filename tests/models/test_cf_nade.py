"""Claims about CF-NADE: its formulas against plain PyTorch in float64, orderings by enumeration, and real ratings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from deeprec.batches.levels import SplitBatch
from deeprec.data import Interactions, from_frame, load
from deeprec.data.sets.datasets import find
from deeprec.evaluate import protocol
from deeprec.models import CFNADE, Schema
from deeprec.models._level_scores import level_costs, lookups_up_to, sampled_linear
from deeprec.models.cf_nade import CFNADEConfig
from deeprec.train import fit

needs_ml_100k = pytest.mark.skipif(find("ml-100k") is None, reason="needs ml-100k, see `deeprec data list`")


def ratings(values: tuple[float, ...] = (1, 2, 3, 4, 5), num_users: int = 30, num_items: int = 20) -> Interactions:
    """Ratings by two latent tastes, on a scale."""
    draw = np.random.default_rng(0)
    users, items = np.nonzero(draw.random((num_users, num_items)) < 0.5)
    tastes = (draw.normal(size=(num_users, 2)) @ draw.normal(size=(2, num_items)))[users, items]
    levels = np.searchsorted(np.quantile(tastes, np.linspace(0, 1, len(values) + 1)[1:-1]), tastes)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "rating": np.asarray(values, np.float32)[levels]})
    return from_frame(frame, rating="rating")


def model_of(num_users: int = 6, num_items: int = 5, **options: Any) -> CFNADE:
    """One with weights and biases that are not zero."""
    generator = torch.Generator().manual_seed(1)
    model = CFNADE(Schema(num_users, num_items), **{"hidden": 4, "side": "user", **options}, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def split_of(shown: list[tuple[int, int]], asked: list[tuple[int, int]]) -> SplitBatch:
    """One row: (column, level) of what is shown and of what is asked."""
    columns, levels = (torch.tensor([each[place] for each in shown], dtype=torch.int64) for place in (0, 1))
    asked_columns, asked_levels = (torch.tensor([each[place] for each in asked]) for place in (0, 1))
    weight = (len(shown) + len(asked)) / len(asked)
    return SplitBatch(
        torch.tensor([0, len(shown)]),
        columns,
        levels,
        int(levels.sum()) + len(shown),
        torch.tensor([0, len(asked)]),
        asked_columns,
        asked_levels,
        torch.full((len(asked),), weight),
    )


def plain_scores(model: CFNADE, shown: list[tuple[int, int]], column: int) -> Tensor:
    """Scores [K] of a column by the formulas, in float64."""
    config, count = model.config, len(model.config.levels)
    weights = {name: each.detach().double() for name, each in model.named_parameters()}
    w, v, b = weights["encoder"], weights["decoder"], weights["decoder_bias"].view(-1, count)
    w = w if config.rank == 0 else w @ weights["encoder_factors"]
    v = v if config.rank == 0 else v @ weights["decoder_factors"].T
    w, v = w.view(-1, count, w.shape[1]), v.view(-1, count, v.shape[1])
    if config.shared:
        w, v, b = w.cumsum(1), v.cumsum(1), b.cumsum(1)
    hidden = torch.tanh(weights["encoder_bias"] + sum((w[m, k] for m, k in shown), torch.zeros(w.shape[2]).double()))
    for place in range(len(config.inner)):
        layer = weights[f"inner_weights.{place}"], weights[f"inner_biases.{place}_bias"]
        hidden = torch.tanh(hidden @ layer[0] + layer[1])
    return b[column] + v[column] @ hidden


def plain_cost(scores: Tensor, level: int, ordinal: float) -> float:
    """The hybrid cost from the products of the paper."""
    e = scores.double().exp()
    p = math.prod(float(e[j] / e[: j + 1].sum()) for j in range(level, -1, -1))
    p *= math.prod(float(e[j] / e[j:].sum()) for j in range(level, len(e)))
    return -(1 - ordinal) * math.log(float(e[level] / e.sum())) - ordinal * math.log(p)


# -- costs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordinal", [0.0, 0.3, 1.0])
def test_costs_are_the_products_of_the_paper(ordinal: float) -> None:
    scores = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    levels = torch.arange(12) % 4
    expected = [plain_cost(row, int(level), ordinal) for row, level in zip(scores, levels, strict=True)]
    assert level_costs(scores, levels, ordinal).tolist() == pytest.approx(expected)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: level_costs(s, levels, ordinal), scores)


def test_costs_at_equal_scores_are_factorials() -> None:
    levels = torch.arange(5)
    expected = [math.log(math.factorial(k) * math.factorial(6 - k)) for k in range(1, 6)]
    assert level_costs(torch.zeros(5, 5), levels, 1.0).tolist() == pytest.approx(expected)
    assert level_costs(torch.zeros(5, 5), levels, 0.0).tolist() == pytest.approx([math.log(5)] * 5)


def test_costs_of_extreme_scores_are_finite() -> None:
    scores = torch.tensor([[300.0, -300.0, 0.0], [-1e4, 0.0, 1e4]], requires_grad=True)
    costs = level_costs(scores, torch.tensor([1, 0]), 1.0)
    costs.sum().backward()
    assert costs.isfinite().all()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("sparse_grad", [True, False])
def test_scores_at_entries_are_a_linear_layer(sparse_grad: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_() for shape in ((3, 4), (6, 4), (6,))
    )
    indptr, indices = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 4, 0, 4, 4])
    slopes = torch.randn(5, dtype=torch.float64, generator=draw)
    (sampled_linear(hidden, weight, bias, indptr, indices, sparse_grad) * slopes).sum().backward()
    grads = [each.grad.to_dense() for each in (hidden, weight, bias)]
    for each in (hidden, weight, bias):
        each.grad = None
    rows = torch.tensor([0, 0, 2, 2, 2])
    (((hidden @ weight.T + bias)[rows, indices]) * slopes).sum().backward()
    for grad, each in zip(grads, (hidden, weight, bias), strict=True):
        assert torch.allclose(grad, each.grad)


def test_lookups_are_the_levels_up_to_each() -> None:
    offsets, lookups = lookups_up_to(torch.tensor([0, 2, 2, 3]), torch.tensor([1, 3, 0]), torch.tensor([0, 2, 1]), 3, 6)
    assert offsets.tolist() == [0, 4, 4, 6]
    assert lookups.tolist() == [3, 9, 10, 11, 0, 1]


# -- the model ---------------------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {},
    {"shared": False},
    {"rank": 3},
    {"inner": (5, 3)},
    {"rank": 2, "inner": (3,), "shared": False},
    {"levels": (0.5, 1, 3), "ordinal": 0.4},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_loss_and_gradients_are_those_of_the_formulas(options: dict[str, Any]) -> None:
    model = model_of(**options).double()
    shown, asked = [(0, 1), (2, 0)], [(1, 2), (3, 1), (4, 0)]
    expected = sum(plain_cost(plain_scores(model, shown, m), k, model.config.ordinal) for m, k in asked) / 3
    batch = split_of(shown, asked)
    assert float(model.loss(batch)) == pytest.approx(expected)  # 5 / 3 of the sum, by 5 ratings
    model.backward(batch)
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
        place = tuple(int(i) for i in (grad.abs() == grad.abs().max()).nonzero()[0])
        step = torch.zeros_like(parameter)
        step[place] = 1e-5
        with torch.no_grad():
            parameter.add_(step)
            above = float(model.loss(batch))
            parameter.sub_(2 * step)
            below = float(model.loss(batch))
            parameter.add_(step)
        assert 5 * (above - below) / 2e-5 == pytest.approx(float(grad[place]), rel=1e-4, abs=1e-8), name


def test_mean_over_splits_is_the_mean_over_orderings() -> None:
    model = model_of()
    row = [(0, 4), (2, 1), (3, 2)]
    by_ordering = []
    for order in itertools.permutations(row):
        costs = [
            plain_cost(plain_scores(model, list(order[:place]), m), k, model.config.ordinal)
            for place, (m, k) in enumerate(order)
        ]
        by_ordering.append(sum(costs))
    by_split = []
    for size in range(3):  # as likely each, and so each set of that size
        losses = []
        for shown in itertools.combinations(row, size):
            asked = [each for each in row if each not in shown]
            losses.append(float(model.loss(split_of(list(shown), asked))) * len(row))
        by_split.append(np.mean(losses))
    assert np.mean(by_split) == pytest.approx(np.mean(by_ordering), rel=1e-5)


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("options", [{}, {"shared": False}, {"rank": 3, "inner": (3,)}], ids=str)
def test_predictions_are_expectations_from_all_ratings(side: str, options: dict[str, Any]) -> None:
    data = ratings()
    model = CFNADE(side=side, hidden=4, epochs=1, batch_size=8, **options)
    model.fit(data, protocol="rating", baselines=False)
    train = model._fitted_on.train(0, joined=model.config.refit)
    users, items = train.users[:5], train.items[:5]
    predicted = model.predict_ratings(
        torch.from_numpy(users.astype(np.int64)), torch.from_numpy(items.astype(np.int64))
    )
    for place, (user, item) in enumerate(zip(users, items, strict=True)):
        row, column = (item, user) if side == "item" else (user, item)
        index, columns = (train.items, train.users) if side == "item" else (train.users, train.items)
        mine = index == row
        shown = list(zip(columns[mine].tolist(), (train.ratings[mine] - 1).astype(int).tolist(), strict=True))
        shares = plain_scores(model, shown, int(column)).softmax(0)
        expected = float(shares @ torch.arange(1, 6).double())
        assert float(predicted[place]) == pytest.approx(expected, abs=1e-4)


def test_predictions_average_contexts() -> None:
    model = model_of(num_items=9, contexts=3)
    offsets, columns = torch.tensor([0, 9]), torch.arange(9)
    levels = torch.arange(9) % 5
    codes = model._encode(offsets, columns, levels, int(levels.sum()) + 9)
    assert codes.shape == (1, 3, 4)
    lacking = (columns * 2654435761 % (1 << 32)) * 3 >> 32
    for context in range(3):
        kept = [(int(m), int(k)) for m, k, out in zip(columns, levels, lacking, strict=True) if out != context]
        hidden = model_of(num_items=9)._encode(
            torch.tensor([0, len(kept)]), *torch.tensor(kept).T, sum(k + 1 for _, k in kept)
        )
        assert torch.allclose(codes[:, context], hidden[:, 0], atol=1e-6)
    scores = torch.randn(1, 3, 5)
    assert torch.allclose(model._expected(scores), scores.softmax(-1).mean(1) @ torch.arange(1.0, 6.0))


def test_it_starts_at_the_frequencies_of_the_ratings() -> None:
    data = ratings()
    model = CFNADE(Schema(data.num_users, data.num_items), side="user", hidden=4)
    model.batches(data, 0)
    mean = np.bincount(data.items, data.ratings) / np.bincount(data.items)
    with torch.no_grad():
        model.decoder.mul_(1e-6)
        model.decoder[:, 0].add_(1e-9)  # not the zeros of a column without ratings
    predicted = model.score_items(torch.arange(1))[0].numpy()
    assert np.corrcoef(mean, predicted)[0, 1] > 0.98
    counts = np.bincount(data.items)
    shares = np.stack([np.bincount(data.items, data.ratings == k) for k in range(1, 6)], 1)
    whole = shares.sum(0) + 1
    expected = (shares + 5 * whole / whole.sum()) @ np.arange(1, 6) / (counts + 5)
    assert predicted == pytest.approx(expected, abs=1e-3)


# -- scales, and bad input ---------------------------------------------------------------------------------------------


def test_the_scale_is_that_of_the_data() -> None:
    half_stars = tuple(np.arange(0.5, 5.5, 0.5).tolist())
    model = CFNADE(hidden=4, epochs=2).fit(ratings(half_stars), protocol="rating", baselines=False)
    assert model.config.levels == half_stars
    assert "levels" in model.chosen
    scores = model.score_items(torch.arange(30))
    assert scores.min() >= 0.5
    assert scores.max() <= 5
    uneven = CFNADE(hidden=4, epochs=1).fit(ratings((-3, 0, 10)), protocol="rating", baselines=False)
    assert uneven.config.levels == (-3, 0, 10)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            (1, 2, 3, 4, 5.5),
            {"levels": (1, 2, 3, 4, 5)},
            r"among the levels 1, 2, 3, 4, 5, got 5.5 of user .* and item",
        ),
        ((1, 2, 3.5), {"levels": (1, 2, 3, 4)}, "got 3.5 of user"),
        (tuple(np.linspace(1, 5, 40).tolist()), {}, "round them or take autorec"),
        ((4,), {}, "two levels at least are needed, got 4 only; take bias"),
    ],
)
def test_ratings_off_the_scale_are_refused(values: tuple[float, ...], options: dict[str, Any], message: str) -> None:
    model = CFNADE(hidden=4, **options)
    with pytest.raises(ValueError, match=message):
        model.fit(ratings(values), protocol="rating")
    assert model.schema is None  # nothing was built


def test_a_level_of_the_validation_part_alone_is_on_the_scale() -> None:
    frame = ratings((1, 2, 3)).to_frame()
    rule = protocol("rating", seed=1)
    split = CFNADE(hidden=4).task_for(frame, rule).split
    held_out = split.validation.to_frame().head(1)
    pair = (pl.col("user_id") == held_out["user_id"][0]) & (pl.col("item_id") == held_out["item_id"][0])
    frame = frame.with_columns(rating=pl.when(pair).then(5.0).otherwise(pl.col("rating")))
    model = CFNADE(hidden=4, epochs=1).fit(frame, protocol=rule, seed=1, baselines=False)
    assert model.config.levels == (1, 2, 3, 5)


def test_data_without_ratings_is_refused() -> None:
    frame = ratings().to_frame().drop("rating")
    with pytest.raises(ValueError, match="cf-nade: the data must have ratings"):
        CFNADE().fit(from_frame(frame), protocol="full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (3,)}, "levels must be two ratings at least, ascending"),
        ({"levels": (1, 3, 2)}, "levels must be two ratings at least, ascending"),
        ({"ordinal": 1.5}, r"ordinal must lie in \[0, 1\]"),
        ({"contexts": 0}, "contexts must be >= 1"),
        ({"inner": (0,)}, "inner must be widths >= 1"),
        ({"side": "both"}, "side must be one of item, user"),
        ({"rank": -1}, "rank must be >= 0"),
        ({"l2": 0.1}, "l2 has no effect"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CFNADEConfig(**options)


# -- use ---------------------------------------------------------------------------------------------------------------


def two_tastes() -> Interactions:
    """Even users love even items and hate odd ones, odd users the reverse; most pairs are rated."""
    draw = np.random.default_rng(1)
    users, items = np.nonzero(draw.random((40, 20)) < 0.7)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "rating": np.where((users + items) % 2, 1.0, 5.0)})
    return from_frame(frame, rating="rating")


@pytest.mark.parametrize("side", ["item", "user"])
def test_it_recommends_what_a_person_would(side: str) -> None:
    options = {"hidden": 16, "epochs": 60, "batch_size": 8, "lr": 0.01, "refit": False}
    model = CFNADE(side=side, **options).fit(two_tastes(), protocol="rating", seed=1)
    best = model.recommend(list(range(40)), 1)
    assert all((row["user_id"] + row["item_id"]) % 2 == 0 for row in best.iter_rows(named=True))
    new = model.recommend_for_history([1, 2], 4, ratings=[5, 1])
    assert all(item % 2 for item in new["item_id"])
    assert new["score"].min() > 3.5
    rated = model.predict_for_item([0, 1, 2, 3], [1, 5, 1, 5])
    by_user = dict(zip(rated["user_id"], rated["rating"], strict=True))
    assert by_user[11] > 3.3
    assert by_user[10] < 2.7


def test_somebody_new_with_the_ratings_of_a_user_is_rated_as_the_user() -> None:
    data = ratings()
    model = CFNADE(hidden=8, epochs=3, side="user").fit(data, protocol="rating", baselines=False)
    train = model._fitted_on.train(0, joined=True)
    mine = train.users == 4
    state = model.rated_rows(
        torch.tensor([0, int(mine.sum())]),
        torch.from_numpy(np.sort(train.items[mine]).astype(np.int64)),
        torch.from_numpy(train.ratings[mine][np.argsort(train.items[mine])]),
    )
    assert torch.allclose(state[0], model.user_rows(torch.tensor([4]))[0], atol=1e-6)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"side": "user", "rank": 3, "inner": (5,)}], ids=str)
def test_an_interrupted_run_ends_bit_for_bit_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    data, chosen = ratings(), {**{"hidden": 8, "epochs": 4, "batch_size": 6}, **options}

    def run(folder: str, **how: Any) -> Any:
        return fit(CFNADE(**chosen), data, protocol="rating", seed=2, out=tmp_path / folder, baselines=False, **how)

    def stop(progress: Any) -> None:
        if progress.metrics and progress.epoch == 2:
            raise _Stop

    whole = run("whole")
    with pytest.raises(_Stop):
        run("parts", on_progress=stop)
    parts = run("parts", resume=True)
    ours, theirs = parts.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert parts.card.metrics == whole.card.metrics


@needs_ml_100k
def test_ml_100k() -> None:
    model = CFNADE(hidden=50, epochs=15, batch_size=64, lr=0.005)
    card = fit(model, load("ml-100k"), protocol=protocol("rating"), seed=1, baselines=False).card
    assert card.metrics["rmse"] < 0.92  # biases 0.94


@pytest.mark.parametrize("sparse", [False, True])
def test_scores_at_entries_have_second_derivatives(sparse: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = (3, 4), (6, 4), (6,)
    hidden, weight, bias = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in sizes)
    indptr, indices = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 5, 1, 5, 3])
    given = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]

    def scores(*tensors: torch.Tensor) -> torch.Tensor:
        return sampled_linear(*tensors, indptr, indices, False)

    assert torch.autograd.gradcheck(scores, given)
    assert torch.autograd.gradgradcheck(scores, given)
    loss = sampled_linear(*given, indptr, indices, sparse).square().sum()
    first = torch.autograd.grad(loss, given, create_graph=True)[1]
    assert first.is_sparse == sparse
    again = torch.autograd.grad((first.to_dense() if sparse else first).square().sum(), given)
    assert all(grad.to_dense().any() if grad.is_sparse else grad.any() for grad in again)
