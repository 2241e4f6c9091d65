"""Pooled rows of one table: `torch.nn.EmbeddingBag` on the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeprec.kernels._autograd import is_transformed
from deeprec.kernels.embedding_bag import embedding_bag, flat_bags
from deeprec.nn._nested import flat_nested_pair
from deeprec.nn._rows import WholeTables, catch_up, clip_row_norms_, scale_grad_by_frequency
from deeprec.nn.embedding import check_table
from deeprec.nn.layer import check_device, layer_forward


class EmbeddingBag(WholeTables, nn.EmbeddingBag):
    """Sums, means or maxima of bags of rows.

    A `torch.nn.EmbeddingBag` in every respect (constructor, call, isinstance, state dict, from_pretrained, DDP).
    Beyond torch's: sparse gradients are coalesced and come in mode "max" and with scale_grad_by_freq as well; any
    embedding_dim >= 1 on every device; an id out of range is named with its position, and nothing is changed then;
    offsets that do not ascend, and ids that no bag holds, are refused. Under torch.func gradients are dense.

    Args:
        num_embeddings: rows R, >= 1.
        embedding_dim: columns D, >= 1.
        max_norm: rows longer than this are scaled down in place when they are read.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide the gradient of a row by the number of times the batch holds its id; not with "max".
        mode: "sum", "mean" or "max".
        sparse: sparse gradient (for `deeprec.train.optim`); a dense one, which passes torch.compile, otherwise.
        include_last_offset: offsets are [B + 1] and end with the number of ids.
        padding_idx: a row that starts as zeros, counts in no bag and gets no gradient; negative: from the end.
        device, dtype: as in torch.nn.EmbeddingBag.
        name: what to call the table in errors.
    Raises:
        ValueError: a size is below 1, padding_idx is not a row, or the mode is none of the three.
    """

    name: str = ""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        name: str = "",
    ) -> None:
        check_table("EmbeddingBag", num_embeddings, embedding_dim, padding_idx, _weight)
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"EmbeddingBag: mode must be sum, mean or max, got {mode!r}")
        if mode == "max" and scale_grad_by_freq:
            raise ValueError("EmbeddingBag: scale_grad_by_freq must be off with mode 'max', got True; use sum or mean")
        super().__init__(
            num_embeddings,
            embedding_dim,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            _weight,
            include_last_offset,
            padding_idx,
            device,
            dtype,
        )
        self.name = name

    @layer_forward
    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pooled rows.

        Args:
            input: ids, [B, L] with a bag a row, or [nnz] with offsets, or nested [B, ragged], jagged or strided; int32
                or int64.
            offsets: where each bag begins, [B], the first 0; [B + 1] with include_last_offset.
            per_sample_weights: shape of input (nested alike), dtype of the table; mode "sum" only. They get their
                gradient.
        Returns:
            [B, embedding_dim]; an empty bag gives zeros.
        Raises:
            IndexError: an id is out of range (a RuntimeError with its text in a graph of torch.compile).
            TypeError, ValueError: as the message says.
        """
        weight, include_last_offset = self.weight, self.include_last_offset
        if input.is_nested:
            if offsets is not None:
                raise ValueError("EmbeddingBag: offsets must be None where input is nested, which has its own")
            name = "per_sample_weights"
            input, offsets, per_sample_weights = flat_nested_pair(
                "EmbeddingBag", "input", input, name, per_sample_weights
            )
            include_last_offset = True
        check_device("EmbeddingBag", weight, "input", input)
        if offsets is not None:
            check_device("EmbeddingBag", weight, "offsets", offsets)
        if torch.is_grad_enabled():
            catch_up(weight, input)
        if self.max_norm is not None:
            # A wrong call is to be refused before the table is changed.
            given = (self.mode, per_sample_weights, self.padding_idx, include_last_offset)
            flat_bags(weight, input, offsets, *given)
            clip_row_norms_(weight, input, self.max_norm, self.norm_type, self.name)
        is_training = torch.is_grad_enabled() and weight.requires_grad
        if self.scale_grad_by_freq and (is_training or is_transformed()):
            weight = scale_grad_by_frequency(weight, input)
        return embedding_bag(
            weight,
            input,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            padding_idx=self.padding_idx,
            include_last_offset=include_last_offset,
            sparse_grad=self.sparse,
            name=self.name,
        )
