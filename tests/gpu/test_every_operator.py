"""One small call of every operator: who serves it, opcheck, a second device, and every kernel once.

The calls marked `sanitizer` are what compute-sanitizer looks at (`-m "gpu and sanitizer"`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_arguments import (
    Batch,
    als_arguments,
    batch_of,
    dot_of,
    loss_arguments,
    ncf_arguments,
    network_of,
    problem_of,
    sampled_softmax_arguments,
    seen_of,
    softmax_arguments,
    states_of,
    step_of,
    update_call,
)
from gpu_parity import HAS_GPU, OPERATORS, STANDS_IN, check, integers, moved, normal, run

import deeprec.kernels
from deeprec.kernels import _door, _gpu_code
from deeprec.kernels.embedding.reference import embedding_plan_reference
from deeprec.kernels.embedding_bag.checks import ADAM, MAX, MEAN, SUM
from deeprec.kernels.embedding_bag.reference import embedding_bags_reference
from deeprec.kernels.embedding_fm.reference import embedding_fm_reference
from deeprec.kernels.prefilter_topk.reference import prefilter_pack_reference
from deeprec.kernels.sample_negatives import alias_table

Call = tuple[str, tuple[Any, ...], Sequence[str]]  # operator, arguments, kernels that must run
# test_score_topk.py compares these, where equal scores may change places; prefilter_* is served by score_topk there.
TOPK = {"score_topk", "score_topk_ncf", "prefilter_scan", "prefilter_topk"}


def _of_one_table() -> Iterator[Call]:
    weight, ids = normal(30, 12), integers(30, 9, 5, dtype=torch.int32)
    plan, grad = embedding_plan_reference(ids, 30), normal(45, 12, seed=1)
    yield "embedding", (weight, ids), ["_embedding_fwd_kernel"]
    yield "embedding_plan", (ids, 30), []
    yield "embedding_grad", (grad, *plan), ["_embedding_grad_kernel"]
    yield "embedding_dense_grad", (grad, ids, 30), ["_embedding_grad_kernel"]
    x = normal(6, 5, 12)
    yield "fm_interaction", (x,), ["_fm_interaction_fwd_kernel"]
    yield "bi_interaction", (x,), ["_fm_interaction_fwd_kernel"]
    yield "fm_interaction_grad", (normal(6, 12, seed=2), x), ["_fm_interaction_grad_kernel"]
    for rule in ("sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl", "adam_dense", "catch_up"):
        name, arguments, kernel = update_call(problem_of(9, 12, torch.float32), rule, 0.01)
        yield name, arguments, [kernel]
    for rule, tensors, kernel in (("adam_dense", 6, "_adam_tables_kernel"), ("catch_up", 5, "_adam_update_kernel")):
        calls = [update_call(problem_of(5 + i, dim, torch.float32, seed=i), rule, 0.0) for i, dim in enumerate((4, 9))]
        columns = [list(column) for column in zip(*(call[1] for call in calls), strict=True)]
        yield f"{calls[0][0]}tables_", (*columns[:tensors], *(column[0] for column in columns[tensors:])), [kernel]


def _backward(b: Batch, modes: list[int]) -> tuple[Any, ...]:
    pooled, argmax, *_ = embedding_bags_reference(b.weights, b.ids, b.offsets, None, b.tables, modes, b.padding)
    return normal(*pooled.shape, seed=3), [], argmax, b.ids, b.offsets, None


def _of_bags() -> Iterator[Call]:
    rows = ["_rows_pieces_kernel", "_bags_rows_kernel"]
    for b, modes in (
        (batch_of([12, 5], [0, 1, 0], (70, None), torch.float32), [SUM] * 3),
        (batch_of([12, 5], [0, 1, 0], (4, 3), torch.float32, pad=3), [SUM, MEAN, MAX]),
    ):
        sizes, call = [len(weight) for weight in b.weights], (b.tables, modes, b.padding)
        has_bags = b.offsets is not None
        lookup = ["_bags_pool_kernel" if has_bags else "_bags_gather_kernel"]
        more = ["_inverse_lengths_kernel"] if has_bags else []
        of_ids = (b.ids, b.offsets, sizes, b.tables, b.padding)
        yield "embedding_bags", (b.weights, b.ids, b.offsets, None, *call), lookup
        yield "embedding_bags_plan", of_ids, ["_plan_keys_kernel", "_plan_heads_kernel", "_plan_rows_kernel"]
        yield "plan_check", (*of_ids, *b.plan()), []
        grads = _backward(b, modes)
        yield "embedding_bags_grad", (b.weights, *grads, *b.plan(), *call, False), [*rows, *more]
        yield "embedding_bags_dense_grad", (b.weights, *grads, *call, False), [*rows, *more]
        step = (*states_of(b.weights, ADAM), *grads, *b.plan(), *call, False, *step_of(ADAM, 0.5))
        yield "embedding_bags_update_", (b.weights, *step), [*rows, *more]
    yield "embedding_bag", (b.weights[0], integers(20, 9), torch.tensor([0, 4, 4]), None, SUM, -1, False), []
    b, linear = batch_of([12, 12], [0, 1], (6, None), torch.float32), [normal(20, seed=4), normal(21, 1, seed=5)]
    of_ids, features = (b.ids, None, None), (b.tables, b.padding)
    _, sums, _ = embedding_fm_reference(b.weights, linear, *of_ids, *features, False)
    grads = (normal(6, seed=6), sums, None, *of_ids)
    yield "embedding_fm", (b.weights, linear, *of_ids, *features, True), ["_embedding_fm_fwd_kernel"]
    kernels = ["_rows_pieces_kernel", "_embedding_fm_rows_kernel"]
    yield "embedding_fm_grad", (b.weights, linear, *grads, *b.plan(), *features, False), kernels
    yield "embedding_fm_dense_grad", (b.weights, linear, *grads, *features, False), kernels
    states = states_of([*b.weights, *(w.view(-1, 1) for w in linear)], ADAM)
    given = (*states, *grads, *b.plan(), *features, False, *step_of(ADAM))
    yield "embedding_fm_update_", (b.weights, linear, *given), kernels


def _of_the_rest() -> Iterator[Call]:
    sampled = ["_sampled_pieces_kernel", "_sampled_linear_loss_kernel", "_sampled_linear_grad_kernel"]
    given = loss_arguments([3, 0, 70], 12, torch.float32)
    yield "sampled_linear_loss", (*given, 1, 0, True), sampled
    yield "sparse_linear", (*given[3:5], normal(73, seed=7), given[1], None, 1), ["_bags_pool_kernel"]
    for steps, kernel in ((0, "_als_normal_kernel"), (2, "_als_cg_kernel")):
        yield "als_solve", (*als_arguments([3, 0, 9], 12, torch.float32, torch.int64), steps), [kernel]
    seen = (*seen_of(3, 40), None)
    yield "score_items", tuple(dot_of(3, 40, 5)), []
    yield "score_topk", (*dot_of(3, 40, 5), 4, *seen), ["_score_topk_dot_kernel"]
    users, items, bias = dot_of(3, 40, 5)
    for is_int8 in (True, False):
        yield "prefilter_pack", (items, None, is_int8), []
        copy = prefilter_pack_reference(items, None, is_int8)
        yield "prefilter_scan", (users, items, bias, *copy, 4, *seen), []
        yield "prefilter_topk", (users, items, bias, *copy, 4, *seen), []
    allowed = (None, torch.tensor([1, 5, 6, 30], dtype=torch.int32))
    yield "score_topk", (*dot_of(3, 40, 5)[:2], None, 3, *seen, *allowed, 1), ["_score_topk_dot_kernel"]
    yield "score_topk", (*dot_of(3, 40, 5)[:2], None, 3, *seen, None, None, 2), []
    network = network_of(3, 40, 5, [6, 4])
    yield "score_items_ncf", tuple(network), ["_score_topk_ncf_kernel"]
    yield "score_topk_ncf", (*network, 4, *seen), ["_score_topk_ncf_kernel"]
    yield "score_topk_ncf", (*network, 3, *seen, *allowed), ["_score_topk_ncf_kernel"]
    yield "ncf_loss", (*ncf_arguments((5, 2, 3, (4, 4), [6, 5]), torch.int64), 0.5, False), []
    given = (*softmax_arguments(7, 9, 5, torch.float32), 2.0, True, 0.1, True, False)
    stats, ones = OPERATORS["softmax_loss"].reference(*given, False)[1], torch.ones(7)
    yield "softmax_loss", (*given, True), ["_softmax_part_kernel"]
    yield "softmax_loss_grad", (*given, stats, ones), ["_softmax_items_grad_kernel"]
    given = (*sampled_softmax_arguments(7, 40, 5, torch.float32), 2.0, True, True, True)
    stats = OPERATORS["sampled_softmax_loss"].reference(*given, False)[1]
    yield "sampled_softmax_loss", (*given, True), ["_sampled_softmax_kernel"]
    yield "sampled_softmax_slopes", (*given, stats, ones), ["_sampled_softmax_kernel"]
    users, table = integers(3, 9), alias_table(normal(40).abs())
    yield "sample_negatives", (users, *seen_of(3, 40, left=1), 40, 4, 7, 0), []
    yield "sample_negatives", (users, *seen_of(3, 40, left=1), 40, 4, 7, 0, *table), []
    yield "session_columns", (integers(9, 40), 9), []
    yield "session_softmax", (normal(3, 20), integers(20, 3), normal(3, seed=1), False), []
    yield "session_softmax", (normal(3, 20), integers(20, 3), normal(3, seed=1), True), []
    given = (normal(3, 15), normal(3, 15, seed=1), normal(3, 5, seed=2))
    yield "session_gates", given, []
    gates = OPERATORS["session_gates"].reference(*given)[1]
    yield "session_gates_grad", (normal(3, 5, seed=3), gates, *given[1:]), []


CALLS = [*_of_one_table(), *_of_bags(), *_of_the_rest()]
NAMES = [f"{name}-{[other[0] for other in CALLS[:i]].count(name)}" for i, (name, _, _) in enumerate(CALLS)]
every_call = pytest.mark.parametrize("call", CALLS, ids=NAMES)
ran: set[str] = set()


def test_every_operator_is_called_here() -> None:
    assert {name for name, _, _ in CALLS} == set(OPERATORS), "a call of each operator belongs into CALLS"


@pytest.mark.sanitizer
@every_call
def test_a_small_call(call: Call) -> None:
    name, arguments, kernels = call
    before = Counter(_door.launches)
    if name in TOPK:
        operator = getattr(torch.ops.deeprec, name)
        ids = [operator(*moved(list(arguments)))[1].cpu() for _ in range(2)]
        assert torch.equal(ids[0], ids[1])
        assert torch.equal(ids[0], OPERATORS[name].reference(*arguments)[1])
    elif name == "prefilter_pack":  # its bits are a format: there is no such thing as the same in float64
        for ours, theirs in zip(
            torch.ops.deeprec.prefilter_pack(*moved(list(arguments))),
            OPERATORS[name].reference(*arguments),
            strict=True,
        ):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=0)
    else:
        check(name, *arguments, kernels=kernels, terms=4000.0 if name == "als_solve" else 512.0)
    started = Counter(_door.launches) - before
    ran.update(started)
    assert set(kernels) <= set(started), f"{name}: {kernels} must run, {dict(started)} did"


@pytest.mark.sanitizer
def test_every_kernel_has_run() -> None:
    """Of all that the package has, in the calls above (run with them)."""
    if len(ran) < 2:
        pytest.skip("the small calls were not run in this process")
    assert ran == _gpu_code.kernel_names(_gpu_code.kernel_files()), "a kernel that no call of CALLS starts"


# In the stand-in a few for the test's own sake: tests/kernels/test_opcheck.py checks every operator on the CPU.
CHECKED = [i for i, call in enumerate(CALLS) if HAS_GPU or call[0] in ("embedding", "adam_update_", "embedding_fm")]


@pytest.mark.parametrize("call", [CALLS[i] for i in CHECKED], ids=[NAMES[i] for i in CHECKED])
def test_opcheck(call: Call) -> None:
    name, arguments, _ = call
    torch.library.opcheck(getattr(torch.ops.deeprec, name).default, tuple(moved(list(arguments))))


@pytest.mark.gpu
@every_call
def test_tensors_of_a_device_that_is_not_the_current_one(call: Call) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, torch sees one")
    name, arguments, _ = call
    operator = getattr(torch.ops.deeprec, name)
    with torch.cuda.device(0):
        here, there = (run(name, operator, moved(list(arguments), f"cuda:{i}")) for i in range(2))
        assert torch.cuda.current_device() == 0
    for first, second in zip(here, there, strict=True):
        assert second.dim() == 0 or second.device.index == 1
        assert torch.equal(first.cpu(), second.cpu())


def _readme_table() -> dict[str, str]:
    """Operator -> who serves it on a GPU by the table of kernels/README.md: "triton", "cuda c++" or "reference"."""
    text = (Path(deeprec.kernels.__path__[0]) / "README.md").read_text(encoding="utf-8")
    out = {}
    for names, cell in re.findall(r"^\| (`.*?) \| C\+\+ \| (.*) \|$", text, flags=re.MULTILINE):
        kind = {"Triton": "triton", "CUDA C++": "cuda c++", "`embedding_bags`": "triton"}
        served = next((value for key, value in kind.items() if cell.startswith(key)), "reference")
        out |= dict.fromkeys(re.findall(r"`(\w+)`", names), served)
    return out


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_is_served_as_the_readme_says(name: str) -> None:
    """What doctor reports; a GPU that a reference serves in place of a kernel is a failure."""
    table = _readme_table()
    assert name in table, f"kernels/README.md has no line that says who serves {name}"
    served, why = OPERATORS[name].implementation("cuda")
    if STANDS_IN and table[name] == "cuda c++":
        pytest.skip("the interpreter stands in for Triton, nothing here for CUDA C++")
    assert served == table[name], f"{name} is served by {served} ({why}), kernels/README.md says {table[name]}"


def test_doctor_reports_what_serves() -> None:
    pytest.importorskip("polars", reason="doctor also looks for data sets, which needs polars")
    from deeprec.doctor import report

    rows = report()["operators"]
    assert {name: row["cuda"]["implementation"] for name, row in rows.items()} == {
        name: operator.implementation("cuda")[0] for name, operator in OPERATORS.items()
    }
