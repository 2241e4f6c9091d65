"""What the operators of `score_topk` take, and ask of it; the C++ kernels ask the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._checks import require

_OP = "score_topk"
SIMILARITIES = ("dot", "cosine", "l2")  # an operator takes the place of one


class Network(NamedTuple):
    """What the network's operators take first, in the order of their schemas; the fields of `NCFScorer`, none absent.

    Attributes:
        use_bfloat16: round the operands of the hidden products to bfloat16.
    """

    user_hidden: Tensor
    item_hidden: Tensor
    user_factors: Tensor
    item_factors: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_weight: Tensor
    out_bias: Tensor | None = None
    use_bfloat16: bool = False

    def of_users(self, first: int, last: int) -> Network:
        """For the users [first, last) only."""
        return self._replace(user_hidden=self.user_hidden[first:last], user_factors=self.user_factors[first:last])


class TopKOptions(NamedTuple):
    """What the operators of the best items take last, in the order of their schemas; see `score_topk`."""

    k: int
    seen_indptr: Tensor | None = None
    seen_indices: Tensor | None = None
    seen_rows: Tensor | None = None
    allow_indptr: Tensor | None = None
    allow_indices: Tensor | None = None
    similarity: int = 0

    @property
    def seen(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The items to leave out."""
        return self.seen_indptr, self.seen_indices, self.seen_rows


def check_dot(users: Tensor, items: Tensor, item_bias: Tensor | None, similarity: int = 0) -> None:
    """What the scorers of vectors ask."""
    for name, given in (("users", users), ("items", items)):
        require(given.dim() == 2, _OP, f"{name} must have two dimensions", given)
    check_matrix("items", items, items.shape[0], users.shape[1])
    if item_bias is not None:
        count = items.shape[0]
        require(item_bias.numel() == count, _OP, f"item_bias must be [{count}]", item_bias)
    require(0 <= similarity < len(SIMILARITIES), _OP, "similarity must be 0 (dot), 1 (cosine) or 2 (l2)", similarity)
    require(not similarity or item_bias is None, _OP, "item_bias goes with similarity 0 (dot) only", similarity)


def check_matrix(name: str, given: Tensor, rows: int, columns: int) -> None:
    """Raise unless a tensor is [rows, columns]."""
    require(given.shape == (rows, columns), _OP, f"{name} must be [{rows}, {columns}]", given)


def check_network(network: Network) -> None:
    """What the network asks."""
    user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight, out_bias, _ = network
    check_dot(user_factors, item_factors, None)
    require(user_hidden.dim() == 2, _OP, "user_hidden must be [B, H1]", user_hidden)
    width = user_hidden.shape[1]
    check_matrix("user_hidden", user_hidden, user_factors.shape[0], width)
    check_matrix("item_hidden", item_hidden, item_factors.shape[0], width)
    require(len(weights) == len(biases), _OP, "each weight needs its bias", (len(weights), len(biases)))
    for weight, bias in zip(weights, biases, strict=True):
        require(weight.dim() == 2, _OP, "weights must be [out, in]", weight)
        check_matrix("a hidden weight", weight, weight.shape[0], width)
        width = weight.shape[0]
        require(bias.numel() == width, _OP, f"a hidden bias must be [{width}]", bias)
    last = user_factors.shape[1] + (width if user_hidden.shape[1] else 0)
    require(out_weight.numel() == last, _OP, f"out_weight must be [{last}]", out_weight)
    require(out_bias is None or out_bias.numel() == 1, _OP, "out_bias must be one value", out_bias)


def check_topk(options: TopKOptions, num_users: int, num_items: int) -> None:
    """What the operators of the best items ask beside their scorer."""
    require(0 <= options.k < 2**31, _OP, "k must be in [0, 2^31)", options.k)
    _check_seen_lists(options, num_users)
    _check_allowed(options, num_users, num_items)


def _check_seen_lists(options: TopKOptions, num_users: int) -> None:
    indptr, indices, rows = options.seen
    if indptr is None:
        return
    if indices is None or not indptr.numel():
        raise ValueError(f"{_OP}: seen_indptr needs seen_indices beside it")
    for name, given, dtype in (
        ("seen_indptr", indptr, torch.int64),
        ("seen_indices", indices, torch.int32),
        ("seen_rows", rows, torch.int64),
    ):
        if given is not None and given.dtype != dtype:
            raise TypeError(f"{_OP}: {name} must be {dtype}, got {given.dtype}")
    count = indptr.numel() - 1
    if rows is None:
        require(count == num_users, _OP, f"seen_indptr must have {num_users + 1} entries", indptr)
    else:
        require(rows.numel() == num_users, _OP, f"seen_rows must be [{num_users}]", rows)
    if indptr.device.type == "cpu":
        _check_seen(indptr.reshape(-1), indices.numel(), rows, num_users)


def _check_seen(indptr: Tensor, nnz: int, rows: Tensor | None, num_users: int) -> None:
    row = torch.arange(num_users) if rows is None else rows.reshape(-1)
    if bool(((row < 0) | (row >= indptr.numel() - 1)).any()):
        raise IndexError(f"{_OP}: seen_rows must lie in [0, {indptr.numel() - 1})")
    first, last = indptr[row], indptr[row + 1]
    rises = bool(((first >= 0) & (first <= last) & (last <= nnz)).all())
    require(rises, _OP, f"seen_indptr must rise from 0 to {nnz} (the length of seen_indices)", indptr.tolist()[:8])


def _check_allowed(options: TopKOptions, num_users: int, num_items: int) -> None:
    indptr, indices = options.allow_indptr, options.allow_indices
    if indices is None:
        require(indptr is None, _OP, "allow_indptr needs allow_indices beside it", indptr)
        return
    for name, given, dtype in (("allow_indices", indices, torch.int32), ("allow_indptr", indptr, torch.int64)):
        if given is not None and given.dtype != dtype:
            raise TypeError(f"{_OP}: {name} must be {dtype}, got {given.dtype}")
    if indptr is not None:
        require(indptr.numel() == num_users + 1, _OP, f"allow_indptr must have {num_users + 1} entries", indptr)
    if indices.device.type != "cpu":
        return
    indices, nnz = indices.reshape(-1), indices.numel()
    if bool(((indices < 0) | (indices >= num_items)).any()):
        raise IndexError(f"{_OP}: allow_indices must lie in [0, {num_items})")
    bounds = torch.tensor([0, nnz]) if indptr is None else indptr.reshape(-1)
    rises = bool(((bounds >= 0) & (bounds <= nnz)).all()) and not bool((bounds.diff() < 0).any())
    require(rises or bounds.numel() < 2, _OP, f"allow_indptr must rise from 0 to {nnz}", bounds.tolist()[:8])
    begins = torch.zeros(nnz + 1, dtype=torch.bool)
    begins[bounds] = True
    place = torch.arange(1, max(nnz, 1))
    in_rows = ~begins[place] & (place > bounds[0]) & (place < bounds[-1])
    falls = (indices[1:] <= indices[:-1]) & in_rows
    require(not bool(falls.any()), _OP, "allow_indices must ascend, each item once", indices.tolist()[:8])


def _check_score_topk(users: Tensor, items: Tensor, item_bias: Tensor | None, *options: Any) -> None:
    given = TopKOptions(*options)
    check_dot(users, items, item_bias, given.similarity)
    check_topk(given, users.shape[0], items.shape[0])


def _check_score_topk_ncf(*arguments: Any) -> None:
    network = Network(*arguments[:9])
    check_network(network)
    check_topk(TopKOptions(*arguments[9:]), network.user_hidden.shape[0], network.item_hidden.shape[0])


CHECKS = {
    "score_topk": _check_score_topk,
    "score_topk_ncf": _check_score_topk_ncf,
    "score_items_ncf": lambda *network: check_network(Network(*network)),
}
