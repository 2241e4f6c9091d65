"""Our layers beside TorchRec's own: its inputs, configs, results and checkpoints."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, FactorizationMachine, Table, replace_embeddings

jagged_tensor = pytest.importorskip("torchrec.sparse.jagged_tensor", reason="torchrec is not installed")
modules = pytest.importorskip("torchrec.modules.embedding_modules", reason="torchrec is not installed")
configs = pytest.importorskip("torchrec.modules.embedding_configs", reason="torchrec is not installed")
JaggedTensor, KeyedJaggedTensor = jagged_tensor.JaggedTensor, jagged_tensor.KeyedJaggedTensor
KeyedTensor = jagged_tensor.KeyedTensor
BagConfig, RowConfig, PoolingType = configs.EmbeddingBagConfig, configs.EmbeddingConfig, configs.PoolingType

ROWS = 20
FEATURES = ("user", "tag", "item", "seen")


def bag_configs(**options: Any) -> list[Any]:
    """One feature a table, several, and "item" in two tables."""
    return [
        BagConfig(name="users", num_embeddings=ROWS, embedding_dim=3, feature_names=["user"], **options),
        BagConfig(name="things", num_embeddings=ROWS, embedding_dim=4, feature_names=["item", "seen"], **options),
        BagConfig(
            name="means",
            num_embeddings=ROWS,
            embedding_dim=5,
            feature_names=["tag", "item"],
            **{"pooling": PoolingType.MEAN, **options},
        ),
    ]


def row_configs() -> list[Any]:
    return [
        RowConfig(name="users", num_embeddings=ROWS, embedding_dim=4, feature_names=["user"]),
        RowConfig(name="things", num_embeddings=ROWS, embedding_dim=4, feature_names=["item", "seen"]),
        RowConfig(name="more", num_embeddings=ROWS, embedding_dim=4, feature_names=["item"]),
    ]


def batch_of(
    keys: tuple[str, ...] = FEATURES,
    batch: int = 5,
    *,
    dtype: torch.dtype = torch.int64,
    is_weighted: bool = False,
    by: str = "lengths",
) -> Any:
    """Bags of 0 to 3 ids."""
    generator = torch.Generator().manual_seed(len(keys) * 10 + batch)
    lengths = torch.randint(0, 4, (len(keys) * batch,), generator=generator, dtype=torch.int32)
    nnz = int(lengths.sum())
    values = torch.randint(0, ROWS, (nnz,), generator=generator).to(dtype)
    weights = torch.rand(nnz, generator=generator).requires_grad_() if is_weighted else None
    offsets = torch.cat([torch.zeros(1, dtype=lengths.dtype), lengths.cumsum(0).to(lengths.dtype)])
    bounds = {"lengths": lengths} if by == "lengths" else {"offsets": offsets}
    return KeyedJaggedTensor(keys=list(keys), values=values, weights=weights, **bounds)


def grads_of(layer: nn.Module) -> list[Tensor]:
    return [parameter.grad.to_dense() for parameter in layer.parameters()]


ORDERS = {
    "ours": ("user", "item", "seen", "tag"),
    "another order": FEATURES,
    "others between": ("none", "seen", "item", "also", "tag", "user", "last"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("by", ["lengths", "offsets"])
def test_pools_as_torchrec_does_and_gives_its_keyed_tensor(order: str, dtype: torch.dtype, by: str) -> None:
    theirs = modules.EmbeddingBagCollection(tables=bag_configs())
    ours = EmbeddingCollection.of(copy.deepcopy(theirs), keyed=True)
    batch = batch_of(ORDERS[order], dtype=dtype, by=by)
    got, want = ours(batch), theirs(batch)
    assert isinstance(got, KeyedTensor)
    assert got.keys() == want.keys() == ["user", "item@things", "seen", "tag", "item@means"]
    assert got.length_per_key() == want.length_per_key()
    torch.testing.assert_close(got.values(), want.values())
    torch.testing.assert_close(got.to_dict(), want.to_dict())
    for some in (got, want):
        some.values().square().sum().backward()
    torch.testing.assert_close(grads_of(ours), grads_of(theirs))


@pytest.mark.parametrize("is_weighted", [False, True])
def test_weights_count_where_torchrecs_module_says_so(is_weighted: bool) -> None:
    theirs = modules.EmbeddingBagCollection(tables=bag_configs(pooling=PoolingType.SUM), is_weighted=is_weighted)
    ours = EmbeddingCollection.of(theirs)
    batch = batch_of(is_weighted=True)
    grads = []
    for out in (ours(batch), theirs(batch).values()):
        batch.weights().grad = None
        out.square().sum().backward()
        grads.append(batch.weights().grad)
        if len(grads) == 2:
            torch.testing.assert_close(out, ours(batch))
    torch.testing.assert_close(*grads)
    if is_weighted:
        with pytest.raises(ValueError, match="must have weights where is_weighted is True"):
            ours(batch_of())


def test_weights_of_a_batch_are_per_sample_weights_unless_they_are_not_to_count() -> None:
    tables = [Table("users", ROWS, 3, features=("user",)), Table("tags", ROWS, 2, features=("tag",))]
    layer = EmbeddingCollection(tables)
    batch = batch_of(is_weighted=True)
    each = batch.to_dict()
    ids = {name: (each[name].values(), each[name].offsets()) for name in layer.features}
    numbers = {name: each[name].weights() for name in layer.features}
    torch.testing.assert_close(layer(batch), layer(ids, None, numbers))
    layer.is_weighted = False
    torch.testing.assert_close(layer(batch), layer(ids))
    means = EmbeddingCollection([Table("tag", ROWS, 2, "mean")])
    with pytest.raises(ValueError, match="EmbeddingCollection: per_sample_weights need mode 'sum', got 'mean'"):
        means(batch)


@pytest.mark.parametrize("keyed", [False, True])
def test_gives_rows_as_torchrecs_embedding_collection_does(keyed: bool) -> None:
    theirs = modules.EmbeddingCollection(tables=row_configs())
    ours = EmbeddingCollection.of(theirs, keyed=keyed)
    batch = batch_of()
    want = theirs(batch)
    got = ours(batch) if keyed else ours(batch)[1]
    assert list(got) == list(want) == ["user", "item@things", "seen", "item@more"]
    for name, rows in want.items():
        if keyed:
            assert isinstance(got[name], JaggedTensor)
            assert torch.equal(got[name].lengths(), rows.lengths())
        torch.testing.assert_close(got[name].values() if keyed else got[name], rows.values())


def test_pooled_tables_and_rows_together_give_both_classes() -> None:
    layer = EmbeddingCollection([Table("user", ROWS, 3), Table("tag", ROWS, 2, "none")], keyed=True)
    batch = batch_of()
    pooled, rows = layer(batch)
    assert pooled.keys() == ["user"]
    assert torch.equal(rows["tag"].lengths(), batch["tag"].lengths())
    assert torch.equal(rows["tag"].values(), layer.tables["tag"].weight[batch["tag"].values()])
    single = layer({"user": torch.tensor([1, 2]), "tag": torch.tensor([3, 4])})[1]["tag"]
    assert single.lengths().tolist() == [1, 1]


def test_a_dict_of_jagged_tensors_is_taken_as_its_batch_is() -> None:
    layer = EmbeddingCollection(bag_configs(pooling=PoolingType.SUM))
    for is_weighted in (False, True):
        batch = batch_of((*FEATURES, "other"), is_weighted=is_weighted)
        torch.testing.assert_close(layer(batch.to_dict()), layer(batch))
    mixed = {**batch_of().to_dict(), "user": torch.arange(5)}
    assert layer(mixed).shape == (5, 21)
    with pytest.raises(ValueError, match=r"missing \['user'\]"):
        layer({name: some for name, some in batch_of().to_dict().items() if name != "user"})
    with pytest.raises(ValueError, match="must be the weights of its JaggedTensor"):
        layer(batch_of().to_dict(), None, {"user": torch.ones(5)})


@pytest.mark.parametrize("keyed", [False, True])
def test_an_empty_batch_gives_no_bags(keyed: bool) -> None:
    layer = EmbeddingCollection(bag_configs(), keyed=keyed)
    for keys in (*ORDERS.values(),):
        for by in ("lengths", "offsets"):
            out = layer(batch_of(keys, 0, by=by))
            assert (out.values() if keyed else out).shape == (0, 21)


def test_lengths_may_be_a_matrix() -> None:
    theirs = modules.EmbeddingBagCollection(tables=bag_configs())
    for keys in ORDERS.values():
        flat = batch_of(keys)
        batch = KeyedJaggedTensor(list(keys), flat.values(), lengths=flat.lengths().view(len(keys), 5))
        torch.testing.assert_close(EmbeddingCollection.of(theirs)(batch), theirs(flat).values())
        torch.testing.assert_close(theirs(batch).values(), theirs(flat).values())  # the batch is as it was


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"EmbeddingCollection: KeyedJaggedTensor must .* missing \['seen', 'tag'\]"):
        EmbeddingCollection(bag_configs())(batch_of(("user", "item")))


def test_batches_of_several_sizes_are_refused_and_equal_strides_taken() -> None:
    layer = EmbeddingCollection([Table("a", ROWS, 2), Table("b", ROWS, 2)])
    options = {"keys": ["a", "b"], "values": torch.arange(4)}
    uneven = KeyedJaggedTensor(**options, lengths=torch.tensor([1, 2, 1]), stride_per_key_per_rank=[[1], [2]])
    with pytest.raises(ValueError, match=r"must have one number of bags, got \{'a': 1, 'b': 2\}"):
        layer(uneven)
    even = KeyedJaggedTensor(**options, lengths=torch.tensor([1, 1, 1, 1]), stride_per_key_per_rank=[[2], [2]])
    torch.testing.assert_close(layer(even), layer(KeyedJaggedTensor(**options, lengths=torch.ones(4).int())))
    shared = KeyedJaggedTensor(
        **options, lengths=torch.ones(4).int(), inverse_indices=(["a", "b"], torch.tensor([[0, 1], [0, 1]]))
    )
    with pytest.raises(ValueError, match="must be without inverse_indices"):
        layer(shared)


@pytest.mark.parametrize("offsets", [[0, 1, 9, 4], [1, 2, 3, 4], [0, 2, 1, 3]])
@pytest.mark.parametrize("keys", [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c")])
def test_offsets_that_do_not_fit_are_refused(keys: tuple[str, ...], offsets: list[int]) -> None:
    layer = EmbeddingCollection([Table(name, ROWS, 2) for name in "abc"])
    batch = KeyedJaggedTensor(keys=list(keys), values=torch.arange(4), offsets=torch.tensor(offsets))
    with pytest.raises(ValueError, match="EmbeddingCollection: offsets"):
        layer(batch)


def test_values_are_not_copied_where_keys_are_ours() -> None:
    from deeprec.nn._bag_inputs import bag_inputs

    layer = EmbeddingCollection([Table(name, ROWS, 2) for name in ("a", "b")])
    for keys in (("a", "b"), ("other", "a", "b"), ("a", "b", "other")):
        batch = batch_of(keys, is_weighted=True)
        inputs = bag_inputs("test", layer._lookups, layer.weights()[0], batch, None, None, "weights")
        for taken, given in ((inputs.ids, batch.values()), (inputs.values, batch.weights())):
            assert taken.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()


@pytest.mark.parametrize("kind", ["bags", "rows"])
def test_checkpoints_go_both_ways_by_torchrecs_names(kind: str) -> None:
    make: Any = modules.EmbeddingBagCollection if kind == "bags" else modules.EmbeddingCollection
    tables = bag_configs if kind == "bags" else row_configs
    trained, place = make(tables=tables()), "embedding_bags" if kind == "bags" else "embeddings"
    state = trained.state_dict()
    batch = batch_of()
    want = trained(batch)
    for ours in (EmbeddingCollection.of(make(tables=tables()), keyed=True), EmbeddingCollection(tables(), keyed=True)):
        assert list(ours.state_dict()) == list(state)
        assert all(key.startswith(f"{place}.") for key in state)
        ours.load_state_dict(state)
        got = ours(batch)
        if kind == "bags":
            torch.testing.assert_close(got.values(), want.values())
        else:
            for name, rows in want.items():
                torch.testing.assert_close(got[name].values(), rows.values())
        assert [name for name, _ in ours.named_parameters()] == list(state)
        back = make(tables=tables())
        back.load_state_dict(ours.state_dict())
    inside = nn.ModuleDict({"tables": EmbeddingCollection([Table(c.name, ROWS, c.embedding_dim) for c in tables()])})
    inside.load_state_dict({f"tables.{key}": value for key, value in state.items()})
    assert torch.equal(inside["tables"].tables["users"].weight, state[f"{place}.users.weight"])
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({key: value for key, value in state.items() if "users" not in key})


def test_the_tables_inside_torchrecs_module_keep_their_names_too() -> None:
    theirs = modules.EmbeddingBagCollection(tables=bag_configs())
    ours = EmbeddingCollection.of(theirs.embedding_bags)
    assert list(ours.state_dict()) == list(theirs.embedding_bags.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert ours.features == ("users", "things", "means")


def test_a_model_of_torchrecs_trains_on_ours_in_its_place() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tables = modules.EmbeddingBagCollection(tables=bag_configs())
            self.over = nn.Linear(21, 1)

        def forward(self, batch: Any) -> Tensor:
            return self.over(self.tables(batch).values())

    theirs, ours, swapped = Model(), Model(), replace_embeddings(Model())
    ours.tables = EmbeddingCollection.of(ours.tables, keyed=True, sparse=False)
    assert all(isinstance(table, EmbeddingBag) for table in swapped.tables.embedding_bags.values())
    assert ours.state_dict().keys() == theirs.state_dict().keys() == swapped.state_dict().keys()
    for model in (theirs, ours, swapped):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(batch_of()).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
    torch.testing.assert_close(list(swapped.parameters()), list(theirs.parameters()))


def test_configs_make_the_tables_they_say() -> None:
    seen: list[tuple[int, ...]] = []

    def ones(weight: Tensor) -> None:
        seen.append(tuple(weight.shape))
        weight.fill_(1.0)

    half = EmbeddingCollection(
        [
            BagConfig(name="a", num_embeddings=7, embedding_dim=2, data_type=configs.DataType.FP16, init_fn=ones),
            BagConfig(
                name="b", num_embeddings=5, embedding_dim=2, data_type=configs.DataType.FP16, pooling=PoolingType.MEAN
            ),
        ]
    )
    assert seen == [(7, 2)]
    assert [weight.dtype for weight in half.weights()] == [torch.float16] * 2
    assert half.weights()[0].eq(1).all()
    assert half.weights()[1].abs().max() <= 5**-0.5
    assert [table.mode for table in half.configs] == ["sum", "mean"]
    bounded = EmbeddingCollection(
        [BagConfig(name="a", num_embeddings=50, embedding_dim=4, weight_init_min=2.0, weight_init_max=3.0)]
    )
    assert bounded.features == ("a",)
    assert bounded.weights()[0].min() >= 2
    assert bounded.weights()[0].max() <= 3
    with pytest.raises(ValueError, match="data_type must be float32"):
        EmbeddingCollection([BagConfig(name="a", num_embeddings=5, embedding_dim=2, data_type=configs.DataType.INT8)])
    with pytest.raises(ValueError, match="all tables must have one data_type"):
        EmbeddingCollection([BagConfig(name="a", num_embeddings=5, embedding_dim=2)], dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="tables must be Tables, or EmbeddingBagConfigs"):
        EmbeddingCollection([{"name": "a"}])


def test_a_factorization_machine_takes_configs_and_batches() -> None:
    tables = [
        BagConfig(name="users", num_embeddings=ROWS, embedding_dim=3, feature_names=["user", "item"]),
        BagConfig(name="tags", num_embeddings=ROWS, embedding_dim=3, feature_names=["tag", "item"]),
    ]
    layer = FactorizationMachine(tables, return_embeddings=True)
    for weight in layer.linear_weights():
        nn.init.normal_(weight)
    batch = batch_of(is_weighted=True)
    logit, rows = layer(batch)
    each = batch.to_dict()
    entries = [(0, "user"), (0, "item"), (1, "tag"), (1, "item")]
    for b in range(5):
        vectors, linear, by_feature = [], [], []
        for table, name in entries:
            span = slice(*each[name].offsets()[b : b + 2].tolist())
            ids, x = each[name].values()[span], each[name].weights()[span].unsqueeze(1)
            vectors.append(layer.weights()[table][ids] * x)
            linear.append((layer.linear_weights()[table][ids] * x).sum())
            by_feature.append(vectors[-1].sum(0))
        all_of = torch.cat(vectors)
        pairs = 0.5 * (all_of.sum(0).square() - all_of.square().sum(0)).sum()
        torch.testing.assert_close(logit[b], sum(linear) + pairs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows[b], torch.stack(by_feature))
    torch.testing.assert_close(layer(each)[0], logit)


@pytest.mark.parametrize("order", ["ours", "another order"])
@pytest.mark.parametrize("way", ["inference", "training"])
def test_compiles_whole(order: str, way: str) -> None:
    torch._dynamo.reset()
    tables = bag_configs()
    tables[2].feature_names = ["tag"]
    layer = EmbeddingCollection(tables, sparse=False, keyed=True)
    keys = {"ours": ORDERS["ours"], "another order": FEATURES}[order]

    def values(batch: Any) -> Tensor:
        return layer(batch).values() * 2

    compiled = torch.compile(values, fullgraph=True, backend="aot_eager")
    batch = batch_of(keys)
    with torch.set_grad_enabled(way == "training"):
        got, want = compiled(batch), values(batch_of(keys))
        torch.testing.assert_close(got, want)
        if way == "training":
            got.square().sum().backward()
            grads = grads_of(layer)
            layer.zero_grad()
            want.square().sum().backward()
            torch.testing.assert_close(grads, grads_of(layer))


def test_what_is_no_collection_of_modules_is_refused() -> None:
    class Sharded(nn.Module):
        def embedding_bag_configs(self) -> list[Any]:
            return bag_configs()

    with pytest.raises(TypeError, match="before it is sharded or quantized"):
        EmbeddingCollection.of(Sharded())
    with pytest.raises(ValueError, match="must be without need_indices"):
        EmbeddingCollection.of(modules.EmbeddingCollection(tables=row_configs(), need_indices=True))
    with pytest.raises(TypeError, match="or a KeyedJaggedTensor, got list"):
        EmbeddingCollection(bag_configs())([1, 2])


def test_a_step_in_the_backward_pass_takes_torchrecs_batches() -> None:
    from deeprec.train import optim

    layers = [
        EmbeddingCollection(bag_configs(), optimizer_in_backward=partial(optim.Adagrad, lr=0.1)) for _ in range(2)
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    batch = batch_of()
    layers[0](batch).square().sum().backward()
    layers[1](
        {name: (some.values(), some.offsets()) for name, some in batch.to_dict().items()}
    ).square().sum().backward()
    torch.testing.assert_close(layers[0].weights(), layers[1].weights())


def test_an_embedding_collection_without_it_imports_no_torchrec() -> None:
    code = """
import sys, torch
import deeprec, deeprec.nn
from deeprec.nn import EmbeddingCollection, FactorizationMachine, Table
table = Table("a", 5, 2, init_fn=torch.nn.init.zeros_, data_type=torch.float64)
for layer in (EmbeddingCollection([table]), FactorizationMachine([table])):
    layer(torch.tensor([[1], [2]])).sum().backward()
    layer({"a": torch.tensor([1, 2])})
    layer.load_state_dict(layer.state_dict())
EmbeddingCollection.of(torch.nn.ModuleDict({"b": torch.nn.Embedding(3, 2)}))
print([name for name in sys.modules if name.split(".")[0] in ("torchrec", "fbgemm_gpu", "tensordict")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_torchrec_a_keyed_layer_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec.sparse.jagged_tensor", None)
    with pytest.raises(ImportError, match="keyed=True gives TorchRec's classes"):
        EmbeddingCollection([Table("a", 3, 2)], keyed=True)


def test_a_tensordict_of_nested_tensors_is_taken() -> None:
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")
    nested = {
        name: torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged)
        for name in ("user", "item", "seen", "other", "tag")
    }
    theirs = modules.EmbeddingBagCollection(tables=bag_configs())
    batch = tensordict.TensorDict(nested, batch_size=[2])
    torch.testing.assert_close(EmbeddingCollection.of(theirs)(batch), theirs(batch).values())
    assert isinstance(theirs.embedding_bags["users"], nn.EmbeddingBag)
    assert not isinstance(theirs.embedding_bags["users"], (Embedding, EmbeddingBag))
