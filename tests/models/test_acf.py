"""Claims about ACF: its loss is that of plain loops, a positive never sees itself, content shapes attention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import deeprec
from deeprec.batches.neighbours import NeighbourBatch
from deeprec.contract import Queries
from deeprec.data import Interactions, synthetic, with_features
from deeprec.models.acf import ACF, ACFSizes
from deeprec.train import fit

WAYS: list[dict[str, Any]] = [
    {"pooling": "average"},
    {},
    {"features": ("a", "b"), "content": "average"},
    {"features": ("a", "b"), "content": "attention"},
]
FIVE_USERS = [[1, 4, 6], [2], [], [0, 3, 4, 5], [6, 7]]


def small(**options: Any) -> ACF:
    widths = (2, 3) if options.get("features") else ()
    sizes: dict[str, Any] = {"component_width": 4} if widths else {}
    if options.get("pooling") != "average":
        sizes["attention_factor"] = 3
    model = ACF(ACFSizes(5, 8, sum(widths), widths), factors=4, l2=0.3, **sizes, **options).double()
    generator = torch.Generator().manual_seed(0)
    for weight in (*model.parameters(), model.components):
        weight.data.normal_(0.0, 0.7, generator=generator)
    model.scales.copy_(torch.linspace(1, 2, len(widths)))
    return model


def softmax(scores: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(scores).softmax(0)


def code(model: ACF, user: torch.Tensor, items: list[int]) -> torch.Tensor:
    """u + sum of alpha p by the paper's equations, an item and a component at a time."""
    p, config = model.neighbours.weight, model.config
    if not items:
        return user
    if config.pooling == "average":
        return user + torch.stack([p[item] for item in items]).mean(0)
    scores = []
    for item in items:
        known = [model.items.weight[item], p[item]]
        if config.features:
            first, second = model.components[item, :2] / 1.0, model.components[item, 2:] / 2.0
            parts = [model.maps[0].weight @ first, model.maps[1].weight @ second]
            if config.content == "average":
                known.append((parts[0] + parts[1]) / 2)
            else:
                looks = model.component_attention
                inner = [F.relu(looks.user_weight @ user + looks.weight @ part + looks.bias) for part in parts]
                shares = softmax([looks.w @ each for each in inner])
                known.append(shares[0] * parts[0] + shares[1] * parts[1])
        attention = model.attention
        inner_of_item = F.relu(attention.user_weight @ user + attention.weight @ torch.cat(known) + attention.bias)
        scores.append(attention.w @ inner_of_item)
    alphas = softmax(scores)
    total = user
    for alpha, item in zip(alphas, items, strict=True):
        total = total + alpha * p[item]
    return total


def batch() -> NeighbourBatch:
    """Triples of users 0, 3, 1 and 0, whose neighbours leave the positive out."""
    users, items = torch.tensor([0, 3, 1, 0]), torch.tensor([[4, 2, 3], [0, 1, 2], [2, 5, 6], [1, 3, 0]])
    lists = [[1, 6], [3, 4, 5], [], [4, 6]]
    counts = torch.tensor([len(each) for each in lists])
    return NeighbourBatch(
        users, items, torch.tensor([item for each in lists for item in each]),
        torch.repeat_interleave(torch.arange(4), counts), counts,
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_those_of_plain_loops(way: dict[str, Any]) -> None:
    model, given = small(**way), batch()
    terms = []
    for row, (user, items) in enumerate(zip(given.users.tolist(), given.items.tolist(), strict=True)):
        vector, met = model.users.weight[user], given.neighbours[given.owners == row].tolist()
        total, v, p = code(model, vector, met), model.items.weight, model.neighbours.weight
        for other in items[1:]:
            squares = vector.square().sum() + v[items[0]].square().sum() + v[other].square().sum()
            squares = squares + sum((p[item].square().sum() for item in met), torch.zeros(())) / max(1, len(met))
            terms.append(-F.logsigmoid(total @ (v[items[0]] - v[other])) + 0.15 * squares)
    expected, got = torch.stack(terms).mean(), model.loss(given)
    torch.testing.assert_close(got, expected)
    leaves = list(model.parameters())
    ours = torch.autograd.grad(got, leaves)
    theirs = torch.autograd.grad(expected, leaves)
    for mine, other_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.to_dense(), other_grad)


@pytest.mark.parametrize("way", WAYS)
def test_new_users_are_the_mean_user_who_looks_at_what_they_met(way: dict[str, Any]) -> None:
    model = small(**way).eval()
    offsets = torch.tensor([0, *np.cumsum([len(each) for each in FIVE_USERS])])
    items = torch.tensor([item for each in FIVE_USERS for item in each])
    (state,) = model.encode(Queries(None, (offsets, items)))
    mean = model.users.weight.detach().mean(0)
    expected = torch.stack([code(model, mean, each) for each in FIVE_USERS])
    torch.testing.assert_close(state, expected.detach())


def data_with_content(num_users: int = 60) -> Interactions:
    data = synthetic(num_users=num_users, num_items=50, num_interactions=700, seed=1)
    draw = np.random.default_rng(0)
    table = {"item_id": data.item_ids.values}
    table |= {name: pl.Series(draw.normal(size=(data.num_items, width))) for name, width in (("a", 2), ("b", 3))}
    return with_features(data, items=pl.DataFrame(table))


def test_a_positive_says_nothing_in_its_own_triple() -> None:
    """However its p is changed, the score of a positive in training stays; that of the user's other triples moves."""
    data = data_with_content()
    model = ACF(factors=4, attention_factor=3, l2=0.0, batch_size=8, num_negatives=1)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    moved = 0
    for given in list(model.batches(data, 0).epoch(0))[:20]:
        for row in range(len(given)):
            here = given.owners == row
            one = NeighbourBatch(
                given.users[row : row + 1], given.items[row : row + 1], given.neighbours[here],
                torch.zeros(int(here.sum()), dtype=torch.int64), given.counts[row : row + 1],
            )  # fmt: skip
            positive = int(one.items[0, 0])
            assert positive not in one.neighbours.tolist()
            before = model.loss(one).detach()
            with torch.no_grad():
                kept = model.neighbours.weight[positive].clone()
                model.neighbours.weight[positive] += 10.0
                assert torch.equal(model.loss(one), before)
                model.neighbours.weight[positive] = kept
                if one.counts[0]:
                    other = int(one.neighbours[0])
                    model.neighbours.weight[other] += 10.0
                    moved += int(not torch.equal(model.loss(one), before))
                    model.neighbours.weight[other] -= 10.0
    assert moved > 50


@pytest.mark.parametrize("way", WAYS)
def test_known_users_score_with_all_that_they_met_and_so_does_the_saved_model(
    way: dict[str, Any], tmp_path: Path
) -> None:
    data = data_with_content()
    model = ACF(factors=4, epochs=2, **way)
    fit(model, data, protocol="full", seed=3, baselines=False)
    train = deeprec.evaluate.protocol("full").split(data).train
    offsets, items = train.csr()
    for user in (0, 7, 31):
        met = items[offsets[user] : offsets[user + 1]].tolist()
        widths = model.require_built().widths
        if way.get("features"):
            parts = model.components.split(list(widths), 1)
            torch.testing.assert_close(model.scales, torch.stack([part.square().mean().sqrt() for part in parts]))
        else:
            expected = code(model, model.users.weight[user], met).detach()
            torch.testing.assert_close(model.user_rows(torch.tensor([user]))[0][0], expected)
    model.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    ids = data.user_ids.values[:3].to_list()
    assert loaded.recommend(ids, 5).equals(model.recommend(ids, 5))
    history = data.item_ids.values[:4].to_list()
    assert loaded.recommend_for_history(history, 5).equals(model.recommend_for_history(history, 5))
    again = ACF(factors=4, epochs=2, **way)
    fit(again, data, protocol="full", seed=3, baselines=False)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_regularisation_pulls_towards_zero() -> None:
    given = batch()
    norms = []
    for l2 in (0.0, 5.0):
        model = small()
        model.hold(ACF(factors=4, attention_factor=3, l2=l2).config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            model.loss(given).backward()
            optimizer.step()
        norms.append(float(model.users.weight[given.users].detach().norm()))
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling must be one of attention, average; got 'max'"),
        ({"features": ("a", "a")}, r"each column once, got \('a', 'a'\)"),
        ({"content": "average"}, "content has no effect here"),
        ({"pooling": "average", "features": ("a",)}, "features has no effect here"),
        ({"factors": 0}, "factors must be >= 1"),
        ({"init_std": 0.0}, "init_std must be > 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACF(**options)


def test_columns_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"a column of items must be one of .*, got 'colour'"):
        fit(ACF(features=("colour",)), data_with_content(), protocol="full")


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
def test_on_tiktok_pictures_and_sounds_are_its_components() -> None:
    whole = deeprec.data.load("tiktok")
    data = whole.take(whole.users < 60)
    model = ACF(
        factors=8, attention_factor=8, component_width=8, features=("image", "audio"), epochs=1, batch_size=1024
    )
    rule = deeprec.evaluate.protocol("full", metrics=("recall",), cutoffs=(100,))
    card = fit(model, data, protocol=rule, seed=0, baselines=False).card
    assert model.require_built().widths == (128, 128)
    assert model.components.shape == (6710, 256)
    assert 0 < card.metrics["recall@100"] < 1
    assert np.isfinite(card.history[0]["loss"])
