"""What the launchers of embedding_bag and embedding_fm share: the order of the stages of a pass over rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import triton.language as tl
from torch import Tensor

from deeprec.kernels._compile_cases import CompileCase
from deeprec.kernels.embedding_bag.backward import Step
from deeprec.kernels.embedding_bag.triton_rows import (
    MAX_REGISTERS,
    NORM,
    STORE,
    UPDATE,
    Pieces,
    Rule,
    rule_of,
    set_clip,
    warps_of,
)
from deeprec.kernels.embedding_bag.triton_tables import block_of, rows_of_tile, sent
from deeprec.kernels.sparse_update.triton_kernels import SEEDS


class RowStages(Protocol):
    """A launch over the rows of a plan but for its stage; the pieces of long rows are summed already."""

    @property
    def pieces(self) -> Pieces:
        """Pieces of the long rows, and whether the plan fits the tables."""

    def run(
        self,
        stage: int,
        rule: Rule | None = None,
        *,
        outs: Tensor | None = None,
        is_dense: bool = False,
        squares: Tensor | None = None,
    ) -> None:
        """Launch one stage: STORE to addresses outs, NORM to squares [U], or UPDATE by the rule."""


def store_grads(op: str, rows_pass: RowStages, outs: Sequence[Tensor], is_dense: bool) -> None:
    """Fill outs, one a table, with the gradients of the touched rows, or of whole tables where is_dense."""
    addresses = sent([out.data_ptr() for out in outs], torch.int64, outs[0].device)
    rows_pass.run(STORE.value, outs=addresses, is_dense=is_dense)
    _require_plan(op, rows_pass)


def take_step(op: str, rows_pass: RowStages, num_rows: int, weight: Tensor, has_first: bool, given: Step) -> None:
    """Step the num_rows rows of the plan without waiting for the GPU, and count the step.

    Args:
        weight: a table, for its dtype and device.
        has_first: whether the tables have first states, which makes SGD one with momentum.
    """
    rule = rule_of(op, weight, has_first, given)
    given.step.add_(1)
    if given.max_norm > 0:
        squares = torch.zeros(num_rows, dtype=rule.scalars.dtype, device=rule.scalars.device)
        rows_pass.run(NORM.value, rule, squares=squares)
        set_clip(rule, squares, given.max_norm)
    rows_pass.run(UPDATE.value, rule)
    _require_plan(op, rows_pass)


def _require_plan(op: str, rows_pass: RowStages) -> None:
    message = f"{op}: the plan must come from embedding_bags_plan of these ids and offsets"
    torch._assert_async(rows_pass.pieces.ok, message)


def grad_without_entries(like: Tensor, entry_weights: Tensor | None, is_needed: bool) -> Tensor:
    """Gradient of the weights (or values) of the entries of a batch without entries, in the dtype of a table."""
    if entry_weights is None or not is_needed:
        return like.new_empty(0)
    return torch.zeros_like(entry_weights, memory_format=torch.contiguous_format)


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
        types |= dict.fromkeys(("num_rows", "steps", "batch", "width", "grad_stride", *SEEDS), "i32")
        constants = {
            "STAGE": self.stage,
            "ENTRIES": self.entries,
            "RULE": self.rule,
            "IS_DENSE": False,
            "IS_ONE_BLOCK": self.dim <= block_d,
            "IS_STOCHASTIC": self.element == "bf16" and self.rule >= 0,
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
