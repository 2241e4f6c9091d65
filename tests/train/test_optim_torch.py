"""Claims about the options and states of torch.optim in deeprec.train.optim: the same names, rules and numbers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.nn import EmbeddingCollection, Table
from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad

# name, ours, torch's, options
PAIRS: list[tuple[Any, Any, dict[str, Any]]] = [
    (SGD, torch.optim.SGD, {"lr": 0.05}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "maximize": True, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.4, "maximize": True}),
    (Adagrad, torch.optim.Adagrad, {"lr": 0.05, "maximize": True, "weight_decay": 0.1, "lr_decay": 0.1}),
    (Adam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {"lr": 0.05, "maximize": True}),
    (Adam, torch.optim.Adam, {"lr": 0.05, "amsgrad": True, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {"lr": 0.05, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    (AdamW, torch.optim.AdamW, {"lr": 0.05}),
    (AdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True, "weight_decay": 0.1}),
]
every_pair = pytest.mark.parametrize(
    ("ours_is", "theirs_is", "options"), PAIRS, ids=lambda x: getattr(x, "__name__", str(x))
)


def grads(count: int, seed: int = 0, size: tuple[int, ...] = (6, 3)) -> list[Tensor]:
    """The size of gradients falls, so that amsgrad is another rule than Adam."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) / (1 + step) for step in range(count)]


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64))


def run(param: nn.Parameter, optimizer: Any, some: list[Tensor], *, by_row: bool = False) -> None:
    for grad in some:
        param.grad = grad.to_sparse(1) if by_row else grad.clone()
        optimizer.step()


@every_pair
@pytest.mark.parametrize("by_row", [False, True], ids=["dense", "rows"])
def test_options_give_the_numbers_of_torch(ours_is: Any, theirs_is: Any, options: dict[str, Any], by_row: bool) -> None:
    """Of rows: every row touched in every step."""
    ours, theirs = parameter(), parameter()
    run(ours, ours_is([ours], **options), grads(20), by_row=by_row)
    run(theirs, theirs_is([theirs], **options), grads(20))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@every_pair
def test_options_are_read_from_groups_and_when_they_change(
    ours_is: Any, theirs_is: Any, options: dict[str, Any]
) -> None:
    ours, theirs = parameter(), parameter()
    pair = [(ours, ours_is([{"params": [ours], **options}])), (theirs, theirs_is([{"params": [theirs], **options}]))]
    for param, optimizer in pair:
        run(param, optimizer, grads(4))
        optimizer.param_groups[0]["maximize"] = not optimizer.param_groups[0]["maximize"]
        run(param, optimizer, grads(4, 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@every_pair
def test_untouched_rows_and_their_states_stand(ours_is: Any, theirs_is: Any, options: dict[str, Any]) -> None:
    param = parameter()
    optimizer = ours_is([param], **options)
    for step, grad in enumerate(grads(5)):
        rows = torch.tensor([1, 4]) if step in (0, 1, 4) else torch.tensor([4])
        others = [row for row in range(6) if row not in rows]
        param.grad = torch.sparse_coo_tensor(rows[None], grad[rows], (6, 3), check_invariants=True)
        before = copy.deepcopy((param.detach(), dict(optimizer.state[param])))
        optimizer.step()
        assert torch.equal(param[others], before[0][others])
        assert (param[rows] != before[0][rows]).all()
        for name, value in before[1].items():
            if isinstance(value, Tensor):
                assert torch.equal(optimizer.state[param][name][others], value[others])


@pytest.mark.parametrize("options", [options for kind, _, options in PAIRS if kind is SGD], ids=str)
def test_a_row_goes_as_a_parameter_with_its_gradients_alone(options: dict[str, Any]) -> None:
    """Rules that do not count steps."""
    param = parameter()
    alone = nn.Parameter(param.detach()[1:2].clone())
    optimizer, rival = SGD([param], **options), torch.optim.SGD([alone], **options)
    for step, grad in enumerate(grads(5)):
        rows = torch.tensor([1, 4]) if step in (0, 1, 4) else torch.tensor([4])
        param.grad = torch.sparse_coo_tensor(rows[None], grad[rows], (6, 3), check_invariants=True)
        optimizer.step()
        if 1 in rows:
            alone.grad = grad[1:2].clone()
            rival.step()
    torch.testing.assert_close(param[1:2], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "options", [{"amsgrad": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"maximize": True}], ids=str
)
def test_dense_mode_is_torch_on_the_dense_gradient(options: dict[str, Any]) -> None:
    ours, theirs = parameter(), parameter()
    pair = [
        (ours, Adam([ours], lr=0.05, mode="dense", **options)),
        (theirs, torch.optim.Adam([theirs], lr=0.05, **options)),
    ]
    for step, grad in enumerate(grads(30)):
        rows = torch.tensor([[0, 3], [1, 0], [5, 0]][step % 3])
        sparse = torch.sparse_coo_tensor(rows[None], grad[:2], (6, 3), check_invariants=True)
        ours.grad, theirs.grad = sparse, sparse.to_dense()
        for _, optimizer in pair:
            optimizer.step()
    pair[0][1].flush()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_dense_mode_goes_on_when_options_come_and_go() -> None:
    ours, theirs = parameter(), parameter()
    pair = [Adam([ours], lr=0.05, mode="dense"), torch.optim.Adam([theirs], lr=0.05)]
    for step, grad in enumerate(grads(40)):
        for optimizer in pair:
            optimizer.param_groups[0]["weight_decay"] = 0.1 if step % 10 > 4 else 0.0
            optimizer.param_groups[0]["decoupled_weight_decay"] = step % 20 > 9
        rows = torch.tensor([[0, 3], [1, 0], [5, 0]][step % 3])
        sparse = torch.sparse_coo_tensor(rows[None], grad[:2], (6, 3), check_invariants=True)
        ours.grad, theirs.grad = sparse, sparse.to_dense()
        for optimizer in pair:
            optimizer.step()
    pair[0].flush()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_mode_may_change_between_steps() -> None:
    weight = parameter()
    optimizer = Adam([weight], lr=0.05, mode="dense")
    for step, grad in enumerate(grads(12)):
        optimizer.param_groups[0]["mode"] = "dense" if step % 6 < 3 else "lazy"
        weight.grad = torch.sparse_coo_tensor([[step % 3]], grad[:1], (6, 3), check_invariants=True)
        before = weight.detach().clone()
        optimizer.step()
        assert ("last_step" in optimizer.state[weight]) == (step % 6 < 3)
        if step % 6 > 3:
            others = [row for row in range(6) if row != step % 3]
            assert torch.equal(weight[others], before[others])


@pytest.mark.parametrize("name", ["maximize", "nesterov", "dampening", "amsgrad", "decoupled"])
def test_a_step_in_backward_takes_every_option(name: str) -> None:
    make: Callable[..., Any] = {
        "maximize": lambda p: SGD(p, lr=0.1, maximize=True),
        "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
        "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
        "decoupled": lambda p: AdamW(p, lr=0.1, weight_decay=0.2),
    }[name]
    tables = [Table("a", 6, 3), Table("b", 5, 2)]
    fused = EmbeddingCollection(tables, optimizer_in_backward=make)
    plain = EmbeddingCollection(tables)
    plain.load_state_dict(fused.state_dict())
    optimizer = make(plain.weights())
    for step in range(8):
        ids = torch.tensor([[step % 6, step % 5], [1, 2]])
        for layer in (fused, plain):
            layer(ids).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 4:  # options may change in a layer that has been made
            for group in (*optimizer.param_groups, *fused.optimizer.param_groups):
                group["maximize"] = not group["maximize"]
    for a, b in zip(fused.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@every_pair
@pytest.mark.parametrize("by_row", [False, True], ids=["dense", "rows"])
def test_states_go_both_ways_and_training_goes_on(
    ours_is: Any, theirs_is: Any, options: dict[str, Any], by_row: bool
) -> None:
    """Through a file, into an optimizer that was made without options: those of the state count."""
    want = parameter()
    whole = theirs_is([want], **options)
    run(want, whole, grads(10))
    run(want, whole, grads(10, 1))
    for first_is, second_is in ((ours_is, theirs_is), (theirs_is, ours_is), (ours_is, ours_is)):
        param = parameter()
        first = first_is([param], **options)
        run(param, first, grads(10), by_row=by_row and first_is is ours_is)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = second_is([param])
        second.load_state_dict(torch.load(file, weights_only=True))
        run(param, second, grads(10, 1), by_row=by_row and second_is is ours_is)
        torch.testing.assert_close(param, want, rtol=0, atol=1e-12)


def test_a_state_from_before_the_first_step_goes_to_torch() -> None:
    for ours_is, theirs_is, options in PAIRS:
        param, want = parameter(), parameter()
        second = theirs_is([param])
        second.load_state_dict(ours_is([param], **options).state_dict())
        run(param, second, grads(3))
        run(want, theirs_is([want], **options), grads(3))
        torch.testing.assert_close(param, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_pair
def test_16_bit_states_go_both_ways(ours_is: Any, theirs_is: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    if dtype == torch.float16:
        options = {**options, **({"eps": 1e-4} if ours_is is not SGD else {})}  # torch's default is 0 in its arithmetic
    some = [grad.to(dtype) for grad in grads(5)]
    params = [nn.Parameter(parameter().detach().to(dtype)) for _ in range(3)]
    for param, first_is, second_is in zip(
        params, (theirs_is, ours_is, theirs_is), (ours_is, theirs_is, theirs_is), strict=True
    ):
        first = first_is([param], **options)
        run(param, first, some)
        second = second_is([param])
        second.load_state_dict(first.state_dict())
        run(param, second, some)
    for param in params[:2]:
        torch.testing.assert_close(
            param.float(), params[2].float(), rtol=0, atol=0.02 if dtype == torch.float16 else 0.12
        )


def test_a_state_of_sparse_adam_goes_on_lazily_and_back() -> None:
    """eps is bias-corrected here and not there, so it is small."""
    params = [parameter() for _ in range(3)]
    plans = [(torch.optim.SparseAdam, Adam), (Adam, torch.optim.SparseAdam), (torch.optim.SparseAdam,) * 2]
    for param, kinds in zip(params, plans, strict=True):
        state = None
        for number, kind in enumerate(kinds):
            # The weight decay and mode of what loads do not count, the state is SparseAdam's.
            optimizer = kind([param], lr=0.05, eps=1e-15) if state is None else kind([param])
            if state is not None:
                optimizer.load_state_dict(state)
            for step, grad in enumerate(grads(10, number)):
                rows = torch.tensor([step % 6])
                param.grad = torch.sparse_coo_tensor(rows[None], grad[:1], (6, 3), check_invariants=True)
                optimizer.step()
            state = optimizer.state_dict()
    for param in params[:2]:
        torch.testing.assert_close(param, params[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("ours_is", "theirs_is"), [(SGD, torch.optim.SGD), (Adagrad, torch.optim.Adagrad), (Adam, torch.optim.SparseAdam)]
)
def test_the_state_of_a_step_in_backward_goes_to_torch_and_back(ours_is: Any, theirs_is: Any) -> None:
    """Two tables share one count of steps there, and a tensor of the learning rate."""
    layers = [EmbeddingCollection([Table("a", 6, 3), Table("b", 5, 2)]) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    make: Callable[..., Any] = lambda p: ours_is(p, lr=0.05)  # noqa: E731

    def train(layer: Any, optimizer: Any, first: int) -> None:
        for step in range(first, first + 5):
            layer(torch.tensor([[step % 6, step % 5], [1, 2]])).square().sum().backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

    layers[0].step_in_backward(make)
    train(layers[0], None, 0)
    inside = layers[0].optimizer
    layers[0].step_in_backward(None)
    between = theirs_is(layers[0].weights())
    between.load_state_dict(inside.state_dict())
    train(layers[0], between, 5)
    layers[0].step_in_backward(ours_is)
    layers[0].optimizer.load_state_dict(between.state_dict())
    train(layers[0], None, 10)

    whole = make(layers[1].weights())
    for first in (0, 5, 10):
        train(layers[1], whole, first)
    for a, b in zip(layers[0].weights(), layers[1].weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    if ours_is is not SGD:  # torch's does not count
        assert {int(state["step"]) for state in layers[0].optimizer.state.values()} == {15}


def test_what_a_state_lacks_is_off() -> None:
    param = parameter()
    saved = torch.optim.SparseAdam([param], lr=0.01).state_dict()
    optimizer = Adam([param], weight_decay=0.1, amsgrad=True, maximize=True, mode="dense", max_grad_norm=3.0)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert [group[key] for key in ("weight_decay", "amsgrad", "maximize", "lr")] == [0.0, False, False, 0.01]
    assert (group["mode"], group["max_grad_norm"]) == ("dense", 3.0)  # ours alone: as it was made


def test_a_dense_mode_state_that_torch_took_further_owes_no_steps() -> None:
    ours, theirs = parameter(), parameter()
    first, rival = Adam([ours], mode="dense", lr=0.05), torch.optim.Adam([theirs], lr=0.05)

    def both(optimizer: Any, count: int, seed: int) -> None:
        for step, grad in enumerate(grads(count, seed)):
            rows = torch.tensor([step % 5])
            sparse = torch.sparse_coo_tensor(rows[None], grad[:1], (6, 3), check_invariants=True)
            ours.grad = sparse if isinstance(optimizer, Adam) else sparse.to_dense()
            theirs.grad = sparse.to_dense()
            optimizer.step()
            rival.step()

    both(first, 7, 0)
    middle = torch.optim.Adam([ours])
    middle.load_state_dict(first.state_dict())
    both(middle, 7, 1)
    last = Adam([ours], mode="dense")
    last.load_state_dict(middle.state_dict())
    both(last, 7, 2)
    last.flush()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_a_momentum_buffer_that_torch_kept_sparse_is_taken() -> None:
    param = parameter()
    first = torch.optim.SGD([param], lr=0.1, momentum=0.9)
    run(param, first, grads(2), by_row=True)
    buffer = first.state[param]["momentum_buffer"]
    assert buffer.is_sparse
    second = SGD([param], lr=0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[param]["momentum_buffer"], buffer.to_dense())
    run(param, second, grads(2), by_row=True)


@pytest.mark.parametrize("key", ["foreach", "fused", "capturable", "differentiable"])
def test_options_about_the_speed_of_torch_change_nothing(key: str) -> None:
    for ours_is, options in ((SGD, {}), (Adagrad, {}), (RowWiseAdagrad, {}), (Adam, {}), (AdamW, {}), (FTRL, {})):
        params = [parameter(), parameter()]
        for param, value in zip(params, (False, None if key == "differentiable" else True), strict=True):
            run(param, ours_is([{"params": [param], key: value}], **options), grads(3))
        assert torch.equal(*params)
        if key == "differentiable":
            with pytest.raises(
                ValueError, match=f"{ours_is.__name__}: {key} must be False, it is not supported, got True"
            ):
                ours_is([parameter()], **{key: True})


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SGD, {"momentun": 0.9}, r"SGD: momentun is not an option of it; did you mean 'momentum'\?"),
        (SGD, {"amsgrad": True}, r"SGD: amsgrad is not an option of it; "),
        (Adam, {"beta1": 0.9}, r"Adam: beta1 is not an option of it; did you mean 'betas'\?"),
        (Adagrad, {"maximise": True}, r"Adagrad: maximise is not an option of it; did you mean 'maximize'\?"),
        (FTRL, {"momentum": 0.9}, "FTRL: momentum is not an option of it; "),
        (
            SGD,
            {"nesterov": True},
            "SGD: nesterov must have momentum > 0 and dampening 0, got momentum 0.0, dampening 0.0",
        ),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov must have momentum > 0"),
        (SGD, {"dampening": float("nan")}, "SGD: dampening must be a finite number, got nan"),
        (SGD, {"maximize": 1}, "SGD: maximize must be True or False, got 1"),
        (Adam, {"amsgrad": "yes"}, "Adam: amsgrad must be True or False, got 'yes'"),
        (AdamW, {"decoupled_weight_decay": False}, "AdamW: decoupled_weight_decay must be True"),
    ],
)
def test_options_that_are_none_or_wrong_are_named(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([{"params": [parameter()], **options}])
    optimizer = make([parameter()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter()], **options})
    assert len(optimizer.param_groups) == 1
    if len(options) == 1 and "decoupled_weight_decay" not in options:
        with pytest.raises(ValueError, match=message):
            make([parameter()], **options)


def test_notes_of_schedulers_and_names_are_no_options() -> None:
    layer = nn.Linear(3, 2)
    optimizer = Adam(layer.named_parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10)
    other = torch.optim.Adam(layer.named_parameters())
    torch.optim.lr_scheduler.OneCycleLR(other, 1.0, total_steps=10)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.load_state_dict(other.state_dict())
    other.load_state_dict(optimizer.state_dict())
    SGD([{"params": layer.parameters(), "name": "head", "initial_lr": 0.1}])


def test_a_state_of_another_rule_is_refused_and_changes_nothing() -> None:
    param = parameter()
    states = {}
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adam, torch.optim.NAdam):
        other = kind([param])
        run(param, other, grads(1))
        states[kind.__name__] = other.state_dict()
    for make, name, message in (
        (SGD, "RMSprop", r"SGD: alpha is not an option of it"),
        (Adam, "NAdam", r"Adam: momentum_decay is not an option of it"),
        (Adagrad, "Adam", r"Adagrad: betas is not an option of it"),
    ):
        optimizer = make([param])
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(states[name])
        assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    bare = Adam([param]).state_dict()
    bare["state"] = {0: {"step": 3, "exp_avg": torch.zeros(6, 3)}}
    with pytest.raises(ValueError, match="the state of a parameter must have exp_avg, exp_avg_sq, got"):
        Adam([param]).load_state_dict(bare)
    bare["state"] = {0: {"step": 3, "exp_avg": torch.zeros(3, 6), "exp_avg_sq": torch.zeros(3, 6)}}
    with pytest.raises(ValueError, match=r"exp_avg in the state of a parameter must be \(6, 3\)"):
        Adam([param]).load_state_dict(bare)


def test_sums_by_row_are_for_rowwise_adagrad_alone() -> None:
    param = parameter()
    first = RowWiseAdagrad([param])
    run(param, first, grads(2), by_row=True)
    with pytest.raises(ValueError, match=r"Adagrad: sum in the state of a parameter must be \(6, 3\).*got \(6,\)"):
        Adagrad([param]).load_state_dict(first.state_dict())
    third = torch.optim.Adagrad([param])
    run(param, third, grads(2))
    second = RowWiseAdagrad([param])
    second.load_state_dict(third.state_dict())
    sums = third.state[param]["sum"].mean(1) + grads(1)[0].square().mean(1)
    run(param, second, grads(1), by_row=True)
    torch.testing.assert_close(second.state[param]["sum"], sums)
