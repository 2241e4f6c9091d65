"""One small pipeline of each kind of stage, fitted once."""

from __future__ import annotations

import pytest

from deeprec.data import Interactions, synthetic
from deeprec.pipeline import Pipeline, PipelineConfig

CONFIG = """
protocol: {name: caser, metrics: [ndcg, recall], cutoffs: [10]}
sources:
  - {kind: model, name: ease, model: ease, quota: 40}
  - {kind: popularity, quota: 30}
  - {kind: item-to-item, of: ease, last: 3, neighbors: 20, quota: 30}
  - {kind: freshest, quota: 10}
ranking: {kind: clicks, model: deepfm, negatives: 5, options: {hidden: [16], epochs: 2}}
rerank:
  - {kind: boost, column: GENRES, values: [VALUE], by: 0.1}
  - {kind: mmr, vectors: ease, diversity: 0.1}
  - {kind: calibration, column: GENRES, weight: 0.1}
  - {kind: exploration, places: 1}
"""


@pytest.fixture(scope="session")
def data() -> Interactions:
    return synthetic(num_users=300, num_items=200, num_interactions=12_000, seed=3)


@pytest.fixture(scope="session")
def config(data: Interactions) -> PipelineConfig:
    assert data.item_features is not None
    column = next(name for name in data.item_features.columns if name != "item_id")
    value = data.item_features[column].explode()[0]
    return PipelineConfig.from_yaml(CONFIG.replace("GENRES", column).replace("VALUE", str(value)))


@pytest.fixture(scope="session")
def pipeline(data: Interactions, config: PipelineConfig) -> Pipeline:
    return Pipeline.fit(config, data)
