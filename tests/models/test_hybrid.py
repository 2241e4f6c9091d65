"""Hybrid: what is blended and learnt, against NumPy and by hand; the models it refuses; its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.data import Interactions, from_frame, load, with_features
from deeprec.evaluate import evaluate, protocol
from deeprec.models import Hybrid, create
from deeprec.models.hybrid import _Examples, _searched

RULE = protocol("random", seed=0)


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Four groups of ten items; each user has a group, and of it what is popular."""
    draw = np.random.default_rng(0)
    users, items = (part.ravel() for part in np.meshgrid(np.arange(80), np.arange(40)))
    chance = np.where(users % 4 == items % 4, 0.7, 0.08) * (1.2 - items / 60)
    is_met = draw.random(len(users)) < chance
    made = from_frame(pl.DataFrame({"user_id": users[is_met] + 100, "item_id": items[is_met]}))
    table = pl.DataFrame({"user_id": np.arange(80) + 100, "group": np.arange(80) % 4, "age": draw.random(80)})
    return with_features(made, users=table.with_columns(pl.col("group").cast(pl.String)))


def _fitted(name: str, data: Interactions, **options: object) -> object:
    return create(name, refit=False, **options).fit(data, protocol=RULE, baselines=False)


@pytest.fixture(scope="module")
def parts(data: Interactions) -> list[object]:
    return [_fitted("item-knn", data), _fitted("popularity", data), _fitted("als", data, factors=8)]


def test_scores_are_standardised_over_what_was_not_met(data: Interactions, parts: list[object]) -> None:
    blend = Hybrid(parts).fit(data, protocol=RULE, baselines=False)
    users = torch.arange(10)
    expected = np.zeros((10, 40))
    offsets, items = RULE.split(data).train.csr()
    for weight, model in zip(blend.weights.tolist(), parts, strict=True):
        scores = model.score_items(users).double().numpy()
        for user in range(10):
            is_new = np.ones(40, bool)
            is_new[items[offsets[user] : offsets[user + 1]]] = False
            new = scores[user][is_new]
            expected[user, is_new] += weight * (new - new.mean()) / new.std()
    ours = blend.score_items(users).numpy()
    is_told = expected != 0
    np.testing.assert_allclose(ours[is_told], expected[is_told], atol=1e-4)


def test_ranks_are_fused_as_the_paper_says(data: Interactions, parts: list[object]) -> None:
    blend = Hybrid(parts[:2], blend="ranks", rank_constant=10.0).fit(data, protocol=RULE, baselines=False)
    offsets, items = RULE.split(data).train.csr()
    met = items[offsets[3] : offsets[4]]
    expected = np.zeros(40)
    for model in parts[:2]:
        scores = model.score_items(torch.tensor([3]))[0].numpy().astype(float)
        scores[met] = -np.inf
        expected += [0.5 / (10 + 1 + (scores > each).sum()) for each in scores]
    np.testing.assert_allclose(blend.score_items(torch.tensor([3]))[0].numpy(), expected, rtol=1e-6)


def test_the_model_that_knows_gets_the_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    liked = torch.randint(50, (200,), generator=draw)
    scores = torch.randn(2, 200, 50, generator=draw)
    scores[1, torch.arange(200), liked] += 2  # the second has something to say, the first nothing
    bounds, nothing = torch.arange(201), torch.zeros(200, 50, dtype=torch.bool)
    examples = _Examples(scores, nothing, torch.zeros(200, 0), bounds, liked, 10)
    blend = create("hybrid")
    blend.build(deeprec.models.Schema(3, 4))
    weights = blend._likeliest(examples)
    assert float(weights[1]) > 8 * abs(float(weights[0]))
    found = _searched(weights, examples)
    every = slice(0, 200)
    assert (
        examples.gains(scores[1], every).mean()
        <= examples.gains(torch.einsum("m,mbn->bn", found, scores), every).mean()
    )
    # The NDCG by hand: of the item at rank r it is 1 / log2(1 + r).
    ranks = (scores[1] > scores[1, torch.arange(200), liked].unsqueeze(1)).sum(1) + 1
    expected = torch.where(ranks <= 10, 1 / (ranks + 1).float().log2(), torch.zeros(()))
    torch.testing.assert_close(examples.gains(scores[1], every), expected)


def test_the_loss_is_least_at_the_learnt_weights() -> None:
    blend = create("hybrid", members=("als", "bpr", "ease"))
    draw = torch.Generator().manual_seed(1)
    scores, liked = (
        torch.randn(3, 30, 20, generator=draw, dtype=torch.float64),
        torch.randint(20, (30,), generator=draw),
    )
    scores[0, torch.arange(30), liked] += 1
    examples = _Examples(scores, torch.zeros(30, 20, dtype=torch.bool), torch.zeros(30, 0), torch.arange(31), liked, 5)
    blend.build(deeprec.models.Schema(3, 4))
    blend.double()
    weights = blend._likeliest(examples).requires_grad_()
    loss = examples.loss(torch.einsum("m,mbn->bn", weights, scores), slice(0, 30)) + 0.0005 * weights.square().sum()
    loss.backward()
    assert float(weights.grad.abs().max()) < 1e-4


@pytest.mark.parametrize("blend", ["weights", "ranks", "network"])
def test_it_is_saved_with_its_models(tmp_path: Path, data: Interactions, parts: list[object], blend: str) -> None:
    options = {"user_columns": ("group", "age"), "network_epochs": 2} if blend == "network" else {}
    model = Hybrid(parts, blend=blend, **options).fit(data, protocol=RULE, out=tmp_path / "run", baselines=False)
    again = deeprec.load(tmp_path / "run")
    assert [each.name for each in again.models] == ["item-knn", "popularity", "als"]
    users = torch.arange(80)
    assert torch.equal(again.score_items(users), model.score_items(users))
    assert again.recommend([101], 5).equals(model.recommend([101], 5))
    assert again.recommend_for_history([0, 4, 8], 5).equals(model.recommend_for_history([0, 4, 8], 5))
    assert again.evaluate(RULE, data) == model.evaluate()
    whole = Hybrid(parts, blend=blend, **options)  # reads what has ended there
    whole.fit(data, protocol=RULE, out=tmp_path / "run", resume=True, baselines=False)
    assert torch.equal(whole.score_items(users), model.score_items(users))
    # A blend of fewer in its place leaves nothing behind.
    Hybrid(parts[:2]).fit(data, protocol=RULE, out=tmp_path / "run", baselines=False)
    assert sorted(path.name for path in (tmp_path / "run" / "models").iterdir()) == ["0", "1"]
    assert len(deeprec.load(tmp_path / "run").models) == 2
    place = tmp_path / "run" / "models" / "1" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "model": "als"}))
    with pytest.raises(ValueError, match=r"config\.json was changed after it was written"):
        deeprec.load(tmp_path / "run")


def test_a_user_of_a_group_is_recommended_the_group(data: Interactions, parts: list[object]) -> None:
    blend = Hybrid(parts).fit(data, protocol=RULE, baselines=False)
    best = blend.recommend_for_history([2, 6, 10, 14], 4)["item_id"].to_list()
    assert all(item % 4 == 2 for item in best)


def test_members_by_name_and_by_folder(tmp_path: Path, data: Interactions, parts: list[object]) -> None:
    folders = [str(tmp_path / each) for each in ("knn", "als")]
    create("item-knn", refit=False).fit(data, protocol=RULE, out=folders[0], baselines=False)
    create("als", factors=8, refit=False).fit(data, protocol=RULE, out=folders[1], baselines=False)
    by_folder = create("hybrid", members=tuple(folders)).fit(data, protocol=RULE, baselines=False)
    by_object = Hybrid([parts[0], parts[2]]).fit(data, protocol=RULE, baselines=False)
    assert by_folder.evaluate() == by_object.evaluate()
    by_name = create("hybrid", members=("item-knn", "popularity")).fit(data, protocol=RULE, baselines=False)
    assert by_name.evaluate() == Hybrid(parts[:2]).fit(data, protocol=RULE, baselines=False).evaluate()
    with pytest.raises(ValueError, match="models must be trained on the split of the blend, got item-knn of another"):
        create("hybrid", members=tuple(folders)).fit(data, protocol="full", baselines=False)


def test_what_would_leak_is_refused(data: Interactions, parts: list[object]) -> None:
    other = create("popularity", refit=False).fit(data, protocol=protocol("random", seed=5), baselines=False)
    with pytest.raises(
        ValueError, match=r"trained on the split of the blend, got popularity of another \(seed: 0 / 5\)"
    ):
        Hybrid([parts[0], other]).fit(data, protocol=RULE)
    again = create("popularity").fit(data, protocol=RULE, baselines=False)
    if again.config.refit:
        with pytest.raises(ValueError, match=r"must not know the validation part.*popularity with refit=True"):
            Hybrid([parts[0], again]).fit(data, protocol=RULE)
    blend = Hybrid(parts).fit(data, protocol=RULE, baselines=False)
    with pytest.raises(ValueError, match="must not know the validation part, got a hybrid whose weights"):
        Hybrid([parts[0], blend]).fit(data, protocol=RULE)
    fewer = data.take(np.arange(len(data) - 5))
    short = create("popularity", refit=False).fit(fewer, protocol=RULE, baselines=False)
    with pytest.raises(ValueError, match="trained on the data of the blend"):
        Hybrid([parts[0], short]).fit(data, protocol=RULE)
    loaded = create("popularity", refit=False).fit(data, protocol=RULE, baselines=False)
    loaded._fitted_on = None
    with pytest.raises(ValueError, match="popularity must say what it was trained on"):
        Hybrid([parts[0], loaded]).fit(data, protocol=RULE)


def test_what_is_no_blend_is_said(data: Interactions, parts: list[object]) -> None:
    with pytest.raises(ValueError, match="two models or more are blended, got 1"):
        Hybrid(parts[:1]).fit(data, protocol=RULE)
    with pytest.raises(ValueError, match="members must be two or more"):
        create("hybrid", members=("als",))
    with pytest.raises(ValueError, match="names of models or folders, got 'alls'; did you mean 'als'"):
        create("hybrid", members=("alls", "ease"))
    with pytest.raises(ValueError, match="members must recommend items, got 'lr'"):
        create("hybrid", members=("lr", "ease"))
    with pytest.raises(ValueError, match="models must be fitted, got als without id maps"):
        Hybrid([create("als"), parts[0]])
    with pytest.raises(ValueError, match="rank_constant has no effect here"):
        create("hybrid", rank_constant=3.0)
    with pytest.raises(ValueError, match="learnt on validation rows, got none"):
        create("hybrid", members=("item-knn", "popularity")).fit(data, protocol=protocol("random", validation="none"))


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
def test_a_blend_is_at_least_as_good_as_its_models_on_the_part_that_it_learnt_from() -> None:
    films = load("ml-100k")
    single = [create(name, refit=False).fit(films, protocol=RULE, baselines=False) for name in ("ease", "item-knn")]
    blend = Hybrid(single).fit(films, protocol=RULE, baselines=False)
    task = blend._fitted_on
    reached = [evaluate(model, task.split, task.protocol, "validation")["ndcg@10"] for model in (*single, blend)]
    assert reached[2] >= max(reached[:2])
    assert blend.evaluate()["ndcg@10"] > 0.31
