"""Claims about Caser: its scores and losses are those of a plain network, users keep their vectors, histories count."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import deeprec
from deeprec.batches import Histories
from deeprec.batches.sliding import WindowBatch
from deeprec.contract import Queries, Schema
from deeprec.data import Interactions, from_frame
from deeprec.kernels.sample_negatives import sample_negatives
from deeprec.models.caser import Caser
from deeprec.train import fit

PARTS = [
    {"use_users": users, "horizontal_filters": h, "vertical_filters": v}
    for users, h, v in ((True, 0, 0), (False, 3, 0), (False, 0, 2), (False, 3, 2), (True, 3, 0), (True, 0, 2))
]


def chains(num_users: int = 200, num_items: int = 30, longest: int = 12) -> Interactions:
    """Each user steps from an item to the next number, from a place of their own; the last item tells the next one."""
    draw = np.random.default_rng(0)
    rows = [
        (f"u{user}", (start + step) % num_items, step)
        for user in range(num_users)
        for start in [int(draw.integers(num_items))]
        for step in range(int(draw.integers(4, longest)))
    ]
    return from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


def small(**options: Any) -> Caser:
    model = Caser(Schema(4, 9), factors=3, length=4, num_targets=2, **options)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0.0, 0.5, generator=generator)
    return model.double().eval()


def batch(num_negatives: int) -> WindowBatch:
    items = torch.tensor([[3, 1, 4, 1], [-1, -1, 5, 0], [-1, 2, 6, 5]])
    targets = torch.tensor([[5, 8], [2, -1], [3, 5]])
    negatives = torch.tensor([[0, 2, 7, 6], [1, 3, 8, 8], [1, 7, 4, 0]])[:, : 2 * num_negatives]
    return WindowBatch(torch.tensor([2, 0, 3]), items, targets, negatives if num_negatives else None, 5, 11, 6)


def plain_vectors(model: Caser, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """[z, P_u] by torch's own convolutions."""
    parts = []
    if model._has_filters:
        x = model.items.weight[items.clamp(min=0)].masked_fill((items < 0).unsqueeze(2), 0.0)
        layer, out = model.convolution, []
        for height in range(1, 5) if layer.horizontal_filters else ():
            filters = layer.horizontal[height * (height - 1) // 2 :][:height].permute(2, 0, 1).unsqueeze(1)
            out.append(F.relu(F.conv2d(x.unsqueeze(1), filters, layer.horizontal_bias[height - 1])).amax((2, 3)))
        if layer.vertical_filters:
            vertical = F.conv2d(x.unsqueeze(1), layer.vertical.unsqueeze(1).unsqueeze(3), layer.vertical_bias)
            out.append(vertical.squeeze(2).transpose(1, 2).flatten(1))
        parts.append(F.relu(F.linear(torch.cat(out, 1), model.hidden.weight, model.hidden.bias)))
    if model.config.use_users:
        parts.append(model.users.weight[users])
    return torch.cat(parts, 1)


def dense_gradients(model: Caser, loss: torch.Tensor) -> list[torch.Tensor]:
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if grad is None else grad.to_dense() for grad in grads]


@pytest.mark.parametrize("parts", [{"horizontal_filters": 3, "vertical_filters": 2}, *PARTS])
def test_cross_entropy_and_its_gradients_are_those_of_the_plain_network(parts: dict[str, Any]) -> None:
    model, given = small(num_negatives=2, **parts), batch(2)
    vectors = plain_vectors(model, given.users, given.items)
    logits = vectors @ model.output.weight.T + model.output_bias
    positive = negative = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        targets = [item for item in given.targets[row].tolist() if item >= 0]
        for target in targets:
            positive = positive - F.logsigmoid(logits[row, target]) / 5
        for item in given.negatives[row].tolist():
            negative = negative - F.logsigmoid(-logits[row, item]) * len(targets) / (4 * 5)
    expected, got = positive + negative, model.loss(given)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(dense_gradients(model, got), dense_gradients(model, expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_softmax_and_its_gradients_are_those_over_all_items() -> None:
    model, given = small(loss="softmax"), batch(0)
    logits = plain_vectors(model, given.users, given.items) @ model.output.weight.T + model.output_bias
    expected = F.cross_entropy(logits.repeat_interleave(2, 0), given.targets.flatten(), ignore_index=-1)
    got = model.loss(given)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(dense_gradients(model, got), dense_gradients(model, expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_sampled_softmax_draws_items_that_were_not_met_and_corrects_for_it() -> None:
    model, given = small(loss="sampled-softmax", num_negatives=3), batch(0)
    offsets, met = torch.tensor([0, 2, 2, 5, 6]), torch.tensor([0, 5, 1, 3, 4, 2], dtype=torch.int32)
    model._met = (offsets, met)
    logits = plain_vectors(model, given.users, given.items) @ model.output.weight.T + model.output_bias
    rows = given.users.repeat_interleave(2)
    drawn = sample_negatives(rows, offsets, met, 9, 3, seed=11, offset=12)
    losses = []
    for row, (user, target) in enumerate(zip(rows.tolist(), given.targets.flatten().tolist(), strict=True)):
        if target < 0:
            continue
        others = [item for item in drawn[row].tolist() if item != target]
        unmet = 9 - int(offsets[user + 1] - offsets[user])
        against = logits[row // 2, others] - np.log(3 / unmet)
        mine = logits[row // 2, target]
        losses.append(torch.cat([mine.view(1), against]).logsumexp(0) - mine)
    torch.testing.assert_close(model.loss(given), torch.stack(losses).mean())


def test_scores_are_those_of_the_plain_network() -> None:
    model = small(horizontal_filters=3, vertical_filters=2)
    histories = [[1], [2, 7, 1], [8, 0, 1, 2, 3, 4, 5], []]
    offsets = torch.tensor([0, *np.cumsum([len(each) for each in histories])])
    items = torch.tensor([item for each in histories for item in each])
    users = torch.tensor([3, 0, 2, 1])
    windows = torch.tensor([[-1] * (4 - len(each[-4:])) + each[-4:] for each in histories])
    expected = plain_vectors(model, users, windows)
    expected[3, :3] = 0  # nothing is said of a history without items
    (known,) = model.encode(Queries(users, (offsets, items)))
    (unknown,) = model.encode(Queries(None, (offsets, items)))
    torch.testing.assert_close(known, expected)
    torch.testing.assert_close(unknown[:, :3], expected[:, :3])
    torch.testing.assert_close(unknown[:, 3:], model.users.weight.mean(0).expand(4, -1))


@pytest.mark.parametrize("loss", ["bce", "softmax", "sampled-softmax"])
def test_the_last_item_tells_the_next_one(loss: str) -> None:
    options: dict[str, Any] = {} if loss == "softmax" else {"num_negatives": 5}
    sizes: dict[str, Any] = {"factors": 16, "length": 3, "num_targets": 1, "batch_size": 64}
    model = Caser(loss=loss, lr=0.01, epochs=12, dropout=0.1, **sizes, **options)
    figures = fit(model, chains(), protocol=deeprec.evaluate.protocol("next-item", cutoffs=(1,)), seed=1).card
    assert figures.metrics["hr@1"] > 0.95 > figures.baselines["item-knn"]["hr@1"]
    assert model.recommend_for_history([11, 12, 13], 1)["item_id"].to_list() == [14]
    assert model.recommend_for_history([24, 25, 26], 1)["item_id"].to_list() == [27]


def test_same_seed_same_weights_and_a_saved_model_recommends_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"factors": 4, "length": 3, "epochs": 2, "batch_size": 32}
    first, second = (Caser(**options) for _ in range(2))
    for model in (first, second):
        fit(model, chains(), protocol="caser", seed=4, baselines=False)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    first.save(tmp_path / "model")
    loaded = deeprec.load(tmp_path / "model")
    history = [5, 6, 7, 8, 9]
    assert loaded.recommend(["u3"], 5).equals(first.recommend(["u3"], 5))
    assert loaded.recommend_for_history(history, 5).equals(first.recommend_for_history(history, 5))
    assert copy.deepcopy(first).recommend(["u3"], 5).equals(first.recommend(["u3"], 5))


def test_an_interrupted_run_ends_where_the_whole_one_ends(tmp_path: Path) -> None:
    options: dict[str, Any] = {"factors": 4, "length": 3, "epochs": 3, "batch_size": 32}
    given: dict[str, Any] = {"protocol": "caser", "seed": 2, "baselines": False}
    whole, part, resumed = (Caser(**options) for _ in range(3))
    fit(whole, chains(), **given)

    def stop_after_an_epoch(progress: Any) -> None:
        if progress.metrics is not None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(part, chains(), out=tmp_path, on_progress=stop_after_an_epoch, **given)
    fit(resumed, chains(), out=tmp_path, resume=True, **given)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_kept_history_is_that_of_the_training_rows() -> None:
    data = chains()
    model = Caser(factors=4, length=3, epochs=1)
    fit(model, data, protocol="next-item", seed=0, baselines=False)
    train = deeprec.evaluate.protocol("next-item").split(data).train
    histories = Histories.of(train)
    user = 7
    last = histories.items[histories.offsets[user] : histories.offsets[user + 1]][-3:].tolist()
    kept = model.history_items[model.history_offsets[user] : model.history_offsets[user + 1]].tolist()
    assert kept == last
    state = model.encode(Queries(torch.tensor([user]), (torch.tensor([0, len(last)]), torch.tensor(last))))
    torch.testing.assert_close(state[0], model.user_rows(torch.tensor([user]))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 33}, r"length must lie in \[1, 32\], got 33"),
        ({"length": 0}, "length must be >= 1"),
        ({"num_targets": 0}, "num_targets must be >= 1"),
        ({"horizontal_filters": -1}, "horizontal_filters must be >= 0"),
        ({"loss": "bpr"}, "loss must be one of bce, sampled-softmax, softmax"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"activation": "gelu"}, "activation must be one of relu"),
        ({"loss": "softmax", "num_negatives": 4}, "num_negatives has no effect here"),
        ({"horizontal_filters": 0, "conv_activation": "tanh"}, "conv_activation has no effect here"),
        ({"horizontal_filters": 0, "vertical_filters": 0, "use_users": False}, "got none; take vertical_filters=4"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Caser(**options)


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="needs DEEPREC_DATA")
def test_on_movielens_a_few_epochs_rank_better_than_popularity() -> None:
    path = Path(os.environ["DEEPREC_DATA"]) / "sasrec" / "ml-1m.txt.gz"
    frame = pl.read_csv(path, separator=" ", has_header=False, new_columns=["user_id", "item_id"])
    frame = frame.with_row_index("timestamp").filter(pl.col("user_id") <= 400)
    model = Caser(factors=32, epochs=4, lr=0.003, dropout=0.2)
    card = fit(model, from_frame(frame), protocol="caser", seed=0).card
    assert card.metrics["map_all"] > 1.05 * card.baselines["popularity"]["map_all"]
