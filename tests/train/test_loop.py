"""The one training loop: sums of gradients, clipping, players, seeds of steps, compiled parts, callbacks that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeprec import models
from deeprec.batches import PairBatch
from deeprec.config import TrainConfig
from deeprec.contract import OptimizerOptions, Schema, Turn
from deeprec.data import Interactions, synthetic
from deeprec.data.clicks.log import ClickLog
from deeprec.data.sets.click_datasets import load_clicks, synthetic_clicks
from deeprec.evaluate import protocol
from deeprec.models.ncf import NCFRecommender
from deeprec.nn import MLP
from deeprec.nn.ncf import NCFNetwork
from deeprec.train import Callback, CallbackError, fit, loop
from deeprec.train.optimizers import Optimizers

Data = Interactions


@pytest.fixture(scope="module")
def data() -> Interactions:
    return synthetic(num_users=60, num_items=90, num_interactions=1500, seed=1)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    path = tmp_path_factory.mktemp("log") / "rows.csv"
    frame, schema = synthetic_clicks(4096, seed=3)
    frame.write_csv(path)
    return load_clicks(path, schema)


# -- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_of_two_batches_are_those_of_one_twice_as_large(reduction: str, data: Data) -> None:
    positives = len(protocol("full").split(data).train)
    assert positives % 2 == 0
    options: dict[str, Any] = {"epochs": 2, "factors": 4, "optimizer": "sgd", "lr": 0.1, "reduction": reduction}
    whole = fit(models.GMF(batch_size=5 * positives, **options), data, seed=0)
    halves = fit(models.GMF(batch_size=5 * positives // 2, accumulate=2, **options), data, seed=0)
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(halves.model.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    plain = fit(models.GMF(batch_size=5 * positives // 2, **options), data, seed=0)
    assert plain.history[-1]["loss"] != pytest.approx(whole.history[-1]["loss"], rel=1e-5)


class _Tables(nn.Module):
    """A table with gradients by row, and a dense layer."""

    name = "tables"

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(4))
        self.config = models.config_class("gmf")(optimizer="sgd", lr=1.0)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"": [self.table, self.layer]}


@pytest.mark.parametrize("largest", [1.0, 1e3])
def test_clipping_counts_rows_that_occur_twice_once(largest: float) -> None:
    model, dense = _Tables(), _Tables()
    rows, values = torch.tensor([[1, 4, 1]]), torch.arange(9.0).view(3, 3)
    model.table.grad = torch.sparse_coo_tensor(rows, values, (6, 3), check_invariants=True)
    dense.table.grad = model.table.grad.to_dense()
    model.layer.grad, dense.layer.grad = torch.full((4,), 2.0), torch.full((4,), 2.0)
    Optimizers(model).step(largest_norm=largest)
    nn.utils.clip_grad_norm_(dense.parameters(), largest)
    torch.optim.SGD(dense.parameters(), lr=1.0).step()
    torch.testing.assert_close(model.table, dense.table)
    torch.testing.assert_close(model.layer, dense.layer)


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="clip_norm has no effect here"):
        models.AutoRec(optimizer="lbfgs", clip_norm=1.0)
    with pytest.raises(ValueError, match="accumulate need gradients that are kept"):
        models.FM(step_in_backward=True, accumulate=2)
    with pytest.raises(ValueError, match=r"compile has no effect here.*deepfm"):
        models.NeuMF(compile=True)
    with pytest.raises(ValueError, match="'plateau' does not go with refit"):
        models.GMF(refit=True, lr_schedule="plateau")


# -- players ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlayersConfig(TrainConfig):
    groups: ClassVar[tuple[str, ...]] = ("first", "second")
    factors: int = 4

    def optimizer_options(self, group: str) -> OptimizerOptions:
        return OptimizerOptions("sgd", self.lr) if group == "first" else OptimizerOptions("adam", self.lr)


class Players(NCFRecommender):
    """Two players on the same batch: the second sees what the first has changed, and neither steps the other's."""

    name = "players"
    config_class: ClassVar[type[TrainConfig]] = PlayersConfig
    config: PlayersConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        sizes = schema.num_users, schema.num_items
        self.network = NCFNetwork(*sizes, gmf_dim=self.config.factors, generator=generator)
        self.critic = MLP(2, [4, 1], generator=generator)
        self.seen_by_second: list[float] = []
        self.after_first: list[float] = []

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"first": list(self.network.parameters()), "second": list(self.critic.parameters())}

    def turns(self) -> tuple[Turn, ...]:
        return Turn("generator", ("first",), self._generate), Turn("critic", ("second",), self._judge)

    def _logits(self, batch: PairBatch) -> Tensor:
        return self.network(batch.users.unsqueeze(1).expand_as(batch.items).reshape(-1), batch.items.reshape(-1))

    def _generate(self, batch: PairBatch) -> Tensor:
        logits = self._logits(batch)
        loss = self.critic(torch.stack([logits, logits.square()], 1)).mean()  # reaches the critic's weights too
        loss.backward()
        return loss.detach()

    def _judge(self, batch: PairBatch) -> Tensor:
        with torch.no_grad():
            logits = self._logits(batch)
        self.seen_by_second.append(float(logits.sum()))
        assert all(parameter.grad is None for parameter in self.parameters())  # the generator's left nothing behind
        loss = self.critic(torch.stack([logits, logits.square()], 1)).squeeze(1).square().mean()
        loss.backward()
        return loss.detach()


def test_players_take_turns_with_optimizers_of_their_own(data: Data) -> None:
    model = Players(lr=0.1)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizers, batches = Optimizers(model), model.batches(data, 0)
    assert list(optimizers.by_group) == ["first", "second"]
    batch = next(iter(batches.epoch(0)))
    untouched = float(model._logits(batch).sum())
    first, second = model.turns()
    first.backward(batch)
    optimizers.step(first.groups)
    optimizers.clear()
    assert all(torch.equal(before[f"critic.{name}"], value) for name, value in model.critic.named_parameters())
    assert any(not torch.equal(before[f"network.{name}"], value) for name, value in model.network.named_parameters())
    second.backward(batch)
    assert model.seen_by_second[-1] != untouched
    result = fit(Players(lr=0.05, epochs=2, batch_size=200), data, seed=0)
    assert all(np.isfinite(entry["loss"]) for entry in result.history)
    with pytest.raises(ValueError, match="accumulate must be 1 where 2 players take turns"):
        fit(Players(epochs=1, accumulate=2), data, seed=0)


# -- going on --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DroppedConfig(TrainConfig):
    factors: int = 4


class Dropped(NCFRecommender):
    """Dropout from torch's generator."""

    name = "dropped"
    config_class: ClassVar[type[TrainConfig]] = DroppedConfig
    config: DroppedConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        sizes = schema.num_users, schema.num_items
        self.network = NCFNetwork(*sizes, gmf_dim=self.config.factors, generator=generator)

    def backward(self, batch: PairBatch) -> Tensor:
        labels = nn.functional.dropout(batch.labels, 0.5, self.training)
        return super().backward(PairBatch(batch.users, batch.items, labels.clamp(max=1.0)))


class Stop(Callback):
    """Raises after so many checkpoints."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_checkpoint(self, path: Path) -> None:
        self.left -= 1
        if not self.left:
            raise RuntimeError("the disk of the logs is full")


@pytest.mark.parametrize("in_middle", [False, True])
def test_a_recommender_with_dropout_resumes_bit_for_bit(
    in_middle: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FLUSH_STEPS", 5)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 100, "weight_averaging": 0.5, "lr_schedule": "cosine"}
    whole = fit(Dropped(**options), data, seed=2)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0 if in_middle else 1e9)
    with pytest.raises(CallbackError, match=r"the callback Stop failed in on_checkpoint .*go on with resume=True"):
        fit(Dropped(**options), data, seed=2, out=tmp_path / "cut", callbacks=[Stop(2)])
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)
    again = Dropped(**options)
    resumed = fit(again, data, seed=2, out=tmp_path / "cut", resume=True)
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]
    assert resumed.card.metrics == whole.card.metrics
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.model.state_dict().items())


class Enough(Callback):
    """Stops after the second epoch."""

    def on_epoch(self, progress: Any) -> bool:
        return bool(progress.epoch == 2)


def test_a_callback_ends_the_training_as_patience_would(data: Data) -> None:
    result = fit(models.GMF(factors=4, epochs=9), data, seed=0, callbacks=[Enough()])
    assert [entry["epoch"] for entry in result.history] == [1.0, 2.0]


def test_a_compiled_network_learns_the_same_and_leaves_nothing_behind(log: ClickLog, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "factors": 4, "hidden": (8,), "batch_size": 1024, "dropout": 0.0}
    plain = fit(models.DNN(**options), log, seed=0)
    compiled = fit(models.DNN(**options, compile=True), log, seed=0, out=tmp_path)
    assert compiled.card.metrics["auc"] == pytest.approx(plain.card.metrics["auc"], abs=1e-4)
    assert all(part._compiled_call_impl is None for part in compiled.model.modules())
    assert set(compiled.model.state_dict()) == set(plain.model.state_dict())


def test_a_step_seeds_the_gpu_that_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the current one of the process; no GPU is needed to see it."""
    current, seeded = ["cuda:0"], []

    @contextmanager
    def as_current(device: torch.device) -> Iterator[None]:
        current.append(str(device))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", as_current)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append((current[-1], seed)))
    loop._seed(3, torch.device("cuda:1"))
    loop._seed(4, torch.device("cpu"))
    assert seeded == [("cuda:1", 3)]
