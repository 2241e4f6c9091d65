"""score_topk and score_items in plain PyTorch, a block of users at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.score_topk.checks import (
    SIMILARITIES,
    Network,
    TopKOptions,
    check_dot,
    check_network,
    check_topk,
)

_BLOCK_PAIRS = 1 << 22  # scores held at once by the dot scorer
_BLOCK_HIDDEN = 1 << 24  # activations held at once by the network scorer


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [n, D] of unit length, float32; a zero row stays one. In float64 no length over- or underflows."""
    wide = rows.double()
    length = wide.norm(dim=1, keepdim=True)
    return torch.where(length == 0.0, 0.0, wide / length).float()


def score_items_reference(users: Tensor, items: Tensor, item_bias: Tensor | None = None, similarity: int = 0) -> Tensor:
    """users @ items.T + item_bias, or cosine (1), or minus the squared distance (2), [B, N] float32."""
    check_dot(users, items, item_bias, similarity)
    if similarity == SIMILARITIES.index("l2"):
        distance = torch.cdist(users.float(), items.float(), compute_mode="donot_use_mm_for_euclid_dist")
        return -distance.square()
    if similarity == SIMILARITIES.index("cosine"):
        return unit_rows(users) @ unit_rows(items).T
    scores = users.float() @ items.float().T
    return scores if item_bias is None else scores + item_bias.float().reshape(-1)


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
    check_network(network)
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


def _allowed_mask(first_user: int, num_users: int, num_items: int, options: TopKOptions) -> Tensor:
    indptr, indices = options.allow_indptr, options.allow_indices
    assert indices is not None
    if indptr is not None:
        return _seen_mask(first_user, num_users, num_items, (indptr, indices, None))
    mask = torch.zeros(num_items, dtype=torch.bool, device=indices.device)
    mask[indices.reshape(-1).long()] = True
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
        if options.allow_indices is not None:
            scores = scores.masked_fill(~_allowed_mask(first, last - first, num_items, options), float("-inf"))
        # A stable sort: among equal scores the lower id comes first. torch.topk promises nothing there.
        best, order = scores.sort(dim=1, descending=True, stable=True)
        best, order = best[:, :kept], order[:, :kept]
        values[first:last, :kept] = best
        ids[first:last, :kept] = torch.where(best == float("-inf"), -1, order)
    return values, ids


def score_topk_reference(
    users: Tensor, items: Tensor, item_bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """The k best of `score_items_reference`, unseen and allowed, by score, then lower id; (-inf, -1) after the last.

    Args:
        arguments: the fields of `TopKOptions`.
    """
    options = TopKOptions(*arguments)
    check_dot(users, items, item_bias, options.similarity)
    check_topk(options, users.shape[0], items.shape[0])
    return _topk_of_blocks(
        lambda first, last: score_items_reference(users[first:last], items, item_bias, options.similarity),
        users,
        items.shape[0],
        options,
    )


def score_topk_ncf_reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The k best of `score_items_ncf_reference`, as in `score_topk_reference`.

    Args:
        arguments: the fields of `Network`, then those of `TopKOptions`.
    """
    network, options = Network(*arguments[:9]), TopKOptions(*arguments[9:])
    check_network(network)
    check_topk(options, network.user_hidden.shape[0], network.item_hidden.shape[0])
    return _topk_of_blocks(
        lambda first, last: score_items_ncf_reference(*network.of_users(first, last)),
        network.user_hidden,
        network.item_hidden.shape[0],
        options,
    )
