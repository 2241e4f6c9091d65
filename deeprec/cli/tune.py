"""`deeprec tune`."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

import deeprec
from deeprec import cli, registry
from deeprec._files import make_folder
from deeprec.cli.console import command, console, figure, say, table
from deeprec.cli.options import PROTOCOLS, DataDir, ItemFeatures, OnBad, Select, TestData, UserFeatures, ValidationData
from deeprec.cli.settings import DEVICE_HELP, add_parts, convert, read_settings
from deeprec.config import unknown_option

_BESIDE = "DEEPREC_TUNE_BESIDE"  # in the surroundings of processes that share the trials of another


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One of `deeprec models`.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=LOW..HIGH|KEY='A|B'|KEY=VALUE]...", help="What is searched, and what is fixed."),
    ] = None,
    data: Annotated[str, typer.Option("--data", help="As of `deeprec train`.")] = "synthetic",
    validation_data: ValidationData = None,
    test_data: TestData = None,
    protocol_name: Annotated[
        str | None, typer.Option("--protocol", help=f"{', '.join(PROTOCOLS)}; clicks: click.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many in all, those in --out included.")] = 30,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes that share the trials.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the trials and of the search.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the trials; the same command goes on.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Fixed options from a .toml or .json file.")] = None,
    data_dir: DataDir = None,
    select: Select = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="As of `deeprec train`.")] = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    on_bad: OnBad = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
) -> None:
    """Search a model's options by the validation part, which needs Optuna; the test part is not looked at.

    Such as: deeprec tune bpr --data ml-1m lr=0.005..0.5 factors='16|32|64' epochs=20 --trials 30 --jobs 2

    LOW..HIGH is searched by its logarithm where HIGH is ten times LOW or more; without anything to search the usual
    options of the model are. What was tried is in --out: trials.csv, and best.json, which `deeprec train --config`
    takes.
    """
    cli.running.require_ready("tune", device, None)
    kind = registry.model_class(model)
    searched = [word for word in words or [] if _is_range(word)]
    ranges = {word.partition("=")[0]: _range(kind.config_class, word) for word in searched}
    source = cli.sources.source_for(kind)
    fixed = [word for word in words or [] if word not in searched]
    settings = read_settings(kind.config_class, fixed, config, protocol=source.protocol_class)
    add_parts(settings, validation_data, test_data)
    request = cli.sources.Request(
        data, protocol_name, settings, out, seed, data_dir, user_features, item_features, schema, None,
        on_bad or "raise",
    )  # fmt: skip
    rule = source.rule(model, request)
    target = out if out is not None else Path("runs") / f"tune-{model}-{Path(data).stem}-{rule.name}"
    options = dict(settings.model)
    if not ranges:
        usual = deeprec.train.usual_ranges(model)
        ranges = {name: each for name, each in usual.items() if name not in options}
    task = source.open(registry.create(model, **options), rule, request, target)
    is_beside = _BESIDE in os.environ
    if not is_beside:
        source.announce(task)
        for name, each in ranges.items():
            say(f"search    {name}: {_shown(each)}")
        say(f"out       {target}")
    others = [] if is_beside else _others(jobs - 1, target)
    try:
        best = deeprec.train.tune(
            model,
            task,
            out=target,
            ranges=ranges,
            options=options,
            select=select,
            trials=trials,
            seed=seed,
            device=device,
            on_trial=_tell,
        )
    finally:
        for other in others:
            other.wait()
    if is_beside:
        return
    if others:  # theirs may be better
        best = deeprec.train.tune(
            model, task, out=target, ranges=ranges, options=options, select=select, trials=trials, seed=seed,
            device=device,
        )  # fmt: skip
    rows = table("option", "best")
    for name, value in best.options.items():
        rows.add_row(name, _word(value))
    console().print(rows)
    at = "" if best.epoch is None else f", epoch {best.epoch}"
    failed = f", {best.failed} of which could not be trained (trials.csv says why)" if best.failed else ""
    say(("done", "green"), f": {best.select} {figure(best.value)} on validation{at}, {best.trials} trials{failed}")
    say(f"Next: {command('train', model, '--data', data, '--config', target / 'best.json')}")


def _is_range(word: str) -> bool:
    key, _, value = word.partition("=")
    return "." not in key and (".." in value or "|" in value)


def _range(config: type[Any], word: str) -> Any:
    """The range that a word says; ValueError where the option or a value is not one of the model's."""
    key, _, value = word.partition("=")
    hints = typing.get_type_hints(config)
    if key not in hints:
        raise ValueError(f"option: unknown key {key!r} for {config.__name__}; {unknown_option(config, key)}")
    if "|" in value:
        return deeprec.train.Range(choices=tuple(convert(key, part, hints[key]) for part in value.split("|")))
    low, high = (convert(key, part, hints[key]) for part in value.split("..", 1))
    if isinstance(low, bool) or not isinstance(low, int | float) or not isinstance(high, int | float):
        raise ValueError(f"option {key}: a range must be of numbers, got {value!r}; write its values as 'A|B'")
    return deeprec.train.Range(low=low, high=high, is_whole=isinstance(low, int) and isinstance(high, int))


def _shown(each: Any) -> str:
    if each.choices:
        return " | ".join(_word(choice) for choice in each.choices)
    return f"{each.low:g} to {each.high:g}"


def _word(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tell(number: int, options: dict[str, Any], value: float | None) -> None:
    words = " ".join(f"{name}={_word(each)}" for name, each in options.items())
    say(f"trial {number:>4}  ", ("ended early" if value is None else figure(value), "bold"), f"  {words}")


def _others(count: int, target: Path) -> list[subprocess.Popen[bytes]]:
    """Processes of the same command beside this one; what they say is in the folder."""
    make_folder(target)
    started = []
    for number in range(count):
        with (target / f"job-{number + 2}.log").open("ab") as log:
            words = [sys.executable, "-m", "deeprec", *sys.argv[1:]]
            surroundings = {**os.environ, _BESIDE: "1"}
            started.append(subprocess.Popen(words, stdout=log, stderr=log, env=surroundings))
    return started
