"""What `bench.reinforcement` measures on logs: estimators beside the truth, Open Bandit, and Coat."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec.contract import Schema
from deeprec.data import (
    BanditLog,
    Interactions,
    LoggedInteractions,
    load,
    load_bandit,
    naive_bayes_propensities,
    synthetic,
    with_propensities,
)
from deeprec.evaluate import Interval, OffPolicyEstimate, mean_rewards, off_policy_value
from deeprec.models import create
from deeprec.simulate import World, best_policy, simulate, softmax_policy, uniform_policy, value
from deeprec.train.loop import train_epoch
from deeprec.train.optimizers import Optimizers

ESTIMATES = ("dm", "ips", "clipped-ips", "snips", "dr", "replay")
_CLIP, _NUM_LOGS, _NUM_ROWS = 5.0, 300, 2000
_RANDOM_SHARE = 0.05  # of Coat's random ratings, for P(r)
_GRID = tuple(product((8,), (1.0, 3.0, 10.0, 30.0)))  # width and l2
_FOLDS = 4
Array = NDArray[np.float64]


def estimator_figures(seed: int) -> dict[str, Any]:
    """Bias, deviation, root mean square error (shares of the truth) and cover of each estimator, by kind of log."""
    made = synthetic(50, 10, 250, num_factors=4, seed=seed)
    assert made.truth is not None
    world = World.of_truth(made.truth, click_rate=0.2, strength=1.0)
    target, best = softmax_policy(world, 5.0), best_policy(world)
    truths = {policy: float(value(world, policy).mean()) for policy in (target, best)}
    figures: dict[str, Any] = {"truth": truths[target]}
    for kind, behaviour in (("random", uniform_policy(world)), ("skewed", softmax_policy(world, -5.0))):
        errors: dict[str, list[tuple[float, bool, float]]] = {}
        for number in range(_NUM_LOGS):
            rng = np.random.Generator(np.random.Philox((seed, number)))
            users = rng.integers(0, world.num_users, _NUM_ROWS)
            drawn = simulate(world, behaviour, users, seed=seed * _NUM_LOGS + number)
            log, began = drawn.bandit_log(), world.begin(users)
            modelled = mean_rewards(log, seed=number)
            for name in ESTIMATES if kind == "random" else ESTIMATES[:-1]:
                policy = best if name == "replay" else target
                estimate = _estimate(log, policy(began), name, modelled)
                error = estimate.value / truths[policy] - 1
                covers = estimate.low <= truths[policy] <= estimate.high
                errors.setdefault(name, []).append((error, covers, estimate.effective_rows))
        figures[kind] = {name: _summary(rows) for name, rows in errors.items()}
    return figures


def _estimate(log: BanditLog, policy: Array, name: str, modelled: Array) -> OffPolicyEstimate:
    rewards = modelled if name in ("dm", "dr") else None
    clip = _CLIP if name == "clipped-ips" else None
    return off_policy_value(log, policy, name, rewards=rewards, clip=clip, unsupported="ignore")


def _summary(rows: list[tuple[float, bool, float]]) -> dict[str, float]:
    errors = np.array([row[0] for row in rows])
    return {
        "bias": float(errors.mean()),
        "deviation": float(errors.std(ddof=1)),
        "rmse": float(np.sqrt((errors**2).mean())),
        "cover": float(np.mean([row[1] for row in rows])),
        "rows": float(np.mean([row[2] for row in rows])),
    }


def open_bandit_figures(seed: int) -> dict[str, Any]:
    """Values of three policies on both logs, with bootstrap intervals."""
    random, sampled = load_bandit("open-bandit-random"), load_bandit("open-bandit-bts")
    uniform = np.full((1, random.num_actions), 1 / random.num_actions)
    rows = []
    for log, own in ((random, "random"), (sampled, "BTS")):
        policies = {"uniform": (uniform, random.mean), "BTS": (_frequencies(sampled, log), sampled.mean)}
        # Learnt on one half by position, valued on the other, and the reverse would be another figure.
        half = np.random.Generator(np.random.Philox(seed)).permutation(len(log)) < len(log) // 2
        learnt, rest = log.take(half), log.take(~half)
        policies["best mean click rate, of a half"] = (_greedy(learnt, rest), None)
        for policy, (shown, truth) in policies.items():
            valued = rest if truth is None else log
            modelled = mean_rewards(valued, prior=100.0, seed=seed)
            for name in ("ips", "clipped-ips", "snips", "dr"):
                estimate = off_policy_value(
                    valued,
                    shown,
                    name,
                    rewards=modelled if name == "dr" else None,
                    clip=20.0 if name == "clipped-ips" else None,
                    unsupported="ignore",
                    interval=Interval("bootstrap", seed=seed),
                )
                rows.append(
                    {
                        "policy": policy,
                        "log": own,
                        "estimator": name,
                        "value": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "rows": estimate.effective_rows,
                        "weight": estimate.max_weight,
                        "own": truth,
                    }
                )
    return {"rows": rows}


def _frequencies(log: BanditLog, of: BanditLog) -> Array:
    """How often a log has each action at a position, for the rows of another log: the mean of its policy over time."""
    assert log.positions is not None
    assert of.positions is not None
    counts = np.zeros((3, log.num_actions))
    np.add.at(counts, (log.positions, log.actions), 1.0)
    return np.asarray((counts / counts.sum(axis=1, keepdims=True))[of.positions])


def _greedy(log: BanditLog, of: BanditLog) -> Array:
    """The action with the largest mean reward at the position, drawn to the mean of all by 100 rows."""
    assert log.positions is not None
    assert of.positions is not None
    sums, counts = np.zeros((2, 3, log.num_actions))
    np.add.at(sums, (log.positions, log.actions), log.rewards / log.propensities)
    np.add.at(counts, (log.positions, log.actions), 1 / log.propensities)
    scale = 100.0 * log.num_actions
    best = ((sums + scale * log.mean) / (counts + scale)).argmax(axis=1)
    return np.eye(log.num_actions)[best[of.positions]]


class _Coat:
    """Coat with a part of its random ratings for P(r); the others are the test."""

    def __init__(self, seed: int) -> None:
        data = load("coat")
        assert isinstance(data, LoggedInteractions)
        assert data.official is not None
        rng = np.random.Generator(np.random.Philox(seed))
        test = rng.permutation(data.official.test_index)
        count = int(_RANDOM_SHARE * len(test))
        self.train, self.test = data.take(data.official.train_index), data.take(test[count:])
        self.naive_bayes = naive_bayes_propensities(self.train, data.take(test[:count]))
        self.folds = rng.permutation(np.arange(len(self.train)) % _FOLDS)


@functools.lru_cache(maxsize=2)
def _coat(seed: int) -> _Coat:
    return _Coat(seed)


def coat_figures(label: str, seed: int) -> dict[str, Any]:
    """Errors on the ratings of coats that were shown at random."""
    coat = _coat(seed)
    if label == "bias":
        model = create("bias")
        return _errors(_fitted_directly(model, coat.train), coat.test)
    options: dict[str, Any] = {"batch_size": coat.train.num_users, "lr": 0.02}  # all users in a step
    options |= {} if label == "svd++" else {"propensity": _PROPENSITY.get(label, label)}
    name = "svd++" if label == "svd++" else "ips-mf"
    train = coat.train
    if label == "naive-bayes":
        train = with_propensities(train, coat.naive_bayes)
    chosen, epochs = _choose(name, options, train, coat.folds, seed)
    model = _train(name, {**options, **chosen}, train, seed, epochs)
    return {**_errors(model, coat.test), **chosen, "epochs": epochs}


_PROPENSITY = {"naive-bayes": "data"}
_EPOCHS = (25, 50, 100, 200)


def _choose(
    name: str, options: dict[str, Any], train: Interactions, folds: NDArray[Any], seed: int
) -> tuple[dict[str, Any], int]:
    """Width, l2 and epochs with the least error over the folds, weighted as the model weighs ratings."""
    totals: dict[tuple[int, float, int], float] = {}
    grid = _GRID if name == "ips-mf" else tuple(product((8,), (0.03, 0.1, 0.3, 1.0)))
    for fold in range(_FOLDS):
        learnt, held = train.take(folds != fold), train.take(folds == fold)
        for factors, l2 in grid:
            given = {**options, "factors": factors, "l2": l2}
            model = _new(name, given, learnt, seed)
            weights = None if name != "ips-mf" else model.propensities(held)
            at = 0
            optimizers, batches = Optimizers(model), model.batches(learnt, seed)
            for epochs in _EPOCHS:
                for epoch in range(at, epochs):
                    train_epoch(model, optimizers, batches, epoch)
                at = epochs
                error = _predicted(model, held) - held.ratings
                weighted = error**2 if weights is None else error**2 / weights
                key = (factors, l2, epochs)
                totals[key] = totals.get(key, 0.0) + float(weighted.sum())
                model.train()
    factors, l2, epochs = min(totals, key=lambda key: totals[key])
    return {"factors": factors, "l2": l2}, epochs


def _new(name: str, options: dict[str, Any], train: Interactions, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return create(name, schema=Schema(train.num_users, train.num_items), generator=generator, **options)


def _train(name: str, options: dict[str, Any], train: Interactions, seed: int, epochs: int) -> Any:
    model = _new(name, options, train, seed)
    optimizers, batches = Optimizers(model), model.batches(train, seed)
    for epoch in range(epochs):
        train_epoch(model, optimizers, batches, epoch)
    return model


def _fitted_directly(model: Any, train: Interactions) -> Any:
    model.build(Schema(train.num_users, train.num_items))
    model.fit_directly(train)
    return model


def _predicted(model: Any, part: Interactions) -> Array:
    model.eval()
    users, items = (torch.from_numpy(column.astype(np.int64)) for column in (part.users, part.items))
    return np.asarray(model.predict_ratings(users, items).numpy().astype(np.float64).clip(1.0, 5.0))


def _errors(model: Any, test: Interactions) -> dict[str, Any]:
    assert test.ratings is not None
    predicted = _predicted(model, test)
    error = predicted - test.ratings
    return {
        "mse": float((error**2).mean()),
        "mae": float(abs(error).mean()),
        "mean_predicted": float(predicted.mean()),
        "mean_rating": float(test.ratings.mean()),
    }
