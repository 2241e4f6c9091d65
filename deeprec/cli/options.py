"""Options that `deeprec train` and `deeprec fit-more` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

# As `deeprec.evaluate.PROTOCOLS` and `deeprec.train.loggers.NAMES` have them: a help text does not wait for torch.
PROTOCOLS = ("ncf", "full", "random", "cdae", "cdl", "dspr", "rating", "next-item", "next-event", "caser",
             "cold-items", "cross-domain")  # fmt: skip
LOGGERS = ("tensorboard", "mlflow", "wandb", "csv")

Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="Go on with the same run in --out, if interrupted.")]
DataDir: TypeAlias = Annotated[Path | None, typer.Option("--data-dir", help="Look for named data sets here first.")]
Select: TypeAlias = Annotated[
    str | None, typer.Option("--select", help="Validation figure that chooses the epoch, such as ndcg@10.")
]
BestOnTest: TypeAlias = Annotated[
    bool, typer.Option("--best-on-test", help="Also report the best epoch on the test list, as papers do.")
]
UserFeatures: TypeAlias = Annotated[
    Path | None, typer.Option("--user-features", help="Columns of users, for cfn and towers: a table with user_id.")
]
ItemFeatures: TypeAlias = Annotated[
    Path | None, typer.Option("--item-features", help="The same with item_id: .parquet, .csv or .tsv.")
]
OnBad: TypeAlias = Annotated[
    str | None, typer.Option("--on-bad", help="Clicks: raise at a malformed row (the default), or skip it.")
]
Table: TypeAlias = Annotated[
    Path | None,
    typer.Option("--table", help="Add the figures as a row to this .csv or .json, for papers."),
]
ValidationData: TypeAlias = Annotated[
    str | None, typer.Option("--validation-data", help="A file of rows to choose the epoch by (data.validation=).")
]
TestData: TypeAlias = Annotated[
    str | None, typer.Option("--test-data", help="A file of rows to measure on (data.test=): the official split.")
]
ReadOptions: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="[data.KEY=VALUE]...", help="How the file is read, see `deeprec data formats`."),
]
Logger: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--logger", help=f"Write the curves there too: {', '.join(LOGGERS)}; may be given several times."),
]
