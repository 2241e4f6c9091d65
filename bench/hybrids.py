"""Hybrid models beside what they are made of: cards, and the page results/hybrids.md.

    python -m bench.hybrids [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

Sets: citeulike-a with one training item of each user (CDL's sparse rule), with items held out whole ("cold"), and with
a tenth of all rows held out ("warm"); MovieLens-1M, all items ranked, for the blends. The seed cuts the rows and makes
the weights. A finished run is kept as results/hybrids/SET/LABEL/seed-N.json, and one that was cut off goes on from its
checkpoint in build/hybrids: start the same command again. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.card_runs import Sayer, epochs_cell, figure_cells, run_command
from deeprec.data import Bag, DataSchema, FeatureSchema, Interactions, load
from deeprec.evaluate import protocol, read_card
from deeprec.models import create
from deeprec.train import fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "results" / "hybrids", ROOT / "results" / "hybrids.md", ROOT / "build" / "hybrids"
TAGS = DataSchema(items=FeatureSchema((Bag("tags"),), label=None))


class Set(NamedTuple):
    """A data set and how it is cut.

    Attributes:
        what, note: for the page.
        data: its name.
        rule: name of the protocol, and what is changed in it.
        figures: on the page; the first chooses.
        labels: of the contenders.
    """

    what: str
    note: str
    data: str
    rule: tuple[str, dict[str, Any]]
    figures: tuple[str, ...]
    labels: tuple[str, ...]


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config.
        reads_tags: whether it is given what the column of tags means.
    """

    words: str
    model: str
    options: tuple[dict[str, Any], ...]
    reads_tags: bool = False


_SPARSE = ("popularity", "item-knn", "als", "tf-idf", "bm25", "cdl", "cvae")
_COLD = ("popularity", "tf-idf", "bm25", "cdl", "cvae", "dropoutnet")
_WARM = ("popularity", "item-knn", "als", "als-100", "tf-idf", "bm25", "cdl", "cvae", "dropoutnet")
_SINGLE = ("popularity", "item-knn", "als-ml", "ease")
_BLENDS = ("blend-weights", "blend-ranks", "blend-network")
_MEMBERS = ("ease", "als-ml", "item-knn")
SETS = {
    "citeulike-1": Set(
        "citeulike-a, one training item of each user",
        "The rule of CDL's sparse setting: 5,551 interactions are trained on, a tenth of the others chooses, the rest "
        "tests. The abstracts that the papers read are not at hand; ours are the articles' tags, 14 on the mean, none "
        "for a fifth of them. As reach, with abstracts: recall@300 of 0.19 for CDL and 0.22 for CVAE in an independent "
        "replication (Ferrari Dacrema et al. 2021), where the best neighbour method without content has 0.07.",
        "citeulike-a",
        ("cdl", {}),
        ("recall@300", "recall@50", "map@500"),
        _SPARSE,
    ),
    "citeulike-cold": Set(
        "citeulike-a, a tenth of the articles held out whole",
        "Cold articles are ranked among themselves, about 1,700 of them: by guessing recall@100 would be 0.06.",
        "citeulike-a",
        ("cold-items", {"metrics": ("recall", "ndcg"), "cutoffs": (100, 20)}),
        ("recall@100", "recall@20", "ndcg@20"),
        _COLD,
    ),
    "citeulike-warm": Set(
        "citeulike-a, a tenth of the rows held out",
        "Where every article may be known; the factors of DropoutNet are those of ALS beside it, which it falls behind "
        "for what it can do with cold ones. Both trainings of it were still getting better when their epochs ended.",
        "citeulike-a",
        ("random", {"metrics": ("recall", "ndcg"), "cutoffs": (100, 20)}),
        ("recall@100", "recall@20", "ndcg@20"),
        _WARM,
    ),
    "ml-1m": Set(
        "MovieLens-1M, the last film of each user among all films",
        "All are trained on the training part alone (no refit), as a blend needs it; it is learnt on the film before "
        "the last of each user, the test film is used once.",
        "ml-1m",
        ("full", {"validation": "last"}),
        ("ndcg@10", "hr@10"),
        (*_SINGLE, *_BLENDS),
    ),
    "ml-100k": Set(
        "MovieLens-100K, a tenth of the rows held out at random",
        "The blend is learnt on another tenth, drawn likewise.",
        "ml-100k",
        ("random", {"metrics": ("ndcg", "recall"), "cutoffs": (10,)}),
        ("ndcg@10", "recall@10"),
        (*_SINGLE, *_BLENDS),
    ),
}
_NO_REFIT = {"refit": False}
_CONTENT = {"content": ("tags",)}
_DROPOUTNET = {
    "item_content": ("tags",),
    "vocabulary": 3000,
    "factors": 100,
    "out_factors": 100,
    "layers": (200,),
    "als_epochs": 8,
    "epochs": 24,
    "patience": 0,
    "lr_schedule": "linear",
}
CONTENDERS = {
    "popularity": Contender("popularity", "popularity", (_NO_REFIT,)),
    "item-knn": Contender(
        "item-KNN",
        "item-knn",
        tuple({"neighbors": k, "shrinkage": s, **_NO_REFIT} for k in (50, 500) for s in (0.0, 20.0)),
    ),
    "als": Contender(
        "ALS",
        "als",
        tuple(
            {"factors": 200, "alpha": a, "l2": l2, "epochs": 12, **_NO_REFIT}
            for a, l2 in ((20.0, 40.0), (100.0, 100.0))
        ),
    ),
    "tf-idf": Contender("TF-IDF content KNN", "tf-idf", (_NO_REFIT,), True),
    "bm25": Contender("BM25 content KNN", "bm25", (_NO_REFIT, {"k1": 0.6, "b": 0.3, **_NO_REFIT}), True),
    "cdl": Contender("CDL", "cdl", tuple({**_CONTENT, "user_l2": l2} for l2 in (10.0, 100.0))),
    "cvae": Contender("CVAE", "cvae", tuple({**_CONTENT, "user_l2": l2} for l2 in (10.0, 100.0))),
    "dropoutnet": Contender("DropoutNet", "dropoutnet", (_DROPOUTNET,)),
    "als-100": Contender(
        "ALS, the factors of DropoutNet", "als", ({"factors": 100, "epochs": 8, "patience": 0, **_NO_REFIT},)
    ),
    "als-ml": Contender(
        "ALS", "als", tuple({"factors": 64, "alpha": a, "l2": l2, **_NO_REFIT} for a, l2 in ((20.0, 40.0), (5.0, 20.0)))
    ),
    "ease": Contender("EASE", "ease", tuple({"l2": l2, **_NO_REFIT} for l2 in (200.0, 500.0, 1000.0))),
    "blend-weights": Contender("blend, weights", "hybrid", ({"blend": "weights"},)),
    "blend-ranks": Contender("blend, reciprocal ranks", "hybrid", ({"blend": "ranks"},)),
    "blend-network": Contender(
        "blend, network with age, sex and occupation",
        "hybrid",
        ({"blend": "network", "user_columns": ("age", "gender", "occupation")},),
    ),
}


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender on one set, its options chosen on the validation part, and leave its card."""
    if label not in SETS[name].labels:
        return
    started, path = time.perf_counter(), RESULTS / name / label / f"seed-{seed}.json"
    options = best_options(name, label, data)
    if label in _BLENDS:
        members = {part: best_options(name, part, data) for part in _MEMBERS}
        for part, chosen in members.items():  # read where they are there
            trained(name, part, chosen, seed, data)
        options = {**options, "members": tuple(str(folder_of(name, part, members[part], seed)) for part in _MEMBERS)}
    card = trained(name, label, options, seed, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    card.write(path)
    reached = ", ".join(f"{figure} {card.metrics[figure]:.4f}" for figure in SETS[name].figures)
    print(f"{name}, {label}, seed {seed}: {reached}, {time.perf_counter() - started:.0f} s", flush=True)


def folder_of(name: str, label: str, options: dict[str, Any], seed: int) -> Path:
    """Of the model of a run, relative to the folder where the bench is started."""
    candidates = CONTENDERS[label].options
    place = candidates.index(options) if options in candidates else 0
    return (WORK / name / label / f"options-{place}-seed-{seed}").relative_to(ROOT)


def trained(name: str, label: str, options: dict[str, Any], seed: int, data: Interactions) -> Any:
    """The card of one training, which is read where it has ended already."""
    each, (base, changes) = CONTENDERS[label], SETS[name].rule
    inputs: dict[str, Any] = {"schema": TAGS} if each.reads_tags else {}
    say = Sayer(f"{name}, {label}, seed {seed}", SETS[name].figures[0])
    shared = {"seed": seed, "out": folder_of(name, label, options, seed), "resume": True, "baselines": False}
    rule = protocol(base, **changes, seed=seed)
    return fit(create(each.model, **options), data, protocol=rule, on_progress=say, **shared, **inputs).card


def best_options(name: str, label: str, data: Interactions) -> dict[str, Any]:
    """Those of the candidates with the best validation figure, by seed 1, for every seed."""
    candidates = CONTENDERS[label].options
    if len(candidates) == 1:
        return candidates[0]
    values = []
    for place, options in enumerate(candidates):
        path = RESULTS / name / "choosing" / f"{label}-{place}.json"
        if not path.exists():
            figures = dict(trained(name, label, options, 1, data).validation_metrics)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"options": options, "validation": figures}, indent=2) + "\n")
        values.append(json.loads(path.read_text())["validation"][SETS[name].figures[0]])
    return candidates[values.index(max(values))]


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# Hybrid models",
        "",
        "Options are chosen on the validation part, of simple methods too; the test part is used once. No model is",
        "trained on the validation part again. Mean and deviation over the seeds. Written by `bench/hybrids.py`.",
    ]
    for name, each in SETS.items():
        places = {label: sorted((RESULTS / name / label).glob("seed-*.json")) for label in each.labels}
        rows = {label: [read_card(path) for path in paths] for label, paths in places.items() if paths}
        if not rows:
            continue
        means = {
            label: [statistics.mean(c.metrics[f] or 0 for c in cards) for f in each.figures]
            for label, cards in rows.items()
        }
        best = [max(values[at] for values in means.values()) for at in range(len(each.figures))]
        leaders = [max(means, key=lambda label, at=at: means[label][at]) for at in range(len(each.figures))]
        ahead = ", ".join(f"{f} {CONTENDERS[label].words}" for f, label in zip(each.figures, leaders, strict=True))
        lines += [
            "",
            f"## {each.what}",
            "",
            f"**Best**: {ahead}. {each.note}",
            "",
        ]
        lines += [
            f"| method | seeds | {' | '.join(each.figures)} | epoch | seconds |",
            "|---" * (len(each.figures) + 4) + "|",
        ]
        for label, cards in rows.items():
            cells = [CONTENDERS[label].words, str(len(cards)), *figure_cells(cards, each.figures, best)]
            seconds = f"{statistics.mean(c.seconds for c in cards):.0f}"
            lines.append(f"| {' | '.join([*cells, epochs_cell(cards), seconds])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    run_command(
        __doc__,
        RESULTS,
        SETS,
        CONTENDERS,
        [1, 2, 3],
        lambda name: SETS[name].data,
        load,
        run,
        lambda: PAGE.write_text(page(), encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
