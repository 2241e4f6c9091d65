"""What people do while they are served, in SQLite: an event that was acknowledged is on the disk.

Writers are one thread that puts all waiting events into one transaction (write-ahead log, synchronous FULL), so that
many clients share a flush. What is read often is kept in memory, for a bounded number of people.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from deeprec._files import make_folder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, user TEXT NOT NULL, item TEXT NOT NULL, kind TEXT NOT NULL, time REAL NOT NULL, id TEXT
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user, number);
CREATE UNIQUE INDEX IF NOT EXISTS events_by_id ON events (id) WHERE id IS NOT NULL;
CREATE TABLE IF NOT EXISTS unavailable (item TEXT PRIMARY KEY);
"""
_MOST_TOGETHER = 512  # writes of a transaction
_STOP = None


class Event(NamedTuple):
    """Something that a person did.

    Attributes:
        user, item: ids as texts.
        kind: such as "view" or "like"; kept, and read by nothing here.
        time: seconds since 1970.
        id: the client's mark: an event with the mark of one that is there is not kept twice; None without.
    """

    user: str
    item: str
    kind: str = "view"
    time: float = 0.0
    id: str | None = None


class Overloaded(RuntimeError):
    """More is waiting than the queue takes."""


class EventStore:
    """Events and unavailable items.

    Safe to use from several threads of one process.

    Args:
        path: of the database, made if it is not there; ":memory:" keeps nothing.
        max_users: people whose events are kept in memory, >= 1.
        max_events: last events of each that are read, >= 1.
        max_waiting: writes that may wait, >= 1.
    Raises:
        ValueError: a file that is no database of ours.
    """

    def __init__(
        self, path: str | Path, *, max_users: int = 50_000, max_events: int = 200, max_waiting: int = 10_000
    ) -> None:
        self.path, self.max_users, self.max_events = str(path), max_users, max_events
        self._folder = tempfile.TemporaryDirectory() if self.path == ":memory:" else None
        place = Path(self._folder.name) / "events.sqlite" if self._folder is not None else Path(path)
        make_folder(place.parent)
        try:
            self._connection = sqlite3.connect(place, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
            self._reader = sqlite3.connect(place, check_same_thread=False, isolation_level=None)
            self._unavailable = frozenset(row[0] for row in self._reader.execute("SELECT item FROM unavailable"))
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"serve: {path} is no database of events ({error}); take another file") from None
        self._reading = threading.Lock()  # one thread at a time reads; a write stops nobody
        self._cache: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._cached = threading.Lock()
        self._writes = 0  # so that nothing is kept in memory that was read before a write
        self._waiting: queue.Queue[Any] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._write, name="deeprec-events", daemon=True)
        self._thread.start()

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, events: Sequence[Event]) -> Future[int]:
        """Keep events; done when they are on the disk and visible to `of_user`: how many were new.

        Raises:
            Overloaded: too many writes are waiting.
        """
        return self._put("add", list(events))

    def set_available(self, items: Sequence[str], is_available: bool) -> Future[int]:
        """Take items out for everybody, or put them back."""
        return self._put("available" if is_available else "unavailable", list(items))

    def forget(self, user: str) -> Future[int]:
        """Remove all events of a person; how many these were."""
        return self._put("forget", user)

    def _put(self, what: str, value: Any) -> Future[int]:
        done: Future[int] = Future()
        try:
            self._waiting.put_nowait((what, value, done))
        except queue.Full:
            raise Overloaded("serve: too many events are waiting to be written") from None
        return done

    def _write(self) -> None:
        while True:
            work = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(work) < _MOST_TOGETHER:
                    work.append(self._waiting.get_nowait())
            stops = _STOP in work
            self._commit([each for each in work if each is not _STOP])
            if stops:
                return

    def _commit(self, work: list[Any]) -> None:
        """One transaction for all that waits; acknowledged when it is on the disk."""
        if not work:
            return
        results, users = [], set()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for what, value, _ in work:
                    results.append(self._one(what, value))
                    users |= {value} if what == "forget" else {e.user for e in value} if what == "add" else set()
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            if any(what.endswith("available") for what, _, _ in work):
                rows = self._connection.execute("SELECT item FROM unavailable")
                self._unavailable = frozenset(row[0] for row in rows)
            with self._cached:
                self._writes += 1
                for user in users:
                    self._cache.pop(user, None)
        except Exception as error:  # told to every one who waits
            for _, _, done in work:
                done.set_exception(error)
            return
        for (_, _, done), result in zip(work, results, strict=True):
            done.set_result(result)

    def _one(self, what: str, value: Any) -> int:
        if what == "add":
            rows = [(e.user, e.item, e.kind, e.time or time.time(), e.id) for e in value]
            words = "INSERT OR IGNORE INTO events (user, item, kind, time, id) VALUES (?, ?, ?, ?, ?)"
            return self._connection.executemany(words, rows).rowcount
        if what == "forget":
            return self._connection.execute("DELETE FROM events WHERE user = ?", (value,)).rowcount
        words = "DELETE FROM unavailable WHERE item = ?"
        if what == "unavailable":
            words = "INSERT OR IGNORE INTO unavailable (item) VALUES (?)"
        return self._connection.executemany(words, [(item,) for item in value]).rowcount

    # -- reading -------------------------------------------------------------------------------------------------------

    def of_user(self, user: str) -> tuple[str, ...]:
        """The items of a person's last events, in order."""
        with self._cached:
            kept = self._cache.get(user)
            if kept is not None:
                self._cache.move_to_end(user)
                return kept
            writes = self._writes
        rows = self._read(
            "SELECT item FROM events WHERE user = ? ORDER BY number DESC LIMIT ?", (user, self.max_events)
        )
        items = tuple(row[0] for row in reversed(rows))
        with self._cached:
            if writes == self._writes:
                self._cache[user] = items
                while len(self._cache) > self.max_users:
                    self._cache.popitem(last=False)
        return items

    def _read(self, words: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._reading:
            return self._reader.execute(words, values).fetchall()

    def unavailable(self) -> frozenset[str]:
        """Items that may come to nobody at present."""
        return self._unavailable

    def recent_users(self, count: int) -> list[str]:
        """Those who did something last, latest first."""
        rows = self._read(
            "SELECT user FROM (SELECT user, number FROM events ORDER BY number DESC LIMIT ?) GROUP BY user "
            "ORDER BY max(number) DESC LIMIT ?",
            (20 * count, count),
        )
        return [row[0] for row in rows]

    def count(self) -> int:
        """Events in all."""
        return int(self._read("SELECT count(*) FROM events")[0][0])

    def waiting(self) -> int:
        """Writes that wait."""
        return self._waiting.qsize()

    def cached(self) -> int:
        """People whose events are in memory."""
        return len(self._cache)

    def close(self) -> None:
        """Write what waits, and close the database."""
        self._waiting.put(_STOP)
        self._thread.join()
        with self._reading:
            self._reader.close()
        self._connection.close()
        if self._folder is not None:
            self._folder.cleanup()
