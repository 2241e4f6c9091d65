"""A tower: sparse terms and dense numbers of a user or an item to its vector, for two-tower models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deeprec.device import to_device
from deeprec.kernels.embedding_bag import BagPlan
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.nn._in_backward import InBackward, OptimizerFactory
from deeprec.nn._rows import WholeTables, catch_up
from deeprec.nn.layer import check_device, layer_forward
from deeprec.nn.mlp import ACTIVATIONS


class TermBatch(NamedTuple):
    """Rows x of sparse terms and of dense numbers; row b has weights[p] at ids[p], p in offsets[b]:offsets[b + 1].

    Attributes:
        offsets: [B + 1], int64; ids: [nnz], int64 or int32 as the offsets, in [0, size) of the tower.
        weights: [nnz], dtype of the tower.
        values: [B, v], dtype of the tower.
    """

    offsets: Tensor
    ids: Tensor
    weights: Tensor
    values: Tensor


class SparseRows(Protocol):
    """Arrays of NumPy as `deeprec.data.Terms` has them."""

    @property
    def offsets(self) -> Any:
        """[n + 1]."""

    @property
    def ids(self) -> Any:
        """[nnz]."""

    @property
    def weights(self) -> Any:
        """[nnz]."""

    @property
    def values(self) -> Any:
        """[n, v]."""


class TermRows:
    """Rows of terms put on a device once, from where batches are gathered.

    Args:
        terms: with arrays offsets [n + 1], ids [nnz], weights [nnz] and values [n, v].
        device: None: the CPU.

    Attributes:
        offsets, ids, weights, values: all rows, on the device; offsets and ids are int64.
        lengths: [n] terms of each row, int64, on the CPU, so that sizes are known without waiting for a device.
    """

    def __init__(self, terms: SparseRows, device: torch.device | None = None) -> None:
        device = torch.device("cpu") if device is None else torch.device(device)
        offsets = torch.as_tensor(terms.offsets).to(torch.int64)
        self.lengths = offsets.diff().cpu()
        self.offsets = to_device(offsets, device)
        self.ids = to_device(torch.as_tensor(terms.ids).to(torch.int64), device)
        self.weights = to_device(torch.as_tensor(terms.weights), device)
        self.values = to_device(torch.as_tensor(terms.values), device)

    def __len__(self) -> int:
        return len(self.lengths)

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        for name in ("offsets", "ids", "weights", "values"):
            setattr(self, name, to_device(getattr(self, name), device))

    def whole(self) -> TermBatch:
        """All rows, not copied."""
        return TermBatch(self.offsets, self.ids, self.weights, self.values)

    def batch(self, rows: Tensor) -> TermBatch:
        """The rows of these numbers, [b] integers in [0, n), any order, repeats too.

        Numbers on the CPU cost no wait for the device; those on the device cost one.
        """
        device = self.offsets.device
        on_host = rows.cpu()
        lengths = self.lengths[on_host]
        bounds = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=bounds[1:])
        nnz = int(bounds[-1])
        there, counts, offsets = (to_device(part, device) for part in (rows.long(), lengths, bounds))
        first = self.offsets[there] - offsets[:-1]
        places = torch.arange(nnz, device=device) + torch.repeat_interleave(first, counts, output_size=nnz)
        return TermBatch(offsets, self.ids[places], self.weights[places], self.values[there])


class Tower(WholeTables):
    """h_1 = act(W_1 x + A v + b_1), h_l = act(W_l h_{l-1} + b_l) of sparse terms x and dense numbers v.

    Parameters: `terms` [size, H_1], that is W_1 transposed, `numbers` [v, H_1] where there are numbers, `bias` [H_1]
    and `layers.L.weight` [H_l, H_{l-1}], `layers.L.bias`. At first all weights are uniform in
    +-sqrt(6 / (fan_in + fan_out)), biases 0. With widths (D,) and last_activation "identity" it is an embedding of
    each term, summed; over the number of a user or an item alone the factors of matrix factorisation.

    Args:
        size: terms, columns of x, >= 0; num_values: width of v, >= 0; one of them at least 1.
        widths: H_1, H_2, ..., each >= 1; the last one is the vector's.
        activation: a key of `deeprec.nn.mlp.ACTIVATIONS`.
        last_activation: of the last layer; None: as of the others.
        bias: whether layers have biases.
        fan_in: of W_1, for its initial weights: terms that a row has, where they are far fewer than there are; None:
            size + num_values.
        sparse: whether the gradient of `terms` is sparse.
        optimizer_in_backward: makes an optimizer of deeprec.train.optim, such as `functools.partial(Adagrad, lr=0.05)`:
            its step on `terms` is taken in the backward pass, and no gradient is made.
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Huang et al. 2013 (DSSM), eq. 3 to 5 and section 3.4; Glorot, Bengio 2010 for the initial weights.
    """

    def __init__(
        self,
        size: int,
        num_values: int = 0,
        widths: Sequence[int] = (300, 300, 128),
        activation: str = "tanh",
        last_activation: str | None = None,
        bias: bool = True,
        *,
        fan_in: int | None = None,
        sparse: bool = True,
        optimizer_in_backward: OptimizerFactory | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(size, num_values) < 0 or size + num_values < 1:
            raise ValueError(f"Tower: size + num_values must be >= 1, got {size} and {num_values}; give it a column")
        if not widths or min(widths) < 1:
            raise ValueError(f"Tower: widths must be one or more numbers >= 1, got {tuple(widths)}")
        for name, value in (("activation", activation), ("last_activation", last_activation or activation)):
            if value not in ACTIVATIONS:
                raise ValueError(f"Tower: {name} must be one of {', '.join(ACTIVATIONS)}, got {value!r}")
        if fan_in is not None and fan_in < 1:
            raise ValueError(f"Tower: fan_in must be >= 1, got {fan_in}")
        self.size, self.num_values, self.widths = size, num_values, tuple(widths)
        self.activation, self.last_activation = activation, last_activation or activation
        self.fan_in, self.sparse = fan_in or size + num_values, sparse
        self.terms = nn.Parameter(torch.empty(size, widths[0]))
        self.numbers = nn.Parameter(torch.empty(num_values, widths[0])) if num_values else None
        self.bias = nn.Parameter(torch.empty(widths[0])) if bias else None
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(widths))
        self.reset_parameters(generator)
        self.step_in_backward(optimizer_in_backward)

    def step_in_backward(self, factory: OptimizerFactory | None) -> None:
        """From now on take the step of `terms` in the backward pass, as `optimizer_in_backward` says; None: no more.

        Raises:
            TypeError: factory makes another kind of optimizer.
        """
        self._in_backward = None if factory is None else InBackward("Tower", factory, lambda: [self.terms])

    @property
    def optimizer(self) -> Any:
        """The optimizer whose step the backward pass takes, or None."""
        return None if self._in_backward is None else self._in_backward.optimizer

    @property
    def width(self) -> int:
        """Of the vectors."""
        return self.widths[-1]

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights that the class names."""
        bound = (6 / (self.fan_in + self.widths[0])) ** 0.5
        self.terms.uniform_(-bound, bound, generator=generator)
        if self.numbers is not None:
            self.numbers.uniform_(-bound, bound, generator=generator)
        if self.bias is not None:
            self.bias.zero_()
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()

    def dense_parameters(self) -> list[nn.Parameter]:
        """All but `terms`."""
        return [parameter for name, parameter in self.named_parameters() if name != "terms"]

    @layer_forward
    def forward(self, batch: TermBatch, plan: BagPlan | None = None) -> Tensor:
        """The vectors of rows.

        Args:
            batch: of B rows.
            plan: `csr_plan(batch.offsets, batch.ids, size)`, where several calls share it.
        Returns:
            [B, last of widths], dtype of the parameters.
        Raises:
            IndexError: an id out of range. ValueError, TypeError: tensors of other shapes, dtypes or devices.
        """
        count = batch.offsets.shape[0] - 1
        if batch.values.dim() != 2 or batch.values.shape != (count, self.num_values):
            raise ValueError(
                f"Tower: values must be [{count}, {self.num_values}], a row a row of terms, got "
                f"{tuple(batch.values.shape)}"
            )
        check_device("Tower", self.terms, "ids", batch.ids)
        x = self._first(batch, plan)
        if self.numbers is not None:
            x = torch.addmm(x, batch.values, self.numbers)
        for layer in self.layers:
            x = layer(ACTIVATIONS[self.activation](x))
        return ACTIVATIONS[self.last_activation](x)

    def _first(self, batch: TermBatch, plan: BagPlan | None) -> Tensor:
        """W_1 x + b_1."""
        if not self.size:
            zeros = batch.values.new_zeros(batch.values.shape[0], self.widths[0])
            return zeros if self.bias is None else zeros + self.bias
        if torch.is_grad_enabled():
            catch_up(self.terms, batch.ids)
        step = {} if self._in_backward is None else self._in_backward.arguments([self.terms])
        return sparse_linear(
            batch.offsets,
            batch.ids,
            batch.weights,
            self.terms,
            self.bias,
            sparse_grad=self.sparse,
            plan=plan,
            update=step.get("update"),
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Tower:
        super()._apply(fn, recurse)
        if self._in_backward is not None:
            self._in_backward.bind()
        return self

    def extra_repr(self) -> str:
        """What its layers do not say."""
        return (
            f"{self.size} terms, {self.num_values} numbers, widths={self.widths}, activation={self.activation}, "
            f"last_activation={self.last_activation}"
        )
