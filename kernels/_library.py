"""The operator library: loads the compiled kernels, declares schemas, and keeps the table that `deeprec doctor` prints.

Every operator has a reference in plain PyTorch that serves each device without a kernel of its own
(`CompositeExplicitAutograd`); a compiled or Triton kernel replaces it for one device. At most one implementation is
registered for an (operator, device).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import deeprec
from deeprec._install import install_command
from deeprec.kernels._door import launcher

_NAMESPACE = "deeprec"
_logger = logging.getLogger("deeprec")
_fragment = torch.library.Library(_NAMESPACE, "FRAGMENT")


@dataclass
class Operator:
    """One operator and where its implementations come from.

    Attributes:
        triton: the folder of kernels/ with its Triton launcher, whether there is a GPU or not; "" without one.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    python_kernels: dict[str, str] = field(default_factory=dict)  # device -> "triton"
    triton: str = ""

    def implementation(self, device: str) -> tuple[str, str]:
        """What serves `device` ("cpu" or "cuda"), and why nothing better does ("" where the best one serves)."""
        key = device.upper()
        if device in self.python_kernels:
            return self.python_kernels[device], ""
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE}::{self.name}", key):
            if device == "cpu":
                return f"c++ ({cpu_isa()})", ""
            return "cuda c++", ""
        return "reference", self._why_reference(device)

    def _why_reference(self, device: str) -> str:
        if device == "cpu":
            return load_error() or "no C++ kernel for this operator"
        if not torch.cuda.is_available():
            return "no GPU in this process; a GPU kernel registers when torch sees one"
        if not has_triton():
            return f"triton is not installed ({install_command('gpu')})"
        return "no GPU kernel for this operator"


_operators: dict[str, Operator] = {}


def _load(stem: str) -> str:
    """Load one compiled library; returns "" or the reason why it is missing."""
    for directory in deeprec.__path__:  # two in an editable install: what was built lies apart from the sources
        for suffix in (".so", ".dylib", ".dll"):
            path = Path(directory) / "lib" / f"lib{stem}{suffix}"
            if path.exists():
                try:
                    torch.ops.load_library(str(path))
                except OSError as error:
                    return f"{path.name} does not load: {error}"
                return ""
    return (
        f"lib{stem} was not built (no C++ compiler, or torch missing, when deeprec was installed); reinstall with a "
        f"C++ compiler: {install_command(rebuild=True)}"
    )


_cpu_error = _load("deeprec_ops")
if _cpu_error:
    _logger.warning("deeprec: compiled kernels are not in use, PyTorch references serve: %s", _cpu_error)
_cuda_error = _load("deeprec_cuda_ops") if torch.version.cuda else "this torch has no CUDA"


def load_error() -> str:
    """Why the compiled CPU kernels are not in use; "" when they are."""
    return _cpu_error


def cuda_load_error() -> str:
    """Why the compiled CUDA kernels are not in use; "" when they are."""
    return _cuda_error


def cpu_isa() -> str:
    """Instruction set of the compiled CPU kernels: "portable", "avx2", "avx512" or "avx512bf16"; "" without them."""
    if _cpu_error:
        return ""
    return ("portable", "avx2", "avx512", "avx512bf16")[torch.ops.deeprec._cpu_isa()]


def has_triton() -> bool:
    """Whether Triton can be imported (nothing is imported by asking)."""
    return importlib.util.find_spec("triton") is not None


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declare an operator `deeprec::NAME` with its reference and its shape function.

    Args:
        schema: e.g. "fm_interaction(Tensor x) -> Tensor".
        reference: plain PyTorch implementation; serves every device that has no kernel.
        fake: shape and dtype function for torch.compile and torch.export.
    """
    name = schema.split("(", 1)[0]
    _fragment.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _fragment.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_fragment)
    _operators[name] = Operator(name, schema, reference)


def implement(name: str, device: str, kernel: Callable[..., Any], kind: str = "triton") -> None:
    """Register a Python-launched kernel (Triton) of operator `name` for `device`, unless C++ already serves it."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE}::{name}", device.upper()):
        return
    _fragment.impl(name, kernel, device.upper())
    _operators[name].python_kernels[device] = kind


def implement_triton(op: str, names: tuple[str, ...]) -> None:
    """Register launchers of kernels/<op>/triton_kernels.py, by name, for CUDA and ROCm; imported at the first call."""
    for name in names:
        _operators[name].triton = op
        if has_triton() and (torch.version.cuda or torch.version.hip):
            implement(name, "cuda", launcher(op, name))


def implement_cuda(op: str, names: tuple[str, ...]) -> None:
    """Register launchers of kernels/<op>/cuda_kernels.py, by name, where the compiled CUDA kernels are in use."""
    if not _cuda_error:
        for name in names:
            implement(name, "cuda", launcher(op, name, "cuda_kernels"), "cuda c++")


def operators() -> list[Operator]:
    """All declared operators, by name."""
    return [_operators[name] for name in sorted(_operators)]
