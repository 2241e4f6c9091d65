"""Two towers: the loss by every kind of negatives, corrections in expectation, histories without the positive."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor
from torch.nn import functional as F

import deeprec
from deeprec import models
from deeprec.batches.towers import APART, TowerBatches
from deeprec.data import Bag, Categorical, DataSchema, FeatureSchema, Interactions, Numeric, Text, from_frame
from deeprec.data import with_features as add_tables

USERS, ITEMS = 30, 40
SCHEMA = DataSchema(
    users=FeatureSchema((Categorical("group"), Numeric("age")), label=None),
    items=FeatureSchema((Bag("tags"), Text("title")), label=None),
)


def interactions(rows: int = 260, seed: int = 0) -> Interactions:
    draw = np.random.default_rng(seed)
    users = draw.integers(0, USERS, rows)
    items = draw.integers(0, ITEMS // 2, (2, rows)).min(0) + ITEMS // 2 * (users % 2)  # low ones more often
    frame = pl.DataFrame({"user_id": users, "item_id": items})
    every = pl.DataFrame({"item_id": np.arange(ITEMS)}).select(
        user_id=pl.col("item_id") // (ITEMS // 2), item_id="item_id"
    )
    frame = pl.concat([frame, every]).unique(maintain_order=True)
    frame = frame.with_columns(timestamp=pl.int_range(len(frame)))
    return from_frame(frame, timestamp="timestamp").canonical()


def with_tables(data: Interactions) -> Interactions:
    users, items = data.user_ids.values.to_list(), data.item_ids.values.to_list()
    return add_tables(
        data,
        users=pl.DataFrame({"user_id": users, "group": [f"g{u % 2}" for u in users], "age": [20.0 + u for u in users]}),
        items=pl.DataFrame(
            {
                "item_id": items,
                "tags": [[f"t{i // (ITEMS // 2)}", f"x{i % 3}"] for i in items],
                "title": [f"film number {i}" for i in items],
            }
        ),
    )


def ready(data: Interactions, **options: Any) -> tuple[Any, Any]:
    model = models.create("dssm", **{"factors": 6, "batch_size": 32, **options})
    if model.features_taken():
        model.task_for(data, "full", SCHEMA)
    model.build(model.schema_for(data), torch.Generator().manual_seed(1))
    return model, model.batches(data, 3)


def dense_users(model: Any, data: Interactions, users: Tensor, without: Tensor) -> Tensor:
    """Vectors of users by dense products, the histories made anew without the positives."""
    offsets, items = data.csr()
    rows = []
    for user, item in zip(users.tolist(), without.tolist(), strict=True):
        met = [i for i in items[offsets[user] : offsets[user + 1]] if i != item]
        n = max(1, len(met))
        weight = {"mean": 1 / n, "sqrt": n**-0.5, "sum": 1.0}[model.config.pooling]
        x = torch.zeros(model.user_tower.size)
        x[torch.tensor(met, dtype=torch.long) + model.schema.user_terms] = weight
        if "id" in model.config.user_inputs:
            x[user] = 1
        rows.append(x)
    return torch.stack(rows) @ model.user_tower.terms + model.user_tower.bias


@pytest.mark.parametrize("pooling", ["mean", "sqrt", "sum"])
def test_a_history_lacks_the_positive(pooling: str) -> None:
    data = interactions()
    model, batches = ready(data, pooling=pooling, user_inputs=("id", "history"))
    batch = next(iter(batches.epoch(0)))
    rows = model._user_rows.without(0, batch.users, batch.items)
    torch.testing.assert_close(model.embed_users(rows), dense_users(model, data, batch.users, batch.items))


def test_a_drawn_history_is_the_whole_one_in_expectation() -> None:
    data = interactions()
    model, batches = ready(data, history_length=4, pooling="sqrt")
    batch = next(iter(batches.epoch(0)))
    total = torch.zeros(32, 6)
    for epoch in range(400):
        rows = model._user_rows.without(epoch, batch.users, batch.items)
        assert rows.offsets.diff().max() <= 4
        total += model.embed_users(rows).detach()
    expected = dense_users(model, data, batch.users, batch.items)
    # Rows whose draw was the positive alone have no history: a little shorter, so the tolerance.
    assert (total / 400 - expected).abs().max() < 0.1 * expected.abs().max()


def expected_loss(model: Any, data: Interactions, batch: Any) -> Tensor:
    config = model.config
    users = model.embed_users(model._user_rows.without(0, batch.users, batch.items))
    items = model.embed_items(torch.arange(ITEMS))
    if config.similarity == "cosine":
        users, items = F.normalize(users), F.normalize(items)
    scores = config.gamma * users @ items.T
    offsets, seen = data.csr()
    losses = []
    for row, (user, item) in enumerate(zip(batch.users.tolist(), batch.items.tolist(), strict=True)):
        met = set(seen[offsets[user] : offsets[user + 1]].tolist()) if config.mask_known else set()
        if batch.negatives is not None:
            against = batch.candidates[batch.negatives[row]].tolist()
        elif batch.candidates is None:
            against = list(range(ITEMS))
        else:
            against = batch.candidates.tolist()
        terms = [scores[row, item]] if config.include_positive else []
        for other in against:
            if other == item or (other in met and batch.negatives is None):
                continue
            place = None if batch.candidates is None else batch.candidates.tolist().index(other)
            shift = 0.0 if batch.log_q is None else float(batch.log_q[place])
            terms.append(scores[row, other] - shift)
        losses.append(torch.stack(terms).logsumexp(0) - scores[row, item])
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "options",
    [
        {"negatives": "in-batch"},
        {"negatives": "in-batch", "log_q": "none", "mask_known": False},
        {"negatives": "sampled", "num_negatives": 9, "alpha": 0.5},
        {"negatives": "sampled", "num_negatives": 9, "log_q": "none", "similarity": "cosine", "gamma": 7.0},
        {"negatives": "mixed", "num_negatives": 9},
        {"negatives": "row", "num_negatives": 3, "similarity": "cosine", "gamma": 10.0},
        {"negatives": "row", "num_negatives": 3, "include_positive": False},
        {"negatives": "full"},
        {"negatives": "full", "similarity": "cosine", "gamma": 5.0, "include_positive": False},
        {"negatives": "full", "layers": (8,), "item_inputs": ("id", "features"), "weighting": "tf-idf"},
    ],
)
def test_the_loss_is_its_formula(options: dict[str, Any]) -> None:
    data = with_tables(interactions())
    model, batches = ready(data, **options)
    batch = next(iter(batches.epoch(0)))
    loss, expected = model.loss(batch), expected_loss(model, data, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.to_dense(), theirs.to_dense(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["in-batch", "sampled", "mixed"])
def test_the_correction_is_the_probability_of_being_a_candidate(kind: str) -> None:
    data = interactions()
    batches = TowerBatches(data, batch_size=16, negatives=kind, num_negatives=8, alpha=0.7, has_log_q=True, seed=5)
    times, chance, count = np.zeros(ITEMS), np.zeros(ITEMS), 0
    for epoch in range(200):
        for batch in batches.epoch(epoch):
            if len(batch) == 16:
                drawn = batch.log_q < APART
                times[batch.candidates[drawn]] += 1
                chance[batch.candidates[drawn]] = batch.log_q[drawn].exp()
                count += 1
    assert (np.abs(times / count - chance) < 0.03).all()
    assert chance.max() > 2 * chance.min()


def test_batches_do_not_depend_on_where_an_epoch_begins() -> None:
    _, batches = ready(interactions(), negatives="mixed", num_negatives=5)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, skip=3))
    assert len(rest) == len(whole) - 3 == len(batches) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.candidates, other.candidates)
        assert torch.equal(one.users, other.users)
    assert not torch.equal(next(iter(batches.epoch(3))).users, whole[0].users)


@pytest.mark.parametrize("negatives", ["row", "mixed", "sampled"])
def test_hard_negatives_are_the_best_that_a_user_has_not_met(negatives: str) -> None:
    data = interactions()
    options = {"negatives": negatives, "num_negatives": 2, "hard_negatives": 3, "hard_pool": 5, "mask_known": False}
    model, batches = ready(data, **options)
    plain = next(iter(batches.epoch(0)))
    assert plain.negatives is None or plain.negatives.shape == (32, 2)
    model.eval()
    best = model.topk(torch.arange(USERS), 5, deeprec.contract.Seen(*data.csr())).ids
    for batch in batches.epoch(1):
        if negatives == "row":
            hard = batch.candidates[batch.negatives[:, 2:]]
            assert hard.shape[1] == 3
            assert (hard.unsqueeze(2) == best[batch.users].unsqueeze(1)).any(2).all()
        else:
            is_certain = batch.log_q == 0
            assert is_certain.sum() >= 3
            assert set(batch.candidates[is_certain].tolist()) <= set(best[batch.users].flatten().tolist())
    again = [batch.candidates for batch in batches.epoch(1, skip=2)]
    assert torch.equal(again[0], list(batches.epoch(1))[2].candidates)
    assert torch.isfinite(model.loss(batch))


def test_terms_of_no_training_row_are_zero() -> None:
    data = interactions()
    train = data.take(data.items != 3)
    model, _ = ready(data)
    model.batches(train, 0)
    assert not model.item_tower.terms[3].any()
    assert not model.user_tower.terms[3].any()
    assert model.item_tower.terms[4].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_inputs": ("ids",)}, "user_inputs must be one or more of id, history, features"),
        ({"item_inputs": ()}, "item_inputs must be one or more of id, features"),
        ({"gamma": 0}, "gamma must be > 0, got 0.0; 10 is usual with cosines"),
        ({"negatives": "sampled", "log_q": "all"}, "log_q 'all' needs positives that are candidates"),
        ({"alpha": 0.5}, "alpha has no effect here"),
        ({"negatives": "full", "log_q": "none"}, "log_q has no effect here"),
        ({"negatives": "full", "hard_negatives": 1}, "hard_negatives has no effect here"),
        ({"hard_pool": 7}, "hard_pool has no effect here"),
        ({"layers": (0,)}, "layers must be widths >= 1"),
        ({"user_inputs": ("id",), "pooling": "sum"}, "pooling has no effect here"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create("dssm", **options)


def test_columns_need_a_schema_and_a_table() -> None:
    data = interactions()
    with pytest.raises(ValueError, match="columns of items are an input, so a schema must say what they mean"):
        models.create("dssm", item_inputs=("features",)).fit(with_tables(data), protocol="full")
    with pytest.raises(ValueError, match="the data must have a table of its 40 items, got none"):
        models.create("dssm", item_inputs=("features",)).fit(data, protocol="full", schema=SCHEMA)
    with pytest.raises(TypeError, match="schema must be a DataSchema"):
        models.create("dssm").fit(data, protocol="full", schema=SCHEMA.items)


def test_a_model_of_columns_comes_back_from_its_folder(tmp_path: Any) -> None:
    data = with_tables(interactions())
    inputs = {"user_inputs": ("history", "features"), "item_inputs": ("features",)}
    model = models.create("dssm", factors=6, layers=(8,), epochs=2, weighting="tf-idf", **inputs)
    model.fit(data, protocol="full", schema=SCHEMA, seed=1)
    model.save(tmp_path / "model")
    again = deeprec.load(tmp_path / "model")
    assert again.recommend([0, 1], 5).equals(model.recommend([0, 1], 5))
    assert again.recommend_for_history([3, 4], 5).equals(model.recommend_for_history([3, 4], 5))
    assert again.item_encoder.inputs == model.item_encoder.inputs


def test_two_groups_are_told_apart() -> None:
    data = interactions()
    model = models.create("dssm", factors=8, epochs=8, lr=0.02, batch_size=32).fit(data, protocol="full", seed=1)
    listed = model.recommend(list(range(2, USERS, 2)), 3)["item_id"].to_numpy()
    assert (listed < ITEMS // 2).mean() > 0.9


def test_columns_alone_serve_new_users_and_items(tmp_path: Any) -> None:
    data = with_tables(interactions())
    inputs = {"user_inputs": ("history", "features"), "item_inputs": ("features",)}
    model = models.create("dssm", factors=6, epochs=8, lr=0.02, batch_size=32, **inputs)
    model.fit(data, protocol="full", schema=SCHEMA, seed=1)
    new = pl.DataFrame({"user_id": ["x", "y"], "group": ["g0", "g1"], "age": [30.0, 31.0]})
    listed = model.recommend_for_features(new, 5)
    halves = (listed["item_id"].to_numpy() < ITEMS // 2).reshape(2, 5).mean(1)
    assert listed["user_id"].to_list() == ["x"] * 5 + ["y"] * 5
    assert halves[0] > 0.7 > 0.3 > halves[1]
    met = model.recommend_for_features(new.drop("user_id"), 5, histories=[[0, 2], []])
    assert met.columns[0] == "row"
    assert not {0, 2} & set(met.filter(row=0)["item_id"].to_list())
    assert met.filter(row=1)["score"].to_list() == listed.filter(user_id="y")["score"].to_list()
    model.build_index()
    assert_frame_equal(model.recommend_for_features(new, 5, approximate=True), listed)
    seen = model.recommend_for_features(new.drop("user_id"), 5, histories=[[0, 2], []], approximate=True)
    assert_frame_equal(seen, met)
    before = model.recommend([0, 1], 5)
    model.add_items(
        pl.DataFrame({"item_id": [100, 101], "tags": [["t0", "x1"], ["t1"]], "title": ["film number", "film"]})
    )
    model.save(tmp_path / "model")
    again = deeprec.load(tmp_path / "model")
    for one in (model, again):
        assert one.score([(0, 100), (0, 1)]).tolist() == model.score([(0, 100), (0, 1)]).tolist()
        assert one.recommend([0, 1], 5, deny=[100, 101]).equals(before)
        assert one.recommend([0], 2, allow=[100, 101])["item_id"].to_list() == [100, 101]
        assert len(one.recommend_for_history([100, 101], 5)) == 5
    again.add_items(pl.DataFrame({"item_id": [102], "tags": [["x2"]], "title": [""]}))
    assert again.schema.num_items == ITEMS + 3


def test_what_columns_cannot_serve_is_said() -> None:
    data = with_tables(interactions())
    model = models.create("dssm", factors=6, epochs=1).fit(data, protocol="full")
    with pytest.raises(ValueError, match="users are served from their columns where user_inputs has 'features'"):
        model.recommend_for_features(pl.DataFrame({"group": ["g0"]}))
    with pytest.raises(ValueError, match="train it with 'features' in item_inputs"):
        model.add_items(pl.DataFrame({"item_id": [100]}))
    model = models.create("dssm", user_inputs=("features",), item_inputs=("features",), factors=6, epochs=1)
    model.fit(data, protocol="full", schema=SCHEMA)
    table = pl.DataFrame({"group": ["g0"], "age": [1.0]})
    with pytest.raises(ValueError, match="histories need 'history' in user_inputs"):
        model.recommend_for_features(table, histories=[[1]])
    with pytest.raises(ValueError, match="one list of items for each of the 1 users, got 2"):
        model.recommend_for_features(table, histories=[[], []])
    with pytest.raises(ValueError, match="age"):
        model.recommend_for_features(table.drop("age"))
    with pytest.raises(TypeError, match="users must be a polars or pandas frame, got list"):
        model.recommend_for_features([1])
    with pytest.raises(ValueError, match="every item_id must be new and there once, got 2 rows with 1 new ones"):
        model.add_items(pl.DataFrame({"item_id": [1, 100], "tags": [["a"], ["b"]], "title": ["", ""]}))
    with pytest.raises(ValueError, match="must have a column item_id"):
        model.add_items(table)
    assert model.schema.num_items == ITEMS


def test_fit_more_keeps_ids_and_histories_where_they_were() -> None:
    old = interactions()
    model = models.create("dssm", factors=6, epochs=3, user_inputs=("id", "history"), batch_size=32)
    model.fit(old, protocol="full", seed=1)
    users, items = model.user_tower.terms.detach().clone(), model.item_tower.terms.detach().clone()
    later = pl.DataFrame({"user_id": [50, 50, 50, 51, 51, 51], "item_id": [1, 60, 3, 60, 5, 7], "timestamp": range(6)})
    model.fit_more(later, epochs=1, lr=1e-9)
    known = old.num_users
    assert model.schema.num_users == known + 2
    torch.testing.assert_close(model.user_tower.terms[:known], users[:known], atol=1e-6, rtol=0)
    torch.testing.assert_close(model.user_tower.terms[known + 2 : known + 2 + ITEMS], users[known:], atol=1e-6, rtol=0)
    torch.testing.assert_close(model.item_tower.terms[:ITEMS], items, atol=1e-6, rtol=0)
    columns = models.create("dssm", item_inputs=("features",), factors=6, epochs=1)
    columns.fit(with_tables(old), protocol="full", schema=SCHEMA)
    with pytest.raises(ValueError, match="do not go on with other encoders"):
        columns.fit_more(with_tables(old))


def test_rows_follow_the_model_to_another_type() -> None:
    data = interactions()
    model, batches = ready(data, layers=(5,))
    batch = next(iter(batches.epoch(0)))
    wide = model.double()
    assert wide.loss(batch).dtype == torch.float64
    rows = wide.history_rows(torch.tensor([0, 2, 2]), torch.tensor([1, 5]))[0]
    assert rows.dtype == torch.float64


@pytest.mark.parametrize("negatives", ["row", "full", "in-batch"])
def test_vectors_of_zeros_have_cosine_0_and_no_gradient(negatives: str) -> None:
    data = interactions()
    options = {"num_negatives": 3} if negatives == "row" else {}
    model, batches = ready(data, negatives=negatives, similarity="cosine", gamma=10.0, **options)
    with torch.no_grad():
        model.user_tower.terms.zero_()
    loss = model.loss(next(iter(batches.epoch(0))))
    loss.backward()
    assert torch.isfinite(loss)
    assert not model.user_tower.terms.grad.to_dense().any()
    assert torch.isfinite(model.item_tower.terms.grad.to_dense()).all()
    assert not model.score_items(torch.tensor([0])).any()


def test_batches_of_one_kind_of_item_and_of_one_row_have_no_loss_and_no_gradient() -> None:
    data = interactions()
    model, _ = ready(data)
    same = data.take(data.items == 0)
    batches = model.batches(same, 0)
    for batch in batches.epoch(0):
        loss = model.loss(batch)
        loss.backward()
        assert float(loss.detach()) == 0
    one = model.batches(data.take(np.arange(len(data)) < 1), 0)
    assert not model.loss(next(iter(one.epoch(0)))).detach().any()
