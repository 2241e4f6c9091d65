"""What a step of training sees: pairs, rows of ratings, likes of users, rows of a log, sequences, sessions."""

from deeprec.batches.feedback import Feedback, FeedbackBatch, FeedbackBatches
from deeprec.batches.likes import Likes, UserBatch
from deeprec.batches.log import LogBatch, LogBatches
from deeprec.batches.pairs import PairBatch, PairwiseBatches
from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.batches.sequences import Histories, SequenceBatch, SequenceBatches
from deeprec.batches.sessions import SessionBatch, SessionBatches
from deeprec.batches.sliding import SlidingBatches, WindowBatch

__all__ = [
    "Feedback",
    "FeedbackBatch",
    "FeedbackBatches",
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
    "SessionBatch",
    "SessionBatches",
    "SlidingBatches",
    "UserBatch",
    "WindowBatch",
]
