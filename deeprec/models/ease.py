"""EASE: the linear autoencoder without self-weights, in closed form.

Paper: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW, arXiv 1905.03375).
Deviations: none.
On a GPU: the weights are computed on the CPU, in float64, and asked where the model is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, ByData, TrainConfig
from deeprec.contract import Facts, Schema
from deeprec.data import IdMap
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models.history import HistoryRecommender, cooccurrences

_BYTES_A_WEIGHT = 8 + 8 + 4  # the Gram matrix and its inverse in float64, the weights in float32
_BYTES_OF_NEIGHBORS = 100 * (4 + 4)  # an item's in item-knn


def _l2(facts: Facts, options: Any) -> float:
    return round(min(1000.0, max(20.0, 25 * math.sqrt(facts.rows / max(1, facts.items)))), 1)


@dataclass(frozen=True)
class EASEConfig(TrainConfig):
    """Attributes (options of gradient training are refused):
    l2: lambda of |X - X B|^2 + lambda |B|^2, > 0.
    max_memory_gib: most memory that the item x item matrices may take while they are computed, > 0.
    """

    unused: ClassVar[tuple[str, ...]] = tuple(name for name in GRADIENT_OPTIONS if name != "l2")

    by_data: ClassVar[Mapping[str, ByData]] = {
        "l2": ByData(_l2, "25 sqrt(interactions an item), from 20 to 1000"),
    }

    l2: float = 500.0
    max_memory_gib: float = 8.0
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l2 > 0 or not self.max_memory_gib > 0:
            raise ValueError(f"EASEConfig: l2 and max_memory_gib must be > 0, got {self.l2} and {self.max_memory_gib}")


class EASE(HistoryRecommender):
    """score(u, i) = x_u . B_i with B = I - P diag(1 / diag P) and P = (X^T X + lambda I)^-1, eq. 8."""

    name = "ease"
    config_class: ClassVar[type[TrainConfig]] = EASEConfig
    config: EASEConfig

    def _build_weights(self, schema: Schema) -> None:
        needed = schema.num_items**2 * _BYTES_A_WEIGHT / 2**30
        if needed > self.config.max_memory_gib:
            most = int((self.config.max_memory_gib * 2**30 / _BYTES_A_WEIGHT) ** 0.5)
            raise ValueError(
                f"ease: a catalogue of {schema.num_items:,} items needs {needed:.1f} GiB for its item x item matrices, "
                f"the limit is max_memory_gib={self.config.max_memory_gib:g} ({most:,} items); take item-knn, which "
                f"needs {schema.num_items * _BYTES_OF_NEIGHBORS / 2**30:.2g} GiB for them, or cdae; or drop rare items "
                f"(min_interactions), or raise the limit if the memory is there: the work grows with the cube of the "
                f"items, and the model keeps {schema.num_items**2 * 4 / 2**30:.1f} GiB"
            )
        self.register_buffer("weights", torch.zeros(schema.num_items, schema.num_items))
        self.weights: Tensor

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32], item_ids: IdMap) -> None:
        num_items = len(self.weights)
        gram = torch.empty(num_items, num_items, dtype=torch.float64, device="cpu")
        for start, counts in cooccurrences(offsets, items, num_items):
            gram[start : start + len(counts)] = torch.from_numpy(counts)
        gram.diagonal().add_(self.config.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram))
        inverse.div_(-inverse.diagonal().clone())  # column j by its own diagonal entry
        inverse.fill_diagonal_(0.0)
        self.weights.copy_(inverse)

    def _scores(self, offsets: Tensor, items: Tensor) -> Tensor:
        return sparse_linear(offsets, items, self.weights.new_ones(len(items)), self.weights)

    def item_vectors(self) -> Tensor:
        """[num_items, num_items] B transposed: what each item is predicted from."""
        self.require_built()
        return self.weights.T.contiguous()
