"""score_topk and score_items in plain PyTorch, a block of users at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels._checks import require

_OP = "score_topk"
_BLOCK_PAIRS = 1 << 22  # scores held at once by the dot scorer
_BLOCK_HIDDEN = 1 << 24  # activations held at once by the network scorer


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

    @property
    def seen(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The items to leave out."""
        return self.seen_indptr, self.seen_indices, self.seen_rows


def score_items_reference(users: Tensor, items: Tensor, item_bias: Tensor | None = None) -> Tensor:
    """users @ items.T + item_bias, [B, N] float32."""
    _check_dot(users, items, item_bias)
    scores = users.float() @ items.float().T
    return scores if item_bias is None else scores + item_bias.float().reshape(-1)


def _check_dot(users: Tensor, items: Tensor, item_bias: Tensor | None) -> None:
    for name, given in (("users", users), ("items", items)):
        require(given.dim() == 2, _OP, f"{name} must have two dimensions", given)
    check_matrix("items", items, items.shape[0], users.shape[1])
    if item_bias is not None:
        count = items.shape[0]
        require(item_bias.numel() == count, _OP, f"item_bias must be [{count}]", item_bias)


def check_matrix(name: str, given: Tensor, rows: int, columns: int) -> None:
    """Raise unless a tensor is [rows, columns]."""
    require(given.shape == (rows, columns), _OP, f"{name} must be [{rows}, {columns}]", given)


def _check_network(network: Network) -> None:
    user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight, out_bias, _ = network
    _check_dot(user_factors, item_factors, None)
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


def _check_topk(options: TopKOptions, num_users: int) -> None:
    k, indptr, indices, rows = options
    require(0 <= k < 2**31, _OP, "k must be in [0, 2^31)", k)
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


def _ncf_block(network: Network) -> Tensor:
    """Scores of a block of users, every pair's activations at once."""

    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().float() if network.use_bfloat16 else x.float()

    num_factors = network.user_factors.shape[1]
    weight = network.out_weight.float().reshape(-1)
    scores = (network.user_factors.float() * weight[:num_factors]) @ network.item_factors.float().T
    if network.out_bias is not None:
        scores = scores + network.out_bias.float().reshape(())
    if network.user_hidden.shape[1]:
        x = F.relu(network.user_hidden.float()[:, None, :] + network.item_hidden.float()[None, :, :])  # [B, N, H1]
        for w, b in zip(network.weights, network.biases, strict=True):
            x = F.relu(F.linear(rounded(x), rounded(w), b.float().reshape(-1)))
        scores = scores + x @ weight[num_factors:]
    return scores


def score_items_ncf_reference(*arguments: Any) -> Tensor:
    """Logits of an NCF network for every pair, [B, N] float32; bfloat16 rounds the operands of the hidden products.

    Args:
        arguments: the fields of `Network`.
    """
    network = Network(*arguments)
    _check_network(network)
    num_users, num_items = network.user_hidden.shape[0], network.item_hidden.shape[0]
    widest = max([network.user_hidden.shape[1], 1, *(w.shape[0] for w in network.weights)])
    block = max(1, _BLOCK_HIDDEN // max(1, num_items * widest))
    parts = [_ncf_block(network.of_users(u, u + block)) for u in range(0, num_users, block)]
    return torch.cat(parts) if parts else network.user_hidden.new_empty((0, num_items), dtype=torch.float32)


def _seen_mask(first_user: int, num_users: int, num_items: int, seen: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    indptr, indices = seen[0].reshape(-1), seen[1].reshape(-1)
    rows = None if seen[2] is None else seen[2].reshape(-1)
    users = torch.arange(first_user, first_user + num_users, device=indptr.device)
    row = users if rows is None else rows[users].long()
    lengths = indptr[row + 1] - indptr[row]
    owner = torch.arange(num_users, device=indptr.device).repeat_interleave(lengths)
    start = (indptr[row] - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    positions = start + torch.arange(owner.numel(), device=indptr.device)
    mask = torch.zeros((num_users, num_items), dtype=torch.bool, device=indptr.device)
    items = indices[positions].long()
    is_known = (items >= 0) & (items < num_items)  # an item outside the catalogue masks nothing
    mask[owner[is_known], items[is_known]] = True
    return mask


def _topk_of_blocks(
    score: Callable[[int, int], Tensor], users: Tensor, num_items: int, options: TopKOptions
) -> tuple[Tensor, Tensor]:
    """The k best by the scores of users [first, last); users [B, anything] says how many there are, and where."""
    num_users, k, device = users.shape[0], options.k, users.device
    block = max(1, _BLOCK_PAIRS // max(1, num_items))
    indptr, indices, rows = options.seen
    seen = None if indptr is None or indices is None else (indptr, indices, rows)
    values = torch.full((num_users, k), float("-inf"), device=device)
    ids = torch.full((num_users, k), -1, dtype=torch.int64, device=device)
    kept = min(k, num_items)
    for first in range(0, num_users, block):
        last = min(first + block, num_users)
        scores = score(first, last)
        scores = torch.where(scores.isnan(), float("-inf"), scores)
        if seen is not None:
            scores = scores.masked_fill(_seen_mask(first, last - first, num_items, seen), float("-inf"))
        # A stable sort: among equal scores the lower id comes first. torch.topk promises nothing there.
        best, order = scores.sort(dim=1, descending=True, stable=True)
        best, order = best[:, :kept], order[:, :kept]
        values[first:last, :kept] = best
        ids[first:last, :kept] = torch.where(best == float("-inf"), -1, order)
    return values, ids


def score_topk_reference(
    users: Tensor, items: Tensor, item_bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """The k best of `score_items_reference`, unseen, by score and then lower id; (-inf, -1) where there are fewer.

    Args:
        arguments: the fields of `TopKOptions`.
    """
    options = TopKOptions(*arguments)
    _check_dot(users, items, item_bias)
    _check_topk(options, users.shape[0])
    return _topk_of_blocks(
        lambda first, last: score_items_reference(users[first:last], items, item_bias), users, items.shape[0], options
    )


def score_topk_ncf_reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The k best of `score_items_ncf_reference`, as in `score_topk_reference`.

    Args:
        arguments: the fields of `Network`, then those of `TopKOptions`.
    """
    network, options = Network(*arguments[:9]), TopKOptions(*arguments[9:])
    _check_network(network)
    _check_topk(options, network.user_hidden.shape[0])
    return _topk_of_blocks(
        lambda first, last: score_items_ncf_reference(*network.of_users(first, last)),
        network.user_hidden,
        network.item_hidden.shape[0],
        options,
    )
