"""What kernels report, operator by operator, under the interpreter; run by test_triton.py.

Each case calls a launcher past the door, whose checks look at values on the CPU, so that the kernel meets the fault as
it would on a GPU. The error is that of the CPU's kernel or reference, where it has the same words.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels import faults
from deeprec.kernels.als_solve import triton_kernels as als
from deeprec.kernels.embedding import triton_kernels as rows
from deeprec.kernels.embedding_bag import triton_kernels as bags
from deeprec.kernels.embedding_bag.checks import MAX, NONE, SGD, SUM
from deeprec.kernels.embedding_fm import triton_kernels as fm
from deeprec.kernels.faults.triton_report import start_report
from deeprec.kernels.sampled_linear_loss import triton_kernels as sampled
from deeprec.kernels.score_topk import triton_kernels as topk
from deeprec.kernels.softmax_loss import triton_kernels as softmax
from deeprec.kernels.sparse_update import triton_kernels as updates

CPU = torch.device("cpu")
_TABLES = [torch.randn(7, 4), torch.randn(5, 300)]
_SEEN = (torch.tensor([0, 2, 2, 3]), torch.tensor([1, 4, 0], dtype=torch.int32))
_TARGETS, _FAR = torch.tensor([5, 0, 2]), torch.tensor([0, 3, 1])
_LINES = (torch.tensor([0, 2, 2, 5]), torch.tensor([1, 4, 0, 1, 3]))
_NETWORK = (torch.randn(3, 4), torch.randn(6, 4), torch.randn(3, 2), torch.randn(6, 2), [], [], torch.randn(6), None)


def spoiled(given: Tensor, place: int, number: int) -> Tensor:
    out = given.clone()
    out.view(-1)[place] = number
    return out


def raised() -> Exception:
    """What is reported, once: afterwards nothing is."""
    with pytest.raises((IndexError, ValueError, RuntimeError)) as caught:
        faults.raise_faults(CPU)
    faults.raise_faults(CPU)
    error = caught.value
    assert str(error).endswith("(met on cpu, in this call or an earlier one)")
    return error


def als_call(indptr: Tensor, indices: Tensor, steps: int, ridge: float = 0.5) -> tuple[Any, ...]:
    factors = torch.randn(5, 4)
    weights = torch.ones(indices.shape[0])
    return indptr, indices, weights, factors, factors.T @ factors, torch.full((3,), ridge), None, steps


def sampled_call(indptr: Tensor, indices: Tensor) -> tuple[Any, ...]:
    return torch.randn(3, 4), torch.randn(5, 4), None, indptr, indices, torch.randn(5), None, 0, 0, True


def softmax_call(targets: Tensor, *seen: Tensor) -> tuple[Any, ...]:
    indptr, indices, rows = (*seen, None)[:3] if seen else (None, None, None)
    given = (torch.randn(3, 4), torch.randn(6, 4), targets, None, None, None, indptr, indices, rows)
    return *given, 1.0, False, 0.0, True, False


def sampled_softmax_call(targets: Tensor) -> tuple[Any, ...]:
    drawn = (4, 1, 0, None, None, None)
    return torch.randn(3, 4), torch.randn(6, 4), targets, None, None, None, None, *drawn, 1.0, False, True, True


def bags_call(ids: Tensor, offsets: Tensor | None, modes: list[int]) -> tuple[Any, ...]:
    return _TABLES, ids, offsets, None, [1, 0], modes, [-1, -1]


IDS = torch.tensor([[3, 1, 3], [2, 6, 2]])
FLAT, BOUNDS = torch.tensor([3, 1, 3, 2, 6, 2]), torch.tensor([0, 1, 3, 4, 6])

# Operator, launcher, arguments, error, its words.
CASES: list[tuple[str, Callable[..., Any], tuple[Any, ...], type[Exception], str]] = [
    ("embedding", rows.embedding, (torch.randn(7, 4), spoiled(IDS, 4, bad)), IndexError, rf"got {bad} at position 4;")
    for bad in (-1, 7, 2**40)
]
CASES += [
    (
        "embedding_grad",
        rows.embedding_grad,
        (torch.randn(4, 3), torch.tensor([1, 2]), torch.tensor([0, 1, 9]), torch.arange(4)),
        ValueError,
        "offsets must rise from 0 to 4, got 1 to 9 at position 1",
    ),
    (
        "embedding_grad",
        rows.embedding_grad,
        (torch.randn(4, 3), torch.tensor([1, 2]), torch.tensor([0, 1, 4]), torch.tensor([0, 2, 1, 4])),
        ValueError,
        r"order must be in \[0, 4\), got 4 at position 3",
    ),
    (
        "embedding_bags",
        bags.embedding_bags,
        bags_call(spoiled(IDS, 4, 7), None, [SUM, SUM]),
        IndexError,
        r"ids of table 0 must be in \[0, 7\), got 7 at position 4;",
    ),
]
CASES += [
    (
        "embedding_bags",
        bags.embedding_bags,
        bags_call(spoiled(FLAT, 2, -2), BOUNDS, [mode, other]),
        IndexError,
        r"ids of table 1 must be in \[0, 5\), got -2 at position 2;",
    )
    for mode, other in ((SUM, SUM), (MAX, SUM), (NONE, SUM), (NONE, NONE))
]
CASES += [
    (
        "embedding_bags",
        bags.embedding_bags,
        bags_call(spoiled(FLAT, 5, 9), BOUNDS, [SUM, NONE]),
        IndexError,
        r"ids of table 0 must be in \[0, 7\), got 9 at position 5;",
    ),
    (
        "embedding_bags",
        bags.embedding_bags,
        bags_call(FLAT, spoiled(BOUNDS, 4, 5), [SUM, SUM]),
        ValueError,
        r"offsets must ascend from 0 to the number of ids \(6\), got 4 to 5 at position 3",
    ),
    (
        "embedding_fm",
        fm.embedding_fm,
        ([torch.randn(7, 4)] * 2, [], spoiled(IDS, 4, 8), None, None, [0, 1], [-1, -1], False),
        IndexError,
        r"ids of table 1 must be in \[0, 7\), got 8 at position 4;",
    ),
    (
        "embedding_fm",
        fm.embedding_fm,
        ([torch.randn(7, 300)] * 2, [], spoiled(FLAT, 5, 8), BOUNDS, None, [1, 0], [-1, -1], True),
        IndexError,
        r"ids of table 0 must be in \[0, 7\), got 8 at position 5;",
    ),
    (
        "embedding_fm",
        fm.embedding_fm,
        ([torch.randn(7, 4)] * 2, [], FLAT, spoiled(BOUNDS, 1, 4), None, [1, 0], [-1, -1], True),
        ValueError,
        r"offsets must ascend from 0 to the number of ids \(6\), got 4 to 3 at position 1",
    ),
    (
        "sampled_linear_loss",
        sampled.sampled_linear_loss,
        sampled_call(_LINES[0], spoiled(_LINES[1], 3, 5)),
        IndexError,
        r"indices must be in \[0, 5\), got 5 at position 3",
    ),
    (
        "sampled_linear_loss",
        sampled.sampled_linear_loss,
        sampled_call(spoiled(_LINES[0], 2, 1), _LINES[1]),
        ValueError,
        r"indptr must ascend from 0 to the number of indices \(5\), got 2 to 1 at position 1",
    ),
    (
        "score_topk",
        topk.score_topk,
        (torch.randn(3, 4), torch.randn(6, 4), None, 2, *_SEEN, torch.tensor([0, 3, 1])),
        IndexError,
        r"seen_rows must lie in \[0, 3\), got 3 at position 1",
    ),
    (
        "score_topk",
        topk.score_topk,
        (torch.randn(3, 4), torch.randn(6, 4), None, 2, spoiled(_SEEN[0], 3, 4), _SEEN[1]),
        ValueError,
        r"seen_indptr must rise from 0 to 3 \(the length of seen_indices\), got 2 and 4 in row 2",
    ),
    (
        "score_topk",
        topk.score_topk_ncf,
        (*_NETWORK, False, 2, *_SEEN, torch.tensor([0, 1, -1])),
        IndexError,
        r"seen_rows must lie in \[0, 3\), got -1 at position 2",
    ),
    (
        "score_topk",
        topk.score_topk_ncf,
        (*_NETWORK, False, 2, spoiled(_SEEN[0], 1, 3), _SEEN[1]),
        ValueError,
        r"got 3 and 2 in row 1",
    ),
    (
        "adam_dense_update_",
        updates.adam_dense_update_,
        (
            torch.randn(7, 4),
            torch.zeros(7, 4),
            torch.zeros(7, 4),
            torch.tensor([9, 9, 1, 9, 9, 9, 9], dtype=torch.int32),
            torch.tensor([1, 2]),
            torch.randn(2, 4),
            torch.full((2,), 0.1, dtype=torch.float64),
            8,
            10,
            0.9,
            0.99,
            1e-8,
            0.0,
        ),
        RuntimeError,
        "a row reached step 1 only, but lr_history begins after step 8",
    ),
]
CASES += [
    ("softmax_loss", launch, (*softmax_call(*given), *more), error, words)
    for launch, more in (
        (softmax.softmax_loss, (True,)),
        (softmax.softmax_loss_grad, (torch.ones(3, 3), torch.ones(3))),
    )
    for given, error, words in (
        (
            (_TARGETS, *_SEEN, torch.tensor([0, 3, 1])),
            IndexError,
            r"seen_rows must be in \[0, 3\), got 3 at position 1",
        ),
        (
            (_TARGETS, spoiled(_SEEN[0], 3, 4), _SEEN[1]),
            ValueError,
            "from 0 to the number of seen_indices, 3, got 2 and 4 in row 2",
        ),
        ((spoiled(_TARGETS, 1, 6),), IndexError, r"targets must be in \[0, 6\), got 6 at position 1"),
    )
    if launch is softmax.softmax_loss or len(given) > 1  # the backward pass trusts the targets that the other reported
]
CASES += [
    (
        "sampled_softmax_loss",
        launch,
        (*sampled_softmax_call(spoiled(_TARGETS, 1, bad)), *more),
        IndexError,
        rf"targets must be in \[0, 6\), got {bad} at position 1",
    )
    for launch, more in (
        (softmax.sampled_softmax_loss, (True,)),
        (softmax.sampled_softmax_slopes, (torch.ones(2, 3), torch.ones(3))),
    )
    for bad in (-1, 6, 2**40)
]
CASES += [
    ("als_solve", als.als_solve, als_call(*call, steps), error, words)
    for steps in (0, 2)
    for call, error, words in (
        ((_LINES[0], spoiled(_LINES[1], 3, 5)), IndexError, r"indices must be in \[0, 5\), got 5 at position 3"),
        ((spoiled(_LINES[0], 3, 6), _LINES[1]), ValueError, r"the number of indices \(5\), got 2 to 6 at position 2"),
    )
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{CASES[case][0]}-{case}")
def test_a_fault_is_the_error_of_the_cpu(case: int) -> None:
    op, launcher, arguments, kind, words = CASES[case]
    out = launcher(*arguments)
    error = raised()
    assert type(error) is kind
    assert re.search(f"^{op}: .*{words}", str(error)), str(error)
    results = [x for x in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(x, Tensor)]
    # Nothing but numbers: what a bad entry would have added is 0. A list without its seen items may end early.
    assert op == "score_topk" or all(not x.isnan().any() for x in results)
    launcher(*arguments)  # the kernels go on working
    assert str(raised()) == str(error)


def test_a_bad_row_is_zeros_and_the_others_are_right() -> None:
    weight, ids = torch.randn(7, 4), torch.tensor([3, 9, 1])
    out = rows.embedding(weight, ids)
    raised()
    assert torch.equal(out, torch.stack([weight[3], torch.zeros(4), weight[1]]))
    pooled, _ = bags.embedding_bags([weight], ids, torch.tensor([0, 2, 3]), None, [0], [SUM], [-1])
    raised()
    assert torch.equal(pooled, weight[[3, 1]])
    solved, losses = als.als_solve(*als_call(_LINES[0], spoiled(_LINES[1], 3, 5), 2))
    raised()
    assert not solved[2].any()
    assert losses[2] == 0
    assert bool(solved[0].any())


def test_a_matrix_without_a_solution_is_named() -> None:
    call = list(als_call(*_LINES, 0))
    call[4], call[5] = -torch.eye(4) * 1e3, torch.zeros(3)
    solved, _ = als.als_solve(*call)
    assert "products of row 0 must be positive definite" in str(raised())
    assert bool(solved[0].isnan().all())
    assert not solved[1].any()  # without entries it needs no solution


def test_the_first_fault_is_kept_and_the_lowest_of_its_program() -> None:
    weight = torch.randn(7, 4)
    rows.embedding(weight, torch.tensor([3, 9, -4, 1]))
    rows.embedding(weight, torch.tensor([-9]))
    assert "got 9 at position 1" in str(raised())


def test_an_update_after_a_fault_changes_nothing() -> None:
    weight = torch.randn(7, 4)
    ids = torch.tensor([[3, 1, 3]])
    plan = bags.embedding_bags_plan(ids, None, [7], [0], [-1])
    lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0)
    call = (torch.ones(3, 4), [], ids[:0], ids, None, None, *plan, [0], [SUM], [-1], False, SGD, lr, step, [0.0] * 4)
    before = weight.clone()
    bags.embedding_bags([weight], spoiled(ids, 1, 7), None, None, [0], [SUM], [-1])
    bags.embedding_bags_update_([weight], [], [], *call, 0.0, -1)
    assert torch.equal(weight, before)
    raised()
    bags.embedding_bags_update_([weight], [], [], *call, 0.0, -1)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("op", ["embedding_bag", "embedding_fm"])
def test_a_plan_of_other_tables_is_named(op: str) -> None:
    weight, ids = torch.randn(7, 4), torch.tensor([[3, 1, 6]])
    plan = bags.embedding_bags_plan(ids, None, [7], [0], [-1])
    short = weight[:5].clone()
    if op == "embedding_bag":
        bags.embedding_bags_grad(
            [short], torch.ones(3, 4), [], ids[:0], ids, None, None, *plan, [0], [SUM], [-1], False
        )
    else:
        sums = torch.ones(3, 4)
        fm.embedding_fm_grad([short], [], torch.ones(3), sums, None, ids, None, None, *plan, [0], [-1], False)
    assert f"{op}{'s' if op == 'embedding_bag' else ''}_grad: plan must be the one of these ids" in str(raised())


def test_a_plan_raises_what_it_meets_and_what_was_met_before() -> None:
    ids = spoiled(IDS, 4, 7)
    with pytest.raises(IndexError, match=r"bags_plan: ids of table 0 must be in \[0, 7\), got 7 at position 4"):
        bags.embedding_bags_plan(ids, None, [7, 5], [1, 0], [-1, -1])
    with pytest.raises(ValueError, match="embedding_bags_plan: offsets must ascend"):
        bags.embedding_bags_plan(FLAT, spoiled(BOUNDS, 1, 5), [7, 5], [1, 0], [-1, -1])
    faults.raise_faults(CPU)  # ids of wrong bags are not reported beside it
    rows.embedding(torch.randn(7, 4), torch.tensor([9]))
    with pytest.raises(IndexError, match="embedding: ids must be in"):
        bags.embedding_bags_plan(IDS, None, [7, 7], [1, 0], [-1, -1])


def test_every_launcher_raises_what_was_met_before() -> None:
    door = importlib.import_module("deeprec.kernels._door")
    rows.embedding(torch.randn(7, 4), torch.tensor([9]))
    with pytest.raises(IndexError, match="got 9 at position 0"):
        door.launcher("fm_interaction", "fm_interaction")(torch.randn(2, 3, 4))
    door.launcher("fm_interaction", "fm_interaction")(torch.randn(2, 3, 4))


def test_check_device_raises_once_and_in_one_thread() -> None:
    rows.embedding(torch.randn(7, 4), torch.tensor([9]))
    errors: list[Exception] = []

    def ask() -> None:
        try:
            faults.check_device()
        except IndexError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    faults.check_device("cpu")


def test_flags_are_reported_by_the_first_of_them() -> None:
    flags = torch.zeros(3000, dtype=torch.bool)
    start_report(flags, faults.number_of("als_solve", "matrices"))
    faults.raise_faults(CPU)
    flags[[2500, 1700]] = True
    start_report(flags.view(3, 1000), faults.number_of("als_solve", "matrices"))
    assert "row 1700" in str(raised())
