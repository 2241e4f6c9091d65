"""JSON values as the types that a program declares: dataclasses, numbers, lists; every fault is named by its key."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from deeprec._suggest import did_you_mean

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_LARGEST = 2**63 - 1


class RecordError(ValueError):
    """A value that is not of its type; the message begins with its key, such as "schema.num_users must be ..."."""


def typed(kind: Any, value: Any, key: str) -> Any:
    """`value`, as JSON gave it, as the annotated type `kind`.

    Args:
        kind: Any, int, float, bool, str, None, Literal, unions of these, tuple[X, ...], tuple[X, Y], list[X],
            Sequence[X], dict[str, X], Mapping[str, X] or a dataclass with such fields. Integers lie within 64 bits,
            numbers are not NaN.
        key: what the value is called in messages; "" for the whole of a file.
    Raises:
        RecordError: it is of another type, lacks a field or has one too many, or the dataclass refuses it.
    """
    if kind is Any:
        return value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(inner, value, key)
    if origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in inner):
            raise _wrong(key, f"one of {', '.join(map(repr, inner))}", value)
        return value
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(origin, inner, value, key)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _wrong(key, "an object", value)
        return {name: typed(inner[1], part, _below(key, name)) for name, part in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type[Any], kind), value, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = is_number and not math.isnan(value) if kind is float else type(value) is kind
    if not fits or (isinstance(value, int) and abs(value) > _LARGEST):
        raise _wrong(key, _WORDS[kind], value)
    return float(value) if kind is float else value


def check_fields(kind: type[Any], values: Any, key: str, *, optional: bool = False) -> dict[str, Any]:
    """The values of a dataclass by field, each of its type, without making one.

    Args:
        optional: fields with a default may be missing; those with metadata {"optional": True} always may.
    Raises:
        RecordError: as `typed`.
    """
    if not isinstance(values, dict):
        raise _wrong(key, "an object", values)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name in values:
        if name not in fields:
            raise RecordError(f"{_below(key, name)} is unknown; {did_you_mean(name, fields)}")
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        may_lack = has_default and (optional or field.metadata.get("optional", False))
        if name not in values and not may_lack:
            raise RecordError(f"{_below(key, name)} is missing")
    hints = typing.get_type_hints(kind)
    return {name: typed(hints[name], value, _below(key, name)) for name, value in values.items()}


def _dataclass(kind: type[Any], value: Any, key: str) -> Any:
    fields = check_fields(kind, value, key)
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise RecordError(f"{key or 'the whole'} is wrong: {error}") from None


def _union(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return typed(kind, value, key)
            except RecordError as error:
                errors.append(error)
    raise errors[0]


def _sequence(origin: Any, inner: tuple[Any, ...], value: Any, key: str) -> Any:
    is_any_length = origin is not tuple or inner[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (is_any_length or len(value) == len(inner)):
        raise _wrong(key, "a list" if is_any_length else f"a list of {len(inner)}", value)
    kinds = [inner[0]] * len(value) if is_any_length else inner
    parts = [typed(kind, part, f"{key}[{at}]") for at, (kind, part) in enumerate(zip(kinds, value, strict=True))]
    return tuple(parts) if origin is tuple else parts


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _wrong(key: str, expected: str, value: Any) -> RecordError:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"
    return RecordError(f"{key or 'the whole'} must be {expected}, got {text if len(text) <= 80 else text[:77] + '...'}")
