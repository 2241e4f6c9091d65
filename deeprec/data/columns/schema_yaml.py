"""YAML of a feature schema: safe reading that refuses a key given twice, writing with comments."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deeprec._visible import visible
from deeprec.data.reading.errors import check_file, reading

# The parser in C is ten times as fast, but not every PyYAML was built with it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_WIDTH = 2**31 - 1  # never a line end inside a feature


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Plain PyYAML lets the last of two equal keys win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ValueError(f"schema: line {key_node.start_mark.line + 1}: a key must be text, got {key!r}")
            if key in seen:
                raise ValueError(f"schema: line {key_node.start_mark.line + 1}: {key!r} is given twice; drop one")
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def load(source: str | Path, owner: str = "schema") -> Any:
    """What YAML text, or the file of a path, holds; nothing is executed.

    Args:
        owner: beginning of the message of an error.
    """
    text: Any = source
    path = file_of(source)
    if path is not None:
        check_file(path, owner)
        with reading(path, "YAML in UTF-8", function=owner):
            text = path.read_text(encoding="utf-8")
    try:
        # A subclass of SafeLoader: it builds plain lists, mappings, texts and numbers only.
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{owner}: this is not YAML: {' '.join(str(error).split())}; indent with spaces") from None
    except ValueError as error:
        raise ValueError(f"{owner}: {str(error).removeprefix('schema: ')}") from None


def file_of(source: str | Path) -> Path | None:
    """The file that `source` names, or None where it is YAML text itself."""
    is_file = isinstance(source, Path) or ("\n" not in source and source.endswith((".yaml", ".yml")))
    return Path(source) if is_file else None


def dump(values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """`FeatureSchema.as_dict()` as YAML, a feature a line; a note stands above its feature, the others at the end."""
    left = dict(notes)
    lines = [_flow({key: value})[1:-1] for key, value in values.items() if key != "features"]
    lines.append("features:")
    for feature in values["features"]:
        name = next(iter(feature.values()))
        note = left.pop(name, "") if isinstance(name, str) else ""
        lines += [f"  {line}" for line in _comment(note)]
        lines.append(f"  - {_flow(feature)}")
    lines += [line for name, note in left.items() for line in _comment(f"{name}: {note}")]
    return "\n".join(lines) + "\n"


def _flow(values: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        values, Dumper=_SafeDumper, default_flow_style=True, allow_unicode=True, width=_WIDTH, sort_keys=False
    )
    return text.rstrip("\n")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(visible(text), 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
