"""What a step of training sees: pairs with negatives, rows of ratings, likes of users, rows of a log, sequences."""

from deeprec.batches.likes import Likes, UserBatch
from deeprec.batches.log import LogBatch, LogBatches
from deeprec.batches.pairs import PairBatch, PairwiseBatches
from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.batches.sequences import Histories, SequenceBatch, SequenceBatches
from deeprec.batches.sliding import SlidingBatches, WindowBatch

__all__ = [
    "Histories",
    "Likes",
    "LogBatch",
    "LogBatches",
    "PairBatch",
    "PairwiseBatches",
    "RatingRows",
    "RowBatch",
    "SequenceBatch",
    "SequenceBatches",
    "SlidingBatches",
    "UserBatch",
    "WindowBatch",
]
