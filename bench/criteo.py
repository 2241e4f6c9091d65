"""A synthetic Criteo log from text to a trained DeepFM: how long each part takes, and how much memory.

    python -m bench.criteo [--rows 45000000] [--directory DIR] [--json FILE] [--keep]

1. generate: a log in Criteo's format, with a known truth (`bench.criteo_log`);
2. convert: `deeprec.data.convert` with `criteo_schema`, one pass to fit and one to encode;
3. train: one epoch of DeepFM, 26 + 13 columns, D 16, MLP 400-400-400, batches of 4096; then AUC on the test part.

Each stage is a process of its own that the kernel refuses more than `--limit-gb` of anonymous memory (RLIMIT_DATA):
what it holds, without the pages of mapped files, which can be dropped. Stages that `--directory` has are not done
again: with `--keep` a second run trains from the converted log. Printed, and written beside `--json` as PNG: where the
time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from deeprec._files import write_atomically

SCHEMA = "deeprec-criteo/1"
STAGES = ("generate", "convert", "train")
TEXT, CONVERTED = "log.tsv", "converted"
SETTINGS = {  # what a stage depends on, its predecessors included
    "generate": ("rows", "seed"),
    "convert": ("rows", "seed", "min_count"),
    "train": ("rows", "seed", "min_count", "batch", "optimizer", "lr", "precision", "threads"),
}
TEXT_BYTES, ROW_BYTES, VOCABULARY_BYTES = 262, 160, 12  # a row, on the disk: text, converted, and of the vocabularies
SHARES = (0.9, 0.05, 0.05)
COLOURS = {
    "generate": "#9aa5b1",
    "fit": "#4b8bbe",
    "encode": "#8fbfe0",
    "build": "#c7b37f",
    "input wait": "#8c8c8c",
    "forward": "#e2a15f",
    "backward and tables": "#c44e52",
    "step of the network": "#8e5ea2",
    "other": "#d9d9d9",
    "evaluation": "#6aa56f",
}


class Memory:
    """Peak memory of this process by phase, sampled every 20 ms in a thread.

    Attributes:
        peaks: phase to {"anonymous", "resident", "asked for"}, bytes; resident has the pages of mapped files too, asked
            for is what RLIMIT_DATA limits, touched or not.
        phase: the one that is running.
    """

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.peaks: dict[str, dict[str, int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> dict[str, Any]:
        """Stop; the peaks, and the kernel's own figure for the whole process."""
        self._done.set()
        self._thread.join()
        return {"phases": self.peaks, "maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}

    def _run(self) -> None:
        while True:
            text = Path("/proc/self/status").read_text(encoding="ascii")
            lines = dict(
                line.split(":", 1) for line in text.splitlines() if line.startswith(("VmRSS", "VmData", "RssAnon"))
            )
            found = {"anonymous": lines["RssAnon"], "resident": lines["VmRSS"], "asked for": lines["VmData"]}
            peaks = self.peaks.setdefault(self.phase, dict.fromkeys(found, 0))
            for name, size in found.items():
                peaks[name] = max(peaks[name], int(size.split()[0]) << 10)
            if self._done.wait(0.02):
                return


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on stderr; call what it gives with (what, done, total)."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console, said = Console(stderr=True), time.perf_counter()
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def show(name: str, done: float, total: float) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)
            nonlocal said
            if not console.is_terminal and time.perf_counter() - said > 30:  # a file shows no bar
                said = time.perf_counter()
                print(f"{name}: {done:,.0f} of {total:,.0f} {unit}", file=sys.stderr, flush=True)

        show(what, 0, 1)
        yield show


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """The text."""
    from bench.criteo_log import Log

    memory = Memory("generate")
    started = time.perf_counter()
    log = Log(args.seed)
    with bar("generate", "rows") as show:
        truth = log.write(args.directory / TEXT, args.rows, threads=args.threads, progress=show)
    seconds = time.perf_counter() - started
    size = (args.directory / TEXT).stat().st_size
    return {"seconds": {"generate": seconds}, "bytes": size, "truth": truth, "memory": memory.close()}


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """The converted log."""
    from deeprec.data.clicks.log import Split
    from deeprec.data.clicks.log import convert as convert_log
    from deeprec.data.sets.click_datasets import criteo_schema

    memory = Memory("fit")
    started = time.perf_counter()
    first_encoded: list[float] = []
    with bar("fit", "MB") as show:

        def report(stage: str, done: int, total: int) -> None:
            name = stage.split()[0]
            if name == "encode" and not first_encoded:
                first_encoded.append(time.perf_counter())
                memory.phase = name
            show(name, done / 1e6, total / 1e6)

        log = convert_log(
            args.directory / TEXT,
            criteo_schema(args.min_count),
            args.directory / CONVERTED,
            split=Split(shares=SHARES, seed=args.seed),
            format="criteo",
            progress=report,
        )
    ended = time.perf_counter()
    return {
        # Vocabularies are sorted at the end of the fit pass, before the first report of the next one.
        "seconds": {"fit": first_encoded[0] - started, "encode": ended - first_encoded[0]},
        "rows": log.counts,
        "vocabulary": sum(field.size for field in log.inputs.fields),
        "bytes": sum(path.stat().st_size for path in (args.directory / CONVERTED).rglob("*") if path.is_file()),
        "memory": memory.close(),
    }


class Watch:
    """Takes the time of the parts of every training step; four readings of the clock each.

    Attributes:
        seconds: by part.
        began, ended: of the epoch, on `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("input wait", "forward", "backward and tables", "step of the network"), 0.0)
        self.began = self.ended = 0.0
        self._after_loss = 0.0

    def batches(self, make: Callable[..., Iterator[Any]], limit: int | None) -> Callable[..., Iterator[Any]]:
        """`ClickPart.batches` with the waiting timed; at most `limit` of them."""

        def timed(*args: Any, **options: Any) -> Iterator[Any]:
            self.began = time.perf_counter()
            stream = make(*args, **options)
            count = 0
            while limit is None or count < limit:
                asked = time.perf_counter()
                rows = next(stream, None)
                self.seconds["input wait"] += time.perf_counter() - asked
                if rows is None:
                    break
                yield rows
                count += 1
            self.ended = time.perf_counter()

        return timed

    def loss(self, of: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`ClickModel.loss`, timed."""

        def timed(batch: Any) -> Any:
            started = time.perf_counter()
            found = of(batch)
            self._after_loss = time.perf_counter()
            self.seconds["forward"] += self._after_loss - started
            return found

        return timed

    def step(self, of: Callable[..., None]) -> Callable[..., None]:
        """`Optimizers.step`, timed; what lies between the loss and it is the backward pass."""

        def timed(optimizers: Any, *args: Any, **options: Any) -> None:
            started = time.perf_counter()
            self.seconds["backward and tables"] += started - self._after_loss
            of(optimizers, *args, **options)
            self.seconds["step of the network"] += time.perf_counter() - started

        return timed


def train(args: argparse.Namespace) -> dict[str, Any]:
    """One epoch and the figures of the test part."""
    memory = Memory("build")
    import torch

    from deeprec.data.clicks.log import ClickLog
    from deeprec.models.deepfm import DeepFM
    from deeprec.train import fit
    from deeprec.train.optimizers import Optimizers

    if args.threads:
        torch.set_num_threads(args.threads)
    started = time.perf_counter()
    log = ClickLog.open(args.directory / CONVERTED)
    model = DeepFM(
        factors=16,
        hidden=(400, 400, 400),
        numerics="input",
        dropout=0.0,
        epochs=1,
        batch_size=args.batch,
        optimizer=args.optimizer,
        lr=args.lr,
        precision=args.precision,
        step_in_backward=True,
    )
    watch, part = Watch(), log.parts["train"]
    setattr(part, "batches", watch.batches(part.batches, args.steps))  # noqa: B010 (a method of one object)
    setattr(model, "loss", watch.loss(model.loss))  # noqa: B010
    setattr(Optimizers, "step", watch.step(Optimizers.step))  # noqa: B010
    with bar("train", "rows") as show:

        def report(progress: Any) -> None:
            memory.phase = "train" if progress.metrics is None else "evaluation"
            show("train", progress.done, progress.total)

        result = fit(model, log, seed=args.seed, on_progress=report)
    ended = time.perf_counter()
    epoch = watch.ended - watch.began
    seconds = {"build": watch.began - started, **watch.seconds}
    seconds["other"] = epoch - sum(watch.seconds.values())
    seconds["evaluation"] = ended - watch.ended
    rows = len(part) if args.steps is None else min(len(part), args.steps * args.batch)
    return {
        "seconds": seconds,
        "epoch_seconds": epoch,
        "rows": rows,
        "rows_per_second": rows / epoch,
        "loss": result.history[0]["loss"],
        "metrics": result.card.metrics,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "memory": memory.close(),
    }


def require_space(args: argparse.Namespace) -> None:
    """Raise OSError, before anything is written, unless the files of the stages to come have room."""
    missing = [stage for stage in STAGES[:2] if found(args, stage) is None]
    each = {"generate": TEXT_BYTES, "convert": ROW_BYTES + VOCABULARY_BYTES}
    needed = args.rows * sum(each[stage] for stage in missing)
    free = shutil.disk_usage(args.directory).free
    if free < needed:
        raise OSError(
            f"criteo: {args.rows:,} rows need {needed / 1e9:.1f} GB in {args.directory}, free are {free / 1e9:.1f}; "
            "pass another --directory, or fewer --rows"
        )


def settings(args: argparse.Namespace, stage: str) -> dict[str, Any]:
    """What the result of a stage depends on."""
    return {name: getattr(args, name) for name in SETTINGS[stage]}


def found(args: argparse.Namespace, stage: str) -> dict[str, Any] | None:
    """The report of a stage that `args.directory` holds already, made with these settings."""
    path = args.directory / f"{stage}.json"
    there = {"generate": args.directory / TEXT, "convert": args.directory / CONVERTED / "meta.json", "train": path}
    # Text is not needed any more once it is converted.
    if not path.is_file() or not (there[stage].exists() or found_converted(args, stage)):
        return None
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report if report["settings"] == settings(args, stage) else None


def found_converted(args: argparse.Namespace, stage: str) -> bool:
    """Whether this is the text, and what it is for is there."""
    return stage == "generate" and found(args, "convert") is not None


def run_stage(args: argparse.Namespace, stage: str) -> dict[str, Any]:
    """The report of a stage, done in a process of its own unless it is there already."""
    earlier = found(args, stage)
    if earlier is not None and stage != "train":
        return earlier
    if stage == "convert":
        shutil.rmtree(args.directory / CONVERTED, ignore_errors=True)  # of other settings
    command = [sys.executable, "-m", "bench.criteo", "--stage", stage, *sys.argv[1:], "--directory", args.directory]
    done = subprocess.run([str(word) for word in command], check=False)
    if done.returncode:
        raise RuntimeError(f"criteo: stage {stage} failed with {done.returncode}; its message is above")
    report = found(args, stage)
    assert report is not None
    return report


def stage_main(args: argparse.Namespace) -> None:
    """A stage, in its own process."""
    limit = int(args.limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    report = {"generate": generate, "convert": convert, "train": train}[args.stage](args)
    report["settings"], report["limit_bytes"] = settings(args, args.stage), limit
    write_atomically(args.directory / f"{args.stage}.json", (json.dumps(report, indent=1) + "\n").encode())


def show(result: dict[str, Any]) -> None:
    """The report as tables."""
    stages = result["stages"]
    total = sum(seconds for stage in stages.values() for seconds in stage["seconds"].values())
    table = Table(title=f"{result['rows']:,} rows of a synthetic Criteo log: {total:,.0f} s in all")
    for name in ("stage", "part", "seconds", "share", "peak held", "with mapped files"):
        table.add_column(name, justify="left" if name in ("stage", "part") else "right")
    for stage, report in stages.items():
        phases = report["memory"]["phases"]
        for part, seconds in report["seconds"].items():
            peak = phases.get(part) or (phases.get("train") if part == "input wait" else None) or {}
            sizes = [f"{peak[key] / 1e9:.2f} GB" if peak else "" for key in ("anonymous", "resident")]
            table.add_row(stage, part, f"{seconds:,.1f}", f"{seconds / total:.1%}", *sizes)
    console = Console(width=110)
    console.print(table)
    text, log, run = stages["generate"], stages["convert"], stages["train"]
    console.print(
        f"text {text['bytes'] / 1e9:.2f} GB, converted {log['bytes'] / 1e9:.2f} GB, {log['vocabulary']:,} values; "
        f"{run['rows']:,} rows trained at {run['rows_per_second']:,.0f} a second, {run['parameters']:,} parameters"
    )
    console.print(
        f"test AUC {run['metrics']['auc']:.4f}, of the truth {text['truth']['auc']:.4f}; peak held "
        f"{result['peak_bytes'] / 1e9:.2f} GB of {run['limit_bytes'] / 1e9:g} allowed"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """The parts of the whole run, and those of training, as two stacked bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = {name: s for stage in result["stages"].values() for name, s in stage["seconds"].items()}
    step = {name: parts[name] for name in result["stages"]["train"]["seconds"] if name not in ("build", "evaluation")}
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, bars, title in zip(
        figure.subplots(2, 1),
        (parts, step),
        (f"{result['rows']:,} rows: from text to a measured model", "the epoch"),
        strict=True,
    ):
        left, total = 0.0, sum(bars.values())
        for name, seconds in bars.items():
            axes.barh(0, seconds, left=left, color=COLOURS[name], label=name)
            if seconds > 0.04 * total:
                axes.text(left + seconds / 2, 0, f"{seconds:,.0f} s\n{seconds / total:.0%}", ha="center", va="center")
            left += seconds
        axes.set(title=f"{title}: {total:,.0f} s", yticks=[], xlim=(0, left))
        axes.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=140)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.criteo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=45_000_000)
    parser.add_argument("--directory", type=Path, help="for text and converted log; a temporary one by default")
    parser.add_argument("--json", type=Path, help="the report; its picture goes beside it")
    parser.add_argument("--keep", action="store_true", help="leave the files in --directory")
    parser.add_argument("--min-count", type=int, default=2, help="rarer values of a column share one row of its table")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--optimizer", choices=["lazy-adam", "adam", "adagrad"], default="lazy-adam")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-gb", type=float, default=8.0, help="what a stage may hold, 10^9 bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="train on so many batches only, to see how fast that is")
    parser.add_argument("--until", choices=STAGES, default="train", help="the last stage to do")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rows < 1000:
        parser.error(f"--rows must be >= 1000, got {args.rows}")
    if args.keep and args.directory is None:
        parser.error("--keep needs --directory")
    return args


def main() -> None:
    """All stages, and the report."""
    from bench.machine import machine, versions

    args = parse()
    if args.stage:
        stage_main(args)
        return
    made = None
    if args.directory is None:
        made = tempfile.TemporaryDirectory(prefix="criteo-")
        args.directory = Path(made.name)
    args.directory.mkdir(parents=True, exist_ok=True)
    require_space(args)
    stages: dict[str, Any] = {}
    for stage in STAGES[: STAGES.index(args.until) + 1]:
        stages[stage] = run_stage(args, stage)
    if args.until == "train":
        peak = max(phase["anonymous"] for s in stages.values() for phase in s["memory"]["phases"].values())
        result = {
            "schema": SCHEMA,
            "rows": args.rows,
            "stages": stages,
            "peak_bytes": peak,
            "steps": args.steps,
            "machine": machine(),
            "versions": versions(),
        }
        show(result)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            plot(result, args.json.with_suffix(".png"))
    if made is not None:
        made.cleanup()
    elif not args.keep:
        shutil.rmtree(args.directory / CONVERTED, ignore_errors=True)
        for name in (TEXT, *(f"{stage}.json" for stage in STAGES)):
            (args.directory / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
