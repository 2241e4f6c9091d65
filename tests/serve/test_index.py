"""The index over item vectors: exact scores, filters, changes, and how much a graph gives of the exact answer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from deeprec.nn.scoring import DotScorer, topk
from deeprec.serve import ItemIndex
from deeprec.serve.index_graphs import GRAPHS, KINDS
from deeprec.serve.index_points import item_points, query_points
from deeprec.serve.index_recall import RecallReport, measure, recall_of

WIDTH = 12
IDS = [f"item-{number}" for number in range(600)]
GENRES = ("drama", "comedy", "western")
APPROXIMATE = tuple(GRAPHS)
SMALL = {"construction": 60, "connectivity": 8}  # of graphs of a few hundred points


def catalogue(
    count: int = 600, width: int = WIDTH, queries: int = 40, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Item vectors [count, width] in clusters, with a long tail of lengths, and query vectors near the clusters."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(max(3, count // 200), width))
    items = centers[random.integers(0, len(centers), count)] + 0.5 * random.normal(size=(count, width))
    items *= random.lognormal(0, 0.5, size=(count, 1))
    asked = centers[random.integers(0, len(centers), queries)] + 0.5 * random.normal(size=(queries, width))
    return torch.from_numpy(items).float(), torch.from_numpy(asked).float()


VECTORS, QUERIES = catalogue()


def frame() -> pl.DataFrame:
    """Columns of the items, backwards and without the last ten of them."""
    columns = {
        "item_id": IDS,
        "genre": [GENRES[n % 3] for n in range(600)],
        "year": [1950 + n % 50 for n in range(600)],
    }
    return pl.DataFrame(columns)[:-10].reverse()


def options(kind: str) -> dict[str, Any]:
    return {} if kind == "exact" else SMALL


@pytest.fixture(scope="module")
def built() -> Callable[[str], ItemIndex]:
    """kind -> an index that is not to be changed."""
    made: dict[str, ItemIndex] = {}

    def get(kind: str) -> ItemIndex:
        if kind not in made:
            made[kind] = ItemIndex.build(VECTORS, IDS, kind=kind, items=frame(), queries=QUERIES, **options(kind))
        return made[kind]

    return get


def expected(k: int, vectors: torch.Tensor = VECTORS, **filters: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return topk(DotScorer(QUERIES, vectors), k, **filters)


# -- the sphere ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [False, True])
def test_distances_on_the_sphere_are_inner_products(has_bias: bool) -> None:
    bias = torch.linspace(-2, 2, len(VECTORS)) if has_bias else None
    largest = float(torch.cat([VECTORS, (bias if has_bias else torch.zeros(600))[:, None]], 1).norm(dim=1).max())
    points = item_points(VECTORS, bias, largest).astype(np.float64)
    asked, has_direction = query_points(torch.cat([QUERIES, torch.zeros(1, WIDTH)]), has_bias)
    assert points.shape[1] == asked.shape[1] == WIDTH + 1 + has_bias
    np.testing.assert_allclose((points**2).sum(1), 1.0, atol=1e-6)
    assert has_direction.tolist() == [True] * len(QUERIES) + [has_bias]
    scores = (QUERIES.double() @ VECTORS.double().T + (bias.double() if has_bias else 0.0)).numpy()
    length = np.sqrt((QUERIES.double().numpy() ** 2).sum(1) + has_bias)[:, None]
    distances = ((asked[:-1, None].astype(np.float64) - points) ** 2).sum(2)
    np.testing.assert_allclose(distances, 2 - 2 * scores / (largest * length), atol=1e-5)


# -- what is given ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_exact_scan_to_the_bit(kind: str, built: Callable[[str], ItemIndex]) -> None:
    index = built(kind)
    values, items = index.topk(QUERIES, 10)
    exact = expected(10)[1]
    assert recall_of(items.numpy(), exact.numpy()) >= (1.0 if kind == "exact" else 0.97)
    scores = topk(DotScorer(QUERIES, VECTORS), 600)
    place = scores.ids.argsort(1)
    assert torch.equal(values, scores.values.gather(1, place.gather(1, items)))
    listed = index.search(QUERIES, 10)
    assert listed.schema == {"query": pl.Int64, "rank": pl.Int64, "item_id": pl.String, "score": pl.Float32}
    assert listed["item_id"].to_list() == [IDS[item] for item in items.flatten().tolist()]
    assert listed["rank"].to_list() == list(range(1, 11)) * len(QUERIES)
    assert listed["score"].to_numpy().tolist() == values.flatten().tolist()
    assert len(index.search(QUERIES[0], 3)) == 3
    assert index.search(QUERIES[:0], 3).height == 0
    assert index.search(QUERIES[:2], 5000).height == 1200  # longer than the catalogue


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_recall_of_a_long_tail_of_lengths(kind: str, storage: str) -> None:
    vectors, queries = catalogue(3000, 16, 200, seed=3)
    index = ItemIndex.build(vectors, kind=kind, queries=queries, storage=storage, **SMALL)
    report = index.recall_report()
    assert report.recall >= 0.97
    assert report.num_choosing == report.num_queries == 100
    assert report.queries == "given"
    exact = topk(DotScorer(queries[1::2], vectors), 10).ids.numpy()
    assert recall_of(index.topk(queries[1::2], 10).ids.numpy(), exact) == pytest.approx(report.recall)


def test_scanning_the_longest_vectors_is_what_gives_recall() -> None:
    vectors, queries = catalogue(3000, 16, 200, seed=4)
    breadths = [
        ItemIndex.build(vectors, kind="voyager", queries=queries, scanned=share, **SMALL).breadth
        for share in (0.0, 0.02)
    ]
    assert breadths[1] < breadths[0]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_go_by_the_order_of_items(kind: str) -> None:
    vectors = torch.cat([VECTORS[:150]] * 4)
    index = ItemIndex.build(vectors, kind=kind, recall=1.0, queries=QUERIES, **options(kind))
    values, items = index.topk(QUERIES, 12)
    best, exact = expected(12, vectors)
    is_equal = values[:, 1:] == values[:, :-1]
    assert is_equal.float().mean() > 0.5
    assert (items[:, 1:] > items[:, :-1])[is_equal].all()
    if kind == "exact":
        assert torch.equal(values, best)
        assert torch.equal(items, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_counts(kind: str) -> None:
    bias = torch.linspace(-9, 9, 600).roll(77)
    index = ItemIndex.build(VECTORS, kind=kind, bias=bias, queries=QUERIES, recall=1.0, **options(kind))
    exact = topk(DotScorer(QUERIES, VECTORS, bias), 10).ids
    assert recall_of(index.topk(QUERIES, 10).ids.numpy(), exact.numpy()) >= 0.98
    nothing = torch.zeros(1, WIDTH)
    assert index.topk(nothing, 5).ids.tolist() == topk(DotScorer(nothing, VECTORS, bias), 5).ids.tolist()
    index.add([9000], VECTORS[:1], bias=[1000.0])
    assert index.search(QUERIES, 1)["item_id"].to_list() == [9000] * len(QUERIES)


@pytest.mark.parametrize("kind", KINDS)
def test_cosine_with_zero_vectors(kind: str) -> None:
    vectors = VECTORS.clone()
    vectors[::50] = 0.0
    index = ItemIndex.build(vectors, kind=kind, similarity="cosine", recall=1.0, queries=QUERIES, **options(kind))
    unit, asked = torch.nn.functional.normalize(vectors, dim=1), torch.nn.functional.normalize(QUERIES, dim=1)
    exact = topk(DotScorer(asked, unit), 10)
    values, items = index.topk(QUERIES, 10)
    assert recall_of(items.numpy(), exact.ids.numpy()) >= 0.98
    assert values.max() <= 1 + 1e-6
    assert index.topk(1000 * QUERIES, 3).ids.equal(index.topk(QUERIES, 3).ids)
    assert index.topk(torch.zeros(1, WIDTH), 4).ids.tolist() == [[0, 1, 2, 3]]  # all are alike to it


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_and_equal_items(kind: str) -> None:
    one = ItemIndex.build([[1.0, 2.0]], ["only"], kind=kind)
    assert one.search(np.array([3.0, 4.0]), 10).rows() == [(0, 1, "only", 11.0)]
    assert one.delete("only") == 1
    assert one.search([[3.0, 4.0]], 10).height == 0
    assert len(one) == 0
    zeros = ItemIndex.build(np.zeros((50, 3)), kind=kind)
    assert zeros.search(np.ones(3), 3)["item_id"].to_list() == [0, 1, 2]


# -- filters ---------------------------------------------------------------------------------------------------------


def check_filtered(index: ItemIndex, k: int, given: dict[str, Any], permitted: np.ndarray) -> None:
    """The lists hold permitted items [b, N] only, as many as there are, and nearly those of the scan."""
    listed = index.search(QUERIES, k, **given)
    scores = (QUERIES.double() @ VECTORS.double().T).numpy()
    hits = total = 0
    for query in range(len(QUERIES)):
        items = [IDS.index(item) for item in listed.filter(pl.col("query") == query)["item_id"]]
        allowed = np.flatnonzero(permitted[query])
        assert len(items) == len(set(items)) == min(k, len(allowed))
        assert set(items) <= set(allowed.tolist())
        best = allowed[np.argsort(-scores[query, allowed], kind="stable")][:k]
        hits, total = hits + len(set(items) & set(best.tolist())), total + len(best)
    assert hits >= (1.0 if index.kind == "exact" else 0.95) * total


@pytest.mark.parametrize("kind", KINDS)
def test_filters(kind: str, built: Callable[[str], ItemIndex]) -> None:
    index, numbers = built(kind), np.arange(600)
    known = numbers < 590
    everything, nothing = np.ones(600, bool), np.zeros(600, bool)
    best = topk(DotScorer(QUERIES, VECTORS), 40).ids.tolist()
    seen = [[IDS[item] for item in row[: 5 * (place % 8)]] for place, row in enumerate(best)]
    unseen = np.ones((len(QUERIES), 600), bool)
    for place, row in enumerate(best):
        unseen[place, row[: 5 * (place % 8)]] = False
    for given, allowed in [
        ({"allow": IDS[::2]}, numbers % 2 == 0),
        ({"allow": IDS[7]}, numbers == 7),
        ({"allow": []}, nothing),
        ({"allow": [*IDS[:3], "nobody knows it"]}, numbers < 3),
        ({"deny": IDS[::3]}, numbers % 3 != 0),
        ({"deny": IDS}, nothing),
        ({"deny": ["nobody knows it"]}, everything),
        ({"seen": seen}, unseen),
        ({"seen": [IDS] * len(QUERIES)}, nothing),
        ({"where": {"genre": "drama"}}, (numbers % 3 == 0) & known),
        ({"where": {"genre": ["drama", "western"], "year": 1950}}, (numbers % 3 != 1) & (numbers % 50 == 0) & known),
        ({"where": {"genre": None}}, ~known),
        ({"where": pl.col("year") >= 1990}, (numbers % 50 >= 40) & known),
        ({"where": pl.col("item_id") == IDS[3], "deny": IDS[3]}, nothing),
        (
            {"where": {"genre": "comedy"}, "seen": seen, "allow": IDS[:300]},
            unseen & (numbers % 3 == 1) & (numbers < 300),
        ),
    ]:
        for k in (1, 10, 700):
            check_filtered(index, k, given, np.broadcast_to(allowed, (len(QUERIES), 600)))


def test_filters_of_internal_indices(built: Callable[[str], ItemIndex]) -> None:
    offsets, items = torch.tensor([0, 2, 2]), torch.tensor([3, 8], dtype=torch.int32)
    rows = torch.arange(len(QUERIES)) % 2
    allow, deny = np.arange(100), np.array([5, 6])
    best = topk(DotScorer(QUERIES, VECTORS), 8, seen=(offsets, items), seen_rows=rows, allow=allow, deny=deny)
    for kind in KINDS:
        values, ids = built(kind).topk(QUERIES, 8, seen=(offsets, items), seen_rows=rows, allow=allow, deny=deny)
        assert torch.equal(ids, best.ids)  # so few of them that the scan answers
        assert torch.equal(values, best.values)


# -- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_items_come_change_and_go(kind: str) -> None:
    index = ItemIndex.build(VECTORS[:500], IDS[:500], kind=kind, items=frame(), queries=QUERIES, recall=1.0,
                            **options(kind))  # fmt: skip
    now = dict(zip(IDS[:500], VECTORS[:500], strict=True))
    random = np.random.default_rng(5)

    def check() -> None:
        assert len(index) == len(now)
        listed = index.search(QUERIES, 5)
        names, vectors = [*now], torch.stack([*now.values()])
        scores = QUERIES @ vectors.T
        exact = {q: {names[item] for item in row} for q, row in enumerate(scores.topk(5).indices.tolist())}
        assert set(listed["item_id"]) <= set(names)
        assert listed.height == 5 * len(QUERIES)
        hits = sum(item in exact[query] for query, item in listed.select("query", "item_id").iter_rows())
        assert hits >= (1.0 if kind == "exact" else 0.97) * listed.height
        first = {q: float(row.max()) for q, row in enumerate(scores)}
        assert [row["score"] <= first[row["query"]] + 1e-4 for row in listed.iter_rows(named=True)]

    for turn in range(4):
        gone = random.choice([*now], 60, replace=False).tolist()
        assert index.delete([*gone, "nobody knows it", gone[0]]) == 60
        assert index.delete(gone) == 0
        for name in gone:
            del now[name]
        check()
        assert gone[0] not in index
        back, new = gone[:20], [f"new-{turn}-{number}" for number in range(10)]
        vectors = torch.from_numpy(random.normal(size=(30, WIDTH))).float() * (1 + 3 * turn)  # longer than all before
        index.add([*back, *new], vectors)
        now.update(zip([*back, *new], vectors, strict=True))
        changed = random.choice([*now], 15, replace=False).tolist()
        vectors = torch.from_numpy(random.normal(size=(15, WIDTH))).float()
        index.update(changed, vectors)
        now.update(zip(changed, vectors, strict=True))
        check()
    assert "new-3-1" in index
    assert set(index.search(QUERIES, 9, where={"genre": "drama"})["item_id"]) <= set(IDS[::3])  # new ones have no genre
    report = index.rebuild()
    assert report.num_items == len(now)
    check()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_longer_vectors_than_the_sphere_allows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.serve.index_walk._MORE_OUTSIDE", 20)
    index = ItemIndex.build(VECTORS, IDS, kind=kind, queries=QUERIES, recall=1.0, **SMALL)
    walk = index._walk
    assert walk is not None
    at_first = len(walk.block)
    longest = VECTORS.norm(dim=1).max()
    for number in range(60):
        vector = torch.nn.functional.normalize(QUERIES[number % 40 : number % 40 + 1]) * longest * (2 + number)
        index.add([f"long-{number}"], vector)
        assert f"long-{number}" in index.search(vector, 1)["item_id"]
    assert at_first < len(walk.block) <= 2 * walk.block_at_first + 20  # it was built anew on the way
    assert walk.largest > longest
    assert index.recall_report().recall >= 0.97


def test_threads_search_while_items_change() -> None:
    for kind in APPROXIMATE:
        index = ItemIndex.build(VECTORS, kind=kind, queries=QUERIES, **SMALL)
        ever_gone = set(range(0, 200))

        def ask(turn: int, index: ItemIndex = index) -> set[int]:
            return {item for _ in range(8) for item in index.search(QUERIES[turn % 9 :], 5)["item_id"]}

        def change(turn: int, index: ItemIndex = index) -> set[int]:
            for item in range(turn * 50, turn * 50 + 50, 5):
                index.delete([item])
                index.add([1000 + item], VECTORS[item : item + 1])
            return set()

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(work, turn) for turn in range(4) for work in (ask, change)]
            given = set().union(*(each.result(timeout=60) for each in asked))
        assert given <= set(range(600)) | {1000 + item for item in ever_gone}
        left = set(index.search(QUERIES, 600)["item_id"])
        assert left == (set(range(600)) - set(range(0, 200, 5))) | {1000 + item for item in range(0, 200, 5)}


# -- copies and folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_from_its_folder_a_copy_and_a_pickle(kind: str, tmp_path: Path) -> None:
    index = ItemIndex.build(VECTORS, IDS, kind=kind, items=frame(), queries=QUERIES, **options(kind))
    index.delete(IDS[5:9])
    index.add(["new"], 100 * VECTORS[:1])
    asked = {"k": 8, "deny": IDS[:3], "where": {"genre": "drama"}}
    listed, filtered = index.search(QUERIES, 8), index.search(QUERIES, **asked)
    assert index.save(tmp_path / "index") == tmp_path / "index"
    assert index.save(tmp_path / "index").is_dir()  # over itself
    assert (tmp_path / "index" / "recall.png").read_bytes().startswith(b"\x89PNG")
    for other in (ItemIndex.load(tmp_path / "index"), copy.deepcopy(index), pickle.loads(pickle.dumps(index))):  # noqa: S301
        assert_frame_equal(other.search(QUERIES, 8), listed)
        assert_frame_equal(other.search(QUERIES, **asked), filtered)
        assert other.recall_report() == index.recall_report()
        assert (other.kind, other.source, other.breadth, len(other)) == (kind, index.source, index.breadth, len(index))
        other.add(["newer"], 200 * VECTORS[:1])
        assert "newer" in other
        assert "newer" not in index


def test_damage_is_named(tmp_path: Path) -> None:
    place = ItemIndex.build(VECTORS, IDS, kind="voyager", items=frame(), **SMALL).save(tmp_path / "index")
    for name in ("vectors.safetensors", "ids.parquet", "items.parquet", "graph.bin"):
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} was changed after it was written.*build it anew"):
            ItemIndex.load(place)
        (place / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            ItemIndex.load(place)
        (place / name).write_bytes(content)
    head = (place / "index.json").read_text()
    for old, new, words in [
        ('"dot"', '"cosine"', "checksum"),
        ('"format": 1', '"format": 7', "upgrade"),
        ('"breadth"', '"width"', "breadth is missing|unknown"),
    ]:
        (place / "index.json").write_text(head.replace(old, new, 1))
        with pytest.raises(ValueError, match=words):
            ItemIndex.load(place)
    with pytest.raises(FileNotFoundError, match="no index in"):
        ItemIndex.load(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not to be lost")
    with pytest.raises(ValueError, match="must be a new folder"):
        ItemIndex.build(VECTORS).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


# -- the report ------------------------------------------------------------------------------------------------------


def test_the_smallest_breadth_that_reaches_the_target_is_chosen() -> None:
    exact = np.arange(40).reshape(1, 40).repeat(8, 0)[:, :10]

    def search(queries: torch.Tensor, breadth: int) -> np.ndarray:
        hits = {16: 5, 32: 9, 64: 10}[breadth]
        return np.concatenate([exact[: len(queries), :hits], np.full((len(queries), 10 - hits), -1)], 1)

    facts = {"kind": "voyager", "num_items": 40_000, "width": 3, "k": 10, "queries": "given"}
    for target, breadth, recall in [(0.4, 16, 0.5), (0.9, 32, 0.9), (0.95, 64, 1.0), (1.0, 64, 1.0)]:
        report = measure(torch.zeros(8, 3), search, lambda q, _: exact[: len(q)], [16, 32, 64], target=target, **facts)
        assert (report.breadth, report.recall, report.reaches_target) == (breadth, recall, True)
        assert [point.recall for point in report.points] == [0.5, 0.9, 1.0]
    short = measure(torch.zeros(8, 3), search, lambda q, _: exact[: len(q)], [16, 32], target=0.95, **facts)
    assert (short.breadth, short.recall, short.reaches_target) == (32, 0.9, False)


def test_recall_of_lists() -> None:
    exact = np.array([[1, 2, -1], [3, 4, 5]])
    assert recall_of(np.array([[2, 9, -1], [5, 4, 3]]), exact) == 4 / 5
    assert recall_of(np.full((2, 3), -1), exact) == 0.0
    assert recall_of(exact[:0], exact[:0]) == 1.0


def test_a_target_out_of_reach_warns(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.serve.index.BREADTHS", (10,))
    vectors, queries = catalogue(3000, 16, 60)
    index = ItemIndex.build(
        vectors, kind="voyager", queries=queries, recall=1.0, connectivity=2, construction=8, scanned=0
    )
    report = index.recall_report()
    assert not report.reaches_target
    assert "below the target of 1; build it with a larger connectivity" in caplog.text
    assert isinstance(report, RecallReport)


def test_an_exact_index_reports_its_time(tmp_path: Path) -> None:
    index = ItemIndex.build(VECTORS)
    report = index.recall_report()
    assert (index.kind, report.kind, report.recall, report.breadth, report.points) == ("exact", "exact", 1.0, 0, ())
    assert report.queries == "items"
    assert report.milliseconds > 0
    report.plot(tmp_path / "recall.png")
    assert (tmp_path / "recall.png").stat().st_size > 5000
