"""Serving: recommendations from trained models."""

from deeprec.serve.features import recommend_for_features
from deeprec.serve.folder import load, save
from deeprec.serve.histories import recommend_for_histories, recommend_for_history
from deeprec.serve.index import ItemIndex
from deeprec.serve.index_recall import RecallReport
from deeprec.serve.predict import predict_file, predict_pairs_file
from deeprec.serve.recommend import (
    fold_in,
    predict_for_item,
    predict_for_user,
    recommend,
    score,
    similar_items,
)
from deeprec.serve.recommend_file import recommend_file
from deeprec.serve.recommend_for_tags import recommend_for_tags

__all__ = [
    "ItemIndex",
    "RecallReport",
    "fold_in",
    "load",
    "predict_file",
    "predict_for_item",
    "predict_for_user",
    "predict_pairs_file",
    "recommend",
    "recommend_file",
    "recommend_for_features",
    "recommend_for_histories",
    "recommend_for_history",
    "recommend_for_tags",
    "save",
    "score",
    "similar_items",
]
