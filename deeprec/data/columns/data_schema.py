"""What the columns of a whole data set mean: of its users, its items and its events.

domain: shop
users:
  features:
    - categorical: city
items:
  features:
    - text: title
      tokens: trigrams
    - vector: visual
      width: 128
events:
  label: clicked
  features:
    - categorical: device
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deeprec._suggest import did_you_mean
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.schema_yaml import dump, file_of, load
from deeprec.data.reading.errors import naming

PARTS = ("users", "items", "events")


@dataclass(frozen=True)
class DataSchema:
    """The columns of users, of items and of events, each by a schema of its own; a part without columns is None.

    Attributes:
        users, items: of the tables of users and items, which have no label: one that is named is dropped.
        events: of the rows of a log.
        user_id, item_id: columns of the ids, in the tables and in the events.
        domain: column of the events that says which domain's items a row is about; None: there is one domain.
    """

    users: FeatureSchema | None = None
    items: FeatureSchema | None = None
    events: FeatureSchema | None = None
    user_id: str = "user_id"
    item_id: str = "item_id"
    domain: str | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            schema = getattr(self, part)
            if schema is not None and not isinstance(schema, FeatureSchema):
                raise TypeError(f"DataSchema: {part} must be a FeatureSchema or None, got {type(schema).__name__}")
        for part in ("users", "items"):
            schema = getattr(self, part)
            if schema is not None:
                unlabelled = replace(schema, label=None, positive_from=None, positive_values=(), group=None)
                object.__setattr__(self, part, unlabelled)
        for option in ("user_id", "item_id", "domain"):
            value = getattr(self, option)
            if not (isinstance(value, str) and value) and not (option == "domain" and value is None):
                raise TypeError(f"DataSchema: {option} must be the name of a column, got {value!r}")
        if self.users is None and self.items is None and self.events is None:
            raise ValueError("DataSchema: columns of users, items or events are required, got none")

    def __str__(self) -> str:
        return self.to_yaml()

    def as_dict(self) -> dict[str, Any]:
        """JSON- and YAML-ready, defaults left out; `from_dict` takes it back."""
        return self._names() | {part: schema.as_dict() for part, schema in self._parts()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSchema:
        """The schema that `as_dict` or a YAML file describes.

        Raises:
            ValueError, TypeError: an unknown key (with the nearest), a wrong value; the message names part and feature.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"schema: a mapping with the keys {', '.join(PARTS)} is required, got {values!r:.80}")
        known = (*PARTS, "user_id", "item_id", "domain")
        for key in values:
            if key not in known:
                raise ValueError(f"schema: unknown key {key!r}; {did_you_mean(str(key), known)}")
        made: dict[str, Any] = dict(values)
        for part in PARTS:
            if made.get(part) is not None:
                try:
                    made[part] = FeatureSchema.from_dict(made[part])
                except (ValueError, TypeError) as error:
                    raise type(error)(f"{part}: {error}") from None
        return cls(**made)

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back, with the notes of the parts as comments."""
        names = "".join(f"{name}: {value!r}\n" for name, value in self._names().items())
        parts = [
            f"{part}:\n{textwrap.indent(dump(schema.as_dict(), schema.notes), '  ')}" for part, schema in self._parts()
        ]
        return names + "".join(parts)

    @classmethod
    def from_yaml(cls, source: str | Path) -> DataSchema:
        """A schema from a YAML file or from YAML text, as `FeatureSchema.from_yaml` tells them apart.

        Raises:
            FileNotFoundError. ValueError, TypeError: not YAML, a key twice, an unknown key or a wrong value.
        """
        path = file_of(source)
        if path is None:
            return cls.from_dict(load(source))
        with naming(path):
            return cls.from_dict(load(path))

    def _names(self) -> dict[str, Any]:
        given = {"user_id": self.user_id, "item_id": self.item_id, "domain": self.domain}
        return {
            name: value for name, value in given.items() if value not in (name, None) or (name == "domain" and value)
        }

    def _parts(self) -> list[tuple[str, FeatureSchema]]:
        return [(part, schema) for part in PARTS if (schema := getattr(self, part)) is not None]
