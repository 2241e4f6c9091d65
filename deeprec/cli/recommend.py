"""`deeprec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

import deeprec
from deeprec.cli import folder
from deeprec.cli.console import command, console, print_json, progress, say, table
from deeprec.cli.settings import DEVICE_HELP
from deeprec.contract import DOMAINS, PREDICTS, RECOMMENDS
from deeprec.data import IdMap
from deeprec.data.reading.tables import read_table, typed
from deeprec.data.reading.text import read_bytes
from deeprec.registry import model_class, recommenders, require_capability

_TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
_WHO = {
    "--user": "ID",
    "--users": "FILE",
    "--all": "",
    "--history": "ITEM,ITEM",
    "--histories": "FILE",
    "--tags": "TAG,TAG",
    "--features": "FILE",
}  # one of them, and what it takes
_GOES_WITH = {
    "--all": ("--output",),
    "--resume": ("--output",),
    "--ratings": ("--history",),
    "--output": ("--user", "--users", "--all", "--histories"),
    "--unknown": ("--user", "--users", "--all", "--history", "--histories"),
    "--include-seen": ("--user", "--users", "--all", "--history", "--histories"),
}


def recommend(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    user: Annotated[list[str] | None, typer.Option("--user", "-u", help="User id; may be given several times.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All users of the model; with --output.")] = False,
    users: Annotated[
        Path | None, typer.Option("--users", help="The users of a file: one id a line, or a column user_id.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write a file instead: .parquet, .csv, .tsv or .jsonl.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what a killed run with the same --output has finished.")
    ] = False,
    unknown: Annotated[
        str,
        typer.Option(
            help="Users whom the model does not know: raise an error, give popularity, or skip them; items of a "
            "history: raise or skip."
        ),
    ] = "raise",
    k: Annotated[int, typer.Option("-k", min=1, help="Items for each user.")] = 10,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", help="Instead of a user: items a new user liked, in order, ITEM,ITEM,..."),
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(
            "--histories",
            help="Instead of a user: a table of what many did: session_id or user_id, item_id and perhaps timestamp.",
        ),
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="What was met may come again, as in a session.")
    ] = False,
    ratings: Annotated[
        list[str] | None, typer.Option("--ratings", help="What the new user gave each item of --history: 5,3,...")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Instead of a user: a table with the columns of users whom it never saw."),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tags", help="Instead of a user: tags that a new user gives, TAG,TAG,...; repeated ones count."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="The only items that may come: ITEM,ITEM,... or a file; repeat it for more."),
    ] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option("--deny", help="Items that may not come: ITEM,ITEM,... or a file; repeat it for more."),
    ] = None,
    domain: Annotated[
        str | None, typer.Option("--domain", help="The only domain whose items may come, of a model of several.")
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Ask the index that `deeprec index DIR` wrote: fast, nearly the same.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Recommend items to users of the data, or to new ones by a history, ratings, tags or columns.

    A file of items or users has one id a line, or a column item_id or user_id (.parquet, .csv, .tsv, .jsonl).

    For all users, in parts: deeprec recommend DIR --all --output recs.parquet
    """
    options = {
        "--user": user,
        "--users": users,
        "--all": everyone,
        "--history": history,
        "--histories": histories,
        "--include-seen": include_seen,
        "--tags": tags,
        "--features": features,
        "--ratings": ratings,
        "--output": output,
        "--resume": resume,
        "--unknown": unknown != "raise",
        "--json": as_json,
    }
    _require_fitting({option for option, value in options.items() if value})
    model = _recommender(directory, device)
    filters: dict[str, Any] = {
        "allow": _items("allow", allow, model.item_ids),
        "deny": _items("deny", deny, model.item_ids),
        "approximate": approximate,
    }
    if domain is not None:
        require_capability(model, "recommend: --domain", DOMAINS)
        filters["domain"] = domain
    met = {"exclude_seen": not include_seen, "unknown": unknown}
    if history:
        liked = parse_ids(_words(history), model.item_ids)
        given = None if ratings is None else _numbers(ratings)
        _show(model.recommend_for_history(liked, k, ratings=given, **met, **filters), directory, as_json)
        return
    if histories is not None:
        from deeprec.serve.output import require_writable, write_frame  # here: the help text does not wait for torch

        path = None if output is None else require_writable("recommend", output)
        lists = model.recommend_for_histories(_events(histories, model.item_ids), k, **met, **filters)
        if path is None:
            _show(lists, directory, as_json)
        else:
            write_frame(lists, path)
            say(("done", "green"), f": {len(lists):,} rows written to {path}")
        return
    if tags:
        _show(_for_tags(model, _words(tags), k, filters), directory, as_json)
        return
    if features is not None:
        _show(model.recommend_for_features(typed(read_table(features).frame), k, **filters), directory, as_json)
        return
    asked: Any = parse_ids(user, model.user_ids) if user else None
    if users is not None:
        asked = _ids_of_file("users", users, model.user_ids)
    if output is None:
        _show(model.recommend(asked, k, **filters, **met), directory, as_json)
        return
    with progress() as bar:
        task = bar.add_task("recommending", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        rows = model.recommend_file(output, k, users=asked, **filters, **met, resume=resume, on_progress=show)
    say(("done", "green"), f": {rows:,} rows written to {output}")


def _events(path: Path, ids: IdMap) -> pl.DataFrame:
    """A table of histories, items in the type of the data's."""
    frame = read_table(path).frame
    if "item_id" in frame.columns and frame["item_id"].dtype == pl.String:
        frame = frame.with_columns(ids.parse(frame["item_id"]).alias("item_id"))
    others = frame.drop("item_id", strict=False)
    return typed(others).with_columns(frame.select(pl.col("item_id"))) if others.width < frame.width else frame


def _for_tags(model: Any, tags: list[str], k: int, filters: dict[str, Any]) -> pl.DataFrame:
    """Lists for tags; ValueError for a model that knows none."""
    if not model.reads_tags:
        able = ", ".join(name for name in recommenders() if model_class(name).reads_tags)
        raise ValueError(f"recommend: --tags needs a model of tags, got {model.name}; such are {able}")
    given = tags if model.tag_ids is None else parse_ids(tags, model.tag_ids)
    frame: pl.DataFrame = model.recommend_for_tags(given, k, **filters)
    return frame


def _require_fitting(given: set[str]) -> None:
    """Raise ValueError for options that do not go together."""
    if len(given & {*_WHO}) != 1:
        raise ValueError(
            f"recommend: one of {', '.join(f'{option} {what}'.strip() for option, what in _WHO.items())} is needed; "
            "--user may be given several times"
        )
    for option, others in _GOES_WITH.items():
        if option in given and not given & {*others}:
            raise ValueError(f"recommend: {option} goes with {' or '.join(others)}; leave it out, or give that too")
    if {"--json", "--output"} <= given:
        raise ValueError("recommend: --json prints, --output FILE.jsonl writes; leave one out")


def _recommender(directory: Path, device: str) -> Any:
    """The model in a folder, which can be asked by ids."""
    model = deeprec.load(directory, device=device)
    if RECOMMENDS not in model.capabilities and PREDICTS in model.capabilities:
        raise ValueError(
            f"recommend: {directory} holds {model.name}, which predicts clicks of rows; use "
            f"{command('predict', directory)} --input ROWS --output SCORES"
        )
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"recommend: {directory} has no id maps; train it with deeprec train")
    return model


def _show(listed: pl.DataFrame, directory: Path, as_json: bool) -> None:
    """Print lists, with titles where the folder has them."""
    titles = folder.titles_of(directory)
    if titles is not None and titles.schema["item_id"] == listed.schema["item_id"]:
        listed = listed.join(titles, on="item_id", how="left", maintain_order="left")
    if as_json:
        print_json(listed.to_dicts())
    else:
        _print(listed)


def _words(texts: list[str]) -> list[str]:
    """What stands between the commas."""
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


def _items(option: str, texts: list[str] | None, ids: IdMap) -> list[Any] | None:
    """The items of an option, typed or in files; None where it is not given."""
    if texts is None:
        return None
    items: list[Any] = []
    for text in texts:
        is_file = _is_file(text) or Path(text).suffix.lower() in (*_TABLES, ".txt")
        items += _ids_of_file(option, Path(text), ids) if is_file else parse_ids(_words([text]), ids)
    return items


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name: many ids
        return False


def _ids_of_file(option: str, path: Path, ids: IdMap) -> list[Any]:
    """The column item_id or user_id of a table, or the lines of any other file.

    Raises:
        ValueError: a table without the column, or a text that is no such id.
    """
    if path.suffix.lower() not in _TABLES:
        lines = read_bytes(path).decode("utf-8", "replace").splitlines()
        return ids.parse(line.strip() for line in lines if line.strip()).to_list()
    frame = read_table(path).frame
    if (name := f"{ids.name}_id") not in frame.columns:
        raise ValueError(
            f"recommend: --{option} {path} must have a column {name}, got {', '.join(frame.columns[:5])}; rename it, "
            "or give a .txt with one id a line"
        )
    column = frame[name].drop_nulls()
    return (ids.parse(column) if column.dtype == pl.String else column).to_list()


def _numbers(texts: list[str]) -> list[float]:
    words = _words(texts)
    try:
        return [float(word) for word in words]
    except ValueError:
        raise ValueError(f"recommend: --ratings must be numbers such as 5,3, got {','.join(words)}") from None


def parse_ids(texts: list[str], ids: IdMap) -> list[Any]:
    """Ids as typed on the command line, in the type of the data's ids.

    Raises:
        ValueError: a text that is no such id, e.g. a word where ids are numbers.
    """
    dtype = ids.values.dtype
    if dtype == pl.String:
        return list(texts)
    try:
        return pl.Series(texts, dtype=pl.String).cast(dtype, strict=True).to_list()
    except pl.exceptions.PolarsError:
        kind = "whole numbers" if dtype.is_integer() else str(dtype).lower()
        example, got = ids.decode([0])[0], ", ".join(texts)
        raise ValueError(
            f"recommend: the {ids.name} ids of this model are {kind} such as {example}, got {got}"
        ) from None


def _print(listed: pl.DataFrame) -> None:
    out = console()
    key = next((name for name in ("session_id", "user_id", "row") if name in listed.columns), None)
    groups = [listed] if key is None else listed.partition_by(key, maintain_order=True)
    if not listed.height:
        out.print("No item is left to recommend.")
    for group in groups:
        owner = "a new user" if key is None else f"{key.removesuffix('_id')} {group[key][0]}"
        if "fallback" in group.columns and group["fallback"][0]:
            owner += ", unknown: what is popular"
        columns = [name for name in ("rank", "item_id", "title", "score") if name in group.columns]
        rows = table(*columns, title=f"For {owner}", numbers=("rank", "score"))
        for record in group.iter_rows(named=True):
            values = ("" if record[name] is None else record[name] for name in columns)
            rows.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
        out.print(rows)
