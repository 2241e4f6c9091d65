"""What a model is fed: the sizes of its inputs, and rows of a log or of a table as ids and numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprec._record import typed

POOLINGS = ("sum", "mean")


@dataclass(frozen=True)
class Field:
    """A column of ids, one a row.

    Attributes:
        name: unique among all inputs.
        size: rows of its table, >= 1; ids lie in [0, size).
        is_cross: a cross-product feature, which belongs to the wide part only.
    """

    name: str
    size: int
    is_cross: bool = False

    def __post_init__(self) -> None:
        _check_size(self.name, self.size)


@dataclass(frozen=True)
class BagField:
    """A column of any number of ids a row.

    Attributes:
        name, size, is_cross: as of a `Field`.
        pooling: "sum" or "mean" of the rows of a bag; an empty bag is zeros.
        is_weighted: each id has a weight that its row is multiplied by; with "mean" the sum is divided by the number
            of ids, as torch.nn.EmbeddingBag's users do by hand.
    """

    name: str
    size: int
    pooling: str = "mean"
    is_weighted: bool = False
    is_cross: bool = False

    def __post_init__(self) -> None:
        _check_size(self.name, self.size)
        _check_pooling(self.pooling)


@dataclass(frozen=True)
class SequenceField:
    """A column of any number of ids a row, in order: of a sequence, or of the tokens of a text.

    Attributes:
        name, size: as of a `Field`.
        length: most ids of a row; None: any number.
        vocabulary: the field whose ids, and so whose table, these are; "": a table of its own.
        parallel_to: another sequence with as many ids in each row; "": none.
        pooling: as of a `BagField`.
    """

    name: str
    size: int
    length: int | None = None
    vocabulary: str = ""
    parallel_to: str = field(default="", metadata={"optional": True})
    pooling: str = field(default="mean", metadata={"optional": True})

    def __post_init__(self) -> None:
        _check_size(self.name, self.size)
        _check_pooling(self.pooling)


@dataclass(frozen=True)
class VectorField:
    """As many numbers for every row.

    Attributes:
        name: unique among all inputs.
        width: columns of `Encoded.values`, >= 1.
    """

    name: str
    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"Inputs: the width of {self.name!r} must be >= 1, got {self.width}")


@dataclass(frozen=True)
class TextField:
    """A column that is kept as text, for the module that makes a vector of it.

    Attributes:
        name: unique among all inputs.
        kind: "text", or what the file of the path or key is: "image", "audio" or "video".
        folder: of the files.
    """

    name: str
    kind: str = "text"
    folder: str = ""


def _check_pooling(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"Inputs: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")


def _check_size(name: str, size: int) -> None:
    if not 1 <= size < 2**31:
        raise ValueError(f"Inputs: the size of {name!r} must lie in [1, 2^31), for its ids are int32, got {size}")


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model, in the order of the columns of `Encoded`.

    Attributes:
        fields: columns of `Encoded.ids`.
        numerics: names of the first columns of `Encoded.values`.
        bags: first keys of `Encoded.bags`.
        sequences: the next ones.
        texts: the last ones.
        vectors: the columns of `Encoded.values` after those of the numerics, as many as each is wide.
    """

    fields: tuple[Field, ...] = ()
    numerics: tuple[str, ...] = ()
    bags: tuple[BagField, ...] = ()
    sequences: tuple[SequenceField, ...] = field(default=(), metadata={"optional": True})
    texts: tuple[TextField, ...] = field(default=(), metadata={"optional": True})
    vectors: tuple[VectorField, ...] = field(default=(), metadata={"optional": True})

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields] + list(self.numerics) + [b.name for b in self.compressed]
        names += [v.name for v in self.vectors]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice or not names:
            raise ValueError(f"Inputs: each input must have a name of its own, got {twice or names}")

    @property
    def compressed(self) -> tuple[BagField | SequenceField | TextField, ...]:
        """What `Encoded.bags` holds, in its order."""
        return (*self.bags, *self.sequences, *self.texts)

    @property
    def num_values(self) -> int:
        """Columns of `Encoded.values`."""
        return len(self.numerics) + sum(vector.width for vector in self.vectors)

    def columns_of(self, vector: str) -> slice:
        """The columns of `Encoded.values` that are a vector's; KeyError for a name that is none of `vectors`."""
        start = len(self.numerics)
        for one in self.vectors:
            if one.name == vector:
                return slice(start, start + one.width)
            start += one.width
        raise KeyError(vector)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back. Kinds that older readers do not know are there only if used."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if values[f.name] or not f.metadata.get("optional")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Inputs:
        """The inputs that `as_dict` wrote.

        Raises:
            ValueError: a value that is missing, unknown or of another type, named by its key.
        """
        made: Inputs = typed(cls, values, "inputs")
        return made


class Bags(NamedTuple):
    """The bags of one column: row b holds ids[offsets[b]:offsets[b + 1]].

    Attributes:
        ids: [nnz], int32; of a column of texts their bytes in UTF-8, uint8.
        offsets: [n + 1], int64, from 0 to nnz.
        weights: [nnz], float32, or None where the field is not weighted.
    """

    ids: NDArray[Any]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def texts(self) -> list[str]:
        """The text of each row of a column of texts."""
        data, ends = self.ids.tobytes(), self.offsets.tolist()
        return [data[start:end].decode() for start, end in pairwise(ends)]


@dataclass
class Encoded:
    """Rows of a log or of a table as a model takes them.

    Attributes:
        ids: [n, F], int32, a column for each of `Inputs.fields`.
        values: [n, P], float32, finite, a column for each of `Inputs.numerics`, then those of `Inputs.vectors`.
        bags: one for each of `Inputs.bags`, `Inputs.sequences` and `Inputs.texts`.
        labels: [n], float32, 0 or 1; None where the source has none (serving).
        groups: [n], int64, the group of each row for grouped AUC, or None.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    bags: dict[str, Bags] = field(default_factory=dict)
    labels: NDArray[np.float32] | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)
