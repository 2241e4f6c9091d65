"""IRGAN: its policy gradient against enumeration, what either player learns from, draws, weights, and its start."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.batches.likes import UserBatch
from deeprec.contract import Schema
from deeprec.data import Interactions, from_frame, load
from deeprec.data.sets.datasets import find
from deeprec.models import create, irgan
from deeprec.models.irgan import Draws, draw
from deeprec.train import fit

USERS, ITEMS = 4, 6


def batch_of(likes: dict[int, list[int]]) -> UserBatch:
    bounds = torch.tensor([0, *np.cumsum([len(row) for row in likes.values()])], dtype=torch.int32)
    items = torch.tensor([item for row in likes.values() for item in row], dtype=torch.int32)
    ones = torch.ones(len(items))
    return UserBatch(torch.tensor(list(likes)), bounds, items, ones, bounds, items, ones)


def built(**options: Any) -> Any:
    model = create(
        "irgan", schema=Schema(USERS, ITEMS), factors=3, generator=torch.Generator().manual_seed(2), **options
    )
    with torch.no_grad():
        for each in model.parameters():
            each.normal_(0, 0.8, generator=torch.Generator().manual_seed(len(each) + each.shape[1]))
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    """Dense copies of those that there are, which are cleared."""
    found = {
        n: p.grad.to_dense() if p.grad.is_sparse else p.grad for n, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("judges", ["pointwise", "pairwise"])
@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.2), (0.5, 0.0)])
def test_policy_gradient_is_that_of_the_expected_reward(
    monkeypatch: pytest.MonkeyPatch, judges: str, temperature: float, share: float
) -> None:
    model = built(judges=judges, temperature=temperature, positives_share=share, samples=2)
    likes = {2: [1]} if judges == "pairwise" else {2: [1, 4]}  # with one like there is no chance in the reward by pairs
    batch, user = batch_of(likes), 2
    judge, player = model.discriminator, model.generator
    scores = (judge.users.weight[user] @ judge.items.weight.T + judge.item_bias.weight[:, 0]).detach().double()
    reward = 2 * scores.sigmoid() - 1 if judges == "pointwise" else F.logsigmoid(scores - scores[1])
    logits = (player.users.weight[user] @ player.items.weight.T + player.item_bias.weight[:, 0]) / temperature
    (-(logits.softmax(0) * reward.float()).sum()).backward()
    exact = gradients(model)
    p = logits.detach().double().softmax(0)
    met = torch.zeros(ITEMS, dtype=torch.float64)
    met[likes[user]] = 1 / len(likes[user])
    drawn_from = (1 - share) * p + share * met
    expected = {name: torch.zeros_like(each, dtype=torch.float64) for name, each in exact.items()}
    for pair in product(range(ITEMS), repeat=2):  # every two draws, by how likely they are
        items = torch.tensor([pair])
        monkeypatch.setattr(model, "_explore", lambda *_, i=items: Draws(i, (p / drawn_from)[i].float()))
        loss = model._generate(batch)
        assert float(loss) == pytest.approx(-float((p / drawn_from * reward)[list(pair)].mean()), rel=1e-5)
        chance = float(drawn_from[list(pair)].prod())
        for name, each in gradients(model).items():
            expected[name] += chance * each
    assert set(expected) == {"generator.users.weight", "generator.items.weight", "generator.item_bias.weight"}
    for name, each in expected.items():
        torch.testing.assert_close(each.float(), exact[name], rtol=1e-4, atol=1e-6, msg=name)


def test_draws_follow_the_probabilities() -> None:
    torch.manual_seed(0)
    p = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    drawn = draw(p, 20_000)
    shares = torch.stack([(drawn == item).double().mean(1) for item in range(4)], 1)
    torch.testing.assert_close(shares, p.double(), atol=0.012, rtol=0)
    assert not (drawn[0] == 1).any()
    assert (drawn[1] == 3).all()
    assert (drawn[2] == 0).all()


def test_weights_are_those_of_importance_sampling() -> None:
    torch.manual_seed(1)
    model, batch = built(samples=4000, positives_share=0.3), batch_of({3: [0, 2, 5], 1: [4]})
    p = model.generator.of_all(batch.users).detach().softmax(1)
    drawn = model._explore(p, batch)
    from_met = torch.zeros(2, ITEMS)
    from_met[0, [0, 2, 5]], from_met[1, 4] = 1 / 3, 1.0
    mixed = 0.7 * p + 0.3 * from_met
    torch.testing.assert_close(drawn.weights, (p / mixed).gather(1, drawn.items))
    assert float(drawn.weights.max()) <= 1 / 0.7 + 1e-6
    shares = torch.stack([(drawn.items == item).float().mean(1) for item in range(ITEMS)], 1)
    torch.testing.assert_close(shares, mixed, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.weights.mean(1), torch.ones(2), atol=0.03, rtol=0)  # each mean is of p then


@pytest.mark.parametrize("judges", ["pointwise", "pairwise"])
def test_discriminator_learns_to_tell_what_was_met_from_what_was_drawn(
    monkeypatch: pytest.MonkeyPatch, judges: str
) -> None:
    model = built(judges=judges, samples=3, discriminator_l2=0.4, negatives_temperature=0.2)
    batch, drawn = batch_of({0: [1, 3], 2: [5]}), torch.tensor([[2, 2, 4], [0, 5, 1]])
    seen: list[Tensor] = []

    def given(probabilities: Tensor, samples: int) -> Tensor:
        seen.append(probabilities)
        return drawn

    monkeypatch.setattr(irgan, "draw", given)
    columns = torch.tensor([2, 0, 1])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: columns)
    loss = model._discriminate(batch)
    got = gradients(model)
    sharp = (model.generator.of_all(batch.users) / 0.2).softmax(1)
    torch.testing.assert_close(seen[0], sharp.detach())
    judge, total = model.discriminator, torch.zeros(())

    def score(user: int, item: int) -> Tensor:
        return (judge.users.weight[user] * judge.items.weight[item]).sum() + judge.item_bias.weight[item, 0]

    def squares(user: int, item: int) -> Tensor:
        rows = (judge.users.weight[user], judge.items.weight[item], judge.item_bias.weight[item])
        return 0.2 * sum(row.square().sum() for row in rows)

    for at, (row, user, item) in enumerate([(0, 0, 1), (0, 0, 3), (1, 2, 5)]):
        total = total + squares(user, item)
        if judges == "pairwise":
            other = int(drawn[row, columns[at]])
            total = total - F.logsigmoid(score(user, item) - score(user, other)) + squares(user, other)
        else:
            total = total - F.logsigmoid(score(user, item))
    for row, (user, count) in enumerate([(0, 2), (2, 1)] if judges == "pointwise" else []):
        for item in drawn[row].tolist():
            total = total - count / 3 * F.logsigmoid(-score(user, item)) + squares(user, item)
    torch.testing.assert_close(loss, (total / 3).detach())
    (total / 3).backward()
    expected = gradients(model)
    assert set(got) == set(expected) == {f"discriminator.{name}.weight" for name in ("users", "items", "item_bias")}
    for name, each in got.items():
        torch.testing.assert_close(each, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def tastes() -> Interactions:
    """Users who take items of one of four kinds."""
    draws = np.random.default_rng(0)
    users = np.repeat(np.arange(80), 9)
    items = np.concatenate([4 * draws.permutation(20)[:9] + user % 4 for user in range(80)])
    return from_frame(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}))


def test_each_player_steps_its_own_weights(tastes: Interactions) -> None:
    model = create("irgan", factors=4, pretrain_epochs=0)
    model.build(model.schema_for(tastes), torch.Generator().manual_seed(0))
    batch = next(iter(model.batches(tastes, 0).epoch(0)))
    first, second = model.turns()
    for turn, mine in ((first, "discriminator"), (second, "generator")):
        assert turn.groups == (mine,)
        turn.backward(batch)
        assert {name.partition(".")[0] for name in gradients(model)} == {mine}
    options = [model.config.optimizer_options(turn.groups[0]) for turn in (first, second)]
    assert [each.optimizer for each in options] == ["adagrad", "sgd"]


@pytest.mark.parametrize("judges", ["pointwise", "pairwise"])
def test_the_game_alone_finds_the_kinds(tastes: Interactions, judges: str) -> None:
    options = {"factors": 8, "epochs": 60, "pretrain_epochs": 0, "patience": 0, "samples": 32, "positives_share": 0.5}
    judge = {"judges": judges, "discriminator_lr": 0.2, "discriminator_l2": 0.01, "negatives_temperature": 0.2}
    model = create("irgan", **options, **judge, lr=3.0)
    model.fit(tastes, protocol="full", seed=0, baselines=False)
    shown = model.recommend([1, 2, 3], k=5)
    assert ((shown["item_id"] % 4) == (shown["user_id"] % 4)).mean() >= 0.8


def test_begins_as_bpr_and_can_only_be_as_good_or_better_by_validation(tastes: Interactions) -> None:
    shared = {"factors": 4, "patience": 0}
    bpr = fit(create("bpr", **shared, epochs=6), tastes, protocol="full", seed=1, baselines=False)
    model = create("irgan", **shared, epochs=2, pretrain_epochs=6, pretrain_negatives=1, pretrain_l2=0.01)
    result = fit(model, tastes, protocol="full", seed=1, baselines=False)
    assert [entry["epoch"] for entry in result.history] == [0.0, 1.0, 2.0]
    assert result.history[0]["ndcg@10"] == max(entry["ndcg@10"] for entry in bpr.history)
    start = copy.deepcopy(result.model)
    start.start_from(bpr.model)
    users = torch.arange(5)
    torch.testing.assert_close(start.score_items(users), bpr.model.score_items(users))


def test_later_rows_go_on_from_both_players(tastes: Interactions) -> None:
    early = from_frame(pl.DataFrame({"user_id": tastes.users[:540], "item_id": tastes.items[:540]}))
    tastes = from_frame(pl.DataFrame({"user_id": tastes.users, "item_id": tastes.items}))
    model = create("irgan", factors=4, epochs=2, pretrain_epochs=2).fit(early, protocol="full", seed=0, baselines=False)
    before = model.discriminator.users.weight.detach().clone()
    model.fit_more(tastes, epochs=1, seed=0)
    assert len(model.discriminator.users.weight) == 80
    assert float((model.discriminator.users.weight[:60] - before).abs().max()) < 1.0
    assert len(model.recommend([70], k=3)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples must be >= 2, got 1"),
        ({"positives_share": 1.0}, r"positives_share must lie in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"negatives_temperature": -1.0}, "negatives_temperature must be > 0"),
        ({"judges": "listwise"}, "judges must be one of pointwise, pairwise; got 'listwise'"),
        ({"discriminator_optimizer": "adamw"}, "discriminator_optimizer must be one of"),
        ({"discriminator_l2": -0.1}, "discriminator_l2 must be >= 0"),
        ({"pretrain_epochs": 0, "pretrain_lr": 0.1}, "pretrain_lr has no effect here.*pretrain_epochs > 0"),
        ({"accumulate": 2}, "accumulate has no effect here"),
        ({"num_negatives": 2}, "num_negatives has no effect here"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("irgan", **options)


@pytest.mark.skipif(find("ml-100k") is None, reason="needs ml-100k, see `deeprec data list`")
def test_ml_100k_is_ranked_better_than_by_popularity() -> None:
    model = create("irgan", factors=32, epochs=2, pretrain_epochs=10, patience=0)
    result = fit(model, load("ml-100k"), protocol="full", seed=1)
    assert result.card.epoch is not None
    assert result.card.metrics["hr@10"] > 1.1 * result.card.baselines["popularity"]["hr@10"]
