"""What may and what may not be recommended, of every registered recommender, with external ids in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from deeprec.contract import NEW_USERS, Queries
from deeprec.data import Interactions
from deeprec.models import recommenders
from deeprec.nn.scoring import score_items
from deeprec.registry import with_capabilities

USERS = ["user-3", "user-0", "user-3", "user-38"]
FIRST = 3_000_000_000
HISTORY = [FIRST + 7, FIRST + 2, FIRST + 11]
ODD, FEW, NONE = [FIRST + item for item in range(1, 30, 2)], [FIRST + 4, FIRST, FIRST + 17], list[int]()
FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "allow": {"allow": ODD},
    "deny": {"deny": FEW},
    "most denied": {"deny": ODD},
    "both": {"allow": ODD, "deny": [FIRST + 1, FIRST + 17, FIRST + 4]},
    "empty deny": {"deny": NONE},
    "empty allow": {"allow": NONE},
    "one allowed": {"allow": FIRST + 20},
    "all denied": {"deny": [FIRST + item for item in range(30)]},
}


def check(listed: pl.DataFrame, scores: np.ndarray, hidden: set[int], given: dict[str, Any], k: int, ids: Any) -> None:
    """One list of at most k rows against the scores [N] of all items, in float64."""
    allow, deny = (None if given.get(name) is None else np.atleast_1d(given[name]) for name in ("allow", "deny"))
    left = [
        item
        for item in ids.values.to_list()
        if item not in hidden and (allow is None or item in allow) and (deny is None or item not in deny)
    ]
    of = dict(zip(ids.values.to_list(), scores.tolist(), strict=True))
    best = sorted((of[item] for item in left), reverse=True)[:k]
    items = listed["item_id"].to_list()
    assert listed["rank"].to_list() == list(range(1, len(best) + 1))
    assert set(items) <= set(left)
    assert len(set(items)) == len(items)
    np.testing.assert_allclose(listed["score"].to_numpy(), best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([of[item] for item in items], best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize("name", recommenders())
def test_known_users(name: str, given: dict[str, Any], fitted: Callable[[str], Any], ratings: Interactions) -> None:
    model = fitted(name)
    users = torch.from_numpy(model.user_ids.encode(USERS)).long()
    scores = model.score_items(users).double().numpy()
    met = ratings.to_frame()
    for exclude_seen in (True, False):
        for k in (1, 5, 1000):
            listed = model.recommend(USERS, k, exclude_seen=exclude_seen, **given)
            assert listed.schema == model.recommend("user-1", 1).schema
            lists = [model.recommend(user, k, exclude_seen=exclude_seen, **given) for user in USERS]
            # The others of a call change nothing but the last bits of a product of matrices.
            assert_frame_equal(pl.concat(lists), listed, rel_tol=1e-4, abs_tol=1e-5)
            for own, user, row in zip(lists, USERS, scores, strict=True):
                hidden = met.filter(pl.col("user_id") == user)["item_id"].to_list() if exclude_seen else []
                check(own, row, set(hidden), given, k, model.item_ids)


@pytest.mark.parametrize("given", FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize("name", with_capabilities(NEW_USERS))
def test_a_new_user(name: str, given: dict[str, Any], fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    items = torch.from_numpy(model.item_ids.encode(HISTORY)).long()
    state = model.encode(Queries(history=(torch.tensor([0, len(items)]), items)))
    (scores,) = score_items(model.scorer(state)).double().numpy()
    for k in (1, 5, 1000):
        listed = model.recommend_for_history(HISTORY, k, **given)
        if not model.reads_history:  # those who do take it in order
            assert listed.equals(model.recommend_for_history([*HISTORY[::-1], HISTORY[0]], k, **given))
        check(listed, scores, set(HISTORY), given, k, model.item_ids)


@pytest.mark.parametrize("name", with_capabilities(NEW_USERS))
def test_several_new_users_are_each_as_alone(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    histories = [[3, 1, 20], [5], list(range(30)), [29, 2]]
    flat = torch.tensor([item for history in histories for item in history])
    bounds = torch.tensor([0, *np.cumsum([len(history) for history in histories])])
    together = score_items(model.scorer(model.encode(Queries(history=(bounds, flat)))))
    for row, history in zip(together, histories, strict=True):
        asked = Queries(history=(torch.tensor([0, len(history)]), torch.tensor(history)))
        torch.testing.assert_close(row, score_items(model.scorer(model.encode(asked)))[0])


@pytest.mark.parametrize("name", recommenders())
def test_unknown_items_are_named(name: str, fitted: Callable[[str], Any]) -> None:
    model = fitted(name)
    calls = [
        lambda **given: model.recommend("user-1", **given),
        *([lambda **given: model.recommend_for_history(FIRST, **given)] if NEW_USERS in model.capabilities else []),
    ]
    for call in calls:
        for filter_name in ("allow", "deny"):
            with pytest.raises(ValueError, match=rf"recommend\w*: {filter_name}: .* got 1 unknown: 17; "):
                call(**{filter_name: [FIRST, 17]})
            with pytest.raises(TypeError, match=rf"recommend\w*: {filter_name}: "):
                call(**{filter_name: ["x"]})


def test_the_history_reaches_the_model_in_the_order_it_was_given(
    fitted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = fitted("autorec"), list[Queries]()
    encode = type(model).encode

    def noted(self: Any, queries: Queries) -> Any:
        asked.append(queries)
        return encode(self, queries)

    monkeypatch.setattr(type(model), "encode", noted)
    model.recommend_for_history(HISTORY, 3)
    model.recommend_for_history(HISTORY, 3, ratings=[5, 1, 4])
    codes = model.item_ids.encode(HISTORY).tolist()
    for queries in asked:
        assert queries.history is not None
        assert [part.tolist() for part in queries.history] == [[0, 3], codes]
    assert asked[0].ratings is None
    assert asked[1].ratings is not None
    assert asked[1].ratings.tolist() == [5, 1, 4]


def test_encode_needs_somebody_who_asks(fitted: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="encode needs users or histories, got neither; pass Queries"):
        fitted("popularity").encode(Queries())
