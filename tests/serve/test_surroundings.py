"""Every registered model works in float32, whatever modes, default types and types of weights surround the call."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.contract import NEW_ITEMS, NEW_USERS, RATES, SIMILAR_ITEMS
from deeprec.data import Interactions
from deeprec.data.clicks.log import ClickLog
from deeprec.models import create, is_click_model, names


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": float64_by_default,
}
# A training takes the longest, so it meets all that could change its numbers at once.
AROUND_TRAINING = {
    "inference, autocast and float64": ("inference", "autocast", "float64"),
    "no gradients": ("no gradients",),
}


def answers(model: Any, rows: pl.DataFrame, log: ClickLog) -> dict[str, Any]:
    """What every method that serves says."""
    if is_click_model(model.name):
        return {"predict": model.predict(rows.head(80)), "evaluate": model.evaluate(log)}
    users, items = model.user_ids.values, model.item_ids.values
    found: dict[str, Any] = {
        "recommend": model.recommend(users, 6),
        "score": model.score([(users[0], item) for item in items]),
        "evaluate": model.evaluate(),
    }
    if NEW_USERS in model.capabilities:
        found["history"] = model.recommend_for_history(items[:3], 6)
    if SIMILAR_ITEMS in model.capabilities:
        found["similar"] = model.similar_items(items[:3], 4)
    if {RATES, NEW_USERS} <= model.capabilities:
        found["ratings"] = model.recommend_for_history(items[:3], 6, ratings=[5, 1, 3])
        found["user"] = model.predict_for_user(items[:2], [2, 4])
    if {RATES, NEW_ITEMS} <= model.capabilities:
        found["item"] = model.predict_for_item(users[:2], [2, 4])
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for call, value in expected.items():
        if isinstance(value, pl.DataFrame):
            assert found[call].equals(value), call
        elif isinstance(value, np.ndarray):
            assert found[call].dtype == np.float32, call
            assert np.array_equal(found[call], value), call
        else:
            assert found[call] == value, call


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("mode", SURROUNDINGS)
def test_modes_change_no_answer(
    name: str, mode: str, fitted: Callable[[str], Any], rows: pl.DataFrame, log: ClickLog
) -> None:
    model = fitted(name)
    expected = answers(model, rows, log)
    with SURROUNDINGS[mode]():
        found = answers(model, rows, log)
    assert_same(found, expected)
    assert_same(answers(model, rows, log), expected)  # nothing of the mode is left behind


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("around", AROUND_TRAINING)
def test_modes_change_no_training(
    name: str, around: str, ratings: Interactions, rows: pl.DataFrame, log: ClickLog, fitted: Callable[[str], Any]
) -> None:
    data = {"data": log} if is_click_model(name) else {"data": ratings, "protocol": "full"}
    config = fitted(name).config
    with contextlib.ExitStack() as stack:
        for mode in AROUND_TRAINING[around]:
            stack.enter_context(SURROUNDINGS[mode]())
        model = create(name, config=config).fit(**data, seed=3)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} <= {torch.float32}
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert_same(answers(model, rows, log), answers(fitted(name), rows, log))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_type_are_used_in_float32(
    name: str, dtype: torch.dtype, fitted: Callable[[str], Any], rows: pl.DataFrame, log: ClickLog
) -> None:
    other = copy.deepcopy(fitted(name)).to(dtype)
    rounded = copy.deepcopy(other).float()  # the same numbers in float32
    expected = answers(rounded, rows, log)
    for surrounding in SURROUNDINGS.values():
        with surrounding():
            assert_same(answers(other, rows, log), expected)
    assert {t.dtype for t in other.state_dict().values() if t.is_floating_point()} <= {dtype}


@pytest.mark.parametrize("name", ["neumf", "cfn", "dcn-v2"])
def test_changed_weights_of_another_type_are_seen(
    name: str, fitted: Callable[[str], Any], rows: pl.DataFrame, log: ClickLog
) -> None:
    model = copy.deepcopy(fitted(name)).bfloat16()
    answers(model, rows, log)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.mul_(1.5)
    assert_same(answers(model, rows, log), answers(copy.deepcopy(model).float(), rows, log))


def test_threads_that_serve_leave_the_default_type_alone(fitted: Callable[[str], Any]) -> None:
    model = fitted("neumf")
    users = model.user_ids.values
    failures: list[Exception] = []

    def serve() -> None:
        try:
            for _ in range(20):
                model.recommend_for_history(model.item_ids.values[:2], 3)
                model.recommend(users, 3)
        except Exception as error:  # shown below
            failures.append(error)

    with float64_by_default():
        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.float64
    assert not failures


@pytest.mark.parametrize("name", [name for name in names() if not is_click_model(name)])
def test_tensor_methods_follow_the_weights_not_the_default_type(name: str, fitted: Callable[[str], Any]) -> None:
    model, users = fitted(name), torch.arange(4)
    expected = model.topk(users, 5, None)
    with float64_by_default():
        found = model.topk(users, 5, None)
        model.score_items(users)
        model.score_pairs(users, users)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], check_dtype=False)
