"""Faults that kernels meet on a GPU: named there without a wait, raised here as the errors that the CPU raises.

A kernel cannot raise, and a launcher does not wait for it. So each GPU has a claim of two numbers, made once: the
number of the check that failed first, and the address of a report in the host's memory. A kernel that meets a bad value
claims it, writes value, position and bound into the report, and goes on with zeros in its place (`report` in
triton_report.py and csrc/cuda/fault.h). The host looks at the report, which costs a reading of its own memory, at every
start of a launcher and where it has waited for the GPU anyway; then it raises, and claim and report are empty again.
Meanwhile updates inside the backward pass read the claim and change nothing.

In a CUDA graph the addresses stay, so a replay reports like any other call; while one is captured nobody looks.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["check_device", "claim_of", "clear", "number_of", "raise_faults", "report_where"]


class _Check(NamedTuple):
    """An error to be raised; its text is filled in with the numbers of the report."""

    error: type[Exception]
    text: str


_IDS = "ids{} must be in [0, {{bound}}), got {{value}} at position {{position}}; encode ids with the table's id map, "
_IDS += "or enlarge num_embeddings"
_OFFSETS = "offsets must ascend from 0 to the number of ids ({bound}), got {value} to {other} at position {position}"
_INDPTR = "indptr must ascend from 0 to the number of indices ({bound}), got {value} to {other} at position {position}"
_INDICES = "indices must be in [0, {bound}), got {value} at position {position}"
_PLAN = "plan must be the one of these ids and offsets, got one that names other entries, bags or rows; make it with "
_PLAN += "embedding_bags_plan"
_HISTORY = "a row reached step {value} only, but lr_history begins after step {bound}"
_OF_TABLE = _IDS.format(" of table {other}")

# What each kernel looks at. Their order is that of the numbers which kernels are compiled with.
_KNOWN: dict[tuple[str, str], _Check] = {
    ("embedding", "ids"): _Check(IndexError, _IDS.format("")),
    ("embedding_grad", "offsets"): _Check(
        ValueError, "offsets must rise from 0 to {bound}, got {value} to {other} at position {position}"
    ),
    ("embedding_grad", "order"): _Check(
        ValueError, "order must be in [0, {bound}), got {value} at position {position}; make it with embedding_plan"
    ),
    ("embedding_bags", "ids"): _Check(IndexError, _OF_TABLE),
    ("embedding_bags", "offsets"): _Check(ValueError, _OFFSETS),
    ("embedding_bags_plan", "ids"): _Check(IndexError, _OF_TABLE),
    ("embedding_bags_grad", "plan"): _Check(ValueError, _PLAN),
    ("embedding_bags_dense_grad", "plan"): _Check(ValueError, _PLAN),
    ("embedding_bags_update_", "plan"): _Check(ValueError, _PLAN),
    ("embedding_fm", "ids"): _Check(IndexError, _OF_TABLE),
    ("embedding_fm", "offsets"): _Check(ValueError, _OFFSETS),
    ("embedding_fm_grad", "plan"): _Check(ValueError, _PLAN),
    ("embedding_fm_dense_grad", "plan"): _Check(ValueError, _PLAN),
    ("embedding_fm_update_", "plan"): _Check(ValueError, _PLAN),
    ("sampled_linear_loss", "indptr"): _Check(ValueError, _INDPTR),
    ("sampled_linear_loss", "indices"): _Check(IndexError, _INDICES),
    ("softmax_loss", "targets"): _Check(
        IndexError, "targets must be in [0, {bound}), got {value} at position {position}"
    ),
    ("sampled_softmax_loss", "targets"): _Check(
        IndexError, "targets must be in [0, {bound}), got {value} at position {position}"
    ),
    ("softmax_loss", "seen_rows"): _Check(
        IndexError, "seen_rows must be in [0, {bound}), got {value} at position {position}"
    ),
    ("softmax_loss", "seen_indptr"): _Check(
        ValueError,
        "seen_indptr must ascend from 0 to the number of seen_indices, {bound}, got {value} and {other} in row "
        "{position}",
    ),
    ("score_topk", "seen_rows"): _Check(
        IndexError, "seen_rows must lie in [0, {bound}), got {value} at position {position}"
    ),
    ("score_topk", "seen_indptr"): _Check(
        ValueError,
        "seen_indptr must rise from 0 to {bound} (the length of seen_indices), got {value} and {other} in row "
        "{position}",
    ),
    ("als_solve", "indptr"): _Check(ValueError, _INDPTR),
    ("als_solve", "indices"): _Check(IndexError, _INDICES),
    ("als_solve", "matrices"): _Check(
        ValueError,
        "gram + ridge + the weighted products of row {position} must be positive definite; give ridge > 0, finite "
        "weights >= 0 and finite factors",
    ),
    ("adam_catch_up_", "lr_history"): _Check(RuntimeError, _HISTORY),
    ("adam_dense_update_", "lr_history"): _Check(RuntimeError, _HISTORY),
    ("adam_dense_update_tables_", "lr_history"): _Check(RuntimeError, _HISTORY),
    # The numbers of these four follow each other: csrc/cuda/sample_negatives.cu counts from the first.
    ("sample_negatives", "users"): _Check(
        IndexError, "users must lie in [0, {bound}), got {value} at position {position}"
    ),
    ("sample_negatives", "indptr"): _Check(
        ValueError,
        "indptr must rise from 0 to {bound} (the length of indices), got {value} and {other} for user {position}",
    ),
    ("sample_negatives", "unseen"): _Check(
        ValueError, "user {value} has seen all {bound} items, so no negative exists; leave the user out"
    ),
    ("sample_negatives", "weights"): _Check(
        ValueError,
        "user {value} has seen every item of positive weight, so no negative exists; leave the user out or give every "
        "item some weight",
    ),
}
_NUMBERS = {key: number for number, key in enumerate(_KNOWN, start=1)}
_CHECKS = [_Check(check.error, f"{function}: {check.text}") for (function, _), check in _KNOWN.items()]


def number_of(function: str, about: str) -> int:
    """The number by which a kernel names a check of an operator, >= 1."""
    return _NUMBERS[function, about]


class _Record(NamedTuple):
    """What a device and the host know of the device's first fault.

    Attributes:
        claim: [2] int64 on the device: the number of the check or 0, and the address of the report.
        report: [5] int64 in the host's memory, which the device can write: the number of the check or 0, value,
            position, bound, and what else the check tells.
        view: report for NumPy, which reads a number in a fraction of torch's time.
    """

    device: torch.device
    claim: Tensor
    report: Tensor
    view: Any


_records: dict[torch.device, _Record] = {}
_lock = threading.RLock()


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def claim_of(device: torch.device) -> Tensor:
    """[2] int64 on the device: what kernels hand to `report`; made at the first call.

    Raises:
        RuntimeError: a CUDA graph is being captured, and nothing ran on this device before.
    """
    record = _records.get(device)
    return (_new_record(device) if record is None else record).claim


def _new_record(device: torch.device) -> _Record:
    if _is_capturing(device):
        raise RuntimeError(f"deeprec: run the model on {device} once before a CUDA graph of it is captured")
    with _lock, torch.inference_mode(False):
        if device not in _records:
            report = torch.zeros(5, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
            claim = torch.tensor([0, report.data_ptr()], dtype=torch.int64, device=device)
            _records[device] = _Record(device, claim, report, report.numpy())
        return _records[device]


def raise_faults(device: torch.device | None = None) -> None:
    """Look, and raise what kernels on `device`, or on any, have reported so far; waits for nothing.

    Raises:
        IndexError, ValueError: what the operator raises on the CPU.
    """
    if device is None:
        for record in [*_records.values()]:
            raise_faults(record.device)
        return
    known = _records.get(device)
    if known is not None and known.view[0]:
        _raise(known)


def _raise(record: _Record) -> None:
    device = record.device
    if _is_capturing(device):
        return
    with _lock:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the report may be half written
        number, value, position, bound, other = record.view.tolist()
        clear(device)
    if number:  # another thread may have raised it
        error, text = _CHECKS[number - 1]
        text = text.format(value=value, position=position, bound=bound, other=other)
        raise error(f"{text} (met on {device}, in this call or an earlier one)")


def clear(device: torch.device) -> None:
    """Forget what was reported on a device, all of whose kernels have ended."""
    record = _records.get(device)
    if record is not None:
        record.report.zero_()
        record.claim[:1].zero_()


def check_device(device: torch.device | str | None = None) -> None:
    """Wait for a GPU and raise what its kernels met in earlier calls, in place of the errors that the CPU raises.

    Functions that wait for the GPU look by themselves: the plans and sparse gradients of tables, `fit`, `evaluate`,
    `recommend` and `predict`; so does every further call of an operator, for what has happened by then. This one is for
    a loop of one's own, before a result is relied on. While a CUDA graph is captured it does nothing.

    Args:
        device: a GPU; None: all of them.
    Raises:
        IndexError, ValueError: a value that an operator refuses, with its position; raised once.
    """
    chosen = None if device is None else torch.device(device)
    if chosen is not None and chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    for record in [*_records.values()]:
        if chosen in (None, record.device) and not _is_capturing(record.device):
            if record.device.type == "cuda":
                torch.cuda.synchronize(record.device)
            raise_faults(record.device)


def report_where(is_bad: Tensor, error: type[Exception], message: str) -> None:
    """Have an error raised at the next look if any of is_bad holds; waits for nothing.

    Args:
        is_bad: any shape, bool, on a device whose values the host does not know.
        message: `{position}` in it is the first place that is bad.
    """
    if is_bad.device.type != "cuda" or torch.compiler.is_compiling() or importlib.util.find_spec("triton") is None:
        torch._assert_async(~is_bad.any(), message)
        return
    triton_report = importlib.import_module("deeprec.kernels.faults.triton_report")  # not before a GPU needs it
    triton_report.start_report(is_bad, _number_for(_Check(error, message)))


def _number_for(check: _Check) -> int:
    """The number of a check that is not known beforehand; one a message."""
    with _lock:
        if check not in _CHECKS:
            _CHECKS.append(check)
        return _CHECKS.index(check) + 1
