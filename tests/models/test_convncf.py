"""ConvNCF: the network as convolutions of torch, BPR's loss and start, and a taste that it learns."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from deeprec.data import Interactions, from_frame
from deeprec.models import create
from deeprec.models.convncf import OuterProductCNN

SMALL = {"factors": 8, "channels": 6, "batch_size": 64, "lr": 0.01}


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Two groups of users who like two groups of items."""
    draw = np.random.default_rng(0)
    rows = [(user, 2 * item + user % 2) for user in range(60) for item in draw.permutation(20)[:9]]
    return from_frame(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"))


@pytest.mark.parametrize(("factors", "channels"), [(2, 3), (8, 5), (16, 1)])
def test_network_is_convolutions_over_the_outer_product(factors: int, channels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    network = OuterProductCNN(factors, channels, draw).double()
    p, q = (torch.randn(4, factors, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    x = (p.unsqueeze(2) * q.unsqueeze(1)).unsqueeze(1)  # [B, 1, D, D]
    for layer in network.layers:
        weight = layer.weight.view(channels, 2, 2, -1).permute(0, 3, 1, 2)
        x = F.relu(F.conv2d(x, weight, layer.bias, stride=2))
    assert x.shape == (4, channels, 1, 1)
    expected = x.view(4, channels) @ network.output.weight.squeeze(0)
    torch.testing.assert_close(network(p, q), expected)
    mine = torch.autograd.grad(network(p, q).sum(), [p, q])
    for one, other in zip(mine, torch.autograd.grad(expected.sum(), [p, q]), strict=True):
        torch.testing.assert_close(one, other)


def test_loss_is_that_of_bpr(data: Interactions) -> None:
    model = create("convncf", **SMALL, l2=0.2, num_negatives=3)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    batch = next(iter(model.batches(data, 0).epoch(0)))
    with torch.no_grad():
        model.item_bias.weight.normal_()
    expected, pairs = torch.zeros(()), 0
    for user, (i, *negatives) in zip(batch.users, batch.items, strict=True):
        for j in negatives:
            rows = (
                model.users.weight[user],
                model.items.weight[[int(i), int(j)]],
                model.item_bias.weight[[int(i), int(j)]],
            )
            expected = expected - F.logsigmoid(model(user, i) - model(user, j))
            expected, pairs = expected + 0.1 * sum(row.square().sum() for row in rows), pairs + 1
    torch.testing.assert_close(model.loss(batch), expected / pairs, rtol=1e-4, atol=1e-5)


def test_training_starts_where_bpr_ends(data: Interactions) -> None:
    first = create("bpr", factors=8, batch_size=64, epochs=5)
    first.fit(data, protocol="full", seed=3)
    model = create("convncf", **SMALL, pretrain_epochs=5)
    model.build(model.schema_for(data))
    assert model.warm_start(lambda stage: stage.fit(data, protocol="full", seed=3))
    for name in ("users", "items", "item_bias"):
        assert torch.equal(getattr(model, name).weight, getattr(first, name).weight)
    assert not create("convncf", **SMALL, pretrain=False).warm_start(None)


def test_a_taste_is_learnt(data: Interactions) -> None:
    model = create("convncf", **SMALL, epochs=15, pretrain_epochs=10, patience=0).fit(data, protocol="full", seed=0)
    for user in (0, 1):
        shown = model.recommend([user], k=6)["item_id"].to_list()
        assert sum(item % 2 == user for item in shown) >= 5
    new = model.recommend_for_history([1, 3, 5, 7, 9, 11], k=5)["item_id"].to_list()
    assert sum(item % 2 for item in new) >= 4


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="factors must be a power of 2, >= 2, got 12"):
        create("convncf", factors=12)
    with pytest.raises(ValueError, match="pretrain_lr has no effect here"):
        create("convncf", pretrain=False, pretrain_lr=0.1)
    for option in ("channels", "pretrain_epochs", "init_std", "pretrain_lr"):
        with pytest.raises(ValueError, match=option):
            create("convncf", **{option: 0})


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="DEEPREC_DATA names no folder with real data")
def test_movielens_is_ranked_above_popularity() -> None:
    options = {"factors": 8, "channels": 4, "pretrain_epochs": 6, "epochs": 3, "lr": 0.003, "patience": 0}
    model = create("convncf", **options).fit("ml-100k", protocol="ncf", seed=0)
    popular = create("popularity").fit("ml-100k", protocol="ncf")
    assert model.evaluate()["hr@10"] > popular.evaluate()["hr@10"] + 0.05
