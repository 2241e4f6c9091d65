"""`deeprec data list | formats | info NAME | fetch NAME`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import DownloadColumn

from deeprec import data
from deeprec.cli.console import Rows, Words, command, console, print_error, print_json, progress, say, table, text
from deeprec.cli.formats import CLICKS, OPTIONS, USERS_AND_ITEMS
from deeprec.cli.options import ReadOptions
from deeprec.cli.settings import read_data_options
from deeprec.data.sets.click_datasets import find_clicks, list_click_datasets

Result = TypeVar("Result")

_NOT_FOUND: Words = ("not found", "dim")
_MADE_HERE = text(("made here", "green"), ", sizes by argument")

_HELP = """Data sets: which are known, where they are, how to get them, and which files train, schema, predict take.

\b
Your own files, behind `deeprec train MODEL` (`deeprec data formats` lists all):
""" + "\n".join(f"  {each.words}" for each in (*USERS_AND_ITEMS[:8], *USERS_AND_ITEMS[-2:], *CLICKS[:2]))

app = typer.Typer(rich_markup_mode=None, help=_HELP, no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Look here first (then $DEEPREC_DATA, then the cache).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command("list")
def list_(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Every data set known by name, and where it was found."""
    folders = {entry.name: data.find(entry.name, data_dir) for entry in data.list_datasets()}
    if as_json:
        print_json([_facts(entry, folders[entry.name]) for entry in data.list_datasets()])
        return
    counts = ("interactions", "users", "items")
    rows = table("name", *counts, "found in", numbers=counts)
    rows.add_row("synthetic", "120,000", "2,000", "1,500", _MADE_HERE)
    for entry in data.list_datasets():
        folder = folders[entry.name]
        place = (folder, "green") if folder else _NOT_FOUND
        rows.add_row(entry.name, f"{entry.rows:,}", f"{entry.users:,}", f"{entry.items:,}", place)
    console().print(rows)
    console().print(_click_logs(data_dir))
    missing = [name for name, folder in folders.items() if folder is None and name in data.SOURCES]
    say(f"Searched: {', '.join(str(place) for place in data.search_dirs(data_dir))}")
    if missing:
        say(f"Get one with: {command('data', 'fetch', missing[0])}")


def _click_logs(data_dir: Path | None) -> Rows:
    """The logs that click models are trained on."""
    rows = table("click log", "rows", "what", "found in", numbers=("rows",))
    rows.add_row("synthetic", "50,000", "a known truth", _MADE_HERE)
    for entry in list_click_datasets():
        paths = find_clicks(entry.name, data_dir)
        place = (paths[0].parent, "green") if paths else _NOT_FOUND
        rows.add_row(entry.name, f"{entry.rows:,}", entry.title, place)
    return rows


@app.command()
def formats() -> None:
    """Every layout that `--data` takes, the words that go with it, and how to say what its first rows do not show."""
    for title, examples in (("Users and items: deeprec train MODEL ...", USERS_AND_ITEMS),
                            ("Clicks: deeprec train MODEL ...", CLICKS)):  # fmt: skip
        rows = table("layout", "a line", "words", title=title)
        for example in examples:
            rows.add_row(*example)
        console().print(rows)
    rows = table("option", "what it says", title="Of one file, for train, fit-more, evaluate, schema and predict")
    for option, meaning in OPTIONS.items():
        rows.add_row(option, meaning)
    console().print(rows)
    say("Separator, quotes, names, blank lines, a byte order mark and .gz are recognised; what was guessed is logged.")


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A name of `deeprec data list`, or a file or folder.")],
    options: ReadOptions = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What a data set holds: read it, count it, and show its hash and repairs."""
    entry = next((entry for entry in data.list_datasets() if entry.name == name), None)
    folder = data.find(name, data_dir) if entry else None
    facts: dict[str, Any] = _facts(entry, folder) if entry else {"name": name}
    if entry is None or folder is not None:
        facts |= _content(_or_exit(lambda: data.load(name, data_dir, **read_data_options(options, "data info"))))
    if as_json:
        print_json(facts)
        return
    rows = table("", "", show_header=False)
    for label, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
        rows.add_row((label.replace("_", " "), "bold"), shown)
    console().print(rows)
    if entry is not None and folder is None:
        how = command("data", "fetch", name) if name in data.SOURCES else f"see {entry.homepage}"
        say(f"Not found here. To get it: {how}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `deeprec data list`.")],
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Put it here instead of the cache.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Check against this instead of the publisher's checksum.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Download again what is there already.")] = False,
) -> None:
    """Download a data set from its publisher, check it, and unpack it. Breaks off cleanly; run again to resume."""
    if name in data.SOURCES:
        say(f"Terms of {name}: {data.info(name).terms}")
    with progress(DownloadColumn()) as bar:
        tasks: dict[str, Any] = {}

        def show(file: str, size: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=size, total=total)

        done = _or_exit(lambda: data.fetch(name, data_dir, sha256=sha256, force=force, progress=show))
    for path in done:
        say(("checked", "green"), f" {path}")
    where = ("--data-dir", data_dir) if data_dir else ()
    say(f"Next: {command('data', 'info', name, *where)}, or {command('train', 'neumf', '--data', name, *where)}")


def _facts(entry: data.DatasetInfo, folder: Path | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.title,
        "interactions": entry.rows,
        "users": entry.users,
        "items": entry.items,
        "terms": entry.terms,
        "homepage": entry.homepage,
        "found_in": str(folder) if folder else None,
    }


def _content(interactions: data.Interactions) -> dict[str, Any]:
    per_user = interactions.user_counts()
    ratings = interactions.ratings
    order = {"time": "timestamps", "rank": "places within each user", None: "unknown"}[interactions.order_kind]
    return {
        "interactions": len(interactions),
        "users": interactions.num_users,
        "items": interactions.num_items,
        "interactions_per_user": f"{per_user.min()} to {per_user.max()}, mean {per_user.mean():.1f}",
        **({"tags": interactions.num_tags} if isinstance(interactions, data.Folksonomy) else {}),
        "ratings": f"{ratings.min():g} to {ratings.max():g}" if ratings is not None else "none",
        "order": order,
        "official_split": interactions.official.source if interactions.official else "none",
        "user_features": interactions.user_features.columns[1:] if interactions.user_features is not None else [],
        "item_features": interactions.item_features.columns[1:] if interactions.item_features is not None else [],
        "repairs": interactions.repairs or "none",
        "sha256": interactions.sha256,
    }


def _or_exit(work: Callable[[], Result]) -> Result:
    """The result of `work`, or its error in one line and exit status 1: a wrong name is no reason for a traceback."""
    try:
        return work()
    except (ValueError, TypeError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None
