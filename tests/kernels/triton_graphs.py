"""What CUDA graphs need of the launchers, under the interpreter; run by test_triton.py.

A graph repeats what was launched, so a step that it may hold reads its learning rate and its number on the device, and
everything that waits or is told by the host refuses. That graphs do so on a GPU is tested in tests/gpu/test_graphs.py.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels import _door
from deeprec.kernels._door import launcher
from deeprec.kernels.embedding_bag import checks, triton_stages
from deeprec.kernels.embedding_bag import reference as bags
from deeprec.kernels.embedding_fm import reference as fm


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_cases", Path(__file__).with_name(f"test_{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bag_cases, fm_cases, row_cases = _module("embedding_bag"), _module("embedding_fm"), _module("sparse_update")
RULES = [checks.SGD, checks.ADAGRAD, checks.ROWWISE_ADAGRAD, checks.ADAM, checks.FTRL]
KINDS = [(torch.float32, 0.0, -1), (torch.float64, 0.5, -1), (torch.bfloat16, 0.0, 2**63 - 1)]  # dtype, max_norm, seed
# Bags and fm share the code that reads rate and step: each takes every rule and every kind, other pairs than the other.
OF_BAGS, OF_FM = ([(rule, *KINDS[(i + shift) % 3]) for i, rule in enumerate(RULES)] for shift in (0, 1))


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes all that follows look as if it went into a CUDA graph."""
    return lambda: monkeypatch.setattr(_door, "is_capturing", lambda device: True)


def _steps(rule: int, rate: float, max_norm: float, seed: int) -> tuple[Any, ...]:
    lr, step = torch.tensor(rate, dtype=torch.float64), torch.tensor(3)
    return rule, lr, step, bag_cases.options_of(rule), max_norm, seed


def _compare(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    tables: Callable[[], tuple[list[Tensor], ...]],
    given: tuple[Any, ...],
    kind: tuple[Any, ...],
    capture: Callable[[], None],
) -> None:
    """Three steps each; ours after the first as if captured, all with numbers on the device, the rate halved once."""
    rule, max_norm, seed = kind
    results = []
    for update in (theirs, ours):
        mine, step = tables(), _steps(rule, 0.1, max_norm, seed)
        for number in range(3):
            if number == 1 and update is ours:
                capture()
            if number == 2:
                step[1].mul_(0.5)
            update(*mine, *given, *step)
        assert int(step[2]) == 6
        results.append([tensor for part in mine for tensor in part])
    for want, got in zip(*results, strict=True):
        # The reference of fm rounds its gradients to the dtype of the tables.
        bag_cases.close(got.to(given[0].dtype), want.to(given[0].dtype), 24)


@pytest.mark.parametrize(("rule", "dtype", "max_norm", "seed"), OF_BAGS)
def test_a_captured_update_of_bags_reads_rate_and_step_on_the_device(
    rule: int, dtype: torch.dtype, max_norm: float, seed: int, capture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_stages, "is_on_device", lambda given: True)
    b = bag_cases.batch_of(([16, 260], [0, 1, 0], [0, 1, 0]), (3, 2), dtype, pad=3)
    call = (b.ids, b.offsets, None, b.tables, b.modes, b.padding)
    out = bags.embedding_bags_reference(b.weights, *call)
    plan = bags.embedding_bags_plan_reference(b.ids, b.offsets, b.sizes(), b.tables, b.padding)
    grad = torch.randn(out[0].shape).to(dtype)
    given = (grad, [], out[1], *call[:3], *plan, *call[3:], False)

    def tables() -> tuple[list[Tensor], ...]:
        torch.manual_seed(3)
        weights = [w.clone() for w in b.weights]
        return weights, *bag_cases.states_of(weights, rule)

    ours = launcher("embedding_bag", "embedding_bags_update_")
    _compare(ours, bags.embedding_bags_update_reference, tables, given, (rule, max_norm, seed), capture)


@pytest.mark.parametrize(("rule", "dtype", "max_norm", "seed"), OF_FM)
def test_a_captured_update_of_fm_reads_rate_and_step_on_the_device(
    rule: int, dtype: torch.dtype, max_norm: float, seed: int, capture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_stages, "is_on_device", lambda given: True)
    b = fm_cases.batch_of([0, 1], (4, None), 16, dtype, scaled=True, pad=3)
    _, sums, _ = fm.embedding_fm_reference(b.weights, b.linear, *b.input(), b.tables, b.padding, False)
    sizes = [w.shape[0] for w in b.weights]
    plan = bags.embedding_bags_plan_reference(b.ids, b.offsets, sizes, b.tables, b.padding)
    given = (torch.randn(4).to(dtype), sums, None, *b.input(), *plan, b.tables, b.padding, False)

    def tables() -> tuple[list[Tensor], ...]:
        torch.manual_seed(3)
        weights, linear = [w.clone() for w in b.weights], [w.clone() for w in b.linear]
        return weights, linear, *bag_cases.states_of([*weights, *(w.view(-1, 1) for w in linear)], rule)

    ours = launcher("embedding_fm", "embedding_fm_update_")
    _compare(ours, fm.embedding_fm_update_reference, tables, given, (rule, max_norm, seed), capture)


def test_numbers_on_the_host_refuse_the_capture_and_change_nothing(capture: Any) -> None:
    b = bag_cases.batch_of(([16], [0], [0]), (3, None), torch.float32)
    call = (b.ids, None, None, b.tables, b.modes, b.padding)
    out = bags.embedding_bags_reference(b.weights, *call)
    plan = bags.embedding_bags_plan_reference(b.ids, None, b.sizes(), b.tables, b.padding)
    given = (out[0], [], out[1], *call[:3], *plan, *call[3:], False)
    before, step = b.weights[0].clone(), _steps(checks.SGD, 0.1, 0.0, -1)
    capture()
    with pytest.raises(RuntimeError, match=r"embedding_bags_update_: cannot be captured .* capturable=True"):
        launcher("embedding_bag", "embedding_bags_update_")(b.weights, [], [], *given, *step)
    assert torch.equal(b.weights[0], before)
    assert int(step[2]) == 3


@pytest.mark.parametrize("name", ["embedding_bags_plan", "embedding_bags_grad", "embedding_bags_dense_grad"])
def test_what_waits_refuses_the_capture(name: str, samples: dict[str, list[tuple[Any, ...]]], capture: Any) -> None:
    capture()
    with pytest.raises(RuntimeError, match=f"{name}: cannot be captured in a CUDA graph: it waits for the GPU"):
        launcher("embedding_bag", name)(*samples[name][0])


def test_lengths_of_unpooled_features_refuse_the_capture(capture: Any) -> None:
    b = bag_cases.batch_of(([4, 4], [0, 1], [0, checks.NONE]), (3, 2), torch.float32)
    call = (b.weights, b.ids, b.offsets, None, b.tables, b.modes, b.padding)
    launcher("embedding_bag", "embedding_bags")(*call)
    capture()
    with pytest.raises(RuntimeError, match=r"embedding_bags: cannot be captured .* unpooled"):
        launcher("embedding_bag", "embedding_bags")(*call)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl", "adam_dense", "catch_up"])
def test_steps_on_coalesced_gradients_refuse_the_capture(name: str, capture: Any) -> None:
    problem = row_cases.Problem(9, 5, torch.float32)
    before = [tensor.clone() for tensor in problem.tensors()]
    op = row_cases.KERNELS[name][0].__name__
    capture()
    with pytest.raises(RuntimeError, match=f"{op}: cannot be captured in a CUDA graph: .*; .*in.backward"):
        launcher("sparse_update", op)(*problem.arguments(name, 0.0))
    assert all(map(torch.equal, problem.tensors(), before))


def test_tables_that_nobody_has_seen_refuse_the_capture(capture: Any) -> None:
    b = bag_cases.batch_of(([16], [0], [0]), (3, None), torch.float32)
    capture()
    with pytest.raises(RuntimeError, match=r"embedding_bags: cannot be captured .*: numbers of its tables"):
        launcher("embedding_bag", "embedding_bags")(b.weights, b.ids, None, None, b.tables, b.modes, b.padding)
