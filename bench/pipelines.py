"""The pipelines of results/serving.md: fitted, measured, and beside a service's times written onto one page.

Each YAML file of bench/pipelines becomes a folder under --runs, once, and results/pipelines/NAME.json, its config and
figures. The times are those that `python -m bench.serve` wrote to results/serving.json.

python -m bench.pipelines [NAME ...] [--runs runs/pipelines] [--page]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import versions
from deeprec._files import write_atomically
from deeprec._hardware import hardware
from deeprec.pipeline import Pipeline, is_pipeline

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "bench" / "pipelines"
CARDS = ROOT / "results" / "pipelines"
TIMES = ROOT / "results" / "serving.json"
PAGE = ROOT / "results" / "serving.md"
COLUMNS = ("candidates", "recall", "own", "ndcg", "hit_recall", "diversity", "coverage", "gini", "popularity")
HEADS = ("items", "recall", "only here", "NDCG@10", "recall@10", "diversity", "coverage", "Gini", "popularity")
_HEAD = """# Pipelines, and the time of a served request

Written by `python -m bench.pipelines --page`. The configs are in `bench/pipelines`, the cards with options, figures,
versions and hardware in `results/pipelines`. One run each; options are those of the first attempt, and the test part
chose nothing.

## What each source and stage gives

Sources: items proposed, the share of the held-out items among them, the share that no other source has, then figures of
the first ten. Diversity is 1 - cosine by the values of the items' first column of lists; popularity the mean share of
users who have an item.

To read with care: sources without refit (sasrec here) learned from the training part alone, while the ranker learned
from what people did in the validation part too; refitted, or trained longer and tuned, a source may come nearer. What a
stage such as MMR costs in NDCG buys what the columns behind it show.

"""
_TIMES = """## Time of a request

`deeprec serve` beside a FastAPI handler around plain PyTorch (`bench/peers/plain_handler.py`) with the same weights:
one process and one thread of torch each, client and server on the loopback address, the pipeline `ml-1m` above (three
sources, about 300 candidates, DeepFM, MMR).

"""
_BUSY = """**Other work kept the machine busy meanwhile**: more waited for a core than there are cores. Milliseconds and
requests a second say little then, and have to be taken anew on a quiet machine; processor time says what a request
costs.
"""
P50, P99, RATIO = 3.0, 8.0, 3.0  # what is to be reached


def measured(name: str, runs: Path) -> dict[str, Any]:
    """The card of a pipeline, fitted where its folder is not there."""
    folder, config = runs / name, CONFIGS / f"{name}.yaml"
    if is_pipeline(folder):
        made = Pipeline.load(folder, device="cpu")
    else:
        made = Pipeline.fit(config, device="cpu", on_stage=lambda words: print(f"{name}: {words}", flush=True))
        made.save(folder)
    card = {
        "config": made.config.as_dict(),
        "data": made.state.data,
        "report": made.report,
        "versions": versions(),
        "hardware": hardware(),
    }
    write_atomically(CARDS / f"{name}.json", json.dumps(card, indent=1).encode() + b"\n")
    return card


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.0f}" if name == "candidates" else f"{value:.4f}" if name in ("ndcg", "hit_recall") else f"{value:.3f}"
    )


def quality(name: str, card: dict[str, Any]) -> list[str]:
    """What the page says of a pipeline."""
    report, data = card["report"]["test"], card["data"]
    best, value = report["single"]
    final = report["stages"][-1]["ndcg"]
    verdict = "above" if final > value else "not above"
    lines = [
        f"### {name}",
        "",
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions; "
        f"protocol {data['protocol']['name']}, test part, {report['users']:,} people. NDCG@10 {final:.4f}, {verdict} "
        f"the best source alone ({best}, {value:.4f}; {final / value - 1:+.1%}).",
        "",
        _row(("source", *HEADS)),
        _row(("---",) * (len(HEADS) + 1)),
    ]
    lines += [_row((row["name"], *(_figure(c, row[c]) for c in COLUMNS))) for row in report["sources"]]
    lines += ["", _row(("stage", *HEADS)), _row(("---",) * (len(HEADS) + 1))]
    lines += [_row((row["name"], *(_figure(c, row[c]) for c in COLUMNS))) for row in report["stages"]]
    return [*lines, ""]


def times(result: dict[str, Any]) -> list[str]:
    """What the page says of the service."""
    rows = result["rows"]
    kinds, servers = list(dict.fromkeys(r["load_kind"] for r in rows)), list(dict.fromkeys(r["server"] for r in rows))
    load = [row["load"] for row in rows]
    machine = result["hardware"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads; load of the machine meanwhile {min(load):.1f} to "
        f"{max(load):.1f}. {result['items_the_same']:.1%} of the items of {result.get('checked', 100)} lists "
        f"are the same. Medians over {1 + max(r['round'] for r in rows)} rounds, in which the two took turns.",
        "",
        _row(("load", "server", "p50 ms", "p99 ms", "requests/s", "processor ms a request", "failed")),
        _row(("---",) * 7),
    ]
    for kind in kinds:
        for server in servers:
            own = [row for row in rows if row["load_kind"] == kind and row["server"] == server]
            p50, p99, cpu = (float(np.median([row[key] for row in own])) for key in ("p50", "p99", "cpu_ms"))
            rate = [row["requests_a_second"] for row in own if "requests_a_second" in row]
            cells = (kind, server, f"{p50:.2f}", f"{p99:.2f}", f"{np.median(rate):.0f}" if rate else "-", f"{cpu:.2f}")
            lines.append(_row((*cells, str(sum(int(row["failed"]) for row in own)))))
    if max(load) > (os.cpu_count() or 1):
        lines += ["", *_BUSY.splitlines()]
    return [*lines, "", *_targets(rows), *_soak(result.get("soak")), ""]


def _soak(soak: dict[str, Any] | None) -> list[str]:
    """What a long run said, in words."""
    if soak is None:
        return []
    memory = soak["megabytes"]
    return [
        f"- {soak['seconds'] / 60:.0f} minutes of lists and events: {soak['requests']:,} lists, {soak['events']:,} "
        f"events, {soak['failed']} failed; memory {memory[1]:.0f} MB after a tenth, {memory[-1]:.0f} MB at the end"
    ]


def _targets(rows: list[dict[str, Any]]) -> list[str]:
    """Which of the targets are reached, in words."""

    def median(server: str, key: str, kind: str) -> float:
        return float(
            np.median([r[key] for r in rows if r["server"] == server and r["load_kind"].endswith(kind) and key in r])
        )

    ours, plain = "deeprec serve", "plain handler"
    p50, p99 = (median(ours, key, "a second") for key in ("p50", "p99"))
    most = max((r["load_kind"] for r in rows if r["load_kind"].endswith("clients")), key=lambda k: int(k.split()[0]))
    ratio = median(ours, "requests_a_second", most) / median(plain, "requests_a_second", most)
    work = median(plain, "cpu_ms", most) / median(ours, "cpu_ms", most)
    alone = [median(server, "cpu_ms", "a second") for server in (ours, plain)]
    tails = [median(server, "p99", most) for server in (ours, plain)]
    return [
        f"- at the fixed rate, where requests come one at a time, one costs {alone[0]:.2f} ms of a processor, in the "
        f"plain handler {alone[1]:.2f}; with {most} p99 is {tails[0]:.0f} ms, of the plain handler {tails[1]:.0f}",
        f"- at the fixed rate: p50 {p50:.2f} ms (target {P50:g}: {'reached' if p50 <= P50 else 'not reached'}), "
        f"p99 {p99:.2f} ms (target {P99:g}: {'reached' if p99 <= P99 else 'not reached'})",
        f"- {most}: {ratio:.2f} times the plain handler's requests a second (target {RATIO:g}: "
        f"{'reached' if ratio >= RATIO else 'not reached'}), {work:.2f} times as many for the same processor time",
    ]


def write_page() -> None:
    """All that is known onto the page."""
    cards = {path.stem: json.loads(path.read_text()) for path in sorted(CARDS.glob("*.json"))}
    lines = _HEAD.splitlines()
    for name, card in cards.items():
        lines += quality(name, card)
    if TIMES.exists():
        lines += [*_TIMES.splitlines(), *times(json.loads(TIMES.read_text()))]
    write_atomically(PAGE, ("\n".join(lines).rstrip() + "\n").encode())
    print(f"written to {PAGE}")


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=Path, default=Path("runs/pipelines"))
    parser.add_argument("--page", action="store_true", help="write the page of what is there alone")
    given = parser.parse_args()
    CARDS.mkdir(parents=True, exist_ok=True)
    if not given.page:
        for name in given.names or sorted(path.stem for path in CONFIGS.glob("*.yaml")):
            measured(name, given.runs)
    write_page()


if __name__ == "__main__":
    main()
