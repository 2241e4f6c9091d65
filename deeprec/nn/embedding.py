"""The embedding table as a module: `torch.nn.Embedding` on the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeprec.kernels._autograd import is_transformed
from deeprec.kernels.embedding import EmbeddingPlan, embedding
from deeprec.kernels.embedding_bag import embedding_bags
from deeprec.nn._nested import map_nested
from deeprec.nn._rows import WholeTables, catch_up, clip_row_norms_, scale_grad_by_frequency
from deeprec.nn.layer import check_device, layer_forward

__all__ = ["Embedding", "catch_up"]


def check_sizes(owner: str, num_embeddings: int, embedding_dim: int) -> None:
    """Raise ValueError for a size below 1."""
    for key, size in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
        if size < 1:
            raise ValueError(f"{owner}: {key} must be >= 1, got {size}")


def check_table(
    owner: str, num_embeddings: int, embedding_dim: int, padding_idx: int | None, weight: Tensor | None = None
) -> None:
    """Raise ValueError for what torch.nn.Embedding refuses with an AssertionError."""
    check_sizes(owner, num_embeddings, embedding_dim)
    if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(
            f"{owner}: padding_idx must be in [-{num_embeddings}, {num_embeddings}), got {padding_idx}; name a row of "
            "the table"
        )
    if weight is not None and tuple(weight.shape) != (num_embeddings, embedding_dim):
        raise ValueError(
            f"{owner}: _weight must be [{num_embeddings}, {embedding_dim}], got {tuple(weight.shape)}; use "
            "from_pretrained to take the sizes from it"
        )


class Embedding(WholeTables, nn.Embedding):
    """A table of `num_embeddings` rows whose gradient holds the touched rows only.

    A `torch.nn.Embedding` in every respect (isinstance, state dict, from_pretrained, DDP), except that `sparse` is on
    by default, that its sparse gradients are coalesced, and that they come with scale_grad_by_freq as well. Under
    torch.func gradients are dense.

    Args:
        num_embeddings: rows R, >= 1.
        embedding_dim: columns D, >= 1.
        padding_idx: a row that starts as zeros and gets no gradient; negative ones count from the end.
        max_norm: rows longer than this are scaled down in place when they are read.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide the gradient of a row by the number of times the batch holds its id.
        sparse: sparse gradient (for `deeprec.train.optim`); False gives a dense one that passes torch.compile.
        device, dtype: as in torch.nn.Embedding.
        sparse_grad: another name of `sparse`, the one that the kernels use.
        name: what to call the table in errors, e.g. "user".
    Raises:
        ValueError: a size is below 1, or padding_idx is not a row.
    """

    name: str = ""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparse_grad: bool | None = None,
        name: str = "",
    ) -> None:
        check_table("Embedding", num_embeddings, embedding_dim, padding_idx, _weight)
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse if sparse_grad is None else sparse_grad,
            _weight,
            _freeze,
            device,
            dtype,
        )
        self.name = name

    @property
    def sparse_grad(self) -> bool:
        """Whether the gradient is sparse: another name of `sparse`."""
        return self.sparse

    @sparse_grad.setter
    def sparse_grad(self, value: bool) -> None:
        self.sparse = value

    @layer_forward
    def forward(self, input: Tensor, plan: EmbeddingPlan | None = None) -> Tensor:
        """Rows of the table.

        Args:
            input: ids of any shape, or nested (jagged or strided layout), int32 or int64, in [0, num_embeddings).
            plan: `embedding_plan(input, num_embeddings)` where several tables share the ids; of no use, and ignored,
                with a padding_idx.
        Returns:
            [*input.shape, embedding_dim], nested as input is.
        Raises:
            IndexError: an id is out of range (a RuntimeError with its text in a graph of torch.compile).
        """
        if input.is_nested:
            return map_nested("Embedding", input, lambda ids: self.forward(ids, plan))
        weight = self.weight
        check_device("Embedding", weight, "ids", input)
        is_training = torch.is_grad_enabled() and weight.requires_grad
        if torch.is_grad_enabled():
            catch_up(weight, input if plan is None else plan.rows)
        if self.max_norm is not None:
            clip_row_norms_(weight, input, self.max_norm, self.norm_type, self.name)
        if (is_training or is_transformed()) and self.scale_grad_by_freq:
            weight = scale_grad_by_frequency(weight, input)
        if self.padding_idx is None or not (is_training or is_transformed()):
            return embedding(weight, input, plan, sparse_grad=self.sparse, name=self.name)
        rows, _ = embedding_bags(
            [weight],
            input.reshape(1, -1),
            modes="none",
            padding_idx=[self.padding_idx],
            sparse_grad=self.sparse,
            names=(self.name,),
        )
        return rows.reshape(*input.shape, self.embedding_dim)
