"""`embedding_fm` in PyTorch's own operators: differentiable any number of times, forwards and batched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag.checks import num_bags
from deeprec.kernels.embedding_bag.composite import entries_of
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sums import sum_rows


def embedding_fm_composite(
    weights: Sequence[Tensor],
    linear: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    tables: Sequence[int],
    padding: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """out [B] and the embeddings [B, F, D]."""
    dtype, wide = weights[0].dtype, wide_dtype(weights[0].dtype)
    batch = num_bags(ids, offsets, len(tables))
    by_bag, squares, firsts = [], [], [weights[0].new_zeros(batch, 1, dtype=wide)]
    for entries, table in zip(entries_of(ids, offsets, values, padding), tables, strict=True):
        is_left_out = ~entries.keep.unsqueeze(1)
        x = torch.ones_like(is_left_out, dtype=wide) if entries.values is None else entries.values.to(wide).unsqueeze(1)
        scaled = (F.embedding(entries.ids, weights[table]).to(wide) * x).masked_fill(is_left_out, 0)
        terms = [scaled, scaled.square()]
        if linear:
            column = linear[table].reshape(-1, 1)
            terms.append((F.embedding(entries.ids, column).to(wide) * x).masked_fill(is_left_out, 0))
        if offsets is not None:
            terms = [sum_rows(term, entries.bags, batch) for term in terms]
        by_bag.append(terms[0])
        squares.append(terms[1])
        firsts.extend(terms[2:])
    embeddings = torch.stack(by_bag, 1)
    pairs = 0.5 * (embeddings.sum(1).square() - torch.stack(squares, 1).sum(1)).sum(1)
    return (torch.cat(firsts, 1).sum(1) + pairs).to(dtype), embeddings.to(dtype)
