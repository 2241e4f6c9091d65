"""What this installation can do: which implementation serves each operator, and why a better one is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import platform
from typing import TYPE_CHECKING, Any

import torch

import deeprec
import deeprec.kernels
from deeprec._install import install_command
from deeprec.kernels import _library

if TYPE_CHECKING:
    from rich.console import RenderableType

_DEVICES = ("cpu", "cuda")
_DISTRIBUTIONS = (
    "torch",
    "numpy",
    "polars",
    "safetensors",
    "triton",
    "pandas",
    "pyarrow",
    "rich",
    "typer",
    "matplotlib",
)


def report() -> dict[str, Any]:
    """Facts about this installation, ready for `json.dumps`.

    Returns:
        deeprec, python, platform: str.
        versions: distribution -> version, None where it is not installed.
        cpu: compiled, reason, instruction_set, processor, num_processors, num_threads.
        cuda: available, torch_cuda, compiled, reason, devices (name, capability, memory_gib).
        triton: installed, interpreter, reason.
        operators: name -> {schema, cpu: {implementation, reason}, cuda: {implementation, reason}}; reason is "" where
            the best implementation there is serves.
        data: searched (folders), sets: name -> {title, interactions, folder: None where the files are not found}, and
            reason: why no data can be read here, "" where it can.
    """
    return {
        "deeprec": deeprec.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _DISTRIBUTIONS},
        "cpu": _cpu(),
        "cuda": _cuda(),
        "triton": _triton(),
        "operators": _operators(),
        "data": _data(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    reason = _library.load_error()
    return {
        "compiled": not reason,
        "reason": reason,
        "instruction_set": _library.cpu_isa() or None,
        "processor": _processor(),
        "num_processors": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """Model name of the processor; Linux keeps it where platform.processor() does not look."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123, a device file rather than a path of ours
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cuda() -> dict[str, Any]:
    available = torch.cuda.is_available()
    reason = _library.cuda_load_error()
    devices = []
    for index in range(torch.cuda.device_count() if available else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return {
        "available": available,
        "torch_cuda": torch.version.cuda,
        "compiled": not reason,
        "reason": reason,
        "devices": devices,
    }


def _triton() -> dict[str, Any]:
    installed = _library.has_triton()
    return {
        "installed": installed,
        "interpreter": os.environ.get("TRITON_INTERPRET") == "1",
        "reason": "" if installed else f"not installed; {install_command('gpu')}",
    }


def _operators() -> dict[str, Any]:
    for package in pkgutil.iter_modules(deeprec.kernels.__path__):
        if package.ispkg:
            importlib.import_module(f"deeprec.kernels.{package.name}")
    table: dict[str, Any] = {}
    for operator in _library.operators():
        table[operator.name] = {"schema": operator.schema}
        for device in _DEVICES:
            implementation, reason = operator.implementation(device)
            table[operator.name][device] = {"implementation": implementation, "reason": reason}
    return table


def _data() -> dict[str, Any]:
    try:
        from deeprec import data
    except ModuleNotFoundError as error:  # kernels and layers need torch and numpy alone, and so does this report
        return {"searched": [], "sets": {}, "reason": f"{error.name} is not installed; {install_command()}"}
    sets = {}
    for entry in data.list_datasets():
        folder = data.find(entry.name)
        sets[entry.name] = {"title": entry.title, "interactions": entry.rows, "folder": str(folder) if folder else None}
    return {"searched": [str(path) for path in data.search_dirs()], "sets": sets, "reason": ""}


def render(facts: dict[str, Any]) -> RenderableType:
    """The same facts as tables for a terminal.

    Args:
        facts: what `report` returns.
    """
    from rich.console import Group

    return Group(_facts_table(facts), _operator_table(facts), *_reason_lines(facts), *_data_tables(facts))


def _facts_table(facts: dict[str, Any]) -> RenderableType:
    from deeprec.cli.console import table

    cpu, cuda, triton = facts["cpu"], facts["cuda"], facts["triton"]
    rows = table("", "", title=f"deeprec {facts['deeprec']}", show_header=False)
    rows.add_row("system", f"{facts['platform']}, Python {facts['python']}")
    rows.add_row("versions", ", ".join(f"{name} {version or '-'}" for name, version in facts["versions"].items()))
    rows.add_row("processor", f"{cpu['processor']}, {cpu['num_processors']} cores, {cpu['num_threads']} threads in use")
    rows.add_row("C++ kernels", f"yes, {cpu['instruction_set']}" if cpu["compiled"] else f"no: {cpu['reason']}")
    gpus = ", ".join(f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')})" for gpu in cuda["devices"])
    rows.add_row("CUDA", f"{cuda['torch_cuda'] or 'this torch has none'}; {gpus or 'no GPU in this process'}")
    rows.add_row("CUDA C++ kernels", "yes" if cuda["compiled"] else f"no: {cuda['reason']}")
    interpreter = " (interpreter: TRITON_INTERPRET=1)" if triton["interpreter"] else ""
    rows.add_row("Triton", f"{facts['versions']['triton']}{interpreter}" if triton["installed"] else triton["reason"])
    return rows


def _operator_table(facts: dict[str, Any]) -> RenderableType:
    from deeprec.cli.console import table

    rows = table("operator", *_DEVICES, title="Who serves each operator")
    for name, row in facts["operators"].items():
        cells = (row[device] for device in _DEVICES)
        rows.add_row(name, *((cell["implementation"], "yellow" if cell["reason"] else "green") for cell in cells))
    return rows


def _reason_lines(facts: dict[str, Any]) -> list[RenderableType]:
    """Why a better implementation is missing, each reason once."""
    affected: dict[tuple[str, str], list[str]] = {}
    for name, row in facts["operators"].items():
        for device in _DEVICES:
            if row[device]["reason"]:
                affected.setdefault((device, row[device]["reason"]), []).append(name)
    from deeprec.cli.console import text

    total = len(facts["operators"])
    return [
        text(f"{device}: {'all operators' if len(names) == total else ', '.join(names)}: {reason}")
        for (device, reason), names in affected.items()
    ]


def _data_tables(facts: dict[str, Any]) -> list[RenderableType]:
    from deeprec.cli.console import table, text

    if facts["data"]["reason"]:
        return [text(f"data: {facts['data']['reason']}")]
    rows = table("data set", "interactions", "found in", title="Data sets", numbers=("interactions",))
    for name, row in facts["data"]["sets"].items():
        place = (row["folder"], "green") if row["folder"] else ("not found", "yellow")
        rows.add_row(f"{name}: {row['title']}", f"{row['interactions']:,}", place)
    return [rows, text(f"searched: {', '.join(facts['data']['searched'])}; more: deeprec data --help")]
