"""Every model at its defaults on sets that nobody tuned it for, beside the simple methods: results/defaults.md.

    python -m bench.defaults [--only SET ...] [--jobs 2] [--page]

Each cell is one `deeprec train MODEL ...`, run as printed in the folder of the data with one thread; nothing is tuned,
and the figures are those of the test part. A finished cell is kept in results/defaults.json, so that an interrupted
table goes on where it stopped; `--page` writes the page from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from deeprec.contract import RATES
from deeprec.evaluate.metrics import best_first
from deeprec.registry import click_models, names, recommenders, with_capabilities

RESULTS = Path(__file__).resolve().parent.parent / "results"
STORE, PAGE = RESULTS / "defaults.json", RESULTS / "defaults.md"
TOLERANCE = 0.02  # relative, of the headline


class Set(NamedTuple):
    """A data set.

    Attributes:
        what: for the page.
        arguments: of `deeprec train`, behind the model's name.
        kind: "rating", "ranking" or "click".
        figure: the headline of its table.
    """

    what: str
    arguments: str
    kind: str
    figure: str


SETS = {
    "coat": Set("7,000 ratings, 290 x 300", "--data coat/train.ascii data.format=matrix", "rating", "rmse"),
    "all-beauty": Set(
        "10,000 ratings, 3,500 x 3,000: sparse", "--data amazon-all-beauty-2023/reviews.jsonl", "rating", "rmse"
    ),
    "douban": Set(
        "137,000 ratings, a published split",
        "--data gc-mc/douban/train.tsv --test-data gc-mc/douban/test.tsv",
        "rating",
        "rmse",
    ),
    "anime": Set(
        "420,000 ratings from 1 to 10", "--data anime/anime_ratings.dat data.rating=Feedback", "rating", "rmse"
    ),
    "ml-100k": Set("100,000 interactions, 943 x 1,682: dense", "--data ml-100k/u.data", "ranking", "ndcg@10"),
    "lastfm": Set(
        "93,000 listens, 1,892 x 17,632", "--data hetrec2011-lastfm-2k/user_artists.dat", "ranking", "ndcg@10"
    ),
    "AMusic": Set(
        "46,000, 1,776 x 12,929: sparse", "--data ncf/AMusic.train.rating --protocol full", "ranking", "ndcg@10"
    ),
    "tiktok": Set("69,000, 9,308 x 6,710: a few a user", "--data tiktok", "ranking", "ndcg@10"),
    "criteo-10k": Set("10,000 rows, 39 columns, wide vocabularies", "--data criteo/train_10k.txt", "click", "auc"),
    "adult": Set(
        "49,000 rows, 14 columns, half of them numbers",
        "--data adult/adult.data --test-data adult/adult.test data.label=14 'data.positive=>50K,>50K.'",
        "click",
        "auc",
    ),
    "frappe": Set(
        "87,000 rows, 10 columns",
        "--data frappe/frappe.validation.libfm --test-data frappe/frappe.test.libfm",
        "click",
        "auc",
    ),
    "mind": Set(
        "126,000 impressions, 4 % clicks", "--data mind-extract/behaviors.tsv data.format=mind", "click", "auc"
    ),
}
PROTOCOLS = {"rating": "--protocol rating", "ranking": "", "click": ""}
SIMPLE = {
    "rating": ("global mean", "user mean", "item mean", "biases"),
    "ranking": ("popularity", "item-knn"),
    "click": ("base rate", "lr"),
}


def models_of(kind: str) -> list[str]:
    """The models that a kind of set is for."""
    if kind == "click":
        return click_models()
    rating = set(with_capabilities(RATES))
    return [name for name in recommenders() if (name in rating) == (kind == "rating")]


def command_of(name: str, model: str) -> str:
    """The command of a cell, as on the page."""
    each = SETS[name]
    return " ".join(part for part in ("deeprec train", model, each.arguments, PROTOCOLS[each.kind]) if part)


def run(name: str, model: str, folder: Path) -> dict[str, Any]:
    """Train one cell and return what the page needs of its card."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", *shlex.split(command_of(name, model)), "--out", out]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RESULTS.parent)}
        started = time.perf_counter()
        ended = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if ended.returncode:
            return {"error": (ended.stderr or ended.stdout).strip().splitlines()[-1]}
        card = json.loads((Path(out) / "card.json").read_text())
    kept = {key: card[key] for key in ("metrics", "baselines", "epoch", "seconds", "versions", "hardware")}
    return {**kept, "chosen": {key: card["config"][key] for key in card["chosen"]}, "command_seconds": seconds}


def page(cells: dict[str, dict[str, Any]]) -> str:
    """The Markdown of all tables."""
    lines = [
        "# Every model at its defaults",
        "",
        "No option is given and none was tuned on these test parts; each cell is one command, printed below, run in",
        "the data folder by `python -m bench.defaults`. **Bold**: the best of a column. *Worse*: by more than 2 % than",
        "the better of the simple methods, which stand in the first rows; seconds of training, one thread, two at a",
        "time. `deeprec train` warns wherever a simple method is better.",
        "",
        "Where not to use what, untuned: GMF, NeuMF and BPR on catalogues with few interactions (take ALS, SLIM, EASE",
        "or item-KNN), DNN and DCN-V2 on logs with few clicks (take LR, Wide & Deep or DeepFM).",
        "",
    ]
    for kind, title in (
        ("rating", "Ratings: RMSE"),
        ("ranking", "Rankings: NDCG@10 among all items"),
        ("click", "Clicks: AUC (log loss)"),
    ):
        lines += [f"## {title}", "", *_table(kind, cells), ""]
    lines += ["## Commands", ""]
    for name, each in SETS.items():
        lines += [f"- **{name}** ({each.what}): `{command_of(name, 'MODEL')}`"]
    return "\n".join(lines) + "\n"


def _table(kind: str, cells: dict[str, dict[str, Any]]) -> list[str]:
    columns = [name for name, each in SETS.items() if each.kind == kind]
    rows: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in SIMPLE[kind]}
    for name in columns:
        for model in models_of(kind):
            cell = cells.get(f"{name}/{model}")
            if cell is None or model in ("bias", "popularity", "item-knn", "base-rate", "lr"):
                continue
            rows.setdefault(model, {})[name] = cell
            for label, figures in cell.get("baselines", {}).items():
                rows[label][name] = {"metrics": figures}
    lines = ["| model | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for label, by_set in rows.items():
        shown = [_cell(name, label, by_set.get(name), rows, kind) for name in columns]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return lines


def _cell(name: str, label: str, cell: dict[str, Any] | None, rows: Any, kind: str) -> str:
    figure = SETS[name].figure
    if cell is None:
        return ""
    if "error" in cell:
        return "refused"
    values = {key: each[name]["metrics"][figure] for key, each in rows.items() if "metrics" in each.get(name, {})}
    value, best = values[label], min(values, key=lambda key: best_first(figure, values[key]))
    simple = min((values[key] for key in SIMPLE[kind] if key in values), key=lambda v: best_first(figure, v))
    text = f"{value:.4f}" + (f" ({cell['metrics']['log_loss']:.3f})" if kind == "click" else "")
    if label == best:
        text = f"**{text}**"
    elif label not in SIMPLE[kind] and best_first(figure, value) - best_first(figure, simple) > TOLERANCE * simple:
        text = f"*{text}*"
    return text + (f" {cell['seconds']:.0f} s" if "seconds" in cell else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--models", nargs="*", default=names(), choices=names())
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data-dir", default=os.environ.get("DEEPREC_DATA"))
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    cells: dict[str, dict[str, Any]] = json.loads(STORE.read_text()) if STORE.exists() else {}
    lock = Lock()

    def fill(key: str) -> None:
        cell = run(*key.split("/"), Path(arguments.data_dir))
        with lock:
            cells[key] = cell
            STORE.write_text(json.dumps(dict(sorted(cells.items())), indent=1) + "\n")
            PAGE.write_text(page(cells))
            print(key, cell.get("error") or cell["metrics"], flush=True)

    wanted = [
        f"{name}/{model}"
        for name in arguments.only
        for model in models_of(SETS[name].kind)
        if model in arguments.models and model not in ("bias", "popularity", "item-knn", "base-rate", "lr")
    ]
    if not arguments.page:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(fill, [key for key in wanted if "metrics" not in cells.get(key, {})]))
    PAGE.write_text(page(cells))


if __name__ == "__main__":
    main()
