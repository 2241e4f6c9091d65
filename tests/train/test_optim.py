"""Claims about deeprec.train.optim: sparse rows against torch.optim, state, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.kernels.embedding import embedding_plan
from deeprec.nn import Embedding, EmbeddingBag, EmbeddingCollection, Table
from deeprec.train._options import OPTIONS
from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad, clip_grad_norm_


class Towers(nn.Module):
    """Two tables that share ids, and a dense layer: what the optimizers meet in NeuMF."""

    def __init__(self, sparse: bool, rows: int = 40, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one = Embedding(rows, 5, sparse_grad=sparse, dtype=dtype)
        self.two = Embedding(rows, 8, sparse_grad=sparse, dtype=dtype)
        self.out = nn.Linear(13, 1, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        plan = embedding_plan(ids, self.one.num_embeddings)
        return self.out(torch.cat([self.one(ids, plan), self.two(ids, plan)], -1).tanh())


def twins(**options: Any) -> tuple[Towers, Towers]:
    torch.manual_seed(0)
    ours, theirs = Towers(True, **options), Towers(False, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def train(
    model: Towers, optimizer: torch.optim.Optimizer, steps: int, schedule: Callable[[int], float] | None = None
) -> None:
    """Steps on batches of long-tailed ids: some rows miss hundreds of steps."""
    generator = torch.Generator().manual_seed(1)
    rows = model.one.num_embeddings
    for step in range(steps):
        if schedule:
            optimizer.param_groups[0]["lr"] = schedule(step)
        ids = (rows * torch.rand(6, generator=generator) ** 4).long()
        target = torch.randn(6, 1, generator=generator, dtype=model.out.weight.dtype)
        optimizer.zero_grad()
        ((model(ids) - target) ** 2).mean().backward()
        optimizer.step()
    if hasattr(optimizer, "flush"):
        optimizer.flush()


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


@pytest.mark.parametrize("schedule", [None, lambda step: 1e-3 * (1 + step % 5) / 3], ids=["constant", "lr schedule"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 1e-3}, {"betas": (0.8, 0.99)}], ids=str)
def test_dense_adam_equals_torch_adam_after_1000_steps(
    options: dict[str, Any], schedule: Callable[[int], float] | None
) -> None:
    ours, theirs = twins()
    train(ours, Adam(ours.parameters(), mode="dense", **options), 1000, schedule)
    train(theirs, torch.optim.Adam(theirs.parameters(), **options), 1000, schedule)
    assert largest_difference(ours, theirs) <= 1e-5


def test_dense_adam_in_float64_equals_torch_adam_to_rounding() -> None:
    ours, theirs = twins(dtype=torch.float64)
    train(ours, Adam(ours.parameters(), mode="dense"), 300)
    train(theirs, torch.optim.Adam(theirs.parameters()), 300)
    assert largest_difference(ours, theirs) <= 1e-12


def test_lazy_adam_equals_sparse_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = (Embedding(40, 8, sparse_grad=True) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    pairs = ((ours, Adam(ours.parameters())), (theirs, torch.optim.SparseAdam(theirs.parameters())))
    for table, optimizer in pairs:
        generator = torch.Generator().manual_seed(1)
        for _ in range(500):
            ids = (40 * torch.rand(6, generator=generator) ** 3).long()
            optimizer.zero_grad()
            (table(ids) * torch.randn(6, 8, generator=generator)).sum().backward()
            optimizer.step()
    # eps is bias-corrected here and not there: 1e-8 beside gradients of order one.
    assert largest_difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize(
    ("ours_is", "theirs_is", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.05}),
        (Adagrad, torch.optim.Adagrad, {"lr": 0.05}),
        (Adagrad, torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ],
    ids=["SGD", "Adagrad", "Adagrad with decay"],
)
def test_equals_torch_on_the_dense_gradient_over_500_steps(
    ours_is: Any, theirs_is: Any, options: dict[str, Any]
) -> None:
    ours, theirs = twins()
    train(ours, ours_is(ours.parameters(), **options), 500)
    train(theirs, theirs_is(theirs.parameters(), **options), 500)
    assert largest_difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize(
    ("ours_is", "theirs_is", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        (Adagrad, torch.optim.Adagrad, {"lr": 0.05, "weight_decay": 0.01}),
        (RowWiseAdagrad, torch.optim.Adagrad, {"lr": 0.05}),
        (Adam, torch.optim.Adam, {"weight_decay": 0.01}),
    ],
    ids=["SGD", "Adagrad", "RowWiseAdagrad", "Adam"],
)
def test_dense_parameters_are_stepped_as_torch_does(ours_is: Any, theirs_is: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = twins()
    ours.one.sparse_grad = ours.two.sparse_grad = False
    train(ours, ours_is(ours.parameters(), **options), 100)
    train(theirs, theirs_is(theirs.parameters(), **options), 100)
    assert largest_difference(ours, theirs) <= 1e-6


def test_every_row_touched_makes_all_options_equal_torch() -> None:
    for ours_is, theirs_is, options in (
        (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        (Adagrad, torch.optim.Adagrad, {"lr": 0.05, "weight_decay": 0.01}),
        (Adam, torch.optim.Adam, {"weight_decay": 0.01}),
    ):
        ours, theirs = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5, 3))
        a, b = ours_is([ours], **options), theirs_is([theirs], **options)
        for step in range(50):
            grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
            ours.grad, theirs.grad = grad.to_sparse(1), grad
            a.step()
            b.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"l1": 0.3, "l2": 0.01}, {"l1": 0.05, "beta": 0.0}], ids=str)
def test_ftrl_on_rows_equals_ftrl_on_the_dense_gradient(options: dict[str, Any]) -> None:
    """Dense gradients are zero at the rows that the sparse ones leave out."""
    ours, theirs = twins()
    train(ours, FTRL(ours.parameters(), **options), 500)
    train(theirs, FTRL(theirs.parameters(), **options), 500)
    assert largest_difference(ours, theirs) <= 2e-6
    assert all(map(torch.equal, (ours.one.weight,), (theirs.one.weight,)))


def test_ftrl_takes_any_shape_and_memory_order_of_a_dense_parameter() -> None:
    """Each as a flat parameter goes."""
    torch.manual_seed(0)
    for shape in ((), (0,), (1,), (7,), (33, 64), (3, 4, 16), (2, 0, 3)):
        param, flat = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(1))
        flat = nn.Parameter(param.detach().clone().reshape(1, -1))
        order = tuple(reversed(range(len(shape))))
        turned = nn.Parameter(param.detach().clone().permute(order).contiguous().permute(order))
        optimizers = [FTRL([some], lr=0.2, l1=0.5, l2=0.1) for some in (param, flat, turned)]
        for _ in range(4):
            param.grad = torch.randn(shape)
            flat.grad, turned.grad = param.grad.reshape(1, -1), param.grad.permute(order).contiguous().permute(order)
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(param.reshape(1, -1), flat, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(param, turned, rtol=1e-6, atol=1e-7)


def test_ftrl_goes_on_from_weights_set_after_it_was_made() -> None:
    """Also where the step is taken in the backward pass, whose states are there from the start."""
    layer = EmbeddingCollection([Table("t", 5, 3)], optimizer_in_backward=lambda p: FTRL(p, lr=0.1, l1=0.5))
    weight = layer.weights()[0]
    weight.data.fill_(2.0)
    layer(torch.tensor([[1], [4]])).sum().mul(1e-3).backward()
    moved = weight.detach()[[1, 4]]
    torch.testing.assert_close(moved, torch.full((2, 3), 2 - 1e-3 / (10 * (1 + 1e-3))))
    assert (weight[[0, 2, 3]] == 2).all()


def test_ftrl_stops_where_a_schedule_reaches_zero() -> None:
    for sparse in (True, False):
        model = Towers(sparse)
        optimizer = FTRL(model.parameters())
        optimizer.param_groups[0]["lr"] = 0.0
        model(torch.tensor([1])).sum().backward()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=r"lr > 0 .* a schedule of lr must not reach 0, got lr 0"):
            optimizer.step()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"FTRL: weight_decay must be 0, l2 is what it has, got 0\.1"):
        FTRL([{"params": [nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.1}])


def test_rowwise_adagrad_follows_its_formula() -> None:
    weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    want, sums = weight.detach().double(), torch.full((6,), 0.1, dtype=torch.float64)
    optimizer = RowWiseAdagrad([weight], lr=0.1, eps=1e-6, initial_accumulator_value=0.1)
    for step in range(20):
        rows = torch.tensor([step % 6, (step * 5 + 1) % 6]).unique()
        grad = torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(step))
        weight.grad = torch.sparse_coo_tensor(rows[None], grad, (6, 4), check_invariants=True)
        optimizer.step()
        sums[rows] += grad.double().square().mean(1)
        want[rows] -= 0.1 * grad.double() / (sums[rows].sqrt() + 1e-6)[:, None]
    torch.testing.assert_close(weight.detach().double(), want, rtol=0, atol=1e-6)
    assert optimizer.state[weight]["sum"].shape == (6,)


@pytest.mark.parametrize("make", [SGD, Adagrad, RowWiseAdagrad, Adam, FTRL, lambda p: Adam(p, mode="dense")])
def test_accumulated_and_repeated_rows_count_once(make: Callable[..., torch.optim.Optimizer]) -> None:
    tables = [Embedding(10, 3) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    halves = torch.tensor([3, 7, 3, 1]), torch.tensor([9, 3, 0])
    optimizers = [make(table.parameters()) for table in tables]
    for _ in range(3):
        for ids in halves:
            (tables[0](ids) ** 2).sum().backward()
        (tables[1](torch.cat(halves)) ** 2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize("make", [SGD, Adagrad, RowWiseAdagrad, Adam, FTRL, lambda p: Adam(p, mode="dense")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_from_a_state_dict_is_bit_for_bit(
    make: Callable[..., torch.optim.Optimizer], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Towers(True, dtype=dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, 20)
    saved = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    train(model, optimizer, 20)
    other = Towers(True, dtype=dtype)
    resumed = make(other.parameters())
    train(other, resumed, 3)  # whatever happened before does not matter
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[0])
    train(other, resumed, 20)
    assert largest_difference(model, other) == 0
    for a, b in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        for key, value in a.items():
            assert torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key]


def test_state_of_bfloat16_rows_is_float32() -> None:
    model = Towers(True, dtype=torch.bfloat16)
    optimizer = Adam(model.parameters(), mode="dense")
    train(model, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    state = optimizer.state[model.one.weight]
    assert state["exp_avg"].dtype == torch.float32
    assert state["last_step"].dtype == torch.int32


def test_rows_read_for_training_are_up_to_date_without_a_flush() -> None:
    table, dense = Embedding(6, 4), nn.Parameter(torch.empty(6, 4))
    dense.data.copy_(table.weight.data)
    ours, theirs = Adam(table.parameters(), lr=0.1, mode="dense"), torch.optim.Adam([dense], lr=0.1)
    for step in range(30):
        ids = torch.tensor([step % 2]) if step % 10 else torch.tensor([4, 5])
        seen = table(ids)
        torch.testing.assert_close(seen, dense[ids], rtol=0, atol=1e-5)
        seen.sum().backward()
        dense.grad = torch.zeros(6, 4).index_add_(0, ids, torch.ones(len(ids), 4))
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()


def test_change_of_betas_between_steps_is_followed() -> None:
    table, dense = Embedding(6, 4), nn.Parameter(torch.empty(6, 4))
    dense.data.copy_(table.weight.data)
    ours, theirs = Adam(table.parameters(), mode="dense"), torch.optim.Adam([dense])
    for step in range(60):
        if step == 30:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["betas"] = (0.5, 0.9)
                optimizer.param_groups[0]["weight_decay"] = 0.1
        ids = torch.tensor([(step * step) % 5])
        (table(ids) * (step + 1)).sum().backward()
        dense.grad = torch.zeros(6, 4).index_add_(0, ids, torch.full((1, 4), step + 1.0))
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    ours.flush()
    torch.testing.assert_close(table.weight, dense, rtol=0, atol=1e-5)


def test_dense_gradient_for_a_table_with_sparse_history_is_taken() -> None:
    for make, reference in (
        (lambda p: Adam(p, mode="dense"), torch.optim.Adam),
        (lambda p: Adagrad(p), torch.optim.Adagrad),
        (lambda p: SGD(p, momentum=0.0), torch.optim.SGD),
    ):
        table, dense = Embedding(6, 4), nn.Parameter(torch.empty(6, 4))
        dense.data.copy_(table.weight.data)
        ours, theirs = make(table.parameters()), reference([dense])
        for step in range(12):
            table.sparse_grad = step % 3 != 1
            ids = torch.tensor([(step * step) % 5])
            (table(ids) * (step + 1)).sum().backward()
            dense.grad = torch.zeros(6, 4).index_add_(0, ids, torch.full((1, 4), step + 1.0))
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        ours.flush()
        torch.testing.assert_close(table.weight, dense, rtol=0, atol=1e-5)


def test_groups_schedulers_and_closures_work() -> None:
    table, layer = Embedding(6, 4), nn.Linear(4, 1)
    groups = [{"params": table.parameters(), "mode": "dense"}, {"params": layer.parameters(), "lr": 0.5}]
    optimizer = Adam(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = layer(table(torch.tensor([1, 2]))).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item()]
    scheduler.step()
    losses.append(optimizer.step(closure).item())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.25)
    assert losses[0] != losses[1]
    assert "last_step" in optimizer.state[table.weight]
    assert "last_step" not in optimizer.state[layer.weight]


class Apart(Adam):
    """Adam that never takes several tables at once."""

    def _step_together(self, *_: Any) -> bool:
        return False


def test_tables_that_step_now_together_and_now_alone_equal_tables_apart() -> None:
    """Which tables have a gradient, and the learning rate, change from step to step; rows miss many steps."""
    tables = [Embedding(12, dim) for dim in (3, 5, 8)]
    twins = copy.deepcopy(tables)
    ours = Adam([table.weight for table in tables], mode="dense")
    theirs = Apart([table.weight for table in twins], mode="dense")
    generator = torch.Generator().manual_seed(0)
    together = 0
    for step in range(200):
        plan = embedding_plan(torch.randint(0, 12, (3,), generator=generator), 12)
        used = [step % 20 != 14 + table for table in range(3)]
        for optimizer, some in ((ours, tables), (theirs, twins)):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 + step % 3)
            hooks = [getattr(table.weight, "_deeprec_catch_up", None) for table in some]
            if all(hooks):
                type(hooks[0]).together(hooks, [plan.rows] * 3)
            reads = [table(plan.rows).square().sum() for table, is_used in zip(some, used, strict=True) if is_used]
            torch.stack(reads).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        together += all(used) and ours._replays[tables[0].weight].rates.sharers == 3
        for optimizer in (ours, theirs):
            if step % 20 == 19:
                optimizer.flush()
            if step == 125:
                optimizer.load_state_dict(optimizer.state_dict())
    assert together == 10 * 14
    for table, twin in zip(tables, twins, strict=True):
        assert torch.equal(table.weight, twin.weight)


def test_update_is_step_without_hooks() -> None:
    model, twin = twins()[0], twins()[0]
    calls: list[int] = []
    optimizers = [Adam(some.parameters(), mode="dense") for some in (model, twin)]
    for optimizer in optimizers:
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for _ in range(3):
        for some, optimizer, take in zip((model, twin), optimizers, ("step", "update"), strict=True):
            optimizer.zero_grad()
            some(torch.tensor([0, 3, 3])).square().sum().backward()
            getattr(optimizer, take)()
    assert len(calls) == 3
    assert largest_difference(model, twin) == 0


def test_step_between_forward_and_backward_is_an_error_where_the_rows_are_read_again() -> None:
    bag = EmbeddingBag(6, 3, mode="sum", sparse=True)
    optimizer = Adam(bag.parameters())
    ids, scale = torch.tensor([[0, 1]]), torch.ones(1, 2, requires_grad=True)
    bag(ids).sum().backward()
    out = bag(ids, per_sample_weights=scale)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_parameters_without_gradient_are_left_alone() -> None:
    model = Towers(True)
    before = copy.deepcopy(model.state_dict())
    Adam(model.parameters(), mode="dense").step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_model_in_training_copies_and_pickles_without_the_optimizer() -> None:
    model = Towers(True)
    optimizer = Adam(model.parameters(), mode="dense")
    train(model, optimizer, 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert getattr(other.one.weight, "_deeprec_catch_up", None) is None
        other(torch.tensor([1]))
    twin_model, twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, 5)
    train(twin_model, twin, 5)
    assert largest_difference(model, twin_model) == 0


def test_next_optimizer_takes_over_flushed_rows() -> None:
    model = Towers(True)
    train(model, Adam(model.parameters(), mode="dense"), 10)
    first = Adam(model.parameters(), mode="dense")
    train(model, first, 10)
    ids = torch.tensor([0, 1])
    model(ids).sum().backward()
    first.step()
    SGD(model.parameters(), lr=0.1)
    assert model.one.weight._deeprec_catch_up is None
    behind = first.state[model.one.weight]["last_step"]
    assert set(behind.tolist()) <= {0, 11}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SGD, {"lr": -1.0}, "SGD: lr must be a finite number >= 0, got -1.0"),
        (SGD, {"lr": 0.1, "momentum": float("nan")}, "momentum must be"),
        (Adagrad, {"weight_decay": -0.1}, "Adagrad: weight_decay must be"),
        (RowWiseAdagrad, {"eps": 0.0}, "RowWiseAdagrad: eps must be a finite number > 0"),
        (Adam, {"betas": (0.9, 1.0)}, "betas must be two numbers in"),
        (Adam, {"betas": (0.9,)}, "betas must be two numbers in"),
        (Adam, {"mode": "eager"}, "mode must be"),
        (Adam, {"lr": "fast"}, "lr must be a finite number"),
        (FTRL, {"lr": 0.0}, "FTRL: lr must be a finite number > 0, got 0.0"),
        (FTRL, {"l1": -0.5}, "FTRL: l1 must be a finite number >= 0, got -0.5"),
        (FTRL, {"l2": float("inf")}, "FTRL: l2 must be"),
        (FTRL, {"beta": None}, "FTRL: beta must be"),
    ],
)
def test_bad_options_are_named(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(2, 2))], **options)


def test_gradient_sparse_in_two_dimensions_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2).to_sparse(2)
    with pytest.raises(ValueError, match="rows as its sparse dimension"):
        Adam([weight]).step()


MAKERS = [SGD, lambda p, **o: SGD(p, momentum=0.9, **o), Adagrad, RowWiseAdagrad, Adam, FTRL]


@pytest.mark.parametrize("make", [*MAKERS, lambda p, **o: Adam(p, mode="dense", **o)])
def test_max_grad_norm_clips_the_tables_of_a_group_together(make: Callable[..., torch.optim.Optimizer]) -> None:
    ours, theirs = twins(dtype=torch.float64)
    ids = torch.tensor([3, 3, 7, 1])
    optimizers = [make(ours.parameters(), lr=0.1, max_grad_norm=0.01), make(theirs.parameters(), lr=0.1)]
    for _ in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            for half in (ids[:2], ids[2:]):  # accumulated, so rows repeat
                model(half).square().sum().backward()
        tables = [theirs.one.weight, theirs.two.weight]
        norm = torch.cat([table.grad.flatten() for table in tables]).norm()
        assert norm > 0.01
        for table in tables:
            table.grad = (table.grad * (0.01 / norm)).to_sparse(1)
        for optimizer in optimizers:
            optimizer.step()
    assert largest_difference(ours, theirs) <= 1e-12


def test_clip_grad_norm_is_that_of_torch_on_dense_gradients() -> None:
    ours, theirs = twins(dtype=torch.float64)
    for max_norm in (1e-3, 1e3):
        for model in (ours, theirs):
            model.zero_grad()
            for ids in (torch.tensor([3, 3, 7]), torch.tensor([7, 1])):
                model(ids).square().sum().backward()
        norm = clip_grad_norm_(ours.parameters(), max_norm)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad.to_dense(), b.grad, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="max_norm must be"):
        clip_grad_norm_(ours.parameters(), 0.0)
    assert clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0) == 0


@pytest.mark.parametrize("make", MAKERS)
def test_stochastic_rounding_keeps_updates_below_half_a_unit(make: Callable[..., torch.optim.Optimizer]) -> None:
    tables = [Embedding(4, 64, dtype=torch.bfloat16) for _ in range(3)]
    options: list[dict[str, Any]] = [{}, {"stochastic_rounding": True}, {"stochastic_rounding": True}]
    for table, option in zip(tables, options, strict=True):
        table.weight.data.fill_(1.0)
        optimizer = make(table.parameters(), lr=1e-4, **option)
        for _ in range(100):
            optimizer.zero_grad()
            table(torch.tensor([0, 2])).sum().backward()
            optimizer.step()
    assert (tables[0].weight == 1).all()
    assert torch.equal(tables[1].weight, tables[2].weight)
    assert (tables[1].weight[[1, 3]] == 1).all()
    exact = Embedding(4, 64)
    exact.weight.data.fill_(1.0)
    optimizer = make(exact.parameters(), lr=1e-4)
    for _ in range(100):
        optimizer.zero_grad()
        exact(torch.tensor([0, 2])).sum().backward()
        optimizer.step()
    moved, want = 1 - tables[1].weight[0].float().mean(), 1 - exact.weight[0].mean()
    assert abs(moved - want) <= 0.25 * want


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SGD, {"max_grad_norm": 0.0}, "max_grad_norm must be None or a finite number > 0"),
        (Adagrad, {"seed": -1}, "seed must be an integer"),
        (Adam, {"mode": "dense", "stochastic_rounding": True}, "stochastic_rounding must be off"),
    ],
)
def test_bad_options_of_the_row_updates_are_named(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize("make", [SGD, Adagrad, RowWiseAdagrad, Adam, AdamW, FTRL])
def test_every_option_is_described(make: Any) -> None:
    speed_alone = {"foreach", "fused"}  # anything goes
    assert set(make([nn.Parameter(torch.ones(2))]).defaults) - speed_alone <= set(OPTIONS)


def test_group_from_an_older_state_dict_gets_the_options_it_lacks() -> None:
    model = Towers(True)
    optimizer = RowWiseAdagrad(model.parameters())
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for key in ("max_grad_norm", "stochastic_rounding", "seed"):
            del group[key]
    optimizer.load_state_dict(saved)
    train(model, optimizer, 2)
    assert optimizer.param_groups[0]["seed"] == 0
