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
from deeprec.kernels.score_topk.triton_kernels import score_topk, score_topk_ncf

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120
from test_score_topk import assert_same_topk, dot_scorer, full_arguments, ncf_scorer, random_seen

# At both ends of each width of the list; other shapes, types, seen items and ties are in tests/gpu.
KS = [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 63, 64]


@pytest.mark.parametrize("k", KS)
def test_dot_topk_of_every_width_matches_reference(k: int) -> None:
    scorer, seen = dot_scorer(1, 70, 4), random_seen(1, 70)
    launches.clear()
    got = score_topk(*scorer, k, *seen)
    assert launches == {"_score_topk_dot_kernel": 1}
    assert_same_topk(got, score_topk_reference(*scorer, k, *seen), score_items_reference(*scorer), atol=1e-4)


@pytest.mark.parametrize("k", KS)
def test_network_topk_of_every_width_matches_reference(k: int) -> None:
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
