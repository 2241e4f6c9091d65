"""What the towers of a model read: sizes, encoders of columns, and the terms of users and items made by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deeprec.contract import FROM_COLUMNS, RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import DataSchema, Interactions, Terms
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Encoded
from deeprec.data.columns.terms import joined
from deeprec.data.interactions.encoded import EncodedTables, encode_tables
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models._item_encoders import ItemEncoders, described_encoders, plain_columns, width_of
from deeprec.models._tower_config import TowerConfig
from deeprec.models.base import Recommender
from deeprec.nn.tower import Tower

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class TowerSizes(Schema):
    """What the towers are built for.

    Attributes:
        user_terms, user_values: columns of a user's terms, but for the history, and numbers.
        item_terms, item_values: the same of an item.
        added_items: items that came after the training: the last ones of num_items, which no history holds.
        encoders: of columns of items, in JSON; the last ones of the item_values are theirs.
    """

    user_terms: int = 0
    user_values: int = 0
    item_terms: int = 0
    item_values: int = 0
    added_items: int = 0
    encoders: tuple[str, ...] = ()


class TowerTerms(Recommender):
    """Base of `TowerModel`: its parameters, and the terms that they are multiplied with.

    Buffers: `vectors_of_users` [num_users, D] and `vectors_of_items` [num_items, D], with cosines of length 1;
    `user_idf` and `item_idf`, factors of the terms of columns.

    Attributes:
        columns: what the columns of users and items mean; None: they are not told.
        user_encoder, item_encoder: of the columns; None where a tower reads none.
    """

    config_class: ClassVar[type[TowerConfig]] = TowerConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS, FROM_COLUMNS, RETRIEVES}
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"user_features", "item_features", "schema"}
    sizes_class: ClassVar[type[Any]] = TowerSizes
    keeps: ClassVar[tuple[str, ...]] = (*Recommender.keeps, "user_encoder", "item_encoder")
    trains_on_whole_rows: ClassVar[bool] = True
    config: TowerConfig
    schema: TowerSizes | None
    user_tower: Tower
    item_tower: Tower
    vectors_of_users: Tensor
    vectors_of_items: Tensor
    user_idf: Tensor
    item_idf: Tensor

    def __init__(self, schema: Schema | None = None, *args: Any, **options: Any) -> None:
        super().__init__(None, *args, **options)
        self.columns: DataSchema | None = None
        self._tables = EncodedTables(None, None)
        self.user_encoder: Encoder | None = None
        self.item_encoder: Encoder | None = None
        if schema is not None:
            self.build(schema, options.get("generator"))

    # -- what a subclass may say otherwise -----------------------------------------------------------------------------

    def user_terms(self, data: Interactions) -> Terms:
        """A row of terms for each user, but for the history; `data` holds the training rows, or, for sizes, all."""
        return self._terms_of("user", data)

    def item_terms(self, data: Interactions) -> Terms:
        """A row of terms for each item."""
        return self._terms_of("item", data)

    def new_user_terms(self, count: int, rows: Encoded | None = None) -> Terms:
        """Rows of terms of `count` users who came later, by their encoded columns; None: nothing is known of these."""
        sizes = self.require_built()
        of_ids = Terms.of_entries([], [], None, count, sizes.num_users if "id" in self.config.user_inputs else 0)
        if self.user_encoder is None:
            return of_ids
        there = self.user_encoder.unknown(count) if rows is None else rows
        return joined(of_ids, self._weighted("user", self.user_encoder, there))

    def new_item_terms(self, count: int, rows: Encoded) -> Terms:
        """Rows of terms of `count` items who came later, by their encoded columns."""
        sizes = self.require_built()
        ids = (sizes.num_items - sizes.added_items) * ("id" in self.config.item_inputs)
        assert self.item_encoder is not None
        return joined(Terms.of_entries([], [], None, count, ids), self._weighted("item", self.item_encoder, rows))

    def _build_encoders(self, sizes: TowerSizes, generator: torch.Generator | None) -> None:
        self.item_encoders = ItemEncoders(sizes.encoders, generator) if sizes.encoders else None

    def _build_towers(self, sizes: TowerSizes, generator: torch.Generator | None) -> None:
        self.user_tower = self._tower(self._user_size(sizes), sizes.user_values, generator)
        self.item_tower = self._tower(sizes.item_terms, sizes.item_values, generator)

    # -- sizes and terms -----------------------------------------------------------------------------------------------

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking the interactions of `data`.

        Args:
            schema: what the columns of its tables of users and items mean, a `DataSchema`.
        """
        if schema is not None:
            self.columns = require_data_schema(self.name, schema)
        return super().task_for(data, protocol)

    def features_taken(self) -> tuple[str, ...]:
        """The tables whose columns are read."""
        sides = (("user", self.config.user_inputs), ("item", self.config.item_inputs))
        return tuple(f"{side}_features" for side, inputs in sides if "features" in inputs)

    def schema_for(self, data: Interactions) -> TowerSizes:
        """Sizes, with encoders fitted on the columns of all users and items.

        Raises:
            ValueError: columns that are to be read without a table or a schema of theirs.
        """
        self._encode_tables(data)
        users, items = self.user_terms(data), self.item_terms(data)
        described: tuple[str, ...] = ()
        if self.item_encoder is not None:
            described = described_encoders(self.config.encoders, self.item_encoder, self.config.factors)
        return TowerSizes(
            data.num_users,
            data.num_items,
            user_terms=users.size,
            user_values=users.num_values,
            item_terms=items.size,
            item_values=items.num_values + width_of(described),
            encoders=described,
        )

    def _encode_tables(self, data: Interactions) -> None:
        """The columns that the towers read, and their encoders."""
        parts = [name.partition("_")[0] + "s" for name in self.features_taken()]
        for part in parts:
            if getattr(self.columns, part, None) is None:
                raise ValueError(
                    f"{self.name}: columns of {part} are an input, so a schema must say what they mean, got none; pass "
                    f"schema=DataSchema({part}=FeatureSchema(...)) to fit, or drop 'features' from the inputs"
                )
        taken = {part: getattr(self.columns, part) for part in parts}
        self._tables = encode_tables(data, DataSchema(**taken)) if taken else EncodedTables(None, None)
        self.user_encoder, self.item_encoder = (None if each is None else each.encoder for each in self._tables)

    def _terms_of(self, side: str, data: Interactions) -> Terms:
        is_user = side == "user"
        inputs = self.config.user_inputs if is_user else self.config.item_inputs
        count = data.num_users if is_user else data.num_items
        parts = [Terms.of_ids(count)] if "id" in inputs else []
        if "features" in inputs:
            table = self._tables[0 if is_user else 1]
            if table is None or len(table) != count:
                raise ValueError(f"{self.name}: the table of {side}s must be that of the data; call fit(data)")
            parts.append(self._weighted(side, table.encoder, table.rows))
        return joined(*parts) if parts else Terms.of_entries([], [], None, count, 0)

    def _weighted(self, side: str, encoder: Encoder, rows: Encoded) -> Terms:
        """Terms of encoded rows, by the idf of training where there is one."""
        idf = getattr(self, f"{side}_idf", None) if self.config.weighting == "tf-idf" else None
        factors = None if idf is None or not len(idf) else idf.cpu().numpy()
        return Terms.of_rows(encoder, rows, self._columns_of(side, encoder), self.config.weighting, factors)

    def _columns_of(self, side: str, encoder: Encoder) -> list[str] | None:
        """The inputs of a table that are terms and numbers; None: all."""
        return plain_columns(encoder, self.config.encoders) if side == "item" else None

    def _fit_idf(self, train: Interactions) -> None:
        """Factors of terms by the users and items with a training row."""
        if self.config.weighting != "tf-idf":
            return
        for side, table, met in zip(("user", "item"), self._tables, (train.users, train.items), strict=True):
            if table is not None:
                is_counted = np.bincount(met, minlength=len(table)) > 0
                factors = Terms.of_table(table, self._columns_of(side, table.encoder)).idf(is_counted)
                getattr(self, f"{side}_idf").copy_(torch.from_numpy(factors))

    # -- parameters ----------------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the towers; a plain `Schema` is that of towers over ids and histories alone."""
        if type(sizes) is Schema:
            if self.features_taken():
                raise ValueError(f"{self.name}: schema must be TowerSizes where columns are an input; call fit(data)")
            counts = {"user": sizes.num_users, "item": sizes.num_items}
            inputs = {"user": self.config.user_inputs, "item": self.config.item_inputs}
            terms = {f"{side}_terms": counts[side] * ("id" in inputs[side]) for side in counts}
            sizes = self.sizes_class(sizes.num_users, sizes.num_items, **terms)
        return super().build(sizes, generator)

    def _build(self, schema: TowerSizes, generator: torch.Generator | None) -> None:
        width = self.config.factors
        self._build_towers(schema, generator)
        self._build_encoders(schema, generator)
        self.register_buffer("vectors_of_users", torch.zeros(schema.num_users, width))
        self.register_buffer("vectors_of_items", torch.zeros(schema.num_items, width))
        is_weighted = self.config.weighting == "tf-idf"
        for side, terms, ids in (
            ("user", schema.user_terms, schema.num_users * ("id" in self.config.user_inputs)),
            ("item", schema.item_terms, schema.num_items * ("id" in self.config.item_inputs)),
        ):
            self.register_buffer(f"{side}_idf", torch.zeros(terms - ids if is_weighted and terms > ids else 0))

    def _tower(self, size: int, values: int, generator: torch.Generator | None) -> Tower:
        """A tower by the config."""
        config = self.config
        fan_in = config.fan_in or None
        activations = (config.activation, config.last_activation)
        return Tower(size, values, config.widths, *activations, fan_in=fan_in, generator=generator)

    @property
    def reads_items(self) -> bool:
        """Whether the history is an input of the user's tower."""
        return "history" in self.config.user_inputs

    @property
    def _num_trained(self) -> int:
        """Items that were there in training."""
        sizes = self.require_built()
        return int(sizes.num_items - sizes.added_items)

    def _user_size(self, sizes: TowerSizes) -> int:
        """Terms of a user with those of the history."""
        return sizes.user_terms + (sizes.num_items - sizes.added_items) * self.reads_items


def require_data_schema(model: str, schema: Any) -> DataSchema:
    """The schema of the columns of users and items; TypeError for anything else."""
    if not isinstance(schema, DataSchema):
        raise TypeError(
            f"{model}: schema must be a DataSchema, with the columns of users and items, got {type(schema).__name__}; "
            "pass DataSchema(users=..., items=...)"
        )
    return schema
