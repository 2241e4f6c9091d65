"""Caser beside simple methods on the histories of ML-1M: cards, and results/caser.md.

    python -m bench.caser [--only caser next-item] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

The paper's protocol (of each user's sequence the last fifth tests, the tenth before it chooses; all items ranked, each
user's test items as one list) and leave-one-out. Options were chosen on the validation part. Every model is trained
anew on train + validation for the chosen epochs (`refit`) where its line does not say otherwise. A finished run is kept
as results/caser/PROTOCOL/LABEL/seed-N.json, and one that was cut off goes on from its checkpoint in build/caser: start
the same command again. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from bench.card_runs import run_command
from deeprec.data import Interactions, load
from deeprec.evaluate import Card, protocol, read_card
from deeprec.models import create
from deeprec.train import Progress, fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "results" / "caser", ROOT / "results" / "caser.md", ROOT / "build" / "caser"
PROTOCOLS: dict[str, Any] = {
    "caser": protocol("caser"),
    "next-item": protocol("next-item", cutoffs=(10, 1, 5)),
}
FIGURES = {
    "caser": {"map_all": "MAP", "precision@1": "P@1", "precision@5": "P@5", "precision@10": "P@10", "recall@1": "R@1",
              "recall@5": "R@5", "recall@10": "R@10"},
    "next-item": {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "mrr@10": "MRR@10", "hr@1": "HR@1"},
}  # fmt: skip
# Model, options, and what is to be said of them.
CONTENDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "popularity": ("popularity", {"refit": True}, ""),
    "item-knn": ("item-knn", {"refit": True}, ""),
    "ease": ("ease", {"refit": True}, ""),
    "bpr": ("bpr", {"refit": True}, ""),
    "caser": ("caser", {"epochs": 20}, "as the authors' code (d 50, L 5, T 3), not refitted"),
    "caser-refit": ("caser", {"epochs": 20, "refit": True}, "the same, refitted"),
    "caser-softmax": ("caser", {"epochs": 20, "loss": "softmax"}, "softmax over all items, not refitted"),
}
# Tang and Wang 2018, table 2 (their preparation of ML-1M: 6.0k users, 3.4k items).
PAPER = """| paper: POP | | .0687 | .1280 | .1113 | .1011 | .0050 | .0213 | .0375 | |
| paper: BPR | | .0913 | .1478 | .1288 | .1193 | .0070 | .0312 | .0560 | |
| paper: GRU4Rec | | .1440 | .2515 | .2146 | .1916 | .0153 | .0629 | .1093 | |
| paper: Caser | | .1507 | .2502 | .2175 | .1991 | .0148 | .0632 | .1121 | |"""


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender under one protocol and leave its card."""
    model, options, _ = CONTENDERS[label]
    what, started, last = f"{name}, {label}, seed {seed}", time.perf_counter(), [0.0]

    def say(progress: Progress) -> None:
        if time.perf_counter() - last[0] > 30:
            last[0] = time.perf_counter()
            print(f"  {what}: epoch {progress.epoch}, {progress.done} of {progress.total}", flush=True)

    out = WORK / name / label / f"seed-{seed}"
    given: dict[str, Any] = {"protocol": PROTOCOLS[name], "seed": seed, "out": out, "resume": True}
    card = fit(create(model, **options), data, **given, on_progress=say, baselines=False).card
    place = RESULTS / name / label / f"seed-{seed}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    card.write(place)
    figures = ", ".join(f"{words} {card.metrics[figure]:.4f}" for figure, words in FIGURES[name].items())
    print(f"{what}: {figures}, epoch {card.epoch}, {time.perf_counter() - started:.0f} s", flush=True)


def row(name: str, label: str, cards: list[Card]) -> str:
    """A line of the table: the mean over the seeds, and the standard deviation of the first figure."""
    cells = []
    for number, figure in enumerate(FIGURES[name]):
        values = [card.metrics[figure] for card in cards]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 and not number else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}")
    epochs = ", ".join("-" if card.epoch is None else str(card.epoch) for card in cards)
    remark = CONTENDERS[label][2]
    return f"| {label}{f' ({remark})' if remark else ''} | {len(cards)} | {' | '.join(cells)} | {epochs} |"


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = ["# Caser on the histories of ML-1M", "", _PREFACE, ""]
    for name, figures in FIGURES.items():
        folder = RESULTS / name
        cards = {
            label: [read_card(path) for path in sorted((folder / label).glob("seed-*.json"))] for label in CONTENDERS
        }
        if not any(cards.values()):
            continue
        headings = list(figures.values())
        lines += [f"## {_TITLES[name]}", "", f"| model | seeds | {' | '.join(headings)} | epoch |"]
        lines.append("|" + "---|" * (len(headings) + 3))
        lines += [row(name, label, of_label) for label, of_label in cards.items() if of_label]
        lines += [PAPER] if name == "caser" else []
        lines.append("")
    return "\n".join(lines)


_TITLES = {"caser": "The paper's protocol", "next-item": "Leave-one-out, all items ranked"}
_PREFACE = """The file of SASRec (6,040 users, 3,416 items, 999,611 events). Started by `python -m bench.caser`. The
paper's figures are of its own preparation of the same ratings; the authors' PyTorch code says that MAP may get to 0.17
after 20 epochs, trained on the first 80 % and read off the test part. Caser is asked with all that came before the test
part; a line "not refitted" was trained on the first 70 % alone, or without the last two items. The cards hold options,
epochs and versions."""


def main() -> None:
    """Command line."""
    run_command(
        __doc__,
        RESULTS,
        list(PROTOCOLS),
        list(CONTENDERS),
        [1],
        lambda name: "sasrec-ml-1m",
        load,
        run,
        lambda: PAGE.write_text(page()),
    )


if __name__ == "__main__":
    main()
