"""A comparison of models of clicks in which every side is tuned alike: ours, DeepCTR-Torch's and LightGBM.

    python -m bench.click_comparison [--set frappe ...] [--contender deepfm ...] [--side deeprec ...] [--table]

Each contender of each log gets the same number of trials: its library's defaults, then random points of its space
(`bench/click_contenders.py`). A trial sees the train and the validation rows alone. The one with the best validation
AUC is then trained with each seed, and only those runs are measured on the test rows.

Every trial runs in a process of its own and is kept at once, in results/click-comparison/SET/CONTENDER.json, so that
the same command goes on where it was stopped. `--table` writes the table of results/README.md from what is there.
DeepCTR-Torch and LightGBM must be importable: `make bench` installs them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.click_contenders import CONTENDERS, METRICS, Contender, Options, Outcome, point_of, timed
from bench.click_logs import LOGS, RUN_ROWS, TRIAL_ROWS, checksum, with_train_rows, without_test_rows
from deeprec._files import write_atomically
from deeprec.data import ClickLog

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "click-comparison"
TRIALS, SEEDS, TRIAL_SEED = 8, (1, 2, 3), 0
LIBRARIES = {"deeprec": "deeprec", "deepctr": "DeepCTR-Torch", "lightgbm": "LightGBM", "baseline": "baseline"}


class Record:
    """The file of a contender on a log: what was tried and what came of it.

    Attributes:
        values: "set", "contender", "code", "data", "trial_rows", "run_rows", "trials" (each "options", "seed" and
            "validation", "epoch", "seconds" or "failed"), "chosen" (the number of one of them), "runs" (each "seed",
            "validation", "test", "epoch", "seconds").
    Raises:
        ValueError: what is there was measured with other code or other rows.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.values: dict[str, Any] = {**head, "trials": [], "chosen": None, "runs": []}
        if path.exists():
            self.values = json.loads(path.read_text())
            for key, value in head.items():
                if self.values[key] != value:
                    raise ValueError(f"{path}: {key} is {self.values[key]!r} there and {value!r} now; remove the file")

    def add(self, kind: str, entry: dict[str, Any]) -> None:
        """Append to "trials" or "runs", and keep it."""
        self.values[kind].append(entry)
        self._write()

    def choose(self) -> Options:
        """The options of the trial with the best validation AUC, from now on the chosen one."""
        trials = self.values["trials"]
        worth = [trial["validation"]["auc"] if "validation" in trial else 0.0 for trial in trials]
        if not max(worth):
            raise ValueError(f"{self.path}: every trial failed: {trials[0]['failed']}")
        self.values["chosen"] = worth.index(max(worth))
        self._write()
        options: Options = trials[self.values["chosen"]]["options"]
        return options

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self.values, indent=1) + "\n").encode())


def compare(name: str, contender: str, log: ClickLog, trials: int, directory: Path) -> None:
    """All trials and all seeds of a contender on a log that are not in its record yet.

    Args:
        trials: how many, >= 1; of one without options a single one.
    """
    who = CONTENDERS[contender]
    head = {"set": name, "contender": contender, "code": _code(who), "data": checksum(log)}
    tried, run = (with_train_rows(log, rows.get(name)) for rows in (TRIAL_ROWS, RUN_ROWS))
    head |= {"trial_rows": len(tried.parts["train"]), "run_rows": len(run.parts["train"])}
    record = Record(directory / name / f"{contender}.json", head)
    tried = without_test_rows(tried)
    if not record.values["runs"]:
        for number in range(len(record.values["trials"]), trials if who.space else 1):
            options = who.space(point_of(number)) if who.space and number else who.defaults
            outcome = in_own_process(who, tried, options, TRIAL_SEED)
            record.add("trials", {"options": options, "seed": TRIAL_SEED, **without_test(outcome)})
            print(f"{name} {contender} trial {number}: {without_test(outcome)}", flush=True)
    options = record.choose()
    done = {run["seed"] for run in record.values["runs"]}
    for seed in SEEDS if who.space else SEEDS[:1]:
        if seed not in done:
            outcome = in_own_process(who, run, options, seed)
            if "failed" in outcome:
                raise RuntimeError(f"{name} {contender} seed {seed}: {outcome['failed']}")
            record.add("runs", {"seed": seed, **outcome})
            print(f"{name} {contender} seed {seed}: {without_test(outcome)}", flush=True)


def without_test(outcome: Outcome) -> Outcome:
    """What a trial keeps: its "test" rows were the validation rows."""
    return {key: value for key, value in outcome.items() if key != "test"}


def in_own_process(contender: Contender, log: ClickLog, options: Options, seed: int) -> Outcome:
    """The outcome of a training in a process of its own; {"failed": why} where it raised.

    Raises:
        RuntimeError: the process ended without a word, such as one that was killed; nothing is kept, so the same
            command tries again.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(contender, log, options, seed, sender))
    process.start()
    sender.close()
    try:
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{contender.name} of {contender.side}: ended with {process.exitcode}") from None
    process.join()
    return outcome


def _train(contender: Contender, log: ClickLog, options: Options, seed: int, sender: Connection) -> None:
    try:
        outcome = timed(contender, log, options, seed)
    except (ValueError, ArithmeticError) as error:  # such as a loss that is not finite
        outcome = {"failed": str(error)}
    sender.send(outcome)


def _code(contender: Contender) -> str:
    """What was measured: a library's version, or the git tree of ours."""
    if contender.side == "baseline":
        return "bench/click_contenders.py"
    if contender.side == "deeprec":
        command = ["git", "rev-parse", "--short=12", "HEAD:deeprec"]
        return f"tree {subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()}"
    return version({"deepctr": "deepctr-torch", "lightgbm": "lightgbm"}[contender.side])


# -- the page ----------------------------------------------------------------------------------------------------------


def table(directory: Path) -> str:
    """A line for each contender of each log that has all its seeds, the best AUC first."""
    head = ["log", "library", "model", "AUC", "log loss", "validation AUC: best trial", "defaults", "s a run"]
    lines = [head, ["---"] * len(head)]
    for name in LOGS:
        found = sorted(_finished(directory / name), key=lambda values: -_mean(values, "test", "auc"))
        lines += [_cells(values) for values in found]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")


def _finished(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("*.json")):
        values = json.loads(path.read_text())
        if values["runs"]:
            yield values


def _cells(values: dict[str, Any]) -> list[str]:
    who, runs = CONTENDERS[values["contender"]], values["runs"]
    default = values["trials"][0].get("validation", {}).get("auc")
    return [
        f"[{values['set']}](click-comparison/{values['set']}/{values['contender']}.json)",
        LIBRARIES[who.side],
        who.name,
        *(_mean_and_spread([run["test"][metric] for run in runs]) for metric in METRICS),
        f"{values['trials'][values['chosen']]['validation']['auc']:.4f}",
        "-" if default is None else f"{default:.4f}",
        f"{statistics.mean(run['seconds'] for run in runs):.1f}",
    ]


def _mean(values: dict[str, Any], part: str, metric: str) -> float:
    return statistics.mean(run[part][metric] for run in values["runs"])


def _mean_and_spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def write_page(directory: Path, page: Path) -> None:
    """Put the table between its marks."""
    before, _, rest = page.read_text().partition("<!-- click comparison -->\n")
    _, _, after = rest.partition("<!-- end of click comparison -->")
    page.write_text(f"{before}<!-- click comparison -->\n{table(directory)}\n<!-- end of click comparison -->{after}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=list(LOGS), default=list(LOGS), dest="sets")
    parser.add_argument("--contender", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--side", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--trials", type=int, default=TRIALS, help="of each contender, the defaults among them")
    parser.add_argument("--data-dir")
    parser.add_argument("--table", action="store_true", help="train nothing, write the table")
    arguments = parser.parse_args()
    if arguments.table:
        write_page(RESULTS, ROOT / "results" / "README.md")
        return
    torch.set_num_threads(1)  # before the first fork
    for name in arguments.sets:
        log = LOGS[name](arguments.data_dir)
        for contender in arguments.contender:
            if CONTENDERS[contender].side in arguments.side:
                compare(name, contender, log, arguments.trials, RESULTS)


if __name__ == "__main__":
    main()
