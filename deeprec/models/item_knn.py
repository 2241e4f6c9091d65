"""Item-KNN: what is most like the user's items, by the cosine of who has them.

Paper: Sarwar, Karypis, Konstan, Riedl 2001, "Item-based collaborative filtering recommendation algorithms" (WWW);
Deshpande, Karypis 2004, "Item-based top-N recommendation algorithms" (TOIS 22), cosine over binary data.
On a GPU: the similarities are computed on the CPU and asked where the model is.
Deviations: the shrunk cosine c_ij / (|i| |j| + shrinkage) as in Ferrari Dacrema et al. 2019 (arXiv 1907.06902).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig
from deeprec.contract import Schema
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models.history import HistoryRecommender, cooccurrences

_MOST_VECTOR_VALUES = 1 << 30  # 4 GiB of float32


@dataclass(frozen=True)
class ItemKNNConfig(TrainConfig):
    """Attributes (options of gradient training are refused):
    neighbors: k, the items nearest to each item that count, >= 1.
    shrinkage: added to the product of the norms, >= 0; it holds back items that few users have.
    """

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS

    neighbors: int = 100
    shrinkage: float = 0.0
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbors < 1 or not self.shrinkage >= 0:
            raise ValueError(
                f"ItemKNNConfig: neighbors must be >= 1 and shrinkage >= 0, got {self.neighbors} and {self.shrinkage}"
            )


class ItemKNN(HistoryRecommender):
    """score(u, i) = sum over the k items j nearest to i that u has of c_ij / (sqrt(c_i c_j) + shrinkage).

    c_ij counts the users who have both items.
    """

    name = "item-knn"
    config_class: ClassVar[type[TrainConfig]] = ItemKNNConfig
    config: ItemKNNConfig

    def _build_weights(self, schema: Schema) -> None:
        width = min(self.config.neighbors, schema.num_items)
        self.register_buffer("neighbors", torch.zeros(schema.num_items, width, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(schema.num_items, width))  # 0 where there are fewer
        self.neighbors: Tensor
        self.similarities: Tensor

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32]) -> None:
        num_items, width = self.neighbors.shape
        norms = np.sqrt(np.bincount(items, minlength=num_items))
        for start, counts in cooccurrences(offsets, items, num_items):
            rows = np.arange(len(counts))
            scale = norms[start + rows, None] * norms + self.config.shrinkage
            cosines = np.divide(counts, scale, out=counts, where=counts > 0)
            cosines[rows, start + rows] = 0.0
            values, nearest = torch.from_numpy(cosines).float().topk(width, dim=1)
            self.neighbors[start : start + len(rows)] = nearest.int()
            self.similarities[start : start + len(rows)] = values

    def _scores(self, offsets: Tensor, items: Tensor) -> Tensor:
        num_items, width = self.neighbors.shape
        users = self.similarities.new_zeros(num_items, len(offsets) - 1)
        every = torch.arange(len(offsets) - 1, device=offsets.device)
        owners = torch.repeat_interleave(every, offsets.diff(), output_size=len(items))
        users.index_put_((items, owners), users.new_ones(()))
        bounds = torch.arange(num_items + 1, dtype=torch.int32, device=users.device) * width
        scores = sparse_linear(bounds, self.neighbors.view(-1), self.similarities.view(-1), users)
        return scores.T.contiguous()

    def item_vectors(self) -> Tensor:
        """[num_items, num_users] who has each item: their cosine is the similarity without shrinkage."""
        schema = self.require_built()
        if schema.num_items * schema.num_users > _MOST_VECTOR_VALUES:
            raise ValueError(
                f"item-knn: item vectors of {schema.num_items} x {schema.num_users} values would take "
                f"{schema.num_items * schema.num_users * 4 / 2**30:.1f} GiB, the limit is "
                f"{_MOST_VECTOR_VALUES * 4 / 2**30:.0f}; read `neighbors` and `similarities` of the model"
            )
        vectors = torch.zeros(schema.num_items, schema.num_users, device=self.device)
        every, items = torch.arange(schema.num_users, device=self.device), self.history_items.long()
        owners = torch.repeat_interleave(every, self.history_offsets.diff(), output_size=len(items))
        vectors.index_put_((items, owners), vectors.new_ones(()))
        return vectors
