"""Claims about CDAE: its formula against dense PyTorch in float64, its batches, training, and new users."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deeprec
from deeprec.batches import UserBatch
from deeprec.contract import Queries
from deeprec.data import Interactions, from_frame
from deeprec.models import CDAE, Schema
from deeprec.models.cdae import VARIANTS
from deeprec.nn.scoring import score_items
from deeprec.train import fit
from deeprec.train.optimizers import Optimizers


def likes(num_users: int = 40, num_items: int = 30, density: float = 0.3, seed: int = 0) -> Interactions:
    """Users of two kinds, each of whom likes one half of the items."""
    draw = np.random.default_rng(seed)
    users, items = np.nonzero(draw.random((num_users, num_items)) < density)
    same = users % 2 == items % 2
    return from_frame(pl.DataFrame({"user_id": users[same], "item_id": items[same]}))


def small(data: Interactions, **options: Any) -> CDAE:
    generator = torch.Generator().manual_seed(0)
    return CDAE(Schema(data.num_users, data.num_items), generator=generator, **({"hidden": 6} | options))


def dense(model: CDAE, batch: UserBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and regulariser of a batch by the formula, in float64, and the parameters they depend on."""
    config = model.config
    p = {key: value.detach().double().requires_grad_() for key, value in model.named_parameters()}
    decoder = p["encoder"] if config.tied else p["decoder_weight"]
    num_items = len(p["encoder"])
    loss = torch.zeros((), dtype=torch.float64)
    for row, user in enumerate(batch.users):
        corrupted = torch.zeros(num_items, dtype=torch.float64)
        begin, end = batch.input_offsets[row], batch.input_offsets[row + 1]
        corrupted[batch.input_indices[begin:end]] = 1 / (1 - config.corruption)
        z = corrupted @ p["encoder"] + p["users"][user] + p["encoder_bias"]
        z = {"identity": z, "sigmoid": z.sigmoid(), "tanh": z.tanh()}[config.activation]
        scored = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        logits = (z @ decoder.T + p["decoder_bias"])[batch.indices[scored]]
        labels = batch.labels[scored].double()
        if config.loss == "squared":
            loss = loss + ((logits - labels) ** 2).sum() / 2
        elif config.loss == "hinge":
            loss = loss + (1 - labels * logits).clamp(min=0).sum()
        else:
            loss = loss + F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    every = torch.arange(num_items)
    touched_in = every if model._is_input_dense else batch.input_indices.unique()
    touched_out = every if model._is_output_dense else batch.indices.unique()
    if config.tied:
        rows = [p["encoder"][torch.cat([touched_in, touched_out]).unique()]]
    else:
        rows = [p["encoder"][touched_in], p["decoder_weight"][touched_out]]
    rows += [p["encoder_bias"], p["decoder_bias"]]
    user_l2 = config.l2 if config.user_l2 is None else config.user_l2
    penalty = config.l2 / 2 * sum(part.square().sum() for part in rows)
    penalty = penalty + user_l2 / 2 * p["users"][batch.users].square().sum()
    if config.reduction == "mean":
        return loss / len(batch.users), {**p, "objective": loss / len(batch.users) + penalty}
    return loss, {**p, "objective": loss + len(batch.users) * penalty}


@pytest.mark.parametrize(
    "options",
    [
        *({"variant": variant} for variant in VARIANTS),
        {"activation": "tanh", "loss": "hinge"},
        {"variant": "m4", "tied": True},
        {"variant": "m3", "reduction": "mean", "user_l2": 0.7},
        {"l2": 0.0, "user_l2": 0.2},
        {"variant": "m4", "corruption": 0.0, "l2": 0.0},
        {"variant": "m2", "tied": True, "optimizer": "adam"},
    ],
)
@pytest.mark.parametrize("is_dense", [False, True])
def test_loss_and_gradients_are_the_formula(options: dict[str, Any], is_dense: bool) -> None:
    data = likes(40, 30) if is_dense else likes(40, 400, density=0.02)
    model = small(data, **({"batch_size": 7, "l2": 0.3, "corruption": 0.4} | options))
    batch = next(iter(model.batches(data, seed=1).epoch(0)))
    loss, p = dense(model, batch)
    got = model.backward(batch)
    torch.testing.assert_close(got.double(), loss.detach(), rtol=1e-5, atol=1e-5)
    assert model.users.grad.is_sparse
    assert model.decoder.grad.is_sparse == (not is_dense and not model._is_output_dense)
    names = [key for key, _ in model.named_parameters()]
    exact = dict(zip(names, torch.autograd.grad(p["objective"], [p[key] for key in names]), strict=True))
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.grad.to_dense().double(), exact[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh"])
def test_prediction_reads_the_uncorrupted_likes(activation: str) -> None:
    data = likes()
    model = small(data, activation=activation, corruption=0.9)
    model.batches(data, seed=0)
    matrix = torch.zeros(data.num_users, data.num_items)
    matrix[data.users, data.items] = 1
    z = matrix @ model.encoder + model.users + model.encoder_bias
    z = {"identity": z, "sigmoid": z.sigmoid(), "tanh": z.tanh()}[activation]
    want = (z @ model.decoder.T + model.decoder_bias).detach()
    torch.testing.assert_close(model.score_items(torch.arange(data.num_users)), want, rtol=1e-5, atol=1e-5)
    asked = Queries(history=(torch.tensor([0, 3]), torch.tensor([4, 1, 4])))
    new = score_items(model.scorer(model.encode(asked)))
    z = model.encoder[[1, 4]].sum(0) + model.encoder_bias
    z = {"identity": z, "sigmoid": z.sigmoid(), "tanh": z.tanh()}[activation]
    torch.testing.assert_close(new[0], (z @ model.decoder.T + model.decoder_bias).detach(), rtol=1e-5, atol=1e-5)


def test_adagrad_divides_by_the_root_of_beta_plus_the_squares() -> None:
    data = likes()
    model = small(data, batch_size=1000, lr=0.1, adagrad_start=1.0)
    (batch,) = model.batches(data, seed=0).epoch(0)
    optimizers = Optimizers(model)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    model.backward(batch)
    grads = {key: value.grad.to_dense() for key, value in model.named_parameters()}
    optimizers.step()
    for key, value in model.named_parameters():
        want = before[key] - 0.1 * grads[key] / (1 + grads[key] ** 2).sqrt()
        torch.testing.assert_close(value.detach(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "lr": 0.02}, {"tied": True}, {"loss": "hinge"}])
def test_learns_saves_and_loads(options: dict[str, Any], tmp_path: Any) -> None:
    data = likes(120, 60)
    model = CDAE(hidden=8, epochs=12, batch_size=16, **options)
    result = fit(model, data, protocol="cdae", seed=0, out=tmp_path / "run")
    # Half of the items are the right ones; among them a random order has a recall of about 10 / 24.
    assert result.card.metrics["recall@10"] > 0.3
    assert result.card.protocol["holdout"] == "random_by_user"
    loaded = deeprec.load(tmp_path / "run")
    users = torch.arange(data.num_users)
    assert torch.equal(loaded.score_items(users), model.score_items(users))
    for half in (0, 1):
        frame = model.recommend_for_history([half, half + 2, half + 4], k=5)
        assert (frame["item_id"].to_numpy() % 2 == half).mean() >= 0.8


def test_an_interrupted_run_ends_bit_for_bit_where_the_whole_one_ends(tmp_path: Any) -> None:
    data = likes(60, 50)

    def run(name: str, stop_after: int | None = None, resume: bool = False) -> CDAE:
        def stop(progress: Any) -> None:
            if progress.metrics is not None and progress.epoch == stop_after:
                raise KeyboardInterrupt

        model = CDAE(hidden=6, epochs=7, batch_size=16)
        fit(model, data, protocol="cdae", seed=1, out=tmp_path / name, resume=resume, on_progress=stop)
        return model

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop_after=3)
    parts = run("parts", resume=True)
    for (key, want), got in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(got, want), key


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adagrad, torch.optim.Adam])
def test_a_loop_in_plain_torch_trains_what_is_predicted(optimizer_class: Any) -> None:
    data = likes()
    model = small(data)
    model.sparse_grad = optimizer_class is not torch.optim.Adam
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    batches = model.batches(data, seed=0)
    users = torch.arange(data.num_users)
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
        got = model.score_items(users)
        again = small(data)
        again.batches(data, seed=0)
        again.load_state_dict(model.state_dict())  # which computes the hidden layer anew
        torch.testing.assert_close(got, again.score_items(users))


def test_works_in_float64_and_can_be_pickled() -> None:
    data = likes()
    model = small(data, batch_size=100).double()
    (batch,) = model.batches(data, seed=0).epoch(0)
    loss, _ = dense(model, batch)
    torch.testing.assert_close(model.loss(batch).detach(), loss.detach(), rtol=1e-12, atol=0)
    users, items = torch.arange(20), torch.arange(20)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)
    assert torch.equal(again(users, items), model(users, items))


def test_with_all_likes_dropped_the_user_vectors_say_everything() -> None:
    data = likes(120, 60)
    model = CDAE(hidden=8, corruption=1.0, epochs=60, batch_size=16, l2=0.0)
    result = fit(model, data, protocol="cdae", seed=0)
    assert result.card.metrics["recall@10"] > 0.3
    assert all(not len(batch.input_indices) for batch in model._likes.epoch(0))
    torch.testing.assert_close(model.codes, torch.sigmoid(model.users + model.encoder_bias).detach())
    for half in (0, 1):  # a new user has no vector: it is fitted to the likes
        frame = model.recommend_for_history([half, half + 2, half + 4], k=5)
        assert (frame["item_id"].to_numpy() % 2 == half).mean() >= 0.8


def test_a_user_who_likes_everything_is_named_before_training_starts() -> None:
    frame = pl.concat([likes().to_frame(), pl.DataFrame({"user_id": [99] * 30, "item_id": list(range(30))})])
    data = from_frame(frame)
    with pytest.raises(ValueError, match="got user 99 who likes all 30; leave the user out"):
        small(data).batches(data, seed=0)


def test_weights_set_by_hand_show_at_once() -> None:
    data = likes()
    model = small(data)
    model.batches(data, seed=0)
    model.score_items(torch.arange(3))
    state = {key: value + 0.5 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    want = small(data)
    want.batches(data, seed=0)
    with torch.no_grad():
        for key, value in want.named_parameters():
            value.copy_(state[key])
    assert torch.equal(model.score_items(torch.arange(3)), want.score_items(torch.arange(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": 1.5}, "corruption must lie in"),
        ({"variant": "m5"}, "variant must be one of m1, m2, m3, m4"),
        ({"loss": "log"}, "loss must be squared or cross_entropy or hinge"),
        ({"activation": "relu"}, "activation must be"),
        ({"hidden": 0}, "hidden must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"adagrad_start": -1.0}, "adagrad_start must be >= 0"),
        ({"user_l2": -1.0}, "user_l2 must be >= 0"),
        ({"precision": "bfloat16"}, "precision has no effect here"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CDAE(**options)
