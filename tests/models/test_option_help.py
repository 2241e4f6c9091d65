"""Every option says what it means wherever people look for it: help(), signatures and `deeprec models NAME`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar

import pytest

from deeprec.config import TrainConfig, taken_options
from deeprec.models import Popularity, Recommender
from deeprec.option_help import options_of
from deeprec.registry import config_class, model_class, names


@pytest.mark.parametrize("name", names())
def test_every_option_has_a_meaning_and_no_unused_one_is_shown(name: str) -> None:
    kind = config_class(name)
    options = options_of(kind)
    assert [option.name for option in options] == taken_options(kind)
    for option in options:
        assert len(option.meaning) > 10, f"{name}: say what {option.name} means in the Attributes of {kind.__name__}"
        assert not option.meaning.endswith(".")


@pytest.mark.parametrize("name", names())
def test_help_lists_the_options_with_types_and_defaults(name: str) -> None:
    kind = model_class(name)
    parameters = inspect.signature(kind).parameters
    documented = inspect.getdoc(kind) or ""
    fields = {field.name: field for field in dataclasses.fields(kind.config_class)}
    for option in taken_options(kind.config_class):
        assert parameters[option].default == fields[option].default
        assert parameters[option].annotation == fields[option].type
        assert parameters[option].kind == inspect.Parameter.KEYWORD_ONLY
        assert f"\n    {option} (" in documented
    assert not {*fields} - {*taken_options(kind.config_class)} & {*parameters}
    assert max(map(len, documented.splitlines())) <= 120


def test_docstrings_are_read_however_their_section_begins() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config(TrainConfig):
        """Options of a toy.

        Attributes: those of all models, and
            width, height: of the toy, in
                cells, >= 1.
            colour: "red": or blue.
        """

        width: int = 1
        height: int = 2
        colour: str = "red"

    meanings = {option.name: option.meaning for option in options_of(Config)}
    assert meanings["width"] == meanings["height"] == "of the toy, in cells, >= 1"
    assert meanings["colour"] == '"red": or blue'
    assert meanings["lr"] == "learning rate, > 0"


def test_a_class_with_an_init_of_its_own_keeps_its_signature() -> None:
    class Mine(Popularity):
        """A popularity that is told a number."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    class Options(Popularity):
        """One with an option more in front."""

        def __init__(self, number: int, **options: Any) -> None:
            super().__init__(**options)

    class Sub(Recommender):
        name: ClassVar[str] = "sub"

    assert list(inspect.signature(Mine).parameters) == ["number"]
    assert list(inspect.signature(Options).parameters)[:2] == ["number", "refit"]
    assert Mine(3).number == 3
    assert Mine.__doc__ == "A popularity that is told a number."
    assert "schema" in inspect.signature(Sub).parameters
