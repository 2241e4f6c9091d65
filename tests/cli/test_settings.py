from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, Optional

import pytest

from deeprec.cli.settings import convert, read_settings


@dataclass(frozen=True)
class _Config:
    epochs: int = 1
    lr: float = 0.1
    refit: bool = False
    kind: Literal["a", "b"] = "a"
    layers: tuple[int, ...] = ()
    name: str = ""
    limit: int | None = None
    share: Optional[float] = None  # noqa: UP045


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs=20", 20),
        ("epochs=1e3", 1000),
        ("lr=1e-3", 0.001),
        ("lr=1", 1.0),
        ("refit=yes", True),
        ("refit=False", False),
        ("kind=b", "b"),
        ("layers=64,32,16", (64, 32, 16)),
        ("layers=[64, 32]", (64, 32)),
        ("layers=", ()),
        ("name=a=b", "a=b"),
        ("limit=none", None),
        ("limit=3", 3),
        ("share=0.5", 0.5),
    ],
)
def test_text_becomes_the_annotated_type(text, expected) -> None:
    value = next(iter(read_settings(_Config, [text]).model.values()))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs=3", "unknown key 'epohcs' for _Config; did you mean 'epochs'"),
        ("epochs=x", "option epochs: a whole number is needed, got 'x'"),
        ("epochs=1.5", "a whole number is needed"),
        ("epochs=inf", "a whole number is needed"),
        ("lr=fast", "a number is needed"),
        ("refit=maybe", "true or false is needed"),
        ("kind=c", "unknown value 'c'"),
        ("layers=64,x", "option layers: a whole number is needed, got 'x'"),
        ("limit=many", "option limit"),
        ("epochs", "key=value is needed, got 'epochs'"),
        ("=3", "key=value is needed"),
        ("protocol.cutofs=5", "did you mean 'cutoffs'"),
        ("protocl.cutoffs=5", "unknown section 'protocl'.*did you mean 'protocol'"),
    ],
)
def test_bad_option_is_refused_with_a_remedy(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(_Config, [text])


def test_option_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="given twice"):
        read_settings(_Config, ["epochs=1", "epochs=2"])


def test_sections_reach_protocol_and_data() -> None:
    settings = read_settings(
        _Config, ["protocol.cutoffs=5,10", "protocol.candidates=9", "data.num_users=50", "data.name=x"]
    )
    assert settings.protocol == {"cutoffs": (5, 10), "candidates": 9}
    assert settings.data == {"num_users": 50, "name": "x"}
    assert read_settings(_Config, ["protocol.candidates=all"]).protocol == {"candidates": "all"}


def test_command_line_wins_over_the_file(tmp_path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"epochs": 5, "layers": [8, 4], "protocol": {"cutoffs": [5]}}))
    settings = read_settings(_Config, ["epochs=7"], path)
    assert settings.model == {"epochs": 7, "layers": (8, 4)}
    assert settings.protocol == {"cutoffs": (5,)}


def test_toml_file_is_read(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("lr = 1\nrefit = true\nlayers = [8, 4]\n[data]\nnum_users = 50\n")
    settings = read_settings(_Config, [], path)
    assert settings.model == {"lr": 1.0, "refit": True, "layers": (8, 4)}
    assert settings.data == {"num_users": 50}


def test_card_repeats_the_options_of_its_run(tmp_path) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"schema_version": 1, "config": {"epochs": 3}, "metrics": {"hr@10": 1}}))
    assert read_settings(_Config, [], path).model == {"epochs": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "must be JSON"),
        ("run.json", "[1]", "must hold a JSON object"),
        ("run.toml", "epochs ==", "no TOML"),
        ("run.yaml", "epochs: 3", "a .toml or .json file is needed"),
        ("run.json", '{"epochs": "many"}', "a whole number is needed"),
        ("run.json", '{"name": 3}', "text is needed, got 3"),
    ],
)
def test_bad_file_is_a_clear_error(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_settings(_Config, [], tmp_path / name)


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        read_settings(_Config, [], tmp_path / "nowhere.toml")


def test_truth_value_is_no_number() -> None:
    with pytest.raises(ValueError, match="a whole number"):
        convert("epochs", True, int)


def test_an_option_that_is_wrong_in_a_file_names_the_file(tmp_path) -> None:
    (tmp_path / "run.json").write_text('{"epochz": 3}')
    with pytest.raises(ValueError, match=r"unknown key 'epochz' .*did you mean 'epochs'.*run\.json\)"):
        read_settings(_Config, [], tmp_path / "run.json")
