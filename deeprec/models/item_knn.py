"""Item-KNN: what is most like the user's items, by the cosine of who has them.

Paper: Sarwar, Karypis, Konstan, Riedl 2001, "Item-based collaborative filtering recommendation algorithms" (WWW);
Deshpande, Karypis 2004, "Item-based top-N recommendation algorithms" (TOIS 22), cosine over binary data.
On a GPU: the similarities are computed on the CPU and asked where the model is.
Deviations: the shrunk cosine c_ij / (|i| |j| + shrinkage) as in Ferrari Dacrema et al. 2019 (arXiv 1907.06902); among
equally near items the one with the lower id counts, so that no figure depends on the order of the rows.
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
from deeprec.contract import Schema
from deeprec.data import IdMap
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
        self._incoming: tuple[NDArray[Any], ...] | None = None  # made from these when scores are first asked for

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32], item_ids: IdMap) -> None:
        width, places = self.neighbors.shape[1], item_ids.ascending()[1]
        nearest = host_function("item_neighbors") or item_neighbors
        neighbors, similarities = nearest(offsets, items, places, width, self.config.shrinkage)
        self.neighbors.copy_(torch.from_numpy(neighbors))
        self.similarities.copy_(torch.from_numpy(similarities))
        self._incoming = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's."""
        self._incoming = None
        return super().load_state_dict(state_dict, strict, assign)

    def _scores(self, offsets: Tensor, items: Tensor) -> Tensor:
        sum_weights = host_function("sum_weights") if items.is_cpu else None
        if sum_weights is not None:
            if self._incoming is None:
                self._incoming = by_neighbor(self.neighbors.numpy(), self.similarities.numpy())
            return torch.from_numpy(sum_weights(offsets.numpy(), items.int().numpy(), *self._incoming))
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


def item_neighbors(
    offsets: NDArray[np.int64], items: NDArray[np.int32], places: NDArray[np.int32], width: int, shrinkage: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What `_host.item_neighbors` does, a block of items at a time: same arguments, same answer.

    Args:
        offsets, items: of the users, as compressed rows.
        places: [N]; of equally near items the one with the lower place comes first.
        width: neighbors of an item, <= N.
        shrinkage: added to the product of the norms.
    Returns:
        neighbors and similarities, both [N, width]; 0 where there are fewer.
    """
    num_items = len(places)
    norms = np.sqrt(np.bincount(items, minlength=num_items))
    neighbors = np.zeros((num_items, width), dtype=np.int32)
    similarities = np.zeros((num_items, width), dtype=np.float32)
    for start, counts in cooccurrences(offsets, items, num_items):
        rows = np.arange(len(counts))
        scale = norms[start + rows, None] * norms + shrinkage
        cosines = np.divide(counts, scale, out=counts, where=counts > 0)
        cosines[rows, start + rows] = 0.0
        nearness = cosines.astype(np.float32)
        order = np.lexsort((np.broadcast_to(places, nearness.shape), -nearness), axis=1)[:, :width]
        found = np.take_along_axis(nearness, order, axis=1)
        similarities[start : start + len(rows)] = found
        neighbors[start : start + len(rows)] = np.where(found > 0, order, 0)
    return neighbors, similarities


def by_neighbor(
    neighbors: NDArray[np.int32], similarities: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """For each item the items that have it as a neighbor, as compressed rows: offsets [N + 1], items and weights."""
    counted = similarities.ravel() > 0
    towards = neighbors.ravel()[counted]
    packed = towards.astype(np.int64) << 32 | np.arange(len(towards))  # sorted faster than a stable argsort
    packed.sort()
    order = packed & 0xFFFFFFFF
    owners = np.repeat(np.arange(len(neighbors), dtype=np.int32), neighbors.shape[1])[counted]
    offsets = np.zeros(len(neighbors) + 1, dtype=np.int64)
    np.cumsum(np.bincount(towards, minlength=len(neighbors)), out=offsets[1:])
    return offsets, owners[order], similarities.ravel()[counted][order]
