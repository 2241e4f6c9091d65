"""Cases, contenders and the rule of the house: parity against the float64 reference first, then interleaved timing."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bench.clocks import CpuClock, GpuTiming, Step, Timing
from bench.machine import COPY, Gather
from bench.workloads import NUM_BATCHES

OURS = "deeprec"
FRACTIONS = {"limit": "fraction", COPY: "fraction_of_copy"}  # rivals of a target that are rates: the key in a row
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
        scale: how large, where a device gets another size than the CPU: both sizes.
        turns: batches that take turns; with `bytes` it says whether their rows are cold when they come again.
    """

    name: str
    group: str
    build: Callable[[], Trial]
    bytes: float
    flops: float = 0.0
    limit: Gather | str | None = None
    size: float | None = None
    effort: float = 1.0
    scale: str = ""
    turns: int = NUM_BATCHES


@dataclass(frozen=True)
class Target:
    """What a group of cases must reach: a ratio to a rival, or a fraction of a measured rate.

    Attributes:
        rival: a contender, "limit" for the case's own limit, or COPY for that of a large copy.
        over: which of the group's cases counts: the worst ("min") or the middle one ("median").
        ours: name of the contender that must reach it.
        device: where it must be reached, "cpu" or "cuda"; figures of a GPU are those of its own time.
    """

    work: str
    group: str
    rival: str
    reach: float
    over: str = "min"
    ours: str = OURS
    device: str = "cpu"


class Clock(Protocol):
    """Times contenders on its device; see `bench.clocks`."""

    @property
    def device(self) -> str:
        """Where the tensors of a case are made."""

    def time_all(self, contenders: Sequence[Step], seconds: float, rounds: int, moved: float) -> Sequence[Timing]:
        """All contenders in turn; `moved`: bytes of all batches that take turns."""

    def release(self) -> None:
        """Called when a case is over."""


class Rates(Protocol):
    """What the memory of the device can do; see `bench.machine.Limits`."""

    def of(self, pattern: Gather | str | None) -> tuple[float | None, str | None]:
        """Bytes a second and the name of a limit; None where there is none."""


class ParityError(Exception):
    """Ours differs from the float64 reference: there is no figure."""


def reason_of(error: BaseException) -> str:
    """One line of an exception, without paths."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return re.sub(r"(/[\w.+-]+)+/", "", f"{type(error).__name__}: {first}")[:200]


def rotating(run: Callable[[T], Any], batches: Iterable[T]) -> Callable[[], Any]:
    """A step that takes the next batch each time, so that rows are as cold as in training."""
    following = itertools.cycle(batches)
    return lambda: run(next(following))


def no_grad(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function without the cost of recording a graph."""

    def run(batch: Any) -> Any:
        with torch.no_grad():
            return function(batch)

    return run


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
        error = (
            float((got.detach().to(expected.device, torch.float64) - expected).abs().max()) / scale
            if expected.numel()
            else 0.0
        )
        if not error <= tolerance:
            raise ParityError(
                f"{contender.name}: result {index} is off by {error:.1e} of its largest value, allowed {tolerance:.0e}"
            )
        worst = max(worst, error)
    return worst


def as_tensors(result: Any) -> list[Tensor]:
    """A tensor, or a sequence of tensors, as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def run_case(case: Case, limits: Rates, seconds: float, rounds: int, clock: Clock | None = None) -> dict[str, Any]:
    """Parity, then time: the case's part of the result file.

    Args:
        limits: of the clock's device.
        clock: of the device on which the case is set up; by default the CPU's.
    Raises:
        ParityError: one of ours is wrong, or the case cannot be set up here. A rival that differs is left out and
            listed with its error.
    """
    clock = clock or CpuClock()
    torch.manual_seed(0)
    try:
        with torch.device(clock.device):  # what a step makes must name its device: the mode would slow it down
            trial = case.build()
    except Exception as error:
        raise ParityError(f"{case.name} could not be set up: {reason_of(error)}") from error
    errors = _errors(case, trial)
    limits.of(case.limit)  # before and after: what disturbs the machine lowers a limit, nothing raises it
    timings = clock.time_all(trial.contenders, case.effort * seconds, rounds, case.bytes * case.turns)
    limit, label = limits.of(case.limit)
    copy = limits.of(COPY)[0] if case.bytes and isinstance(timings[0], GpuTiming) else None
    missing = trial.missing
    del trial
    clock.release()
    return {
        "case": case.name,
        "group": case.group,
        "bytes": case.bytes,
        "flops": case.flops,
        "size": case.size,
        "limit": label,
        "limit_bytes_per_second": limit,
        "missing": missing,
        "rows": _rows(case, timings, errors, limit, copy),
        **({"scale": case.scale} if case.scale else {}),
    }


def _errors(case: Case, trial: Trial) -> dict[str, float]:
    """The error of every contender; a rival that differs leaves the trial."""
    errors: dict[str, float] = {}
    for contender in list(trial.contenders):
        try:
            errors[contender.name] = check_parity(contender, trial)
        except Exception as error:
            if contender.is_ours:
                raise ParityError(f"{case.name}: {reason_of(error)}") from error
            trial.contenders.remove(contender)
            trial.missing[contender.name] = reason_of(error)
    return errors


def _rows(
    case: Case, timings: Sequence[Timing], errors: dict[str, float], limit: float | None, copy: float | None
) -> list[dict[str, Any]]:
    """A row a contender: times, error, rate; of a GPU also the rate as a fraction of a copy's, and the host's ratio."""
    ours = next(t for t in timings if t.name == OURS)
    rows = []
    for timing in timings:
        rate = case.bytes / timing.median
        row = {
            **asdict(timing),
            "error": errors[timing.name],
            "bytes_per_second": rate,
            "fraction": rate / limit if limit else None,
            "ratio": timing.median / ours.median,
        }
        if isinstance(timing, GpuTiming) and isinstance(ours, GpuTiming):
            row["fraction_of_copy"] = rate / copy if copy else None
            row["waited_ratio"] = timing.waited / ours.waited
        rows.append(row)
    return rows


def reached(target: Target, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the cases of a target's group came to; got is None where the rival or the limit is missing."""
    values = []
    for case in cases:
        rows = {row["name"]: row for row in case["rows"]}
        if case["group"] != target.group or target.ours not in rows:
            continue
        ours = rows[target.ours]
        if target.rival in FRACTIONS:
            value = ours.get(FRACTIONS[target.rival])
        else:
            value = rows[target.rival]["median"] / ours["median"] if target.rival in rows else None
        if value is not None:
            values.append(value)
    got = (min(values) if target.over == "min" else _median(values)) if values else None
    return {**asdict(target), "got": got, "reached": None if got is None else got >= target.reach}


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return math.sqrt(ordered[(len(ordered) - 1) // 2] * ordered[len(ordered) // 2])
