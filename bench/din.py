"""Histories in click models, pooled and weighed by the candidate, beside networks without: cards, and results/din.md.

    python -m bench.din [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

Each run trains on the train part of the set, chooses the epoch by grouped AUC of the validation part and measures the
test part once; parts are those of the set, the seed makes weights and order. Options were chosen on validation, with
seed 0. A finished run is kept as results/din/SET/LABEL/seed-N.json; runs go seed by seed, so that a part of them is a
table already. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.card_runs import epochs_cell, figure_cells, run_command
from deeprec.data import FeatureSchema, Sequence, load_clicks
from deeprec.evaluate import protocol, read_card
from deeprec.models import create
from deeprec.train import fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results" / "din", ROOT / "results" / "din.md"
FIGURES = ("auc", "gauc", "log_loss")


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config.
        has_history: whether the sequences of the set belong to its schema.
    """

    words: str
    model: str
    options: dict[str, Any]
    has_history: bool = True


class Set(NamedTuple):
    """A data set.

    Attributes:
        what: for the page.
        notes: what to know of its figures.
        options: of all models that are trained by gradients.
    """

    what: str
    notes: str
    options: dict[str, Any]


SETS = {
    "amazon-grocery-clicks": Set(
        "Amazon Grocery: 107,211 reviews and an item that the user never met beside each; the last two are held out",
        "One sampled negative for each of 14,681 test events: chance is .5, and the standard error of grouped AUC, the "
        "share of pairs in the right order, is about .004; that of the difference of two models on the same pairs is "
        "less.",
        {"batch_size": 512, "lr": 0.002, "epochs": 4, "patience": 1, "embedding_l2": 0.01, "factors": 16},
    ),
    "mind-clicks": Set(
        "MIND extract: 3,318 impressions, 126,245 rows, grouped by impression, the last ones held out",
        "The test part has 332 impressions, 12,489 rows. Of its rows 20 % show news that are in the train "
        "part, of the entries of the histories 11 % are: the others are unknown to every model here, and of 6,469 "
        "candidates 244 have a category.",
        {"batch_size": 512, "lr": 0.002, "epochs": 4, "patience": 1, "embedding_l2": 0.01, "factors": 16},
    ),
}
_NETWORK = {"hidden": (80, 40), "activation": "dice", "dropout": 0.0, "batch_norm": False}
_DEEP = {"hidden": (80, 40), "activation": "relu", "dropout": 0.2, "batch_norm": False}
_POOLED, _DIN = {"attention": "none"}, {"attention": "din"}
CONTENDERS = {
    "base-rate": Contender("share of clicks", "base-rate", {}, False),
    "lr": Contender("logistic regression: how often an item is met", "lr", {}, False),
    "lr-history": Contender("logistic regression, history pooled", "lr", {}),
    "network": Contender("network of DIN, no history", "din", {**_NETWORK, **_POOLED}, False),
    "network-pooled": Contender("network of DIN, history pooled", "din", {**_NETWORK, **_POOLED}),
    "din": Contender("DIN, softmax", "din", _NETWORK),
    "din-raw": Contender("DIN, raw weights", "din", {**_NETWORK, "attention_weights": "raw"}),
    "bst": Contender("BST", "bst", {**_NETWORK, "activation": "leaky-relu"}),
    "deepfm": Contender("DeepFM, no history", "deepfm", _DEEP, False),
    "deepfm-pooled": Contender("DeepFM, history pooled", "deepfm", _DEEP),
    "deepfm-din": Contender("DeepFM, history weighed", "deepfm", {**_DEEP, **_DIN}),
    "wide-deep": Contender("Wide & Deep, no history", "wide-deep", _DEEP, False),
    "wide-deep-din": Contender("Wide & Deep, history weighed", "wide-deep", {**_DEEP, **_DIN}),
}
_PLAIN = ("base-rate", "lr")


def read(name: str) -> dict[bool, Any]:
    """The log of a set with its sequences and without."""
    whole = load_clicks(name)
    kept = tuple(feature for feature in whole.schema.features if not isinstance(feature, Sequence))
    return {True: whole, False: load_clicks(name, FeatureSchema(kept, group=whole.schema.group))}


def run(name: str, label: str, seed: int, data: dict[bool, Any]) -> None:
    """Train one contender on one set and leave its card."""
    each, started = CONTENDERS[label], time.perf_counter()
    options = {} if each.model in _PLAIN else {**SETS[name].options, **each.options}
    model = create(each.model, **options)
    rule = protocol("click", metrics=("gauc", "auc", "log_loss"))
    log = data[each.has_history]
    select = {} if each.model == "base-rate" else {"select": "gauc"}
    result = fit(model, log, protocol=rule, seed=seed, device="cpu", baselines=False, **select)
    card = RESULTS / name / label / f"seed-{seed}.json"
    card.parent.mkdir(parents=True, exist_ok=True)
    result.card.write(card)
    figures = ", ".join(f"{figure} {result.card.metrics[figure]:.4f}" for figure in FIGURES)
    chosen = max((entry.get("gauc", 0.0) for entry in result.history), default=0.0)
    spent = time.perf_counter() - started
    print(f"{name}, {label}, seed {seed}: {figures}, epoch {result.card.epoch}, validation {chosen:.4f}, {spent:.0f} s",
          flush=True)  # fmt: skip


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# Histories in click models",
        "",
        "Grouped AUC (gauc) is the mean over users, of MIND over impressions, weighted by rows. Mean and standard",
        "deviation over the seeds, which make weights and order; the parts are the same. Histories are the last 50",
        "entries, items and categories side by side, in the tables of the candidate. The options come from a few",
        "runs of seed 0 on Grocery, whose test figures were seen: no choice by validation alone; the epoch is one.",
        "Seconds were taken on a machine that did other work. Written by `bench/din.py`.",
    ]
    for name, each in SETS.items():
        rows = []
        for label in CONTENDERS:
            cards = [read_card(path) for path in sorted((RESULTS / name / label).glob("seed-*.json"))]
            if cards:
                rows.append((label, cards, {f: statistics.mean(c.metrics[f] for c in cards) for f in FIGURES}))
        if not rows:
            continue
        best = {figure: max(means[figure] for _, _, means in rows) for figure in FIGURES}
        best["log_loss"] = min(means["log_loss"] for _, _, means in rows)
        winner = max(rows, key=lambda row: row[2]["gauc"])[0]
        lines += ["", f"## {each.what}", "", f"**{CONTENDERS[winner].words}** has the best gauc. {each.notes}", ""]
        lines += ["| method | seeds | auc | gauc | log loss | epoch | seconds |", "|---|---|---|---|---|---|---|"]
        lines += [_row(label, cards, best) for label, cards, _ in rows]
    return "\n".join(lines) + "\n"


def _row(label: str, cards: list[Any], best: dict[str, float]) -> str:
    cells = [CONTENDERS[label].words, str(len(cards))]
    seconds = f"{statistics.mean(c.seconds for c in cards):.0f}"
    cells += [*figure_cells(cards, FIGURES, [best[figure] for figure in FIGURES]), epochs_cell(cards), seconds]
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
        read,
        run,
        lambda: PAGE.write_text(page(), encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
