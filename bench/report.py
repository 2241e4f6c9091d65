"""A table on the screen, and the page of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SCHEMA = "deeprec-bench/1"
LONG_GROUP = 12  # cases; beyond that a group is folded away on the page


def seconds(value: float) -> str:
    """With three figures and a fitting unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def _cells(case: dict[str, Any], row: dict[str, Any]) -> list[str]:
    rate = f"{row['bytes_per_second'] / 1e9:.1f} GB/s"
    if case["flops"] and not case["bytes"]:
        rate = f"{case['flops'] / row['median'] / 1e9:.0f} GFLOP/s"
    return [
        row["name"],
        seconds(row["median"]),
        f"{seconds(row['low'])} - {seconds(row['high'])}",
        rate,
        "-" if row["fraction"] is None else f"{row['fraction']:.0%}",
        "1" if row["name"] == "deeprec" else ratio(row["ratio"]),
    ]


COLUMNS = ("", "median", "quartiles", "rate", "of limit", "deeprec is faster by")


def show(result: dict[str, Any], console: Console) -> None:
    """The whole result of an op."""
    console.print(f"{result['op']}: {describe(result)}")
    for case in result["cases"]:
        table = Table(*COLUMNS, title=f"{case['case']}   ({_work(case)})", title_justify="left")
        for row in case["rows"]:
            table.add_row(*_cells(case, row))
        console.print(table)
        for name, reason in case["missing"].items():
            console.print(f"  not here: {name} ({reason})")
    for target in result["targets"]:
        console.print(f"{target['work']}: {_verdict(target)}")


def describe(result: dict[str, Any]) -> str:
    """Hardware, versions and limits in a line."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    limits = ", ".join(f"{name} {value / 1e9:.1f} GB/s" for name, value in result["limits"].items())
    missing = f"; {result['limits_missing']}" if result["limits_missing"] else ""
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, kernels {machine['deeprec_kernels']}; "
        f"{versions}; limits: {limits or 'none'}{missing}"
    )


def _work(case: dict[str, Any]) -> str:
    parts = [f"{case['bytes'] / 1e6:.3g} MB"] if case["bytes"] else []
    parts += [f"{case['flops'] / 1e6:.3g} MFLOP"] if case["flops"] else []
    parts += [f"limit {case['limit_bytes_per_second'] / 1e9:.1f} GB/s: {case['limit']}"] if case["limit"] else []
    return ", ".join(parts)


def _verdict(target: dict[str, Any]) -> str:
    over = {"min": "", "median": " (median)"}[target["over"]]
    if target["rival"] == "limit":
        reach = f"{target['reach']:.0%} of the measured limit"
        got = None if target["got"] is None else f"{target['got']:.0%}"
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


def page(results: Sequence[dict[str, Any]], plots: Iterable[str]) -> str:
    """The results as Markdown: targets first, then every op with its charts."""
    pictures = sorted(plots)
    lines = [
        "# Speed of the kernels",
        "",
        "Written by `make bench`; one op alone: `python -m bench OP`. Before anything is timed, every",
        "contender's result is compared with a float64 reference; ours must agree, and a rival that does not",
        "is left out. The contenders of a case take turns within one process, on the same inputs, eight",
        "batches in rotation, so that rows are as cold as in training. Shown are medians and quartiles. Bytes",
        "are by calculation: what must be moved, nothing else. `of limit` is their rate as a fraction of what",
        "a C++ loop with software prefetch and nothing else to do reaches on rows of the same size out of a",
        "table of the same size, measured in the same run.",
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
        lines += ["", *_tables(result["cases"])]
        missing = {f"{name}: {why}" for case in result["cases"] for name, why in case["missing"].items()}
        lines += ["", "Not measured: " + "; ".join(sorted(missing)) + "."] if missing else []
    return "\n".join(lines) + "\n"


def _tables(cases: Sequence[dict[str, Any]]) -> list[str]:
    """One table of all cases; the cases of a large group in short, folded away."""
    groups = Counter(case["group"] for case in cases)
    lines = [f"| work | contender | {' | '.join(COLUMNS[1:])} |", "|---" * 7 + "|"]
    for case in cases:
        if groups[case["group"]] <= LONG_GROUP:
            for index, row in enumerate(case["rows"]):
                lines.append(f"| {case['case'] if index == 0 else ''} | {' | '.join(_cells(case, row))} |")
    lines = lines if len(lines) > 2 else []
    for group, count in groups.items():
        if count > LONG_GROUP:
            lines += ["", f"<details><summary>{group}: {count} cases</summary>", "", "| work | deeprec | rivals |"]
            lines += ["|---|---|---|", *(_short(case) for case in cases if case["group"] == group), "", "</details>"]
    return lines


def _short(case: dict[str, Any]) -> str:
    ours = next(row for row in case["rows"] if row["name"] == "deeprec")
    rivals = [f"{r['name']} {seconds(r['median'])} ({ratio(r['ratio'])})" for r in case["rows"] if r is not ours]
    return f"| {case['case']} | {seconds(ours['median'])} | {', '.join(rivals)} |"


def _target_row(target: dict[str, Any]) -> str:
    is_limit = target["rival"] == "limit"
    form = (lambda value: f"{value:.0%}") if is_limit else ratio
    got = "not measured" if target["got"] is None else form(target["got"])
    sign = {None: "", True: "reached", False: "**not reached**"}[target["reached"]]
    work = target["work"] + (" (median of cases)" if target["over"] == "median" else "")
    return (
        f"| {work} | {'measured limit' if is_limit else target['rival']} | {form(target['reach'])} | {got} | {sign} |"
    )
