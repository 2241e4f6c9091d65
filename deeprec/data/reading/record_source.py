"""Logs that are files of one record a line: JSON lines, and MIND's impressions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.data.reading.arrays import columns_of
from deeprec.data.reading.errors import START_BYTES, checksum
from deeprec.data.reading.frame_source import TableSource
from deeprec.data.reading.records import records
from deeprec.data.reading.text import OnBad
from deeprec.data.reading.text_source import line_blocks, read_start


class RecordSource(TableSource):
    """A file of "jsonl" or "mind", block after block; see `open_source`."""

    def __init__(self, path: Path, kind: str, *, on_bad: OnBad = "raise", **options: Any) -> None:
        start = read_start(path)
        whole = start[: start.rfind(b"\n") + 1 or None]
        self.path, self.kind = path, kind
        super().__init__(str(path), records(whole, kind, path, "skip")[0].schema, on_bad=on_bad, **options)
        self.size = sum(block.count(b"\n") for block in line_blocks(path))

    def head(self, rows: int = 1000) -> pl.DataFrame:
        start = read_start(self.path, max(START_BYTES, 2000 * rows))
        whole = start[: start.rfind(b"\n") + 1 or None]
        return records(whole, self.kind, self.path, self.on_bad, self.schema)[0].head(rows)

    def _parts(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        first, line = 0, 1
        for block in line_blocks(self.path, self.block_bytes):
            frame, bad = records(block, self.kind, self.path, self.on_bad, self.schema, line)
            self.bad.add(len(bad), bad)
            frame = columns_of(frame, columns)
            for start in range(0, frame.height, rows):
                yield first + start, frame.slice(start, rows)
            first += frame.height
            line += block.count(b"\n")

    def _checksum(self) -> str:
        return checksum(self.path)
