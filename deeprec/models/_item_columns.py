"""Item vectors made of an item's number and of its columns, for models that read histories; new items have the latter.

    v_i = e_i + W x_i,  x_i the columns of item i as sparse terms and numbers (`Terms`, bags and tokens of length 1)

Items without a training row are known by their columns alone: their e_i is zero, and they stand in no denominator, so
that nothing is learnt from their absence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.contents import ItemContents
from deeprec.contract import Schema
from deeprec.data import DataSchema, Interactions, Terms
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Encoded
from deeprec.data.columns.table import EncodedTable
from deeprec.data.interactions.encoded import encode_tables
from deeprec.device import to_device
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models._item_encoders import (
    ItemEncoders,
    described_encoders,
    load_pretrained,
    plain_columns,
    width_of,
)
from deeprec.models._new_items import growing
from deeprec.models._tower_items import new_items
from deeprec.models._tower_model import refresh_vectors, typed
from deeprec.models._tower_terms import require_data_schema
from deeprec.models.base import Recommender
from deeprec.nn.embedding import Embedding
from deeprec.nn.tower import TermBatch, TermRows, Tower
from deeprec.surroundings import trained

if TYPE_CHECKING:
    from typing_extensions import Self

_ABSENT = -1e4  # logit of an item that is no candidate: its exponential is 0 in every dtype


@dataclass(frozen=True)
class ItemSizes(Schema):
    """What item vectors are built for.

    Attributes:
        item_terms, item_values: of an item's columns: terms, and numbers.
        added_items: items that came after the training: the last ones of num_items.
        encoders: of columns of items, in JSON; the last ones of the item_values are theirs.
    """

    item_terms: int = 0
    item_values: int = 0
    added_items: int = 0
    encoders: tuple[str, ...] = ()


class ItemColumns(Recommender):
    """Base of models with `item_inputs` in their config.

    Parameters, beside the tables of a subclass: `towers.N.terms` and `towers.N.numbers`, W of each table of vectors.
    Buffers, where columns are an input: `item_vectors_kept` [tables, num_items, D], those of all items after training.

    Attributes:
        columns: what the columns of items mean; None: they are not told.
        item_encoder: of the columns; None where they are no input.
    """

    takes: ClassVar[frozenset[str]] = Recommender.takes | {"item_features", "schema"}
    sizes_class: ClassVar[type[Any]] = ItemSizes
    keeps: ClassVar[tuple[str, ...]] = (*Recommender.keeps, "item_encoder")
    schema: ItemSizes | None
    item_vectors_kept: Tensor

    def __init__(self, schema: Schema | None = None, *args: Any, **options: Any) -> None:
        super().__init__(None, *args, **options)
        self.columns: DataSchema | None = None
        self.item_encoder: Encoder | None = None
        self._item_table: EncodedTable | None = None
        self._item_rows: TermRows | None = None
        self._contents: ItemContents | None = None
        self._absent: Tensor | None = None
        self._is_stale = False
        if schema is not None:
            self.build(schema, options.get("generator"))

    @property
    def reads_columns(self) -> bool:
        """Whether columns are an input."""
        return "features" in self.config.item_inputs

    # -- sizes ---------------------------------------------------------------------------------------------------------

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> InteractionTask:
        """Ranking the interactions of `data`.

        Args:
            schema: what the columns of its table of items mean, a `DataSchema`.
        """
        if schema is not None:
            self.columns = require_data_schema(self.name, schema)
        return super().task_for(data, protocol)

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where its columns are an input."""
        return ("item_features",) if self.reads_columns else ()

    def schema_for(self, data: Interactions) -> ItemSizes:
        """Sizes, with an encoder fitted on the columns of all items.

        Raises:
            ValueError: columns that are to be read without a table or a schema of theirs.
        """
        self._item_table = self.item_encoder = None
        if not self.reads_columns:
            return ItemSizes(data.num_users, data.num_items)
        if self.columns is None or self.columns.items is None:
            raise ValueError(
                f"{self.name}: columns of items are an input, so a schema must say what they mean, got none; pass "
                "schema=DataSchema(items=FeatureSchema(...)) to fit, or drop 'features' from item_inputs"
            )
        self._item_table = encode_tables(data, DataSchema(items=self.columns.items)).items
        assert self._item_table is not None
        self.item_encoder = self._item_table.encoder
        terms = self.new_item_terms(len(self._item_table), self._item_table.rows)
        described = described_encoders(self.config.encoders, self.item_encoder, self.config.factors)
        values = terms.num_values + width_of(described)
        return ItemSizes(data.num_users, data.num_items, item_terms=terms.size, item_values=values, encoders=described)

    def new_item_terms(self, count: int, rows: Encoded) -> Terms:
        """Rows of terms of `count` items by their encoded columns."""
        assert self.item_encoder is not None
        return Terms.of_rows(self.item_encoder, rows, plain_columns(self.item_encoder, self.config.encoders), "l2")

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is that of items without columns."""
        if type(sizes) is Schema:
            sizes = ItemSizes(sizes.num_users, sizes.num_items)
        if self.reads_columns and not sizes.item_terms + sizes.item_values:  # type: ignore[attr-defined]
            raise ValueError(
                f"{self.name}: schema must be ItemSizes with item_terms or item_values where item_inputs holds "
                f"'features', got {sizes}; call fit(data)"
            )
        return super().build(sizes, generator)

    def _build_columns(self, schema: ItemSizes, tables: int, std: float, generator: torch.Generator | None) -> None:
        """The maps of columns for so many tables of vectors; does nothing where columns are no input."""
        self._item_rows = self._contents = self._absent = None
        self._is_stale = False
        self.item_encoders = ItemEncoders(schema.encoders, generator) if schema.encoders else None
        self.towers = nn.ModuleList()
        if not self.reads_columns:
            return
        width = self.config.factors
        for _ in range(tables):
            tower = Tower(schema.item_terms, schema.item_values, (width,), "identity", bias=False, sparse=False)
            for weight in tower.parameters():
                nn.init.normal_(weight, 0.0, std, generator=generator)
            self.towers.append(tower)
        self.register_buffer("item_vectors_kept", torch.zeros(tables, schema.num_items, width))
        self.register_state_dict_pre_hook(refresh_vectors)  # type: ignore[no-untyped-call]

    # -- training ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _prepare_columns(self, train: Interactions, tables: list[Embedding]) -> None:
        """Put the terms of all items where the model is; nothing is known of items and terms without a training row."""
        if not self.reads_columns:
            return
        table = self._item_table
        if table is None or len(table) != train.num_items:
            raise ValueError(f"{self.name}: the table of items must be that of the data; call fit(data)")
        self._item_rows = TermRows(self.new_item_terms(len(table), table.rows), self.device)
        if self.item_encoders is not None:
            names = self.item_encoders.names
            self._contents = ItemContents(table.encoder, table.rows, names, train.item_ids.values.to_list())
            load_pretrained(self.item_encoders, self.config.encoders)
        self._is_stale = True
        is_met = torch.from_numpy(train.item_counts() > 0)
        there = to_device(is_met.float(), self.device)
        self._absent = (1 - there) * _ABSENT
        for each in tables:
            each.weight.mul_(there.unsqueeze(1))
        for tower in self.towers:
            assert isinstance(tower, Tower)
            is_used = torch.zeros(tower.size)
            is_used[self._item_rows.batch(torch.nonzero(is_met).flatten()).ids.cpu()] = 1.0
            tower.terms.mul_(to_device(is_used, self.device).unsqueeze(1))

    def _with_columns(self, tables: list[Embedding | None]) -> list[Tensor]:
        """Vectors [num_items, D] of tables, with what their towers make of the columns, while these are at hand."""
        assert self._item_rows is not None
        self._is_stale = self._is_stale or torch.is_grad_enabled()
        rows = self._item_rows.whole()
        if self.item_encoders is not None:
            assert self._contents is not None
            rows = self.item_encoders.with_vectors(rows, self._contents, torch.arange(len(self._item_rows)))
        of_columns = self._vectors_of(rows)
        return [part if table is None else table.weight + part for table, part in zip(tables, of_columns, strict=True)]

    def begin_from(self, weights: Any, data: Any) -> None:
        """As every model.

        Raises:
            ValueError: columns are an input: encoders of other rows know other values.
        """
        if self.reads_columns:
            raise ValueError(
                f"{self.name}: fit_more: vectors of columns do not go on with other encoders; train anew on all rows, "
                "or serve new items by add_items"
            )
        super().begin_from(weights, data)

    def forget_training(self) -> None:
        """Let go of the columns of the training rows: from now on vectors stay as they are."""
        self._refresh()
        self._item_rows = self._contents = self._absent = self._item_table = self._fitted_on = None

    # -- vectors after training ----------------------------------------------------------------------------------------

    def _vector_tables(self) -> list[Embedding | None]:
        """The tables of vectors, one for each of `towers`."""
        raise NotImplementedError

    @torch.no_grad()
    def _refresh(self) -> None:
        """Vectors of all items by the present weights, where the training rows are at hand."""
        if not self._is_stale or self._item_rows is None:
            return
        self._is_stale = False
        self._finish_rows()
        was_training = self.training
        self.eval()
        for number, vectors in enumerate(self._with_columns(self._vector_tables())):
            self.item_vectors_kept[number] = vectors
        self.train(was_training)

    @torch.inference_mode(False)
    def _kept_vectors(self) -> Tensor:
        """[tables, num_items, D], up to date."""
        self._refresh()
        return self.item_vectors_kept

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; vectors come with it, and are computed anew where the training rows are at hand."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._is_stale = self._item_rows is not None
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        result: Self = super()._apply(fn, recurse)
        if self._item_rows is not None and self._item_rows.offsets.device != self.device:
            self._item_rows.move(self.device)
            assert self._absent is not None
            self._absent = to_device(self._absent, self.device)
        return result

    def _vectors_of(self, rows: TermBatch) -> list[Tensor]:
        """[n, D] for each table, of what is known of items by their columns alone."""
        return [tower(typed(rows, tower)) for tower in self.towers]  # type: ignore[arg-type]

    def add_items(self, items: Any) -> Self:
        """Items that came after the training, with vectors from their columns: they are recommended from now on.

        Args:
            items: frame with item_id, none of them known, and the columns of the item table.
        Returns:
            the model; `save` keeps them.
        Raises:
            ValueError: columns are no input, a column that is missing, an id that is known or comes twice.
        """
        add_items(self, items)
        return self


@trained
@torch.no_grad()
def add_items(model: ItemColumns, items: Any) -> None:
    """See `ItemColumns.add_items`."""
    new = new_items(model, items)
    if new is None:
        return
    item_ids, rows = new
    vectors = torch.stack(model._vectors_of(rows))
    with growing(model, item_ids, added_items=model.require_built().added_items + vectors.shape[1]):
        model.item_vectors_kept = torch.cat([model._kept_vectors(), vectors], 1)
        model.forget_training()
