"""The libraries behind an approximate index, each as one small class that knows labels and points on a sphere.

All points have length one, so that Euclidean distance, cosine and inner product order them alike. A label that is no
longer used stays in its graph: `ItemIndex` passes it over. None of the libraries is imported before it is asked for.

Threads. voyager has threads of its own and no OpenMP. The wheels of usearch and faiss-cpu load an OpenMP of their own;
torch, which is imported first, offers its symbols to all, so that they call torch's, and one team of threads works. But
then the number of threads that faiss knows is torch's, too. So faiss works in one thread here, sets that number around
each call and puts it back. All of them follow the number of threads of torch, which `deeprec.surroundings` holds to one
where a forked process begins: it has lost the others.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprec._install import install_command
from deeprec._suggest import did_you_mean
from deeprec.serve.index_gate import Gate

_Labels = NDArray[np.int64]
_Points = NDArray[np.float32]

# Options of a graph; `scanned` is the share of the longest vectors that stay outside it (see `index_walk`).
DEFAULTS: dict[str, Any] = {"connectivity": 24, "construction": 200, "storage": "float32", "seed": 1, "scanned": 0.02}


class Graph(Protocol):
    """A graph of points with labels.

    Attributes:
        storages: how it can keep points, the names of `storage`.
    """

    storages: ClassVar[tuple[str, ...]]

    def __init__(self, width: int, options: Mapping[str, Any], capacity: int) -> None:
        """An empty graph of points of a width, with all of `DEFAULTS` as options."""

    def add(self, labels: _Labels, points: _Points, threads: int) -> None:
        """Put points [n, width] in, under labels [n] that it has not held yet and that go on from the last one."""

    def search(self, points: _Points, count: int, breadth: int, threads: int) -> _Labels:
        """Labels [b, count] of the nearest points, nearest first; -1 where the graph delivers no more.

        Args:
            breadth: candidates that a search keeps, >= count.
        """

    def save(self, path: Path) -> None:
        """Write the file of the library."""

    def load(self, path: Path) -> None:
        """Take over what `save` wrote of a graph with the same width and options."""


def _library(kind: str, module: str, distribution: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = install_command(extra) if extra else f"pip install {distribution}"
        raise ImportError(
            f"ItemIndex: kind={kind!r} needs the package {distribution} ({error}); install it: {install}"
        ) from None


class VoyagerGraph:
    """HNSW of voyager: float32, or 8 bits a number."""

    storages: ClassVar[tuple[str, ...]] = ("float32", "int8")

    def __init__(self, width: int, options: Mapping[str, Any], capacity: int) -> None:
        self._voyager = _library("voyager", "voyager", "voyager", "serve")
        kinds = self._voyager.StorageDataType
        self._settings = {
            "space": self._voyager.Space.Euclidean,
            "num_dimensions": width,
            "storage_data_type": kinds.Float32 if options["storage"] == "float32" else kinds.Float8,
        }
        self._index = self._voyager.Index(
            **self._settings,
            M=options["connectivity"],
            ef_construction=options["construction"],
            random_seed=options["seed"],
            max_elements=max(1, capacity),
        )

    def add(self, labels: _Labels, points: _Points, threads: int) -> None:
        if len(self._index) + len(labels) > self._index.max_elements:
            self._index.resize(max(len(self._index) + len(labels), self._index.max_elements * 5 // 4))
        self._index.add_items(points, labels.tolist(), num_threads=threads)

    def search(self, points: _Points, count: int, breadth: int, threads: int) -> _Labels:
        count = min(count, self._index.num_elements)
        if not count or not len(points):
            return np.full((len(points), count), -1, dtype=np.int64)
        try:
            labels, _ = self._index.query(points, k=count, num_threads=threads, query_ef=max(breadth, count))
        except RuntimeError:  # it delivers fewer than asked for by an error; the others of the call are asked alone
            if len(points) == 1:
                return np.full((1, count), -1, dtype=np.int64)
            return np.concatenate([self.search(point[None], count, breadth, 1) for point in points])
        return labels.astype(np.int64)  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        self._index.save(str(path))

    def load(self, path: Path) -> None:
        self._index = self._voyager.Index.load(str(path), **self._settings)


class UsearchGraph:
    """HNSW of usearch, one search or addition at a time: its searches share a setting and the memory of a thread."""

    storages: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "int8")
    _types: ClassVar[dict[str, str]] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "i8"}

    def __init__(self, width: int, options: Mapping[str, Any], capacity: int) -> None:
        usearch = _library("usearch", "usearch.index", "usearch", "")
        self._index = usearch.Index(
            ndim=width,
            metric="cos",
            dtype=self._types[options["storage"]],
            connectivity=options["connectivity"],
            expansion_add=options["construction"],
        )
        self._gate = Gate()

    def add(self, labels: _Labels, points: _Points, threads: int) -> None:
        with self._gate.writing():
            self._index.add(labels, points, threads=threads)

    def search(self, points: _Points, count: int, breadth: int, threads: int) -> _Labels:
        result = np.full((len(points), count), -1, dtype=np.int64)
        if not len(points) or not len(self._index):
            return result
        with self._gate.writing():
            self._index.expansion_search = max(breadth, count)
            matches = self._index.search(points, count, threads=threads)
        if len(points) == 1:
            result[0, : len(matches.keys.ravel())] = matches.keys.ravel()
            return result
        for row, (keys, length) in enumerate(zip(matches.keys, matches.counts, strict=True)):
            result[row, : int(length)] = keys[: int(length)]
        return result

    def save(self, path: Path) -> None:
        self._index.save(str(path))

    def load(self, path: Path) -> None:
        self._index.load(str(path))


class FaissGraph:
    """HNSW of faiss, which works in one thread; labels are its own numbering."""

    storages: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "int8")
    _types: ClassVar[dict[str, str]] = {"float32": "", "bfloat16": "_SQbf16", "float16": "_SQfp16", "int8": "_SQ8"}

    def __init__(self, width: int, options: Mapping[str, Any], capacity: int) -> None:
        self._faiss = _library("faiss", "faiss", "faiss-cpu", "")
        factory = f"HNSW{options['connectivity']}{self._types[options['storage']]}"
        self._index = self._faiss.index_factory(width, factory, self._faiss.METRIC_L2)
        self._index.hnsw.efConstruction = options["construction"]

    @contextlib.contextmanager
    def _one_thread(self) -> Iterator[None]:
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)

    def add(self, labels: _Labels, points: _Points, threads: int) -> None:
        assert self._index.ntotal == labels[0], "labels go on from the last one"
        with self._one_thread():
            if not self._index.is_trained:  # the range of 8 bits
                self._index.train(points)
            self._index.add(points)

    def search(self, points: _Points, count: int, breadth: int, threads: int) -> _Labels:
        settings = self._faiss.SearchParametersHNSW(efSearch=max(breadth, count))
        with self._one_thread():
            _, labels = self._index.search(points, count, params=settings)
        result: _Labels = labels
        return result

    def save(self, path: Path) -> None:
        self._faiss.write_index(self._index, str(path))

    def load(self, path: Path) -> None:
        self._index = self._faiss.read_index(str(path))


GRAPHS: dict[str, type[Any]] = {"voyager": VoyagerGraph, "usearch": UsearchGraph, "faiss": FaissGraph}
KINDS = ("exact", *GRAPHS)


def checked_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All of `DEFAULTS` for a kind of graph, with these laid over; the library is imported.

    Raises:
        ValueError: an unknown option or one out of range. TypeError: one of another type.
    """
    for name in options:
        if name not in DEFAULTS:
            raise ValueError(f"ItemIndex: unknown option {name!r}; {did_you_mean(name, [*DEFAULTS])}")
    values = {**DEFAULTS, **options}
    for name, low, high in (("connectivity", 2, 512), ("construction", 8, 100_000), ("seed", 0, 2**31 - 1)):
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(
                f"ItemIndex: {name} must be a whole number, got {value!r}; leave it out for {DEFAULTS[name]}"
            )
        if not low <= value <= high:
            raise ValueError(
                f"ItemIndex: {name} must be in [{low}, {high}], got {value}; leave it out for {DEFAULTS[name]}"
            )
        values[name] = int(value)
    share = values["scanned"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"ItemIndex: scanned must be in [0, 1), got {share!r}; leave it out for {DEFAULTS['scanned']}")
    storages = GRAPHS[kind].storages
    if values["storage"] not in storages:
        raise ValueError(
            f"ItemIndex: storage of {kind} must be one of {', '.join(storages)}, got {values['storage']!r}; take one "
            "of them, or another kind"
        )
    return values
