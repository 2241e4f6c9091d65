"""Requests that come at the same time are computed together: the model is asked for all that wait, up to a bound."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from deeprec.http.store import Overloaded

In = TypeVar("In")
Out = TypeVar("Out")


class Batcher(Generic[In, Out]):
    """One thread that computes what waits.

    Nobody waits for others to come: while one block is computed the next one gathers.

    Args:
        compute: of a block of requests, answers in order.
        max_batch: requests of a block, >= 1.
        max_waiting: requests that may wait, >= 1.
        on_batch: told the size of each block.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[In]], Sequence[Out]],
        *,
        max_batch: int = 32,
        max_waiting: int = 1000,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._compute, self.max_batch, self._on_batch = compute, max_batch, on_batch
        self._waiting: queue.Queue[Any] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._run, name="deeprec-requests", daemon=True)
        self._thread.start()

    def submit(self, request: In) -> Future[Out]:
        """The answer to come; cancelled ones that have not begun are not computed.

        Raises:
            Overloaded: too many are waiting.
        """
        done: Future[Out] = Future()
        try:
            self._waiting.put_nowait((request, done))
        except queue.Full:
            raise Overloaded("serve: too many requests are waiting") from None
        return done

    def waiting(self) -> int:
        """Requests that wait."""
        return self._waiting.qsize()

    def close(self) -> None:
        """Compute what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            work = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(work) < self.max_batch and work[-1] is not None:
                    work.append(self._waiting.get_nowait())
            ends = work[-1] is None
            live = [(request, done) for request, done in filter(None, work) if done.set_running_or_notify_cancel()]
            if live:
                if self._on_batch is not None:
                    self._on_batch(len(live))
                self._answer(live)
            if ends:
                return

    def _answer(self, live: list[tuple[In, Future[Out]]]) -> None:
        try:
            answers = self._compute([request for request, _ in live])
        except Exception as error:
            if len(live) == 1:
                live[0][1].set_exception(error)
                return
            for one in live:  # whose fault it is says itself alone
                self._answer([one])
            return
        for (_, done), answer in zip(live, answers, strict=True):
            done.set_result(answer)
