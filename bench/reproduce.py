"""Train every recipe under results/ over several seeds, write the cards and the table.

    python -m bench.reproduce [RECIPE ...] [--seeds 1 2 3] [--data-dir DIR] [--check]

A recipe is results/<set>/<name>/recipe.json: {"model", "data", "protocol", "select", "options", "target", "paper"}, and
"repeats": "splits" where a seed draws the split anew too, or "folds" where seed N is of the published fold uN;
"data_options" where the data is read with some. Cards go beside it as seed-N.json; a finished seed is kept, and the
tables of results/README.md are written anew: one of rankings by one held-out item, one of rankings by a share of the
likes, one of rating errors, one of clicks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeprec.config import config_from_dict
from deeprec.data import load
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.evaluate import Card, protocol, read_card
from deeprec.models import create
from deeprec.registry import config_class
from deeprec.train import Progress, fit

ROOT = Path(__file__).resolve().parent.parent / "results"
METRICS = ("hr@10", "ndcg@10")
LIKES = ("map@10", "ndcg@10", "recall@10")
ERRORS = ("rmse", "mae")
CLICKS = ("auc", "log_loss", "ece", "accuracy")
_SHOWN = ("map@10", *METRICS, *ERRORS, *CLICKS)
# 97.5 % points of Student's t by degrees of freedom: half a 95 % interval of the mean over the standard error.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def train(recipe_path: Path, seed: int, data_dir: str | None) -> None:
    """Train one seed of a recipe and leave its card beside it."""
    card_path = recipe_path.parent / f"seed-{seed}.json"
    if card_path.exists():
        print(f"{card_path.relative_to(ROOT)} is there already")
        return
    card = run(recipe_path, seed, data_dir)
    card.write(card_path)
    _tell(card_path, card)


def check(recipe_path: Path, seed: int, data_dir: str | None) -> bool:
    """Train one seed of a recipe again and say whether its figures are those of its card, number by number."""
    kept = read_card(recipe_path.parent / f"seed-{seed}.json")
    metrics = run(recipe_path, seed, data_dir).as_dict()["metrics"]
    name = f"{recipe_path.parent.relative_to(ROOT)} seed {seed}"
    lines = [f"{key} {value} -> {metrics[key]}" for key, value in kept.metrics.items() if value != metrics[key]]
    print(f"{name}: {'; '.join(lines) if lines else 'the same figures'}", flush=True)
    return not lines


def run(recipe_path: Path, seed: int, data_dir: str | None) -> Card:
    """The card of one seed of a recipe, trained now."""
    recipe = json.loads(recipe_path.read_text())
    config, repeats = config_from_dict(config_class(recipe["model"]), recipe["options"]), recipe.get("repeats")
    rule = protocol(**recipe["protocol"], **({"seed": seed} if repeats == "splits" else {}))
    options = {"data_dir": data_dir, **recipe.get("data_options", {})}
    model = create(recipe["model"], config=config)
    if model.reads == "log":
        shares = (rule.validation_share, rule.test_share)
        data: Any = load_clicks(recipe["data"], holdout=rule.holdout, shares=shares, seed=rule.seed, **options)
    else:
        data = load(recipe["data"], **options, **({"fold": f"u{seed}"} if repeats == "folds" else {}))
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            data,
            protocol=rule,
            select=recipe.get("select"),
            seed=seed,
            out=folder,
            report_best_on_test="best_on_test" in model.takes and recipe.get("best_on_test", True),
            on_progress=_say,
        )
        return read_card(folder)


def _tell(card_path: Path, card: Card) -> None:
    print(f"{card_path.relative_to(ROOT)}: {card.metrics}, epoch {card.epoch}, {card.seconds:.0f} s", flush=True)


def _say(progress: Progress) -> None:
    if progress.metrics is not None:
        shown = " ".join(f"{key} {progress.metrics[key]:.4f}" for key in _SHOWN if key in progress.metrics)
        print(f"{progress.stage} {progress.epoch}/{progress.num_epochs} loss {progress.loss:.4f} {shown}", flush=True)


def table() -> str:
    """The rows of the results page, one a ranking recipe that has cards."""
    head = ["recipe", "seeds", "HR@10", "NDCG@10", "target", "paper", "best on test", "minutes a run"]
    rows = [_row(*found) for found in _finished("ranking") if METRICS[0] in found[2][0]["metrics"]]
    return _page_table(head, rows)


def likes_table() -> str:
    """The same for recipes whose test part is a share of the likes, the best first."""
    head = ["recipe", "repeats", "MAP@10", "NDCG@10", "Recall@10", "validation MAP@10", "minutes a run"]
    found = [entry for entry in _finished("ranking") if LIKES[0] in entry[2][0]["metrics"]]
    found.sort(key=lambda entry: -statistics.mean(card["metrics"][LIKES[0]] for card in entry[2]))
    rows = [
        [
            _link(folder),
            f"{len(cards)} {recipe.get('repeats', 'seeds')}",
            *(_mean_and_spread([card["metrics"][metric] for card in cards]) for metric in LIKES),
            _mean_and_spread([card["validation_metrics"][LIKES[0]] for card in cards]),
            _minutes(cards),
        ]
        for folder, recipe, cards in found
    ]
    return _page_table(head, rows)


def rating_table() -> str:
    """The same for recipes that predict ratings: mean and 95 % interval over the repeats."""
    head = [
        "recipe",
        "repeats",
        "RMSE",
        "MAE",
        "RMSE, rarest fifth",
        "target RMSE",
        "paper RMSE",
        "best on test",
        "minutes a run",
    ]
    rows = [_rating_row(*found) for found in _finished("rating")]
    return _page_table(head, rows)


def clicks_table() -> str:
    """The same for click models: each log's models, the lowest AUC first."""
    head = ["recipe", "repeats", "AUC", "log loss", "ECE", "accuracy", "published AUC / log loss", "rows/s"]
    rows = []
    for folder, recipe, cards in _finished("click"):
        auc, *others = ([card["metrics"][metric] for card in cards] for metric in CLICKS)
        figures = [_mean_and_spread(auc), *(_mean_and_spread(values) for values in others)]
        speed = statistics.median(card["samples_per_second"] for card in cards)
        cells = [
            _link(folder),
            f"{len(cards)} {recipe.get('repeats', 'seeds')}",
            *figures,
            recipe.get("paper", "-"),
            f"{speed / 1000:.0f}k",
        ]
        rows.append((folder.parent.name, statistics.mean(auc), cells))
    return _page_table(head, [cells for _, _, cells in sorted(rows, key=lambda row: row[:2])])


def _page_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)).replace(
        "| --- ", "|---"
    )


def _finished(task: str) -> Iterator[tuple[Path, dict[str, Any], list[dict[str, Any]]]]:
    """Folder, recipe and cards of each recipe of a task that has cards."""
    for recipe_path in sorted(ROOT.glob("*/*/recipe.json")):
        recipe = json.loads(recipe_path.read_text())
        cards = [json.loads(path.read_text()) for path in sorted(recipe_path.parent.glob("seed-*.json"))]
        if cards and cards[0]["protocol"].get("task", "ranking") == task:
            yield recipe_path.parent, recipe, cards


def _row(folder: Path, recipe: dict[str, Any], cards: list[dict[str, Any]]) -> list[str]:
    best = [card["best_on_test"]["metrics"] for card in cards if card["best_on_test"]]
    return [
        _link(folder),
        str(len(cards)),
        *(_mean_and_spread([card["metrics"][metric] for card in cards]) for metric in METRICS),
        recipe.get("target", "-"),
        recipe.get("paper", "-"),
        " / ".join(f"{statistics.mean(b[m] for b in best):.4f}" for m in METRICS) if best else "-",
        _minutes(cards),
    ]


def _rating_row(folder: Path, recipe: dict[str, Any], cards: list[dict[str, Any]]) -> list[str]:
    best = [card["best_on_test"]["metrics"]["rmse"] for card in cards if card["best_on_test"]]
    rare = [card["metrics"]["rmse_rare"] for card in cards if "rmse_rare" in card["metrics"]]
    return [
        _link(folder),
        f"{len(cards)} {recipe.get('repeats', 'seeds')}",
        *(_mean_and_interval([card["metrics"][metric] for card in cards]) for metric in ERRORS),
        _mean_and_interval(rare) if rare else "-",
        recipe.get("target", "-"),
        recipe.get("paper", "-"),
        f"{statistics.mean(best):.4f}" if best else "-",
        _minutes(cards),
    ]


def _link(folder: Path) -> str:
    return f"[{folder.parent.name}/{folder.name}]({folder.relative_to(ROOT).as_posix()}/recipe.json)"


def _minutes(cards: list[dict[str, Any]]) -> str:
    return f"{statistics.median(card['seconds'] for card in cards) / 60:.1f}"


def _mean_and_interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = _STUDENT[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.4f} ± {half:.4f}"


def _mean_and_spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of recipe folders, or SET/NAME; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data-dir")
    parser.add_argument("--check", action="store_true", help="train again, compare with the cards, write nothing")
    arguments = parser.parse_args()
    chosen = [
        (path, seed)
        for path in sorted(ROOT.glob("*/*/recipe.json"))
        if not arguments.recipes or {path.parent.name, str(path.parent.relative_to(ROOT))} & set(arguments.recipes)
        for seed in arguments.seeds
    ]
    if arguments.check:
        same = [check(path, seed, arguments.data_dir) for path, seed in chosen]
        print(f"{sum(same)} of {len(same)} cards come out the same")
        raise SystemExit(0 if all(same) else 1)
    for path, seed in chosen:
        train(path, seed, arguments.data_dir)
    page = ROOT / "README.md"
    tables = (
        ("table", table()),
        ("likes table", likes_table()),
        ("rating table", rating_table()),
        ("clicks table", clicks_table()),
    )
    for mark, content in tables:
        before, _, rest = page.read_text().partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- end of {mark} -->")
        page.write_text(f"{before}<!-- {mark} -->\n{content}\n<!-- end of {mark} -->{after}")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
