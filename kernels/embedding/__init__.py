"""Embedding lookup with a coalesced sparse gradient.

`embedding_plan` sorts the ids once; every table that shares the ids (NeuMF's GMF and MLP tables) uses that one plan
in its backward pass. The gradient of each row is summed sequentially in a fixed order, so it is bitwise the same for
any number of threads, and in every run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels import _library
from deeprec.kernels._autograd import differentiable, gradient_of, is_transformed, sparse_rows
from deeprec.kernels._checks import outside
from deeprec.kernels.embedding.reference import (
    embedding_grad_reference,
    embedding_plan_reference,
    embedding_reference,
)
from deeprec.kernels.plan_check import PlanFacts, is_remembered, remember_source, require_plan

__all__ = ["EmbeddingPlan", "embedding", "embedding_plan"]


class EmbeddingPlan(NamedTuple):
    """The positions of a batch of ids grouped by row; made by `embedding_plan`.

    Attributes:
        rows: the distinct ids in ascending order, [U], dtype of the ids.
        offsets: where each row's positions begin in `order`, [U + 1], int32 (int64 from 2^31 ids on).
        order: positions in the flattened ids, grouped by row, ascending within a row, [nnz], dtype of offsets.
    """

    rows: Tensor
    offsets: Tensor
    order: Tensor


def _plan_fake(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = torch.library.get_ctx().new_dynamic_size()
    position = torch.int32  # a traced batch of 2^31 ids is out of reach; the real operator switches by itself
    rows = ids.new_empty(num_rows)
    return rows, ids.new_empty(num_rows + 1, dtype=position), ids.new_empty(ids.numel(), dtype=position)


def _embedding_fake(weight: Tensor, ids: Tensor) -> Tensor:
    return weight.new_empty(*ids.shape, weight.shape[1])


def _grad_fake(grad: Tensor, rows: Tensor, offsets: Tensor, order: Tensor) -> Tensor:
    return grad.new_empty(rows.shape[0], grad.shape[1])


def _dense_grad(grad: Tensor, ids: Tensor, num_embeddings: int) -> Tensor:
    rows, offsets, order = torch.ops.deeprec.embedding_plan(ids, num_embeddings)
    out = grad.new_zeros(num_embeddings, grad.shape[1])
    out[rows.to(torch.int64)] = torch.ops.deeprec.embedding_grad(grad, rows, offsets, order)
    return out


def _dense_grad_fake(grad: Tensor, ids: Tensor, num_embeddings: int) -> Tensor:
    return grad.new_empty(num_embeddings, grad.shape[1])


_library.define(
    "embedding_plan(Tensor ids, int num_embeddings) -> (Tensor, Tensor, Tensor)", embedding_plan_reference, _plan_fake
)
_library.define("embedding(Tensor weight, Tensor ids) -> Tensor", embedding_reference, _embedding_fake)
_library.define(
    "embedding_grad(Tensor grad, Tensor rows, Tensor offsets, Tensor order) -> Tensor",
    embedding_grad_reference,
    _grad_fake,
)
_library.define(
    "embedding_dense_grad(Tensor grad, Tensor ids, int num_embeddings) -> Tensor", _dense_grad, _dense_grad_fake
)
_library.implement_triton("embedding", ("embedding", "embedding_grad"))  # embedding_plan is torch.sort there


def raise_out_of_range(function: str, ids: Tensor, num_embeddings: int, name: str, error: Exception) -> None:
    """Turn the operator's error into an IndexError that names the table, when an id is what was wrong."""
    flat = ids.flatten()
    bad = outside(flat, num_embeddings)
    if not bool(bad.any()):
        raise error
    position = int(bad.to(torch.uint8).argmax())
    table = f" of table {name!r}" if name else ""
    raise IndexError(
        f"{function}: ids{table} must be in [0, {num_embeddings}), got {int(flat[position])} at position {position}; "
        "encode ids with the table's id map, or enlarge num_embeddings"
    ) from None


def _check_ids(function: str, ids: Tensor) -> None:
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{function}: ids must be int32 or int64, got {ids.dtype}; convert with ids.long()")


def embedding_plan(ids: Tensor, num_embeddings: int, *, name: str = "") -> EmbeddingPlan:
    """Group the positions of `ids` by row: a stable radix sort, done once for all tables that share the ids.

    Args:
        ids: any shape, int32 or int64, nnz values in [0, num_embeddings).
        num_embeddings: rows of the table, >= 0.
        name: what to call the table in an error.
    Returns:
        EmbeddingPlan; deterministic.
    Raises:
        IndexError: an id is out of range (on the CPU and the GPU).
        TypeError: ids are not int32 or int64.
    """
    _check_ids("embedding_plan", ids)
    if torch.compiler.is_compiling():
        return EmbeddingPlan(*torch.ops.deeprec.embedding_plan(ids, num_embeddings))
    try:
        plan = EmbeddingPlan(*torch.ops.deeprec.embedding_plan(ids, num_embeddings))
    except (RuntimeError, IndexError) as error:
        raise_out_of_range("embedding_plan", ids, num_embeddings, name, error)
        raise
    remember_source(plan, ids, None, num_embeddings)
    return plan


def require_embedding_plan(
    function: str, plan: EmbeddingPlan, ids: Tensor, num_embeddings: int, name: str = "plan"
) -> None:
    """`require_plan` for what `embedding_plan` returns.

    Raises:
        ValueError, TypeError: as `require_plan`.
    """
    if len(plan) != 3 or not all(isinstance(part, Tensor) for part in plan):
        raise TypeError(f"{function}: {name} must be what embedding_plan returns, got {type(plan).__name__}")
    if is_remembered(plan, ids, None, num_embeddings):
        return
    rows, offsets, order = plan
    starts = torch.tensor([0, rows.numel()], device=rows.device)
    parts = (rows, offsets, order, order[:0], starts)
    facts = PlanFacts((num_embeddings,), (0,), (-1,))
    require_plan(function, "embedding_plan", parts, ids.reshape(1, -1), None, facts, name=name)


def _lookup(weight: Tensor, ids: Tensor, name: str) -> Tensor:
    out: Tensor
    if torch.compiler.is_compiling():
        out = torch.ops.deeprec.embedding(weight, ids)
        return out
    try:
        out = torch.ops.deeprec.embedding(weight, ids)
        return out
    except (RuntimeError, IndexError) as error:
        raise_out_of_range("embedding", ids, weight.shape[0], name, error)
        raise


def coalesced_grad(indices: Tensor, values: Tensor, num_embeddings: int) -> Tensor:
    """A sparse gradient [num_embeddings, D] of strictly ascending rows [1, U] (int64) and values [U, D], not copied."""
    return torch.sparse_coo_tensor(
        indices, values, (num_embeddings, values.shape[1]), is_coalesced=True, check_invariants=False
    )


def _sparse_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ids, *plan = ctx.saved_tensors
    first, *rest = gradient_of(ctx, (grad,), lambda weight, *_: [F.embedding(ids, weight)], (ctx.weight, *[None] * 3))
    return (sparse_rows(first, plan[0] if plan else ids.unique()), *rest)


def _dense_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    return tuple(gradient_of(ctx, (grad,), lambda weight, *_: [F.embedding(ids, weight)], (ctx.weight, None, None)))


class _SparseGradEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, plan: EmbeddingPlan | None, name: str) -> Tensor:
        ctx.save_for_backward(ids, *(plan or ()))
        ctx.weight = weight  # its shape, and its place in the graph
        return _lookup(weight, ids, name)

    @staticmethod
    @differentiable(_sparse_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        ids, *plan = ctx.saved_tensors
        num_embeddings = ctx.weight.shape[0]
        rows, offsets, order = plan or torch.ops.deeprec.embedding_plan(ids, num_embeddings)
        values = torch.ops.deeprec.embedding_grad(grad.reshape(-1, grad.shape[-1]), rows, offsets, order)
        return coalesced_grad(rows.long().unsqueeze(0), values, num_embeddings), None, None, None


class _DenseGradEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return _lookup(weight, ids, name)

    @staticmethod
    @differentiable(_dense_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        return torch.ops.deeprec.embedding_dense_grad(flat, ids, ctx.weight.shape[0]), None, None


def _sparse_embedding(weight: Tensor, ids: Tensor, plan: EmbeddingPlan | None, name: str) -> Tensor:
    result: Tensor = _SparseGradEmbedding.apply(weight, ids, plan, name)  # type: ignore[no-untyped-call]
    return result


_sparse_embedding_outside_graph: Callable[..., Tensor] = torch.compiler.disable(
    _sparse_embedding, reason="embedding: sparse gradients do not pass torch.compile; use sparse_grad=False"
)


def embedding(
    weight: Tensor, ids: Tensor, plan: EmbeddingPlan | None = None, *, sparse_grad: bool = True, name: str = ""
) -> Tensor:
    """Rows of a table: out[..., :] = weight[ids[...], :].

    The gradient of `weight` is a coalesced `torch.sparse_coo` tensor of the touched rows: ascending, each once, summed
    in float32 (float64 for float64). When autograd stores it in `weight.grad` it keeps rows and values but drops the
    flag `is_coalesced`. Under `torch.compile` a training call with sparse gradients runs outside the graph (an error
    with fullgraph=True); with `sparse_grad=False` the gradient is dense and the call compiles. Outside torch.compile it
    is differentiable any number of times, forwards and through torch.func: these take PyTorch's own lookup, and
    torch.func has dense gradients only.

    Args:
        weight: [R, D], float32, float64, bfloat16 or float16; any D >= 1.
        ids: any shape, int32 or int64, values in [0, R); repeated ids and none at all are welcome.
        plan: `embedding_plan(ids, R)` where several tables share the ids; made in the backward pass otherwise.
        sparse_grad: give `weight` a sparse gradient; a dense one otherwise.
        name: what to call the table in an error.
    Returns:
        [*ids.shape, D], dtype of weight.
    Raises:
        IndexError: an id is out of range, named with its position (on a GPU at the next look: see
            `deeprec.kernels.faults`).
        TypeError: ids are not int32 or int64.
        ValueError: weight is not [R, D], or plan is not that of these ids.
    """
    if weight.dim() != 2:
        raise ValueError(f"embedding: weight must be [R, D], got {tuple(weight.shape)}")
    _check_ids("embedding", ids)
    if is_transformed():
        return F.embedding(ids, weight)
    if plan is not None:
        require_embedding_plan("embedding", plan, ids, weight.shape[0])
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return _lookup(weight, ids, name)
    if sparse_grad:
        lookup = _sparse_embedding_outside_graph if torch.compiler.is_compiling() else _sparse_embedding
        return lookup(weight, ids, plan, name)
    result: Tensor = _DenseGradEmbedding.apply(weight, ids, name)  # type: ignore[no-untyped-call]
    return result
