"""Every registered model takes training steps on a GPU and comes to the weights that it comes to on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gpu_parity import DEVICE, HAS_GPU
from torch import nn

pl = pytest.importorskip("polars", reason="models read their data with polars, which is not installed")

import numpy as np  # noqa: E402

from deeprec import models  # noqa: E402
from deeprec.config import OPTIMIZERS, taken_options  # noqa: E402
from deeprec.contract import Schema  # noqa: E402
from deeprec.data import from_frame  # noqa: E402
from deeprec.data.columns.inputs import BagField, Bags, Encoded, Field, Inputs  # noqa: E402
from deeprec.models.click import ClickBatch  # noqa: E402
from deeprec.train.optimizers import Optimizers  # noqa: E402

INPUTS = Inputs((Field("user", 7), Field("item", 11)), ("price", "age"), (BagField("genres", 6),))
TRAINED = [name for name in models.names() if models.model_class(name).trains_by_gradient]
# In the stand-in one of each kind, for the test's own sake.
ASKED = TRAINED if HAS_GPU else ["gmf", "lr"]


def interactions() -> Any:
    """Forty users, 150 items."""
    draw, count = np.random.default_rng(0), 600
    columns = {
        "user_id": draw.integers(0, 40, count),
        "item_id": draw.integers(0, 150, count),
        "rating": draw.integers(1, 6, count).astype(float),
        "timestamp": np.arange(count),
    }
    return from_frame(pl.DataFrame(columns).unique(["user_id", "item_id"], maintain_order=True))


def log_rows() -> Encoded:
    """Twelve rows of a log."""
    draw, count = np.random.default_rng(0), 12
    ids = np.stack([draw.integers(0, field.size, count) for field in INPUTS.fields], 1).astype(np.int32)
    bags = Bags(draw.integers(0, 6, 2 * count).astype(np.int32), np.arange(count + 1, dtype=np.int64) * 2, None)
    values = draw.random((count, len(INPUTS.numerics))).astype(np.float32)
    return Encoded(ids, values, {"genres": bags}, (draw.random(count) < 0.5).astype(np.float32))


def made(name: str, optimizer: str) -> tuple[Any, Any]:
    """A model on the CPU and a batch of its own sampler; nothing in it draws at random on the device."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"optimizer": optimizer}
    known = taken_options(models.config_class(name))
    options |= {key: 0.0 for key in ("corruption", "dropout", "interaction_dropout") if key in known}
    if not HAS_GPU:
        options |= {key: 4 for key in ("factors", "hidden", "dim") if key in known and name in models.recommenders()}
    if name in models.recommenders():
        data = interactions()
        options |= {"rating_range": (1.0, 5.0)} if "rating_range" in known else {}
        options |= {"batch_size": 16} if "batch_size" in known and optimizer in OPTIMIZERS else {}
        model = models.create(name, schema=Schema(data.num_users, data.num_items), **options)
        batch = next(iter(model.batches(data, 0).epoch(0)))
    else:
        model = models.create(name, inputs=INPUTS, **options)
        batch = ClickBatch.of(log_rows())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, batch


def steps(model: Any, batch: Any, count: int) -> dict[str, torch.Tensor]:
    """The weights after some steps."""
    chosen = Optimizers(model)
    model.train()
    for _ in range(count):
        for turn in model.turns():
            chosen.clear()
            turn.backward(batch)
            chosen.step(turn.groups)
    chosen.clear()
    return {key: value.detach().cpu() for key, value in model.state_dict().items()}


def optimizers_of(name: str) -> list[str]:
    """Those that take steps of a batch; in the stand-in the first of them."""
    every = [optimizer for optimizer in models.model_class(name).config_class.optimizers if optimizer != "lbfgs"]
    return every if HAS_GPU else every[:1]


PAIRS = [(name, optimizer) for name in ASKED for optimizer in optimizers_of(name)]


@pytest.mark.parametrize(("name", "optimizer"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_steps_agree_with_those_on_the_cpu(name: str, optimizer: str) -> None:
    model, batch = made(name, optimizer)
    there = copy.deepcopy(model).to(DEVICE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    want, got = steps(model, batch, 2), steps(there, batch.to(DEVICE), 2)
    assert any(not torch.equal(before[key], value) for key, value in want.items()), "two steps change the weights"
    for key, value in want.items():
        # Adam turns the rounding of a gradient near 0 into a share of its step.
        torch.testing.assert_close(got[key], value, rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", [name for name in ASKED if name in models.recommenders()])
def test_the_best_items_agree_with_those_on_the_cpu(name: str) -> None:
    model, _ = made(name, optimizers_of(name)[0])
    if models.model_class(name).reads_history:
        pytest.skip("asked with the items of each user, which a step does not make")
    there = copy.deepcopy(model).to(DEVICE).eval()
    model.eval()
    users = torch.arange(4)
    want, got = model.topk(users, 5, None), there.topk(users.to(DEVICE), 5, None)
    torch.testing.assert_close(got.values.cpu(), want.values, rtol=1e-3, atol=1e-4)
