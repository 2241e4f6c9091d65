"""Claims about CFN: its formula against dense PyTorch in float64, the corruption, side information, and bad input."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import deeprec
from deeprec.data import Interactions, from_frame, load, with_features
from deeprec.data.interactions.features import feature_matrix
from deeprec.data.sets.datasets import find
from deeprec.evaluate import protocol
from deeprec.models import CFN
from deeprec.train import fit

needs_ml_100k = pytest.mark.skipif(find("ml-100k") is None, reason="needs ml-100k, see `deeprec data list`")
QUIET: dict[str, Any] = {"hide": 0.0, "batch_size": 0}


def ratings(num_users: int = 30, num_items: int = 20, density: float = 0.4, seed: int = 0) -> Interactions:
    """Ratings from 1 to 5 by two latent tastes, with side information about users and items."""
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((num_users, num_items)) < density)
    tastes = draw.normal(size=(num_users, 2)) @ draw.normal(size=(2, num_items))
    values = np.clip(np.round(3 + tastes[users, items]), 1, 5)
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": values}), rating="rating")
    user_ids, item_ids = data.user_ids.values.to_list(), data.item_ids.values.to_list()
    return with_features(
        data,
        users=pl.DataFrame({"user_id": user_ids, "sex": [("F", "M")[i % 2] for i in user_ids]}),
        items=pl.DataFrame(
            {
                "item_id": item_ids,
                "genres": [["a", "b"] if i % 3 == 0 else ["c"] for i in item_ids],
                "length": [i / 7 for i in item_ids],
            }
        ),
    )


FEATURES = {"item": ("genres", "length"), "user": ("sex",)}


def dense(
    model: CFN, p: dict[str, Tensor], data: Interactions, shown: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and targets [rows, columns], what is observed, row means, in float64; `shown` [nnz] are the inputs."""
    config = model.config
    matrix = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    matrix[data.users, data.items] = torch.from_numpy(data.ratings).double()
    matrix = matrix.T if config.side == "item" else matrix
    is_seen = matrix > 0
    scaled = torch.where(is_seen, (matrix - 3) / 2, 0)
    means = scaled.sum(1) / is_seen.sum(1)
    means = torch.where(is_seen.any(1), means, scaled.sum() / is_seen.sum())
    targets = torch.where(is_seen, scaled - means[:, None], 0)
    inputs = targets.clone()
    if shown is not None:
        inputs[is_seen] = shown.double()
    z = torch.empty(len(matrix), 0).double()
    if config.features:
        frame = data.item_features if config.side == "item" else data.user_features
        if config.side == "item":
            genres = [[float(g in row) for g in "abc"] for row in frame["genres"].to_list()]
            z = torch.tensor([[*g, v] for g, v in zip(genres, frame["length"].to_list(), strict=True)]).double()
        else:
            z = torch.tensor([[float(s == "F"), float(s == "M")] for s in frame["sex"].to_list()]).double()
    h = torch.tanh(inputs @ p["encoder"] + z @ p["encoder_features"] + p["encoder_bias"])
    for layer in range(2 * len(config.inner)):
        h = torch.tanh(torch.cat([h, z], 1) @ p[f"layers.weights.{layer}"] + p[f"layers.biases.{layer}"])
    out = torch.tanh(torch.cat([h, z], 1) @ p["decoder"].T + p["decoder_bias"])
    return out, targets, is_seen, means


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("has_features", [False, True])
@pytest.mark.parametrize("inner", [(), (5, 3)])
def test_loss_gradients_and_predictions_are_the_formula(side: str, has_features: bool, inner: tuple[int, ...]) -> None:
    data = ratings()
    features = FEATURES[side] if has_features else ()
    config: dict[str, Any] = {"side": side, "features": features, "inner": inner, "hidden": 7, "rating_range": (1, 5)}
    model = CFN(**config, batch_size=0, hide=0.3, alpha=0.9, beta=0.4, l2=0.05)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    (batch,) = model.batches(data, seed=0).epoch(0)
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    out, targets, is_seen, means = dense(model, p, data, batch.inputs)
    weights = torch.zeros_like(targets)
    assert set(batch.weights.tolist()) == {np.float32(0.9), np.float32(0.4)}
    weights[is_seen] = batch.weights.double()
    loss = (weights * (out - targets).square()).sum()
    decayed = sum(value.square().sum() for name, value in p.items() if "bias" not in name)
    exact = torch.autograd.grad(loss / len(out) + 0.05 / 2 * decayed, list(p.values()))
    torch.testing.assert_close(model.backward(batch).double(), loss.detach(), rtol=1e-5, atol=1e-5)
    for (name, value), want in zip(model.named_parameters(), exact, strict=True):
        if value.numel():
            torch.testing.assert_close(value.grad.to_dense().double(), want, rtol=1e-4, atol=1e-5, msg=name)
    with torch.no_grad():
        out, *_ = dense(model, p, data)
    want = 3 + 2 * (out + means[:, None])
    want = want.T if side == "item" else want
    users = torch.arange(data.num_users).repeat_interleave(data.num_items)
    items = torch.arange(data.num_items).repeat(data.num_users)
    got = model.eval().predict_ratings(users, items).view(data.num_users, data.num_items)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.score_items(torch.tensor([3, 4])).double(), want[3:5], rtol=1e-5, atol=1e-5)


def test_l2_of_rarely_touched_rows_is_as_strong_on_average() -> None:
    data = ratings(200, 300, density=0.03)
    model = CFN(hidden=3, batch_size=10)
    model.build(model.schema_for(data))
    batches = model.batches(data, seed=0)
    strength = torch.zeros(data.num_users).double()
    steps = 0
    for epoch in range(30):
        for batch in batches.epoch(epoch):
            rows = batch.indices.unique()
            strength[rows] += 1 / model._touched[rows]
            steps += 1
    rated = torch.from_numpy(data.user_counts() > 0)
    assert float(model._touched[rated].min()) < 0.1
    torch.testing.assert_close(strength[rated] / steps, torch.ones(int(rated.sum())).double(), atol=0.35, rtol=0)
    assert float((strength[rated] / steps).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "adam", "lr": 0.01}, {"inner": (6,), "pretrain": True, "pretrain_epochs": 15}]
)
def test_learns_saves_and_loads(side: str, options: dict[str, Any], tmp_path: Any) -> None:
    data = ratings(150, 120)
    shared: dict[str, Any] = {"hidden": 12, "epochs": 15, "batch_size": 10, "l2": 0.01}
    model = CFN(side=side, features=FEATURES[side], **(shared | options))
    result = fit(model, data, protocol="rating", seed=0, out=tmp_path / "run")
    assert result.card.metrics["rmse"] < 0.9 * float(np.std(data.ratings))
    loaded = deeprec.load(tmp_path / "run")
    users, items = torch.arange(20), torch.arange(20)
    assert torch.equal(loaded.predict_ratings(users, items), model.predict_ratings(users, items))
    frame = model.recommend([0, 1], k=5)
    assert loaded.recommend([0, 1], k=5).equals(frame)
    np.testing.assert_allclose(frame["score"], model.score(frame.select("user_id", "item_id")), rtol=1e-5)


def test_an_interrupted_run_ends_bit_for_bit_where_the_whole_one_ends(tmp_path: Any) -> None:
    data = ratings(60, 50)

    def run(name: str, stop_after: int | None = None, resume: bool = False) -> CFN:
        def stop(progress: Any) -> None:
            if progress.metrics is not None and progress.epoch == stop_after:
                raise KeyboardInterrupt

        model = CFN(hidden=6, epochs=8, batch_size=10, features=("genres",), refit=False)
        fit(model, data, protocol="rating", seed=1, out=tmp_path / name, resume=resume, on_progress=stop)
        return model

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop_after=3)
    parts = run("parts", resume=True)
    for (key, want), got in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(got, want), key


def test_a_loop_in_plain_torch_trains_what_is_predicted() -> None:
    data = ratings(60, 50)
    model = CFN(hidden=8, batch_size=8, features=FEATURES["item"], hide=0.0, beta=1.0, rating_range=(1, 5))
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    tables = [model.encoder, model.decoder]
    rest = [value for name, value in model.named_parameters() if name not in ("encoder", "decoder")]
    optimizers = [torch.optim.SparseAdam(tables, lr=0.02), torch.optim.Adam(rest, lr=0.02)]
    batches = model.batches(data, seed=0)
    users, items = (torch.from_numpy(ids) for ids in (data.users, data.items))
    errors = []
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model.loss(batch).backward()
            for optimizer in optimizers:
                optimizer.step()
        predicted = model.predict_ratings(users, items)
        errors.append(float(((predicted - torch.from_numpy(data.ratings)) / 2).square().sum()))
        with torch.no_grad():
            assert errors[-1] == pytest.approx(float(model.loss(batches.whole())), rel=1e-4)
    assert errors[0] > errors[1] > errors[2]


def test_dense_gradients_are_those_of_all_weights_decaying() -> None:
    data = ratings(60, 50)
    grads = []
    for sparse_grad in (True, False):
        model = CFN(hidden=8, batch_size=8, l2=0.3)
        model.build(model.schema_for(data), torch.Generator().manual_seed(0))
        model.sparse_grad = sparse_grad
        batch = next(iter(model.batches(data, seed=0).epoch(0)))
        model.backward(batch)
        assert model.encoder.grad.is_sparse == sparse_grad
        decay = torch.zeros_like(model.encoder)
        rows = batch.indices.unique()
        decay[rows] = 0.3 * model.encoder.detach()[rows] / model._touched[rows].float()[:, None]
        decay = decay if sparse_grad else 0.3 * model.encoder.detach()
        grads.append(model.encoder.grad.to_dense() - decay)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    torch.optim.Adam(model.parameters()).step()


def test_works_in_float64_and_can_be_pickled() -> None:
    data = ratings()
    model = CFN(features=FEATURES["item"], inner=(5,), hidden=7, rating_range=(1, 5), beta=1.0, **QUIET)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0)).double()
    (batch,) = model.batches(data, seed=0).epoch(0)
    # The targets are float32, so the formula gets those of the batch.
    p = {name: value.detach() for name, value in model.named_parameters()}
    out, targets, is_seen, _ = dense(model, p, data, batch.inputs)
    targets[is_seen] = batch.labels.double()
    want = (out - targets)[is_seen].square().sum()
    torch.testing.assert_close(model.loss(batch).detach(), want, rtol=1e-7, atol=0)
    users, items = torch.arange(20), torch.arange(20)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)
    assert torch.equal(again.predict_ratings(users, items), model.predict_ratings(users, items))


@pytest.mark.parametrize("side", ["item", "user"])
def test_cold_rows_are_average_but_for_side_information_and_cold_columns_get_the_mean(side: str) -> None:
    data = ratings()
    cold_user, cold_item = 4, 7
    train = data.take((data.users != cold_user) & (data.items != cold_item))
    model = CFN(side=side, hidden=5, features=FEATURES[side], **QUIET)
    model.build(model.schema_for(data))
    model.backward(next(iter(model.batches(train, seed=0).epoch(0))))
    every_user, every_item = torch.arange(data.num_users), torch.arange(data.num_items)
    means = float(train.ratings.mean())
    of_user = model.predict_ratings(torch.full_like(every_item, cold_user), every_item)
    of_item = model.predict_ratings(every_user, torch.full_like(every_user, cold_item))
    row, column = (of_item, of_user) if side == "item" else (of_user, of_item)
    batch = model._rows.whole()
    codes = model._encode_whole(batch).detach()
    cold, cold_column = (cold_item, cold_user) if side == "item" else (cold_user, cold_item)
    has_ratings = batch.offsets.diff() > 0
    codes[cold, :5] = codes[has_ratings, :5].mean(0)
    codes = torch.cat([codes, torch.ones(len(codes), 1)], 1)
    columns = torch.cat([model.decoder, model.decoder_bias[:, None]], 1).detach()
    assert not columns[cold_column].any()
    out = 2 * torch.tanh(codes @ columns.T)
    torch.testing.assert_close(row, means + out[cold], rtol=1e-5, atol=1e-5)
    index, count = (train.items, train.num_items) if side == "item" else (train.users, train.num_users)
    numbers = np.bincount(index, minlength=count)
    of_rows = np.where(numbers > 0, np.bincount(index, train.ratings, count) / np.maximum(numbers, 1), means)
    np.testing.assert_allclose(column.numpy(), of_rows + out[:, cold_column].numpy(), rtol=1e-5)


@pytest.mark.parametrize("side", ["item", "user"])
def test_a_new_user_or_item_is_rated_as_one_like_it_is(side: str) -> None:
    draw = np.random.default_rng(0)
    users, items = np.nonzero(draw.random((80, 40)) < 0.5)
    values = np.where(users % 2 == items % 2, 5.0, 1.0)
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": values}), rating="rating")
    model = CFN(side=side, hidden=8, epochs=30, batch_size=8, l2=0.001).fit(data, protocol="rating", seed=0)
    for half in (0, 1):
        own, other = range(half, half + 12, 2), range(1 - half, 13 - half, 2)
        given = [5] * len(own) + [1] * len(other)
        likes, by_user = model.predict_for_user([*own, *other], given), model.predict_for_item([*own, *other], given)
        for frame, column in ((likes, "item_id"), (by_user, "user_id")):
            alike = pl.col(column) % 2 == half
            assert frame.filter(alike)["rating"].mean() > frame.filter(~alike)["rating"].mean() + 1
            assert frame["rating"].is_between(1, 5).all()
        listed = model.recommend_for_history([*own, *other], k=8, ratings=given)
        assert (listed["item_id"].to_numpy() % 2 == half).all()


def test_recommends_in_blocks_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ratings(60, 50)
    model = CFN(hidden=8, epochs=2, batch_size=8, refit=False, from_biases=False).fit(data, protocol="rating", seed=0)
    users = data.user_ids.values.to_list()
    whole, unmasked = model.recommend(users, 7), model.recommend(users, 7, exclude_seen=False)
    shapes = []
    rating_of = CFN._rating_of

    def watched(self: CFN, logits: Tensor, means: Tensor | None) -> Tensor:
        shapes.append(logits.numel())
        return rating_of(self, logits, means)

    monkeypatch.setattr(CFN, "_rating_of", watched)
    monkeypatch.setattr("deeprec.nn.scoring._SCORES_A_BLOCK", 400)
    assert model.recommend(users, 7).equals(whole)
    assert model.recommend(users, 7, exclude_seen=False).equals(unmasked)
    assert max(shapes) <= 400


def test_bad_options_are_refused() -> None:
    for options, message in (
        ({"hide": 1.0}, "less than 1 together"),
        ({"salt_pepper": -0.1}, "must be >= 0"),
        ({"alpha": -1.0}, "alpha, beta and noise_std"),
        ({"beta": 0.0, "hide": 0.0}, "an entry must have a weight"),
        ({"rating_range": (5, 1)}, "rating_range must ascend"),
        ({"weight_decay": 0.1}, "take l2"),
        ({"optimizer": "rprop", "batch_size": 0}, "optimizer must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            CFN(**options)


def test_bad_data_is_refused_before_training_starts() -> None:
    data = ratings()

    def refused(message: str, changed: Interactions, **options: Any) -> None:
        seen: list[Any] = []
        with pytest.raises(ValueError, match=message):
            CFN(hidden=3, **options).fit(changed, protocol="rating", on_progress=seen.append)
        assert not seen

    refused("must lie in rating_range 1 to 4, got 5", data, rating_range=(1.0, 4.0))
    refused("must have ratings", dataclasses.replace(data, ratings=None))
    refused("column of items must be one of .* did you mean 'genres'", data, features=("genre",))
    refused("must have a table of items", dataclasses.replace(data, item_features=None), features=("genres",))
    lengths = data.item_features["length"].to_list()
    for hole in (None, float("nan"), float("inf")):
        frame = data.item_features.with_columns(length=pl.Series([*lengths[:5], hole, *lengths[6:]]))
        holey = dataclasses.replace(data, item_features=frame)
        refused(
            "length must be known and finite for every item, got .* in all; fill them in", holey, features=("length",)
        )
    short = dataclasses.replace(data, item_features=data.item_features.head(5))
    refused("a row for each of the 20 items, got 5 rows", short, features=("genres",))
    alike = dataclasses.replace(data, ratings=np.full_like(data.ratings, 3))
    refused("ratings of two values", alike, from_biases=False)
    few = data.take(np.arange(3))
    refused("part must hold a rating", few)


def test_side_information_must_fit_the_ids() -> None:
    data = ratings()
    table = data.item_features
    for changed, message in (
        (table.rename({"item_id": "item"}), "must have a column item_id"),
        (table.head(18), "2 not at all: "),
        (pl.concat([table, table.head(1).with_columns(item_id=pl.lit(99, dtype=pl.Int64))]), "1 unknown to the data"),
        (pl.concat([table, table.head(1)]), "1 twice: "),
        (table.with_columns(pl.col("item_id").cast(pl.String)), "must be Int64 as in the data"),
    ):
        with pytest.raises(ValueError, match=message):
            with_features(data, items=changed)
    with pytest.raises(TypeError, match="the item table must be a polars or pandas frame, got dict"):
        with_features(data, items=table.to_dict())
    assert with_features(data, items=table.lazy()).item_features.equals(table)
    again = with_features(data, items=table.reverse().to_pandas()).item_features
    assert again["item_id"].to_list() == table["item_id"].to_list()
    assert again["length"].to_list() == table["length"].to_list()


def test_lists_of_numbers_are_taken_as_they_are() -> None:
    data = ratings()
    vectors = [[i / 3, -float(i)] for i in range(data.num_items)]
    table, fourth = data.item_features, data.item_ids.values[3]

    def matrix(series: pl.Series) -> np.ndarray:
        frame = table.with_columns(vector=series)
        return feature_matrix(frame, ("vector",), data.item_ids)

    for kind in (pl.List(pl.Float64), pl.Array(pl.Float32, 2)):
        np.testing.assert_array_equal(matrix(pl.Series(vectors, dtype=kind)), np.array(vectors, dtype=np.float32))
    for hole, message in (
        (None, f"known and finite for every item, got None for item {fourth} "),
        ([1.0, float("nan")], rf"known and finite for every item, got \[1.0, nan\] for item {fourth} "),
        ([1.0, 1e39], rf"known and finite for every item, got \[1.0, 1e\+39\] for item {fourth} "),
        ([1.0], "as many numbers for every item, at least one, got lists of 1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            matrix(pl.Series([*vectors[:3], hole, *vectors[4:]], dtype=pl.List(pl.Float64)))


@needs_ml_100k
def test_beats_the_item_means_on_ml_100k() -> None:
    model = CFN(hidden=50, epochs=8, features=("genres",), rating_range=(1.0, 5.0), refit=False)
    result = fit(model, load("ml-100k"), protocol=protocol("rating"), seed=0)
    assert result.card.metrics["rmse"] < 0.97  # item means: about 1.02
