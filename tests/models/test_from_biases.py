"""Claims about models of ratings at their defaults: no worse than biases, on any scale, served as measured."""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.contract import Facts
from deeprec.data import Interactions, from_frame
from deeprec.evaluate import protocol
from deeprec.models import CFN, AutoRec, Bias, config_class, create, model_class
from deeprec.models.autorec import AutoRecConfig
from deeprec.serve.predict import predict_pairs_file
from deeprec.train import fit

COAT = Path(os.environ.get("DEEPREC_DATA", "")) / "coat" / "train.ascii.gz"
needs_coat = pytest.mark.skipif(not COAT.is_file(), reason="needs coat/train.ascii.gz in $DEEPREC_DATA")
MODELS = (AutoRec, CFN)
BOTH_SIDES = pytest.mark.parametrize("side", ["item", "user"])
BOTH = pytest.mark.parametrize("kind", MODELS)


def ratings(
    num_users: int = 60, num_items: int = 50, density: float = 0.3, taste: float = 0.5, seed: int = 0
) -> pl.DataFrame:
    """Ratings from 1 to 5: users and items differ in level, and agree a little in taste."""
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((num_users, num_items)) < density)
    levels = draw.normal(0, 0.7, num_users)[users] + draw.normal(0, 0.5, num_items)[items]
    tastes = (draw.normal(size=(num_users, 2)) @ draw.normal(size=(2, num_items)))[users, items]
    values = np.clip(np.round(3.4 + levels + taste * tastes + draw.normal(0, 0.8, len(users))), 1, 5)
    return pl.DataFrame({"user_id": users, "item_id": items, "rating": values})


def scaled(frame: pl.DataFrame, times: float, more: float = 0.0) -> Interactions:
    return from_frame(frame.with_columns(pl.col("rating") * times + more))


def rmse(model: Any, data: Interactions) -> float:
    return float(fit(model, data, protocol="rating", baselines=False).card.metrics["rmse"])


def built(kind: Any, data: Interactions, **options: Any) -> tuple[Any, Any]:
    """A model with its batches, as it is before the first step."""
    model = kind(hidden=5, from_biases=True, **options)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    return model, model.batches(data, seed=0)


@BOTH
@BOTH_SIDES
def test_it_begins_as_the_biases(kind: Any, side: str) -> None:
    data = scaled(ratings(), 1)
    model, _ = built(kind, data, side=side)
    bias = Bias()
    bias.build(bias.schema_for(data))
    bias.fit_directly(data)
    users, items = torch.arange(60).repeat_interleave(50), torch.arange(50).repeat(60)
    torch.testing.assert_close(model.predict_ratings(users, items), bias.predict_ratings(users, items))
    torch.testing.assert_close(model.limits, bias.limits)


@BOTH
@BOTH_SIDES
def test_predictions_are_the_formula(kind: Any, side: str) -> None:
    data = scaled(ratings(), 1)
    model, batches = built(kind, data, side=side)
    with torch.no_grad():
        model.decoder.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    model._is_stale = True
    mu, spread, unit, _, _ = model.units.tolist()
    left = torch.zeros(60, 50)
    known = Bias()
    known.build(known.schema_for(data))
    known.fit_directly(data)
    base = known.users[:, None] + known.items[None]
    left[data.users, data.items] = (torch.from_numpy(data.ratings) - base[data.users, data.items]) / unit
    shown = left.clone()
    if kind is AutoRec:
        shown[data.users, data.items] = (torch.from_numpy(data.ratings) - mu) / spread + 3
        act, out = lambda x: torch.sigmoid(x) - 0.5, torch.clone
    else:
        act = out = torch.tanh
    rows, targets = (shown.T, left.T) if side == "item" else (shown, left)
    codes = act(rows @ model.encoder + model.encoder_bias)
    outputs = out(codes @ model.decoder.T)
    want = base + unit * (outputs.T if side == "item" else outputs)
    users, items = torch.arange(60).repeat_interleave(50), torch.arange(50).repeat(60)
    got = model.predict_ratings(users, items).view(60, 50)
    torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.score_items(torch.arange(9)), got[:9], rtol=1e-4, atol=1e-4)
    if kind is AutoRec:
        whole = batches.whole()
        is_seen = torch.zeros(60, 50, dtype=torch.bool)
        is_seen[data.users, data.items] = True
        errors = (outputs - targets)[is_seen.T if side == "item" else is_seen].square().sum()
        torch.testing.assert_close(model.loss(whole).float(), errors, rtol=1e-4, atol=1e-4)


@BOTH
@BOTH_SIDES
def test_somebody_new_with_the_same_ratings_is_rated_alike(kind: Any, side: str) -> None:
    frame = ratings(density=0.5)
    model = kind(side=side, hidden=20).fit(from_frame(frame), protocol=protocol("rating", test_share=0.01))
    assert model.config.from_biases
    for user in (3, 11):
        rows = frame.filter(pl.col("user_id") == user)
        new = model.predict_for_user(rows["item_id"].to_list(), rows["rating"].to_list())
        pairs = [(user, item) for item in new["item_id"].to_list()]
        error = np.abs(new["rating"].to_numpy() - model.score(pairs))
        assert error.mean() < 0.25, error
    item = frame.filter(pl.col("item_id") == 7)
    new = model.predict_for_item(item["user_id"].to_list(), item["rating"].to_list())
    error = np.abs(new["rating"].to_numpy() - model.score([(user, 7) for user in new["user_id"].to_list()]))
    assert error.mean() < 0.25, error


@BOTH
def test_the_scale_of_the_ratings_does_not_matter(kind: Any) -> None:
    frame, options = ratings(), {"hidden": 20, "epochs": 6}
    plain = rmse(kind(**options), scaled(frame, 1))
    assert rmse(kind(**options), scaled(frame, 25)) == pytest.approx(25 * plain, rel=2e-3)
    assert rmse(kind(**options), scaled(frame, 0.25, -0.25)) == pytest.approx(plain / 4, rel=2e-3)


@BOTH
@pytest.mark.parametrize(("sizes", "density"), [((300, 300), 0.02), ((120, 80), 0.25)])
def test_at_the_defaults_it_is_no_worse_than_biases(kind: Any, sizes: tuple[int, int], density: float) -> None:
    data = from_frame(ratings(*sizes, density=density, taste=0.3))
    assert rmse(kind(), data) <= 1.02 * rmse(Bias(), data)


@needs_coat
@BOTH
def test_on_coat_it_is_no_worse_than_biases(kind: Any) -> None:
    with gzip.open(COAT, "rt") as file:
        matrix = np.loadtxt(file)
    users, items = np.nonzero(matrix)
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": matrix[users, items]}))
    assert rmse(kind(), data) <= 1.02 * rmse(Bias(), data)


@pytest.mark.parametrize("kind", [*MODELS, Bias, model_class("svd++")])
def test_the_card_says_what_is_served(kind: Any, tmp_path: Path) -> None:
    frame = ratings(80, 120, density=0.03)  # with users and items that only the validation or the test part holds
    data = scaled(frame, 25)
    rule = protocol("rating")
    split = rule.split(data)
    cold = (split.train.user_counts()[split.test.users] == 0) | (split.train.item_counts()[split.test.items] == 0)
    assert cold.any()
    options = {"hidden": 8} if kind in MODELS else {}
    card = fit(kind(**options), data, protocol=rule, out=tmp_path / "model", baselines=False).card
    assert card.config["refit"] or kind not in MODELS
    model = deeprec.load(tmp_path / "model")
    users, items = (
        ids.decode(codes) for ids, codes in ((data.user_ids, split.test.users), (data.item_ids, split.test.items))
    )
    pairs = pl.DataFrame({"user_id": users, "item_id": items})
    wanted = float(np.sqrt(np.square(model.score(pairs).clip(25, 125) - split.test.ratings).mean()))
    assert card.metrics["rmse"] == pytest.approx(wanted, rel=1e-6)
    pairs.write_csv(tmp_path / "pairs.csv")
    predict_pairs_file(model, tmp_path / "pairs.csv", tmp_path / "out.parquet")
    served = pl.read_parquet(tmp_path / "out.parquet")["rating"].to_numpy()
    assert card.metrics["rmse"] == pytest.approx(
        float(np.sqrt(np.square(served - split.test.ratings).mean())), rel=1e-6
    )


def test_given_options_win_and_a_config_stays() -> None:
    facts = Facts(1000, 100, 50, (1.0, 5.0), 1.1)
    model = create("autorec", l2=5.0, from_biases=False, batch_size=0)
    model.adapt(facts)
    assert (model.config.l2, model.config.from_biases, model.config.batch_size) == (5.0, False, 0)
    assert not {"l2", "from_biases", "batch_size"} & set(model.chosen)
    for name in ("autorec", "cfn", "cdae", "neumf", "gmf", "mlp", "mf", "ease"):
        kind = config_class(name)
        model = create(name, config=kind())
        model.adapt(facts)
        assert model.config == kind()
        assert model.chosen == ()


def test_options_that_do_not_go_with_the_biases() -> None:
    facts = Facts(1000, 100, 50, (1.0, 5.0), 1.1)
    with pytest.raises(ValueError, match=r"from_biases has no effect here.*output=identity"):
        AutoRecConfig(output="sigmoid", from_biases=True)
    model = AutoRec(output="sigmoid")
    model.adapt(facts)
    assert not model.config.from_biases
    for optimizer in ("rprop", "lbfgs"):
        model = AutoRec(optimizer=optimizer)
        model.adapt(facts)
        assert model.config.batch_size == 0
        assert model.config.epochs == AutoRecConfig().epochs


def test_steps_of_an_epoch_grow_with_the_data() -> None:
    sizes = []
    for items in (1, 3, 20, 100, 1000, 10**6):
        model = AutoRec()
        model.adapt(Facts(50 * items, 10 * items, items, (1.0, 5.0), 1.1))
        sizes.append(model.config.batch_size)
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, 64)
    assert dataclasses.replace(AutoRecConfig(), batch_size=0).batch_size == 0
