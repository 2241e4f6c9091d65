"""Factorisation-machine layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction
from deeprec.nn._bag_inputs import Ids, bag_inputs
from deeprec.nn._in_backward import InBackward, OptimizerFactory
from deeprec.nn._rows import WholeTables, catch_up_tables
from deeprec.nn.layer import layer_forward
from deeprec.nn.tables import AnyTable, as_table, dtype_of_tables, features_of_tables, make_tables

INIT_STD = 0.01


class FMInteraction(nn.Module):
    """Sum of the pairwise dot products of the fields; no parameters.

    Reference: Rendle 2010, lemma 3.1; Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """

    @layer_forward
    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """sum_{f<g} x_f . x_g.

        Args:
            x: field embeddings, [B, F, D], float32, bfloat16, float16 or float64.
        Returns:
            [B], dtype of x.
        """
        return fm_interaction(x)


class BiInteraction(nn.Module):
    """Sum of the pairwise element-wise products of the fields (bi-interaction pooling); no parameters.

    Reference: He, Chua 2017 (arXiv 1708.05027), eq. 3 and 4.
    """

    @layer_forward
    @layer_forward
    def forward(self, x: Tensor) -> Tensor:
        """sum_{f<g} x_f * x_g.

        Args:
            x: field embeddings, [B, F, D], float32, bfloat16, float16 or float64.
        Returns:
            [B, D], dtype of x.
        """
        return bi_interaction(x)


class FactorizationMachine(WholeTables):
    """Lookup, linear term and pairwise interactions of a sample's entries (id, x) in one call.

        logit = w_0 + sum_p x_p w_p + sum_{p<q} x_p x_q v_p . v_q

    Each entry is a feature of its own, as in Rendle's model of one-hot variables: several ids of one feature interact
    with one another too. DeepFM's formula sums over fields, which is the same where a field has one id; for fields
    pooled first use `EmbeddingCollection` and `FMInteraction`.

    The embeddings of a batch are not stored unless `return_embeddings` asks for them, and no gradient of their size is.
    Parameters: `tables.NAME.weight` [R, D], `linear.NAME.weight` [R, 1] and `bias` [1]. At first w_0 and w are 0 and
    v is N(0, 0.01^2) (libFM; neither Rendle 2010 nor Guo et al. 2017 says with what).

    With `optimizer_in_backward` the step of tables and linear weights is taken inside `backward()`, as in
    `EmbeddingCollection`, which says what that asks for; the bias has a gradient as ever, for your other optimizer.

    Args:
        tables: `Table`s of one embedding_dim, any number >= 1, mode "sum", or TorchRec's EmbeddingBagConfigs; their
            features are the columns of ids. An id of a feature that several tables have is an entry of each.
        linear: with the term sum_p x_p w_p.
        bias: with w_0.
        return_embeddings: `forward` gives the embeddings as well, [B, F, D], for the deep part of a DeepFM.
        optimizer_in_backward: makes an optimizer of `deeprec.train.optim` from parameters, for instance
            `functools.partial(Adagrad, lr=0.05)`.
        sparse: gradients of the touched rows only; False gives dense ones, which pass torch.compile and any optimizer.
        generator: source of the initial weights; torch's global one by default.
        device, dtype: of all parameters; float32, float64, bfloat16 or float16.
    Raises:
        TypeError: optimizer_in_backward makes another kind of optimizer.
        ValueError: the tables differ in embedding_dim or have another mode, a size is below 1, or a name occurs twice.
    Reference: Rendle 2010, Factorization Machines, eq. 1; Rendle 2012, Factorization Machines with libFM, algorithm 1;
        Guo et al. 2017 (arXiv 1703.04247), eq. 2.
    """

    def __init__(
        self,
        tables: Sequence[AnyTable],
        *,
        linear: bool = True,
        bias: bool = True,
        return_embeddings: bool = False,
        optimizer_in_backward: OptimizerFactory | None = None,
        sparse: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "FactorizationMachine"
        tables = [as_table(owner, table) for table in tables]
        self._lookups = features_of_tables(owner, tables)
        self.features = self._lookups.names
        dims = {table.name: table.embedding_dim for table in tables}
        if len(set(dims.values())) > 1:
            raise ValueError(f"{owner}: all tables must have one embedding_dim, got {dims}")
        other = {table.name: table.mode for table in tables if table.mode != "sum"}
        if other:
            raise ValueError(
                f"{owner}: mode must be 'sum', got {other}; every id is an entry of its own here: for fields pooled "
                "first use EmbeddingCollection and FMInteraction"
            )
        self.configs = tuple(tables)
        self.return_embeddings = return_embeddings
        self.sparse = sparse

        options: dict[str, Any] = {"sparse": sparse, "device": device, "dtype": dtype_of_tables(owner, tables, dtype)}
        self.tables = make_tables(tables, **options)
        self.linear = make_tables(tables, embedding_dim=1, **options) if linear else None
        self.bias = nn.Parameter(torch.empty(1, device=device, dtype=options["dtype"])) if bias else None
        self.reset_parameters(generator)
        self.step_in_backward(optimizer_in_backward)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """v ~ N(0, 0.01^2) or by a table's init_fn, w = 0, w_0 = 0; rows of padding 0."""
        for config, weight in zip(self.configs, self.weights(), strict=True):
            weight.normal_(0.0, INIT_STD, generator=generator)
            if config.padding_idx is not None:
                weight[config.padding_idx].zero_()
            config.initialise(weight)
        for param in (*self.linear_weights(), *(() if self.bias is None else (self.bias,))):
            param.zero_()

    def step_in_backward(self, factory: OptimizerFactory | None) -> None:
        """From now on take the step of the tables in the backward pass, as `optimizer_in_backward` says; None: no more.

        Raises:
            TypeError: factory makes another kind of optimizer.
        """
        owner = "FactorizationMachine"
        self._in_backward = None if factory is None else InBackward(owner, factory, self._all_tables)

    def _all_tables(self) -> list[nn.Parameter]:
        return [*self.weights(), *self.linear_weights()]

    @property
    def optimizer(self) -> Any:
        """The optimizer whose step the backward pass takes, or None."""
        return None if self._in_backward is None else self._in_backward.optimizer

    def weights(self) -> list[nn.Parameter]:
        """The tables of v, [R_t, D] each, in order."""
        return self.tables.weights()

    def linear_weights(self) -> list[nn.Parameter]:
        """The tables of w, [R_t, 1] each, in order; none without the linear term."""
        return [] if self.linear is None else self.linear.weights()

    @layer_forward
    def forward(
        self, ids: Ids, offsets: Tensor | None = None, values: Tensor | Mapping[str, Tensor] | None = None
    ) -> Any:
        """Logits of the samples.

        Args:
            ids: [B, F] with one id for each feature (their order: `self.features`); or [nnz], feature after feature,
                with offsets; or a mapping from feature to [B], [B, L], ([nnz_f], offsets [B + 1]), a nested tensor
                [B, ragged] or a JaggedTensor of TorchRec; or a KeyedJaggedTensor. int32 or int64.
            offsets: [F * B + 1], ascending from 0 to nnz: bag b of feature f is offsets[f * B + b] up to the next.
            values: x of each id, in the form of ids, dtype of the tables; default 1. They get their gradient. Jagged
                tensors bring theirs as weights.
        Returns:
            [B], dtype of the tables; with `return_embeddings` a pair of it and the embeddings [B, F, D]: sum of x v
            over the ids of each feature, table after table.
        Raises:
            IndexError: an id is out of range: names the table, the value and the position in the ids, feature after
                feature; nothing has been changed then.
            TypeError, ValueError: as the message says.
        """
        weights, linear, lookups = self.weights(), self.linear_weights(), self._lookups
        inputs = bag_inputs("FactorizationMachine", lookups, weights[0], ids, offsets, values, "values")
        plan = None
        if torch.is_grad_enabled():
            plan = catch_up_tables((weights, linear), lookups.table_of, lookups.padding, inputs)
        result = embedding_fm(
            weights,
            linear,
            inputs.ids,
            inputs.offsets,
            values=inputs.values,
            tables=lookups.table_of,
            padding_idx=lookups.padding,
            need_embeddings=self.return_embeddings,
            sparse_grad=self.sparse,
            plan=plan,
            names=lookups.tables,
            **({} if self._in_backward is None else self._in_backward.arguments([*weights, *linear])),
        )
        logit, embeddings = result if self.return_embeddings else (result, None)
        if self.bias is not None:
            logit = logit + self.bias
        return (logit, embeddings) if self.return_embeddings else logit

    def _apply(self, fn: Any, recurse: bool = True) -> FactorizationMachine:
        super()._apply(fn, recurse)
        if self._in_backward is not None:
            self._in_backward.bind()
        return self

    def extra_repr(self) -> str:
        """Features, terms and how it is trained."""
        return (
            f"features={len(self.features)}, linear={self.linear is not None}, bias={self.bias is not None}, "
            f"return_embeddings={self.return_embeddings}, sparse={self.sparse}, "
            f"optimizer_in_backward={self.optimizer is not None}"
        )
