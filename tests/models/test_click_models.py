"""Every click model: its formula in plain PyTorch, its gradients, its inputs of all kinds, and a little training."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import io
import math
import os
import re
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from deeprec.config import taken_options
from deeprec.data.columns.inputs import BagField, Field, Inputs, SequenceField
from deeprec.models import (
    ClickBatch,
    ClickModel,
    click_models,
    config_class,
    create,
    is_click_model,
    model_class,
    recommenders,
)
from deeprec.train import optim
from deeprec.train.optimizers import Optimizers

D = 4
FIELDS = (Field("user", 7), Field("user x item", 13, is_cross=True), Field("item", 11), Field("train", 3))
NUMERICS = ("age", "price")
BAGS = (
    BagField("genres", 6),
    BagField("tags", 9, "mean", is_weighted=True),
    BagField("words", 8, "sum", is_weighted=True),
    BagField("genre x user", 12, "sum", is_cross=True),
    BagField("bought", 5, "sum"),
)
SEQUENCES = (
    SequenceField("seen", 11, 3, "item"),
    SequenceField("seen with", 7, 3, "user", "seen", "sum"),
    SequenceField("read", 8, 3, pooling="sum"),
    SequenceField("left", 11, 3, "item"),
)
TRAINED = [name for name in click_models() if model_class(name).trains_by_gradient]
INPUTS = {
    "everything": Inputs(FIELDS, NUMERICS, BAGS),
    "fields": Inputs((FIELDS[0], FIELDS[2], FIELDS[3])),
    "fields-and-crosses": Inputs(FIELDS),
    "fields-and-numerics": Inputs(FIELDS, NUMERICS),
    "one-field": Inputs(FIELDS[:1]),
    "numerics": Inputs((), NUMERICS),
    "bags": Inputs((), (), BAGS),
    "unweighted-sums": Inputs(FIELDS[:1], (), BAGS[4:]),
    "sequences": Inputs(FIELDS, NUMERICS, BAGS, SEQUENCES),
    "shared-alone": Inputs((FIELDS[2],), (), (), SEQUENCES[:1]),
}


def options(name):
    small = {} if "factors" in config_class(name).unused else {"factors": D}
    if hasattr(config_class(name), "hidden"):
        small["hidden"] = (6, 5)
    return small


def batch_of(inputs, size, *, seed=0, dtype=torch.float32, ids=torch.int32):
    """Random rows; each bag and sequence has 0 to 3 ids."""
    g = torch.Generator().manual_seed(seed)
    columns = [torch.randint(field.size, (size,), generator=g) for field in inputs.fields]
    columns = torch.stack(columns, 1) if columns else torch.zeros(size, 0)
    bags = {}
    for bag in inputs.bags:
        lengths = torch.randint(4, (size,), generator=g)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        nnz = int(offsets[-1])
        weights = torch.rand(nnz, generator=g, dtype=dtype) + 0.5 if bag.is_weighted else None
        bags[bag.name] = (torch.randint(bag.size, (nnz,), generator=g).to(ids), offsets, weights)
    for sequence in inputs.sequences:
        lengths = torch.randint(4, (size,), generator=g)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        offsets = bags[sequence.parallel_to][1] if sequence.parallel_to else offsets
        ids_of = torch.randint(sequence.size, (int(offsets[-1]),), generator=g).to(ids)
        bags[sequence.name] = (ids_of, offsets, None)
    values = torch.randn(size, len(inputs.numerics), generator=g, dtype=dtype)
    labels = torch.randint(2, (size,), generator=g).to(dtype)
    return ClickBatch(columns.to(ids), values, bags, labels)


def built(name, inputs, *, seed=0, **more):
    """In float64, with parameters that are all far from 0."""
    model = create(name, inputs=inputs, **{**options(name), **more}).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=g)
    return model


def without_dropout(name):
    names = [field.name for field in dataclasses.fields(config_class(name))]
    return {key: 0.0 for key in ("dropout", "interaction_dropout") if key in names}


# -- the models in plain PyTorch ---------------------------------------------------------------------------------------


class Plain:
    """Looks the parameters of a model up by what they belong to, and goes row by row, input by input."""

    def __init__(self, model):
        self.config = model.config
        self.inputs = model.inputs
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        for key, _ in model.named_parameters():
            self.state[key].requires_grad_()

    def table(self, name, width):
        """The table of an input, of vectors (D) or first-order weights (1); None where it has none."""
        words = name.replace(".", "_")
        for key, value in self.state.items():
            if key.endswith((f".{words}.weight", f".{words}_table.weight")) and value.shape[1] == width:
                return value
        return None

    def numerics(self, width):
        """[P, width]."""
        found = self.table("numerics", width)
        for key, value in self.state.items():
            if found is None and key.endswith(".numerics") and value.dim() == (1 if width == 1 else 2):
                found = value.reshape(-1, width)
        return found

    def vectors(self, batch, width):
        """One [B, width] for each input that has a table of this width; those that share a table come last."""
        found, last = [], []
        for column, field in enumerate(self.inputs.fields):
            table = self.table(field.name, width)
            shared = width > 1 and any(s.vocabulary == field.name for s in self.inputs.sequences)
            if table is not None:
                (last if shared else found).append(table[batch.ids[:, column].long()])
        weights = self.numerics(width)
        if weights is not None:
            found += [batch.values[:, [p]] * weights[p] for p in range(len(self.inputs.numerics))]
        for bag in self.inputs.bags:
            table = self.table(bag.name, width)
            if table is not None:
                found.append(self.pooled(batch, bag, table))
        for sequence in self.inputs.sequences:
            is_own = width == 1 or not sequence.vocabulary
            table = self.table(sequence.name if is_own else sequence.vocabulary, width)
            if table is not None:
                (found if is_own else last).append(self.pooled(batch, sequence, table))
        return found + last

    def pooled(self, batch, bag, table):
        ids, offsets, weights = batch.bags[bag.name]
        rows = []
        for b in range(len(offsets) - 1):
            mine = slice(int(offsets[b]), int(offsets[b + 1]))
            row = table[ids[mine].long()]
            if weights is not None:
                row = row * weights[mine, None]
            total = row.sum(0)
            rows.append(total / max(len(row), 1) if bag.pooling == "mean" else total)
        return torch.stack(rows)

    def first_order(self, batch):
        return sum(self.vectors(batch, 1)).squeeze(1)

    def embeddings(self, batch):
        return self.vectors(batch, D)

    def pairs(self, batch):
        """[B, D] for each pair of inputs."""
        e = self.embeddings(batch)
        return [e[i] * e[j] for i in range(len(e)) for j in range(i)]

    def deep_input(self, batch):
        raw = [batch.values] if self.config.numerics == "input" else []
        return torch.cat([*self.embeddings(batch), *raw], 1)

    def mlp(self, x, prefix="mlp."):
        for layer in range(len(self.config.hidden)):
            x = x @ self.state[f"{prefix}layers.{layer}.weight"].T + self.state[f"{prefix}layers.{layer}.bias"]
            x = x.clamp(min=0)
        if f"{prefix}output.weight" in self.state:
            x = (x @ self.state[f"{prefix}output.weight"].T + self.state[f"{prefix}output.bias"]).squeeze(1)
        return x


def plain_lr(plain, batch):
    return plain.first_order(batch) + plain.state["linear.bias"]


def plain_fm(plain, batch):
    pairs = sum(pair.sum(1) for pair in plain.pairs(batch))
    return plain.first_order(batch) + pairs + plain.state["terms.bias"]


def plain_dnn(plain, batch):
    return plain.mlp(plain.deep_input(batch))


def plain_wide_deep(plain, batch):
    return plain.first_order(batch) + plain.mlp(plain.deep_input(batch))


def plain_deepfm(plain, batch):
    pairs = sum(pair.sum(1) for pair in plain.pairs(batch))
    return plain.first_order(batch) + pairs + plain.mlp(plain.deep_input(batch))


def plain_nfm(plain, batch):
    pooled = sum(plain.pairs(batch), torch.zeros(len(batch.ids), D, dtype=torch.float64))
    return plain.first_order(batch) + plain.mlp(pooled)


def plain_afm(plain, batch):
    pairs = torch.stack(plain.pairs(batch), 1)
    state = plain.state
    hidden = (pairs @ state["attention.weight"].T + state["attention.bias"]).clamp(min=0)
    scores = (hidden @ state["attention.h"]).exp()
    weights = scores / scores.sum(1, keepdim=True)
    pooled = (weights.unsqueeze(2) * pairs).sum(1)
    return plain.first_order(batch) + state["linear.bias"] + pooled @ state["p"]


def plain_dcn_v2(plain, batch):
    first = x = plain.deep_input(batch)
    for layer in range(plain.config.num_cross_layers):
        x = first * (x @ plain.state[f"cross.weight.{layer}"].T + plain.state[f"cross.bias.{layer}"]) + x
    if plain.config.structure == "stacked":
        return plain.mlp(x)
    both = torch.cat([x, plain.mlp(first)], 1)
    return (both @ plain.state["output.weight"].T + plain.state["output.bias"]).squeeze(1)


PLAIN = {
    "afm": plain_afm,
    "dcn-v2": plain_dcn_v2,
    "deepfm": plain_deepfm,
    "dnn": plain_dnn,
    "fm": plain_fm,
    "lr": plain_lr,
    "nfm": plain_nfm,
    "wide-deep": plain_wide_deep,
}


def variants():
    return [
        pytest.param(name, kind, numerics, id=f"{name}-{kind}-{numerics}")
        for name in PLAIN
        for kind in INPUTS
        if (name, kind) != ("afm", "one-field")  # refused, see test_attention_needs_a_pair
        for numerics in (("embedding", "input") if hasattr(config_class(name), "numerics") else (None,))
    ]


@pytest.mark.parametrize(("name", "kind", "numerics"), variants())
def test_logits_and_gradients_equal_plain_pytorch(name, kind, numerics):
    inputs = INPUTS[kind]
    extra = {} if numerics is None else {"numerics": numerics}
    if name == "nfm":
        extra["batch_norm"] = False
    model = built(name, inputs, **extra).eval()
    plain = Plain(model)
    batch = batch_of(inputs, 17, dtype=torch.float64)
    logits = model(batch)
    expected = PLAIN[name](plain, batch)
    assert logits.shape == (17,)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    model.loss(batch).backward()
    F.binary_cross_entropy_with_logits(expected, batch.labels).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {key}"
        grad, wanted = parameter.grad.to_dense(), plain.state[key].grad
        wanted = torch.zeros_like(grad) if wanted is None else wanted
        torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter(name):
    model = built(name, INPUTS["everything"]).train()
    torch.manual_seed(0)
    model.loss(batch_of(INPUTS["everything"], 64, dtype=torch.float64)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.to_dense().abs().sum() > 0, key


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_the_slopes_of_the_loss(name):
    model, batch = (
        built(name, INPUTS["everything"], **without_dropout(name)),
        batch_of(INPUTS["everything"], 32, dtype=torch.float64),
    )
    model.loss(batch).backward()
    generator, step, slope = torch.Generator().manual_seed(1), 1e-6, 0.0
    ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    losses = []
    with torch.no_grad():
        for parameter, way in zip(model.parameters(), ways, strict=True):
            slope += float((parameter.grad.to_dense() * way).sum())
        for sign in (1, -2):
            for parameter, way in zip(model.parameters(), ways, strict=True):
                parameter += sign * step * way
            losses.append(float(model.loss(batch)))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_tables_have_gradients_by_row(name):
    model = create(name, inputs=INPUTS["everything"], **options(name))
    model.loss(batch_of(INPUTS["everything"], 5)).backward()
    for key, parameter in model.named_parameters():
        if ".tables." in key or ".linear." in key:
            assert parameter.grad.is_sparse, key


@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", click_models())
def test_loss_starts_at_ln_2(name, ids):
    model = create(name, inputs=INPUTS["everything"], generator=torch.Generator().manual_seed(0))
    loss = model.loss(batch_of(INPUTS["everything"], 512, ids=ids))
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=5e-3)


@pytest.mark.parametrize("name", click_models())
def test_same_generator_same_weights(name):
    first, again, other = (
        create(name, inputs=INPUTS["everything"], generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in (5, 5, 6)
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    starts_with_zeros = not any(value.any() for value in first.values())  # as logistic regression, whatever the seed
    assert starts_with_zeros or any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", click_models())
def test_state_dict_goes_into_a_new_model(name):
    model = built(name, INPUTS["everything"]).eval()
    other = create(name, inputs=INPUTS["everything"], **options(name)).double().eval()
    other.load_state_dict(model.state_dict())
    batch = batch_of(INPUTS["everything"], 6, dtype=torch.float64)
    assert torch.equal(model(batch), other(batch))
    twin = copy.deepcopy(model)
    assert torch.equal(model(batch), twin(batch))


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("name", TRAINED)
def test_batches_of_one_row_and_none_train(name, size):
    more = {"batch_norm": True} if hasattr(config_class(name), "batch_norm") else {}
    model = create(name, inputs=INPUTS["everything"], **options(name), **more).train()
    logits = model(batch_of(INPUTS["everything"], size))
    assert logits.shape == (size,)
    logits.sum().backward()
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", click_models())
def test_a_row_does_not_depend_on_its_batch(name):
    model = built(name, INPUTS["everything"]).eval()
    batch = batch_of(INPUTS["everything"], 9, dtype=torch.float64)
    whole = model(batch)
    for row in range(9):
        bags = {}
        for key, (ids, offsets, weights) in batch.bags.items():
            mine = slice(int(offsets[row]), int(offsets[row + 1]))
            bounds = torch.tensor([0, mine.stop - mine.start])
            bags[key] = (ids[mine], bounds, None if weights is None else weights[mine])
        alone = ClickBatch(batch.ids[row : row + 1], batch.values[row : row + 1], bags)
        torch.testing.assert_close(model(alone)[0], whole[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", click_models())
def test_passes_torch_compile_in_inference(name):
    torch._dynamo.reset()
    inputs = Inputs(FIELDS[:3], NUMERICS, (BAGS[1], BAGS[3]))
    model = built(name, inputs).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for size in (8, 11):
            batch = batch_of(inputs, size, seed=size, dtype=torch.float64)
            torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in click_models() if hasattr(config_class(n), "hidden")])
def test_bfloat16_products_stay_close_and_give_float32(name):
    inputs = INPUTS["everything"]
    made = [
        create(name, inputs=inputs, **options(name), precision=p, generator=torch.Generator().manual_seed(0)).eval()
        for p in ("float32", "bfloat16")
    ]
    for model in made:
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    batch = batch_of(inputs, 64)
    exact, narrow = (model(batch) for model in made)
    assert narrow.dtype == torch.float32
    assert not torch.equal(exact, narrow)
    torch.testing.assert_close(narrow, exact, rtol=0.05, atol=0.05 * float(exact.abs().max().detach()))
    made[1].loss(batch).backward()
    assert all(p.grad.dtype == torch.float32 for p in made[1].parameters())


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", click_models())
def test_crosses_alone_are_taken_or_refused(name):
    only_crosses = Inputs(FIELDS[1:2], (), BAGS[3:4])
    try:
        model = built(name, only_crosses)
    except ValueError as error:
        assert re.search(f"{name}: .*not a cross, got 0", str(error))  # noqa: PT017  # it may be either
        return
    logits = model(batch_of(only_crosses, 5, dtype=torch.float64))
    assert logits.shape == (5,)
    assert torch.isfinite(logits).all()


def test_logistic_regression_takes_crosses_alone():
    only_crosses = Inputs(FIELDS[1:2], (), BAGS[3:4])
    model, batch = built("lr", only_crosses), batch_of(only_crosses, 5, dtype=torch.float64)
    torch.testing.assert_close(model(batch), plain_lr(Plain(model), batch))


def test_attention_needs_a_pair():
    with pytest.raises(ValueError, match="at least 2 inputs that are not a cross, got 1"):
        create("afm", inputs=INPUTS["one-field"])


def test_an_id_out_of_range_names_its_field():
    model = create("deepfm", inputs=INPUTS["fields-and-numerics"], **options("deepfm"))
    batch = batch_of(INPUTS["fields-and-numerics"], 5)
    batch.ids[3, 2] = 11
    with pytest.raises(IndexError, match=r"item.*11"):
        model(batch)


@pytest.mark.parametrize("name", click_models())
def test_a_batch_of_another_shape_is_refused(name):
    model = create(name, inputs=INPUTS["everything"], **options(name))
    batch = batch_of(INPUTS["everything"], 5)
    with pytest.raises(ValueError, match=r"ids must be \[B, 4\]"):
        model(dataclasses.replace(batch, ids=batch.ids[:, :3]))
    with pytest.raises(ValueError, match=r"values must be \[B, 2\]"):
        model(dataclasses.replace(batch, values=batch.values[:, :1]))
    with pytest.raises(ValueError, match="tags"):
        model(dataclasses.replace(batch, bags={key: bag for key, bag in batch.bags.items() if key != "tags"}))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("deepfm", "hidden", (400, 0)),
        ("deepfm", "dropout", 1.0),
        ("deepfm", "activation", "rleu"),
        ("deepfm", "numerics", "both"),
        ("deepfm", "factors", 0),
        ("deepfm", "embedding_l2", -1),
        ("deepfm", "l1", 0.1),
        ("deepfm", "batch_size", 0),
        ("wide-deep", "wide_optimizer", "ftlr"),
        ("wide-deep", "wide_lr", 0),
        ("wide-deep", "wide_l1", -1),
        ("lr", "l1", -1),
    ],
)
def test_option_out_of_range_is_refused(name, option, value):
    with pytest.raises(ValueError, match=option):
        create(name, **{option: value})


def test_registry_knows_both_families():
    assert is_click_model("deepfm")
    assert not is_click_model("neumf")
    assert not set(click_models()) & set(recommenders())
    assert all(issubclass(type(create(name)), ClickModel) for name in click_models())
    with pytest.raises(ValueError, match="did you mean 'deepfm'"):
        create("deep-fm")


# -- training ----------------------------------------------------------------------------------------------------------


def one_hot(plain, batch, width):
    """[B, ids of all inputs but crosses] and the rows of their tables: each id of a bag is a variable of its own."""
    columns, tables = [], []
    for column, field in enumerate(plain.inputs.fields):
        if plain.table(field.name, D) is not None:
            columns.append(F.one_hot(batch.ids[:, column].long(), field.size).double())
            tables.append(plain.table(field.name, width))
    if plain.inputs.numerics:
        columns.append(batch.values)
        tables.append(plain.numerics(width))
    for bag in plain.inputs.bags:
        if plain.table(bag.name, D) is None:
            continue
        ids, offsets, weights = batch.bags[bag.name]
        x = torch.zeros(len(batch.ids), bag.size, dtype=torch.float64)
        for row in range(len(x)):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            for place in range(begin, end):
                weight = 1.0 if weights is None else float(weights[place])
                x[row, int(ids[place])] += weight / (end - begin if bag.pooling == "mean" else 1)
        columns.append(x)
        tables.append(plain.table(bag.name, width))
    return torch.cat(columns, 1), torch.cat(tables)


def test_fm_of_one_bag_says_that_it_has_no_pairs(caplog):
    create("fm", inputs=Inputs((), (), BAGS[:1]), pairs="entries")
    assert not caplog.records
    create("fm", inputs=Inputs((), (), BAGS[:1]))
    assert "pairs=entries" in caplog.text


@pytest.mark.parametrize("kind", ["everything", "bags", "fields-and-crosses", "numerics"])
def test_fm_of_entries_is_libfms_over_one_hot_variables(kind):
    # Distinct ids within a bag: a repeated id is two variables with one vector, not one of twice the value.
    inputs = INPUTS[kind]
    model = built("fm", inputs, pairs="entries").eval()
    plain = Plain(model)
    batch = batch_of(inputs, 7, dtype=torch.float64)
    for bag in inputs.bags:
        ids, offsets, _ = batch.bags[bag.name]
        for row in range(7):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            ids[begin:end] = torch.randperm(bag.size)[: end - begin].to(ids.dtype)
    x, v = one_hot(plain, batch, D)
    _, w = one_hot(plain, batch, 1)
    pairs = 0.5 * ((x @ v).square() - x.square() @ v.square()).sum(1)
    crosses = plain.first_order(batch) - (x @ w).squeeze(1)
    expected = plain.state["terms.fm.bias"] + (x @ w).squeeze(1) + pairs + crosses
    torch.testing.assert_close(model(batch), expected)
    model.loss(batch).backward()
    F.binary_cross_entropy_with_logits(expected, batch.labels).backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.to_dense(), plain.state[key].grad)
    assert model(batch_of(inputs, 0, dtype=torch.float64)).shape == (0,)


@pytest.mark.parametrize("more", [{"structure": "parallel"}, {"rank": 3}, {"rank": 3, "num_experts": 2}])
def test_variants_of_dcn_v2_are_trained(more):
    inputs = INPUTS["everything"]
    model = built("dcn-v2", inputs, **more).eval()
    batch = batch_of(inputs, 64, dtype=torch.float64)
    if "rank" not in more:
        torch.testing.assert_close(model(batch), plain_dcn_v2(Plain(model), batch))
    model.loss(batch).backward()
    assert all(p.grad.to_dense().any() for p in model.parameters())


def test_attention_l2_is_part_of_the_loss_of_afm():
    inputs = INPUTS["everything"]
    batch = batch_of(inputs, 6, dtype=torch.float64)
    plain, held = (built("afm", inputs, dropout=0.0, attention_l2=l2) for l2 in (0.0, 0.5))
    extra = held.loss(batch) - plain.loss(batch)
    torch.testing.assert_close(extra, 0.25 * held.attention.weight.square().sum())


def test_wide_and_deep_have_optimizers_of_their_own():
    model = create("wide-deep", inputs=INPUTS["everything"], **options("wide-deep"), wide_l1=0.5)
    groups = model.parameter_groups()
    assert sorted(groups) == ["deep", "wide"]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert {id(p) for p in groups["wide"]} == {id(p) for p in model.wide.parameters()}
    assert model.config.optimizer_options("wide")[:3] == ("ftrl", 0.1, 0.5)
    assert model.config.optimizer_options("deep")[:3] == ("adagrad", 0.05, 0.0)


def test_ftrl_on_the_mean_loss_is_the_papers_on_the_sum():
    """One step over a batch, by hand from algorithm 1 with beta = 1 and the sum of the examples' gradients."""
    inputs, rows, alpha, lambda1 = INPUTS["fields"], 32, 0.1, 0.8
    model = create("lr", inputs=inputs, batch_size=rows, lr=alpha, l1=lambda1 / rows).double()
    batch = batch_of(inputs, rows, dtype=torch.float64)
    (optimizer,) = Optimizers(model).each
    model.loss(batch).backward()
    sums = {key: rows * p.grad.to_dense() for key, p in model.named_parameters()}
    optimizer.step()
    for key, parameter in model.named_parameters():
        z, n = sums[key], sums[key].square()
        expected = torch.where(z.abs() <= lambda1, 0, -(z - z.sign() * lambda1) / ((1 + n.sqrt()) / alpha))
        torch.testing.assert_close(parameter.detach(), expected)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert weights.any()
    assert (weights == 0).any()


@pytest.mark.parametrize("name", ["deepfm", "wide-deep"])
def test_embedding_l2_adds_to_touched_rows_only(name):
    inputs = INPUTS["everything"]
    batch = batch_of(inputs, 3, dtype=torch.float64)
    grads = []
    for l2 in (0.0, 0.3):
        model = built(name, inputs, embedding_l2=l2, dropout=0.0)
        model.loss(batch).backward()
        grads.append({key: p.grad.to_dense() for key, p in model.named_parameters()})
    tables = {id(p) for p in model.embedding_tables()}
    assert tables
    for key, parameter in model.named_parameters():
        extra = grads[1][key] - grads[0][key]
        if id(parameter) not in tables:
            assert not extra.any(), key
            continue
        touched = grads[0][key].abs().sum(1) > 0
        torch.testing.assert_close(extra[touched], 0.3 * parameter.detach()[touched])
        assert not extra[~touched].any()


@pytest.mark.parametrize("name", [n for n in click_models() if "step_in_backward" in taken_options(config_class(n))])
def test_step_in_backward_equals_the_step_on_gradients(name):
    inputs = INPUTS["everything"]
    make = partial(optim.Adagrad, lr=0.1)
    first, second = (built(name, inputs, **without_dropout(name)) for _ in "ab")
    outer = make(list(first.parameters()))
    made = second.step_in_backward({"": make, "wide": make, "deep": make})
    rest = [p for some in second.parameter_groups().values() for p in some]
    assert len(rest) < len(list(second.parameters()))
    inner = make(rest) if rest else None
    for number in range(3):
        batch = batch_of(inputs, 16, seed=number, dtype=torch.float64)
        outer.zero_grad()
        first.loss(batch).backward()
        outer.step()
        second.zero_grad()
        second.loss(batch).backward()
        if inner is not None:
            inner.step()
    assert made
    for (key, mine), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


ADULT = Path(os.environ.get("DEEPREC_DATA", "")) / "adult"
ADULT_NUMERICS = ("age", "education-num", "gain", "loss", "hours")
ADULT_COLUMNS = (
    *("age", "work", "weight", "education", "education-num", "marital", "occupation", "relationship", "race", "sex"),
    *("gain", "loss", "hours", "country", "label"),
)


def adult_part(name):
    """ids by the train file's values, standardised numbers, labels."""
    text = gzip.decompress((ADULT / name).read_bytes()).decode().replace(", ", ",")
    text = text.replace("|1x3 Cross validator\n", "").strip()
    return pl.read_csv(io.StringIO(text), has_header=False, new_columns=list(ADULT_COLUMNS))


def adult():
    train, test = adult_part("adult.data.gz"), adult_part("adult.test.gz")
    names = [name for name in ADULT_COLUMNS if train.schema[name] == pl.String and name != "label"]
    vocabularies = [train[name].unique().sort() for name in names]
    fields = tuple(Field(name, len(words) + 1) for name, words in zip(names, vocabularies, strict=True))
    numbers = train.select(pl.col(ADULT_NUMERICS).cast(pl.Float64))
    mean, std = (torch.tensor(row, dtype=torch.float32) for row in (numbers.mean().row(0), numbers.std().row(0)))
    parts = []
    for frame in (train, test):
        codes = [
            frame[name].replace_strict(words, range(1, len(words) + 1), default=0, return_dtype=pl.Int32).to_torch()
            for name, words in zip(names, vocabularies, strict=True)
        ]
        values = (frame.select(ADULT_NUMERICS).cast(pl.Float32).to_torch() - mean) / std
        labels = frame["label"].str.contains(">").cast(pl.Float32).to_torch()
        parts.append(ClickBatch(torch.stack(codes, 1), values, {}, labels))
    return Inputs(fields, ADULT_NUMERICS), *parts


def rows_of(batch, rows):
    return ClickBatch(batch.ids[rows], batch.values[rows], {}, batch.labels[rows])


def trained_auc(name, inputs, train, test, epochs, **more):
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = create(name, inputs=inputs, generator=g, **more)
    optimizer = optim.Adam(model.parameters(), lr=0.005)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.ids), generator=g).split(512):
            optimizer.zero_grad()
            model.loss(rows_of(train, rows)).backward()
            optimizer.step()
    with torch.no_grad():
        return roc_auc_score(test.labels.numpy(), model.eval()(test).numpy())


@pytest.mark.skipif(not (ADULT / "adult.data.gz").is_file(), reason="DEEPREC_DATA has no adult/adult.data.gz")
def test_deepfm_beats_logistic_regression_on_the_adult_census():
    inputs, train, test = adult()
    linear = trained_auc("lr", inputs, train, test, 4)
    deep = trained_auc("deepfm", inputs, train, test, 4, hidden=(64, 64), dropout=0.2)
    assert linear > 0.895  # 0.9003 when this was written
    assert deep > linear + 0.005  # 0.9107
