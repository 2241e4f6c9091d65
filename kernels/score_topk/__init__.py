"""Scores of every item for a block of users, and the K best of them, without a users x items matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeprec.kernels._autograd import refuse_derivative
from deeprec.kernels._errors import translate
from deeprec.kernels._library import define, implement_triton
from deeprec.kernels.score_topk.checks import SIMILARITIES
from deeprec.kernels.score_topk.reference import (
    score_items_ncf_reference,
    score_items_reference,
    score_topk_ncf_reference,
    score_topk_reference,
)

__all__ = ["CosineScorer", "DotScorer", "L2Scorer", "NCFScorer", "TopK", "score_items", "score_topk"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class DotScorer(NamedTuple):
    """score(u, i) = users[u] . items[i] + item_bias[i].

    float32, bfloat16 or float16 in; arithmetic is float32. `CosineScorer` and `L2Scorer` are scorers of the same
    vectors, and serve wherever this one does.

    Attributes:
        users: [B, D], the users to be served.
        items: [N, D], the whole catalogue.
        item_bias: [N] or None.
    """

    users: Tensor
    items: Tensor
    item_bias: Tensor | None = None

    @property
    def similarity(self) -> str:
        """How two vectors are compared: "dot", "cosine" or "l2"."""
        return "dot"


class CosineScorer(DotScorer):
    """score(u, i) = users[u] . items[i] / (|users[u]| |items[i]|), 0 where either vector is zero.

    In [-1, 1] but for rounding. Lengths may be anything that float32 holds; a row with NaN or infinity scores NaN.
    Takes no item_bias.
    """

    __slots__ = ()

    @property
    def similarity(self) -> str:
        """ "cosine"."""
        return "cosine"


class L2Scorer(DotScorer):
    """score(u, i) = - |users[u] - items[i]|^2, the nearest item first.

    The squares of the differences themselves are added up, in float32: nothing cancels, and equal vectors score
    exactly 0. Takes no item_bias.
    """

    __slots__ = ()

    @property
    def similarity(self) -> str:
        """ "l2"."""
        return "l2"


class NCFScorer(NamedTuple):
    """Logit of a neural collaborative filtering network whose first layer is split into a user and an item part.

    With W = [W_u, W_i] the first hidden layer is relu(W_u p_u + b + W_i q_i); the caller computes `user_hidden` =
    p W_u^T + b for its users and `item_hidden` = q W_i^T once for the catalogue. Then, with x_1 that layer,
    x_{l+1} = relu(weights[l] x_l + biases[l]) and

        logit = out_weight . [user_factors * item_factors ; x_L] + out_bias.

    Leave out the hidden part for GMF alone, the factors for an MLP alone.

    Attributes:
        user_hidden, item_hidden: [B, H1] and [N, H1], or None.
        user_factors, item_factors: [B, D] and [N, D] (GMF), or None.
        weights, biases: of the layers after the first, [out, in] and [out].
        out_weight: [D + H_L], or [1, D + H_L] as torch.nn.Linear keeps it.
        out_bias: one value or None.
    Reference: He et al. 2017 (arXiv 1708.05031), equations 7 to 12.
    """

    user_hidden: Tensor | None
    item_hidden: Tensor | None
    user_factors: Tensor | None
    item_factors: Tensor | None
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_weight: Tensor
    out_bias: Tensor | None = None


class TopK(NamedTuple):
    """The best items of each user, best first.

    Attributes:
        values: [B, K] float32 scores, -inf where there is no further candidate.
        ids: [B, K] int64 items, -1 where there is no further candidate.
    """

    values: Tensor
    ids: Tensor


def score_items(scorer: DotScorer | NCFScorer, *, precision: str = "float32") -> Tensor:
    """Score of every item for every user of the block, dense.

    The scores are detached: no derivative goes through them.

    Args:
        scorer: what computes a score.
        precision: "float32", or "bfloat16" for the products of an `NCFScorer`'s hidden layers (operands rounded to
            bfloat16, sums in float32; a DotScorer always computes in float32).
    Returns:
        [B, N] float32. For a long catalogue give few users at a time, or use `score_topk`.
    Raises:
        TypeError: tensors that are not float32, bfloat16 or float16.
        ValueError: shapes that do not fit; an unknown precision.
        RuntimeError: torch.func or forward mode asks for a derivative.
    """
    refuse_derivative("score_items")
    use_bfloat16 = _use_bfloat16(precision)
    with torch.no_grad():
        if isinstance(scorer, DotScorer):
            similarity = SIMILARITIES.index(scorer.similarity)
            scores: Tensor = _call(torch.ops.deeprec.score_items, *_dot_arguments("score_items", scorer), similarity)
        else:
            arguments = _ncf_arguments("score_items", scorer)
            scores = _call(torch.ops.deeprec.score_items_ncf, *arguments, use_bfloat16)
    return scores


def score_topk(
    scorer: DotScorer | NCFScorer,
    k: int,
    *,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
    allow_indices: Tensor | None = None,
    allow_indptr: Tensor | None = None,
    precision: str = "float32",
) -> TopK:
    """The k best items of each user that are not seen and, where a list is given, allowed.

    Users x items scores never exist in memory. Among equal scores the lower item id comes first. NaN and -inf are never
    recommended. On the CPU the result does not depend on the number of threads, nor a user's result, to the last bit,
    on the other users of the call or on the other items. The values are detached: no derivative goes through them.

    Args:
        scorer: what computes a score.
        k: how many, in [0, 2^31); may exceed the number of items.
        seen_indptr: [R + 1] int64; row r of the lists holds seen_indices[seen_indptr[r] : seen_indptr[r + 1]].
        seen_indices: [nnz] int32, items to leave out, ascending within a row.
        seen_rows: [B] int32 or int64, the row of each user; None means row b for user b (then R = B).
        allow_indices: [n] int32, the only items that may be returned, ascending, each once; only they are scored.
        allow_indptr: [B + 1] int64 where each user has items of their own: those of user b are
            allow_indices[allow_indptr[b] : allow_indptr[b + 1]]. None: allow_indices hold for all users.
        precision: as in `score_items`.
    Returns:
        values [B, k] float32 and ids [B, k] int64; (-inf, -1) after the last candidate.
    Raises:
        TypeError: a dtype other than these, or a k that is no integer.
        IndexError: seen_rows outside the lists, allow_indices outside the catalogue.
        ValueError: shapes that do not fit, lists out of order, k out of range, an unknown precision.
        MemoryError: [B, k] does not fit into memory.
        RuntimeError: torch.func or forward mode asks for a derivative.
    """
    refuse_derivative("score_topk")
    use_bfloat16 = _use_bfloat16(precision)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer, torch.SymInt)):
        raise TypeError(f"score_topk: k must be an integer, got {k!r}")
    if not 0 <= k < 2**31:
        raise ValueError(f"score_topk: k must be in [0, 2^31), got {k}")
    lists = (
        *checked_seen("score_topk", seen_indptr, seen_indices, seen_rows),
        *checked_allow("score_topk", allow_indptr, allow_indices),
    )
    with torch.no_grad():
        if isinstance(scorer, DotScorer):
            similarity = SIMILARITIES.index(scorer.similarity)
            vectors = _dot_arguments("score_topk", scorer)
            return TopK(*_call(torch.ops.deeprec.score_topk, *vectors, k, *lists, similarity))
        arguments = _ncf_arguments("score_topk", scorer)
        return TopK(*_call(torch.ops.deeprec.score_topk_ncf, *arguments, use_bfloat16, k, *lists))


def _call(op: Any, *arguments: Any) -> Any:
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return op(*arguments)
    except RuntimeError as error:
        raise translate(error) from None


def _use_bfloat16(precision: str) -> bool:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"score_topk: precision must be 'float32' or 'bfloat16', got {precision!r}")
    return precision == "bfloat16"


def _check_floats(name: str, tensors: Sequence[Tensor | None]) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in _FLOATS:
            raise TypeError(f"{name}: scorer tensors must be float32, bfloat16 or float16, got {tensor.dtype}")


def _dot_arguments(name: str, scorer: DotScorer) -> tuple[Any, ...]:
    users, items, item_bias = scorer
    _check_floats(name, scorer)
    if users.dim() != 2 or items.dim() != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(
            f"{name}: users must be [B, D] and items [N, D], got {tuple(users.shape)} and {tuple(items.shape)}"
        )
    if item_bias is not None and item_bias.shape != (items.shape[0],):
        raise ValueError(f"{name}: item_bias must be [{items.shape[0]}], got {tuple(item_bias.shape)}")
    if item_bias is not None and scorer.similarity != "dot":
        raise ValueError(f"{name}: item_bias goes with DotScorer only, got one in a {type(scorer).__name__}")
    return users.detach(), items.detach(), None if item_bias is None else item_bias.detach()


def _pair(name: str, what: str, users: Tensor | None, items: Tensor | None) -> tuple[Tensor, Tensor]:
    if users is None or items is None:
        raise ValueError(f"{name}: user_{what} and item_{what} belong together, got one without the other or neither")
    if users.dim() != 2 or items.dim() != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(
            f"{name}: user_{what} and item_{what} must be [B, width] and [N, width], got {tuple(users.shape)} and "
            f"{tuple(items.shape)}"
        )
    return users.detach(), items.detach()


def _ncf_arguments(name: str, scorer: NCFScorer) -> tuple[Any, ...]:
    weights, biases = list(scorer.weights), list(scorer.biases)
    _check_floats(name, [*scorer[:4], *weights, *biases, scorer.out_weight, scorer.out_bias])
    user_hidden, item_hidden, user_factors, item_factors = scorer[:4]
    if user_hidden is None and item_hidden is None and user_factors is not None and item_factors is not None:
        user_hidden, item_hidden = user_factors[:, :0], item_factors[:, :0]
    if user_factors is None and item_factors is None and user_hidden is not None and item_hidden is not None:
        user_factors, item_factors = user_hidden[:, :0], item_hidden[:, :0]
    hidden = _pair(name, "hidden", user_hidden, item_hidden)
    factors = _pair(name, "factors", user_factors, item_factors)
    if hidden[0].shape[0] != factors[0].shape[0] or hidden[1].shape[0] != factors[1].shape[0]:
        raise ValueError(
            f"{name}: hidden and factors must have the same users and items, got {hidden[0].shape[0]} and "
            f"{factors[0].shape[0]} users, {hidden[1].shape[0]} and {factors[1].shape[0]} items"
        )
    width = hidden[0].shape[1]
    if len(weights) != len(biases) or (weights and width == 0):
        raise ValueError(f"{name}: each weight needs a bias and an input, got {len(weights)} and {len(biases)}")
    for weight, bias in zip(weights, biases, strict=True):
        if weight.dim() != 2 or weight.shape[1] != width or bias.shape != (weight.shape[0],):
            raise ValueError(
                f"{name}: after a layer of {width} comes a weight [out, {width}] with a bias [out], got "
                f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        width = weight.shape[0]
    num_inputs = factors[0].shape[1] + width
    if scorer.out_weight.numel() != num_inputs:
        raise ValueError(f"{name}: out_weight must be [{num_inputs}], got {tuple(scorer.out_weight.shape)}")
    return (
        *hidden,
        *factors,
        [weight.detach() for weight in weights],
        [bias.detach() for bias in biases],
        scorer.out_weight.detach().reshape(-1),
        None if scorer.out_bias is None else scorer.out_bias.detach().reshape(-1),
    )


def checked_seen(
    function: str, indptr: Tensor | None, indices: Tensor | None, rows: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The lists of seen items as operators take them; raises where they are not such, in the name of a function."""
    if indptr is None or indices is None:
        if indptr is not None or indices is not None or rows is not None:
            raise ValueError(f"{function}: give seen_indptr and seen_indices together")
        return None, None, None
    if indptr.dtype != torch.int64 or indices.dtype != torch.int32:
        raise TypeError(
            f"{function}: seen_indptr must be int64 and seen_indices int32, got {indptr.dtype} and {indices.dtype}"
        )
    if rows is not None and rows.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{function}: seen_rows must be int32 or int64, got {rows.dtype}")
    return indptr, indices, None if rows is None else rows.long()


def checked_allow(function: str, indptr: Tensor | None, indices: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The same of allowed items."""
    if indices is None:
        if indptr is not None:
            raise ValueError(f"{function}: give allow_indices with allow_indptr")
        return None, None
    if indices.dtype != torch.int32 or (indptr is not None and indptr.dtype != torch.int64):
        raise TypeError(
            f"{function}: allow_indices must be int32 and allow_indptr int64, got {indices.dtype} and "
            f"{None if indptr is None else indptr.dtype}"
        )
    return indptr, indices


def _topk_fake(like: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (like.shape[0], k)
    return like.new_empty(shape, dtype=torch.float32), like.new_empty(shape, dtype=torch.int64)


def _score_topk_fake(users: Tensor, items: Tensor, item_bias: Tensor | None, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    return _topk_fake(users, k)


def _score_topk_ncf_fake(user_hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _topk_fake(user_hidden, rest[8])


def _score_items_fake(users: Tensor, items: Tensor, *_: Any) -> Tensor:
    return users.new_empty((users.shape[0], items.shape[0]), dtype=torch.float32)


_NETWORK = (
    "Tensor user_hidden, Tensor item_hidden, Tensor user_factors, Tensor item_factors, Tensor[] weights, "
    "Tensor[] biases, Tensor out_weight, Tensor? out_bias, bool use_bfloat16"
)
_LISTS = (
    "Tensor? seen_indptr=None, Tensor? seen_indices=None, Tensor? seen_rows=None, Tensor? allow_indptr=None, "
    "Tensor? allow_indices=None"
)
define(
    "score_items(Tensor users, Tensor items, Tensor? item_bias, int similarity=0) -> Tensor",
    score_items_reference,
    _score_items_fake,
)
define(f"score_items_ncf({_NETWORK}) -> Tensor", score_items_ncf_reference, _score_items_fake)
define(
    f"score_topk(Tensor users, Tensor items, Tensor? item_bias, SymInt k, {_LISTS}, int similarity=0) "
    "-> (Tensor, Tensor)",
    score_topk_reference,
    _score_topk_fake,
)
define(
    f"score_topk_ncf({_NETWORK}, SymInt k, {_LISTS}) -> (Tensor, Tensor)",
    score_topk_ncf_reference,
    _score_topk_ncf_fake,
)


# The dense dot scorer stays torch.matmul there: it is the vendor's library already.
implement_triton("score_topk", ("score_topk", "score_topk_ncf", "score_items_ncf"))
