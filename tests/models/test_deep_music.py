"""Deep music: factors of ALS from content, means over windows, warm items as ALS has them, later ones by content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.batches.content_sweeps import ClipContents, ContentBatch
from deeprec.batches.sides import SideBatch
from deeprec.data import Interactions, from_frame, synthetic, with_features, with_media
from deeprec.data.media.decoders import AudioDecoder
from deeprec.data.media.files import MediaFiles
from deeprec.evaluate import protocol
from deeprec.models import create

SMALL: dict[str, Any] = {"features": ("sound",), "factors": 6, "layers": (16,), "batch_size": 32, "lr": 0.01}
COLD = protocol("cold-items", metrics=("recall",), cutoffs=(5,))


def frame_of(count: int, first: int = 0) -> pl.DataFrame:
    """Items of six kinds, each of which has a sound of its own, with noise."""
    draw, ids = np.random.default_rng(7 + first), np.arange(first, first + count)
    sounds = 10 * np.eye(6)[ids % 6] @ np.random.default_rng(3).normal(size=(6, 5)) + draw.normal(size=(count, 5))
    return pl.DataFrame({"item_id": ids, "sound": sounds})


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Users who take items of one kind."""
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(90), 8)
    items = np.concatenate([6 * draw.permutation(20)[:8] + user % 6 for user in range(90)])
    data = from_frame(pl.DataFrame({"user_id": users, "item_id": items}))
    return with_features(data, items=frame_of(120))


@pytest.mark.parametrize("loss", ["mse", "wpe"])
def test_losses_are_those_of_the_paper(data: Interactions, loss: str) -> None:
    model = create("deep-music", **SMALL, loss=loss, alpha=3.0)
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    batch = None
    for batch in model.batches(data, 0).epoch(0):
        if isinstance(batch, ContentBatch):
            break
        model.backward(batch)
    assert isinstance(batch, ContentBatch)
    model.eval()
    predicted, users = model._network(batch.values, None), model.als.user_factors
    if loss == "mse":
        targets = model.als.item_factors[batch.items]
        met = model.als.item_factors[data.item_counts() > 0]
        expected = (predicted - targets).square().mean() / met.square().mean()
    else:
        met = torch.zeros(data.num_users, data.num_items)
        met[data.users, data.items] = 1.0
        p = met[:, batch.items]
        whole = ((1 + 3.0 * p) * (p - users @ predicted.T).square()).sum()
        expected = (whole - (1 + 3.0) * p.sum()) / len(batch) + (1 + 3.0) * p.sum() / len(batch)
    torch.testing.assert_close(model.loss(batch), expected, rtol=1e-4, atol=1e-4)


def test_an_epoch_sweeps_learns_and_reads(data: Interactions) -> None:
    model = create("deep-music", **SMALL, passes=2)
    model.build(model.schema_for(data))
    warm = data.take(data.items < 60)
    batches = model.batches(warm, 0)
    steps = list(batches.epoch(0))
    assert [isinstance(step, SideBatch) for step in steps[:3]] == [True, True, False]
    contents = steps[2:]
    learnt = torch.cat([step.items for step in contents if step.learns])
    assert sorted(learnt.tolist()) == sorted([*range(60)] * 2)  # nobody met the others
    assert torch.cat([step.items for step in contents if not step.learns]).tolist() == [*range(120)]


def test_warm_items_are_those_of_als_and_cold_ones_their_sounds(data: Interactions, tmp_path: Path) -> None:
    warm = create("deep-music", **SMALL, epochs=4, patience=0).fit(data, protocol="full", seed=0)
    alone = create("als", factors=6, epochs=4, patience=0).fit(data, protocol="full", seed=0)
    is_met = warm.is_met.squeeze(1) > 0
    assert torch.equal(warm.item_vectors()[is_met], alone.item_factors[is_met])
    assert torch.equal(warm.als.user_factors, alone.user_factors)
    options = {**SMALL, "epochs": 6, "patience": 0}
    cold = create("deep-music", **options).fit(data, protocol=COLD, seed=0)
    shuffled = with_features(data, items=data.item_features.with_columns(pl.col("sound").shuffle(seed=1)))
    blind = create("deep-music", **options).fit(shuffled, protocol=COLD, seed=0)
    assert cold.evaluate()["recall@5"] > 0.9
    assert blind.evaluate()["recall@5"] < 0.7
    heard = create("deep-music", **options, hybrid=False).fit(data, protocol=COLD, seed=0)
    assert torch.equal(heard.item_vectors(), heard.heard)
    again = deeprec.load(cold.save(tmp_path / "model"))
    assert again.recommend([3], k=5).equals(cold.recommend([3], k=5))


@pytest.mark.parametrize("name", ["deep-music", "vbpr"])
def test_later_items_join_the_index(data: Interactions, tmp_path: Path, name: str) -> None:
    options = SMALL if name == "deep-music" else {"features": ("sound",), "lr": 0.1, "factors": 6}
    model = create(name, **{**options, "epochs": 10}).fit(data, protocol="full", seed=0)
    before = model.recommend([4], k=5)
    model.build_index()
    model.add_items(frame_of(12, first=200))
    assert model.schema.num_items == 132
    assert model.recommend([4], k=5, deny=list(range(200, 212))).equals(before)
    for user in (0, 4):  # of the new items those of the kind that the user takes: 204 is of kind 0
        best = model.recommend([user], k=2, allow=list(range(200, 212)))["item_id"]
        assert [item % 6 for item in best] == [user % 6] * 2
    listed = model.recommend([0, 4], k=20)
    assert model.recommend([0, 4], k=20, approximate=True).equals(listed)
    again = deeprec.load(model.save(tmp_path / "model"))
    assert again.recommend([0, 4], k=20, approximate=True).equals(listed)
    again.add_items(frame_of(1, first=300))
    assert len(again.recommend_for_history([300, 0], k=3)) == 3
    for wrong, message in (
        (frame_of(2, first=200), "every item_id must be new and there once, got 2 rows with 0 new ones"),
        (frame_of(1, first=400).drop("sound"), "sound"),
        (frame_of(1, first=400).with_columns(sound=pl.Series([[1.0, 2.0]])), r"must have \(5,\) numbers, got \(2,\)"),
        (frame_of(1).drop("item_id"), "must have a column item_id"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_items(wrong)
    assert model.schema.num_items == 132
    with pytest.raises(ValueError, match="knows new items by their"):
        create(name, factors=4, epochs=1).fit(data).add_items(frame_of(1, first=400))


def test_windows_of_a_clip(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    waves = [np.linspace(-0.5, 0.5, count).astype(np.float32) for count in (5000, 1500, 300)]
    for number, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{number}.wav", wave, 1000, subtype="FLOAT")
    keys = ["0.wav", "1.wav", "2.wav", None, "none.wav"]
    clips = ClipContents(keys, MediaFiles(tmp_path), AudioDecoder(1000, 4.0), 1.0, list("abcde"))
    values, lengths, owners = clips.all(np.arange(5))
    assert owners.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert lengths.tolist() == [1000, 1000, 1000, 1000, 1000, 300, 0, 0]
    np.testing.assert_allclose(values[2], waves[0][2000:3000], atol=1e-6)
    np.testing.assert_allclose(values[5, :300], waves[2], atol=1e-6)
    assert not values[5, 300:].any()
    assert not values[6:].any()
    starts = set()
    for seed in range(20):
        values, lengths = clips.one(np.array([0, 2]), np.random.default_rng(seed))
        assert lengths.tolist() == [1000, 300]
        start = int(np.abs(waves[0] - values[0, 0].item()).argmin())
        np.testing.assert_allclose(values[0], waves[0][start : start + 1000], atol=1e-6)
        starts.add(start)
    assert min(starts) < 600 < 2400 < max(starts) <= 3000


def test_factors_are_means_over_the_windows_of_sounds(tmp_path: Path) -> None:
    for package in ("soundfile", "soxr"):
        pytest.importorskip(package)
    data = with_media(synthetic(60, 80, 900, seed=2), tmp_path, ("audio",))
    sounds = {"audio": "audio", "folder": str(tmp_path), "rate": 8000, "seconds": 0.5, "window": 0.2}
    model = create("deep-music", **sounds, factors=4, epochs=1, passes=1, batch_size=16)
    model.fit(data, protocol="full", seed=0)
    contents = model._contents(data)
    model.eval()
    values, lengths, owners = contents.all(np.array([7, 3]))
    assert owners.tolist() == [0, 0, 1, 1]
    with torch.no_grad():
        rows = model._network(values, lengths)
    torch.testing.assert_close(model.heard[[7, 3]], rows.view(2, 2, -1).mean(1), rtol=1e-4, atol=1e-6)
    table = pl.DataFrame({"item_id": [900], "audio": data.item_features["audio"][:1]})
    model.add_items(table)
    torch.testing.assert_close(model.heard[-1], model.heard[0], rtol=1e-4, atol=1e-6)
    again = deeprec.load(model.save(tmp_path / "model"))
    again.add_items(table.with_columns(item_id=pl.lit(901)))
    assert torch.equal(again.heard[-1], again.heard[-2])


def test_what_cannot_be_is_said(data: Interactions) -> None:
    with pytest.raises(ValueError, match="audio must be a column of the item table, got 'clip' and columns item_id, s"):
        create("deep-music", audio="clip").fit(data)
    with pytest.raises(ValueError, match="features and audio do not go together"):
        create("deep-music", audio="clip", features=("sound",))
    with pytest.raises(ValueError, match="window has no effect here"):
        create("deep-music", features=("sound",), window=2.0)
    for option, value in (("layers", (0,)), ("passes", 0), ("loss", "mae"), ("dropout", 1.0), ("alpha", 0.0)):
        with pytest.raises(ValueError, match=option):
            create("deep-music", features=("sound",), **{option: value})


@pytest.mark.skipif("DEEPREC_DATA" not in os.environ, reason="DEEPREC_DATA names no folder with real data")
def test_videos_that_nobody_met_are_ranked_by_their_vectors() -> None:
    rule = protocol("cold-items", metrics=("recall",), cutoffs=(20,), seed=1)
    model = create("deep-music", features=("image", "audio"), epochs=3, patience=0).fit("tiktok", protocol=rule, seed=1)
    assert model.evaluate()["recall@20"] > 0.05  # 0.030 by guessing
