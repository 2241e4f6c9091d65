"""From the rows of a log to the terms of the click models: first order, field embeddings, factorisation machine.

Fields and numerics used as fields are looked up in one call of a fused layer, bags in another; sequences that share the
table of a field in `_click_sequences`. The parts below take what they need of a `ClickBatch`; which inputs that is, a
`Part` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deeprec.data.columns.inputs import BagField, Inputs, SequenceField
from deeprec.kernels.fm_interaction import fm_interaction
from deeprec.models._click_sequences import Attend, SharedTables
from deeprec.nn import EmbeddingCollection, FactorizationMachine, Table
from deeprec.nn.tables import table_names

if TYPE_CHECKING:
    from deeprec.models.click import ClickBatch

INIT_STD = 0.01


@dataclass(frozen=True)
class Part:
    """Some of the inputs of a model.

    Attributes:
        inputs: all of the model's.
        fields: numbers of columns of `ClickBatch.ids`.
        numerics: whether the columns of `ClickBatch.values` belong to it.
        bags: the bags.
        sequences: the sequences.
    """

    inputs: Inputs
    fields: tuple[int, ...]
    numerics: bool
    bags: tuple[BagField, ...]
    sequences: tuple[SequenceField, ...] = ()

    @property
    def num_numerics(self) -> int:
        """Columns of `ClickBatch.values` in this part."""
        return len(self.inputs.numerics) if self.numerics else 0

    @property
    def width(self) -> int:
        """How many inputs this part has."""
        return len(self.fields) + self.num_numerics + len(self.bags) + len(self.sequences)

    def with_sequences_as_bags(self) -> Part:
        """The same inputs, each sequence a bag with a table of its own."""
        return replace(self, bags=(*self.bags, *map(_as_bag, self.sequences)), sequences=())


def everything(inputs: Inputs) -> Part:
    """All inputs, crosses too.

    Raises:
        ValueError: an input of a kind that click models do not take.
    """
    _require_kinds(inputs)
    return Part(inputs, tuple(range(len(inputs.fields))), True, inputs.bags, inputs.sequences)


def without_crosses(inputs: Inputs, *, numerics: bool = True) -> Part:
    """What gets embeddings: all but the crosses, and the numerics if they are used as fields.

    Raises:
        ValueError: an input of a kind that click models do not take.
    """
    _require_kinds(inputs)
    fields = tuple(number for number, field in enumerate(inputs.fields) if not field.is_cross)
    return Part(inputs, fields, numerics, tuple(bag for bag in inputs.bags if not bag.is_cross), inputs.sequences)


def _require_kinds(inputs: Inputs) -> None:
    others = [(field.name, field.kind) for field in inputs.texts] + [(field.name, "vector") for field in inputs.vectors]
    if others:
        got = ", ".join(f"{name!r} ({kind})" for name, kind in others)
        raise ValueError(
            f"build: click models take the kinds categorical, numeric, bag, sequence and cross, got {got}; leave them "
            "out of the schema, or declare a text with tokens and a vector as numerics"
        )


def _as_bag(sequence: SequenceField) -> BagField:
    return BagField(sequence.name, sequence.size, sequence.pooling)


def require_width(model: str, part: Part, least: int, what: str) -> None:
    """Raise ValueError unless the part has `least` inputs."""
    if part.width < least:
        raise ValueError(
            f"{model}: {what} must have at least {least} input{'s' * (least > 1)} that "
            f"{'are' if least > 1 else 'is'} not a cross, got {part.width}; add a column to the schema, or take lr"
        )


class _Columns(nn.Module):
    """Some columns of a matrix: a view where they are neighbours."""

    index: Tensor

    def __init__(self, chosen: Sequence[int], total: int) -> None:
        super().__init__()
        self.chosen = list(chosen)
        self.is_all = self.chosen == list(range(total))
        self.is_range = bool(chosen) and self.chosen == list(range(self.chosen[0], self.chosen[-1] + 1))
        # Where the model is: a list would be copied there at every call.
        self.register_buffer("index", torch.tensor(self.chosen, dtype=torch.int64), persistent=False)

    def of(self, ids: Tensor) -> Tensor:
        """[B, columns]."""
        if self.is_all:
            return ids
        return ids[:, self.chosen[0] : self.chosen[-1] + 1] if self.is_range else ids.index_select(1, self.index)


class PooledBags(nn.Module):
    """A vector for each bag of a row: sum_p x_p v_p, divided by the number of ids with pooling "mean".

    Args:
        bags: at least one.
        dim: D, width of the tables.
        init_std: of the initial rows; 0: zeros.
        generator: source of the initial rows.
        sparse: gradients of the touched rows only.
    """

    def __init__(
        self,
        bags: Sequence[BagField],
        dim: int,
        init_std: float,
        generator: torch.Generator | None,
        *,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self.bags = tuple(bags)
        self.dim = dim
        names = table_names([bag.name for bag in bags])
        # Always sums, since weights go with no other mode; means are made of them below.
        tables = [Table(n, bag.size, dim, features=(bag.name,)) for n, bag in zip(names, bags, strict=True)]
        self.collection = _initialised(EmbeddingCollection(tables, sparse=sparse), init_std, generator)
        self.has_mean = any(bag.pooling == "mean" for bag in bags)

    def forward(self, batch: ClickBatch) -> Tensor:
        """[B, number of bags, D]; an empty bag is zeros."""
        ids, weights, scales = {}, {}, []
        dtype = self.collection.weights()[0].dtype
        for bag in self.bags:
            bag_ids, offsets, of_each = batch.bags[bag.name]
            ids[bag.name] = (bag_ids, offsets)
            if of_each is not None:
                weights[bag.name] = of_each.to(dtype)
            if self.has_mean:
                count = offsets.diff()
                scales.append(count.clamp(min=1) if bag.pooling == "mean" else torch.ones_like(count))
        pooled: Tensor = self.collection(ids, per_sample_weights=weights or None)
        pooled = pooled.view(-1, len(self.bags), self.dim)
        return pooled / torch.stack(scales, 1).unsqueeze(2).to(dtype) if self.has_mean else pooled


class LinearTerms(nn.Module):
    """First order: b + sum_f w_f[id] + sum_p w_p x_p + the pooled weights of the bags. All weights begin as 0.

    To have met an item is another variable than to be offered it: sequences have weights of their own, pooled as bags.

    Args:
        part: the inputs, at least one.
        bias: with b.
        sparse: gradients of the touched rows only.
    """

    def __init__(self, part: Part, *, bias: bool, sparse: bool = True) -> None:
        super().__init__()
        inputs, part = part.inputs, part.with_sequences_as_bags()
        self.columns = _Columns(part.fields, len(inputs.fields))
        self.tables = None
        if part.fields:
            names = table_names([inputs.fields[number].name for number in part.fields])
            tables = [Table(n, inputs.fields[number].size, 1) for n, number in zip(names, part.fields, strict=True)]
            self.tables = _initialised(EmbeddingCollection(tables, sparse=sparse), 0.0, None)
        self.bags = PooledBags(part.bags, 1, 0.0, None, sparse=sparse) if part.bags else None
        self.numerics = nn.Parameter(torch.zeros(part.num_numerics)) if part.num_numerics else None
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    def forward(self, batch: ClickBatch) -> Tensor:
        """[B]."""
        terms: list[Tensor] = []
        if self.tables is not None:
            terms.append(self.tables(self.columns.of(batch.ids)).sum(1))
        if self.bags is not None:
            terms.append(self.bags(batch).sum((1, 2)))
        if self.numerics is not None:
            terms.append(batch.values.to(self.numerics.dtype) @ self.numerics)
        if self.bias is not None:
            terms.append(self.bias)
        return _sum(terms)


class FieldEmbeddings(nn.Module):
    """A vector of each input: v_f[id] of a field, x_p v_p of a numeric, the pooled rows of a bag or a sequence.

    At first v is N(0, 0.01^2). A sequence with the vocabulary of a field has the field's table. The order of the inputs
    is that of the fields, numerics, bags and sequences, but fields and sequences that share a table come last.

    Args:
        part: the inputs, at least one.
        dim: D.
        generator: source of the initial weights.
        sparse: gradients of the touched rows only.
        attend: makes the attention of fields over sequences, instead of pooling these; see `SharedTables`.
    Reference: Guo et al. 2017 (arXiv 1703.04247), section 2.1: a numeric field's embedding is its value times a vector.
    """

    def __init__(
        self,
        part: Part,
        dim: int,
        generator: torch.Generator | None,
        *,
        sparse: bool = True,
        attend: Attend | None = None,
    ) -> None:
        super().__init__()
        inputs = part.inputs
        self.dim = dim
        numbers = {inputs.fields[number].name: number for number in part.fields}
        sharing = tuple(sequence for sequence in part.sequences if sequence.vocabulary in numbers)
        owners = {sequence.vocabulary for sequence in sharing}
        self.fields = tuple(inputs.fields[number] for name, number in numbers.items() if name not in owners)
        self.columns = _Columns([numbers[field.name] for field in self.fields], len(inputs.fields))
        self.tables = None
        if self.fields:
            names = table_names([field.name for field in self.fields])
            tables = [Table(n, field.size, dim) for n, field in zip(names, self.fields, strict=True)]
            self.tables = _initialised(EmbeddingCollection(tables, sparse=sparse), INIT_STD, generator)
        self.numerics = None
        if part.num_numerics:
            start = torch.empty(part.num_numerics, dim).normal_(0.0, INIT_STD, generator=generator)
            self.numerics = nn.Parameter(start)
        bags = (*part.bags, *(_as_bag(sequence) for sequence in part.sequences if sequence not in sharing))
        self.bags = PooledBags(bags, dim, INIT_STD, generator, sparse=sparse) if bags else None
        self.shared = None
        if sharing:
            columns = {number: inputs.fields[number] for name, number in numbers.items() if name in owners}
            self.shared = SharedTables(columns, sharing, dim, INIT_STD, generator, sparse=sparse, attend=attend)

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v, [R, D] each."""
        numerics = [] if self.numerics is None else [self.numerics]
        shared = [] if self.shared is None else self.shared.weights()
        return [*_weights(self.tables, self.bags), *shared, *numerics]

    def readers(self) -> list[tuple[nn.Parameter, tuple[str, ...]]]:
        """Each table of ids, and the inputs that look up in it."""
        each: list[tuple[nn.Parameter, tuple[str, ...]]] = []
        if self.tables is not None:
            each += zip(self.tables.weights(), ((field.name,) for field in self.fields), strict=True)
        if self.bags is not None:
            each += zip(self.bags.collection.weights(), ((bag.name,) for bag in self.bags.bags), strict=True)
        return each if self.shared is None else each + self.shared.readers()

    def forward(self, batch: ClickBatch) -> Tensor:
        """[B, inputs, D]."""
        blocks: list[Tensor] = []
        if self.tables is not None:
            blocks.append(self.tables(self.columns.of(batch.ids)).unflatten(1, (-1, self.dim)))
        if self.numerics is not None:
            blocks.append(batch.values.to(self.numerics.dtype).unsqueeze(2) * self.numerics)
        if self.bags is not None:
            blocks.append(self.bags(batch))
        if self.shared is not None:
            blocks.append(self.shared(batch))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


class FMTerms(nn.Module):
    """b + first order + sum_{i<j} e_i . e_j over the inputs, and their embeddings e: the FM part of a model.

    Fields and numerics go through the fused lookup of `FactorizationMachine`, numerics as entries with a value. A bag
    is one input, pooled first: with S = sum of the fields' and numerics' embeddings, the pairs that hold bags are those
    of the list S, bag 1, bag 2, ..., so that the fused part need not be done again. Crosses have a first-order weight
    only. With sequences, which share tables of fields, the embeddings are looked up first (`FieldEmbeddings`).

    Args:
        inputs: of the model.
        dim: D.
        bias: with b.
        numerics: whether numerics have embeddings; otherwise they have a first-order weight only.
        return_embeddings: `forward` gives the embeddings as well; they are not stored otherwise, but for bags.
        generator: source of the initial weights: v ~ N(0, 0.01^2), w and b are 0.
        sparse: gradients of the touched rows only.
        attend: as of `FieldEmbeddings`.
    Reference: Rendle 2010, eq. 1; Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """

    _numbers: Tensor

    def __init__(
        self,
        inputs: Inputs,
        dim: int,
        generator: torch.Generator | None,
        *,
        bias: bool = True,
        numerics: bool = True,
        return_embeddings: bool = True,
        sparse: bool = True,
        attend: Attend | None = None,
    ) -> None:
        super().__init__()
        part = without_crosses(inputs, numerics=numerics)
        self.return_embeddings = return_embeddings
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None
        self.fm: FactorizationMachine | None = None
        self.bags: PooledBags | None = None
        self.rest: LinearTerms | None = None
        self.embeddings: FieldEmbeddings | None = None
        if part.sequences:
            self.embeddings = FieldEmbeddings(part, dim, generator, sparse=sparse, attend=attend)
            self.rest = LinearTerms(everything(inputs), bias=False, sparse=sparse)
            return
        self.columns = _Columns(part.fields, len(inputs.fields))
        self.num_fields, self.num_numerics = len(part.fields), part.num_numerics
        if self.num_fields + self.num_numerics:
            self.fm = FactorizationMachine(
                fm_tables(part, dim, bags=False),
                bias=False,
                return_embeddings=return_embeddings or bool(part.bags),
                sparse=sparse,
                generator=generator,
            )
            numbers = torch.arange(self.num_numerics, dtype=torch.int32)
            self.register_buffer("_numbers", numbers, persistent=False)  # ids of the numerics
        if part.bags:
            self.bags = PooledBags(part.bags, dim, INIT_STD, generator, sparse=sparse)
        crosses = tuple(number for number, field in enumerate(inputs.fields) if field.is_cross)
        rest = Part(inputs, crosses, not numerics, inputs.bags)
        self.rest = LinearTerms(rest, bias=False, sparse=sparse) if rest.width else None

    def embedding_tables(self) -> list[nn.Parameter]:
        """The tables of v, [R, D] each."""
        return _weights(self.fm, self.bags) if self.embeddings is None else self.embeddings.embedding_tables()

    def forward(self, batch: ClickBatch) -> tuple[Tensor, Tensor | None]:
        """Logits [B] and embeddings [B, inputs, D]; None where none are there or asked for."""
        terms: list[Tensor] = []
        blocks: list[Tensor] = []
        if self.fm is not None:
            part = self.fm(*self._entries(batch))
            if self.fm.return_embeddings:
                part, embeddings = part
                blocks.append(embeddings)
            terms.append(part)
        if self.rest is not None:
            terms.append(self.rest(batch))
        if self.embeddings is not None:
            blocks.append(self.embeddings(batch))
            terms.append(fm_interaction(blocks[0]))
        if self.bags is not None:
            pooled = self.bags(batch)
            several = torch.cat([block.sum(1, keepdim=True) for block in blocks] + [pooled], 1)
            terms.append(fm_interaction(several))
            blocks.append(pooled)
        if self.bias is not None:
            terms.append(self.bias)
        if not self.return_embeddings or not blocks:
            return _sum(terms), None
        return _sum(terms), blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)

    def _entries(self, batch: ClickBatch) -> tuple[Tensor, None, Tensor | None]:
        """ids, offsets and values as `FactorizationMachine` takes them: numerics are ids of one table, with values."""
        ids = self.columns.of(batch.ids)
        if not self.num_numerics:
            return ids, None, None
        assert self.fm is not None
        values = batch.values.to(self.fm.weights()[0].dtype)
        numbers = self._numbers.expand(len(ids), -1)
        if not self.num_fields:
            return numbers, None, values
        ones = torch.ones_like(ids, dtype=values.dtype)
        return torch.cat([ids, numbers.to(ids.dtype)], 1), None, torch.cat([ones, values], 1)


def fm_tables(part: Part, dim: int, *, bags: bool) -> list[Table]:
    """A table for each field, one for all numerics, a row each, and with `bags` one for each bag."""
    inputs, wide = part.inputs, part.bags if bags else ()
    fields = [inputs.fields[number] for number in part.fields]
    kinds: list[tuple[str, int, tuple[str, ...]]] = [(field.name, field.size, (field.name,)) for field in fields]
    if part.num_numerics:
        kinds.append(("numerics", part.num_numerics, inputs.numerics))
    kinds += [(bag.name, bag.size, (bag.name,)) for bag in wide]
    names = table_names([name for name, _, _ in kinds])
    return [Table(name, size, dim, features=features) for name, (_, size, features) in zip(names, kinds, strict=True)]


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _weights(fields: EmbeddingCollection | FactorizationMachine | None, bags: PooledBags | None) -> list[nn.Parameter]:
    of_bags = [] if bags is None else bags.collection.weights()
    return [*([] if fields is None else fields.weights()), *of_bags]


def _initialised(collection: EmbeddingCollection, std: float, generator: torch.Generator | None) -> EmbeddingCollection:
    with torch.no_grad():
        for weight in collection.weights():
            if std:
                weight.normal_(0.0, std, generator=generator)
            else:
                weight.zero_()
    return collection
