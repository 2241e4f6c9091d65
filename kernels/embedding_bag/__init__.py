"""Lookup and pooling over several embedding tables in one call, with the gradient by row and the optimizer's step.

`embedding_bags` serves any number of tables of mixed width; `embedding_bag` is the call of
`torch.nn.functional.embedding_bag`. The gradient is coalesced: each touched row once, its entries added in a fixed
order, bitwise the same for any number of threads. With `update=` the optimizer's step is taken in the backward pass,
while a row's gradient is still in the cache; gradients of tables are then never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels._autograd import (
    Refusal,
    differentiable,
    gradient_of,
    is_transformed,
    refuse_update,
    sparse_rows,
    step_refusal,
)
from deeprec.kernels._errors import translate
from deeprec.kernels.embedding import coalesced_grad
from deeprec.kernels.embedding_bag.checks import MAX, is_pooled, num_bags
from deeprec.kernels.embedding_bag.composite import embedding_bags_composite, equal_bags_composite
from deeprec.kernels.embedding_bag.reference import (
    embedding_bag_reference,
    embedding_bags_dense_grad_reference,
    embedding_bags_grad_reference,
    embedding_bags_plan_reference,
    embedding_bags_reference,
    embedding_bags_update_reference,
)
from deeprec.kernels.plan_check import PlanFacts, remember_source, require_plan

__all__ = ["MODES", "BagPlan", "GradStep", "RowUpdate", "embedding_bag", "embedding_bags", "embedding_bags_plan"]

MODES = ("sum", "mean", "max", "none")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class BagPlan(NamedTuple):
    """The entries of a batch grouped by table and row; made by `embedding_bags_plan`.

    Attributes:
        rows: the distinct ids of each table in ascending order, table after table, [U], dtype of the ids.
        row_offsets: where each row's entries begin in `order`, [U + 1], int32 (int64 from 2^31 entries on).
        order: entries grouped by row, ascending within a row, padding left out, dtype of row_offsets.
        bags: the bag of each entry, [nnz], dtype of row_offsets; empty where each bag is one id.
        table_starts: where each table's rows begin in `rows`, [T + 1], int64.
    """

    rows: Tensor
    row_offsets: Tensor
    order: Tensor
    bags: Tensor
    table_starts: Tensor


class RowUpdate(NamedTuple):
    """An optimizer's step to be taken in the backward pass; the states are changed in place.

    Attributes:
        rule: 0 SGD, 1 Adagrad, 2 row-wise Adagrad, 3 Adam on the touched rows ("lazy"), 4 FTRL-proximal.
        first: one state a table: momentum (rule 0; may be empty), sum of squares [R, D] or [R] (rules 1, 4; 2),
            first moment (rule 3); float32 (float64 for float64 tables).
        second: second moments (rule 3), FTRL's linear terms (rule 4), else empty.
        lr: learning rate, one float64 on the CPU; a tensor, so that a schedule does not recompile the graph.
        step: steps taken so far, one int64 on the CPU; counted up by the update.
        options: eps, weight_decay, beta1 (rule 0: momentum), beta2; rule 4: beta, 0, l1, l2.
        max_norm: the gradient of all tables together is scaled down to this norm; 0: as it is.
        seed: of the stochastic rounding of bfloat16 tables; -1: round to nearest.
    """

    rule: int
    first: list[Tensor]
    second: list[Tensor]
    lr: Tensor
    step: Tensor
    options: list[float]
    max_norm: float = 0.0
    seed: int = -1


# What takes the step on the gradients of a batch, where no RowUpdate says it: rows [U_t], ascending, and gradients
# [U_t, D_t] of each table.
GradStep: TypeAlias = Callable[[list[Tensor], list[Tensor]], None]


def _bags_fake(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    tables: Sequence[int],
    modes: Sequence[int],
    padding: Sequence[int],
) -> list[Tensor]:
    batch = num_bags(ids, offsets, len(tables))
    width = sum(weights[t].shape[1] for t, m in zip(tables, modes, strict=True) if is_pooled(m, offsets))
    has_max = MAX in modes and offsets is not None
    out = [weights[0].new_empty(batch, width), ids.new_empty((batch, width) if has_max else (0,))]
    for table, mode in zip(tables, modes, strict=True):
        if not is_pooled(mode, offsets):
            # A lone unpooled feature has all ids; of several, each has as many as the offsets say.
            length = ids.shape[0] if len(tables) == 1 else torch.library.get_ctx().new_dynamic_size()
            out.append(weights[0].new_empty(length, weights[table].shape[1]))
    return out


def _plan_fake(
    ids: Tensor, offsets: Tensor | None, num_embeddings: Sequence[int], tables: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    rows = context.new_dynamic_size()
    position = torch.int32  # a traced batch of 2^31 ids is out of reach; the real operator switches by itself
    entries = context.new_dynamic_size() if any(pad >= 0 for pad in padding) else ids.numel()
    return (
        ids.new_empty(rows),
        ids.new_empty(rows + 1, dtype=position),
        ids.new_empty(entries, dtype=position),
        ids.new_empty(0 if offsets is None else ids.numel(), dtype=position),
        ids.new_empty(len(num_embeddings) + 1, dtype=torch.int64),
    )


def _scale_grad_fake(weights: Sequence[Tensor], per_sample_weights: Tensor | None, is_needed: bool) -> Tensor:
    if per_sample_weights is None or not is_needed:
        return weights[0].new_empty(0)
    return torch.empty_like(per_sample_weights, memory_format=torch.contiguous_format)


def _grad_fake(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    per_sample_weights, is_needed = args[5], args[-1]
    context = torch.library.get_ctx()
    values = [w.new_empty(context.new_dynamic_size(), w.shape[1]) for w in weights]
    return [*values, _scale_grad_fake(weights, per_sample_weights, is_needed)]


def _dense_grad_fake(weights: Sequence[Tensor], *args: Any) -> list[Tensor]:
    per_sample_weights, is_needed = args[5], args[-1]
    values = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    return [*values, _scale_grad_fake(weights, per_sample_weights, is_needed)]


def _update_fake(weights: Sequence[Tensor], first: Any, second: Any, *args: Any) -> Tensor:
    return _scale_grad_fake(weights, args[5], args[14])


def _bag_fake(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: int,
    padding: int,
    include_last_offset: bool,
) -> Tensor:
    batch = ids.shape[0] if offsets is None else offsets.shape[0] - int(include_last_offset)
    return weight.new_empty(batch, weight.shape[1])


_FEATURES = "int[] tables, int[] modes, int[] padding"
_INPUT = "Tensor ids, Tensor? offsets, Tensor? per_sample_weights"
_GRADS = "Tensor grad, Tensor[] sequence_grads, Tensor argmax"
_PLAN = "Tensor rows, Tensor row_offsets, Tensor order, Tensor bags, Tensor table_starts"
RULE = "int rule, Tensor lr, Tensor(d!) step, float[] options, float max_norm, int seed"
_library.define(
    f"embedding_bags(Tensor[] weights, {_INPUT}, {_FEATURES}) -> Tensor[]", embedding_bags_reference, _bags_fake
)
_library.define(
    f"embedding_bag(Tensor weight, {_INPUT}, int mode, int padding, bool include_last_offset) -> Tensor",
    embedding_bag_reference,
    _bag_fake,
)
_library.define(
    "embedding_bags_plan(Tensor ids, Tensor? offsets, int[] num_embeddings, int[] tables, int[] padding) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    embedding_bags_plan_reference,
    _plan_fake,
)
_library.define(
    f"embedding_bags_grad(Tensor[] weights, {_GRADS}, {_INPUT}, {_PLAN}, {_FEATURES}, bool need_weights_grad) "
    "-> Tensor[]",
    embedding_bags_grad_reference,
    _grad_fake,
)
_library.define(
    f"embedding_bags_dense_grad(Tensor[] weights, {_GRADS}, {_INPUT}, {_FEATURES}, bool need_weights_grad) -> Tensor[]",
    embedding_bags_dense_grad_reference,
    _dense_grad_fake,
)
_library.define(
    f"embedding_bags_update_(Tensor(a!)[] weights, Tensor(b!)[] first, Tensor(c!)[] second, {_GRADS}, {_INPUT}, "
    f"{_PLAN}, {_FEATURES}, bool need_weights_grad, {RULE}) -> Tensor",
    embedding_bags_update_reference,
    _update_fake,
)
_library.implement_triton(
    "embedding_bag",
    (
        "embedding_bags",
        "embedding_bags_plan",
        "embedding_bags_grad",
        "embedding_bags_dense_grad",
        "embedding_bags_update_",
    ),
)


def raise_named(error: Exception, names: Sequence[str]) -> None:
    """Raise what a kernel meant, with the name of a table in place of its number."""
    meant = translate(error) if isinstance(error, RuntimeError) else error
    text = str(meant)
    for number, name in enumerate(names):
        if name:
            text = text.replace(f"of table {number} must", f"of table {name!r} must")
    if isinstance(meant, IndexError) and "remedy" not in text:
        text += "; encode ids with the table's id map, or enlarge num_embeddings"
        raise IndexError(text) from None
    raise meant from None


def mark_changed(tables: Iterable[Tensor]) -> None:
    """Tell autograd that a kernel wrote to `tables`: a backward pass that saved one of them is then an error."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tables)


class Call(NamedTuple):
    """What a call knows beside its tensors: hashable, so torch.compile guards on it."""

    tables: tuple[int, ...]
    modes: tuple[int, ...]
    padding: tuple[int, ...]
    names: tuple[str, ...]

    def features(self) -> tuple[list[int], list[int], list[int]]:
        """tables, modes and padding as the operators take them."""
        return list(self.tables), list(self.modes), list(self.padding)


def _forward(weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, scale: Tensor | None, call: Call) -> Any:
    arguments = (list(weights), ids, offsets, scale, *call.features())
    if torch.compiler.is_compiling():
        return torch.ops.deeprec.embedding_bags(*arguments)
    try:
        return torch.ops.deeprec.embedding_bags(*arguments)
    except (RuntimeError, IndexError) as error:
        return raise_named(error, call.names)


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
        pooled, argmax, *sequences = _forward(weights, ids, offsets, scale, call)
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
        offsets = rest.pop(0) if ctx.has_offsets else None
        scale = rest.pop(0) if ctx.has_scale else None
        return grads[0], list(grads[1:]), argmax, ids, offsets, scale

    @staticmethod
    def plan(ctx: Any, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor, ...]:
        """The plan of the batch."""
        if ctx.given_plan is not None:
            given: tuple[Tensor, ...] = ctx.given_plan
            return given
        sizes = [w.shape[0] for w in ctx.weights]
        plan: tuple[Tensor, ...] = torch.ops.deeprec.embedding_bags_plan(
            ids, offsets, sizes, list(ctx.call.tables), list(ctx.call.padding)
        )
        return plan

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
        rows = [plan[0][first:last] for first, last in pairwise(plan[-1].tolist())]
        return rows, values, scale_grad if need_scale else None

    @staticmethod
    def again(ctx: Any, grads: Sequence[Tensor]) -> list[Any]:
        """The gradients by the composite, those of the tables dense."""
        _, _, _, ids, offsets, scale = _Bags.arguments(ctx, grads)

        def composite(ids: Tensor, offsets: Any, scale: Any, call: Call, _: Any, *weights: Tensor) -> list[Tensor]:
            return embedding_bags_composite(weights, ids, offsets, scale, *call.features())

        return gradient_of(ctx, grads, composite, (ids, offsets, scale, ctx.call, None, *ctx.weights))


def _sparse_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    _, _, _, ids, offsets, _ = _Bags.arguments(ctx, grads)
    rows, *_, starts = _Bags.plan(ctx, ids, offsets)
    found = _Bags.again(ctx, grads)
    touched = [rows[first:last] for first, last in pairwise(starts.tolist())]
    return (*found[:5], *map(sparse_rows, found[5:], touched))


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
_sparse_bags: Callable[..., tuple[Tensor, ...]] = _SparseGradBags.apply
_dense_bags: Callable[..., tuple[Tensor, ...]] = _DenseGradBags.apply
_updated_bags: Callable[..., tuple[Tensor, ...]] = _UpdatedBags.apply


_stepped_bags: Callable[..., tuple[Tensor, ...]] = torch.compiler.disable(
    lambda *args: _SteppedBags.apply(*args),  # type: ignore[no-untyped-call]
    reason="embedding_bags: this optimizer's step in the backward pass does not pass torch.compile; use another mode",
)
_sparse_bags_outside_graph: Callable[..., tuple[Tensor, ...]] = torch.compiler.disable(
    lambda *args: _sparse_bags(*args),
    reason="embedding_bags: sparse gradients do not pass torch.compile; use sparse_grad=False",
)


def _check_input(
    function: str, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, scale: Tensor | None, features: int
) -> None:
    if not weights or any(w.dim() != 2 for w in weights):
        shapes = [tuple(w.shape) for w in weights]
        raise ValueError(f"{function}: weights must be tables [R, D], at least one, got {shapes}")
    if len({(w.dtype, w.device) for w in weights}) > 1:
        kinds = sorted({f"{w.dtype} on {w.device}" for w in weights})
        raise ValueError(
            f"{function}: all tables must have one dtype and device, got {kinds}; use a call for each kind"
        )
    if weights[0].dtype not in DTYPES:
        raise TypeError(
            f"{function}: tables must be float32, float64, bfloat16 or float16, got {weights[0].dtype}; convert them"
        )
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{function}: ids must be int32 or int64, got {ids.dtype}; convert with ids.long()")
    if offsets is None and (ids.dim() != 2 or ids.shape[0] != features):
        raise ValueError(
            f"{function}: ids must be [{features}, B] (features first), got {tuple(ids.shape)}; transpose [B, F] with "
            "ids.T, or give offsets"
        )
    if offsets is not None:
        if ids.dim() != 1 or offsets.dim() != 1:
            raise ValueError(
                f"{function}: ids and offsets must have one dimension, got {tuple(ids.shape)} and "
                f"{tuple(offsets.shape)}"
            )
        if offsets.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{function}: offsets must be int32 or int64, got {offsets.dtype}")
        if features and (offsets.shape[0] - 1) % features:
            raise ValueError(
                f"{function}: offsets must be [F * B + 1] with F = {features}, got {offsets.shape[0]} of them"
            )
    if scale is not None and (scale.shape != ids.shape or scale.dtype != weights[0].dtype):
        raise ValueError(
            f"{function}: per_sample_weights must be {tuple(ids.shape)} in {weights[0].dtype}, got "
            f"{tuple(scale.shape)} in {scale.dtype}"
        )


def _features(
    function: str,
    num_tables: int,
    tables: Sequence[int] | None,
    modes: str | Sequence[str],
    padding_idx: Sequence[int | None] | None,
    names: Sequence[str],
    has_scale: bool,
    has_offsets: bool,
) -> Call:
    tables = range(num_tables) if tables is None else tables
    words = [modes] * len(tables) if isinstance(modes, str) else list(modes)
    pads = [-1 if pad is None else pad for pad in padding_idx or [None] * len(tables)]
    if not len(tables) == len(words) == len(pads):
        raise ValueError(
            f"{function}: tables, modes and padding_idx must have one entry a feature, got {len(tables)}, {len(words)} "
            f"and {len(pads)}"
        )
    for table in tables:
        if not 0 <= table < num_tables:
            raise ValueError(f"{function}: tables must be in [0, {num_tables}), got {table}")
    for word in words:
        if word not in MODES:
            raise ValueError(f"{function}: mode must be one of {', '.join(MODES)}, got {word!r}")
        if has_scale and word != "sum" and (has_offsets or word == "none"):
            raise ValueError(f"{function}: per_sample_weights need mode 'sum', got {word!r}")
    return Call(tuple(tables), tuple(MODES.index(w) for w in words), tuple(pads), tuple(names))


def require_bag_plan(
    function: str, plan: BagPlan, ids: Tensor, offsets: Tensor | None, weights: Sequence[Tensor], call: Call
) -> None:
    """`require_plan` for what `embedding_bags_plan` returns.

    Raises:
        ValueError, TypeError: as `require_plan`.
    """
    facts = PlanFacts(tuple(weight.shape[0] for weight in weights), call.tables, call.padding)
    require_plan(function, "embedding_bags_plan", plan, ids, offsets, facts)


def embedding_bags(
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    per_sample_weights: Tensor | None = None,
    tables: Sequence[int] | None = None,
    modes: str | Sequence[str] = "sum",
    padding_idx: Sequence[int | None] | None = None,
    sparse_grad: bool = True,
    update: RowUpdate | GradStep | None = None,
    trigger: Tensor | None = None,
    plan: BagPlan | None = None,
    names: Sequence[str] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Rows of T tables, pooled by bag, for F features at once.

    Bag b of feature f is ids[f, b], or with offsets the ids from offsets[f * B + b] up to offsets[f * B + b + 1].

        sum   out[b, columns of f] = sum_p x_p weight[ids[p]]        x: per_sample_weights, or 1
        mean  the sum divided by the number of ids; max: the largest of each column
        none  not pooled: the rows themselves

    An empty bag gives zeros. Entries equal to the feature's padding_idx count in no bag and get no gradient.

    The gradients of the tables are coalesced `torch.sparse_coo` tensors (see `embedding` for torch.compile), dense ones
    with sparse_grad=False; with `update` the step is taken in the backward pass, the tables get no gradient, and the
    call compiles. Differentiable any number of times, forwards and through torch.func as `embedding` is, but for the
    step that `update` takes.

    Args:
        weights: tables [R_t, D_t], one dtype and device; float32, float64, bfloat16 or float16; any D_t >= 1.
        ids: [F, B], or [nnz] feature after feature with offsets; int32 or int64.
        offsets: [F * B + 1], ascending from 0 to nnz; int32 or int64.
        per_sample_weights: shape of ids, dtype of the tables; mode "sum" only. Their gradient comes in the same pass.
        tables: the table of each feature; default: feature f has table f.
        modes: "sum", "mean", "max" or "none", one for all or one a feature.
        padding_idx: one a feature, or None.
        sparse_grad: coalesced sparse gradients; dense ones otherwise.
        update: the optimizer's step to take in the backward pass; or what takes it: a callable that is given the
            distinct rows [U_t] and their gradients [U_t, D_t] of every table (it does not pass torch.compile).
        trigger: with update, any tensor that requires a gradient; it gets none. Made here where it is absent.
        plan: `embedding_bags_plan` of these ids and offsets, where calls share it; made in the backward pass otherwise.
        names: what to call the tables in errors.
    Returns:
        pooled [B, sum of D over the pooled features] and one [nnz_f, D_f] for each feature of mode "none" (without
        offsets such a feature is pooled: its bags are single rows).
    Raises:
        IndexError: an id is out of range; names the table, the value and the position (on a GPU: a device-side
            assertion). Nothing has been changed then.
        TypeError, ValueError: as the message says.
    """
    function = "embedding_bags"
    has_offsets = offsets is not None
    call = _features(
        function, len(weights), tables, modes, padding_idx, names, per_sample_weights is not None, has_offsets
    )
    _check_input(function, weights, ids, offsets, per_sample_weights, len(call.tables))
    if offsets is not None and offsets.dtype != ids.dtype:
        offsets = offsets.to(ids.dtype)
    scale = per_sample_weights
    is_training = torch.is_grad_enabled()
    if is_transformed():
        if update is not None and is_training:
            refuse_update(function)
        pooled, *sequences = embedding_bags_composite(weights, ids, offsets, scale, *call.features())
        return pooled, sequences
    if plan is not None:
        require_bag_plan(function, plan, ids, offsets, weights, call)
    if update is not None and is_training:
        if trigger is None:
            trigger = torch.zeros((), device=ids.device, requires_grad=True)
        given, detached = (trigger, ids, offsets, scale, call, plan), [w.detach() for w in weights]
        if isinstance(update, RowUpdate):
            constants = (update.rule, update.options, update.max_norm, update.seed)
            counts = (len(update.first), len(update.second))
            out = _updated_bags(
                *given, constants, update.lr, update.step, *counts, *detached, *update.first, *update.second
            )
        else:
            out = _stepped_bags(*given, update, *detached)
    elif is_training and (any(w.requires_grad for w in weights) or (scale is not None and scale.requires_grad)):
        arguments = (ids, offsets, scale, call, plan, *weights)
        if not sparse_grad:
            out = _dense_bags(*arguments)
        elif torch.compiler.is_compiling():
            out = _sparse_bags_outside_graph(*arguments)
        else:
            out = _sparse_bags(*arguments)
    else:
        out = _forward(weights, ids, offsets, scale, call)
        return out[0], list(out[2:])
    return out[0], list(out[1:])


def embedding_bags_plan(
    ids: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    *,
    tables: Sequence[int] | None = None,
    padding_idx: Sequence[int | None] | None = None,
    names: Sequence[str] = (),
) -> BagPlan:
    """Group the entries of a batch by table and row: one stable radix sort a table.

    Args:
        ids, offsets, tables, padding_idx, names: as in `embedding_bags`.
        num_embeddings: rows of each table.
    Returns:
        BagPlan; deterministic.
    Raises:
        IndexError: an id is out of range.
    """
    call = _features("embedding_bags_plan", len(num_embeddings), tables, "sum", padding_idx, names, False, False)
    arguments = (ids, offsets, list(num_embeddings), list(call.tables), list(call.padding))
    if torch.compiler.is_compiling():
        return BagPlan(*torch.ops.deeprec.embedding_bags_plan(*arguments))
    try:
        plan = BagPlan(*torch.ops.deeprec.embedding_bags_plan(*arguments))
    except (RuntimeError, IndexError) as error:
        raise_named(error, names)
        raise
    remember_source(plan, ids, offsets, PlanFacts(tuple(num_embeddings), call.tables, call.padding))
    return plan


def flat_bags(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor, Tensor | None, int | None]:
    """ids [nnz], offsets [B + 1], per_sample_weights [nnz] and padding_idx >= 0 from the arguments of `embedding_bag`.

    Raises:
        ValueError: their shapes do not go together.
    """
    if mode not in MODES[:3]:
        raise ValueError(f"embedding_bag: mode must be sum, mean or max, got {mode!r}")
    if weight.dim() != 2:
        raise ValueError(f"embedding_bag: weight must be [R, D], got {tuple(weight.shape)}")
    if padding_idx is not None:
        if not -weight.shape[0] <= padding_idx < weight.shape[0]:
            raise ValueError(f"embedding_bag: padding_idx must be in [0, {weight.shape[0]}), got {padding_idx}")
        padding_idx %= weight.shape[0]
    if per_sample_weights is not None and (per_sample_weights.shape != ids.shape or mode != "sum"):
        raise ValueError(
            f"embedding_bag: per_sample_weights must be {tuple(ids.shape)} like ids, with mode 'sum'; got "
            f"{tuple(per_sample_weights.shape)} with mode {mode!r}"
        )
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError("embedding_bag: offsets must be None where ids are [B, L], a bag a row")
        batch, length = ids.shape
        if length and not torch.compiler.is_compiling():  # one operation instead of two
            bounds = torch.arange(0, batch * length + 1, length, dtype=ids.dtype, device=ids.device)
        else:
            bounds = torch.arange(batch + 1, dtype=ids.dtype, device=ids.device) * length
        ids = ids.reshape(-1)
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    elif offsets is None or ids.dim() != 1:
        raise ValueError(
            f"embedding_bag: ids must be [B, L], or [nnz] with offsets, got {tuple(ids.shape)} "
            f"{'without' if offsets is None else 'with'} offsets"
        )
    elif offsets.dim() != 1:
        raise ValueError(f"embedding_bag: offsets must have one dimension, got {tuple(offsets.shape)}")
    elif include_last_offset:
        bounds = offsets
    elif torch.compiler.is_compiling():  # ONNX export knows no padding with a size
        bounds = torch.cat([offsets, offsets.new_full((1,), ids.shape[0])])
    else:
        bounds = torch.constant_pad_nd(offsets, (0, 1), ids.shape[0])
    return ids, bounds, per_sample_weights, padding_idx


# An operator of its own for the commonest call: lists of tables, and what a gradient needs, cost more than short bags.
_bag: Callable[..., Tensor] = torch.ops.deeprec.embedding_bag.default
_NUMBERS = {mode: number for number, mode in enumerate(MODES[:3])}


def embedding_bag(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    sparse_grad: bool = True,
    name: str = "",
) -> Tensor:
    """Pooled rows of one table: the call of `torch.nn.functional.embedding_bag`.

    Args:
        weight: [R, D], float32, float64, bfloat16 or float16; any D >= 1.
        ids: [B, L], a bag a row, or [nnz] with offsets; int32 or int64.
        offsets: where each bag begins, [B], the first 0; the last bag ends at nnz. With include_last_offset [B + 1].
        mode: "sum", "mean" or "max".
        per_sample_weights: shape of ids, dtype of weight; mode "sum" only.
        padding_idx: an id that counts in no bag; negative ones count from the end.
        include_last_offset: offsets end with nnz.
        sparse_grad: give weight a coalesced sparse gradient; a dense one otherwise.
        name: what to call the table in an error.
    Returns:
        [B, D], dtype of weight; an empty bag gives zeros.
    Raises:
        IndexError, TypeError, ValueError: as in `embedding_bags`.
    """
    needs_grad = torch.is_grad_enabled() and (
        weight.requires_grad or (per_sample_weights is not None and per_sample_weights.requires_grad)
    )
    is_plain = padding_idx is None or padding_idx >= 0
    is_traced = torch.compiler.is_compiling() or is_transformed()
    if not needs_grad and is_plain and weight.is_cpu and mode in _NUMBERS and not is_traced:
        padding = -1 if padding_idx is None else padding_idx
        try:
            return _bag(weight, ids, offsets, per_sample_weights, _NUMBERS[mode], padding, include_last_offset)
        except (IndexError, RuntimeError, TypeError, ValueError):
            pass  # said below in full, or made right there: offsets in another dtype
    flat, bounds, scale, padding_idx = flat_bags(
        weight, ids, offsets, mode, per_sample_weights, padding_idx, include_last_offset
    )
    if offsets is None and is_transformed():
        return equal_bags_composite(weight, ids, per_sample_weights, _NUMBERS[mode], padding_idx)
    pooled, _ = embedding_bags(
        [weight],
        flat,
        bounds,
        per_sample_weights=scale,
        modes=mode,
        padding_idx=[padding_idx],
        sparse_grad=sparse_grad,
        names=(name,),
    )
    return pooled
