"""Options from the command line (`factors=32`) and from a file, typed by the dataclass they belong to.

A key belongs to the model; `protocol.ties=authors` to the protocol, `data.num_users=500` to the reader of the data.
Files are TOML or JSON with the same keys, `protocol` and `data` being tables. A card.json repeats its run's options.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deeprec
from deeprec._files import read_json, read_regular
from deeprec._suggest import did_you_mean
from deeprec.config import unknown_option
from deeprec.data.reading.errors import naming

DEVICE_HELP = "cpu, cuda or cuda:1; auto takes a GPU where torch sees one."
_SECTIONS = ("protocol", "data")
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Settings:
    """Typed options of one run: of the model, of the protocol, of the data reader."""

    model: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def read_settings(
    config: type[Any], pairs: Sequence[str], file: Path | None = None, *, protocol: type[Any] | None = None
) -> Settings:
    """Options of a run; those of the command line win over those of the file.

    Args:
        config: the model's config dataclass; its annotations type the values.
        pairs: "key=value" words.
        file: .toml or .json, or None.
        protocol: the dataclass that types the protocol's options; None: that of rankings and ratings.
    Raises:
        ValueError: an unknown key (with the closest known one), or a value that does not fit its type.
        FileNotFoundError: no such file.
    """
    settings, protocol = Settings(), protocol or deeprec.evaluate.Protocol
    if file is not None:
        with naming(file):
            for key, value in _read_file(file).items():
                _put(settings, config, protocol, key, value)
    for key, value in _parse_words(pairs).items():
        _put(settings, config, protocol, key, value)
    return settings


def add_parts(settings: Settings, validation: str | None, test: str | None) -> None:
    """Put --validation-data and --test-data among the options of the data; ValueError where these name them too."""
    for name, path in (("validation", validation), ("test", test)):
        if path is not None and name in settings.data:
            raise ValueError(f"option: --{name}-data and data.{name} are the same, got both; leave one out")
        if path is not None:
            settings.data[name] = path


def read_data_options(pairs: Sequence[str] | None, command: str) -> dict[str, Any]:
    """What "data.KEY=VALUE" words say about a file.

    Raises:
        ValueError: a word of another section.
    """
    options: dict[str, Any] = {}
    for key, value in _parse_words(pairs or ()).items():
        section, _, name = key.partition(".")
        if section != "data" or not name:
            raise ValueError(f"{command}: options here say how a file is read, such as data.separator=';', got {key!r}")
        options[name] = _guess(value)
    return options


def _put(settings: Settings, config: type[Any], protocol: type[Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    if not name:
        settings.model[key] = convert(key, value, _type_of(config, key))
    elif section == "protocol":
        settings.protocol[name] = convert(key, value, _type_of(protocol, name))
    elif section == "data":
        settings.data[name] = _guess(value)
    else:
        raise ValueError(f"option: unknown section {section!r} in {key!r}; {did_you_mean(section, _SECTIONS)}")


def _type_of(owner: type[Any], key: str) -> Any:
    """Annotation of one field of a dataclass; ValueError with the closest field otherwise."""
    if key not in (field.name for field in dataclasses.fields(owner)):
        raise ValueError(f"option: unknown key {key!r} for {owner.__name__}; {unknown_option(owner, key)}")
    return typing.get_type_hints(owner)[key]


def _parse_words(pairs: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in pairs:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"option: key=value is needed, got {word!r}; for example epochs=20")
        if key in given:
            raise ValueError(f"option: {key!r} is given twice, as {given[key]!r} and {value!r}; keep one")
        given[key] = value
    return given


def _read_file(path: Path) -> dict[str, Any]:
    """Flat keys of a TOML or JSON file: the tables `protocol` and `data` become "protocol.x" and "data.x"."""
    remedy = "check the path, or correct the file"
    if path.suffix.lower() == ".toml":
        values = _toml(path, read_regular(path, "config", remedy))
    elif path.suffix.lower() == ".json":
        values = read_json(path, "config", remedy)
    else:
        raise ValueError(f"config: a .toml or .json file is needed, got {path.name}")
    if "schema_version" in values and "config" in values:
        values = values["config"]  # a result card
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _toml(path: Path, content: bytes) -> dict[str, Any]:
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        values: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"config: {path} is no TOML: {error}; correct it") from None
    return values


def convert(key: str, value: Any, kind: Any) -> Any:
    """`value`, text or from a file, as the annotated type `kind`.

    Understands int, float, str, bool, tuple[X, ...] ("64,32,16"), Literal, None and unions of them.

    Raises:
        ValueError: it does not fit; names the key, the value and the type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(key, value, kind, arguments)
    if origin is typing.Literal:
        if value in arguments:
            return value
        names = [str(choice) for choice in arguments]
        raise ValueError(f"option {key}: unknown value {value!r}; {did_you_mean(str(value), names)}")
    if origin is tuple:
        parts = _listed(value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(convert(key, part, arguments[0]) for part in parts)
        if len(parts) != len(arguments):
            raise ValueError(f"option {key}: {len(arguments)} values are needed, got {value!r}")
        return tuple(convert(key, part, inner) for part, inner in zip(parts, arguments, strict=True))
    converters: dict[Any, Any] = {int: _int, float: _float, bool: _bool, str: _str, type(None): _none}
    if kind not in converters:
        return value
    try:
        return converters[kind](value)
    except (ValueError, TypeError, OverflowError):
        name = _TYPE_NAMES.get(kind, "none")
        raise ValueError(f"option {key}: {name} is needed, got {value!r}") from None


def _convert_union(key: str, value: Any, kind: Any, arguments: tuple[Any, ...]) -> Any:
    for inner in sorted(arguments, key=lambda a: a is str):  # str takes anything, so it comes last
        try:
            return convert(key, value, inner)
        except ValueError:
            continue
    raise ValueError(f"option {key}: {kind} is needed, got {value!r}")


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        text = value.strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")")
        return [part.strip() for part in text.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 1e4
    if value != int(value):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError
    return text in _TRUE


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _none(value: Any) -> None:
    if value is not None and str(value).lower() not in ("none", "null"):
        raise ValueError


def _guess(value: Any) -> Any:
    """Text as the number, truth value or text it looks like."""
    if not isinstance(value, str):
        return value
    for parse in (int, float):
        try:
            return parse(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value.lower(), value)
