"""Lookup, linear term and factorisation machine in one pass: `python -m bench embedding_fm [--cases "one table"]`.

26 fields that share one table (of 2.6 million rows on the CPU), the ids of a field in a range of their own, [B, F] in
memory as models have them. torch.compile takes part in two forms: as models write the formula, and field by field with
running sums, which it turns into one loop that keeps no embedding. A step "forward + backward" ends with a gradient of
the table: coalesced (ours; torch's `coalesce`) or dense. A rival that stops at the gradient of the looked-up rows,
[B, F, D], is timed too: it does less than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Case, Contender, Target, Trial, as_tensors, no_grad, rotating
from bench.machine import COPY, Gather
from bench.rivals import compiled
from bench.workloads import (
    NUM_BATCHES,
    Tables,
    compact,
    distinct,
    optimizer_of,
    row_update,
    scale,
    skewed_ids,
    touched,
    uniform_ids,
)
from deeprec.kernels.embedding_bag import RowUpdate, embedding_bag, embedding_bags
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.fm_interaction import fm_interaction

NUM_FIELDS, D = 26, 16
TABLES = [0] * NUM_FIELDS
LENGTH = 4  # of multi-hot bags, on average; about as many entries as with one id a bag
LINES = {"cpu": 64, "cuda": 32}  # bytes that memory moves for a linear weight of 4
LR, ADAGRAD = 0.05, 1
EPS = 0.01  # large, so that a gradient of next to nothing does not move a weight by its sign alone
OURS, TWO_OPS, OUR_DENSE = "deeprec", "deeprec, embedding_bags + fm_interaction", "deeprec, dense gradient"
COMPILED, BY_FIELD, EAGER = "torch.compile", "torch.compile, field by field", "torch, eager"
AUTOTUNED = "torch.compile, max-autotune"
COALESCED, ROWS_ONLY = "torch.compile + coalesce", "torch.compile, gradient of [B, F, D] only"
TORCH_ADAGRAD = "torch.compile + coalesce + torch.optim.Adagrad"

TARGETS = (
    Target("lookup + FM forward, 26 fields, D 16, B 4096, 2.6M rows", "forward", BY_FIELD, 1.7),
    Target("same, torch.compile of the formula as models write it", "forward", COMPILED, 1.7),
    Target("same, eager", "forward", EAGER, 15.0),
    Target("same, forward + backward: dense gradient", "forward + backward", COMPILED, 2.5),
    Target("same, forward + backward: coalesced gradient", "forward + backward", COALESCED, 2.5),
    Target("multi-hot, forward", "multi-hot forward", COMPILED, 1.7),
    Target("lookup + FM forward: bandwidth", "forward", "limit", 0.7),
    Target("multi-hot, forward: bandwidth", "multi-hot forward", "limit", 0.7),
    *(
        Target(work, group, rival, reach, device="cuda")
        for work, group, fraction, rivals in (
            ("lookup + FM forward, 26 fields, D 16", "forward", 0.85, (BY_FIELD, COMPILED, AUTOTUNED, EAGER)),
            ("26 tables, forward", "forward of 26 tables", 0.85, (BY_FIELD, COMPILED)),
            ("multi-hot, forward", "multi-hot forward", 0.85, (COMPILED,)),
            ("lookup + FM, forward + backward", "forward + backward", 0.6, (COMPILED, COALESCED)),
            ("lookup + FM, forward + backward + Adagrad", "training", 0.6, (TORCH_ADAGRAD,)),
        )
        for rival, reach in ((COPY, fraction), *((rival, 1.0) for rival in rivals))
    ),
)

Linear = list[Tensor]


def pairs(x: Tensor) -> Tensor:
    """0.5 sum_d [(sum_f x)^2 - sum_f x^2] of [B, F, D], as models write it."""
    return 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(1)


def plain(weight: Tensor, linear: Linear, ids: Tensor) -> Tensor:
    """Lookup, linear term and FM of ids [B, F]."""
    out = pairs(F.embedding(ids, weight))
    return out + linear[0][ids].sum(1) if linear else out


def by_field(weights: Sequence[Tensor], linear: Linear, ids: Tensor) -> Tensor:
    """The same with running sums; weights: one table, or one a field."""
    total = products = weights[0].new_zeros(len(ids), weights[0].shape[1], dtype=torch.float32)
    first = weights[0].new_zeros(len(ids), dtype=torch.float32)
    for field in range(NUM_FIELDS):
        row = weights[field % len(weights)][ids[:, field]].float()
        products, total = products + total * row, total + row
        if linear:
            first = first + linear[0][ids[:, field]]
    return (products.sum(1) + first).to(weights[0].dtype)


def two_ops(weight: Tensor, linear: Linear, ids: Tensor, **options: Any) -> Tensor:
    """Our lookup and our FM one after the other."""
    rows, *_ = embedding_bags([weight], ids.T, tables=TABLES, **options)
    out = fm_interaction(rows.view(len(ids), NUM_FIELDS, D))
    return out + embedding_bag(linear[0], ids, mode="sum").squeeze(1) if linear else out


def one_table(size: Tables, draw: Callable[..., Tensor] = uniform_ids) -> list[Tensor]:
    """Batches of ids [B, F], each field in its own range of the rows."""
    first = torch.arange(NUM_FIELDS) * size.rows
    return [draw(size.rows, size.batch, NUM_FIELDS) + first for _ in range(NUM_BATCHES)]


def _tables(size: Tables, has_linear: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Linear]:
    weight = (torch.randn(size.all_rows, D) * 0.1).to(dtype)
    return weight, [(torch.randn(size.all_rows, 1) * 0.1).to(dtype)] if has_linear else []


def _flat(linear: Linear) -> Linear:
    return [w.view(-1) for w in linear]


def _enter(trial: Trial, name: str, run: Callable[[Any], Any], batches: Sequence[Any]) -> None:
    quiet = no_grad(run)
    trial.add_rival(name, lambda: Contender(name, rotating(quiet, batches), lambda: as_tensors(quiet(batches[0]))))


# Forward.


def _forward(size: Tables, device: str, has_linear: bool, dtype: torch.dtype) -> Trial:
    weight, linear = _tables(size, has_linear, dtype)
    batches = one_table(size)
    expected = pairs(weight[batches[0]].double())
    if has_linear:
        expected += linear[0][batches[0]].double().sum((1, 2))
    trial = Trial([expected], tolerance=1e-5 if dtype == torch.float32 else 2**-8)
    flat = _flat(linear)
    _enter(trial, OURS, lambda ids: embedding_fm([weight], linear, ids.T, tables=TABLES), batches)
    _enter(trial, TWO_OPS, partial(two_ops, weight, linear), batches)
    _enter(trial, BY_FIELD, partial(compiled(by_field), [weight], flat), batches)
    _enter(trial, COMPILED, partial(compiled(plain), weight, flat), batches)
    _enter(trial, EAGER, partial(plain, weight, flat), batches)
    if device == "cuda":
        _enter(trial, AUTOTUNED, partial(compiled(plain, max_autotune=True), weight, flat), batches)
    return trial


def _forward_of_tables(size: Tables) -> Trial:
    weights = [torch.randn(size.rows, D) * 0.1 for _ in range(NUM_FIELDS)]
    batches = [uniform_ids(size.rows, size.batch, NUM_FIELDS) for _ in range(NUM_BATCHES)]

    def stacked(ids: Tensor) -> Tensor:
        return torch.stack([F.embedding(ids[:, f], weight) for f, weight in enumerate(weights)], 1)

    trial = Trial([pairs(stacked(batches[0]).double())], tolerance=1e-5)
    _enter(trial, OURS, lambda ids: embedding_fm(weights, [], ids.T), batches)
    _enter(trial, BY_FIELD, partial(compiled(by_field), weights, []), batches)
    _enter(trial, COMPILED, compiled(lambda ids: pairs(stacked(ids))), batches)
    _enter(trial, EAGER, lambda ids: pairs(stacked(ids)), batches)
    return trial


# Multi-hot: bags of 0 to 2 * LENGTH ids, feature after feature; every entry is a feature of its own in the formula.


def bag_lengths(size: Tables) -> Tensor:
    """0 to 8, of all bags of a batch of B / LENGTH samples, in an order of its own each batch."""
    return torch.arange(NUM_FIELDS * size.batch // LENGTH) % (2 * LENGTH + 1)


@dataclass(frozen=True)
class Bags:
    """A batch of B / LENGTH samples; `samples` is what only the rivals need, and is given to them: [nnz]."""

    ids: Tensor
    offsets: Tensor
    samples: Tensor

    @classmethod
    def make(cls, size: Tables) -> Bags:
        count, lengths = size.batch // LENGTH, bag_lengths(size)
        lengths = lengths[torch.randperm(len(lengths))]
        bags = torch.repeat_interleave(torch.arange(NUM_FIELDS * count), lengths)
        ids = uniform_ids(size.rows, len(bags)) + bags // count * size.rows
        return cls(ids, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]), bags % count)


def plain_bags(num_samples: int, weight: Tensor, linear: Linear, ids: Tensor, samples: Tensor) -> Tensor:
    """Sums and sums of squares by sample."""
    rows, zeros = F.embedding(ids, weight), weight.new_zeros(num_samples, D)
    total, squares = zeros.index_add(0, samples, rows), zeros.index_add(0, samples, rows.square())
    out = 0.5 * (total.square() - squares).sum(1)
    return out.index_add(0, samples, linear[0][ids]) if linear else out


def _multi_hot(size: Tables, has_linear: bool) -> Trial:
    weight, linear = _tables(size, has_linear)
    batches = [Bags.make(size) for _ in range(NUM_BATCHES)]
    first, plainly = batches[0], partial(plain_bags, size.batch // LENGTH)
    rows, wide, inverse = compact(weight, first.ids)
    of_rows = [linear[0].view(-1)[rows].double()] if linear else []
    trial = Trial([plainly(wide, of_rows, inverse, first.samples)], tolerance=1e-5)
    flat, whole = _flat(linear), compiled(plainly)
    _enter(trial, OURS, lambda b: embedding_fm([weight], linear, b.ids, b.offsets, tables=TABLES), batches)
    _enter(trial, COMPILED, lambda b: whole(weight, flat, b.ids, b.samples), batches)
    _enter(trial, EAGER, lambda b: plainly(weight, flat, b.ids, b.samples), batches)
    return trial


# Forward and backward.


def _gradients(weight: Tensor, linear: Linear, ids: Tensor, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The rows that a batch touches, and their gradients (rows [U, D], linear weights [U]) in float64."""
    rows, wide, inverse = compact(weight.detach(), ids)
    leaves = [wide.requires_grad_(), *(w.detach().view(-1)[rows].double().requires_grad_() for w in linear)]
    return rows, list(torch.autograd.grad(plain(leaves[0], leaves[1:], inverse), leaves, grad.double()))


def with_rows_grad(weight: Tensor, linear: Linear, ids: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The result and the gradient of the looked-up rows [B, F, D]; that of linear weights is `grad` itself."""
    rows = F.embedding(ids, weight)
    total = rows.sum(1)
    out = 0.5 * (total.square() - rows.square().sum(1)).sum(1)
    if linear:
        out = out + linear[0][ids].sum(1)
    return out, grad.view(-1, 1, 1) * (total.unsqueeze(1) - rows)


def coalesced(num_rows: int, ids: Tensor, values: Tensor) -> Tensor:
    """torch's coalesced gradient of a table from that of every looked-up row, [B, F] or [B, F, D]."""
    flat = values.reshape(ids.numel(), *values.shape[2:])
    shape = (num_rows, *flat.shape[1:])
    return torch.sparse_coo_tensor(ids.view(1, -1), flat, shape, check_invariants=False).coalesce()


def _backward(size: Tables, has_linear: bool, draw: Callable[..., Tensor]) -> Trial:
    weight, linear = _tables(size, has_linear)
    leaves = [w.requires_grad_() for w in (weight, *linear)]
    batches, grad = one_table(size, draw), torch.randn(size.batch)
    rows, expected = _gradients(weight, linear, batches[0], grad)
    trial = Trial(expected, tolerance=1e-5)
    detached = [w.detach() for w in leaves]
    flat = [w.view(-1) for w in detached[1:]]

    def enter(name: str, step: Callable[[Tensor], Any], read: Callable[[Any], list[Tensor]]) -> None:
        trial.add_rival(name, lambda: Contender(name, rotating(step, batches), lambda: read(step(batches[0]))))

    def through_autograd(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        return lambda ids: torch.autograd.grad(forward(ids), leaves, grad)

    def of_rows(found: Sequence[Tensor]) -> list[Tensor]:
        dense = [g.coalesce()._values() if g.is_sparse else g[rows] for g in found]
        return [dense[0], *(g.view(-1) for g in dense[1:])]

    def ours(ids: Tensor, sparse_grad: bool = True) -> Tensor:
        return embedding_fm([weight], linear, ids.T, tables=TABLES, sparse_grad=sparse_grad)

    explicit = compiled(with_rows_grad)

    def rows_only(ids: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = explicit(detached[0], flat, ids, grad)
        return found

    def and_coalesced(ids: Tensor) -> list[Tensor]:
        values = [rows_only(ids)[1], *(grad.unsqueeze(1).expand_as(ids) for _ in linear)]
        return [coalesced(size.all_rows, ids, some) for some in values]

    def summed(found: tuple[Tensor, Tensor]) -> list[Tensor]:
        values = [found[1], *(grad.unsqueeze(1).expand_as(batches[0]) for _ in linear)]
        return [coalesced(size.all_rows, batches[0], some)._values() for some in values]

    enter(OURS, through_autograd(ours), of_rows)
    enter(OUR_DENSE, through_autograd(partial(ours, sparse_grad=False)), of_rows)
    enter(TWO_OPS, through_autograd(partial(two_ops_trained, weight, linear)), of_rows)
    whole = compiled(plain)
    enter(COMPILED, through_autograd(lambda ids: whole(weight, _flat(linear), ids)), of_rows)
    enter(COALESCED, and_coalesced, of_rows)
    enter(ROWS_ONLY, rows_only, summed)
    enter(EAGER, through_autograd(lambda ids: plain(weight, _flat(linear), ids)), of_rows)
    return trial


def two_ops_trained(weight: Tensor, linear: Linear, ids: Tensor) -> Tensor:
    """As `two_ops`, with sparse gradients."""
    rows, *_ = embedding_bags([weight], ids.T, tables=TABLES)
    out = fm_interaction(rows.view(len(ids), NUM_FIELDS, D))
    return out + embedding_bag(linear[0], ids, mode="sum", sparse_grad=True).squeeze(1) if linear else out


# Forward, backward and the optimizer's step.


def _training(size: Tables) -> Trial:
    weight, linear = _tables(size, has_linear=True)
    batches, grad = one_table(size), torch.randn(size.batch)
    rows, gradients = _gradients(weight, linear, batches[0], grad)
    expected = []
    for table, gradient in zip((weight, linear[0].view(-1)), gradients, strict=True):
        expected.append(table[rows].double() - LR * gradient / (gradient.abs() + EPS))
    trial = Trial(expected, tolerance=1e-4)

    def enter(name: str, make: Callable[[list[Tensor]], Callable[[Tensor], None]]) -> None:
        mine = [weight.clone(), linear[0].clone()]
        step = make(mine)

        def check() -> list[Tensor]:
            step(batches[0])
            return touched([mine[0], mine[1].view(-1)], [rows, rows])

        trial.add_rival(name, lambda: Contender(name, rotating(step, batches), check))

    def update_of(tables: list[Tensor]) -> RowUpdate:
        return row_update(ADAGRAD, [torch.zeros_like(w) for w in tables], [], LR, [EPS, 0.0, 0.0, 0.0])

    def fused(mine: list[Tensor]) -> Callable[[Tensor], None]:
        update = update_of(mine)
        return lambda ids: embedding_fm(mine[:1], mine[1:], ids.T, tables=TABLES, update=update).backward(grad)

    def in_sequence(mine: list[Tensor]) -> Callable[[Tensor], None]:
        updates = [update_of([w]) for w in mine]

        def step(ids: Tensor) -> None:
            found, *_ = embedding_bags([mine[0]], ids.T, tables=TABLES, update=updates[0])
            first, *_ = embedding_bags([mine[1]], ids.T, tables=TABLES, update=updates[1])
            (fm_interaction(found.view(size.batch, NUM_FIELDS, D)) + first.sum(1)).backward(grad)

        return step

    def torch_adagrad(mine: list[Tensor]) -> Callable[[Tensor], None]:
        leaves = [w.requires_grad_() for w in mine]
        optimizer = optimizer_of(partial(torch.optim.Adagrad, lr=LR, eps=EPS), leaves)
        explicit = compiled(with_rows_grad)

        def step(ids: Tensor) -> None:
            with torch.no_grad():
                _, values = explicit(leaves[0], [leaves[1].view(-1)], ids, grad)
            leaves[0].grad = coalesced(size.all_rows, ids, values)
            leaves[1].grad = coalesced(size.all_rows, ids, grad.view(-1, 1, 1).expand(*ids.shape, 1))
            optimizer.step()

        return step

    enter(OURS, fused)
    enter(TWO_OPS, in_sequence)
    enter(TORCH_ADAGRAD, torch_adagrad)
    return trial


def cases(device: str = "cpu") -> list[Case]:
    """Forward with one id a bag and with several, with the gradient, and with the optimizer's step."""
    size, line = Tables.on(device), LINES[device]
    nnz, batch, all_rows, found = size.nnz, size.batch, size.all_rows, []
    read, written = Gather(4 * D, all_rows, writes=False), Gather(4 * D, all_rows, writes=True)
    table = f"one table of {all_rows / 1e6:g}M rows"
    torch.manual_seed(0)
    num_touched = {draw: distinct(one_table(size, draw)[0]) for draw in (uniform_ids, skewed_ids)}
    for has_linear in (False, True):
        more = " with linear term" if has_linear else ""
        forward = nnz * (8 + 4 * D + line * has_linear)
        build = partial(_forward, size, device, has_linear, torch.float32)
        found.append(Case(f"{table}{more}, forward", "forward", build, forward + 4 * batch, 3 * nnz * D, read))
        lengths = bag_lengths(size)
        entries = int(lengths.sum())
        bags = entries * (8 + 4 * D + line * has_linear) + (len(lengths) + batch // LENGTH) * 8
        build = partial(_multi_hot, size, has_linear)
        name = f"multi-hot{more}, forward"
        found.append(Case(name, "multi-hot forward", build, bags, 3 * entries * D, read))
        for draw, ids in ((uniform_ids, ""), (skewed_ids, ", skewed ids"))[: 1 if has_linear else 2]:
            rows = num_touched[draw]
            both = forward + nnz * (4 * D + 8) + rows * (2 * 4 * D + (line + 4) * has_linear)
            build = partial(_backward, size, has_linear, draw)
            name = f"{table}{more}, forward + backward{ids}"
            found.append(Case(name, f"forward + backward{ids}", build, both, 5 * nnz * D, written))
    build, limit = partial(_forward, size, device, False, torch.bfloat16), Gather(2 * D, all_rows, writes=False)
    moved = nnz * (8 + 2 * D)
    found.append(Case(f"{table}, bfloat16, forward", "bfloat16 forward", build, moved, 3 * nnz * D, limit))
    name, build, moved = (
        f"26 tables of {size.rows // 1000}k rows, forward",
        partial(_forward_of_tables, size),
        nnz * (8 + 4 * D),
    )
    found.append(Case(name, "forward of 26 tables", build, moved, 3 * nnz * D, read))
    moved = nnz * (16 + 2 * 4 * D + 2 * line) + num_touched[uniform_ids] * (4 * 4 * D + 3 * line)
    name = f"{table} with linear term, forward + backward + Adagrad"
    found.append(Case(name, "training", partial(_training, size), moved, 10 * nnz * D, written))
    return [replace(case, scale=scale(device, str(size), str(Tables.on("cpu")))) for case in found]
