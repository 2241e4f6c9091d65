"""What `sample_negatives` asks of its arguments; the C++ kernels ask the same."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels._checks import check_index, require


def check_users(users: Tensor, indptr: Tensor, indices: Tensor, num_items: int) -> None:
    """Raise as the CPU kernel does: IndexError for an unknown user, ValueError for one without anything to draw."""
    num_users = indptr.numel() - 1
    flat = users.flatten().long()
    bad = ((flat < 0) | (flat >= num_users)).nonzero()
    if bad.numel():
        position = int(bad[0, 0])
        raise IndexError(
            f"sample_negatives: users must lie in [0, {num_users}), got {int(flat[position])} at position {position}"
        )
    first, last = indptr[flat], indptr[flat + 1]
    bad = ((first < 0) | (first > last) | (last > indices.numel())).nonzero()
    if bad.numel():
        row = int(bad[0, 0])
        raise ValueError(
            f"sample_negatives: indptr must rise from 0 to {indices.numel()} (the length of indices), got "
            f"{int(first[row])} and {int(last[row])} for user {int(flat[row])}"
        )
    full = (last - first >= num_items).nonzero()
    if full.numel():
        raise ValueError(
            f"sample_negatives: user {int(flat[full[0, 0]])} has seen all {num_items} items, so no negative exists; "
            "leave the user out"
        )


def _check_sizes(
    users: Tensor, indptr: Tensor, indices: Tensor, num_items: int, num_negatives: int, offset: int
) -> None:
    function = "sample_negatives"
    check_index(function, "users", users)
    for name, given, dtype in (("indptr", indptr, torch.int64), ("indices", indices, torch.int32)):
        if given.dtype != dtype:
            raise TypeError(f"{function}: {name} must be {dtype}, got {given.dtype}")
    require(offset >= 0, function, "offset must be >= 0", offset)
    require(0 < num_items < 2**31, function, "num_items must lie in [1, 2^31)", num_items)
    require(0 <= num_negatives < 2**31, function, "num_negatives must lie in [0, 2^31)", num_negatives)
    require(indptr.numel() > 0, function, "indptr needs num_users + 1 entries", indptr)


def _check_table(num_items: int, threshold: Tensor | None, alias: Tensor | None, cumulative: Tensor | None) -> None:
    if threshold is None:
        return
    function = "sample_negatives"
    requirement = f"the alias table must describe {num_items} items; build it with alias_table(weights)"
    for given, size, dtype in (
        (threshold, num_items, torch.int64),
        (alias, num_items, torch.int32),
        (cumulative, num_items + 1, torch.int64),
    ):
        require(given is not None and given.numel() == size and given.dtype == dtype, function, requirement, given)


def check(
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
) -> None:
    """Raise unless the arguments are what `sample_negatives` takes; on a GPU the kernel looks at the users."""
    _check_sizes(users, indptr, indices, num_items, num_negatives, offset)
    if users.numel() and num_negatives:
        _check_table(num_items, threshold, alias, cumulative)
        if users.device.type == "cpu":
            check_users(users, indptr.reshape(-1), indices, num_items)


CHECKS = {"sample_negatives": check}
