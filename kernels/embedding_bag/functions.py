"""The autograd functions of `embedding_bags`, one a way of training; forward and backward call registered operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels._autograd import Refusal, differentiable, gradient_of, sparse_rows, step_refusal
from deeprec.kernels.embedding import coalesced_grad
from deeprec.kernels.embedding_bag.call import Call, GradStep, mark_changed, run_named
from deeprec.kernels.embedding_bag.composite import embedding_bags_composite
from deeprec.kernels.embedding_bag.plan import BagPlan, plan_of_batch, rows_by_table


def lookup(weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, scale: Tensor | None, call: Call) -> Any:
    """Results of the operator `embedding_bags`; its errors name the tables."""
    arguments = (list(weights), ids, offsets, scale, *call.features())
    return run_named(torch.ops.deeprec.embedding_bags, call.names, *arguments)


class _Bags(torch.autograd.Function):
    """What the three ways of training share: forward, and what the backward operators take."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        offsets: Tensor | None,
        scale: Tensor | None,
        call: Call,
        given_plan: BagPlan | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.given_plan = given_plan
        pooled, argmax, *sequences = lookup(weights, ids, offsets, scale, call)
        ctx.call, ctx.has_offsets, ctx.has_scale = call, offsets is not None, scale is not None
        # The gradient of the weights of the entries reads the tables again: saved, so that a change is an error.
        reads_again = weights if scale is not None and scale.requires_grad else ()
        ctx.save_for_backward(ids, argmax, *(t for t in (offsets, scale) if t is not None), *reads_again)
        ctx.weights = weights
        return (pooled, *sequences)

    @staticmethod
    def arguments(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
        """grad, sequence_grads, argmax, ids, offsets, per_sample_weights."""
        ids, argmax, *rest = ctx.saved_tensors
        # Slices, not pop: torch.compile of torch 2.11 takes rest for a tuple.
        offsets, rest = (rest[0], rest[1:]) if ctx.has_offsets else (None, rest)
        scale = rest[0] if ctx.has_scale else None
        return grads[0], list(grads[1:]), argmax, ids, offsets, scale

    @staticmethod
    def plan(ctx: Any, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor, ...]:
        """The plan of the batch."""
        return plan_of_batch(ctx.given_plan, ctx.weights, ids, offsets, ctx.call)

    @staticmethod
    def row_grads(
        ctx: Any, grads: Sequence[Tensor], need_scale: bool
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Distinct rows and their gradients, table by table, and the gradient of per_sample_weights."""
        arguments = _Bags.arguments(ctx, grads)
        plan = _Bags.plan(ctx, arguments[3], arguments[4])
        *values, scale_grad = torch.ops.deeprec.embedding_bags_grad(
            list(ctx.weights), *arguments, *plan, *ctx.call.features(), need_scale
        )
        return rows_by_table(plan), values, scale_grad if need_scale else None

    @staticmethod
    def again(ctx: Any, grads: Sequence[Tensor]) -> list[Any]:
        """The gradients by the composite, those of the tables dense."""
        _, _, _, ids, offsets, scale = _Bags.arguments(ctx, grads)

        def composite(ids: Tensor, offsets: Any, scale: Any, call: Call, _: Any, *weights: Tensor) -> list[Tensor]:
            return embedding_bags_composite(weights, ids, offsets, scale, *call.features())

        return gradient_of(ctx, grads, composite, (ids, offsets, scale, ctx.call, None, *ctx.weights))


def _sparse_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    _, _, _, ids, offsets, _ = _Bags.arguments(ctx, grads)
    touched = rows_by_table(_Bags.plan(ctx, ids, offsets))
    grads_again = _Bags.again(ctx, grads)
    return (*grads_again[:5], *map(sparse_rows, grads_again[5:], touched))


def _dense_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(_Bags.again(ctx, grads))


def _step_again(ctx: Any, *grads: Tensor) -> Refusal:
    return step_refusal("embedding_bags", _Bags.arguments(ctx, grads)[-1])


class _SparseGradBags(_Bags):
    @staticmethod
    @differentiable(_sparse_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, values, scale_grad = _Bags.row_grads(ctx, grads, ctx.needs_input_grad[2])
        table_grads = [
            coalesced_grad(rows[t].long().unsqueeze(0), values[t], weight.shape[0]) if needed else None
            for t, (weight, needed) in enumerate(zip(ctx.weights, ctx.needs_input_grad[5:], strict=True))
        ]
        return (None, None, scale_grad, None, None, *table_grads)


class _DenseGradBags(_Bags):
    @staticmethod
    @differentiable(_dense_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        need_scale = ctx.needs_input_grad[2]
        *values, scale_grad = torch.ops.deeprec.embedding_bags_dense_grad(
            list(ctx.weights), *_Bags.arguments(ctx, grads), *ctx.call.features(), need_scale
        )
        return (None, None, scale_grad if need_scale else None, None, None, *values)


class _UpdatedBags(torch.autograd.Function):
    """`trigger` requires a gradient so that the backward pass comes by; the tables are changed there."""

    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor,
        ids: Tensor,
        offsets: Tensor | None,
        scale: Tensor | None,
        call: Call,
        given_plan: BagPlan | None,
        constants: tuple[int, list[float], float, int],
        lr: Tensor,
        step: Tensor,
        num_first: int,
        num_second: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(tensors) - num_first - num_second
        weights, ctx.first = tensors[:count], tensors[count : count + num_first]
        ctx.second = tensors[count + num_first :]
        ctx.constants, ctx.lr, ctx.step = constants, lr, step
        return _Bags.forward(ctx, ids, offsets, scale, call, given_plan, *weights)

    @staticmethod
    @differentiable(_step_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments = _Bags.arguments(ctx, grads)
        plan = _Bags.plan(ctx, arguments[3], arguments[4])
        rule, options, max_norm, seed = ctx.constants
        need_scale = ctx.needs_input_grad[3]
        scale_grad = torch.ops.deeprec.embedding_bags_update_(
            list(ctx.weights),
            list(ctx.first),
            list(ctx.second),
            *arguments,
            *plan,
            *ctx.call.features(),
            need_scale,
            rule,
            ctx.lr,
            ctx.step,
            options,
            max_norm,
            seed,
        )
        mark_changed(ctx.weights)
        rest = len(ctx.weights) + len(ctx.first) + len(ctx.second)
        return (None, None, None, scale_grad if need_scale else None, *([None] * (7 + rest)))


class _SteppedBags(torch.autograd.Function):
    """As `_UpdatedBags`, with a step that is taken on the gradients by row."""

    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor,
        ids: Tensor,
        offsets: Tensor | None,
        scale: Tensor | None,
        call: Call,
        given_plan: BagPlan | None,
        step: GradStep,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.step = step
        return _Bags.forward(ctx, ids, offsets, scale, call, given_plan, *weights)

    @staticmethod
    @differentiable(_step_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, values, scale_grad = _Bags.row_grads(ctx, grads, ctx.needs_input_grad[3])
        ctx.step(rows, values)
        return (None, None, None, scale_grad, *([None] * (3 + len(ctx.weights))))


# The names by which mypy, which knows no types of torch.autograd.Function, sees them.
sparse_bags: Callable[..., tuple[Tensor, ...]] = _SparseGradBags.apply
dense_bags: Callable[..., tuple[Tensor, ...]] = _DenseGradBags.apply
updated_bags: Callable[..., tuple[Tensor, ...]] = _UpdatedBags.apply

stepped_bags: Callable[..., tuple[Tensor, ...]] = torch.compiler.disable(
    lambda *args: _SteppedBags.apply(*args),  # type: ignore[no-untyped-call]
    reason="embedding_bags: this optimizer's step in the backward pass does not pass torch.compile; use another mode",
)
sparse_bags_outside_graph: Callable[..., tuple[Tensor, ...]] = torch.compiler.disable(
    lambda *args: sparse_bags(*args),
    reason="embedding_bags: sparse gradients do not pass torch.compile; use sparse_grad=False",
)
