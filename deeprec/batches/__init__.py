"""What a step of training sees: pairs with negatives, rows of ratings, likes of users, rows of a log."""

from deeprec.batches.likes import Likes, UserBatch
from deeprec.batches.log import LogBatch, LogBatches
from deeprec.batches.pairs import PairBatch, PairwiseBatches
from deeprec.batches.ratings import RatingRows, RowBatch

__all__ = [
    "Likes",
    "LogBatch",
    "LogBatches",
    "PairBatch",
    "PairwiseBatches",
    "RatingRows",
    "RowBatch",
    "UserBatch",
]
