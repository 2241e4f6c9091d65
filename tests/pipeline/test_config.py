"""A config is checked before anything is trained, and says what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deeprec.pipeline import MMR, Fusion, ItemToItem, ModelSource, PipelineConfig, Popularity

POPULAR = {"kind": "popularity"}
EASE = {"kind": "model", "name": "ease", "model": "ease"}


def test_what_as_dict_wrote_comes_back(config: PipelineConfig) -> None:
    assert PipelineConfig.from_dict(config.as_dict()) == config


def test_python_and_yaml_say_the_same() -> None:
    made = PipelineConfig(
        (ModelSource("ease", "ease", options={"l2": 10.0}), ItemToItem("ease")),
        ranking=Fusion(weights={"ease": 2.0}),
        rerank=(MMR(vectors="ease"),),
    )
    text = """
sources: [{kind: model, name: ease, model: ease, options: {l2: 10.0}}, {kind: item-to-item, of: ease}]
ranking: {kind: fusion, weights: {ease: 2.0}}
rerank: [{kind: mmr, vectors: ease}]
"""
    assert PipelineConfig.from_yaml(text) == made


def test_a_kind_alone_is_a_stage() -> None:
    made = PipelineConfig.from_yaml("sources: [popularity]\nfilters: [seen]\nranking: fusion\n")
    assert made.sources == (Popularity(),)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sources": [POPULAR], "rerankk": []}, "rerankk is unknown; did you mean 'rerank'?"),
        ({"sources": [{"kind": "popularty"}]}, r"sources\[0\]: unknown kind 'popularty'; did you mean 'popularity'?"),
        ({"sources": [POPULAR], "rerank": [{"kind": "mrr"}]}, r"rerank\[0\]: unknown kind 'mrr'; did you mean 'mmr'?"),
        ({"sources": [{**POPULAR, "qouta": 3}]}, r"sources\[0\].qouta is unknown; did you mean 'quota'?"),
        ({"sources": [{**POPULAR, "quota": "3"}]}, r"sources\[0\].quota must be a whole number"),
        ({"sources": [{**POPULAR, "quota": 0}]}, r"sources\[0\]: popularity: quota must be >= 1, got 0"),
        ({"sources": [{"quota": 3}]}, r"sources\[0\] must be a stage such as"),
        ({"sources": "popularity"}, "sources must be a list"),
        ({"sources": []}, "sources must be at least one"),
        ({"filters": ["seen"]}, "sources is missing"),
        ({"sources": [POPULAR, POPULAR]}, "a name of its own, got 'popularity' twice"),
        ({"sources": [{"kind": "model", "name": "a"}]}, "either a model to train or a folder"),
        ({"sources": [{**EASE, "name": "../x"}]}, "letters, digits"),
        ({"sources": [EASE, {"kind": "item-to-item", "of": "esae"}]}, "of kind model, got 'esae'; did"),
        ({"sources": [POPULAR], "rerank": [{"kind": "mmr"}]}, "either vectors of a source or a column"),
        ({"sources": [POPULAR], "rerank": [{"kind": "mmr", "vectors": "popularity"}]}, "a source of kind model"),
        ({"sources": [POPULAR], "ranking": {"kind": "fusion", "weights": {"popular": 1}}}, "weights must name sources"),
        ({"sources": [POPULAR], "filters": [{"kind": "deny"}]}, "items or a file are needed"),
        ({"sources": [POPULAR], "filters": [{"kind": "column", "column": "year"}]}, "values or with bounds"),
        ({"sources": [POPULAR], "protocol": {"cutoffs": [10]}}, "protocol must have a name"),
        ({"sources": [POPULAR], "k": 0}, "k must be >= 1"),
        ([POPULAR], "a mapping with sources is needed"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_refused_by_name(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PipelineConfig.from_dict(values)


def test_yaml_that_is_none_and_keys_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pipeline: this is not YAML"):
        PipelineConfig.from_yaml("sources: [\n")
    with pytest.raises(ValueError, match="'k' is given twice"):
        PipelineConfig.from_yaml("sources: [popularity]\nk: 5\nk: 6\n")
    with pytest.raises(FileNotFoundError, match="pipeline"):
        PipelineConfig.from_yaml(tmp_path / "none.yaml")
