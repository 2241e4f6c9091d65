"""Pipelines: candidates from several sources, filters, ranking, re-ranking and explanation, as one saved whole."""

from __future__ import annotations

from deeprec.pipeline.config import (
    MMR,
    AllowFilter,
    Boost,
    ByClicks,
    ByModel,
    Calibration,
    ColumnFilter,
    DenyFilter,
    Exploration,
    Freshest,
    Fusion,
    ItemToItem,
    ModelSource,
    PerUserFilter,
    PipelineConfig,
    Popularity,
    ProviderQuota,
    SeenFilter,
)
from deeprec.pipeline.evaluation import Comparison, Report
from deeprec.pipeline.folder import is_pipeline
from deeprec.pipeline.pipeline import Pipeline

__all__ = [
    "MMR",
    "AllowFilter",
    "Boost",
    "ByClicks",
    "ByModel",
    "Calibration",
    "ColumnFilter",
    "Comparison",
    "DenyFilter",
    "Exploration",
    "Freshest",
    "Fusion",
    "ItemToItem",
    "ModelSource",
    "PerUserFilter",
    "Pipeline",
    "PipelineConfig",
    "Popularity",
    "ProviderQuota",
    "Report",
    "SeenFilter",
    "is_pipeline",
]
