"""Softmax cross-entropy of queries against candidates, without their logits [B, N] in memory.

What two-tower models train on: the candidates are the other rows' positives, shared samples, both, or the whole
catalogue, as one matrix. The forward pass keeps two numbers a row and the gradient of the queries; the backward pass
scores again and adds up the gradient of each candidate in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels._autograd import differentiable, gradient_of, is_transformed, recall, remember
from deeprec.kernels._errors import translate
from deeprec.kernels.embedding_bag import GradStep, RowUpdate
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sample_negatives import AliasTable
from deeprec.kernels.softmax_loss.checks import SampledSoftmaxArguments, SoftmaxArguments
from deeprec.kernels.softmax_loss.reference import losses_of, softmax_loss_grad_reference, softmax_loss_reference
from deeprec.kernels.softmax_loss.sampled import Training, sampled_row_losses, table_of

__all__ = ["REDUCTIONS", "SIMILARITIES", "sampled_softmax_loss", "softmax_loss"]

SIMILARITIES = ("dot", "cosine")
REDUCTIONS = ("mean", "sum", "none")
_ops = torch.ops.deeprec
_NUM_TENSORS = 9  # the first fields of SoftmaxArguments


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    given, need_grad = SoftmaxArguments(*args[:-1]), args[-1]
    queries, wide = given.queries, wide_dtype(given.queries.dtype)
    batch, dim = queries.shape
    return (
        queries.new_empty(batch, dtype=wide),
        queries.new_empty((3, batch), dtype=wide),
        queries.new_empty((batch, dim) if need_grad else (0,), dtype=wide),
    )


def _grad_fake(*args: Any) -> tuple[Tensor, Tensor]:
    given = SoftmaxArguments(*args[:-2])
    bias_grad = given.items.new_empty(0 if given.bias is None else given.items.shape[0])
    return torch.empty_like(given.items, memory_format=torch.contiguous_format), bias_grad


_SCHEMA = (
    "Tensor queries, Tensor items, Tensor targets, Tensor? bias, Tensor? log_q, Tensor? item_ids, "
    "Tensor? seen_indptr, Tensor? seen_indices, Tensor? seen_rows, float gamma, bool cosine, float smoothing, "
    "bool include_positive, bool correct_positive"
)
_library.define(f"softmax_loss({_SCHEMA}, bool need_grad) -> (Tensor, Tensor, Tensor)", softmax_loss_reference, _fake)
_library.define(
    f"softmax_loss_grad({_SCHEMA}, Tensor stats, Tensor row_grads) -> (Tensor, Tensor)",
    softmax_loss_grad_reference,
    _grad_fake,
)
_library.implement_triton("softmax_loss", ("softmax_loss", "softmax_loss_grad"))


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = (*recall(ctx, "softmax_loss"), *ctx.options)

    def composite(*inputs: Any) -> tuple[Tensor]:
        return (losses_of(SoftmaxArguments(*inputs)),)

    return (*gradient_of(ctx, (grad,), composite, inputs), None)


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """The fields of `SoftmaxArguments`, and whether queries need a gradient; returns the losses [B]."""
        losses: Tensor
        losses, stats, queries_grad = _ops.softmax_loss(*arguments)
        tensors, ctx.options = arguments[:_NUM_TENSORS], arguments[_NUM_TENSORS:-1]
        ctx.save_for_backward(*tensors, stats, queries_grad)
        remember(ctx, *tensors)
        return losses

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, stats, queries_grad = ctx.saved_tensors
        queries, bias = tensors[0], tensors[3]
        d_queries = d_items = d_bias = None
        if ctx.needs_input_grad[0]:
            d_queries = (queries_grad * grad.unsqueeze(1)).to(queries.dtype)
        if ctx.needs_input_grad[1] or (bias is not None and ctx.needs_input_grad[3]):
            d_items, d_bias = _ops.softmax_loss_grad(*tensors, *ctx.options, stats, grad)
        return (
            d_queries,
            d_items if ctx.needs_input_grad[1] else None,
            None,
            d_bias if bias is not None and ctx.needs_input_grad[3] else None,
            *([None] * 11),
        )


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_apply: Callable[..., Tensor] = _SoftmaxLoss.apply


def _row_losses(given: SoftmaxArguments) -> Tensor:
    if is_transformed():
        return losses_of(given)
    needs_grad = (given.queries, given.items, given.bias)
    losses: Tensor
    try:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in needs_grad):
            losses = _apply(*given, given.queries.requires_grad)
        else:
            losses = _ops.softmax_loss(*given, False)[0]
    except RuntimeError as error:
        raise translate(error) from None
    return losses


def _check_shapes(function: str, queries: Tensor, items: Tensor, weights: Tensor | None) -> None:
    if queries.dim() != 2 or items.dim() != 2 or queries.shape[1] != items.shape[1] or queries.dtype != items.dtype:
        raise ValueError(
            f"{function}: queries must be [B, D] and items [N, D] of one dtype, got {tuple(queries.shape)} in "
            f"{queries.dtype} and {tuple(items.shape)} in {items.dtype}"
        )
    batch = queries.shape[0]
    if weights is not None and (weights.shape != (batch,) or not weights.is_floating_point()):
        raise ValueError(
            f"{function}: weights must be [{batch}] floating-point numbers, got {tuple(weights.shape)} in "
            f"{weights.dtype}"
        )


def _check_words(function: str, similarity: str, reduction: str) -> None:
    if similarity not in SIMILARITIES or reduction not in REDUCTIONS:
        raise ValueError(
            f"{function}: similarity must be one of {', '.join(SIMILARITIES)} and reduction one of "
            f"{', '.join(REDUCTIONS)}, got {similarity!r} and {reduction!r}"
        )


def _reduce(losses: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    if weights is not None:
        losses = losses * weights.to(losses.dtype)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if weights is None else losses.sum() / weights.to(losses.dtype).sum()


def softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    log_q: Tensor | None = None,
    item_ids: Tensor | None = None,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
    weights: Tensor | None = None,
    similarity: str = "dot",
    gamma: float = 1.0,
    include_positive: bool = True,
    correct_positive: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy of each query's positive among the candidates `items`; nothing of size [B, N] is stored.

        z[b, j] = gamma sim(queries[b], items[j]) + bias[j] - log_q[j]        the positive p: without - log_q
        loss[b] = log sum_{j in C_b} exp z[b, j] - z[b, p]

    C_b are the candidates that are not masked: the whole catalogue (items is the table of all), in-batch negatives
    (items are the positives of all rows, targets may be left out), samples that all rows share (targets name the
    positives among them), or a mix (in-batch positives, then samples). With label_smoothing e the second term becomes
    (1 - e) z[b, p] + e times the mean of z[b] over the candidates that are not masked, as in `F.cross_entropy`.

    Masked means left out exactly, as a logit of -inf: other candidates with the id of the row's positive, and those
    that the row is known to like. The positive itself is never masked. A row with nothing in its denominator (possible
    without the positive) has loss 0 and no gradient. A zero vector has cosine 0 with everything, and no gradient.

    log_q corrects for how candidates are sampled: with log_q[j] = log(expected number of times that j is among the
    candidates), sum_j exp z[b, j] is in expectation the sum over the whole catalogue. The positive is there for
    certain, so its own expected number is 1.

    The loss is differentiable any number of times, forwards and through torch.func, by queries, items, bias and
    weights. The gradient of items is dense: [N, D].

    Args:
        queries: [B, D]; items: [N, D]; one dtype: float32, float64, bfloat16 or float16. Sums are kept in float32.
        targets: [B] int32 or int64, where each row's positive is among the items, in [0, N); default row b, so N >= B.
        bias: [N], dtype of items.
        log_q: [N]; no gradient.
        item_ids: [N] int32 or int64, what each candidate is; default its place. Candidates of one id are duplicates.
        seen_indptr, seen_indices: known positives of each row as ids, [B + 1] int64 and [nnz] int32, ascending within a
            row; ids that are no candidate do not matter.
        seen_rows: [B], row of seen_indptr for each query, which is then [rows + 1]; default row b.
        weights: [B] of the rows' losses, floating-point.
        similarity: "dot" or "cosine".
        gamma: > 0, one over the temperature.
        include_positive: whether the denominator holds the positive; False is DSPR as printed.
        correct_positive: subtract log_q from the positive's logit too, as Yi et al. 2019 do.
        label_smoothing: in [0, 1).
        reduction: "mean" (weighted by weights; NaN for no rows, as in `F.cross_entropy`), "sum" or "none".
    Returns:
        [] or, with "none", [B]; float32 (float64 beside float64).
    Raises:
        IndexError: a target is out of range.
        TypeError, ValueError: as the message says.
    Reference: Huang et al. 2013 (DSSM), section 3; Xu et al. 2016 (DSPR), section 3, with include_positive=False; Yi et
        al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations"; Wijmans et al. 2024
        (arXiv 2411.09009) for the streaming form.
    """
    _check_words("softmax_loss", similarity, reduction)
    _check_shapes("softmax_loss", queries, items, weights)
    if targets is None:
        if queries.shape[0] > items.shape[0]:
            raise ValueError(
                "softmax_loss: without targets the positive of row b is item b, so items must have at least "
                f"{queries.shape[0]} rows, got {items.shape[0]}; give targets"
            )
        targets = torch.arange(queries.shape[0], device=queries.device)
    given = SoftmaxArguments(
        queries,
        items,
        targets,
        bias,
        None if log_q is None else log_q.detach().to(wide_dtype(queries.dtype)),
        item_ids,
        seen_indptr,
        seen_indices,
        None if seen_rows is None else seen_rows.to(torch.int64),
        float(gamma),
        similarity == "cosine",
        float(label_smoothing),
        include_positive,
        correct_positive,
    )
    return _reduce(_row_losses(given), weights, reduction)


def sampled_softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    num_negatives: int,
    *,
    seed: int,
    offset: int = 0,
    popularity: AliasTable | None = None,
    use_log_q: bool = True,
    bias: Tensor | None = None,
    seen_indptr: Tensor | None = None,
    seen_indices: Tensor | None = None,
    seen_rows: Tensor | None = None,
    weights: Tensor | None = None,
    similarity: str = "dot",
    gamma: float = 1.0,
    include_positive: bool = True,
    reduction: str = "mean",
    sparse_grad: bool = True,
    update: RowUpdate | GradStep | None = None,
) -> Tensor:
    """`softmax_loss` of each row's positive and negatives of its own, drawn from the table inside the kernel.

        z[b, j] = gamma sim(queries[b], items[j]) + bias[j] - log(S p[b, j])        the positive: without the last term
        loss[b] = log sum over the positive and S draws j of exp z[b, j]  -  z[b, positive]

    Negative number k of row b is that of `sample_negatives` for (seed, offset + b, k): the same on every device, for
    any number of threads and however rows are split into batches. None is stored: the backward pass draws them again
    and lists (item, slope) pairs to add up the rows of the table. The known positives of a row are not drawn; a draw of
    the positive itself is left out. p[b, j] is the chance of item j among what row b may draw, so that the sum is in
    expectation that over all of these.

    Where several rows shared their negatives, draw ids with `sample_negatives` and call `softmax_loss` with item_ids.

    The loss is differentiable as `softmax_loss` is, but for the step. The gradient of items is coalesced
    `torch.sparse_coo`, dense with sparse_grad=False; with `update` the optimizer's step is taken in the backward pass
    and items get no gradient. Under `torch.compile` a training call with either of the sparse ones runs outside the
    graph (an error with fullgraph=True).

    Args:
        queries: [B, D]; items: [N, D], 1 <= N < 2^31; one dtype, as in `softmax_loss`.
        targets: [B] int32 or int64, the positives' rows of items.
        num_negatives: S >= 0.
        seed: 64-bit number.
        offset: number of the first row, in [0, 2^63).
        popularity: table from `alias_table`; None draws uniformly.
        use_log_q: whether to subtract the logarithm of the expected number of draws.
        bias: [N], dtype of items; its gradient is dense.
        seen_indptr, seen_indices, seen_rows: as in `softmax_loss`, with ids in [0, N).
        weights, similarity, gamma, include_positive, reduction: as in `softmax_loss`.
        sparse_grad: sparse gradient of items; dense otherwise.
        update: as `update` of `embedding_bags`.
    Returns:
        [] or, with "none", [B]; float32 (float64 beside float64).
    Raises:
        IndexError: a target or a known positive is out of range.
        ValueError: a row knows every item (of positive weight); and TypeError, as the message says.
    Reference: Huang et al. 2013 (DSSM), section 3; Bengio and Senecal 2008, "Adaptive importance sampling to accelerate
        training of a neural probabilistic language model".
    """
    function = "sampled_softmax_loss"
    _check_words(function, similarity, reduction)
    _check_shapes(function, queries, items, weights)
    if not -(2**63) <= seed < 2**63 or not 0 <= offset < 2**63:
        raise ValueError(f"{function}: seed must fit in 64 bits and offset in [0, 2^63), got {seed} and {offset}")
    given = SampledSoftmaxArguments(
        queries,
        items,
        targets,
        bias,
        seen_indptr,
        seen_indices,
        None if seen_rows is None else seen_rows.to(torch.int64),
        num_negatives,
        seed,
        offset,
        *table_of(popularity),
        float(gamma),
        similarity == "cosine",
        use_log_q,
        include_positive,
    )
    losses = sampled_row_losses(given, Training(sparse_grad, update))
    return _reduce(losses, weights, reduction)
