"""CUDA graphs: what kernels/README.md lists replays with the rate and the step of the moment; what waits refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels.embedding_bag import embedding_bags, embedding_bags_plan
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.nn import EmbeddingCollection, Table
from deeprec.train.optim import FTRL, SGD, Adagrad, Adam, RowWiseAdagrad

pytestmark = pytest.mark.gpu
SIZES, DIM = (40, 25, 3), 16
RULES: dict[str, Callable[..., Any]] = {
    "SGD": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "Adagrad": partial(Adagrad, lr=0.1),
    "RowWiseAdagrad": partial(RowWiseAdagrad, lr=0.1),
    "Adam": partial(Adam, lr=0.05),
    "Adam, clipped": partial(Adam, lr=0.05, max_grad_norm=0.5),
    "FTRL": partial(FTRL, lr=0.2, l1=0.01),
}


class Steps:
    """Tables and their step in the backward pass of one call with a plan that is given."""

    def __init__(self, make: Callable[..., Any], with_fm: bool, dtype: torch.dtype, **options: Any) -> None:
        torch.manual_seed(0)
        widths = [*((rows, DIM) for rows in SIZES), *((rows, 1) for rows in SIZES if with_fm)]
        self.params = [torch.nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype)) for shape in widths]
        self.ids = torch.stack([torch.randint(0, rows, (500,), device="cuda") for rows in SIZES])
        self.plan = embedding_bags_plan(self.ids, None, SIZES)
        self.optimizer = make(self.params, **options)
        self.update = self.optimizer.row_step(lambda: self.params)
        self.with_fm = with_fm
        self.scale = torch.randn(500, 1, device="cuda").to(dtype)

    def __call__(self) -> None:
        count = len(SIZES)
        given: dict[str, Any] = {"update": self.update(), "plan": self.plan}
        if self.with_fm:
            out = embedding_fm(self.params[:count], self.params[count:], self.ids, **given)[0].unsqueeze(1)
        else:
            out = embedding_bags(self.params, self.ids, **given)[0]
        (out * self.scale).sum().backward()

    def tensors(self) -> list[Tensor]:
        states = (self.optimizer.state[param] for param in self.params)
        return [*self.params, *(value for state in states for value in state.values() if isinstance(value, Tensor))]


def captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of one call, after three on a stream of their own, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
@pytest.mark.parametrize("with_fm", [False, True])
@pytest.mark.parametrize(("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, {"stochastic_rounding": True})])
def test_a_graph_steps_as_calls_do(
    make: Callable[..., Any], with_fm: bool, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """Bit for bit what calls with numbers on the device do; those with numbers on the host round lr / (1 - beta^t)."""
    replayed, called, plain = (
        Steps(make, with_fm, dtype, capturable=capturable, **options) for capturable in (True, True, False)
    )
    graph = captured(replayed)
    junk = [torch.full((1 << 20,), 7.0, device="cuda") for _ in range(8)]  # over memory that a graph would have lost
    for step in (called, plain):
        for _ in range(3):
            step()
    for number in range(6):
        if number == 3:
            for steps in (replayed, called, plain):
                steps.optimizer.param_groups[0]["lr"].fill_(0.02)
        graph.replay()
        called()
        plain()
    torch.cuda.synchronize()
    del junk
    assert all(torch.equal(x, y) for x, y in zip(replayed.tensors(), called.tensors(), strict=True))
    assert int(replayed.optimizer.state[replayed.params[0]]["step"]) == 9
    if dtype == torch.float32:
        for got, want in zip(replayed.tensors(), plain.tensors(), strict=True):
            torch.testing.assert_close(got.cpu(), want.cpu(), rtol=1e-4, atol=1e-5)


def refused(call: Callable[[], Any], message: str) -> None:
    """The call is refused while a graph is captured, and the capture can be ended."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match=message):
        call()
    torch.cuda.synchronize()


@pytest.mark.parametrize("with_fm", [False, True])
def test_numbers_on_the_host_are_refused(with_fm: bool) -> None:
    steps = Steps(RULES["Adam"], with_fm, torch.float32)
    steps()
    before = [param.detach().clone() for param in steps.params]
    refused(steps, r"embedding_(bags|fm)_update_: cannot be captured .* capturable=True")
    assert all(torch.equal(x, y) for x, y in zip(before, steps.params, strict=True))


def test_what_waits_is_refused() -> None:
    ids = torch.randint(0, 40, (1, 50), device="cuda")
    refused(lambda: embedding_bags_plan(ids, None, [40]), "embedding_bags_plan: cannot be captured")
    layer = EmbeddingCollection([Table("a", 40, 8)], optimizer_in_backward=partial(SGD, lr=0.1, capturable=True)).cuda()
    layer(ids.T).sum().backward()
    refused(lambda: layer(ids.T).sum().backward(), "embedding_bags_plan: cannot be captured .* plan=")
    param = torch.nn.Parameter(torch.randn(40, 8, device="cuda"))
    param.grad = torch.sparse_coo_tensor(ids[:, :1], torch.ones(1, 8, device="cuda"), (40, 8), is_coalesced=True)
    optimizer = Adam([param], capturable=True)
    optimizer.step()
    refused(optimizer.step, "Adam.step: cannot be captured")
