"""Off-policy evaluation: what a policy would earn, from a log of what another one did.

With w = pi(a | x) / p, p the logged probability of the logged action a, r its reward and q(x, a) a model of rewards:
    dm           mean of sum_a pi(a | x) q(x, a)
    ips          mean of w r
    clipped-ips  mean of min(w, M) r
    snips        sum of w r / sum of w
    dr           mean of sum_a pi(a | x) q(x, a) + w (r - q(x, a))
    replay       mean r of the rows whose action a deterministic pi takes too; for uniform logs alone
ips is unbiased where the p are right and the log could have had every action of the policy; dr where either the p or q
are right; clipped-ips is too low for rewards >= 0; snips is consistent, and unmoved by a constant that is added to all
rewards; dm has the bias of q. `OffPolicyEstimate.effective_rows` says how many rows of the log the figure rests on.

Papers: Dudik, Langford, Li 2011, "Doubly Robust Policy Evaluation and Learning" (ICML, arXiv 1103.4601); Swaminathan,
Joachims 2015, "The Self-Normalized Estimator for Counterfactual Learning" (NeurIPS); Li, Chu, Langford, Wang 2011,
"Unbiased Offline Evaluation of Contextual-bandit-based News Article Recommendation Algorithms" (WSDM, arXiv 1003.5956);
Bottou et al. 2013 (JMLR 14) for clipped weights.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec._suggest import did_you_mean

if TYPE_CHECKING:
    from deeprec.data import BanditLog

ESTIMATORS = ("dm", "ips", "clipped-ips", "snips", "dr", "replay")
INTERVALS = ("normal", "bootstrap")
UNSUPPORTED = ("raise", "ignore")
_DRAWS_A_BLOCK = 1 << 22
_SUM_TOLERANCE = 1e-4  # of probabilities, which may come from float32
_Array = NDArray[np.float64]


class Interval(NamedTuple):
    """How the bounds of an estimate are made.

    Attributes:
        kind: "normal", value +- z standard errors; or "bootstrap", quantiles over resampled groups of rows, which
            follow the skew that a few large weights make.
        confidence: in (0, 1).
        resamples: of the bootstrap, >= 100.
        seed: of their draw, >= 0.
    """

    kind: str = "normal"
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError for a field out of range."""
        if self.kind not in INTERVALS:
            raise ValueError(f"Interval: kind must be one of {', '.join(INTERVALS)}, got {self.kind!r}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"Interval: confidence must be in (0, 1), got {self.confidence}")
        if self.resamples < 100:
            raise ValueError(f"Interval: resamples must be >= 100, got {self.resamples}")
        if self.seed < 0:
            raise ValueError(f"Interval: seed must be >= 0, got {self.seed}")


NORMAL = Interval()


class OffPolicyEstimate(NamedTuple):
    """The value of a policy, and what is known of its error.

    Attributes:
        estimator: one of `ESTIMATORS`.
        value: mean reward a row.
        low, high: bounds of the interval.
        standard_error: by the delta method, of independent groups of rows.
        effective_rows: (sum of w)^2 / sum of w^2; for "replay" the rows that match, for "dm" all.
        num_rows: of the log.
        max_weight: the largest w that was used.
    """

    estimator: str
    value: float
    low: float
    high: float
    standard_error: float
    effective_rows: float
    num_rows: int
    max_weight: float


def off_policy_value(
    log: BanditLog,
    policy: Any,
    estimator: str = "snips",
    *,
    rewards: Any = None,
    clip: float | None = None,
    groups: Any = None,
    interval: Interval = NORMAL,
    unsupported: str = "raise",
) -> OffPolicyEstimate:
    """What a policy would earn a row, estimated from a log of another one.

    Train the policy, choose `clip` and fit `rewards` on other rows than these, or the figure is too high.

    Args:
        policy: pi(a | x_i), [n, num_actions], or [1, num_actions] where it does not depend on the row; rows sum to 1.
            Or [n], the probabilities of the logged actions alone, for "ips", "clipped-ips" and "snips".
        estimator: one of `ESTIMATORS`.
        rewards: q(x_i, a), [n, num_actions] or [1, num_actions], for "dm" and "dr"; see `mean_rewards`.
        clip: M, the largest weight of "clipped-ips", > 0.
        groups: [n], whole numbers: rows of equal number belong together, such as those of one user, and are resampled
            together; None: each row by itself.
        interval: how its bounds are made.
        unsupported: where the policy takes an action that the log never has, nothing is known of it: "raise" an error,
            or "ignore" it, as ips does when it counts it as reward 0. "dm" does not ask.
    Raises:
        ValueError: an argument out of range or of another shape, probabilities that are negative or do not sum to 1, a
            policy without support in the log, a policy that takes none of the logged actions; for "replay" a policy
            that is not deterministic or a log that is not uniform.
    """
    _check_words(log, estimator, clip, interval, unsupported)
    needs_q = estimator in ("dm", "dr")
    if needs_q != (rewards is not None):
        raise ValueError(
            f"off_policy_value: rewards go with estimators 'dm' and 'dr', got {'none' if needs_q else 'them'} for "
            f"{estimator!r}; {'pass those of a model, such as mean_rewards(log)' if needs_q else 'leave them out'}"
        )
    probabilities, logged = _policy_of(log, policy, estimator)
    if probabilities is not None and unsupported == "raise" and estimator != "dm":
        _require_support(log, probabilities)
    weights = logged / log.propensities
    if estimator != "dm" and not weights.any():
        raise ValueError(
            "off_policy_value: policy must take a logged action with a probability above 0, got 0 for each of "
            f"{len(log)} rows; nothing in the log speaks of it, take estimator='dm'"
        )
    if estimator == "clipped-ips":
        assert clip is not None
        weights = np.minimum(weights, clip)
    gains, counts = log.rewards * weights, np.ones(len(log))
    if estimator == "snips":
        counts = weights
    elif estimator == "replay":
        _require_replay(log, probabilities)
        weights = (logged > 0).astype(np.float64)
        gains, counts = log.rewards * weights, weights
    elif needs_q:
        modelled = _table(log, "rewards", rewards)
        assert probabilities is not None
        gains = np.einsum("na,na->n", *np.broadcast_arrays(probabilities, modelled))
        gains = np.broadcast_to(gains, (len(log),)).copy()
        if estimator == "dr":
            gains += weights * (log.rewards - _of_logged(log, modelled))
        else:
            weights = np.ones(len(log))
    grouped = _grouped(log, groups, gains, counts)
    value, error = _ratio(*grouped)
    if interval.kind == "normal":
        reach = NormalDist().inv_cdf(0.5 + interval.confidence / 2) * error
        low, high = value - reach, value + reach
    else:
        low, high = _bootstrap(*grouped, interval)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return OffPolicyEstimate(estimator, value, low, high, error, effective, len(log), float(weights.max()))


def mean_rewards(log: BanditLog, *, folds: int = 2, prior: float = 10.0, seed: int = 0) -> _Array:
    """q(x, a), [n, num_actions]: the mean reward of each action at the row's position, drawn to the mean of all.

        q = (sum of rewards + prior * mean of all) / (rows + prior)

    Each row's comes from the rows of the other folds, so that "dr" stays unbiased on the log that it was made of.

    Args:
        folds: >= 2, and no more than rows.
        prior: rows that the mean of all counts as, > 0.
        seed: of the folds.
    Raises:
        ValueError: a number out of range.
    """
    if not 2 <= folds <= len(log):
        raise ValueError(f"mean_rewards: folds must be in [2, {len(log)}], the rows of the log, got {folds}")
    if not prior > 0:
        raise ValueError(f"mean_rewards: prior must be > 0, got {prior}")
    places = np.zeros(len(log), dtype=np.int64) if log.positions is None else log.positions
    fold = np.random.Generator(np.random.Philox(seed)).permutation(np.arange(len(log)) % folds)
    cells = places * log.num_actions + log.actions
    num_cells = (int(places.max()) + 1) * log.num_actions
    modelled = np.empty((len(log), log.num_actions))
    for each in range(folds):
        others, own = fold != each, fold == each
        sums = np.bincount(cells[others], log.rewards[others], num_cells)
        counts = np.bincount(cells[others], minlength=num_cells)
        means = (sums + prior * log.rewards[others].mean()) / (counts + prior)
        modelled[own] = means.reshape(-1, log.num_actions)[places[own]]
    return modelled


def _check_words(log: BanditLog, estimator: str, clip: float | None, interval: Interval, unsupported: str) -> None:
    for name, given, known in (("estimator", estimator, ESTIMATORS), ("unsupported", unsupported, UNSUPPORTED)):
        if given not in known:
            raise ValueError(
                f"off_policy_value: {name} must be one of {', '.join(known)}, got {given!r}{did_you_mean(given, known)}"
            )
    if not len(log):
        raise ValueError("off_policy_value: log must have a row, got none")
    interval.check()
    if (estimator == "clipped-ips") != (clip is not None):
        remedy = "choose one on other rows of the log" if clip is None else "leave it out, or take 'clipped-ips'"
        raise ValueError(f"off_policy_value: clip goes with estimator 'clipped-ips', got {clip}; {remedy}")
    if clip is not None and not clip > 0:
        raise ValueError(f"off_policy_value: clip must be > 0, got {clip}")


def _table(log: BanditLog, name: str, given: Any) -> _Array:
    """Numbers [n, num_actions] or [1, num_actions], finite."""
    table = np.asarray(given, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] not in (1, len(log)) or table.shape[1] != log.num_actions:
        raise ValueError(
            f"off_policy_value: {name} must be [{len(log)}, {log.num_actions}] or [1, {log.num_actions}], got "
            f"{list(table.shape)}"
        )
    if not np.isfinite(table).all():
        row = int((~np.isfinite(table)).any(axis=1).argmax())
        raise ValueError(f"off_policy_value: {name} must be finite, got {table[row]} in row {row}; fill it")
    return table


def _policy_of(log: BanditLog, policy: Any, estimator: str) -> tuple[_Array | None, _Array]:
    """The probabilities of all actions, None where only those of the logged ones are given, and these, [n]."""
    given = np.asarray(policy, dtype=np.float64)
    if given.ndim == 1 and estimator in ("ips", "clipped-ips", "snips"):
        if given.shape != (len(log),):
            raise ValueError(
                f"off_policy_value: policy must be [{len(log)}] or [{len(log)}, {log.num_actions}], got "
                f"{list(given.shape)}; a policy that is the same for all rows is [1, {log.num_actions}]"
            )
        wrong = ~((given >= 0) & (given <= 1))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"off_policy_value: policy must lie in [0, 1], got {given[row]} at row {row}")
        return None, given
    table = _table(log, "policy", given)
    wrong = (table < 0).any(axis=1) | (abs(table.sum(axis=1) - 1) > _SUM_TOLERANCE)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"off_policy_value: policy must have rows of probabilities that sum to 1, got {table[row].min():g} to "
            f"{table[row].max():g} with the sum {table[row].sum():g} in row {row}; divide by the sum, or take a softmax"
        )
    return table, _of_logged(log, table)


def _of_logged(log: BanditLog, table: _Array) -> _Array:
    return np.asarray(table[0 if len(table) == 1 else np.arange(len(log)), log.actions])


def _require_support(log: BanditLog, policy: _Array) -> None:
    """Raise ValueError where the policy takes an action, at a position, that the log never has there."""
    places = np.zeros(len(log), dtype=np.int64) if log.positions is None else log.positions
    has = np.zeros((int(places.max()) + 1, log.num_actions), dtype=np.bool_)
    has[places, log.actions] = True
    lost = np.where(has[places], 0.0, policy)
    if (lost > 0).any():
        row, action = np.unravel_index(int(lost.argmax()), lost.shape)
        where = "" if log.positions is None else f" at position {places[row]}"
        shown = int(action) if log.action_ids is None else log.action_ids[int(action)]
        raise ValueError(
            f"off_policy_value: policy must take actions that the log has, got probability {lost[row, action]:g} for "
            f"action {shown!r}{where} in row {row}, which is never logged there (in the mean {lost.sum(1).mean():.3g} "
            "of the policy is lost); give these actions probability 0, take estimator='dm', or pass "
            "unsupported='ignore' to count their reward as 0"
        )


def _require_replay(log: BanditLog, policy: _Array | None) -> None:
    assert policy is not None
    if not (policy.max(axis=1) > 1 - _SUM_TOLERANCE).all():
        row = int((policy.max(axis=1) <= 1 - _SUM_TOLERANCE).argmax())
        raise ValueError(
            f"off_policy_value: replay needs a deterministic policy, got the largest probability {policy[row].max():g} "
            f"in row {row}; take 'ips' or 'snips', or the action with the largest probability"
        )
    if np.ptp(log.propensities) > _SUM_TOLERANCE * log.propensities.min():
        raise ValueError(
            f"off_policy_value: replay needs a uniform log, got propensities from {log.propensities.min():g} to "
            f"{log.propensities.max():g}; take 'ips' or 'snips'"
        )


def _grouped(log: BanditLog, groups: Any, gains: _Array, counts: _Array) -> tuple[_Array, _Array]:
    """Sums of each group."""
    if groups is None:
        return gains, counts
    labels = np.asarray(groups)
    if labels.shape != (len(log),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"off_policy_value: groups must be [{len(log)}] whole numbers, got {labels.dtype} {list(labels.shape)}"
        )
    _, places = np.unique(labels, return_inverse=True)
    if places.max() == 0:
        raise ValueError("off_policy_value: groups must be two at least, got one; leave it out for rows by themselves")
    return (
        np.bincount(places, gains).astype(np.float64),
        np.bincount(places, counts).astype(np.float64),
    )


def _ratio(gains: _Array, counts: _Array) -> tuple[float, float]:
    """sum of gains / sum of counts, and its standard error over independent groups; nan with one group."""
    total = counts.sum()
    value = gains.sum() / total
    residuals = gains - value * counts
    num = len(gains)
    error = np.sqrt(num / (num - 1) * (residuals**2).sum()) / total if num > 1 else np.nan
    return float(value), float(error)


def _bootstrap(gains: _Array, counts: _Array, interval: Interval) -> tuple[float, float]:
    """Quantiles of the ratio over groups that are drawn anew with replacement."""
    rng = np.random.Generator(np.random.Philox(interval.seed))
    num = len(gains)
    step = max(1, _DRAWS_A_BLOCK // num)
    values: list[_Array] = []
    for start in range(0, interval.resamples, step):
        drawn = rng.integers(0, num, (min(step, interval.resamples - start), num))
        totals = counts[drawn].sum(axis=1)
        sums = gains[drawn].sum(axis=1)
        values.append(sums[totals > 0] / totals[totals > 0])  # a draw without a matching row says nothing
    low, high = np.quantile(np.concatenate(values), [0.5 - interval.confidence / 2, 0.5 + interval.confidence / 2])
    return float(low), float(high)
