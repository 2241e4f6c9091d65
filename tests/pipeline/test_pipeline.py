"""Candidates, filters, ranking and explanation of whole pipelines, and their saved folders."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import deeprec
from deeprec.data import Interactions, synthetic
from deeprec.evaluate import protocol
from deeprec.pipeline import (
    AllowFilter,
    ByClicks,
    ByModel,
    ColumnFilter,
    DenyFilter,
    Freshest,
    Fusion,
    ItemToItem,
    ModelSource,
    PerUserFilter,
    Pipeline,
    PipelineConfig,
    Popularity,
    SeenFilter,
)
from deeprec.pipeline.evaluation import diversity
from deeprec.pipeline.rerank import unit_rows
from deeprec.pipeline.rows import Lists
from deeprec.pipeline.stages import Parts

CASER = {"name": "caser", "metrics": ["ndcg", "recall"], "cutoffs": [10]}
EASE = ModelSource("ease", "ease", options={"refit": False}, quota=200)


def _fit(data: Interactions, *sources: Any, **options: Any) -> Pipeline:
    config = PipelineConfig(sources or (Popularity(quota=200),), protocol=CASER, **options)
    return Pipeline.fit(config, data, measure=False)


@pytest.fixture(scope="module")
def simple(data: Interactions) -> Pipeline:
    return _fit(data, EASE, Popularity(quota=50), ItemToItem("ease", quota=50))


# -- figures ---------------------------------------------------------------------------------------------------------


def test_a_pipeline_of_one_model_has_the_figures_of_the_model(data: Interactions) -> None:
    alone = _fit(data, EASE, ranking=ByModel("ease"))
    rule = protocol("caser", metrics=("ndcg", "recall"), cutoffs=(10,))
    figures = deeprec.models.EASE(refit=False).fit(data, protocol=rule, baselines=False).evaluate()
    report = alone.evaluate()
    for row in (report.sources[0], report.stages[-1]):
        assert row.ndcg == pytest.approx(figures["ndcg@10"], abs=1e-6)
        assert row.hit_recall == pytest.approx(figures["recall@10"], abs=1e-6)
    assert report.stages[0].recall == pytest.approx(1.0)  # the quota is the catalogue


def test_every_source_and_stage_is_measured(pipeline: Pipeline) -> None:
    report = pipeline.report["test"]
    assert [row["name"] for row in report["sources"]] == ["ease", "popularity", "item-to-item", "freshest"]
    names = ["candidates", "ranking: clicks", "boost", "mmr", "calibration", "exploration"]
    assert [row["name"] for row in report["stages"]] == names
    union = report["stages"][0]["recall"]
    assert max(row["recall"] for row in report["sources"]) <= union <= sum(row["recall"] for row in report["sources"])
    assert all(row["recall"] == pytest.approx(union) for row in report["stages"])
    assert report["filters"] == 0
    for row in report["stages"][1:]:
        assert 0 < row["ndcg"] < 1
        assert 0 < row["coverage"] <= 1
        assert 0 <= row["gini"] < 1
    assert {"validation", "test"} == set(pipeline.report)
    json.dumps(pipeline.report, allow_nan=False)


def test_recall_of_candidates_is_that_of_plain_sets(simple: Pipeline) -> None:
    history = simple.state.history
    held, before = history.of_parts(2), history.of_parts(0, 1)
    recalls = []
    for user in range(40):
        asked = simple.asked(np.array([user]), history=before.taken([user]))
        answer = simple.answer(asked._replace(is_changed=np.array([False])), 10)
        targets = set(held.taken([user]).items.tolist())
        assert not set(answer.candidates.lists.items.tolist()) & set(before.taken([user]).items.tolist())
        recalls.append(len(targets & set(answer.proposed[1].items[0].tolist())) / len(targets))
    assert 0 < np.mean(recalls) < 1
    everyone = simple.evaluate().sources[1].recall
    assert everyone == pytest.approx(np.mean(recalls), abs=0.1)


def test_two_pipelines_are_compared_for_the_same_people(data: Interactions, simple: Pipeline) -> None:
    popular = _fit(data)
    result = simple.compare(popular)
    mine, theirs = simple.evaluate(), popular.evaluate()
    assert result.first == pytest.approx(mine.stages[-1].ndcg)
    assert result.second == pytest.approx(theirs.stages[-1].ndcg)
    assert result.low <= result.difference <= result.high
    back = popular.compare(simple)
    assert back.difference == pytest.approx(-result.difference)
    assert (back.better, back.debiased) == (result.worse, pytest.approx(-result.debiased))
    same = simple.compare(simple)
    assert (same.difference, same.low, same.high, same.same_items) == (0, 0, 0, 1)
    other = _fit(synthetic(num_users=300, num_items=200, num_interactions=12_000, seed=4))
    with pytest.raises(ValueError, match="two pipelines of the same data"):
        simple.compare(other)


def test_validation_does_not_measure_what_learned_from_it(pipeline: Pipeline, simple: Pipeline) -> None:
    with pytest.raises(ValueError, match="cannot measure ease"):
        pipeline.evaluate("validation")
    assert simple.evaluate("validation").users == 300
    with pytest.raises(ValueError, match="part must be validation or test"):
        simple.evaluate("tset")


# -- asking ----------------------------------------------------------------------------------------------------------


def test_a_block_of_people_gets_what_each_gets_alone(pipeline: Pipeline) -> None:
    users = pipeline.user_ids.values[:30].to_list()
    together = pipeline.recommend(users, 8)
    alone = pl.concat([pipeline.recommend([user], 8) for user in users])
    assert together.drop("score").equals(alone.drop("score"))
    assert np.allclose(together["score"], alone["score"], atol=1e-5)


def test_what_was_met_does_not_come_unless_asked_for(simple: Pipeline) -> None:
    frame = simple.recommend(simple.user_ids.values, 20)
    met = simple.state.history.lists
    pairs = set(zip(simple.user_ids.values.gather(met.owners()), simple.item_ids.values.gather(met.items), strict=True))
    assert not pairs & set(zip(frame["user_id"], frame["item_id"], strict=True))
    frame = simple.recommend(simple.user_ids.values, 20, exclude_seen=False)
    assert pairs & set(zip(frame["user_id"], frame["item_id"], strict=True))


def test_reciprocal_ranks_are_added(simple: Pipeline) -> None:
    answer = simple.answer(simple.asked(np.array([5])), 10)
    ranks = answer.candidates.ranks
    scores = np.where(ranks > 0, 1 / (60.0 + ranks), 0).sum(1)
    order = np.lexsort((answer.candidates.lists.items, -scores.astype(np.float32)))
    assert answer.stages[0].items[0].tolist() == answer.candidates.lists.items[order].tolist()
    for number, one in enumerate(answer.proposed):
        for place, item in enumerate(one.items[0].tolist()):
            if item >= 0:
                assert ranks[np.searchsorted(answer.candidates.lists.items, item), number] == place + 1


def test_item_to_item_sums_similarities_of_the_last_items(simple: Pipeline) -> None:
    source = simple.sources[2]
    asked = simple.asked(np.array([7, 11]))
    proposed, _ = source.propose(asked)
    for row, user in enumerate((7, 11)):
        sums: dict[int, float] = {}
        for place, item in enumerate(simple.state.history.lists.taken([user]).items[::-1][:5].tolist()):
            for near, cosine in zip(source.neighbors[item].tolist(), source.similarities[item].tolist(), strict=True):
                sums[near] = sums.get(near, 0.0) + 0.9**place * cosine
        hidden = set(asked.hidden.taken([row]).items.tolist())
        best = sorted((item for item in sums if item not in hidden and sums[item] > 0), key=lambda i: -sums[i])[:50]
        given = proposed.items[row][proposed.items[row] >= 0].tolist()
        assert len(given) == len(best)
        assert [sums[i] for i in given] == pytest.approx([sums[i] for i in best], rel=1e-5)


def test_later_events_are_read_and_do_not_come_again(simple: Pipeline) -> None:
    user = np.array([3])
    before = simple.answer(simple.asked(user), 10).stages[-1].items[0, :3]
    asked = simple.asked(user, later=Lists.of([before]))
    assert asked.is_changed.tolist() == [True]
    after = simple.answer(asked, 10).stages[-1].items[0, :10]
    assert not set(before.tolist()) & set(after.tolist())
    near = simple.because(asked, 0, int(after[0]))
    assert isinstance(near, list)


def test_somebody_unknown_gets_what_is_popular(data: Interactions, simple: Pipeline) -> None:
    with pytest.raises(ValueError, match="user"):
        simple.recommend([10**6])
    frame = simple.recommend([10**6, 1], 5, unknown="popularity")
    assert frame["fallback"].to_list() == [True] * 5 + [False] * 5
    assert len(simple.recommend([10**6, 1], 5, unknown="skip")) == 5
    with pytest.raises(ValueError, match="did you mean 'popularity'"):
        simple.recommend([1], unknown="popularty")


def test_an_empty_candidate_set_falls_back_to_popular_items(data: Interactions) -> None:
    alone = _fit(data, EASE)
    frame = alone.recommend([10**6], 5, unknown="popularity", explain=True)
    counts = alone.state.counts
    popular = alone.item_ids.values.gather(np.lexsort((np.arange(len(counts)), -counts))[:5])
    assert frame["item_id"].to_list() == popular.to_list()
    assert frame["sources"].to_list()[0] == [{"source": "popularity (fallback)", "rank": 1}]


def test_histories_of_unknown_items_say_so_or_are_skipped(simple: Pipeline) -> None:
    known = simple.item_ids.values[:3].to_list()
    assert len(simple.recommend_for_history(known, 7)) == 7
    with pytest.raises(ValueError, match="item_ids"):
        simple.recommend_for_history([10**6])
    assert len(simple.recommend_for_history([10**6], 7, unknown="skip")) == 7
    with pytest.raises(ValueError, match="at least one item"):
        simple.recommend_for_history([])


@pytest.mark.parametrize("k", [0, -1])
def test_a_list_of_no_length_is_refused(simple: Pipeline, k: int) -> None:
    with pytest.raises(ValueError, match="k must be >= 1"):
        simple.recommend([1], k)


def test_a_list_longer_than_the_candidates_ends_with_them(simple: Pipeline) -> None:
    answer = simple.answer(simple.asked(np.array([0])), 10**9)
    first = simple.user_ids.values[0]
    assert len(simple.recommend([first], 10**9)) == len(answer.candidates.lists.items)


def test_every_item_says_why_it_is_there(pipeline: Pipeline) -> None:
    frame = pipeline.recommend(pipeline.user_ids.values[:5], 6, explain=True)
    for record in frame.to_dicts():
        assert record["sources"], record
        assert {each["source"] for each in record["sources"]} <= set(pipeline.names)
        assert all(each["logit"] > 0 for each in record["features"])
    assert frame["because"].list.len().sum() > 0
    assert frame["is_explored"].sum() == 5
    history = pipeline.state.history.lists
    for record in frame.to_dicts():
        user = int(pipeline.user_ids.encode([record["user_id"]])[0])
        assert set(record["because"]) <= set(pipeline.item_ids.decode(history.taken([user]).items).tolist())


def test_a_reason_is_the_fall_of_the_logit(pipeline: Pipeline) -> None:
    asked = pipeline.asked(np.array([4]))
    answer = pipeline.answer(asked, 5)
    ranker = pipeline._ranker
    reasons = ranker.reasons(asked, answer.candidates, np.array([0]), most=100)
    rows = ranker.rows(asked, answer.candidates)
    whole = float(ranker(asked, answer.candidates)[0])
    at = [field.name for field in pipeline.click_model.inputs.fields].index("item.id")
    rows.ids[:, at] = 0
    without = float(ranker._logits(rows)[0])
    assert reasons[0].get("item.id", 0.0) == pytest.approx(max(0.0, whole - without), abs=1e-5)


def test_pairs_are_scored_as_in_lists(pipeline: Pipeline) -> None:
    answer = pipeline.answer(pipeline.asked(np.array([2, 9])), 10)
    ids = pipeline.user_ids.values.to_list(), pipeline.item_ids.values.to_list()
    first = answer.stages[0]
    pairs = [(ids[0][user], ids[1][item]) for row, user in enumerate((2, 9)) for item in first.items[row, :5].tolist()]
    assert np.allclose(pipeline.score(pairs), first.scores[:, :5].ravel(), atol=1e-5)
    with pytest.raises(ValueError, match="item_id"):
        pipeline.score([(ids[0][0], 10**6)])


def test_similar_items_are_those_of_the_first_source_that_knows(simple: Pipeline, data: Interactions) -> None:
    item = simple.item_ids.values[0]
    assert simple.similar_items([item], 4).equals(simple.models["ease"].similar_items([item], 4))
    with pytest.raises(ValueError, match="a source with item vectors"):
        _fit(data).similar_items([item])


# -- filters -----------------------------------------------------------------------------------------------------------


def test_filters_take_out_before_the_quotas_are_filled(data: Interactions, tmp_path: Path) -> None:
    assert data.item_features is not None
    column = next(name for name in data.item_features.columns if name != "item_id")
    value = data.item_features[column].explode()[0]
    has = pl.Series(
        [value in each if isinstance(each, list | pl.Series) else each == value for each in data.item_features[column]]
    )
    denied, blocked = data.item_ids.values[:20].to_list(), data.item_ids.values[20:40].to_list()
    (tmp_path / "deny.txt").write_text("\n".join(map(str, denied)) + "\n999999\n")
    user, other = data.user_ids.values[:2].to_list()
    pl.DataFrame({"user_id": [user] * 20, "item_id": blocked}).write_csv(tmp_path / "own.csv")
    filters = (
        SeenFilter(),
        DenyFilter(file=str(tmp_path / "deny.txt")),
        ColumnFilter(column, (value,), deny=True),
        PerUserFilter(str(tmp_path / "own.csv")),
    )
    made = _fit(data, Popularity(quota=30), EASE, filters=filters)
    mine, theirs = (set(made.recommend([who], 200)["item_id"]) for who in (user, other))
    with_value = set(data.item_ids.values.filter(has))
    assert not (mine | theirs) & (set(denied) | with_value)
    assert not mine & set(blocked)
    assert theirs & set(blocked)
    assert (made.answer(made.asked(np.arange(5)), 10).proposed[0].items >= 0).all()
    assert made.evaluate().filters > 0


def test_an_allow_list_is_the_whole_catalogue(data: Interactions) -> None:
    kept = data.item_ids.values[10:25].to_list()
    made = _fit(data, filters=(AllowFilter(tuple(kept)),))
    assert set(made.recommend(data.user_ids.values, 50)["item_id"]) == set(kept)
    only = made.recommend([1], 50, allow=kept[:5], deny=kept[:2])
    assert set(only["item_id"]) == set(kept[2:5])
    with pytest.raises(ValueError, match="the filters must leave an item"):
        _fit(data, filters=(DenyFilter(tuple(data.item_ids.values.to_list())),))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filters": (DenyFilter((10**6,)),)}, "deny: items"),
        ({"filters": (ColumnFilter("genrse", ("a",)),)}, "column: the items' table must have a column 'genrse'"),
        ({"filters": (PerUserFilter("none.csv"),)}, "none.csv"),
        ({"ranking": ByClicks(model="deepmf")}, "unknown model 'deepmf'; did you mean 'deepfm'"),
        ({"ranking": ByClicks(columns=("agee",))}, "columns must be of the users' or items' tables"),
        ({"ranking": ByClicks(options={"facotrs": 3}), "sources": (Popularity(),)}, "facotrs"),
    ],
)
def test_a_stage_that_does_not_fit_the_data_is_refused(data: Interactions, options: Any, words: str) -> None:
    sources = options.pop("sources", (Popularity(),)) if "sources" in options else (Popularity(),)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        _fit(data, *sources, **options)


def test_freshest_needs_times_or_a_column(data: Interactions) -> None:
    made = _fit(data, Freshest(quota=10))
    train = protocol("caser").split(data).train
    first = np.full(data.num_items, np.iinfo(np.int64).max)
    np.minimum.at(first, train.items, train.order)
    newest = made.sources[0].propose(made.asked(np.array([-1])))[0].items[0]
    latest = np.sort(first[first < np.iinfo(np.int64).max])[-10:]
    assert sorted(first[newest].tolist()) == latest.tolist()
    timeless = dataclasses.replace(data, order=None, order_kind=None)
    with pytest.raises(ValueError, match="freshest needs times"):
        Pipeline.fit(PipelineConfig((Freshest(),), protocol={"name": "random"}), timeless, measure=False)
    with pytest.raises(ValueError, match="popularity: days=3 needs times"):
        Pipeline.fit(PipelineConfig((Popularity(days=3.0),), protocol={"name": "random"}), timeless, measure=False)


# -- models of others and folders -----------------------------------------------------------------------------------


def test_a_fitted_folder_is_a_source(data: Interactions, tmp_path: Path, simple: Pipeline) -> None:
    rule = protocol("caser", metrics=("ndcg", "recall"), cutoffs=(10,))
    deeprec.models.EASE(refit=False).fit(data, protocol=rule, baselines=False, out=tmp_path / "ease")
    sources = ModelSource("ease", folder=str(tmp_path / "ease"), quota=200), *simple.config.sources[1:]
    again = _fit(data, *sources)
    assert again.recommend([1, 2, 3]).equals(simple.recommend([1, 2, 3]))


def test_a_folder_of_other_ids_or_another_split_is_refused(data: Interactions, tmp_path: Path) -> None:
    other = synthetic(num_users=300, num_items=199, num_interactions=12_000, seed=3)
    deeprec.models.Popularity().fit(other, baselines=False).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"source 'other' must have been trained on the (users|items)"):
        _fit(data, ModelSource("other", folder=str(tmp_path / "other")))
    deeprec.models.Popularity().fit(data, protocol="random", baselines=False, out=tmp_path / "random")
    with pytest.raises(ValueError, match="trained on the split of the pipeline"):
        _fit(data, ModelSource("random", folder=str(tmp_path / "random")))


def test_a_saved_pipeline_says_the_same(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "made")
    again = Pipeline.load(tmp_path / "made")
    assert again.config == pipeline.config
    assert again.report == pipeline.report
    users = pipeline.user_ids.values
    assert again.recommend(users, 10).equals(pipeline.recommend(users, 10))
    assert again.evaluate().as_dict() == pipeline.report["test"]
    again.save(tmp_path / "made")  # over itself
    assert Pipeline.load(tmp_path / "made").recommend(users[:5]).equals(pipeline.recommend(users[:5]))
    assert not list(tmp_path.glob(".*"))


def test_copies_say_the_same(pipeline: Pipeline) -> None:
    users = pipeline.user_ids.values[:4]
    for other in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):  # noqa: S301 (our own)
        assert other.recommend(users).equals(pipeline.recommend(users))


def test_two_fits_are_the_same(data: Interactions, config: PipelineConfig, pipeline: Pipeline) -> None:
    assert Pipeline.fit(config, data).report == pipeline.report


@pytest.mark.parametrize(
    "name", ["arrays.safetensors", "items.parquet", "user_ids.parquet", "sources/ease/config.json"]
)
def test_a_damaged_folder_is_refused_by_the_file(simple: Pipeline, tmp_path: Path, name: str) -> None:
    simple.save(tmp_path / "made")
    path = tmp_path / "made" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=name.rpartition("/")[2]):
        Pipeline.load(tmp_path / "made")
    path.unlink()
    with pytest.raises(ValueError, match="incomplete"):
        Pipeline.load(tmp_path / "made")


def test_a_model_of_another_pipeline_is_refused(simple: Pipeline, data: Interactions, tmp_path: Path) -> None:
    simple.save(tmp_path / "made")
    other = synthetic(num_users=300, num_items=200, num_interactions=12_000, seed=9)
    _fit(other, EASE).models["ease"].save(tmp_path / "made" / "sources" / "ease")
    with pytest.raises(ValueError, match=r"config.json was changed"):
        Pipeline.load(tmp_path / "made")


def test_a_changed_head_and_what_is_no_pipeline_are_refused(simple: Pipeline, tmp_path: Path) -> None:
    simple.save(tmp_path / "made")
    head = tmp_path / "made" / "pipeline.json"
    values = json.loads(head.read_text())
    values["config"]["k"] = 11
    head.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="its checksum is another"):
        Pipeline.load(tmp_path / "made")
    head.write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(ValueError, match="newer format"):
        Pipeline.load(tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="no pipeline in"):
        Pipeline.load(tmp_path / "none")
    simple.models["ease"].save(tmp_path / "ease")
    with pytest.raises(FileNotFoundError, match=r"it holds a model; take deeprec.load"):
        Pipeline.load(tmp_path / "ease")
    with pytest.raises(FileNotFoundError, match=r"it holds a pipeline"):
        deeprec.load(tmp_path / "made")
    with pytest.raises(ValueError, match="must be new, empty or a pipeline"):
        simple.save(tmp_path / "ease")


def test_a_ranker_of_other_columns_is_refused(pipeline: Pipeline) -> None:
    state = dataclasses.replace(pipeline.state, users=None)
    with pytest.raises(ValueError, match="the ranker deepfm must have been trained on the columns of this pipeline"):
        Pipeline(Parts(pipeline.config, state, pipeline.models, pipeline.click_model))


def test_the_ranker_learns_more_than_fusion_knows(data: Interactions, pipeline: Pipeline) -> None:
    config = dataclasses.replace(pipeline.config, ranking=Fusion(), rerank=())
    fused = Pipeline.fit(config, data).report["test"]["stages"][-1]["ndcg"]
    learned = pipeline.report["test"]["stages"][1]["ndcg"]
    assert learned > fused


def test_rows_of_the_ranker_are_those_that_its_encoder_makes(pipeline: Pipeline) -> None:
    users = np.array([2, 17, -1])
    asked = pipeline.asked(users)
    answer = pipeline.answer(asked, 10)
    ranker, tables, lists = pipeline._ranker, pipeline._ranker.tables, answer.candidates.lists
    frame = tables.frame(users[lists.owners()], lists.items, tables.context(asked, answer.candidates))
    expected, made = next(iter(pipeline.click_model.encoder.stream(frame))), ranker.rows(asked, answer.candidates)
    assert np.array_equal(made.ids, expected.ids)
    assert np.allclose(made.values, expected.values, atol=1e-6)
    for name, bags in expected.bags.items():
        assert np.array_equal(made.bags[name].offsets, bags.offsets)
        assert np.array_equal(made.bags[name].ids, bags.ids)


def test_diversity_is_the_mean_over_pairs() -> None:
    draw = np.random.default_rng(0)
    vectors = unit_rows(draw.standard_normal((20, 5)))
    top = np.array([draw.permutation(20)[:4] for _ in range(600)])
    top[0, 2:] = -1
    top[1, 1:] = -1  # one item has no pairs
    means = []
    for row in top:
        items = row[row >= 0]
        pairs = [1 - float(vectors[a] @ vectors[b]) for a in items for b in items if a < b]
        means += [np.mean(pairs)] if pairs else []
    assert diversity(top, vectors) == pytest.approx(np.mean(means), abs=1e-5)


def test_a_file_of_lists_goes_on_after_a_kill(
    simple: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["deeprec.serve.recommend_file"], "_USERS_A_PART", 64)
    rows = simple.recommend_file(tmp_path / "whole.csv", 5)
    assert rows == 5 * 300

    def stop(done: int, total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simple.recommend_file(tmp_path / "parts.csv", 5, on_progress=stop)
    kept: list[int] = []
    usual = Pipeline.recommend
    monkeypatch.setattr(Pipeline, "recommend", lambda *args, **options: kept.append(1) or usual(*args, **options))
    with pytest.raises(ValueError, match="another k"):
        simple.recommend_file(tmp_path / "parts.csv", 6, resume=True)
    assert simple.recommend_file(tmp_path / "parts.csv", 5, resume=True) == rows
    assert len(kept) == 3  # of five parts
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
