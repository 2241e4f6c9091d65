"""Cases, contenders and the rule of the house: parity against the float64 reference first, then interleaved timing."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from bench.machine import Gather, Limits

OURS = "deeprec"
COPY = "copy"  # the limit of work that reads and writes its memory in order
T = TypeVar("T")


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        name: ours begin with "deeprec".
        step: one call of it is timed.
        check: gives what parity compares, called before any timing; by default what `step` returns.
        tolerance: of this contender, where it calculates in another precision than the case says.
    """

    name: str
    step: Callable[[], Any]
    check: Callable[[], Sequence[Tensor]] | None = None
    tolerance: float | None = None

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


@dataclass
class Trial:
    """A case set up: contenders, the float64 result they must reach, and the rivals that are missing, with the reason.

    Attributes:
        expected: tensors in float64, in the order of every contender's `check`.
        tolerance: largest error, as a fraction of the largest expected value of the tensor.
    """

    expected: Sequence[Tensor]
    tolerance: float = 1e-5
    contenders: list[Contender] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, step: Callable[[], Any], check: Callable[[], Sequence[Tensor]] | None = None) -> None:
        """Enter a contender that is always there."""
        self.contenders.append(Contender(name, step, check))

    def add_rival(self, name: str, make: Callable[[], Contender]) -> None:
        """Enter a rival, or note why it cannot take part: a bench outlives a rival that does not start."""
        try:
            self.contenders.append(make())
        except Exception as error:
            self.missing[name] = reason_of(error)


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        name: unique within the op.
        group: what a target refers to.
        build: sets it up; called when its turn comes, so that one case at a time is in memory.
        bytes: moved by one step, by calculation.
        flops: of one step, by calculation.
        limit: the access pattern whose measured speed `bytes` is held against, or COPY; None: none applies.
        size: what the group varies, for a chart of curves.
        effort: fraction of the usual time to spend on it, where a group has many cases.
    """

    name: str
    group: str
    build: Callable[[], Trial]
    bytes: float
    flops: float = 0.0
    limit: Gather | str | None = None
    size: float | None = None
    effort: float = 1.0


@dataclass(frozen=True)
class Target:
    """What a group of cases must reach: a ratio to a rival, or with rival "limit" a fraction of the measured limit.

    Attributes:
        over: which of the group's cases counts: the worst ("min") or the middle one ("median").
        ours: name of the contender that must reach it.
    """

    work: str
    group: str
    rival: str
    reach: float
    over: str = "min"
    ours: str = OURS


class ParityError(Exception):
    """Ours differs from the float64 reference: there is no figure."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median and quartiles over blocks of runs, and how many blocks."""

    name: str
    median: float
    low: float
    high: float
    blocks: int


def reason_of(error: BaseException) -> str:
    """One line of an exception, without paths."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return re.sub(r"(/[\w.+-]+)+/", "", f"{type(error).__name__}: {first}")[:200]


def rotating(run: Callable[[T], Any], batches: Iterable[T]) -> Callable[[], Any]:
    """A step that takes the next batch each time, so that rows are as cold as in training."""
    following = itertools.cycle(batches)
    return lambda: run(next(following))


def check_parity(contender: Contender, trial: Trial) -> float:
    """The largest error, as a fraction of the largest value.

    Raises:
        ParityError: it is above the tolerance.
    """
    found = contender.check() if contender.check else as_tensors(contender.step())
    tolerance = contender.tolerance or trial.tolerance
    worst = 0.0
    if len(found) != len(trial.expected):
        raise ParityError(f"{contender.name}: {len(found)} results, the reference has {len(trial.expected)}")
    for index, (got, expected) in enumerate(zip(found, trial.expected, strict=True)):
        if got.shape != expected.shape:
            raise ParityError(f"{contender.name}: result {index} is {tuple(got.shape)}, not {tuple(expected.shape)}")
        scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-12)
        error = float((got.detach().double() - expected).abs().max()) / scale if expected.numel() else 0.0
        if not error <= tolerance:
            raise ParityError(
                f"{contender.name}: result {index} is off by {error:.1e} of its largest value, allowed {tolerance:.0e}"
            )
        worst = max(worst, error)
    return worst


def as_tensors(result: Any) -> list[Tensor]:
    """A tensor, or a sequence of tensors, as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def time_all(contenders: Sequence[Contender], seconds: float, rounds: int) -> list[Timing]:
    """Time every contender in turn, `rounds` times, the first of a round changing: drift hits all alike."""
    threads = torch.get_num_threads()
    timers = [Timer("step()", globals={"step": c.step}, num_threads=threads) for c in contenders]
    taken: list[list[float]] = [[] for _ in contenders]
    for start in range(rounds):
        for k in range(len(contenders)):
            k = (k + start) % len(contenders)
            contenders[k].step()  # the caches now hold this contender's code and not the last one's
            taken[k].extend(timers[k].blocked_autorange(min_run_time=seconds / rounds).times)
    return [_timing(c.name, times) for c, times in zip(contenders, taken, strict=True)]


def _timing(name: str, times: list[float]) -> Timing:
    low, middle, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Timing(name, middle, low, high, len(times))


def run_case(case: Case, limits: Limits, seconds: float, rounds: int) -> dict[str, Any]:
    """Parity, then time: the case's part of the result file.

    Raises:
        ParityError: one of ours is wrong. A rival that differs is left out and listed with its error.
    """
    torch.manual_seed(0)
    trial = case.build()
    errors: dict[str, float] = {}
    for contender in list(trial.contenders):
        try:
            errors[contender.name] = check_parity(contender, trial)
        except Exception as error:
            if contender.is_ours:
                raise ParityError(f"{case.name}: {reason_of(error)}") from error
            trial.contenders.remove(contender)
            trial.missing[contender.name] = reason_of(error)
    limits.of(case.limit)  # before and after: what disturbs the machine lowers a limit, nothing raises it
    timings = time_all(trial.contenders, case.effort * seconds, rounds)
    limit, label = limits.of(case.limit)
    ours = next(t.median for t in timings if t.name == OURS)
    return {
        "case": case.name,
        "group": case.group,
        "bytes": case.bytes,
        "flops": case.flops,
        "size": case.size,
        "limit": label,
        "limit_bytes_per_second": limit,
        "missing": trial.missing,
        "rows": [
            {
                **asdict(timing),
                "error": errors[timing.name],
                "bytes_per_second": case.bytes / timing.median,
                "fraction": case.bytes / timing.median / limit if limit else None,
                "ratio": timing.median / ours,
            }
            for timing in timings
        ],
    }


def reached(target: Target, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the cases of a target's group came to; got is None where the rival or the limit is missing."""
    found = []
    for case in cases:
        rows = {row["name"]: row for row in case["rows"]}
        if case["group"] != target.group or target.ours not in rows:
            continue
        if target.rival == "limit":
            value = rows[target.ours]["fraction"]
        else:
            value = rows[target.rival]["median"] / rows[target.ours]["median"] if target.rival in rows else None
        if value is not None:
            found.append(value)
    got = (min(found) if target.over == "min" else _median(found)) if found else None
    return {**asdict(target), "got": got, "reached": None if got is None else got >= target.reach}


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return math.sqrt(ordered[(len(ordered) - 1) // 2] * ordered[len(ordered) // 2])
