"""`deeprec index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import deeprec
from deeprec.cli.console import command, console, print_json, say, table


def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="exact, voyager, usearch or faiss; by default exact up to a million items, beyond that voyager.",
        ),
    ] = None,
    recall: Annotated[
        float, typer.Option("--recall", help="Share of the exact best items that it has to give, above 0 and up to 1.")
    ] = 0.99,
    recall_at: Annotated[int, typer.Option("--recall-at", min=1, help="Length of the lists that are compared.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Write an index of a model's items into its folder, and say how much of the exact answer it gives, how fast.

    Then: deeprec recommend DIR --user ID --approximate
    """
    model = deeprec.load(directory, device="cpu")
    model.build_index(kind, recall=recall, recall_at=recall_at)
    place = model.item_index.save(directory / "index")
    report = model.item_index.recall_report()
    if as_json:
        print_json({**report.as_dict(), "folder": str(place)})
        return
    if report.points:
        names = ("breadth", f"recall@{report.k}", "ms a query")
        rows = table(*names, numbers=names)
        for point in report.points:
            style = "green" if point.breadth == report.breadth else ""
            figures = (f"{point.breadth}", f"{point.recall:.4f}", f"{point.milliseconds:.3f}")
            rows.add_row(*((words, style) for words in figures))
        console().print(rows)
    say(("done", "green"), f": {report.num_items:,} items ({report.kind}) in {place}")
    say(
        f"recall@{report.k} {report.recall:.4f} on {report.num_queries:,} users, {report.milliseconds:.3f} ms a query; "
        f"the exact scan {report.exact_milliseconds:.3f} ms"
    )
    if not report.reaches_target:
        say(("below the target", "yellow"), f" of {report.target:g} on users that nothing was chosen by")
    say(f"next: {command('recommend', directory, '--user', model.user_ids.decode([0])[0], '--approximate')}")
