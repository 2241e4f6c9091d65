"""Ask every model of a file (torch.save) in this process, then again where `sys.argv[2]` says: fork, loader, spawn.

The parent has used the pools of polars and of torch with two threads before. Prints a line for each difference and for
each model that is still silent after its time.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.utils.data import DataLoader, Dataset

from deeprec.contract import PREDICTS, RATES

PATIENCE = 60.0  # seconds for a process


def answers(model: Any, rows: pl.DataFrame) -> dict[str, Any]:
    """What every method that serves says, by name; an error by its text."""
    calls: dict[str, Any] = {}
    if PREDICTS in model.capabilities:
        calls["predict a polars frame"] = lambda: model.predict(rows)
        calls["predict a pandas frame"] = lambda: model.predict(rows.to_pandas() if PANDAS is None else PANDAS)
        calls["predict a text file"] = lambda: model.predict(TEXT)
        odd = rows.with_columns(pl.Series("x-none", [float("inf"), *[1.0] * (len(rows) - 1)]))
        calls["predict and skip"] = lambda: model.predict(odd, on_bad="skip")
        calls["predict texts by codes"] = lambda: model.predict(
            rows.with_columns(pl.Series("x-log", ["low", " high "] * (len(rows) // 2))),
            codes={"x-log": {"low": 0.5, "high": 2.0}},
        )
        calls["evaluate"] = lambda: model.evaluate(LOG)
    else:
        users, items = model.user_ids.values, model.item_ids.values
        some = items.to_list()[:3]
        calls["recommend"] = lambda: model.recommend(users, 5)
        calls["recommend to one"] = lambda: model.recommend(users[3], 5)
        calls["recommend for a history"] = lambda: model.recommend_for_history(some, 5)
        calls["recommend for ratings"] = lambda: model.recommend_for_history(some, 5, ratings=[1.0, 5.0, 2.0])
        calls["rate for a user"] = lambda: model.predict_for_user(some, [1.0, 5.0, 2.0])
        calls["rate for an item"] = lambda: model.predict_for_item(users.to_list()[:3], [1.0, 5.0, 2.0])
        calls["similar items"] = lambda: model.similar_items(some, 4)
        calls["score pairs"] = lambda: model.score([(users[0], items[0]), (users[1], items[9])])
        calls["score a frame"] = lambda: model.score(
            pl.DataFrame([users.head(9), items.head(9).alias("item_id")]).rename({users.name: "user_id"})
        )
        calls["unknown ids"] = lambda: model.recommend(["nobody", users[0]])
        calls["evaluate"] = lambda: model.evaluate()
        if RATES in model.capabilities:
            calls["predict ratings"] = lambda: model.predict_ratings(torch.arange(9), torch.arange(9)).numpy()
    found = {}
    for name, call in calls.items():
        try:
            value = call()
            found[name] = value.to_dict(as_series=False) if isinstance(value, pl.DataFrame) else value
        except ValueError as error:
            found[name] = str(error)
    return found


def differences(name: str, here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Calls whose answers are not the same to the rounding of another number of threads."""
    wrong = [call for call in here if not _same(here[call], there.get(call))]
    return [f"{name}: {call}: {here[call]} is {there.get(call)}" for call in wrong]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, np.ndarray | float) or (isinstance(one, list) and one and isinstance(one[0], float)):
        return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-4, atol=1e-5)
    return bool(one == other)


def _ask(channel: Any, models: dict[str, Any], rows: pl.DataFrame, log: Any, text: str) -> None:
    global LOG, TEXT
    LOG, TEXT = log, text
    channel.send_bytes(pickle.dumps({name: answers(model, rows) for name, model in models.items()}))


class Asked(Dataset):
    """One example a model: what it answers in a worker of a DataLoader."""

    def __init__(self, models: dict[str, Any], rows: pl.DataFrame) -> None:
        self.models, self.rows = models, rows

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, place: int) -> tuple[str, dict[str, Any]]:
        name = sorted(self.models)[place]
        return name, answers(self.models[name], self.rows)


TEXT = ""  # the same rows as a file
PANDAS: Any = None
LOG: Any = None


def main(path: str, how: str) -> None:
    global PANDAS, LOG, TEXT
    saved = torch.load(path, weights_only=False)
    models, rows, LOG = saved["models"], saved["rows"], saved["log"]
    TEXT = f"{path}.csv"
    rows.with_columns(pl.col("tags").list.join("|")).write_csv(TEXT)
    torch.set_num_threads(2)
    PANDAS = rows.to_pandas()
    wide = torch.rand(1000, 1000)
    (wide @ wide).sort()
    pl.DataFrame({"x": np.arange(100_000) % 7}).group_by("x").len().sort("x")
    here = {name: answers(model, rows) for name, model in models.items()}
    if how == "loader":
        loader = DataLoader(Asked(models, rows), batch_size=None, num_workers=2, timeout=PATIENCE,
                            multiprocessing_context="fork")  # fmt: skip
        for name, there in loader:
            for line in differences(name, here[name], there):
                print(line)
        print("asked", len(loader))
        return
    context = multiprocessing.get_context(how)
    # A process for each, but for those that begin with all imports.
    for asked in [models] if how == "spawn" else [{name: model} for name, model in models.items()]:
        mine, theirs = context.Pipe()
        process = context.Process(target=_ask, args=(theirs, asked, rows, LOG, TEXT), daemon=True)
        process.start()
        if mine.poll(PATIENCE):
            there = pickle.loads(mine.recv_bytes())  # noqa: S301  # our own
            for name in asked:
                for line in differences(name, here[name], there[name]):
                    print(line)
        else:
            print(f"{', '.join(asked)}: no answer after {PATIENCE:g} s")
            process.kill()
        process.join()
    print("asked", len(models))


if __name__ == "__main__":
    main(*sys.argv[1:])
