"""`tune`: options of a model by what the validation part says of them, trial after trial.

The search is Optuna's (extra `tune`). What the trials gave is kept in a file to which several processes can add.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec._files import make_folder, write_atomically
from deeprec.config import taken_options
from deeprec.device import Device
from deeprec.evaluate.metrics import gain
from deeprec.registry import config_class, create
from deeprec.train.callbacks import Callback, Progress
from deeprec.train.fitting import validated

if TYPE_CHECKING:
    import optuna

BEST, TRIALS = "best.json", "trials.csv"
_STUDY, _JOURNAL, _IDENTITY = "deeprec", "trials.log", "identity"
_LOGARITHMIC = 10.0  # from this ratio of the ends on a range is searched by its logarithm


@dataclass(frozen=True)
class Range:
    """The values that an option may have.

    Attributes:
        choices: these; () for what lies between `low` and `high`, ends included.
        low, high: finite, low < high. With low > 0 and high >= 10 low logarithms are drawn evenly, otherwise numbers.
        is_whole: whether only whole numbers are taken.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False

    def __post_init__(self) -> None:
        if self.choices:
            if len(self.choices) < 2 or len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError(f"Range: choices must be two or more, each once, got {self.choices}; fix the option")
        elif not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"Range: low must be below high, both finite, got {self.low} and {self.high}")
        elif self.is_whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"Range: ends of whole numbers must be such, got {self.low} and {self.high}; round them")

    def drawn(self, trial: optuna.Trial, name: str) -> Any:
        """The value of a trial."""
        if self.choices:  # by number: Optuna keeps numbers and texts alone
            return self.choices[trial.suggest_categorical(name, list(range(len(self.choices))))]
        is_log = self.low > 0 and self.high >= _LOGARITHMIC * self.low
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=is_log)
        return trial.suggest_float(name, self.low, self.high, log=is_log)


@dataclass(frozen=True)
class Tuned:
    """What `tune` returns.

    Attributes:
        options: the best ones, those that were fixed included: what goes into a recipe, or into `create`.
        value: of `select` on the validation part; epoch: that reached it, None where there are none.
        select: the validation figure.
        trials: how many were tried, of all calls and processes; failed: of them with options that do not go together.
        out: the folder.
    """

    options: dict[str, Any]
    value: float
    epoch: int | None
    select: str
    trials: int
    failed: int
    out: Path


def usual_ranges(model: str) -> dict[str, Range]:
    """Ranges for the options of a model that matter most, around their defaults; () of a model without such."""
    kind = config_class(model)
    fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}
    taken = set(taken_options(kind))
    ranges: dict[str, Range] = {}
    for name, spread in (("lr", 10.0), ("l2", 30.0), ("weight_decay", 30.0), ("shrinkage", 10.0)):
        if name in taken and fields.get(name):
            ranges[name] = Range(low=fields[name] / spread, high=fields[name] * spread)
    for name in ("factors", "neighbors", "hidden"):
        if name in taken and isinstance(fields.get(name), int) and fields[name] >= 4:
            # By doubling: several models take multiples of a number of heads, or powers of 2.
            ranges[name] = Range(tuple(fields[name] * times // 4 for times in (1, 2, 4, 8, 16)))
    if "dropout" in taken and isinstance(fields.get("dropout"), float):
        ranges["dropout"] = Range(low=0.0, high=0.5)
    return ranges


def tune(
    model: str,
    data: Any,
    *,
    out: str | Path,
    ranges: Mapping[str, Range] | None = None,
    options: Mapping[str, Any] | None = None,
    protocol: Any = None,
    select: str | None = None,
    trials: int = 30,
    seed: int = 0,
    schema: Any = None,
    device: Device = "auto",
    prunes: bool = True,
    on_trial: Callable[[int, dict[str, Any], float | None], None] | None = None,
) -> Tuned:
    """Search the options of a model that are best by the validation part of the protocol.

    Each trial trains on the training part and is judged by its best epoch; nothing is refitted and the test part is not
    looked at, so that `fit` with the options that come out measures honestly. What was tried is in `out`: the same call
    goes on there until there are `trials` of them, and several processes with the same `out` share them.

    Args:
        model: registered name.
        data: as of `fit`.
        out: folder of the trials; best.json in it is what `deeprec train MODEL --config` takes, trials.csv is a table.
        ranges: of options by name; None: `usual_ranges(model)`.
        options: the others, as they are to be.
        protocol, schema, device: as of `fit`.
        select: the validation figure that decides; None: the protocol's first.
        trials: how many in all, >= 1.
        seed: of the trials' weights and order, and of the search.
        prunes: whether a trial ends early whose epochs are below the median of the earlier trials' at the same epoch.
        on_trial: told number, options and value (None: it failed or was ended) of each trial of this process.
    Returns:
        the best.
    Raises:
        ImportError: Optuna is not installed. ValueError: nothing to search, an option that the model has not, a folder
            with trials of another search, or options that never go together.
    Reference: Akiba et al. 2019, "Optuna" (KDD); Bergstra et al. 2011 for the tree-structured Parzen estimator.
    """
    package = _optuna()
    if trials < 1:
        raise ValueError(f"tune: trials must be >= 1, got {trials}")
    searched, fixed = dict(usual_ranges(model) if ranges is None else ranges), dict(options or {})
    first = _checked(model, searched, fixed)
    task = first.task_for(data, protocol, schema=schema)
    task.require(first)
    if not task.validates():
        raise ValueError("tune: the protocol must have a validation part, got none; take another validation=")
    figure = select or first.config.default_select(task.protocol)
    place = Path(out)
    make_folder(place)
    package.logging.set_verbosity(package.logging.ERROR)  # trials that fail are told by us
    study = package.create_study(
        study_name=_STUDY,
        storage=package.storages.JournalStorage(package.storages.journal.JournalFileBackend(str(place / _JOURNAL))),
        pruner=package.pruners.MedianPruner(n_startup_trials=4) if prunes else package.pruners.NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    _require_same(study, _identity(model, task, first, searched, fixed, figure, seed), place)
    # A process that goes on, or one beside others, draws other trials than those that were drawn.
    study.sampler = package.samplers.TPESampler(
        seed=seed + len(study.trials), n_startup_trials=min(10, max(3, trials // 3))
    )
    errors: list[ValueError] = []

    def objective(trial: optuna.Trial) -> float:
        drawn = {name: each.drawn(trial, name) for name, each in searched.items()}
        trial.set_user_attr("options", json.dumps(drawn))
        try:
            made = create(model, **fixed, **drawn, **_without_refit(model, fixed))
            made.adapt(task.facts())
            told = _Trial(trial, figure) if prunes else None
            metrics, epoch = validated(made, task, seed=seed, select=figure, device=device, callback=told)
        except ValueError as error:  # options that do not go together, or a loss that is no number
            errors.append(error)
            trial.set_user_attr("error", str(error)[:500])
            raise
        if told is not None and told.is_pruned:
            raise package.TrialPruned
        trial.set_user_attr("epoch", epoch)
        return gain(figure, metrics[figure])

    def told_of(_: optuna.Study, trial: Any) -> None:
        _write(study, place, figure)
        if on_trial is not None:
            value = gain(figure, trial.value) if trial.value is not None and _is_complete(trial) else None
            on_trial(trial.number, json.loads(trial.user_attrs.get("options", "{}")), value)

    states = package.trial.TrialState
    enough = package.study.MaxTrialsCallback(trials, states=(states.COMPLETE, states.PRUNED, states.FAIL))
    if len([trial for trial in study.trials if trial.state.is_finished()]) < trials:
        study.optimize(objective, callbacks=[told_of, enough], catch=(ValueError,))
    return _best(study, fixed, figure, place, errors)


class _Trial(Callback):
    """Tells Optuna of the epochs, and ends the training where it says so."""

    def __init__(self, trial: optuna.Trial, select: str) -> None:
        self.trial, self.select, self.is_pruned = trial, select, False

    def on_epoch(self, progress: Progress) -> bool:
        if progress.metrics is None or self.select not in progress.metrics:
            return False
        if "pre-training" in progress.stage:
            return False
        self.trial.report(gain(self.select, progress.metrics[self.select]), progress.epoch)
        self.is_pruned = self.trial.should_prune()
        return self.is_pruned


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ImportError('tune: Optuna is needed; pip install "deeprec-torch[tune]"') from None
    return optuna


def _checked(model: str, ranges: dict[str, Range], fixed: dict[str, Any]) -> Any:
    """A model with the first value of each range.

    Raises:
        ValueError: nothing to search, or an option that the model has not, that it does not use, or that is fixed too.
    """
    if not ranges:
        raise ValueError(f"tune: ranges must name an option of {model}, got none; pass ranges={{'lr': Range(...)}}")
    both = sorted(ranges.keys() & fixed.keys())
    if both:
        raise ValueError(f"tune: {', '.join(both)} must be fixed or searched, got both; drop one")
    for name in ranges:
        if name in ("refit", "epochs"):
            raise ValueError(f"tune: {name} is not searched: validation chooses the epoch of each trial; drop it")
    try:
        return create(model, **fixed, **{name: _an_end(each) for name, each in ranges.items()})
    except ValueError:
        # One end may not go with another; names and types are right where each goes with the defaults.
        for name, each in ranges.items():
            create(model, **{**fixed, name: _an_end(each)})
        return create(model, **fixed)


def _an_end(each: Range) -> Any:
    if each.choices:
        return each.choices[0]
    return int(each.low) if each.is_whole else each.low


def _without_refit(model: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
    return {"refit": False} if "refit" in taken_options(config_class(model)) and "refit" not in fixed else {}


def _identity(
    model: str, task: Any, first: Any, ranges: Mapping[str, Range], fixed: Mapping[str, Any], select: str, seed: int
) -> dict[str, Any]:
    searched = {name: asdict(each) for name, each in sorted(ranges.items())}
    described = {"model": model, "ranges": searched, "options": dict(sorted(fixed.items())), "select": select}
    whole = {**described, "seed": seed, "protocol": task.protocol.as_dict(), "data": task.checksums(first)}
    plain: dict[str, Any] = json.loads(json.dumps(whole, default=str))
    return plain


def _require_same(study: Any, identity: dict[str, Any], place: Path) -> None:
    """Note what is searched; ValueError where the folder's trials are of another search."""
    there = study.user_attrs.get(_IDENTITY)
    if there is None:
        study.set_user_attr(_IDENTITY, identity)
        return
    different = [key for key in identity if there.get(key) != identity[key]]
    if different:
        raise ValueError(
            f"tune: {place} holds trials of another search: {', '.join(different)} differ; take another out"
        )


def _is_complete(trial: Any) -> bool:
    return bool(trial.state.name == "COMPLETE")


def _best(study: Any, fixed: dict[str, Any], select: str, place: Path, errors: Sequence[ValueError]) -> Tuned:
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    complete = [trial for trial in finished if _is_complete(trial)]
    if not complete:
        if errors:
            raise ValueError(f"tune: none of {len(finished)} trials could be trained, the last: {errors[-1]}")
        raise ValueError(f"tune: none of {len(finished)} trials in {place} ended; raise trials")
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    failed = sum(trial.state.name == "FAIL" for trial in finished)
    options = {**fixed, **json.loads(best.user_attrs["options"])}
    value, epoch = gain(select, best.value), best.user_attrs.get("epoch")
    write_atomically(place / BEST, (json.dumps(options, indent=1) + "\n").encode())
    return Tuned(options, value, epoch, select, len(finished), failed, place)


def _write(study: Any, place: Path, select: str) -> None:
    """trials.csv: number, state, value, epoch and the options."""
    trials = [trial for trial in study.trials if trial.state.is_finished()]
    names = sorted({name for trial in trials for name in json.loads(trial.user_attrs.get("options", "{}"))})
    stream = io.StringIO()
    rows = csv.writer(stream)
    rows.writerow(["trial", "state", select, "epoch", *names, "error"])
    for trial in trials:
        drawn = json.loads(trial.user_attrs.get("options", "{}"))
        value = gain(select, trial.value) if _is_complete(trial) else ""
        attributes = trial.user_attrs
        rows.writerow(
            [trial.number, trial.state.name.lower(), value, attributes.get("epoch", ""),
             *(drawn.get(name, "") for name in names), attributes.get("error", "")]
        )  # fmt: skip
    write_atomically(place / TRIALS, stream.getvalue().encode())
