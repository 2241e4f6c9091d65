"""Models of what is in an item beside simple methods and MF: cards, and the page results/content.md.

    python -m bench.content [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

A set names its data and how it is cut: the published split, or items held out whole, which are ranked among themselves
("cold"). The seed cuts the rows and makes the weights. A finished run is kept as results/content/SET/LABEL/seed-N.json,
and one that was cut off goes on from its checkpoint in build/content: start the same command again. Data is found in
DEEPREC_DATA.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from bench.card_runs import Sayer, epochs_cell, figure_cells, run_command
from deeprec.data import DataSchema, FeatureSchema, Interactions, Terms, Text, encode_tables, load, with_features
from deeprec.evaluate import protocol, read_card
from deeprec.models import create
from deeprec.train import fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "results" / "content", ROOT / "results" / "content.md", ROOT / "build" / "content"
FIGURES = ("ndcg@20", "recall@20")
WORDS = DataSchema(items=FeatureSchema((Text("plot", tokens="words", min_count=3),), label=None))
_TOPICS = 128


class Set(NamedTuple):
    """A data set and how it is cut.

    Attributes:
        what: for the page.
        data: name of what `read` reads.
        rule: name of the protocol, and what is changed in it.
        features: columns of vectors.
        words: what the columns of texts mean; None: there are none.
    """

    what: str
    data: str
    rule: tuple[str, dict[str, Any]]
    features: tuple[str, ...]
    words: DataSchema | None = None


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config.
        reads: what of the set's columns: "", "features", one column of them by name, or "words".
    """

    words: str
    model: str
    options: dict[str, Any]
    reads: str = ""


_COLD = ("cold-items", {"metrics": ("ndcg", "recall"), "cutoffs": (20,)})
SETS = {
    "tiktok": Set(
        "TikTok, the published split: 68,722 rows, 9,308 users, 6,710 videos with vectors of picture and sound",
        "tiktok",
        ("random", {"holdout": "official", "metrics": ("ndcg", "recall"), "cutoffs": (20,)}),
        ("image", "audio"),
    ),
    "tiktok-cold": Set("TikTok, a tenth of the videos held out whole", "tiktok", _COLD, ("image", "audio")),
    "ml-1m-cold": Set(
        "MovieLens-1M with plots, a tenth of the films held out whole: 1,000,209 ratings taken as likes, 3,706 films",
        "ml-1m-plots",
        _COLD,
        ("topics",),
        WORDS,
    ),
}
_VBPR = {"factors": 32, "content_factors": 32, "epochs": 40, "patience": 4}
CONTENDERS = {
    "popularity": Contender("popularity", "popularity", {}),
    "item-knn": Contender("item-KNN", "item-knn", {}),
    "bpr": Contender("MF by BPR", "bpr", {"factors": 64, "patience": 4}),
    "tf-idf": Contender("TF-IDF content KNN", "tf-idf", {}, "words"),
    "bm25": Contender("BM25 content KNN", "bm25", {}, "words"),
    "vbpr": Contender("VBPR", "vbpr", _VBPR, "features"),
    "vbpr-image": Contender("VBPR, picture alone", "vbpr", _VBPR, "image"),
    "vbpr-audio": Contender("VBPR, sound alone", "vbpr", _VBPR, "audio"),
}


def read(name: str) -> Interactions:
    """The data of a set, with the columns that its contenders read."""
    if name != "ml-1m-plots":
        return load(name)
    data = load("ml-1m")
    place = Path(os.environ["DEEPREC_DATA"]) / "ml-1m" / "movie_overviews.csv.gz"
    table = pl.read_csv(place).select(item_id=pl.col("movie_id"), plot=pl.col("overview"))
    met = pl.DataFrame({"item_id": data.item_ids.values}).join(table, on="item_id", how="left")
    data = with_features(data, items=met)
    return with_features(data, items=met.with_columns(topics=pl.Series(_topics(data))))


def _topics(data: Interactions) -> Any:
    """[num_items, 128] the strongest directions of the TF-IDF vectors of the plots (latent semantic analysis)."""
    table = encode_tables(data, WORDS).items
    assert table is not None
    terms = Terms.of_table(table).weighted("tf-idf")
    torch.manual_seed(0)
    matrix = torch.zeros(len(terms), terms.size)
    owners = torch.arange(len(terms)).repeat_interleave(torch.from_numpy(np.diff(terms.offsets)))
    matrix[owners, torch.from_numpy(terms.ids).long()] = torch.from_numpy(terms.weights)
    left, sizes, _ = torch.svd_lowrank(matrix, _TOPICS, niter=4)
    return (left * sizes).numpy()


def is_run(name: str, label: str) -> bool:
    """Whether a contender has on a set what it reads, and says something of its test items."""
    each, reads = SETS[name], CONTENDERS[label].reads
    if reads == "words":
        return each.words is not None
    if not reads:
        return each.rule is not _COLD or label == "popularity"
    return reads == "features" or reads in each.features


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender on one set and leave its card."""
    if not is_run(name, label):
        return
    each, chosen, started = CONTENDERS[label], SETS[name], time.perf_counter()
    say = Sayer(f"{name}, {label}, seed {seed}", FIGURES[0])
    features = chosen.features if each.reads == "features" else (each.reads,)
    options = {**each.options, "features": features} if each.model == "vbpr" else each.options
    base, changes = chosen.rule
    seeded = {} if changes.get("holdout") == "official" else {"seed": seed}
    rule = protocol(base, **changes, **seeded)
    inputs: dict[str, Any] = {"schema": chosen.words} if each.reads == "words" else {}
    result = fit(
        create(each.model, **options),
        data,
        protocol=rule,
        seed=seed,
        out=WORK / name / label / f"seed-{seed}",
        resume=True,
        on_progress=say,
        baselines=False,
        **inputs,
    )
    card = RESULTS / name / label / f"seed-{seed}.json"
    card.parent.mkdir(parents=True, exist_ok=True)
    result.card.write(card)
    reached = ", ".join(f"{figure} {result.card.metrics[figure]:.4f}" for figure in FIGURES)
    print(f"{say.what}: {reached}, epoch {result.card.epoch}, {time.perf_counter() - started:.0f} s", flush=True)


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# What is in an item",
        "",
        "Cold: items held out whole with all their rows, a tenth for the test and a tenth to choose the epoch by,",
        "ranked among themselves. What knows nothing of an item but who met it gives all of them one score, which",
        "ranks last; by guessing, recall@20 would be 20 over the number of test items. Mean and deviation over the",
        "seeds. Written by `bench/content.py`.",
    ]
    tables: list[tuple[str, Callable[[str], bool]]] = [(name, lambda label, n=name: is_run(n, label)) for name in SETS]
    for name, is_asked in tables:
        places = {label: sorted((RESULTS / name / label).glob("seed-*.json")) for label in filter(is_asked, CONTENDERS)}
        rows = {label: [read_card(path) for path in paths] for label, paths in places.items() if paths}
        if not rows:
            continue
        means = {
            label: [statistics.mean(c.metrics[f] for c in cards) for f in FIGURES] for label, cards in rows.items()
        }
        best = [max(each[at] for each in means.values()) for at in range(len(FIGURES))]
        leader = max(means, key=lambda label: means[label][0])
        lines += ["", f"## {SETS[name].what}", "", f"**{CONTENDERS[leader].words}** ranks best by {FIGURES[0]}.", ""]
        lines += [f"| method | seeds | {' | '.join(FIGURES)} | epoch | seconds |", "|---" * (len(FIGURES) + 4) + "|"]
        for label, cards in rows.items():
            seconds = f"{statistics.mean(c.seconds for c in cards):.0f}"
            cells = [CONTENDERS[label].words, str(len(cards)), *figure_cells(cards, FIGURES, best)]
            lines.append(f"| {' | '.join([*cells, epochs_cell(cards), seconds])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    run_command(
        __doc__,
        RESULTS,
        SETS,
        CONTENDERS,
        [1, 2, 3],
        lambda name: SETS[name].data,
        read,
        run,
        lambda: PAGE.write_text(page(), encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
