"""The folder of an index. Every file is checked against its SHA-256 before it is parsed.

| file | what |
|---|---|
| `index.json` | kind, options and measurements; SHA-256 of the other files and of itself |
| `vectors.safetensors` | vectors, bias, which items are there, labels of the graph, queries of the measurement |
| `ids.parquet`, `items.parquet` | external ids; columns that `where` filters by |
| `graph.bin` | the graph, as its library writes it |
| `recall.png` | recall against the time of a query; a picture, no part of the index |

The library of the graph reads `graph.bin`, and trusts it: load an index from places that you trust.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from deeprec._files import read_json, read_regular, replace_directory, sha256_of, unfinished_directory, write_atomically
from deeprec._record import RecordError, typed
from deeprec._tensors import write_tensors
from deeprec.data import IdMap
from deeprec.data.reading.arrays import require_pool
from deeprec.serve.index_graphs import GRAPHS, KINDS, checked_options
from deeprec.serve.index_items import SIMILARITIES, Items
from deeprec.serve.index_recall import RecallReport
from deeprec.serve.index_walk import Walk

if TYPE_CHECKING:
    from deeprec.serve.index import ItemIndex

FORMAT = 1
_HEAD, _VECTORS, _IDS, _TABLE, _GRAPH, _PICTURE = (
    "index.json",
    "vectors.safetensors",
    "ids.parquet",
    "items.parquet",
    "graph.bin",
    "recall.png",
)
_REMEDY = "build it anew"


@dataclass(frozen=True)
class Head:
    """What index.json says.

    Attributes:
        options: of the graph; none for an exact index.
        largest, block_at_first: of `Walk`.
        report: what was measured.
        checksum: SHA-256 of all the other keys.
    """

    format: int
    kind: str
    similarity: str
    source: str
    target: float
    k: int
    asked: str
    breadth: int
    options: dict[str, Any]
    largest: float
    block_at_first: int
    report: RecallReport
    sha256: dict[str, str]
    checksum: str


def is_index(folder: Path) -> bool:
    """Whether an index lies there."""
    return (folder / _HEAD).is_file()


def save_index(index: ItemIndex, directory: str | Path) -> Path:
    """Write an index; see `ItemIndex.save`."""
    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_index(folder))):
        raise ValueError(
            f"ItemIndex.save: {folder} must be a new folder, an empty one or one of an index, got another; add a name"
        )
    report = index.recall_report()
    with index._gate.reading(), unfinished_directory(folder) as beside:
        items, walk = index._items, index._walk
        tensors = {"vectors": items.vectors, "is_there": torch.from_numpy(items.is_there), "queries": index._queries}
        if items.bias is not None:
            tensors["bias"] = items.bias
        if walk is not None:
            tensors |= {"item_of": torch.from_numpy(walk.item_of), "block": torch.from_numpy(walk.block)}
        digests = {_VECTORS: write_tensors(beside / _VECTORS, tensors)}
        frames = {_IDS: items.ids.values.alias("item_id").to_frame(), _TABLE: items.table}
        for name, frame in frames.items():
            if frame is not None:
                buffer = io.BytesIO()
                frame.write_parquet(buffer)
                write_atomically(beside / name, buffer.getvalue())
                digests[name] = sha256_of(buffer.getvalue())
        if walk is not None:
            walk.graph.save(beside / _GRAPH)
            digests[_GRAPH] = sha256_of((beside / _GRAPH).read_bytes())
        head: dict[str, Any] = {
            "format": FORMAT,
            "kind": index.kind,
            "similarity": items.similarity,
            "source": index.source,
            "target": index._target,
            "k": index._k,
            "asked": index._asked,
            "breadth": index.breadth,
            "options": {} if walk is None else walk.options,
            "largest": 1.0 if walk is None else walk.largest,
            "block_at_first": 0 if walk is None else walk.block_at_first,
            "report": report.as_dict(),
            "sha256": digests,
        }
        head["checksum"] = _checksum(head)
        report.plot(beside / _PICTURE)
        write_atomically(beside / _HEAD, (json.dumps(head, indent=2) + "\n").encode())
        replace_directory(beside, folder)
    return folder


class Loaded(NamedTuple):
    """What lies in the folder of an index; see `ItemIndex`."""

    head: Head
    items: Items
    walk: Walk | None
    queries: Tensor


def load_index(directory: str | Path) -> Loaded:
    """Read an index; see `ItemIndex.load`."""
    folder = Path(directory)
    head = _read_head(folder)
    contents = {}
    for name in {_VECTORS, _IDS, *head.sha256, *([_GRAPH] if head.kind in GRAPHS else [])}:
        content = read_regular(folder / name, "ItemIndex.load", _REMEDY)
        if sha256_of(content) != head.sha256.get(name):
            raise ValueError(
                f"ItemIndex.load: {folder / name} was changed after it was written (its SHA-256 is not the one in "
                f"{_HEAD}); {_REMEDY}"
            )
        contents[name] = content
    require_pool(f"ItemIndex.load: reading {folder / _IDS}")
    try:
        tensors = {name: tensor.clone() for name, tensor in load_tensors(contents[_VECTORS]).items()}
        ids = IdMap(pl.read_parquet(io.BytesIO(contents[_IDS])).to_series(), "item")
        table = pl.read_parquet(io.BytesIO(contents[_TABLE])) if _TABLE in contents else None
        items = Items(head.similarity, ids, tensors["vectors"], tensors.get("bias"), tensors["is_there"].numpy(), table)
        if not len(ids) == len(items.is_there) == len(items.vectors):
            raise ValueError(f"{len(items.vectors)} vectors, {len(ids)} ids and {len(items.is_there)} flags")
    except (SafetensorError, pl.exceptions.PolarsError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"ItemIndex.load: {folder} holds no index that fits together ({error}); {_REMEDY}") from None
    walk = None
    if head.kind in GRAPHS:
        walk = Walk(head.kind, checked_options(head.kind, head.options))
        walk.item_of, walk.block = tensors["item_of"].numpy(), tensors["block"].numpy()
        walk.largest, walk.block_at_first = head.largest, head.block_at_first
        walk.load_graph(items, folder / _GRAPH)
    return Loaded(head, items, walk, tensors["queries"])


def _read_head(folder: Path) -> Head:
    path = folder / _HEAD
    try:
        values = read_json(path, "ItemIndex.load", _REMEDY)
    except FileNotFoundError:
        raise FileNotFoundError(f"ItemIndex.load: no index in {folder} ({_HEAD} is missing); {_REMEDY}") from None
    if values.get("format") != FORMAT:
        raise ValueError(
            f"ItemIndex.load: format in {path} must be {FORMAT}, got {values.get('format')!r:.40}; {_REMEDY}, or "
            "upgrade deeprec"
        )
    try:
        head: Head = typed(Head, values, "")
    except RecordError as error:
        raise ValueError(f"ItemIndex.load: {path}: {error}; {_REMEDY}") from None
    if head.checksum != _checksum(values) or head.kind not in KINDS or head.similarity not in SIMILARITIES:
        raise ValueError(
            f"ItemIndex.load: {path} was changed after it was written (its checksum is another); {_REMEDY}"
        )
    return head


def _checksum(values: dict[str, Any]) -> str:
    return sha256_of(json.dumps({k: v for k, v in values.items() if k != "checksum"}, sort_keys=True).encode())
