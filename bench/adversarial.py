"""Adversarial models beside BPR and simple methods: cards, attacks, and the page results/adversarial.md.

    python -m bench.adversarial [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

A finished run is kept as results/adversarial/SET/LABEL/seed-N.json, and what an attack does to its ranking beside it as
attack-N.json; one that was cut off goes on from its checkpoint in build/adversarial: start the same command again. The
training by BPR that several contenders begin with is done once and kept there too. Options were chosen by the
validation part with seed 1. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.card_runs import Sayer, epochs_cell, figure_cells, run_command
from deeprec.data import Interactions, load
from deeprec.data.interactions.readers import read_parts
from deeprec.evaluate import Card, evaluate, protocol, read_card
from deeprec.models import create
from deeprec.models._adversarial import PERTURBATIONS, AdversarialRecommender
from deeprec.train import Callback, fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = (
    ROOT / "results" / "adversarial",
    ROOT / "results" / "adversarial.md",
    ROOT / "build" / "adversarial",
)
_PLAIN_STAGE = "pretrain-amf"


class Set(NamedTuple):
    """A data set and how it is cut.

    Attributes:
        what: for the page.
        rule: name of the protocol, and what is changed in it.
        figures: of the tables; the first chooses the epoch, and is what an attack is measured by.
        labels: who is trained on it.
        options: of all models with factors on it.
        epsilon: of adversarial training; 0: there is none on this set.
        is_seeded: whether the split has the seed of the run.
        note: for the page.
    """

    what: str
    rule: tuple[str, dict[str, Any]]
    figures: tuple[str, ...]
    labels: tuple[str, ...]
    options: dict[str, Any]
    epsilon: float = 0.0
    is_seeded: bool = False
    note: str = ""


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config, beside those of the set.
    """

    words: str
    model: str
    options: dict[str, Any]


_ATTACKS = (0.1, 0.5, 1.0)  # by how much each vector is moved
_LISTS = ("coverage@10", "gini@10")
_METRICS = {"metrics": ("hr", "ndcg", "coverage", "gini"), "cutoffs": (10,)}
_OF_APR = ("popularity", "item-knn", "bpr", "bpr-longer", "bpr-on", "random", "amf")
SETS = {
    "ml-1m": Set(
        "MovieLens-1M, the last film of each user held out: 1,000,209 ratings taken as likes, 6,040 users, 3,706 films",
        ("full", _METRICS),
        ("ndcg@10", "hr@10", *_LISTS),
        _OF_APR,
        {"factors": 64, "epochs": 40, "patience": 6, "batch_size": 4096, "lr": 0.1},
        epsilon=0.1,
        note="User by user AMF is above its start with seed 1 by 0.0003 of ndcg@10 (standard error 0.0008) and "
        "0.0026 of hr@10 (0.0019), which one seed does not tell from chance; its validation figure, 0.1157 at the "
        "start and 0.1180 at the end, rose until the last epochs. Going on without perturbations ended "
        "after six epochs that were no better.",
    ),
    "pinterest-37k": Set(
        "Pinterest, 37,501 users, the published split: 1,025,709 rows, 9,836 pictures",
        ("full", {**_METRICS, "holdout": "official"}),
        ("ndcg@10", "hr@10", *_LISTS),
        _OF_APR,
        {"factors": 64, "epochs": 40, "patience": 6, "batch_size": 4096, "lr": 0.1},
        epsilon=0.1,
    ),
    "ml-100k": Set(
        "MovieLens-100K, ratings of 4 and 5, a fifth held out: 55,375 likes, 943 users",
        ("random", {"test_share": 0.2, "metrics": ("ndcg", "precision", "coverage", "gini"), "cutoffs": (5, 10)}),
        ("ndcg@5", "precision@5", "ndcg@10", *_LISTS),
        ("popularity", "item-knn", "bpr-64", "dns", "irgan", "irgan-pairs"),
        {"epochs": 40, "patience": 6},
        is_seeded=True,
        note="IRGAN stays where it begins: what it gains is far below the deviation over seeds. From weaker starts "
        "(plain BPR) it was the same, and with the authors' temperature of 0.2 for the discriminator's draws it "
        "ranked worse from epoch to epoch (validation).",
    ),
}
# After 40 epochs of BPR, of which validation chooses one; a lower rate, as AdaGrad begins anew there.
_SECOND = {"plain_epochs": 40, "plain_lr": 0.1, "epochs": 20, "lr": 0.02}
_DYNAMIC = {"factors": 32, "l2": 0.05, "num_negatives": 4, "hardest": True}
CONTENDERS = {
    "popularity": Contender("popularity", "popularity", {}),
    "item-knn": Contender("item-KNN", "item-knn", {}),
    "bpr": Contender("BPR, the start of all below", "bpr", {}),
    "bpr-longer": Contender("BPR for as many epochs as both stages have", "bpr", {"epochs": 60, "patience": 0}),
    "bpr-on": Contender("BPR gone on with", "amf", {**_SECOND, "epsilon": 0.0}),
    "random": Contender("BPR gone on with under random perturbations", "amf", {**_SECOND, "perturbation": "random"}),
    "amf": Contender("AMF (APR)", "amf", _SECOND),
    "bpr-64": Contender("BPR", "bpr", {"factors": 64, "l2": 0.03}),
    "dns": Contender("BPR with dynamic negatives, the start of those below", "bpr", _DYNAMIC),
    "irgan": Contender("IRGAN, pointwise", "irgan", {}),
    "irgan-pairs": Contender("IRGAN, pairwise", "irgan", {"judges": "pairwise", "lr": 0.1}),
}


def read(name: str) -> Interactions:
    """The data of a set."""
    if name == "ml-100k":
        data = load(name)
        assert data.ratings is not None
        return data.take(data.ratings >= 4)
    return _pinterest() if name == "pinterest-37k" else load(name)


def _pinterest() -> Interactions:
    """Lines of a user and their pictures, as pairs."""
    paths = []
    for part in ("train", "test"):
        source = Path(os.environ["DEEPREC_DATA"]) / "pinterest-37k" / f"{part}.txt.gz"
        with gzip.open(source, "rt", encoding="utf-8") as file:
            rows = [(user, item) for user, *items in map(str.split, file) for item in items]
        WORK.mkdir(parents=True, exist_ok=True)
        paths.append(WORK / f"pinterest-{part}.txt")
        paths[-1].write_text("".join(f"{user} {item}\n" for user, item in rows), encoding="utf-8")
    return read_parts([paths[0]], None, paths[1], name="pinterest-37k", user=0, item=1, header=False, integers=True)


class KeepStart(Callback):
    """Keeps the stage that several contenders begin with, and which is the same for them, for the next one."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def on_checkpoint(self, path: Path) -> None:
        if _PLAIN_STAGE in path.parts:
            shutil.copytree(path.parent, self.place, dirs_exist_ok=True)


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender on one set, attack it, and leave its card and what came of the attack."""
    chosen, each, started = SETS[name], CONTENDERS[label], time.perf_counter()
    if label not in chosen.labels:
        return
    say = Sayer(f"{name}, {label}, seed {seed}", chosen.figures[0])
    options = dict(each.options)
    if each.model not in ("popularity", "item-knn"):
        options = {**chosen.options, **options}
    if each.model == "amf":
        options = {"epsilon": chosen.epsilon, **options}
    out, start = WORK / name / label / f"seed-{seed}", WORK / "starts" / name / f"seed-{seed}"
    if each.model == "amf" and start.exists() and not out.exists():
        shutil.copytree(start, out / _PLAIN_STAGE)
    base, changes = chosen.rule
    rule = protocol(base, **changes, **({"seed": seed} if chosen.is_seeded else {}))
    result = fit(
        create(each.model, **options),
        data,
        protocol=rule,
        seed=seed,
        out=out,
        resume=True,
        select=chosen.figures[0] if each.model not in ("popularity", "item-knn") else None,
        on_progress=say,
        callbacks=[KeepStart(start)] if each.model == "amf" else (),
        baselines=False,
    )
    card = RESULTS / name / label / f"seed-{seed}.json"
    card.parent.mkdir(parents=True, exist_ok=True)
    if chosen.epsilon and isinstance(result.model, AdversarialRecommender):
        attacks = attacked(result.model, data, rule, chosen, seed)
        card.with_name(f"attack-{seed}.json").write_text(json.dumps(attacks, indent=1) + "\n", encoding="utf-8")
    result.card.write(card)
    reached = ", ".join(f"{figure} {result.card.metrics[figure]:.4f}" for figure in chosen.figures)
    print(f"{say.what}: {reached}, epoch {result.card.epoch}, {time.perf_counter() - started:.0f} s", flush=True)


def attacked(model: Any, data: Interactions, rule: Any, chosen: Set, seed: int) -> dict[str, Any]:
    """The first figure of the test part as it is, and where every vector is moved."""
    split, figure = rule.split(data), chosen.figures[0]
    figures = {"figure": figure, "as it is": evaluate(model, split, rule)[figure]}
    for epsilon in _ATTACKS:
        for kind in PERTURBATIONS:
            with model.under_attack(split.train, epsilon, kind=kind, seed=seed):
                figures[f"{kind} {epsilon:g}"] = evaluate(model, split, rule)[figure]
    return figures


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# Adversarial training",
        "",
        "`amf` goes on from BPR with vectors moved against it (APR, He et al. 2018), `irgan` from BPR with a",
        "discriminator (Wang et al. 2017). All items are ranked; validation chooses the epoch, 0 being the start. Mean",
        "and deviation over the seeds. Coverage: the share of the catalogue that is in any first ten; Gini: 0 where",
        "all items are shown equally often, near 1 where a few are. Options were chosen by validation with seed 1.",
        "Written by `bench/adversarial.py`.",
    ]
    for name, chosen in SETS.items():
        places = {label: sorted((RESULTS / name / label).glob("seed-*.json")) for label in chosen.labels}
        rows = {label: [read_card(path) for path in paths] for label, paths in places.items() if paths}
        if rows:
            lines += ["", f"## {chosen.what}", "", *_table(chosen, rows), *_attacks(name, chosen)]
    return "\n".join(lines) + "\n"


def _table(chosen: Set, rows: dict[str, list[Card]]) -> list[str]:
    # Who ranks best is said of the seeds that all have.
    shared = set.intersection(*({card.seed for card in cards} for cards in rows.values()))
    alike = {label: [card for card in cards if card.seed in shared] or cards for label, cards in rows.items()}
    leader = max(alike, key=lambda label: statistics.mean(card.metrics[chosen.figures[0]] for card in alike[label]))
    missing = [CONTENDERS[label].words for label in chosen.labels if label not in rows]
    lines = [f"**{CONTENDERS[leader].words}** ranks best by {chosen.figures[0]}. {chosen.note}".rstrip(), ""]
    if missing:
        lines += [f"Not run yet: {'; '.join(missing)}.", ""]
    head = ["method", "seeds", *chosen.figures, "epoch", "seconds"]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    best = [float("nan")] * len(chosen.figures)  # the line above says it; seeds may differ here
    for label, cards in rows.items():
        seconds = f"{statistics.mean(c.seconds for c in cards):.0f}"
        cells = [CONTENDERS[label].words, str(len(cards)), *figure_cells(cards, chosen.figures, best)]
        lines.append(f"| {' | '.join([*cells, epochs_cell(cards), seconds])} |")
    return lines


def _attacks(name: str, chosen: Set) -> list[str]:
    """How much of the figure is lost where vectors are moved, in per cent."""
    places = {label: sorted((RESULTS / name / label).glob("attack-*.json")) for label in chosen.labels}
    rows = {label: [json.loads(path.read_text(encoding="utf-8")) for path in paths] for label, paths in places.items()}
    rows = {label: each for label, each in rows.items() if each}
    if not rows:
        return []
    kinds = [key for key in next(iter(rows.values()))[0] if key not in ("figure", "as it is")]
    lines = ["", f"Change of {chosen.figures[0]} of the test where every vector is moved by so much, in per cent:", ""]
    lines += [f"| method | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for label, each in rows.items():
        losses = [statistics.mean(100 * (one[kind] / one["as it is"] - 1) for one in each) for kind in kinds]
        lines.append(f"| {CONTENDERS[label].words} | {' | '.join(f'{loss:.1f}' for loss in losses)} |")
    return lines


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
