"""A table on the screen, and the page of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.figures import fraction, ratio, seconds
from bench.harness import FRACTIONS
from bench.machine import ASKED, COPY

SCHEMA = "deeprec-bench/1"
LIMITS = {"limit": "the measured limit", COPY: "the measured copy"}
LONG_GROUP = 12  # cases; beyond that a group is folded away on the page

COLUMNS = ("", "median", "quartiles", "rate", "of limit", "deeprec is faster by")
GPU_COLUMNS = (
    "",
    "GPU, median",
    "quartiles",
    "single steps, quartiles",
    "cold by",
    "rate",
    "of limit",
    "of copy",
    "deeprec is faster by",
    "host: to enqueue",
    "host: with wait",
    "with wait, faster by",
)


def _columns(device: str) -> tuple[str, ...]:
    return COLUMNS if device == "cpu" else GPU_COLUMNS


def _cells(case: dict[str, Any], row: dict[str, Any]) -> list[str]:
    rate = f"{row['bytes_per_second'] / 1e9:.1f} GB/s"
    if case["flops"] and not case["bytes"]:
        rate = f"{case['flops'] / row['median'] / 1e9:.0f} GFLOP/s"
    is_ours = row["name"] == "deeprec"
    first = [row["name"], seconds(row["median"]), f"{seconds(row['low'])} - {seconds(row['high'])}"]
    faster = "1" if is_ours else ratio(row["ratio"])
    if "waited" not in row:
        return [*first, rate, fraction(row["fraction"]), faster]
    return [
        *first,
        f"{seconds(row['step_low'])} - {seconds(row['step_high'])}",
        row["cold"],
        rate,
        fraction(row["fraction"]),
        fraction(row["fraction_of_copy"]),
        faster,
        seconds(row["enqueue"]),
        seconds(row["waited"]),
        "1" if is_ours else ratio(row["waited_ratio"]),
    ]


def show(result: dict[str, Any]) -> str:
    """The whole result of an op, as text for a terminal."""
    lines = [f"{result['op']}: {describe(result)}"]
    for case in result["cases"]:
        lines += ["", f"{case['case']}   ({_work(case)})"]
        lines += _aligned([_columns(device_of(result)), *(_cells(case, row) for row in case["rows"])])
        lines += [f"  not here: {name} ({reason})" for name, reason in case["missing"].items()]
    return "\n".join([*lines, "", *(f"{target['work']}: {_verdict(target)}" for target in result["targets"])])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def device_of(result: dict[str, Any]) -> str:
    """Of a result file; those from before there was a choice are of the CPU."""
    return str(result.get("device", "cpu"))


def describe(result: dict[str, Any]) -> str:
    """Hardware, versions and limits in a line."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    limits = ", ".join(f"{name} {value / 1e9:.1f} GB/s" for name, value in result["limits"].items())
    missing = f"; {result['limits_missing']}" if result["limits_missing"] else ""
    return (
        f"{_gpu(machine['gpu'])}{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, kernels "
        f"{machine['deeprec_kernels']}; {versions}; limits: {limits or 'none'}{missing}"
    )


def _gpu(gpu: Any) -> str:
    """Of a result of a GPU: what it is and how it was set; of others "gpu" is a name or None."""
    if not isinstance(gpu, dict):
        return ""
    smi = ", ".join(f"{name} {gpu[name]}" for name in ASKED if name in gpu)
    served = ", ".join(f"{name}: {by}" for name, by in gpu["implementations"].items())
    return (
        f"{gpu['name']} (capability {gpu['capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"L2 {gpu['l2_bytes'] / 2**20:.0f} MiB, {gpu['memory_bytes'] / 2**30:.0f} GiB, CUDA {gpu['cuda']}"
        f"{', ' + smi if smi else ''}), float32 products {gpu['float32_products']}; served by {served or '-'}; host: "
    )


def _work(case: dict[str, Any]) -> str:
    parts = [f"{case['bytes'] / 1e6:.3g} MB"] if case["bytes"] else []
    parts += [f"{case['flops'] / 1e6:.3g} MFLOP"] if case["flops"] else []
    parts += [case["scale"]] if case.get("scale") else []
    parts += [f"limit {case['limit_bytes_per_second'] / 1e9:.1f} GB/s: {case['limit']}"] if case["limit"] else []
    return ", ".join(parts)


def _verdict(target: dict[str, Any]) -> str:
    over = {"min": "", "median": " (median)"}[target["over"]]
    if target["rival"] in FRACTIONS:
        reach = f"{target['reach']:.0%} of {LIMITS[target['rival']]}"
        got = None if target["got"] is None else fraction(target["got"])
    else:
        reach = f"{target['reach']:g}x {target['rival']}"
        got = None if target["got"] is None else ratio(target["got"])
    if got is None:
        return f"to reach {reach}{over}: not measured"
    return f"to reach {reach}{over}, got {got}: {'reached' if target['reached'] else 'not reached'}"


def load(folder: Path) -> list[dict[str, Any]]:
    """Every result of this harness in a folder, by op."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if isinstance(result, dict) and result.get("schema") == SCHEMA]


CPU_PAGE = (
    "Written by `make bench`; one op alone: `python -m bench OP`. Before anything is timed, every",
    "contender's result is compared with a float64 reference; ours must agree, and a rival that does not",
    "is left out. The contenders of a case take turns within one process, on the same inputs, eight",
    "batches in rotation, so that rows are as cold as in training. Shown are medians and quartiles. Bytes",
    "are by calculation: what must be moved, nothing else. `of limit` is their rate as a fraction of what",
    "a C++ loop with software prefetch and nothing else to do reaches on rows of the same size out of a",
    "table of the same size, measured in the same run.",
)
GPU_PAGE = (
    "Written by `python -m bench all --device cuda`; one op alone: `python -m bench OP --device cuda`. Before",
    "anything is timed, every contender's result is compared with a float64 reference; ours must agree, and a",
    "rival that does not is left out. The contenders of a case take turns within one process, on the same inputs.",
    "Times of the GPU are by CUDA events: many steps between two, enqueued while the GPU is held back, and single",
    "steps between events of their own. Beside them stand the host's seconds to enqueue a step, and those of a step",
    "with a wait for its end. `cold by` says how inputs left the L2 cache: `rotation`, batches that take turns move",
    "more than six times its size, or `flush`, a buffer of twice its size is written before each step. Bytes are by",
    "calculation: what must be moved, nothing else. `of limit` is their rate as a fraction of what a gather with",
    "nothing else to do reaches on rows of the same size out of a table of the same size, `of copy` that of a large",
    "copy, both measured in the same run. Products of float32 are float32 for all, without TF32.",
)


def page(results: Sequence[dict[str, Any]], plots: Iterable[str]) -> str:
    """The results as Markdown: targets first, then every op with its charts."""
    pictures = sorted(plots)
    device = device_of(results[0]) if results else "cpu"
    lines = [
        "# Speed of the kernels" + ("" if device == "cpu" else " on a GPU"),
        "",
        *(CPU_PAGE if device == "cpu" else GPU_PAGE),
        "",
        "## To reach, and reached",
        "",
        "| work | rival | to reach | got | |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        lines += [_target_row(target) for target in result["targets"]]
    for result in results:
        lines += ["", f"## {result['op']}", "", f"{describe(result)}.", ""]
        lines += [f"![{name}]({name})" for name in pictures if name.startswith(f"{result['op']}-")]
        lines += ["", *_tables(result["cases"], device)]
        missing = {f"{name}: {why}" for case in result["cases"] for name, why in case["missing"].items()}
        lines += ["", "Not measured: " + "; ".join(sorted(missing)) + "."] if missing else []
    return "\n".join(lines) + "\n"


def _tables(cases: Sequence[dict[str, Any]], device: str) -> list[str]:
    """One table of all cases; the cases of a large group in short, folded away."""
    groups = Counter(case["group"] for case in cases)
    columns = _columns(device)[1:]
    lines = [f"| work | contender | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for case in cases:
        if groups[case["group"]] <= LONG_GROUP:
            for index, row in enumerate(case["rows"]):
                lines.append(f"| {_named(case) if index == 0 else ''} | {' | '.join(_cells(case, row))} |")
    lines = lines if len(lines) > 2 else []
    for group, count in groups.items():
        if count > LONG_GROUP:
            lines += ["", f"<details><summary>{group}: {count} cases</summary>", "", "| work | deeprec | rivals |"]
            lines += ["|---|---|---|", *(_short(case) for case in cases if case["group"] == group), "", "</details>"]
    return lines


def _named(case: dict[str, Any]) -> str:
    return f"{case['case']} ({case['scale']})" if case.get("scale") else str(case["case"])


def _short(case: dict[str, Any]) -> str:
    ours = next(row for row in case["rows"] if row["name"] == "deeprec")
    rivals = [f"{r['name']} {seconds(r['median'])} ({ratio(r['ratio'])})" for r in case["rows"] if r is not ours]
    return f"| {_named(case)} | {seconds(ours['median'])} | {', '.join(rivals)} |"


def _target_row(target: dict[str, Any]) -> str:
    form = fraction if target["rival"] in FRACTIONS else ratio
    rival = LIMITS.get(target["rival"], target["rival"]).removeprefix("the ")
    got = "not measured" if target["got"] is None else form(target["got"])
    sign = {None: "", True: "reached", False: "**not reached**"}[target["reached"]]
    work = target["work"] + (" (median of cases)" if target["over"] == "median" else "")
    return f"| {work} | {rival} | {form(target['reach'])} | {got} | {sign} |"
