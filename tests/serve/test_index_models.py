"""The index of a model: asked through the model, kept in its folder, refused with another, in processes and threads."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

import deeprec
from deeprec.cli.app import app
from deeprec.contract import NEW_USERS, RATES, RETRIEVES
from deeprec.data import Interactions
from deeprec.models import create, recommenders
from deeprec.registry import with_capabilities
from deeprec.serve import ItemIndex

USERS = ["user-3", "user-0", "user-38"]
FIRST = 3_000_000_000
SMALL = {"construction": 60, "connectivity": 8, "recall": 1.0}


@pytest.mark.parametrize("kind", ["exact", "voyager"])
@pytest.mark.parametrize("name", with_capabilities(RETRIEVES))
def test_a_model_answers_by_its_index_as_without(name: str, kind: str, fitted: Callable[[str], Any]) -> None:
    model = copy.deepcopy(fitted(name))
    index = model.build_index(kind, **({} if kind == "exact" else SMALL))
    assert index is model.item_index
    assert index.recall_report().queries == "users"
    history = [FIRST + 7, FIRST + 2, FIRST + 11]
    for call in (
        lambda **given: model.recommend(USERS, 5, **given),
        lambda **given: model.recommend(USERS, 50, exclude_seen=False, **given),
        lambda **given: model.recommend([*USERS, "nobody"], 4, unknown="popularity", deny=[FIRST + 1], **given),
        lambda **given: model.recommend(USERS, 5, allow=[FIRST + 4, FIRST + 9], **given),
        lambda **given: model.recommend([], 5, **given),
        *(
            [lambda **given: model.recommend_for_history(history, 5, **given)]
            if NEW_USERS in model.capabilities
            else []
        ),
        *(
            [lambda **given: model.recommend_for_history(history, 5, ratings=[1, 5, 4], **given)]
            if {NEW_USERS, RATES} <= model.capabilities
            else []
        ),
    ):
        assert_frame_equal(call(approximate=True), call(), rel_tol=1e-5, abs_tol=1e-6)


def test_models_without_a_dot_product_are_refused(fitted: Callable[[str], Any]) -> None:
    for name in sorted(set(recommenders()) - set(with_capabilities(RETRIEVES))):
        model = fitted(name)
        for call in (
            model.build_index,
            lambda model=model: model.recommend(USERS, approximate=True),
            lambda model=model: ItemIndex.build(model),
        ):
            with pytest.raises(ValueError, match=f"scores by a dot product.*got {name}; such are .*als, .*bpr, "):
                call()
    with pytest.raises(ValueError, match="the model has no data yet"):
        create("bpr").build_index()
    for argument in ("ids", "bias", "queries"):
        with pytest.raises(ValueError, match=f"{argument} must be left out beside a model"):
            ItemIndex.build(fitted("bpr"), **{argument: [1]})
    with pytest.raises(ValueError, match="similarity of a model must be 'dot'"):
        fitted("bpr").build_index(similarity="cosine")


def test_approximate_needs_an_index(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    model = copy.deepcopy(fitted("mf"))
    for call in (
        lambda **given: model.recommend(USERS, **given),
        lambda **given: model.recommend_for_history([FIRST], **given),
        lambda **given: model.recommend_file(tmp_path / "lists.csv", **given),
    ):
        with pytest.raises(ValueError, match="approximate=True needs an index, and mf has none; call build_index"):
            call(approximate=True)
        with pytest.raises(TypeError, match="approximate must be True or False"):
            call(approximate="yes")


def test_an_index_of_other_weights_is_refused(fitted: Callable[[str], Any], ratings: Interactions) -> None:
    model = copy.deepcopy(fitted("bpr"))
    model.build_index("voyager", **SMALL)
    model.recommend(USERS, approximate=True)
    other = copy.deepcopy(fitted("mf"))
    other.item_index = model.item_index
    with pytest.raises(ValueError, match="must be one of this mf, got one of other item vectors or ids"):
        other.recommend(USERS, approximate=True)
    with torch.no_grad():
        model.items.weight[3] += 1.0
    with pytest.raises(ValueError, match=r"must be one of this bpr.*build it anew: model.build_index"):
        model.recommend(USERS, approximate=True)
    with torch.no_grad():
        model.items.weight[3] -= 1.0
        model.items.weight.copy_(fitted("bpr").items.weight)
    model.recommend(USERS, approximate=True)  # they are the same again
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(ValueError, match="other item vectors"):
        half.recommend(USERS, approximate=True)
    half.build_index()
    assert_frame_equal(half.recommend(USERS, approximate=True), half.recommend(USERS))
    model.fit(ratings, protocol="full", seed=4)
    assert model.item_index is None


def test_the_folder_of_the_model_keeps_it(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    model = copy.deepcopy(fitted("als"))
    model.build_index("voyager", **SMALL)
    listed = model.recommend(USERS, approximate=True)
    model.save(tmp_path / "one")
    loaded = deeprec.load(tmp_path / "one")
    assert loaded.item_index is None  # read when it is asked for
    loaded.save(tmp_path / "two")
    for place in ("one", "two"):
        again = deeprec.load(tmp_path / place)
        assert_frame_equal(again.recommend(USERS, approximate=True), listed)
        assert again.item_index.kind == "voyager"
        assert_frame_equal(copy.deepcopy(again).recommend(USERS, approximate=True), listed)
    fitted("bpr").save(tmp_path / "two")  # another model in its place has no index
    assert not (tmp_path / "two" / "index").exists()
    with pytest.raises(ValueError, match="bpr has none"):
        deeprec.load(tmp_path / "two").recommend(USERS, approximate=True)
    for name in ("index.json", "vectors.safetensors"):  # an index that was carried over from another folder
        assert (tmp_path / "one" / "index" / name).exists()
    (tmp_path / "one" / "index").rename(tmp_path / "two" / "index")
    with pytest.raises(ValueError, match="must be one of this bpr"):
        deeprec.load(tmp_path / "two").recommend(USERS, approximate=True)


def test_what_changes_in_the_index_shows_in_the_lists(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    model = copy.deepcopy(fitted("gmf"))
    index = model.build_index("voyager", **SMALL)
    first = model.recommend(USERS, 1)["item_id"].to_list()
    index.delete(first)
    index.add([17], 1000 * index._items.vectors[:1])
    listed = model.recommend(USERS, 30, approximate=True)
    assert not set(first) & set(listed["item_id"])
    assert 17 in listed["item_id"]
    rows = model.recommend_file(tmp_path / "lists.parquet", 5, approximate=True)
    assert rows == 5 * len(model.user_ids)
    written = pl.read_parquet(tmp_path / "lists.parquet")
    assert_frame_equal(written, model.recommend(model.user_ids.values, 5, approximate=True))


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
}


@pytest.mark.parametrize("how", SURROUNDINGS)
def test_surroundings_change_nothing(how: str) -> None:
    random = torch.Generator().manual_seed(1)
    vectors, queries = torch.randn(300, 8, generator=random), torch.randn(20, 8, generator=random)
    for kind in ("exact", "voyager"):
        index = ItemIndex.build(vectors, kind=kind, queries=queries, **({} if kind == "exact" else SMALL))
        expected = index.search(queries, 5)
        torch.set_default_dtype(torch.float64)
        try:
            with SURROUNDINGS[how]():
                assert_frame_equal(index.search(queries.clone().requires_grad_(), 5), expected)
                index.add([900], 100 * vectors[:1].clone())
                index.delete([900])
        finally:
            torch.set_default_dtype(torch.float32)
        assert_frame_equal(index.search(queries, 5), expected)


FORKED = """
import os, signal, sys
import numpy as np
import polars as pl
import torch
from deeprec.serve import ItemIndex
torch.set_num_threads(2)
random = np.random.default_rng(0)
vectors, queries = random.normal(size=(3000, 16)), random.normal(size=(100, 16))
frame = pl.DataFrame({"item_id": range(3000), "kind": [n % 3 for n in range(3000)]})
def openmp():
    names = {line.split()[-1].rpartition("/")[2] for line in open("/proc/self/maps") if ".so" in line}
    return {name for name in names if name.startswith(("libgomp", "libomp", "libiomp"))}
def calls(index):
    return [
        index.search(queries, 5), index.search(queries[0], 5), index.search(queries, 1000),
        index.search(queries, 5, where={"kind": 1}, deny=[3, 4]), index.search(queries, 5, deny=list(range(900))),
    ]
def answers(index):
    return [listed["item_id"].to_list() for listed in calls(index)]
ItemIndex.build(vectors).search(queries)
print("imported", *sorted({"voyager", "usearch", "faiss", "matplotlib"} & {*sys.modules}), flush=True)
for kind in ("exact", "voyager", "usearch", "faiss"):
    before = openmp()
    graph = {} if kind == "exact" else {"connectivity": 8, "construction": 40}
    index = ItemIndex.build(vectors, kind=kind, queries=queries, items=frame, **graph)
    expected = answers(index)
    print(kind, "openmp", len(openmp() - before), "threads", torch.get_num_threads(), flush=True)
    if os.fork() == 0:
        signal.alarm(60)  # ends a process that waits for ever
        same = answers(index) == expected
        index.delete([0, 1, 2])
        index.add([1], vectors[:1])
        index.update([5], vectors[:1])
        try:
            index.add([9000], vectors[:1])
        except RuntimeError as error:
            same = same and "needs the threads of polars" in str(error)
        print("child", same, len(index), flush=True)
        os._exit(0)
    os.wait()
    print("parent", answers(index) == expected, len(index), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="libraries in memory are listed on Linux only")
def test_a_forked_process_and_one_openmp() -> None:
    """voyager brings no OpenMP; those of usearch and faiss are loaded, and change nothing of torch's."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = ["imported"]  # nothing before it is asked for
    for kind in ("exact", "voyager", "usearch", "faiss"):
        lines += [f"{kind} openmp {int(kind in ('usearch', 'faiss'))} threads 2", "child True 2998", "parent True 3000"]
    assert run.stdout.splitlines() == lines


# -- the command -----------------------------------------------------------------------------------------------------


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "240", "TERM": "dumb"})


def test_the_command_writes_it_and_says_what_comes_next(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    fitted("mf").save(tmp_path / "mf")
    done = call("index", tmp_path / "mf", "--kind", "voyager", "--recall", 0.95)
    assert done.exit_code == 0, done.output
    assert "recall@10" in done.output
    assert "ms a query; the exact scan" in done.output
    assert f"next: deeprec recommend {tmp_path / 'mf'} --user user-0 --approximate" in " ".join(done.output.split())
    asked = ("recommend", tmp_path / "mf", "--user", "user-0", "--json")
    lists = [{row["item_id"] for row in json.loads(call(*asked, *more).output)} for more in ([], ["--approximate"])]
    assert len(lists[0] & lists[1]) >= 9
    done = call("index", tmp_path / "mf", "--json")
    report = json.loads(done.output)
    assert (report["kind"], report["recall"], report["folder"]) == ("exact", 1.0, str(tmp_path / "mf" / "index"))
    for words, message in [
        (("--kind", "hnsw"), "kind must be one of exact, voyager"),
        (("--recall", "2"), "recall must be in (0, 1]"),
    ]:
        failed = call("index", tmp_path / "mf", *words)
        assert failed.exit_code == 2
        assert message in failed.output
    fitted("item-knn").save(tmp_path / "knn")
    failed = call("index", tmp_path / "knn")
    assert failed.exit_code == 2
    assert "scores by a dot product" in failed.output


@pytest.mark.skipif("DEEPREC_DATA" not in __import__("os").environ, reason="DEEPREC_DATA names no folder of data sets")
def test_recall_on_films() -> None:
    model = create("als", factors=32, epochs=3).fit("ml-1m", protocol="full", seed=1)
    report = model.build_index("voyager", recall=0.99).recall_report()
    assert report.num_queries == 512
    assert report.recall >= 0.985
    lists = [model.recommend(model.user_ids.values[:500], 10, approximate=each) for each in (False, True)]
    keys = [set(zip(each["user_id"], each["item_id"], strict=True)) for each in lists]
    assert len(keys[0] & keys[1]) >= 0.97 * len(keys[0])
    scores = [dict(zip(zip(e["user_id"], e["item_id"], strict=True), e["score"], strict=True)) for e in lists]
    common = sorted(keys[0] & keys[1])
    np.testing.assert_allclose([scores[0][key] for key in common], [scores[1][key] for key in common], rtol=1e-6)
