"""Second-order interactions of field embeddings, the scalar and the vector form: `python -m bench fm_interaction`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.harness import COPY, Case, Contender, Target, Trial, rotating
from bench.rivals import compiled
from bench.workloads import NUM_BATCHES
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction

B = 4096
SHAPES = ((26, 16), (39, 10), (26, 64))
EAGER, COMPILED = "torch, eager", "torch.compile"

TARGETS = (
    *(
        Target(f"{name}, {what}", f"{name} {what}", rival, 1.0)
        for name in ("fm_interaction", "bi_interaction")
        for what in ("forward", "forward + backward")
        for rival in (COMPILED, EAGER)
    ),
    Target("fm_interaction, forward: bandwidth", "fm_interaction forward", "limit", 0.7),
)


def plain_bi_interaction(x: Tensor) -> Tensor:
    """0.5 [(sum_f x)^2 - sum_f x^2], as models write it."""
    return 0.5 * (x.sum(1).square() - x.square().sum(1))


def plain_fm_interaction(x: Tensor) -> Tensor:
    """The same, summed over D."""
    return plain_bi_interaction(x).sum(1)


PLAIN = {"fm_interaction": plain_fm_interaction, "bi_interaction": plain_bi_interaction}
OURS = {"fm_interaction": fm_interaction, "bi_interaction": bi_interaction}


def _contenders(name: str, trial: Trial, enter: Callable[[str, Callable[[Tensor], Tensor]], Contender]) -> Trial:
    trial.contenders.append(enter("deeprec", OURS[name]))
    trial.add_rival(COMPILED, lambda: enter(COMPILED, compiled(PLAIN[name])))
    trial.add_rival(EAGER, lambda: enter(EAGER, PLAIN[name]))
    return trial


def _forward(name: str, num_fields: int, dim: int) -> Trial:
    batches = [torch.randn(B, num_fields, dim) for _ in range(NUM_BATCHES)]

    def enter(who: str, function: Callable[[Tensor], Tensor]) -> Contender:
        return Contender(who, rotating(function, batches), lambda: [function(batches[0])])

    return _contenders(name, Trial([PLAIN[name](batches[0].double())], tolerance=1e-5), enter)


def _backward(name: str, num_fields: int, dim: int) -> Trial:
    batches = [torch.randn(B, num_fields, dim, requires_grad=True) for _ in range(NUM_BATCHES)]
    grad = torch.randn(B, *(() if name == "fm_interaction" else (dim,)))
    wide = batches[0].detach().double().requires_grad_()
    PLAIN[name](wide).backward(grad.double())

    def enter(who: str, function: Callable[[Tensor], Tensor]) -> Contender:
        def run(x: Tensor) -> Tensor:
            x.grad = None
            function(x).backward(grad)
            return x.grad

        return Contender(who, rotating(run, batches), lambda: [run(batches[0])])

    return _contenders(name, Trial([wide.grad], tolerance=1e-5), enter)


def cases() -> list[Case]:
    """Both forms, forward and with the gradient, at three shapes."""
    found = []
    for name in PLAIN:
        for num_fields, dim in SHAPES:
            size, label = B * num_fields * dim * 4, f"{name}, B {B}, F {num_fields}, D {dim}"
            out = B * 4 * (1 if name == "fm_interaction" else dim)
            flops = 3 * B * num_fields * dim
            build = partial(_forward, name, num_fields, dim)
            found.append(Case(f"{label}, forward", f"{name} forward", build, size + out, flops, COPY))
            build, size = partial(_backward, name, num_fields, dim), 3 * size + 2 * out
            found.append(
                Case(f"{label}, forward + backward", f"{name} forward + backward", build, size, 2 * flops, COPY)
            )
    return found
