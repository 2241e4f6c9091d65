"""Claims about RBM: energies, gradients and predictions against sums over all states, and real ratings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from deeprec.batches.levels import ChainBatch
from deeprec.data import Interactions, from_frame, load
from deeprec.data.sets.datasets import find
from deeprec.evaluate import protocol
from deeprec.models import RBM, Schema
from deeprec.models.rbm import RBMConfig
from deeprec.train import fit
from deeprec.train.optimizers import Optimizers

needs_ml_100k = pytest.mark.skipif(find("ml-100k") is None, reason="needs ml-100k, see `deeprec data list`")
COLUMNS, LEVELS, HIDDEN = 3, 3, 2
STATES = torch.tensor(list(itertools.product(range(LEVELS), repeat=COLUMNS)))  # of the ratings, [27, 3]
KINDS: list[dict[str, Any]] = [
    {},
    {"conditional": False},
    {"rank": 2},
    {"visible": "binomial"},
    {"units": "gaussian"},
    {"units": "gaussian", "visible": "binomial", "rank": 1, "conditional": False},
]


def model_of(std: float = 0.7, **options: Any) -> RBM:
    """Three columns of three levels and two hidden units, in float64, with weights that matter."""
    chosen = {"levels": (1, 2, 3), "hidden": HIDDEN, **options}
    model = RBM(Schema(4, COLUMNS), **chosen).double()
    model.sparse_grad = False
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator)
    return model


def whole_rows(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, columns and levels of rows [b, 3] that have all columns."""
    return torch.arange(len(levels) + 1) * COLUMNS, torch.arange(COLUMNS).repeat(len(levels)), levels.flatten()


def weights_of(model: RBM) -> tuple[Tensor, Tensor, Tensor]:
    """W [columns, K, H] and b [columns, K] of the levels, and what the hidden units get from the columns alone [H]."""
    table = model.decoder if model.factors is None else model.decoder @ model.factors
    table, biases = table.view(COLUMNS, -1, HIDDEN), model.decoder_bias.view(COLUMNS, -1)
    if model.config.visible == "binomial":
        each = torch.arange(LEVELS).double()
        ways = torch.tensor([1.0, 2.0, 1.0]).double().log()
        table, biases = table * each[:, None], biases * each + ways
    rated = model.hidden_bias if model.rated is None else model.hidden_bias + model.rated.sum(0)
    return table, biases, rated


def plain_free_energies(model: RBM) -> Tensor:
    """[27] of all states: -log of the sum over the hidden states, or for normal ones the integral on a grid."""
    weights, biases, rated = weights_of(model)
    picked = torch.arange(COLUMNS)
    result = []
    for state in STATES:
        from_biases, inputs = biases[picked, state].sum(), weights[picked, state].sum(0) + rated
        if model.config.units == "bernoulli":
            hidden = torch.tensor(list(itertools.product((0.0, 1.0), repeat=HIDDEN))).double()
            result.append(-from_biases - (hidden @ inputs).logsumexp(0))
            continue
        grid = torch.linspace(-30, 30, 6001).double()
        of_visible = inputs - rated
        logs = -(grid[:, None] - rated).square() / 2 + grid[:, None] * of_visible
        area = logs.logsumexp(0) + np.log(0.01) - np.log(2 * np.pi) / 2
        result.append(-from_biases - area.sum())
    return torch.stack(result)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_free_energy_sums_over_the_hidden_states(options: dict[str, Any]) -> None:
    model = model_of(**options)
    assert torch.allclose(model.free_energy(*whole_rows(STATES)), plain_free_energies(model), atol=2e-6)


def test_positive_and_negative_statistics_are_expectations_over_all_states() -> None:
    """The gradient of W is <v h> under the model less <v h> of the data, each a sum over every visible and hidden."""
    model = model_of(conditional=False)
    data = torch.tensor([[0, 2, 1], [1, 1, 1], [2, 2, 0]])
    weights, biases, rated = weights_of(model)
    hidden = torch.tensor(list(itertools.product((0.0, 1.0), repeat=HIDDEN))).double()
    picked = torch.arange(COLUMNS)

    def energies(states: Tensor) -> Tensor:  # [n, 4] of all pairs
        inputs = weights[picked, states].sum(1)
        return -biases[picked, states].sum(1, keepdim=True) - inputs @ hidden.T - hidden @ rated

    def statistics(states: Tensor, joint: Tensor) -> Tensor:  # [columns, K, H] from probabilities [n, 4]
        is_level = torch.nn.functional.one_hot(states, LEVELS).double()
        return torch.einsum("nmk,ns,sh->mkh", is_level, joint, hidden)

    positive = statistics(data, (-energies(data)).softmax(1)) / len(data)
    negative = statistics(STATES, (-energies(STATES)).flatten().softmax(0).view(len(STATES), -1))
    shares = (-model.free_energy(*whole_rows(STATES))).softmax(0).detach()
    loss = model.free_energy(*whole_rows(data)).mean() - (shares * model.free_energy(*whole_rows(STATES))).sum()
    loss.backward()
    assert torch.allclose(model.decoder.grad.view(COLUMNS, LEVELS, HIDDEN), negative - positive)


def noise_of(rows: int, steps: int, units: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if units == "bernoulli" else torch.randn
    return (
        draw((steps, rows, HIDDEN), generator=generator),
        torch.rand((steps, rows * COLUMNS), generator=generator),
    )


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_long_chains_follow_the_distribution(options: dict[str, Any]) -> None:
    model, rows = model_of(**options), 20_000
    start = torch.zeros(rows, COLUMNS, dtype=torch.int64)
    batch = ChainBatch(*whole_rows(start), *noise_of(rows, 30, model.config.units))
    with torch.no_grad():
        rated = model._from_rated(batch.offsets, batch.columns)
        ends = model.chain(batch, rated).view(rows, COLUMNS)
    shares = torch.bincount(ends @ torch.tensor([9, 3, 1]), minlength=27) / rows
    expected = (-plain_free_energies(model)).softmax(0)
    errors = (shares - expected) / (expected * (1 - expected) / rows).sqrt()
    assert errors.abs().max() < 4.5


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_many_steps_give_the_gradient_of_the_likelihood(options: dict[str, Any]) -> None:
    model = model_of(**options)
    data = torch.tensor([[0, 2, 1], [1, 1, 1], [2, 2, 0], [0, 2, 2]])
    likelihood = (
        plain_free_energies(model).neg().logsumexp(0)
        + plain_free_energies(model)[data @ torch.tensor([9, 3, 1])].mean()
    )
    exact = torch.autograd.grad(likelihood, list(model.parameters()))
    copies = 5000
    rows = data.repeat(copies, 1)
    batch = ChainBatch(*whole_rows(rows), *noise_of(len(rows), 30, model.config.units, seed=1))
    model.backward(batch)
    for (name, parameter), expected in zip(model.named_parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected, atol=0.02), name
    largest = max(float(each.abs().max()) for each in exact)
    assert largest > 0.1  # so that the tolerance says something


def test_one_step_is_contrastive_divergence() -> None:
    """With the noise of the batch one step is taken by hand; the gradient is that of the two free energies."""
    model = model_of(conditional=False)
    data = torch.tensor([[0, 2, 1], [1, 1, 1]])
    hidden_noise, visible_noise = noise_of(2, 1, "bernoulli")
    weights, biases, rated = (each.detach() for each in weights_of(model))
    hidden = (hidden_noise[0] < torch.sigmoid(weights[torch.arange(3), data].sum(1) + rated)).double()
    shares = (biases + torch.einsum("mkh,bh->bmk", weights, hidden)).softmax(2).cumsum(2)
    sampled = (shares[..., :-1] < visible_noise.view(2, 3, 1)).sum(2)
    assert not torch.equal(sampled, data)
    expected = model.free_energy(*whole_rows(data)).mean() - model.free_energy(*whole_rows(sampled)).mean()
    grads = torch.autograd.grad(expected, list(model.parameters()))
    model.backward(ChainBatch(*whole_rows(data), hidden_noise, visible_noise))
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.allclose(parameter.grad, grad)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_predictions_are_those_of_the_formulas(options: dict[str, Any]) -> None:
    known = {0: 2, 2: 1}  # levels of two columns; the other one is asked
    offsets, columns, levels = torch.tensor([0, 2]), torch.tensor([0, 2]), torch.tensor([2, 1])
    scale = torch.tensor([1.0, 2.0, 3.0]).double()
    for prediction in ("mean-field", "exact"):
        model = model_of(**options, prediction=prediction)
        weights, biases, _ = weights_of(model)
        rated = model.hidden_bias + (0 if model.rated is None else model.rated[[0, 2]].sum(0))
        inputs = rated + weights[[0, 2], [2, 1]].sum(0)
        is_bernoulli = model.config.units == "bernoulli"
        if prediction == "mean-field":
            scores = biases[1] + weights[1] @ (torch.sigmoid(inputs) if is_bernoulli else inputs)
        elif is_bernoulli:  # p(v_q | the known), with the hidden units summed out
            hidden = torch.tensor(list(itertools.product((0.0, 1.0), repeat=HIDDEN))).double()
            scores = biases[1] + ((inputs + weights[1]) @ hidden.T).logsumexp(1)
        else:
            scores = biases[1] + (inputs + weights[1]).square().sum(1) / 2
        expected = float(scores.softmax(0) @ scale)
        codes = model._encode(offsets, columns, levels, 5)
        column = model._columns(torch.tensor([1]))
        assert float(model._expected(model._pair_scores(codes, *column))) == pytest.approx(expected, abs=1e-6)
        if prediction == "exact":
            assert float(model._rate(codes, *column)) == pytest.approx(expected, abs=1e-6)
    assert len(known) == len(levels)


def test_steps_grow_in_equal_parts_of_the_training() -> None:
    data = ratings()
    model = RBM(Schema(data.num_users, data.num_items), epochs=8, cd_steps=(1, 3, 5, 9))
    chains = model.batches(data, 0)
    assert [chains.steps(epoch) for epoch in range(8)] == [1, 1, 3, 3, 5, 5, 9, 9]
    assert [chains.steps(epoch) for epoch in range(8, 10)] == [9, 9]
    assert next(chains.epoch(7)).hidden_noise.shape[0] == 9


def test_gradients_are_means_over_rows() -> None:
    model = model_of()
    data = torch.tensor([[0, 2, 1], [1, 1, 1]])
    hidden, visible = noise_of(2, 1, "bernoulli")
    model.backward(ChainBatch(*whole_rows(data), hidden, visible))
    once = model.decoder.grad.clone()
    model.decoder.grad = None
    twice = ChainBatch(*whole_rows(data.repeat(2, 1)), hidden.repeat(1, 2, 1), visible.repeat(1, 2))
    model.backward(twice)
    assert torch.allclose(model.decoder.grad, once)


def test_sgd_takes_the_momentum() -> None:
    data = ratings()
    model = RBM(Schema(data.num_users, data.num_items), optimizer="sgd", momentum=0.9, weight_decay=0.01)
    groups = Optimizers(model).by_group
    assert {name: one.param_groups[0]["momentum"] for name, one in groups.items()} == {"weights": 0.9, "biases": 0.9}
    assert {name: one.param_groups[0]["weight_decay"] for name, one in groups.items()} == {"weights": 0.01, "biases": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visible": "normal"}, "visible must be one of softmax, binomial"),
        ({"units": "relu"}, "units must be one of bernoulli, gaussian"),
        ({"prediction": "mode"}, "prediction must be one of mean-field, exact"),
        ({"cd_steps": ()}, "cd_steps must be one number or more"),
        ({"cd_steps": (1, 0)}, "cd_steps must be one number or more"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"momentum": 0.5}, "momentum has no effect here"),
        ({"init_std": 0.0}, "init_std must be > 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBMConfig(**options)


def ratings() -> Interactions:
    """Even users love even items and hate odd ones, odd users the reverse; most pairs are rated."""
    draw = np.random.default_rng(1)
    users, items = np.nonzero(draw.random((40, 20)) < 0.7)
    values = np.where((users + items) % 2, draw.integers(1, 3, len(users)), draw.integers(4, 6, len(users)))
    return from_frame(pl.DataFrame({"user_id": users, "item_id": items, "rating": values}), rating="rating")


@pytest.mark.parametrize("visible", ["softmax", "binomial"])
@pytest.mark.parametrize("side", ["item", "user"])
def test_it_recommends_what_a_person_would(side: str, visible: str) -> None:
    options = {"hidden": 16, "epochs": 60, "batch_size": 8, "lr": 0.02, "refit": False, "visible": visible}
    model = RBM(side=side, **options).fit(ratings(), protocol="rating", seed=1)
    best = model.recommend(list(range(40)), 1)
    assert all((row["user_id"] + row["item_id"]) % 2 == 0 for row in best.iter_rows(named=True))
    new = model.recommend_for_history([1, 3, 2, 4], 4, ratings=[5, 5, 1, 1])
    assert all(item % 2 for item in new["item_id"])


def test_whoever_has_no_ratings_is_rated_by_the_items() -> None:
    data = ratings()
    model = RBM(hidden=4, epochs=10, lr=0.02, batch_size=8).fit(data, protocol="rating", baselines=False)
    nobody = model.rated_rows(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]))
    scores = model._rate(nobody[0].view(1, 1, -1), *model._columns(torch.arange(20)))
    assert scores.shape == (1, 20)
    assert scores.min() > 1
    assert scores.max() < 5


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    "options", [{}, {"side": "item", "rank": 3, "units": "gaussian", "visible": "binomial"}], ids=str
)
def test_an_interrupted_run_ends_bit_for_bit_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    data, chosen = ratings(), {**{"hidden": 8, "epochs": 4, "batch_size": 6, "cd_steps": (1, 3)}, **options}

    def run(folder: str, **how: Any) -> Any:
        return fit(RBM(**chosen), data, protocol="rating", seed=2, out=tmp_path / folder, baselines=False, **how)

    def stop(progress: Any) -> None:
        if progress.metrics and progress.epoch == 2:
            raise _Stop

    whole = run("whole")
    with pytest.raises(_Stop):
        run("parts", on_progress=stop)
    parts = run("parts", resume=True)
    ours, theirs = parts.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert parts.card.metrics == whole.card.metrics


@needs_ml_100k
def test_ml_100k() -> None:
    model = RBM(side="item", hidden=50, epochs=12, batch_size=32, lr=0.005, cd_steps=(1,))
    card = fit(model, load("ml-100k"), protocol=protocol("rating"), seed=1, baselines=False).card
    assert card.metrics["rmse"] < 0.94  # biases 0.94, the item mean 1.02
