"""Second-order interactions of field embeddings, the scalar and the vector form: `python -m bench fm_interaction`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.harness import COPY, Case, Contender, Target, Trial, rotating
from bench.rivals import compiled
from bench.workloads import NUM_BATCHES, scale
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction

BATCH = {"cpu": 4096, "cuda": 65_536}
SHAPES = ((26, 16), (39, 10), (26, 64))
EAGER, COMPILED, AUTOTUNED = "torch, eager", "torch.compile", "torch.compile, max-autotune"

TARGETS = (
    *(
        Target(f"{name}, {what}", f"{name} {what}", rival, 1.0)
        for name in ("fm_interaction", "bi_interaction")
        for what in ("forward", "forward + backward")
        for rival in (COMPILED, EAGER)
    ),
    Target("fm_interaction, forward: bandwidth", "fm_interaction forward", "limit", 0.7),
    *(
        Target(f"{name}, {what}", f"{name} {what}", rival, reach, device="cuda")
        for name in ("fm_interaction", "bi_interaction")
        for what in ("forward", "forward + backward")
        for rival, reach in ((COPY, 0.85), (COMPILED, 1.0), (AUTOTUNED, 1.0), (EAGER, 1.0))
    ),
)


def plain_bi_interaction(x: Tensor) -> Tensor:
    """0.5 [(sum_f x)^2 - sum_f x^2], as models write it."""
    return 0.5 * (x.sum(1).square() - x.square().sum(1))


def plain_fm_interaction(x: Tensor) -> Tensor:
    """The same, summed over D."""
    return plain_bi_interaction(x).sum(1)


PLAIN = {"fm_interaction": plain_fm_interaction, "bi_interaction": plain_bi_interaction}
OURS = {"fm_interaction": fm_interaction, "bi_interaction": bi_interaction}


def _contenders(
    name: str, device: str, trial: Trial, enter: Callable[[str, Callable[[Tensor], Tensor]], Contender]
) -> Trial:
    trial.contenders.append(enter("deeprec", OURS[name]))
    trial.add_rival(COMPILED, lambda: enter(COMPILED, compiled(PLAIN[name])))
    trial.add_rival(EAGER, lambda: enter(EAGER, PLAIN[name]))
    if device == "cuda":
        trial.add_rival(AUTOTUNED, lambda: enter(AUTOTUNED, compiled(PLAIN[name], max_autotune=True)))
    return trial


def _forward(name: str, device: str, num_fields: int, dim: int) -> Trial:
    batches = [torch.randn(BATCH[device], num_fields, dim) for _ in range(NUM_BATCHES)]

    def enter(who: str, function: Callable[[Tensor], Tensor]) -> Contender:
        return Contender(who, rotating(function, batches), lambda: [function(batches[0])])

    return _contenders(name, device, Trial([PLAIN[name](batches[0].double())], tolerance=1e-5), enter)


def _backward(name: str, device: str, num_fields: int, dim: int) -> Trial:
    batches = [torch.randn(BATCH[device], num_fields, dim, requires_grad=True) for _ in range(NUM_BATCHES)]
    grad = torch.randn(BATCH[device], *(() if name == "fm_interaction" else (dim,)))
    wide = batches[0].detach().double().requires_grad_()
    PLAIN[name](wide).backward(grad.double())

    def enter(who: str, function: Callable[[Tensor], Tensor]) -> Contender:
        def run(x: Tensor) -> Tensor:
            x.grad = None
            function(x).backward(grad)
            return x.grad

        return Contender(who, rotating(run, batches), lambda: [run(batches[0])])

    return _contenders(name, device, Trial([wide.grad], tolerance=1e-5), enter)


def cases(device: str = "cpu") -> list[Case]:
    """Both forms, forward and with the gradient, at three shapes."""
    batch, found = BATCH[device], []
    how_large = scale(device, f"B {batch:,}", f"B {BATCH['cpu']:,}")
    for name in PLAIN:
        for num_fields, dim in SHAPES:
            size, label = batch * num_fields * dim * 4, f"{name}, B {batch}, F {num_fields}, D {dim}"
            out = batch * 4 * (1 if name == "fm_interaction" else dim)
            flops = 3 * batch * num_fields * dim
            for what, make, moved, times in (
                ("forward", _forward, size + out, 1),
                ("forward + backward", _backward, 3 * size + 2 * out, 2),
            ):
                build, group = partial(make, name, device, num_fields, dim), f"{name} {what}"
                found.append(Case(f"{label}, {what}", group, build, moved, times * flops, COPY, scale=how_large))
    return found
