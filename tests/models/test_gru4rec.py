"""Claims about GRU4Rec: the step is the equations', lanes know of their own session alone, and states are carried."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.batches import SessionBatch, SessionBatches
from deeprec.data import Interactions, from_frame
from deeprec.models import GRU4Rec, Schema
from deeprec.train.optimizers import Optimizers

NUM_ITEMS = 23
LOSSES = ("cross-entropy", "top1", "bpr", "top1-max", "bpr-max")


def model_of(num_items: int = NUM_ITEMS, seed: int = 0, **options: Any) -> GRU4Rec:
    given = {"factors": 5, "batch_size": 3, "num_negatives": 6, **options}
    if given.get("negatives", "mixed") != "mixed":
        given.pop("num_negatives")
    return GRU4Rec(Schema(40, num_items), generator=torch.Generator().manual_seed(seed), **given)


def step_of(items: list[int], targets: list[int], **parts: Any) -> SessionBatch:
    given = {name: None if part is None else torch.tensor(part) for name, part in parts.items()}
    return SessionBatch(
        torch.tensor(items), torch.tensor(targets), given.get("lanes"), given.get("is_first"), given.get("negatives")
    )


def sessions_of(sessions: list[list[int]]) -> Interactions:
    rows = [(s, item, 100 * s + t) for s, items in enumerate(sessions) for t, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame, timestamp="timestamp", duplicates="keep")


def chains(num_sessions: int = 80, seed: int = 0) -> Interactions:
    """Item i is followed by i + 1, one time in ten by any."""
    draw = np.random.default_rng(seed)
    sessions = []
    for _ in range(num_sessions):
        items = [int(draw.integers(0, 20))]
        for _ in range(int(draw.integers(2, 9))):
            items.append(int(draw.integers(0, 20)) if draw.random() < 0.1 else (items[-1] + 1) % 20)
        sessions.append(items)
    return sessions_of(sessions)


# -- the step ---------------------------------------------------------------------------------------------------


def sigma(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


class Plain:
    """One layer, constrained input, cross-entropy: forwards, backwards and AdaGrad by hand, in float64."""

    def __init__(self, model: GRU4Rec) -> None:
        names = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0", "b_hh": "bias_hh_l0"}
        self.weights = {
            short: getattr(model.layers[0], name).detach().double().numpy() for short, name in names.items()
        }
        self.weights["items"] = model.items.weight.detach().double().numpy().copy()
        self.weights["bias"] = model.item_bias.weight.detach().double().numpy()[:, 0].copy()
        self.sums = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.steps = {name: np.zeros_like(weight) for name, weight in self.weights.items()}

    def step(
        self,
        state: NDArray[np.float64],
        items: list[int],
        targets: list[int],
        negatives: list[int],
        *,
        nominal: int,
        lr: float,
        momentum: float,
    ) -> tuple[float, NDArray[np.float64]]:
        w, width = self.weights, state.shape[1]
        candidates = [*targets, *negatives]
        grads = {name: np.zeros_like(weight) for name, weight in w.items()}
        loss, after = 0.0, np.zeros_like(state)
        for b, item in enumerate(items):
            x, h = w["items"][item], state[b]
            a, c = w["w_ih"] @ x + w["b_ih"], w["w_hh"] @ h + w["b_hh"]
            r, z = sigma(a[:width] + c[:width]), sigma(a[width : 2 * width] + c[width : 2 * width])
            n = np.tanh(a[2 * width :] + r * c[2 * width :])
            after[b] = (1 - z) * n + z * h
            scores = np.array([w["items"][j] @ after[b] + w["bias"][j] for j in candidates])
            shares = np.exp(scores) / np.exp(scores).sum()
            loss -= math.log(shares[b]) / nominal
            d_scores = shares / nominal
            d_scores[b] -= 1 / nominal
            d_h = np.zeros(width)
            for place, j in enumerate(candidates):
                grads["items"][j] += d_scores[place] * after[b]
                grads["bias"][j] += d_scores[place]
                d_h += d_scores[place] * w["items"][j]
            d_n, d_z = d_h * (1 - z) * (1 - n * n), d_h * (h - n) * z * (1 - z)
            d_r = d_n * c[2 * width :] * r * (1 - r)
            d_a, d_c = np.concatenate([d_r, d_z, d_n]), np.concatenate([d_r, d_z, d_n * r])
            grads["w_ih"] += np.outer(d_a, x)
            grads["w_hh"] += np.outer(d_c, h)
            grads["b_ih"] += d_a
            grads["b_hh"] += d_c
            grads["items"][item] += w["w_ih"].T @ d_a
        touched = {"items": sorted({*items, *candidates}), "bias": sorted(set(candidates))}
        for name, grad in grads.items():
            rows = touched.get(name, slice(None))
            self.sums[name][rows] += grad[rows] ** 2
            self.steps[name][rows] = momentum * self.steps[name][rows] - lr * grad[rows] / np.sqrt(
                self.sums[name][rows] + 1e-6
            )
            w[name][rows] += self.steps[name][rows]
        return loss, after


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_training_steps_are_those_by_hand(momentum: float) -> None:
    """Three steps, with a repeated item, a lane that begins anew and one that has been dropped."""
    model = model_of(momentum=momentum, lr=0.1).train()
    plain, optimizers = Plain(model), Optimizers(model)
    state = np.zeros((3, 5))
    steps: list[tuple[list[int], list[int], list[int], list[int], list[bool] | None]] = [
        ([4, 7, 7], [7, 9, 1], [3, 9, 3, 20, 22, 0], [0, 1, 2], [True, True, True]),
        ([7, 2, 1], [5, 5, 4], [1, 1, 2, 3, 5, 8], [0, 1, 2], [False, True, False]),
        ([5, 4], [6, 11], [0, 0, 6, 3, 5, 8], [0, 2], None),
    ]
    for items, targets, negatives, lanes, is_first in steps:
        batch = step_of(items, targets, lanes=lanes if len(lanes) < 3 else None, is_first=is_first, negatives=negatives)
        before = state[lanes]
        if is_first is not None:
            before = before * ~np.array(is_first)[:, None]
        expected, state[lanes] = plain.step(before, items, targets, negatives, nominal=3, lr=0.1, momentum=momentum)
        assert float(model.backward(batch)) == pytest.approx(expected, rel=1e-5)
        optimizers.step()
        optimizers.clear()
        np.testing.assert_allclose(model.lane_states[0].numpy(), state, atol=2e-5)
    for short, weight in plain.weights.items():
        if short in ("items", "bias"):
            mine = (model.items if short == "items" else model.item_bias).weight.detach().numpy().reshape(weight.shape)
        else:
            mine = (
                dict(model.layers[0].named_parameters())[{"w": "weight_", "b": "bias_"}[short[0]] + short[2:] + "_l0"]
                .detach()
                .numpy()
            )
        np.testing.assert_allclose(mine, weight, atol=5e-5)


@pytest.mark.parametrize("negatives", ["mixed", "in-batch", "full"])
@pytest.mark.parametrize("given", ["constrained", "separate", "one-hot"])
@pytest.mark.parametrize("loss", LOSSES)
def test_backward_gives_the_gradients_of_the_loss(loss: str, given: str, negatives: str) -> None:
    if negatives == "full" and loss != "cross-entropy":
        with pytest.raises(ValueError, match="negatives 'full' go with the loss cross-entropy"):
            model_of(loss=loss, negatives=negatives)
        return
    model = model_of(loss=loss, input=given, negatives=negatives, num_layers=2).train()
    model.lane_states.normal_(generator=torch.Generator().manual_seed(1))
    drawn = [3, 9, 3, 20, 22, 0] if negatives == "mixed" else None
    batch = step_of([4, 7, 7], [7, 9, 1], is_first=[False, True, False], negatives=drawn)
    before = model.lane_states.clone()
    value = model.loss(batch)
    value.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert torch.equal(model.lane_states, before)  # asking for the loss trains nothing
    model.zero_grad(set_to_none=True)
    torch.testing.assert_close(model.backward(batch), value.detach())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in expected), name
        if parameter.grad is not None:
            mine, theirs = (grad.to_dense() if grad.is_sparse else grad for grad in (parameter.grad, expected[name]))
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    assert not torch.equal(model.lane_states, before)


@pytest.mark.parametrize("negatives", ["mixed", "in-batch"])
@pytest.mark.parametrize(("log_q", "is_masked"), [(0.7, False), (0.0, True), (0.7, True)])
def test_backward_gives_the_gradients_of_corrected_and_masked_losses(
    log_q: float, is_masked: bool, negatives: str
) -> None:
    """With candidates that are the same item: targets of two lanes, drawn targets, items drawn twice."""
    data = chains()
    model = model_of(data.num_items, log_q=log_q, mask_targets=is_masked, negatives=negatives, batch_size=4).train()
    model.batches(data, 0)
    drawn = [3, 9, 3, 19, 7, 0] if negatives == "mixed" else None
    batch = step_of([4, 7, 7, 2], [7, 9, 7, 9], is_first=[True] * 4, negatives=drawn)
    model.items.weight.data.mul_(3)
    value = model.loss(batch)
    value.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    torch.testing.assert_close(model.backward(batch), value.detach())
    for name, parameter in model.named_parameters():
        mine, theirs = (grad.to_dense() if grad.is_sparse else grad for grad in (parameter.grad, expected[name]))
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam", "sgd", "adagrad"])
@pytest.mark.parametrize("given", ["constrained", "separate"])
def test_every_optimizer_steps_as_with_gradients_of_autograd(optimizer: str, given: str) -> None:
    """Rows that Adam has put off are brought up to date before they are read."""
    models = [model_of(optimizer=optimizer, input=given, lr=0.05).train() for _ in range(2)]
    optimizers = [Optimizers(model) for model in models]
    draw = torch.Generator().manual_seed(5)
    for _ in range(6):
        items, targets, negatives = (torch.randint(NUM_ITEMS, (n,), generator=draw) for n in (3, 3, 6))
        batch = SessionBatch(items, targets, None, None, negatives)
        models[1].lane_states.copy_(models[0].lane_states)
        models[0].backward(batch)
        models[1].loss(batch).backward()
        for one in optimizers:
            one.step()
            one.clear()
    for one in optimizers:
        one.flush()
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-3)


def test_initial_losses_are_those_derived() -> None:
    """Near zero scores: cross-entropy ln(B + n), TOP1 1, BPR ln 2."""
    for loss, expected in zip(LOSSES, [math.log(32 + 2048), 1.0, math.log(2), 1.0, math.log(2)], strict=True):
        model = model_of(5000, factors=100, batch_size=32, num_negatives=2048, loss=loss).train()
        draw = torch.Generator().manual_seed(0)
        items, targets, negatives = (torch.randint(5000, (n,), generator=draw) for n in (32, 32, 2048))
        batch = SessionBatch(items, targets, None, torch.ones(32, dtype=torch.bool), negatives)
        assert float(model.loss(batch).detach()) == pytest.approx(expected, abs=2e-3)


def test_loss_is_by_the_nominal_batch_size() -> None:
    model = model_of(negatives="full")
    wide, narrow = (
        model.loss(step_of([1, 2, 3], [4, 5, 6])),
        [model.loss(step_of([i], [i + 3], lanes=[i - 1])) for i in (1, 2, 3)],
    )
    torch.testing.assert_close(wide, sum(narrow))


# -- candidates ---------------------------------------------------------------------------------------------------


def test_negatives_of_a_lane_are_the_targets_of_the_others_and_the_drawn_items() -> None:
    model = model_of()
    states, items, bias = (x.detach().double() for x in (torch.randn(3, 5), model.items.weight, torch.randn(NUM_ITEMS)))
    model.item_bias.weight.data.copy_(bias.unsqueeze(1))
    batch = step_of([1, 2, 3], [4, 5, 6], negatives=[9, 9, 10, 5, 0, 22])
    candidates = torch.cat([batch.targets, batch.negatives])  # type: ignore[list-item]
    loss = model._loss_of(states.float(), model.items.weight[candidates], candidates, batch)
    scores = states @ items.T + bias
    expected = -sum(float(scores[b, t] - scores[b, candidates].logsumexp(0)) for b, t in enumerate([4, 5, 6]))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_negatives_that_are_the_target_stay_in_unless_masked(loss: str) -> None:
    """The authors leave them in. Masked, a step with them is a step without them."""
    twice, once = ([6, 6, 9, 10], [9, 10, 9, 10])
    batches = [step_of([1], [6], lanes=[0], negatives=negatives) for negatives in (twice, once)]
    models = [model_of(loss=loss, num_negatives=4, mask_targets=is_masked) for is_masked in (False, True)]
    for model in models:
        model.items.weight.data.mul_(4)
    left_in = [float(models[0].loss(batch).detach()) for batch in batches]
    assert left_in[0] != pytest.approx(left_in[1], rel=1e-3)
    masked = [model.loss(step_of([1], [6], lanes=[0], negatives=negatives)) for negatives in (twice, [9, 10])]
    torch.testing.assert_close(*masked)


def test_log_q_lowers_logits_by_counts_and_drawn_ones_by_the_power() -> None:
    data = chains()
    model = model_of(data.num_items, log_q=0.7, alpha=0.4)
    batches = model.batches(data, 0)
    batch = next(iter(batches.epoch(0)))
    model.eval()
    log_counts = torch.from_numpy(data.item_counts()).double().log()
    candidates = torch.cat([batch.targets, batch.negatives])
    state = model.history_rows(torch.arange(4), batch.items)[0].double()
    scores = state @ model.items.weight.detach().double()[candidates].T
    power = torch.tensor([1.0] * 3 + [0.4] * 6, dtype=torch.float64)
    scores = scores - 0.7 * power * log_counts[candidates]
    expected = (scores.logsumexp(1) - scores.diagonal()).sum() / 3
    assert float(model.loss(batch).detach()) == pytest.approx(float(expected), rel=1e-5)


# -- lanes ---------------------------------------------------------------------------------------------------


def walked(model: GRU4Rec, sessions: list[list[int]], num_lanes: int) -> dict[tuple[int, ...], Tensor]:
    """The state of each lane after each step, by the events of the session so far; nothing is learnt on the way."""
    data = sessions_of(sessions)
    states: dict[tuple[int, ...], Tensor] = {}
    so_far: dict[int, tuple[int, ...]] = {}
    for batch in SessionBatches(data, num_lanes=num_lanes, seed=0).epoch(0):
        model.backward(batch)
        lanes = list(range(num_lanes)) if batch.lanes is None else batch.lanes.tolist()
        is_first = [False] * len(lanes) if batch.is_first is None else batch.is_first.tolist()
        for lane, item, first in zip(lanes, batch.items.tolist(), is_first, strict=True):
            so_far[lane] = (*(() if first else so_far[lane]), int(data.item_ids.values[item]))
            states[so_far[lane]] = model.lane_states[:, lane].clone()
    return states


def test_sessions_through_one_lane_are_sessions_through_lanes_of_their_own() -> None:
    """No lane is reset too late, never, or with another one; those that are dropped leave the others alone."""
    sessions = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20]]
    options = {"num_layers": 2, "negatives": "full", "batch_size": 6}
    one, two, all_apart = (walked(model_of(**options).eval(), sessions, lanes) for lanes in (1, 2, 6))
    assert one.keys() == two.keys() == all_apart.keys()
    assert len(one) == sum(len(session) - 1 for session in sessions)
    for prefix, state in all_apart.items():
        torch.testing.assert_close(one[prefix], state, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(two[prefix], state, atol=1e-6, rtol=1e-5)


def test_lanes_go_on_from_the_state_after_the_step_without_a_gradient_through_it() -> None:
    model = model_of(negatives="full", dropout_hidden=0.5).train()
    torch.manual_seed(0)
    model.backward(step_of([1, 2, 3], [4, 5, 6], is_first=[True] * 3))
    carried = model.lane_states.clone()
    assert not carried.requires_grad
    assert bool((carried == 0).any())  # dropped ones are dropped for the session too, as in the authors' code
    model.backward(step_of([4, 5, 6], [7, 8, 9], is_first=[False, True, False]))
    assert not torch.equal(model.lane_states, carried)


def test_dropout_acts_in_training_alone_and_where_it_is_named() -> None:
    batch = step_of([1, 2, 3], [4, 5, 6], is_first=[True] * 3)
    plain = model_of(negatives="full").eval().loss(batch)
    for name in ("dropout_embed", "dropout_hidden"):
        model = model_of(negatives="full", **{name: 0.6})
        torch.testing.assert_close(model.eval().loss(batch), plain)
        torch.manual_seed(3)
        assert float(model.train().loss(batch).detach()) != float(plain.detach())
    with pytest.raises(ValueError, match="dropout_embed has no effect here"):
        model_of(input="one-hot", dropout_embed=0.2)


def test_initial_weights_are_uniform_within_the_limit_of_their_gate() -> None:
    model = model_of(200, factors=40, input="separate", embedding_dim=30)
    limits = {
        "items.weight": 6 / (200 + 40), "inputs.weight": 6 / (200 + 30),
        "layers.0.weight_ih_l0": 6 / (40 + 30), "layers.0.weight_hh_l0": 6 / (40 + 40),
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        if name in limits:
            limit = limits[name] ** 0.5
            assert limit * 0.98 < float(parameter.abs().max()) <= limit
        else:
            assert not parameter.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of cross-entropy, top1, bpr, top1-max, bpr-max; got 'hinge'"),
        ({"input": "shared"}, "input must be one of constrained, separate, one-hot"),
        ({"dropout_hidden": 1.0}, r"dropout_hidden must lie in \[0, 1\), got 1.0"),
        ({"momentum": 0.2, "optimizer": "adam"}, "momentum has no effect here"),
        ({"batching": "windows"}, "batching 'windows' goes with cross-entropy over all items"),
        ({"elu": 1.0}, "elu has no effect here"),
        ({"num_layers": 0}, "num_layers must be >= 1"),
        ({"log_q": 1.0, "loss": "bpr"}, "log_q has no effect here"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRU4Rec(**options)
