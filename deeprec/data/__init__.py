"""Interactions, id maps, readers, data sets by name, splits and sampled candidates. Knows no model, needs no torch."""

from __future__ import annotations

from deeprec.data.build import from_frame
from deeprec.data.datasets import DatasetInfo, cache_dir, find, info, list_datasets, load, search_dirs
from deeprec.data.features import with_features
from deeprec.data.fetch import SOURCES, fetch
from deeprec.data.interactions import IdMap, Interactions, OfficialSplit, Split, UnknownIdError
from deeprec.data.selection import positives
from deeprec.data.splits import leave_one_out, official, random_holdout, sampled_negatives
from deeprec.data.synthetic import SyntheticInteractions, SyntheticTruth, synthetic

__all__ = [
    "SOURCES",
    "DatasetInfo",
    "IdMap",
    "Interactions",
    "OfficialSplit",
    "Split",
    "SyntheticInteractions",
    "SyntheticTruth",
    "UnknownIdError",
    "cache_dir",
    "fetch",
    "find",
    "from_frame",
    "info",
    "leave_one_out",
    "list_datasets",
    "load",
    "official",
    "positives",
    "random_holdout",
    "sampled_negatives",
    "search_dirs",
    "synthetic",
    "with_features",
]
