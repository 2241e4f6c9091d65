"""`deeprec data`: lists, describes, fetches, and says what to do next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec import data
from deeprec.cli.data import app

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def _no_other_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEEPREC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n")
    return tmp_path


def test_list_shows_what_is_found_and_how_to_get_the_rest(folder: Path) -> None:
    result = run(app, ["list", "--data-dir", str(folder)])
    assert result.exit_code == 0
    assert "synthetic" in result.output
    assert "deeprec data fetch ml-100k" in result.output
    facts = {row["name"]: row["found_in"] for row in json.loads(run(app, ["list", "--json"]).output)}
    assert facts["ml-1m"] is None
    rows = json.loads(run(app, ["list", "--json", "--data-dir", str(folder)]).output)
    assert {row["name"]: row["found_in"] for row in rows}["ml-1m"] == str(folder / "ml-1m")


def test_info_counts_what_is_there(folder: Path) -> None:
    result = run(app, ["info", "ml-1m", "--data-dir", str(folder), "--json"])
    facts = json.loads(result.output)
    assert (facts["interactions"], facts["users"], facts["items"]) == (3, 2, 2)
    assert facts["sha256"] == data.load("ml-1m", folder).sha256
    assert "interactions per user" in run(app, ["info", str(folder / "ml-1m" / "ratings.dat")]).output


def test_info_of_what_is_not_there_says_how_to_get_it() -> None:
    result = run(app, ["info", "ml-1m"])
    assert result.exit_code == 0
    assert "Not found here. To get it: deeprec data fetch ml-1m" in result.output


def test_a_wrong_name_is_one_line_and_a_status() -> None:
    for command in ("info", "fetch"):
        result = run(app, [command, "ml1m"])
        assert result.exit_code == 1
        assert "did you mean 'ml-1m'?" in result.output
        assert "Traceback" not in result.output


def test_fetch_says_the_terms_what_it_did_and_what_is_next(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def pretend(name: str, data_dir: Path | None, **options: object) -> list[Path]:
        options["progress"]("ml-1m.zip", 10, 10)
        return [folder / name]

    monkeypatch.setattr(data, "fetch", pretend)
    result = run(app, ["fetch", "ml-1m"])
    assert result.exit_code == 0
    for said in ("Terms of ml-1m: GroupLens", "checked", "Next: deeprec data info ml-1m"):
        assert said in result.output
