"""What comes from data, files or the user is shown as it is written: no markup, no emoji codes, nothing that acts."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from rich.console import Console

from deeprec import doctor
from deeprec._visible import visible
from deeprec.cli import app as app_module
from deeprec.cli.console import command, console, print_error, print_json, say, table

HOSTILE = ["[red]x", "[/]", "[link=http://e.g]y", ":smile:", "a[bold]b[/bold]", "\\[x]", "100%", "{task}", "$x^2_"]
ACTING = {
    "a\x1b[31mb": "a\\x1b[31mb",
    "c\nd": "c\\nd",
    "e\u202ef": "e\\u202ef",
    "g\x9b2Jh": "g\\x9b2Jh",
    "i\rj": "i\\rj",
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


@pytest.mark.parametrize(("word", "shown"), [*((word, word) for word in HOSTILE), *ACTING.items()])
def test_every_way_to_print_shows_words_as_they_are(capsys, word, shown) -> None:
    say(word, (word, "green"))
    console().print(word)
    rows = table(word, "n", title=word, numbers=("n",))
    rows.add_row(word, (word, "red"))
    console().print(rows)
    printed = capsys.readouterr().out
    assert printed.count(shown) == 7
    assert not any(char in printed for char in "\x1b\x9b\u202e\r")
    print_error(ValueError(f"about {word}"))
    assert f"about {visible(' '.join(word.split()))}" in capsys.readouterr().err  # an error is one line
    # The same table on a console of somebody else's, with markup.
    other = Console(file=io.StringIO(), width=400)
    other.print(rows)
    assert other.file.getvalue().count(shown) == 4


def test_very_long_words_are_shortened_and_say_how_long_they_are(capsys) -> None:
    rows = table("id")
    rows.add_row("x" * 1_000_000)
    console().print(rows)
    say("y" * 1_000_000)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").count("(1,000,000 characters)") == 2
    assert len(printed) < 6000


def test_letters_of_all_scripts_stay(capsys) -> None:
    for word in ("Amélie", "千と千尋の神隠し", "👩\u200d👩\u200d👧", "می\u200cخواهم", "naïve\u00adly"):
        say(word)
        assert word in capsys.readouterr().out


def test_a_command_to_paste_leaves_out_what_a_line_cannot_hold() -> None:
    assert command("recommend", "runs/[x] y", "--user", "[red]") == "deeprec recommend 'runs/[x] y' --user '[red]'"
    assert command("recommend", "--user", "a\nb") == "deeprec recommend --user ..."
    assert command("recommend", "--user", "a" * 10_000) == "deeprec recommend --user ..."


def test_json_holds_every_word_and_no_control_character(capsys) -> None:
    words = [*HOSTILE, *ACTING]
    print_json({word: word for word in words})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {word: word for word in words}
    assert "\x1b" not in printed


def test_lines_of_the_log_are_shown_as_they_are() -> None:
    record = logging.LogRecord("deeprec", logging.WARNING, "", 1, "%s: dropped", ("a\x1b[31m\nb[red]",), None)
    line = app_module._Formatter("%(levelname)s: %(message)s").format(record)
    assert line == "WARNING: a\\x1b[31m\\nb[red]: dropped"


@pytest.mark.parametrize("words", [["train", "--[red]x"], ["[/]"], ["--\x1b[31m"], ["data", "[red]"]])
def test_usage_errors_show_what_was_typed(deeprec, words) -> None:
    done = deeprec(*words)
    assert done.exit_code == 2
    assert visible(words[-1]) in done.output
    assert "\x1b" not in done.output


@pytest.mark.parametrize("words", [["train", "[red]x"], ["train", "[/]"], ["models", "[bold]"], ["compare", "[/x]"],
                                   ["evaluate", ":smile:"], ["recommend", "[red]", "--user", "[/]"],
                                   ["predict", "[/]", "--input", "a", "--output", "b"], ["schema", "[red].csv"],
                                   ["train", "gmf", "--data", "[red].csv"], ["train", "gmf", "[/]=1"],
                                   ["train", "deepfm", "--data", "[/].csv"], ["data", "info", "[red]"],
                                   ["data", "fetch", "[red]"]])  # fmt: skip
def test_errors_show_what_was_typed(deeprec, words) -> None:
    done = deeprec(*words)
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith("error: ")
    assert any(word.removesuffix("=1") in done.stderr for word in words if any(c in word for c in "[:"))


def _ratings(path: Path) -> Path:
    rng = random.Random(0)
    users = [*HOSTILE, *ACTING, *(f"u{n}" for n in range(40))]
    items = [*HOSTILE, *ACTING, *(f"i{n}" for n in range(40))]
    pairs = sorted({(rng.choice(users), rng.choice(items)) for _ in range(2500)})
    rng.shuffle(pairs)
    frame = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    frame.with_columns(rating=pl.Series([float(n % 5 + 1) for n in range(len(pairs))])).write_parquet(path)
    return path


def test_a_recommender_over_such_ids_and_files_is_trained_shown_and_measured(tmp_path, deeprec) -> None:
    folder = tmp_path / "[red]runs[b]"
    folder.mkdir()
    data = _ratings(folder / "[bold]:smile:.parquet")
    out = folder / "[link=x]out"
    done = deeprec("train", "gmf", "--data", data, "--protocol", "full", "--out", out, "epochs=1", "factors=4")
    assert done.exit_code == 0, done.output
    for expected in (f"{data.name}: ", f"out       {out}", f"Written to {out}", "GMF".lower() + " epochs=1 factors=4"):
        assert expected in done.output
    for user in [*HOSTILE, *ACTING]:
        done = deeprec("recommend", out, "--user", user, "-k", 60)
        assert done.exit_code == 0, done.output
        assert f"For user {visible(user)}" in done.output
        assert "\x1b" not in done.output
        rows = json.loads(deeprec("recommend", out, "--user", user, "-k", 60, "--json").stdout)
        assert all(visible(row["item_id"]) in done.output for row in rows)
        assert {row["user_id"] for row in rows} == {user}
    assert data.name in deeprec("evaluate", out).output
    assert data.name in deeprec("compare", out).output
    assert str(data) in deeprec("data", "info", data).output
    assert (out / "curves.png").stat().st_size > 1000


def test_a_click_model_over_such_columns_is_drafted_trained_and_measured(tmp_path, deeprec) -> None:
    names = [*HOSTILE, "a\x1b[31mb", "e\u202ef"]
    rng = random.Random(0)
    frame = pl.DataFrame({"label": [rng.randrange(2) for _ in range(600)],
                          **{name: [rng.choice(names) for _ in range(600)] for name in names}})  # fmt: skip
    data = tmp_path / "[red]$\\frac{[b].parquet"
    frame.write_parquet(data)
    drafted = deeprec("schema", data)
    assert drafted.exit_code == 0, drafted.output
    assert "\x1b" not in drafted.output
    assert [next(iter(one.values())) for one in yaml.safe_load(drafted.stdout)["features"]] == names
    schema, out = tmp_path / "[b].yaml", tmp_path / "[b]out"
    written = deeprec("schema", data, "--output", schema)
    assert f"written {schema}; correct it" in written.output
    done = deeprec("train", "lr", "--data", data, "--schema", schema, "--out", out, "epochs=1")
    assert done.exit_code == 0, done.output
    assert f"data      {data}" in done.output
    assert str(data) in deeprec("evaluate", out).output
    scores = tmp_path / "[red].csv"
    assert f"written to {scores}" in deeprec("predict", out, "--input", data, "--output", scores).output


def test_doctor_prints_the_whole_hint(monkeypatch) -> None:
    facts = doctor.report()
    hint = "not installed; pip install 'deeprec-torch[gpu]'"
    facts["triton"] = {"installed": False, "interpreter": False, "reason": hint}
    facts["data"]["searched"] = ["/data/[red]"]
    for options in ({}, {"markup": False}):
        screen = Console(file=io.StringIO(), width=400, **options)
        screen.print(doctor.render(facts))
        assert hint in screen.file.getvalue()
        assert "/data/[red]" in screen.file.getvalue()
    assert "\x1b[32m" in _coloured(doctor.render(facts)) or "reference" in _coloured(doctor.render(facts))


def _coloured(renderable) -> str:
    screen = Console(file=io.StringIO(), width=400, force_terminal=True, color_system="standard")
    screen.print(renderable)
    return screen.file.getvalue()


def test_no_command_line_file_uses_markup() -> None:
    """One mechanism: words go through `text`, so nothing imports rich's own markup or makes a console or table."""
    folder = Path(app_module.__file__).parent
    for path in [*folder.glob("*.py"), Path(doctor.__file__)]:
        source = path.read_text(encoding="utf-8")
        assert "rich.markup" not in source, path
        if path.name != "console.py":
            assert not any(word in source for word in ("rich.table", "rich.console import Console", "[/]")), path


def test_a_terminal_of_another_encoding_is_no_reason_for_an_error() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "deeprec", "models", "千[red]"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert run.returncode == 2
    assert "\\u5343[red]" in run.stderr
    assert "Traceback" not in run.stderr
