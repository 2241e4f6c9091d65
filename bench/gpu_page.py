"""The page of `bench.gpu_check`, made of what its steps left in a folder; what failed or did not run comes first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import fraction, ratio, seconds
from deeprec._files import write_atomically

Record = Mapping[str, Any]
ORDER = ("build", "parity", "graphs", "sanitizer", "bench", "train")
COPY = "copy"
TRAINED = (
    "The same rows, batch, optimizer and epochs. The first epoch, which compiles and warms up, is left out of the "
    "times, and so is validation. Figures are of the test part: ours of the epoch that validation chose, those of "
    "plain PyTorch of the last."
)


def write(out: Path) -> Path:
    """Write README.md into the folder of results."""
    path = out / "README.md"
    write_atomically(path, page(out).encode())
    return path


def page(out: Path) -> str:
    """The folder as Markdown."""
    records = sorted(_records(out / "steps"), key=lambda record: (_place_of(record), record["step"]))
    doctor = _read(out / "doctor.json")
    lines = [
        f"# GPU check: {_title(records)}",
        "",
        "Written by `make gpu-check`. Each step's record is in `steps/`, what it said in `logs/` (not committed), the",
        "tests one by one in `tests/`, the benches in `bench/`, the trainings in `train/`.",
        *_not_passed(records),
        *_machine(records),
        *_doctor(doctor),
        *_tests(records),
        *_sanitizer(records),
        *_benches([_read(path) for path in sorted((out / "bench").glob("*.json"))]),
        *_trainings([_read(path) for path in sorted((out / "train").glob("*.json"))]),
    ]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _records(folder: Path) -> list[Record]:
    return [record for record in map(_read, folder.glob("*.json")) if "step" in record]


def _place_of(record: Record) -> int:
    return ORDER.index(record["step"].partition("/")[0])


def _title(records: Sequence[Record]) -> str:
    if not records:
        return "nothing was run"
    key = records[-1]["key"]
    return "the stand-in, without a GPU" if key["stands_in"] else ", ".join(gpu["name"] for gpu in key["gpus"])


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Markdown; no word of a cell ends it."""
    plain = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in plain)]


def _not_passed(records: Sequence[Record]) -> list[str]:
    """What failed, was cut off or did not run, with the reason."""
    rows = [(r["step"], f"**{r['status']}**", r["reason"]) for r in records if r["status"] != "passed"]
    current = {json.dumps(record["key"], sort_keys=True) for record in records}
    lines = ["", "## Failed, or not run", ""]
    lines += table(("step", "", "why"), rows) if rows else [f"Nothing: all {len(records)} steps passed."]
    if len(current) > 1:
        lines += ["", f"**The steps are of {len(current)} states of sources, machine or versions**, see below; start "
                      "`make gpu-check` again to have all of one."]  # fmt: skip
    failures = [(name, why) for r in records for name, why in r["facts"].get("failures", {}).items()]
    if failures:
        lines += ["", "Tests that failed (at most 50 a step):", "", *table(("test", "why"), failures)]
    return lines


def _machine(records: Sequence[Record]) -> list[str]:
    """Sources, GPUs and versions, by the steps that share them."""
    states: dict[str, list[Record]] = {}
    for record in records:
        states.setdefault(json.dumps([record["commit"], record["key"]], sort_keys=True), []).append(record)
    rows = []
    for same in states.values():
        key = same[0]["key"]
        gpus = ", ".join(f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')}, {gpu['memory_gib']} GiB)"
                         for gpu in key["gpus"]) or "none"  # fmt: skip
        versions = ", ".join(f"{name} {version}" for name, version in key["versions"].items() if version)
        steps = f"all {len(same)}" if len(states) == 1 else ", ".join(record["step"] for record in same)
        rows.append((f"{same[0]['commit']} ({key['sources'][:12]})", gpus, versions, steps, same[-1]["ended"]))
    return ["", "## Machine", "", *table(("commit (sources)", "GPUs", "versions", "steps", "last ended"), rows)]


def _doctor(facts: Mapping[str, Any]) -> list[str]:
    """Who serves each operator."""
    if not facts:
        return []
    rows = [
        (name, row["cpu"]["implementation"], row["cuda"]["implementation"], row["cuda"]["reason"])
        for name, row in facts["operators"].items()
    ]
    cpu = facts["cpu"]
    return [
        "",
        "## Who serves each operator",
        "",
        f"{cpu['processor']}, {cpu['num_processors']} cores, Python {facts['python']}.",
        "",
        *table(("operator", "CPU", "GPU", "why no better"), rows),
    ]


def _tests(records: Sequence[Record]) -> list[str]:
    """Counts of the parity tests by file, and why tests were skipped."""
    tested = [r for r in records if "skipped" in r["facts"]]
    if not tested:
        return []
    rows = []
    for record in tested:
        facts = record["facts"]
        rows.append((record["step"], record["status"], facts["passed"], facts["failed"], sum(facts["skipped"].values()),
                     f"{record['seconds']:.0f} s"))  # fmt: skip
    reasons: dict[str, int] = {}
    for record in tested:
        for why, count in record["facts"]["skipped"].items():
            reasons[why] = reasons.get(why, 0) + count
    lines = ["", "## Parity", "", *table(("tests of", "", "passed", "failed", "skipped", "time"), rows)]
    if reasons:
        lines += ["", "Skipped:", "", *(f"- {count}: {why}" for why, count in sorted(reasons.items()))]
    return lines


def _sanitizer(records: Sequence[Record]) -> list[str]:
    """The verdict of each tool."""
    rows = [(r["step"].partition("/")[2], r["status"], r["reason"]) for r in records
            if r["step"].startswith("sanitizer/")]  # fmt: skip
    return ["", "## compute-sanitizer", "", *table(("tool", "", ""), rows)] if rows else []


def _benches(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ratios to each rival: of the GPU's own time, and of what the host waits."""
    results = [result for result in results if "cases" in result]
    if not results:
        return []
    rows = [row for result in results for case in result["cases"] for row in _bench_rows(result, case)]
    head = ("operator", "work", "contender", "GPU time", "host: to enqueue", "host: with wait", "of limit", "of copy",
            "deeprec is faster by", "with wait")  # fmt: skip
    lines = ["", "## Ratios to the rivals", "", *_limits(results), "", *table(head, rows)]
    targets = [target for result in results for target in result["targets"]]
    if targets:
        rows = [(t["work"], t["rival"], _reach(t, t["reach"]), _reach(t, t["got"]), _verdict(t)) for t in targets]
        lines += ["", "To reach:", "", *table(("work", "rival", "to reach", "got", ""), rows)]
    missing = {f"{name}: {why}" for result in results for case in result["cases"]
               for name, why in case["missing"].items()}  # fmt: skip
    return [*lines, "", "Rivals not measured: " + "; ".join(sorted(missing)) + "."] if missing else lines


def _limits(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The limits that were measured, each at its best."""
    best: dict[str, float] = {}
    for result in results:
        for name, value in result["limits"].items():
            best[name] = max(value, best.get(name, 0.0))
    measured = "; ".join(f"{name} {value / 1e9:,.0f} GB/s" for name, value in best.items())
    return [f"Limits measured in the same runs: {measured or 'none'}. Times of a GPU are by its own events, in cold"
            " rotation; ratios above 1 are in favour of deeprec."]  # fmt: skip


def _bench_rows(result: Mapping[str, Any], case: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for number, row in enumerate(case["rows"]):
        is_ours = row["name"] == "deeprec"
        rows.append([
            result["op"] if number == 0 else "",
            case["case"] if number == 0 else "",
            row["name"],
            seconds(row["median"]),
            seconds(row.get("enqueue")),
            seconds(row.get("waited")),
            fraction(row["fraction"]),
            fraction(row.get("fraction_of_copy")),
            "1" if is_ours else ratio(row["ratio"]),
            "1" if is_ours else ratio(row.get("waited_ratio")),
        ])  # fmt: skip
    return rows


def _reach(target: Mapping[str, Any], value: float | None) -> str:
    if value is None:
        return "not measured"
    return fraction(value) if target["rival"] in ("limit", COPY) else ratio(value)


def _verdict(target: Mapping[str, Any]) -> str:
    return {None: "", True: "reached", False: "**not reached**"}[target["reached"]]


def _trainings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models trained by `fit`, beside plain PyTorch."""
    results = [result for result in results if "rows" in result]
    if not results:
        return []
    rows = []
    for result in results:
        ours = next((row["samples_per_second"] for row in result["rows"] if row["name"] == "deeprec"), None)
        for number, row in enumerate(result["rows"]):
            speed = row["samples_per_second"]
            faster = ours / speed if ours and speed and row["name"] != "deeprec" else None
            rows.append([
                result["model"] if number == 0 else "",
                result["data"] if number == 0 else "",
                row["name"],
                "-" if speed is None else f"{speed:,.0f}",
                seconds(row["epoch_seconds"]),
                ", ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items()),
                ratio(faster),
            ])  # fmt: skip
    head = ("model", "data", "contender", "samples/s", "an epoch", "test figures", "deeprec is faster by")
    lines = ["", "## Trained by `fit`, end to end", "", TRAINED, "", *table(head, rows)]
    missing = [f"{result['model']}: {name}: {why}" for result in results for name, why in result["missing"].items()]
    return [*lines, "", "Not measured: " + "; ".join(missing) + "."] if missing else lines
