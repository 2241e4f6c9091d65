"""`deeprec serve` beside a FastAPI handler around plain PyTorch: the same lists, time and processor time of a request.

Both serve the same pipeline from one process with one thread of torch, on the loopback address; this process asks them.
First the lists are compared; what is not the same is not timed. Requests are sent at a fixed rate, each at its time
whether or not those before were answered, and counted from that time; and by a number of clients, each with its next
request as soon as the one before is answered. The two take turns, several rounds.

python -m deeprec pipeline bench/pipelines/ml-1m.yaml --out runs/ml-1m; python -m bench.serve runs/ml-1m
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deeprec
from bench.machine import versions
from deeprec._files import write_atomically
from deeprec._hardware import hardware
from deeprec.pipeline import Pipeline
from deeprec.pipeline.ranker import ByClickModel

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "bench" / "peers" / "plain_handler.py"
TARGETS = {"p50": 3.0, "p99": 8.0, "throughput": 3.0}
_CHECKED = 100  # people whose lists are compared


def exported(made: Pipeline) -> dict[str, Any]:
    """The weights and arrays of a pipeline of EASE, popularity, item-to-item, DeepFM and MMR, for the plain handler."""
    ease, _, near = made.config.sources
    mmr, ranker = made.config.rerank[0], made._ranker
    assert isinstance(ranker, ByClickModel)
    model, history = made.click_model, made.state.history.lists
    terms, inputs = model.terms, model.inputs
    names = [field.name.replace(".", "_").replace("-", "_") for field in inputs.fields]
    bag = inputs.bags[0]
    items, offsets = ranker._items, made.models[ease.name].history_offsets.tolist()
    trained = made.models[ease.name].history_items.tolist()
    return {
        "model": {
            "fields": [terms.fm.tables[name].weight.detach() for name in names],
            "linear": [terms.fm.linear[name].weight.detach() for name in names],
            "numbers": terms.fm.tables["numerics"].weight.detach(),
            "numbers_linear": terms.fm.linear["numerics"].weight.detach(),
            "bag": terms.bags.collection.weights()[0].detach(),
            "bag_linear": terms.rest.bags.collection.weights()[0].detach(),
            "layers": [layer.weight.detach() for layer in model.mlp.layers],
            "biases": [layer.bias.detach() for layer in model.mlp.layers],
            "norms": [norm.state_dict() for norm in model.mlp.norms],
            "output": model.mlp.output.weight.detach(),
            "output_bias": model.mlp.output.bias.detach(),
        },
        "ease": made.models[ease.name].weights.detach(),
        "histories": [history.taken([user]).items.tolist() for user in range(len(made.user_ids))],
        "trained": [trained[first:end] for first, end in pairwise(offsets)],
        "counts": torch.from_numpy(made.state.counts),
        "neighbors": torch.from_numpy(made.state.arrays[f"{near.name}/neighbors"].astype(np.int64)),
        "similarities": torch.from_numpy(made.state.arrays[f"{near.name}/similarities"]),
        "quotas": [source.quota for source in made.config.sources],
        "last": near.last,
        "decay": near.decay,
        "user_ids": torch.from_numpy(ranker._users.ids[:-1].astype(np.int64)),
        "item_ids": torch.from_numpy(items.ids.astype(np.int64)),
        "of_item": torch.from_numpy(ranker._of_item),
        "bag_ids": torch.from_numpy(items.bags[bag.name].ids.astype(np.int64)),
        "bag_offsets": torch.from_numpy(items.bags[bag.name].offsets),
        "shift": torch.from_numpy(ranker._shift),
        "scale": torch.from_numpy(ranker._scale),
        "low": torch.from_numpy(ranker._low),
        "high": torch.from_numpy(ranker._high),
        "vectors": torch.from_numpy(made._rerank[0].vectors),
        "diversity": mmr.diversity,
        "pool": mmr.pool,
        "users": made.user_ids.values.to_list(),
        "items": made.item_ids.values.to_list(),
        "titles": made.state.items["title"].to_list(),
    }


class Server:
    """A process that serves, and what it used of the processor."""

    def __init__(self, words: Callable[[int], list[str]]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(words(self.port), env=environment, stdout=subprocess.DEVNULL)
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
            if self.process.poll() is not None:
                break
        self.close()
        raise RuntimeError(f"{words(self.port)} was never ready")

    def seconds(self) -> float:
        """Processor time of the process until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        """Megabytes of memory that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def items(self, user: Any) -> list[Any]:
        """The list of a user."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/recommend/{user}?k=10", timeout=60) as answer:
            return [each["item_id"] for each in json.load(answer)["items"]]

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


class Connection:
    """One kept-alive connection that speaks as little HTTP as it needs, so that the client costs little."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: Any = None

    async def get(self, user: Any) -> bool:
        """Whether a list came; a connection that lay idle and was closed meanwhile is opened again."""
        try:
            return await self._asked(user)
        except (OSError, asyncio.IncompleteReadError):
            if self.reader is None:
                return False
            self.reader = None
            return await self.get(user)

    async def post(self, path: str, body: Any) -> bool:
        """Whether something was kept; as `get`."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        return await self._sent(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)

    async def _asked(self, user: Any) -> bool:
        return await self._sent(f"GET /v1/recommend/{user}?k=10 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())

    async def _sent(self, request: bytes) -> bool:
        if self.reader is None:
            reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.reader = reader
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        return head.startswith(b"HTTP/1.1 20") and b'"fallback":"timeout"' not in body


async def at_rate(port: int, users: list[Any], rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds from the moment that each request was due, at a fixed rate."""
    free: list[Connection] = [Connection(port) for _ in range(8)]
    taken: list[float] = []
    failed = 0

    async def one(user: Any, due: float) -> None:
        nonlocal failed
        connection = free.pop() if free else Connection(port)
        failed += not await connection.get(user)
        taken.append((time.perf_counter() - due) * 1e3)
        free.append(connection)

    start, tasks = time.perf_counter() + 0.1, []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(users[number % len(users)], due)))
    await asyncio.gather(*tasks)
    p50, p99 = np.percentile(taken, [50, 99])
    return {"requests": len(taken), "p50": float(p50), "p99": float(p99), "failed": failed}


async def by_clients(port: int, users: list[Any], clients: int, seconds: float) -> dict[str, float]:
    """Requests a second of so many clients, each with one request at a time."""
    taken: list[float] = []
    failed, end = 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal failed
        connection, place = Connection(port), number
        while time.perf_counter() < end:
            begun = time.perf_counter()
            failed += not await connection.get(users[place % len(users)])
            taken.append((time.perf_counter() - begun) * 1e3)
            place += clients

    begun = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    p50, p99 = np.percentile(taken, [50, 99])
    return {"requests_a_second": len(taken) / (time.perf_counter() - begun), "p50": float(p50), "p99": float(p99),
            "failed": failed}  # fmt: skip


async def soaked(server: Server, users: list[Any], items: list[Any], rate: float, seconds: float) -> dict[str, Any]:
    """Lists at a fixed rate, an event after every second one: what failed, and the server's memory by tenths."""
    connection, poster = Connection(server.port), Connection(server.port)
    failed = requests = events = 0
    memory, start = [], time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        user = users[requests * 7 % len(users)]
        failed += not await connection.get(user)
        requests += 1
        if requests % 2:
            event = {"user_id": user, "item_id": items[requests * 13 % len(items)]}
            failed += not await poster.post("/v1/feedback", {"events": [event]})
            events += 1
        if elapsed >= len(memory) * seconds / 10:
            memory.append(server.resident())
        if (wait := start + requests / rate - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
    memory.append(server.resident())
    return {"seconds": seconds, "requests": requests, "events": events, "failed": failed, "megabytes": memory}


def measured(server: Server, run: Any, count: Callable[[dict[str, float]], float]) -> dict[str, float]:
    """A run with the processor time of a request in it, and the load of the machine."""
    before = server.seconds()
    figures: dict[str, float] = asyncio.run(run)
    used = server.seconds() - before
    return {**figures, "cpu_ms": used * 1e3 / max(1.0, count(figures)), "load": os.getloadavg()[0]}


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "serving.json")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--soak", type=float, default=0.0, help="seconds of lists and events, and nothing else is timed"
    )
    given = parser.parse_args()
    made = Pipeline.load(given.folder, device="cpu")
    users = made.user_ids.values.to_list()
    order = np.random.default_rng(0).permutation(len(users))
    users = [users[place] for place in order]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(exported(made), weights)
        state = str(Path(folder) / "events.sqlite")
        words: dict[str, Callable[[int], list[str]]] = {
            "deeprec serve": lambda port: [sys.executable, "-m", "deeprec", "serve", str(given.folder), "--port",
                                           str(port), "--state", state, "--timeout-ms", "10000", "--device", "cpu"],
            "plain handler": lambda port: [sys.executable, str(PEER), str(weights), str(port)],
        }  # fmt: skip
        servers = {}
        try:
            for name, command in words.items():
                servers[name] = Server(command)
            if given.soak:
                server = servers["deeprec serve"]
                items = made.item_ids.values.to_list()
                soak = asyncio.run(soaked(server, users, items, given.rate, given.soak))
                print(soak)
                kept = json.loads(given.out.read_text()) if given.out.exists() else {}
                write_atomically(given.out, json.dumps({**kept, "soak": soak}, indent=1).encode() + b"\n")
                return
            lists = {name: [server.items(user) for user in users[:_CHECKED]] for name, server in servers.items()}
            same = [a == b for a, b in zip(*lists.values(), strict=True)]
            shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*lists.values(), strict=True)])
            print(f"{sum(same)} of {len(same)} lists are the same, {shared:.1%} of the items")
            if shared < 0.99:
                raise SystemExit("the two do not give the same lists; nothing was timed")
            rows = []
            for number in range(given.rounds):
                for name, server in servers.items():
                    run = measured(
                        server, at_rate(server.port, users, given.rate, given.seconds), lambda f: f["requests"]
                    )
                    rows.append(
                        {"server": name, "round": number, "load_kind": f"{given.rate:g} requests a second", **run}
                    )
                    print(rows[-1], flush=True)
                for clients in given.clients:
                    for name, server in servers.items():
                        seconds = given.seconds
                        run = measured(server, by_clients(server.port, users, clients, seconds),
                                       lambda f, seconds=seconds: f["requests_a_second"] * seconds)  # fmt: skip
                        rows.append({"server": name, "round": number, "load_kind": f"{clients} clients", **run})
                        print(rows[-1], flush=True)
        finally:
            for server in servers.values():
                server.close()
    before = json.loads(given.out.read_text()) if given.out.exists() else {}
    result = {
        **{name: before[name] for name in ("soak",) if name in before},
        "pipeline": made.config.as_dict(),
        "report": made.report["test"],
        "lists_the_same": float(np.mean(same)),
        "items_the_same": float(shared),
        "rows": rows,
        "versions": {**versions(), "deeprec": deeprec.__version__},
        "hardware": hardware(),
    }
    write_atomically(given.out, json.dumps(result, indent=1).encode() + b"\n")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
