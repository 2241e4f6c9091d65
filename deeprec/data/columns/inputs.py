"""What a click model is fed: the sizes of its inputs, and rows of a log as ids and numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
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
        if self.pooling not in POOLINGS:
            raise ValueError(f"Inputs: pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")


def _check_size(name: str, size: int) -> None:
    if not 1 <= size < 2**31:
        raise ValueError(f"Inputs: the size of {name!r} must lie in [1, 2^31), for its ids are int32, got {size}")


@dataclass(frozen=True)
class Inputs:
    """All inputs of a click model, in the order of the columns of `Encoded`.

    Attributes:
        fields: columns of `Encoded.ids`.
        numerics: names of the columns of `Encoded.values`.
        bags: keys of `Encoded.bags`.
    """

    fields: tuple[Field, ...] = ()
    numerics: tuple[str, ...] = ()
    bags: tuple[BagField, ...] = ()

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields] + list(self.numerics) + [b.name for b in self.bags]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice or not names:
            raise ValueError(f"Inputs: each input must have a name of its own, got {twice or names}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` takes it back."""
        return asdict(self)

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
        ids: [nnz], int32.
        offsets: [n + 1], int64, from 0 to nnz.
        weights: [nnz], float32, or None where the field is not weighted.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None


@dataclass
class Encoded:
    """Rows of a log as a model takes them.

    Attributes:
        ids: [n, F], int32, a column for each of `Inputs.fields`.
        values: [n, P], float32, finite, a column for each of `Inputs.numerics`.
        bags: one for each of `Inputs.bags`.
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
