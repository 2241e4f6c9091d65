"""How many items a second media are read, hashed, decoded and made smaller, and turned into vectors; where time goes.

    python -m bench.media [--items N] [--rounds N] [--threads N] [--json FILE]

Each stage by itself in one thread, items a second of processor time, best of the rounds: the hash of the file,
decoding to the array of the decoder (resizing or resampling is part of it), the features without training, and the
module of `deeprec.nn` where it is there. Then how many times faster several threads decode, by the clock, which says
how much runs outside of Python's lock. The media are those of $DEEPREC_DATA, or drawn where a set is not there, and
photographs of 1,500 x 1,000 pixels drawn with a seed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.machine import machine, versions
from deeprec.data import load_media, synthetic, with_media
from deeprec.data.media.cache import content_key
from deeprec.data.media.decoders import ArrayDecoder, AudioDecoder, ImageDecoder, MediaBatch, VideoDecoder
from deeprec.data.media.errors import library
from deeprec.data.media.features import FEATURES
from deeprec.data.media.files import MediaFiles

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "deeprec-media/1"
SETS = {
    "posters": ("ml-1m", ImageDecoder()),
    "spoken digits": ("audio-spoken-digits", AudioDecoder(8_000, 1.0)),
    "instruments": ("audio-instruments", AudioDecoder(16_000, 5.0)),
    "filmed clips": ("video-fights", VideoDecoder()),
}


class Case(NamedTuple):
    """Media of one kind: contents of files, and how they are decoded."""

    name: str
    source: str
    contents: list[bytes]
    decoder: ArrayDecoder


def cases(items: int, folder: Path) -> list[Case]:
    """The sets that are there, drawn ones for the others, and photographs."""
    made = [_photographs(min(items, 40))]
    for name, (dataset, decoder) in SETS.items():
        try:
            table = load_media(dataset)
            files, keys, source = table.files, table.items["file"].drop_nulls().to_list(), dataset
        except FileNotFoundError:
            data = with_media(synthetic(40, 100, 500), folder, (decoder.kind,))
            assert data.item_features is not None
            files, keys, source = MediaFiles(folder), data.item_features[decoder.kind].to_list(), "drawn"
        step = max(1, len(keys) // items)
        made.append(Case(name, source, [files.open(key).read() for key in keys[::step][:items]], decoder))
    return made


def _photographs(count: int) -> Case:
    draw, pillow = np.random.default_rng(0), library("PIL.Image", "Pillow")
    contents = []
    for _ in range(count):
        coarse = pillow.fromarray(draw.integers(0, 256, (50, 75, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((1500, 1000), pillow.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    return Case("photographs", "drawn, 1,500 x 1,000", contents, ImageDecoder())


def items_per_second(
    work: Callable[[], object], count: int, rounds: int, clock: Callable[[], float] = time.process_time
) -> float:
    """The best of the rounds, each long enough for the clock."""
    best = float("inf")
    for _ in range(rounds):
        begin, times = clock(), 0
        while clock() - begin < 0.1 or not times:
            work()
            times += 1
        best = min(best, (clock() - begin) / times)
    return count / best


def measure(case: Case, rounds: int, threads: int) -> dict[str, Any]:
    """Items a second of each stage."""
    contents, count = case.contents, len(case.contents)
    decoded = [case.decoder.decode(io.BytesIO(content)) for content in contents]  # also warms up
    values, lengths = np.stack([each.values for each in decoded]), np.array([each.length for each in decoded])
    batches = [MediaBatch(values[at : at + 32], lengths[at : at + 32]) for at in range(0, count, 32)]
    encode = FEATURES[case.decoder.kind](case.decoder)

    def decode_all(map_: Callable[..., Any] = map) -> None:
        list(map_(lambda content: case.decoder.decode(io.BytesIO(content)), contents))

    row: dict[str, Any] = {"name": case.name, "source": case.source, "items": count, "decoder": case.decoder.identity}
    row["bytes"] = sum(map(len, contents)) / count
    row["hash"] = items_per_second(lambda: [content_key(io.BytesIO(each)) for each in contents], count, rounds)
    row["decode"] = items_per_second(decode_all, count, rounds)
    with ThreadPoolExecutor(threads) as pool:
        ratios = [
            items_per_second(lambda: decode_all(pool.map), count, 1, time.perf_counter)
            / items_per_second(decode_all, count, 1, time.perf_counter)
            for _ in range(rounds)
        ]
    row["threads"] = float(np.median(ratios))
    row["features"] = items_per_second(lambda: [encode(batch) for batch in batches], count, rounds)
    row["module"] = _module(case, batches, count, rounds)
    return row


def _module(case: Case, batches: Sequence[MediaBatch], count: int, rounds: int) -> float | None:
    """Items a second of the encoder of deeprec.nn, in evaluation; None where this version has none."""
    from deeprec import nn
    from deeprec.batches.media import ModuleEncoder

    made = getattr(nn, f"{case.decoder.kind.capitalize()}CNN", None)
    if made is None:
        return None
    options = {"sample_rate": case.decoder.rate} if isinstance(case.decoder, AudioDecoder) else {}
    encoder = ModuleEncoder(made(**options), case.decoder, "cpu")
    return items_per_second(lambda: [encoder(batch) for batch in batches], count, rounds)


def show(rows: Sequence[dict[str, Any]], threads: int) -> None:
    """A table of the stages."""
    table = Table(title="items a second of processor time")
    stages = ("hash", "decode", "features", "module")
    for column in ("media", "bytes", *stages, f"{threads} threads decode"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = ["-" if row[stage] is None else f"{row[stage]:,.0f}" for stage in stages]
        table.add_row(row["name"], f"{row['bytes']:,.0f}", *cells, f"{row['threads']:.2f} x")
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.media", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(case, given.rounds, given.threads) for case in cases(given.items, Path(folder))]
    show(rows, given.threads)
    if given.json is not None:
        found = {"schema": SCHEMA, "machine": machine(), "versions": versions(), "threads": given.threads, "rows": rows}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
