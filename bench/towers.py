"""Two towers beside simple methods and MF, by kind of negatives and of text: cards, and the page results/towers.md.

    python -m bench.towers [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

Each run trains on a random 80 % of the rows, chooses the epoch on 10 % and ranks all items for the other 10 %; the seed
cuts the rows and makes the weights. Nobody trains on the validation rows. Of several options of a contender those that
rank the validation rows of seed 1 best are taken for all seeds; what each reached is kept in
results/towers/SET/choosing. A finished run is kept as results/towers/SET/LABEL/seed-N.json, and one that was cut off
goes on from its checkpoint in build/towers: start the same command again. Runs go seed by seed, so that a part of them
is a table already. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from bench.card_runs import Sayer, epochs_cell, figure_cells, run_command
from deeprec.data import Bag, Categorical, DataSchema, FeatureSchema, Interactions, Numeric, Text, load, with_features
from deeprec.evaluate import Card, protocol, read_card
from deeprec.models import create
from deeprec.train import fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "results" / "towers", ROOT / "results" / "towers.md", ROOT / "build" / "towers"
FIGURES = ("ndcg@20", "recall@20", "recall@100")


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config.
        columns: of the set's, "", "metadata", "text" or "words".
        others: further models and options, among which and the above validation chooses.
    """

    words: str
    model: str
    options: dict[str, Any]
    columns: str = ""
    others: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def candidates(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Models and options."""
        return ((self.model, self.options), *self.others)


class Set(NamedTuple):
    """A data set.

    Attributes:
        what: for the page.
        read: gives its interactions with tables.
        columns: what the columns mean, by the name that a `Contender` says.
        towers: options of all towers on it.
        note: for the page, behind who ranks best.
    """

    what: str
    read: Callable[[], Interactions]
    columns: dict[str, DataSchema]
    towers: dict[str, Any]
    note: str


def folder() -> Path:
    """Where the data sets are."""
    place = os.environ.get("DEEPREC_DATA")
    if not place:
        raise SystemExit("set DEEPREC_DATA to the folder of the data sets")
    return Path(place)


def citeulike() -> Interactions:
    """Articles in libraries, with the tags of each article as a text."""
    data = load(str(folder() / "citeulike-a" / "users.dat.gz"))
    names, tags = (_lines(name) for name in ("tags.dat.gz", "item-tag.dat.gz"))
    texts = [" ".join(names[int(tag)].replace("-", " ") for tag in line.split()[1:]) for line in tags]
    items = data.item_ids.values
    return with_features(data, items=pl.DataFrame({"item_id": items, "tags": [texts[int(item)] for item in items]}))


def _lines(name: str) -> list[str]:
    with gzip.open(folder() / "citeulike-a" / name, "rt", encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


def _schema(*items: Any, users: tuple[Any, ...] = ()) -> DataSchema:
    of_users = FeatureSchema(users, label=None) if users else None
    return DataSchema(users=of_users, items=FeatureSchema(items, label=None))


_TITLE = Text("title", tokens="trigrams")
_PEOPLE = (Categorical("gender"), Categorical("age"), Categorical("occupation"))
_YEAR = Numeric("year", transform="bucketise", boundaries=tuple(float(year) for year in range(1940, 2000, 5)))
SETS = {
    "ml-1m": Set(
        "MovieLens-1M: 1,000,209 ratings taken as likes, 6,040 users, 3,706 films",
        lambda: load("ml-1m"),
        {
            "metadata": _schema(Bag("genres"), _YEAR, _TITLE, users=_PEOPLE),
            "text": _schema(_TITLE, Bag("genres"), users=_PEOPLE),
            "words": _schema(Text("title", tokens="words"), Bag("genres")),
        },
        {"history_length": 20, "batch_size": 512, "lr": 0.01, "epochs": 3},
        "Towers had three epochs, with at most 20 items of a history in each; longer training is not measured. Texts "
        "are titles, as words for TF-IDF and BM25 and as letter trigrams for DSSM, and genres; the users of DSSM of "
        "text have their gender, age and occupation beside what they met.",
    ),
    "citeulike-a": Set(
        "citeulike-a: 204,986 articles in 5,551 libraries, 16,980 articles with tags",
        citeulike,
        {
            "metadata": _schema(Text("tags", tokens="words", min_count=3)),
            "text": _schema(Text("tags", tokens="trigrams")),
            "words": _schema(Text("tags", tokens="words", min_count=3)),
        },
        {"history_length": 50, "batch_size": 1024, "lr": 0.005, "epochs": 20, "patience": 3},
        "Texts are the tags of the articles, as words for TF-IDF, BM25 and columns, as letter trigrams for DSSM.",
    ),
}

_SAMPLED = {"negatives": "sampled", "num_negatives": 1000}
_MIXED = {"negatives": "mixed", "num_negatives": 1000}
_PAPER = {
    "layers": (300, 300), "factors": 128, "last_activation": "tanh", "fan_in": 0, "similarity": "cosine", "gamma": 10.0,
    "weighting": "count", "negatives": "row", "num_negatives": 4, "item_inputs": ("features",),
}  # fmt: skip
_ALS = {"refit": False}
_NCF = {"batch_size": 4096, "epochs": 12, "patience": 2}
_MF = (
    ("als", {"factors": 64, "alpha": 100.0, **_ALS}),
    ("bpr", {"factors": 64, "epochs": 20, "patience": 2}),
    ("als", {"factors": 64, "alpha": 3.0, **_ALS}),
)
_NEUMF = (("neumf", {"factors": 32, "lr": 0.002, "weight_averaging": 0.7, **_NCF}),)
_OF_TEXT = {"item_inputs": ("features",), "weighting": "l2"}
_WITH_COLUMNS = {"item_inputs": ("id", "features")}
CONTENDERS = {
    "popularity": Contender("popularity", "popularity", {}),
    "item-knn": Contender("item-KNN", "item-knn", {"refit": False}),
    "ease": Contender("EASE", "ease", {"refit": False}),
    "mf": Contender("MF", "als", {"factors": 64, **_ALS}, others=_MF),
    "neumf": Contender("NeuMF", "neumf", {"factors": 16, "lr": 0.003, **_NCF}, others=_NEUMF),
    "in-batch": Contender("in-batch, corrected", "dssm", {}),
    "in-batch-plain": Contender("in-batch, no correction", "dssm", {"log_q": "none"}),
    "uniform": Contender("uniform, corrected", "dssm", _SAMPLED),
    "uniform-plain": Contender("uniform, no correction", "dssm", {**_SAMPLED, "log_q": "none"}),
    "mixed": Contender("mixed, corrected", "dssm", _MIXED),
    "mixed-plain": Contender("mixed, no correction", "dssm", {**_MIXED, "log_q": "none"}),
    "full": Contender("full", "dssm", {"negatives": "full"}),
    "columns": Contender("in-batch, corrected, items and users with columns", "dssm", _WITH_COLUMNS, "metadata"),
    "tf-idf": Contender("TF-IDF of text", "tf-idf", {"refit": False}, "words"),
    "bm25": Contender("BM25 of text", "bm25", {"refit": False}, "words"),
    "dssm-printed": Contender("DSSM as printed: text alone, 4 negatives", "dssm", _PAPER, "text"),
    "text": Contender("DSSM of text alone, linear, in-batch", "dssm", _OF_TEXT, "text"),
}


def options_of(name: str, label: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a contender as a set has them."""
    each = CONTENDERS[label]
    if each.model != "dssm":
        return options
    options = {**SETS[name].towers, **options}
    has_users = bool(each.columns) and SETS[name].columns[each.columns].users is not None
    return {**options, "user_inputs": ("history", "features")} if has_users else options


def train(
    name: str, label: str, model: str, options: dict[str, Any], seed: int, data: Interactions, place: Path, what: str
) -> Card:
    """The card of one training."""
    each = CONTENDERS[label]
    rule = protocol("random", metrics=("ndcg", "recall"), cutoffs=(20, 100), seed=seed, validation_users=2000)
    made = create(model, **options_of(name, label, options))
    schema = SETS[name].columns[each.columns] if each.columns else None
    given = {} if schema is None else {"schema": schema}
    fit(
        made,
        data,
        protocol=rule,
        seed=seed,
        out=place,
        resume=True,
        on_progress=Sayer(what, FIGURES[0]),
        baselines=False,
        **given,
    )
    card = read_card(place)
    shutil.rmtree(place)
    return card


def chosen(name: str, label: str, data: Interactions) -> tuple[str, dict[str, Any]]:
    """Model and options with the best validation figure, each tried once and kept."""
    candidates = CONTENDERS[label].candidates
    if len(candidates) == 1:
        return candidates[0]
    values = []
    for number, (model, options) in enumerate(candidates):
        path = RESULTS / name / "choosing" / f"{label}-{number}.json"
        tried = {"model": model, "options": options}
        kept = json.loads(path.read_text()) if path.exists() else {}
        if {part: kept.get(part) for part in tried} != tried:
            what = f"{name}, {label}, {model} {options}"
            card = train(name, label, model, options, 1, data, WORK / name / label / f"try-{number}", what)
            card.write(WORK / name / label / f"try-{number}.json")
            kept = {**tried, "validation": card.validation_metrics}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=2) + "\n")
            print(f"{what}: {FIGURES[0]} {kept['validation'][FIGURES[0]]:.4f} of validation", flush=True)
        values.append(kept["validation"][FIGURES[0]])
    return candidates[values.index(max(values))]


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender on one set and leave its card."""
    started, what = time.perf_counter(), f"{name}, {label}, seed {seed}"
    model, options = chosen(name, label, data)
    number = CONTENDERS[label].candidates.index((model, options))
    tried = WORK / name / label / f"try-{number}.json"
    if seed == 1 and tried.exists():  # the same training
        card = read_card(tried)
    else:
        card = train(name, label, model, options, seed, data, WORK / name / label / f"seed-{seed}", what)
    path = RESULTS / name / label / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    card.write(path)
    figures = ", ".join(f"{figure} {card.metrics[figure]:.4f}" for figure in FIGURES)
    print(f"{what}: {figures}, epoch {card.epoch}, {time.perf_counter() - started:.0f} s", flush=True)


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# Two towers",
        "",
        "Full ranking of all items for a random 10 % of the rows, the epoch chosen on 2,000 users of another 10 %,",
        "which nobody trains on; mean and standard deviation over the seeds, which cut the rows anew; where no",
        "deviation is shown, it is one seed, and small differences say nothing. Towers are linear, over what a user",
        "met and the number of an item, with 64 dimensions, unless the line says otherwise.",
        "MF and NeuMF have the options, MF the model too, that ranked the validation rows of seed 1 best among a few",
        "(`towers/SET/choosing`). Runs shared the machine, so no time is told.",
        "`python -m bench.towers` makes the cards, goes on where it was broken off and writes this page.",
    ]
    for name, each in SETS.items():
        rows = []
        for label in CONTENDERS:
            cards = [read_card(path) for path in sorted((RESULTS / name / label).glob("seed-*.json"))]
            if cards:
                rows.append((label, cards, [statistics.mean(c.metrics[figure] for c in cards) for figure in FIGURES]))
        if not rows:
            continue
        best = [max(means[at] for _, _, means in rows) for at in range(len(FIGURES))]
        ranked = sorted(rows, key=lambda row: -row[2][0])
        most = max((means[0] for label, _, means in rows if CONTENDERS[label].model == "dssm"), default=float("inf"))
        ahead = [CONTENDERS[label].words for label, _, means in ranked if means[0] > most]
        said = f"**{CONTENDERS[ranked[0][0]].words}** ranks best by {FIGURES[0]}"
        said += f"; ahead of every tower: {', '.join(ahead)}." if ahead else "."
        lines += ["", f"## {each.what}", "", f"{said} {each.note}", ""]
        lines += [f"| method | seeds | {' | '.join(FIGURES)} | epoch |"]
        lines.append("|---|---|" + "---|" * (len(FIGURES) + 1))
        lines += [_row(label, cards, best) for label, cards, _ in rows]
    return "\n".join(lines) + "\n"


def _row(label: str, cards: list[Any], best: list[float]) -> str:
    words = CONTENDERS[label].words
    models = {model for model, _ in CONTENDERS[label].candidates}
    cells = [f"{words} ({cards[0].model})" if len(models) > 1 else words, str(len(cards))]
    cells += [*figure_cells(cards, FIGURES, best), epochs_cell(cards)]
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
        lambda name: SETS[name].read(),
        run,
        lambda: PAGE.write_text(page(), encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
