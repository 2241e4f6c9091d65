"""A plan that is not that of its ids is an error where it enters, and can touch no memory that is not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deeprec.kernels.embedding import EmbeddingPlan, embedding, embedding_plan
from deeprec.kernels.embedding_bag import BagPlan, RowUpdate, embedding_bags, embedding_bags_plan
from deeprec.kernels.embedding_bag.reference import embedding_bags_plan_reference
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.masked_autoencoder_loss import masked_autoencoder_loss
from deeprec.kernels.ncf_loss import ncf_loss
from deeprec.kernels.plan_check.reference import plan_check_reference
from deeprec.kernels.sampled_linear_loss import csr_plan, sampled_linear_loss
from deeprec.kernels.sparse_linear import sparse_linear

_check = torch.ops.deeprec.plan_check


def _call(seed: int, has_offsets: bool, dtype: torch.dtype) -> tuple[Any, ...]:
    """ids, offsets, sizes, tables and padding of three features on two tables, the first table read twice."""
    generator = torch.Generator().manual_seed(seed)
    sizes, tables, padding, batch = [5, 9], [0, 1, 0], [-1, 2, 3], 4
    bounds = [sizes[table] for table in tables]
    if not has_offsets:
        ids = torch.stack([torch.randint(0, size, (batch,), generator=generator) for size in bounds]).to(dtype)
        return ids, None, sizes, tables, padding
    lengths = torch.randint(0, 4, (3 * batch,), generator=generator)
    counts = lengths.view(3, batch).sum(1).tolist()
    ids = torch.cat([torch.randint(0, s, (n,), generator=generator) for s, n in zip(bounds, counts, strict=True)])
    return ids.to(dtype), torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(dtype), sizes, tables, padding


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    for has_offsets in (False, True):
        call = _call(0, has_offsets, torch.int64)
        yield "plan_check", (*call, *embedding_bags_plan_reference(*call))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("has_offsets", [False, True])
def test_the_plan_of_the_ids_passes(has_offsets: bool, dtype: torch.dtype) -> None:
    for seed in range(20):
        call = _call(seed, has_offsets, dtype)
        for plan in (torch.ops.deeprec.embedding_bags_plan(*call), embedding_bags_plan_reference(*call)):
            assert bool(_check(*call, *plan))
            assert bool(plan_check_reference(*call, *plan))


@given(
    st.integers(0, 50), st.booleans(), st.integers(0, 4), st.integers(0, 30), st.sampled_from([-1, 1, 0, 7, 2**31 - 1])
)
@settings(max_examples=300)
def test_kernel_and_reference_agree_on_changed_plans(
    seed: int, has_offsets: bool, field: int, place: int, value: int
) -> None:
    call = _call(seed, has_offsets, torch.int64)
    right = embedding_bags_plan_reference(*call)
    plan = [part.clone() for part in right]
    if plan[field].numel():
        plan[field][place % plan[field].numel()] = value
    is_right = all(torch.equal(mine, theirs) for mine, theirs in zip(plan, right, strict=True))
    assert bool(_check(*call, *plan)) == is_right
    assert bool(plan_check_reference(*call, *plan)) == is_right


@given(st.integers(0, 50), st.integers(0, 50), st.booleans())
def test_plans_of_other_ids_do_not_pass(seed: int, other: int, has_offsets: bool) -> None:
    call = _call(seed, has_offsets, torch.int64)
    right, plan = (embedding_bags_plan_reference(*_call(number, has_offsets, torch.int64)) for number in (seed, other))
    is_right = all(
        mine.shape == theirs.shape and torch.equal(mine, theirs) for mine, theirs in zip(plan, right, strict=True)
    )
    assert bool(_check(*call, *plan)) == is_right == bool(plan_check_reference(*call, *plan))


# Ways to spoil a plan: (name, what becomes of its tensors by the field's name).
_SPOILERS: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = [
    ("offsets times 1000", lambda plan: {"row_offsets": plan["row_offsets"] * 1000}),
    ("offsets reversed", lambda plan: {"row_offsets": plan["row_offsets"].flip(0)}),
    ("offsets negative", lambda plan: {"row_offsets": -plan["row_offsets"]}),
    ("offsets short", lambda plan: {"row_offsets": plan["row_offsets"][:-1]}),
    ("rows shifted", lambda plan: {"rows": plan["rows"] + 1000}),
    ("rows negative", lambda plan: {"rows": plan["rows"] - 1000}),
    ("rows reversed", lambda plan: {"rows": plan["rows"].flip(0)}),
    ("rows of another dtype", lambda plan: {"rows": plan["rows"].float()}),
    ("order times 1000", lambda plan: {"order": plan["order"] * 1000}),
    ("order negative", lambda plan: {"order": -1 - plan["order"]}),
    ("order twice the same", lambda plan: {"order": torch.zeros_like(plan["order"])}),
    ("order of another dtype", lambda plan: {"order": plan["order"].double()}),
    ("nothing", lambda plan: {name: part[:0] for name, part in plan.items()}),
]
_BAG_SPOILERS = [
    ("bags shifted", lambda plan: {"bags": plan["bags"] + 1}),
    ("bags times 1000", lambda plan: {"bags": plan["bags"] * 1000}),
    ("tables begin late", lambda plan: {"table_starts": plan["table_starts"] + 1}),
    ("tables begin nowhere", lambda plan: {"table_starts": plan["table_starts"] * -1000}),
]


def _spoiled(plan: Any, spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Any:
    parts = plan._asdict()
    if isinstance(plan, EmbeddingPlan):
        parts["row_offsets"] = parts.pop("offsets")
    changed = spoil(parts)
    if isinstance(plan, EmbeddingPlan) and "row_offsets" in changed:
        changed["offsets"] = changed.pop("row_offsets")
    return plan._replace(**changed)


_IDS = torch.tensor([[3, 1, 3, 0], [2, 6, 2, 2]])
_BOUNDS = torch.tensor([0, 1, 4, 4, 6, 8])  # of the same ids, two features, in bags
_INDPTR, _COLUMNS = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 4, 0, 1, 3])


def _tables() -> list[Tensor]:
    return [torch.randn(7, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)]


def _by_bags(plan: Any) -> None:
    embedding_bags(_tables(), _IDS, plan=plan)[0].sum().backward()


def _by_long_bags(plan: Any) -> None:
    ids, bounds = _IDS.reshape(-1), torch.tensor([0, 1, 4, 6, 8])
    embedding_bags(_tables(), ids, bounds, plan=plan)[0].sum().backward()


def _by_update(plan: Any) -> None:
    weights = [table.detach() for table in _tables()]
    before = [weight.clone() for weight in weights]
    step = torch.zeros((), dtype=torch.int64)
    update = RowUpdate(0, [], [], torch.tensor(0.1, dtype=torch.float64), step, [0.0, 0.0, 0.0, 0.0])
    try:
        embedding_bags(weights, _IDS, update=update, plan=plan)[0].sum().backward()
    except ValueError:
        assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
        assert int(step) == 0
        raise


def _by_fm(plan: Any) -> None:
    linear = [torch.randn(7, requires_grad=True) for _ in range(2)]
    embedding_fm(_tables(), linear, _IDS, plan=plan).sum().backward()


def _by_sparse_linear(plan: Any) -> None:
    weight = torch.randn(5, 3, requires_grad=True)
    sparse_linear(_INDPTR, _COLUMNS, torch.randn(5), weight, plan=plan).sum().backward()


def _by_sampled_linear_loss(plan: Any) -> None:
    hidden, weight = torch.randn(3, 2), torch.randn(5, 2, requires_grad=True)
    sampled_linear_loss(hidden, weight, None, _INDPTR, _COLUMNS, torch.randn(5), plan=plan)[0].backward()


def _by_autoencoder(path: str) -> Callable[[Any], None]:
    def run(plan: Any) -> None:
        encoder, decoder = (torch.randn(5, 2, requires_grad=True) for _ in range(2))
        given = (_INDPTR, _COLUMNS, torch.randn(5), encoder, None, decoder, None)
        masked_autoencoder_loss(*given, path=path, plan=plan)[0].backward()

    return run


def _by_ncf(side: str) -> Callable[[Any], None]:
    def run(plan: Any) -> None:
        tables = [torch.randn(7, 2, requires_grad=True) for _ in range(2)]
        users, items, labels = _IDS[0], _IDS[1][:, None], torch.ones(4, 1)
        plans = {f"{side}_plan": plan}
        ncf_loss(*tables, None, None, users, items, labels, [], [], torch.randn(2), **plans).backward()

    return run


_ENTRIES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "embedding": (
        lambda: embedding_plan(_IDS, 7),
        lambda plan: embedding(_tables()[0], _IDS, plan).sum().backward(),
    ),
    "embedding_bags": (lambda: embedding_bags_plan(_IDS, None, [7, 7]), _by_bags),
    "embedding_bags with offsets": (
        lambda: embedding_bags_plan(_IDS.reshape(-1), torch.tensor([0, 1, 4, 6, 8]), [7, 7]),
        _by_long_bags,
    ),
    "embedding_bags with update": (lambda: embedding_bags_plan(_IDS, None, [7, 7]), _by_update),
    "embedding_fm": (lambda: embedding_bags_plan(_IDS, None, [7, 7]), _by_fm),
    "sparse_linear": (lambda: csr_plan(_INDPTR, _COLUMNS, 5), _by_sparse_linear),
    "sampled_linear_loss": (lambda: csr_plan(_INDPTR, _COLUMNS, 5), _by_sampled_linear_loss),
    "masked_autoencoder_loss, sparse": (lambda: csr_plan(_INDPTR, _COLUMNS, 5), _by_autoencoder("sparse")),
    "masked_autoencoder_loss, dense": (lambda: csr_plan(_INDPTR, _COLUMNS, 5), _by_autoencoder("dense")),
    "ncf_loss, users": (lambda: embedding_plan(_IDS[0], 7), _by_ncf("user")),
    "ncf_loss, items": (lambda: embedding_plan(_IDS[1], 7), _by_ncf("item")),
}


@pytest.mark.parametrize("entry", _ENTRIES)
def test_every_spoiled_plan_is_refused_where_it_enters(entry: str) -> None:
    make, use = _ENTRIES[entry]
    use(make())
    plan = make()
    spoilers = _SPOILERS + (_BAG_SPOILERS if isinstance(plan, BagPlan) else [])
    for name, spoil in spoilers:
        spoiled = _spoiled(plan, spoil)
        if name.startswith("bags") and not plan.bags.numel():
            continue  # each bag is one id
        with pytest.raises(ValueError, match=r"plan must be made from these ids"):
            use(spoiled)
    with pytest.raises(TypeError, match="must be what"):
        use(tuple(plan)[:2])


@pytest.mark.parametrize("entry", _ENTRIES)
def test_a_plan_changed_in_place_is_refused(entry: str) -> None:
    make, use = _ENTRIES[entry]
    plan = make()
    plan.rows.add_(1)
    with pytest.raises(ValueError, match=r"plan must be made from these ids"):
        use(plan)


def test_a_plan_of_ids_changed_since_is_refused() -> None:
    ids = torch.tensor([[1, 2, 3]])
    plan = embedding_bags_plan(ids, None, [7])
    ids[0, 0] = 4
    with pytest.raises(ValueError, match=r"plan must be made from these ids"):
        embedding_bags([torch.randn(7, 2, requires_grad=True)], ids, plan=plan)


@pytest.mark.parametrize(
    ("name", "spoil"), _SPOILERS + _BAG_SPOILERS, ids=lambda some: some if isinstance(some, str) else ""
)
@pytest.mark.parametrize("has_offsets", [False, True])
def test_kernels_called_by_name_stay_within_their_memory(
    name: str, spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], has_offsets: bool
) -> None:
    ids, offsets, sizes, tables, padding = _call(3, has_offsets, torch.int64)
    weights = [torch.randn(size, 3) for size in sizes]
    plan = BagPlan(*torch.ops.deeprec.embedding_bags_plan(ids, offsets, sizes, tables, padding))
    spoiled = _spoiled(plan, spoil)
    if name.startswith("bags") and not has_offsets:
        assert not plan.bags.numel()  # each bag is one id
        return
    before = [weight.clone() for weight in weights]
    inputs = (torch.randn(4, 9), [], ids[:0].reshape(-1), ids, offsets, None)
    given = (*inputs, *spoiled, tables, [0, 0, 0], padding, False)
    lr, step = torch.tensor(0.1, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    update = (0, lr, step, [0.0] * 4, 0.0, -1)
    fm = (torch.randn(4), torch.randn(4, 3), None, ids, offsets, None, *spoiled, tables, padding, False)
    calls: list[Callable[[], Any]] = [
        lambda: torch.ops.deeprec.embedding_bags_grad(weights, *given),
        lambda: torch.ops.deeprec.embedding_bags_update_(weights, [], [], *given, *update),
        lambda: torch.ops.deeprec.embedding_fm_grad(weights, [], *fm),
        lambda: torch.ops.deeprec.embedding_fm_update_(weights, [], [], [], *fm, *update),
    ]
    for call in calls:
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            call()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert int(step) == 0
