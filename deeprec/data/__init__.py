"""Interactions and click logs: readers, schemas, data sets, splits, candidates. Knows no model, needs no torch.

Rooms, each of which knows none after it: `reading` (files to columns), `media` (images, sounds, videos and texts of
items, decoded and as vectors), `columns` (what they mean) and
`interactions` (who met what, divided), `clicks` (encoded logs), `sets` (by name, fetched, synthetic).
"""

from __future__ import annotations

from deeprec.data.clicks.log import ClickLog
from deeprec.data.columns.data_schema import DataSchema
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.kinds import Audio, Bag, Categorical, Cross, Image, Numeric, Sequence, Text, Vector, Video
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.schema_inference import infer as infer_schema
from deeprec.data.columns.table import EncodedTable
from deeprec.data.columns.terms import Terms
from deeprec.data.interactions.bandit_log import BanditLog
from deeprec.data.interactions.build import from_frame
from deeprec.data.interactions.domains import Domains, domains_of
from deeprec.data.interactions.encoded import EncodedTables, encode_tables
from deeprec.data.interactions.features import with_features
from deeprec.data.interactions.interactions import IdMap, Interactions, OfficialSplit, Split, UnknownIdError
from deeprec.data.interactions.logged import LoggedInteractions, naive_bayes_propensities, with_propensities
from deeprec.data.interactions.new_users import new_users_holdout
from deeprec.data.interactions.reviews import Reviews
from deeprec.data.interactions.selection import positives
from deeprec.data.interactions.session_splits import official_sessions, sessions_holdout
from deeprec.data.interactions.sessions import sessions
from deeprec.data.interactions.splits import (
    items_holdout,
    leave_one_out,
    official,
    random_holdout,
    sampled_negatives,
    time_holdout,
)
from deeprec.data.interactions.tags import Folksonomy
from deeprec.data.reading.sources import open_source
from deeprec.data.sets.bandit_sets import load_bandit
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.data.sets.click_histories import clicks_with_histories
from deeprec.data.sets.datasets import DatasetInfo, cache_dir, find, info, list_datasets, load, search_dirs
from deeprec.data.sets.fetch import fetch
from deeprec.data.sets.media_tables import MediaTable, load_media
from deeprec.data.sets.publishers import SOURCES
from deeprec.data.sets.rendered import with_media
from deeprec.data.sets.synthetic import SyntheticInteractions, SyntheticTruth, interactions_of_labels, synthetic

__all__ = [
    "SOURCES",
    "Audio",
    "Bag",
    "BanditLog",
    "Categorical",
    "ClickLog",
    "Cross",
    "DataSchema",
    "DatasetInfo",
    "Domains",
    "EncodedTable",
    "EncodedTables",
    "Encoder",
    "FeatureSchema",
    "Folksonomy",
    "IdMap",
    "Image",
    "Interactions",
    "LoggedInteractions",
    "MediaTable",
    "Numeric",
    "OfficialSplit",
    "Reviews",
    "Sequence",
    "Split",
    "SyntheticInteractions",
    "SyntheticTruth",
    "Terms",
    "Text",
    "UnknownIdError",
    "Vector",
    "Video",
    "cache_dir",
    "clicks_with_histories",
    "domains_of",
    "encode_tables",
    "fetch",
    "find",
    "from_frame",
    "infer_schema",
    "info",
    "interactions_of_labels",
    "items_holdout",
    "leave_one_out",
    "list_datasets",
    "load",
    "load_bandit",
    "load_clicks",
    "load_media",
    "naive_bayes_propensities",
    "new_users_holdout",
    "official",
    "official_sessions",
    "open_source",
    "positives",
    "random_holdout",
    "sampled_negatives",
    "search_dirs",
    "sessions",
    "sessions_holdout",
    "synthetic",
    "time_holdout",
    "with_features",
    "with_media",
    "with_propensities",
]
