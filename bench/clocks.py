"""How the contenders of a case are timed: by the wall clock on a CPU, by CUDA events and the wall clock on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.benchmark import Timer

COLD_BY_TURNS, COLD_BY_FLUSH = "rotation", "flush"
WARM_UP = 11  # steps: more than there are batches, so that every one has passed once
FEW = 5  # steps by which a contender's own speed is judged before its blocks are sized
BLOCK_SECONDS = 0.01  # of device time between two events
MOST_STEPS = 64  # a block: what is enqueued must fit the queue of the device while it is held back
HEAD_START = 1.3  # the device is held back for this many times the seconds that it takes to enqueue a block
MOST_HELD = 0.1  # seconds
MARKS = 2e-5  # seconds that two events and a flush take to enqueue, at most


class Step(Protocol):
    """A contender, as far as timing looks."""

    @property
    def name(self) -> str:
        """As results show it."""

    @property
    def step(self) -> Callable[[], Any]:
        """One call of it is timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median and quartiles over blocks of runs, and how many blocks."""

    name: str
    median: float
    low: float
    high: float
    blocks: int


@dataclass(frozen=True)
class GpuTiming(Timing):
    """Device seconds of a step (`median`, `low`, `high`: over blocks of steps between two events), and the host's.

    Attributes:
        cold: how the inputs left the L2 cache between two steps that use them: "rotation" or "flush".
        steps: in a block.
        step_median, step_low, step_high: of single steps, each between two events of its own.
        enqueue: host seconds until a step is enqueued.
        waited, waited_low, waited_high: host seconds of a step and of the wait for its end.
    """

    cold: str
    steps: int
    step_median: float
    step_low: float
    step_high: float
    enqueue: float
    waited: float
    waited_low: float
    waited_high: float


def spread(times: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, middle, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return middle, low, high


class CpuClock:
    """Blocks of runs by the wall clock, as torch.utils.benchmark chooses their size."""

    device = "cpu"

    def time_all(self, contenders: Sequence[Step], seconds: float, rounds: int, moved: float) -> list[Timing]:
        """Time every contender in turn, `rounds` times, the first of a round changing: drift hits all alike."""
        threads = torch.get_num_threads()
        timers = [Timer("step()", globals={"step": c.step}, num_threads=threads) for c in contenders]
        taken: list[list[float]] = [[] for _ in contenders]
        for k in in_turn(len(contenders), rounds):
            contenders[k].step()  # the caches now hold this contender's code and not the last one's
            taken[k].extend(timers[k].blocked_autorange(min_run_time=seconds / rounds).times)
        return [Timing(c.name, *spread(times), len(times)) for c, times in zip(contenders, taken, strict=True)]

    def release(self) -> None:
        """Nothing: memory of a case that is over is free."""


def in_turn(count: int, rounds: int) -> list[int]:
    """Who is next: everyone in each round, the first of a round changing."""
    return [(k + start) % count for start in range(rounds) for k in range(count)]


class Gpu(NamedTuple):
    """What timing asks of a GPU; tests put a stand-in here.

    Attributes:
        event: makes a timing event with `record()` and `elapsed_time(later)` in milliseconds.
        synchronize: waits for the device.
        hold: keeps the device busy for about so many seconds, without waiting.
        flush: pushes everything out of the L2 cache, without waiting.
        l2_bytes: size of that cache.
        release: gives the memory of a case that is over back to the device.
    """

    event: Callable[[], Any]
    synchronize: Callable[[], None]
    hold: Callable[[float], None]
    flush: Callable[[], Any]
    l2_bytes: int
    release: Callable[[], None]


def this_gpu() -> Gpu:
    """The current CUDA device."""
    properties = torch.cuda.get_device_properties()
    hertz = 1e3 * getattr(properties, "clock_rate", 2e6)  # given in kHz
    other = torch.empty(2 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")
    return Gpu(
        partial(torch.cuda.Event, enable_timing=True),
        torch.cuda.synchronize,
        lambda seconds: torch.cuda._sleep(int(seconds * hertz)),
        other.zero_,
        properties.L2_cache_size,
        torch.cuda.empty_cache,
    )


class GpuClock:
    """Blocks of steps between two events, single steps between events of their own, and the host's side of both.

    Before a block the device is held back for as long as the host takes to enqueue it, so that the events time the
    device alone, its kernels one right after the other. A contender that waits for the device within a step loses
    that head start, as it does in use.
    """

    device = "cuda"

    def __init__(self, gpu: Gpu | None = None) -> None:
        self.gpu = gpu or this_gpu()

    def time_all(self, contenders: Sequence[Step], seconds: float, rounds: int, moved: float) -> list[Timing]:
        """As on the CPU; `moved`: bytes that a full turn of the batches moves, half of them at least inputs."""
        cold = COLD_BY_TURNS if moved / 2 > 3 * self.gpu.l2_bytes else COLD_BY_FLUSH
        taken = [_Taken(self.gpu, contender.step, cold) for contender in contenders]
        for k in in_turn(len(contenders), rounds):
            taken[k].measure(seconds / rounds)
        return [one.timing(contender.name) for one, contender in zip(taken, contenders, strict=True)]

    def release(self) -> None:
        """Free what the last case held."""
        gc.collect()
        self.gpu.release()


class _Taken:
    """The times of one contender so far."""

    def __init__(self, gpu: Gpu, step: Callable[[], Any], cold: str) -> None:
        self.gpu, self.step, self.cold = gpu, step, cold
        self.blocks: list[float] = []
        self.singles: list[float] = []
        self.enqueued: list[float] = []
        self.waited: list[float] = []
        self.steps = 0

    def measure(self, seconds: float) -> None:
        """Spend about so many seconds of wall time on blocks, and some more steps on the host's side."""
        for _ in range(1 if self.steps else WARM_UP):
            self.step()
        self.gpu.synchronize()
        self._host()
        if not self.steps:
            self.steps = max(2, min(MOST_STEPS, int(BLOCK_SECONDS / min(self.waited))))
        started, blocks = time.perf_counter(), 0
        while blocks < 2 or time.perf_counter() - started < seconds:
            self._block()
            blocks += 1

    def _host(self) -> None:
        """Seconds to enqueue a step, and of a step with a wait after it."""
        started = time.perf_counter()
        for _ in range(FEW):
            self.step()
        self.enqueued.append((time.perf_counter() - started) / FEW)
        self.gpu.synchronize()
        for _ in range(FEW):
            started = time.perf_counter()
            self.step()
            self.gpu.synchronize()
            self.waited.append(time.perf_counter() - started)

    def _block(self) -> None:
        singles = self._apart()
        self.singles += singles
        self.blocks.append(sum(singles) / len(singles) if self.cold == COLD_BY_FLUSH else self._together())

    def _together(self) -> float:
        """Seconds a step, of many between two events."""
        first, last = self.gpu.event(), self.gpu.event()
        self._hold()
        first.record()
        for _ in range(self.steps):
            self.step()
        last.record()
        self.gpu.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / self.steps

    def _apart(self) -> list[float]:
        """Seconds of each of many steps; where turns are not enough, the L2 cache is flushed before each."""
        pairs = [(self.gpu.event(), self.gpu.event()) for _ in range(self.steps)]
        self._hold()
        for first, last in pairs:
            if self.cold == COLD_BY_FLUSH:
                self.gpu.flush()
            first.record()
            self.step()
            last.record()
        self.gpu.synchronize()
        return [float(first.elapsed_time(last)) / 1e3 for first, last in pairs]

    def _hold(self) -> None:
        self.gpu.synchronize()
        self.gpu.hold(min(MOST_HELD, HEAD_START * (min(self.enqueued) + MARKS) * self.steps))

    def timing(self, name: str) -> GpuTiming:
        """Medians and quartiles of all."""
        host = (spread(self.enqueued)[0], *spread(self.waited))
        return GpuTiming(
            name, *spread(self.blocks), len(self.blocks), self.cold, self.steps, *spread(self.singles), *host
        )
