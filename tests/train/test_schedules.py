"""Learning rates: what the configs gave before, what torch's schedulers give, and nothing that needs a memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from deeprec.config import TrainConfig
from deeprec.evaluate.metrics import gain
from deeprec.models.autorec import AutoRecConfig
from deeprec.models.click import ClickConfig
from deeprec.train.schedules import SCHEDULES, Schedule


@dataclass(frozen=True)
class Options:
    epochs: int = 5
    lr: float = 0.3
    lr_schedule: str = "constant"
    lr_decay: float = 0.0
    warmup_steps: int = 0


def torch_rates(make_scheduler, steps: int, lr: float = 0.3) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(options: Options, steps_an_epoch: int) -> list[float]:
    schedule = Schedule(options, steps_an_epoch)
    each = [(epoch, step) for epoch in range(options.epochs) for step in range(steps_an_epoch)]
    return [schedule.rate(options.lr, epoch, step) for epoch, step in each]


@pytest.mark.parametrize("kind", ["constant", "linear"])
@pytest.mark.parametrize("decay", [0.0, 0.1762, 0.5])
@pytest.mark.parametrize("lr", [0.001, 0.3, 1 / 3])
def test_rates_are_bit_for_bit_those_of_the_published_results(kind, decay, lr):
    schedule = Schedule(AutoRecConfig(optimizer="sgd", lr=lr, epochs=7, lr_schedule=kind, lr_decay=decay), 11)
    assert not schedule.by_step
    for epoch in range(7):
        left = 1 - epoch / 7 if kind == "linear" else 1.0
        assert schedule.rate(lr, epoch, step=3) == lr * left / (1 + epoch * decay)
        assert schedule.share(epoch) == left / (1 + epoch * decay)


@pytest.mark.parametrize(
    ("select", "figures"), [("auc", [0.5, 0.6, 0.6, 0.55, 0.7, 0.6]), ("logloss", [3, 2, 2, 4, 1])]
)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("lr", [0.001, 0.5, 1 / 3])
def test_plateau_is_bit_for_bit_that_of_the_published_results(select, figures, decay, lr):
    schedule = Schedule(ClickConfig(lr=lr, epochs=10, lr_schedule="plateau", lr_decay=decay), 4)
    values = [gain(select, figure) for figure in figures]
    for epoch in range(len(values) + 1):
        best, share = -math.inf, 1.0
        for value in values[:epoch]:
            share *= 1.0 if value > best else 0.1
            best = max(best, value)
        expected = share * (lr * 1.0 / (1 + epoch * decay)) / lr
        assert schedule.share(epoch, 0, values[:epoch]) == expected
        assert schedule.rate(0.02, epoch, 3, values[:epoch]) == 0.02 * expected
    assert share < 0.1


def test_cosine_is_that_of_torch():
    expected = torch_rates(lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=35), 35)
    assert rates(Options(lr_schedule="cosine"), 7) == pytest.approx(expected, rel=1e-9)


def test_warm_up_is_that_of_torch():
    options = Options(warmup_steps=14)

    def scheduler(one):
        return torch.optim.lr_scheduler.LinearLR(one, start_factor=1 / 14, total_iters=13)

    assert Schedule(options, 7).by_step
    assert rates(options, 7) == pytest.approx(torch_rates(scheduler, 35), rel=1e-9)


def test_cosine_begins_where_the_warm_up_ends():
    found = rates(Options(lr_schedule="cosine", warmup_steps=10), 7)
    assert found[:11] == pytest.approx([*(0.3 * step / 10 for step in range(1, 11)), 0.3])
    expected = torch_rates(lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=25), 25)
    assert found[10:] == pytest.approx(expected, rel=1e-9)


def test_a_rate_never_depends_on_what_was_asked_before():
    for kind in SCHEDULES:
        options, values = Options(lr_schedule=kind, lr_decay=0.2, warmup_steps=3), [0.1, 0.3, 0.2]
        whole = Schedule(options, 4)
        earlier = [whole.share(epoch, step, values[:epoch]) for epoch in range(4) for step in range(4)]
        assert Schedule(options, 4).share(3, 3, values) == earlier[-1]
        assert all(0 < share <= 1 for share in earlier)


def test_configs_without_a_warm_up_have_none():
    assert not Schedule(TrainConfig(), 1).by_step


@pytest.mark.parametrize(
    ("options", "steps", "message"),
    [
        (Options(lr_schedule="step"), 7, "lr_schedule must be one of constant, linear, plateau, cosine; got 'step'"),
        (Options(), 0, "steps_an_epoch must be >= 1, got 0"),
        (Options(warmup_steps=35), 7, "shorter than the training, got warmup_steps=35 of 35 steps"),
        (Options(warmup_steps=99), 7, r"got warmup_steps=99 of 35 steps \(5 epochs of 7\); lower it"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options, steps, message):
    with pytest.raises(ValueError, match=message):
        Schedule(options, steps)
