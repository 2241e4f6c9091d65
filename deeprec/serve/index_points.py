"""From inner products to nearest neighbours: vectors as points on a sphere, in whose order no inner product is lost.

A graph is walked from neighbour to neighbour, which needs a distance. The inner product is none: long vectors are near
to everything, short ones have no way to them, and a graph built on it finds a few per cent of what it should. So a
vector v becomes the point (v, sqrt(M^2 - |v|^2)) / M, with M the largest norm, and a query q the point (q, 0) / |q|.
All points have length one, and |q' - v'|^2 = 2 - 2 (q . v) / (M |q|) falls exactly as the inner product rises. A bias
is one more coordinate, 1 in the query.

Reference: Bachrach et al. 2014, "Speeding Up the Xbox Recommender System Using a Euclidean Transformation for
Inner-Product Spaces" (doi 10.1145/2645710.2645741), section 3.2, theorem 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def norms(vectors: Tensor, bias: Tensor | None) -> NDArray[np.float64]:
    """Lengths [n] of the vectors [n, D], a bias [n] counted as one more coordinate; in float64."""
    squares = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square()
    if bias is not None:
        squares = squares + bias.double().square()
    result: NDArray[np.float64] = squares.sqrt().numpy()
    return result


def item_points(vectors: Tensor, bias: Tensor | None, largest: float) -> NDArray[np.float32]:
    """Points [n, D + 1], or [n, D + 2] with a bias, float32, of vectors [n, D] no longer than `largest` > 0."""
    length = torch.from_numpy(norms(vectors, bias)) / largest
    columns = [vectors / largest]
    if bias is not None:
        columns.append((bias / largest).unsqueeze(1))
    columns.append((1.0 - length.square()).clamp_min(0.0).sqrt().float().unsqueeze(1))
    points: NDArray[np.float32] = torch.cat(columns, 1).contiguous().numpy()
    return points


def query_points(queries: Tensor, has_bias: bool) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Points of queries [b, D], as wide as those of items, and whether each has a direction [b]; zeros have none."""
    ends = queries.new_zeros(len(queries), 1 + has_bias)
    if has_bias:
        ends[:, 0] = 1.0
    points = torch.cat([queries, ends], 1)
    length = torch.linalg.vector_norm(points, dim=1, keepdim=True, dtype=torch.float64)
    points = (points / length.clamp_min(1e-300)).float().contiguous()
    return points.numpy(), (length > 0).squeeze(1).numpy()
