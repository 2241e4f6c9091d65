"""What holds of every layer of deeprec.nn: torch.fx sees it as a leaf, and its errors begin with its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import deeprec.nn
from deeprec.kernels.embedding import embedding_plan
from deeprec.nn import (
    MLP,
    AudioCNN,
    BiInteraction,
    ComponentAttention,
    CrossNetwork,
    Dropout,
    Embedding,
    EmbeddingBag,
    EmbeddingCollection,
    FactorizationMachine,
    FMInteraction,
    ImageCNN,
    NeighbourAttention,
    PairAttention,
    SequenceConvolution,
    SequenceEncoder,
    Table,
    TermBatch,
    TextCNN,
    Tower,
    VideoCNN,
)
from deeprec.train import optim

IDS = torch.tensor([[1, 2], [0, 3], [4, 4]])
X = torch.linspace(-1, 1, 24).reshape(3, 2, 4)
TERMS = TermBatch(torch.tensor([0, 2, 3, 3]), torch.tensor([0, 4, 1]), torch.tensor([1.0, 2.0, 3.0]), X[:, 0, :2])
TABLES = [Table("a", 5, 4), Table("b", 5, 4, padding_idx=0)]


class Case(NamedTuple):
    """A layer and what it takes."""

    make: Callable[[], nn.Module]
    arguments: tuple[Any, ...]


CASES = {
    "AudioCNN": Case(
        lambda: AudioCNN(3, sample_rate=80, window=16, hop=8, mels=2, channels=(4,)),
        (X.flatten(1), torch.tensor([8, 0, 3])),
    ),
    "MLP": Case(lambda: MLP(4, (3,), out_features=1, dropout=0.5, batch_norm=True), (X[:, 0],)),
    "BiInteraction": Case(BiInteraction, (X,)),
    "CrossNetwork": Case(lambda: CrossNetwork(4, 2), (X[:, 0],)),
    "Dropout": Case(Dropout, (X,)),
    "Embedding": Case(lambda: Embedding(5, 4, padding_idx=0), (IDS,)),
    "EmbeddingBag": Case(lambda: EmbeddingBag(5, 4, mode="sum"), (IDS, None, X[:, :, 0])),
    "EmbeddingCollection": Case(lambda: EmbeddingCollection(TABLES), (IDS,)),
    "FMInteraction": Case(FMInteraction, (X,)),
    "FactorizationMachine": Case(lambda: FactorizationMachine(TABLES), (IDS,)),
    "ImageCNN": Case(lambda: ImageCNN(3, channels=(8,)), (X[:, None].expand(3, 3, 2, 4),)),
    "ComponentAttention": Case(lambda: ComponentAttention(4, 4, 3), (X[:, 0], X)),
    "NeighbourAttention": Case(
        lambda: NeighbourAttention(4, 4, 3), (X[:, 0], X[:, 1], torch.tensor([0, 2, 0]), X[:, 0])
    ),
    "PairAttention": Case(lambda: PairAttention(4, 3), (X,)),
    "SequenceConvolution": Case(lambda: SequenceConvolution(2, 4, horizontal_filters=3, vertical_filters=2), (X,)),
    "SequenceEncoder": Case(lambda: SequenceEncoder(4, 3, heads=2, hidden=4), (X, torch.tensor([2, 0, 1]))),
    "TextCNN": Case(lambda: TextCNN(5, 3, embedding_dim=4, filters=2, hidden=3), (IDS,)),
    "Tower": Case(lambda: Tower(5, 2, (4, 3)), (TERMS,)),
    "VideoCNN": Case(
        lambda: VideoCNN(3, frame_width=4, channels=(8,), temporal=(4,)),
        (X[:, :, None, :, None].expand(3, 2, 3, 4, 1), torch.tensor([2, 0, 1])),
    ),
}


class Around(nn.Module):
    """A model with a layer in it, two levels down."""

    def __init__(self, layer: nn.Module, count: int = 1) -> None:
        super().__init__()
        self.count = count
        self.inner = nn.Sequential(nn.Identity())
        self.inner.layer = layer

    def forward(self, x: Any, y: Any = None, z: Any = None, w: Any = None) -> Any:
        layer, given = self.inner.layer, [each for each in (y, z, w)[: self.count - 1] if each is not None]
        # What is left out is the offsets of a bag.
        out = layer(x, None, per_sample_weights=z) if len(given) < self.count - 1 else layer(x, *given)
        return out * 2


def layers() -> set[str]:
    public = {name: getattr(deeprec.nn, name) for name in deeprec.nn.__all__}
    return {name for name, some in public.items() if inspect.isclass(some) and issubclass(some, nn.Module)}


def test_every_public_layer_is_looked_at_here() -> None:
    assert set(CASES) == layers()


def called_modules(graph: torch.fx.Graph) -> list[Any]:
    return [node.target for node in graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("name", CASES)
def test_fx_sees_the_layer_as_a_leaf(name: str) -> None:
    case = CASES[name]
    layer = case.make().eval()
    model = Around(layer, len(case.arguments))
    given = (*case.arguments, *[None] * (4 - len(case.arguments)))
    fixed = {name: None for name, value in zip("xyzw", given, strict=True) if value is None}
    traced = torch.fx.symbolic_trace(model, concrete_args=fixed)
    assert called_modules(traced.graph) == ["inner.layer"]
    assert traced.inner.layer is layer
    torch.testing.assert_close(traced(*case.arguments), model(*case.arguments))
    assert traced.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", CASES)
def test_fx_traces_the_layer_alone(name: str) -> None:
    case = CASES[name]
    layer = case.make().eval()
    traced = torch.fx.symbolic_trace(layer)
    assert called_modules(traced.graph) == ["layer"]
    torch.testing.assert_close(traced(*case.arguments), layer(*case.arguments))
    assert list(traced.parameters()) == list(layer.parameters())


def test_fx_follows_mappings_pairs_and_parts() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = EmbeddingCollection([*TABLES, Table("c", 5, 2, "none")])

        def forward(self, a: Tensor, b: Tensor, bounds: Tensor) -> Tensor:
            pooled, rows = self.tables({"a": a, "b": (b, bounds), "c": a})
            return self.tables.split(pooled)["b"] + rows["c"].sum(1, keepdim=True)

    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert called_modules(traced.graph) == ["tables"]
    arguments = (IDS[:, 0], torch.tensor([1, 2, 3]), torch.tensor([0, 2, 2, 3]))
    torch.testing.assert_close(traced(*arguments), model(*arguments))


def test_fx_does_not_look_into_a_subclass_that_computes_something_else() -> None:
    class Doubled(Embedding):
        def forward(self, input: Tensor, plan: Any = None) -> Tensor:
            return super().forward(input, plan) * 2

    with pytest.raises(TypeError, match=r"cannot look into Doubled\.forward"):
        torch.fx.symbolic_trace(Around(Doubled(5, 4)), concrete_args={"y": None, "z": None})

    class Plain(Embedding):
        pass

    traced = torch.fx.symbolic_trace(Around(Plain(5, 4)), concrete_args={"y": None, "z": None})
    assert called_modules(traced.graph) == ["inner.layer"]


LOOKUPS = {
    "Embedding": lambda: Embedding(5, 4, name="a"),
    "Embedding, frozen": lambda: Embedding(5, 4, name="a").requires_grad_(False),
    "Embedding, padding": lambda: Embedding(5, 4, padding_idx=0, name="a"),
    "Embedding, max_norm": lambda: Embedding(5, 4, max_norm=0.1, name="a"),
    "Embedding, frequency": lambda: Embedding(5, 4, scale_grad_by_freq=True, sparse=False, name="a"),
    "EmbeddingBag": lambda: EmbeddingBag(5, 4, name="a"),
    "EmbeddingBag, padding": lambda: EmbeddingBag(5, 4, padding_idx=-1, sparse=True, name="a"),
    "EmbeddingBag, max_norm": lambda: EmbeddingBag(5, 4, max_norm=0.1, mode="max", name="a"),
    "EmbeddingCollection": lambda: EmbeddingCollection([Table("a", 5, 4, features=("x", "y"))]),
    "EmbeddingCollection, rows": lambda: EmbeddingCollection([Table("a", 5, 4, "none", features=("x", "y"))]),
    "EmbeddingCollection, shared": lambda: EmbeddingCollection(
        [Table("a", 5, 4, features=("x", "y")), Table("b", 9, 4, features=("x", "y"))]
    ),
    "EmbeddingCollection, step": lambda: EmbeddingCollection(
        [Table("a", 5, 4, features=("x", "y"))], optimizer_in_backward=lambda params: optim.Adam(params, mode="dense")
    ),
    "FactorizationMachine": lambda: FactorizationMachine([Table("a", 5, 4, features=("x", "y"))]),
}
HOSTILE: dict[str, tuple[Tensor, type[Exception], str]] = {
    "an id too large": (torch.tensor([[1, 2], [0, 5]]), IndexError, r"table 'a'.*\[0, 5\), got 5 at position"),
    "a negative id": (torch.tensor([[1, -3]]), IndexError, r"table 'a'.*got -3 at position"),
    "float ids": (torch.ones(2, 2), TypeError, "must be int32 or int64"),
    "ids of another integer": (torch.ones(2, 2, dtype=torch.int16), TypeError, "must be int32 or int64"),
    "ids on another device": (IDS.to("meta"), ValueError, "must be on cpu like the table, got meta"),
    "three dimensions": (IDS[None], ValueError, r"must be \[B"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("name", LOOKUPS)
def test_hostile_ids_are_refused_in_the_layers_name(name: str, what: str) -> None:
    ids, kind, text = HOSTILE[what]
    layer, owner = LOOKUPS[name](), name.partition(",")[0]
    if what == "three dimensions" and owner == "Embedding":
        assert layer(ids).shape == (1, 3, 2, 4)
        return
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    for is_training in (True, False):
        with torch.set_grad_enabled(is_training), pytest.raises(kind, match=f"^{owner}: .*{text}"):
            layer(ids)
    assert all(map(torch.equal, before, layer.parameters()))


@pytest.mark.parametrize("what", ["an id too large", "a negative id", "float ids", "ids on another device"])
@pytest.mark.parametrize("name", [name for name in LOOKUPS if "Collection" in name or "Machine" in name])
def test_hostile_mappings_are_refused_in_the_layers_name(name: str, what: str) -> None:
    ids, kind, text = HOSTILE[what]
    layer, owner = LOOKUPS[name](), name.partition(",")[0]
    right = torch.zeros(len(ids), dtype=torch.int64)
    for x in (ids[:, 1], ids, (ids[:, 1], torch.arange(len(ids) + 1, device=ids.device))):
        with pytest.raises(kind, match=f"^{owner}: .*{text}"):
            layer({"x": x, "y": right})


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("MLP", X[:, 0, :3]),
        ("MLP", X[:, 0].double()),
        ("MLP", torch.tensor(1.0)),
        ("MLP", X[:, 0].long()),
        ("CrossNetwork", X[:, 0, :3]),
        ("CrossNetwork", X[:, 0].long()),
        ("PairAttention", X[:, :1]),
        ("PairAttention", X.double()),
        ("FMInteraction", X[0]),
        ("FMInteraction", X.long()),
        ("BiInteraction", X[0]),
        ("BiInteraction", X.long()),
    ],
)
def test_hostile_numbers_are_refused_in_the_layers_name(name: str, x: Tensor) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=f"^{name}: "):
        CASES[name].make()(x)


def test_an_error_of_a_layer_keeps_its_place() -> None:
    layer = Embedding(5, 4)
    with pytest.raises(IndexError) as caught:
        layer(torch.tensor([9]))
    assert str(caught.value).count("Embedding: ") == 1
    plan = embedding_plan(torch.tensor([1]), 5)
    with pytest.raises(ValueError, match=r"^Embedding: plan must be"):
        layer(torch.tensor([1, 2]), plan)
