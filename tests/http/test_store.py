"""An acknowledged event is on the disk, whatever happens to the process."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from deeprec.http.store import Event, EventStore, Overloaded


def test_events_are_read_in_order_and_bounded() -> None:
    store = EventStore(":memory:", max_events=3, max_users=2)
    assert store.add([Event("u", str(item)) for item in range(5)]).result(10) == 5
    assert store.of_user("u") == ("2", "3", "4")
    for user in "abc":
        store.of_user(user)
    assert store.cached() == 2
    assert store.count() == 5
    assert store.recent_users(3) == ["u"]
    store.close()


def test_many_threads_see_what_they_wrote(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.sqlite", max_users=3)
    wrong: list[str] = []

    def work(user: str) -> None:
        for number in range(30):
            store.add([Event(user, str(number))]).result(30)
            if store.of_user(user)[-1] != str(number):
                wrong.append(f"{user} {number}")

    threads = [threading.Thread(target=work, args=(f"user {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.count() == 240
    store.close()
    again = EventStore(tmp_path / "events.sqlite")
    assert again.of_user("user 3") == tuple(map(str, range(30)))
    again.close()


def test_a_full_queue_and_a_broken_database_say_so(tmp_path: Path) -> None:
    store = EventStore(":memory:", max_waiting=1)
    gate = threading.Event()
    usual = store._commit
    store._commit = lambda work: (gate.wait(10), usual(work))[1]  # type: ignore[method-assign]
    waiting = []
    for number in range(2):  # one is being written, one waits
        waiting.append(store.add([Event("u", str(number))]))
        time.sleep(0.2)
    with pytest.raises(Overloaded):
        store.add([Event("u", "3")])
    gate.set()
    for each in waiting:
        each.result(10)
    store.close()
    (tmp_path / "text.sqlite").write_text("this is no database, and longer than its header " * 10)
    with pytest.raises(ValueError, match="is no database of events"):
        EventStore(tmp_path / "text.sqlite")


def test_an_error_of_the_disk_reaches_who_waits(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.sqlite")
    store._connection.execute("PRAGMA query_only=1")
    with pytest.raises(sqlite3.OperationalError):
        store.add([Event("u", "1")]).result(10)
    store._connection.execute("PRAGMA query_only=0")
    assert store.add([Event("u", "1")]).result(10) == 1
    store.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_server_loses_no_acknowledged_event(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "events.sqlite"
    with httpx.Client(timeout=60) as client:
        server, port = _serve(folder, state, client)
        acknowledged: list[str] = []

        def feed(number: int) -> None:
            with httpx.Client(timeout=60) as own:
                for event in range(10_000):
                    body = {"events": [{"user_id": f"user {number}", "item_id": event, "id": f"{number}/{event}"}]}
                    try:
                        if own.post(f"http://127.0.0.1:{port}/v1/feedback", content=json.dumps(body),
                                    headers={"content-type": "application/json"}).status_code == 201:  # fmt: skip
                            acknowledged.append(f"{number}/{event}")
                    except httpx.HTTPError:
                        return

        threads = [threading.Thread(target=feed, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 40:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        for thread in threads:
            thread.join()
        kept = {row[0] for row in sqlite3.connect(state).execute("SELECT id FROM events")}
        assert set(acknowledged) <= kept
        server, port = _serve(folder, state, client)
        fed = acknowledged[0].partition("/")[0]
        events = client.get(f"http://127.0.0.1:{port}/v1/users/user {fed}/events").json()["items"]
        assert events
        os.kill(server.pid, signal.SIGHUP)  # reads the folder again
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)


def _serve(folder: Path, state: Path, client: httpx.Client) -> tuple[subprocess.Popen[bytes], int]:
    """A server of its own, ready."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "deeprec", "serve", str(folder), "--port", str(port), "--state", str(state)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            if client.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                return server, port
        except httpx.HTTPError:
            pass
        assert server.poll() is None
        time.sleep(0.1)
    server.kill()
    raise AssertionError("never ready")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_fifty_exchanges_under_load_fail_no_request_and_keep_the_memory(folder: Path, tmp_path: Path) -> None:
    with httpx.Client(timeout=60) as client:
        server, port = _serve(folder, tmp_path / "events.sqlite", client)
        ends, statuses = threading.Event(), []

        def ask(number: int) -> None:
            with httpx.Client(timeout=60) as own:
                while not ends.is_set():
                    statuses.append(own.get(f"http://127.0.0.1:{port}/v1/recommend/{number}?k=5").status_code)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 4)]
        for thread in threads:
            thread.start()
        resident = []
        for _ in range(50):
            assert client.post(f"http://127.0.0.1:{port}/v1/reload", json={}).status_code == 200
            resident.append(_resident(server.pid))
        ends.set()
        for thread in threads:
            thread.join()
        server.terminate()
        server.wait(60)
    assert set(statuses) == {200}
    assert len(statuses) > 50
    assert max(resident[25:]) < 1.2 * max(resident[:10])


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
