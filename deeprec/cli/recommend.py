"""`deeprec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

import deeprec
from deeprec.cli import folder
from deeprec.cli.console import command, console, print_json, table
from deeprec.cli.settings import DEVICE_HELP
from deeprec.contract import PREDICTS, RECOMMENDS
from deeprec.data import IdMap
from deeprec.data.reading.tables import read_table
from deeprec.data.reading.text import read_bytes

_TABLES = (".parquet", ".csv", ".tsv", ".jsonl")


def recommend(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `deeprec train` wrote.")],
    user: Annotated[list[str] | None, typer.Option("--user", "-u", help="User id; may be given several times.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items for each user.")] = 10,
    history: Annotated[
        list[str] | None, typer.Option("--history", help="Instead of a user: items a new user liked, ITEM,ITEM,...")
    ] = None,
    ratings: Annotated[
        list[str] | None, typer.Option("--ratings", help="What the new user gave each item of --history: 5,3,...")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="The only items that may come: ITEM,ITEM,... or a file; repeat it for more."),
    ] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option("--deny", help="Items that may not come: ITEM,ITEM,... or a file; repeat it for more."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Recommend items to users of the data, or to a new user with a history, rated or not.

    A file of items has one id a line, or a column item_id (.parquet, .csv, .tsv, .jsonl).
    """
    if bool(user) == bool(history):
        raise ValueError(
            "recommend: either --user ID or --history ITEM,ITEM is needed; --user may be given several times"
        )
    if ratings and not history:
        raise ValueError("recommend: --ratings goes with --history ITEM,ITEM; leave it out")
    model = deeprec.load(directory, device=device)
    if RECOMMENDS not in model.capabilities and PREDICTS in model.capabilities:
        raise ValueError(
            f"recommend: {directory} holds {model.name}, which predicts clicks of rows; use "
            f"{command('predict', directory)} --input ROWS --output SCORES"
        )
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"recommend: {directory} has no id maps; train it with deeprec train")
    filters = {"allow": _items("allow", allow, model.item_ids), "deny": _items("deny", deny, model.item_ids)}
    if user:
        listed = model.recommend(parse_ids(user, model.user_ids), k, **filters)
    else:
        liked = parse_ids(_words(history or []), model.item_ids)
        given = None if ratings is None else _numbers(ratings)
        listed = model.recommend_for_history(liked, k, ratings=given, **filters)
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
        items += _items_of_file(option, Path(text), ids) if is_file else parse_ids(_words([text]), ids)
    return items


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name: many ids
        return False


def _items_of_file(option: str, path: Path, ids: IdMap) -> list[Any]:
    """The column item_id of a table, or the lines of any other file.

    Raises:
        ValueError: a table without the column, or a text that is no such id.
    """
    if path.suffix.lower() not in _TABLES:
        lines = read_bytes(path).decode("utf-8", "replace").splitlines()
        return ids.parse(line.strip() for line in lines if line.strip()).to_list()
    frame = read_table(path).frame
    if "item_id" not in frame.columns:
        raise ValueError(
            f"recommend: --{option} {path} must have a column item_id, got {', '.join(frame.columns[:5])}; rename it, "
            "or give a .txt with one id a line"
        )
    column = frame["item_id"].drop_nulls()
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
    groups = listed.partition_by("user_id", maintain_order=True) if "user_id" in listed.columns else [listed]
    if not listed.height:
        out.print("No item is left to recommend.")
    for group in groups:
        owner = f"user {group['user_id'][0]}" if "user_id" in group.columns else "a new user"
        columns = [name for name in ("rank", "item_id", "title", "score") if name in group.columns]
        rows = table(*columns, title=f"For {owner}", numbers=("rank", "score"))
        for record in group.iter_rows(named=True):
            values = ("" if record[name] is None else record[name] for name in columns)
            rows.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
        out.print(rows)
