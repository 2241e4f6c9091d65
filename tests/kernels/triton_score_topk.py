"""Triton kernels of score_topk under the interpreter; run by test_triton.py."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from deeprec.kernels._door import launches
from deeprec.kernels.score_topk.reference import (
    score_items_ncf_reference,
    score_items_reference,
    score_topk_ncf_reference,
    score_topk_reference,
)
from deeprec.kernels.score_topk.triton_kernels import score_items_ncf, score_topk, score_topk_ncf

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120
from test_score_topk import assert_same_topk, dot_scorer, full_arguments, ncf_scorer, random_seen

NCF_SHAPES = [(2, 70, 8, [33, 17, 9]), (2, 33, 0, [7, 5, 3, 1]), (1, 65, 4, [])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_users", "num_items", "dim", "k"), [(5, 123, 7, 10), (17, 70, 33, 64), (1, 1, 1, 3)])
def test_dot_topk_matches_reference(num_users: int, num_items: int, dim: int, k: int, dtype: torch.dtype) -> None:
    scorer = dot_scorer(num_users, num_items, dim, dtype=dtype)
    seen = random_seen(num_users + 2, num_items, most=1.0)
    rows = torch.arange(num_users) + 1
    expected = score_topk_reference(*scorer, k, *seen, rows)
    assert_same_topk(score_topk(*scorer, k, *seen, rows), expected, score_items_reference(*scorer), atol=1e-3)


def test_ties_nan_and_signed_zero_follow_the_rule() -> None:
    bias = torch.tensor([0.0, float("nan"), -0.0, float("-inf"), float("inf"), -1.0, 0.0])
    values, ids = score_topk(torch.zeros(1, 2), torch.zeros(7, 2), bias, 6)
    assert ids.tolist() == [[4, 0, 2, 6, 5, -1]]
    assert values.tolist() == [[float("inf"), 0.0, 0.0, 0.0, -1.0, float("-inf")]]
    many = score_topk(torch.ones(2, 1), (torch.arange(150) % 3).float()[:, None], None, 5)
    assert many[1].tolist() == [[2, 5, 8, 11, 14]] * 2


@pytest.mark.parametrize("use_bfloat16", [False, True])
@pytest.mark.parametrize(("num_users", "num_items", "dim", "layers"), NCF_SHAPES)
def test_network_matches_reference(
    num_users: int, num_items: int, dim: int, layers: list[int], use_bfloat16: bool
) -> None:
    arguments = (*full_arguments(ncf_scorer(num_users, num_items, dim, layers)), use_bfloat16)
    scores = score_items_ncf_reference(*arguments)
    # The interpreter truncates to bfloat16 where hardware rounds.
    tolerance = 3e-2 if use_bfloat16 else 1e-4
    torch.testing.assert_close(score_items_ncf(*arguments), scores, atol=tolerance, rtol=tolerance)
    seen = random_seen(num_users, num_items)
    got = score_topk_ncf(*arguments, 10, *seen)
    expected = score_topk_ncf_reference(*arguments, 10, *seen)
    assert_same_topk(got, expected, scores, atol=tolerance)


@pytest.mark.parametrize("k", [*range(1, 17), 17, 31, 32, 33, 63, 64])  # at both ends of each width of the list
def test_dot_topk_of_every_width_matches_reference(k: int) -> None:
    scorer, seen = dot_scorer(1, 70, 4), random_seen(1, 70)
    launches.clear()
    got = score_topk(*scorer, k, *seen)
    assert launches == {"_score_topk_dot_kernel": 1}
    assert_same_topk(got, score_topk_reference(*scorer, k, *seen), score_items_reference(*scorer), atol=1e-4)


@pytest.mark.parametrize("k", range(1, 65))
def test_network_topk_of_every_k_matches_reference(k: int) -> None:
    network, seen = (*full_arguments(ncf_scorer(1, 70, 2, [5])), False), random_seen(1, 70)
    launches.clear()
    got = score_topk_ncf(*network, k, *seen)
    assert launches == {"_score_topk_ncf_kernel": 1}
    expected = score_topk_ncf_reference(*network, k, *seen)
    assert_same_topk(got, expected, score_items_ncf_reference(*network), atol=1e-4)


def test_what_the_kernel_cannot_hold_goes_to_the_reference() -> None:
    scorer = dot_scorer(3, 100, 4)
    assert torch.equal(score_topk(*scorer, 65)[1], score_topk_reference(*scorer, 65)[1])
    deep = full_arguments(ncf_scorer(2, 30, 4, [8, 7, 6, 5, 4]))
    got = score_topk_ncf(*deep, False, 5)
    assert torch.equal(got[1], score_topk_ncf_reference(*deep, False, 5)[1])
