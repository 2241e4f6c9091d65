"""Plain PyTorch definition of `ncf_loss`: the formulas of He et al. 2017, forward and backward, for any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels._checks import check_index, require
from deeprec.kernels.sums import add_rows

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], Tensor, Tensor]


class NCFArguments(NamedTuple):
    """What the operator takes, in the order of its schema.

    Attributes:
        gmf_user, gmf_item, mlp_user, mlp_item: tables, as in `ncf_logits_reference`.
        user_rows, user_offsets, user_order: the plan of users [G]; item_*: the plan of items [G, 1 + n] flattened.
        labels: [G, 1 + n].
        weights, biases, out_weight, out_bias, bfloat16: as in `ncf_logits_reference`.
        scale: factor of the summed loss and of the gradients.
    """

    gmf_user: Tensor
    gmf_item: Tensor
    mlp_user: Tensor
    mlp_item: Tensor
    user_rows: Tensor
    user_offsets: Tensor
    user_order: Tensor
    item_rows: Tensor
    item_offsets: Tensor
    item_order: Tensor
    labels: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_weight: Tensor
    out_bias: Tensor
    scale: float
    bfloat16: bool

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tables in their order."""
        return self[:4]

    @property
    def plans(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The plan of users and that of items."""
        return self[4:7], self[7:10]


def _rounded(x: Tensor, bfloat16: bool) -> Tensor:
    """`x` as it enters a product: rounded to bfloat16 if asked, in its own dtype either way."""
    return x.bfloat16().to(x.dtype) if bfloat16 else x


def ncf_logits_reference(
    gmf_user: Tensor,
    gmf_item: Tensor,
    mlp_user: Tensor,
    mlp_item: Tensor,
    users: Tensor,
    items: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
    bfloat16: bool = False,
) -> Tensor:
    """Logits h . [p_u * q_i ; x_L] + b with x_l = relu(W_l x_{l-1} + b_l), x_0 = [p'_u ; q'_i]; differentiable.

    Args:
        gmf_user, gmf_item: tables [num_users, D], [num_items, D]; D = 0 for no GMF part.
        mlp_user, mlp_item: tables [num_users, E_u], [num_items, E_i]; not read without `weights`.
        users: [G]. items: [G, 1 + n].
        weights, biases: W_l [H_l, H_{l-1}] with H_0 = E_u + E_i, b_l [H_l].
        out_weight: h, [D + H_L]. out_bias: b, [1].
        bfloat16: round the inputs of the layers' products to bfloat16.
    Returns:
        [G, 1 + n].
    """
    gmf_width = gmf_user.shape[1]
    logits = (
        (F.embedding(users, gmf_user)[:, None] * F.embedding(items, gmf_item)) @ out_weight[:gmf_width]
    ) + out_bias
    if not weights:
        return logits
    left = F.embedding(users, mlp_user)[:, None].expand(*items.shape, -1)
    x = torch.cat([left, F.embedding(items, mlp_item)], dim=-1)
    for weight, bias in zip(weights, biases, strict=True):
        x = F.relu(_rounded(x, bfloat16) @ _rounded(weight, bfloat16).T + bias)
    return logits + x @ out_weight[gmf_width:]


def _positions(rows: Tensor, offsets: Tensor, order: Tensor) -> Tensor:
    """The index into `rows` of each position: the inverse of the plan, [nnz]."""
    rows, offsets, order = rows.reshape(-1), offsets.reshape(-1), order.reshape(-1)
    counts = offsets.long().diff()
    index = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts, output_size=len(order))
    return torch.empty_like(index).scatter_(0, order.long(), index)


def _check(arguments: NCFArguments) -> None:
    labels, weights, biases, out_weight, out_bias, _, _ = arguments[10:]
    function, dtype, tables = "ncf_loss", labels.dtype, arguments.tables
    require(dtype in (torch.float32, torch.float64), function, "labels must be float32 or float64", labels)
    named = {"a table": (2, tables), "labels": (2, [labels]), "weights": (2, weights), "biases": (1, biases)}
    named["out_weight and out_bias"] = (1, [out_weight, out_bias])
    for name, (dims, tensors) in named.items():
        for given in tensors:
            requirement = f"{name} must be of {dims} dimensions and {dtype}"
            require(given.dim() == dims and given.dtype == dtype, function, requirement, given)
    gmf_user, gmf_item, mlp_user, mlp_item = tables
    groups, size = labels.shape
    require(len(weights) == len(biases) <= 16, function, "needs as many biases as weights, at most 16", len(biases))
    require(size > 0 or groups == 0, function, "labels must be [groups, 1 + n]", labels)
    requirement = f"GMF tables must be equally wide ({gmf_user.shape[1]})"
    require(gmf_item.shape[1] == gmf_user.shape[1], function, requirement, gmf_item)
    rows = [(mlp if weights else gmf).shape[0] for gmf, mlp in ((gmf_user, mlp_user), (gmf_item, mlp_item))]
    if weights and gmf_user.shape[1]:
        same = (gmf_user.shape[0], gmf_item.shape[0]) == (rows[0], rows[1])
        require(same, function, "the GMF and MLP tables must have equally many rows", (gmf_user.shape, gmf_item.shape))
    width = mlp_user.shape[1] + mlp_item.shape[1]
    for weight, bias in zip(weights, biases, strict=True):
        has_shape = weight.shape == (bias.numel(), width) and bias.numel() > 0
        require(has_shape, function, f"weights must be [{bias.numel()}, {width}]", weight)
        width = bias.numel()
    last = gmf_user.shape[1] + (width if weights else 0)
    has_shape = out_weight.numel() == last and out_bias.numel() == 1
    require(has_shape, function, f"out_weight must be [{last}] and out_bias [1]", out_weight)
    for (side, plan), count, table_rows in zip(
        zip(("user", "item"), arguments.plans, strict=True), (groups, groups * size), rows, strict=True
    ):
        _check_plan(side, plan, count, table_rows)


def _check_plan(side: str, plan: tuple[Tensor, Tensor, Tensor], count: int, num_rows: int) -> None:
    function = "ncf_loss"
    rows, offsets, order = plan
    for name, given in (("rows", rows), ("offsets", offsets), ("order", order)):
        check_index(function, f"{side}_{name}", given)
    covers = order.numel() == count and offsets.numel() == rows.numel() + 1
    require(covers, function, f"the plan of {side}s must cover {count} of them; make it with embedding_plan", order)
    if rows.device.type != "cpu":
        return
    bounds, places = offsets.reshape(-1), order.reshape(-1)
    rises = int(bounds[0]) == 0 and int(bounds[-1]) == count and bool((bounds[1:] > bounds[:-1]).all())
    require(rises, function, f"{side}_offsets must rise from 0 to {count}", bounds.tolist()[:8])
    is_there = bool(((rows >= 0) & (rows < num_rows)).all())
    require(is_there, function, f"{side}_rows must be in [0, {num_rows})", rows.reshape(-1).tolist()[:8])
    is_whole = bool((places.sort().values == torch.arange(count)).all())
    require(is_whole, function, f"{side}_order must name every position once", places.tolist()[:8])


def ncf_loss_reference(*args: Any) -> Gradients:
    """Loss and every gradient; the first layer runs once per unique row, as in the kernel.

    Args:
        args: the fields of `NCFArguments`.
    Returns:
        loss [], gradients of the unique rows [U_u, D], [U_i, D], [U_u, E_u], [U_i, E_i], of weights, biases,
        out_weight and out_bias.
    """
    given = NCFArguments(*args)
    _check(given)
    gmf_user, gmf_item, mlp_user, mlp_item = given.tables
    labels, weights, biases, out_weight, out_bias, scale, bfloat16 = given[10:]
    user_plan, item_plan = given.plans
    user_index = _positions(*user_plan).repeat_interleave(labels.shape[1])  # [B]
    item_index = _positions(*item_plan)
    user_rows, item_rows, y = user_plan[0].reshape(-1).long(), item_plan[0].reshape(-1).long(), labels.reshape(-1)
    gmf_width, user_width = gmf_user.shape[1], mlp_user.shape[1]
    h_gmf, h_mlp = out_weight[:gmf_width], out_weight[gmf_width:]

    p, q = gmf_user[user_rows], gmf_item[item_rows]
    product = p[user_index] * q[item_index]
    logits = product @ h_gmf + out_bias
    low_weights = [_rounded(weight, bfloat16) for weight in weights]
    embedded = [_rounded(mlp_user[user_rows], bfloat16), _rounded(mlp_item[item_rows], bfloat16)]
    inputs: list[Tensor] = []  # inputs[l] is x_{l+1}, the input of weights[l + 1]
    if weights:
        first = embedded[0] @ low_weights[0][:, :user_width].T + biases[0]
        x = F.relu(first[user_index] + (embedded[1] @ low_weights[0][:, user_width:].T)[item_index])
        for weight, bias in zip(low_weights[1:], biases[1:], strict=True):
            inputs.append(_rounded(x, bfloat16))
            x = F.relu(inputs[-1] @ weight.T + bias)
        logits = logits + x @ h_mlp

    loss = scale * F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
    g = scale * (logits.sigmoid() - y)
    d_p = add_rows(torch.zeros_like(p), user_index, g[:, None] * q[item_index]) * h_gmf
    d_q = add_rows(torch.zeros_like(q), item_index, g[:, None] * p[user_index]) * h_gmf
    d_out_weight = product.T @ g
    d_weights: list[Tensor] = []
    d_biases: list[Tensor] = []
    d_mlp = [torch.zeros_like(embedded[0]), torch.zeros_like(embedded[1])]
    if weights:
        d_out_weight = torch.cat([d_out_weight, x.T @ g])
        d_x = g[:, None] * h_mlp * (x > 0)
        for weight, before in zip(reversed(low_weights[1:]), reversed(inputs), strict=True):
            d_biases.append(d_x.sum(0))
            d_x = _rounded(d_x, bfloat16)
            d_weights.append(d_x.T @ before)
            d_x = (d_x @ weight) * (before > 0)
        d_biases.append(d_x.sum(0))
        d_first = []
        for side, index in enumerate((user_index, item_index)):
            rows = embedded[side]
            d_rows = _rounded(add_rows(d_x.new_zeros(len(rows), d_x.shape[1]), index, d_x), bfloat16)
            d_first.append(d_rows.T @ rows)
            half = low_weights[0][:, user_width:] if side else low_weights[0][:, :user_width]
            d_mlp[side] = d_rows @ half
        d_weights.append(torch.cat(d_first, dim=1))
    return loss, d_p, d_q, d_mlp[0], d_mlp[1], d_weights[::-1], d_biases[::-1], d_out_weight, g.sum().reshape(1)
