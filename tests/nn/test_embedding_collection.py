"""Claims about deeprec.nn.EmbeddingCollection beside a loop over torch's modules."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deeprec.nn import EmbeddingCollection, Table
from deeprec.train import optim

TABLES = (
    Table("user", 50, 8),
    Table("types", 7, 3, features=("type", "other_type")),
    Table("tags", 30, 16, "mean", padding_idx=0),
    Table("best", 20, 5, "max", padding_idx=-1),
)
FACTORIES = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "adagrad": partial(optim.Adagrad, lr=0.1),
    "adagrad with lr_decay": partial(optim.Adagrad, lr=0.1, lr_decay=0.01),
    "rowwise adagrad": partial(optim.RowWiseAdagrad, lr=0.1),
    "adam": partial(optim.Adam, lr=0.05),
    "adam dense": partial(optim.Adam, lr=0.05, mode="dense"),
    "ftrl": partial(optim.FTRL, lr=0.1, l1=0.01, l2=0.1),
    "clipped adam": partial(optim.Adam, lr=0.05, max_grad_norm=0.5),
    "decayed adagrad": partial(optim.Adagrad, lr=0.1, weight_decay=0.01),
}


def ids_of(layer: EmbeddingCollection, batch: int, *length: int) -> dict[str, Tensor]:
    """Random ids, [batch, *length] for each feature."""
    sizes = {f: table.num_embeddings for table in layer.configs for f in table.features}
    return {feature: torch.randint(size, (batch, *length)) for feature, size in sizes.items()}


def matrix(ids: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(ids.values()), 1)


def loop(layer: EmbeddingCollection, ids: dict[str, Tensor], weights: dict[str, Tensor] | None = None) -> Tensor:
    """The result by a call of torch for each feature."""
    out = []
    for table in layer.configs:
        weight = layer.tables[table.name].weight.double()
        for feature in table.features:
            some = ids[feature] if ids[feature].dim() == 2 else ids[feature].unsqueeze(1)
            if not some.numel():  # torch refuses bags of length 0 in this form
                out.append(weight[:1].sum(0) * torch.zeros(len(some), 1))
                continue
            scale = None if weights is None or feature not in weights else weights[feature].double()
            out.append(
                F.embedding_bag(some, weight, mode=table.mode, padding_idx=table.padding_idx, per_sample_weights=scale)
            )
    return torch.cat(out, 1)


@st.composite
def collections(draw: st.DrawFn) -> tuple[list[Table], int, int, int]:
    """Tables, B, L and a seed."""
    tables = []
    for number in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 9))
        features = tuple(f"f{number}_{k}" for k in range(draw(st.integers(0, 2))))
        mode = draw(st.sampled_from(["sum", "mean", "max"]))
        padding = draw(st.none() | st.integers(-rows, rows - 1))
        tables.append(Table(f"t{number}", rows, draw(st.sampled_from([1, 3, 8, 17])), mode, features, padding))
    return tables, draw(st.integers(0, 5)), draw(st.integers(0, 4)), draw(st.integers(0, 999))


@given(collections(), st.booleans())
def test_equals_a_loop_over_torch(case: tuple[list[Table], int, int, int], sparse: bool) -> None:
    tables, batch, length, seed = case
    torch.manual_seed(seed)
    layer = EmbeddingCollection(tables, sparse=sparse)
    ids = ids_of(layer, batch, length)
    got, want = layer(ids), loop(layer, ids)
    torch.testing.assert_close(got, want.to(got.dtype))
    grad = torch.randn_like(got)
    expected = torch.autograd.grad(want, layer.weights(), grad.double(), allow_unused=True)
    got.backward(grad)
    for weight, some in zip(layer.weights(), expected, strict=True):
        dense = weight.grad.to_dense() if sparse else weight.grad
        torch.testing.assert_close(dense, torch.zeros_like(weight) if some is None else some, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_every_form_of_ids_gives_the_same(index: torch.dtype, dtype: torch.dtype) -> None:
    layer = EmbeddingCollection(TABLES, dtype=dtype)
    single = {feature: ids.to(index) for feature, ids in ids_of(layer, 6).items()}
    want = layer(matrix(single))
    flat = matrix(single).T.reshape(-1)
    bounds = torch.arange(len(flat) + 1, dtype=index)
    ragged = {f: (ids, torch.arange(7, dtype=index)) for f, ids in single.items()}
    mixed = {f: ids.unsqueeze(1) if k % 2 else ids for k, (f, ids) in enumerate(single.items())}
    others = [layer(single), layer(flat, bounds), layer(ragged), layer(mixed)]
    for got in others:
        assert torch.equal(got, want)


def test_padding_counts_in_no_bag_and_gets_no_gradient() -> None:
    layer = EmbeddingCollection(TABLES)
    assert bool((layer.tables["tags"].weight[0] == 0).all())
    assert bool((layer.tables["best"].weight[-1] == 0).all())
    ids = ids_of(layer, 5, 3)
    ids["tags"][:, 1], ids["best"][2] = 0, 19
    torch.testing.assert_close(layer(ids), loop(layer, ids).float())
    layer(ids).sum().backward()
    assert bool((layer.tables["tags"].weight.grad.to_dense()[0] == 0).all())
    assert bool((layer.tables["best"].weight.grad.to_dense()[-1] == 0).all())


def test_per_sample_weights_by_feature_get_their_gradient() -> None:
    layer = EmbeddingCollection([Table("a", 9, 4), Table("b", 5, 3)])
    ids, scale = ids_of(layer, 4, 3), {"b": torch.randn(4, 3, requires_grad=True)}
    got, want = layer(ids, per_sample_weights=scale), loop(layer, ids, scale)
    torch.testing.assert_close(got, want.float())
    grad = torch.randn_like(got)
    (expected,) = torch.autograd.grad(want, scale["b"], grad.double())
    got.backward(grad)
    torch.testing.assert_close(scale["b"].grad, expected.float())


@pytest.mark.parametrize("sparse", [False, True])
def test_pooled_and_unpooled_tables_together(sparse: bool) -> None:
    layer = EmbeddingCollection(
        [Table("words", 40, 6, "none"), Table("user", 9, 4), Table("x", 5, 1, "none")], sparse=sparse
    )
    words, user, x = torch.randint(40, (3, 5)), torch.randint(9, (3,)), torch.randint(5, (7,))
    pooled, rows = layer({"words": words, "user": user, "x": (x, torch.tensor([0, 3, 3, 7]))})
    assert torch.equal(pooled, layer.tables["user"].weight[user])
    assert torch.equal(rows["words"], layer.tables["words"].weight[words])
    assert rows["words"].shape == (3, 5, 6)
    assert torch.equal(rows["x"], layer.tables["x"].weight[x])
    grads = [torch.randn_like(t) for t in (pooled, rows["words"], rows["x"])]
    torch.autograd.backward([pooled, rows["words"], rows["x"]], grads)
    for name, ids, grad in (("user", user, grads[0]), ("words", words, grads[1]), ("x", x, grads[2])):
        got = layer.tables[name].weight.grad
        want = torch.zeros(got.shape).index_put_((ids,), grad, accumulate=True)
        torch.testing.assert_close(got.to_dense(), want)
    pooled, rows = layer(torch.tensor([[1, 2, 3], [4, 5, 0]]))
    assert torch.equal(rows["words"], layer.tables["words"].weight[[1, 4]])
    assert pooled.shape == (2, 4)


def test_split_names_the_columns() -> None:
    layer = EmbeddingCollection(TABLES)
    ids = ids_of(layer, 4)
    parts = layer.split(layer(ids))
    assert list(parts) == ["user", "type", "other_type", "tags", "best"] == list(layer.features) == list(layer.outputs)
    assert torch.equal(parts["other_type"], layer.tables["types"].weight[ids["other_type"]])


def test_names_of_the_field_are_allowed() -> None:
    layer = EmbeddingCollection([Table("items", 9, 4), Table("keys", 5, 3), Table("values", 3, 2)])
    assert list(layer.state_dict()) == ["tables.items.weight", "tables.keys.weight", "tables.values.weight"]
    assert list(layer.tables) == ["items", "keys", "values"]
    assert len(layer.tables) == 3
    ids = ids_of(layer, 4)
    torch.testing.assert_close(layer(ids), loop(layer, ids).float())
    exported = torch.export.export(layer, (matrix(ids),))
    assert torch.equal(exported.module()(matrix(ids)), layer(ids))


def test_takes_over_the_modules_of_a_model() -> None:
    modules = nn.ModuleDict({"a": nn.Embedding(9, 4, padding_idx=2), "b": nn.EmbeddingBag(7, 3, mode="max")})
    layer = EmbeddingCollection.of(modules)
    assert layer.weights()[0] is modules["a"].weight
    a, b = torch.randint(9, (5,)), torch.randint(7, (5, 4))
    want = torch.cat([modules["a"](a) * (a != 2).unsqueeze(1), modules["b"](b)], 1)
    torch.testing.assert_close(layer({"a": a, "b": b}), want)
    assert layer.state_dict().keys() == modules.state_dict().keys()
    for key in modules:  # as they were called before the names were kept
        layer.load_state_dict({f"tables.{name}": value + 1 for name, value in layer.state_dict().items()})
        assert torch.equal(modules[key].weight, layer.tables[key].weight)
    listed = EmbeddingCollection.of({"features": nn.Embedding(3, 2)})
    assert list(listed.state_dict()) == ["tables.features.weight"]
    taken = EmbeddingCollection.of(nn.ModuleDict({"features": nn.Embedding(3, 2)}))
    assert list(taken.state_dict()) == ["tables.features.weight"]
    with pytest.raises(ValueError, match="'c' must be without max_norm"):
        EmbeddingCollection.of({"c": nn.Embedding(3, 2, max_norm=1.0)})


def test_one_feature_looks_up_in_several_tables() -> None:
    layer = EmbeddingCollection(
        [Table("long", 9, 4, features=("a", "b")), Table("short", 9, 2, "mean", features=("b", "c"))]
    )
    assert layer.features == ("a", "b", "c")
    assert layer.outputs == ("a", "b@long", "b@short", "c")
    bags, offsets = torch.randint(9, (3, 4, 2)), torch.arange(0, 25, 2)
    ids = dict(zip("abc", bags, strict=True))
    long, short = (layer.tables[name].weight for name in ("long", "short"))
    want = torch.cat(
        [long[ids["a"]].sum(1), long[ids["b"]].sum(1), short[ids["b"]].mean(1), short[ids["c"]].mean(1)], 1
    )
    torch.testing.assert_close(layer(ids), want)
    torch.testing.assert_close(layer(bags.reshape(-1), offsets), want)
    torch.testing.assert_close(layer(bags[:, :, 0].T), layer({name: some[:, :1] for name, some in ids.items()}))
    assert torch.equal(layer.split(want)["b@short"], want[:, 8:10])
    weights = torch.rand(3, 4)
    sums = EmbeddingCollection([Table("x", 9, 4, features=("a", "b")), Table("y", 9, 2, features=("b", "c"))])
    torch.testing.assert_close(
        sums(bags[:, :, 0].T, None, weights.T),
        sums({name: some[:, 0] for name, some in ids.items()}, None, dict(zip("abc", weights, strict=True))),
    )
    with pytest.raises(ValueError, match="features must differ"):
        Table("x", 9, 4, features=("a", "a"))


def test_a_table_says_how_its_weight_begins_and_in_what() -> None:
    table = Table("a", 5, 3, padding_idx=1, init_fn=nn.init.ones_, data_type=torch.float64)
    layer = EmbeddingCollection([table, Table("b", 5, 2)], dtype=torch.float64)
    assert [weight.dtype for weight in layer.weights()] == [torch.float64] * 2
    assert layer.weights()[0].sum(1).tolist() == [3, 0, 3, 3, 3]
    with pytest.raises(ValueError, match="must fill the weight in place"):
        EmbeddingCollection([Table("a", 5, 3, init_fn=torch.zeros_like)])
    for tables, dtype in (([table, Table("b", 5, 2)], None), ([table], torch.float32)):
        with pytest.raises(ValueError, match="all tables must have one data_type"):
            EmbeddingCollection(tables, dtype=dtype)
    with pytest.raises(ValueError, match=r"data_type must be float32.*got torch.int64"):
        Table("a", 5, 3, data_type=torch.int64)


def step_of(layer: EmbeddingCollection, ids: Any, target: Tensor, optimizer: Any = None) -> float:
    """One step of a small regression."""
    loss = (layer(ids) - target).square().sum(1).mean()
    if optimizer is not None:
        optimizer.zero_grad()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", FACTORIES)
def test_a_step_in_backward_is_the_optimizers_step(name: str) -> None:
    torch.manual_seed(0)
    fused = EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES[name])
    plain = EmbeddingCollection(TABLES)
    plain.load_state_dict(fused.state_dict())
    optimizer = FACTORIES[name](plain.weights())
    schedules = [torch.optim.lr_scheduler.ExponentialLR(some, 0.95) for some in (fused.optimizer, optimizer)]
    for step in range(30):
        ids = ids_of(plain, 8, 3)
        ids["tags"][0] = 0
        target = torch.randn(8, 35)
        losses = [step_of(fused, ids, target), step_of(plain, ids, target, optimizer)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), step
        for schedule in schedules:
            schedule.step()
    assert all(weight.grad is None for weight in fused.weights())
    fused.optimizer.flush()
    optimizer.flush()
    for got, want in zip(fused.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_step_in_backward_reaches_rows_that_are_not_pooled(name: str) -> None:
    torch.manual_seed(0)
    tables = [
        Table("words", 40, 6, "none"),
        Table("user", 9, 4),
        Table("x", 5, 1, "none"),
        Table("tags", 12, 3, "mean"),
    ]
    fused = EmbeddingCollection(tables, optimizer_in_backward=FACTORIES[name])
    plain = EmbeddingCollection(tables)
    plain.load_state_dict(fused.state_dict())
    optimizer = FACTORIES[name](plain.weights())
    for _ in range(20):
        ids: dict[str, Any] = {"words": torch.randint(40, (3, 5)), "user": torch.randint(9, (3,))}
        ids |= {"x": (torch.randint(5, (7,)), torch.tensor([0, 3, 3, 7])), "tags": torch.randint(12, (3, 2))}
        optimizer.zero_grad()
        for layer in (fused, plain):
            pooled, rows = layer(ids)
            (pooled.square().sum() + 2 * rows["words"].square().sum() + rows["x"].sum()).backward()
        optimizer.step()
    fused.optimizer.flush()
    optimizer.flush()
    for got, want in zip(fused.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_frozen_tables_stand_still_with_a_step_in_backward() -> None:
    layer = EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES["adagrad"])
    before = copy.deepcopy(layer.state_dict())
    layer.requires_grad_(False)
    pooled = layer(ids_of(layer, 4, 2))
    assert not pooled.requires_grad
    layer.tables["tags"].weight.requires_grad_()
    with pytest.raises(ValueError, match=r"got 3 of 4 frozen; put those into a layer of their own"):
        layer(ids_of(layer, 4, 2))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    layer.requires_grad_()
    step_of(layer, ids_of(layer, 4, 2), torch.randn(4, 35))
    assert not torch.equal(layer.weights()[0], before["tables.user.weight"])


def test_a_checkpointed_layer_takes_one_step() -> None:
    layers = [EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES["adam"])]
    layers.append(copy.deepcopy(layers[0]))
    ids = ids_of(layers[0], 4, 2)
    checkpoint(lambda: layers[0](ids).tanh(), use_reentrant=False).sum().backward()
    layers[1](ids).tanh().sum().backward()
    for got, want in zip(layers[0].weights(), layers[1].weights(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["adagrad", "adam", "adam dense", "momentum", "ftrl"])
def test_state_dicts_of_layer_and_optimizer_go_on_where_they_were(name: str) -> None:
    torch.manual_seed(0)
    first = EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES[name])
    work = [(ids_of(first, 8, 3), torch.randn(8, 35)) for _ in range(6)]
    for ids, target in work[:3]:
        step_of(first, ids, target)
    optimizer_state = copy.deepcopy(first.optimizer.state_dict())  # before the layer's: it brings rows up to date
    second = EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES[name])
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(optimizer_state)
    third = copy.deepcopy(first)
    for layer in (first, second, third):
        for ids, target in work[3:]:
            step_of(layer, ids, target)
        layer.optimizer.flush()
    for other in (second, third):
        for got, want in zip(other.weights(), first.weights(), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_states_follow_the_tables_into_another_dtype() -> None:
    layer = EmbeddingCollection(TABLES, optimizer_in_backward=FACTORIES["adam"])
    step_of(layer, ids_of(layer, 4, 2), torch.randn(4, 35))
    layer.double()
    step_of(layer, ids_of(layer, 4, 2), torch.randn(4, 35, dtype=torch.float64))
    assert layer.optimizer.state[layer.weights()[0]]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("factory", [None, FACTORIES["adagrad"], FACTORIES["adam dense"]])
def test_an_id_out_of_range_is_named_and_changes_nothing(factory: Any) -> None:
    layer = EmbeddingCollection(TABLES, optimizer_in_backward=factory)
    step_of(layer, ids_of(layer, 4, 2), torch.randn(4, 35))
    before = copy.deepcopy(layer.state_dict())
    ids = matrix(ids_of(layer, 4))
    ids[3, 2] = 7
    with pytest.raises(IndexError, match=r"'types' must be in \[0, 7\), got 7 at position 11"):
        layer(ids)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


def test_bad_input_is_refused_with_the_remedy() -> None:
    layer = EmbeddingCollection(TABLES)
    ids = ids_of(layer, 4)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"ids": torch.zeros(4, 3, dtype=torch.long)}, r"ids must be \[B, 5\]"),
        ({"ids": {**ids, "usr": ids["user"]}}, r"unknown \['usr'\]"),
        ({"ids": {"user": ids["user"]}}, r"missing \['type', 'other_type', 'tags', 'best'\]"),
        ({"ids": {**ids, "user": ids["user"][:3]}}, "one number of bags"),
        ({"ids": {**ids, "user": torch.zeros(4, 1, 1).long()}}, r"'user' must be \[B\], \[B, L\]"),
        ({"ids": {**ids, "user": (ids["user"], torch.tensor([1, 1, 2, 3, 4]))}}, "must begin with 0"),
        ({"ids": {**ids, "user": (ids["user"], torch.tensor([0, 1, 2, 3, 3]))}}, r"number of ids \(4\)"),
        ({"ids": ids, "offsets": torch.arange(21)}, "must go with each feature"),
        ({"ids": ids, "per_sample_weights": {"user": torch.ones(3)}}, r"of 'user' must be \(4,\)"),
        ({"ids": matrix(ids).flatten(), "offsets": torch.arange(20)}, r"\[F \* B \+ 1\]"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            layer(**call)
    with pytest.raises(ValueError, match="name of its own"):
        EmbeddingCollection([Table("a", 2, 2), Table("a", 2, 2)])
    with pytest.raises(ValueError, match="num_embeddings must be >= 1"):
        EmbeddingCollection([Table("a", 0, 2)])
    with pytest.raises(ValueError, match="no dot in it"):
        Table("a.b", 1, 1)
    with pytest.raises(ValueError, match=r"Table\('type_table', \.\.\., features=\('type',\)\)"):
        Table("type", 1, 1)
    with pytest.raises(ValueError, match="mode must be one of"):
        Table("a", 1, 1, "avg")
    with pytest.raises(TypeError, match=r"deeprec\.train\.optim, got Adagrad"):
        EmbeddingCollection(TABLES, optimizer_in_backward=partial(torch.optim.Adagrad, lr=0.1))


@pytest.mark.parametrize("form", ["one id", "bags"])
@pytest.mark.parametrize("way", ["inference", "dense gradients", "adagrad", "adam"])
def test_compiles_as_one_graph(way: str, form: str) -> None:
    torch.manual_seed(0)
    factory = FACTORIES.get(way)
    layer = EmbeddingCollection(TABLES, optimizer_in_backward=factory, sparse=False)
    eager = copy.deepcopy(layer)
    ids = ids_of(layer, 6) if form == "one id" else ids_of(layer, 6, 2)
    target = torch.randn(6, 35)

    def loss(layer: EmbeddingCollection) -> Tensor:
        return (layer(matrix(ids) if form == "one id" else ids) * 2 - target).square().mean()

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
    for got, want in zip(layer.weights(), eager.weights(), strict=True):
        torch.testing.assert_close(got, want)
        if factory is None:
            torch.testing.assert_close(got.grad, want.grad)


def test_exports_with_a_dynamic_batch() -> None:
    layer = EmbeddingCollection(TABLES)
    ids = matrix(ids_of(layer, 6))
    exported = torch.export.export(layer, (ids,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    other = matrix(ids_of(layer, 9))
    assert torch.equal(exported.module()(other), layer(other))
    assert "deeprec.embedding_bags.default" in str(exported.graph)
