"""Sequences that share the table of a field in click models: pooled, or weighed by the row's own id (target attention).

A sequence of the items that a user met and the item of the row are looked up in one table. `SharedTables` gives a
vector for each such field and each such sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from deeprec.data.columns.inputs import Field, SequenceField
from deeprec.nn import EmbeddingCollection, Table
from deeprec.nn.tables import table_names

if TYPE_CHECKING:
    from deeprec.batches.log import LogBatch

# Of the first sequence of a group and the width E: a layer as those of `deeprec.nn.target_attention`.
Attend: TypeAlias = Callable[[SequenceField, int], nn.Module]


def groups_of(sequences: Sequence[SequenceField]) -> list[list[SequenceField]]:
    """The sequences by what they are parallel to, each group in the order given."""
    groups: dict[str, list[SequenceField]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.parallel_to or sequence.name, []).append(sequence)
    return list(groups.values())


class SharedTables(nn.Module):
    """Vectors of fields and of the sequences in their tables: all fields first, then all sequences.

    Without `attend` a sequence is the sum or mean of its entries, one fused call for all. With it the sequences of a
    group, which are parallel, are weighed together: entry j is the key [e_j of each sequence], the query is [v of the
    fields that they share the tables of], and the result is taken apart again into a vector for each sequence.

    Args:
        fields: number of the column of ids to the field, at least one.
        sequences: with a vocabulary that is one of the fields, at least one.
        dim: D, width of the tables.
        init_std: of the initial rows.
        generator: source of the initial weights.
        sparse: gradients of the touched rows only.
        attend: makes the attention of each group.
    """

    def __init__(
        self,
        fields: Mapping[int, Field],
        sequences: Sequence[SequenceField],
        dim: int,
        init_std: float,
        generator: torch.Generator | None,
        *,
        sparse: bool = True,
        attend: Attend | None = None,
    ) -> None:
        super().__init__()
        self.columns, self.dim = {field.name: number for number, field in fields.items()}, dim
        self.sequences = tuple(sequences)
        self.of = {name: [s.name for s in sequences if s.vocabulary == name] for name in self.columns}
        self.groups = groups_of(sequences) if attend is not None else []
        self.attention = nn.ModuleList()
        names = table_names(list(self.columns))
        if attend is None:
            tables = [
                Table(n, field.size, dim, features=(field.name, *self.of[field.name]))
                for n, field in zip(names, fields.values(), strict=True)
            ]
            self.collections = nn.ModuleList([EmbeddingCollection(tables, sparse=sparse)])
        else:
            self.collections = nn.ModuleList(
                EmbeddingCollection([Table(n, field.size, dim)], sparse=sparse)
                for n, field in zip(names, fields.values(), strict=True)
            )
            self.attention.extend(attend(group[0], len(group) * dim) for group in self.groups)
        with torch.no_grad():
            for weight in self.weights():
                weight.normal_(0.0, init_std, generator=generator)

    def weights(self) -> list[nn.Parameter]:
        """The tables, in the order of the fields."""
        return [weight for each in self.collections for weight in each.weights()]  # type: ignore[operator]

    def readers(self) -> list[tuple[nn.Parameter, tuple[str, ...]]]:
        """Each table, and the inputs that look up in it."""
        names = [(name, *sequences) for name, sequences in self.of.items()]
        return list(zip(self.weights(), names, strict=True))

    def forward(self, batch: LogBatch) -> Tensor:
        """[B, fields + sequences, D]."""
        return self._weighed(batch) if self.groups else self._pooled(batch)

    def _pooled(self, batch: LogBatch) -> Tensor:
        ids: dict[str, Tensor | tuple[Tensor, Tensor]] = {
            name: batch.ids[:, column] for name, column in self.columns.items()
        }
        for sequence in self.sequences:
            ids[sequence.name] = batch.bags[sequence.name][:2]
        collection = self.collections[0]
        vectors = collection.split(collection(ids))  # type: ignore[operator]
        blocks = [vectors[name] for name in self.columns]
        for sequence in self.sequences:
            total = vectors[sequence.name]
            if sequence.pooling == "mean":
                total = total / batch.bags[sequence.name][1].diff().clamp(min=1).unsqueeze(1).to(total.dtype)
            blocks.append(total)
        return torch.stack(blocks, 1)

    def _weighed(self, batch: LogBatch) -> Tensor:
        rows: dict[str, Tensor] = {}
        for collection, (name, sequences) in zip(self.collections, self.of.items(), strict=True):
            parts = [batch.ids[:, self.columns[name]], *(batch.bags[sequence][0] for sequence in sequences)]
            sizes = [len(part) for part in parts]
            # One look-up for all, so that the table has one gradient and takes one step.
            vectors = collection(torch.cat(parts).unsqueeze(1))
            rows |= zip((name, *sequences), vectors.split(sizes), strict=True)
        weighed: dict[str, Tensor] = {}
        for group, attention in zip(self.groups, self.attention, strict=True):
            query = torch.cat([rows[sequence.vocabulary] for sequence in group], 1)
            keys = torch.cat([rows[sequence.name] for sequence in group], 1)
            parts = attention(query, keys, batch.bags[group[0].name][1]).split(self.dim, 1)
            weighed |= zip((sequence.name for sequence in group), parts, strict=True)
        blocks = [rows[name] for name in self.columns] + [weighed[sequence.name] for sequence in self.sequences]
        return torch.stack(blocks, 1)
