"""What this machine is and what its memory can do: versions, hardware, and limits measured in the same run."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deeprec._hardware import hardware
from deeprec.kernels._library import cpu_isa, cuda_load_error, operators

SOURCE = Path(__file__).with_name("limits.cpp")
TRAFFIC = 64 << 20  # bytes of rows a measurement reads: well beyond the last cache
RESULT = 8 << 20  # bytes of the result that the rows are written to, again and again
DISTANCES = (1, 2, 4, 8, 16, 24, 32)
PACKAGES = ("torch", "fbgemm-gpu-cpu", "torchrec", "numpy", "triton")
GPU_PACKAGES = ("fbgemm-gpu", "cut-cross-entropy", "liger-kernel", "faiss-gpu-cu12", "faiss-gpu")
COPY = "copy"  # the limit of work that reads and writes its memory in order
ASKED = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "pstate")


@dataclass(frozen=True)
class Gather:
    """The limit of an access pattern: random rows of `row_bytes` out of `num_rows`, written out again or not."""

    row_bytes: int
    num_rows: int
    writes: bool

    @property
    def label(self) -> str:
        """As tables and charts print it."""
        return f"{self.row_bytes} B rows of {self.num_rows:,}, {'read and written' if self.writes else 'read'}"


def versions() -> dict[str, str]:
    """Of Python and of every package whose speed is shown; a missing one is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES + GPU_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Hardware, and the instruction set that our kernels chose."""
    return {**hardware(), "deeprec_kernels": cpu_isa() or "references (nothing compiled)"}


def gpu(op: str) -> dict[str, Any]:
    """The current GPU, settings of its products, and what serves the operators of kernels/OP, or all in use there."""
    own = [operator for operator in operators() if f".kernels.{op}." in f"{operator.reference.__module__}."]
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda or torch.version.hip,
        "float32_products": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "implementations": {o.name: o.implementation("cuda")[0] for o in own or operators()},
        "compiled_not_loaded": cuda_load_error(),
        **_smi(str(properties.uuid)),
    }


def _smi(uuid: str) -> dict[str, str]:
    """Driver, clocks and power as nvidia-smi reads them now; nothing where it is missing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "-i", f"GPU-{uuid}", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [word.strip() for word in done.stdout.split(",")]
    return dict(zip(ASKED, found, strict=True)) if len(found) == len(ASKED) else {}


class Limits:
    """Bytes a second that this machine reaches; measured at every call, the best value so far counts."""

    def __init__(self) -> None:
        self.measured: dict[str, float] = {}
        self.reason = ""
        try:
            self._library = _compile()
        except (OSError, RuntimeError) as error:
            self._library, self.reason = None, str(error)

    def of(self, pattern: Gather | str | None) -> tuple[float | None, str | None]:
        """Bytes a second and the name of a limit; None where there is none or it cannot be measured."""
        if pattern is None or self._library is None:
            return None, None
        return (self.gather(pattern), pattern.label) if isinstance(pattern, Gather) else (self.copy(), pattern)

    def gather(self, pattern: Gather) -> float | None:
        """Bytes of ids, rows read and rows written a second; None without a compiler."""
        if self._library is None:
            return None
        return self._keep(pattern.label, self._measure_gather(self._library, pattern))

    def copy(self) -> float | None:
        """Bytes read and written a second by a large copy; None without a compiler."""
        if self._library is None:
            return None
        source = torch.ones(2 * TRAFFIC, dtype=torch.uint8)
        target = torch.empty_like(source)
        sizes = (target.data_ptr(), source.data_ptr(), source.numel(), torch.get_num_threads())
        ways = [functools.partial(self._library.copy, *sizes, streaming) for streaming in (0, 1)]
        return self._keep(COPY, 2 * source.numel() / _best([*ways, lambda: target.copy_(source)]))

    def _keep(self, name: str, value: float) -> float:
        self.measured[name] = max(value, self.measured.get(name, 0.0))
        return self.measured[name]

    def _measure_gather(self, library: ctypes.CDLL, pattern: Gather) -> float:
        count = TRAFFIC // pattern.row_bytes
        table = torch.ones(pattern.num_rows * pattern.row_bytes, dtype=torch.uint8)
        ids = torch.randint(pattern.num_rows, (count,))
        threads = torch.get_num_threads()
        out_rows = 1 << (RESULT // pattern.row_bytes // threads).bit_length() - 1
        out = torch.zeros(threads * out_rows * pattern.row_bytes, dtype=torch.uint8)
        where = out.data_ptr() if pattern.writes else None
        sizes = (table.data_ptr(), ids.data_ptr(), count, pattern.row_bytes, where, out_rows, threads)
        ways = [
            functools.partial(library.gather, *sizes, distance, streaming, into_second_level)
            for distance in DISTANCES
            for streaming in ((0, 1) if pattern.writes else (0,))
            for into_second_level in (0, 1)
        ]
        moved = count * (8 + pattern.row_bytes * (2 if pattern.writes else 1))
        return moved / _best(ways)


def _best(ways: list[Callable[[], object]], repeats: int = 5) -> float:
    """The shortest time that any of the ways took."""
    best = float("inf")
    for _ in range(repeats):
        for way in ways:
            started = time.perf_counter()
            way()
            best = min(best, time.perf_counter() - started)
    return best


def _compile() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("limits are not measured: no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "limits.so"
        options = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        done = subprocess.run(
            [compiler, *options, str(SOURCE), "-o", str(output)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"limits are not measured: {SOURCE.name} does not compile: {done.stderr[-500:]}")
        library = ctypes.CDLL(str(output))
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.gather.argtypes = [pointer, pointer, size, size, pointer, size, number, size, number, number]
    library.gather.restype = ctypes.c_float
    library.copy.argtypes = [pointer, pointer, size, number, number]
    library.copy.restype = None
    return library
