"""What the launchers of embedding_bag and embedding_fm share: a pass over the rows of a plan, its stages in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels._door import launch, refuse_capture
from deeprec.kernels.embedding_bag.backward import Plan, Step
from deeprec.kernels.embedding_bag.checks import ADAM, SGD
from deeprec.kernels.embedding_bag.triton_rows import (
    BY_SEED,
    BY_STEP,
    FACTOR,
    LR,
    MAX_REGISTERS,
    MOMENTUM,
    NEAREST,
    NORM,
    PIECES,
    SCALE,
    STEP_SIZE,
    STORE,
    UPDATE,
    Group,
    Pieces,
    warps_of,
)
from deeprec.kernels.embedding_bag.triton_tables import (
    acc_of,
    block_of,
    constant_numbers,
    registers,
    rows_of_tile,
    sent,
)
from deeprec.kernels.sparse_update.checks import wide_dtype
from deeprec.kernels.sparse_update.triton_kernels import SEEDS
from deeprec.kernels.sparse_update.triton_rows import seed_halves


class Rule(NamedTuple):
    """An optimizer's step for the kernels.

    Attributes:
        number: of the rule.
        scalars: its numbers on the device.
        seeds: halves of the rounding seed as int32.
        rounding: NEAREST, BY_SEED, or BY_STEP: by the seed and the step in `count`.
        count: [] int64, the number of the step, where it is counted on the device.
    """

    number: int
    scalars: Tensor
    seeds: tuple[int, int]
    rounding: int
    count: Tensor | None


def is_on_device(given: Step) -> bool:
    """Whether learning rate and count of steps are on the device, and are read there alone."""
    return given.step.device.type != "cpu"


def rule_of(weight: Tensor, has_first: bool, given: Step) -> Rule:
    """The step after `given.step`, which is counted."""
    number = MOMENTUM.value if given.rule == SGD and has_first else given.rule
    is_stochastic = given.seed >= 0 and weight.dtype == torch.bfloat16
    given.step.add_(1)
    if is_on_device(given):
        rounding = BY_STEP.value if is_stochastic else NEAREST.value
        return Rule(number, _scalars_on(weight, given), seed_halves(given.seed), rounding, given.step)
    count, rate = int(given.step), float(given.lr)
    eps, decay, beta1, beta2 = given.options
    size, scale = rate, 1.0
    if given.rule == ADAM:
        size, scale = rate / (1 - beta1**count), (1 - beta2**count) ** -0.5
    numbers = (rate, eps, decay, beta1, 1 - beta1, beta2, 1 - beta2, size, scale, 1.0)
    salt = (given.seed + count * 0x9E3779B97F4A7C15) % 2**64 if given.seed >= 0 else 0
    low, high = (half - 2**32 if half >= 2**31 else half for half in (salt & 0xFFFFFFFF, salt >> 32))
    rounding = BY_SEED.value if is_stochastic else NEAREST.value
    return Rule(number, sent(numbers, wide_dtype(weight), weight.device), (low, high), rounding, None)


def _scalars_on(weight: Tensor, given: Step) -> Tensor:
    """The numbers of step `given.step`, from a learning rate and a count that a CUDA graph reads anew each time."""
    eps, decay, beta1, beta2 = given.options
    numbers = (0.0, eps, decay, beta1, 1 - beta1, beta2, 1 - beta2, 0.0, 1.0, 1.0)
    scalars = constant_numbers(numbers, torch.float64, weight.device).clone()
    rate, count = given.lr.view(1), given.step.view(1).to(torch.float64)
    scalars[LR.value : LR.value + 1].copy_(rate)
    size, scale = (scalars[place.value : place.value + 1] for place in (STEP_SIZE, SCALE))
    if given.rule == ADAM:
        size.copy_(rate / (1 - beta1**count))
        scale.copy_((1 - beta2**count).rsqrt())
    else:
        size.copy_(rate)
    return scalars.to(wide_dtype(weight))


def set_clip(rule: Rule, squares: Tensor, max_norm: float) -> None:
    """From the squared norms of the rows' gradients: the factor that brings all of them down to max_norm."""
    norm = squares.sum(dtype=torch.float64).sqrt()
    factor = torch.where(norm > max_norm, max_norm / norm, 1.0)
    rule.scalars[FACTOR.value :].copy_(factor)


class RowKernel(NamedTuple):
    """A kernel over the rows of a plan.

    Attributes:
        function: the `@triton.jit` function.
        sums: the flags of entries that NORM knows: all but that which asks for a gradient of every entry.
        unroll_of: entries in flight, by their flags.
    """

    function: Any
    sums: int
    unroll_of: Callable[[int], int]


class RowPass(NamedTuple):
    """What the launches of a kernel over the rows of a plan share, whatever their stage.

    Attributes:
        groups: the tables of each launch.
        entries: what the entries have, in the kernel's own flags.
        arguments: those that the kernel has beside the ones of every pass over rows, by name.
        scratch: [pieces, width], the sums of the pieces.
        entries_grad: the gradient of every entry's weight, where it is asked for; in the type of sums.
        kept: tensors of which only the address is known elsewhere.
    """

    kernel: RowKernel
    groups: Sequence[Group]
    entries: int
    plan: Plan
    pieces: Pieces
    batch: int
    grad: Tensor
    scratch: Tensor
    arguments: dict[str, Any]
    entries_grad: Tensor | None
    kept: Sequence[Tensor] = ()

    def run(
        self,
        stage: int,
        rule: Rule | None = None,
        *,
        outs: Tensor | None = None,
        is_dense: bool = False,
        squares: Tensor | None = None,
    ) -> None:
        """Launch one stage: PIECES, STORE to addresses outs, NORM to squares [U], or UPDATE by the rule.

        Entries get their gradient from PIECES and from the last stage, not from NORM.
        """
        rows, row_offsets, order, bags, table_starts = self.plan
        num_slots = self.pieces.most if stage == PIECES.value else rows.shape[0]
        entries = self.entries & (self.kernel.sums if stage == NORM.value else ~0)
        warps, nothing = warps_of(stage), self.scratch
        seed_low, seed_high = (0, 0) if rule is None else rule.seeds
        for group in self.groups:
            block_r = rows_of_tile(group.block_d, group.vec, warps, 1)
            launch(
                self.kernel.function,
                (triton.cdiv(num_slots, block_r),),
                tables=group.lines,
                rows=rows,
                row_offsets=row_offsets,
                order=order,
                bags=bags,
                table_starts=table_starts,
                row_tables=self.pieces.row_tables,
                piece_starts=self.pieces.starts,
                grad=self.grad,
                scratch=self.scratch,
                outs=nothing if outs is None else outs,
                scalars=nothing if rule is None else rule.scalars,
                squares=nothing if squares is None else squares,
                ok=self.pieces.ok,
                num_rows=rows.shape[0],
                steps=self.pieces.steps,
                batch=self.batch,
                width=self.scratch.shape[1],
                grad_stride=self.grad.stride(0),
                seed_low=seed_low,
                seed_high=seed_high,
                count=rows if rule is None or rule.count is None else rule.count,
                **self.arguments,
                STAGE=stage,
                ENTRIES=entries,
                RULE=-1 if rule is None else rule.number,
                IS_DENSE=is_dense,
                IS_ONE_BLOCK=group.is_one_block,
                ROUNDING=NEAREST.value if rule is None else rule.rounding,
                ACC=acc_of(self.grad),
                VEC=group.vec,
                UNROLL=self.kernel.unroll_of(entries),
                BLOCK_R=block_r,
                BLOCK_D=group.block_d,
                num_warps=warps,
                **registers(MAX_REGISTERS),
            )

    def finish(self, op: str) -> Tensor:
        """The gradient of the entries' weights [0 where nobody asks], after a check that the plan fitted the tables."""
        message = f"{op}: the plan must come from embedding_bags_plan of these ids and offsets"
        torch._assert_async(self.pieces.ok, message)
        return self.grad.new_empty(0) if self.entries_grad is None else self.entries_grad.to(self.grad.dtype)


class Entries(NamedTuple):
    """What a backward pass tells of its entries.

    Attributes:
        num_rows: that they touch.
        weights: of the entries, or None.
        need_grad: of the weights.
    """

    num_rows: int
    weights: Tensor | None
    need_grad: bool

    def no_grad(self, like: Tensor) -> Tensor:
        """The gradient of the weights where there are no rows, in the dtype of a table."""
        if self.weights is None or not self.need_grad:
            return like.new_empty(0)
        return torch.zeros_like(self.weights, memory_format=torch.contiguous_format)


def refuse_capture_of_grads(op: str, device: torch.device) -> None:
    """Gradients of tables are no part of a CUDA graph."""
    reason = "it waits for the GPU to tell the rows of each table"
    remedy = "take the step in the backward pass (optimizer_in_backward=) by a rule that has a kernel there"
    refuse_capture(op, device, reason, remedy)


def empty_grads(op: str, tables: Sequence[Tensor], table_starts: Tensor) -> list[Tensor]:
    """For the gradients of the touched rows of each table; waits for the GPU. More tables repeat the same rows."""
    refuse_capture_of_grads(op, table_starts.device)
    counts = [end - begin for begin, end in itertools.pairwise(table_starts.tolist())]
    return [w.new_empty(count, *w.shape[1:]) for w, count in zip(tables, itertools.cycle(counts), strict=False)]


def store_grads(
    op: str, entries: Entries, start: Callable[[], RowPass], outs: Sequence[Tensor], is_dense: bool = False
) -> list[Tensor]:
    """Fill outs, one a table, with the gradients of the touched rows, or of whole tables where is_dense.

    Args:
        start: makes the pass, the pieces of long rows summed.
    Returns:
        outs and the gradient of the entries' weights.
    """
    if entries.num_rows == 0:
        return [*outs, entries.no_grad(outs[0])]
    rows_pass = start()
    addresses = sent([out.data_ptr() for out in outs], torch.int64, outs[0].device)
    rows_pass.run(STORE.value, outs=addresses, is_dense=is_dense)
    return [*outs, rows_pass.finish(op)]


def take_step(
    op: str, entries: Entries, start: Callable[[], RowPass], weight: Tensor, has_first: bool, given: Step
) -> Tensor:
    """Step the rows of the plan without waiting for the GPU, and count the step.

    Args:
        start: as in `store_grads`.
        weight: a table, for its dtype and device.
        has_first: whether the tables have first states, which makes SGD one with momentum.
    Returns:
        The gradient of the entries' weights.
    """
    if not is_on_device(given):
        reason = "the learning rate and the count of steps are on the host, and a graph would repeat them"
        remedy = "give the optimizer capturable=True, which keeps both on the GPU"
        refuse_capture(op, weight.device, reason, remedy)
    if entries.num_rows == 0:
        given.step.add_(1)
        return entries.no_grad(weight)
    rows_pass = start()
    rule = rule_of(weight, has_first, given)
    if given.max_norm > 0:
        squares = torch.zeros(entries.num_rows, dtype=rule.scalars.dtype, device=rule.scalars.device)
        rows_pass.run(NORM.value, rule, squares=squares)
        set_clip(rule, squares, given.max_norm)
    rows_pass.run(UPDATE.value, rule)
    return rows_pass.finish(op)


class RowsCase(NamedTuple):
    """What a kernel over rows is compiled for.

    Attributes:
        name: beginning of the case's name.
        element: Triton's name of the tables' type, "fp32", "bf16", "fp16" or "fp64".
        dim: D; rows of 7 are not aligned.
        stage: PIECES, STORE, NORM or UPDATE.
        entries: what the entries have, in the kernel's own flags.
        rule: of the update, -1 without one.
    """

    name: str
    element: str
    dim: int
    stage: int
    entries: int
    rule: int

    @property
    def wide(self) -> str:
        """Triton's name of the type of sums."""
        return "fp64" if self.element == "fp64" else "fp32"

    def compile_case(self, kernel: Any, types: dict[str, str], unroll: int, strides: Iterable[str]) -> CompileCase:
        """The case of a kernel.

        Args:
            types: Triton types of the arguments that the kernel has beside those of every pass over rows.
            unroll: entries in flight.
            strides: arguments that are multiples of 16 where rows are aligned.
        """
        vec = 1 if self.dim == 7 else 16 // {"fp32": 4, "fp64": 8}.get(self.element, 2)
        block_d = block_of(self.dim)
        types = types | dict.fromkeys(("tables", "table_starts", "outs", "rows"), "*i64")
        types |= dict.fromkeys(("row_offsets", "order", "bags", "row_tables", "piece_starts", "ok"), "*i32")
        types |= {"grad": f"*{self.element}"} | dict.fromkeys(("scratch", "scalars", "squares"), f"*{self.wide}")
        types["count"] = "*i64"
        types |= dict.fromkeys(("num_rows", "steps", "batch", "width", "grad_stride", *SEEDS), "i32")
        constants = {
            "STAGE": self.stage,
            "ENTRIES": self.entries,
            "RULE": self.rule,
            "IS_DENSE": False,
            "IS_ONE_BLOCK": self.dim <= block_d,
            "ROUNDING": (BY_STEP if self.element == "bf16" and self.rule >= 0 else NEAREST).value,
            "ACC": tl.float64 if self.element == "fp64" else tl.float32,
            "VEC": vec,
            "UNROLL": unroll,
            "BLOCK_R": rows_of_tile(block_d, vec, warps_of(self.stage), 1),
            "BLOCK_D": block_d,
        }
        types |= dict.fromkeys(constants, "constexpr")
        signature = {key: types[key] for key in kernel.arg_names}
        pointers = [key for key, kind in signature.items() if kind.startswith("*")]
        aligned = (*pointers, *strides) if vec > 1 else tuple(pointers)
        more = {"num_warps": warps_of(self.stage), "aligned": aligned, "max_registers": MAX_REGISTERS}
        return CompileCase(f"{self.name}_{self.element}_d{self.dim}", kernel, signature, constants, **more)
