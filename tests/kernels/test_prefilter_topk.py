"""prefilter_topk: the bits of score_topk for any rows, and a bound that no score exceeds."""

from __future__ import annotations

import gzip
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels._library import load_error
from deeprec.kernels.prefilter_topk import PreparedItems, PreparedScorer, prefilter_topk
from deeprec.kernels.prefilter_topk.reference import prefilter_pack_reference, words_shape
from deeprec.kernels.score_topk import DotScorer, TopK, score_topk

DTYPES = ["int8", "bfloat16"]
needs_kernel = pytest.mark.skipif(bool(load_error()), reason="the compiled kernels are not there: score_topk serves")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scan(users: Tensor, prepared: PreparedItems, bias: Tensor | None, k: int, *lists: Tensor | None) -> Any:
    """The scan by itself, which gives up where the function would turn to score_topk."""
    return torch.ops.deeprec.prefilter_scan(users, prepared.items, bias, *prepared.copy, k, *lists)


def assert_same(got: TopK, expected: TopK) -> None:
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(got.values.view(torch.int32), expected.values.view(torch.int32))


def assert_scan(
    users: Tensor, prepared: PreparedItems, bias: Tensor | None, k: int, most_given_up: float = 0.0
) -> None:
    """The scan agrees with score_topk for each user that it serves, and serves enough of them."""
    values, ids, gave_up = scan(users, prepared, bias, k)
    expected = score_topk(DotScorer(users, prepared.items, bias), k)
    served = ~gave_up
    assert float(gave_up.float().mean()) <= most_given_up
    assert_same(TopK(values[served], ids[served]), TopK(expected.values[served], expected.ids[served]))
    assert_same(prefilter_topk(PreparedScorer(users, prepared, bias), k), expected)


# -- the copy --------------------------------------------------------------------------------------------------------


def hostile_rows(num_items: int, dim: int) -> Tensor:
    """Rows of every kind: spread norms, one large element, subnormal, equal, zero, NaN, infinite, huge, tiny."""
    rows = normal(num_items, dim) * torch.exp(6 * normal(num_items, 1, seed=1))
    rows[0::17] = 0.0
    rows[1::19] = torch.nan
    rows[2::23, dim // 2] = torch.inf
    rows[3::29] *= 1e-30
    rows[4::31] *= 1e30
    rows[5::37] = 2.0**-140
    rows[6::41, 1:] = 0.0
    rows[7::43] = rows[7:8]
    rows[8::47, dim // 2] = 3e38
    rows[9::53] = 1.0
    return rows


@pytest.mark.parametrize("is_int8", [True, False])
@pytest.mark.parametrize(("num_items", "dim"), [(1, 1), (64, 4), (65, 7), (300, 33), (130, 200), (0, 5), (70, 0)])
def test_copy_matches_reference(num_items: int, dim: int, is_int8: bool) -> None:
    items = normal(num_items, dim) if dim < 2 else hostile_rows(num_items, dim)
    for tiles in (None, torch.tensor([0, 0]), torch.tensor([(num_items - 1) // 64])):
        if tiles is None or num_items:
            words, scales, bounds = torch.ops.deeprec.prefilter_pack(items, tiles, is_int8)
            expected = prefilter_pack_reference(items, tiles, is_int8)
            assert torch.equal(words.view(torch.uint8), expected[0].view(torch.uint8))
            assert torch.equal(scales.nan_to_num(-1), expected[1].nan_to_num(-1))
            torch.testing.assert_close(bounds, expected[2], atol=0, rtol=1e-6)


@pytest.mark.parametrize("is_int8", [True, False])
def test_bounds_of_the_copy_hold(is_int8: bool) -> None:
    """|v - s q| <= s rho and |q| <= nu for every row whose scale is a number, and exactly the others have none."""
    items = hostile_rows(2000, 37)
    words, scales, bounds = torch.ops.deeprec.prefilter_pack(items, None, is_int8)
    q = words.transpose(1, 2).reshape(len(words) * 64, -1)[:2000, :37].double() - (128 if is_int8 else 0)
    s, rho, nu = (x.double() for x in (scales.reshape(-1)[:2000], *bounds.repeat_interleave(64, 0)[:2000].unbind(1)))
    exact = items.double()
    norm, largest = exact.norm(dim=1), exact.abs().amax(1)
    is_regular = (norm == 0) | ((norm <= 2.0**63) & (largest >= 2.0**-60))
    assert torch.equal(s.isnan(), ~is_regular)
    assert 0.2 < float(is_regular.float().mean()) < 0.95
    errors = (exact - s[:, None] * q)[is_regular].norm(dim=1)
    assert bool((errors <= (s * rho)[is_regular]).all())
    is_used = is_regular & (norm > 0)
    assert bool((q[is_used].norm(dim=1) <= nu[is_used]).all())
    assert float((errors / norm[is_regular].clamp(min=1e-300)).amax()) < (0.2 if is_int8 else 2.0**-8)


# -- the same bits ---------------------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_users", "num_items", "dim", "k"),
    [
        (1, 6000, 64, 10),
        (3, 4097, 7, 1),
        (8, 5000, 65, 100),
        (70, 8192, 16, 10),
        (5, 7001, 1, 3),
        (2, 33_000, 130, 1000),
    ],
)
def test_scan_has_the_bits_of_score_topk(num_users: int, num_items: int, dim: int, k: int, dtype: str) -> None:
    items = normal(num_items, dim) * (0.1 + torch.rand(num_items, 1, generator=torch.Generator().manual_seed(3)))
    prepared, users = PreparedItems.of(items, dtype), normal(num_users, dim, seed=1)
    for bias in (None, normal(num_items, seed=2)):
        assert_scan(users, prepared, bias, k)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_users", [2, 9])
def test_hostile_rows_keep_the_bits(num_users: int, dtype: str) -> None:
    items = hostile_rows(6000, 24)
    prepared = PreparedItems.of(items, dtype)
    users = normal(num_users, 24, seed=5) * torch.logspace(-8, 8, num_users)[:, None]
    for bias in (None, normal(6000, seed=6) * 1e4):
        assert_scan(users, prepared, bias, 10, most_given_up=1.0)
    calm = torch.where((items.isfinite() & (items.abs() < 1e15)).all(1, keepdim=True), items, 0.0)
    assert_scan(users, PreparedItems.of(calm, dtype), None, 10)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_cancel_keep_the_bits(dtype: str) -> None:
    """Scores far below the product of the norms: the bound is wide against them, and items are many in its width."""
    items = normal(5000, 32)
    items[:, 16:] = -items[:, :16] * (1 + 1e-4 * normal(5000, 16, seed=1))
    users = normal(6, 16, seed=2).repeat(1, 2)
    assert_scan(users, PreparedItems.of(items, dtype), None, 10, most_given_up=1.0)
    assert_scan(users, PreparedItems.of(items, dtype), -(items @ users[0]), 10, most_given_up=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_users_and_biases_are_served(dtype: str) -> None:
    """Users that the bound does not cover, and biases that are not numbers."""
    prepared = PreparedItems.of(normal(5000, 8), dtype)
    users = normal(9, 8, seed=1)
    users[1], users[2, 3], users[3, 4], users[4], users[5] = 0.0, torch.nan, torch.inf, 1e-30, 1e30
    users[6] = 2.0**-140
    bias = normal(5000, seed=2)
    bias[::7], bias[1::11], bias[2::1001] = -torch.inf, torch.nan, torch.inf
    bias[3], bias[4] = 3.4e38, -3.4e38
    for given in (None, bias, torch.full((5000,), -torch.inf)):
        got = prefilter_topk(PreparedScorer(users, prepared, given), 7)
        assert_same(got, score_topk(DotScorer(users, prepared.items, given), 7))
    if not load_error():
        assert scan(users, prepared, None, 7)[2].tolist() == [False, *[True] * 6, False, False]


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_given_up_and_served(dtype: str) -> None:
    """All items tie: no bound leaves one out, so the scan stops early, and the lower ids come first."""
    prepared, users = PreparedItems.of(torch.ones(40_000, 8), dtype), torch.ones(3, 8)
    assert scan(users, prepared, None, 5)[2].all()
    assert prefilter_topk(PreparedScorer(users, prepared), 5).ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    twice = normal(5000, 8)
    twice[2500:] = twice[:2500]
    assert_scan(users, PreparedItems.of(twice, dtype), None, 6)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_need_the_bounds(dtype: str) -> None:
    """Scores close to each other: with bounds of zero the scan loses items, so the tests above can fail."""
    users, prepared = 1 + 0.3 * normal(60, 48, seed=1), PreparedItems.of(1 + 0.01 * normal(40_000, 48), dtype)
    words, scales, bounds = prepared.copy
    exact = score_topk(DotScorer(users, prepared.items), 20)
    assert_same(prefilter_topk(PreparedScorer(users, prepared), 20), exact)
    ids = torch.ops.deeprec.prefilter_scan(users, prepared.items, None, words, scales, 0 * bounds, 20)[1]
    assert not torch.equal(ids, exact.ids)


# -- lists -----------------------------------------------------------------------------------------------------------


def lists(num_rows: int, num_items: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    mask = torch.rand(num_rows, num_items, generator=torch.Generator().manual_seed(seed)) < share
    return torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]), mask.nonzero()[:, 1].int()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.02, 0.6, 1.0])
def test_seen_and_allowed_items_match(share: float, dtype: str) -> None:
    items, users = normal(5000, 12), normal(6, 12, seed=1)
    users[2] = 0.0  # is given up
    prepared, bias = PreparedItems.of(items, dtype), normal(5000, seed=2)
    scorer, exact = PreparedScorer(users, prepared, bias), DotScorer(users, items, bias)
    seen, rows = lists(9, 5000, share, 3), torch.tensor([8, 0, 3, 3, 1, 7])
    allowed, own = lists(1, 5000, share, 4)[1], lists(6, 5000, share, 5)
    for options in (
        {"seen_indptr": seen[0], "seen_indices": seen[1], "seen_rows": rows},
        {"seen_indptr": seen[0][:7], "seen_indices": seen[1]},
        {"allow_indices": allowed},
        {"allow_indices": own[1], "allow_indptr": own[0]},
        {"allow_indices": allowed, "seen_indptr": seen[0], "seen_indices": seen[1], "seen_rows": rows.int()},
        {"allow_indices": own[1], "allow_indptr": own[0], "seen_indptr": seen[0][:7], "seen_indices": seen[1]},
    ):
        assert_same(prefilter_topk(scorer, 30, **options), score_topk(exact, 30, **options))


def test_small_and_large_k() -> None:
    items, users = normal(4500, 6), normal(3, 6, seed=1)
    prepared = PreparedItems.of(items)
    for k in (0, 1, 70, 71, 4500, 5000):
        assert_same(prefilter_topk(PreparedScorer(users, prepared), k), score_topk(DotScorer(users, items), k))
    few = PreparedItems.of(items[:50])
    assert_same(prefilter_topk(PreparedScorer(users, few), 60), score_topk(DotScorer(users, items[:50]), 60))
    for n, b, d in ((0, 3, 6), (4500, 0, 6), (4500, 3, 0)):
        got = prefilter_topk(PreparedScorer(users[:b, :d], PreparedItems.of(items[:n, :d])), 4)
        assert_same(got, score_topk(DotScorer(users[:b, :d], items[:n, :d]), 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_strides(dtype: torch.dtype) -> None:
    items, users = normal(12, 5000).T.to(dtype), normal(12, 4, seed=1).T.to(dtype)
    got = prefilter_topk(PreparedScorer(users, PreparedItems.of(items)), 9)
    assert_same(got, score_topk(DotScorer(users, items), 9))


def test_factors_of_real_likes() -> None:
    """Singular vectors of who likes which article: long-tailed norms, and every user's own list to leave out."""
    root = os.environ.get("DEEPREC_DATA")
    path = Path(root or "") / "citeulike-a" / "users.dat.gz"
    if not root or not path.exists():
        pytest.skip("DEEPREC_DATA is not set to a folder with citeulike-a/users.dat.gz")
    with gzip.open(path, "rt") as file:
        rows = [sorted({int(item) for item in line.split()[1:]}) for line in file]
    lengths, indices = torch.tensor([len(row) for row in rows]), torch.tensor([i for row in rows for i in row])
    likes = torch.sparse_coo_tensor(
        torch.stack([torch.arange(len(rows)).repeat_interleave(lengths), indices]),
        torch.ones(len(indices)),
        check_invariants=True,
    )
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(likes.coalesce(), 32, niter=1)
    users, indptr = (u * s.sqrt())[:600], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    seen = {"seen_indptr": indptr, "seen_indices": indices.int(), "seen_rows": torch.arange(600)}
    expected = score_topk(DotScorer(users, v * s.sqrt()), 20, **seen)
    for dtype in DTYPES:
        prepared = PreparedItems.of(v * s.sqrt(), dtype)
        assert_same(prefilter_topk(PreparedScorer(users, prepared), 20, **seen), expected)
        gave_up = scan(users, prepared, None, 20, *seen.values())[2]
        assert float(gave_up.float().mean()) < 0.1


# -- changing rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_changed_rows_are_those_of_a_new_copy(dtype: str) -> None:
    items = normal(4200, 9)
    prepared = PreparedItems.of(items, dtype)
    rows = torch.tensor([3, 4199, 64, 3, 70], dtype=torch.int32)
    prepared.update(rows, normal(5, 9, seed=1).double().float())
    for count in (1, 130, 9000):
        prepared.append(normal(count, 9, seed=count).half())
    prepared.update(torch.tensor([13_000]), torch.full((1, 9), torch.nan))
    expected = items.clone()
    expected[rows.long()[1:]] = normal(5, 9, seed=1)[1:]
    expected = torch.cat([expected, *(normal(n, 9, seed=n).half().float() for n in (1, 130, 9000))])
    expected[13_000] = torch.nan
    assert len(prepared) == len(expected) == 13_331
    assert torch.equal(prepared.items.nan_to_num(), expected.nan_to_num())
    anew = PreparedItems.of(expected, dtype)
    for part, other in zip(prepared.copy, anew.copy, strict=True):
        assert torch.equal(part.view(torch.uint8), other.view(torch.uint8))
    users = normal(4, 9, seed=7)
    assert_same(prefilter_topk(PreparedScorer(users, prepared), 8), score_topk(DotScorer(users, expected), 8))
    assert torch.equal(items, normal(4200, 9))


def test_rows_are_copied() -> None:
    items = normal(4200, 5)
    prepared = PreparedItems.of(items)
    items.zero_()
    assert torch.equal(prepared.items, normal(4200, 5))


# -- the operators ---------------------------------------------------------------------------------------------------


def opcheck_samples() -> Iterator[tuple[Any, ...]]:
    items, users = normal(4200, 6), normal(3, 6, seed=1)
    for dtype in DTYPES:
        prepared = PreparedItems.of(items, dtype)
        yield "prefilter_pack", (items, None, dtype == "int8")
        yield "prefilter_pack", (items, torch.tensor([2, 0]), dtype == "int8")
        seen, own = lists(3, 4200, 0.1, 2), lists(3, 4200, 0.9, 3)
        for name in ("prefilter_scan", "prefilter_topk"):
            yield name, (users, items, None, *prepared.copy, 4)
            yield name, (users, items, normal(4200), *prepared.copy, 4, *seen, torch.tensor([2, 0, 1]), *own)


def test_compiles() -> None:
    prepared, users = PreparedItems.of(normal(4200, 6)), normal(3, 6, seed=1)

    def best(users: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = prefilter_topk(PreparedScorer(users + 1, prepared), 4)
        return values * 2, ids

    compiled = torch.compile(best, fullgraph=True)(users)
    assert_same(TopK(*compiled), TopK(*best(users)))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_bits_depend_on_neither_threads_nor_the_copy(isa: str) -> None:
    """In a process of its own for each instruction set; an older processor takes the best it has."""
    program = """
import torch
from deeprec.kernels.prefilter_topk import PreparedItems, PreparedScorer, prefilter_topk
from deeprec.kernels.score_topk import DotScorer, score_topk
torch.manual_seed(0)
items, users, bias = torch.randn(20_000, 37), torch.randn(130, 37), torch.randn(20_000)
exact = score_topk(DotScorer(users, items, bias), 20)
for dtype in ("int8", "bfloat16"):
    prepared = PreparedItems.of(items, dtype)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in (1, 130):
            scorer = PreparedScorer(users[:count], prepared, bias)
            got = prefilter_topk(scorer, 20)
            assert torch.equal(got.ids, exact.ids[:count]) and torch.equal(got.values, exact.values[:count])
            scan = torch.ops.deeprec.prefilter_scan(users[:count], items, bias, *prepared.copy, 20)
            assert not scan[2].any() and torch.equal(scan[1], exact.ids[:count])
"""
    environment = {**os.environ, "DEEPREC_ISA": isa, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- errors ----------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused() -> None:
    prepared, users = PreparedItems.of(normal(4200, 6)), normal(3, 6, seed=1)
    scorer = PreparedScorer(users, prepared)
    with pytest.raises(ValueError, match="dtype must be 'int8' or 'bfloat16', got 'int4'"):
        PreparedItems.of(normal(3, 2), "int4")
    with pytest.raises(TypeError, match="items must be float32"):
        PreparedItems.of(normal(3, 2).double())
    with pytest.raises(ValueError, match=r"\[N, D\], D at most 65,536, got \[3\]"):
        PreparedItems.of(normal(3))
    with pytest.raises(ValueError, match=r"k must be in \[0, 2\^31\), got -1"):
        prefilter_topk(scorer, -1)
    with pytest.raises(TypeError, match="k must be an integer"):
        prefilter_topk(scorer, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"users must be \[B, 6\], got \[3, 5\]"):
        prefilter_topk(PreparedScorer(users[:, :5], prepared), 2)
    with pytest.raises(ValueError, match=r"item_bias must be \[4200\], got \[3\]"):
        prefilter_topk(PreparedScorer(users, prepared, torch.zeros(3)), 2)
    with pytest.raises(TypeError, match=r"float16, got torch\.float64"):
        prefilter_topk(PreparedScorer(users.double(), prepared), 2)
    with pytest.raises(ValueError, match="give seen_indptr and seen_indices together"):
        prefilter_topk(scorer, 2, seen_rows=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="seen_indices int32"):
        prefilter_topk(scorer, 2, seen_indptr=torch.zeros(4).long(), seen_indices=torch.zeros(2).long())
    with pytest.raises(ValueError, match="prefilter_topk: give allow_indices with allow_indptr"):
        prefilter_topk(scorer, 2, allow_indptr=torch.zeros(4).long())
    with pytest.raises(TypeError, match=r"allow_indices must be int32 and allow_indptr int64, got torch\.int64"):
        prefilter_topk(scorer, 2, allow_indices=torch.arange(4))


def test_bad_lists_are_refused() -> None:
    prepared, users = PreparedItems.of(normal(4200, 6)), normal(3, 6, seed=1)
    scorer, every = PreparedScorer(users, prepared), torch.arange(4200, dtype=torch.int32)
    with pytest.raises(ValueError, match="seen_indptr must have 4 entries"):
        prefilter_topk(scorer, 2, seen_indptr=torch.zeros(3).long(), seen_indices=every)
    with pytest.raises(ValueError, match="seen_indptr must rise from 0 to 4200"):
        prefilter_topk(scorer, 2, seen_indptr=torch.tensor([0, 9, 5, 6]), seen_indices=every)
    rows = torch.tensor([0, 0, 1])
    with pytest.raises(IndexError, match=r"seen_rows must lie in \[0, 1\)"):
        prefilter_topk(scorer, 2, seen_indptr=torch.tensor([0, 9]), seen_indices=every, seen_rows=rows)
    with pytest.raises(IndexError, match=r"allow_indices must lie in \[0, 4200\)"):
        prefilter_topk(scorer, 2, allow_indices=every + 1)
    with pytest.raises(ValueError, match="allow_indices must"):
        prefilter_topk(scorer, 2, allow_indices=every.flip(0))


def test_bad_changes_are_refused_before_anything_changes() -> None:
    prepared = PreparedItems.of(normal(100, 6))
    for error, call in (
        (IndexError, lambda: prepared.update(torch.tensor([0, 100]), torch.zeros(2, 6))),
        (IndexError, lambda: prepared.update(torch.tensor([-1]), torch.zeros(1, 6))),
        (ValueError, lambda: prepared.update(torch.tensor([0]), torch.zeros(2, 6))),
        (ValueError, lambda: prepared.update(torch.tensor([0]), torch.zeros(1, 5))),
        (TypeError, lambda: prepared.update(torch.tensor([0.0]), torch.zeros(1, 6))),
        (ValueError, lambda: prepared.append(torch.zeros(1, 5))),
        (TypeError, lambda: prepared.append(torch.zeros(1, 6).double())),
    ):
        with pytest.raises(error, match="PreparedItems"):
            call()
    assert torch.equal(prepared.items, normal(100, 6))


def test_words_are_checked() -> None:
    """The operator reads no further than the tensors that it is given."""
    prepared, users = PreparedItems.of(normal(4200, 6)), normal(3, 6, seed=1)
    words, scales, bounds = prepared.copy
    for parts in ((words[1:], scales, bounds), (words, scales[1:], bounds), (words, scales, bounds[1:])):
        with pytest.raises((RuntimeError, ValueError), match="must be"):
            torch.ops.deeprec.prefilter_scan(users, prepared.items, None, *parts, 2)
    assert words_shape(66, 6, True) == words.shape
    assert math.prod(words.shape) == words.numel()
