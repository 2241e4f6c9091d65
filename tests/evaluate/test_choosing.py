"""Claims about the users who choose the epoch: how many, which, and what is measured on all of them."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.data import synthetic
from deeprec.evaluate import protocol, protocols
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import create
from deeprec.train import fit

DATA = synthetic(num_users=80, num_items=60, num_interactions=1200, seed=3)


def test_the_sample_is_as_large_as_its_cost_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = protocol("full")
    assert rule.resolve(DATA).validation_users is None  # 80 x 60 scores are few
    monkeypatch.setattr(protocols, "_CHOOSING_SCORES", 60 * 20)
    monkeypatch.setattr(protocols, "_FEWEST_CHOOSING", 10)
    assert rule.resolve(DATA).validation_users == 20
    assert protocol("ncf", candidates=9).resolve(DATA).validation_users is None  # 10 scores a user
    assert protocol("rating").resolve(DATA).validation_users is None
    assert protocol("full", validation_users=0).resolve(DATA).validation_users == 0
    with pytest.raises(ValueError, match="validation_users must be a whole number of at least 0"):
        protocol("full", validation_users=-1)
    with pytest.raises(ValueError, match="validation_users has no effect"):
        protocol("rating", validation_users=5)
    assert rule.same_as(protocol("full", validation_users=7))


def test_the_same_users_choose_each_epoch_and_all_are_measured_at_the_end() -> None:
    task = InteractionTask(DATA, protocol("full", validation_users=15))
    result = fit(create("mf", epochs=3, batch_size=256), task, baselines=False)
    assert task.validation_sample() == f"15 of {len(np.unique(task.split.validation.users))} users"
    model, card = result.model, result.card
    chosen = next(entry for entry in card.history if entry["epoch"] == card.epoch)
    sampled, whole = task.choosing_figures(model), task.figures(model, "validation")
    assert {name: chosen[name] for name in sampled} == sampled
    assert card.validation_metrics == whole != sampled
    assert card.protocol["validation_users"] == 15
    assert all(entry["validation_seconds"] > 0 for entry in card.history)


def test_a_run_goes_on_only_with_the_same_sample(tmp_path) -> None:
    options = {"epochs": 1, "batch_size": 256}
    fit(create("mf", **options), DATA, protocol=protocol("full", validation_users=9), out=tmp_path, baselines=False)
    other = protocol("full", validation_users=0)
    with pytest.raises(ValueError, match=r"protocol\.validation_users is 9 there and 0 here"):
        fit(create("mf", **options), DATA, protocol=other, out=tmp_path, resume=True, baselines=False)


@pytest.mark.parametrize(("name", "mode"), [("next-item", "last"), ("full", "random")])
def test_the_rows_of_users_who_do_not_validate_are_trained_on(name: str, mode: str) -> None:
    whole, part = (InteractionTask(DATA, protocol(name, validating=count)).split for count in (0, 15))
    validating = set(part.validation.users.tolist())
    assert len(part.validation) == 15 == len(validating)
    assert protocol(name).validation == mode
    parts = (whole.train, part.train, whole.validation, part.validation)
    before, after, all_rows, rows = ({*zip(each.users.tolist(), each.items.tolist(), strict=True)} for each in parts)
    assert after - before == all_rows - rows
    assert not {user for user, _ in all_rows - rows} & validating
    assert whole.test.users.tolist() == part.test.users.tolist()
    assert whole.test.items.tolist() == part.test.items.tolist()
    assert not protocol(name).same_as(protocol(name, validating=15))
    again = InteractionTask(DATA, protocol(name, validating=15, seed=1)).split.validation
    assert set(again.users.tolist()) != validating


def test_validating_is_for_rows_of_users() -> None:
    with pytest.raises(ValueError, match="validating has no effect"):
        protocol("rating", validating=5)
    with pytest.raises(ValueError, match="validating must be a whole number of at least 0, got -1"):
        protocol("full", validating=-1)
