"""The embedding table as a module, exchangeable with `torch.nn.Embedding`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeprec.kernels.embedding import EmbeddingPlan, embedding


def catch_up(weight: Tensor, ids: Tensor) -> None:
    """Bring rows of `weight` up to date before they are read for training, where an optimizer asked for it.

    Adam in dense mode puts off the steps in which a row had no gradient, and leaves `_deeprec_catch_up` on the
    parameter for whoever reads rows.

    Args:
        weight: a table, [R, D].
        ids: rows about to be read, any shape, int32 or int64, repeated ids allowed.
    """
    hook = getattr(weight, "_deeprec_catch_up", None)
    if hook is not None:
        hook(ids)


class Embedding(nn.Module):
    """A table of `num_embeddings` rows whose gradient holds the touched rows only.

    The state dict is that of `torch.nn.Embedding` (`weight`), in both directions.

    Args:
        num_embeddings: rows R, >= 1.
        embedding_dim: columns D, >= 1.
        sparse_grad: sparse gradient (for `deeprec.train.optim`); False gives a dense one that passes torch.compile.
        name: what to call the table in errors, e.g. "user".
        device, dtype: as in torch.nn.Embedding.
    Raises:
        ValueError: a size is below 1.
    """

    num_embeddings: int
    embedding_dim: int
    weight: nn.Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        sparse_grad: bool = True,
        name: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for key, size in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if size < 1:
                raise ValueError(f"Embedding: {key} must be >= 1, got {size}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.sparse_grad = sparse_grad
        self.name = name
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, 1), as torch.nn.Embedding does."""
        nn.init.normal_(self.weight)

    def forward(self, ids: Tensor, plan: EmbeddingPlan | None = None) -> Tensor:
        """Rows of the table.

        Args:
            ids: any shape, int32 or int64, values in [0, num_embeddings).
            plan: `embedding_plan(ids, num_embeddings)` where several tables share the ids.
        Returns:
            [*ids.shape, embedding_dim].
        Raises:
            IndexError: an id is out of range.
        """
        if torch.is_grad_enabled():
            catch_up(self.weight, ids if plan is None else plan.rows)
        return embedding(self.weight, ids, plan, sparse_grad=self.sparse_grad, name=self.name)

    def extra_repr(self) -> str:
        """Sizes, as printed by repr()."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
