"""The public functions against themselves in float64 on the CPU.

Values and gradients by autograd, eager and as one compiled graph, and a step in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from gpu_arguments import batch_of, dot_of, loss_arguments, ncf_arguments, network_of, options_of, seen_of, states_of
from gpu_parity import DEVICE, HAS_GPU, integers, launched, moved, normal, wide
from torch import Tensor

from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.embedding import embedding
from deeprec.kernels.embedding_bag import RowUpdate, embedding_bag, embedding_bags
from deeprec.kernels.embedding_bag.checks import ADAM
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction
from deeprec.kernels.masked_autoencoder_loss import masked_autoencoder_loss
from deeprec.kernels.ncf_loss import ncf_loss
from deeprec.kernels.sample_negatives import alias_table, sample_negatives
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.score_topk import DotScorer, NCFScorer, score_items, score_topk
from deeprec.kernels.sparse_linear import sparse_linear

# Inductor takes a C++ compiler and seconds for each graph of the stand-in; what it is given is the same.
BACKEND = "inductor" if HAS_GPU else "aot_eager"


class Case(NamedTuple):
    """A differentiable call.

    Attributes:
        call: takes leaves and the rest, gives tensors.
        leaves: floating tensors with a gradient.
        rest: what else it takes.
        kernels: Triton kernels that forward and backward must run.
    """

    call: Callable[[list[Tensor], list[Any]], Any]
    leaves: list[Tensor]
    rest: list[Any]
    kernels: list[str]


BAGS = batch_of([12, 5], [0, 1, 0], (6, None), torch.float32, scaled=True)
POOLS = batch_of([12, 5], [0, 1, 0], (4, 3), torch.float32, pad=3)
LOSS = loss_arguments([3, 0, 30], 12, torch.float32)
NCF = ncf_arguments((5, 2, 3, (4, 4), [6, 5]), torch.int64)
ROWS = ["_rows_pieces_kernel", "_bags_rows_kernel"]
# Ascending within a row.
AUTOENCODER = [torch.tensor([0, 3, 3, 14]), torch.cat([torch.tensor([1, 4, 9]), torch.arange(0, 22, 2)])]

CASES = {
    "embedding": Case(
        lambda x, r: embedding(x[0], r[0], sparse_grad=False),
        [normal(30, 12)],
        [integers(30, 9, 2)],
        ["_embedding_fwd_kernel", "_embedding_grad_kernel"],
    ),
    "embedding_bag": Case(
        lambda x, r: embedding_bag(x[0], *r, mode="mean", sparse_grad=False),
        [normal(30, 12)],
        [integers(30, 9), torch.tensor([0, 4, 4])],
        ["_bags_pool_kernel", *ROWS],
    ),
    "embedding_bags": Case(
        lambda x, r: embedding_bags(x[:2], r[0], per_sample_weights=x[2], tables=[0, 1, 0], sparse_grad=False)[0],
        [*BAGS.weights, BAGS.scale],  # type: ignore[list-item]
        [BAGS.ids],
        ["_bags_gather_kernel", *ROWS],
    ),
    "embedding_bags with offsets": Case(
        lambda x, r: embedding_bags(
            x, *r, tables=[0, 1, 0], modes=["sum", "mean", "max"], padding_idx=[3, 3, 3], sparse_grad=False
        )[0],
        list(POOLS.weights),
        [POOLS.ids, POOLS.offsets],
        ["_bags_pool_kernel", "_inverse_lengths_kernel", *ROWS],
    ),
    "embedding_fm": Case(
        lambda x, r: embedding_fm(x[:2], x[2:4], r[0], values=x[4], tables=[0, 1, 0], sparse_grad=False),
        [normal(20, 8), normal(21, 8, seed=1), normal(20, seed=2), normal(21, seed=3), normal(3, 6, seed=4)],
        [BAGS.ids],
        ["_embedding_fm_fwd_kernel", "_embedding_fm_rows_kernel"],
    ),
    "fm_interaction": Case(
        lambda x, _: fm_interaction(x[0]),
        [normal(6, 5, 12)],
        [],
        ["_fm_interaction_fwd_kernel", "_fm_interaction_grad_kernel"],
    ),
    "bi_interaction": Case(
        lambda x, _: bi_interaction(x[0]),
        [normal(6, 5, 12)],
        [],
        ["_fm_interaction_fwd_kernel", "_fm_interaction_grad_kernel"],
    ),
    "sparse_linear": Case(
        lambda x, r: sparse_linear(*r, x[0], x[1], x[2], activation="tanh", sparse_grad=False),
        [normal(33), LOSS[1], normal(12, seed=2)],
        LOSS[3:5],
        ["_bags_pool_kernel", *ROWS],
    ),
    "sampled_linear_loss": Case(
        lambda x, r: sampled_linear_loss(
            *x, *r[:3], entry_weights=r[3], activation="sigmoid", loss="squared", sparse_grad=False
        ),
        LOSS[:3],
        LOSS[3:],
        ["_sampled_linear_loss_kernel", "_sampled_linear_grad_kernel", *ROWS],
    ),
    "masked_autoencoder_loss": Case(
        lambda x, r: masked_autoencoder_loss(*r, *x, path="sparse", sparse_grad=False),
        [normal(25, 12), normal(12, seed=1), normal(25, 12, seed=2), normal(25, seed=3)],
        [*AUTOENCODER, normal(14, seed=4)],
        ["_sampled_linear_loss_kernel", "_bags_pool_kernel", *ROWS],
    ),
    "ncf_loss": Case(
        lambda x, r: ncf_loss(*x[:4], *r, x[4:6], x[6:8], x[8], x[9]),
        [*NCF[:4], *NCF[11], *NCF[12], NCF[13], NCF[14]],
        [integers(23, 5), integers(41, 5, 3, seed=1), NCF[10]],
        [],
    ),
}


def values_and_gradients(case: Case, leaves: list[Tensor], rest: list[Any], compiled: bool) -> list[Tensor]:
    """Results with a floating dtype, then a gradient for each leaf."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    call = torch.compile(case.call, fullgraph=True, backend=BACKEND) if compiled else case.call
    out = call(leaves, rest)
    out = [out] if isinstance(out, Tensor) else list(out)
    total = sum((x * torch.linspace(-1, 2, x.numel()).to(x).view(x.shape)).sum() for x in out if x.requires_grad)
    grads = torch.autograd.grad(total, leaves)  # type: ignore[arg-type]
    return [*(x.detach() for x in out), *(grad.to_dense() for grad in grads)]


def close(got: Tensor, exact: Tensor, dtype: torch.dtype = torch.float32) -> None:
    eps = 256 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.cpu().double(), exact, rtol=eps, atol=eps * float(exact.abs().max().clamp(min=1)))


# In the stand-in some are compiled, for the test's own sake: tests/nn/test_compile.py compiles them on the CPU.
COMPILED = CASES if HAS_GPU else ["embedding", "embedding_fm", "sampled_linear_loss"]
RUNS = [*((name, "eager") for name in CASES), *((name, "compiled") for name in COMPILED)]


@pytest.mark.parametrize(("name", "how"), RUNS, ids=["-".join(run) for run in RUNS])
def test_values_and_gradients(name: str, how: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    with launched(*case.kernels):
        got = values_and_gradients(case, moved(case.leaves), moved(case.rest), how == "compiled")
    rest = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in case.rest]
    exact = values_and_gradients(case, wide(case.leaves), rest, False)
    assert all(x.device.type == DEVICE.type for x in got)
    for ours, theirs in zip(got, exact, strict=True):
        close(ours, theirs)


def test_a_sparse_gradient_is_coalesced_and_equal_to_the_dense_one() -> None:
    ids, weight = integers(30, 40).to(DEVICE), normal(30, 12).to(DEVICE).requires_grad_()
    grads = [
        torch.autograd.grad(embedding(weight, ids, sparse_grad=sparse).square().sum(), weight)[0]
        for sparse in (True, False)
    ]
    assert grads[0].is_sparse
    assert grads[0].is_coalesced()
    assert torch.equal(grads[0].to_dense(), grads[1])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_step_in_the_backward_pass(compiled: bool) -> None:
    torch._dynamo.reset()
    results = []
    for device, dtype in ((DEVICE, torch.float32), ("cpu", torch.float64)):
        weights = [w.to(device, dtype, copy=True) for w in POOLS.weights]
        first, second = ([s.to(device, dtype) for s in states] for states in states_of(POOLS.weights, ADAM))
        lr, step = torch.tensor(0.1, dtype=torch.float64), torch.tensor(3)
        update = RowUpdate(ADAM, first, second, lr, step, options_of(ADAM))
        trigger = torch.zeros((), device=device, requires_grad=True)
        ids, offsets = moved([POOLS.ids, POOLS.offsets], device)

        def call(
            weights: list[Tensor], ids: Tensor, offsets: Tensor, update: Any = update, trigger: Any = trigger
        ) -> Any:
            return embedding_bags(weights, ids, offsets, tables=[0, 1, 0], update=update, trigger=trigger)[0]

        is_here = device is DEVICE
        function = torch.compile(call, fullgraph=True, backend=BACKEND) if compiled and is_here else call
        with launched(*(["_bags_pool_kernel", *ROWS] if is_here else [])):
            function(weights, ids, offsets).square().sum().backward()
        results.append([x.double().cpu() for x in (*weights, *first, *second)])
    for got, exact in zip(*results, strict=True):
        close(got, exact)


def test_what_has_no_gradient() -> None:
    indptr, indices = seen_of(5, 40)
    seen = {"seen_indptr": indptr, "seen_indices": indices}
    there = {key: value.to(DEVICE) for key, value in seen.items()}
    dot, network = dot_of(5, 40, 4), network_of(5, 40, 4, [8, 4])[:-1]
    for kind, given in ((DotScorer, dot), (NCFScorer, network)):
        here = score_topk(kind(*given), 3, **seen)
        assert torch.equal(score_topk(kind(*moved(given)), 3, **there).ids.cpu(), here.ids)
        close(score_items(kind(*moved(given))), score_items(kind(*given)).double())
    users, table = integers(5, 50), alias_table(normal(40).abs())
    for popularity in (None, table):
        options: dict[str, Any] = {"seed": 3, "popularity": popularity and popularity.to(DEVICE)}
        drawn = sample_negatives(users.to(DEVICE), *there.values(), 40, 4, **options)
        options["popularity"] = popularity
        assert torch.equal(drawn.cpu(), sample_negatives(users, indptr, indices, 40, 4, **options))
    lists = (torch.tensor([0, 3, 3, 9]), integers(30, 9), normal(9).abs())
    solved = als_solve(*moved(list(lists)), normal(30, 6).to(DEVICE), ridge=0.5, cg_steps=0)
    exact = als_solve(*lists[:2], lists[2].double(), normal(30, 6).double(), ridge=0.5, cg_steps=0)
    torch.testing.assert_close(solved.rows.cpu().double(), exact.rows, rtol=1e-3, atol=1e-4)
