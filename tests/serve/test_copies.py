"""Copies of every registered model, before and after use, answer as the model does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.data import Interactions
from deeprec.models import create, is_click_model, names


def answer(model: Any, rows: pl.DataFrame) -> Any:
    """What the model says of a few rows or users."""
    if is_click_model(model.name):
        return model.predict(rows.head(60)).tolist()
    return model.recommend(model.user_ids.values.head(7), 5).to_dict(as_series=False)


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301  # our own


def through_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": through_pickle,
    "torch": through_torch,
}


@pytest.mark.parametrize("name", names())
def test_copies_answer_as_the_model(
    name: str, fitted: Callable[[str], Any], rows: pl.DataFrame, tmp_path: Path
) -> None:
    fitted(name).save(tmp_path)
    for source in (fitted(name), deeprec.load(tmp_path)):
        unused = {way: make(source) for way, make in COPIES.items()}
        expected = answer(source, rows)
        used = {way: make(source) for way, make in COPIES.items()}
        for way in COPIES:
            assert answer(unused[way], rows) == expected, way
            assert answer(used[way], rows) == expected, way
            assert answer(COPIES[way](used[way]), rows) == expected, way


@pytest.mark.parametrize("name", names())
def test_a_copy_has_weights_of_its_own(name: str, fitted: Callable[[str], Any], rows: pl.DataFrame) -> None:
    expected = answer(fitted(name), rows)
    other = copy.deepcopy(fitted(name))
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    assert answer(fitted(name), rows) == expected


def test_a_model_fitted_with_a_callback_can_be_pickled(ratings: Interactions) -> None:
    seen: list[Any] = []
    model = create("mf", epochs=1, factors=4).fit(ratings, protocol="full", on_progress=lambda one: seen.append(one))
    again = through_pickle(model)
    assert seen
    assert again.evaluate() == model.evaluate()


def test_a_copied_click_model_still_holds_its_embeddings_small(log: Any) -> None:
    model = create("fm", epochs=1, factors=2, embedding_l2=0.5).fit(log)
    for other in (copy.deepcopy(model), through_pickle(model)):
        gradients = []
        for one in (model, other):
            one.zero_grad()
            table = one.embedding_tables()[0]
            (table * 0).sum().backward()
            gradients.append(table.grad.clone())
        assert torch.equal(*gradients)
        assert gradients[0].abs().sum() > 0


def test_ids_are_found_again_after_a_pickle() -> None:
    for values in ([5, 7, 2**40], ["a", "b", ""], [b"x", b"y"]):
        ids = deeprec.data.IdMap(values, "user")
        assert ids.encode(values).tolist() == [0, 1, 2][: len(values)]
        again = through_pickle(ids)
        assert again == ids
        assert np.array_equal(again.encode(values), ids.encode(values))
