"""Interactions and click logs: readers, schemas, data sets, splits, candidates. Knows no model, needs no torch."""

from __future__ import annotations

from deeprec.data.build import from_frame
from deeprec.data.chunks import open_source
from deeprec.data.click_datasets import load_clicks
from deeprec.data.click_log import ClickLog
from deeprec.data.datasets import DatasetInfo, cache_dir, find, info, list_datasets, load, search_dirs
from deeprec.data.encoder import Encoder
from deeprec.data.features import with_features
from deeprec.data.fetch import SOURCES, fetch
from deeprec.data.interactions import IdMap, Interactions, OfficialSplit, Split, UnknownIdError
from deeprec.data.schema import Bag, Categorical, Cross, FeatureSchema, Numeric
from deeprec.data.schema_inference import infer as infer_schema
from deeprec.data.selection import positives
from deeprec.data.splits import leave_one_out, official, random_holdout, sampled_negatives
from deeprec.data.synthetic import SyntheticInteractions, SyntheticTruth, synthetic

__all__ = [
    "SOURCES",
    "Bag",
    "Categorical",
    "ClickLog",
    "Cross",
    "DatasetInfo",
    "Encoder",
    "FeatureSchema",
    "IdMap",
    "Interactions",
    "Numeric",
    "OfficialSplit",
    "Split",
    "SyntheticInteractions",
    "SyntheticTruth",
    "UnknownIdError",
    "cache_dir",
    "fetch",
    "find",
    "from_frame",
    "infer_schema",
    "info",
    "leave_one_out",
    "list_datasets",
    "load",
    "load_clicks",
    "official",
    "open_source",
    "positives",
    "random_holdout",
    "sampled_negatives",
    "search_dirs",
    "synthetic",
    "with_features",
]
