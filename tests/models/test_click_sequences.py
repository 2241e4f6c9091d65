"""Click models that weigh a history by the candidate: by hand, as trained and saved models, and on real groceries."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import deeprec
from deeprec.data import Categorical, FeatureSchema, Sequence, load_clicks
from deeprec.data.columns.inputs import Field, Inputs, SequenceField
from deeprec.evaluate import protocol
from deeprec.models import ClickBatch, click_models, config_class, create
from deeprec.models._click_sequences import SharedTables
from deeprec.nn.target_attention import ActivationUnit
from deeprec.train import optim

D = 4
FIELDS = (Field("item", 11), Field("kind", 5), Field("hour", 3))
SEQUENCES = (SequenceField("seen", 11, 3, "item"), SequenceField("kinds", 5, 3, "kind", "seen"))
INPUTS = Inputs(FIELDS, ("price",), (), SEQUENCES)
ATTENDING = [name for name in click_models() if hasattr(config_class(name), "attention")]
KINDS = {
    "softmax": {"attention": "din", "attention_hidden": (5, 3)},
    "raw": {"attention": "din", "attention_hidden": (5, 3), "attention_weights": "raw"},
    "bst": {"attention": "bst", "attention_blocks": 2},
}
EVERY = [pytest.param(name, kind, id=f"{name}-{kind}") for name in ATTENDING for kind in KINDS]


def batch_of(
    size: int, *, seed: int = 0, lengths: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> ClickBatch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(field.size, (size,), generator=g) for field in FIELDS], 1).int()
    lengths = torch.randint(4, (size,), generator=g) if lengths is None else lengths
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    bags = {s.name: (torch.randint(s.size, (int(offsets[-1]),), generator=g).int(), offsets, None) for s in SEQUENCES}
    values = torch.randn(size, 1, generator=g, dtype=dtype)
    return ClickBatch(ids, values, bags, torch.randint(2, (size,), generator=g).to(dtype))


def built(name: str, kind: str, **more: object):
    config = config_class(name)
    extra = {key: 0.0 for key in ("dropout", "interaction_dropout") if hasattr(config, key)}
    options = {"factors": D, "hidden": (6, 5), **extra, **KINDS[kind], **more}
    model = create(name, inputs=INPUTS, **options).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=g)
    return model


def part_of(batch: ClickBatch, row: int) -> ClickBatch:
    bags = {}
    for name, (ids, offsets, _) in batch.bags.items():
        mine = slice(int(offsets[row]), int(offsets[row + 1]))
        bags[name] = (ids[mine], torch.tensor([0, mine.stop - mine.start]), None)
    return ClickBatch(batch.ids[row : row + 1], batch.values[row : row + 1], bags)


def test_the_candidate_and_its_history_are_rows_of_one_table() -> None:
    """The query is [item, kind], a key [item seen, its kind]; the result comes apart into a vector of each."""
    tables = SharedTables(
        {0: FIELDS[0], 1: FIELDS[1]}, SEQUENCES, D, 0.5, None, attend=lambda _, width: ActivationUnit(width, (3,))
    ).double()
    batch = batch_of(9)
    (items, kinds), unit = tables.weights(), tables.attention[0]
    assert [tuple(weight.shape) for weight in (items, kinds)] == [(11, D), (5, D)]
    twins = [weight.detach().clone().requires_grad_() for weight in (items, kinds)]
    query = torch.cat([twin[batch.ids[:, n].long()] for n, twin in enumerate(twins)], 1)
    keys = torch.cat([twin[batch.bags[s.name][0].long()] for twin, s in zip(twins, SEQUENCES, strict=True)], 1)
    weighed = unit(query, keys, batch.bags["seen"][1])
    expected = torch.stack([*query.split(D, 1), *weighed.split(D, 1)], 1)
    got = tables(batch)
    torch.testing.assert_close(got, expected)
    towards = torch.randn(got.shape, dtype=torch.float64)
    (got * towards).sum().backward()
    (expected * towards).sum().backward()
    for weight, twin in zip((items, kinds), twins, strict=True):
        assert weight.grad.is_sparse
        torch.testing.assert_close(weight.grad.to_dense(), twin.grad)
    assert tables.readers()[0][1] == ("item", "seen")


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_gradients_are_the_slopes_of_the_loss(name: str, kind: str) -> None:
    model, batch = built(name, kind).eval(), batch_of(16)
    model.loss(batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
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


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_rows_stand_alone_and_states_go_over(name: str, kind: str) -> None:
    model, batch = built(name, kind).eval(), batch_of(6)
    whole = model(batch)
    other = built(name, kind, embedding_l2=0.1).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch), whole)
    assert torch.equal(copy.deepcopy(model)(batch), whole)
    for row in range(6):
        torch.testing.assert_close(model(part_of(batch, row))[0], whole[row], rtol=1e-9, atol=1e-9)
    for size in (0, 1):
        logits = model.train()(batch_of(size))
        logits.sum().backward()
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_the_history_matters_and_its_order_to_the_transformer_alone(name: str, kind: str) -> None:
    model = built(name, kind, activation="tanh").eval()  # a unit that is off sees nothing
    batch = batch_of(5, lengths=torch.full((5,), 3))
    with torch.no_grad():
        logits = model(batch)
        turned = {key: (bag[0].view(5, 3).flip(1).flatten(), *bag[1:]) for key, bag in batch.bags.items()}
        other = {key: ((ids + 1) % 5, offsets, None) for key, (ids, offsets, _) in batch.bags.items()}
        again = model(ClickBatch(batch.ids, batch.values, turned))
        assert (torch.isclose(again, logits).all()) == (kind != "bst")
        assert not torch.isclose(model(ClickBatch(batch.ids, batch.values, other)), logits).any()


@pytest.mark.parametrize("kind", KINDS)
def test_step_in_backward_equals_the_step_on_gradients(kind: str) -> None:
    make = partial(optim.Adagrad, lr=0.1)
    first, second = (built("din", kind) for _ in "ab")
    outer = make(list(first.parameters()))
    second.step_in_backward({"": make})
    inner = make([p for group in second.parameter_groups().values() for p in group])
    for number in range(3):
        for model, optimizer in ((first, outer), (second, inner)):
            optimizer.zero_grad()
            model.loss(batch_of(16, seed=number)).backward()
            optimizer.step()
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-12)


def test_parallel_sequences_of_a_batch_must_be_as_long() -> None:
    batch = batch_of(4, lengths=torch.tensor([1, 2, 0, 3]))
    ids, offsets, _ = batch.bags["kinds"]
    batch.bags["kinds"] = (ids[:-1], offsets, None)
    with pytest.raises(ValueError, match=r"din: 'kinds' must have as many ids as 'seen'.*6, got 5"):
        built("din", "softmax")(batch)
    del batch.bags["kinds"]
    with pytest.raises(ValueError, match=r"missing are \['kinds'\]"):
        built("din", "softmax")(batch)


def test_the_transformer_asks_for_a_length_and_heads_that_fit() -> None:
    endless = Inputs(FIELDS, (), (), (SequenceField("seen", 11, None, "item"),))
    with pytest.raises(ValueError, match="attention=bst needs a length of 'seen'"):
        create("bst", inputs=endless)
    with pytest.raises(ValueError, match=r"attention_heads must divide the width of 'seen' .*, 8, got 3"):
        create("bst", inputs=INPUTS, factors=4, attention_heads=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "dein"}, "attention must be one of none, din, bst"),
        ({"attention_weights": "rw"}, "attention_weights must be one of softmax, raw"),
        ({"attention_hidden": ()}, "attention_hidden must be one or more widths"),
        ({"attention": "bst", "attention_dropout": 1.0}, "attention_dropout must lie in"),
        ({"attention_heads": 4}, "attention_heads has no effect.*attention=bst"),
        ({"mini_batch_l2": -1.0}, "mini_batch_l2"),
        ({"mini_batch_l2": 0.1, "step_in_backward": True}, "mini_batch_l2 must be 0 with step_in_backward"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("din", **options)


def test_attention_without_a_history_says_so(caplog: pytest.LogCaptureFixture) -> None:
    create("deepfm", inputs=Inputs(FIELDS), attention="din")
    assert "deepfm: attention=din has nothing to weigh" in caplog.text


# -- trained, saved, asked ---------------------------------------------------------------------------------------------

SCHEMA = FeatureSchema(
    (
        Categorical("item"),
        Categorical("kind"),
        Sequence("seen", vocabulary="item", length=20),
        Sequence("kinds", vocabulary="kind", parallel_to="seen", length=20),
    ),
    group="user",
)


def log(rows: int = 1500, *, seed: int = 0) -> pl.DataFrame:
    """Who met mostly the candidate's kind clicks: what the kind of the candidate or the history alone cannot say."""
    rng = np.random.default_rng(seed)
    items = rng.integers(40, size=rows)
    lengths = rng.integers(0, 6, size=rows)
    seen = [rng.integers(40, size=n) for n in lengths]
    share = np.array(
        [np.mean(own % 4 == item % 4) if len(own) else 0.25 for own, item in zip(seen, items, strict=True)]
    )
    clicks = rng.random(rows) < 1 / (1 + np.exp(-12 * (share - 0.35)))
    return pl.DataFrame(
        {
            "user": rng.integers(30, size=rows),
            "item": [f"i{item}" for item in items],
            "kind": [f"k{item % 4}" for item in items],
            "seen": [[f"i{item}" for item in own] for own in seen],
            "kinds": [[f"k{item % 4}" for item in own] for own in seen],
            "label": clicks.astype(np.int8),
        }
    )


def fitted(name: str, frame: pl.DataFrame, **options: object):
    small = {"hidden": (16,), "factors": 8, "epochs": 6, "batch_size": 128, "lr": 0.01, "patience": 0, "dropout": 0.0}
    model = create(name, **{**small, **options})
    return model.fit(frame, SCHEMA, seed=1, device="cpu", baselines=False)


@pytest.mark.parametrize(
    ("name", "options"), [("din", {"mini_batch_l2": 0.01}), ("bst", {}), ("deepfm", {"attention": "din"})]
)
def test_it_is_trained_saved_and_asked(name: str, options: dict[str, object], tmp_path: Path) -> None:
    frame = log()
    model = fitted(name, frame, **options)
    weights = model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in fitted(name, frame, **options).state_dict().items())
    figures = model.evaluate(frame, SCHEMA)
    assert 0 < figures["gauc"] < 1
    new = pl.DataFrame(
        {
            "item": ["i1", "i1", "new", "i3", "i2"],
            "kind": ["k1", "k1", "new", "k3", "k2"],
            "seen": [[], ["i5"], ["i1", "never"], ["i1"] * 10_000, ["i2", "i2", "i2"]],
            "kinds": [[], ["k1"], ["k1", "never"], ["k1"] * 10_000, ["k2", "k2", "k2"]],
        }
    )
    model.save(tmp_path / "model")
    predicted = deeprec.load(tmp_path / "model").predict(new)
    assert np.array_equal(predicted, model.predict(new))
    assert np.isfinite(predicted).all()
    last = model.predict(new.with_columns(pl.col("seen", "kinds").list.tail(20)))
    assert np.array_equal(predicted, last), "the last 20 are looked at"
    new.write_parquet(tmp_path / "new.parquet")
    new.with_columns(pl.col("seen", "kinds").list.join("|")).write_csv(tmp_path / "new.csv")
    for file in ("new.parquet", "new.csv"):
        assert np.array_equal(model.predict(tmp_path / file), predicted), file


def test_din_sees_what_a_network_without_the_candidate_cannot() -> None:
    frame = log(6000)
    din = fitted("din", frame, epochs=8).evaluate(frame, SCHEMA)["auc"]
    without = FeatureSchema(SCHEMA.features[:2])
    base = create("dnn", hidden=(16,), factors=8, epochs=8, batch_size=128, lr=0.01, dropout=0.0, activation="dice")
    base = base.fit(frame, without, seed=1, device="cpu", baselines=False).evaluate(frame, without)["auc"]
    assert base < 0.6
    assert din > 0.75


def test_a_converted_log_gives_the_same_batches(tmp_path: Path) -> None:
    frame = log(300)
    memory, files = load_clicks(frame, SCHEMA), load_clicks(frame, SCHEMA, directory=tmp_path / "log")
    for one, two in zip(*(each.parts["train"].batches(64, seed=3) for each in (memory, files)), strict=True):
        assert np.array_equal(one.ids, two.ids)
        for name in ("seen", "kinds"):
            assert all(np.array_equal(a, b) for a, b in zip(one.bags[name][:2], two.bags[name][:2], strict=True))


def test_mini_batch_l2_holds_the_touched_rows_by_their_count() -> None:
    """lambda w / n on the rows of the batch, n counted over candidates and histories of the training rows."""
    clicks = load_clicks(log(200), SCHEMA)
    grads = []
    for strength in (0.0, 0.3):
        g = torch.Generator().manual_seed(5)
        model = create("din", inputs=clicks.inputs, mini_batch_l2=strength, batch_size=16, generator=g)
        batch = next(iter(model.batches(clicks.parts["train"], 0).epoch(0)))
        model.loss(batch).backward()
        grads.append([weight.grad.to_dense() for weight, _ in model.embeddings.readers()])
    part = clicks.parts["train"]
    for number, (weight, names) in enumerate(model.embeddings.readers()):
        column = [field.name for field in clicks.inputs.fields].index(names[0])
        every = np.concatenate([part.ids[:, column], part.bags[names[1]].ids])
        touched = np.concatenate([batch.ids[:, column].numpy(), batch.bags[names[1]][0].numpy()])
        expected = torch.zeros_like(weight)
        for row in np.unique(touched):
            expected[row] = 0.3 * weight.detach()[row] / int((every == row).sum())
        torch.testing.assert_close(grads[1][number] - grads[0][number], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(
    not (Path(os.environ.get("DEEPREC_DATA", "")) / "amazon-grocery-time").is_dir(),
    reason="DEEPREC_DATA has no amazon-grocery-time",
)
def test_din_ranks_groceries_better_than_the_same_network_without_history() -> None:
    clicks = load_clicks("amazon-grocery-clicks")
    rule = protocol("click", metrics=("auc", "log_loss"))
    options = {"epochs": 1, "batch_size": 1024, "lr": 0.003, "batch_norm": False, "patience": 0, "factors": 16}
    din = create("din", **options).fit(clicks, protocol=rule, seed=1, device="cpu", baselines=False)
    inputs = clicks.inputs
    assert inputs.sequences
    auc = din.evaluate(clicks)["auc"]
    schema = FeatureSchema(clicks.schema.features[:2], group="user_id")
    plain = load_clicks("amazon-grocery-clicks", schema)
    base = create("dnn", **options, activation="dice", hidden=(80, 40), dropout=0.0)
    without = base.fit(plain, protocol=rule, seed=1, device="cpu", baselines=False).evaluate(plain)["auc"]
    assert auc > without + 0.02
