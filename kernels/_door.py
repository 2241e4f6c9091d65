"""The one door to the GPU: every Triton kernel is started by `launch`, every launcher is called through `launcher`.

A new operator passes through it so:

1. `kernels/<op>/triton_kernels.py` has a function named like the operator that takes the operator's arguments, and
   starts its kernels by `launch(kernel, grid, ...)` instead of `kernel[grid](...)`.
2. `kernels/<op>/checks.py` has `CHECKS`: name of the operator -> a function of the operator's arguments that raises
   what the reference and the C++ kernel raise, in their words and order. It looks at values of CPU tensors alone; what
   only a wait for the GPU could find out is the kernel's own to find, as a fault on the device.
3. `kernels/<op>/__init__.py` calls `_library.implement_triton(op, names)`, which registers `launcher(op, name)`.

Tests call `launcher(op, name)` under the interpreter, so what they try is what a GPU gets.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from deeprec.kernels.faults import raise_faults

# How often each kernel was started in this process; a test that meant a kernel and ran a reference sees it here.
launches: Counter[str] = Counter()

# Numbers of an optimizer's step, which may lie on the host beside tables on a GPU.
_ANYWHERE = frozenset({"lr", "step"})


class NotOnDeviceYet(Exception):
    """While a CUDA graph was captured, a launcher missed numbers that its first call copies."""


def launch(kernel: Any, grid: Sequence[int], /, *arguments: Any, **options: Any) -> None:
    """Start a Triton kernel on the current device; the only place where one is started.

    Args:
        kernel: a `@triton.jit` function.
        grid: programs in each dimension.
        arguments, options: of the kernel, its constants, and `num_warps` and the like.
    """
    launches[kernel.__name__] += 1
    kernel[grid](*arguments, **options)


def _tensors(names: Sequence[str], arguments: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a call with the name of its argument, or of its place in a list."""
    for name, given in zip(names, arguments, strict=False):  # arguments with defaults may be missing
        if isinstance(given, Tensor):
            yield name, given
        elif isinstance(given, (list, tuple)):
            for place, part in enumerate(given):
                if isinstance(part, Tensor):
                    yield f"{name}[{place}]", part


def check_devices(function: str, names: Sequence[str], arguments: Sequence[Any]) -> torch.device:
    """The device that all tensors of a call lie on.

    Args:
        names: of the arguments, as in the operator's schema; `lr` and `step` may lie on the CPU instead.
    Raises:
        ValueError: a tensor lies elsewhere than the first one.
    """
    first, device = "", None
    for name, given in _tensors(names, arguments):
        if device is None:
            first, device = name, given.device
        elif given.device != device and not (name in _ANYWHERE and given.device.type == "cpu"):
            raise ValueError(
                f"{function}: {name} must be on {device} like {first}, got {given.device}; move it with .to({device})"
            )
    assert device is not None, f"{function} has no tensor among its arguments"
    return device


def launcher(op: str, name: str, module: str = "triton_kernels") -> Callable[..., Any]:
    """What serves operator `name` of kernels/<op> on a GPU: checks its arguments, then calls its launcher there.

    Nothing of Triton is imported before the first call.

    Args:
        module: the file of kernels/<op> that has the launcher.
    """
    parts: list[Any] = []

    def start(*arguments: Any) -> Any:
        if not parts:
            function = getattr(importlib.import_module(f"deeprec.kernels.{op}.{module}"), name)
            names = [argument.name for argument in getattr(torch.ops.deeprec, name).default._schema.arguments]
            parts.extend((function, check_of(op, name), names))
        function, check, names = parts
        device = check_devices(name, names, arguments)
        raise_faults(device)  # at what earlier calls have met by now
        if check is not None:
            check(*arguments)
        # Triton launches on the current device, whatever that of the tensors; the interpreter has none.
        with torch.cuda.device(device) if device.type != "cpu" else nullcontext():
            try:
                return function(*arguments)
            except NotOnDeviceYet:
                reason, remedy = "numbers of its tables are not on the GPU yet", "call it once so before the capture"
                refuse_capture(name, device, reason, remedy)
                raise

    return start


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on a device now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_capture(function: str, device: torch.device, reason: str, remedy: str) -> None:
    """Raise RuntimeError where a CUDA graph is being captured; for what waits for the GPU.

    Args:
        reason: why, e.g. "it waits for the GPU to count the rows".
        remedy: what to do instead.
    """
    if is_capturing(device):
        raise RuntimeError(f"{function}: cannot be captured in a CUDA graph: {reason}; {remedy}")


def check_of(op: str, name: str) -> Callable[..., None] | None:
    """What `CHECKS` of kernels/<op>/checks.py has for an operator; None without one."""
    path = f"deeprec.kernels.{op}.checks"
    if importlib.util.find_spec(path) is None:
        return None
    checks: dict[str, Callable[..., None]] = getattr(importlib.import_module(path), "CHECKS", {})
    return checks.get(name)
