"""TF-IDF and BM25 of the texts of items, by their formulas."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import bm25s
import numpy as np
import polars as pl
import pytest
import torch

import deeprec
from deeprec import models
from deeprec.data import DataSchema, FeatureSchema, Interactions, Terms, Text, find, from_frame, load, with_features
from deeprec.data.interactions.encoded import encode_tables

WORDS = ["red", "blue", "dog", "cat", "car"]
SCHEMA = DataSchema(items=FeatureSchema((Text("title", tokens="words"),), label=None))
RANDOM = np.random.default_rng(2)
TITLES = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(0, 6))) for _ in range(12)]


def data() -> Interactions:
    users, items = np.nonzero(RANDOM.random((20, 12)) < 0.6)
    made = from_frame(pl.DataFrame({"user_id": users, "item_id": items})).canonical()
    titles = [TITLES[item] for item in made.item_ids.values.to_list()]
    return with_features(made, items=pl.DataFrame({"item_id": made.item_ids.values, "title": titles}))


def expected(name: str, history: list[int]) -> np.ndarray:
    bags, n = [Counter(title.split()) for title in TITLES], len(TITLES)
    frequency = Counter(word for bag in bags for word in bag)
    if name == "tf-idf":
        idf = {word: np.log((1 + n) / (1 + count)) + 1 for word, count in frequency.items()}
        x = np.array([[bag[word] * idf.get(word, 0) for word in WORDS] for bag in bags])
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(lengths, lengths, 1)
        return x @ x[history].sum(0)
    mean = np.mean([bag.total() for bag in bags])
    query = sum((bags[item] for item in history), Counter())
    scores = []
    for bag in bags:
        norm = 1.2 * (1 - 0.75 + 0.75 * bag.total() / mean)
        idf = {word: np.log(1 + (n - count + 0.5) / (count + 0.5)) for word, count in frequency.items()}
        scores.append(sum(query[word] * idf[word] * bag[word] * 2.2 / (bag[word] + norm) for word in query))
    return np.array(scores)


@pytest.mark.parametrize("name", ["tf-idf", "bm25"])
def test_scores_are_the_formula(name: str, tmp_path: Any) -> None:
    made = data()
    model = models.create(name).fit(made, protocol="full", schema=SCHEMA, baselines=False)
    offsets, items = made.csr()
    history = made.take(np.ones(len(made), bool))
    assert len(history) == len(made)
    met = model.history_items[model.history_offsets[3] : model.history_offsets[4]].tolist()
    assert set(met) <= set(items[offsets[3] : offsets[4]].tolist())
    np.testing.assert_allclose(model.score_items(torch.tensor([3]))[0], expected(name, met), rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model")
    again = deeprec.load(tmp_path / "model")
    assert again.recommend([0, 3], 4).equals(model.recommend([0, 3], 4))
    liked = again.recommend_for_history([0, 5], 10)
    scores = expected(name, [0, 5])
    np.testing.assert_allclose(liked["score"], scores[liked["item_id"].to_list()], rtol=1e-4, atol=1e-5)


def scores_of_bm25s(made: Interactions, history: list[int]) -> np.ndarray:
    """Of the package bm25s, for the same tokens; its "atire" with the idf of Lucene is our formula."""
    table = encode_tables(made, SCHEMA).items
    assert table is not None
    counts = Terms.of_table(table)
    bounds = list(zip(counts.offsets[:-1], counts.offsets[1:], strict=True))
    texts = [np.repeat(counts.ids[a:b], counts.weights[a:b].astype(int)).tolist() for a, b in bounds]
    index = bm25s.BM25(k1=1.2, b=0.75, method="atire", idf_method="lucene")
    index.index((texts, {str(term): term for term in range(counts.size)}), show_progress=False)
    return index.get_scores([term for item in history for term in texts[item]])


def test_bm25_scores_as_bm25s_does() -> None:
    made = data()
    model = models.create("bm25").fit(made, protocol="full", schema=SCHEMA, baselines=False)
    met = model.history_items[model.history_offsets[3] : model.history_offsets[4]].tolist()
    ours = model.score_items(torch.tensor([3]))[0]
    np.testing.assert_allclose(ours, scores_of_bm25s(made, met), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not os.environ.get("DEEPREC_DATA") or find("ml-1m") is None, reason="DEEPREC_DATA has no ml-1m")
def test_bm25_of_film_titles_scores_as_bm25s_does() -> None:
    made = load("ml-1m")
    model = models.create("bm25").fit(made, protocol="full", schema=SCHEMA, baselines=False)
    for user in (0, 5000):
        met = model.history_items[model.history_offsets[user] : model.history_offsets[user + 1]].tolist()
        ours = model.score_items(torch.tensor([user]))[0]
        np.testing.assert_allclose(ours, scores_of_bm25s(made, met), rtol=1e-4, atol=1e-3)


def test_without_columns_the_terms_are_the_users() -> None:
    made = data()
    model = models.create("tf-idf").fit(made, protocol="full", baselines=False)
    x = np.zeros((12, 20))
    offsets, items = model.history_offsets.numpy(), model.history_items.numpy()
    x[items, np.repeat(np.arange(20), np.diff(offsets))] = 1
    x *= np.log(13 / (1 + x.sum(0))) + 1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    history = items[offsets[4] : offsets[5]]
    np.testing.assert_allclose(model.score_items(torch.tensor([4]))[0], x @ x[history].sum(0), rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"k1 must be >= 0 and b in \[0, 1\], got -1.0 and 0.75"):
        models.create("bm25", k1=-1)
    with pytest.raises(TypeError, match="bm25: schema must be a DataSchema"):
        models.create("bm25").fit(data(), protocol="full", schema=SCHEMA.items)
    raw = DataSchema(items=FeatureSchema((Text("title", tokens="raw"),), label=None))
    with pytest.raises(ValueError, match="columns must have ids or numbers, got title as text"):
        models.create("tf-idf").fit(data(), protocol="full", schema=raw)
