"""Towers and sequence models whose items are read by networks: texts, images and sounds, trained end to end."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec.batches.contents import take_tokens
from deeprec.data import Audio, DataSchema, FeatureSchema, Image, Text, Video, synthetic, with_media
from deeprec.data.columns.inputs import Bags
from deeprec.evaluate import protocol
from deeprec.models import _item_encoders, create
from deeprec.nn import ImageCNN, TextCNN
from deeprec.train import fit

SMALL: dict[str, Any] = {"item_inputs": ("id", "features"), "factors": 8, "epochs": 1}
ALL = ("text", "image", "audio")
MODELS = ("dssm", "multi-view", "sasrec", "bert4rec")


def schema_of(folder: Path, names: tuple[str, ...] = ALL, **changed: Any) -> DataSchema:
    columns = {
        "text": Text("text", length=12),
        "image": Image("image", folder=str(folder), size=16),
        "audio": Audio("audio", folder=str(folder), rate=8000, seconds=0.5),
    } | changed
    return DataSchema(items=FeatureSchema(tuple(columns[name] for name in names), label=None))


def prepared(name: str, data: Any, schema: DataSchema, **options: Any) -> tuple[Any, Any]:
    """A model that is built for the data, and its first batch."""
    model = create(name, **{**SMALL, **options})
    model.columns = schema
    model.build(model.schema_for(data), torch.Generator().manual_seed(0))
    return model, next(iter(model.batches(data, 0).epoch(0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def data(folder: Path) -> Any:
    return with_media(synthetic(60, 40, 900), folder, ("image", "audio"))


@pytest.mark.parametrize("name", MODELS)
def test_encoders_learn_and_what_they_made_is_served(name: str, data: Any, folder: Path, tmp_path: Path) -> None:
    model, batch = prepared(name, data, schema_of(folder), encoders=ALL)
    model.loss(batch).backward()
    unlearnt = [each for each, weight in model.item_encoders.named_parameters() if not weight.grad.any()]
    assert not unlearnt
    model = create(name, **SMALL, encoders=ALL)
    rule = "next-item" if model.reads_history else "full"
    model.fit(data, protocol=rule, schema=schema_of(folder), seed=1, baselines=False)
    shown = model.recommend([1, 2, 3], k=5)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert again.recommend([1, 2, 3], k=5).equals(shown)
    assert copy.deepcopy(model).recommend([1, 2, 3], k=5).equals(shown)
    model.save(tmp_path)
    loaded = deeprec.load(tmp_path)
    assert loaded.recommend([1, 2, 3], k=5).equals(shown)
    if name == "multi-view":  # new items need a domain
        return
    twins = data.item_features.head(3).with_columns(item_id=pl.Series([1001, 1002, 1003]))
    loaded.add_items(twins)
    assert loaded.item_vectors().shape[0] == data.num_items + 3
    by_columns = create(name, **{**SMALL, "item_inputs": ("features",)}, encoders=ALL)
    by_columns.fit(data, protocol=rule, schema=schema_of(folder), seed=1, baselines=False)
    by_columns.add_items(twins)
    vectors = by_columns.item_vectors()
    torch.testing.assert_close(vectors[-3:], vectors[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dssm", "sasrec"])
def test_encoding_in_parts_changes_nothing(name: str, data: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for items in (256, 7):
        monkeypatch.setattr(_item_encoders, "_ITEMS_A_PASS", items)
        model, batch = prepared(
            name, data, schema_of(folder), encoders=ALL, **({"dropout": 0.0} if name == "sasrec" else {})
        )
        for module in model.item_encoders.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.loss(batch).backward()
        gradients.append([weight.grad for weight in model.item_encoders.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-6)


def test_cold_items_are_told_from_their_texts() -> None:
    data = synthetic(200, 160, 4000, seed=3)
    schema = DataSchema(items=FeatureSchema((Text("text", length=16),), label=None))
    rule = protocol("cold-items", cutoffs=(5,), metrics=("recall",))
    options = {"item_inputs": ("features",), "encoders": ("text",), "epochs": 4, "lr": 0.005, "batch_size": 128}
    result = fit(create("dssm", **options), data, protocol=rule, schema=schema, seed=0, baselines=False)
    by_chance = 5 / 16  # a tenth of the items is held out
    assert result.card.metrics["recall@5"] > 1.3 * by_chance


def test_pretrained_weights_are_where_training_begins(data: Any, folder: Path, tmp_path: Path) -> None:
    saved = ImageCNN(6, channels=(8,), generator=torch.Generator().manual_seed(5))
    saved.save(tmp_path / "encoder")
    model, _ = prepared("dssm", data, schema_of(folder, ("image",)), encoders=(f"image={tmp_path / 'encoder'}",))
    (module,) = model.item_encoders.modules_by_number
    assert module.options == saved.options
    for own, given in zip(module.parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(own, given)
    model = create("dssm", **SMALL, encoders=(f"image={tmp_path / 'encoder'}",))
    model.fit(data, protocol="full", schema=schema_of(folder, ("image",)), seed=0, baselines=False)
    model.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "encoder")
    assert deeprec.load(tmp_path / "model").recommend([1], k=3).equals(model.recommend([1], k=3))


def test_an_item_without_a_medium_has_zeros_and_bad_files_are_named(
    data: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder / "image", tmp_path / "image")
    (tmp_path / "image" / "1.png").write_bytes(b"no picture")
    (tmp_path / "image" / "2.png").write_bytes(b"")
    keys = data.item_features["image"].to_list()
    keys[0] = None
    spoiled = dataclasses.replace(data, item_features=data.item_features.with_columns(image=pl.Series(keys)))
    schema = schema_of(folder, ("image",), image=Image("image", folder=str(tmp_path), size=16))
    model, _ = prepared("dssm", spoiled, schema, encoders=("image",))
    with caplog.at_level(logging.WARNING, "deeprec"), torch.no_grad():
        vectors = model.rows_of_items(torch.arange(5)).values
    assert [not row.any() for row in vectors] == [True, True, True, False, False]
    (line,) = [record.message for record in caplog.records if "media" in record.message]
    assert "2 media" in line
    assert "image/1.png" in line
    assert str(data.item_ids.values[1]) in line


def test_tokens_are_padded_behind() -> None:
    bags = Bags(np.array([3, 0, 5], np.int32), np.array([0, 2, 2, 3], np.int64))
    assert take_tokens(bags, np.array([2, 0, 1])).tolist() == [[6, 0], [4, 1], [0, 0]]
    assert take_tokens(bags, np.array([1])).tolist() == [[0]]


def refusals(folder: Path, tmp_path: Path) -> list[tuple[tuple[str, ...], DataSchema, str]]:
    ImageCNN(4, channels=(8,)).save(tmp_path / "image")
    TextCNN(7, 4, filters=3, hidden=0).save(tmp_path / "text")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "encoder.json").write_text(json.dumps({"encoder": "Nothing", "options": {}}))
    raw = schema_of(folder, ("text",), text=Text("text", tokens="raw"))
    of_text, of_image, of_audio = (schema_of(folder, (name,)) for name in ALL)
    return [
        (("cover",), of_text, "'cover' must be a column of text with tokens.*which the schema has not"),
        (("text",), raw, "'text' must be a column of text with tokens.*got a text"),
        ((f"audio={tmp_path / 'image'}",), of_audio, "must hold an encoder of audio, got ImageCNN"),
        ((f"image={tmp_path / 'odd'}",), of_image, "must hold an encoder of image, got Nothing"),
        ((f"text={tmp_path / 'text'}",), of_text, "vocabulary of .* must be .*, got 7"),
    ]


@pytest.mark.parametrize("case", range(5))
def test_what_no_encoder_reads_is_refused(case: int, data: Any, folder: Path, tmp_path: Path) -> None:
    encoders, schema, words = refusals(folder, tmp_path)[case]
    with pytest.raises(ValueError, match=words):
        prepared("dssm", data, schema, encoders=encoders)


def test_options_are_checked(data: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoders must be columns, NAME or NAME=FOLDER, each once"):
        create("sasrec", **SMALL, encoders=("image", "image=there"))
    with pytest.raises(ValueError, match="encoders"):
        create("dssm", encoders=("image",))
    with pytest.raises(FileNotFoundError):
        prepared("dssm", data, schema_of(folder, ("image",)), encoders=(f"image={tmp_path / 'nothing'}",))
    with pytest.raises(ValueError, match=r"got image, audio as text or media.*name media in the option encoders"):
        prepared("dssm", data, schema_of(folder), encoders=("text",))
    with pytest.raises(ValueError, match=r"frames must be <= 256, got 300"):
        Video("v", frames=300)
    with pytest.raises(ValueError, match=r"size must be <= 4096, got 5000"):
        Image("v", size=5000)
    with pytest.raises(ValueError, match=r"seconds must be > 0, got 0"):
        Audio("v", seconds=0)
