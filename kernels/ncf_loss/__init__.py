"""Fused loss of neural collaborative filtering: GMF, MLP and NeuMF, forward and backward in one operator.

With user u, item i and label y of an example:

    gmf   = P_g[u] * Q_g[i]
    x_1   = relu(W_1 [P_m[u] ; Q_m[i]] + b_1),  x_l = relu(W_l x_{l-1} + b_l)
    logit = h . [gmf ; x_L] + b
    loss  = scale * sum BCEWithLogits(logit, y)

Either part may be absent: without the MLP it is GMF, and with h = 1 a dot product (biases of users and items fold
into two extra columns of the tables). Reference: He et al. 2017 (arXiv 1708.05031), equations 7, 10, 12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels._autograd import differentiable, gradient_of, is_transformed, recall, remember, sparse_rows
from deeprec.kernels._library import define
from deeprec.kernels.embedding import EmbeddingPlan, coalesced_grad, embedding_plan, require_embedding_plan
from deeprec.kernels.ncf_loss.reference import Gradients, NCFArguments, ncf_logits_reference, ncf_loss_reference

__all__ = ["NCFLoss", "ncf_logits_reference", "ncf_loss", "ncf_loss_reference"]

_MAX_LAYERS = 16


def _fake(*args: Any) -> Gradients:
    given = NCFArguments(*args)
    users, items = given.user_rows.shape[0], given.item_rows.shape[0]
    return (
        given.labels.new_empty(()),
        given.gmf_user.new_empty((users, given.gmf_user.shape[1])),
        given.gmf_item.new_empty((items, given.gmf_item.shape[1])),
        given.mlp_user.new_empty((users, given.mlp_user.shape[1])),
        given.mlp_item.new_empty((items, given.mlp_item.shape[1])),
        [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in given.weights],
        [torch.empty_like(bias, memory_format=torch.contiguous_format) for bias in given.biases],
        torch.empty_like(given.out_weight, memory_format=torch.contiguous_format),
        torch.empty_like(given.out_bias, memory_format=torch.contiguous_format),
    )


define(
    "ncf_loss(Tensor gmf_user, Tensor gmf_item, Tensor mlp_user, Tensor mlp_item, Tensor user_rows, "
    "Tensor user_offsets, Tensor user_order, Tensor item_rows, Tensor item_offsets, Tensor item_order, Tensor labels, "
    "Tensor[] weights, Tensor[] biases, Tensor out_weight, Tensor out_bias, float scale, bool bfloat16) -> "
    "(Tensor loss, Tensor d_gmf_user, Tensor d_gmf_item, Tensor d_mlp_user, Tensor d_mlp_item, Tensor[] d_weights, "
    "Tensor[] d_biases, Tensor d_out_weight, Tensor d_out_bias)",
    ncf_loss_reference,
    _fake,
)


class _Call(NamedTuple):
    """A checked call: what the operator needs, and the parameters in the order of its gradients."""

    user_plan: EmbeddingPlan
    item_plan: EmbeddingPlan
    labels: Tensor
    scale: float
    bfloat16: bool
    num_layers: int
    l2: float
    users: Tensor
    items: Tensor


def _add_l2(table: Tensor, plan: EmbeddingPlan, weight: float, d_table: Tensor) -> Tensor:
    """Add the gradient of sum over positions of weight / 2 |row|^2 to `d_table` [U, D]; returns the sum."""
    rows: Tensor = torch.ops.deeprec.embedding(table, plan.rows)
    weighted = rows * (plan.offsets.diff() * weight).unsqueeze(1).to(rows.dtype)
    d_table.add_(weighted)
    return 0.5 * (weighted * rows).sum()


def _run(call: _Call, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The loss and one gradient for each of `parameters`; those of tables hold only the rows of the plans."""
    tables, rest = parameters[:4], parameters[4:]
    weights, biases = rest[: call.num_layers], rest[call.num_layers : -2]
    out_weight, out_bias = rest[-2:]
    # The C++ kernel is float32; the reference serves float64 (gradient checks) on the CPU too.
    is_float32 = call.labels.dtype == torch.float32
    run: Callable[..., Gradients] = torch.ops.deeprec.ncf_loss if is_float32 else ncf_loss_reference
    loss, *d_tables, d_weights, d_biases, d_out_weight, d_out_bias = run(
        *tables,
        *call.user_plan,
        *call.item_plan,
        call.labels,
        weights,
        biases,
        out_weight.reshape(-1),
        out_bias,
        call.scale,
        call.bfloat16,
    )
    if call.l2:
        plans = ((call.user_plan, call.labels.shape[1]), (call.item_plan, 1)) * 2
        for table, (plan, examples), d_table in zip(tables, plans, d_tables, strict=True):
            if table.shape[1]:
                loss = loss + _add_l2(table, plan, call.l2 * call.scale * examples, d_table)
    return loss, [*d_tables, *d_weights, *d_biases, d_out_weight.view(out_weight.shape), d_out_bias]


def _sparse_indices(call: _Call) -> tuple[Tensor, Tensor]:
    """The rows of users and of items as torch.sparse wants them, [1, U] int64."""
    return call.user_plan.rows.long().unsqueeze(0), call.item_plan.rows.long().unsqueeze(0)


def _composite(
    parameters: Sequence[Tensor],
    users: Tensor,
    items: Tensor,
    labels: Tensor,
    scale: float,
    bfloat16: bool,
    num_layers: int,
    l2: float,
) -> Tensor:
    """The loss in PyTorch's own operators."""
    tables, rest = parameters[:4], parameters[4:]
    weights, biases = rest[:num_layers], rest[num_layers:-2]
    gmf_user, gmf_item, mlp_user, mlp_item = tables
    network = (weights, biases, rest[-2].reshape(-1), rest[-1])
    logits = ncf_logits_reference(gmf_user, gmf_item, mlp_user, mlp_item, users, items, *network, bfloat16=bfloat16)
    loss = scale * F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    for table, ids in zip(tables, (users, items) * 2, strict=True) if l2 else ():
        each = l2 * scale * (items.shape[1] if ids is users else 1)
        loss = loss + 0.5 * each * F.embedding(ids, table).square().sum()
    return loss


def _again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    call: _Call = ctx.call
    users, items, labels, *parameters = recall(ctx, "ncf_loss")

    def composite(_: Any, *parameters: Tensor) -> list[Tensor]:
        how = (call.scale, call.bfloat16, call.num_layers, call.l2)
        return [_composite(parameters, users, items, labels, *how)]

    grads_again = gradient_of(ctx, (grad,), composite, (None, *parameters))
    for place in range(4):
        grads_again[1 + place] = sparse_rows(grads_again[1 + place], (call.user_plan, call.item_plan)[place % 2].rows)
    return tuple(grads_again)


class NCFLoss(torch.autograd.Function):
    """Gradients are computed with the loss; backward hands them out, sparse and coalesced for the tables."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *parameters: Tensor) -> Tensor:
        loss, ctx.gradients = _run(call, parameters)
        ctx.call = call
        remember(ctx, call.users, call.items, call.labels, *parameters)
        ctx.indices = _sparse_indices(call)
        ctx.num_table_rows = [table.shape[0] for table in parameters[:4]]
        return loss

    @staticmethod
    @differentiable(_again)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "ncf_loss: backward must run once, got a second call; the gradients were handed out without a copy, so "
                "call ncf_loss again, or sum the losses before backward()"
            )
        gradients: list[Tensor | None] = ctx.gradients
        ctx.gradients = None  # so that autograd can store them as .grad without a copy
        for index, is_needed in enumerate(ctx.needs_input_grad[1:]):
            if not is_needed:
                gradients[index] = None
        # Reading one number is free on the CPU and would be a synchronisation elsewhere.
        if grad_output.device.type != "cpu" or float(grad_output) != 1.0:
            gradients = [None if gradient is None else gradient.mul_(grad_output) for gradient in gradients]
        for table in range(4):
            values = gradients[table]
            if values is not None:
                gradients[table] = coalesced_grad(ctx.indices[table % 2], values, ctx.num_table_rows[table])
        return (None, *gradients)


def _error(requirement: str, value: object, remedy: str = "") -> ValueError:
    return ValueError(f"ncf_loss: {requirement}, got {value}" + (f"; {remedy}" if remedy else ""))


def _check_tables(gmf_user: Tensor, gmf_item: Tensor, mlp_user: Tensor, mlp_item: Tensor) -> None:
    for name, user, item in (("gmf", gmf_user, gmf_item), ("mlp", mlp_user, mlp_item)):
        if user.dim() != 2:
            raise _error(f"{name}_user must be [num_users, width]", tuple(user.shape))
        if item.dim() != 2:
            raise _error(f"{name}_item must be [num_items, width]", tuple(item.shape))
    if gmf_user.shape[1] != gmf_item.shape[1]:
        raise _error(f"gmf_item must be {gmf_user.shape[1]} wide, as gmf_user is", tuple(gmf_item.shape))
    for side, gmf, mlp in (("user", gmf_user, mlp_user), ("item", gmf_item, mlp_item)):
        if gmf.shape[0] != mlp.shape[0]:
            raise _error(f"mlp_{side} must have the {gmf.shape[0]} rows of gmf_{side}", mlp.shape[0])


def _check_batch(users: Tensor, items: Tensor, labels: Tensor) -> None:
    shape = items.shape
    if users.dim() != 1:
        raise _error("users must be [G]", tuple(users.shape), "one user a row of items")
    if len(shape) != 2 or shape[0] != users.shape[0] or shape[1] == 0:
        remedy = "one row of items for each of users; pairs are items[:, None]"
        raise _error(f"items must be [{users.shape[0]}, 1 + n]", tuple(shape), remedy)
    if labels.shape != shape:
        raise _error(f"labels must be {tuple(shape)}, the shape of items", tuple(labels.shape))


def _check_network(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    width: int,
    gmf_width: int,
    out_weight: Tensor,
    out_bias: Tensor,
) -> None:
    if len(weights) > _MAX_LAYERS:
        raise _error(f"weights must be at most {_MAX_LAYERS} layers", len(weights))
    if len(biases) != len(weights):
        raise _error(f"biases must be {len(weights)}, one for each of weights", len(biases), "pass zeros for none")
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        shape = weight.shape
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            remedy = "the first layer reads [user ; item], each other the layer before it"
            raise _error(f"weights[{layer}] must be [H, {width}]", tuple(shape), remedy)
        width = shape[0]
        if bias.shape != (width,):
            raise _error(f"biases[{layer}] must be [{width}]", tuple(bias.shape))
    last = gmf_width + (width if weights else 0)
    if out_weight.shape not in ((last,), (1, last)):
        requirement = f"out_weight must be [{last}] or [1, {last}], GMF width and last layer"
        raise _error(requirement, tuple(out_weight.shape))
    if out_bias.shape != (1,):
        raise _error("out_bias must be [1] or None", tuple(out_bias.shape))


def _check(
    tables: Sequence[Tensor | None],
    users: Tensor,
    items: Tensor,
    labels: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None,
) -> list[Tensor]:
    """All parameters in the operator's order, absent tables zero columns wide, after every check but that of ids."""
    gmf_user, gmf_item, mlp_user, mlp_item = tables
    for name, user, item in (("gmf", gmf_user, gmf_item), ("mlp", mlp_user, mlp_item)):
        if (user is None) != (item is None):
            raise _error(f"{name}_user and {name}_item go together", "only one of them")
    template = gmf_user if gmf_user is not None else mlp_user
    other = gmf_item if gmf_item is not None else mlp_item
    if template is None or other is None:
        raise _error("needs GMF tables, MLP tables or both", "neither")
    if (mlp_user is None) != (len(weights) == 0):
        raise _error("MLP tables and weights go together", f"{len(weights)} weights")
    present = [
        given if given is not None else like.new_empty((like.shape[0], 0))
        for given, like in ((gmf_user, template), (gmf_item, other), (mlp_user, template), (mlp_item, other))
    ]
    _check_tables(*present)
    _check_batch(users, items, labels)
    out_bias = out_weight.new_zeros(1) if out_bias is None else out_bias
    _check_network(
        weights, biases, present[2].shape[1] + present[3].shape[1], present[0].shape[1], out_weight, out_bias
    )
    dtype = template.dtype
    if dtype not in (torch.float32, torch.float64):
        raise _error("tables must be float32 (or float64)", dtype, "use .float()")
    parameters = [*present, *weights, *biases, out_weight, out_bias]
    for parameter in parameters:
        if parameter.dtype != dtype:
            raise _error(f"every table, weight and bias must be {dtype}", parameter.dtype)
    return parameters


def _plan_of(ids: Tensor, num_embeddings: int, plan: EmbeddingPlan | None, side: str) -> EmbeddingPlan:
    """The plan that was given, checked, or a new one."""
    if plan is None:
        try:
            return embedding_plan(ids, num_embeddings, name=f"{side}s")
        except (IndexError, TypeError) as error:
            text = str(error).replace(f" of table '{side}s'", "").replace("embedding_plan: ids", f"ncf_loss: {side}s")
            raise type(error)(text) from None
    require_embedding_plan("ncf_loss", plan, ids, num_embeddings, f"{side}_plan")
    return plan


def _catch_up(tables: Sequence[Tensor], user_rows: Tensor, item_rows: Tensor) -> None:
    """Bring the rows about to be read up to date, where an optimizer has left word of how (`deeprec.nn.embedding`)."""
    hooks, rows = [], []
    for index, table in enumerate(tables):
        hook = getattr(table, "_deeprec_catch_up", None)
        if hook is not None:
            hooks.append(hook)
            rows.append(item_rows if index % 2 else user_rows)
    together = getattr(type(hooks[0]), "together", None) if len(hooks) > 1 else None
    if together is not None and all(type(hook) is type(hooks[0]) for hook in hooks):
        together(hooks, rows)
        return
    for hook, touched in zip(hooks, rows, strict=True):
        hook(touched)


def _accumulate_gradients(call: _Call, parameters: Sequence[Tensor]) -> Tensor:
    """What backward() of the loss would do, without autograd: the gradients go to `.grad` right away."""
    if any(parameter.requires_grad and not parameter.is_leaf for parameter in parameters):
        raise _error("accumulate_grad needs leaf parameters", "the result of an operation", "use .backward()")
    with torch.no_grad():
        loss, gradients = _run(call, parameters)
        indices = _sparse_indices(call)
        for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if parameter.requires_grad:
                if index < 4:
                    gradient = coalesced_grad(indices[index % 2], gradient, parameter.shape[0])
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return loss


def ncf_loss(
    gmf_user: Tensor | None,
    gmf_item: Tensor | None,
    mlp_user: Tensor | None,
    mlp_item: Tensor | None,
    users: Tensor,
    items: Tensor,
    labels: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor | None = None,
    *,
    reduction: str = "mean",
    precision: str = "float32",
    l2: float = 0.0,
    accumulate_grad: bool = False,
    user_plan: EmbeddingPlan | None = None,
    item_plan: EmbeddingPlan | None = None,
) -> Tensor:
    """Binary cross-entropy of GMF, MLP or NeuMF over groups of one user and 1 + n items, with fused gradients.

        logit = h . [P_g[u] * Q_g[i] ; x_L] + b,  x_l = relu(W_l x_{l-1} + b_l),  x_0 = [P_m[u] ; Q_m[i]]

    Unique rows are looked up, and run through the first layer, once a batch. `backward()` gives the tables coalesced
    sparse gradients (autograd drops their flag `is_coalesced`, not the fact), which `deeprec.train.optim` consumes. The
    same bits for any number of threads; on a GPU in every run in which matrix products repeat theirs
    (`kernels/README.md`), for which its sums sort the users and items of the batch. backward() runs once a call, unless
    with create_graph=True: the loss is differentiable any number of times, forwards and through torch.func as
    `embedding` is. Under `torch.compile` the reference formulas are traced instead, and the tables get dense gradients,
    because AOTAutograd has no sparse ones.

    Args:
        gmf_user, gmf_item: tables [num_users, D], [num_items, D], or both None for no GMF part.
        mlp_user, mlp_item: tables [num_users, E_u], [num_items, E_i], or both None for no MLP part.
        users: [G], int32 or int64.
        items: [G, 1 + n], int32 or int64; any n >= 0.
        labels: [G, 1 + n], 0 to 1, converted to the dtype of out_weight. Not checked: a label outside or a NaN gives
            the formula's value.
        weights: W_l [H_l, H_{l-1}] with H_0 = E_u + E_i as in torch.nn.Linear, at most 16; empty without MLP tables.
        biases: b_l [H_l].
        out_weight: h, [D + H_L] or [1, D + H_L] as in torch.nn.Linear. out_bias: b, [1], or None for 0.
        reduction: "mean" over the G (1 + n) examples, or "sum".
        precision: "float32", or "bfloat16" for bfloat16 inputs to the layers' products; they accumulate in float32,
            and everything else stays in float32.
        l2: each example adds l2 / 2 times the squared norms of its four table rows to its loss, >= 0 (Rendle et al.
            2020, arXiv 2005.09683, section 3.1 regularise their dot product so).
        accumulate_grad: add the gradients to `.grad` of the leaf parameters right away and return a loss without a
            graph: what `ncf_loss(...).backward()` does, without autograd's 60 microseconds a call.
        user_plan, item_plan: `embedding_plan` of users and of items, where the caller has them already.
    Returns:
        loss, []; 0 for an empty batch. All floating tensors are float32 (or float64, through the reference).
    Raises:
        ValueError: a shape, dtype or option does not fit. IndexError: an id is out of range.
    Reference: He et al. 2017 (arXiv 1708.05031), equations 7, 10, 12.
    """
    if reduction not in ("mean", "sum"):
        raise _error('reduction must be "mean" or "sum"', repr(reduction))
    if precision not in ("float32", "bfloat16"):
        raise _error('precision must be "float32" or "bfloat16"', repr(precision))
    if not l2 >= 0:
        raise _error("l2 must be >= 0", l2)
    tables = gmf_user, gmf_item, mlp_user, mlp_item
    parameters = _check(tables, users, items, labels, weights, biases, out_weight, out_bias)
    scale = 1.0 if reduction == "sum" else 1.0 / max(1, items.numel())
    labels = labels.to(out_weight.dtype)
    how = (scale, precision == "bfloat16", len(weights), l2)
    if torch.compiler.is_compiling() or is_transformed():
        if accumulate_grad:
            raise _error("accumulate_grad must be False under torch.compile and torch.func", True, "call backward()")
        return _composite(parameters, users, items, labels, *how)
    user_plan = _plan_of(users, parameters[0].shape[0], user_plan, "user")
    item_plan = _plan_of(items, parameters[1].shape[0], item_plan, "item")
    _catch_up(parameters[:4], user_plan.rows, item_plan.rows)
    call = _Call(user_plan, item_plan, labels, *how, users, items)
    if accumulate_grad:
        return _accumulate_gradients(call, parameters)
    loss: Tensor = NCFLoss.apply(call, *parameters)  # type: ignore[no-untyped-call]
    return loss
