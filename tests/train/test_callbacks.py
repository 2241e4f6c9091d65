"""Callbacks: what each hook gets, what a failing one leaves behind, and that absent ones cost nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from deeprec.data import synthetic
from deeprec.models import create
from deeprec.train import fit
from deeprec.train.callbacks import (
    LOGGERS_FILE,
    Callback,
    CallbackError,
    Callbacks,
    Progress,
    RunInfo,
    Step,
    as_callbacks,
)

PROGRESS = Progress("gmf", 2, 5, 10, 10, 0.5, 100.0, {"hr@10": 0.25}, True)
STEP = Step("gmf", 1, 1, 32, 0.7, {"": 0.01}, 100)


def run_info(out: Path | None = None, *, is_resumed: bool = False) -> RunInfo:
    data, protocol = {"name": "toy", "sha256": "ab"}, {"name": "full"}
    return RunInfo("gmf", {"lr": 0.1}, data, protocol, 0, "cpu", out, 5, is_resumed)


class Recorder(Callback):
    """Notes what it is called with; fails in one hook."""

    def __init__(self, fails_in: str = "", error: BaseException | None = None, answer: object = None) -> None:
        self.calls: list[tuple[str, object]] = []
        self.fails_in, self.error, self.answer = fails_in, error or ValueError("no more paper"), answer

    def _note(self, hook: str, value: object) -> None:
        self.calls.append((hook, value))
        if hook == self.fails_in:
            raise self.error

    def on_start(self, run):
        self._note("on_start", run)

    def on_step(self, step):
        self._note("on_step", step)

    def on_progress(self, progress):
        self._note("on_progress", progress)

    def on_epoch(self, progress):
        self._note("on_epoch", progress)
        return self.answer

    def on_checkpoint(self, path):
        self._note("on_checkpoint", path)

    def on_end(self, card, out):
        self._note("on_end", (card, out))

    def on_error(self, error):
        self._note("on_error", error)


HOOKS = ("on_start", "on_step", "on_progress", "on_epoch", "on_checkpoint", "on_end")


def drive(callbacks: Callbacks, run: RunInfo) -> bool:
    """The calls of the training loop."""
    with callbacks.running(run):
        callbacks.on_step(STEP)
        callbacks.on_progress(PROGRESS)
        if run.out is not None:
            callbacks.on_checkpoint(run.out / "checkpoint.safetensors", stage="gmf", epoch=2)
        stops = callbacks.on_epoch(PROGRESS)
        callbacks.on_end("card", run.out)
    return stops


def test_every_hook_is_called_with_what_it_is_told(tmp_path):
    first, second = Recorder(), Recorder()
    run = run_info(tmp_path)
    assert drive(as_callbacks([first, second]), run) is False
    assert first.calls == second.calls
    assert first.calls == [
        ("on_start", run),
        ("on_step", STEP),
        ("on_progress", PROGRESS),
        ("on_checkpoint", tmp_path / "checkpoint.safetensors"),
        ("on_epoch", PROGRESS),
        ("on_end", ("card", tmp_path)),
    ]


def test_the_base_class_does_nothing():
    assert drive(as_callbacks(Callback()), run_info()) is False


@pytest.mark.parametrize(("answers", "stops"), [((None, False), False), ((True, None), True), ((None, np.True_), True)])
def test_one_that_answers_true_stops_the_training(answers, stops):
    callbacks = as_callbacks([Recorder(answer=answer) for answer in answers])
    assert drive(callbacks, run_info()) is stops


def test_an_answer_that_is_no_answer_is_an_error():
    with pytest.raises(CallbackError, match=r"Recorder failed in on_epoch .*must return True, False or None, got 0.3"):
        drive(as_callbacks(Recorder(answer=0.3)), run_info())


def test_no_step_and_no_progress_is_wanted_unless_one_overrides_it():
    class OnEpoch(Callback):
        def on_epoch(self, progress):
            return None

    for given in (None, [], Callback(), OnEpoch()):
        callbacks = as_callbacks(given)
        assert not callbacks.wants_steps
        assert not callbacks.wants_progress
        assert not callbacks.wants_step(1)
    assert as_callbacks([OnEpoch(), Recorder()]).wants_steps
    assert as_callbacks([OnEpoch(), Recorder()]).wants_progress
    assert as_callbacks(print).wants_progress
    assert not as_callbacks(print).wants_steps
    added = OnEpoch()
    added.on_step = lambda step: None
    assert as_callbacks(added).wants_steps


def test_steps_come_as_often_as_each_wants_them():
    every, third, none = Recorder(), Recorder(), Recorder()
    third.every_steps, none.every_steps = 3, 0
    callbacks = as_callbacks([third, none])
    assert [callbacks.wants_step(step) for step in range(1, 7)] == [False, False, True, False, False, True]
    assert not as_callbacks(none).wants_steps
    callbacks = as_callbacks([every, third, none])
    for number in range(1, 8):
        callbacks.on_step(Step("gmf", 1, number, number * 10, 0.5))
    assert [step.step for _, step in every.calls] == [1, 2, 3, 4, 5, 6, 7]
    assert [step.step for _, step in third.calls] == [3, 6]
    assert none.calls == []


def test_a_step_knows_the_examples_of_all_epochs():
    assert Step("gmf", 3, 2, 64, 0.5, {}, 100).seen == 264


def test_a_plain_function_sees_every_progress():
    seen = []
    drive(as_callbacks([seen.append]), run_info())
    drive(as_callbacks(None, seen.append), run_info())
    assert seen == [PROGRESS] * 4


@pytest.mark.parametrize("hook", HOOKS)
def test_a_failing_callback_is_named_and_the_others_are_closed(tmp_path, hook):
    before, failing, after = Recorder(), Recorder(hook), Recorder()
    with pytest.raises(CallbackError, match=f"^fit: the callback Recorder failed in {hook} ") as raised:
        drive(as_callbacks([before, failing, after]), run_info(tmp_path))
    assert isinstance(raised.value, RuntimeError)
    assert raised.value.__cause__ is failing.error
    assert (raised.value.callback, raised.value.hook) == ("Recorder", hook)
    assert "(ValueError: no more paper)" in str(raised.value)
    for other in (before, after) if hook != "on_start" else (before,):
        hooks = [name for name, _ in other.calls]
        assert hook in hooks, "an error of one keeps no other from seeing the epoch"
        assert hooks[-1] == "on_error"
        assert hooks.count("on_error") == 1
        assert other.calls[-1][1] is raised.value
    if hook == "on_start":
        assert after.calls == []


def test_an_error_of_the_loop_itself_comes_out_as_it_is():
    callback, error = Recorder(), KeyError("column")
    with pytest.raises(KeyError) as raised, as_callbacks(callback).running(run_info()):
        raise error
    assert raised.value is error
    assert callback.calls[-1] == ("on_error", error)


def test_on_error_hides_no_error_and_is_logged(caplog):
    failing, after = Recorder("on_error"), Recorder()
    watched = as_callbacks([failing, after]).running(run_info())
    with caplog.at_level(logging.WARNING, "deeprec"), pytest.raises(KeyError), watched:
        raise KeyError("column")
    assert "the callback Recorder failed in on_error too (ValueError: no more paper)" in caplog.text
    assert after.calls[-1][0] == "on_error"


def test_of_two_that_fail_the_first_is_raised_and_the_second_logged(caplog):
    first, second = Recorder("on_epoch"), Recorder("on_epoch", OSError("disk"))
    with caplog.at_level(logging.WARNING, "deeprec"), pytest.raises(CallbackError, match="no more paper"):
        drive(as_callbacks([first, second]), run_info())
    assert "failed in on_epoch too (OSError: disk)" in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_interrupt_passes_untouched(tmp_path, hook, kind):
    error = kind()
    failing, before = Recorder(hook, error), Recorder()
    with pytest.raises(kind) as raised:
        drive(as_callbacks([before, failing]), run_info(tmp_path))
    assert raised.value is error
    assert before.calls[-1] == ("on_error", error)


def test_the_message_says_what_is_kept_and_how_to_go_on(tmp_path):
    def message(run: RunInfo, hook: str, **checkpoint) -> str:
        callbacks = as_callbacks(Recorder(hook))
        callbacks.on_start(run)
        if checkpoint:
            callbacks.on_checkpoint(tmp_path / "checkpoint.safetensors", **checkpoint)
        with pytest.raises(CallbackError) as raised:
            callbacks.on_epoch(PROGRESS) or callbacks.on_end("card", run.out)
        return str(raised.value).partition("; ")[2]

    here, again = run_info(tmp_path), run_info(tmp_path, is_resumed=True)
    go_on = f"in {tmp_path}: go on with resume=True"
    assert message(run_info(), "on_epoch") == "nothing of the run is kept: pass out= to keep checkpoints and the model"
    assert message(here, "on_epoch") == f"no checkpoint was written to {tmp_path} yet: start again"
    assert message(again, "on_epoch") == f"the checkpoint in {tmp_path} is as it was: go on with resume=True"
    assert message(here, "on_epoch", stage="gmf", epoch=3) == f"the run is kept up to epoch 3 {go_on}"
    assert message(here, "on_epoch", epoch=3) == f"the run is kept up to epoch 3 {go_on}"
    assert message(here, "on_epoch", stage="mlp (pre-training)", epoch=1) == (
        f"the run is kept up to epoch 1 of mlp (pre-training) {go_on}"
    )
    assert message(here, "on_epoch", stage="gmf", epoch=0) == f"the run is kept up to its last checkpoint {go_on}"
    assert message(here, "on_end", stage="gmf", epoch=3) == f"the trained model is kept in {tmp_path}"


def test_an_error_that_a_terminal_would_obey_is_made_visible():
    with pytest.raises(CallbackError) as raised:
        drive(as_callbacks(Recorder("on_epoch", ValueError("\x1b[31m" + "x" * 999))), run_info())
    assert r"\x1b[31mx" in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_function_is_named_by_its_name():
    def plot(progress):
        raise ValueError("no screen")

    with pytest.raises(CallbackError, match="the callback plot failed in on_progress"):
        drive(as_callbacks([plot]), run_info())
    with pytest.raises(CallbackError, match="the callback partial failed in on_progress"):
        drive(as_callbacks([partial(plot)]), run_info())


def test_what_on_progress_raises_comes_out_as_it_is():
    class Stop(Exception):
        pass

    def stop(progress):
        raise Stop

    callback = Recorder()
    with pytest.raises(Stop):
        drive(as_callbacks(callback, stop), run_info())
    assert callback.calls[-1][0] == "on_error"


def test_callbacks_pass_through_and_serve_another_run():
    callback = Recorder("on_epoch")
    callbacks = as_callbacks([callback])
    assert len(as_callbacks(callbacks, print)) == 2
    for _ in range(2):
        with pytest.raises(CallbackError):
            drive(as_callbacks(callbacks), run_info())
    assert [hook for hook, _ in callback.calls].count("on_error") == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Recorder, r"got <class .*Recorder'>; make one: Recorder\(...\)"),
        (dict, "got <class 'dict'>; pass an object"),
        (
            "tensorboard",
            r"got 'tensorboard'; deeprec.train.loggers.logger_by_name\('tensorboard', out\) makes a logger",
        ),
        ([Recorder(), 3], "got 3; subclass deeprec.train.callbacks.Callback"),
        ({"a": 1}, "got {'a': 1}; subclass"),
    ],
)
def test_what_is_no_callback_is_refused_with_the_remedy(given, message):
    with pytest.raises(
        TypeError, match=f"fit: callbacks must be Callback objects or functions of a Progress, {message}"
    ):
        as_callbacks(given)


def test_other_mistakes_are_refused():
    twice = Recorder()
    with pytest.raises(ValueError, match="each callback must be given once, got Recorder twice"):
        as_callbacks([twice, Recorder(), twice])
    with pytest.raises(ValueError, match="got print twice"):
        as_callbacks([print, print])
    with pytest.raises(TypeError, match="on_progress must be a function of a Progress, got 'show'"):
        as_callbacks(None, "show")
    for every in (-1, 1.5, True, "2"):
        wrong = Recorder()
        wrong.every_steps = every
        with pytest.raises(TypeError, match="every_steps of Recorder must be a whole number >= 0, got"):
            as_callbacks(wrong)


def test_a_run_that_starts_anew_forgets_the_runs_of_the_services(tmp_path):
    (tmp_path / LOGGERS_FILE).write_text("{}")
    drive(as_callbacks(None), run_info(tmp_path, is_resumed=True))
    assert (tmp_path / LOGGERS_FILE).exists()
    drive(as_callbacks(None), run_info(tmp_path))
    assert not (tmp_path / LOGGERS_FILE).exists()


def test_callbacks_and_loggers_import_no_service():
    code = "import deeprec.train.callbacks, deeprec.train.loggers, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"tensorboard", "mlflow", "wandb", "tensorflow", "PIL"}
    assert "torch.utils.tensorboard" not in run.stdout.split()


# -- in the training loop ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return synthetic(num_users=60, num_items=80, num_interactions=900, seed=1)


def trained(data, out: Path | None = None, **options):
    model = create("gmf", factors=4, epochs=4, batch_size=200, lr=0.01)
    return fit(model, data, protocol="full", seed=3, out=out, **options)


def assert_same_weights(first, second) -> None:
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


class FailsAt(Callback):
    def __init__(self, hook: str, at: int) -> None:
        self.hook, self.at, self.calls = hook, at, 0

    def _count(self, hook: str) -> None:
        self.calls += hook == self.hook
        if hook == self.hook and self.calls == self.at:
            raise ValueError("no more paper")

    def on_step(self, step):
        self._count("on_step")

    def on_epoch(self, progress):
        self._count("on_epoch")

    def on_checkpoint(self, path):
        self._count("on_checkpoint")


@pytest.mark.parametrize(("hook", "at", "epoch"), [("on_epoch", 2, 2), ("on_step", 30, 1), ("on_checkpoint", 3, 3)])
def test_after_a_failing_callback_the_run_goes_on_from_its_checkpoint(data, tmp_path, hook, at, epoch):
    with pytest.raises(CallbackError, match=rf"kept up to epoch {epoch} in .*cut: go on with resume=True") as raised:
        trained(data, tmp_path / "cut", callbacks=FailsAt(hook, at))
    assert (raised.value.callback, raised.value.hook) == ("FailsAt", hook)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    resumed = trained(data, tmp_path / "cut", resume=True)
    whole = trained(data)
    assert_same_weights(whole, resumed)
    assert whole.card.metrics == resumed.card.metrics


def test_a_watched_training_gives_the_same_model(data, tmp_path):
    recorder = Recorder()
    watched = trained(data, tmp_path, callbacks=[recorder])
    assert_same_weights(trained(data), watched)
    hooks = [hook for hook, _ in recorder.calls if hook != "on_progress"]
    assert hooks[0] == "on_start"
    assert [hook for hook in hooks if hook in ("on_checkpoint", "on_epoch")] == ["on_checkpoint", "on_epoch"] * 4
    assert recorder.calls[-1] == ("on_end", (watched.card, tmp_path))
    steps = [value for hook, value in recorder.calls if hook == "on_step"]
    epochs = [value for hook, value in recorder.calls if hook == "on_epoch"]
    last = [step for step in steps if step.epoch == 2][-1]
    assert last.examples == last.total == epochs[1].total
    assert [step.step for step in steps if step.epoch == 2] == list(range(1, last.step + 1))
    assert epochs[1].rates == last.rates
    assert [one.metrics for one in epochs] == [
        {name: value for name, value in entry.items() if name in one.metrics}
        for entry, one in zip(watched.history, epochs, strict=True)
    ]


def test_a_callback_stops_the_training_as_patience_would(data):
    class Stops(Callback):
        def on_epoch(self, progress):
            return progress.epoch == 2

    stopped = trained(data, callbacks=Stops())
    assert len(stopped.history) == 2
    assert stopped.card.epoch in (1, 2)
