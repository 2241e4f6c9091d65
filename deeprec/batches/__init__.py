"""What a step of training sees: pairs with negatives, rows of ratings, rows of a log."""

from deeprec.batches.pairs import PairBatch, PairwiseBatches

__all__ = ["PairBatch", "PairwiseBatches"]
