"""Where the command line takes a model's data from: interactions, or a log of clicks. A model says which it `reads`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from deeprec.cli import folder
from deeprec.cli.console import command, progress, say
from deeprec.cli.settings import Settings
from deeprec.data.clicks.log import ClickLog
from deeprec.data.columns.data_schema import DataSchema
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.reading.files import has_parts
from deeprec.data.sets.click_datasets import IN_MEMORY_BYTES, list_click_datasets, load_clicks
from deeprec.data.sets.datasets import is_named
from deeprec.evaluate import Card, ClickProtocol, Protocol, protocol
from deeprec.evaluate.tasks import ClickTask, InteractionTask
from deeprec.train.identity import START
from deeprec.train.more import LaterClicks, LaterInteractions, later_task, with_known_ids

# What decides which rows the model was trained on: testing on other rows would test what it has seen.
_CUT = (
    "holdout", "test_share", "validation", "validation_share", "seed", "domain", "new_share", "given_share",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What a training was asked to learn from; arguments of `deeprec train`."""

    data: str
    protocol: str | None
    settings: Settings
    out: Path | None
    seed: int
    data_dir: Path | None = None
    user_features: Path | None = None
    item_features: Path | None = None
    schema: Path | None = None
    log: Path | None = None
    on_bad: str = "raise"
    start: Path | None = None  # folder of the model that goes on


def _how_to_read(model: Any, side: str) -> str:
    """What makes a model read the table of a side."""
    inputs = f"{side}_inputs"
    if hasattr(model.config, inputs):
        return f"take {inputs}={','.join((*getattr(model.config, inputs), 'features'))}"
    return f"take side={side} and name columns of the table with features=COLUMN,..."


def has_own_test(request: Request) -> bool:
    """Whether the data come with a file to be tested on."""
    return request.settings.data.get("test") is not None or has_parts(request.data)


class InteractionSource:
    """Users, items, and what they did; for models that rank or rate."""

    protocol_class: ClassVar[type[Any]] = Protocol

    def rule(self, model: str, request: Request) -> Protocol:
        """The protocol that was asked for."""
        if request.protocol == "click":
            raise ValueError(f"train: {model} ranks items, so --protocol must be another than click; see --help")
        options = request.settings.protocol
        if has_own_test(request):
            options = {"holdout": "official", **options}
        return protocol(request.protocol or "full", **options)

    def rule_again(self, card: Card, request: Request) -> Protocol:
        """The protocol of a card for other data, or what was asked for beside it."""
        if request.protocol is not None:
            return self.rule(card.model, request)
        rule = Protocol.from_dict(card.protocol)
        if has_own_test(request):
            rule = rule.changed(holdout="official")
        elif rule.holdout == "official":  # the other data may have no split of its own
            rule = replace(rule, holdout="auto", negatives="none" if rule.candidates == "all" else "auto")
        return rule.changed(**request.settings.protocol)

    def open(self, model: Any, rule: Protocol, request: Request, target: Path) -> InteractionTask:
        """The data, cut."""
        for name in ("user_features", "item_features"):
            if getattr(request, name) is not None and name not in model.features_taken():
                side = name.partition("_")[0]
                raise ValueError(
                    f"train: {model.name} does not use --{side}-features with these options; leave it out, or "
                    f"{_how_to_read(model, side)}"
                )
        interactions = folder.load_data(request.data, request.data_dir, request.settings.data)
        if not is_named(request.data):
            interactions = interactions.canonical()
        interactions = folder.with_tables(interactions, request.user_features, request.item_features)
        if request.start is not None:
            later: InteractionTask = later_task(model, interactions, rule)
            return later
        task = InteractionTask(interactions, rule)
        if request.schema is not None:  # the model keeps it
            model.task_for(task, None, DataSchema.from_yaml(request.schema))
        return task

    def announce(self, task: InteractionTask) -> None:
        """Lines about the data and the protocol."""
        data, rule = task.data, task.protocol
        say(f"data      {data.name}: {len(data):,} interactions, {data.num_users:,} users, {data.num_items:,} items")
        for repair, count in data.repairs.items():
            say("          ", ("repaired", "yellow"), f" {repair}: {count:,}")
        against = {"all": "all items", "part": "the items of their part"}.get(str(rule.candidates))
        against = against or f"{rule.candidates} {rule.negatives} negatives"
        what = "next item after the ordered history, " if rule.task == "next-item" else ""
        how = f"{what}ranked against {against}, {rule.ties} ties"
        if rule.task == "rating":
            how = f"errors of predicted ratings, {'clamped' if rule.clamp else 'not clamped'}"
        say(f"protocol  {rule.name}: {rule.holdout.replace('_', ' ')}, {how}")
        for left_out, count in task.split.notes.items():
            if left_out.endswith("left_out") and count:
                say(f"          {count:,} held-out {left_out.removesuffix('_left_out')} left out, unknown in training")

    def announce_new(self, model: Any, task: LaterInteractions) -> None:
        """A line about what later rows bring to a model."""
        data = task.data
        users, items = data.num_users - len(model.user_ids), data.num_items - len(model.item_ids)
        say(f"new       {users:,} users, {items:,} items; {task.num_before:,} pairs were met before")

    def remember(self, target: Path, task: InteractionTask, request: Request) -> list[str]:
        """Keep in the folder where the data came from; names of the files."""
        before: dict[str, Any] = {}
        if request.start is not None and isinstance(task, LaterInteractions):
            before = {"titles": folder.titles_of(request.start), "earlier": task.met}
        return folder.remember(target, task.data, request.data, request.settings.data, **before)

    def say_next(self, target: Path, task: InteractionTask) -> None:
        """Commands that go with the trained model."""
        user = task.data.user_ids.decode([0])[0]
        say(f"Next: {command('recommend', target, '--user', user, '-k', 10)}")
        say(f"      {command('evaluate', target)}")

    def reopen(
        self,
        directory: Path,
        model: Any,
        card: Card,
        *,
        name: str | None,
        overrides: dict[str, Any],
        data: str | None,
        data_dir: Path | None,
        options: dict[str, Any],
    ) -> InteractionTask:
        """The data of a trained model with its rows held out, to be measured again, perhaps by another protocol."""
        trained = Protocol.from_dict(card.protocol)
        for key in overrides:
            if key in _CUT:
                raise ValueError(
                    f"evaluate: protocol.{key} would test rows that the model has trained on; train anew with it"
                )
        kept = {field: getattr(trained, field) for field in _CUT}
        if name is not None:
            # Where the other protocol cuts the data its own way, what was kept need not have an effect there.
            rule = replace(protocol(name, **overrides), **kept)
        else:
            rule = trained.changed(**overrides)
        source, known = (data, {}) if data is not None else folder.source_of(directory)
        loaded, met = folder.load_data(source, data_dir, {**known, **options}), folder.earlier_of(directory)
        # As it is read now, or as the file has it: what sets by name, and older models, were trained on.
        for interactions in (loaded.canonical(), loaded):
            if met is not None:
                interactions = with_known_ids(interactions, model.user_ids, model.item_ids)
            if interactions.sha256 == card.data.get("sha256"):
                break
        _require_same(directory, card, interactions)
        return InteractionTask(interactions, rule) if met is None else LaterInteractions(interactions, rule, met)


class LogSource:
    """The rows of a log; for models of clicks."""

    protocol_class: ClassVar[type[Any]] = ClickProtocol

    def rule(self, model: str, request: Request) -> ClickProtocol:
        """The protocol that was asked for."""
        if request.protocol not in (None, "click"):
            raise ValueError(
                f"train: {model} predicts clicks, so --protocol must be click, got {request.protocol}; leave it out"
            )
        return ClickProtocol(**request.settings.protocol)

    def rule_again(self, card: Card, request: Request) -> ClickProtocol:
        """The protocol of a card for other rows, or what was asked for beside it."""
        rule = ClickProtocol.from_dict(card.protocol)
        rule = replace(rule, holdout="auto") if rule.holdout == "official" else rule
        return replace(rule, **request.settings.protocol)

    def open(self, model: Any, rule: ClickProtocol, request: Request, target: Path) -> ClickTask:
        """The log, encoded; a large file is converted first."""
        schema = None if request.schema is None else FeatureSchema.from_yaml(request.schema)
        directory, path = request.log, Path(request.data)
        if directory is None and path.is_file() and path.stat().st_size > IN_MEMORY_BYTES:
            directory = target / "log"
        encoder = None if request.start is None else model.encoder
        options = request.settings.data
        log = _load_log(request.data, schema, rule, request.data_dir, directory, request.on_bad, options, encoder)
        return ClickTask(log, rule) if request.start is None else later_task(model, log, rule)

    def announce(self, task: ClickTask) -> None:
        """Lines about the log and the protocol."""
        log, rule = task.log, task.protocol
        inputs, train = log.inputs, log.parts["train"]
        kinds = f"{len(inputs.fields)} fields, {len(inputs.numerics)} numerics, {len(inputs.bags)} bags"
        kinds += f", {len(inputs.sequences)} sequences" if inputs.sequences else ""
        rows = ", ".join(f"{name} {len(part):,}" for name, part in log.parts.items())
        say(f"data      {log.name}: {rows} rows; {kinds}")
        if log.directory is not None:
            say(f"          converted to {log.directory}, which --data takes next time")
        if log.bad:
            say("          ", ("skipped", "yellow"), f" {log.bad:,} bad rows")
        say(f"          {train.positives / max(1, len(train)):.2%} clicks in the train part")
        kept = "" if rule.negative_rate == 1 else f", {rule.negative_rate:.0%} of the negatives kept for training"
        say(f"protocol  {rule.name}: {log.split['kind']}{kept}")

    def announce_new(self, model: Any, task: LaterClicks) -> None:
        """A line about what later rows bring to a model."""
        sizes = [sum(len(hashes) for hashes in each.hashes.values()) for each in (task.log.encoder, model.encoder)]
        say(f"new       {sizes[0] - sizes[1]:,} values in the vocabularies")

    def remember(self, target: Path, task: ClickTask, request: Request) -> list[str]:
        """Keep in the folder where the log came from."""
        folder.remember_source(target, request.data, request.settings.data)
        return []

    def say_next(self, target: Path, task: ClickTask) -> None:
        """The command that goes with the trained model."""
        say(f"Next: {command('predict', target, '--input', 'ROWS', '--output', 'scores.parquet')}")

    def reopen(
        self,
        directory: Path,
        model: Any,
        card: Card,
        *,
        name: str | None,
        overrides: dict[str, Any],
        data: str | None,
        data_dir: Path | None,
        options: dict[str, Any],
    ) -> ClickTask:
        """The log of a trained model, to be measured again."""
        if name or overrides or options:
            raise ValueError(f"evaluate: {model.name} is measured by the protocol of its training; leave options out")
        rule = ClickProtocol.from_dict(card.protocol)
        source, known = (data, {}) if data is not None else folder.source_of(directory)
        converted = directory / "log"
        place = converted if converted.is_dir() and data is None else None
        schema = None if place else model.encoder.schema
        encoder = model.encoder if START in card.data and not place else None
        log = _load_log(str(place or source), schema, rule, data_dir, None, "raise", {} if place else known, encoder)
        _require_same(directory, card, log)
        return ClickTask(log, rule)


SOURCES: dict[str, InteractionSource | LogSource] = {"interactions": InteractionSource(), "log": LogSource()}


def source_for(model: Any) -> Any:
    """The source of a model or of its class."""
    return SOURCES[model.reads]


def _require_same(directory: Path, card: Card, data: Any) -> None:
    if data.sha256 != card.data.get("sha256"):
        raise ValueError(
            f"evaluate: {data.name} is not what {directory} was trained on (its SHA-256 is another), so its test part "
            "may hold training rows; pass the same data"
        )


def _load_log(
    data: str,
    schema: FeatureSchema | None,
    rule: ClickProtocol,
    data_dir: Path | None,
    directory: Path | None,
    on_bad: str,
    options: dict[str, Any],
    encoder: Encoder | None,
) -> ClickLog:
    folder.require_named(data, data_dir, [entry.name for entry in list_click_datasets()])
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        return load_clicks(
            data,
            schema,
            holdout=rule.holdout,
            shares=(rule.validation_share, rule.test_share),
            seed=rule.seed,
            data_dir=data_dir,
            directory=directory,
            encoder=encoder,
            on_bad=on_bad,  # type: ignore[arg-type]
            progress=show,
            **options,
        )
