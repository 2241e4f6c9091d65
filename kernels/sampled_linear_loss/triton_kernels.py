"""Triton kernels of sampled_linear_loss: prediction, loss and the gradient of the hidden rows from one reading.

A program takes a piece of at most PIECE entries of one row: a long row is work for many. Its rows of the decoder stay
in registers between the product and the gradient; where they are too wide for that, they are read again. Gradients of
a row in several pieces are added in their order, and so is the loss: results do not change from run to run.
The gradients of weight and bias are those of embedding_bags, with the slopes as per-sample weights.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.embedding_bag.triton_tables import acc_of, clear_if, new_flag, registers, rows_adjacent
from deeprec.kernels.sampled_linear_loss import reference as ref

__all__ = ["compile_cases", "sampled_linear_loss"]

_SIGMOID, _TANH = tl.constexpr(ref.SIGMOID), tl.constexpr(ref.TANH)
_SQUARED, _CROSS_ENTROPY, _LOGISTIC = (tl.constexpr(x) for x in (ref.SQUARED, ref.CROSS_ENTROPY, ref.LOGISTIC))
_PIECE, _MAX_BLOCK, _BLOCK = 64, 512, 256
# One warp: its sums need no barrier. So many numbers of the decoder each thread holds.
_WARPS, _HELD, _MAX_REGISTERS = 1, 64, 168
BAD_INPUT = "indices must be in [0, N) and indptr ascend from 0 to the number of indices"


@triton.jit(do_not_specialize=("batch", "nnz"))
def _sampled_pieces_kernel(
    indptr,  # [batch + 1]
    pieces,  # [batch] out
    ok,  # [1]
    batch,
    nnz,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pieces of each row; 0 for an empty row, and for one that lies elsewhere than in [0, nnz)."""
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = b < batch
    begin = tl.load(indptr + b, mask=is_row, other=0).to(tl.int64)
    end = tl.load(indptr + b + 1, mask=is_row, other=0).to(tl.int64)
    is_good = (begin >= 0) & (begin <= end) & (end <= nnz)
    is_good &= (b > 0) | (begin == 0)
    is_good &= (b + 1 < batch) | (end == nnz)
    count = tl.where(is_good, (end - begin + PIECE - 1) // PIECE, 0)
    tl.store(pieces + b, count.to(pieces.dtype.element_ty), mask=is_row)
    clear_if(ok, is_row & (is_good == 0))


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1, with the relative error of a logarithm (W. Kahan)."""
    u = 1 + x
    rest = u - 1
    return tl.where(rest == 0, x, tl.log(u) * (x / tl.where(rest == 0, 1.0, rest)))


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _tanh(x):
    """-expm1(-2 |x|) / (2 + expm1(-2 |x|)) with the sign of x; expm1 by the rule of `_log1p`."""
    t = -2 * tl.abs(x)
    u = tl.exp(t)
    is_near = u == 1.0
    is_far = u < 0.25  # no digits are lost, and the logarithm may not exist
    quotient = t / tl.log(tl.where(is_near | is_far, 0.5, u))
    e = tl.where(is_near, t, tl.where(is_far, u - 1, (u - 1) * quotient))
    return tl.where(x < 0, e, -e) / (2 + e)


@triton.jit
def _entry_loss(z, y, ACTIVATION: tl.constexpr, LOSS: tl.constexpr):
    """Loss, prediction and the derivative of the loss by z; `entry_losses` of the reference."""
    a = z
    inner = tl.zeros_like(z) + 1
    if ACTIVATION == _SIGMOID:
        a = _sigmoid(z)
        inner = a * (1 - a)
    elif ACTIVATION == _TANH:
        a = _tanh(z)
        inner = 1 - a * a
    if LOSS == _SQUARED:
        loss = (a - y) * (a - y)
        slope = 2 * (a - y) * inner
    elif LOSS == _CROSS_ENTROPY:
        loss = _softplus(z) - z * y
        slope = a - y
    elif LOSS == _LOGISTIC:
        loss = _softplus(-y * a)
        slope = -y * _sigmoid(-y * a) * inner
    else:
        margin = 1 - y * a
        loss = tl.maximum(margin, 0.0)
        slope = tl.where(margin > 0, -y * inner, 0.0)
    return loss, a, slope


@triton.jit
def _row_of_piece(piece_starts, piece, batch, steps):
    """The row b with piece_starts[b] <= piece < piece_starts[b + 1]."""
    low = piece * 0
    high = low + batch
    for _ in range(steps):
        middle = (low + high) // 2
        is_open = low < high
        is_below = is_open & (tl.load(piece_starts + middle + 1, mask=is_open, other=0) <= piece)
        low = tl.where(is_below, middle + 1, low)
        high = tl.where(is_open & (is_below == 0), middle, high)
    return low


@triton.jit(do_not_specialize=("batch", "num_columns", "steps"))
def _sampled_linear_loss_kernel(
    hidden,  # [batch, dim], rows hidden_vecs times VEC elements apart
    weight,  # [num_columns, dim], rows weight_vecs times VEC elements apart
    bias,  # [num_columns], bias_stride apart; anything where HAS_BIAS is off
    indptr,  # [batch + 1]
    indices,  # [nnz]
    targets,  # [nnz] in ACC
    entry_weights,  # [nnz] in ACC; anything where HAS_WEIGHTS is off
    piece_starts,  # [batch + 1]
    predictions,  # [nnz] in ACC
    slopes,  # [nnz] in ACC
    losses,  # [pieces] in ACC
    grad,  # [batch, dim]: rows of one piece
    scratch,  # [pieces, dim] in ACC: pieces of the other rows
    ok,  # [1]
    batch,
    num_columns,
    steps,
    dim_vecs,  # dim / VEC: what is multiplied by VEC is known to be aligned
    hidden_vecs,
    weight_vecs,
    bias_stride,
    ACTIVATION: tl.constexpr,
    LOSS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    IS_ONE_BLOCK: tl.constexpr,  # dim <= BLOCK_D
    FOLDS: tl.constexpr,  # a row is wide enough for all threads: each adds up its columns of all entries
    ACC: tl.constexpr,
    VEC: tl.constexpr,  # elements by which all rows are aligned
    PIECE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z_p = h . W_j + b_j, a_p = f(z_p), c_p l(a_p, y_p), s_p = c_p dl/dz_p; grad = sum_p s_p W_j."""
    piece = tl.program_id(0).to(tl.int64)
    if piece >= tl.load(piece_starts + batch):
        return
    dim = dim_vecs * VEC
    hidden_stride = tl.cast(hidden_vecs, tl.int64) * VEC
    weight_stride = tl.cast(weight_vecs, tl.int64) * VEC
    b = _row_of_piece(piece_starts, piece, batch, steps)
    first = tl.load(piece_starts + b)
    begin = tl.load(indptr + b).to(tl.int64) + (piece - first) * PIECE
    count = tl.minimum(tl.load(indptr + b + 1).to(tl.int64) - begin, PIECE).to(tl.int32)
    is_only = tl.load(piece_starts + b + 1) - first == 1

    column = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_E], ACC)
    acc = tl.zeros([BLOCK_D] if FOLDS else [BLOCK_E, BLOCK_D], ACC)
    h = tl.load(hidden + b * hidden_stride + column, mask=column < dim, other=0.0).to(ACC)
    for chunk in range(0, count, BLOCK_E):
        e = chunk + tl.arange(0, BLOCK_E)
        is_entry = e < count
        j = tl.load(indices + begin + e, mask=is_entry, other=0).to(tl.int64)
        is_known = (j >= 0) & (j < num_columns)
        clear_if(ok, is_entry & (is_known == 0))
        keep = is_entry & is_known
        row = weight + j[:, None] * weight_stride
        w = tl.load(row + column[None, :], mask=keep[:, None] & (column < dim)[None, :], other=0.0).to(ACC)
        z = tl.sum(w * h[None, :], 1)
        if not IS_ONE_BLOCK:
            for start in range(BLOCK_D, dim, BLOCK_D):
                more = start + column
                h_more = tl.load(hidden + b * hidden_stride + more, mask=more < dim, other=0.0).to(ACC)
                w_more = tl.load(row + more[None, :], mask=keep[:, None] & (more < dim)[None, :], other=0.0)
                z += tl.sum(w_more.to(ACC) * h_more[None, :], 1)
        if HAS_BIAS:
            z += tl.load(bias + j * bias_stride, mask=keep, other=0.0).to(ACC)
        y = tl.load(targets + begin + e, mask=is_entry, other=0.0)
        loss, a, slope = _entry_loss(z, y, ACTIVATION, LOSS)
        if HAS_WEIGHTS:
            c = tl.load(entry_weights + begin + e, mask=is_entry, other=0.0)
            loss *= c
            slope *= c
        slope = tl.where(keep, slope, 0.0)
        total += tl.where(keep, loss, 0.0)
        tl.store(predictions + begin + e, a, mask=is_entry)
        tl.store(slopes + begin + e, slope, mask=is_entry)
        if NEED_GRAD and IS_ONE_BLOCK:
            acc += tl.sum(slope[:, None] * w, 0) if FOLDS else slope[:, None] * w
    tl.store(losses + piece, tl.sum(total, 0))
    if NEED_GRAD and IS_ONE_BLOCK:
        s = acc if FOLDS else tl.sum(acc, 0)
        tl.store(grad + b * dim + column, s.to(grad.dtype.element_ty), mask=is_only & (column < dim))
        tl.store(scratch + piece * dim + column, s, mask=(is_only == 0) & (column < dim))
    if NEED_GRAD and not IS_ONE_BLOCK:
        tl.debug_barrier()  # the slopes are what other threads stored
        for start in range(0, dim, BLOCK_D):
            more = start + column
            s = tl.zeros([BLOCK_D], ACC)
            for chunk in range(0, count, BLOCK_E):
                e = chunk + tl.arange(0, BLOCK_E)
                j = tl.load(indices + begin + e, mask=e < count, other=0).to(tl.int64)
                keep = (e < count) & (j >= 0) & (j < num_columns)
                slope = tl.load(slopes + begin + e, mask=keep, other=0.0)
                row = weight + j[:, None] * weight_stride
                w = tl.load(row + more[None, :], mask=keep[:, None] & (more < dim)[None, :], other=0.0)
                s += tl.sum(slope[:, None] * w.to(ACC), 0)
            tl.store(grad + b * dim + more, s.to(grad.dtype.element_ty), mask=is_only & (more < dim))
            tl.store(scratch + piece * dim + more, s, mask=(is_only == 0) & (more < dim))


@triton.jit
def _sampled_linear_grad_kernel(
    piece_starts,  # [batch + 1]
    scratch,  # [pieces, dim]
    grad,  # [batch, dim]
    dim_vecs,  # dim / VEC
    VEC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The pieces of each row in their order; zeros for a row without any."""
    b = tl.program_id(0).to(tl.int64)
    first = tl.load(piece_starts + b).to(tl.int64)
    last = tl.load(piece_starts + b + 1).to(tl.int64)
    if last - first == 1:
        return
    dim = dim_vecs * VEC
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], scratch.dtype.element_ty)
    for piece in range(first, last):
        total += tl.load(scratch + piece * dim + column, mask=column < dim, other=0.0)
    tl.store(grad + b * dim + column, total.to(grad.dtype.element_ty), mask=column < dim)


def _vec_of(*matrices: Tensor) -> int:
    """The elements, at most 16 bytes of them, by which every row of the matrices [N, M] begins and ends."""
    vec = 16 // matrices[0].element_size()
    numbers = [x.data_ptr() // x.element_size() for x in matrices]
    numbers += [x.stride(0) if x.shape[0] > 1 else x.shape[1] for x in matrices]
    while any(number % vec for number in (*numbers, matrices[0].shape[1])):
        vec //= 2
    return vec


def _tile(dim: int, vec: int, acc: tl.dtype) -> dict[str, Any]:
    """The constants that follow from the width of a row: columns and entries of a tile."""
    block = min(triton.next_power_of_2(max(dim, 1)), _MAX_BLOCK)
    held = _HELD // (4 if acc == tl.float64 else 1) // (2 if vec == 1 or dim > block else 1)
    entries = min(max(32 * held // block, 1), _PIECE)
    return {
        "IS_ONE_BLOCK": dim <= block,
        "FOLDS": block >= 32 * max(vec, 4),
        "VEC": vec,
        "BLOCK_E": entries,
        "BLOCK_D": block,
    }


def sampled_linear_loss(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernels without waiting for the GPU; bad input is a device-side assertion.

    Args:
        args: the fields of `SampledArguments`.
    """
    arguments = ref.SampledArguments(*args)
    hidden, weight, bias, indptr, indices, targets, entry_weights, activation, loss, need_grad = arguments
    hidden, weight = rows_adjacent(hidden), rows_adjacent(weight)
    indptr, indices, targets = indptr.contiguous(), indices.contiguous(), targets.contiguous()
    (batch, dim), nnz, wide = hidden.shape, indices.shape[0], wide_dtype(hidden.dtype)
    if indptr.shape != (batch + 1,) or targets.shape != indices.shape:
        raise RuntimeError(
            f"sampled_linear_loss: indptr must be [{batch + 1}] and targets [{nnz}], got {tuple(indptr.shape)} and "
            f"{tuple(targets.shape)}"
        )
    predictions, slopes = hidden.new_empty(nnz, dtype=wide), hidden.new_empty(nnz, dtype=wide)
    grad = hidden.new_zeros((batch, dim) if need_grad and (batch == 0 or nnz == 0) else (0,))
    if batch == 0 or nnz == 0:
        return hidden.new_zeros((), dtype=wide), predictions, slopes, grad
    # A row of n entries has at most n / PIECE + 1 pieces: known without asking the GPU.
    most, ok = nnz // _PIECE + batch, new_flag(hidden.device)
    starts = torch.zeros(batch + 1, dtype=torch.int64, device=hidden.device)
    launch(
        _sampled_pieces_kernel,
        (triton.cdiv(batch, _BLOCK),),
        indptr,
        starts[1:],
        ok,
        batch,
        nnz,
        PIECE=_PIECE,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    torch.cumsum(starts[1:].clone(), 0, out=starts[1:])
    losses = hidden.new_zeros(most, dtype=wide)
    scratch = losses
    if need_grad:
        grad, scratch = hidden.new_empty(batch, dim), hidden.new_empty(most, dim, dtype=wide)
    bias = None if bias is None else bias.reshape(-1)
    vec = _vec_of(hidden, weight)
    tile = _tile(dim, vec, acc_of(hidden))
    launch(
        _sampled_linear_loss_kernel,
        (most,),
        hidden,
        weight,
        weight if bias is None else bias,
        indptr,
        indices,
        targets,
        targets if entry_weights is None else entry_weights.contiguous(),
        starts,
        predictions,
        slopes,
        losses,
        grad if need_grad else hidden,
        scratch,
        ok,
        batch,
        weight.shape[0],
        batch.bit_length(),
        dim // vec,
        hidden.stride(0) // vec,
        weight.stride(0) // vec,
        0 if bias is None else bias.stride(0),
        ACTIVATION=activation,
        LOSS=loss,
        HAS_BIAS=bias is not None,
        HAS_WEIGHTS=entry_weights is not None,
        NEED_GRAD=need_grad,
        ACC=acc_of(hidden),
        PIECE=_PIECE,
        **tile,
        num_warps=_WARPS,
        **registers(_MAX_REGISTERS),
    )
    if need_grad:
        grid = (batch, triton.cdiv(dim, tile["BLOCK_D"]))
        launch(
            _sampled_linear_grad_kernel,
            grid,
            starts,
            scratch,
            grad,
            dim // vec,
            VEC=vec,
            BLOCK_D=tile["BLOCK_D"],
            num_warps=1,
        )
    torch._assert_async(ok, f"sampled_linear_loss: {BAD_INPUT}")
    return losses.sum(dtype=torch.float64).to(wide), predictions, slopes, grad


def compile_cases() -> list[CompileCase]:
    """Every element type at H = 500 as AutoRec has it; short, odd and wide rows, and every loss, in float32."""
    kinds = [(ref.SIGMOID, ref.CROSS_ENTROPY, 64), (ref.TANH, ref.LOGISTIC, 16), (ref.TANH, ref.HINGE, 7)]
    cases = [_case(element, 500, ref.SIGMOID, ref.SQUARED, True) for element in ("fp32", "bf16", "fp16", "fp64")]
    cases += [_case("fp32", dim, activation, loss, True) for activation, loss, dim in kinds]
    cases += [_case("fp32", 700, ref.IDENTITY, ref.SQUARED, True), _case("fp32", 500, ref.IDENTITY, ref.SQUARED, False)]
    for element in ("fp32", "bf16", "fp64"):
        wide = "*fp64" if element == "fp64" else "*fp32"
        types = {"piece_starts": "*i64", "scratch": wide, "grad": f"*{element}", "dim_vecs": "i32"}
        aligned = ("piece_starts", "scratch", "grad")
        constants = {"VEC": {"fp64": 2}.get(element, 4), "BLOCK_D": 512}
        types |= dict.fromkeys(constants, "constexpr")
        name = f"sampled_linear_pieces_{element}"
        cases.append(CompileCase(name, _sampled_linear_grad_kernel, types, constants, num_warps=1, aligned=aligned))
    types = {"indptr": "*i64", "pieces": "*i64", "ok": "*i32", "batch": "i32", "nnz": "i32"}
    types |= {"PIECE": "constexpr", "BLOCK": "constexpr"}
    return [*cases, CompileCase("sampled_pieces", _sampled_pieces_kernel, types, {"PIECE": _PIECE, "BLOCK": _BLOCK})]


def _case(element: str, dim: int, activation: int, loss: int, need_grad: bool) -> CompileCase:
    acc = tl.float64 if element == "fp64" else tl.float32
    vec = 16 // {"fp32": 4, "fp64": 8}.get(element, 2)
    while dim % vec:
        vec //= 2
    types = dict.fromkeys(("hidden", "weight", "bias", "grad"), f"*{element}")
    types |= dict.fromkeys(("indptr", "indices", "piece_starts"), "*i64")
    types |= dict.fromkeys(
        ("targets", "entry_weights", "predictions", "slopes", "losses", "scratch"),
        "*fp64" if element == "fp64" else "*fp32",
    )
    types |= {"ok": "*i32"}
    sizes = ("batch", "num_columns", "steps", "dim_vecs", "hidden_vecs", "weight_vecs", "bias_stride")
    types |= dict.fromkeys(sizes, "i32")
    tile = _tile(dim, vec, acc)
    constants: dict[str, Any] = {
        "ACTIVATION": activation,
        "LOSS": loss,
        "HAS_BIAS": True,
        "HAS_WEIGHTS": True,
        "NEED_GRAD": need_grad,
        "ACC": acc,
        "PIECE": _PIECE,
        **tile,
    }
    types |= dict.fromkeys(constants, "constexpr")
    signature = {key: types[key] for key in _sampled_linear_loss_kernel.arg_names}
    pointers = tuple(key for key, kind in signature.items() if kind.startswith("*"))
    name = f"sampled_linear_{'loss' if need_grad else 'values'}_{ref_name(activation, loss)}_{element}_d{dim}"
    more = {"num_warps": _WARPS, "aligned": pointers, "max_registers": _MAX_REGISTERS}
    return CompileCase(name, _sampled_linear_loss_kernel, signature, constants, **more)


def ref_name(activation: int, loss: int) -> str:
    """ "sigmoid_squared", for the names of cases."""
    return f"{('identity', 'sigmoid', 'tanh')[activation]}_{('squared', 'cross_entropy', 'logistic', 'hinge')[loss]}"
