"""How fast a raw click log becomes hashes and numbers, and hashes become ids, beside polars and pandas.

    python -m bench.read_log [--rows N] [--values N] [--rounds N] [--json FILE]

Reads a file of Criteo's format, made for it with a seed (a label, 13 integers of which a quarter is missing, 26
categories of 8 hexadecimal digits, skewed): the bytes of the text a second, best of the rounds, all contenders in turn
in each round. Then distinct values into a vocabulary, and ids out of it. What is read is compared before it is timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from rich.console import Console
from rich.table import Table

from bench.machine import machine, versions
from deeprec.data.reading import separated
from deeprec.data.reading.chunks import BLOCK_BYTES, CRITEO_COLUMNS, ColumnsToRead, Source
from deeprec.data.reading.hashing import Vocabulary, mix
from deeprec.data.reading.sources import open_source

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "deeprec-read-log/1"
NUMBERS, TEXTS = CRITEO_COLUMNS[:14], CRITEO_COLUMNS[14:]
WANTED = ColumnsToRead(TEXTS, NUMBERS)


def write_log(path: Path, rows: int, seed: int = 0) -> None:
    """A file of Criteo's format."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {"label": (rng.random(rows) < 0.25).astype(np.int64)}
    for name in NUMBERS[1:]:
        values = np.floor(rng.lognormal(2, 2, rows)).astype(np.int64)
        columns[name] = pl.Series(values).scatter(np.flatnonzero(rng.random(rows) < 0.25), None)
    for place, name in enumerate(TEXTS):
        cardinality = int(4 ** (1 + place % 10))
        ids = np.floor(cardinality * rng.random(rows) ** 3).astype(np.uint64) + np.uint64(place << 32)
        texts = pl.Series([f"{value:08x}" for value in (mix(ids) >> np.uint64(32)).tolist()])
        missing = rng.random(rows) < (0.4 if place % 4 == 0 else 0.0)
        columns[name] = texts.scatter(np.flatnonzero(missing), None)
    pl.DataFrame(columns).write_csv(path, separator="\t", include_header=False)


def blocks_of(text: bytes) -> list[bytes]:
    """Whole rows, as `open_source` cuts them."""
    blocks, start = [], 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + BLOCK_BYTES) + 1
        blocks.append(text[start:end])
        start = end
    return blocks


def read_polars(path: Path) -> pl.DataFrame:
    schema = dict.fromkeys(NUMBERS, pl.Int64) | dict.fromkeys(TEXTS, pl.String)
    return pl.read_csv(path, separator="\t", has_header=False, quote_char=None, schema=schema)


def read_pandas(path: Path, **options: Any) -> pd.DataFrame:
    kinds = dict.fromkeys(NUMBERS, np.float64) | dict.fromkeys(TEXTS, "str")
    return pd.read_csv(path, sep="\t", header=None, names=list(CRITEO_COLUMNS), dtype=kinds, **options)


def drain(source: Source) -> int:
    return sum(chunk.rows for chunk in source.chunks(WANTED))


def check(path: Path) -> None:
    """Raises AssertionError unless numbers and distinct texts are those that polars finds."""
    expected = read_polars(path)
    chunks = list(open_source(path, format="criteo").chunks(WANTED))
    for name in NUMBERS:
        wanted = expected[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        np.testing.assert_array_equal(np.concatenate([chunk.numbers[name] for chunk in chunks]), wanted)
    for name in TEXTS:
        hashes = np.concatenate([chunk.hashes[name] for chunk in chunks])
        codes = expected[name].fill_null("").rank("dense").to_numpy()
        pairs = len(np.unique(np.stack([hashes, codes.astype(np.uint64)]), axis=1).T)
        assert len(np.unique(hashes)) == len(np.unique(codes)) == pairs, name


def reading(path: Path) -> dict[str, Callable[[], Any]]:
    text = path.read_bytes()
    blocks = blocks_of(text)
    kinds = bytes([separated.NUMBER] * len(NUMBERS) + [separated.HASH] * len(TEXTS))

    def parse() -> None:
        for block in blocks:
            separated.parse_log(block, separated.Dialect(b"\t"), kinds, [])

    def polars_hashed() -> Any:
        return read_polars(path).select(pl.col(TEXTS).hash(), pl.col(NUMBERS).cast(pl.Float64))

    return {
        "deeprec parse_log, text in memory, one core": parse,
        "deeprec open_source, threads=1": lambda: drain(open_source(path, format="criteo", threads=1)),
        "deeprec open_source, threads=2": lambda: drain(open_source(path, format="criteo", threads=2)),
        "polars read_csv, all cores": lambda: read_polars(path),
        "polars read_csv and hash, all cores": polars_hashed,
        "pandas read_csv, C engine, one core": lambda: read_pandas(path),
        "pandas read_csv, pyarrow engine, all cores": lambda: read_pandas(path, engine="pyarrow"),
    }


def best(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the best of the rounds."""
    seconds = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def vocabulary(values: int, asked: int, rounds: int) -> tuple[dict[str, float], int]:
    """Nanoseconds a value, and the bytes that the vocabulary holds."""
    keys = mix(np.arange(1, values + 1, dtype=np.uint64))
    drawn = keys[np.random.default_rng(0).integers(0, values, asked)]
    counted = Vocabulary()
    start = time.perf_counter()
    counted.count(keys)
    first = time.perf_counter() - start
    hashes, _ = counted.finish()
    ids = Vocabulary(hashes)
    index = pd.Index(hashes)
    np.testing.assert_array_equal(ids.lookup(drawn), index.get_indexer(drawn) + 1)
    series = pl.Series("key", drawn)
    again = best(
        {
            "deeprec Vocabulary.count, values known": lambda: counted.count(drawn),
            "deeprec Vocabulary.lookup": lambda: ids.lookup(drawn),
            "polars value_counts, all cores": lambda: series.value_counts(),
            "pandas Index.get_indexer": lambda: index.get_indexer(drawn),
        },
        rounds,
    )
    nanoseconds = {"deeprec Vocabulary.count, all values new": first / values * 1e9}
    return nanoseconds | {name: 1e9 * seconds / asked for name, seconds in again.items()}, counted.nbytes


def peak_of(path: str, rows: int) -> float:
    """MiB that reading the log adds at most to a process of its own."""

    def status(field: str) -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = status("VmRSS")
    assert drain(open_source(path, format="criteo", threads=2)) == rows
    return status("VmHWM") - before


def show(title: str, unit: str, results: dict[str, float]) -> None:
    table = Table(title=title)
    table.add_column("")
    table.add_column(unit, justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:,.1f}")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.read_log", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--values", type=int, default=10_000_000, help="distinct values of the vocabulary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "read_log.json")
    arguments = parser.parse_args()
    if separated._host is None:
        sys.exit("read_log: needs deeprec._host; run make build")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.txt"
        write_log(path, arguments.rows)
        size = path.stat().st_size
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_of, (str(path), arguments.rows))
        check(path)
        speed = {name: size / 1e6 / seconds for name, seconds in best(reading(path), arguments.rounds).items()}
    per_value, held = vocabulary(arguments.values, min(arguments.values, 4_000_000), arguments.rounds)
    show(f"{arguments.rows:,} rows of Criteo's format, {size / 1e6:,.0f} MB", "MB of text a second", speed)
    show(f"{arguments.values:,} distinct values, {held / 1e6:,.0f} MB", "ns a value", per_value)
    print(f"reading with two threads adds {peak:,.0f} MiB at most")
    result = {
        "schema": SCHEMA,
        "machine": machine(),
        "versions": {**versions(), "polars": pl.__version__, "pandas": pd.__version__},
        "rows": arguments.rows,
        "bytes": size,
        "megabytes_per_second": speed,
        "reading_mib": peak,
        "values": arguments.values,
        "nanoseconds_per_value": per_value,
        "vocabulary_bytes": held,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
