"""Adversarial training: its gradients against those of moved copies, its start, and the attack on a finished model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from deeprec.batches import PairBatch
from deeprec.contract import Schema
from deeprec.data import Interactions, from_frame, load, with_features
from deeprec.data.sets.datasets import find
from deeprec.evaluate import evaluate, protocol
from deeprec.models import create
from deeprec.models._adversarial import _move
from deeprec.train import Callback, CallbackError, fit

PAIRWISE = {
    "amf": {"factors": 5},
    "bpr": {"factors": 5, "adversarial": 1.0},
    "gmf": {"factors": 5, "adversarial": 1.0},
    "mf": {"factors": 5, "adversarial": 1.0},
    "mlp": {"factors": 4, "num_layers": 2, "adversarial": 1.0},
    "neumf": {"factors": 4, "num_layers": 1, "adversarial": 1.0},
}
USERS, ITEMS = 6, 9
# Item 3 is a positive and a negative, user 1 comes twice.
BATCH = PairBatch(
    torch.tensor([1, 4, 1]),
    torch.tensor([[3, 7], [2, 3], [5, 3]]),
    torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
)


def built(name: str, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    model = create(name, schema=Schema(USERS, ITEMS), generator=generator, **{**PAIRWISE[name], **options})
    with torch.no_grad():
        for table in model.attacked():
            table.add_(0.3 * torch.randn(table.shape, generator=generator) * (table != 1))
    return model


def dense(gradients: Any) -> dict[str, torch.Tensor]:
    return {name: (each.to_dense() if each.is_sparse else each) for name, each in gradients if each is not None}


def gradients_of(model: Any, loss: Any) -> dict[str, torch.Tensor]:
    """Of every parameter, dense."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return dense([(name, each.grad) for name, each in model.named_parameters()])


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_is_that_of_the_loss_and_of_a_moved_copy(name: str, reduction: str) -> None:
    weight, epsilon, l2 = 0.7, 0.4, 0.2
    model = built(name, adversarial=weight, epsilon=epsilon, l2=l2, reduction=reduction)
    before = copy.deepcopy(model.state_dict())
    loss, penalty = model.terms(BATCH)
    assert penalty is not None
    torch.testing.assert_close(loss + penalty, model.loss(BATCH))
    plain = gradients_of(model, loss)
    regular = gradients_of(model, model.terms(BATCH)[1])
    moved = copy.deepcopy(model)
    names = {id(each): key for key, each in model.named_parameters()}
    with torch.no_grad():
        for table, original in zip(moved.attacked(), model.attacked(), strict=True):
            gradient = plain[names[id(original)]]
            length = gradient.norm(dim=1, keepdim=True)
            table.add_(torch.where(length > 0, epsilon * gradient / length.clamp(min=1e-30), 0.0))
    against = gradients_of(moved, moved.terms(BATCH)[0])
    if name == "mf":  # a copy has lost the hooks that keep the columns of ones
        against["network.gmf_user.weight"][:, 1] = against["network.gmf_item.weight"][:, 0] = 0.0
    assert float(moved.terms(BATCH)[0].detach()) > float(loss.detach())
    model.zero_grad(set_to_none=True)
    total = model.backward(BATCH)
    torch.testing.assert_close(total, (loss + penalty + weight * moved.terms(BATCH)[0]).detach())
    got = dense([(key, each.grad) for key, each in model.named_parameters()])
    for key, each in got.items():
        expected = plain[key] + regular.get(key, 0.0) + weight * against[key]
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
    for key, each in model.state_dict().items():
        assert torch.equal(each, before[key]), f"{name}: {key} has other bits after the attack"


def test_loss_is_the_papers() -> None:
    model = built("amf", adversarial=2.0, epsilon=0.5, l2=0.0)
    p, q, b = (each.weight.detach().double().numpy() for each in (model.users, model.items, model.item_bias))
    pairs = [(1, 3, 7), (4, 2, 3), (1, 5, 3)]

    def value(p: np.ndarray, q: np.ndarray) -> float:
        return sum(np.log1p(np.exp(-(b[i] - b[j] + p[u] @ (q[i] - q[j])).item())) for u, i, j in pairs)

    rise_p, rise_q = np.zeros_like(p), np.zeros_like(q)
    for u, i, j in pairs:
        slope = -1 / (1 + np.exp((b[i] - b[j] + p[u] @ (q[i] - q[j])).item()))
        rise_p[u] += slope * (q[i] - q[j])
        rise_q[i] += slope * p[u]
        rise_q[j] -= slope * p[u]
    moves = [0.5 * rise / np.maximum(np.linalg.norm(rise, axis=1, keepdims=True), 1e-30) for rise in (rise_p, rise_q)]
    expected = value(p, q) + 2.0 * value(p + moves[0], q + moves[1])
    assert float(model.backward(BATCH)) == pytest.approx(expected, rel=1e-5)


def test_moves_have_their_length_and_are_nothing_without_a_gradient() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]])
    config = create("amf", epsilon=2.0).config
    rows, moves = _move(gradient, config)
    assert rows is None
    torch.testing.assert_close(moves[:2], torch.tensor([[1.2, 1.6], [0.0, 0.0]]))
    assert torch.isfinite(moves).all()
    sparse = torch.sparse_coo_tensor(torch.tensor([[4, 1, 4]]), torch.tensor([[1.0, 0], [0, 2], [1, 0]]), (6, 2))
    rows, moves = _move(sparse, config)
    assert rows.tolist() == [1, 4]
    assert moves.tolist() == [[0.0, 2.0], [2.0, 0.0]]
    rows, moves = _move(sparse, create("amf", epsilon=2.0, perturbation="random").config)
    torch.testing.assert_close(moves.norm(dim=1), torch.full((2,), 2.0))
    assert moves.count_nonzero() == 4


def test_without_length_it_is_the_loss_more_often() -> None:
    model = built("amf", adversarial=1.0, epsilon=0.0, l2=0.0)
    plain = gradients_of(model, model.loss(BATCH))
    model.zero_grad(set_to_none=True)
    model.backward(BATCH)
    for key, each in dense([(key, each.grad) for key, each in model.named_parameters()]).items():
        torch.testing.assert_close(each, 2 * plain[key])


def test_the_gradient_raises_the_loss_more_than_chance() -> None:
    losses = {}
    for kind in ("adversarial", "random"):
        torch.manual_seed(0)
        losses[kind] = float(built("amf", epsilon=0.5, perturbation=kind, l2=0.0).backward(BATCH))
    assert losses["adversarial"] > losses["random"] + 0.3


@pytest.fixture(scope="module")
def tastes() -> Interactions:
    """Users who take items of one of four kinds, which a vector tells with noise."""
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 8)
    items = np.concatenate([4 * draw.permutation(20)[:8] + user % 4 for user in range(60)])
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}))
    met = np.unique(items)
    vectors = np.eye(4)[met % 4] @ draw.normal(size=(4, 6)) + 0.3 * draw.normal(size=(len(met), 6))
    return with_features(data, items=pl.DataFrame({"item_id": met, "seen": vectors}))


def test_amr_moves_what_is_in_the_items_alone(tastes: Interactions) -> None:
    options = {"features": ("seen",), "factors": 4, "content_factors": 3, "l2": 0.0, "batch_size": 32}
    model = create("amr", **options, epsilon=0.3, adversarial=0.5)
    model.build(model.schema_for(tastes), torch.Generator().manual_seed(0))
    batch = next(iter(model.batches(tastes, 0).epoch(0)))
    vectors = model.vectors.clone()
    plain = gradients_of(model, model.loss(batch))
    # The gradient of a vector, by hand: E theta_u + beta' for each pair, against it for the negative.
    theta, slopes = model.users.weight.detach()[:, 4:], torch.zeros(tastes.num_items, 6)
    for user, (i, j) in zip(batch.users.tolist(), batch.items.tolist(), strict=True):
        scores = model(torch.tensor([user, user]), torch.tensor([i, j]))
        slope = -torch.sigmoid(scores[1] - scores[0]) * (model.content @ theta[user] + model.content_bias[:, 0])
        slopes[i] += slope.detach()
        slopes[j] -= slope.detach()
    moved = copy.deepcopy(model)
    moved.vectors.add_(0.3 * F.normalize(slopes, dim=1))
    against = gradients_of(moved, moved.loss(batch))
    model.zero_grad(set_to_none=True)
    model.backward(batch)
    for key, each in dense([(key, each.grad) for key, each in model.named_parameters()]).items():
        torch.testing.assert_close(each, plain[key] + 0.5 * against[key], rtol=1e-4, atol=1e-5)
    assert torch.equal(model.vectors, vectors)
    assert not model.vectors.requires_grad


def test_amr_without_columns_is_amf() -> None:
    amf, amr = (create(name, factors=8, l2=0.1) for name in ("amf", "amr"))
    for model in (amf, amr):
        model.build(model.sizes_class(USERS, ITEMS), torch.Generator().manual_seed(1))
    amr.is_known.fill_(1.0)
    torch.testing.assert_close(amr.backward(BATCH), amf.backward(BATCH))
    torch.testing.assert_close(amr.users.weight.grad.to_dense(), amf.users.weight.grad.to_dense())


def test_begins_from_the_best_epoch_without_perturbations(tastes: Interactions) -> None:
    rule = protocol("full", cutoffs=(5,))
    options = {"factors": 4, "epochs": 3, "batch_size": 64, "patience": 0}
    plain = fit(create("bpr", **{**options, "epochs": 6}), tastes, protocol=rule, seed=1, baselines=False)
    second = create("amf", **options, plain_epochs=6, plain_lr=0.05, lr=0.01)
    result = fit(second, tastes, protocol=rule, seed=1, baselines=False)
    assert [entry["epoch"] for entry in result.history] == [0.0, 1.0, 2.0, 3.0]
    assert result.history[0]["ndcg@5"] == max(entry["ndcg@5"] for entry in plain.history)
    alone = fit(create("amf", **options, plain_epochs=0), tastes, protocol=rule, seed=1, baselines=False)
    assert [entry["epoch"] for entry in alone.history] == [1.0, 2.0, 3.0]


def test_the_refit_gives_each_stage_its_own_epochs(tastes: Interactions) -> None:
    said: list[tuple[str, int]] = []
    options = {"factors": 8, "lr": 0.05, "batch_size": 64, "patience": 0}
    plain = fit(create("bpr", **options, epochs=5), tastes, protocol="full", seed=1, baselines=False)
    assert plain.card.epoch > 2
    model = create("amf", **options, epochs=2, plain_epochs=5, refit=True)
    fit(model, tastes, protocol="full", seed=1, baselines=False, on_progress=lambda p: said.append((p.stage, p.epoch)))
    last = {stage: max(epoch for name, epoch in said if name == stage) for stage, _ in said}
    assert last["amf (pre-training)"] == 5
    assert last["amf"] == 2
    assert last["amf (pre-training) (refit)"] == plain.card.epoch, "not the epochs of this stage"


class Stop(Callback):
    """Raises after so many checkpoints."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_checkpoint(self, path: Path) -> None:
        self.left -= 1
        if not self.left:
            raise RuntimeError("the power went")


@pytest.mark.parametrize("after", [2, 5])  # in the first stage, in the second
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("amf", {"plain_epochs": 3, "perturbation": "random", "batch_size": 64}),
        ("neumf", {"adversarial": 1.0, "optimizer": "adam"}),
        ("irgan", {"pretrain_epochs": 3}),
    ],
)
def test_an_interrupted_run_ends_bit_for_bit_as_a_whole_one(
    name: str, options: dict[str, Any], after: int, tastes: Interactions, tmp_path: Path
) -> None:
    options = {**options, "factors": 4, "epochs": 3, "patience": 0}
    whole = fit(create(name, **options), tastes, protocol="full", seed=2, baselines=False)
    again = {"protocol": "full", "seed": 2, "out": tmp_path / "cut", "baselines": False}
    with pytest.raises(CallbackError):
        fit(create(name, **options), tastes, callbacks=[Stop(after)], **again)
    resumed = fit(create(name, **options), tastes, resume=True, **again)
    assert [e["loss"] for e in resumed.history][1:] == [e["loss"] for e in whole.history][1:]
    assert resumed.card.metrics == whole.card.metrics
    for key, each in whole.model.state_dict().items():
        assert torch.equal(each, resumed.model.state_dict()[key]), key


def test_recommends_what_a_person_would(tastes: Interactions) -> None:
    model = create("amf", factors=8, epochs=15, batch_size=64, patience=0, epsilon=0.2)
    model.fit(tastes, protocol="full", seed=0, baselines=False)
    shown = model.recommend([1, 2], k=5)
    for user in (1, 2):
        kinds = shown.filter(pl.col("user_id") == user)["item_id"] % 4
        assert (kinds == user % 4).sum() >= 4


@pytest.mark.parametrize("name", ["bpr", "gmf", "vbpr"])
def test_attack_lowers_the_ranking_and_leaves_no_trace(tastes: Interactions, name: str) -> None:
    rule = protocol("full", cutoffs=(5,))
    options: dict[str, Any] = {"features": ("seen",), "factors": 2} if name == "vbpr" else {"factors": 4}
    options |= {"lr": 0.02} if name == "gmf" else {}
    model = create(name, **options, epochs=20, batch_size=64, patience=0)
    model.fit(tastes, protocol=rule, seed=1, baselines=False)
    split = rule.split(tastes)
    before, whole = copy.deepcopy(model.state_dict()), evaluate(model, split, rule)["ndcg@5"]
    figures = {}
    for kind in ("adversarial", "random"):
        with model.under_attack(split.train, 1.0 if name == "vbpr" else 0.3, kind=kind):
            figures[kind] = evaluate(model, split, rule)["ndcg@5"]
            assert not torch.equal(model.attacked()[0], before[next(iter(before))])
    assert figures["adversarial"] < min(figures["random"], whole) - 0.02
    assert evaluate(model, split, rule)["ndcg@5"] == whole
    for key, each in model.state_dict().items():
        assert torch.equal(each, before[key])


def test_attack_is_the_same_for_a_seed_and_refuses_what_it_cannot_do(tastes: Interactions) -> None:
    model = create("bpr", factors=4, epochs=2, batch_size=64).fit(tastes, protocol="full", seed=0, baselines=False)
    seen = []
    for seed in (0, 0, 1):
        with model.under_attack(tastes, 0.5, seed=seed):
            seen.append(model.users.weight.detach().clone())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    for given, message in (({"epsilon": -1.0}, "epsilon must be >= 0"), ({"epsilon": 1, "kind": "noise"}, "got 1 and")):
        with pytest.raises(ValueError, match=message), model.under_attack(tastes, **given):
            pass
    small = from_frame(pl.DataFrame({"user_id": range(10), "item_id": range(10)}))
    refused = pytest.raises(ValueError, match="the 60 users and 80 items of the model, got 10 and")
    with refused, model.under_attack(small, 0.5):
        pass
    with pytest.raises(ValueError, match="no data yet"), create("bpr").under_attack(tastes, 0.5):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": -1.0}, "adversarial must be >= 0, got -1.0"),
        ({"epsilon": -0.5}, "epsilon must be >= 0, got -0.5"),
        ({"plain_epochs": -1}, "plain_epochs must be >= 0, got -1"),
        ({"plain_lr": 0.0}, "plain_lr must be > 0, got 0.0"),
        ({"perturbation": "noise"}, "perturbation must be one of adversarial, random; got 'noise'"),
        ({"adversarial": 0.0, "epsilon": 0.2}, r"epsilon has no effect here.*adversarial > 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("amf", **options)


@pytest.mark.skipif(find("ml-100k") is None, reason="needs ml-100k, see `deeprec data list`")
def test_ml_100k_is_ranked_better_than_by_popularity() -> None:
    data = load("ml-100k")
    model = create("amf", factors=32, epochs=4, plain_epochs=6, patience=0)
    result = fit(model, data, protocol="full", seed=1)
    assert result.card.metrics["hr@10"] > 1.1 * result.card.baselines["popularity"]["hr@10"]
