"""Scorers of every kind: all scores and the best items, under every filter, against a dense computation in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deeprec.nn import scoring
from deeprec.nn.scoring import BlockScorer, DotScorer, KeptLists, MappedScorer, NCFScorer, as_sets, best_of, score_items
from deeprec.nn.scoring import topk as best_items

USERS, ITEMS = 7, 40
INF = float("inf")


def dot(generator: torch.Generator) -> tuple[Any, Tensor]:
    users, items, bias = (torch.randn(*shape, generator=generator) for shape in ((USERS, 5), (ITEMS, 5), (ITEMS,)))
    return DotScorer(users, items, bias), users.double() @ items.double().T + bias.double()


def ncf(generator: torch.Generator) -> tuple[Any, Tensor]:
    p, q, g, h = (torch.randn(n, width, generator=generator) for width in (6, 3) for n in (USERS, ITEMS))
    weight, bias, out = (torch.randn(*shape, generator=generator) for shape in ((4, 6), (4,), (7,)))
    hidden = torch.relu(p.double()[:, None] + q.double())
    hidden = torch.relu(hidden @ weight.double().T + bias.double())
    scores = (g.double()[:, None] * h.double()) @ out.double()[:3] + hidden @ out.double()[3:]
    return NCFScorer(p, q, g, h, [weight], [bias], out), scores


def mapped(generator: torch.Generator) -> tuple[Any, Tensor]:
    scorer, scores = dot(generator)
    means = torch.randn(USERS, 1, generator=generator)

    def function(logits: Tensor, by_user: Tensor | None) -> Tensor:
        assert by_user is not None
        return by_user + 2 * torch.tanh(logits / 8)

    return MappedScorer(scorer, function, means), function(scores, means.double())


def by_block(generator: torch.Generator) -> tuple[Any, Tensor]:
    users, items = torch.randn(USERS, 5, generator=generator), torch.randn(ITEMS, 5, generator=generator)
    scorer = BlockScorer(USERS, ITEMS, users.device, lambda start, end: users[start:end] @ items.T)
    return scorer, users.double() @ items.double().T


def ties(generator: torch.Generator) -> tuple[Any, Tensor]:
    """Few distinct scores, and exact ones."""
    users, items = (torch.randint(-1, 2, (n, 3), generator=generator).float() for n in (USERS, ITEMS))
    return DotScorer(users, items), users.double() @ items.double().T


def ties_by_block(generator: torch.Generator) -> tuple[Any, Tensor]:
    _, scores = ties(generator)
    return BlockScorer(USERS, ITEMS, scores.device, lambda start, end: scores[start:end].float()), scores


KINDS = [dot, ncf, mapped, by_block, ties, ties_by_block]


def lists(sizes: list[int], draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = [np.sort(draw.choice(ITEMS, size, replace=False)) for size in sizes]
    return np.cumsum([0, *sizes]), np.concatenate(rows).astype(np.int32)


def filters() -> dict[str, dict[str, Any]]:
    draw = np.random.default_rng(0)
    seen, by_user = lists([3, 0, 12, 39, 40, 1, 5], draw), lists([4, 0, 30, 2, 40, 9, 1], draw)
    few, many, none = np.array([3, 0, 3, 17]), draw.permutation(ITEMS)[:31], np.array([], dtype=np.int64)
    return {
        "nothing": {},
        "seen": {"seen": seen},
        "allow": {"allow": many},
        "a few denied": {"deny": few},
        "many denied": {"deny": many},
        "one allowed": {"allow": np.array([7])},
        "allow none": {"allow": none, "seen": seen},
        "deny none": {"deny": none, "seen": seen},
        "all denied": {"deny": np.arange(ITEMS)},
        "all denied of those allowed": {"allow": few, "deny": few, "seen": seen},
        "allow and seen": {"allow": many, "seen": seen},
        "a few denied and seen": {"deny": few, "seen": seen},
        "many denied and seen": {"deny": many, "seen": seen},
        "all three": {"allow": many, "deny": few, "seen": seen},
        "deny by user": {"deny": by_user},
        "deny by user, and seen": {"deny": by_user, "seen": seen},
        "deny by user, allow and seen": {"deny": by_user, "allow": many, "seen": seen},
        "allow by user": {"allow": by_user},
        "allow by user, deny and seen": {"allow": by_user, "deny": few, "seen": seen},
        "both by user, and seen": {"allow": by_user, "deny": seen, "seen": seen},
    }


def masked(scores: Tensor, given: dict[str, Any]) -> Tensor:
    """Scores with -inf where the filters say so, item by item."""
    out = scores.clone()
    for user in range(len(scores)):

        def of(name: str, user: int = user) -> set[int] | None:
            items = given.get(name)
            if isinstance(items, tuple):
                items = items[1][items[0][user] : items[0][user + 1]]
            return None if items is None else set(items.tolist())

        seen, deny, allow = of("seen") or set(), of("deny") or set(), of("allow")
        for item in range(scores.shape[1]):
            if item in seen | deny or (allow is not None and item not in allow):
                out[user, item] = -INF
    return out


@pytest.mark.parametrize("given", filters().values(), ids=filters().keys())
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("k", [0, 1, 6, ITEMS + 3])
def test_the_best_items_are_those_of_the_dense_scores(
    kind: Callable[..., tuple[Any, Tensor]], given: dict[str, Any], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_SCORES_A_BLOCK", 2 * ITEMS)  # several blocks
    scorer, exact = kind(torch.Generator().manual_seed(1))
    exact = masked(exact, given)
    seen = given.get("seen")
    there = None if seen is None else KeptLists().on(seen, torch.device("cpu"))
    values, ids = best_items(scorer, k, **{**given, "seen": there})
    assert values.shape == ids.shape == (USERS, k)
    assert values.dtype == torch.float32
    assert ids.dtype == torch.int64
    for user in range(USERS):
        candidates = int((exact[user] > -INF).sum())
        listed = ids[user, :candidates]
        assert (ids[user, candidates:] == -1).all()
        assert (values[user, candidates:] == -INF).all()
        assert len(set(listed.tolist())) == len(listed)
        torch.testing.assert_close(values[user, :candidates].double(), exact[user, listed], rtol=1e-5, atol=1e-5)
        best = exact[user].sort(descending=True, stable=True)
        torch.testing.assert_close(exact[user, listed], best.values[: len(listed)], rtol=1e-5, atol=1e-5)
        if kind in (ties, ties_by_block):  # exact scores: the very same items
            assert listed.tolist() == best.indices[: len(listed)].tolist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_all_scores(kind: Callable[..., tuple[Any, Tensor]]) -> None:
    scorer, exact = kind(torch.Generator().manual_seed(2))
    torch.testing.assert_close(score_items(scorer).double(), exact, rtol=1e-5, atol=1e-5)


def test_a_row_of_what_was_seen_for_each_user() -> None:
    scorer, exact = dot(torch.Generator().manual_seed(3))
    offsets, items = lists([5, 0, 30], np.random.default_rng(1))
    rows = [2, 0, 1, 1, 2, 0, 2]
    own = [items[offsets[row] : offsets[row + 1]] for row in rows]
    flat = np.cumsum([0, *map(len, own)]), np.concatenate(own)
    there = KeptLists().on((offsets, items), torch.device("cpu"))
    for given in ({}, {"deny": np.array([1])}, {"allow": np.arange(20)}):
        values, ids = best_items(scorer, ITEMS, seen=there, seen_rows=torch.tensor(rows), **given)
        wide = masked(exact, {"seen": flat, **given})
        assert ((ids >= 0).sum(1) == (wide > -INF).sum(1)).all()
        for user in range(USERS):
            count = int((ids[user] >= 0).sum())
            torch.testing.assert_close(
                values[user, :count].double(), wide[user, ids[user, :count]], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("kind", [dot, ncf, mapped], ids=lambda kind: kind.__name__)
def test_filters_for_all_users_never_make_users_x_items_scores(
    kind: Callable[..., tuple[Any, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("all scores at once")

    monkeypatch.setattr(scoring.kernel, "score_items", forbidden)
    scorer, _ = kind(torch.Generator().manual_seed(1))
    for given in filters().values():
        if not isinstance(given.get("allow"), tuple):
            best_items(scorer, 3, **{name: value for name, value in given.items() if name != "seen"})


def test_equal_scores_rank_by_index_and_nan_is_no_score() -> None:
    scores = torch.zeros(4, 50)
    scores[1, 30] = 1
    scores[2] = torch.arange(50)
    scores[3, :48] = torch.nan
    values, ids = best_of(scores, 4)
    assert ids.tolist() == [[0, 1, 2, 3], [30, 0, 1, 2], [49, 48, 47, 46], [48, 49, -1, -1]]
    assert values.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [49, 48, 47, 46], [0, 0, -INF, -INF]]


def test_no_users_and_no_items() -> None:
    none = torch.empty(0, 4)
    for scorer, shape in (
        (DotScorer(none, torch.ones(9, 4)), (0, 9)),
        (DotScorer(torch.ones(3, 4), none), (3, 0)),
        (BlockScorer(0, 9, none.device, lambda start, end: torch.ones(end - start, 9)), (0, 9)),
        (BlockScorer(3, 0, none.device, lambda start, end: torch.ones(end - start, 0)), (3, 0)),
    ):
        assert score_items(scorer).shape == shape
        for given in ({}, {"deny": np.array([], dtype=np.int64)}, {"allow": np.array([], dtype=np.int64)}):
            values, ids = best_items(scorer, 2, **given)
            assert values.shape == ids.shape == (shape[0], 2)
            assert (ids == -1).all() or shape[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allow": np.array([ITEMS])}, rf"allow must be item indices in \[0, {ITEMS}\), got {ITEMS}"),
        ({"deny": np.array([0, -1])}, "deny must be item indices in .* got -1 to 0"),
        ({"deny": np.array([0.5])}, "deny must be item indices .*, whole numbers, got float64"),
        ({"allow": np.array([[1]])}, r"allow must be item indices \[n\]"),
        ({"allow": (np.array([0, 1]), np.array([1]))}, "offsets of allow must ascend from 0 to 1, .* the 7 users"),
        ({"deny": (np.zeros(USERS + 1), np.array([1]))}, "offsets of deny must ascend from 0 to 1"),
    ],
)
def test_filters_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    for kind in (dot, by_block):
        scorer, _ = kind(torch.Generator())
        with pytest.raises(ValueError, match=f"topk: {message}|topk: the {message}"):
            best_items(scorer, 3, **given)


def test_histories_become_sets_in_ascending_order_whose_last_rating_counts() -> None:
    offsets, items = torch.tensor([0, 4, 4, 6]), torch.tensor([5, 2, 5, 9, 1, 0])
    bounds, distinct, none = as_sets(offsets, items)
    assert bounds.tolist() == [0, 3, 3, 5]
    assert distinct.tolist() == [2, 5, 9, 0, 1]
    assert none is None
    ratings = torch.tensor([1.0, 2, 3, 4, 5, 6])
    assert as_sets(offsets, items, ratings)[2].tolist() == [2, 3, 4, 6, 5]
    empty = as_sets(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert [part.tolist() for part in empty[:2]] == [[0, 0], []]
