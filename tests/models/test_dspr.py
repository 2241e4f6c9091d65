"""DSPR: its losses in dense float64, the tower that both sides share, tags that are not there, later tags, folders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor
from torch.nn import functional as F

import deeprec
from deeprec.data import Folksonomy, IdMap, Interactions, from_frame
from deeprec.evaluate import protocol
from deeprec.models import DSPR, Schema, TagCosine
from deeprec.nn.scoring import score_items

TINY: dict[str, Any] = {"layers": (12, 8), "factors": 6}


def folksonomy(seed: int = 0, users: int = 40, items: int = 60, kinds: int = 4) -> Folksonomy:
    """Users and items of a few kinds, each with tags of its own; users meet items of their kind most."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        odds = np.where(np.arange(items) % kinds == user % kinds, 1.0, 0.05)
        for item in draw.choice(items, 10, replace=False, p=odds / odds.sum()):
            tags = {int(item) % kinds * 3 + int(tag) for tag in draw.integers(0, 3, 2)}
            rows += [(user, int(item), f"t{tag}") for tag in tags]
    made = from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "tag"], orient="row"), tag="tag")
    assert isinstance(made, Folksonomy)
    return made


def with_strangers(data: Folksonomy) -> Folksonomy:
    """With a user and an item that have rows, but no tag."""
    frame = data.to_frame()
    more = pl.DataFrame({"user_id": [999, 999, 0], "item_id": [0, 1, 888], "tag": [None] * 3}, schema=frame.schema)
    return from_frame(pl.concat([frame, more]), tag="tag")  # type: ignore[return-value]


def built(data: Interactions, **options: Any) -> DSPR:
    model = DSPR(**{**TINY, **options})
    return model.build(model.schema_for(data), torch.Generator().manual_seed(0))


def dense_vectors(model: DSPR, counts: np.ndarray) -> Tensor:
    """f(x) by the formula, in float64."""
    x = torch.from_numpy({"count": counts, "log": np.log1p(counts)}[model.config.weighting]).double()
    p = {name: value.detach().double() for name, value in model.tower.named_parameters()}
    h = torch.tanh(x @ p["terms"] + p["bias"])
    for layer in range(len(model.config.layers)):
        h = torch.tanh(h @ p[f"layers.{layer}.weight"].T + p[f"layers.{layer}.bias"])
    return h


def counts(data: Folksonomy, side: str) -> np.ndarray:
    terms = data.profiles(side)  # type: ignore[arg-type]
    dense = np.zeros((len(terms), terms.size))
    dense[np.repeat(np.arange(len(terms)), np.diff(terms.offsets)), terms.ids] = terms.weights
    return dense


@pytest.mark.parametrize("include_positive", [True, False])
@pytest.mark.parametrize("negatives", ["full", "sampled", "row"])
def test_loss_is_the_softmax_of_cosines_over_the_candidates(negatives: str, include_positive: bool) -> None:
    data = folksonomy()
    options = {"negatives": negatives, "include_positive": include_positive, "mask_known": False, "gamma": 3.0}
    options |= {} if negatives == "full" else {"num_negatives": 7}
    options |= {"log_q": "none"} if negatives == "sampled" else {}
    model = built(data, weighting="count", batch_size=16, **options)
    batch = next(iter(model.batches(data, seed=1).epoch(1)))
    u, v = (F.normalize(dense_vectors(model, counts(data, side))) for side in ("user", "item"))
    logits = 3.0 * u[batch.users] @ v.T
    expected = []
    for row, item in enumerate(batch.items.tolist()):
        if negatives == "full":
            drawn = set(range(data.num_items))
        elif negatives == "row":
            drawn = [int(batch.candidates[at]) for at in batch.negatives[row]]
        else:
            drawn = {int(j) for j, q in zip(batch.candidates, batch.log_q, strict=True) if q == 0}
        others = [j for j in drawn if j != item] + [item] * include_positive
        expected.append(logits[row, others].logsumexp(0) - logits[row, item])
    loss = model.loss(batch)
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_users_and_items_share_the_tower_and_score_by_the_cosine() -> None:
    data = folksonomy()
    model = built(data)
    model.batches(data, seed=1)
    u, v = (F.normalize(dense_vectors(model, counts(data, side))) for side in ("user", "item"))
    scores = model.score_items(torch.arange(data.num_users))
    torch.testing.assert_close(scores.double(), u @ v.T, rtol=1e-4, atol=1e-5)
    assert [name for name in model.state_dict() if "tower" in name and "terms" in name] == ["tower.terms"]


@pytest.mark.parametrize("weighting", ["count", "l2", "binary", "tf-idf"])
def test_training_lowers_the_loss_and_scores_what_is_held_out_higher(weighting: str) -> None:
    data, rule = folksonomy(), protocol("dspr", cutoffs=(5,))
    options = {"weighting": weighting, "num_negatives": 20, "batch_size": 32}
    model = DSPR(**TINY, **options, epochs=6, lr=0.01).fit(data, protocol=rule, seed=1)
    split, start = rule.split(data), built(data, **options)
    batch = next(iter(start.batches(split.train, seed=1).epoch(1)))
    with torch.no_grad():
        assert model.loss(batch) < 0.9 * start.loss(batch)
    scores = model.score_items(torch.arange(data.num_users)).numpy()
    assert scores[split.test.users, split.test.items].mean() > scores.mean() + 0.08


def test_without_tags_and_before_the_first_step_all_cosines_are_0() -> None:
    data = with_strangers(folksonomy())
    model = built(data)
    model.batches(data, seed=1)
    scores = model.score_items(torch.arange(data.num_users))
    assert torch.isfinite(scores).all()
    assert (scores[int(data.user_ids.encode([999])[0])] == 0).all()
    assert (scores[:, int(data.item_ids.encode([888])[0])] == 0).all()
    trained = DSPR(**TINY, epochs=2).fit(data, protocol="dspr")
    assert torch.isfinite(trained.score_items(torch.arange(data.num_users))).all()
    assert len(trained.recommend([999], k=1000)) == data.num_items - 2  # more than the catalogue


def test_pairs_count_once_and_assignments_as_often_as_tags() -> None:
    data = folksonomy()
    assert built(data).batches(data, seed=1).num_examples == len(data.pairs())
    assert built(data, positives="assignments").batches(data, seed=1).num_examples == len(data)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 0.0}, "gamma must be > 0, got 0.0"),
        ({"gamma": -1.0}, "gamma must be > 0, got -1.0"),
        ({"positives": "tags"}, "positives must be"),
        ({"weighting": "raw"}, "weighting must be"),
        ({"user_inputs": ("id",)}, "user_inputs"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSPR(**option)


def test_data_of_one_tag_has_equal_profiles_and_data_without_any_is_refused() -> None:
    data = folksonomy()
    one = from_frame(data.to_frame().with_columns(tag=pl.lit("all")), tag="tag", duplicates="keep")
    scores = DSPR(**TINY, weighting="binary", epochs=1).fit(one).score_items(torch.tensor([0]))
    torch.testing.assert_close(scores, torch.ones_like(scores))
    with pytest.raises(ValueError, match="dspr: rows must have tags, got none in frame"):
        DSPR(**TINY).fit(data.of_pairs(data.users, data.items))


def test_without_a_column_of_tags_each_item_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    data = folksonomy().pairs()
    model = DSPR(**TINY, epochs=1).fit(data)
    assert "dspr: frame has no tags, so each item is its own tag" in caplog.text
    assert model.tag_ids is None
    assert model.tower.size == data.num_items == DSPR(Schema(3, data.num_items), **TINY).tower.size
    with pytest.raises(ValueError, match="recommend_for_tags: dspr was fitted on data without tags"):
        model.recommend_for_tags(["t1"])


@pytest.mark.parametrize("kind", [DSPR, TagCosine])
def test_somebody_known_by_tags_alone_is_served_also_from_the_folder(kind: type[Any], tmp_path) -> None:
    options = {**TINY, "epochs": 6, "lr": 0.01} if kind is DSPR else {}
    model = kind(**options).fit(folksonomy(), protocol="dspr")
    best = model.recommend_for_tags({"t3": 5, "t4": 2}, k=6)
    assert best.columns == ["rank", "item_id", "score"]
    assert best["item_id"].n_unique() == 6
    if kind is TagCosine:
        assert (best["item_id"] % 4 == 1).all()
    else:
        model.build_index()
        assert_frame_equal(model.recommend_for_tags({"t3": 5, "t4": 2}, k=6, approximate=True), best)
    model.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    assert loaded.recommend_for_tags({"t3": 5, "t4": 2}, k=6).equals(best)
    only = loaded.recommend_for_tags(["t3", "t3", "t4"], k=99, allow=[1, 5, 9], deny=[5])
    assert set(only["item_id"]) == {1, 9}
    for tags, message in (([], "at least one"), (["no"], "'no'"), ({"t3": 0}, "must be > 0, got")):
        with pytest.raises(ValueError, match=message):
            loaded.recommend_for_tags(tags)


@pytest.mark.parametrize("weighting", ["log", "tf-idf"])
def test_the_tags_of_a_known_user_give_the_scores_of_that_user(weighting: str) -> None:
    data = folksonomy()
    model = DSPR(**TINY, epochs=1, weighting=weighting).fit(data, protocol="dspr")
    train = protocol("dspr").split(data).train
    state = model.tag_rows(train.profiles("user").take(np.array([3, 5])))
    torch.testing.assert_close(score_items(model.scorer(state)), model.score_items(torch.tensor([3, 5])))


def test_a_new_user_has_the_sum_of_the_vectors_of_the_items() -> None:
    data = folksonomy()
    model = DSPR(**TINY, epochs=1).fit(data, protocol="dspr")
    rows = model.history_rows(torch.tensor([0, 2, 2]), torch.tensor([4, 7]))
    v = model.item_vectors()
    torch.testing.assert_close(score_items(model.scorer(rows))[0], F.normalize(v[4] + v[7], dim=0) @ v.T)
    assert (score_items(model.scorer(rows))[1] == 0).all()


def test_later_tags_find_their_rows_by_name() -> None:
    data = folksonomy()
    early = data.take(np.arange(len(data)) < 300)
    names = IdMap(pl.Series(["tag", *data.tag_ids.values]), "tag")  # all others move by one
    later = replace(data, tags=data.tags + np.int32(1), tag_ids=names)
    model = DSPR(**TINY, epochs=1).fit(early, protocol="dspr", seed=1)
    before = model.tower.terms.detach().clone()
    model.fit_more(later, epochs=1, lr=1e-9, protocol="dspr", seed=1)
    assert model.tag_ids.values.to_list() == names.values.to_list()
    torch.testing.assert_close(model.tower.terms[1:][early.tag_counts() > 0], before[early.tag_counts() > 0])
    with pytest.raises(ValueError, match="dspr needs all tags of its users and items"):
        model.fit_more(data.take(np.arange(300, len(data))))
    fewer = replace(later, tags=np.minimum(later.tags, 3), tag_ids=IdMap(names.values[:4], "tag"))
    with pytest.raises(ValueError, match=r"must hold all tags of the model, got no 't\d+'"):
        model.fit_more(fewer)
    with pytest.raises(ValueError, match="the data must have tags, as the model's did"):
        model.fit_more(later.pairs())


def test_items_that_come_later_have_a_vector_by_their_tags(tmp_path) -> None:
    data = folksonomy()
    model = DSPR(**TINY, epochs=1).fit(data, protocol="dspr")
    rows = pl.DataFrame({"item_id": [700, 700, 701, 700], "tag": ["t1", "t2", "t5", "t1"]})
    expected = [
        F.normalize(dense_vectors(model, one), dim=1) for one in tags_as_counts(model, [[(1, 2), (2, 1)], [(5, 1)]])
    ]
    model.add_items(rows)
    assert len(model.item_ids) == data.num_items + 2
    torch.testing.assert_close(model.item_vectors()[-2:].double(), torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert set(model.recommend([1], k=99, allow=[700, 701])["item_id"]) == {700, 701}
    model.save(tmp_path / "model")
    assert deeprec.load(tmp_path / "model").recommend([1], k=99).equals(model.recommend([1], k=99))
    for frame, message in (
        (rows, "every item_id must be new, got 700, which is known"),
        (rows.rename({"tag": "label"}), "must have a column tag, got item_id, label"),
        (rows.with_columns(item_id=pl.lit(5000), tag=pl.lit("new")), "'new'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_items(frame)
    with pytest.raises(ValueError, match="fitted on data without tags"):
        DSPR(**TINY, epochs=1).fit(data.pairs()).add_items(rows)


def tags_as_counts(model: DSPR, items: list[list[tuple[int, int]]]) -> list[np.ndarray]:
    """Profiles [1, num_tags] of items with these (number of the name, count)."""
    profiles = []
    for tags in items:
        row = np.zeros((1, len(model.tag_ids)))
        for number, count in tags:
            row[0, int(model.tag_ids.encode([f"t{number}"])[0])] = count
        profiles.append(row)
    return profiles
