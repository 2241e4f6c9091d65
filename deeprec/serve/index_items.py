"""The items of an index: vectors, bias, ids, columns, and which of them are there; and their exact search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deeprec.data import IdMap
from deeprec.kernels.prefilter_topk import PreparedItems, PreparedScorer, prefilter_topk
from deeprec.kernels.score_topk import score_topk
from deeprec.nn.scoring import DotScorer, TopK, topk
from deeprec.serve.index_table import Where, rows_where

SIMILARITIES = ("dot", "cosine")
_Items = NDArray[np.int64]


class SeenRows(NamedTuple):
    """What each query hides, as compressed rows.

    Attributes:
        offsets: [R + 1], int64.
        items: [nnz], int32, ascending within a row.
        rows: [b] the row of each query.
    """

    offsets: Tensor
    items: Tensor
    rows: Tensor

    def of(self, query: int) -> NDArray[np.int32]:
        """What one query hides."""
        row = int(self.rows[query])
        hidden: NDArray[np.int32] = self.items[int(self.offsets[row]) : int(self.offsets[row + 1])].numpy()
        return hidden

    def at(self, queries: NDArray[np.int64]) -> SeenRows:
        """The same for fewer queries."""
        return self._replace(rows=self.rows[torch.from_numpy(queries)])


@dataclass
class Items:
    """Items by internal index, which an id keeps for ever, also when it is deleted and added again.

    Attributes:
        similarity: "dot", or "cosine": then the vectors have length one.
        ids: external ids, [N].
        vectors: [N, D], float32, on the CPU.
        bias: [N], float32, or None.
        is_there: [N] False for deleted ones.
        table: columns of the items, a row each, or None.
    """

    similarity: str
    ids: IdMap
    vectors: Tensor
    bias: Tensor | None
    is_there: NDArray[np.bool_]
    table: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        self._shown_bias: Tensor | None = None
        self._prepared: PreparedItems | None = None
        self.refresh()

    def prepare(self) -> None:
        """Keep a compressed copy of the vectors, a quarter of their memory, by which `exact` finds the same sooner."""
        self._prepared = PreparedItems.of(self.vectors)
        self.vectors = self._prepared.items

    def refresh(self) -> None:
        """To be called when `bias` or `is_there` has changed; by the bias -inf no deleted item is ever returned."""
        self._shown_bias = self.bias
        if not self.is_there.all():
            bias = self.vectors.new_zeros(len(self.vectors)) if self.bias is None else self.bias
            self._shown_bias = bias.masked_fill(torch.from_numpy(~self.is_there), -torch.inf)

    @property
    def count(self) -> int:
        """Items that are there."""
        return int(self.is_there.sum())

    def put(self, ids: IdMap, codes: _Items, vectors: Tensor, bias: Tensor | None) -> None:
        """Give items vectors [n, D] and bias [n], known ones, deleted ones and new ones alike."""
        if (new := len(ids) - len(self.ids)) > 0:
            zeros = self.vectors.new_zeros(new, self.vectors.shape[1])
            if self._prepared is None:
                self.vectors = torch.cat([self.vectors, zeros])
            else:
                self._prepared.append(zeros)
                self.vectors = self._prepared.items
            if self.bias is not None:
                self.bias = torch.cat([self.bias, self.bias.new_zeros(new)])
            self.is_there = np.concatenate([self.is_there, np.zeros(new, dtype=bool)])
            if self.table is not None:
                missing = pl.Series([None] * new, dtype=pl.UInt32)
                known = [self.table.get_column(name) for name in self.table.columns if name != "item_id"]
                columns = [pl.concat([column, column.gather(missing)]) for column in known]
                self.table = pl.DataFrame([ids.values.alias("item_id"), *columns])
        self.ids = ids
        rows = torch.from_numpy(codes)
        if self._prepared is None:
            self.vectors[rows] = vectors
        else:
            self._prepared.update(rows, vectors)
        if self.bias is not None:
            self.bias[rows] = 0.0 if bias is None else bias
        self.is_there[codes] = True
        self.refresh()

    def remove(self, codes: _Items) -> None:
        """Items that are not there any more."""
        self.is_there[codes] = False
        self.refresh()

    def mask(
        self, function: str, allow: NDArray[Any] | None, deny: NDArray[Any] | None, where: Where | None
    ) -> NDArray[np.bool_] | None:
        """[N] which items may be returned to all; None: all that are there."""
        if allow is None and deny is None and where is None:
            return None
        mask = self.is_there.copy()
        if allow is not None:
            is_allowed = np.zeros(len(mask), dtype=bool)
            is_allowed[allow] = True
            mask &= is_allowed
        if deny is not None:
            mask[deny] = False
        if where is not None:
            mask &= rows_where(function, self.table, where)
        return mask

    def exact(self, queries: Tensor, k: int, mask: NDArray[np.bool_] | None, seen: SeenRows | None) -> TopK:
        """The k best items of queries [b, D], by the scan over those that may be returned."""
        allow = None if mask is None else np.flatnonzero(mask)
        if self._prepared is None:
            scorer = DotScorer(queries, self.vectors, self._shown_bias)
            lists, rows = (None, None) if seen is None else ((seen.offsets, seen.items), seen.rows)
            return topk(scorer, k, seen=lists, seen_rows=rows, allow=allow)
        return prefilter_topk(
            PreparedScorer(queries, self._prepared, self._shown_bias),
            k,
            seen_indptr=None if seen is None else seen.offsets,
            seen_indices=None if seen is None else seen.items,
            seen_rows=None if seen is None else seen.rows,
            allow_indices=None if allow is None else torch.from_numpy(allow).int(),
        )

    def best_of(self, query: Tensor, k: int, candidates: _Items) -> TopK:
        """The k best of these items for one query [1, D], by the kernel of the scan, which gives the same bits."""
        rows = torch.from_numpy(np.sort(candidates))  # the lower index first among equals
        bias = None if self._shown_bias is None else self._shown_bias.index_select(0, rows)
        values, places = score_topk(DotScorer(query, self.vectors.index_select(0, rows), bias), k)
        return TopK(values, torch.where(places < 0, places, rows[places])) if len(rows) else TopK(values, places)


def as_vectors(function: str, argument: str, values: Any, *, width: int | None, similarity: str) -> Tensor:
    """Rows [n, D], float32, contiguous, on the CPU, of their own; of length one for cosine, where zeros stay zeros.

    Raises:
        TypeError: no numbers. ValueError: another shape, or numbers that are not finite in float32.
    """
    try:
        given = torch.as_tensor(values) if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function}: {argument} must be an array of numbers, got {type(values).__name__} ({error}); pass a tensor "
            "or a NumPy array"
        ) from None
    if given.dtype == torch.bool or given.is_complex():
        raise TypeError(f"{function}: {argument} must be real numbers, got {given.dtype}; pass float32")
    if given.dim() != 2 or given.shape[1] < 1 or width not in (None, given.shape[1]):
        wide = "[n, D]" if width is None else f"[n, {width}]"
        raise ValueError(f"{function}: {argument} must be {wide}, got {list(given.shape)}; pass a row for each")
    given = given.detach().to("cpu", torch.float32, copy=True).contiguous()
    is_finite = given.isfinite().all(1)
    if not is_finite.all():
        row = int((~is_finite).int().argmax())
        raise ValueError(
            f"{function}: {argument} must be finite in float32, got NaN or an infinity in row {row}; drop the row"
        )
    return F.normalize(given, dim=1, eps=1e-30) if similarity == "cosine" else given


def as_bias(function: str, values: Any, count: int) -> Tensor:
    """[n], float32, finite, on the CPU.

    Raises:
        ValueError: another shape, or numbers that are not finite. TypeError: no numbers.
    """
    given = values if isinstance(values, Tensor) else np.asarray(values)
    column = as_vectors(function, "bias", given.reshape(-1, 1), width=1, similarity="dot")
    if len(column) != count:
        raise ValueError(
            f"{function}: bias must be one number for each of {count} vectors, got {len(column)}; pass as many"
        )
    return column.squeeze(1)
