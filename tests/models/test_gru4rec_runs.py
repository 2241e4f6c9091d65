"""Claims about runs of GRU4Rec: they are repeatable, go on where they stopped, and carry states through histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import deeprec
from deeprec.batches import SequenceBatches
from deeprec.contract import Queries
from deeprec.data import Interactions, from_frame
from deeprec.models import GRU4Rec, Schema
from deeprec.train import Callback, fit, loop
from deeprec.train.callbacks import CallbackError, Step

NUM_ITEMS = 23


def model_of(num_items: int = NUM_ITEMS, seed: int = 0, **options: Any) -> GRU4Rec:
    given = {"factors": 5, "batch_size": 3, "num_negatives": 6, **options}
    if given.get("negatives", "mixed") != "mixed":
        given.pop("num_negatives")
    return GRU4Rec(Schema(40, num_items), generator=torch.Generator().manual_seed(seed), **given)


def sessions_of(sessions: list[list[int]]) -> Interactions:
    rows = [(s, item, 100 * s + t) for s, items in enumerate(sessions) for t, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame, timestamp="timestamp", duplicates="keep")


def chains(num_sessions: int = 80, seed: int = 0) -> Interactions:
    """Item i is followed by i + 1, one time in ten by any."""
    draw = np.random.default_rng(seed)
    sessions = []
    for _ in range(num_sessions):
        items = [int(draw.integers(0, 20))]
        for _ in range(int(draw.integers(2, 9))):
            items.append(int(draw.integers(0, 20)) if draw.random() < 0.1 else (items[-1] + 1) % 20)
        sessions.append(items)
    return sessions_of(sessions)


# -- runs ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "factors": 8, "batch_size": 4, "num_negatives": 5, "epochs": 2, "dropout_embed": 0.1, "dropout_hidden": 0.2,
    "momentum": 0.2, "lr": 0.1,
}  # fmt: skip


class _StopAt(Callback):
    def __init__(self, epoch: int, step: int) -> None:
        self.at = epoch, step

    def on_step(self, step: Step) -> None:
        if (step.epoch, step.step) == self.at:
            raise RuntimeError("stopped")


def same_weights(one: Any, other: Any) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("order", ["time", "shuffled"])
def test_a_run_stopped_within_an_epoch_ends_where_the_whole_one_does(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chains()
    options = {**OPTIONS, "session_order": order}
    whole = fit(GRU4Rec(**options), data, seed=4, baselines=False)
    again = fit(GRU4Rec(**options), data, seed=4, baselines=False)
    assert same_weights(whole.model, again.model)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(CallbackError, match="stopped"):
        fit(GRU4Rec(**options), data, seed=4, baselines=False, out=tmp_path, callbacks=[_StopAt(2, 9)])
    resumed = fit(GRU4Rec(**options), data, seed=4, baselines=False, out=tmp_path, resume=True)
    assert same_weights(whole.model, resumed.model)
    assert whole.card.metrics == resumed.card.metrics


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "bpr-max", "input": "separate", "embedding_dim": 6},
        {"loss": "top1", "input": "one-hot", "negatives": "in-batch"},
        {"batching": "windows", "negatives": "full", "optimizer": "adam", "lr": 0.02, "epochs": 12},
    ],
)
def test_learns_what_follows_what_and_survives_its_folder(options: dict[str, Any], tmp_path: Path) -> None:
    data = chains(300)
    given = {"factors": 16, "batch_size": 8, "num_negatives": 10, "epochs": 6, "lr": 0.1, **options}
    if given.get("negatives", "mixed") != "mixed":
        given.pop("num_negatives")
    model = GRU4Rec(**given).fit(data, seed=1, protocol="next-item", baselines=False)
    assert model.evaluate()["hr@10"] > 0.8
    first = model.recommend_for_history([3, 4, 5], k=1)["item_id"].to_list()
    assert first == [6]
    loaded = deeprec.load(model.save(tmp_path / "model"))
    assert same_weights(model, loaded)
    assert loaded.recommend([7], k=5).equals(model.recommend([7], k=5))
    assert loaded.recommend_for_history([3, 4, 4, 9], k=5).equals(model.recommend_for_history([3, 4, 4, 9], k=5))


# -- windows and histories -------------------------------------------------------------------------------


def test_loss_of_windows_is_that_of_every_prefix() -> None:
    """Whatever stands beside a window in its batch, its places know of what came before them, and of nothing else."""
    data = sessions_of([[1, 2, 3, 4, 1, 2], [5, 6, 7], [8, 9]])
    model = model_of(data.num_items, batching="windows", negatives="full", num_layers=2, length=50).eval()
    (batch,) = SequenceBatches(data, batch_size=3, length=50, seed=0).epoch(0)
    losses = []
    for user in range(data.num_users):
        places = np.flatnonzero(data.users == user)
        items = torch.from_numpy(data.items[places[np.argsort(data.order[places])]]).long()  # type: ignore[index]
        for end in range(1, len(items)):
            state = model.encode(Queries(history=(torch.tensor([0, end]), items[:end])))[0][0].detach().double()
            scores = model.items.weight.detach().double() @ state
            losses.append(float(scores.logsumexp(0) - scores[items[end]]))
    assert float(model.loss(batch).detach()) == pytest.approx(float(np.mean(losses)), rel=1e-5)


@pytest.mark.parametrize("given", ["constrained", "separate", "one-hot"])
def test_states_of_histories_are_steps_from_the_first_event(given: str) -> None:
    """Lengths from none to thousands, read together; one after the other they are the same."""
    draw = torch.Generator().manual_seed(0)
    model = model_of(input=given, num_layers=2).eval()
    lengths = torch.tensor([3, 0, 1, 4000, 3, 17, 0, 2])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(NUM_ITEMS, (int(offsets[-1]),), generator=draw)
    states = model.encode(Queries(history=(offsets, items)))
    for row in range(len(lengths)):
        state: tuple[Tensor, ...] = (torch.zeros(1, 5), torch.zeros(1, 5))
        for item in items[offsets[row] : offsets[row + 1]].unsqueeze(1):
            state = model.advance(state, item)
        for one, other in zip(state, states, strict=True):
            torch.testing.assert_close(one[0], other[row], atol=1e-6, rtol=1e-5)


def test_histories_of_the_training_rows_are_whole_whatever_the_length_of_windows() -> None:
    data = sessions_of([[i % 20 for i in range(60)], [1, 2]])
    model = model_of(data.num_items, batching="windows", negatives="full", length=5)
    model.batches(data, 0)
    assert model.history_offsets.tolist() == [0, 60, 62]
