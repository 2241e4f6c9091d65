"""Models of ordered histories beside simple methods and MF: cards, and the page results/sequences.md.

    python -m bench.sequences [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

The last item of each user is the test, the one before it chooses the epoch (of 2,000 users; of the others it is trained
on), and all items are ranked; at the test the history holds the validation item, and methods that read no order are
trained anew with it. Sessions are held out by their start. A finished run is kept as
results/sequences/SET/LABEL/seed-N.json, and one that was cut off goes on from its checkpoint in build/sequences: start
the same command again. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.card_runs import Sayer, epochs_cell, figure_cells, run_command
from deeprec.data import Interactions, load
from deeprec.evaluate import protocol, read_card
from deeprec.models import create
from deeprec.train import fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results" / "sequences", ROOT / "results" / "sequences.md"
WORK = ROOT / "build" / "sequences"
FIGURES = {"next-item": ("hr@10", "ndcg@10"), "next-event": ("recall@20", "mrr@20")}
_MOST_ITEMS_OF_EASE = 20_000
_VALIDATING = 2000  # users who choose the epoch; the others are trained on up to the test, as published figures do


class Published(NamedTuple):
    """Figures of others on the same file and protocol.

    Attributes:
        what: model.
        figures: as `FIGURES` names them.
        source: where they are printed.
    """

    what: str
    figures: tuple[float, float]
    source: str


class Set(NamedTuple):
    """A data set.

    Attributes:
        what: for the page.
        items: about how many it has.
        sequences: options of all models of sequences on it.
        published: figures of others.
        protocol: "next-item" for histories of users, "next-event" for sessions.
    """

    what: str
    items: int
    sequences: dict[str, Any]
    published: tuple[Published, ...] = ()
    protocol: str = "next-item"

    @property
    def figures(self) -> tuple[str, ...]:
        """On the page."""
        return FIGURES[self.protocol]


_FALLING = {"lr": 0.0015, "lr_schedule": "cosine", "epochs": 40, "patience": 0}
_CONSTANT = {"lr": 0.001, "epochs": 100, "patience": 10}
_KLENITSKIY = "Klenitskiy & Vasilev 2023 (arXiv 2309.07602)"
_ESASREC = "README of the eSASRec repository"
SETS = {
    "sasrec-ml-1m": Set(
        "MovieLens-1M, the SASRec authors' file: 999,611 ratings taken as likes, 6,040 users, 3,416 films",
        3_416,
        {"factors": 64, "length": 200, "dropout": 0.1, "batch_size": 32, **_FALLING},
        (
            Published("SASRec, BCE", (0.2500, 0.1341), _KLENITSKIY),
            Published("SASRec, full softmax", (0.3152, 0.1821), _KLENITSKIY),
            Published("gSASRec", (0.3003, 0.1726), "README of asash/gSASRec-pytorch"),
            Published("BERT4Rec", (0.2843, 0.1537), _KLENITSKIY),
            Published("GRU4Rec, full softmax", (0.2811, 0.1648), _KLENITSKIY),
            Published("eSASRec", (0.3133, 0.1772), _ESASREC),
        ),
    ),
    "bert4rec-beauty": Set(
        "Amazon Beauty, the BERT4Rec authors' file: 353,962 reviews, 40,226 users, 54,542 items",
        54_542,
        {"factors": 64, "length": 50, "blocks": 1, "dropout": 0.2, "batch_size": 128, "lr": 0.001, "patience": 8},
        (
            Published("SASRec, BCE", (0.0246, 0.0126), _KLENITSKIY),
            Published("SASRec, full softmax", (0.0533, 0.0327), _KLENITSKIY),
            Published("BERT4Rec", (0.0338, 0.0187), _KLENITSKIY),
        ),
    ),
    "s3rec-beauty": Set(
        "Amazon Beauty, the S3-Rec authors' file: 198,502 reviews, 22,363 users, 12,101 items",
        12_101,
        {"factors": 64, "length": 50, "blocks": 1, "dropout": 0.2, "batch_size": 128, "lr": 0.001, "patience": 8},
        (
            Published("SASRec, sampled softmax", (0.0921, 0.0531), _ESASREC),
            Published("eSASRec", (0.0928, 0.0523), _ESASREC),
        ),
    ),
    "s3rec-sports": Set(
        "Amazon Sports, the S3-Rec authors' file: 296,337 reviews, 35,598 users, 18,357 items",
        18_357,
        {"factors": 64, "length": 50, "blocks": 1, "dropout": 0.2, "batch_size": 128, "lr": 0.001, "patience": 8},
        (
            Published("SASRec, sampled softmax", (0.0569, 0.0314), _ESASREC),
            Published("eSASRec", (0.0560, 0.0323), _ESASREC),
        ),
    ),
    "diginetica": Set(
        "Diginetica, 186,670 sessions of 43,097 items prepared as the data folder says, not as for published figures",
        43_097,
        {"factors": 64, "length": 50, "blocks": 1, "dropout": 0.2, "batch_size": 256, "lr": 0.001},
        protocol="next-event",
    ),
}


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config.
        is_sequence: whether it takes the options that all models of sequences have on a set.
        protocols: those it is run by.
    """

    words: str
    model: str
    options: dict[str, Any]
    is_sequence: bool = False
    protocols: tuple[str, ...] = ("next-item", "next-event")


_DEEP = {"gru4rec", "caser", "sasrec", "bert4rec"}
_ITEMS, _SESSIONS = ("next-item",), ("next-event",)
_GRU = {"factors": 64, "batching": "windows", "negatives": "full", "optimizer": "adam", "batch_size": 32}
_GBCE = {"loss": "gbce", "num_negatives": 256, "calibration": 0.75}
_SHARED = {"loss": "sampled", "shared": True, "num_negatives": 2000}
CONTENDERS = {
    "popularity": Contender("popularity", "popularity", {"refit": True}),
    "item-knn": Contender("item-KNN", "item-knn", {"refit": True}),
    "session-knn": Contender("session-KNN", "session-knn", {"refit": True}),
    "ease": Contender("EASE", "ease", {"refit": True}),
    "bpr": Contender("MF by BPR", "bpr", {"factors": 64, "refit": True}, protocols=_ITEMS),
    "mf": Contender(
        "MF",
        "mf",
        {"factors": 64, "batch_size": 4096, "lr": 0.003, "epochs": 20, "patience": 3, "refit": True},
        protocols=_ITEMS,
    ),
    "gru4rec": Contender("GRU4Rec, session-parallel", "gru4rec", {"refit": True}, protocols=_SESSIONS),
    "gru4rec-full": Contender("GRU4Rec, full softmax", "gru4rec", {**_GRU, **_CONSTANT}, protocols=_ITEMS),
    "caser": Contender("Caser", "caser", {}, protocols=_ITEMS),
    "sasrec-full": Contender("SASRec, full softmax", "sasrec", {}, True),
    "sasrec-sampled": Contender("SASRec, softmax of 2,000 shared draws", "sasrec", _SHARED, True),
    "sasrec-ligr": Contender("SASRec, full softmax, LiGR", "sasrec", {"block": "ligr", "hidden": 256}, True),
    "sasrec-bce": Contender("SASRec, BCE, 1 negative", "sasrec", {"loss": "bce", "num_negatives": 1}, True),
    "sasrec-gbce": Contender("SASRec, gBCE, 256 negatives", "sasrec", _GBCE, True),
    "bert4rec": Contender("BERT4Rec, full softmax", "bert4rec", {"hidden": 256, "blocks": 2, "patience": 20}, True),
}


def options_of(name: str, label: str) -> dict[str, Any]:
    """Options of a contender on a set."""
    each = CONTENDERS[label]
    return {**SETS[name].sequences, **each.options} if each.is_sequence else each.options


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender on one set and leave its card."""
    each, figures, started = CONTENDERS[label], SETS[name].figures, time.perf_counter()
    if SETS[name].protocol not in each.protocols:
        return
    say = Sayer(f"{name}, {label}, seed {seed}", figures[1])
    if label == "ease" and SETS[name].items > _MOST_ITEMS_OF_EASE:
        print(f"{say.what}: left out, {SETS[name].items:,} items squared", flush=True)
        return
    place = WORK / name / label / f"seed-{seed}"
    metrics, cutoffs = zip(*(figure.split("@") for figure in figures), strict=True)
    rule = protocol(SETS[name].protocol, metrics=metrics, cutoffs=(int(cutoffs[0]),))
    if SETS[name].protocol == "next-item":
        rule = rule.changed(validating=_VALIDATING)
    model = create(each.model, **options_of(name, label))
    given: dict[str, Any] = {"select": figures[1]} if model.trains_by_gradient else {}
    given |= {"protocol": rule, "seed": seed, "out": place, "resume": True, "on_progress": say, "baselines": False}
    result = fit(model, data, **given)
    card = RESULTS / name / label / f"seed-{seed}.json"
    card.parent.mkdir(parents=True, exist_ok=True)
    result.card.write(card)
    reached = ", ".join(f"{figure} {result.card.metrics[figure]:.4f}" for figure in figures)
    print(f"{say.what}: {reached}, epoch {result.card.epoch}, {time.perf_counter() - started:.0f} s", flush=True)


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# The next item of ordered histories",
        "",
        "Leave-one-out: the last item of each user is the test. The one before it chooses the epoch, of 2,000 users,",
        "drawn by the seed of the split; of all others it is trained on, as where the figures of others come from. All",
        "items but those met before are ranked. Methods that read no order are trained anew with the validation items,",
        "which models of sequences see in the history. Sessions: each event of the held-out ones, but for the first of",
        "each, is told from those before it, nothing left out. Mean and deviation over the seeds. Figures of others",
        "are on the same files and by the same protocol as far as their sources say. Written by `bench/sequences.py`.",
    ]
    for name, each in SETS.items():
        rows, figures = [], each.figures
        for label in CONTENDERS:
            cards = [read_card(path) for path in sorted((RESULTS / name / label).glob("seed-*.json"))]
            if cards:
                rows.append((label, cards, [statistics.mean(c.metrics[figure] for c in cards) for figure in figures]))
        if not rows:
            continue
        best = [max(means[at] for _, _, means in rows) for at in range(len(figures))]
        ranked = sorted(rows, key=lambda row: -row[2][1])
        first = CONTENDERS[ranked[0][0]]
        simple = next((CONTENDERS[label] for label, _, _ in ranked if CONTENDERS[label].model not in _DEEP), None)
        said = f"**{first.words}** ranks best by {figures[1]}"
        if simple is not None and simple is not first:
            said += f"; of the simple methods, {simple.words}"
        lines += ["", f"## {each.what}", "", f"{said}.", ""]
        lines += [f"| method | seeds | {' | '.join(figures)} | epoch | seconds |", "|---" * (len(figures) + 4) + "|"]
        lines += [_row(label, cards, figures, best) for label, cards, _ in rows]
        for other in each.published:
            cells = " | ".join(f"{figure:.4f}" for figure in other.figures)
            lines.append(f"| published: {other.what}, {other.source} | | {cells} | | |")
    return "\n".join(lines) + "\n"


def _row(label: str, cards: list[Any], figures: tuple[str, ...], best: list[float]) -> str:
    cells = [CONTENDERS[label].words, str(len(cards))]
    seconds = f"{statistics.mean(c.seconds for c in cards):.0f}"
    cells += [*figure_cells(cards, figures, best), epochs_cell(cards), seconds]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """See the module."""
    run_command(
        __doc__,
        RESULTS,
        SETS,
        CONTENDERS,
        [1, 2, 3],
        lambda name: name,
        load,
        run,
        lambda: PAGE.write_text(page(), encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
