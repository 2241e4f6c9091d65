"""What an index refuses: every message names the function, the argument, what it got and what to do."""

from __future__ import annotations

import sys
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from deeprec.serve import ItemIndex

IDS = [f"item-{number}" for number in range(600)]
VECTORS = torch.randn(600, 12, generator=torch.Generator().manual_seed(2))
QUERIES = torch.randn(40, 12, generator=torch.Generator().manual_seed(3))
FRAME = pl.DataFrame({"item_id": IDS, "genre": ["drama", "comedy"] * 300, "year": range(1400, 2000)})


def options(kind: str) -> dict[str, Any]:
    return {} if kind == "exact" else {"construction": 60, "connectivity": 8}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"vectors": VECTORS[0]}, ValueError, r"vectors must be \[n, D\], got \[12\]"),
        ({"vectors": VECTORS[:0]}, ValueError, "at least one row"),
        ({"vectors": "abc"}, TypeError, "array of numbers"),
        ({"vectors": torch.nn.Linear(3, 3)}, TypeError, "a model of deeprec, got Linear"),
        (
            {"vectors": VECTORS.masked_fill(VECTORS.eq(VECTORS[7, 3]), torch.nan)},
            ValueError,
            "finite in float32, .* in row 7",
        ),
        ({"vectors": VECTORS.double() * 1e300}, ValueError, "finite in float32"),
        ({"vectors": VECTORS > 0}, TypeError, "real numbers"),
        ({"ids": IDS[:5]}, ValueError, "ids must be one for each of 600 vectors, got 5"),
        ({"ids": [1] * 600}, ValueError, "distinct"),
        ({"kind": "hnsw"}, ValueError, "kind must be one of exact, voyager"),
        ({"similarity": "l2"}, ValueError, "similarity must be one of dot, cosine"),
        ({"similarity": "cosine", "bias": [0.0] * 600}, ValueError, "bias must be left out with cosine"),
        ({"bias": [0.0] * 5}, ValueError, "bias must be one number for each of 600"),
        ({"bias": ["x"] * 600}, TypeError, "bias must be"),
        ({"recall": 1.5}, ValueError, r"recall must be in \(0, 1\]"),
        ({"recall": True}, ValueError, r"recall must be in \(0, 1\]"),
        ({"recall_at": 0}, ValueError, "k must be >= 1"),
        ({"queries": VECTORS[:, :3]}, ValueError, r"queries must be \[n, 12\]"),
        ({"items": [1]}, TypeError, "items must be a frame"),
        ({"items": pl.DataFrame({"id": [1]})}, ValueError, "column item_id"),
        ({"items": pl.DataFrame({"item_id": [1, 1]})}, ValueError, "one row for each item"),
        ({"kind": "exact", "connectivity": 8}, ValueError, "takes no options, got 'connectivity'"),
        ({"kind": "voyager", "conectivity": 8}, ValueError, "did you mean 'connectivity'"),
        ({"kind": "voyager", "connectivity": 1}, ValueError, r"connectivity must be in \[2"),
        ({"kind": "voyager", "connectivity": 8.0}, TypeError, "connectivity must be a whole number"),
        ({"kind": "voyager", "scanned": 1}, ValueError, r"scanned must be in \[0, 1\)"),
        ({"kind": "voyager", "storage": "bfloat16"}, ValueError, "storage of voyager must be one of float32, int8"),
    ],
)
def test_build_names_what_is_wrong(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ItemIndex.build(**{"vectors": VECTORS, **given})


def test_a_search_names_what_is_wrong() -> None:
    for kind in ("exact", "voyager"):
        index = ItemIndex.build(VECTORS, IDS, kind=kind, items=FRAME, queries=QUERIES, **options(kind))
        for given, error, words in [
            ({"k": 0}, ValueError, "k must be >= 1"),
            ({"k": 2.0}, TypeError, "k must be a whole number"),
            ({"queries": QUERIES[:, :4]}, ValueError, r"queries must be \[n, 12\]"),
            ({"queries": QUERIES * torch.nan}, ValueError, "finite"),
            ({"allow": [3]}, TypeError, "allow"),
            ({"deny": {"a": 1}}, TypeError, "deny"),
            ({"seen": [[]]}, ValueError, "seen must be a list of ids for each of 40 queries, got 1 lists"),
            ({"seen": 3}, ValueError, "seen must be a list"),
            ({"where": {"gender": 1}}, ValueError, "did you mean 'genre'"),
            ({"where": {"year": "old"}}, ValueError, "year holds Int64, got 'old'"),
            ({"where": pl.col("genre")}, ValueError, "true or false for each"),
            ({"where": pl.col("gender") == 1}, ValueError, "over the columns item_id, genre"),
            ({"where": pl.col("year").max() > 3}, ValueError, "true or false for each"),
            ({"where": "genre"}, TypeError, "a polars expression or a mapping"),
        ]:
            with pytest.raises(error, match=words):
                index.search(**{"queries": QUERIES, **given})
    with pytest.raises(ValueError, match="pass items=FRAME when it is built"):
        ItemIndex.build(VECTORS).search(QUERIES, where={"genre": "drama"})


@pytest.mark.parametrize("kind", ["exact", "voyager"])
def test_a_change_that_is_refused_changes_nothing(kind: str) -> None:
    index = ItemIndex.build(VECTORS, IDS, kind=kind, queries=QUERIES, **options(kind))
    index.delete(IDS[9])
    before = index.search(QUERIES, 9)
    for call, error, words in [
        (lambda: index.add(["a", "a"], VECTORS[:2]), ValueError, "ids must be distinct"),
        (lambda: index.add(["a"], VECTORS[:2]), ValueError, "one for each of 2 vectors"),
        (lambda: index.add([None], VECTORS[:1]), ValueError, "missing"),
        (lambda: index.add([7], VECTORS[:1]), TypeError, "ids"),
        (lambda: index.add(["a"], VECTORS[:1, :3]), ValueError, r"vectors must be \[n, 12\]"),
        (lambda: index.add(["a"], VECTORS[:1] / 0), ValueError, "finite"),
        (lambda: index.add(["a"], VECTORS[:1], bias=[1.0]), ValueError, "built without"),
        (lambda: index.update(["a"], VECTORS[:1]), ValueError, "got 1 unknown: 'a'; add them"),
        (lambda: index.update([IDS[9]], VECTORS[:1]), ValueError, "'item-9', which was deleted; add it"),
        (lambda: index.delete([3]), TypeError, "ids"),
    ]:
        with pytest.raises(error, match=words):
            call()
        assert_frame_equal(index.search(QUERIES, 9), before)
        assert len(index) == 599


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, module, words in [
        ("voyager", "voyager", r"install it: .*\[serve\]"),
        ("usearch", "usearch.index", "install it: pip install usearch"),
        ("faiss", "faiss", "install it: pip install faiss-cpu"),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=f"kind='{kind}' needs the package.*{words}"):
            ItemIndex.build(VECTORS, kind=kind)
