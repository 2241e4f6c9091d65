"""What the GPU kernels are, read from their machine code for an H200 (sm_90); no GPU is needed, and nothing is timed.

    python -m bench.gpu_static [--json FILE] [--only TEXT]

Every `CompileCase` of every Triton kernel and every csrc/cuda/*.cu is compiled. For each: registers, spills, shared
memory, 16-byte loads, loads in flight before the first is read, programs that fit a multiprocessor, and, where a
kernel moves memory rather than multiplies, the bytes that it moves at its main shape beside those that it must.
The page FILE with .md goes beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = "deeprec-gpu-static/1"
TARGET = "sm_90"
ROOT = Path(__file__).resolve().parents[1]
# An H200: NVIDIA's data sheet, and the tuning guide of Hopper for what a multiprocessor holds.
BANDWIDTH, MULTIPROCESSORS = 4.8e12, 132
WARPS, PROGRAMS, REGISTERS, SHARED = 64, 32, 65536, 233472
LATENCY = 700e-9  # seconds of a load from memory: bandwidth x latency is what must be in flight
SECTOR = 32  # bytes that memory hands out at a time


class Work(NamedTuple):
    """Bytes of one unit of work (an entry, a sample, a row).

    Attributes:
        shape: the main shape in words.
        moved: by the kernel, counted in sectors where it gathers.
        floor: what any kernel would have to move.
    """

    shape: str
    moved: float
    floor: float


def sectors(row_bytes: int) -> float:
    """Bytes that a gathered row costs: whole sectors, one more for each that an unaligned row straddles."""
    if row_bytes % SECTOR == 0:
        return row_bytes
    step = math.gcd(row_bytes, SECTOR)  # rows begin at its multiples, each as often as the others
    begins = range(0, SECTOR, step)
    return SECTOR * sum(math.ceil((begin + row_bytes) / SECTOR) for begin in begins) / len(begins)


def touched(entries: int, rows: int) -> float:
    """Distinct rows an entry when `entries` ids are drawn evenly from `rows`."""
    return rows * -math.expm1(entries * math.log1p(-1 / rows)) / entries


BATCH, ROWS, FIELDS = 65536, 100_000, 26
ELEMENT = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2}


def work_of(case: str) -> Work | None:
    """The bytes of a case of the kernels that move memory; None for the others (products, searches, plans)."""
    match = re.search(r"_(fp32|fp64|bf16|fp16)(?:_(?:i32|i64))?(?:_d(\d+))?$", case)
    if match is None:
        return None
    e, d = ELEMENT[match.group(1)], int(match.group(2) or 64)
    wide, row = max(e, 4), int(match.group(2) or 64) * ELEMENT[match.group(1)]
    name = case[: match.start()]
    tables = f"{FIELDS} tables of {ROWS:,} rows, D {d}, batch {BATCH:,}"
    u = touched(BATCH, ROWS)
    if name in ("bags_gather", "embedding_fwd"):
        index = 4 if "_i32" in case else 8
        return Work(f"an id; {tables}", sectors(row) + index + row, 2 * row + index)
    if name in ("bags_sum", "bags_weighted", "bags_max"):
        length, extra = 20, e if name == "bags_weighted" else 0
        out = row + (8 * d if name == "bags_max" else 0)
        entry = 8 + extra + (8 + out) / length
        return Work(f"an entry; bags of {length}; {tables}", sectors(row) + entry, row + entry)
    if name == "embedding_fm_fwd_plain":
        rest = FIELDS * (8 + e) + e + wide * d  # ids, linear weights; out, sums
        moved = FIELDS * (sectors(row) + SECTOR - e) + rest  # a linear weight costs a sector
        return Work(f"a sample; {tables}", moved, FIELDS * row + rest)
    plan = u * (8 + 4 + 4 + 4)  # row, offset, table, pieces
    if name in ("bags_grad", "bags_norm") or name.startswith("bags_update_"):
        read = 4 + (4 if name.endswith("_bags") else 0)  # order, bags
        done = row if name == "bags_grad" else wide if name == "bags_norm" else 2 * row + _states(name, d, wide)
        return Work(f"an entry; {tables}", read + sectors(row) + plan + u * done, 4 + row + u * (8 + done))
    if name == "embedding_fm_grad" or re.fullmatch("embedding_fm_(norm|update_.*)", name):
        source = 4 + wide * d / FIELDS  # order; S of a sample is read for all its fields, from the cache but once
        own = row + e  # the row and its linear weight
        done = own if "grad" in name.split("_")[2] else _states(name, d, wide) + _states(name, 1, wide)
        done = wide if name.endswith("norm") else done + own
        return Work(f"an entry; {tables}", source + plan + u * (own + done), source + u * (8 + own + done))
    if name.startswith("sampled_linear_loss"):
        length = 165  # MovieLens 1M by user
        read = 8 + 2 * wide  # column, target, weight
        done = 2 * wide + 2 * row / length  # prediction, slope; the hidden row and its gradient
        return Work(f"an entry; rows of {length}, H {d}", sectors(row) + SECTOR + read + done, row + e + read + done)
    if name.startswith(("fm_interaction_fwd", "bi_interaction_fwd")):
        out = row if name.startswith("bi") else e
        return Work(f"a sample; F {FIELDS}, D {d}", FIELDS * row + out, FIELDS * row + out)
    if name == "fm_interaction_grad":
        return Work(f"a sample; F {FIELDS}, D {d}", 3 * FIELDS * row + e, 2 * FIELDS * row + e)
    if name == "embedding_grad":
        return Work(f"an entry; {tables}", 4 + sectors(row) + u * (row + 4), 4 + row + u * (row + 4))
    if re.fullmatch("(sgd|adagrad|rowwise_adagrad|adam)_update", name):
        done = 8 + 3 * row + _states(f"_{'momentum' if name.startswith('sgd') else name[:-7]}", d, wide)
        return Work(f"a row; D {d}", done, done)
    return None


def _states(name: str, d: int, wide: int) -> int:
    """Bytes of the optimizer's states of a row, read and written."""
    if "rowwise" in name:
        return 2 * wide
    if name.endswith("_adam") or "_adam_" in name:
        return 4 * wide * d
    return 0 if "sgd" in name else 2 * wide * d


def occupancy(registers: int, num_warps: int, shared: int) -> int:
    """Warps of a multiprocessor that the kernel fills, of 64."""
    a_warp = -(-registers * 32 // 256) * 256  # allocated 256 at a time
    programs = min(PROGRAMS, WARPS // num_warps, REGISTERS // (a_warp * num_warps), SHARED // (shared + 1024))
    return programs * num_warps


def finish(row: dict[str, Any]) -> dict[str, Any]:
    """Add what follows from the machine code: occupancy, bytes in flight, bytes moved."""
    if row["error"]:
        return row
    warps = occupancy(row["registers"], row["num_warps"], row["shared_bytes"])
    in_flight = warps * 32 * row["loads_in_flight"] * row["widest_load_bits"] // 8
    row |= {"warps_of_64": warps, "bytes_in_flight": in_flight, "is_enough": in_flight >= needed_in_flight()}
    work = work_of(row["case"])
    row["work"] = work and {**work._asdict(), "over_floor": work.moved / work.floor}
    return row


def needed_in_flight() -> float:
    """Bytes that a multiprocessor must have asked for to use the whole bandwidth."""
    return BANDWIDTH / MULTIPROCESSORS * LATENCY


def triton_rows(only: str) -> list[dict[str, Any]]:
    """Every case of the Triton kernels whose name contains `only`."""
    from deeprec.kernels._gpu_code import cases_for, compile_case

    wanted = [i for i, case in enumerate(cases_for(TARGET)) if only in case.name]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [finish(row) for row in pool.map(compile_case, wanted, [TARGET] * len(wanted), [True] * len(wanted))]


def cuda_rows(only: str) -> tuple[list[dict[str, Any]], str]:
    """Every kernel in csrc/cuda, and the reason where there is none."""
    sources = [path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if only in path.stem]
    if shutil.which("nvcc") is None:
        return [], "nvcc is not installed: csrc/cuda was left out"
    return [row for path in sources for row in _cuda_source(path)], ""


def _cuda_source(path: Path) -> list[dict[str, Any]]:
    import torch
    import triton

    from deeprec.kernels._gpu_code import loads

    include = Path(torch.__file__).parent / "include"
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "code.cubin"
        command = ["nvcc", "-cubin", path, "-o", cubin, "-std=c++20", "-O3", f"-arch={TARGET}", "-isystem", include]
        command += ["-Xptxas", "-v"]
        command += ["-DUSE_CUDA", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
        sass = subprocess.run([tools / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    code = dict(re.findall(r"\.section\s+\.text\.(\w+).*?\n(.*?)(?=\n\t?\.section|\Z)", sass, re.DOTALL))
    # An array that is indexed lies on the stack too, so here the assembler says what was spilled.
    spills = dict(re.findall(r"Function properties for (\w+)\n.*?(\d+) bytes spill stores", report))
    rows = []
    for symbol, numbers in re.findall(r"Function (\w+):\s+(.*)", usage.stdout):
        found = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", numbers))
        match = re.search(r"\d([a-z][a-z_]*_kernel)(?:I(\w)E)?", symbol)
        kernel, kind = match.groups() if match else (symbol, "")
        row = {"case": f"{kernel}_{ {'i': 'i32', 'l': 'i64'}.get(kind, kind) }", "kernel": kernel, "target": TARGET}
        row |= {"error": "", "registers": int(found["REG"]), "shared_bytes": int(found.get("SHARED", 0))}
        row |= {"stack_bytes": int(found["STACK"]), "spill_bytes": int(spills[symbol])}
        row["num_warps"] = 8  # our CUDA kernels are launched with 256 threads
        rows.append(finish({**row, **loads(code.get(symbol, ""))}))
    return rows


COLUMNS = (
    "case",
    "registers",
    "spills",
    "shared B",
    "16-byte loads",
    "in flight",
    "warps of 64",
    "KB in flight an SM",
    "bytes moved / floor",
)


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = result["kernels"]
    lines = [
        "# GPU kernels, read from their machine code",
        "",
        f"Made by `python -m bench.gpu_static` without a GPU; nothing was timed. Target {result['target']} (H200), "
        f"triton {result['versions']['triton']}. {len(rows)} kernels; registers spilled: "
        f"{sum(1 for row in rows if row['spill_bytes']) or 'in none'}.",
        "",
        "`in flight`: loads of the widest kind issued before an instruction reads the first of them. `warps of 64`: "
        "what fits a multiprocessor by registers, shared memory and threads. `KB in flight an SM`: the two together; "
        f"{result['needed_in_flight'] / 1000:.0f} KB use {BANDWIDTH / 1e12} TB/s at a latency of {LATENCY * 1e9:.0f} "
        "ns. `bytes moved / floor`: by calculation, in 32-byte sectors where rows are gathered, at the shape in the "
        "JSON.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for row in rows:
        work = row["work"]
        moved = f"{work['moved']:.0f} / {work['floor']:.0f} = {work['over_floor']:.2f}" if work else "-"
        cells = (row["case"], row["registers"], row["spill_bytes"], row["shared_bytes"], row["vector_loads"])
        more = (row["loads_in_flight"], row["warps_of_64"], f"{row['bytes_in_flight'] / 1000:.0f}", moved)
        lines.append(f"| {' | '.join(map(str, (*cells, *more)))} |")
    for name, reason in result["missing"].items():
        lines += ["", f"Not here: {name}: {reason}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_static", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "gpu_static.json")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("gpu_static: kernels do not compile under TRITON_INTERPRET=1; unset it")
    import torch
    import triton

    rows, (cuda, reason) = triton_rows(arguments.only), cuda_rows(arguments.only)
    failed = [row for row in rows if row["error"]]
    for row in failed:
        print(f"{row['case']}: {row['error']}", file=sys.stderr)
    kernels = [row for row in rows + cuda if not row["error"]]
    result = {
        "schema": SCHEMA,
        "target": TARGET,
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "needed_in_flight": needed_in_flight(),
        "missing": {"csrc/cuda": reason} if reason else {},
        "kernels": kernels,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.json.with_suffix(".md").write_text(page(result), encoding="utf-8")
    spilled = [row["case"] for row in kernels if row["spill_bytes"]]
    print(f"{len(kernels)} kernels in {arguments.json}; spills: {', '.join(spilled) or 'none'}")
    return 1 if failed or spilled else 0


if __name__ == "__main__":
    sys.exit(main())
