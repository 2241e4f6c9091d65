"""SASRec and BERT4Rec: losses against plain ones in float64, windows place by place, histories of every kind."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import deeprec
from deeprec.data import Interactions, from_frame
from deeprec.evaluate import evaluate, protocol
from deeprec.kernels.sample_negatives import alias_table, sample_negatives
from deeprec.models import Popularity, Schema, create
from deeprec.models._item_losses import Targets, binary_loss, full_loss, gbce_beta, sampled_loss, shared_loss

SMALL = {"factors": 8, "length": 6, "batch_size": 7, "epochs": 2, "lr": 0.01}
MODELS = ("sasrec", "bert4rec")


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Users who go round a circle of 20 items, for 1 to 14 steps."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        start, count = rng.integers(20), 1 if user == 0 else rng.integers(2, 15)
        rows += [(user, int(start + step) % 20, step) for step in range(count)]
    rows += [(40, item, item) for item in range(0, 20, 2)]
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))
    return from_frame(pl.DataFrame(columns), timestamp="timestamp")


@pytest.fixture(scope="module", params=MODELS)
def fitted(request: Any, data: Interactions) -> Any:
    return create(request.param, **SMALL).fit(data, protocol="next-item", seed=1, baselines=False)


# -- losses ------------------------------------------------------------------------------------------------------------


def states_and_targets(count: int = 9, num_items: int = 12) -> tuple[Tensor, Tensor, Targets]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(count, 4, generator=generator).double().requires_grad_()
    items = torch.randn(num_items, 4, generator=generator).double().requires_grad_()
    targets = torch.randint(num_items, (count,), generator=generator)
    users = torch.arange(count) % 3
    known = [sorted({int(t) for t, u in zip(targets, users, strict=True) if u == user} | {user}) for user in range(3)]
    offsets = torch.tensor([0, *np.cumsum([len(each) for each in known])])
    lists = (offsets, torch.tensor([item for each in known for item in each], dtype=torch.int32))
    return states, items, Targets(targets, users, lists, 17)


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a.to_dense() if a.is_sparse else a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("calibration", [None, 0.0, 0.75, 1.0])
def test_binary_losses_are_those_of_the_papers(calibration: float | None) -> None:
    states, items, targets = states_and_targets()
    beta = 1.0 if calibration is None else gbce_beta(calibration, 5, len(items))
    ours = binary_loss(states, items, targets, 5, beta=beta)
    drawn = sample_negatives(targets.users.int(), *targets.known, len(items), 5, seed=17).long()
    total = torch.zeros((), dtype=torch.float64)
    for state, target, negatives in zip(states, targets.items, drawn, strict=True):
        total = total - (torch.sigmoid(items[target] @ state) ** beta).log()
        total = total - (1 - torch.sigmoid(items[negatives] @ state)).log().sum()
    same(ours, total / (6 * len(states)), states, items)


def test_power_of_gbce_is_one_without_calibration_and_the_sampling_rate_with_all_of_it() -> None:
    assert gbce_beta(0.0, 256, 3416) == pytest.approx(1.0)
    assert gbce_beta(1.0, 256, 3416) == pytest.approx(256 / 3415)
    assert gbce_beta(0.75, 256, 3416) == pytest.approx(0.75 * (256 / 3415 - 1) + 1)


@pytest.mark.parametrize("score", [-90.0, 90.0])
def test_gbce_is_finite_at_scores_that_no_sigmoid_holds(score: float) -> None:
    """In float32 the sigmoid of 90 is 1, and its power's logit infinite."""
    states = torch.tensor([[score]], requires_grad=True)
    items = torch.tensor([[1.0], [0.5]])
    nothing_known = torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32)
    loss = binary_loss(states, items, Targets(torch.tensor([0]), torch.tensor([0]), nothing_known, 1), 1, beta=0.3)
    loss.backward()
    wide = torch.tensor(score, dtype=torch.float64)
    expected = (0.3 * torch.nn.functional.softplus(-wide) + torch.nn.functional.softplus(0.5 * wide)) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert states.grad is not None
    assert states.grad.isfinite().all()


@pytest.mark.parametrize("mask_known", [False, True])
def test_full_loss_leaves_out_what_is_known(mask_known: bool) -> None:
    states, items, targets = states_and_targets()
    logits = states @ items.T
    if mask_known:
        for row, (user, target) in enumerate(zip(targets.users.tolist(), targets.items.tolist(), strict=True)):
            known = targets.known[1][targets.known[0][user] : targets.known[0][user + 1]].tolist()
            out = torch.tensor([item in known and item != target for item in range(len(items))])
            logits = torch.cat([logits[:row], logits[row : row + 1].masked_fill(out, -torch.inf), logits[row + 1 :]])
    theirs = torch.nn.functional.cross_entropy(logits, targets.items)
    same(full_loss(states, items, targets, mask_known), theirs, states, items)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("has_log_q", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
def test_sampled_losses_stand_against_their_draws(is_shared: bool, has_log_q: bool, similarity: str) -> None:
    states, items, targets = states_and_targets()
    weights = torch.arange(1.0, len(items) + 1).double()
    popularity, share = alias_table(weights), weights / weights.sum()
    options: dict[str, Any] = {"similarity": similarity, "gamma": 2.0, "mask_known": False, "popularity": popularity}
    nobody = torch.tensor([0, 0]), torch.zeros(0, dtype=torch.int32)
    if is_shared:
        log_q = (5 * share).log() if has_log_q else None
        ours = shared_loss(states, items, targets, 5, log_q=log_q, **options)
        drawn = sample_negatives(torch.zeros(1).long(), *nobody, len(items), 5, seed=17, popularity=popularity)
        drawn = drawn.expand(len(states), 5)
    else:
        ours = sampled_loss(states, items, targets, 5, log_q=has_log_q, sparse=False, **options)
        rows = torch.zeros(len(states)).long()
        drawn = sample_negatives(rows, *nobody, len(items), 5, seed=17, popularity=popularity)
    losses = []
    for state, target, negatives in zip(states, targets.items.tolist(), drawn.tolist(), strict=True):
        a, b = (
            (state / state.norm(), items / items.norm(dim=1, keepdim=True))
            if similarity == "cosine"
            else (state, items)
        )
        z = 2.0 * (b @ a)
        others = [z[j] - (math.log(5 * share[j]) if has_log_q else 0.0) for j in negatives if j != target]
        losses.append(torch.stack([z[target], *others]).logsumexp(0) - z[target])
    same(ours, torch.stack(losses).mean(), states, items)


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all", "last"])
def test_loss_of_a_step_is_that_of_its_places_one_by_one(data: Interactions, targets: str) -> None:
    model = create("sasrec", **SMALL, targets=targets, dropout=0.0).fit(data, protocol="full", baselines=False)
    batches = model.batches(data, 3)
    seen = 0
    for batch in batches.epoch(0):
        losses = []
        for row in range(len(batch.batch.users)):
            user = int(batch.batch.users[row])
            history = [int(item) for item in data.items[data.users == user]]  # rows come in order
            first = max(0, len(history) - 1 - 6)
            places = range(first + 1, len(history)) if targets == "all" else [len(history) - 1]
            for place in places:
                # At serving a place is the last, and in training it is so far from the end: positions differ.
                window = torch.tensor([history[first : len(history) - 1]])
                states = model.encoder(model.items(window), torch.tensor([window.shape[1]]))[0]
                logits = model.items.weight @ states[place - 1 - first]
                losses.append(logits.logsumexp(0) - logits[history[place]])
        torch.testing.assert_close(model.loss(batch), torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)
        seen += len(losses)
    counts = np.bincount(data.users) - 1
    assert seen == (np.minimum(counts, 6).sum() if targets == "all" else (counts > 0).sum())


def test_masked_loss_is_that_of_its_places(data: Interactions) -> None:
    """What is masked is known by what the loss asks for: each masked item in its place."""
    model = create("bert4rec", **SMALL, dropout=0.0, last_share=1.0).fit(data, protocol="full", baselines=False)
    for batch in model.batches(data, 3).epoch(0):
        losses = []
        for user in batch.batch.users.tolist():
            history = [int(item) for item in data.items[data.users == user]][-6:]
            state = model.encode_last(torch.tensor([history[:-1]]), torch.ones(1, len(history) - 1, dtype=torch.bool))[
                0
            ]
            logits = model.items.weight @ state + model.item_bias
            losses.append(logits.logsumexp(0) - logits[history[-1]])
        torch.testing.assert_close(model.loss(batch), torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)


def test_as_many_places_are_masked_as_the_share_says(data: Interactions, monkeypatch: Any) -> None:
    model = create("bert4rec", **SMALL, mask_share=0.3, last_share=0.0).fit(data, protocol="full", baselines=False)
    asked: list[tuple[int, int]] = []
    loss = model._item_loss
    monkeypatch.setattr(model, "_item_loss", lambda *arguments: loss(*arguments))
    states_of = model._states

    def noted(items: Tensor, lengths: Tensor, is_masked: Tensor, vectors: Tensor | None) -> Tensor:
        asked.append((int(is_masked.sum()), int(lengths.sum())))
        return states_of(items, lengths, is_masked, vectors)

    monkeypatch.setattr(model, "_states", noted)
    for batch in model.batches(data, 3).epoch(0):
        model.loss(batch)
    assert [masked for masked, _ in asked] == [max(1, round(0.3 * count)) for _, count in asked]


# -- histories ---------------------------------------------------------------------------------------------------------


def test_the_last_items_of_a_history_decide(fitted: Any) -> None:
    # The mask of BERT4Rec takes one of the six places.
    length = 6 if fitted.name == "sasrec" else 5
    long = [0, 7, 3, 9, 2, 5, 6, 8, 7, 11, 13]
    swapped = [*long[:-2], long[-1], long[-2]]

    def vector(history: list[int]) -> Tensor:
        states: Tensor = fitted.history_rows(torch.tensor([0, len(history)]), torch.tensor(history))[0]
        return states

    for other in (long[-length:], [1, *long[-length:]]):
        torch.testing.assert_close(vector(other), vector(long), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(vector(swapped), vector(long), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(vector(long[1 - length :]), vector(long), rtol=1e-4, atol=1e-4)


def test_a_new_event_changes_what_is_recommended(fitted: Any) -> None:
    known = list(fitted.item_ids.values)
    before = fitted.recommend_for_history(known[:4], k=15)
    after = fitted.recommend_for_history([*known[:4], known[9]], k=15)
    assert known[9] in before["item_id"].to_list()
    assert known[9] not in after["item_id"].to_list()
    assert set(before["score"].to_list()).isdisjoint(after["score"].to_list())


def test_known_users_are_asked_with_their_training_items(fitted: Any, data: Interactions) -> None:
    split = protocol("next-item").split(data)
    for user in (0, 3, 40):
        own = split.train.items[split.train.users == user].tolist()
        offsets, items = torch.tensor([0, len(own)]), torch.tensor(own, dtype=torch.int64)
        of_history = fitted.history_rows(offsets, items)[0]
        torch.testing.assert_close(fitted.user_rows(torch.tensor([user]))[0], of_history, rtol=1e-5, atol=1e-6)


def test_histories_of_any_length_are_served_together(fitted: Any) -> None:
    rng = np.random.default_rng(1)
    counts = [0, 1, 10_000, 3, 0, 6, 2]
    items = torch.from_numpy(rng.integers(0, 20, sum(counts)))
    offsets = torch.tensor([0, *np.cumsum(counts)])
    together = fitted.history_rows(offsets, items)[0]
    assert together.isfinite().all()
    assert not together[[0, 4]].any()
    for row in range(len(counts)):
        part = items[offsets[row] : offsets[row + 1]]
        alone = fitted.history_rows(torch.tensor([0, len(part)]), part)[0]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_weights_and_a_folder_the_same_scores(
    name: str, data: Interactions, tmp_path: Path
) -> None:
    first, again, other = (
        create(name, **SMALL).fit(data, protocol="next-item", seed=seed, baselines=False) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.items.weight, other.items.weight)
    first.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    users = torch.arange(41)
    assert torch.equal(loaded.score_items(users), first.score_items(users))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sasrec", {"loss": "hinge"}, "loss must be one of full, sampled, bce, gbce"),
        ("bert4rec", {"loss": "bce"}, "loss must be one of full, sampled"),
        ("sasrec", {"heads": 3}, "multiple of heads"),
        ("sasrec", {"loss": "gbce", "calibration": 1.5}, r"calibration must lie in \[0, 1\]"),
        ("sasrec", {"num_negatives": 5}, "num_negatives has no effect here"),
        ("sasrec", {"length": 0}, "length must be >= 1"),
        ("bert4rec", {"length": 1}, "length must be >= 2"),
        ("bert4rec", {"mask_share": 0.0}, r"mask_share must lie in \(0, 1\)"),
        ("sasrec", {"targets": "first"}, "targets must be one of all, last"),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **options)


def test_a_user_who_met_everything_is_named(data: Interactions) -> None:
    rows = pl.DataFrame(
        {"user_id": ["a"] * 4 + ["b"] * 3, "item_id": [1, 2, 3, 4, 1, 2, 3], "t": [1, 2, 3, 4, 1, 2, 3]}
    )
    whole = from_frame(rows, timestamp="t")
    with pytest.raises(ValueError, match="leave an item to sample, got user 'a' who met all 4"):
        create("sasrec", schema=Schema(2, 4), **SMALL, loss="bce", num_negatives=1).batches(whole, 0)


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="DEEPREC_DATA names no folder of data sets")
@pytest.mark.parametrize(
    "options",
    # Of BCE and its like the first epochs rank by popularity, with many negatives a hundred of them on so little data.
    [{"epochs": 12}, {"loss": "gbce", "num_negatives": 1, "epochs": 25, "patience": 25}],
    ids=["full", "gbce"],
)
def test_sasrec_beats_popularity_on_movielens(options: dict[str, Any]) -> None:
    """The first 500 users of the SASRec authors' file."""
    with gzip.open(Path(os.environ["DEEPREC_DATA"]) / "sasrec" / "ml-1m.txt.gz", "rt") as file:
        pairs = [line.split() for line in file]
    rows = [(int(user), int(item), place) for place, (user, item) in enumerate(pairs) if int(user) <= 500]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = from_frame(frame, timestamp="timestamp")
    rule = protocol("next-item")
    model = create("sasrec", factors=32, length=50, batch_size=32, lr=0.003, **options)
    model.fit(data, protocol=rule, seed=1, baselines=False)
    popular = Popularity().fit(data, protocol=rule, baselines=False)
    split = rule.split(data)
    ours, theirs = (evaluate(each, split, rule)["ndcg@10"] for each in (model, popular))
    assert ours > 1.5 * theirs
