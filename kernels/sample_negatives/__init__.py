"""Negatives for implicit feedback: items that a user has not seen, the same for a seed on every device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._errors import translate
from deeprec.kernels._library import define, implement_cuda
from deeprec.kernels.sample_negatives.reference import sample_negatives_reference

__all__ = ["AliasTable", "alias_table", "sample_negatives", "sample_negatives_reference"]

_UNIT = 1 << 32  # what one column of an alias table holds


class AliasTable(NamedTuple):
    """A distribution over N items from which a draw costs two words (Vose's alias method, in integers).

    Attributes:
        threshold: [N] int64 in [0, 2^32]; a column keeps its own item when a 32-bit coin is below it.
        alias: [N] int32, the other item of each column.
        cumulative: [N + 1] int64, running sum of the items' weights in units of 1 / (N * 2^32).
    """

    threshold: Tensor
    alias: Tensor
    cumulative: Tensor

    def to(self, device: torch.device | str) -> AliasTable:
        """The same table on `device`."""
        return AliasTable(self.threshold.to(device), self.alias.to(device), self.cumulative.to(device))

    def probabilities(self) -> Tensor:
        """[N] float64, exactly what a draw follows before a user's items are refused."""
        return self.cumulative.diff().double() / (self.alias.numel() * _UNIT)


def alias_table(weights: Tensor, exponent: float = 1.0) -> AliasTable:
    """Alias table for drawing item i with probability weights[i]^exponent / sum.

    Args:
        weights: [N] finite, >= 0, not all zero; e.g. interaction counts. 1 <= N < 2^31.
        exponent: popularity is often flattened with 0.75 (Mikolov et al. 2013) or 0.5; 0 gives every item of positive
            weight the same probability.
    Returns:
        table on the device of `weights`. Each probability is exact to 2^-32 of 1/N per item.
    Raises:
        ValueError: weights of another shape, negative, not finite, or all zero.
    Reference: Vose 1991, "A linear algorithm for generating random numbers with a given distribution".
    """
    if weights.dim() != 1 or not 0 < weights.numel() < 2**31:
        raise ValueError(f"alias_table: weights must be [N] with 1 <= N < 2^31, got {tuple(weights.shape)}")
    values = weights.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()) or not bool((values > 0).any()):
        raise ValueError("alias_table: weights must be finite, >= 0 and not all zero; got others")
    values = torch.where(values > 0, values.pow(exponent), 0.0)
    num_items = values.numel()
    units = (values / values.sum() * float(num_items * _UNIT)).long()
    # What flooring left over goes to the heaviest item, so that the units fill the columns exactly.
    units[int(units.argmax())] += num_items * _UNIT - int(units.sum())
    threshold, alias = _vose(units.tolist())
    return AliasTable(
        torch.tensor(threshold, dtype=torch.int64, device=weights.device),
        torch.tensor(alias, dtype=torch.int32, device=weights.device),
        torch.cat([units.new_zeros(1), units.cumsum(0)]).to(weights.device),
    )


def _vose(left: list[int]) -> tuple[list[int], list[int]]:
    """Cut N * 2^32 units into N columns of 2^32 with at most two items each."""
    threshold, alias = [_UNIT] * len(left), list(range(len(left)))
    small = [i for i, units in enumerate(left) if units < _UNIT]
    large = [i for i, units in enumerate(left) if units >= _UNIT]
    while small:
        less, more = small.pop(), large[-1]
        threshold[less], alias[less] = left[less], more
        left[more] -= _UNIT - left[less]
        if left[more] < _UNIT:
            small.append(large.pop())
    return threshold, alias


def _fake(
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
    return users.new_empty((users.numel(), num_negatives))


define(
    "sample_negatives(Tensor users, Tensor indptr, Tensor indices, SymInt num_items, SymInt num_negatives, "
    "SymInt seed, SymInt offset, Tensor? threshold=None, Tensor? alias=None, Tensor? cumulative=None) -> Tensor",
    sample_negatives_reference,
    _fake,
)
implement_cuda("sample_negatives", ("sample_negatives",))


def sample_negatives(
    users: Tensor,
    indptr: Tensor,
    indices: Tensor,
    num_items: int,
    num_negatives: int,
    *,
    seed: int,
    offset: int = 0,
    popularity: AliasTable | None = None,
) -> Tensor:
    """Items that each user has not seen, drawn with replacement, uniform or by popularity.

    Counter-based: negative j of row e is a function of (seed, offset + e, j) and the user's list alone, so the result
    does not depend on the device, the number of threads, or how the rows are split into batches. Uniform negatives are
    exactly uniform (words that would favour low ids are refused). A user whose items leave few others costs at most
    64 attempts; then the negative is chosen among the unseen by rank (bias below 2^-33), so every call ends.

    Args:
        users: [B] int32 or int64, rows of `indptr`.
        indptr: [num_users + 1] int64; user u has seen indices[indptr[u] : indptr[u + 1]].
        indices: [nnz] int32, ascending and without repeats within a user, in [0, num_items).
        num_items: size of the catalogue, in [1, 2^31).
        num_negatives: negatives for each row, in [0, 2^31).
        seed: 64-bit number; another seed gives independent negatives.
        offset: number of the first row in [0, 2^63); give the position in the epoch when it is drawn in parts.
        popularity: table from `alias_table`; None draws uniformly.
    Returns:
        [B, num_negatives], dtype and device of `users`.
    Raises:
        TypeError: a dtype other than these.
        IndexError: a user outside indptr, naming it and its position; an item of `indices` outside the catalogue.
        ValueError: a user who has seen every item (or every item of positive weight); shapes that do not fit. On a GPU
            the errors about users come at the next look (`deeprec.kernels.faults`), and their negatives are 0.
    Reference: He et al. 2017 (arXiv 1708.05031), section 3.1; Salmon et al. 2011 for the generator.
    """
    _check_arguments(users, indptr, indices, num_items, num_negatives, seed, offset, popularity)
    table = popularity if popularity is not None else (None, None, None)
    arguments = (users, indptr, indices, num_items, num_negatives, seed, offset, *table)
    out: Tensor
    if torch.compiler.is_compiling():
        out = torch.ops.deeprec.sample_negatives(*arguments)
        return out
    _check_lists(indptr, indices, num_items)
    try:
        out = torch.ops.deeprec.sample_negatives(*arguments)
    except RuntimeError as error:
        raise translate(error) from None
    return out


def _check_lists(indptr: Tensor, indices: Tensor, num_items: int) -> None:
    """Raise for users' lists that are out of range or out of order; once for tensors that do not change.

    The check takes as long as the lists are, a call as long as its draws: word is left on the tensor.
    """
    is_counted = not (indices.is_inference() or indptr.is_inference())
    versions = (indptr._version, indices._version) if is_counted else None
    word = getattr(indices, "_deeprec_lists", None)
    if word is not None and is_counted and word[0] is indptr and word[1:] == (versions, num_items):
        return
    nnz = indices.numel()
    if nnz and not 0 <= int(indices.min()) <= int(indices.max()) < num_items:
        raise IndexError(f"sample_negatives: indices must lie in [0, {num_items}); check num_items against the data")
    falls = indices[1:] <= indices[:-1]
    starts = indptr[(indptr > 0) & (indptr < nnz)]
    falls[starts - 1] = False  # from one user to the next an item may fall
    if bool(falls.any()):
        position = int(falls.to(torch.uint8).argmax()) + 1
        raise ValueError(
            "sample_negatives: indices must ascend without repeats within a user, got "
            f"{int(indices[position])} after {int(indices[position - 1])} at position {position}; sort the items of "
            "each user"
        )
    if is_counted:
        indices._deeprec_lists = (indptr, versions, num_items)  # type: ignore[attr-defined]


def _check_arguments(
    users: Tensor,
    indptr: Tensor,
    indices: Tensor,
    num_items: int,
    num_negatives: int,
    seed: int,
    offset: int,
    popularity: AliasTable | None,
) -> None:
    if users.dtype not in (torch.int32, torch.int64) or indptr.dtype != torch.int64 or indices.dtype != torch.int32:
        raise TypeError(
            "sample_negatives: users must be int32 or int64, indptr int64 and indices int32, got "
            f"{users.dtype}, {indptr.dtype} and {indices.dtype}"
        )
    if users.dim() != 1 or indptr.dim() != 1 or indices.dim() != 1 or indptr.numel() == 0:
        raise ValueError(
            "sample_negatives: users must be [B], indptr [num_users + 1] and indices [nnz], got "
            f"{tuple(users.shape)}, {tuple(indptr.shape)} and {tuple(indices.shape)}"
        )
    if not 0 < num_items < 2**31 or not 0 <= num_negatives < 2**31:
        raise ValueError(
            "sample_negatives: num_items must lie in [1, 2^31) and num_negatives in [0, 2^31), got "
            f"{num_items} and {num_negatives}"
        )
    if not -(2**63) <= seed < 2**63 or not 0 <= offset < 2**63:
        raise ValueError(f"sample_negatives: seed must fit in 64 bits and offset in [0, 2^63), got {seed} and {offset}")
    if popularity is not None and popularity.alias.numel() != num_items:
        raise ValueError(
            f"sample_negatives: popularity must describe {num_items} items, got {popularity.alias.numel()}; build it "
            "with alias_table(weights)"
        )
