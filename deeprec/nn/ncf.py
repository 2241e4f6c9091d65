"""The network of neural collaborative filtering: GMF, MLP, and their fusion NeuMF.

Paper: He, Liao, Zhang, Nie, Hu, Chua 2017, "Neural Collaborative Filtering" (arXiv 1708.05031), equations 8 to 12.
Authors' code: github.com/hexiangnan/neural_collaborative_filtering; from it come the output bias and the Glorot and
LeCun initialisations, which the paper does not mention.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.kernels.ncf_loss import ncf_loss
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import BlockScorer, NCFScorer


class NCFNetwork(nn.Module):
    """logit = h . [p_g * q_g ; MLP([p_m ; q_m])] + b, with either half absent on request.

    Args:
        num_users, num_items: sizes of the embedding tables, >= 1.
        gmf_dim: width D of the element-wise half (GMF), 0 leaves it out.
        mlp_layers: (2E, H_1, ..., H_L): width of the concatenated embeddings, then the hidden layers, as the authors'
            `--layers`; () leaves the half out. 2E must be even. With a single entry (no hidden layer) the concatenated
            embeddings feed the output directly (MLP-0 of the paper's Table 3).
        generator: source of the initial weights; torch's global one by default.
    Reference: He et al. 2017 (arXiv 1708.05031), eq. 8, 10, 12.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        gmf_dim: int = 0,
        mlp_layers: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if gmf_dim <= 0 and not mlp_layers:
            raise ValueError("NCFNetwork: gmf_dim and mlp_layers cannot both be empty; give one of the halves a width")
        if mlp_layers and (mlp_layers[0] % 2 or min(mlp_layers) < 1):
            raise ValueError(
                f"NCFNetwork: mlp_layers must start with an even width (user and item half) and hold widths >= 1, "
                f"got {tuple(mlp_layers)}"
            )
        embedding_dim = mlp_layers[0] // 2 if mlp_layers else 0
        self.gmf_user = Embedding(num_users, gmf_dim) if gmf_dim else None
        self.gmf_item = Embedding(num_items, gmf_dim) if gmf_dim else None
        self.mlp_user = Embedding(num_users, embedding_dim) if embedding_dim else None
        self.mlp_item = Embedding(num_items, embedding_dim) if embedding_dim else None
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(mlp_layers))
        self.output = nn.Linear(gmf_dim + (mlp_layers[-1] if mlp_layers else 0), 1)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Embeddings N(0, 0.01^2), hidden layers Glorot uniform, output LeCun uniform, biases 0 (paper 4.1, code)."""
        for table in (self.gmf_user, self.gmf_item, self.mlp_user, self.mlp_item):
            if table is not None:
                table.weight.normal_(0.0, 0.01, generator=generator)
        for layer in self._linears():
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        bound = (3.0 / self.output.in_features) ** 0.5
        self.output.weight.uniform_(-bound, bound, generator=generator)
        nn.init.zeros_(self.output.bias)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of user-item pairs.

        Args:
            users: indices, any shape that broadcasts with `items`, int32 or int64.
            items: indices, int32 or int64.
        Returns:
            logits, the broadcast shape, dtype of the weights.
        """
        users, items = torch.broadcast_tensors(users, items)
        return self.forward_rows(self.user_rows(users), items)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        """The users' embedding rows, one tensor [*users.shape, D or E] for each table of the network."""
        return tuple(table(users) for table in (self.gmf_user, self.mlp_user) if table is not None)

    def _item_rows(self, items: Tensor) -> tuple[Tensor, ...]:
        return tuple(table(items) for table in (self.gmf_item, self.mlp_item) if table is not None)

    def forward_rows(self, user_rows: tuple[Tensor, ...], items: Tensor) -> Tensor:
        """Logits from user rows that need not be in the tables (a new user); items: [*rows' leading shape]."""
        rows = list(user_rows)
        features = []
        if self.gmf_item is not None:
            features.append(rows.pop(0) * self.gmf_item(items))
        if self.mlp_item is not None:
            x = torch.cat([rows.pop(0), self.mlp_item(items)], dim=-1)
            for layer in self.layers:
                x = F.relu(layer(x))
            features.append(x)
        logits: Tensor = self.output(torch.cat(features, dim=-1)).squeeze(-1)
        return logits

    def loss(
        self,
        users: Tensor,
        items: Tensor,
        labels: Tensor,
        *,
        reduction: str = "mean",
        precision: str = "float32",
        l2: float = 0.0,
        accumulate_grad: bool = False,
    ) -> Tensor:
        """Binary cross-entropy of each user with a group of items, fused forward and backward.

        Args:
            users: [b]; items: [b, 1 + n]; labels: [b, 1 + n], float32 in [0, 1].
            reduction: "mean" or "sum" over the b (1 + n) examples.
            precision: "float32" or "bfloat16" matrix products.
            l2: each example adds l2 / 2 times the squared norm of its embedding rows.
            accumulate_grad: add the gradients to `.grad` right away, without autograd; the loss then has no graph.
        Returns:
            scalar; its gradient is row-sparse in the tables.
        Reference: He et al. 2017, eq. 7.
        """
        if self.mlp_item is not None and not self.layers:
            logits = self(users.unsqueeze(-1), items)
            loss = F.binary_cross_entropy_with_logits(logits, labels, reduction=reduction)
            if l2:
                loss = loss + self.penalty(users, items, l2, reduction=reduction)
            if accumulate_grad:
                loss.backward()
                loss = loss.detach()
            return loss
        linears = self._linears()
        return ncf_loss(
            _weight(self.gmf_user),
            _weight(self.gmf_item),
            _weight(self.mlp_user),
            _weight(self.mlp_item),
            users,
            items,
            labels,
            [layer.weight for layer in linears],
            [layer.bias for layer in linears],
            self.output.weight,
            self.output.bias,
            reduction=reduction,
            precision=precision,
            l2=l2,
            accumulate_grad=accumulate_grad,
        )

    def penalty(self, users: Tensor, items: Tensor, l2: float, *, reduction: str = "mean") -> Tensor:
        """What `l2` adds to the loss of users [b] with groups of items [b, 1 + n]; a scalar, differentiable."""
        rows = (*self.user_rows(users.unsqueeze(-1).expand_as(items)), *self._item_rows(items))
        scale = 1.0 if reduction == "sum" else 1.0 / max(1, items.numel())
        return 0.5 * l2 * scale * torch.stack([row.square().sum() for row in rows]).sum()

    def tables(self) -> tuple[Tensor, ...]:
        """The embedding tables that there are: of users, of items."""
        layers = (self.gmf_user, self.gmf_item, self.mlp_user, self.mlp_item)
        return tuple(table.weight for table in layers if table is not None)

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """What the network knows of each item, [N, D + E]: the item rows of every table, side by side."""
        return torch.cat([t.weight for t in (self.gmf_item, self.mlp_item) if t is not None], dim=1)

    @torch.no_grad()
    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits [n] of pairs [n]; on the CPU the first hidden layer runs once for each distinct user and item."""
        # How many are distinct, a GPU would have to be waited for.
        if self.mlp_item is None or not self.layers or not users.is_cpu:
            logits: Tensor = self(users, items)
            return logits
        unique_users, users = torch.unique(users, return_inverse=True)
        unique_items, items = torch.unique(items, return_inverse=True)
        first, *later = self._linears()
        half = self.mlp_item.embedding_dim
        *gmf_rows, mlp_rows = self.user_rows(unique_users)
        hidden = F.linear(mlp_rows, first.weight[:, :half], first.bias)[users]
        hidden += F.linear(self.mlp_item(unique_items), first.weight[:, half:])[items]
        hidden.relu_()
        for layer in later:
            hidden = layer(hidden).relu_()
        features = [hidden]
        if self.gmf_item is not None:
            features.insert(0, gmf_rows[0][users] * self.gmf_item(unique_items)[items])
        logits = self.output(torch.cat(features, dim=-1)).squeeze(-1)
        return logits

    @torch.no_grad()
    def scorer(self, user_rows: tuple[Tensor, ...]) -> NCFScorer | BlockScorer:
        """What `deeprec.nn.scoring` needs to score the whole catalogue for user rows [b, D] and [b, E].

        The first hidden layer is split: its user half is computed once a user, its item half once an item. Without a
        hidden layer there is nothing to split, and the network itself is asked.
        """
        if self.mlp_item is not None and not self.layers:
            scores = partial(self._scores_of_all, user_rows)
            return BlockScorer(len(user_rows[0]), self.mlp_item.num_embeddings, user_rows[0].device, scores)
        rows = list(user_rows)
        factors = rows.pop(0) if self.gmf_item is not None else None
        hidden, item_hidden = None, None
        later = self._linears()
        if self.mlp_item is not None:
            first = later.pop(0)
            half = self.mlp_item.embedding_dim
            hidden = F.linear(rows.pop(0), first.weight[:, :half], first.bias)
            item_hidden = F.linear(self.mlp_item.weight, first.weight[:, half:])
        return NCFScorer(
            hidden,
            item_hidden,
            factors,
            self.gmf_item.weight if self.gmf_item is not None else None,
            [layer.weight for layer in later],
            [layer.bias for layer in later],
            self.output.weight,
            self.output.bias,
        )

    def _scores_of_all(self, user_rows: tuple[Tensor, ...], start: int, end: int) -> Tensor:
        """Logits [end - start, N] of every item for users start to end."""
        assert self.mlp_item is not None
        rows = tuple(row[start:end].unsqueeze(1) for row in user_rows)
        items = torch.arange(self.mlp_item.num_embeddings, device=rows[0].device)
        return self.forward_rows(tuple(row.expand(-1, len(items), -1) for row in rows), items.expand(end - start, -1))


def _weight(table: Embedding | None) -> Tensor | None:
    return None if table is None else table.weight
