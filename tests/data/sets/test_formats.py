"""Every raw file of the data folder by the options that `deeprec data formats` tells, against the counts of its README,
where DEEPREC_DATA names that folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench.formats import CLICKS, INTERACTIONS, Raw, words_of
from deeprec.cli.settings import read_data_options
from deeprec.data import load, load_clicks
from deeprec.data.reading.files import is_there

_FOLDER = Path(os.environ.get("DEEPREC_DATA", "none"))


def options_of(raw: Raw) -> dict[str, Any]:
    """What the words of the command say of the reader."""
    if not is_there(_FOLDER / raw.path):
        pytest.skip(f"{raw.path} is not at hand: set DEEPREC_DATA to a folder that holds it")
    words = shlex.split(raw.words.format(data=_FOLDER))
    options = read_data_options([word for word in words if word.startswith("data.")], "test")
    for flag, name in (("--test-data", "test"), ("--on-bad", "on_bad")):
        if flag in words:
            options[name] = words[words.index(flag) + 1]
    return options


@pytest.mark.parametrize("raw", INTERACTIONS, ids=lambda raw: raw.path)
def test_rows_users_and_items_are_those_of_the_readme(raw: Raw) -> None:
    data = load(_FOLDER / raw.path, **options_of(raw))
    assert len(data) + sum(data.repairs.values()) == raw.rows
    assert (data.num_users, data.num_items) == (raw.users, raw.items)


@pytest.mark.parametrize("raw", CLICKS, ids=lambda raw: raw.path)
def test_rows_of_clicks_are_those_of_the_readme(raw: Raw) -> None:
    log = load_clicks(str(_FOLDER / raw.path), **options_of(raw))
    assert sum(log.counts.values()) == raw.rows


def test_a_command_is_shown_as_it_runs() -> None:
    words = words_of("lr", CLICKS[0], Path("DATA"))
    assert words[:4] == ["train", "lr", "--data", "DATA/adult/adult.data"]
    assert "data.positive=>50K,>50K." in words
