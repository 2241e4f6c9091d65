"""SLIM: weights between items that are few, not negative, and learned.

Paper: Ning, Karypis 2011, "SLIM: Sparse Linear Methods for Top-N Recommender Systems" (ICDM), eq. 2 and 3, by
coordinate descent on the Gram matrix (Friedman, Hastie, Tibshirani 2010, "Regularization Paths for Generalized Linear
Models via Coordinate Descent", section 2.2).
Deviations: none. An item that shares at most l1 users with another has no weight for it, which is exact: no other
counts, so nothing larger than the pairs that meet is held.
On a GPU: the weights are computed on the CPU and asked where the model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec._compiled import host_function
from deeprec.config import GRADIENT_OPTIONS, TrainConfig
from deeprec.contract import Schema, check_rows
from deeprec.data import IdMap
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models.history import HistoryRecommender, cooccurrences

_SWEEPS, _TOLERANCE = 100, 1e-4  # weights are mostly below 1

Lists = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]  # offsets, items, weights


@dataclass(frozen=True)
class SLIMConfig(TrainConfig):
    """Attributes (options of gradient training are refused):
    l1: lambda of |X - X W|^2 / 2 + beta / 2 |W|^2 + lambda |W|_1, >= 0; the larger, the fewer weights.
    l2: its beta, > 0.
    """

    unused: ClassVar[tuple[str, ...]] = tuple(name for name in GRADIENT_OPTIONS if name != "l2")

    l1: float = 1.0
    l2: float = 10.0
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l1 >= 0 or not self.l2 > 0:
            raise ValueError(f"SLIMConfig: l1 must be >= 0 and l2 > 0, got {self.l1} and {self.l2}")


class SLIM(HistoryRecommender):
    """score(u, i) = sum over the items j that u has of W_ji, W >= 0 with zeros on its diagonal."""

    name = "slim"
    config_class: ClassVar[type[TrainConfig]] = SLIMConfig
    config: SLIMConfig

    def _build_weights(self, schema: Schema) -> None:
        # Column i of W, what i is predicted from: weight_items[a:b], ascending, with a, b = weight_offsets[i:i + 2].
        self.register_buffer("weight_offsets", torch.zeros(schema.num_items + 1, dtype=torch.int64))
        self.register_buffer("weight_items", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(0))
        self.weight_offsets: Tensor
        self.weight_items: Tensor
        self.weights: Tensor

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32], item_ids: IdMap) -> None:
        gram, own = _gram(offsets, items, len(self.weight_offsets) - 1)
        solve = host_function("slim_columns") or _columns
        penalties, device = (self.config.l1, self.config.l2), self.device
        solved = solve(*gram, own, *penalties, _SWEEPS, _TOLERANCE, 0, len(own), torch.get_num_threads())
        columns = (torch.from_numpy(array).to(device) for array in solved)
        self.weight_offsets, self.weight_items, self.weights = columns

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the number of weights is that of the file.

        Raises:
            ValueError: weights of items that are none of the catalogue.
        """
        if {"weight_items", "weight_offsets", "weights"} <= set(state_dict):
            num_items = self.require_built().num_items
            offsets, items = (state_dict[f"weight_{name}"].cpu().numpy() for name in ("offsets", "items"))
            check_rows(offsets, items, num_items, num_items)
            self.weight_items = torch.empty_like(state_dict["weight_items"], device=self.device)
            self.weights = torch.empty_like(state_dict["weights"], device=self.device)
        return super().load_state_dict(state_dict, strict, assign)

    def _scores(self, offsets: Tensor, items: Tensor) -> Tensor:
        users = self.weights.new_zeros(len(self.weight_offsets) - 1, len(offsets) - 1)
        every = torch.arange(len(offsets) - 1, device=offsets.device)
        owners = torch.repeat_interleave(every, offsets.diff(), output_size=len(items))
        users.index_put_((items, owners), users.new_ones(()))
        return sparse_linear(self.weight_offsets, self.weight_items.long(), self.weights, users).T.contiguous()

    def item_vectors(self) -> Tensor:
        """[num_items, num_items] W transposed: what each item is predicted from."""
        num_items = self.require_built().num_items
        vectors = torch.zeros(num_items, num_items, device=self.device)
        every, counts = torch.arange(num_items, device=self.device), self.weight_offsets.diff()
        owners = torch.repeat_interleave(every, counts, output_size=len(self.weights))
        vectors.index_put_((owners, self.weight_items.long()), self.weights)
        return vectors


def _gram(offsets: NDArray[np.int64], items: NDArray[np.int32], num_items: int) -> tuple[Lists, NDArray[np.float32]]:
    """X^T X of binary X [users, items] without its zeros, in compressed rows, and its diagonal."""
    own = np.bincount(items, minlength=num_items).astype(np.float32)
    lengths, columns, values = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for _, counts in cooccurrences(offsets, items, num_items):
        rows, places = np.nonzero(counts)
        lengths.append(np.bincount(rows, minlength=len(counts)))
        columns.append(places.astype(np.int32))
        values.append(counts[rows, places].astype(np.float32))
    return (np.cumsum(np.concatenate(lengths)), np.concatenate(columns), np.concatenate(values)), own


def _columns(
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
    counts: NDArray[np.float32],
    own: NDArray[np.float32],
    l1: float,
    l2: float,
    sweeps: int,
    tolerance: float,
    start: int,
    stop: int,
    threads: int,
) -> Lists:
    """What csrc/host/slim.cpp does, where there is no compiler; `threads` means nothing here."""
    solved: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    slopes, weights = np.zeros(len(own), np.float32), np.zeros(len(own), np.float32)
    for target in range(start, stop):
        row = slice(offsets[target], offsets[target + 1])
        slopes[:] = 0.0
        slopes[items[row]] = counts[row]
        candidates = items[row][(counts[row] > l1) & (items[row] != target)]
        for _ in range(sweeps):
            largest = 0.0
            for item in candidates:
                now = max(0.0, (slopes[item] + own[item] * weights[item] - l1) / (own[item] + l2))
                change = now - weights[item]
                if change:
                    weights[item], met = now, slice(offsets[item], offsets[item + 1])
                    slopes[items[met]] -= change * counts[met]
                    largest = max(largest, abs(change))
            if largest < tolerance:
                break
        kept = candidates[weights[candidates] != 0]
        solved.append((kept, weights[kept]))
        weights[candidates] = 0.0
    ends = np.cumsum([0, *(len(kept) for kept, _ in solved)], dtype=np.int64)
    none: tuple[Any, Any] = (np.zeros(0, np.int32), np.zeros(0, np.float32))
    ids, values = (np.concatenate([each[n] for each in (none, *solved)]) for n in (0, 1))
    return ends, ids, values
