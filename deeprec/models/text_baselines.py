"""TF-IDF and BM25: items whose text is like that of what a user met; the baselines beside models that read texts.

Papers: Salton, Buckley 1988, "Term-weighting approaches in automatic text retrieval" (IPM 24); Robertson, Zaragoza
2009, "The Probabilistic Relevance Framework: BM25 and Beyond" (FnTIR 3).
Deviations: the idf of TF-IDF is ln((1 + n) / (1 + df)) + 1, that of BM25 ln(1 + (n - df + 1/2) / (df + 1/2)), which
is never below 0. A query is the text of all items that a user met, one after the other. Where `fit` is given no schema
with columns of items, the terms of an item are the users who met it: item-KNN without a limit of neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.config import GRADIENT_OPTIONS, TrainConfig
from deeprec.contract import NEW_USERS, RECOMMENDS, Schema
from deeprec.data import DataSchema, IdMap, Interactions, Terms
from deeprec.data.interactions.encoded import encode_tables
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.models._tower_terms import require_data_schema
from deeprec.models.history import HistoryRecommender

_PARTS = ("text_offsets", "text_terms", "text_weights", "term_offsets", "term_items", "term_weights")


@dataclass(frozen=True)
class TextConfig(TrainConfig):
    """Attributes: none, but `refit`."""

    unused: ClassVar[tuple[str, ...]] = GRADIENT_OPTIONS

    refit: bool = True


class TextRecommender(HistoryRecommender):
    """score(u, i) = sum over the items j that u met, and over terms t, of q(j, t) d(i, t).

    Buffers: d as compressed rows, `text_offsets`, `text_terms` and `text_weights` with a row an item; q by term,
    `term_offsets`, `term_items` and `term_weights` with a row a term.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, NEW_USERS})
    takes: ClassVar[frozenset[str]] = frozenset({"item_features", "schema"})
    columns: DataSchema | None = None
    text_offsets: Tensor
    text_terms: Tensor
    text_weights: Tensor
    term_offsets: Tensor
    term_items: Tensor
    term_weights: Tensor

    def _query_and_text(self, counts: Terms) -> tuple[Terms, Terms]:
        """q and d of the counts of each item's terms."""
        raise NotImplementedError

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> Any:
        """Ranking the interactions of `data`; `schema` says what the columns of its table of items mean."""
        if schema is not None:
            self.columns = require_data_schema(self.name, schema)
        return super().task_for(data, protocol)

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where a schema says what it means."""
        return () if self.columns is None or self.columns.items is None else ("item_features",)

    def _build_weights(self, schema: Schema) -> None:
        for part in _PARTS:
            empty = torch.zeros(0) if "weights" in part else torch.zeros(int("offsets" in part), dtype=torch.int64)
            self.register_buffer(part, empty)

    def fit_directly(self, train: Interactions) -> None:
        """Weights of the terms of all items, and what each user met."""
        if self.features_taken():
            assert self.columns is not None
            table = encode_tables(train, DataSchema(items=self.columns.items)).items
            assert table is not None
            counts = Terms.of_table(table)
        else:
            counts = Terms.of_interactions(train, "item")
        query, text = self._query_and_text(counts)
        owners = np.repeat(np.arange(len(query)), np.diff(query.offsets))
        by_term = Terms.of_entries(query.ids, owners, query.weights, query.size, len(query))
        for part, array in zip(_PARTS, (*_arrays(text), *_arrays(by_term)), strict=True):
            setattr(self, part, torch.from_numpy(array).to(self.device))
        super().fit_directly(train)

    def _fit_weights(self, offsets: NDArray[np.int64], items: NDArray[np.int32], item_ids: IdMap) -> None:
        """They are there."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the numbers of terms and entries are those of the file.

        Raises:
            ValueError: terms that are not those of the items.
        """
        if set(_PARTS) <= set(state_dict):
            parts = {part: state_dict[part].cpu().numpy() for part in _PARTS}
            size, items = len(parts["term_offsets"]) - 1, self.require_built().num_items
            for kind, names, rows in (("text", "terms", items), ("term", "items", size)):
                offsets, ids, weights = parts[f"{kind}_offsets"], parts[f"{kind}_{names}"], parts[f"{kind}_weights"]
                if len(ids):
                    width = size if kind == "text" else items
                    Terms(offsets, ids.astype(np.int32), weights, np.empty((rows, 0), np.float32), width)
            for part in _PARTS:
                setattr(self, part, torch.empty_like(state_dict[part], device=self.device))
        return super().load_state_dict(state_dict, strict, assign)

    def _scores(self, offsets: Tensor, items: Tensor) -> Tensor:
        num_items = self.require_built().num_items
        met = self.term_weights.new_zeros(num_items, len(offsets) - 1)
        every = torch.arange(len(offsets) - 1, device=items.device)
        owners = torch.repeat_interleave(every, offsets.diff(), output_size=len(items))
        met.index_put_((items, owners), met.new_ones(()))
        if not len(self.text_terms):
            return torch.zeros_like(met).T.contiguous()
        queries = sparse_linear(self.term_offsets, self.term_items, self.term_weights, met)  # [terms, b]
        return sparse_linear(self.text_offsets, self.text_terms, self.text_weights, queries).T.contiguous()


def _arrays(terms: Terms) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return terms.offsets, terms.ids.astype(np.int64), terms.weights


class TFIDF(TextRecommender):
    """The sum of the cosines between the TF-IDF vectors of an item and of those that the user met."""

    name = "tf-idf"
    config_class: ClassVar[type[TrainConfig]] = TextConfig
    config: TextConfig

    def _query_and_text(self, counts: Terms) -> tuple[Terms, Terms]:
        vectors = counts.weighted("tf-idf")
        return vectors, vectors


@dataclass(frozen=True)
class BM25Config(TextConfig):
    """Attributes:
    k1: how late a term that comes again stops to count, >= 0.
    b: how much long texts are held back, in [0, 1].
    """

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k1 >= 0 or not 0 <= self.b <= 1:
            raise ValueError(f"BM25Config: k1 must be >= 0 and b in [0, 1], got {self.k1} and {self.b}")


class BM25(TextRecommender):
    """Sum over the query's terms of idf f (k1 + 1) / (f + k1 (1 - b + b length / mean length)), f times in the item."""

    name = "bm25"
    config_class: ClassVar[type[TrainConfig]] = BM25Config
    config: BM25Config

    def _query_and_text(self, counts: Terms) -> tuple[Terms, Terms]:
        n, k1, b = len(counts), self.config.k1, self.config.b
        owners = np.repeat(np.arange(n), np.diff(counts.offsets))
        frequency, weights = np.bincount(counts.ids, minlength=counts.size), counts.weights.astype(np.float64)
        idf = np.log1p((n - frequency + 0.5) / (frequency + 0.5))
        lengths = np.bincount(owners, weights, minlength=n)
        relative = lengths[owners] / max(lengths.mean(), 1e-12) if n else lengths[owners]
        scores = idf[counts.ids] * weights * (k1 + 1) / (weights + k1 * (1 - b + b * relative))
        of_text = Terms(counts.offsets, counts.ids, scores.astype(np.float32), counts.values, counts.size)
        return counts, of_text
