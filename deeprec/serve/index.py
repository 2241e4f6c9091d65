"""`ItemIndex`: the best items for a query vector, by an exact scan or by a graph of neighbours, filtered and kept up.

    index = ItemIndex.build(vectors, ids, kind="voyager", recall=0.99)    # or kind="exact", "usearch", "faiss"
    index.search(queries, k=10, seen=[[7, 9], [3]], deny=[12], where={"genre": "Drama"})
    index.add([901], new_vectors); index.delete([7]); index.save("my-index"); ItemIndex.load("my-index")
    print(index.recall_report())

The exact scan is the right choice up to about a million items, and whenever every last item counts; it reads a
compressed copy first (`deeprec.kernels.prefilter_topk`), and gives what `score_topk` gives, bit for bit. A graph
answers in a fraction of its time and gives nearly the same items: every build measures the share, and chooses the
breadth of the search by it. Scores are always exact: what a graph proposes is scored by the kernel of the scan, and
equal scores go by the order of the items.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeprec._files import sha256_of
from deeprec._suggest import did_you_mean
from deeprec.data import IdMap
from deeprec.data.interactions.ids import to_series
from deeprec.data.reading.arrays import require_pool
from deeprec.nn.scoring import TopK
from deeprec.serve.arguments import codes_of, require_k
from deeprec.serve.index_folder import load_index, save_index
from deeprec.serve.index_gate import Gate
from deeprec.serve.index_given import Given, as_share, checked, of_model
from deeprec.serve.index_graphs import KINDS, checked_options
from deeprec.serve.index_items import Items, SeenRows, as_bias, as_vectors
from deeprec.serve.index_models import fingerprint
from deeprec.serve.index_recall import BREADTHS, RecallReport, exact_report, measure, sample_of
from deeprec.serve.index_search import best_by_graph, deepest_of
from deeprec.serve.index_table import Where, item_table
from deeprec.serve.index_walk import Walk
from deeprec.surroundings import computed

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_EXACT = 1_000_000  # items up to which the scan is the default
_SAMPLE = 1024  # queries that a build measures with; half of them choose
_logger = logging.getLogger("deeprec")


class ItemIndex:
    """An index over item vectors; `build` or `load` makes one.

    Any number of threads may search at once; while items are added, changed or deleted they wait. It can be pickled and
    copied, and a forked process searches as its parent. It lives on the CPU.

    Attributes:
        kind: "exact", "voyager", "usearch" or "faiss".
        similarity: "dot" or "cosine".
        source: SHA-256 of the vectors and ids that it was built of.
        breadth: candidates that a search of the graph keeps; larger is slower and gives more of the exact answer.
    """

    def __init__(
        self,
        kind: str,
        items: Items,
        walk: Walk | None,
        *,
        source: str,
        target: float,
        k: int,
        queries: Tensor,
        asked: str,
    ) -> None:
        self.kind, self.source = kind, source
        self.breadth = 0
        self._items, self._walk = items, walk
        if walk is None:
            items.prepare()
        self._target, self._k, self._queries, self._asked = target, k, queries, asked
        self._report: RecallReport | None = None
        self._gate = Gate()
        self.verified: list[tuple[Any, ...]] | None = None  # weights of the model that it was last compared with

    @classmethod
    @computed
    def build(
        cls,
        vectors: Any,
        ids: Any = None,
        *,
        kind: str | None = None,
        similarity: str = "dot",
        bias: Any = None,
        items: Any = None,
        queries: Any = None,
        recall: float = 0.99,
        recall_at: int = 10,
        **options: Any,
    ) -> Self:
        """An index over item vectors, or over those of a model.

        Args:
            vectors: [N, D] numbers that are finite in float32, N >= 1; or a fitted model whose scores are a dot
                product, which brings ids, bias and, for the report, vectors of its users.
            ids: [N] distinct external ids; None: 0 to N - 1.
            kind: "exact", "voyager" (`pip install` with the extra serve), "usearch" or "faiss"; None: exact up to a
                million items, beyond that voyager.
            similarity: "dot", the score q . v + bias; or "cosine", where a zero vector scores 0.
            bias: [N] numbers, of "dot".
            items: a frame with a column item_id and others, by which `search` can filter (`where`).
            queries: [b, D] vectors to measure recall with; None: the users of a model, or the item vectors.
            recall: share of the exact best items that a graph has to give, in (0, 1].
            recall_at: length of the lists that it is measured by, >= 1.
            **options: of a graph: connectivity (neighbours of a point, 24), construction (breadth while it is built,
                200), storage ("float32"; "int8" everywhere, "bfloat16" and "float16" of usearch and faiss), scanned
                (share of the longest vectors that are scanned beside the graph, 0.02) and seed.
        Raises:
            ValueError, TypeError: arguments that are not such, or a model whose scores are no dot product.
            ImportError: the library of the kind is not installed.
        """
        name = "ItemIndex.build"
        target, k = as_share(name, recall), require_k(name, recall_at)
        given = Given(vectors, ids, bias, queries, "items" if queries is None else "given")
        if isinstance(vectors, nn.Module):
            given = of_model(name, given, similarity, _SAMPLE)
        rows, number, known = checked(name, given, similarity)
        kind = kind or ("exact" if len(rows) <= _MOST_EXACT else "voyager")
        if kind not in KINDS:
            raise ValueError(
                f"{name}: kind must be one of {', '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}"
            )
        if kind == "exact" and options:
            raise ValueError(f"{name}: the exact kind takes no options, got {min(options)!r}; leave it out")
        held = Items(similarity, known, rows, number, np.ones(len(rows), dtype=bool))
        held.table = None if items is None else item_table(name, items, known)
        asking = sample_of(rows, _SAMPLE)
        if given.queries is not None:
            asking = as_vectors(name, "queries", given.queries, width=rows.shape[1], similarity=similarity)
            asking = sample_of(asking if len(asking) else rows, _SAMPLE)
        walk = None if kind == "exact" else Walk(kind, checked_options(kind, options))
        facts: dict[str, Any] = {"source": fingerprint(rows, number, known), "queries": asking, "asked": given.asked}
        made = cls(kind, held, walk, target=target, k=k, **facts)
        if walk is not None:
            walk.build(held, torch.get_num_threads())
        made._measure()
        return made

    # -- asked -------------------------------------------------------------------------------------------------------

    @computed
    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        seen: Sequence[Any] | None = None,
        allow: Any = None,
        deny: Any = None,
        where: Where | None = None,
    ) -> pl.DataFrame:
        """The k best items for each query that may be returned.

        Ids in `seen`, `allow` and `deny` that the index does not hold are passed over.

        Args:
            queries: [b, D] or [D] finite numbers.
            k: list length, >= 1.
            seen: for each query the external ids that it has met already, which are not returned.
            allow: external ids of the only items that may come.
            deny: external ids of items that may not.
            where: items whose columns meet this: a polars expression, or a mapping of columns to a value or several.
        Returns:
            query (from 0), rank (from 1), item_id, score; fewer than k rows for a query to which fewer items are left.
        Raises:
            ValueError, TypeError: queries of another width, k < 1, columns that there are not, ids of another type.
        """
        name = "ItemIndex.search"
        k = require_k(name, k)
        if isinstance(queries, Tensor | np.ndarray) and queries.ndim == 1:
            queries = queries[None]
        rows = as_vectors(name, "queries", queries, width=self.width, similarity=self.similarity)
        with self._gate.reading():
            ids = self._items.ids
            filters = {argument: self._codes(name, argument, given) for argument, given in
                       (("allow", allow), ("deny", deny))}  # fmt: skip
            hidden = None if seen is None else self._seen_rows(name, seen, len(rows))
            best = self._best(rows, min(k, len(ids)), hidden, self._items.mask(name, **filters, where=where))
        values, items = best.values.numpy(), best.ids.numpy()
        places, ranks = np.nonzero(items >= 0)
        return pl.DataFrame([
            pl.Series("query", places),
            pl.Series("rank", ranks + 1),
            ids.values.gather(items[items >= 0]).alias("item_id"),
            pl.Series("score", values[items >= 0]),
        ])  # fmt: skip

    @computed
    def topk(
        self,
        queries: Tensor,
        k: int,
        *,
        seen: tuple[Tensor, Tensor] | None = None,
        seen_rows: Tensor | None = None,
        allow: NDArray[Any] | None = None,
        deny: NDArray[Any] | None = None,
        where: Where | None = None,
    ) -> TopK:
        """As `deeprec.nn.scoring.topk`, on internal indices; `ids` names them. Nothing is checked but the queries.

        Args:
            queries: [b, D].
            k: how many, >= 0.
            seen, seen_rows: compressed rows (offsets int64, items int32 ascending) and the row of each query.
            allow, deny: item indices [n].
        Returns:
            values [b, k], float32, and ids [b, k], int64, on the CPU: (-inf, -1) after the last candidate.
        """
        rows = as_vectors("ItemIndex.topk", "queries", queries, width=self.width, similarity=self.similarity)
        lists = None
        if seen is not None:
            of = torch.arange(len(rows)) if seen_rows is None else seen_rows.cpu().long()
            lists = SeenRows(seen[0].cpu(), seen[1].cpu(), of)
        with self._gate.reading():
            return self._best(rows, k, lists, self._items.mask("ItemIndex.topk", allow, deny, where))

    def _best(self, queries: Tensor, k: int, seen: SeenRows | None, mask: NDArray[np.bool_] | None) -> TopK:
        items, walk, breadth = self._items, self._walk, self.breadth
        if walk is None:
            return items.exact(queries, k, mask, seen)
        deepest = deepest_of(items, breadth)
        return best_by_graph(items, walk, queries, k, seen, mask, breadth=breadth, deepest=deepest)

    def _codes(self, function: str, argument: str, given: Any) -> NDArray[np.int64] | None:
        if given is None:
            return None
        codes = codes_of(function, argument, given, self._items.ids, unknown=-1)
        return codes[codes >= 0].astype(np.int64)

    def _seen_rows(self, function: str, seen: Any, count: int) -> SeenRows:
        if isinstance(seen, str | bytes) or not hasattr(seen, "__len__") or len(seen) != count:
            got = f"{len(seen)} lists" if hasattr(seen, "__len__") else type(seen).__name__
            raise ValueError(
                f"{function}: seen must be a list of ids for each of {count} queries, got {got}; pass [] for a query "
                "that has seen nothing"
            )
        lists = [np.unique(self._codes(function, "seen", each)) for each in seen]  # type: ignore[arg-type]
        offsets = np.cumsum([0, *(len(each) for each in lists)])
        items = np.concatenate([np.empty(0, np.int64), *lists]).astype(np.int32)
        return SeenRows(torch.from_numpy(offsets), torch.from_numpy(items), torch.arange(count))

    # -- kept up -----------------------------------------------------------------------------------------------------

    @computed
    def add(self, ids: Any, vectors: Any, *, bias: Any = None) -> None:
        """Put items in: new ones, deleted ones again, and those that are there with another vector.

        Many at once cost little more than one. With a table of columns, new items have nulls there, so that no `where`
        lets them through.

        Args:
            ids: [n] distinct external ids.
            vectors: [n, D] finite numbers; longer ones than any before are served by a scan beside the graph, which is
                built anew when there are more than a thousand of them.
            bias: [n], of an index with one; None: zeros.
        Raises:
            ValueError, TypeError: arguments that are not such; the index is as it was.
            RuntimeError: new ids in a forked process, which lacks the threads of polars.
        """
        self._put("ItemIndex.add", ids, vectors, bias, is_known=False)

    @computed
    def update(self, ids: Any, vectors: Any, *, bias: Any = None) -> None:
        """As `add`, for items that are there; others are refused.

        Raises:
            ValueError: an id that the index does not hold, or as `add`.
        """
        self._put("ItemIndex.update", ids, vectors, bias, is_known=True)

    def _put(self, name: str, ids: Any, vectors: Any, bias: Any, *, is_known: bool) -> None:
        ids = to_series(ids, "item")
        rows = as_vectors(name, "vectors", vectors, width=self.width, similarity=self.similarity)
        number = None if bias is None else as_bias(name, bias, len(rows))
        items = self._items
        if number is not None and items.bias is None:
            raise ValueError(f"{name}: bias must be left out, since the index was built without, got one")
        with self._gate.writing():
            known = items.ids
            if not is_known and (codes_of(name, "ids", ids, known, unknown=-1) < 0).any():
                require_pool(f"{name}: new ids")
                known = known.grown(ids)
            codes = codes_of(name, "ids", ids, known, remedy="add them").astype(np.int64)
            if len(codes) != len(rows) or len(np.unique(codes)) < len(codes):
                raise ValueError(
                    f"{name}: ids must be distinct, one for each of {len(rows)} vectors, got {len(codes)} with "
                    f"{len(np.unique(codes))} distinct; pass each once"
                )
            if is_known and not items.is_there[codes].all():
                gone = items.ids.decode(codes[~items.is_there[codes]][:1])[0]
                raise ValueError(f"{name}: ids must be in the index, got {gone!r}, which was deleted; add it")
            items.put(known, codes, rows, number)
            if self._walk is not None:
                self._walk.put(items, codes, torch.get_num_threads())
            self._report = None

    @computed
    def delete(self, ids: Any) -> int:
        """Take items out; ids that are not there are passed over.

        Returns:
            how many were taken out.
        """
        with self._gate.writing():
            codes = self._codes("ItemIndex.delete", "ids", ids)
            assert codes is not None
            codes = np.unique(codes[self._items.is_there[codes]])
            self._items.remove(codes)
            if self._walk is not None:
                self._walk.drop(self._items, codes, torch.get_num_threads())
            self._report = None if len(codes) else self._report
        return len(codes)

    @computed
    def rebuild(self) -> RecallReport:
        """Build the graph anew of what is there now, and choose its breadth again."""
        with self._gate.writing():
            if self._walk is not None:
                self._walk.build(self._items, torch.get_num_threads())
        return self._measure()

    # -- told --------------------------------------------------------------------------------------------------------

    @computed
    def recall_report(self, *, anew: bool = False) -> RecallReport:
        """Recall against the exact scan and the time of a query; after changes it is that of the breadth in use.

        Args:
            anew: measure all breadths again, on this machine, and choose one.
        """
        if anew:
            return self._measure()
        return self._report or self._measure(keep_breadth=True)

    def _measure(self, *, keep_breadth: bool = False) -> RecallReport:
        with self._gate.reading():
            items, walk, k = self._items, self._walk, min(self._k, max(1, self._items.count))
            facts: dict[str, Any] = {"kind": self.kind, "num_items": items.count, "width": self.width, "k": k}
            facts |= {"target": self._target, "queries": self._asked}

            def exact(queries: Tensor, _: int) -> NDArray[np.int64]:
                return items.exact(queries, k, None, None).ids.numpy()

            if walk is None:
                self._report = exact_report(self._queries, exact, **facts)
                return self._report

            def search(queries: Tensor, breadth: int) -> NDArray[np.int64]:
                deepest = max(breadth, 2 * k)
                best = best_by_graph(items, walk, queries, k, None, None, breadth=breadth, deepest=deepest)
                return best.ids.numpy()

            asked = self._queries if len(self._queries) > 1 else self._queries.repeat(2, 1)
            report = measure(asked, search, exact, [self.breadth] if keep_breadth else BREADTHS, **facts)
        self.breadth, self._report = report.breadth, report
        if not report.reaches_target and report.breadth == report.points[-1].breadth:
            _logger.warning(
                "ItemIndex: recall@%d is %.4f at the largest breadth, below the target of %g; build it with a larger "
                "connectivity, construction or scanned",
                k,
                report.recall,
                report.target,
            )
        return report

    @property
    def similarity(self) -> str:
        """ "dot" or "cosine"."""
        return self._items.similarity

    @property
    def width(self) -> int:
        """Numbers D in a vector."""
        return self._items.vectors.shape[1]

    @property
    def ids(self) -> IdMap:
        """External ids by internal index, those of deleted items among them."""
        return self._items.ids

    def state_sha256(self) -> str:
        """SHA-256 of all that shapes a list: items, vectors, what is deleted, kind and breadth."""
        with self._gate.reading():
            items = self._items
            state = f"{fingerprint(items.vectors, items.bias, items.ids)} {sha256_of(items.is_there.tobytes())}"
        return sha256_of(f"{state} {self.kind} {self.similarity} {self.breadth}".encode())

    def __getstate__(self) -> dict[str, Any]:
        with self._gate.reading():
            return {**self.__dict__, "verified": None}

    def __len__(self) -> int:
        return self._items.count

    def __contains__(self, item_id: Any) -> bool:
        codes = self._codes("ItemIndex", "id", [item_id])
        return bool(codes is not None and len(codes) and self._items.is_there[codes[0]])

    def __repr__(self) -> str:
        return f"ItemIndex({self.kind}: {len(self)} items x {self.width}, {self.similarity})"

    def save(self, directory: str | Path) -> Path:
        """Write the index into a folder of its own, with recall.json and recall.png; see `deeprec.serve.index_folder`.

        Raises:
            ValueError: the folder holds something else. OSError: not writable; an index that was there is as it was.
        """
        return save_index(self, directory)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The index in a folder that `save` wrote.

        Raises:
            FileNotFoundError: none there. ValueError: damaged, or changed since. ImportError: its library is missing.
        """
        head, items, walk, queries = load_index(directory)
        facts: dict[str, Any] = {name: getattr(head, name) for name in ("source", "target", "k", "asked")}
        index = cls(head.kind, items, walk, queries=queries, **facts)
        index.breadth, index._report = head.breadth, head.report
        return index
