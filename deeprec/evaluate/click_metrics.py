"""Metrics of predicted click probabilities: order (AUC, grouped AUC), log loss and calibration.

`logits` [n] are the scores before the sigmoid, `labels` [n] are 0 or 1. All sums are in float64.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec._files import write_atomically

CLICK_METRICS: tuple[str, ...] = ("auc", "gauc", "log_loss", "ece", "calibration", "accuracy")
LOWER_IS_BETTER: tuple[str, ...] = ("log_loss", "ece")
BINS = 20
_SIGN = np.uint32(0x80000000)
_ALL = np.uint32(0xFFFFFFFF)


def _checked(name: str, scores: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"{name}: scores and labels must be flat and equally long, got {scores.shape}, {labels.shape}")
    positive = labels == 1
    wrong = ~(positive | (labels == 0))
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(f"{name}: labels must be 0 or 1, got {labels[place]!r} at {place} and {wrong.sum():,} in all")
    if not np.isfinite(scores).all():
        place = int((~np.isfinite(scores)).argmax())
        raise ValueError(f"{name}: scores must be finite, got {scores[place]} at {place}; lower the learning rate")
    return scores, positive


def _keys(scores: NDArray[Any]) -> NDArray[np.uint32]:
    """Whole numbers in the order of the scores, equal where those are equal."""
    if scores.dtype not in (np.float32, np.float16):
        # Ranks of the distinct values: exact for every dtype, at the price of an indirect sort.
        ranks: NDArray[np.uint32] = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
        return ranks
    bits: NDArray[np.uint32] = np.add(scores, np.float32(0), dtype=np.float32).view(np.uint32)  # -0.0 becomes 0.0
    flip = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits of a negative score, the sign bit of another
    flip |= _SIGN
    bits ^= flip
    return bits


def auc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, a tie counting one half.

    Exact for any number of rows: each kind of rows is sorted by itself, as 4 bytes a row.

    Args:
        scores: [n], any monotone function of the probability; float32 is fastest.
        labels: [n], 0 or 1.
    Returns:
        In [0, 1]; NaN where all labels are equal.
    Raises:
        ValueError: another label, a score that is not finite, or unequal lengths.
    Reference: Hanley and McNeil 1982 (doi 10.1148/radiology.143.1.7063747); Mann-Whitney U / (P N).
    """
    scores, positive = _checked("auc", scores, labels)
    keys = _keys(scores)
    clicks, others = keys[positive], keys[~positive]
    if not len(clicks) or not len(others):
        return float("nan")
    del keys
    clicks.sort()
    others.sort()
    below = int(np.searchsorted(others, clicks, side="left").sum())
    not_above = int(np.searchsorted(others, clicks, side="right").sum())
    return (below + not_above) / (2 * len(clicks) * len(others))


def grouped_auc(scores: NDArray[Any], labels: NDArray[Any], groups: NDArray[Any]) -> float:
    """Mean of the AUCs of the groups, each weighted by its rows; groups with one kind of label only are left out.

    Args:
        scores, labels: as in `auc`.
        groups: [n], the group (user, query) of each row, any integers.
    Returns:
        In [0, 1]; NaN where no group has both labels.
    Reference: Zhu et al. 2017 (arXiv 1703.02091), eq. 18; Zhou et al. 2018, Deep Interest Network (arXiv 1706.06978),
        eq. 5.
    """
    scores, positive = _checked("grouped_auc", scores, labels)
    groups = np.asarray(groups)
    if groups.shape != scores.shape:
        raise ValueError(f"grouped_auc: groups must be as long as scores, got {groups.shape} and {scores.shape}")
    if not len(scores):
        return float("nan")
    number = np.unique(groups, return_inverse=True)[1].astype(np.uint64)
    # 31 bits of group, 32 of score, 1 of label.
    packed = number << np.uint64(33)
    packed |= _keys(scores).astype(np.uint64) << np.uint64(1)
    packed |= positive
    packed.sort()
    is_positive = (packed & np.uint64(1)).astype(bool)
    keys = packed >> np.uint64(1)
    group = (packed >> np.uint64(33)).astype(np.int64)
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    sizes = np.diff(np.append(starts, len(group)))
    before = np.cumsum(is_positive, dtype=np.int64) - is_positive  # positives before a row, over all groups
    within = np.arange(len(group)) - np.repeat(starts, sizes)
    negatives_before = within - (before - np.repeat(before[starts], sizes))
    ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    tie_positives = np.diff(np.cumsum(is_positive, dtype=np.int64)[ends], prepend=0)
    tied = tie_positives * (np.diff(ends, prepend=-1) - tie_positives)
    right = np.add.reduceat(np.where(is_positive, negatives_before, 0), starts).astype(np.float64)
    right -= np.bincount(np.searchsorted(starts, ends, side="right") - 1, weights=tied, minlength=len(starts)) / 2
    num_positive = np.add.reduceat(is_positive.astype(np.int64), starts)
    pairs = num_positive * (sizes - num_positive)
    mixed = pairs > 0
    if not mixed.any():
        return float("nan")
    return float(np.average(right[mixed] / pairs[mixed], weights=sizes[mixed]))


def log_loss(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of -log p(label), from logits: log(1 + e^z) - y z, which no probability of 0 can spoil.

    Returns:
        In nats, >= 0; NaN for no rows.
    """
    logits, positive = _checked("log_loss", logits, labels)
    total, step = 0.0, 1 << 22  # in pieces: float64 copies of 45 million rows would take 1 GB
    for start in range(0, len(logits), step):
        z = logits[start : start + step].astype(np.float64)
        total += float((np.logaddexp(0.0, z) - np.where(positive[start : start + step], z, 0.0)).sum())
    return total / len(logits) if len(logits) else float("nan")


def accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of rows whose probability is above one half just where the label is 1; NaN for no rows."""
    logits, positive = _checked("accuracy", logits, labels)
    return float(((logits > 0) == positive).mean()) if len(logits) else float("nan")


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """1 / (1 + e^-z), without overflow."""
    z = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed click rates in bins of equally many rows, from the lowest prediction on.

    Attributes:
        predicted, observed: [bins], means of the probabilities and of the labels.
        counts: [bins], rows.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def expected_calibration_error(self) -> float:
        """sum_b n_b / n |observed_b - predicted_b|, in [0, 1]; NaN without rows."""
        rows = self.counts.sum()
        return float((self.counts * np.abs(self.observed - self.predicted)).sum() / rows) if rows else float("nan")


def reliability(logits: NDArray[Any], labels: NDArray[Any], bins: int = BINS) -> Reliability:
    """Bins of a reliability diagram.

    Bins hold equally many rows (up to one): click rates are small, and bins of equal width would put nearly every row
    into the first. Rows of one
    prediction may fall into two bins: those without a click first.

    Args:
        logits, labels: [n].
        bins: >= 1; fewer where there are fewer rows.
    Raises:
        ValueError: bins is below 1, or as `auc`.
    Reference: Naeini, Cooper and Hauskrecht 2015 (AAAI), with bins of equal mass as in Nguyen and O'Connor 2015
        (arXiv 1508.05154).
    """
    if bins < 1:
        raise ValueError(f"reliability: bins must be >= 1, got {bins}")
    logits, positive = _checked("reliability", logits, labels)
    packed = _keys(logits.astype(np.float32)).astype(np.uint64)
    packed <<= np.uint64(1)
    packed |= positive
    packed.sort()
    bits = (packed >> np.uint64(1)).astype(np.uint32)
    ascending = (bits ^ np.where(bits & _SIGN, _SIGN, _ALL)).view(np.float32)
    clicks = (packed & np.uint64(1)).astype(bool)
    edges = np.linspace(0, len(logits), min(bins, max(len(logits), 1)) + 1).astype(np.int64)
    predicted, observed, counts = [], [], []
    for start, end in itertools.pairwise(edges):
        if end > start:
            predicted.append(probabilities(ascending[start:end]).mean())
            observed.append(clicks[start:end].mean())
            counts.append(end - start)
    return Reliability(np.array(predicted), np.array(observed), np.array(counts, dtype=np.int64))


def calibration_ratio(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Predicted over observed clicks, sum p / sum y: 1 is right on the whole; NaN without a click."""
    logits, positive = _checked("calibration_ratio", logits, labels)
    clicks = int(positive.sum())
    return float(probabilities(logits).sum() / clicks) if clicks else float("nan")


def relative_improvement(auc: float, base_auc: float) -> float:
    """RelaImpr = (auc - 0.5) / (base_auc - 0.5) - 1, as a share (0.02 is 2 %); NaN for a base of 0.5.

    Reference: Zhou et al. 2018 (arXiv 1706.06978), eq. 6.
    """
    return (auc - 0.5) / (base_auc - 0.5) - 1.0 if base_auc != 0.5 else float("nan")


def correct_for_sampling(logits: NDArray[Any], negative_rate: float) -> NDArray[Any]:
    """Logits of the whole log from those of a model that saw a share of the negatives only: z + log(rate).

    Args:
        logits: [n].
        negative_rate: share of the negatives that training kept, in (0, 1].
    Raises:
        ValueError: a rate outside (0, 1].
    Reference: He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, section 6.3
        (q = p / (p + (1 - p) / w)), written in logits.
    """
    if not 0.0 < negative_rate <= 1.0:
        raise ValueError(f"correct_for_sampling: negative_rate must lie in (0, 1], got {negative_rate}")
    logits = np.asarray(logits)
    return logits if negative_rate == 1.0 else logits + logits.dtype.type(np.log(negative_rate))


def click_figures(
    logits: NDArray[Any], labels: NDArray[Any], groups: NDArray[Any] | None, metrics: tuple[str, ...]
) -> dict[str, float]:
    """The metrics by name; "gauc" is left out without groups."""
    figures: dict[str, float] = {}
    for name in metrics:
        if name == "auc":
            figures[name] = auc(logits, labels)
        elif name == "gauc" and groups is not None:
            figures[name] = grouped_auc(logits, labels, groups)
        elif name == "log_loss":
            figures[name] = log_loss(logits, labels)
        elif name == "ece":
            figures[name] = reliability(logits, labels).expected_calibration_error
        elif name == "calibration":
            figures[name] = calibration_ratio(logits, labels)
        elif name == "accuracy":
            figures[name] = accuracy(logits, labels)
    return figures


def plot_reliability(named: dict[str, Reliability], path: str | Path, *, title: str) -> None:
    """Draw reliability diagrams, one line a model, into the PNG file `path`; both axes are logarithmic.

    Below are the rows of each bin at what it predicts: what a point of the line is worth.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes, rows_axes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    lowest = 1.0
    for name, bins in named.items():
        error = bins.expected_calibration_error
        # A bin without a click has no place on a logarithmic axis.
        drawn = (bins.observed > 0) & (bins.predicted > 0)
        axes.plot(bins.predicted[drawn], bins.observed[drawn], marker="o", markersize=3.5, label=f"{name}: {error:.4f}")
        rows_axes.plot(bins.predicted[drawn], bins.counts[drawn], marker="o", markersize=3.5, linewidth=1)
        if drawn.any():
            lowest = min(lowest, bins.predicted[drawn].min(), bins.observed[drawn].min())
    axes.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=1, linestyle="--", zorder=0)
    axes.set(xscale="log", yscale="log", ylabel="observed share of clicks")
    rows_axes.set(xlabel="predicted probability", ylabel="rows of the bin")
    rows_axes.set_ylim(bottom=0)
    axes.set_title(title, parse_math=False)
    axes.legend(title="expected calibration error", frameon=False)
    for each in (axes, rows_axes):
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    write_atomically(Path(path), buffer.getvalue())
