"""Claims about the numbers of the row updates: one out of its domain is named, and nothing has been written then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import deeprec.kernels.sparse_update as ops
from deeprec.kernels._door import launcher
from deeprec.kernels.embedding_bag.backward import Step
from deeprec.kernels.embedding_bag.reference import update_rows
from deeprec.kernels.sparse_update import reference
from deeprec.nn import EmbeddingCollection, FactorizationMachine, Table
from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, RowWiseAdagrad

NAN, INF = float("nan"), float("inf")
LR = {"lr": [NAN, INF, -INF]}
AT_LEAST_ZERO = [NAN, INF, -0.1]
RATES: dict[str, list[Any]] = {**LR, "weight_decay": AT_LEAST_ZERO}
EPS = {"eps": [NAN, INF, -1e-8, 0.0]}
BETAS = {"beta1": [NAN, 1.0, -0.1, INF], "beta2": [NAN, 1.0, -0.1, 2.0]}
STEP = {"step": [0, -1, -(2**40), 2**31]}
REPLAY: dict[str, list[Any]] = {"weight_decay": AT_LEAST_ZERO, **BETAS, **EPS}
FTRL_NUMBERS: dict[str, list[Any]] = {"lr": [NAN, INF, 0.0, -1.0], **dict.fromkeys(("l1", "l2", "beta"), AT_LEAST_ZERO)}
BAD: dict[str, dict[str, list[Any]]] = {
    "sgd_update_": {**RATES, "momentum": AT_LEAST_ZERO},
    "adagrad_update_": {**RATES, **EPS},
    "rowwise_adagrad_update_": {**RATES, **EPS},
    "adam_update_": {**STEP, **RATES, **BETAS, **EPS},
    "ftrl_update_": FTRL_NUMBERS,
    "adam_catch_up_": {**REPLAY, "step": [1]},  # before history_start
    "adam_dense_update_": {**REPLAY, "step": [0, -1, 1, 2, 2**31]},
    "adam_catch_up_tables_": {**REPLAY, "step": [1]},
    "adam_dense_update_tables_": {**REPLAY, "step": [0, -1, 1, 2, 2**31]},
}


def tensors(op: str) -> dict[str, Any]:
    """Arguments that are right, with numbers that are."""
    torch.manual_seed(0)
    table, rows = partial(torch.rand, 5, 3), torch.tensor([0, 2])
    adam = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    last = torch.tensor([2, 3, 4, 2, 0], dtype=torch.int32)
    replay = {"lr_history": torch.full((8,), 0.1, dtype=torch.float64), "history_start": 2, "step": 5, **adam}
    lists = {
        "weights": [table()],
        "exp_avgs": [table()],
        "exp_avg_sqs": [table()],
        "last_steps": [last],
        "rows": [rows],
    }
    dense = {"weight": table(), "exp_avg": table(), "exp_avg_sq": table(), "last_step": last, "rows": rows}
    some = {"weight": table(), "rows": rows, "grads": torch.rand(2, 3), "lr": 0.1}
    rated = {**some, "weight_decay": 0.0}
    return {
        "sgd_update_": {**rated, "momentum_buffer": table(), "momentum": 0.9},
        "adagrad_update_": {**rated, "sum": table(), "eps": 1e-10},
        "rowwise_adagrad_update_": {**rated, "sum": torch.rand(5), "eps": 1e-10},
        "adam_update_": {**some, "exp_avg": table(), "exp_avg_sq": table(), "step": 1, **adam},
        "ftrl_update_": {**some, "sum": table(), "linear": table(), "l1": 0.1, "l2": 0.0, "beta": 1.0},
        "adam_catch_up_": {**dense, **replay},
        "adam_dense_update_": {**dense, "grads": torch.rand(2, 3), **replay},
        "adam_catch_up_tables_": {**lists, **replay},
        "adam_dense_update_tables_": {**lists, "grads": [torch.rand(2, 3)], **replay},
    }[op]


def implementation(kind: str, op: str) -> Callable[..., None]:
    """What is called; the checks of the Triton launchers come before anything is launched, so no GPU is needed."""
    if kind == "operator":
        return getattr(ops, op)
    if kind == "triton":
        pytest.importorskip("triton")
        function = launcher("sparse_update", op)
    else:
        function = getattr(reference, f"{op}reference")
    names = [argument.name for argument in getattr(torch.ops.deeprec, op).default._schema.arguments]

    def call(**arguments: Any) -> None:  # as the operator calls it: flat, in the order of its schema
        function(*(arguments[name] for name in names if name in arguments))

    return call


def kinds_of(op: str) -> list[str]:
    """The reference of an operator on several tables calls that on one; GPUs have no catch-up of several tables."""
    kinds = ["operator"] if op.endswith("tables_") else ["operator", "reference"]
    return kinds if op == "adam_catch_up_tables_" else [*kinds, "triton"]


def flat(arguments: dict[str, Any]) -> list[Tensor]:
    lists = [value if isinstance(value, list) else [value] for value in arguments.values()]
    return [value for values in lists for value in values if isinstance(value, Tensor)]


def assert_refused(call: Callable[..., Any], arguments: dict[str, Any], match: str) -> None:
    before = [value.clone() for value in flat(arguments)]
    with pytest.raises(RuntimeError, match=match):
        call(**arguments)
    for value, was in zip(flat(arguments), before, strict=True):
        torch.testing.assert_close(value, was, rtol=0, atol=0, equal_nan=True)


CASES = [
    (kind, op, name, value)
    for op, numbers in BAD.items()
    for kind in kinds_of(op)
    for name, values in numbers.items()
    for value in values
]


@pytest.mark.parametrize(("kind", "op", "name", "value"), CASES)
def test_a_number_out_of_its_domain_is_named(kind: str, op: str, name: str, value: Any) -> None:
    wanted = {"adam_catch_up_": "lr_history", "adam_dense_update_": "(step|lr_history)"} if name == "step" else {}
    match = f"{op}: .*{wanted.get(op.removesuffix('tables_'), name)}"
    assert_refused(implementation(kind, op), {**tensors(op), name: value}, match)


CPU = [(kind, op) for op in BAD for kind in kinds_of(op) if kind != "triton"]


@pytest.mark.parametrize(("kind", "op"), CPU)
def test_numbers_in_their_domain_are_taken(kind: str, op: str) -> None:
    arguments = tensors(op)
    before = [value.clone() for value in flat(arguments)]
    implementation(kind, op)(**arguments)
    assert any(not torch.equal(a, b) for a, b in zip(flat(arguments), before, strict=True))
    assert all(value.isfinite().all() for value in flat(arguments) if value.is_floating_point())


@pytest.mark.parametrize(("kind", "op"), [(kind, op) for kind, op in CPU if "lr_history" in tensors(op)])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_learning_rate_in_the_history_is_finite(kind: str, op: str, value: float) -> None:
    """Of a step that is replayed: 4 is the second in a history that begins after step 2; and of the last one, 5."""
    for place in (1, 2):
        arguments = tensors(op)
        arguments["lr_history"][place] = value
        assert_refused(implementation(kind, op), arguments, "lr_history must be finite in every step, got")


STATES = ("momentum_buffer", "sum", "exp_avg", "exp_avg_sq", "linear", "exp_avgs", "exp_avg_sqs")


@pytest.mark.parametrize(
    ("kind", "op", "name"),
    [
        (kind, op, name)
        for op in BAD
        for kind in kinds_of(op)
        if kind != "reference"  # it takes memory of any order
        for name in tensors(op)
        if name in ("weight", "weights", *STATES)
    ],
)
def test_memory_of_another_order_is_refused(kind: str, op: str, name: str) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, list):
            return [turned(some) for some in value]
        return torch.stack([value, value], -1)[..., 0]

    arguments = tensors(op)
    assert_refused(implementation(kind, op), {**arguments, name: turned(arguments[name])}, f"{op}: .*contiguous")


@pytest.mark.parametrize("layer_is", [EmbeddingCollection, FactorizationMachine])
@pytest.mark.parametrize(
    ("make", "key", "value", "name"),
    [
        (SGD, "lr", NAN, "lr"),
        (SGD, "momentum", INF, "momentum"),
        (Adagrad, "eps", 0.0, "eps"),
        (RowWiseAdagrad, "weight_decay", -1.0, "weight_decay"),
        (Adam, "betas", (0.9, 1.0), "beta2"),
        (Adam, "lr", INF, "lr"),
        (FTRL, "l1", NAN, "l1"),
    ],
)
def test_a_step_in_backward_names_it_too(layer_is: Any, make: Any, key: str, value: Any, name: str) -> None:
    """Set in a group after the optimizer has checked it, as a schedule does."""
    layer = layer_is([Table("a", 5, 3)], optimizer_in_backward=lambda p: make(p, lr=0.1))
    before = [weight.detach().clone() for weight in layer.parameters()]
    out = layer(torch.tensor([[1], [2]]))
    layer.optimizer.param_groups[0][key] = value
    out = layer(torch.tensor([[1], [2]]))
    with pytest.raises(RuntimeError, match=rf"embedding_(bags|fm)_update_: .*{name}"):
        out.sum().backward()
    for weight, was in zip(layer.parameters(), before, strict=True):
        assert torch.equal(weight, was)
    assert all(int(state["step"]) == 0 for state in layer.optimizer.state.values())


@pytest.mark.parametrize(
    ("rule", "options", "lr", "step", "name"),
    [
        (0, [0.0, 0.0, -1.0, 0.0], 0.1, 0, "momentum"),
        (1, [0.0, 0.0, 0.0, 0.0], 0.1, 0, "eps"),
        (2, [1e-8, NAN, 0.0, 0.0], 0.1, 0, "weight_decay"),
        (3, [1e-8, 0.0, 0.9, 1.5], 0.1, 0, "beta2"),
        (3, [1e-8, 0.0, 0.9, 0.9], 0.1, -1, "step"),
        (4, [1.0, 0.0, NAN, 0.0], 0.1, 0, "l1"),
    ],
)
def test_the_reference_of_the_step_in_backward_names_it_too(
    rule: int, options: list[float], lr: float, step: int, name: str
) -> None:
    weight, count = torch.ones(2, 2), torch.tensor(step)
    states = ([torch.zeros(2) if rule == 2 else torch.zeros(2, 2)], [torch.zeros(2, 2)])
    taken = Step(rule, torch.tensor(lr).double(), count, options, 0.0, -1)
    with pytest.raises(RuntimeError, match=f"the_update_: .*{name}"):
        update_rows("the_update_", [weight], *states, [torch.tensor([0])], [torch.ones(1, 2)], taken)
    assert (weight == 1).all()
    assert int(count) == step
