"""Many readers or one writer, in a process that may be forked, copied or pickled."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any


class Gate:
    """Lets any number of threads read together, or one thread write alone.

    A process that is forked while another thread is inside begins with an open gate, since no such thread is in it; so
    do a copy and a pickle. A thread that is inside may not enter once more.
    """

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        self._condition = threading.Condition()
        self._readers = 0
        self._is_writing = False
        self._waiting = 0  # writers, before whom no further reader comes

    def _here(self) -> threading.Condition:
        if self._process != os.getpid():
            self._open()
        return self._condition

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Wait until nobody writes or is about to."""
        condition = self._here()
        with condition:
            condition.wait_for(lambda: not self._is_writing and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with condition:
                self._readers -= 1
                condition.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until nobody else is inside."""
        condition = self._here()
        with condition:
            self._waiting += 1
            try:
                condition.wait_for(lambda: not self._is_writing and not self._readers)
            finally:
                self._waiting -= 1
            self._is_writing = True
        try:
            yield
        finally:
            with condition:
                self._is_writing = False
                condition.notify_all()

    def __reduce__(self) -> Any:
        return Gate, ()
