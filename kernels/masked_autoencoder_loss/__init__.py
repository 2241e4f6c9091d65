"""An autoencoder over the rows of a sparse matrix, with its loss at observed entries only.

The sparse path is `sparse_linear` and `sampled_linear_loss`: work and memory go with the entries, nothing has the size
of [B, N]. The dense path writes the batch out and multiplies matrices: faster where most of it is observed. Which one
serves is a rule that was measured (`takes_dense_path`), and can be forced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeprec.kernels._autograd import (
    Refusal,
    differentiable,
    gradient_of,
    is_transformed,
    recall,
    refuse_update,
    remember,
    sparse_rows,
    step_refusal,
)
from deeprec.kernels.embedding import coalesced_grad
from deeprec.kernels.embedding_bag import BagPlan, GradStep, RowUpdate
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.masked_autoencoder_loss.reference import masked_autoencoder_loss_reference, rows_of
from deeprec.kernels.sampled_linear_loss import (
    ACTIVATIONS,
    LOSSES,
    csr_plan,
    has_sparse_grad,
    require_csr_plan,
    sampled_linear_loss,
    sampled_linear_loss_composite,
    take_step,
)
from deeprec.kernels.sampled_linear_loss.reference import activate, entry_losses
from deeprec.kernels.sparse_linear import sparse_linear, sparse_linear_composite
from deeprec.kernels.sums import add_rows

__all__ = ["PATHS", "masked_autoencoder_loss", "masked_autoencoder_loss_reference", "takes_dense_path"]

PATHS = ("auto", "sparse", "dense")
# From this share of observed entries on the matrix products win. Measured by `python -m bench.masked_autoencoder_loss
# crossover` (forward, backward and Adam in float32, H = 500, B = 256, on two cores with AVX-512): the paths draw level
# between 70% and 100% for 1,000 columns, 70% and 85% for 10,000, and never for 100,000.
DENSE_FROM = 0.7


def takes_dense_path(nnz: int, batch: int, num_columns: int) -> bool:
    """The measured rule: whether path="auto" takes the dense path for nnz entries (the more of inputs and outputs)."""
    cells = batch * num_columns
    return cells > 0 and nnz >= DENSE_FROM * cells


class _Options(NamedTuple):
    """What a call knows beside its tensors.

    Attributes:
        updates: of encoder, decoder and decoder bias; None: gradients instead.
    """

    code_activation: int
    activation: int
    loss: int
    sparse_grad: bool
    updates: tuple[RowUpdate | GradStep, RowUpdate | GradStep, RowUpdate | GradStep | None] | None
    plans: tuple[BagPlan | None, BagPlan | None]


def _spread(shape: tuple[int, int], rows: Tensor, columns: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The listed entries as a dense matrix."""
    return torch.zeros(shape, dtype=dtype, device=values.device).index_put((rows, columns), values.to(dtype))


def _step_rows(weight: Tensor, update: RowUpdate | GradStep, rows: Tensor, grads: Tensor) -> None:
    """The optimizer's step on rows, ascending, with their gradients: an entry a row."""
    one_each = torch.arange(rows.shape[0] + 1, dtype=rows.dtype, device=rows.device)
    positions, ones = (one_each, rows), grads.new_ones(rows.shape[0])
    take_step(weight, update, grads, ones, positions, csr_plan(*positions, weight.shape[0]))


def _touched(ctx: Any) -> list[Tensor]:
    """The rows of the encoder and of the decoder that have a gradient."""
    return [
        torch.unique(indices) if plan is None else plan.rows
        for (_, indices), plan in zip((ctx.inputs, ctx.outputs), ctx.options.plans, strict=True)
    ]


def _again(ctx: Any, grad: Tensor, of_predictions: Any) -> tuple[Tensor | None, ...] | Refusal:
    options = ctx.options
    if options.updates is not None:
        return step_refusal("masked_autoencoder_loss", ctx.remembered[4])
    values, targets, entry_weights, *layers = recall(ctx, "masked_autoencoder_loss")

    def composite(*inputs: Any) -> tuple[Tensor, ...]:
        encoder, encoder_bias, decoder, decoder_bias = inputs[6:10]
        indptr, indices = ctx.inputs
        codes = sparse_linear_composite(indptr, indices, values, encoder, encoder_bias, options.code_activation)
        given = (*ctx.outputs, targets, entry_weights, options.activation, options.loss)
        return sampled_linear_loss_composite(codes, decoder, decoder_bias, *given)[:1]

    grads_again = gradient_of(ctx, (grad,), composite, (*[None] * 6, *layers, None))
    if options.sparse_grad:
        for place, rows in zip((6, 8), _touched(ctx), strict=True):
            grads_again[place] = sparse_rows(grads_again[place], rows)
    return tuple(grads_again)


class _DenseLoss(torch.autograd.Function):
    """`trigger` requires a gradient where the step is taken in the backward pass, so that it comes by."""

    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor | None,
        inputs: tuple[Tensor, Tensor],
        values: Tensor,
        outputs: tuple[Tensor, Tensor] | None,
        targets: Tensor | None,
        entry_weights: Tensor | None,
        encoder: Tensor,
        encoder_bias: Tensor | None,
        decoder: Tensor,
        decoder_bias: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        shape = (inputs[0].shape[0] - 1, encoder.shape[0])
        wide, dtype = wide_dtype(encoder.dtype), encoder.dtype
        # Not given twice by the caller: torch.compile takes no tensor twice.
        outputs = inputs if outputs is None else outputs
        targets = values.to(wide) if targets is None else targets
        x = _spread(shape, rows_of(inputs[0], values.shape[0]), inputs[1].long(), values, dtype)
        z = x @ encoder if encoder_bias is None else torch.addmm(encoder_bias, x, encoder)
        codes, _ = activate(z, options.code_activation)
        rows, columns = rows_of(outputs[0], targets.shape[0]), outputs[1].long()
        logits = (codes @ decoder.T)[rows, columns].to(wide)
        if decoder_bias is not None:
            logits = logits + decoder_bias[columns].to(wide)
        losses, predictions, slopes = entry_losses(logits, targets, options.activation, options.loss)
        if entry_weights is not None:
            losses, slopes = losses * entry_weights, slopes * entry_weights
        ctx.options, ctx.inputs, ctx.outputs = options, inputs, outputs
        ctx.encoder, ctx.decoder, ctx.decoder_bias = encoder, decoder, decoder_bias
        ctx.save_for_backward(x, codes, rows, columns, slopes, decoder)
        remember(ctx, values, targets, entry_weights, encoder, encoder_bias, decoder, decoder_bias)
        ctx.mark_non_differentiable(predictions)
        return losses.sum(dtype=torch.float64).to(wide), predictions

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, codes, rows, columns, slopes, _decoder = ctx.saved_tensors
        options, encoder, decoder, decoder_bias = ctx.options, ctx.encoder, ctx.decoder, ctx.decoder_bias
        needed = ctx.needs_input_grad
        slopes = slopes * grad
        d_logits = _spread(x.shape, rows, columns, slopes, x.dtype)
        d_codes = d_logits @ decoder
        if options.code_activation == 1:
            d_codes = torch.ops.aten.sigmoid_backward(d_codes, codes)
        elif options.code_activation == 2:
            d_codes = torch.ops.aten.tanh_backward(d_codes, codes)
        d_encoder = x.T @ d_codes if options.updates or needed[6] else None
        d_decoder = d_logits.T @ codes if options.updates or needed[8] else None
        d_bias = None
        if decoder_bias is not None and (options.updates or needed[9]):
            d_bias = add_rows(slopes.new_zeros(decoder_bias.shape), columns, slopes).to(decoder_bias.dtype)
        d_encoder_bias = d_codes.sum(0) if needed[7] else None
        if options.updates is None and not options.sparse_grad:
            return (*([None] * 6), d_encoder, d_encoder_bias, d_decoder, d_bias, None)
        touched = _touched(ctx)
        if options.updates is None:
            sparse = [
                None if dense is None else coalesced_grad(where.long().unsqueeze(0), dense[where.long()], x.shape[1])
                for dense, where in zip((d_encoder, d_decoder), touched, strict=True)
            ]
            return (*([None] * 6), sparse[0], d_encoder_bias, sparse[1], d_bias, None)
        update_encoder, update_decoder, update_bias = options.updates
        assert d_encoder is not None
        assert d_decoder is not None
        _step_rows(encoder, update_encoder, touched[0], d_encoder[touched[0].long()])
        _step_rows(decoder, update_decoder, touched[1], d_decoder[touched[1].long()])
        if decoder_bias is not None and d_bias is not None and update_bias is not None:
            _step_rows(decoder_bias.reshape(-1, 1), update_bias, touched[1], d_bias[touched[1].long()].unsqueeze(1))
        return (*([None] * 7), d_encoder_bias, *([None] * 3))


# The name by which mypy, which knows no types of torch.autograd.Function, sees it.
_dense_loss: Callable[..., tuple[Tensor, Tensor]] = _DenseLoss.apply
_outside_graph: Callable[..., tuple[Tensor, Tensor]] = torch.compiler.disable(
    lambda *args, **options: masked_autoencoder_loss(*args, **options),
    reason="masked_autoencoder_loss: sparse gradients and updates do not pass torch.compile; use sparse_grad=False",
)


def _check_rows(name: str, indptr: Tensor, indices: Tensor, num_columns: int) -> None:
    """Raise for rows that are not whole, and columns that are out of range, listed twice or out of order.

    One pass over the positions; not on a GPU, where reading them would wait for everything before.
    """
    function, nnz = "masked_autoencoder_loss", indices.shape[0]
    if indices.dim() != 1 or indptr.dim() != 1 or indptr.shape[0] < 1:
        raise ValueError(
            f"{function}: {name}indptr must be [B + 1] and {name}indices [nnz], got {tuple(indptr.shape)} and "
            f"{tuple(indices.shape)}"
        )
    if indptr.dtype != indices.dtype or indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"{function}: {name}indptr and {name}indices must both be int32 or both int64, got {indptr.dtype} and "
            f"{indices.dtype}"
        )
    if torch.compiler.is_compiling() or indices.device.type != "cpu":
        return
    if int(indptr[0]) != 0 or int(indptr[-1]) != nnz or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(f"{function}: {name}indptr must ascend from 0 to {nnz}, the number of {name}indices")
    if not nnz:
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= num_columns:
        position = int(((indices < 0) | (indices >= num_columns)).to(torch.uint8).argmax())
        raise IndexError(
            f"{function}: {name}indices must be in [0, {num_columns}), got {int(indices[position])} at position "
            f"{position}; encode ids with the id map, or enlarge the layers"
        )
    falls = indices[1:] <= indices[:-1]
    starts = indptr[1:-1].long()
    falls[starts[(starts > 0) & (starts < nnz)] - 1] = False  # from one row to the next a column may fall
    if bool(falls.any()):
        position = int(falls.to(torch.uint8).argmax()) + 1
        row = int(torch.searchsorted(indptr, torch.tensor(position, dtype=indptr.dtype), right=True)) - 1
        raise ValueError(
            f"{function}: {name}indices of a row must ascend without repetition, got {int(indices[position])} after "
            f"{int(indices[position - 1])} in row {row} at position {position}; sort the columns of each row and add "
            "up the values of equal ones"
        )


def _check_layers(encoder: Tensor, encoder_bias: Tensor | None, decoder: Tensor, decoder_bias: Tensor | None) -> None:
    function = "masked_autoencoder_loss"
    if encoder.dim() != 2 or decoder.shape != encoder.shape or decoder.dtype != encoder.dtype:
        raise ValueError(
            f"{function}: encoder and decoder must be [N, H] of one dtype, got {tuple(encoder.shape)} in "
            f"{encoder.dtype} and {tuple(decoder.shape)} in {decoder.dtype}"
        )
    for name, bias, size in (
        ("encoder_bias", encoder_bias, encoder.shape[1]),
        ("decoder_bias", decoder_bias, encoder.shape[0]),
    ):
        if bias is not None and (bias.shape != (size,) or bias.dtype != encoder.dtype):
            raise ValueError(
                f"{function}: {name} must be [{size}] in {encoder.dtype}, got {tuple(bias.shape)} in {bias.dtype}"
            )


def _check_words(code_activation: str, activation: str, loss: str, path: str) -> None:
    function = "masked_autoencoder_loss"
    for word, value, choices in (
        ("code_activation", code_activation, ACTIVATIONS),
        ("activation", activation, ACTIVATIONS),
        ("loss", loss, LOSSES),
        ("path", path, PATHS),
    ):
        if value not in choices:
            raise ValueError(f"{function}: {word} must be one of {', '.join(choices)}, got {value!r}")
    if loss == "cross_entropy" and activation != "sigmoid":
        raise ValueError(f"{function}: loss 'cross_entropy' needs activation 'sigmoid', got {activation!r}")


def _check_entries(name: str, values: Tensor | None, indices: Tensor, dtype: torch.dtype) -> None:
    if values is not None and (values.shape != indices.shape or values.dtype != dtype):
        raise ValueError(
            f"masked_autoencoder_loss: {name} must be {tuple(indices.shape)} in {dtype}, got {tuple(values.shape)} in "
            f"{values.dtype}"
        )


def masked_autoencoder_loss(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor,
    decoder_bias: Tensor | None,
    *,
    out_indptr: Tensor | None = None,
    out_indices: Tensor | None = None,
    targets: Tensor | None = None,
    entry_weights: Tensor | None = None,
    code_activation: str = "sigmoid",
    activation: str = "identity",
    loss: str = "squared",
    path: str = "auto",
    sparse_grad: bool = True,
    plan: BagPlan | None = None,
    out_plan: BagPlan | None = None,
    update_encoder: RowUpdate | GradStep | None = None,
    update_decoder: RowUpdate | GradStep | None = None,
    update_decoder_bias: RowUpdate | GradStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of an autoencoder over sparse rows, taken at the observed entries (or at others) only.

        h_b = g(sum over the entries p of row b of values[p] encoder[indices[p]] + encoder_bias)
        a_p = f(h_b . decoder[j] + decoder_bias[j]),  loss = sum_p c_p l(a_p, y_p)
                                                              at the output positions p = (b, j); c: entry_weights, or 1

    f, g and l are those of `sampled_linear_loss`. The loss has a gradient for both layers and their biases; the
    predictions have none. The loss is differentiable any number of times, forwards and through torch.func as
    `embedding` is, but for the step. Under `torch.compile` a training call with sparse
    gradients or updates runs outside the graph (an error with fullgraph=True).

    Args:
        indptr: [B + 1], ascending from 0 to nnz; indices: [nnz] columns in [0, N), ascending within a row without
            repetition; both int32 or both int64. Rows, and the whole batch, may be empty.
        values: [nnz], dtype of encoder.
        encoder: [N, H]; encoder_bias: [H] or None; decoder: [N, H]; decoder_bias: [N] or None; one dtype: float32,
            float64, bfloat16 or float16.
        out_indptr, out_indices: where the loss is taken, as indptr and indices; default: at the entries themselves.
            A denoising autoencoder gives all of its entries here and the corrupted ones as inputs.
        targets: [nnz_out], float32 (float64 beside float64); default: values.
        entry_weights: [nnz_out], dtype of targets; default 1.
        code_activation, activation: g and f: "identity", "sigmoid" or "tanh".
        loss: "squared", "cross_entropy", "logistic" or "hinge".
        path: "sparse", "dense", or "auto": by `takes_dense_path`, from the shapes alone.
        sparse_grad: coalesced sparse gradients of encoder and decoder (the touched rows); dense ones otherwise.
        plan, out_plan: `csr_plan` of the input and of the output positions, where steps share them.
        update_encoder, update_decoder, update_decoder_bias: the optimizer's step on the touched rows, taken in the
            backward pass, as in `sampled_linear_loss`; the first two go together.
    Returns:
        loss [] and predictions a [nnz_out], float32 (float64 beside float64).
    Raises:
        IndexError: a column is out of range.
        ValueError: columns of a row out of order or repeated, and whatever else the message says. Both before anything
            is changed. Under torch.compile and on a GPU the order is not checked.
        TypeError: as the message says.
    Reference: Sedhain et al. 2015 (AutoRec), eq. 1 and 2; Strub et al. 2016 (arXiv 1606.07659), eq. 6.
    """
    function = "masked_autoencoder_loss"
    _check_words(code_activation, activation, loss, path)
    is_composite = is_transformed()
    if is_composite and update_encoder is not None and torch.is_grad_enabled():
        refuse_update(function)
    if torch.compiler.is_compiling() and has_sparse_grad(sparse_grad, update_encoder, encoder, decoder):
        where = {"out_indptr": out_indptr, "out_indices": out_indices, "targets": targets, "plan": plan}
        how = {"code_activation": code_activation, "activation": activation, "loss": loss, "path": path}
        steps = {"update_encoder": update_encoder, "update_decoder": update_decoder}
        return _outside_graph(
            *(indptr, indices, values, encoder, encoder_bias, decoder, decoder_bias),
            **(where | how | steps),
            entry_weights=entry_weights,
            sparse_grad=sparse_grad,
            out_plan=out_plan,
            update_decoder_bias=update_decoder_bias,
        )
    if (update_encoder is None) != (update_decoder is None):
        raise ValueError(f"{function}: update_encoder and update_decoder go together, got one of them")
    if (out_indptr is None) != (out_indices is None) or (out_indptr is not None and targets is None):
        raise ValueError(f"{function}: out_indptr, out_indices and targets must be given together")
    _check_layers(encoder, encoder_bias, decoder, decoder_bias)
    batch, num_columns, wide = indptr.shape[0] - 1, encoder.shape[0], wide_dtype(encoder.dtype)
    _check_rows("", indptr, indices, num_columns)
    _check_entries("values", values, indices, encoder.dtype)
    values = values if is_composite else values.detach()
    is_stepping = update_encoder is not None and torch.is_grad_enabled()
    is_training = is_stepping or (torch.is_grad_enabled() and (encoder.requires_grad or decoder.requires_grad))
    nnz = indices.shape[0]
    is_dense = path == "dense" or (path == "auto" and takes_dense_path(nnz, batch, num_columns))
    if out_indptr is None or out_indices is None:
        if plan is None and is_training and (is_stepping or sparse_grad) and not is_composite:
            plan = csr_plan(indptr, indices, num_columns)
        out_indptr, out_indices, out_plan = indptr, indices, plan
    else:
        _check_rows("out_", out_indptr, out_indices, num_columns)
        if out_indptr.shape != indptr.shape:
            raise ValueError(
                f"{function}: out_indptr must be {tuple(indptr.shape)} like indptr, got {tuple(out_indptr.shape)}"
            )
        is_dense |= path == "auto" and takes_dense_path(out_indices.shape[0], batch, num_columns)
    _check_entries("targets", targets, out_indices, wide)
    _check_entries("entry_weights", entry_weights, out_indices, wide)
    if is_dense and not is_composite:
        if is_training:
            require_csr_plan(function, plan, indptr, indices, num_columns)
            require_csr_plan(function, out_plan, out_indptr, out_indices, num_columns, "out_plan")
        updates = None
        layers = (encoder, encoder_bias, decoder, decoder_bias)
        trigger = None
        if is_stepping and update_encoder is not None and update_decoder is not None:
            updates = (update_encoder, update_decoder, update_decoder_bias)
            bias = None if decoder_bias is None else decoder_bias.detach()
            layers = (encoder.detach(), encoder_bias, decoder.detach(), bias)
            trigger = torch.zeros((), device=encoder.device, requires_grad=True)
        kinds = (ACTIVATIONS.index(code_activation), ACTIVATIONS.index(activation), LOSSES.index(loss))
        options = _Options(*kinds, sparse_grad, updates, (plan, out_plan))
        outputs = None if out_indptr is indptr and out_indices is indices else (out_indptr, out_indices)
        return _dense_loss(trigger, (indptr, indices), values, outputs, targets, entry_weights, *layers, options)
    codes = sparse_linear(
        indptr,
        indices,
        values,
        encoder,
        encoder_bias,
        activation=code_activation,
        sparse_grad=sparse_grad,
        plan=plan,
        update=update_encoder,
    )
    return sampled_linear_loss(
        codes,
        decoder,
        decoder_bias,
        out_indptr,
        out_indices,
        values.to(wide) if targets is None else targets,
        entry_weights=entry_weights,
        activation=activation,
        loss=loss,
        sparse_grad=sparse_grad,
        plan=out_plan,
        update=update_decoder,
        update_bias=update_decoder_bias,
    )
