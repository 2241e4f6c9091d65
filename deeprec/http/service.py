"""The service without its protocol: an engine that can be exchanged, events, batches, time-outs, figures."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deeprec.device import Device
from deeprec.http.batching import Batcher
from deeprec.http.engine import Ask, Engine, Listing, Titles
from deeprec.http.store import EventStore

_log = logging.getLogger("deeprec")
_QUANTILES = (0.5, 0.9, 0.99, 0.999)
_WINDOW = 4096  # last requests that the quantiles are of
_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2)


@dataclass(frozen=True)
class ServiceOptions:
    """How a service works.

    Attributes:
        device: where the models live.
        max_k: longest list, >= 1.
        max_batch: requests that are computed together, >= 1.
        max_waiting: requests that may wait, >= 1; beyond it answers are 503.
        timeout: seconds after which popular items are the answer, > 0.
        max_users: people whose events are kept in memory, >= 1.
        max_events: last events of each that are read, >= 1.
        warm_up: requests that are replayed before a model is served, >= 1.
        root: folder below which all must lie that is served by request; None: that of the first folder.
    """

    device: Device = "auto"
    max_k: int = 200
    max_batch: int = 32
    max_waiting: int = 1000
    timeout: float = 0.25
    max_users: int = 50_000
    max_events: int = 200
    warm_up: int = 200
    root: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_k", "max_batch", "max_waiting", "max_users", "max_events", "warm_up"):
            if getattr(self, name) < 1:
                raise ValueError(f"serve: {name} must be >= 1, got {getattr(self, name)}; leave it out")
        if not self.timeout > 0:
            raise ValueError(f"serve: timeout must be > 0 seconds, got {self.timeout}; leave it out for 0.25")


class Metrics(Collector):
    """What Prometheus reads: counters, histograms, and quantiles of the last requests."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._service = service
        self.requests = Counter("deeprec_requests", "Answers by route and status.", ["route", "status"],
                                registry=self.registry)  # fmt: skip
        self.seconds = Histogram("deeprec_request_seconds", "Time to answer.", ["route"], buckets=_BUCKETS,
                                 registry=self.registry)  # fmt: skip
        self.fallbacks = Counter("deeprec_fallbacks", "Lists of popular items, by why.", ["why"],
                                 registry=self.registry)  # fmt: skip
        self.batches = Histogram("deeprec_batch_requests", "Requests that were computed together.",
                                 buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry)  # fmt: skip
        self.reloads = Counter("deeprec_reloads", "Exchanged models, by outcome.", ["outcome"], registry=self.registry)
        self.ready = Gauge("deeprec_ready", "1 when requests are served.", registry=self.registry)
        self._recent: dict[str, deque[float]] = {}
        self.registry.register(self)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """An answer."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        self._recent.setdefault(route, deque(maxlen=_WINDOW)).append(seconds)

    def collect(self) -> Iterator[Any]:
        """What is computed when it is read."""
        quantiles = GaugeMetricFamily(
            "deeprec_request_quantile_seconds", f"Of the last {_WINDOW} answers.", labels=["route", "quantile"]
        )
        for route, recent in list(self._recent.items()):
            for quantile, value in zip(_QUANTILES, np.quantile(list(recent), _QUANTILES), strict=True):
                quantiles.add_metric([route, f"{quantile:g}"], float(value))
        yield quantiles
        service = self._service
        for name, words, value in (
            ("deeprec_waiting_requests", "Requests that wait.", service.batcher.waiting()),
            ("deeprec_waiting_writes", "Writes of events that wait.", service.store.waiting()),
            ("deeprec_cached_users", "People whose events are in memory.", service.store.cached()),
        ):
            yield GaugeMetricFamily(name, words, value=value)
        model = GaugeMetricFamily("deeprec_model", "The model that is served.", labels=["kind", "version"])
        if service.engine is not None:
            model.add_metric([service.engine.kind, service.engine.version], 1)
        yield model

    def text(self) -> bytes:
        """As Prometheus takes it."""
        return generate_latest(self.registry)


class Service:
    """An engine that can be exchanged while it is asked, with events and bounds.

    Args:
        folder: of a model or pipeline.
        store: of events.
        options: how it works.
        titles: what reads the titles of a model's folder.
        engine: of the folder, where it is loaded already.
    """

    def __init__(
        self,
        folder: str | Path,
        store: EventStore,
        options: ServiceOptions | None = None,
        *,
        titles: Titles | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.folder, self.store, self.options = Path(folder), store, options or ServiceOptions()
        self._first, self._titles = self.folder, titles
        self.engine: Engine | None = None
        self._loaded = engine
        self._before: Engine | None = None
        self._exchanging = threading.Lock()
        self.batcher: Batcher[Ask, Listing] = Batcher(
            self._compute,
            max_batch=self.options.max_batch,
            max_waiting=self.options.max_waiting,
            on_batch=lambda size: self.metrics.batches.observe(size),
        )
        self.metrics = Metrics(self)

    @property
    def is_ready(self) -> bool:
        """Whether there is an engine that was warmed up."""
        return self.engine is not None

    @property
    def has_previous(self) -> bool:
        """Whether there is an engine to go back to."""
        return self._before is not None

    def start(self) -> None:
        """Load the folder, where it is not yet, and warm it up; until then nothing is ready."""
        made, self._loaded = self._loaded, None
        if made is None:
            self.reload()
        else:
            with self._exchanging:
                self._warm_up(made)
                self._serve(made)

    def close(self) -> None:
        """Answer what waits, write what waits, and end."""
        self.batcher.close()
        self.store.close()

    # -- engines -------------------------------------------------------------------------------------------------------

    def reload(self, folder: str | Path | None = None) -> Engine:
        """Load a folder, warm it up and serve it from then on; the one before is kept to go back to.

        Requests go on being answered meanwhile, and one that began with the old engine ends with it.

        Raises:
            ValueError, FileNotFoundError: as `Engine.load`; the engine that was there is served on.
        """
        with self._exchanging:
            try:
                made = Engine.load(
                    Path(folder) if folder is not None else self.folder,
                    device=self.options.device,
                    max_k=self.options.max_k,
                    titles=self._titles,
                )
                self._warm_up(made)
            except Exception:
                self.metrics.reloads.labels("failed").inc()
                raise
            self.metrics.reloads.labels("done").inc()
            return self._serve(made)

    def _serve(self, made: Engine) -> Engine:
        """From now on with this engine."""
        self._before, self.engine = self.engine, made
        self.folder = made.folder
        # What an engine is made of stays as long as it does: going through it would let requests wait, 0.2 s of ML-1M.
        gc.unfreeze()
        gc.collect()  # of the engine that nobody can go back to any more
        gc.freeze()
        self.metrics.ready.set(1)
        _log.info("serve: %s %s from %s", made.kind, made.version, made.folder)
        return made

    def place_of(self, folder: str) -> Path:
        """The folder that a request names, which lies below `root`.

        Raises:
            ValueError: it lies elsewhere.
        """
        root = (self.options.root or self._first.resolve().parent).resolve()
        place = (root / folder).resolve()
        if not place.is_relative_to(root):
            raise ValueError(
                f"serve: folder must lie below {root}, got {folder!r}; move it there, or start with --root"
            )
        return place

    def roll_back(self) -> Engine:
        """Serve the engine before the last `reload` again; called twice it comes back.

        Raises:
            ValueError: there was none before.
        """
        with self._exchanging:
            if self._before is None or self.engine is None:
                raise ValueError("serve: there is nothing to roll back to; nothing was reloaded yet")
            self._before, self.engine = self.engine, self._before
            self.folder = self.engine.folder
            self.metrics.reloads.labels("rolled back").inc()
            return self.engine

    def _warm_up(self, engine: Engine) -> None:
        """Replay requests of those who did something last, else of people of the data, one by one and in blocks."""
        count = self.options.warm_up
        users = list(dict.fromkeys([*self.store.recent_users(count), *engine.sample_users(count)]))[:count]
        k = min(10, self.options.max_k)
        asks = [Ask(user, self.store.of_user(user), k) for user in users]
        size = 1
        while asks:
            block, asks = asks[:size], asks[size:]
            engine.recommend(block)
            size = size * 2 if size < self.options.max_batch else 1

    # -- answers -------------------------------------------------------------------------------------------------------

    def ask(self, ask: Ask) -> Ask:
        """With what the user did since the training in front of what the request says."""
        if ask.user is None:
            return ask
        return Ask(
            ask.user,
            (*self.store.of_user(ask.user), *ask.events),
            ask.k,
            ask.exclude_seen,
            ask.allow,
            ask.deny,
            ask.explain,
        )

    async def recommend(self, ask: Ask) -> Listing:
        """The answer, or popular items where it takes too long.

        Raises:
            Overloaded: too many requests wait.
        """
        engine = self.engine
        assert engine is not None
        ask = self.ask(ask)
        future = self.batcher.submit(ask)
        try:
            listing = await asyncio.wait_for(asyncio.wrap_future(future), self.options.timeout)
        except asyncio.TimeoutError:
            listing = engine.popular(ask, "timeout", self.store.unavailable())
        if listing.fallback:
            self.metrics.fallbacks.labels(listing.fallback).inc()
        return listing

    def _compute(self, asks: Sequence[Ask]) -> list[Listing]:
        engine = self.engine
        assert engine is not None
        return engine.recommend(asks, self.store.unavailable())

    async def written(self, future: Future[int]) -> int:
        """The result of a write to the store."""
        return await asyncio.wrap_future(future)
