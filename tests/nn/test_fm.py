"""Claims about the factorisation-machine layers."""

from __future__ import annotations

import copy
import gzip
import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deeprec.nn import BiInteraction, FactorizationMachine, FMInteraction, Table
from deeprec.train import optim
from deeprec.train._replay import CatchUp

TABLES = (
    Table("user", 50, 8),
    Table("types", 7, 8, features=("type", "other_type")),
    Table("tags", 30, 8, padding_idx=0),
)
FACTORIES = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "adagrad": partial(optim.Adagrad, lr=0.1),
    "rowwise adagrad": partial(optim.RowWiseAdagrad, lr=0.1),
    "adam": partial(optim.Adam, lr=0.05),
    "adam dense": partial(optim.Adam, lr=0.05, mode="dense"),
    "ftrl": partial(optim.FTRL, lr=0.1, l1=0.01, l2=0.1),
    "clipped adam": partial(optim.Adam, lr=0.05, max_grad_norm=0.5),
}


def test_interaction_layers_sum_the_products_of_all_pairs_of_fields() -> None:
    x = torch.randn(9, 5, 7)
    pairs = torch.stack([x[:, f] * x[:, g] for f, g in itertools.combinations(range(5), 2)]).sum(0)
    torch.testing.assert_close(BiInteraction()(x), pairs)
    torch.testing.assert_close(FMInteraction()(x), pairs.sum(1))


def test_interaction_layers_have_no_state() -> None:
    assert not FMInteraction().state_dict()
    assert not BiInteraction().state_dict()


def layer_of(tables: Any = TABLES, **options: Any) -> FactorizationMachine:
    """A layer whose parameters are all far from 0."""
    layer = FactorizationMachine(tables, **options)
    with torch.no_grad():
        for param in layer.parameters():
            param.normal_()
    return layer


def ids_of(layer: FactorizationMachine, batch: int, *length: int) -> dict[str, Tensor]:
    """Random ids, [batch, *length] for each feature."""
    sizes = {f: table.num_embeddings for table in layer.configs for f in table.features}
    return {feature: torch.randint(size, (batch, *length)) for feature, size in sizes.items()}


def matrix(columns: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(columns.values()), 1)


def plain(
    layer: FactorizationMachine, ids: dict[str, Tensor], values: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Rendle's equation 1 pair by pair in float64, and the embeddings of the fields, with torch's indexing only."""
    logit = layer.bias.double() if layer.bias is not None else torch.zeros(1, dtype=torch.float64)
    entries, fields = [], []
    for table in layer.configs:
        weight = layer.tables[table.name].weight.double()
        for feature in table.features:
            some = ids[feature] if ids[feature].dim() == 2 else ids[feature].unsqueeze(1)
            x = torch.ones(some.shape, dtype=torch.float64)
            if values is not None and feature in values:
                x = values[feature].double().reshape(some.shape)
            if table.padding_idx is not None:
                x = x * (some != table.padding_idx % table.num_embeddings)
            v = weight[some] * x.unsqueeze(2)
            fields.append(v.sum(1))
            entries += list(v.unbind(1))
            if layer.linear is not None:
                logit = logit + (layer.linear[table.name].weight.double()[some].squeeze(2) * x).sum(1)
    nothing = 0 * entries[0].sum(1)
    logit = logit + sum(((v * u).sum(1) for v, u in itertools.combinations(entries, 2)), nothing)
    return logit, torch.stack(fields, 1)


@st.composite
def machines(draw: st.DrawFn) -> tuple[FactorizationMachine, dict[str, Tensor], dict[str, Tensor]]:
    """A layer, ids and values."""
    torch.manual_seed(draw(st.integers(0, 999)))
    tables, dim = [], draw(st.sampled_from([1, 3, 8, 17]))
    for number in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 9))
        features = tuple(f"f{number}_{k}" for k in range(draw(st.integers(0, 2))))
        padding = draw(st.none() | st.integers(-rows, rows - 1))
        tables.append(Table(f"t{number}", rows, dim, features=features, padding_idx=padding))
    layer = layer_of(tables, linear=draw(st.booleans()), bias=draw(st.booleans()), sparse=draw(st.booleans()))
    layer.return_embeddings = True
    length = draw(st.sampled_from([(), (1,), (3,)]))
    ids = ids_of(layer, draw(st.integers(0, 5)), *length)
    scaled = draw(st.booleans())
    return layer, ids, {f: torch.randn(some.shape, requires_grad=True) for f, some in ids.items() if scaled}


@given(machines())
def test_equals_rendles_equation_with_every_gradient(
    case: tuple[FactorizationMachine, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    layer, ids, values = case
    logit, embeddings = layer(ids, values=values)
    want, fields = plain(layer, ids, values)
    torch.testing.assert_close(logit.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embeddings, fields.float())
    leaves = [*layer.parameters(), *values.values()]
    grads = torch.randn_like(logit), torch.randn_like(embeddings)
    expected = torch.autograd.grad((want, fields), leaves, [g.double() for g in grads], allow_unused=True)
    torch.autograd.backward((logit, embeddings), grads)
    for leaf, wanted in zip(leaves, expected, strict=True):
        got = leaf.grad.to_dense() if leaf.grad.is_sparse else leaf.grad
        torch.testing.assert_close(got, torch.zeros_like(leaf) if wanted is None else wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_every_form_of_ids_and_values_gives_the_same(index: torch.dtype, dtype: torch.dtype) -> None:
    layer = layer_of(dtype=dtype)
    single = {feature: ids.to(index) for feature, ids in ids_of(layer, 6).items()}
    x = {feature: torch.randn(6, dtype=dtype) for feature in single}
    bounds = torch.arange(7, dtype=index)
    flat, numbers = matrix(single).T.reshape(-1), matrix(x).T.reshape(-1)
    want = layer(matrix(single), values=matrix(x))
    others = [
        layer(single, values=x),
        layer(flat, torch.arange(len(flat) + 1, dtype=index), numbers),
        layer({f: (ids, bounds) for f, ids in single.items()}, values=x),
        layer({f: ids.unsqueeze(1) for f, ids in single.items()}, values={f: v.unsqueeze(1) for f, v in x.items()}),
    ]
    assert want.dtype == dtype
    for got in others:
        assert torch.equal(got, want)
    some = {"user": x["user"]}
    ones = matrix({f: some.get(f, torch.ones(6, dtype=dtype)) for f in single})
    assert torch.equal(layer(single, values=some), layer(matrix(single), values=ones))


def test_starts_as_libfm_does() -> None:
    tables = [Table("a", 4000, 16, padding_idx=-1), Table("b", 10, 16)]
    layer = FactorizationMachine(tables, generator=torch.Generator().manual_seed(1))
    assert float(layer.weights()[0].detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not layer.weights()[0][-1].any()
    assert not any(bool(param.any()) for param in (*layer.linear_weights(), layer.bias))
    again = FactorizationMachine(tables, generator=torch.Generator().manual_seed(1))
    assert all(map(torch.equal, layer.parameters(), again.parameters()))


def test_parameters_have_plain_names_and_a_state_dict_goes_round() -> None:
    layer = layer_of()
    names = ("user", "types", "tags")
    assert list(layer.state_dict()) == [
        "bias",
        *(f"tables.{name}.weight" for name in names),
        *(f"linear.{name}.weight" for name in names),
    ]
    other = FactorizationMachine(TABLES)
    other.load_state_dict(layer.state_dict())
    ids = ids_of(layer, 5, 2)
    assert torch.equal(other(ids), layer(ids))
    assert not any("linear" in key or "bias" in key for key in layer_of(linear=False, bias=False).state_dict())


def step_of(layer: FactorizationMachine, ids: Any, labels: Tensor, optimizers: list[Any]) -> float:
    """One step of logistic regression."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = F.binary_cross_entropy_with_logits(layer(ids), labels)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_step_in_backward_is_the_optimizers_step(name: str, linear: bool) -> None:
    torch.manual_seed(0)
    fused = layer_of(linear=linear, optimizer_in_backward=FACTORIES[name])
    apart = FactorizationMachine(TABLES, linear=linear)
    apart.load_state_dict(fused.state_dict())
    of_tables = FACTORIES[name]([*apart.weights(), *apart.linear_weights()])
    others = [torch.optim.SGD([layer.bias], lr=0.1) for layer in (fused, apart)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(some, 0.95) for some in (fused.optimizer, of_tables)]
    for step in range(25):
        ids = ids_of(apart, 8, 3)
        ids["tags"][0] = 0
        labels = torch.randint(2, (8,)).float()
        losses = [step_of(fused, ids, labels, others[:1]), step_of(apart, ids, labels, [of_tables, others[1]])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5), step
        for schedule in schedules:
            schedule.step()
    assert all(param.grad is None for param in (*fused.weights(), *fused.linear_weights()))
    fused.optimizer.flush()
    of_tables.flush()
    for got, want in zip(fused.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adagrad", "adam", "adam dense"])
def test_training_goes_on_from_saved_states(name: str) -> None:
    torch.manual_seed(0)
    first = layer_of(bias=False, optimizer_in_backward=FACTORIES[name])
    work = [(ids_of(first, 8, 3), torch.randint(2, (8,)).float()) for _ in range(6)]
    for ids, labels in work[:3]:
        step_of(first, ids, labels, [])
    state = copy.deepcopy(first.optimizer.state_dict())
    second = FactorizationMachine(TABLES, bias=False, optimizer_in_backward=FACTORIES[name])
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(state)
    third = copy.deepcopy(first)
    for layer in (first, second, third):
        for ids, labels in work[3:]:
            step_of(layer, ids, labels, [])
        layer.optimizer.flush()
    for other in (second, third):
        assert all(map(torch.equal, other.parameters(), first.parameters()))


def test_dense_adam_catches_up_before_rows_are_read() -> None:
    torch.manual_seed(0)
    rows, dense = layer_of(bias=False), None
    dense = copy.deepcopy(rows)
    dense.sparse = False
    optimizers = [
        optim.Adam(rows.parameters(), lr=0.05, mode="dense"),
        torch.optim.Adam(dense.parameters(), lr=0.05),
    ]
    for _ in range(20):  # most rows are absent from most batches
        ids, labels = ids_of(rows, 3), torch.randint(2, (3,)).float()
        losses = [step_of(layer, ids, labels, [some]) for layer, some in zip((rows, dense), optimizers, strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
    optimizers[0].flush()
    for got, want in zip(rows.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_states_follow_the_tables_into_another_dtype() -> None:
    layer = layer_of(optimizer_in_backward=FACTORIES["adam"])
    step_of(layer, ids_of(layer, 4, 2), torch.ones(4), [])
    layer.double()
    step_of(layer, ids_of(layer, 4, 2), torch.ones(4, dtype=torch.float64), [])
    assert layer.optimizer.state[layer.linear_weights()[0]]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("factory", [None, FACTORIES["adagrad"], FACTORIES["adam dense"]])
def test_an_id_out_of_range_is_named_and_changes_nothing(factory: Any) -> None:
    layer = layer_of(optimizer_in_backward=factory)
    step_of(layer, ids_of(layer, 4, 2), torch.ones(4), [])
    before = copy.deepcopy(layer.state_dict())
    ids = matrix(ids_of(layer, 4))
    ids[3, 2] = 7
    with pytest.raises(IndexError, match=r"'types' must be in \[0, 7\), got 7 at position 11"):
        layer(ids)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_bad_input_is_refused_with_the_remedy() -> None:
    layer = FactorizationMachine(TABLES)
    ids = ids_of(layer, 4)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"ids": torch.zeros(4, 3, dtype=torch.long)}, r"FactorizationMachine: ids must be \[B, 4\]"),
        ({"ids": {**ids, "usr": ids["user"]}}, r"unknown \['usr'\]"),
        ({"ids": matrix(ids), "values": torch.ones(4, 3)}, r"values must be \(4, 4\) like ids"),
        ({"ids": matrix(ids), "values": torch.ones(4, 4).double()}, r"in torch\.float32"),
        ({"ids": ids, "values": {"user": torch.ones(3)}}, r"values of 'user' must be \(4,\)"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            layer(**call)
    for tables, message in (
        ([Table("a", 2, 2), Table("b", 2, 3)], r"one embedding_dim, got {'a': 2, 'b': 3}"),
        ([Table("a", 2, 2, "mean")], "mode must be 'sum', got {'a': 'mean'}; .* use EmbeddingCollection"),
        ([Table("a", 2, 2), Table("a", 2, 2)], "FactorizationMachine: each table must have a name of its own"),
        ([], "each table must have a name"),
        ([Table("a", 0, 2)], "num_embeddings must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FactorizationMachine(tables)
    with pytest.raises(TypeError, match=r"FactorizationMachine: .* of deeprec\.train\.optim, got Adagrad"):
        FactorizationMachine(TABLES, optimizer_in_backward=partial(torch.optim.Adagrad, lr=0.1))


@pytest.mark.parametrize("form", ["one id", "bags"])
@pytest.mark.parametrize("way", ["inference", "dense gradients", "adagrad", "adam"])
def test_compiles_as_one_graph(way: str, form: str) -> None:
    torch.manual_seed(0)
    factory = FACTORIES.get(way)
    layer = layer_of(optimizer_in_backward=factory, sparse=False, return_embeddings=True)
    eager = copy.deepcopy(layer)
    ids = ids_of(layer, 6) if form == "one id" else ids_of(layer, 6, 2)

    def loss(layer: FactorizationMachine) -> Tensor:
        logit, embeddings = layer(matrix(ids) if form == "one id" else ids)
        return (logit * 2 - 1).square().mean() + embeddings.sin().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    if way == "inference":
        with torch.no_grad():
            torch.testing.assert_close(compiled(layer), loss(eager))
        return
    for step in range(3):
        some = [compiled(layer), loss(eager)]
        torch.testing.assert_close(*some)
        for value in some:
            value.backward()
        if factory is not None:
            for other in (layer, eager):
                other.optimizer.param_groups[0]["lr"].fill_(0.1 / (step + 2))
    for got, want in zip(layer.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got, want)
        if factory is None:
            torch.testing.assert_close(got.grad, want.grad)


def test_exports_with_a_dynamic_batch() -> None:
    layer = layer_of(return_embeddings=True)
    ids = matrix(ids_of(layer, 6))
    exported = torch.export.export(layer, (ids,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    other = matrix(ids_of(layer, 9))
    for got, want in zip(exported.module()(other), layer(other), strict=True):
        assert torch.equal(got, want)
    assert "deeprec.embedding_fm.default" in str(exported.graph)


ML_100K = Path(os.environ.get("DEEPREC_DATA", "")) / "ml-100k"


def lines_of(name: str) -> list[list[str]]:
    """Fields of a file of ML-100K."""
    with gzip.open(ML_100K / f"{name}.gz", "rt", encoding="latin-1") as file:
        return [line.rstrip("\n").split("|" if name.startswith("u.") else "\t") for line in file]


@pytest.mark.skipif(not (ML_100K / "u1.base.gz").is_file(), reason="DEEPREC_DATA has no ml-100k/u1.base.gz")
def test_beats_user_and_item_biases_on_ml_100k() -> None:
    """Ratings of the first official fold from user, film, occupation and genres (several a film)."""
    users, films = lines_of("u.user"), lines_of("u.item")
    jobs = sorted({line[3] for line in users})
    job_of = torch.tensor([0, *(jobs.index(line[3]) for line in users)])
    is_genre = torch.tensor([[0] * 19, *([int(flag) for flag in line[5:]] for line in films)])
    base, test = (
        torch.tensor([[int(x) for x in line[:3]] for line in lines_of(f"u1.{part}")]) for part in ("base", "test")
    )
    mean = base[:, 2].float().mean()

    def batch_of(rows: Tensor) -> dict[str, Any]:
        flags = is_genre[rows[:, 1]]
        bounds = F.pad(flags.sum(1).cumsum(0), (1, 0))
        genres = (flags.nonzero()[:, 1], bounds)
        return {"user": rows[:, 0], "film": rows[:, 1], "job": job_of[rows[:, 0]], "genres": genres}

    def rmse(has_interactions: bool) -> float:
        torch.manual_seed(0)
        tables = [Table("user", 944, 8), Table("film", 1683, 8), Table("job", len(jobs), 8), Table("genres", 19, 8)]
        layer = FactorizationMachine(tables, optimizer_in_backward=partial(optim.Adagrad, lr=0.1))
        if not has_interactions:
            for weight in layer.weights():
                torch.nn.init.zeros_(weight)  # and so they stay: the gradient of each is a product with the others
        bias = torch.optim.SGD([layer.bias], lr=0.1)
        for _ in range(2):
            for rows in base[torch.randperm(len(base))].split(1024):
                bias.zero_grad()
                (layer(batch_of(rows)) + mean - rows[:, 2]).square().mean().backward()
                bias.step()
        with torch.no_grad():
            found = (layer(batch_of(test)) + mean).clamp(1, 5)
        return float((found - test[:, 2]).square().mean().sqrt())

    biases, all_of_it = rmse(False), rmse(True)
    assert biases < 0.97
    assert all_of_it < biases - 0.01


@pytest.mark.parametrize("linear", [True, False])
def test_dense_adam_catches_up_in_one_call_and_equals_torchs(linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fm = FactorizationMachine(TABLES[:2], linear=linear, return_embeddings=True).double()
    plain = copy.deepcopy(fm)
    for weight in [*plain.tables.children(), *(plain.linear.children() if plain.linear is not None else ())]:
        weight.sparse = False
    plain.sparse = False
    mine, torchs = optim.Adam(fm.parameters(), lr=0.1, mode="dense"), torch.optim.Adam(plain.parameters(), lr=0.1)
    calls: list[int] = []
    together = CatchUp.together
    monkeypatch.setattr(
        CatchUp, "together", staticmethod(lambda hooks, rows: calls.append(len(hooks)) or together(hooks, rows))
    )
    for _ in range(6):
        ids = torch.stack([torch.randint(50, (3,)), torch.randint(7, (3,)), torch.randint(7, (3,))], 1)
        for model, optimizer in ((fm, mine), (plain, torchs)):
            optimizer.zero_grad()
            logit, embeddings = model(ids)
            (logit.sum() + embeddings.square().sum()).backward()
            optimizer.step()
    mine.flush()
    assert calls == [4 if linear else 2] * 5  # at the first step there is nothing to catch up on
    for one, other in zip(fm.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
