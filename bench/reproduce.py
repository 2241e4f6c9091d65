"""Train every recipe under results/ over several seeds, write the cards and the table.

    python -m bench.reproduce [RECIPE ...] [--seeds 1 2 3] [--data-dir DIR]

A recipe is results/<set>/<name>/recipe.json: {"model", "data", "protocol", "select", "options", "target", "paper"}.
Cards go beside it as seed-N.json; a finished seed is kept, and results/README.md is written anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from deeprec.data import load
from deeprec.evaluate import protocol
from deeprec.models import create
from deeprec.models.config import config_from_dict
from deeprec.models.registry import config_class
from deeprec.train import Progress, fit

ROOT = Path(__file__).resolve().parent.parent / "results"
METRICS = ("hr@10", "ndcg@10")


def train(recipe_path: Path, seed: int, data_dir: str | None) -> None:
    """Train one seed of a recipe and leave its card beside it."""
    card_path = recipe_path.parent / f"seed-{seed}.json"
    if card_path.exists():
        print(f"{card_path.relative_to(ROOT)} is there already")
        return
    recipe = json.loads(recipe_path.read_text())
    config = config_from_dict(config_class(recipe["model"]), recipe["options"])
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            create(recipe["model"], config=config),
            load(recipe["data"], data_dir=data_dir),
            protocol=protocol(**recipe["protocol"]),
            select=recipe.get("select"),
            seed=seed,
            out=folder,
            report_best_on_test=True,
            on_progress=_say,
        )
        card_path.write_bytes((Path(folder) / "card.json").read_bytes())
    print(
        f"{card_path.relative_to(ROOT)}: {result.card.metrics}, epoch {result.card.epoch}, {result.card.seconds:.0f} s"
    )


def _say(progress: Progress) -> None:
    if progress.metrics is not None:
        shown = " ".join(f"{key} {progress.metrics[key]:.4f}" for key in METRICS if key in progress.metrics)
        print(f"{progress.stage} {progress.epoch}/{progress.num_epochs} loss {progress.loss:.4f} {shown}", flush=True)


def table() -> str:
    """The rows of the results page, one a recipe that has cards."""
    rows = [
        "| recipe | seeds | HR@10 | NDCG@10 | target | paper | best on test | minutes a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe_path in sorted(ROOT.glob("*/*/recipe.json")):
        cards = [json.loads(path.read_text()) for path in sorted(recipe_path.parent.glob("seed-*.json"))]
        if cards:
            rows.append(_row(recipe_path.parent, json.loads(recipe_path.read_text()), cards))
    return "\n".join(rows)


def _row(folder: Path, recipe: dict[str, Any], cards: list[dict[str, Any]]) -> str:
    measured = [_mean_and_spread([card["metrics"][metric] for card in cards]) for metric in METRICS]
    best = [card["best_on_test"]["metrics"] for card in cards if card["best_on_test"]]
    best_text = " / ".join(f"{statistics.mean(b[m] for b in best):.4f}" for m in METRICS) if best else "-"
    minutes = statistics.median(card["seconds"] for card in cards) / 60
    name = f"[{folder.parent.name}/{folder.name}]({folder.relative_to(ROOT).as_posix()}/recipe.json)"
    cells = (
        name,
        len(cards),
        *measured,
        recipe.get("target", "-"),
        recipe.get("paper", "-"),
        best_text,
        f"{minutes:.1f}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _mean_and_spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of recipe folders; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    for recipe_path in sorted(ROOT.glob("*/*/recipe.json")):
        if not arguments.recipes or recipe_path.parent.name in arguments.recipes:
            for seed in arguments.seeds:
                train(recipe_path, seed, arguments.data_dir)
    page = ROOT / "README.md"
    before, _, rest = page.read_text().partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->")
    page.write_text(f"{before}<!-- table -->\n{table()}\n<!-- end of table -->{after}")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
