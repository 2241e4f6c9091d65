"""`deeprec pipeline`: FILE.yaml, evaluate, compare, recommend."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import deeprec
from deeprec._files import make_folder
from deeprec.cli.console import command, console, figure, print_json, progress, say, seconds, table
from deeprec.cli.settings import DEVICE_HELP
from deeprec.data import IdMap

_FIT = "fit"


class _FileFirst(TyperGroup):
    """`deeprec pipeline FILE.yaml` is `deeprec pipeline fit FILE.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].endswith((".yaml", ".yml")):
            args = [_FIT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_FileFirst, rich_markup_mode=None, no_args_is_help=True)
Device = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Part = Annotated[str, typer.Option("--part", help="test, or validation to choose options by.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec pipeline FILE.yaml` wrote.")]


@app.callback()
def pipeline() -> None:
    """Fit, measure, compare and ask whole pipelines, from candidates to lists that say why, by a YAML file.

    Start with: deeprec pipeline FILE.yaml --out DIR
    """


@app.command(_FIT)
def fit(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="All stages; its paths are relative to it.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the pipeline; runs/NAME by itself.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="In place of the data that the file names.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train what the file asks for, measure every stage on the test part, and write one folder."""
    target = out if out is not None else Path("runs") / file.stem
    config = deeprec.pipeline.PipelineConfig.from_yaml(file)
    if target.exists() and not deeprec.pipeline.is_pipeline(target) and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"pipeline: --out must be new, empty or a pipeline, got {target}; take another folder")
    make_folder(target.parent)
    start = perf_counter()

    def told(words: str) -> None:
        if not as_json:
            say((f"{seconds(perf_counter() - start):>8}", "dim"), f"  {words}")

    made = deeprec.pipeline.Pipeline.fit(file, data, device=device, on_stage=told)
    made.save(target)
    if as_json:
        print_json({"folder": str(target), **made.report})
        return
    _print(made.report["test"])
    say(("done", "green"), f": {made!r} in {target}; {len(config.sources)} sources")
    user = made.user_ids.decode([0])[0]
    say(f"next: {command('pipeline', 'recommend', target, '--user', user)}, {command('serve', target)}")


@app.command()
def evaluate(
    directory: Folder,
    part: Part = "test",
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Length of the lists; by default that of the file.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Figures of every source and stage on held-out interactions."""
    report = deeprec.pipeline.Pipeline.load(directory, device=device).evaluate(part, k=k).as_dict()
    if as_json:
        print_json(report)
    else:
        _print(report)


@app.command()
def compare(
    first: Folder,
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="Another pipeline of the same data and split.")],
    part: Part = "test",
    k: Annotated[int | None, typer.Option("-k", min=1, help="Length of the lists.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """What would be different if OTHER had served the same people."""
    result = deeprec.pipeline.Pipeline.load(first, device=device).compare(
        deeprec.pipeline.Pipeline.load(second, device=device), part, k=k
    )
    if as_json:
        print_json(asdict(result))
        return
    say(f"NDCG@{result.k} of {result.users:,} people: {figure(result.first)} and {figure(result.second)}")
    say(f"difference {result.difference:+.4f}, 95% interval {result.low:+.4f} to {result.high:+.4f}")
    say(
        f"better for {result.better:.1%}, worse for {result.worse:.1%} of them; {result.same_items:.1%} of the items "
        "are the same"
    )
    say(f"recall@{result.k} if people met all items as often: {result.debiased:+.4f}")


@app.command()
def recommend(
    directory: Folder,
    user: Annotated[list[str] | None, typer.Option("--user", "-u", help="User id; may be given several times.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="Instead of a user: items that somebody met, ITEM,ITEM,...")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All users of the data; with --output.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write a file instead: .parquet, .csv, .tsv or .jsonl.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what a killed run with --output has finished.")
    ] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="Items for each user.")] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Say which source, history item and feature.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Recommend items to users of the data, or to somebody by a history."""
    if [user is not None, history is not None, everyone].count(True) != 1:
        raise ValueError("pipeline: recommend needs one of --user, --history and --all; give one of them")
    if (everyone and output is None) or (history is not None and output is not None) or (resume and output is None):
        raise ValueError("pipeline: --output goes with --user or --all, and --all and --resume with it; give both")
    made = deeprec.pipeline.Pipeline.load(directory, device=device)
    if output is not None:
        asked = None if everyone else _parsed(user or [], made.user_ids)
        with progress() as bar:
            task = bar.add_task("recommending", total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            written = made.recommend_file(output, k, users=asked, resume=resume, on_progress=show)
        say(("done", "green"), f": {written:,} rows written to {output}")
        return
    if user is not None:
        frame = made.recommend(_parsed(user, made.user_ids), k, explain=explain)
    else:
        frame = made.recommend_for_history(_parsed((history or "").split(","), made.item_ids), k, explain=explain)
    items = made.state.items
    if items is not None and "title" in items.columns:
        titles = items.select("title").with_columns(item_id=made.item_ids.values)
        frame = frame.join(titles, on="item_id", how="left", maintain_order="left")
    records = frame.to_dicts()
    if as_json:
        print_json(records)
        return
    columns = [name for name in ("user_id", "rank", "item_id", "title", "score") if name in frame.columns]
    rows = table(*columns, *(["why"] if explain else []), numbers=("rank", "score"))
    for record in records:
        cells = [f"{record[c]:.4f}" if isinstance(record[c], float) else str(record[c] or "") for c in columns]
        rows.add_row(*cells, *([_why(record)] if explain else []))
    console().print(rows)


def _why(record: dict[str, Any]) -> str:
    parts = [", ".join(f"{each['source']} {each['rank']}" for each in record["sources"])]
    if record["because"]:
        parts.append("near " + ", ".join(map(str, record["because"])))
    if record["features"]:
        parts.append(", ".join(f"{each['feature']} {each['logit']:+.2f}" for each in record["features"]))
    return "; ".join(parts)


def _short(value: float | None) -> str:
    """Three decimals, so that a table fits into 80 columns."""
    return "-" if value is None else f"{value:.3f}"


def _parsed(words: list[str], ids: IdMap) -> list[Any]:
    """Ids as typed, in the type of the data's."""
    return list(ids.parse([word.strip() for word in words if word.strip()]).to_list())


def _print(report: dict[str, Any]) -> None:
    """The sources and the stages of a report as two tables, short enough for 80 columns.

    "only": what no other source has; "top": recall of the first items; "apart": their diversity; "pop": popularity.
    """
    k, out = report["k"], console()
    say(f"{report['part']} part, {report['users']:,} people, first {k} items")
    names = {"candidates": "items", "recall": "recall", "own": "only", "ndcg": "ndcg", "hit_recall": "top", "diversity":
             "apart", "coverage": "cover", "gini": "gini", "popularity": "pop"}  # fmt: skip
    for title, key in (("sources", "sources"), ("stages", "stages")):
        shown = [name for name in names if any(row[name] is not None for row in report[key])]
        rows = table(title, *(names[name] for name in shown), numbers=[names[name] for name in shown])
        for row in report[key]:
            cells = (f"{row[n]:.0f}" if n == "candidates" else _short(row[n]) for n in shown)
            rows.add_row(row["name"], *cells)
        out.print(rows)
    if report["filters"]:
        say(f"the filters take out {report['filters']:.2%} of the held-out items")
    best, value = report["single"]
    final = report["stages"][-1]["ndcg"]
    gain = "" if not value else f" ({final / value - 1:+.1%})"
    say(f"ndcg@{k} of the best source alone, {best}: {figure(value)}; of the pipeline: {figure(final)}{gain}")
