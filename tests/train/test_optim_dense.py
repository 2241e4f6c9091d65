"""Claims about dense parameters in deeprec.train.optim: any dtype, any memory order, nothing beside them touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad

MAKERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p: SGD(p, lr=0.05),
    "SGD, momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "SGD, nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "SGD, dampening": lambda p: SGD(p, lr=0.05, momentum=0.9, dampening=0.5),
    "Adagrad": lambda p: Adagrad(p, lr=0.05),
    "RowWiseAdagrad": lambda p: RowWiseAdagrad(p, lr=0.05),
    "Adam": lambda p: Adam(p, lr=0.05),
    "Adam, amsgrad": lambda p: Adam(p, lr=0.05, amsgrad=True, maximize=True),
    "AdamW": lambda p: AdamW(p, lr=0.05),
    "FTRL": lambda p: FTRL(p, lr=0.2, l1=0.01),
}
every_rule = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def steps(param: nn.Parameter, optimizer: Any, grads: list[Tensor]) -> Tensor:
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return param.detach()


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_parameter_goes_the_way_of_a_float32_one(make: Callable[..., Any], dtype: torch.dtype) -> None:
    """States are float32, so what is lost is the rounding of weights: half a unit in the last place a step at most."""
    torch.manual_seed(0)
    start, grads = torch.randn(33, 7).to(dtype), [torch.randn(33, 7).to(dtype) for _ in range(20)]
    low, high = nn.Parameter(start.clone()), nn.Parameter(start.float())
    got, want = steps(low, make([low]), grads), steps(high, make([high]), [grad.float() for grad in grads])
    assert got.dtype == dtype
    assert (got != start).float().mean() > 0.9
    tolerance = 20 * torch.finfo(dtype).eps / 2 * 4  # weights stay below 4
    torch.testing.assert_close(got.float(), want, rtol=0, atol=tolerance)
    assert (got.float() - start.float()).abs().mean() >= 0.8 * (want - start.float()).abs().mean()


def views() -> dict[str, tuple[Tensor, Tensor]]:
    """Memory and a view of it, whose other elements belong to others."""
    base = torch.full((6, 5), 7.0)
    turned, channels = torch.full((5, 6), 7.0), torch.full((2, 3, 4, 5), 7.0).to(memory_format=torch.channels_last)
    padded = torch.full((8, 9), 7.0)
    return {
        "columns": (base, base[:, 1:3]),
        "every other row": (turned, turned[::2]),
        "transposed": (torch.empty(0), torch.full((5, 6), 7.0).t()),
        "transposed part": (padded, padded[1:5, 2:8].t()),
        "channels last": (torch.empty(0), channels),
        "one column": (base.clone(), base.clone()[:, :1]),
        "no element": (base.clone(), base.clone()[:, :0]),
        "a number": (torch.empty(0), torch.full((3,), 7.0)[1]),
    }


@every_rule
@pytest.mark.parametrize("kind", views())
@pytest.mark.parametrize("order", ["as it is", "contiguous", "expanded", "as the parameter"])
def test_a_view_is_stepped_as_its_copy_and_its_neighbours_stand(
    make: Callable[..., Any], kind: str, order: str
) -> None:
    torch.manual_seed(1)
    memory, view = views()[kind]
    before = memory.clone()
    view.copy_(torch.randn(view.shape))
    others = torch.ones(before.numel(), dtype=torch.bool)
    if memory.numel() and view.numel():
        mark = torch.zeros(before.shape)
        mark.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(1)
        others = mark.flatten() == 0
    param, copy = nn.Parameter(view), nn.Parameter(view.detach().clone(memory_format=torch.contiguous_format))
    assert param.data_ptr() == view.data_ptr()
    ours, theirs = make([param]), make([copy])
    for _ in range(5):
        grad = torch.randn(view.shape)
        if order == "expanded":
            grad = torch.randn(()).expand(view.shape)
        copy.grad = grad.clone(memory_format=torch.contiguous_format)
        if order == "as the parameter":
            grad = torch.empty_strided(view.shape, view.stride()).copy_(grad)
        param.grad = grad.contiguous() if order == "contiguous" else grad
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, copy, rtol=0, atol=0)
    if before.numel():
        assert (memory.flatten()[others] == before.flatten()[others]).all()


@every_rule
def test_states_in_another_order_than_the_parameter_are_read_rightly(make: Callable[..., Any]) -> None:
    torch.manual_seed(2)
    params = [nn.Parameter(torch.arange(12.0).reshape(3, 4)) for _ in range(2)]
    optimizers = [make([param]) for param in params]
    grads = [torch.randn(3, 4) for _ in range(3)]
    for param, optimizer in zip(params, optimizers, strict=True):
        steps(param, optimizer, grads)
    state = optimizers[1].state[params[1]]
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = value.t().contiguous().t()
    for param, optimizer in zip(params, optimizers, strict=True):
        steps(param, optimizer, grads)
    assert torch.equal(*params)


@every_rule
def test_a_parameter_whose_elements_share_memory_is_refused(make: Callable[..., Any]) -> None:
    for shared in (torch.ones(1).expand(4), torch.ones(6).as_strided((3, 3), (1, 1))):
        param = nn.Parameter(shared)
        param.grad = torch.ones(shared.shape)
        with pytest.raises(ValueError, match="elements must each have memory of their own"):
            make([param]).step()
        assert (param == 1).all()


def test_a_gradient_of_another_dtype_is_taken() -> None:
    param, wide = nn.Parameter(torch.ones(4, dtype=torch.bfloat16)), nn.Parameter(torch.ones(4))
    param.grad_dtype = torch.float32
    for some in (param, wide):
        some.grad = torch.full((4,), 0.3)
        SGD([some], lr=0.5).step()
    assert torch.equal(param, wide.bfloat16())


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SGD: parameters must be real, got one of torch\.complex64"):
        SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_of_torch_in_16_bits_learns(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).to(dtype)
    before = layer.weight.detach().clone()
    optimizer = SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(8, 64, dtype=dtype)).square().sum().backward()
    optimizer.step()
    assert (layer.weight != before).float().mean() > 0.9


ROW_MAKERS: dict[str, Callable[..., Any]] = {**MAKERS, "Adam, mode dense": lambda p: Adam(p, lr=0.05, mode="dense")}


@pytest.mark.parametrize("make", ROW_MAKERS.values(), ids=ROW_MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_view_are_stepped_as_those_of_its_copy(make: Callable[..., Any], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    for turn in (lambda x: x[:, 2:6], lambda x: x[::2], lambda x: x.t()):
        memory = torch.randn(8, 8).to(dtype)
        before = memory.clone()
        param = nn.Parameter(turn(memory))
        copy = nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
        ours, theirs = make([param]), make([copy])
        for _ in range(6):
            rows = torch.randperm(param.shape[0])[:2]  # not ascending
            grad = torch.sparse_coo_tensor(
                rows[None], torch.randn(2, param.shape[1]).to(dtype), param.shape, check_invariants=True
            )
            for some, optimizer in ((param, ours), (copy, theirs)):
                some.grad = grad
                optimizer.step()
        for optimizer in (ours, theirs):
            optimizer.flush()
        torch.testing.assert_close(param, copy, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)
        turn(before).copy_(turn(memory))
        assert torch.equal(memory, before)


@pytest.mark.gpu
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_steps_dense_parameters_as_the_cpu_does(make: Callable[..., Any], dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    for shape in (slice(None), slice(1, 3)):
        start, grads = torch.randn(9, 7).to(dtype), [torch.randn(9, 7).to(dtype)[:, shape] for _ in range(5)]
        params = [nn.Parameter(start.clone().to(device)[:, shape]) for device in ("cpu", "cuda")]
        want, got = (steps(param, make([param]), [grad.to(param.device) for grad in grads]) for param in params)
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=8 * torch.finfo(dtype).eps)
