"""`fit_more`: later rows, new users, items and values; what was known keeps its place and its scores until a step."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec import data as deeprec_data
from deeprec.batches.log import LogBatch
from deeprec.contract import RATES, Seen, merged, pair_keys
from deeprec.data import Bag, Categorical, Cross, FeatureSchema, IdMap, Numeric, from_frame, synthetic, with_features
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.evaluate import evaluate, protocol, read_card
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.tasks import logits_of_rows
from deeprec.models import click_models, config_class, create, model_class, recommenders
from deeprec.registry import with_capabilities
from deeprec.train import fit_more
from deeprec.train.checkpoint import has_checkpoint
from deeprec.train.more import LaterInteractions, later_task

RATING = tuple(with_capabilities(RATES))
SMALL = {"autorec": {"hidden": 4}, "cfn": {"hidden": 4}, "cdae": {"hidden": 4}}
GRADIENT = [name for name in recommenders() if model_class(name).trains_by_gradient]
DIRECT = [
    name
    for name in recommenders()
    if not (model_class(name).trains_by_gradient or model_class(name).learns_from_validation or name in RATING)
]


@pytest.fixture(scope="module")
def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows in time: those of the first four fifths, and the rest, with users that come later."""
    frame = synthetic(num_users=80, num_items=60, num_interactions=1600, seed=1).to_frame().sort("timestamp")
    cut = int(0.8 * len(frame))
    # Some items come later too.
    return frame[:cut].filter(pl.col("item_id") > 3), frame[cut:]


def _options(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"epochs": 2} if model_class(name).trains_by_gradient else {}
    if "factors" in {field.name for field in dataclasses.fields(config_class(name))}:
        options["factors"] = 4
    return {**options, **SMALL.get(name, {})}


def _rule(name: str) -> str:
    return "rating" if name in RATING else "full"


def _later(name: str, frames: tuple[pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames) if name in RATING or model_class(name).reads_history else frames[1]


@pytest.fixture(scope="module")
def trained(frames: tuple[pl.DataFrame, pl.DataFrame]) -> dict[str, Any]:
    """Every model of users and items, fitted on the early rows; not to be changed."""
    return {name: create(name, **_options(name)).fit(frames[0], protocol=_rule(name)) for name in recommenders()}


def _scores(model: Any, users: int, items: int) -> torch.Tensor:
    return model.score_items(torch.arange(users))[:, :items].clone()


def _same(first: Any, second: Any) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# -- sizes, ids and what was known -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADIENT)
def test_known_scores_stay_until_a_step(name: str, trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained[name])
    users, items = len(model.user_ids), len(model.item_ids)
    before = _scores(model, users, items)
    task = later_task(model, _later(name, frames), _rule(name))
    assert task.build(model, torch.Generator().manual_seed(0))
    assert model.schema.num_users > users
    assert model.schema.num_items > items
    assert torch.equal(_scores(model, users, items), before)


@pytest.mark.parametrize("name", recommenders())
def test_new_users_and_items_are_served(name: str, trained: Any, frames: Any, tmp_path: Path) -> None:
    model, old = copy.deepcopy(trained[name]), trained[name]
    later = _later(name, frames)
    result = fit_more(model, later, protocol=_rule(name))
    for ids, before, column in ((model.user_ids, old.user_ids, "user_id"), (model.item_ids, old.item_ids, "item_id")):
        assert ids.values[: len(before)].to_list() == before.values.to_list()
        assert set(ids.values) == set(before.values) | set(later[column])
    new_users = model.user_ids.values[len(old.user_ids) :].to_list()
    new_item = model.item_ids.values[-1]
    assert new_users
    met = pl.concat(frames).select("user_id", "item_id")
    for user in (new_users[0], old.user_ids.values[0]):
        shown = model.recommend([user], k=60)
        assert not set(shown["item_id"]) & set(met.filter(pl.col("user_id") == user)["item_id"])
        assert len(shown) == 60 - met.filter(pl.col("user_id") == user)["item_id"].n_unique()
    if "similar_items" in model.capabilities:
        assert len(model.similar_items([new_item], k=3)) == 3
    again = deeprec.load(model.save(tmp_path / "more"))
    assert again.recommend(new_users, k=5).equals(model.recommend(new_users, k=5))
    assert model.evaluate() == result.card.metrics
    assert "start_sha256" in result.card.data


@pytest.mark.parametrize("name", DIRECT)
def test_models_fitted_directly_learn_from_all_that_was_met(name: str, trained: Any, frames: Any) -> None:
    model, old = copy.deepcopy(trained[name]), trained[name]
    task = later_task(model, _later(name, frames), "full")
    fit_more(model, task)
    plain = create(name, config=model.config).build(model.schema)  # what the earlier rows chose stays
    train = task.train(0, joined=model.config.refit)
    plain.fit_directly(train)
    _same(model, plain)
    known = pair_keys(old.seen, model.schema.num_items)
    assert np.isin(known, train.pair_keys()).all()
    assert len(train) > len(known)


def test_ids_grow_behind_the_old_ones() -> None:
    ids = IdMap([5, 3], "user")
    assert ids.grown([9, 3, 1, 9]).values.to_list() == [5, 3, 9, 1]
    assert ids.grown([]).values.to_list() == [5, 3]
    narrow = IdMap(pl.Series([1, 2], dtype=pl.Int8), "user")
    assert narrow.grown([1000]).values.to_list() == [1, 2, 1000]
    assert IdMap(["b"], "item").grown(["a", "b"]).encode(["a"]).tolist() == [1]


def test_rows_of_what_was_met_are_merged() -> None:
    first = Seen(np.array([0, 2]), np.array([1, 4], dtype=np.int32))
    second = Seen(np.array([0, 1, 3]), np.array([1, 0, 2], dtype=np.int32))
    both = merged(first, second, 3, 5)
    assert both.offsets.tolist() == [0, 2, 4, 4]
    assert both.items.tolist() == [1, 4, 0, 2]


# -- what is learned from, and what is measured ------------------------------------------------------------------------


def test_negatives_are_nothing_that_was_met_before(trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained["gmf"])
    task = later_task(model, frames[1], "full")
    task.build(model, torch.Generator().manual_seed(0))
    train = task.train(0)
    met = set(pair_keys(trained["gmf"].seen, train.num_items).tolist()) - set(task.data.pair_keys().tolist())
    drawn: set[int] = set()
    for epoch in range(5):
        for batch in model.batches(train, 0).epoch(epoch):
            negatives = batch.users.long().unsqueeze(1) * train.num_items + batch.items[:, 1:].long()
            drawn |= set(negatives.flatten().tolist())
    assert not drawn & (met | set(train.pair_keys().tolist()))
    assert len(train) == len(frames[1]) - len(task.split.validation) - len(task.split.test)


@pytest.mark.parametrize("rule", ["full", "ncf"])
def test_held_out_rows_are_new_and_rank_against_what_was_never_met(rule: str, trained: Any, frames: Any) -> None:
    model, both = trained["gmf"], pl.concat(frames)
    task = later_task(model, both, protocol(rule, **({"candidates": 10} if rule == "ncf" else {})))
    known = pair_keys(model.seen, task.data.num_items)
    for part in (task.split.validation, task.split.test):
        assert len(part)
        assert not np.isin(part.pair_keys(), known).any()
    assert np.isin(known, task.split.train.pair_keys()).all()
    if rule == "ncf":
        users = np.repeat(task.split.test.users.astype(np.int64), 10)
        drawn = users * task.data.num_items + task.split.test_negatives.ravel()
        assert not np.isin(drawn, task.data.pair_keys()).any()
        apart = later_task(model, frames[1], protocol("ncf", candidates=10)).split
        users = np.repeat(apart.test.users.astype(np.int64), 10)
        drawn = users * task.data.num_items + apart.test_negatives.ravel()
        assert not np.isin(drawn, known).any()


def test_items_held_out_whole_are_new(trained: Any, frames: Any) -> None:
    # The items of the early rows that no early row of the model has.
    known = frames[0].filter(pl.col("item_id") < 40)
    model = create("gmf", factors=4, epochs=1).fit(known, protocol="full")
    task = later_task(model, pl.concat(frames), "cold-items")
    for part in (task.split.validation, task.split.test):
        assert len(part)
        assert not np.isin(part.items, model.seen.items).any()
    assert not np.isin(task.split.test.items, task.split.train.items).any()


def test_a_worse_epoch_is_never_chosen(trained: Any, frames: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(trained["neumf"])
    task = later_task(model, frames[1], "full")
    start = copy.deepcopy(model)
    task.build(start, torch.Generator().manual_seed(0))
    figures = iter([0.5, 0.4, 0.3, 0.5])  # at the start, after two epochs, of the test part
    monkeypatch.setattr(task, "figures", lambda model, part: {"hr@10": next(figures)})
    result = fit_more(model, task, epochs=2)
    assert result.card.epoch == 0
    assert [entry["hr@10"] for entry in result.history] == [0.5, 0.4, 0.3]
    _same(model, start)


def test_options_stay_but_for_epochs_and_rate(trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained["gmf"]).fit_more(frames[1], epochs=1, lr=0.01, protocol="full")
    assert (model.config.epochs, model.config.lr, model.config.factors) == (1, 0.01, 4)
    with pytest.raises(TypeError, match=r"gmf.fit_more: unknown option 'factors'; it is an option of the model"):
        model.fit_more(frames[1], factors=8)
    with pytest.raises(ValueError, match="epochs must be >= 1, got 0"):
        model.fit_more(frames[1], epochs=0)


def test_rows_without_a_new_one_are_trained_on(trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained["gmf"])
    result = fit_more(model, frames[0], protocol="full", epochs=1)
    assert len(model.user_ids) == len(trained["gmf"].user_ids)
    assert len(result.history) == 2


def test_side_information_goes_with_its_rows(frames: Any) -> None:
    def sided(frame: pl.DataFrame, shift: float = 0.0) -> Any:
        data = from_frame(frame)
        ids = data.item_ids.values
        return with_features(data, items=pl.DataFrame({"item_id": ids, "x": ids.cast(pl.Float64) / 100 + shift}))

    model = create("cfn", hidden=4, epochs=1, features=("x",)).fit(sided(frames[0]), protocol="rating")
    changed = sided(pl.concat(frames[::-1]), shift=1.0)
    with pytest.raises(ValueError, match="cfn: fit_more: features of known items must be as they were"):
        model.fit_more(changed, protocol="rating")
    model.fit_more(sided(pl.concat(frames[::-1])), protocol="rating")  # in another order
    expected = model.item_ids.values.cast(pl.Float64) / 100
    assert torch.allclose(model.side_information[:, 0], torch.tensor(expected.to_list()))


# -- clicks ------------------------------------------------------------------------------------------------------------

SCHEMA = FeatureSchema(
    (
        Categorical("who"),
        Categorical("what", num_buckets=50),
        Numeric("age", transform="standardise"),
        Bag("tags"),
        Cross(("who", "what"), num_buckets=20),
    ),
    label="click",
)


def _log(rows: int, people: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    who, what = rng.integers(0, people, rows), rng.integers(0, 30, rows)
    tags = ["|".join(f"t{tag}" for tag in rng.integers(0, people // 2, 2)) for _ in range(rows)]
    click = (rng.random(rows) < 0.2 + 0.5 * (who % 2)).astype(np.int8)
    return pl.DataFrame({"who": who, "what": what, "age": rng.normal(size=rows), "tags": tags, "click": click})


EARLY, LATE = _log(600, 10, 0), _log(600, 24, 1)


def _click_options(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 64}
    if "factors" not in config_class(name).unused:
        options["factors"] = 4
    return {**options, "hidden": (8,)} if hasattr(config_class(name), "hidden") else options


@pytest.mark.parametrize("name", [n for n in click_models() if model_class(n).trains_by_gradient])
def test_logits_of_known_rows_stay_until_a_step(name: str) -> None:
    model = create(name, **_click_options(name)).fit(EARLY, SCHEMA)
    (rows,) = model.encoder.stream(EARLY)
    before, sizes = logits_of_rows(model, rows), {field.name: field.size for field in model.inputs.fields}
    task = later_task(model, LATE)
    assert task.build(model, torch.Generator().manual_seed(0))
    (again,) = model.encoder.stream(EARLY)
    assert {field.name: field.size for field in model.inputs.fields}["who"] > sizes["who"]
    assert np.array_equal(again.ids, rows.ids)
    np.testing.assert_allclose(logits_of_rows(model, again), before, atol=1e-6)


def test_a_click_model_learns_new_values(tmp_path: Path) -> None:
    model = create("fm", epochs=5, factors=4, lr=0.05, batch_size=64).fit(EARLY, SCHEMA)
    size = model.inputs.fields[0].size
    result = fit_more(model, LATE, out=tmp_path / "more")
    assert model.inputs.fields[0].size > size
    assert result.card.metrics["auc"] > 0.65
    again = deeprec.load(tmp_path / "more")
    fresh = LATE.filter(pl.col("who") >= 10).drop("click")
    assert np.array_equal(again.predict(fresh), model.predict(fresh))
    assert model.evaluate(load_clicks(LATE, encoder=model.encoder)) == result.card.metrics
    assert read_card(tmp_path / "more").data["start_sha256"] == result.card.data["start_sha256"]


def test_only_train_rows_grow_an_encoder() -> None:
    model = create("lr", epochs=1).fit(EARLY, SCHEMA)
    late = LATE.with_columns(who=pl.when(pl.int_range(pl.len()) < 550).then(pl.col("who") % 10).otherwise(999))
    log = load_clicks(late, holdout="tail", shares=(0.1, 0.1), encoder=model.encoder)
    assert model.encoder.ids_of("who", [999]).tolist() == log.encoder.ids_of("who", [999]).tolist() == [0]


def test_a_converted_log_goes_on_with_the_encoder_of_the_model(tmp_path: Path) -> None:
    model = create("lr", epochs=1).fit(EARLY, SCHEMA)
    log = load_clicks(LATE, directory=tmp_path / "log", encoder=model.encoder)
    opened = load_clicks(LATE, directory=tmp_path / "log", encoder=model.encoder)
    assert opened.sha256 == log.sha256
    with pytest.raises(ValueError, match="holds the log of other rows, another schema or another split"):
        load_clicks(LATE, SCHEMA, directory=tmp_path / "log")
    anew = load_clicks(LATE, SCHEMA)
    assert anew.sha256 != log.sha256
    with pytest.raises(ValueError, match="must be encoded by the encoder of lr, grown, got one that was fitted anew"):
        fit_more(model, anew)
    batches = fit_more(model, str(tmp_path / "log")).model.batches(opened.parts["train"], 0)
    assert isinstance(next(iter(batches.epoch(0))), LogBatch)


# -- runs --------------------------------------------------------------------------------------------------------------


class _Stop(Exception):
    pass


def _after_an_epoch(progress: Any) -> None:
    if progress.metrics is not None:
        raise _Stop


@pytest.mark.parametrize("name", ["neumf", "cdae", "deepfm"])
def test_an_interrupted_run_ends_bit_for_bit_the_same(name: str, trained: Any, frames: Any, tmp_path: Path) -> None:
    rows: Any = frames[1]
    if name == "deepfm":
        model, rows = create(name, **_click_options(name), dropout=0.3).fit(EARLY, SCHEMA), LATE
    else:
        model = copy.deepcopy(trained[name])
    whole = fit_more(copy.deepcopy(model), rows, epochs=3, out=tmp_path / "whole")
    before = copy.deepcopy(model)
    with pytest.raises(_Stop):
        fit_more(model, rows, epochs=3, out=tmp_path / "parts", on_progress=_after_an_epoch)
    _same(model, before)  # as it was
    assert model.config == before.config
    assert has_checkpoint(tmp_path / "parts")
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"interrupted run of other settings: data.start_sha256 is \w{12} there"):
        fit_more(other, rows, epochs=3, out=tmp_path / "parts", resume=True)
    parts = fit_more(model, rows, epochs=3, out=tmp_path / "parts", resume=True)
    _same(parts.model, whole.model)
    assert parts.card.metrics == whole.card.metrics
    finished = fit_more(before, rows, epochs=3, out=tmp_path / "parts", resume=True)
    assert finished.was_finished
    _same(finished.model, whole.model)


def test_a_run_that_fails_leaves_the_model_as_it_was(trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained["mf"])
    with pytest.raises(_Stop):
        model.fit_more(frames[1], protocol="full", epochs=7, on_progress=_after_an_epoch)
    _same(model, trained["mf"])
    assert model.config == trained["mf"].config
    assert len(model.user_ids) == len(trained["mf"].user_ids) == model.schema.num_users
    user = model.user_ids.values[0]
    assert model.recommend([user], k=5).equals(trained["mf"].recommend([user], k=5))
    assert model.earlier is None


def test_a_fresh_card_says_nothing_of_a_start(trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained["gmf"]).fit_more(frames[1], protocol="full", epochs=1)
    assert isinstance(model._fitted_on, LaterInteractions)
    result = deeprec.train.fit(model, frames[0], protocol="full")
    assert "start_sha256" not in result.card.data
    assert len(result.history) == model.config.epochs  # no epoch 0
    assert model.earlier is None


def test_another_protocol_measures_the_same_later_rows(trained: Any, frames: Any) -> None:
    model = copy.deepcopy(trained["gmf"]).fit_more(frames[1], protocol="full", epochs=1)
    task = model._fitted_on
    other = protocol("ncf", candidates=10)
    expected = evaluate(model, task.under(other).split, task.under(other).protocol)
    assert model.evaluate(other) == expected


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_does_not_go_with_the_model_is_named(trained: Any, frames: Any) -> None:
    with pytest.raises(ValueError, match=r"gmf: the model has no data yet; call fit\(data\)"):
        create("gmf").fit_more(frames[1])
    with pytest.raises(ValueError, match=r"gmf has no id maps; call fit\(data\)"):
        create("gmf").build(trained["gmf"].schema).fit_more(frames[1])
    model = trained["gmf"]
    with pytest.raises(
        TypeError, match=r"fit_more: the data must have the ids of the model .* are integers, got strings"
    ):
        model.fit_more(frames[1].with_columns(pl.col("user_id").cast(pl.String)))
    with pytest.raises(TypeError, match=r"gmf.fit_more: unknown option 'schema'; leave it out"):
        model.fit_more(frames[1], SCHEMA)
    with pytest.raises(
        ValueError, match=r"autorec needs all ratings of its users and items, got .* without .* together"
    ):
        trained["autorec"].fit_more(frames[1], protocol="rating")
    reader = copy.deepcopy(model)
    reader.reads_history = True
    with pytest.raises(ValueError, match=r"gmf needs all that users did, in order, got .* pass old and new rows"):
        reader.fit_more(frames[1])
    with pytest.raises(ValueError, match="items held out whole must be new to the model, got none in 'frame'"):
        model.fit_more(frames[0], protocol="cold-items")
    without = copy.deepcopy(trained["popularity"])
    without.seen = None
    with pytest.raises(ValueError, match="popularity must know what users met before"):
        without.fit_more(frames[1])


def test_what_does_not_go_with_a_click_model_is_named() -> None:
    model = create("lr", epochs=1).fit(EARLY, SCHEMA)
    other = FeatureSchema((Categorical("who"),), label="click")
    with pytest.raises(ValueError, match=r"schema must be that of lr, model.encoder.schema, got another"):
        model.fit_more(LATE, other)
    with pytest.raises(ValueError, match="must have the schema that lr was trained with"):
        model.fit_more(load_clicks(LATE, other))
    with pytest.raises(ValueError, match="negative_rate must stay 1"):
        model.fit_more(LATE, protocol=ClickProtocol(negative_rate=0.5))
    with pytest.raises(ValueError, match="what"):
        model.fit_more(LATE.drop("what"))
    model.fit_more(LATE, SCHEMA)
    with pytest.raises(ValueError, match="has no encoder"):
        create("lr").build(model.inputs).fit_more(LATE)
    with pytest.raises(ValueError, match="schema must be that of the encoder"):
        load_clicks(LATE, other, encoder=model.encoder)


def test_weights_that_do_not_fit_are_refused(trained: Any) -> None:
    model = create("gmf", factors=4).build(trained["gmf"].schema)
    wide = create("gmf", factors=5).build(trained["gmf"].schema).state_dict()
    with pytest.raises(ValueError, match=r"must be as large as it was or larger, got \(\d+, 4\) for \(\d+, 5\)"):
        model.begin_from(wide, None)
    with pytest.raises(ValueError, match="other must be as large as it was or larger, got None"):
        model.begin_from({**trained["gmf"].state_dict(), "other": torch.zeros(1)}, None)


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(deeprec_data.find("ml-1m") is None, reason="DEEPREC_DATA has no ml-1m")
def test_later_ratings_of_ml_1m_help() -> None:
    """The last fifth of every known user's ratings arrives later, and with it users who had none.

    The file here has the place of a rating among those of its user, no time.
    """
    frame = deeprec_data.load("ml-1m").to_frame().filter(pl.col("user_id") % 10 == 0)
    place = pl.col("timestamp").rank("ordinal").over("user_id") / pl.len().over("user_id")
    frame = frame.with_columns(is_late=(place > 0.8) | (pl.col("user_id") <= 600))
    early, late = (part.drop("is_late") for part in (frame.filter(~pl.col("is_late")), frame.filter("is_late")))
    model = create("mf", factors=16, epochs=5).fit(early, protocol="full")
    old = copy.deepcopy(model)
    task = later_task(model, late, "ncf")
    task.build(old, torch.Generator().manual_seed(0))
    known = np.arange(len(model.user_ids))
    fit_more(model, task)
    assert len(model.user_ids) == len(known) + 60
    before, after = (evaluate(each, task.split, task.protocol, users=known) for each in (old, model))
    assert after["hr@10"] >= before["hr@10"]
    assert after["ndcg@10"] >= before["ndcg@10"]
    shown = model.recommend([10, 600], k=10)
    assert len(shown) == 20
    new = task.split.test.user_counts()[len(known) :]
    figures = evaluate(model, task.split, task.protocol, users=np.arange(len(known), len(known) + len(new)))
    assert figures["hr@10"] > 0.2  # 0.1 by chance
