"""Claims about optimizers and what happens to their parameters: built on meta, moved, replaced, copied, loaded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.kernels import _door
from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, FactorizationMachine, Table
from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad

FACTORIES: dict[str, Callable[..., Any]] = {
    "SGD": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adagrad": partial(Adagrad, lr=0.1),
    "lr_decay": partial(Adagrad, lr=0.1, lr_decay=0.1),
    "RowWiseAdagrad": partial(RowWiseAdagrad, lr=0.1),
    "Adam": partial(Adam, lr=0.05),
    "Adam, dense": partial(Adam, lr=0.05, mode="dense"),
    "Adam, dense, decay": partial(Adam, lr=0.05, mode="dense", weight_decay=0.1),
    "AdamW": partial(AdamW, lr=0.05),
    "FTRL": partial(FTRL, lr=0.2, l1=0.01),
}
every_rule = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
DENSE = [make for name, make in FACTORIES.items() if "dense" in name]
TABLES = [Table("a", 6, 3), Table("b", 5, 3)]
LAYERS = [EmbeddingCollection, FactorizationMachine]
every_layer = pytest.mark.parametrize("layer_is", LAYERS)


def step(layer: Any, number: int) -> None:
    """Rows miss steps: some are touched in two of five."""
    ids = torch.tensor([[number % 6, number % 5], [1, number % 2]])
    out = layer(ids)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()


def train(layer: Any, first: int, last: int) -> None:
    for number in range(first, last):
        step(layer, number)


def build(layer_is: Any, make: Any, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    layer = layer_is(TABLES, optimizer_in_backward=make, device=device)
    if device == "cpu":
        for param in layer.parameters():
            param.data.normal_()
    return layer


def assert_same(ours: Any, theirs: Any, tolerance: float = 0.0) -> None:
    """Their weights as a checkpoint has them, with nothing put off."""
    want = theirs.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(
            value, want[name].to(value.dtype), rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_rule
@every_layer
@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_a_layer_built_on_meta_trains_as_one_built_on_the_cpu(layer_is: Any, make: Any, way: str) -> None:
    want = build(layer_is, make)
    layer = build(layer_is, make, "meta")
    model = nn.ModuleDict({"layer": layer})
    state = {f"layer.{name}": value.clone() for name, value in want.state_dict().items()}
    if way == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(state, assign=way == "assign")
    params = layer.optimizer.param_groups[0]["params"]
    assert all(param.device.type == "cpu" for param in params)
    assert {id(param) for param in params} <= {id(param) for param in layer.parameters()}
    train(layer, 0, 12)
    train(want, 0, 12)
    assert_same(layer, want)


def test_a_layer_on_meta_says_what_to_do() -> None:
    layer = EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES["Adagrad"], device="meta")
    with pytest.raises(ValueError, match="must have memory, got the meta device; use to_empty or load_state_dict"):
        layer(torch.zeros(2, 2, dtype=torch.int64, device="meta"))
    state = build(EmbeddingCollection, FACTORIES["Adagrad"]).optimizer.state_dict()
    with pytest.raises(ValueError, match="must be loaded for parameters that have memory"):
        layer.optimizer.load_state_dict(state)


@every_rule
def test_a_state_is_resumed_by_a_layer_built_on_meta(make: Any) -> None:
    want = build(EmbeddingCollection, make)
    train(want, 0, 9)
    saved = copy.deepcopy((want.state_dict(), want.optimizer.state_dict()))
    train(want, 9, 15)
    layer = build(EmbeddingCollection, make, "meta")
    held = layer.optimizer
    layer.load_state_dict(saved[0], assign=True)
    held.load_state_dict(saved[1])
    train(layer, 9, 15)
    assert_same(layer, want)


@every_rule
@every_layer
def test_states_stay_with_a_table_that_is_replaced(layer_is: Any, make: Any) -> None:
    """By load_state_dict(assign=True) and by hand: as where weights are copied in place."""
    layers = [build(layer_is, make) for _ in range(3)]
    for layer in layers:
        train(layer, 0, 7)
    loaded = {name: torch.randn(value.shape) for name, value in layers[0].state_dict().items()}
    layers[0].load_state_dict(loaded)
    layers[1].load_state_dict({name: value.clone() for name, value in loaded.items()}, assign=True)
    layers[2].optimizer.flush()
    for name, value in loaded.items():
        owner, _, last = name.rpartition(".")
        setattr(layers[2].get_submodule(owner), last, nn.Parameter(value.clone()))
    for layer in layers:
        for name, value in layer.state_dict().items():
            assert torch.equal(value, loaded[name])
        train(layer, 7, 13)
    for layer in layers[1:]:
        assert_same(layer, layers[0])


@every_rule
def test_a_table_of_another_shape_is_refused(make: Any) -> None:
    layer = build(EmbeddingCollection, make)
    train(layer, 0, 3)
    before = layer.tables["a"].weight
    layer.tables["a"].weight = nn.Parameter(torch.randn(7, 3))
    with pytest.raises(ValueError, match=r"must keep its shape, got \(7, 3\) in place of \(6, 3\); build its"):
        step(layer, 3)
    layer.tables["a"].weight = before
    train(layer, 3, 5)
    layer.tables["a"].weight = nn.Parameter(torch.randn(7, 3))
    layer.step_in_backward(make)
    train(layer, 5, 7)


@every_rule
@every_layer
def test_states_follow_to_another_dtype(layer_is: Any, make: Any) -> None:
    """In the middle of training, where rows of dense mode are behind."""
    want, layer = build(layer_is, make), build(layer_is, make)
    train(want, 0, 7)
    train(layer, 0, 7)
    nn.Sequential(layer).double()
    train(layer, 7, 10)
    assert all(param.dtype == torch.float64 for param in layer.parameters())
    layer.float()
    train(layer, 10, 15)
    train(want, 7, 15)
    assert_same(layer, want, 1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        layer.to(dtype)
        before = copy.deepcopy(layer.state_dict())
        train(layer, 15, 20)
        assert any((value != before[name]).any() for name, value in layer.state_dict().items())
        for state in layer.optimizer.state.values():
            assert all(
                x.dtype in (torch.float32, torch.int32)
                for n, x in state.items()
                if n != "step" and isinstance(x, Tensor)
            )


@every_rule
@every_layer
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "deepcopy of a model"])
def test_a_copy_in_the_middle_of_training_goes_on_by_itself(layer_is: Any, make: Any, way: str) -> None:
    layer = build(layer_is, make)
    train(layer, 0, 7)
    if way == "deepcopy":
        other = copy.deepcopy(layer)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(layer))  # noqa: S301
    else:
        other = copy.deepcopy(nn.Sequential(nn.Linear(1, 1), layer))[1]
    assert_same(other, layer)
    held = copy.deepcopy(layer.state_dict())
    train(other, 7, 15)
    assert all(torch.equal(value, held[name]) for name, value in layer.state_dict().items())
    train(layer, 7, 15)
    assert_same(other, layer)
    ids = {id(param) for param in other.parameters()}
    assert all(id(param) in ids for group in other.optimizer.param_groups for param in group["params"])


class Outside(nn.Module):
    """A layer whose optimizer is not in the backward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer: nn.Module
        if kind == "Embedding":
            self.layer = Embedding(6, 3)
        elif kind == "EmbeddingBag":
            self.layer = EmbeddingBag(6, 3, sparse=True)
        elif kind == "of torch's":
            self.layer = EmbeddingCollection.of({"a": nn.Embedding(6, 3), "b": nn.Embedding(5, 3)})
        else:
            self.layer = {"collection": EmbeddingCollection, "machine": FactorizationMachine}[kind](TABLES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(ids[:, :1] if self.kind.startswith("Embedding") else ids)


KINDS = ["Embedding", "EmbeddingBag", "collection", "machine", "of torch's"]


def outside(kind: str, make: Any) -> tuple[Outside, Any]:
    torch.manual_seed(0)
    model = Outside(kind)
    return model, make(model.parameters())


def train_outside(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    for number in range(first, last):
        optimizer.zero_grad()
        step(model, number)
        optimizer.step()


def is_behind(optimizer: Any) -> bool:
    return any(replay.state["step"] > replay.start for replay in optimizer._replays.values())


@pytest.mark.parametrize("make", DENSE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_are_not_moved_by_steps_put_off(kind: str, make: Any, assign: bool) -> None:
    model, optimizer = outside(kind, make)
    train_outside(model, optimizer, 0, 7)
    assert is_behind(optimizer)
    loaded = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    train_outside(model, optimizer, 7, 9)
    model.load_state_dict({name: value.clone() for name, value in loaded.items()}, assign=assign)
    every = torch.stack([torch.arange(5), torch.arange(5)], 1)
    read = model(every)  # with gradients on: rows would catch up
    for _ in range(2):
        assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
        optimizer.flush()
    fresh = Outside(kind)
    fresh.load_state_dict(loaded)
    assert torch.equal(read, fresh(every))


@pytest.mark.parametrize("make", DENSE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_or_copied_lacks_no_steps(kind: str, make: Any) -> None:
    model, optimizer = outside(kind, make)
    train_outside(model, optimizer, 0, 7)
    assert is_behind(optimizer)
    other = copy.deepcopy(model)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.flush()
    for name, param in model.named_parameters():
        assert torch.equal(param, saved[name])
    for a, b in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", DENSE)
def test_loading_weights_goes_on_as_torch_does(make: Any) -> None:
    """torch's moments go on as well, whatever weights are loaded."""
    model, optimizer = outside("Embedding", make)
    rival_model = nn.Embedding(6, 3)
    rival_model.weight.data.copy_(model.layer.weight.data)
    group = optimizer.param_groups[0]
    rival = torch.optim.Adam(rival_model.parameters(), lr=group["lr"], weight_decay=group["weight_decay"])
    loaded = torch.randn(6, 3)
    for number in range(20):
        if number == 9:
            model.load_state_dict({"layer.weight": loaded})
            rival_model.load_state_dict({"weight": loaded})
        ids = torch.tensor([number % 6, 1])
        for some, one in ((model.layer, optimizer), (rival_model, rival)):
            one.zero_grad()
            some(ids).square().sum().backward()
            one.step()
    optimizer.flush()
    torch.testing.assert_close(model.layer.weight, rival_model.weight, rtol=0, atol=1e-5)


@every_rule
def test_a_model_moved_with_its_optimizer_outside_goes_on(make: Any) -> None:
    model, optimizer = outside("collection", make)
    twin, other = outside("collection", make)
    train_outside(model, optimizer, 0, 7)
    train_outside(twin, other, 0, 7)
    model.double()
    train_outside(model, optimizer, 7, 12)
    train_outside(twin, other, 7, 12)
    for one in (optimizer, other):
        one.flush()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b.double(), rtol=0, atol=1e-5)


@every_rule
@pytest.mark.parametrize("is_outside", [False, True])
def test_torchs_way_of_swapping_tensors_changes_nothing(make: Any, is_outside: bool) -> None:
    """set_swap_module_params_on_conversion: a module that is moved or loaded gets tensors without attributes."""
    torch.manual_seed(0)
    layers = [build(EmbeddingCollection, None if is_outside else make) for _ in range(2)]
    optimizers = [make(layer.parameters()) if is_outside else layer.optimizer for layer in layers]

    def run(place: int, first: int, last: int) -> None:
        if is_outside:
            train_outside(layers[place], optimizers[place], first, last)
        else:
            train(layers[place], first, last)

    for place in (0, 1):
        run(place, 0, 7)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layers[0].double().float()
        run(0, 7, 9)
        layers[0].load_state_dict({name: value.clone() for name, value in layers[0].state_dict().items()})
        run(0, 9, 15)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    run(1, 7, 15)
    assert_same(layers[0], layers[1], 1e-6)


@every_rule
def test_tables_that_are_views_are_stepped_in_the_backward_pass(make: Any) -> None:
    want, layer = build(EmbeddingCollection, make), build(EmbeddingCollection, None)
    memory = torch.full((6, 8), 7.0)
    for name, source in zip("ab", want.weights(), strict=True):
        view = memory[: len(source), 1:4] if name == "a" else torch.empty(3, 5).t()
        view.copy_(source.detach())
        layer.tables[name].weight = nn.Parameter(view)
    layer.step_in_backward(make)
    train(layer, 0, 12)
    train(want, 0, 12)
    assert_same(layer, want, 1e-6)
    assert (memory[:, 0] == 7).all()
    assert (memory[:, 4:] == 7).all()


def test_a_table_whose_rows_share_memory_is_refused_in_the_backward_pass() -> None:
    layer = build(EmbeddingCollection, None)
    layer.tables["a"].weight = nn.Parameter(torch.ones(1, 3).expand(6, 3))
    with pytest.raises(ValueError, match="elements must each have memory of their own"):
        layer.step_in_backward(FACTORIES["SGD"])


@every_layer
@every_rule
def test_capturable_changes_nothing_but_where_the_numbers_are(layer_is: Any, make: Any) -> None:
    """On the CPU they are in the same place; switched on later they move, and a state goes on in the other kind."""
    ours, theirs, third = (build(layer_is, made) for made in (partial(make, capturable=True), make, make))
    train(ours, 0, 4)
    train(theirs, 0, 4)
    theirs.optimizer.flush()  # as a state does
    third.load_state_dict(ours.state_dict())
    third.optimizer.load_state_dict(ours.optimizer.state_dict())
    assert third.optimizer.param_groups[0]["capturable"]
    third.optimizer.param_groups[0]["capturable"] = False
    for layer in (ours, theirs, third):
        train(layer, 4, 8)
    assert_same(ours, theirs)
    assert_same(third, theirs)


def test_a_step_outside_the_backward_pass_refuses_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    param.grad = torch.ones(3, 2)
    optimizer = Adam([param], capturable=True)
    monkeypatch.setattr(_door, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match=r"Adam.step: cannot be captured .*; take the step of tables"):
        optimizer.step()
    assert (param == 1).all()
