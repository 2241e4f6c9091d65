"""score_topk and score_items: the scores of the dense product, the K best in a fixed order, nothing seen."""

from __future__ import annotations

import gzip
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels import _library
from deeprec.kernels.score_topk import CosineScorer, DotScorer, L2Scorer, NCFScorer, score_items, score_topk
from deeprec.kernels.score_topk.checks import SIMILARITIES
from deeprec.kernels.score_topk.reference import (
    score_items_ncf_reference,
    score_items_reference,
    score_topk_ncf_reference,
    score_topk_reference,
)


def dot_scorer(
    num_users: int, num_items: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> DotScorer:
    g = torch.Generator().manual_seed(seed)
    users, items = torch.randn(num_users, dim, generator=g), torch.randn(num_items, dim, generator=g)
    return DotScorer(users.to(dtype), items.to(dtype), torch.randn(num_items, generator=g))


def ncf_scorer(num_users: int, num_items: int, dim: int, layers: list[int], seed: int = 0) -> NCFScorer:
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) / max(1, shape[-1]) ** 0.5

    pairs = list(itertools.pairwise(layers))
    return NCFScorer(
        torch.randn(num_users, layers[0], generator=g) if layers else None,
        torch.randn(num_items, layers[0], generator=g) if layers else None,
        torch.randn(num_users, dim, generator=g) if dim or not layers else None,
        torch.randn(num_items, dim, generator=g) if dim or not layers else None,
        [random(o, i) for i, o in pairs],
        [random(o) for _, o in pairs],
        random(dim + (layers[-1] if layers else 0)),
        random(1),
    )


def full_arguments(scorer: NCFScorer) -> tuple[object, ...]:
    """The operator's arguments: parts that are left out have width 0."""
    b, n = (scorer.user_hidden, scorer.item_hidden) if scorer.user_hidden is not None else scorer[2:4]
    assert b is not None
    assert n is not None
    empty_b, empty_n = b.new_empty(b.shape[0], 0), n.new_empty(n.shape[0], 0)
    return (
        scorer.user_hidden if scorer.user_hidden is not None else empty_b,
        scorer.item_hidden if scorer.item_hidden is not None else empty_n,
        scorer.user_factors if scorer.user_factors is not None else empty_b,
        scorer.item_factors if scorer.item_factors is not None else empty_n,
        *scorer[4:],
    )


def random_seen(rows: int, num_items: int, seed: int = 0, most: float = 0.5) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    lists = [
        np.sort(rng.choice(num_items, rng.integers(0, int(num_items * most) + 1), replace=False)) for _ in range(rows)
    ]
    indptr = torch.tensor([0] + [len(items) for items in lists]).cumsum(0)
    return indptr, torch.from_numpy(np.concatenate([*lists, []]).astype(np.int32))


def assert_same_topk(
    got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], scores: Tensor, atol: float = 1e-4
) -> None:
    """Equal values, and ids whose own score is that value: rounding may swap neighbours that are all but equal."""
    values, ids = got
    torch.testing.assert_close(values, expected[0], atol=atol, rtol=1e-4)
    assert torch.equal(ids < 0, expected[1] < 0)
    own = scores.gather(1, ids.clamp(min=0)) if scores.numel() else values
    torch.testing.assert_close(torch.where(ids < 0, values, own), values, atol=atol, rtol=1e-4)
    for row in ids.tolist():
        kept = [i for i in row if i >= 0]
        assert len(set(kept)) == len(kept)


DOT_SHAPES = [(1, 1, 1), (5, 123, 7), (49, 64, 16), (241, 1000, 33), (3, 20_000, 20), (7, 65, 0), (64, 17, 128)]
NCF_SHAPES = [
    (5, 123, 8, [16, 8]),
    (3, 70, 0, [33, 17, 9]),
    (50, 65, 5, [7, 5, 3, 1]),
    (2, 64, 3, [6]),
    (4, 90, 12, []),
    (1, 1, 1, [1, 1]),
    (2, 3000, 32, [128, 64, 32]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_users", "num_items", "dim"), DOT_SHAPES)
def test_dot_scores_match_float64(num_users: int, num_items: int, dim: int, dtype: torch.dtype) -> None:
    scorer = dot_scorer(num_users, num_items, dim, dtype=dtype)
    assert scorer.item_bias is not None
    exact = scorer.users.double() @ scorer.items.double().T + scorer.item_bias.double()
    got = score_items(scorer)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(score_items_reference(*scorer).double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize(("num_users", "num_items", "dim"), DOT_SHAPES)
def test_dot_topk_matches_dense(num_users: int, num_items: int, dim: int, k: int) -> None:
    scorer = dot_scorer(num_users, num_items, dim)
    seen = random_seen(num_users, num_items)
    got = score_topk(scorer, k, seen_indptr=seen[0], seen_indices=seen[1])
    expected = score_topk_reference(*scorer, k, *seen)
    assert_same_topk(got, expected, score_items_reference(*scorer))


@pytest.mark.parametrize(("num_users", "num_items", "dim", "layers"), NCF_SHAPES)
def test_network_scores_match_float64(num_users: int, num_items: int, dim: int, layers: list[int]) -> None:
    """Against the network written the plain way, a row a pair."""
    scorer = ncf_scorer(num_users, num_items, dim, layers)
    arguments = full_arguments(scorer)
    a, c, gu, gi = (t.double() for t in arguments[:4])  # type: ignore[attr-defined]
    x = F.relu(a[:, None] + c[None])
    for w, b in zip(scorer.weights, scorer.biases, strict=True):
        x = F.relu(F.linear(x, w.double(), b.double()))
    assert scorer.out_bias is not None
    exact = torch.cat([gu[:, None] * gi[None], x], dim=2) @ scorer.out_weight.double() + scorer.out_bias.double()
    torch.testing.assert_close(score_items(scorer).double(), exact, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(score_items_ncf_reference(*arguments).double(), exact, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_users", "num_items", "dim", "layers"), NCF_SHAPES)
def test_bfloat16_network_errs_no_more_than_its_reference(
    num_users: int, num_items: int, dim: int, layers: list[int]
) -> None:
    scorer = ncf_scorer(num_users, num_items, dim, layers)
    exact = score_items(scorer)
    reference = score_items_ncf_reference(*full_arguments(scorer), True)
    error = (score_items(scorer, precision="bfloat16") - exact).abs().max()
    assert error <= 1.2 * (reference - exact).abs().max() + 2e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_users", "num_items", "dim", "layers"), NCF_SHAPES)
def test_network_topk_matches_dense(
    num_users: int, num_items: int, dim: int, layers: list[int], precision: str
) -> None:
    scorer = ncf_scorer(num_users, num_items, dim, layers)
    seen = random_seen(3, num_items)
    rows = torch.arange(num_users, dtype=torch.int32) % 3
    got = score_topk(scorer, 10, seen_indptr=seen[0], seen_indices=seen[1], seen_rows=rows, precision=precision)
    arguments = (*full_arguments(scorer), precision == "bfloat16")
    expected = score_topk_ncf_reference(*arguments, 10, *seen, rows.long())
    # The kernel's own scores decide: bfloat16 may round a near-tie the other way than the reference.
    own = score_items(scorer, precision=precision)
    assert_same_topk(got, expected, own, atol=1e-4 if precision == "float32" else 5e-3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape_matches_reference(data: st.DataObject) -> None:
    num_users, num_items = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 150))
    k, seed = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 100))
    dim = data.draw(st.integers(0, 20))
    seen = random_seen(num_users, num_items, seed, most=1.0)
    if data.draw(st.booleans()):
        dot = dot_scorer(num_users, num_items, dim, seed)
        got = score_topk(dot, k, seen_indptr=seen[0], seen_indices=seen[1])
        assert_same_topk(got, score_topk_reference(*dot, k, *seen), score_items(dot))
    else:
        layers = data.draw(st.lists(st.integers(1, 20), max_size=4))
        ncf = ncf_scorer(num_users, num_items, dim, layers, seed)
        got = score_topk(ncf, k, seen_indptr=seen[0], seen_indices=seen[1])
        expected = score_topk_ncf_reference(*full_arguments(ncf), False, k, *seen)
        assert_same_topk(got, expected, score_items(ncf))


def test_among_equal_scores_the_lower_id_comes_first() -> None:
    for num_items in (300, 5000):  # one part of the catalogue, and several that are merged
        scorer = DotScorer(torch.ones(3, 1), torch.ones(num_items, 1))
        assert score_topk(scorer, 7).ids.tolist() == [list(range(7))] * 3
        stepped = DotScorer(torch.ones(2, 1), (torch.arange(num_items) % 3).float()[:, None])
        assert score_topk(stepped, 4).ids.tolist() == [[2, 5, 8, 11]] * 2
        assert torch.equal(score_topk_reference(*stepped, 4)[1], score_topk(stepped, 4).ids)


def test_nan_and_minus_infinity_are_never_recommended() -> None:
    bias = torch.tensor([1.0, float("nan"), float("-inf"), float("inf"), 0.0])
    for topk in (score_topk, lambda scorer, k: score_topk_reference(*scorer, k)):
        values, ids = topk(DotScorer(torch.zeros(1, 2), torch.zeros(5, 2), bias), 5)
        assert ids.tolist() == [[3, 0, 4, -1, -1]]
        assert values.tolist() == [[float("inf"), 1.0, 0.0, float("-inf"), float("-inf")]]


def test_user_who_has_seen_everything_gets_no_item() -> None:
    seen = (torch.tensor([0, 100, 199]), torch.cat([torch.arange(100), torch.arange(99)]).int())
    for scorer in (dot_scorer(2, 100, 4), ncf_scorer(2, 100, 4, [8, 4])):
        values, ids = score_topk(scorer, 3, seen_indptr=seen[0], seen_indices=seen[1])
        assert ids.tolist() == [[-1, -1, -1], [99, -1, -1]]
        assert bool((values[0] == float("-inf")).all())


def test_empty_inputs_return_empty_or_no_item() -> None:
    for num_users, num_items, k in ((0, 9, 3), (4, 0, 3), (4, 9, 0), (0, 0, 0)):
        for scorer in (dot_scorer(num_users, num_items, 4), ncf_scorer(num_users, num_items, 4, [8, 4])):
            values, ids = score_topk(scorer, k)
            assert values.shape == ids.shape == (num_users, k)
            assert num_items > 0 or bool((ids == -1).all())
            assert score_items(scorer).shape == (num_users, num_items)


def test_non_contiguous_inputs_are_read_correctly() -> None:
    scorer = dot_scorer(6, 50, 8)
    strided = DotScorer(scorer.users.T.contiguous().T, torch.stack([scorer.items] * 2, 2)[:, :, 1], scorer.item_bias)
    assert torch.equal(score_items(strided), score_items(scorer))
    shared = DotScorer(scorer.users[:1].expand(6, 8), scorer.items)
    assert torch.equal(
        score_topk(shared, 5).ids, score_topk(DotScorer(scorer.users[:1], scorer.items), 5).ids.expand(6, 5)
    )


BIT_SHAPES = [(300, 2500, 64), (9, 4200, 65), (300, 70, 1), (3, 1100, 3), (2, 900, 7)]


@pytest.mark.parametrize("kind", [DotScorer, CosineScorer, L2Scorer])
@pytest.mark.parametrize(("num_users", "num_items", "dim"), BIT_SHAPES)
def test_a_user_alone_gets_the_bits_of_the_whole_batch(
    kind: type[DotScorer], num_users: int, num_items: int, dim: int
) -> None:
    scorer = kind(*dot_scorer(num_users, num_items, dim)[:2])
    whole, dense = score_topk(scorer, 40), score_items(scorer)
    assert torch.equal(dense.gather(1, whole.ids.clamp(min=0))[whole.ids >= 0], whole.values[whole.ids >= 0])
    for user in (0, num_users // 2, num_users - 1):
        alone = scorer._replace(users=scorer.users[user : user + 1])
        assert type(alone) is kind
        assert all(torch.equal(one[0], all_[user]) for one, all_ in zip(score_topk(alone, 40), whole, strict=True))
        assert torch.equal(score_items(alone)[0], dense[user])
        # Nor does an item's score depend on the items beside it.
        part = torch.arange(num_items)[user % 3 :: 7]
        assert torch.equal(score_items(alone._replace(items=alone.items[part]))[0], dense[user, part])


@pytest.mark.parametrize(("num_items", "k"), [(900, 1000), (5000, 1000), (70_000, 1000), (70_000, 33), (40, 0)])
def test_long_lists_are_those_of_a_stable_sort(num_items: int, k: int) -> None:
    """Random scores, many equal ones, and those that rise or fall with the id."""
    rng = torch.Generator().manual_seed(num_items + k)
    rising = torch.arange(num_items).float()
    columns = [torch.randn(num_items, generator=rng), torch.randint(0, 50, (num_items,), generator=rng).float()]
    items = torch.stack([*columns, rising, -rising, torch.zeros(num_items), -(rising - num_items // 2).abs()], 1)
    users = torch.eye(items.shape[1])
    seen = random_seen(len(users), num_items, most=0.02)
    for lists in ({}, {"seen_indptr": seen[0], "seen_indices": seen[1]}):
        got = score_topk(DotScorer(users, items), k, **lists)
        expected = score_topk_reference(users, items, None, k, *lists.values())
        assert torch.equal(got.values, expected[0])
        assert torch.equal(got.ids, expected[1])


def allow_lists(num_users: int, num_items: int, of: str) -> dict[str, Tensor]:
    indptr, indices = random_seen(num_users, num_items, seed=1)
    if of == "all":
        return {"allow_indices": indices[: int(indptr[1])] if num_users else indices}
    return {"allow_indptr": indptr, "allow_indices": indices}


@pytest.mark.parametrize("of", ["all", "each"])
@pytest.mark.parametrize("kind", [DotScorer, CosineScorer, L2Scorer])
@pytest.mark.parametrize(("num_users", "num_items", "dim"), [(5, 123, 7), (1, 30, 1), (2, 20_000, 5), (260, 90, 8)])
def test_only_allowed_and_unseen_items_come(
    kind: type[DotScorer], num_users: int, num_items: int, dim: int, of: str
) -> None:
    scorer = kind(*dot_scorer(num_users, num_items, dim)[:2])
    seen = random_seen(num_users, num_items)
    lists = {"seen_indptr": seen[0], "seen_indices": seen[1], **allow_lists(num_users, num_items, of)}
    values, ids = score_topk(scorer, 20, **lists)
    dense = score_items(scorer)
    for user in range(num_users):
        row = lists["allow_indices"]
        if of == "each":
            row = row[lists["allow_indptr"][user] : lists["allow_indptr"][user + 1]]
        row = row[~torch.isin(row, seen[1][seen[0][user] : seen[0][user + 1]])].long()
        best = dense[user, row].sort(descending=True, stable=True)
        count = min(20, len(row))
        assert torch.equal(values[user, :count], best.values[:count])
        assert torch.equal(ids[user, :count], row[best.indices[:count]])
        assert (ids[user, count:] == -1).all()


@pytest.mark.parametrize("of", ["all", "each"])
def test_a_network_scores_allowed_items_alone(of: str) -> None:
    scorer, seen, lists = ncf_scorer(5, 200, 8, [16, 8]), random_seen(5, 200), allow_lists(5, 200, of)
    got = score_topk(scorer, 9, seen_indptr=seen[0], seen_indices=seen[1], **lists)
    arguments = (*full_arguments(scorer), False, 9, *seen, None, lists.get("allow_indptr"), lists["allow_indices"])
    assert_same_topk(got, score_topk_ncf_reference(*arguments), score_items(scorer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_users", "num_items", "dim"), [(5, 123, 7), (49, 64, 16), (2, 5000, 33), (3, 9, 0)])
def test_cosine_and_distance_match_float64(num_users: int, num_items: int, dim: int, dtype: torch.dtype) -> None:
    users, items, _ = dot_scorer(num_users, num_items, dim, dtype=dtype)
    u, v = users.double(), items.double()
    lengths = (u.norm(dim=1)[:, None] * v.norm(dim=1)).clamp(min=1e-300)
    for kind, exact in ((CosineScorer, u @ v.T / lengths), (L2Scorer, -(u[:, None] - v).square().sum(2))):
        similarity = SIMILARITIES.index(kind(users, items).similarity)
        for scores in (score_items(kind(users, items)), score_items_reference(users, items, None, similarity)):
            torch.testing.assert_close(scores.double(), exact, atol=1e-6, rtol=1e-5)


def test_cosine_of_zero_and_of_extreme_vectors() -> None:
    base = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    for length in (1.0, 1e-44, 1e-38, 1e-22, 1e18, 6e37):
        scores = score_items(CosineScorer(base[:1], base * length))
        tolerance = 0.2 if length < 1e-40 else 1e-6  # at the end of float32 a vector has a bit or two
        torch.testing.assert_close(scores, torch.tensor([[1.0, 0.0, 0.0, 0.6]]), atol=tolerance, rtol=0)
        own = CosineScorer(base * length, base[:2])
        torch.testing.assert_close(score_items(own)[0], torch.tensor([1.0, 0.0]), atol=tolerance, rtol=0)
    assert score_items(CosineScorer(torch.zeros(1, 2), base)).tolist() == [[0.0] * 4]
    spoiled = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [1.0, 1.0]])
    assert score_topk(CosineScorer(base[:1], spoiled), 3).ids.tolist() == [[2, -1, -1]]


def test_distance_of_equal_vectors_is_exactly_zero() -> None:
    """Where |u|^2 + |v|^2 - 2 u v would keep nothing: vectors of length 1e4 that differ in the last place."""
    items = torch.randn(500, 33) + 1e4
    nearest = score_topk(L2Scorer(items[::50], items), 2)
    assert nearest.ids[:, 0].tolist() == list(range(0, 500, 50))
    assert (nearest.values[:, 0] == 0).all()
    moved = items[:1].clone()
    moved[0, 5] = moved[0, 5].nextafter(torch.tensor(torch.inf))
    assert score_items(L2Scorer(items[:1], moved)).item() == -float((moved - items[:1]).square().sum())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_bits_for_any_number_of_threads_and_any_batch(precision: str) -> None:
    dot, ncf = dot_scorer(500, 2500, 24), ncf_scorer(70, 2500, 8, [24, 12, 6])
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append((*score_topk(dot, 9), *score_topk(ncf, 9, precision=precision), score_items(ncf)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    # One user alone, whose catalogue is cut into parts, gets what it gets within the block.
    alone = ncf._replace(user_hidden=ncf.user_hidden[33:34], user_factors=ncf.user_factors[33:34])  # type: ignore[index]
    assert torch.equal(score_topk(alone, 9, precision=precision).ids[0], results[0][3][33])
    assert torch.equal(score_topk(dot._replace(users=dot.users[77:78]), 9).values[0], results[0][0][77])


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_matches_reference(isa: str) -> None:
    tests = "topk_matches_dense or test_bfloat16 or bits_of_the_whole or only_allowed or cosine or distance or stable"
    if os.environ.get("DEEPREC_ISA"):
        pytest.skip("already inside the run for one DEEPREC_ISA")
    if _library.cpu_isa() == isa:
        pytest.skip(f"{isa} serves the other tests")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-k", tests, "-p", "no:cacheprovider"],
        env={**os.environ, "DEEPREC_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    seen = random_seen(5, 40)
    dot = dot_scorer(5, 40, 4)
    ncf = (*full_arguments(ncf_scorer(5, 40, 4, [8, 4])), False)
    allow = random_seen(5, 40, 1)
    yield "score_items", tuple(dot)
    yield "score_items", (*dot[:2], None, 1)
    yield "score_topk", (*dot, 3, *seen, None)
    yield "score_topk", (*dot[:2], None, 3, *seen, None, *allow, 2)
    yield "score_topk", (*dot, 3, None, None, None, None, torch.tensor([0, 3, 17, 39], dtype=torch.int32))
    yield "score_items_ncf", ncf
    yield "score_topk_ncf", (*ncf, 3, *seen, None, *allow)
    yield "score_topk_ncf", (*ncf, 3, *seen, torch.arange(5))


def test_compiles_to_one_graph() -> None:
    seen = random_seen(5, 40)

    @torch.compile(fullgraph=True)
    def best(users: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        first = score_topk(dot._replace(users=users), 3, seen_indptr=seen[0], seen_indices=seen[1])
        return first.ids, score_topk(ncf._replace(user_hidden=hidden), 3).values

    dot, ncf = dot_scorer(5, 40, 4), ncf_scorer(5, 40, 4, [8, 4])
    assert ncf.user_hidden is not None
    ids, values = best(dot.users, ncf.user_hidden)
    assert torch.equal(ids, score_topk(dot, 3, seen_indptr=seen[0], seen_indices=seen[1]).ids)
    assert torch.equal(values, score_topk(ncf, 3).values)


def test_bad_arguments_are_refused() -> None:
    dot, ncf = dot_scorer(5, 40, 4), ncf_scorer(5, 40, 4, [8, 4])
    indptr, indices = random_seen(5, 40)
    with pytest.raises(ValueError, match=r"k must be in \[0, 2\^31\), got -1"):
        score_topk(dot, -1)
    with pytest.raises(ValueError, match=r"users must be \[B, D\]"):
        score_topk(dot._replace(items=dot.items[:, :2]), 3)
    with pytest.raises(ValueError, match=r"item_bias must be \[40\]"):
        score_items(dot._replace(item_bias=torch.zeros(3)))
    with pytest.raises(TypeError, match="float64"):
        score_items(dot._replace(users=dot.users.double()))
    with pytest.raises(ValueError, match="precision must be"):
        score_items(ncf, precision="int8")
    with pytest.raises(ValueError, match="belong together"):
        score_items(ncf._replace(item_hidden=None))
    with pytest.raises(ValueError, match=r"out_weight must be \[8\]"):
        score_items(ncf._replace(out_weight=torch.zeros(7)))
    with pytest.raises(ValueError, match="after a layer of 8"):
        score_items(ncf._replace(weights=[torch.zeros(4, 9)]))
    with pytest.raises(ValueError, match="together"):
        score_topk(dot, 3, seen_indptr=indptr)
    with pytest.raises(ValueError, match="item_bias goes with DotScorer only"):
        score_topk(CosineScorer(*dot), 3)
    with pytest.raises(ValueError, match="give allow_indices with allow_indptr"):
        score_topk(dot, 3, allow_indptr=indptr)
    with pytest.raises(TypeError, match="allow_indices must be int32"):
        score_topk(dot, 3, allow_indices=indices.long())
    with pytest.raises(IndexError, match=r"allow_indices must lie in \[0, 40\)"):
        score_topk(dot, 3, allow_indices=torch.tensor([3, 40], dtype=torch.int32))
    for twice in ([3, 3], [4, 3]):
        with pytest.raises(ValueError, match="allow_indices must ascend, each item once"):
            score_topk(dot, 3, allow_indices=torch.tensor(twice, dtype=torch.int32))
    with pytest.raises(ValueError, match="allow_indptr must have 6 entries"):
        score_topk(dot, 3, allow_indices=indices, allow_indptr=indptr[:-1])
    with pytest.raises(ValueError, match="allow_indptr must rise"):
        score_topk(dot, 3, allow_indices=indices, allow_indptr=indptr + 1000)
    with pytest.raises(TypeError, match="seen_indices int32"):
        score_topk(dot, 3, seen_indptr=indptr, seen_indices=indices.long())
    with pytest.raises(ValueError, match="seen_indptr must have 6 entries"):
        score_topk(dot, 3, seen_indptr=indptr[:-1], seen_indices=indices)
    with pytest.raises(ValueError, match="seen_indptr must rise"):
        score_topk(dot, 3, seen_indptr=indptr + 1000, seen_indices=indices)
    with pytest.raises(IndexError, match=r"seen_rows must lie in \[0, 5\), got 9 at position 4"):
        score_topk(dot, 3, seen_indptr=indptr, seen_indices=indices, seen_rows=torch.tensor([0, 1, 2, 3, 9]))


def test_masks_the_ratings_of_movielens_1m() -> None:
    root = os.environ.get("DEEPREC_DATA")
    path = Path(root or "") / "ml-1m" / "ratings_rank.dat.gz"
    if not root or not path.exists():
        pytest.skip("DEEPREC_DATA is not set to a folder with ml-1m/ratings_rank.dat.gz")
    with gzip.open(path, "rt") as file:
        pairs = np.array([line.split("::")[:2] for line in file], dtype=np.int64)
    users, items = pairs[:, 0] - 1, np.unique(pairs[:, 1], return_inverse=True)[1]
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    order = np.lexsort((items, users))
    indptr = torch.from_numpy(np.concatenate([[0], np.bincount(users, minlength=num_users).cumsum()]))
    indices = torch.from_numpy(items[order].astype(np.int32))
    seen = torch.zeros((num_users, num_items), dtype=torch.bool)
    seen[torch.from_numpy(users), torch.from_numpy(items)] = True
    scorer = dot_scorer(num_users, num_items, 16)
    values, ids = score_topk(scorer, 20, seen_indptr=indptr, seen_indices=indices)
    assert not seen.gather(1, ids).any()
    expected = score_items_reference(*scorer).masked_fill(seen, float("-inf")).topk(20).values
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)
