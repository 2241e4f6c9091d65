"""Every layer of deeprec.nn against itself in float64 on the CPU, forward and backward, eager and compiled."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from gpu_parity import DEVICE, HAS_GPU, launched, moved, normal, wide
from torch import Tensor, nn

import deeprec.nn
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

IDS = torch.tensor([[1, 2], [0, 3], [4, 4], [1, 1], [2, 0]])
X = normal(5, 3, 8)
TABLES = [Table("a", 5, 8), Table("b", 5, 8, padding_idx=0)]
ROWS = ["_rows_pieces_kernel", "_bags_rows_kernel"]
BACKEND = "inductor" if HAS_GPU else "aot_eager"


class Case(NamedTuple):
    """A layer, what it takes, and the kernels that forward and backward must run."""

    make: Callable[[], nn.Module]
    arguments: list[Any]
    kernels: list[str]


class OfTensors(nn.Module):
    """A tower that takes the tensors of a batch of terms one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Tower(7, 2, (8, 4), sparse=False)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.layer(TermBatch(*tensors))


TERMS = [torch.tensor([0, 2, 5, 5, 6, 8]), torch.tensor([0, 3, 1, 3, 6, 2, 0, 3]), normal(8), normal(5, 2)]
CASES = {
    "AudioCNN": Case(
        lambda: AudioCNN(3, sample_rate=80, window=16, hop=8, mels=2, channels=(4, 4)),
        [normal(5, 60), torch.tensor([60, 0, 9, 30, 17])],
        [],
    ),
    "MLP": Case(lambda: MLP(8, (7,), out_features=1, batch_norm=True), [X[:, 0]], []),
    "BiInteraction": Case(BiInteraction, [X], ["_fm_interaction_fwd_kernel", "_fm_interaction_grad_kernel"]),
    "CrossNetwork": Case(lambda: CrossNetwork(8, 2), [X[:, 0]], []),
    "Dropout": Case(lambda: Dropout(0.0), [X], []),
    "Embedding": Case(
        lambda: Embedding(5, 8, sparse=False), [IDS], ["_embedding_fwd_kernel", "_embedding_grad_kernel"]
    ),
    "EmbeddingBag": Case(
        lambda: EmbeddingBag(5, 8, mode="sum", sparse=False), [IDS, None, X[:, :2, 0]], ["_bags_pool_kernel", *ROWS]
    ),
    "EmbeddingCollection": Case(
        lambda: EmbeddingCollection(TABLES, sparse=False), [IDS], ["_bags_gather_kernel", *ROWS]
    ),
    "FMInteraction": Case(FMInteraction, [X], ["_fm_interaction_fwd_kernel", "_fm_interaction_grad_kernel"]),
    "FactorizationMachine": Case(
        lambda: FactorizationMachine(TABLES, sparse=False),
        [IDS],
        ["_embedding_fm_fwd_kernel", "_embedding_fm_rows_kernel"],
    ),
    "ImageCNN": Case(lambda: ImageCNN(3, channels=(8,)), [normal(5, 3, 4, 3)], []),
    "ComponentAttention": Case(lambda: ComponentAttention(8, 8, 3), [X[:, 0], X], []),
    "NeighbourAttention": Case(
        lambda: NeighbourAttention(8, 8, 3), [X[:, 0], X[:, 1], torch.tensor([0, 2, 0, 1, 2]), X[:, 2]], []
    ),
    "PairAttention": Case(lambda: PairAttention(8, 3), [X], []),
    "SequenceConvolution": Case(lambda: SequenceConvolution(3, 8, horizontal_filters=3, vertical_filters=2), [X], []),
    "SequenceEncoder": Case(
        lambda: SequenceEncoder(8, 4, heads=2, hidden=8, dropout=0.0), [X, torch.tensor([3, 0, 1, 2, 3])], []
    ),
    "TextCNN": Case(
        lambda: TextCNN(5, 3, embedding_dim=8, filters=4, hidden=4, dropout=0.0),
        [IDS],
        ["_embedding_fwd_kernel", "_embedding_grad_kernel"],
    ),
    "Tower": Case(OfTensors, TERMS, ["_bags_pool_kernel", *ROWS]),
    "VideoCNN": Case(
        lambda: VideoCNN(3, frame_width=4, channels=(8,), temporal=(4,)),
        [normal(5, 2, 3, 4, 3), torch.tensor([2, 0, 1, 2, 1])],
        [],
    ),
}


def test_every_layer_is_looked_at_here() -> None:
    public = {name: getattr(deeprec.nn, name) for name in deeprec.nn.__all__}
    layers = {name for name, kind in public.items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    assert set(CASES) == layers


def values_and_gradients(layer: nn.Module, arguments: list[Any], compiled: bool = False) -> list[Tensor]:
    """The output, the gradients of the parameters, those of floating inputs."""
    inputs = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    call = torch.compile(layer, fullgraph=True, backend=BACKEND) if compiled else layer
    out = call(*inputs)
    while not isinstance(out, Tensor):  # of a collection: pooled rows, then rows by table
        out = out[0]
    (out * torch.linspace(-1, 2, out.numel()).to(out).view(out.shape)).sum().backward()
    leaves = [*layer.parameters(), *(x for x in inputs if isinstance(x, Tensor) and x.requires_grad)]
    return [out.detach(), *(leaf.grad.to_dense() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name: str, compiled: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    case = CASES[name]
    layer = case.make()
    arguments = [x.contiguous() if isinstance(x, Tensor) else x for x in case.arguments]
    exact = values_and_gradients(copy.deepcopy(layer).double(), [wide(x) for x in arguments])
    with launched(*case.kernels):
        got = values_and_gradients(copy.deepcopy(layer).to(DEVICE), moved(arguments), compiled)
    assert len(got) == len(exact) > 1
    for ours, theirs in zip(got, exact, strict=True):
        assert ours.device.type == DEVICE.type
        size = float(theirs.abs().max().clamp(min=1))
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("name", CASES)
def test_lower_precision_stays_near(name: str) -> None:
    """In bfloat16 the layer runs where it is, and errs by roundings alone."""
    torch.manual_seed(0)
    case = CASES[name]
    layer = case.make().to(torch.bfloat16)
    arguments = [x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x for x in case.arguments]
    exact = values_and_gradients(copy.deepcopy(layer).double(), [wide(x) for x in arguments])
    got = values_and_gradients(layer.to(DEVICE), moved(arguments))
    for ours, theirs in zip(got, exact, strict=True):
        size = float(theirs.abs().max().clamp(min=1))
        assert float((ours.cpu().double() - theirs).abs().max()) <= 0.05 * size
