"""Layers exported to ONNX: standard operators only, and the layer's own results for any batch."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.nn import (
    MLP,
    Embedding,
    EmbeddingBag,
    EmbeddingCollection,
    FactorizationMachine,
    FMInteraction,
    Table,
)
from deeprec.train import optim

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install 'deeprec-torch[test]')")
pytest.importorskip("onnxscript", reason="needs onnxscript (pip install 'deeprec-torch[test]')")

ROWS = 20
ANY = torch.export.Dim.DYNAMIC


class Model(nn.Module):
    """Every layer a served model is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        step = functools.partial(optim.SGD, lr=0.1)
        self.plain = Embedding(ROWS, 4)
        self.padded = Embedding(ROWS, 4, padding_idx=3, scale_grad_by_freq=True)
        self.bags = nn.ModuleList(EmbeddingBag(ROWS, 4, mode=mode, padding_idx=3) for mode in ("sum", "mean", "max"))
        self.many = EmbeddingCollection(
            [Table("user", ROWS, 4), Table("tags", ROWS, 6, "mean", padding_idx=0), Table("words", ROWS, 2, "none")]
        )
        tables = [Table("a", ROWS, 4), Table("rest", ROWS, 4, features=("b", "c"), padding_idx=3)]
        self.machine = FactorizationMachine(tables, return_embeddings=True, optimizer_in_backward=step)
        self.pairs = FMInteraction()
        self.deep = MLP(28, (8,), out_features=1, dropout=0.5, batch_norm=True)
        for table in [*self.machine.weights(), *self.machine.linear_weights()]:
            nn.init.normal_(table)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        logit, rows = self.machine(ids, values=values)
        fields = [self.plain(ids[:, 0]), self.padded(ids[:, 1]), *(bag(ids) for bag in self.bags)]
        pooled, unpooled = self.many({"user": ids[:, 0], "tags": ids, "words": ids})
        deep = self.deep(torch.cat([rows.flatten(1), pooled, unpooled["words"].flatten(1)], 1)).squeeze(1)
        return logit + deep + self.pairs(torch.stack(fields, 1))


class Ragged(nn.Module):
    """Bags by offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = EmbeddingBag(ROWS, 4, mode="sum")
        self.tops = EmbeddingBag(ROWS, 4, mode="max", padding_idx=3, include_last_offset=True)

    def forward(self, ids: Tensor, starts: Tensor, bounds: Tensor, scale: Tensor) -> Tensor:
        return torch.cat([self.sums(ids, starts, scale), self.tops(ids, bounds)], 1)


def fields_of(batch: int) -> tuple[Tensor, ...]:
    return torch.randint(0, ROWS, (batch, 3)), torch.randn(batch, 3)


def bags_of(batch: int) -> tuple[Tensor, ...]:
    bounds = torch.tensor([0, 0, *range(2, 2 * batch, 2)])  # the first bag is empty
    count = int(bounds[-1])
    return torch.arange(count) % ROWS, bounds[:-1], bounds, torch.randn(count)


@pytest.mark.parametrize(("kind", "make"), [(Model, fields_of), (Ragged, bags_of)], ids=["fields", "ragged"])
def test_exported_layers_give_their_own_results_for_any_batch(kind: Any, make: Any) -> None:
    model, example = kind().eval(), make(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx speaks of its own deprecations
        shapes = tuple({0: ANY} for _ in example)
        program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}, "an operator that is not one of ONNX"
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for arguments in (example, make(9)):
        given = {slot.name: value.numpy() for slot, value in zip(session.get_inputs(), arguments, strict=True)}
        (got,) = session.run(None, given)
        torch.testing.assert_close(torch.from_numpy(got), model(*arguments).detach())


def test_export_without_onnx_keeps_the_operators() -> None:
    program = torch.export.export(Model().eval(), fields_of(4))
    names = {str(node.target) for node in program.graph.nodes}
    assert {"deeprec.embedding_fm.default", "deeprec.embedding.default", "deeprec.embedding_bags.default"} <= names
