"""sample_negatives in plain PyTorch: Philox4x32-10 in int64 arithmetic; the same numbers as the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.sample_negatives.checks import check, check_users

MAX_ATTEMPTS = 64  # csrc/sample_negatives.h: kMaxAttempts
_MASK = 0xFFFFFFFF


def _multiply_32(a: Tensor, b: Tensor | int) -> tuple[Tensor, Tensor]:
    """High and low word of the product of two 32-bit numbers held in int64 (the product itself may not fit)."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _multiply_high_64(high: int, low: int, factor: int) -> int:
    """floor((high * 2^32 + low) * factor / 2^64)."""
    return ((high << 32 | low) * factor) >> 64


def philox4x32_10(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words a counter.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2^32).
        seed: 64-bit key; its low word is the first key word.
    Returns:
        four int64 tensors of that shape, values in [0, 2^32).
    Reference: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply_32(c0, 0xD2511F53)
        high1, low1 = _multiply_32(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def sample_negatives_reference(
    users: Tensor,
    indptr: Tensor,
    indices: Tensor,
    num_items: int,
    num_negatives: int,
    seed: int,
    offset: int,
    threshold: Tensor | None = None,
    alias: Tensor | None = None,
    cumulative: Tensor | None = None,
) -> Tensor:
    """Unseen items for each user; see `deeprec.kernels.sample_negatives.sample_negatives` for the arguments."""
    check(users, indptr, indices, num_items, num_negatives, seed, offset, threshold, alias, cumulative)
    users, indptr, indices = users.reshape(-1), indptr.reshape(-1), indices.reshape(-1)
    num_rows = users.numel()
    out = users.new_empty((num_rows, num_negatives))
    if out.numel() == 0:
        return out
    device = users.device
    if device.type != "cpu":  # what follows waits for the device anyway
        check_users(users, indptr, indices, num_items)
    step = 1 if threshold is None else 2
    per_block = 4 // step
    row = torch.arange(num_rows, device=device).repeat_interleave(num_negatives)
    column = torch.arange(num_negatives, device=device).repeat(num_rows)
    user = users.flatten().long()[row]
    example = row + offset
    group, slot = column // per_block, column % per_block * step

    # Of the users drawn for: indptr may hold anything elsewhere. Items outside the catalogue cannot be drawn anyway.
    distinct = users.long().unique()
    degrees = indptr[distinct + 1] - indptr[distinct]
    owner = distinct.repeat_interleave(degrees)
    start = (indptr[distinct] - (degrees.cumsum(0) - degrees)).repeat_interleave(degrees)
    seen = indices[start + torch.arange(owner.numel(), device=device)]
    is_known = (seen >= 0) & (seen < num_items)
    seen_keys = owner[is_known] * num_items + seen[is_known]  # ascending, because each user's list is
    # A sentinel keeps the lookup in range; no pair has this key.
    seen_keys = torch.cat([seen_keys, seen_keys.new_full((1,), indptr.numel() * num_items)])

    def words(pending: Tensor, attempt: int) -> tuple[Tensor, Tensor]:
        e = example[pending]
        counter = (e & _MASK, (e >> 32) & _MASK, group[pending], torch.full_like(e, attempt))
        block = torch.stack(philox4x32_10(counter, seed), dim=1)
        s = slot[pending, None]
        return block.gather(1, s)[:, 0], block.gather(1, (s + 1) & 3)[:, 0]

    flat_out = out.view(-1)
    pending = torch.arange(row.numel(), device=device)
    reject_below = (1 << 32) % num_items
    for attempt in range(MAX_ATTEMPTS):
        word, coin = words(pending, attempt)
        item, low = _multiply_32(word, num_items)
        accepted = low >= reject_below
        if threshold is not None and alias is not None:
            item = torch.where(coin < threshold.reshape(-1)[item], item, alias.reshape(-1)[item].long())
            is_known = (item >= 0) & (item < num_items)  # a damaged table names others
            accepted, item = accepted & is_known, torch.where(is_known, item, 0)
        key = user[pending] * num_items + item
        accepted &= seen_keys[torch.searchsorted(seen_keys, key)] != key
        flat_out[pending[accepted]] = item[accepted].to(out.dtype)
        pending = pending[~accepted]
        if pending.numel() == 0:
            return out

    word, coin = words(pending, MAX_ATTEMPTS)
    if threshold is None:
        coin, _ = words(pending, MAX_ATTEMPTS + 1)
    weights = None if cumulative is None or threshold is None else cumulative.reshape(-1).diff()
    for at, high, low_word in zip(pending.tolist(), word.tolist(), coin.tolist(), strict=True):
        u = int(user[at])
        unseen = torch.ones(num_items, dtype=torch.bool, device=device)
        mine = indices[int(indptr[u]) : int(indptr[u + 1])].long()
        unseen[mine[(mine >= 0) & (mine < num_items)]] = False
        items = unseen.nonzero()[:, 0]
        if weights is None:
            choice = _multiply_high_64(high, low_word, items.numel())
        else:
            steps = weights[items].cumsum(0)
            if int(steps[-1]) == 0:
                raise ValueError(
                    f"sample_negatives: user {u} has seen every item of positive weight, so no negative exists; leave "
                    "the user out or give every item some weight"
                )
            mark = steps.new_tensor(_multiply_high_64(high, low_word, int(steps[-1])))
            choice = int(torch.searchsorted(steps, mark, right=True))
        flat_out[at] = items[choice].to(out.dtype)
    return out
