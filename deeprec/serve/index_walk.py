"""A graph over the items of an index, and the longest vectors beside it, which are scanned.

Among inner products long vectors win: of the best ten items of a trained model most are among the few per cent with the
longest vectors. On the sphere (`index_points`) these are what distorts the rest, and what a walk misses. So they stay
outside the graph, in a block that the exact kernel scans, and the sphere is made for the others. A vector that comes
later and is longer than the sphere allows goes there too, so that nothing has to be built anew for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.nn.scoring import DotScorer, topk
from deeprec.serve.index_graphs import GRAPHS, Graph
from deeprec.serve.index_items import Items, SeenRows
from deeprec.serve.index_points import item_points, norms, query_points

_MORE_OUTSIDE = 1024  # items that may come to the block, or labels be left behind, before all is built anew
# Where the longest vector inside the graph has this much of the length of the longest of all, a block would be in vain.
_HARDLY_LONGER = 0.95
_Codes = NDArray[np.int64]


class Walk:
    """The graph, with a label for each vector that it was ever given, and the block beside it.

    A vector that was changed or deleted leaves its label behind, which is no item any more.

    Args:
        kind: of the graph.
        options: all of `index_graphs.DEFAULTS`.
    Attributes:
        graph: of the library.
        largest: length that a point of the sphere stands for, > 0.
        item_of: [number of labels] the item of each label, -1 for those left behind.
        block: items that are scanned, ascending.
        block_at_first: how many the block held when the graph was built.
    """

    def __init__(self, kind: str, options: Mapping[str, Any]) -> None:
        self.kind, self.options = kind, dict(options)
        self._width = 0
        self.graph: Graph
        self.largest, self.block_at_first = 1.0, 0
        self.item_of: _Codes = np.empty(0, dtype=np.int64)
        self.block: _Codes = np.empty(0, dtype=np.int64)
        self._block_vectors = torch.empty(0, 1)
        self._block_bias: Tensor | None = None
        self._is_whole = True

    @property
    def is_whole(self) -> bool:
        """Whether each label is an item."""
        return self._is_whole

    @staticmethod
    def width(items: Items) -> int:
        """Numbers in a point."""
        return items.vectors.shape[1] + 1 + (items.bias is not None)

    def build(self, items: Items, threads: int) -> None:
        """Begin anew with all items that are there."""
        codes = np.flatnonzero(items.is_there)
        lengths = _lengths(items, codes)
        scanned = int(len(codes) * self.options["scanned"])
        order = np.argsort(-lengths, kind="stable")
        if scanned and lengths[order[scanned]] > _HARDLY_LONGER * lengths[order[0]]:  # as of cosine
            scanned = 0
        inside = np.sort(order[scanned:])
        # A little beyond the longest, so that rounding leaves it inside.
        self.largest = (float(lengths[inside].max(initial=0.0)) or 1.0) * (1 + 1e-6)
        self.graph = GRAPHS[self.kind](self.width(items), self.options, len(inside))
        self.item_of = np.empty(0, dtype=np.int64)
        self.block, self.block_at_first = np.sort(codes[order[:scanned]]), scanned
        self._append(items, codes[inside], threads)
        self.refresh(items)

    def put(self, items: Items, codes: _Codes, threads: int) -> None:
        """Take over the vectors that these items have now."""
        self._leave(codes)
        is_long = _lengths(items, codes) > self.largest
        self.block = np.union1d(self.block, codes[is_long])
        self._append(items, codes[~is_long], threads)
        self._repair(items, threads)

    def drop(self, items: Items, codes: _Codes, threads: int) -> None:
        """These items are no candidates any more."""
        self._leave(codes)
        self._repair(items, threads)

    def _leave(self, codes: _Codes) -> None:
        self.item_of[np.isin(self.item_of, codes)] = -1
        self.block = np.setdiff1d(self.block, codes)

    def _repair(self, items: Items, threads: int) -> None:
        """Build anew where too many items came to the block, or most labels are left behind."""
        is_long = len(self.block) > 2 * self.block_at_first + _MORE_OUTSIDE
        if is_long or len(self.item_of) > 2 * int((self.item_of >= 0).sum()) + _MORE_OUTSIDE:
            self.build(items, threads)
        else:
            self.refresh(items)

    def load_graph(self, items: Items, path: Path) -> None:
        """Take over a graph that was saved beside all the other attributes, which are set."""
        self.graph = GRAPHS[self.kind](self.width(items), self.options, 0)
        self.graph.load(path)
        self.refresh(items)

    def __getstate__(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph"
            self.graph.save(path)
            return {**self.__dict__, "graph": path.read_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.graph = GRAPHS[self.kind](self._width, self.options, 0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph"
            path.write_bytes(state["graph"])
            self.graph.load(path)

    def refresh(self, items: Items) -> None:
        """To be called when block or labels have changed; the vectors of the block are copied to lie together."""
        self._width = self.width(items)
        rows = torch.from_numpy(self.block)
        self._is_whole = bool((self.item_of >= 0).all())
        self._block_vectors = items.vectors[rows]
        self._block_bias = None if items.bias is None else items.bias[rows]

    def _append(self, items: Items, codes: _Codes, threads: int) -> None:
        if not len(codes):
            return
        rows = torch.from_numpy(codes)
        bias = None if items.bias is None else items.bias[rows]
        points = item_points(items.vectors[rows], bias, self.largest)
        first = len(self.item_of)
        self.graph.add(np.arange(first, first + len(codes)), points, threads)
        self.item_of = np.concatenate([self.item_of, codes])

    def near(self, queries: Tensor, count: int, breadth: int, has_bias: bool, threads: int) -> _Codes:
        """Items [b, count] of the graph near to queries [b, D], -1 for none; a query without a direction has none."""
        points, has_direction = query_points(queries, has_bias)
        labels = self.graph.search(points, count, breadth, threads)
        if not labels.size:
            return labels
        items = np.where(labels >= 0, self.item_of[labels], -1)
        items[~has_direction] = -1
        return items

    def _places(self, items: NDArray[np.int32]) -> _Codes:
        """Where in the block those of the items [n], ascending, are that it holds."""
        places = np.searchsorted(self.block, items).clip(max=len(self.block) - 1)
        held: _Codes = places[self.block[places] == items]
        return held

    def best_of_block(self, queries: Tensor, k: int, mask: NDArray[np.bool_] | None, seen: SeenRows | None) -> _Codes:
        """The k best items [b, k] of the block for queries [b, D] that may be returned, -1 for none."""
        if not len(self.block):
            return np.full((len(queries), k), -1, dtype=np.int64)
        allow = None if mask is None else np.flatnonzero(mask[self.block])
        lists = None
        if seen is not None:
            hidden = [self._places(seen.of(query)) for query in range(len(queries))]
            offsets = np.cumsum([0, *(len(each) for each in hidden)])
            items = np.concatenate([np.empty(0, np.int64), *hidden]).astype(np.int32)
            lists = torch.from_numpy(offsets), torch.from_numpy(items)
        scorer = DotScorer(queries, self._block_vectors, self._block_bias)
        places = topk(scorer, min(k, len(self.block)), seen=lists, allow=allow).ids.numpy()
        return np.where(places >= 0, self.block[places], -1)


def _lengths(items: Items, codes: _Codes) -> NDArray[np.float64]:
    rows = torch.from_numpy(codes)
    return norms(items.vectors[rows], None if items.bias is None else items.bias[rows])
