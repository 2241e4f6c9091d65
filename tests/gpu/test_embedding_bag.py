"""embedding_bags, its plan, gradients and updates, embedding_bag and plan_check: dtypes, modes, shapes, layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_arguments import Batch, batch_of, states_of, step_of
from gpu_parity import DEVICE, FLOATS, INDICES, LAYOUTS, check, grid, laid_out, normal, on_gpu
from torch import Tensor

from deeprec.kernels.embedding_bag import embedding_bags
from deeprec.kernels.embedding_bag.checks import ADAGRAD, ADAM, FTRL, MAX, MEAN, NONE, ROWWISE_ADAGRAD, SGD, SUM
from deeprec.kernels.embedding_bag.reference import embedding_bags_reference

GATHER, POOL, ROWS = "_bags_gather_kernel", "_bags_pool_kernel", "_bags_rows_kernel"
PLAN = ["_plan_keys_kernel", "_plan_heads_kernel", "_plan_rows_kernel"]
# Dims of the tables, table of each feature, mode of each.
COLLECTIONS = [
    ([16], [0], [SUM]),
    ([1, 3, 16], [0, 1, 2], [MEAN, MAX, NONE]),
    ([200, 7], [0, 1, 0], [SUM, NONE, MAX]),
    ([130, 33, 8, 4], [3, 2, 1, 0], [NONE, MAX, MEAN, SUM]),
    ([300, 1], [0, 1], [MAX, SUM]),
    ([1028], [0, 0], [SUM, MEAN]),
    *on_gpu(([16] * 26, list(range(26)), [SUM] * 26), ([257], [0], [MAX]), ([64, 128], [0, 1, 1], [MEAN, SUM, SUM])),
]
# B, most ids a bag (None: one id a bag, no offsets). Tables of twenty rows: in large batches a row has many entries.
SIZES = [(9, 5), (5, None), (1, 3), (13, None), (3, 0), (0, 4), (0, None), *on_gpu((1000, 40), (4099, None))]


def entries_a_row(b: Batch) -> float:
    return 64 + b.ids.numel() / len(b.weights[0])


@grid(collection=COLLECTIONS, size=SIZES, dtype=FLOATS, index=INDICES, scaled=[False, True], pad=[3, -1])
def test_lookup_plan_and_gradients(
    collection: Any, size: Any, dtype: torch.dtype, index: torch.dtype, scaled: bool, pad: int
) -> None:
    dims, tables, modes = collection
    b = batch_of(dims, tables, size, dtype, index, scaled=scaled, pad=pad)
    check_all(b, [SUM] * len(modes) if scaled else modes)


def check_all(b: Batch, modes: list[int], of_grad: str = "contiguous") -> None:
    """Lookup, plan and both gradients of a batch, each with the kernels that its input calls for."""
    call = (b.tables, modes, b.padding)
    has_bags = b.offsets is not None
    batch = b.ids.shape[1] if b.offsets is None else (len(b.offsets) - 1) // len(b.tables)
    is_pooled = batch > 0 and not (has_bags and set(modes) == {NONE})
    kernels = [POOL if has_bags else GATHER] if is_pooled else []
    out = check("embedding_bags", b.weights, b.ids, b.offsets, b.scale, *call, kernels=kernels)
    sizes, nnz = [len(weight) for weight in b.weights], b.ids.numel()
    plan = check(
        "embedding_bags_plan", b.ids, b.offsets, sizes, b.tables, b.padding, kernels=PLAN if nnz and batch else []
    )
    check("plan_check", b.ids, b.offsets, sizes, b.tables, b.padding, *plan)
    dtype = b.weights[0].dtype
    grads = [laid_out(normal(*x.shape, dtype=dtype, seed=60 + i), of_grad) for i, x in enumerate([out[0], *out[2:]])]
    given = (grads[0], grads[1:], out[1], b.ids, b.offsets, b.scale)
    rows = {"kernels": [ROWS] if plan[0].numel() else [], "terms": 8.0 * entries_a_row(b)}
    check("embedding_bags_grad", b.weights, *given, *plan, *call, b.scale is not None, **rows)
    check("embedding_bags_dense_grad", b.weights, *given, *call, b.scale is not None, **rows)


@grid(layout=LAYOUTS, of_ids=LAYOUTS, of_grad=[*LAYOUTS, "expanded"], dtype=FLOATS, index=INDICES)
def test_any_layout(layout: str, of_ids: str, of_grad: str, dtype: torch.dtype, index: torch.dtype) -> None:
    for size, scaled in (((7, None), True), ((6, 3), False)):
        b = batch_of([16, 5, 8], [0, 1, 2], size, dtype, index, scaled=scaled, pad=4)
        b = b._replace(
            weights=[laid_out(w, layout) for w in b.weights],
            ids=laid_out(b.ids, of_ids),
            scale=None if b.scale is None else laid_out(b.scale, of_ids),
            offsets=None if b.offsets is None else laid_out(b.offsets, of_ids),
        )
        check_all(b, [SUM] * 3 if scaled else [SUM, MEAN, MAX], of_grad)


@grid(
    count=[65, *on_gpu(64, 1030, 5000, 100_003)], modes=[[SUM], [MEAN, MAX]], dtype=[*FLOATS[:2], *on_gpu(*FLOATS[2:])]
)
def test_a_row_hit_thousands_of_times(count: int, modes: list[int], dtype: torch.dtype) -> None:
    """A row of many entries, which is cut into pieces, beside rows of one."""
    lengths = torch.tensor([count - 3, 40, 0, 2] * len(modes))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.full((int(offsets[-1]),), 2)
    ids[-40:] = torch.arange(40)
    scale = normal(len(ids), dtype=dtype) if modes == [SUM] else None
    check_all(Batch([normal(50, 5, dtype=dtype)], ids, offsets, scale, [0] * len(modes), [-1] * len(modes)), modes)


def backward_of(b: Batch, modes: list[int]) -> tuple[Any, ...]:
    """(grad, sequence_grads, argmax, ids, offsets, scale) of a batch."""
    out = embedding_bags_reference(b.weights, b.ids, b.offsets, b.scale, b.tables, modes, b.padding)
    dtype = b.weights[0].dtype
    grads = [normal(*x.shape, dtype=dtype, seed=70 + i) for i, x in enumerate([out[0], *out[2:]])]
    return grads[0], grads[1:], out[1], b.ids, b.offsets, b.scale


def check_update(b: Batch, modes: list[int], rule: int, max_norm: float, seed: int) -> None:
    """Rule -1: SGD without momentum."""
    first, second = states_of(b.weights, max(rule, 0)) if rule >= 0 else ([], [])
    step = step_of(max(rule, 0), max_norm, seed)
    tail = (*b.plan(), b.tables, modes, b.padding, b.scale is not None, *step)
    kernels = [ROWS] if b.plan()[0].numel() else []
    given = (b.weights, first, second, *backward_of(b, modes))
    check("embedding_bags_update_", *given, *tail, kernels=kernels, terms=32 * entries_a_row(b))


UPDATES = [([16, 260, 3], [0, 1, 2, 0], [SUM, MEAN, MAX, NONE]), ([1, 8], [0, 1], [SUM, SUM]), ([7], [0], [MEAN])]
UPDATES += on_gpu(([16] * 26, list(range(26)), [SUM] * 26), ([1100, 64], [0, 1], [SUM, MEAN]))
RULES = [-1, SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL]


@grid(
    rule=RULES,
    collection=UPDATES,
    size=[(2, 3), (5, None), *on_gpu((500, 5), (4096, None))],
    dtype=FLOATS,
    max_norm=[0.5, 0.0],
    scaled=[False, True],
)
def test_update(rule: int, collection: Any, size: Any, dtype: torch.dtype, max_norm: float, scaled: bool) -> None:
    dims, tables, modes = collection
    b = batch_of(dims, tables, size, dtype, scaled=scaled, pad=3)
    check_update(b, [SUM] * len(modes) if scaled else modes, rule, max_norm, -1)


@grid(rule=RULES, size=[(5, None), (2, 3)], dim=[16, 3, *on_gpu(130)])
def test_update_with_stochastic_rounding(rule: int, size: Any, dim: int) -> None:
    check_update(batch_of([dim, 5], [0, 1], size, torch.bfloat16), [SUM, SUM], rule, 0.0, 7)


@pytest.mark.parametrize("rule", RULES)
def test_update_with_nothing_to_do(rule: int) -> None:
    check_update(batch_of([16, 5], [0, 1], (0, None), torch.float32), [SUM, SUM], rule, 0.5, -1)


@grid(mode=[SUM, MEAN, MAX], dtype=FLOATS, size=[(9, 5), (1, 3), (4, 0), (0, 4)], scaled=[False, True])
def test_bags_of_one_table(mode: int, dtype: torch.dtype, size: Any, scaled: bool) -> None:
    b = batch_of([12], [0], size, dtype, scaled=scaled)
    kernels = [POOL] if size[0] else []
    last = b.offsets
    for ends in (True, False):
        offsets = last if ends else last[:-1]
        if len(offsets):
            call = (b.weights[0], b.ids, offsets, b.scale, SUM if scaled else mode, 3, ends)
            check("embedding_bag", *call, kernels=kernels)


@grid(index=INDICES, pad=[-1, 3])
def test_plan_of_tables_beyond_int32(index: torch.dtype, pad: int) -> None:
    high = 2**31 - 1
    ids = torch.tensor([[high, 0, 7], [4, 4, 0], [high, 3, high]]).to(index)
    check("embedding_bags_plan", ids, None, [2**31, 5, 2**33], [0, 1, 2], [pad] * 3, kernels=PLAN)


def test_a_plan_of_other_ids_is_found_out() -> None:
    b = batch_of([4], [0], (9, 3), torch.float32)
    plan = b.plan()
    for part in range(5):
        other: list[Tensor] = [x.clone() for x in plan]
        other[part][-1] += 1
        check("plan_check", b.ids, b.offsets, [20], [0], [-1], *other)


@pytest.mark.gpu
def test_a_table_beyond_2_31_elements() -> None:
    rows, dim = 2**25 + 3, 64
    weight = torch.zeros(rows, dim, dtype=torch.bfloat16, device=DEVICE)
    ids = torch.tensor([[rows - 1, 0, 2**25, rows - 1]], device=DEVICE)
    weight[ids[0]] = torch.arange(1, 5, dtype=torch.bfloat16, device=DEVICE)[:, None].expand(4, dim)
    weight.requires_grad_()
    out, _ = embedding_bags([weight], ids)
    assert torch.equal(out, weight[ids[0]])
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.coalesce().indices()[0].tolist() == [0, 2**25, rows - 1]
    assert weight.grad.coalesce().values()[:, 0].tolist() == [1, 1, 2]
