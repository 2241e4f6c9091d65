"""Claims about what lies between the matrix products of GRU4Rec's step: it is what PyTorch's own operators say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.session_step import session_columns, session_gates, session_gates_grad, session_softmax

# Lanes and width: a round shape, odd ones around the vector widths, one of each, none.
SHAPES = [(32, 2048), (5, 123), (3, 7), (4, 17), (1, 1), (2, 33), (0, 5)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def softmax_arguments(lanes: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return 3 * normal(lanes, width), integers(width, lanes), -normal(lanes, seed=1).abs()


def gate_arguments(lanes: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return 3 * normal(lanes, 3 * width), normal(lanes, 3 * width, seed=1), normal(lanes, width, seed=2)


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    yield "session_columns", (integers(9, 24), 9)
    yield "session_columns", (integers(9, 24).int(), 100)
    yield "session_columns", (integers(9, 0), 9)
    for is_masked in (False, True):
        yield "session_softmax", (*softmax_arguments(3, 7), is_masked)
    given, recurrent, before = gate_arguments(3, 5)
    yield "session_gates", (given, recurrent, before)
    gates = torch.ops.deeprec.session_gates(given, recurrent, before)[1]
    yield "session_gates_grad", (normal(3, 5, seed=3), gates, recurrent, before)


# -- columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("count", "rows"), [(2112, 43_000), (300, 7), (40, 2**31 - 1), (1, 1), (0, 5)])
def test_columns_are_those_of_unique(count: int, rows: int, dtype: torch.dtype) -> None:
    ids = integers(rows, 2 * count)[::2].to(dtype)
    mine = session_columns(ids, rows)
    expected = torch.unique(ids, return_inverse=True, return_counts=True)
    for part, other in zip(mine, expected, strict=True):
        assert torch.equal(part, other)
    assert mine[0].dtype == dtype


def test_an_id_out_of_range_is_named() -> None:
    with pytest.raises(IndexError, match=r"table 'item' must be in \[0, 7\), got 9 at position 2"):
        session_columns(torch.tensor([1, 2, 9, 3]), 7, name="item")


# -- softmax ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("lanes", "width"), SHAPES)
def test_merged_candidates_are_those_apart(lanes: int, width: int, dtype: torch.dtype) -> None:
    """Each column written out as often as it counts: loss and slopes are F.cross_entropy's, masked ones too."""
    draw = softmax_arguments(lanes, width)
    counts, targets = 1 + integers(4, width, seed=2), draw[1]
    scores = draw[0].to(dtype)
    apart = torch.arange(width).repeat_interleave(counts)
    firsts = (counts.cumsum(0) - counts)[targets]
    own = -counts[targets].to(dtype).log()
    for is_masked in (False, True):
        wide = scores.double()[:, apart].requires_grad_()
        kept = wide
        if is_masked:
            is_same = apart == targets.unsqueeze(1)
            kept = wide.masked_fill(is_same.scatter(1, firsts.unsqueeze(1), False), -torch.inf)
        expected = F.cross_entropy(kept, firsts, reduction="sum")
        (grads,) = torch.autograd.grad(expected, wide)
        expected_slopes = torch.zeros(lanes, width, dtype=torch.float64).index_add(1, apart, grads)
        loss, slopes = session_softmax(scores + counts.log(), targets, own, is_masked=is_masked)
        assert loss.dtype == slopes.dtype == dtype
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(slopes.double(), expected_slopes, rtol=1e-5, atol=3e-7)


def test_columns_that_are_no_candidates_and_far_scores_have_no_share() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 1e4, -1e4], [200.0, -torch.inf, 0.0, 200.0]])
    loss, slopes = session_softmax(scores, torch.tensor([2, 2]), torch.zeros(2))
    assert float(loss) == pytest.approx(200 + 0.6931472)
    assert slopes.tolist() == [[0, 0, 0, 0], [0.5, 0, -1, 0.5]]


def test_a_score_that_is_no_number_is_seen_in_the_loss() -> None:
    scores, targets, own = softmax_arguments(3, 40)
    scores[1, 17] = torch.nan
    assert bool(session_softmax(scores, targets, own)[0].isnan())


# -- gates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("lanes", "width"), [(32, 100), (5, 123), (3, 7), (1, 1), (4, 16), (0, 5)])
def test_gates_are_those_of_gru_cell(lanes: int, width: int, dtype: torch.dtype) -> None:
    given, recurrent, before = (x.double().requires_grad_() for x in gate_arguments(lanes, width))
    eye, none = torch.eye(3 * width, dtype=torch.float64), torch.zeros(3 * width, width, dtype=torch.float64)
    # The recurrent product stands in for a bias of its own lane.
    rows = [
        torch.gru_cell(given[b : b + 1], before[b : b + 1], eye, none, None, recurrent[b]) for b in range(lanes)
    ] or [before]  # fmt: skip
    expected = torch.cat(rows)
    grad = normal(lanes, width, seed=3)
    parts = [x.detach().to(dtype) for x in (given, recurrent, before)]
    # States as they lie in a wider table.
    before_view = torch.cat([parts[2], parts[2]], 1)[:, :width]
    after, gates = session_gates(parts[0], parts[1], before_view)
    torch.testing.assert_close(after.double(), expected.detach(), rtol=1e-6, atol=5e-7)
    if lanes:
        wanted = torch.autograd.grad(expected, (given, recurrent), grad.double())
        for part, other in zip(session_gates_grad(grad.to(dtype), gates, parts[1], before_view), wanted, strict=True):
            torch.testing.assert_close(part.double(), other, rtol=2e-5, atol=1e-6)


def test_gates_saturate_and_keep_small_values() -> None:
    given = torch.tensor([[1e5, -1e5, 1e-5], [-1e5, 1e5, torch.inf]])
    after, gates = session_gates(given, torch.zeros(2, 3), torch.tensor([[0.5], [0.25]]))
    torch.testing.assert_close(gates, torch.tensor([[1.0, 0.0, 1e-5], [0.0, 1.0, 1.0]]), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(after, torch.tensor([[1e-5], [0.25]]))


# -- machines --------------------------------------------------------------------------------------------------

_PROBE = """
import sys, torch
from deeprec.kernels import _library, session_step
ops = torch.ops.deeprec
calls = torch.load(sys.argv[1])
outs = []
for count in (1, 2):
    torch.set_num_threads(count)
    outs.append([getattr(ops, name)(*arguments) for name, arguments in calls])
torch.save((_library.cpu_isa(), outs), sys.argv[2])
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_instruction_sets_agree_and_threads_leave_the_bits(isa: str, tmp_path: Path) -> None:
    given, recurrent, before = gate_arguments(40, 131)
    gates = session_gates(given, recurrent, before)[1]
    calls = [
        ("session_softmax", (*softmax_arguments(40, 1033), True)),
        ("session_gates", (given, recurrent, before)),
        ("session_gates_grad", (normal(40, 131, seed=3), gates, recurrent, before)),
    ]
    torch.save(calls, tmp_path / "in.pt")
    command = [sys.executable, "-c", _PROBE, tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run(command, env={**os.environ, "DEEPREC_ISA": isa}, check=True, cwd=Path(__file__).parents[2])
    ran, outs = torch.load(tmp_path / "out.pt")
    if ran != isa:
        pytest.skip(f"this processor or build has no {isa} kernels, {ran or 'the reference'} ran")
    for (name, arguments), one, other in zip(calls, *outs, strict=True):
        expected = getattr(torch.ops.deeprec, name)(*arguments)
        for mine, again, best in zip(one, other, expected, strict=True):
            assert torch.equal(mine, again)
            torch.testing.assert_close(mine, best, rtol=1e-5, atol=1e-6)
