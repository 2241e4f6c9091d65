"""The best items by a graph and a block of long vectors, under filters: deeper where it must, else by the scan."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.nn.scoring import TopK
from deeprec.serve.index_items import Items, SeenRows
from deeprec.serve.index_walk import Walk

_DEEPER = 4  # times as broad is the search for queries that got too few
_SCAN_IS_AS_FAST = 1024  # breadth, or one candidate in so many items, whichever is more
_ITEMS_A_CANDIDATE = 512
_PERMITTED_A_CANDIDATE = 8  # so few items are scanned in the time of a walk
_SPARE = 16  # candidates beside twice the list, from which rounding in a graph takes nothing


def deepest_of(items: Items, breadth: int) -> int:
    """The largest breadth that is worth its time beside the exact scan; `breadth` itself is."""
    return max(breadth, _SCAN_IS_AS_FAST, len(items.vectors) // _ITEMS_A_CANDIDATE)


def best_by_graph(
    items: Items,
    walk: Walk,
    queries: Tensor,
    k: int,
    seen: SeenRows | None,
    mask: NDArray[np.bool_] | None,
    *,
    breadth: int,
    deepest: int,
) -> TopK:
    """The k best items of queries [b, D] that are in `mask` and not in `seen`, scored exactly.

    A mask that leaves one item in ten asks for ten times the breadth, and few items are scanned.
    Queries to which the graph gives fewer than k permitted items, or hides much of what it gave, are asked again more
    broadly; beyond `deepest` the scan answers.

    Returns:
        values [b, k] and ids [b, k], (-inf, -1) after the last item.
    """
    values, ids = queries.new_full((len(queries), k), -torch.inf), torch.full((len(queries), k), -1)
    permitted = len(items.vectors) if mask is None else int(mask.sum())
    is_few = permitted <= _PERMITTED_A_CANDIDATE * breadth
    breadth = deepest + 1 if is_few else int(breadth * len(items.vectors) / permitted)
    breadth = max(breadth, 2 * k)
    left, threads = np.arange(len(queries)), torch.get_num_threads()
    is_plain = seen is None and mask is None and walk.is_whole
    block = walk.best_of_block(queries, k, mask, seen) if breadth <= deepest else None
    while block is not None and len(left) and breadth <= deepest:
        count = min(breadth, 2 * k + _SPARE) if is_plain else breadth
        near = walk.near(queries[torch.from_numpy(left)], count, breadth, items.bias is not None, threads)
        short = []
        for query, row in zip(left.tolist(), near, strict=True):
            kept, is_enough = _permitted(row, k, breadth, mask, None if seen is None else seen.of(query))
            if not is_enough:
                short.append(query)
                continue
            beside = block[query]
            best = items.best_of(queries[query : query + 1], k, np.concatenate([kept, beside[beside >= 0]]))
            values[query], ids[query] = best.values[0], best.ids[0]
        left, breadth = np.array(short, dtype=np.int64), breadth * _DEEPER
    if len(left):
        rows = torch.from_numpy(left)
        best = items.exact(queries[rows], k, mask, None if seen is None else seen.at(left))
        values[rows], ids[rows] = best.values, best.ids
    return TopK(values, ids)


def _permitted(
    row: NDArray[np.int64],
    k: int,
    breadth: int,
    mask: NDArray[np.bool_] | None,
    hidden: NDArray[np.int32] | None,
) -> tuple[NDArray[np.int64], bool]:
    """The candidates of a row that may be returned, and whether they are enough for its k best.

    The end of what a graph gives is less sure than its beginning, so that not much of it may be hidden.
    """
    row = row[row >= 0]
    row = row if mask is None else row[mask[row]]
    kept = row if hidden is None else row[~np.isin(row, hidden)]
    return kept, len(kept) >= k and 2 * (k + len(row) - len(kept)) <= breadth
