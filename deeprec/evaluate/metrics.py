"""Ranking metrics from the ranks of the positives, and list metrics from the recommended items.

A rank counts from 1. The ranks of all users lie in one flat array, ascending within a user; `offsets` [U+1] says where
each user starts. Without `offsets` every rank is a case of its own, which is leave-one-out. In the formulas `P` is the
number of positives of a user, `r_1 < ... < r_P` their ranks, `K` the cutoff. Each ranking metric gives one value per
user; the figure that is reported is their plain mean over users with at least one positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean
from deeprec.evaluate.click_metrics import LOWER_IS_BETTER

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def _layout(ranks: NDArray[Any], offsets: NDArray[Any] | None, k: int | None) -> tuple[IntArray, IntArray, IntArray]:
    """ranks, starts [U], counts [U] in int64, checked."""
    ranks = np.asarray(ranks, dtype=np.int64)
    if k is not None and k < 1:
        raise ValueError(f"metrics: the cutoff k must be at least 1, got {k}")
    if ranks.ndim != 1 or (ranks.size and ranks.min() < 1):
        raise ValueError("metrics: ranks must be a flat array counted from 1")
    if offsets is None:
        return ranks, np.arange(ranks.size), np.ones(ranks.size, dtype=np.int64)
    offsets = np.asarray(offsets, dtype=np.int64)
    counts = np.diff(offsets)
    if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != ranks.size or (counts < 1).any():
        raise ValueError(
            f"metrics: offsets must rise from 0 to {ranks.size} with a positive for every user; drop the users without"
        )
    return ranks, offsets[:-1], counts


def _sum_per_user(values: NDArray[Any], starts: IntArray) -> FloatArray:
    return np.add.reduceat(values.astype(np.float64), starts) if starts.size else np.zeros(0)


def _position(counts: IntArray) -> IntArray:
    """1, 2, ..., P for every user, flat: the how-many-th positive of its user each rank is."""
    starts = np.cumsum(counts) - counts
    return np.arange(1, int(counts.sum()) + 1) - np.repeat(starts, counts)


def hit_ratio(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> FloatArray:
    """HR@K = 1 if r_1 <= K else 0.

    Args:
        ranks: [nnz] ranks of the positives from 1, ascending within a user.
        k: cutoff, at least 1.
        offsets: [U+1] start of each user, or None for one positive a user.
    Returns:
        [U] float64 in {0, 1}.
    Reference: He et al. 2017 (arXiv 1708.05031), section 4.1.
    """
    ranks, starts, _ = _layout(ranks, offsets, k)
    return (ranks[starts] <= k).astype(np.float64)


def recall(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> FloatArray:
    """Recall@K = #{j: r_j <= K} / P; with one positive it equals HR@K. Arguments as `hit_ratio`, [U] in [0, 1]."""
    ranks, starts, counts = _layout(ranks, offsets, k)
    return _sum_per_user(ranks <= k, starts) / counts


def precision(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> FloatArray:
    """Precision@K = #{j: r_j <= K} / K, also where a user has fewer than K candidates. Arguments as `hit_ratio`."""
    ranks, starts, _ = _layout(ranks, offsets, k)
    return _sum_per_user(ranks <= k, starts) / k


def ndcg(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> FloatArray:
    """NDCG@K = sum_{r_j <= K} 1/log2(r_j + 1) / sum_{i <= min(K, P)} 1/log2(i + 1).

    With one positive this is ln 2 / ln(r + 1) inside the cutoff, as in the NCF authors' code. Arguments as `hit_ratio`,
    returns [U] in [0, 1].
    Reference: Jarvelin and Kekalainen 2002 (doi 10.1145/582415.582418), binary gain; He et al. 2017, section 4.1.
    """
    ranks, starts, counts = _layout(ranks, offsets, k)
    gain = np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)
    largest = int(min(k, counts.max())) if counts.size else 0
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(1, largest + 1) + 1.0))])
    scores: FloatArray = _sum_per_user(gain, starts) / ideal[np.minimum(counts, k)]
    return scores


def mrr(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> FloatArray:
    """MRR@K = 1 / r_1 if r_1 <= K else 0: the first positive only. Arguments as `hit_ratio`, [U] in [0, 1].

    See `mrr_all` without a cutoff, and `mrr_pairs` for the mean over all test pairs.
    """
    ranks, starts, _ = _layout(ranks, offsets, k)
    first = ranks[starts]
    return np.where(first <= k, 1.0 / first, 0.0)


def average_precision(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> FloatArray:
    """AP@K = sum_{r_j <= K} (j / r_j) / min(K, P); MAP@K is its mean. Arguments as `hit_ratio`, [U] in [0, 1].

    Reference: Wu et al. 2016 (CDAE), which divides by min(K, P); some libraries divide by P, equal when P <= K.
    """
    ranks, starts, counts = _layout(ranks, offsets, k)
    precision_at = np.where(ranks <= k, _position(counts) / ranks, 0.0)
    return _sum_per_user(precision_at, starts) / np.minimum(counts, k)


def f1(ranks: NDArray[Any], k: int, offsets: NDArray[Any] | None = None) -> float:
    """F1@K = 2 P R / (P + R) of the means over users P = Precision@K and R = Recall@K, 0 where both are.

    Arguments as `hit_ratio`; one number in [0, 1], no mean of figures of users.
    Reference: Xu et al. 2016 (DSPR), section 5: all F of its table 2 are those of the P and R beside them.
    """
    mean_precision, mean_recall = (float(metric(ranks, k, offsets).mean()) for metric in (precision, recall))
    both = mean_precision + mean_recall
    return 2 * mean_precision * mean_recall / both if both else 0.0


def average_precision_all(ranks: NDArray[Any], offsets: NDArray[Any] | None = None) -> FloatArray:
    """AP = sum_j (j / r_j) / P over the whole list, without a cutoff. Arguments as `hit_ratio`, [U] in (0, 1]."""
    ranks, starts, counts = _layout(ranks, offsets, None)
    return _sum_per_user(_position(counts) / ranks, starts) / counts


def mrr_all(ranks: NDArray[Any], offsets: NDArray[Any] | None = None) -> FloatArray:
    """1 / r_1, the first positive alone, without a cutoff; never below HR@1. Arguments as `hit_ratio`, [U]."""
    ranks, starts, _ = _layout(ranks, offsets, None)
    reciprocal: FloatArray = 1.0 / ranks[starts]
    return reciprocal


def mrr_pairs(ranks: NDArray[Any], offsets: NDArray[Any] | None = None) -> float:
    """Mean of 1 / r_j over all positives of all users, where each counts the positives of its user before it too.

    One number in (0, 1], no mean over users: far below `mrr_all` where users have many positives.
    Reference: the reading of MRR that fits table 2 of Xu et al. 2016 (DSPR), where it is below P@1.
    """
    ranks, _, _ = _layout(ranks, offsets, None)
    return float((1.0 / ranks).mean())


def auc(ranks: NDArray[Any], num_candidates: NDArray[Any], offsets: NDArray[Any] | None = None) -> FloatArray:
    """AUC = 1 - sum_j (r_j - j) / (P (C - P)): the share of (positive, negative) pairs in the right order.

    Ties count as the ranks count them: under the pessimistic rule a tied pair is a wrong pair (the textbook gives it
    one half), so a constant scorer has 0.

    Args:
        ranks: [nnz], as in `hit_ratio`.
        num_candidates: [U] C, ranked items of each user, positives included.
        offsets: [U+1] or None.
    Returns:
        [U] in [0, 1]; NaN for a user without negatives.
    Reference: Rendle et al. 2009 (BPR, arXiv 1205.2618), section 4.1.
    """
    ranks, starts, counts = _layout(ranks, offsets, None)
    negatives = np.asarray(num_candidates, dtype=np.int64) - counts
    wrong = _sum_per_user(ranks - _position(counts), starts)
    pairs = (counts * negatives).astype(np.float64)
    share: FloatArray = 1.0 - np.divide(wrong, pairs, out=np.full(wrong.shape, np.nan), where=pairs > 0)
    return share


def _exposure(top_items: NDArray[Any], k: int, num_items: int) -> IntArray:
    """How often each item stands in the first k of the lists, [num_items]."""
    top_items = np.asarray(top_items)
    if k < 1 or top_items.ndim != 2 or top_items.shape[1] < k:
        raise ValueError(f"metrics: lists of at least k={k} >= 1 items are needed, got shape {top_items.shape}")
    shown = top_items[:, :k].ravel()
    return np.bincount(shown[shown >= 0], minlength=num_items).astype(np.int64)


def coverage(top_items: NDArray[Any], k: int, num_items: int) -> float:
    """Coverage@K = #{items in any user's top K} / N.

    Args:
        top_items: [U, >= K] recommended items, best first; -1 where a list is shorter.
        k: cutoff, at least 1.
        num_items: N, items in the catalogue.
    Returns:
        A share in [0, 1].
    Reference: Ge, Delgado-Battenfeld and Jannach 2010 (doi 10.1145/1864708.1864761), catalogue coverage.
    """
    return float(np.count_nonzero(_exposure(top_items, k, num_items)) / num_items)


def novelty(top_items: NDArray[Any], k: int, item_counts: NDArray[Any], num_users: int) -> float:
    """Novelty@K = mean over recommended (user, item) of log2(U / max(c_i, 1)), in bits.

    Args:
        top_items: [U, >= K], as in `coverage`.
        item_counts: [N] c_i, users who have the item in the training part.
        num_users: U, users of the data set.
    Returns:
        Mean self-information, at least 0; NaN without any recommendation.
    Reference: Zhou et al. 2010 (doi 10.1073/pnas.1000488107), surprisal. An item nobody trained on counts as one user.
    """
    counts = np.asarray(item_counts, dtype=np.float64)
    exposure = _exposure(top_items, k, counts.size)
    information = np.log2(num_users / np.maximum(counts, 1.0))
    shown = exposure.sum()
    return float((exposure * information).sum() / shown) if shown else float("nan")


def gini(top_items: NDArray[Any], k: int, num_items: int) -> float:
    """Gini@K = sum_i (2 i - N - 1) x_(i) / (N sum_i x_i), x_(i) the i-th smallest exposure: 0 is equal exposure.

    Arguments as `coverage`; returns a number in [0, 1 - 1/N], NaN without any recommendation. Items never recommended
    count with exposure 0. (Shani and Gunawardana 2011 divide by N - 1 in place of N.)
    """
    exposure = np.sort(_exposure(top_items, k, num_items)).astype(np.float64)
    total = exposure.sum()
    weights = 2.0 * np.arange(1, num_items + 1) - num_items - 1.0
    return float((weights * exposure).sum() / (num_items * total)) if total else float("nan")


RankMetric = Callable[..., FloatArray]
RANK_METRICS: dict[str, RankMetric] = {
    "hr": hit_ratio,
    "recall": recall,
    "precision": precision,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
}
# Of the whole list, without a cutoff; a mean over users, or one number.
WHOLE_METRICS: dict[str, Callable[..., FloatArray | float]] = {
    "map_all": average_precision_all,
    "mrr_all": mrr_all,
    "mrr_pairs": mrr_pairs,
}
WITHOUT_CUTOFF: tuple[str, ...] = ("auc", *WHOLE_METRICS)
LIST_METRICS: tuple[str, ...] = ("coverage", "novelty", "gini")
RATING_METRICS: tuple[str, ...] = ("rmse", "mae", "rmse_rare")
METRICS: tuple[str, ...] = (*RANK_METRICS, "f1", *WITHOUT_CUTOFF, *LIST_METRICS, *RATING_METRICS)


def rmse(predictions: NDArray[Any], ratings: NDArray[Any]) -> float:
    """Root of the mean squared error over individual ratings [n] (not averaged by user), in rating units."""
    errors = np.asarray(predictions, dtype=np.float64) - np.asarray(ratings, dtype=np.float64)
    return float(np.sqrt(np.square(errors).mean()))


def mae(predictions: NDArray[Any], ratings: NDArray[Any]) -> float:
    """Mean absolute error over individual ratings [n], in rating units."""
    return float(np.abs(np.asarray(predictions, dtype=np.float64) - np.asarray(ratings, dtype=np.float64)).mean())


def rmse_rare(
    predictions: NDArray[Any], ratings: NDArray[Any], items: NDArray[Any], item_counts: NDArray[Any]
) -> float:
    """RMSE over the ratings of the rarest fifth of the items: what side information about items is to help.

    Args:
        predictions, ratings: [n], in rating units.
        items: [n] internal ids.
        item_counts: [N] training ratings of each item; among equals the smaller id is the rarer.
    Returns:
        NaN where none of the ratings is of such an item.
    Reference: Strub, Gaudel and Mary 2016 (arXiv 1606.07659), table 2.
    """
    order = np.argsort(item_counts, kind="stable")
    is_rare = np.zeros(len(item_counts), dtype=bool)
    is_rare[order[: len(order) // 5]] = True
    rare = is_rare[items]
    return rmse(np.asarray(predictions)[rare], np.asarray(ratings)[rare]) if rare.any() else float("nan")


def gain(figure: str, value: float) -> float:
    """A number that is larger where the figure ("hr@10", "rmse") is better."""
    lower = (*RATING_METRICS, *LOWER_IS_BETTER)
    return -value if figure.partition("@")[0].removeprefix("new_") in lower else value


def best_first(figure: str, value: float | None) -> float:
    """The key that sorts values of a figure from the best on, unknown ones last."""
    return math.inf if value is None else -gain(figure, value)


def check_metric(name: str) -> str:
    """`name` if it is a metric of `METRICS`, else ValueError with the closest one."""
    if name not in METRICS:
        raise ValueError(f"metrics: unknown metric {name!r}; {did_you_mean(name, METRICS)}")
    return name
