"""score_topk and score_items in plain PyTorch, a block of users at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK_PAIRS = 1 << 22  # scores held at once by the dot scorer
_BLOCK_HIDDEN = 1 << 24  # activations held at once by the network scorer


def score_items_reference(users: Tensor, items: Tensor, item_bias: Tensor | None = None) -> Tensor:
    """users @ items.T + item_bias, [B, N] float32."""
    scores = users.float() @ items.float().T
    return scores if item_bias is None else scores + item_bias.float()


def _ncf_block(
    user_hidden: Tensor,
    item_hidden: Tensor,
    user_factors: Tensor,
    item_factors: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None,
    use_bfloat16: bool,
) -> Tensor:
    """Scores of a block of users, every pair's activations at once."""

    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().float() if use_bfloat16 else x.float()

    num_factors = user_factors.shape[1]
    weight = out_weight.float()
    scores = (user_factors.float() * weight[:num_factors]) @ item_factors.float().T
    if out_bias is not None:
        scores = scores + out_bias.float().reshape(())
    if user_hidden.shape[1]:
        x = F.relu(user_hidden.float()[:, None, :] + item_hidden.float()[None, :, :])  # [B, N, H1]
        for w, b in zip(weights, biases, strict=True):
            x = F.relu(F.linear(rounded(x), rounded(w), b.float()))
        scores = scores + x @ weight[num_factors:]
    return scores


def score_items_ncf_reference(
    user_hidden: Tensor,
    item_hidden: Tensor,
    user_factors: Tensor,
    item_factors: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None = None,
    use_bfloat16: bool = False,
) -> Tensor:
    """Logits of an NCF network for every pair, [B, N] float32; bfloat16 rounds the operands of the hidden products."""
    num_users, num_items = user_hidden.shape[0], item_hidden.shape[0]
    widest = max([user_hidden.shape[1], 1, *(w.shape[0] for w in weights)])
    block = max(1, _BLOCK_HIDDEN // max(1, num_items * widest))
    network = (weights, biases, out_weight, out_bias, use_bfloat16)
    parts = [
        _ncf_block(user_hidden[u : u + block], item_hidden, user_factors[u : u + block], item_factors, *network)
        for u in range(0, num_users, block)
    ]
    return torch.cat(parts) if parts else user_hidden.new_empty((0, num_items), dtype=torch.float32)


def _seen_mask(first_user: int, num_users: int, num_items: int, seen: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    indptr, indices, rows = seen
    users = torch.arange(first_user, first_user + num_users, device=indptr.device)
    row = users if rows is None else rows[users].long()
    lengths = indptr[row + 1] - indptr[row]
    owner = torch.arange(num_users, device=indptr.device).repeat_interleave(lengths)
    start = (indptr[row] - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    positions = start + torch.arange(owner.numel(), device=indptr.device)
    mask = torch.zeros((num_users, num_items), dtype=torch.bool, device=indptr.device)
    mask[owner, indices[positions].long()] = True
    return mask


def _topk_of_blocks(
    score: Callable[[int, int], Tensor],
    num_users: int,
    num_items: int,
    block: int,
    k: int,
    device: torch.device,
    seen: tuple[Tensor, Tensor, Tensor | None] | None,
) -> tuple[Tensor, Tensor]:
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


def _seen(
    indptr: Tensor | None, indices: Tensor | None, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    return None if indptr is None or indices is None else (indptr, indices, rows)


def score_topk_reference(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    k: int,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best of `score_items_reference`, unseen, by score and then lower id; (-inf, -1) where there are fewer."""
    num_items = items.shape[0]
    return _topk_of_blocks(
        lambda first, last: score_items_reference(users[first:last], items, item_bias),
        users.shape[0],
        num_items,
        max(1, _BLOCK_PAIRS // max(1, num_items)),
        k,
        users.device,
        _seen(seen_indptr, seen_indices, seen_rows),
    )


def score_topk_ncf_reference(
    user_hidden: Tensor,
    item_hidden: Tensor,
    user_factors: Tensor,
    item_factors: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None,
    use_bfloat16: bool,
    k: int,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best of `score_items_ncf_reference`, as in `score_topk_reference`."""
    network = (weights, biases, out_weight, out_bias, use_bfloat16)
    num_items = item_hidden.shape[0]
    return _topk_of_blocks(
        lambda first, last: score_items_ncf_reference(
            user_hidden[first:last], item_hidden, user_factors[first:last], item_factors, *network
        ),
        user_hidden.shape[0],
        num_items,
        max(1, _BLOCK_PAIRS // max(1, num_items)),
        k,
        user_hidden.device,
        _seen(seen_indptr, seen_indices, seen_rows),
    )
