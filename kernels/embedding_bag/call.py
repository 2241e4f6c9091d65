"""What a call over several tables is made of beside its tensors, and the checks and errors of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from deeprec.kernels._errors import translate

MODES = ("sum", "mean", "max", "none")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class RowUpdate(NamedTuple):
    """An optimizer's step to be taken in the backward pass; the states are changed in place.

    Attributes:
        rule: 0 SGD, 1 Adagrad, 2 row-wise Adagrad, 3 Adam on the touched rows ("lazy"), 4 FTRL-proximal.
        first: one state a table: momentum (rule 0; may be empty), sum of squares [R, D] or [R] (rules 1, 4; 2),
            first moment (rule 3); float32 (float64 for float64 tables).
        second: second moments (rule 3), FTRL's linear terms (rule 4), else empty.
        lr: learning rate, one float64; a tensor, so that a schedule does not recompile the graph.
        step: steps taken so far, one int64; counted up by the update. Both on the CPU, or both on the device of the
            tables: then nobody looks at their values, and a CUDA graph of the update reads them each time it runs.
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


class Call(NamedTuple):
    """What a call knows beside its tensors: hashable, so torch.compile guards on it."""

    tables: tuple[int, ...]
    modes: tuple[int, ...]
    padding: tuple[int, ...]
    names: tuple[str, ...]

    def features(self) -> tuple[list[int], list[int], list[int]]:
        """tables, modes and padding as the operators take them."""
        return list(self.tables), list(self.modes), list(self.padding)


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


def run_named(operator: Callable[..., Any], names: Sequence[str], *arguments: Any) -> Any:
    """The results of an operator; its errors name the tables."""
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except (RuntimeError, IndexError) as error:
        return raise_named(error, names)


def mark_changed(tables: Iterable[Tensor]) -> None:
    """Tell autograd that a kernel wrote to `tables`: a backward pass that saved one of them is then an error."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tables)


def check_input(
    function: str, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor | None, scale: Tensor | None, features: int
) -> None:
    """Raise TypeError or ValueError where shapes, dtypes and devices do not go together; ids are not read."""
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


def call_of(
    function: str,
    num_tables: int,
    tables: Sequence[int] | None,
    modes: str | Sequence[str],
    padding_idx: Sequence[int | None] | None,
    names: Sequence[str],
    has_scale: bool,
    has_offsets: bool,
) -> Call:
    """The call of a public function's arguments.

    Raises:
        ValueError: tables, modes and padding_idx do not go together, or one of them is out of range.
    """
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
