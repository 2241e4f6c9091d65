"""Train every recipe of deeprec/recipes over several seeds, write the cards under results/ and the tables.

    python -m bench.reproduce [RECIPE ...] [--seeds 1 2 3] [--data-dir DIR] [--check]

A recipe is deeprec/recipes/SET/NAME.json, read by `deeprec.recipes`, which says what its keys mean. Cards go into
results/SET/NAME/ as seed-N.json; a finished seed is kept, and one that was cut off goes on from its checkpoint in
build/reproduce: start the same command again. The mean figures are written into the recipe, and the tables
of results/README.md anew: one of rankings by one held-out item, one of rankings by a share of the likes, one of rating
errors, one of clicks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeprec import recipes
from deeprec.data import load
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.evaluate import Card, protocol, read_card
from deeprec.models import create
from deeprec.recipes import Recipe
from deeprec.train import Progress, fit

ROOT = Path(__file__).resolve().parent.parent / "results"
WORK = ROOT.parent / "build" / "reproduce"
METRICS = ("hr@10", "ndcg@10")
LIKES = ("map@10", "ndcg@10", "recall@10")
ERRORS = ("rmse", "mae")
CLICKS = ("auc", "log_loss", "ece", "accuracy")
_SHOWN = ("map@10", *METRICS, *ERRORS, *CLICKS)
# 97.5 % points of Student's t by degrees of freedom: half a 95 % interval of the mean over the standard error.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def train(recipe: Recipe, seed: int, data_dir: str | None) -> None:
    """Train one seed of a recipe and leave its card beside it."""
    card_path = ROOT / recipe.name / f"seed-{seed}.json"
    if card_path.exists():
        print(f"{card_path.relative_to(ROOT)} is there already")
        return
    card = run(recipe, seed, data_dir, WORK / recipe.name / f"seed-{seed}")
    card_path.parent.mkdir(parents=True, exist_ok=True)
    card.write(card_path)
    _tell(card_path, card)


def check(recipe: Recipe, seed: int, data_dir: str | None) -> bool:
    """Train one seed of a recipe again and say whether its figures are those of its card, number by number."""
    kept = read_card(ROOT / recipe.name / f"seed-{seed}.json")
    with tempfile.TemporaryDirectory() as folder:
        metrics = run(recipe, seed, data_dir, Path(folder)).as_dict()["metrics"]
    name = f"{recipe.name} seed {seed}"
    lines = [f"{key} {value} -> {metrics[key]}" for key, value in kept.metrics.items() if value != metrics[key]]
    print(f"{name}: {'; '.join(lines) if lines else 'the same figures'}", flush=True)
    return not lines


def run(recipe: Recipe, seed: int, data_dir: str | None, folder: Path) -> Card:
    """The card of one seed of a recipe, trained now, or to its end where the folder holds a part of it."""
    rule = protocol(**recipe.protocol_options(seed))
    options = {"data_dir": data_dir, **recipe.reading(seed)}
    model = create(recipe.model, config=recipe.config())
    if model.reads == "log":
        shares = (rule.validation_share, rule.test_share)
        data: Any = load_clicks(recipe.data, holdout=rule.holdout, shares=shares, seed=rule.seed, **options)
    else:
        data = load(recipe.data, **options)
    fit(
        model,
        data,
        protocol=rule,
        select=recipe.select,
        seed=seed,
        out=folder,
        resume=True,
        report_best_on_test="best_on_test" in model.takes and recipe.best_on_test,
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
    rows = [_row(*found) for found in _finished("ranking") if METRICS[0] in found[1][0]["metrics"]]
    return _page_table(head, rows)


def likes_table() -> str:
    """The same for recipes whose test part is a share of the likes, the best first."""
    head = ["recipe", "repeats", "MAP@10", "NDCG@10", "Recall@10", "validation MAP@10", "minutes a run"]
    found = [entry for entry in _finished("ranking") if LIKES[0] in entry[1][0]["metrics"]]
    found.sort(key=lambda entry: -statistics.mean(card["metrics"][LIKES[0]] for card in entry[1]))
    rows = [
        [
            _link(recipe),
            f"{len(cards)} {recipe.repeats}",
            *(_mean_and_spread([card["metrics"][metric] for card in cards]) for metric in LIKES),
            _mean_and_spread([card["validation_metrics"][LIKES[0]] for card in cards]),
            _minutes(cards),
        ]
        for recipe, cards in found
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
    for recipe, cards in _finished("click"):
        auc, *others = ([card["metrics"][metric] for card in cards] for metric in CLICKS)
        figures = [_mean_and_spread(auc), *(_mean_and_spread(values) for values in others)]
        speed = statistics.median(card["samples_per_second"] for card in cards)
        cells = [
            _link(recipe),
            f"{len(cards)} {recipe.repeats}",
            *figures,
            recipe.paper,
            f"{speed / 1000:.0f}k",
        ]
        rows.append((recipe.name.partition("/")[0], statistics.mean(auc), cells))
    return _page_table(head, [cells for _, _, cells in sorted(rows, key=lambda row: row[:2])])


def _page_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)).replace(
        "| --- ", "|---"
    )


def _finished(task: str) -> Iterator[tuple[Recipe, list[dict[str, Any]]]]:
    """Each recipe of a task that has cards, and these."""
    for name in recipes.names():
        cards = _cards(name)
        if cards and cards[0]["protocol"].get("task", "ranking") == task:
            yield recipes.recipe(name), cards


def _cards(name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((ROOT / name).glob("seed-*.json"))]


def mean_figures(name: str) -> dict[str, Any]:
    """The mean of each headline figure over the cards of a recipe, to four decimals, and how many these are."""
    cards = _cards(name)
    shown = [metric for metric in _SHOWN if cards and metric in cards[0]["metrics"]]
    figures = {metric: round(statistics.mean(card["metrics"][metric] for card in cards), 4) for metric in shown}
    return {"figures": figures, "runs": len(cards)} if cards else {}


def remember_figures() -> None:
    """Write the mean figures into the recipes."""
    for name in recipes.names():
        path = recipes.FOLDER / f"{name}.json"
        values = json.loads(path.read_text()) | mean_figures(name)
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _row(recipe: Recipe, cards: list[dict[str, Any]]) -> list[str]:
    best = [card["best_on_test"]["metrics"] for card in cards if card["best_on_test"]]
    return [
        _link(recipe),
        str(len(cards)),
        *(_mean_and_spread([card["metrics"][metric] for card in cards]) for metric in METRICS),
        recipe.target,
        recipe.paper,
        " / ".join(f"{statistics.mean(b[m] for b in best):.4f}" for m in METRICS) if best else "-",
        _minutes(cards),
    ]


def _rating_row(recipe: Recipe, cards: list[dict[str, Any]]) -> list[str]:
    best = [card["best_on_test"]["metrics"]["rmse"] for card in cards if card["best_on_test"]]
    rare = [card["metrics"]["rmse_rare"] for card in cards if "rmse_rare" in card["metrics"]]
    return [
        _link(recipe),
        f"{len(cards)} {recipe.repeats}",
        *(_mean_and_interval([card["metrics"][metric] for card in cards]) for metric in ERRORS),
        _mean_and_interval(rare) if rare else "-",
        recipe.target,
        recipe.paper,
        f"{statistics.mean(best):.4f}" if best else "-",
        _minutes(cards),
    ]


def _link(recipe: Recipe) -> str:
    return f"[{recipe.name}](../deeprec/recipes/{recipe.name}.json)"


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
    parser.add_argument("recipes", nargs="*", help="NAME or SET/NAME of recipes; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data-dir")
    parser.add_argument("--check", action="store_true", help="train again, compare with the cards, write nothing")
    arguments = parser.parse_args()
    asked = set(arguments.recipes)
    listed = [name for name in recipes.names() if not asked or {name, name.partition("/")[2]} & asked]
    chosen = [(recipes.recipe(name), seed) for name in listed for seed in arguments.seeds]
    if arguments.check:
        same = [check(recipe, seed, arguments.data_dir) for recipe, seed in chosen]
        print(f"{sum(same)} of {len(same)} cards come out the same")
        raise SystemExit(0 if all(same) else 1)
    for recipe, seed in chosen:
        train(recipe, seed, arguments.data_dir)
    remember_figures()
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
