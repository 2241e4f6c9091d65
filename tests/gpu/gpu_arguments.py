"""Arguments of the operators, on the CPU: made here for the tests of this folder, in any size and dtype."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from gpu_parity import integers, laid_out, normal
from torch import Tensor

from deeprec.kernels.embedding.reference import embedding_plan_reference
from deeprec.kernels.embedding_bag.checks import ADAM, FTRL, ROWWISE_ADAGRAD
from deeprec.kernels.embedding_bag.reference import embedding_bags_plan_reference
from deeprec.kernels.sample_negatives import alias_table

RULE = (0.9, 0.999, 1e-8)  # of Adam
STEP = 40  # what it has taken


class Batch(NamedTuple):
    """ids of the features of a batch: [F, B], or [nnz] with offsets [F * B + 1].

    Attributes:
        scale: a number for each id, or None.
        tables, padding: the table of each feature, and the id that does not count there (-1: none).
    """

    weights: list[Tensor]
    ids: Tensor
    offsets: Tensor | None
    scale: Tensor | None
    tables: list[int]
    padding: list[int]

    def plan(self) -> tuple[Tensor, ...]:
        """Of the reference."""
        sizes = [weight.shape[0] for weight in self.weights]
        return embedding_bags_plan_reference(self.ids, self.offsets, sizes, self.tables, self.padding)


def batch_of(
    dims: list[int],
    tables: list[int],
    size: tuple[int, int | None],
    dtype: torch.dtype,
    index: torch.dtype = torch.int64,
    *,
    scaled: bool = False,
    pad: int = -1,
    rows: int = 20,
    seed: int = 0,
) -> Batch:
    """A batch of `size`: B, and the most ids of a bag (None: one id a bag, without offsets)."""
    draw = torch.Generator().manual_seed(seed)
    weights = [normal(rows + i, dim, dtype=dtype, seed=seed + i) for i, dim in enumerate(dims)]
    count, length = size
    if length is None:
        ids = torch.stack([torch.randint(0, len(weights[t]), (count,), generator=draw) for t in tables])
        offsets = None
    else:
        lengths = torch.randint(0, length + 1, (len(tables), count), generator=draw)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]).to(index)
        ids = torch.cat(
            [
                torch.randint(0, len(weights[t]), (int(n.sum()),), generator=draw)
                for t, n in zip(tables, lengths, strict=True)
            ]
        )
    scale = normal(*ids.shape, dtype=dtype, seed=seed + 50) if scaled else None
    return Batch(weights, ids.to(index), offsets, scale, tables, [pad] * len(tables))


def states_of(tables: list[Tensor], rule: int, seed: int = 5) -> tuple[list[Tensor], list[Tensor]]:
    """First and second states of an optimizer some way into training, for tables [R, D]."""
    wide = torch.float64 if tables[0].dtype == torch.float64 else torch.float32
    shapes = [w.shape[:1] if rule == ROWWISE_ADAGRAD else w.shape for w in tables]
    first = [normal(*shape, dtype=wide, seed=seed + i).square() for i, shape in enumerate(shapes)]
    second = [normal(*w.shape, dtype=wide, seed=seed + 20 + i).square() for i, w in enumerate(tables)]
    return first, second if rule in (ADAM, FTRL) else []


def options_of(rule: int) -> list[float]:
    """eps, weight_decay, beta1 and beta2; of FTRL beta, 0, l1 and l2."""
    return [1.0, 0.0, 0.05, 0.3] if rule == FTRL else [1e-8, 0.01, 0.9, 0.999]


def step_of(rule: int, max_norm: float = 0.0, seed: int = -1) -> tuple[int, Tensor, Tensor, list[float], float, int]:
    """The last arguments of an update: rule, rate, steps so far, options, largest norm, seed of the rounding."""
    return rule, torch.tensor(0.1, dtype=torch.float64), torch.tensor(3), options_of(rule), max_norm, seed


class Problem(NamedTuple):
    """A table, its states some way into training, and a gradient for some of its rows.

    Attributes:
        weight: [R, D]; first, second: [R, D], row_state: [R], states; last_step: [R], int32, what each row has reached.
        rows: [U]; grads: [U, D]; lr_history: [STEP], float64.
    """

    weight: Tensor
    first: Tensor
    second: Tensor
    row_state: Tensor
    last_step: Tensor
    rows: Tensor
    grads: Tensor
    lr_history: Tensor


def problem_of(
    num_rows: int, dim: int, dtype: torch.dtype, index: torch.dtype = torch.int64, seed: int = 0, layout: str = ""
) -> Problem:
    """A problem; `layout` is that of the gradients."""
    draw = torch.Generator().manual_seed(seed)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    second = normal(num_rows, dim, dtype=state, seed=seed + 1).square()
    last_step = torch.randint(0, STEP, (num_rows,), generator=draw, dtype=torch.int32)
    first = normal(num_rows, dim, dtype=state, seed=seed + 2)
    first[last_step == 0], second[last_step == 0] = 0, 0
    is_touched = torch.rand(num_rows, generator=draw) < 0.6
    is_touched[0] = True
    rows = is_touched.nonzero().flatten().to(index)
    grads = laid_out(normal(len(rows), dim, dtype=dtype, seed=seed + 3), layout or "contiguous")
    history = torch.rand(STEP, generator=draw, dtype=torch.float64) * 0.01
    weight = normal(num_rows, dim, dtype=dtype, seed=seed + 4)
    return Problem(weight, first, second, second.mean(1), last_step, rows, grads, history)


def update_call(p: Problem, name: str, decay: float, seed: int = -1) -> tuple[str, tuple[Any, ...], str]:
    """Operator, arguments and kernel of a rule."""
    adam, replay = "_adam_update_kernel", (p.lr_history, 0, STEP, *RULE, decay)
    states = (p.weight, p.first, p.second)
    calls: dict[str, tuple[str, tuple[Any, ...], str]] = {
        "sgd": ("sgd_update_", (p.weight, None, p.rows, p.grads, 0.1, 0.0, decay, seed), "_sgd_update_kernel"),
        "momentum": ("sgd_update_", (p.weight, p.first, p.rows, p.grads, 0.1, 0.9, decay, seed), "_sgd_update_kernel"),
        "adagrad": (
            "adagrad_update_",
            (p.weight, p.second, p.rows, p.grads, 0.1, 1e-10, decay, seed),
            "_adagrad_update_kernel",
        ),
        "rowwise_adagrad": (
            "rowwise_adagrad_update_",
            (p.weight, p.row_state, p.rows, p.grads, 0.1, 1e-10, decay, seed),
            "_rowwise_adagrad_update_kernel",
        ),
        "adam": ("adam_update_", (*states, p.rows, p.grads, STEP, 0.01, *RULE, decay, seed), adam),
        "ftrl": (
            "ftrl_update_",
            (p.weight, p.second, p.first, p.rows, p.grads, 0.1, 10 * decay, 0.2, 1.0, seed),
            "_ftrl_update_kernel",
        ),
        "adam_dense": ("adam_dense_update_", (*states, p.last_step, p.rows, p.grads, *replay), adam),
        "catch_up": ("adam_catch_up_", (*states, p.last_step, p.rows, *replay), adam),
    }
    return calls[name]


def loss_arguments(
    lengths: list[int], dim: int, dtype: torch.dtype, index: torch.dtype = torch.int64, columns: int = 25
) -> list[Any]:
    """hidden, weight, bias, indptr, indices, targets and entry weights."""
    of_entries = torch.float64 if dtype == torch.float64 else torch.float32
    nnz = sum(lengths)
    hidden = (normal(len(lengths), dim, seed=1) / dim**0.5).to(dtype)
    targets = torch.where(normal(nnz, seed=4) > 0, 1.0, -1.0).to(of_entries)
    return [
        hidden,
        normal(columns, dim, dtype=dtype, seed=2),
        normal(columns, dtype=dtype, seed=3),
        torch.tensor([0, *lengths]).cumsum(0).to(index),
        integers(columns, nnz, dtype=index, seed=5),
        targets,
        normal(nnz, dtype=of_entries, seed=6).abs(),
    ]


def als_arguments(lengths: list[int], dim: int, dtype: torch.dtype, index: torch.dtype) -> list[Any]:
    """Arguments of als_solve but for the number of steps; items are repeated within rows."""
    nnz, batch = sum(lengths), len(lengths)
    factors = 0.3 * normal(90, dim, dtype=torch.float64, seed=1)
    numbers = [
        10 * normal(nnz, dtype=torch.float64, seed=2).abs(),
        factors,
        factors.T @ factors,
        0.5 + normal(batch, dtype=torch.float64, seed=3).abs(),
        0.3 * normal(batch, dim, dtype=torch.float64, seed=4),
    ]
    indptr, indices = torch.tensor([0, *lengths]).cumsum(0).to(index), integers(90, nnz, dtype=index, seed=5)
    return [indptr, indices, *(x.to(dtype) for x in numbers)]


def dot_of(num_users: int, num_items: int, dim: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """users, items and bias."""
    tables = [normal(n, dim, dtype=dtype, seed=i) for i, n in enumerate((num_users, num_items))]
    return [*tables, normal(num_items, seed=2)]


def network_of(num_users: int, num_items: int, dim: int, layers: list[int], use_bfloat16: bool = False) -> list[Any]:
    """What the operators of the network take first."""
    first = layers[0] if layers else 0
    halves = [normal(num_users, first, seed=1), normal(num_items, first, seed=2)]
    factors = [normal(num_users, dim, seed=3), normal(num_items, dim, seed=4)]
    pairs = list(itertools.pairwise(layers))
    weights = [normal(o, i, seed=5 + n) / i**0.5 for n, (i, o) in enumerate(pairs)]
    biases = [normal(o, seed=15 + n) for n, (_, o) in enumerate(pairs)]
    last = normal(dim + (layers[-1] if layers else 0), seed=25)
    return [*halves, *factors, weights, biases, last, normal(1, seed=26), use_bfloat16]


def seen_of(num_users: int, num_items: int, most: float = 0.5, left: int = 0) -> tuple[Tensor, Tensor]:
    """indptr and indices of seen items: from none to a part of all of them, `left` at least not seen."""
    draw = torch.Generator().manual_seed(num_items)
    highest = min(num_items - left, int(num_items * most))
    counts = torch.randint(0, highest + 1, (num_users,), generator=draw)
    lists = [torch.randperm(num_items, generator=draw)[: int(n)].sort().values for n in counts]
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), torch.cat([*lists, torch.empty(0)]).int()


def ncf_arguments(
    shape: tuple[int, int, int, tuple[int, int], list[int]], index: torch.dtype, layout: str = "contiguous"
) -> tuple[Any, ...]:
    """Arguments of ncf_loss but for scale and precision.

    Args:
        shape: groups, negatives, D of the GMF part, of the two sides of the MLP, widths of its layers.
    """
    groups, negatives, gmf, mlp, hidden = shape
    num_users, num_items = 23, 41
    users = integers(num_users, groups, dtype=index)
    items = integers(num_items, groups * (1 + negatives), dtype=index, seed=1)
    plans = (*embedding_plan_reference(users, num_users), *embedding_plan_reference(items, num_items))
    widths = [sum(mlp), *hidden]
    weights = [normal(o, i, seed=2) / i**0.5 for i, o in zip(widths[:-1], hidden, strict=True)]
    last = gmf + (hidden[-1] if hidden else 0)
    labels = torch.zeros(groups, 1 + negatives)
    labels[:, :1] = 1
    sizes = zip((num_users, num_items) * 2, (gmf, gmf, *mlp), strict=True)
    tables = [normal(*size, seed=3 + i) for i, size in enumerate(sizes)]
    return (
        *(laid_out(table, layout) for table in tables),
        *plans,
        labels,
        [laid_out(weight, layout) for weight in weights],
        [0.1 * normal(o, seed=9) for o in hidden],
        normal(last, seed=10) / max(last, 1) ** 0.5,
        normal(1, seed=11),
    )


def softmax_arguments(batch: int, num_items: int, dim: int, dtype: torch.dtype, has_extras: bool = True) -> list[Any]:
    """Arguments of softmax_loss but for its numbers; extras: bias, log_q, ids (some twice) and seen lists."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    extras: list[Any] = [None] * 6
    if has_extras:
        ids = integers(max(2 * num_items // 3, 1), num_items, seed=4)
        seen = seen_of(batch, num_items)
        extras = [normal(num_items, dtype=dtype, seed=2), normal(num_items, dtype=wide, seed=3), ids, *seen, None]
    queries, items = normal(batch, dim, dtype=dtype), normal(num_items, dim, dtype=dtype, seed=1)
    return [queries, items, integers(num_items, batch, seed=5), *extras]


def sampled_softmax_arguments(
    batch: int, num_items: int, dim: int, dtype: torch.dtype, has_extras: bool = True
) -> list[Any]:
    """Arguments of sampled_softmax_loss but for its options: five negatives a row; extras: bias, lists, popularity."""
    queries, items, targets, bias, _, _, *seen = softmax_arguments(batch, num_items, dim, dtype, has_extras)
    if has_extras:
        seen = [*seen_of(batch, num_items, left=1), None]
    table = tuple(alias_table(normal(num_items, seed=6).abs() + 0.01)) if has_extras else (None, None, None)
    return [queries, items, targets, bias, *seen, 5, 7, 3, *table]
