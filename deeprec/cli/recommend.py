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
from deeprec.data import IdMap
from deeprec.models import ClickModel


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
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Recommend items to users of the data, or to a new user with a history, rated or not."""
    if bool(user) == bool(history):
        raise ValueError(
            "recommend: either --user ID or --history ITEM,ITEM is needed; --user may be given several times"
        )
    if ratings and not history:
        raise ValueError("recommend: --ratings goes with --history ITEM,ITEM; leave it out")
    model = deeprec.load(directory, device=device)
    if isinstance(model, ClickModel):
        raise ValueError(
            f"recommend: {directory} holds {model.name}, which predicts clicks of rows; use "
            f"{command('predict', directory)} --input ROWS --output SCORES"
        )
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"recommend: {directory} has no id maps; train it with deeprec train")
    if user:
        found = model.recommend(parse_ids(user, model.user_ids), k)
    else:
        liked = [item.strip() for text in history or [] for item in text.split(",") if item.strip()]
        given = None if ratings is None else _numbers(ratings)
        found = model.recommend_for_history(parse_ids(liked, model.item_ids), k, ratings=given)
    titles = folder.titles_of(directory)
    if titles is not None and titles.schema["item_id"] == found.schema["item_id"]:
        found = found.join(titles, on="item_id", how="left", maintain_order="left")
    if as_json:
        print_json(found.to_dicts())
    else:
        _print(found)


def _numbers(texts: list[str]) -> list[float]:
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
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


def _print(found: pl.DataFrame) -> None:
    out = console()
    groups = found.partition_by("user_id", maintain_order=True) if "user_id" in found.columns else [found]
    if not found.height:
        out.print("No item is left to recommend.")
    for group in groups:
        owner = f"user {group['user_id'][0]}" if "user_id" in group.columns else "a new user"
        columns = [name for name in ("rank", "item_id", "title", "score") if name in group.columns]
        rows = table(*columns, title=f"For {owner}", numbers=("rank", "score"))
        for record in group.iter_rows(named=True):
            values = ("" if record[name] is None else record[name] for name in columns)
            rows.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
        out.print(rows)
