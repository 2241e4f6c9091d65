"""Claims about fm_interaction, bi_interaction and their gradient, on the CPU and (marked gpu) on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction
from deeprec.kernels.fm_interaction.reference import (
    bi_interaction_reference,
    fm_interaction_grad_reference,
    fm_interaction_reference,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# A round shape, odd ones around the vector widths, one column, one field, one row; no row, no field.
SHAPES = [(64, 26, 16), (7, 5, 1), (4, 6, 10), (5, 123, 123), (9, 1, 33), (1, 7, 600), (3, 4, 63), (0, 3, 4), (3, 0, 4)]
OPS = {
    "fm": (fm_interaction, fm_interaction_reference, torch.ops.deeprec.fm_interaction),
    "bi": (bi_interaction, bi_interaction_reference, torch.ops.deeprec.bi_interaction),
}


def fields_of(batch: int, fields: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(batch, fields, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def grad_terms(grad: Tensor, wide: Tensor) -> Tensor:
    """|g| sum_f |x|, [B, F, D]: the sum of the absolute terms of a gradient."""
    columns = grad.double().abs() if grad.dim() == 2 else grad.double().abs()[:, None]
    return columns[:, None] * wide.abs().sum(1, keepdim=True).expand(wide.shape)


def pair_terms(wide: Tensor, op: str) -> Tensor:
    """[(sum_f |x|)^2 + sum_f x^2] / 2: the sum of the absolute terms of what is computed for the pairs."""
    terms = (wide.abs().sum(1).square() + wide.square().sum(1)) / 2
    return terms if op == "bi" else terms.sum(1)


def assert_as_accurate(got: Tensor, honest: Tensor, exact: Tensor, scale: Tensor) -> None:
    """|got - exact| <= |honest - exact| + 16 eps of the accumulator times the sum of the absolute terms, and finite."""
    eps = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32).eps
    assert bool(torch.isfinite(got).all())
    error, allowed = (got.double() - exact).abs(), (honest.double() - exact).abs() + 16 * eps * scale
    # One rounding to the dtype may fall to the other side of where the honest one fell.
    allowed += (torch.finfo(got.dtype).eps / 2) * exact.abs()
    assert bool((error <= allowed).all()), float((error - allowed).max())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_matches_float64_reference(shape: tuple[int, int, int], dtype: torch.dtype, op: str) -> None:
    function, reference, _ = OPS[op]
    x = fields_of(*shape, dtype)
    got, wide = function(x), x.double()
    assert got.dtype == dtype
    assert got.shape == (shape[0], shape[2])[: 1 + (op == "bi")]
    assert_as_accurate(got, reference(x), reference(wide), pair_terms(wide, op))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_grad_matches_float64_reference(shape: tuple[int, int, int], dtype: torch.dtype, op: str) -> None:
    x = fields_of(*shape, dtype).requires_grad_()
    out = OPS[op][0](x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (got,) = torch.autograd.grad(out, x, grad)
    wide = x.detach().double()
    exact = fm_interaction_grad_reference(grad.double(), wide)
    honest = fm_interaction_grad_reference(grad, x.detach())
    assert got.dtype == dtype
    assert_as_accurate(got, honest, exact, grad_terms(grad, wide))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_field_interacts_with_nothing(dtype: torch.dtype) -> None:
    x = fields_of(5, 1, 37, dtype).mul(1e3).requires_grad_()
    out = fm_interaction(x)
    assert torch.equal(out, torch.zeros(5, dtype=dtype))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.zeros(5, 1, 37, dtype=dtype))


def test_large_fields_that_do_not_meet_leave_small_products_exact() -> None:
    # 0.5 ((sum x)^2 - sum x^2) loses the 6 beside 1e12 in float32; the sum of the products does not.
    x = torch.tensor([[[1e6, 0.0], [0.0, 2.0], [0.0, 3.0]]])
    assert bi_interaction(x).tolist() == [[0.0, 6.0]]
    assert fm_interaction(x).tolist() == [6.0]


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_first_and_second_order(op: str) -> None:
    x = fields_of(3, 4, 5, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(OPS[op][0], x)
    assert torch.autograd.gradgradcheck(OPS[op][0], x)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [1, 6, 40])
def test_fields_of_any_layout_are_read_right(dim: int, op: str) -> None:
    function, reference, _ = OPS[op]
    base = fields_of(20, 14, 3 * dim)
    for x in (
        base[::2, 1::3, dim : 2 * dim],
        base[:, :, ::3],
        base.transpose(0, 1)[..., :dim],
        base.transpose(1, 2)[:, :7],
        base[:1, :, :dim].expand(9, 14, dim),
        base[:, :1, :dim].expand(20, 5, dim),
        base[:, :, :1].expand(20, 14, dim),
    ):
        leaf = x.detach().requires_grad_()
        out = function(leaf)
        torch.testing.assert_close(out, reference(x), rtol=1e-5, atol=1e-4)
        (got,) = torch.autograd.grad(out.sum(), leaf)
        torch.testing.assert_close(got, x.sum(1, keepdim=True) - x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["expanded", "one row", "one column", "column slice", "transposed", "row stride"])
def test_gradients_of_any_layout(layout: str) -> None:
    x = fields_of(30, 5, 22).requires_grad_()
    grad = {
        "expanded": torch.tensor(0.5).expand(30, 22),
        "one row": torch.randn(1, 22).expand(30, 22),
        "one column": torch.randn(30, 1).expand(30, 22),
        "column slice": torch.randn(30, 50)[:, 4:26],
        "transposed": torch.randn(22, 30).t(),
        "row stride": torch.randn(60, 22)[::2],
    }[layout]
    (got,) = torch.autograd.grad(bi_interaction(x), x, grad)
    torch.testing.assert_close(got, fm_interaction_grad_reference(grad, x.detach()), rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(fm_interaction(x), x, grad[:, 3])
    torch.testing.assert_close(got, fm_interaction_grad_reference(grad[:, 3], x.detach()), rtol=1e-5, atol=1e-5)


def test_wrong_arguments_are_named() -> None:
    for function in (fm_interaction, bi_interaction):
        with pytest.raises(ValueError, match=rf"{function.__name__}: x must be \[B, F, D\], got \(3, 4\)"):
            function(torch.randn(3, 4))
        with pytest.raises(TypeError, match=r"x must be float32, bfloat16, float16 or float64, got torch\.int64"):
            function(torch.ones(2, 3, 4, dtype=torch.int64))


def test_results_are_bitwise_equal_for_any_thread_count() -> None:
    x, grad = fields_of(4099, 26, 19), torch.randn(4099)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((fm_interaction(x), bi_interaction(x), torch.ops.deeprec.fm_interaction_grad(grad, x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    for x in (fields_of(6, 5, 7), fields_of(6, 5, 7).transpose(0, 2), fields_of(6, 5, 7, torch.bfloat16)):
        batch, _, dim = x.shape
        yield "fm_interaction", (x,)
        yield "bi_interaction", (x,)
        for grad in (torch.randn(batch), torch.randn(batch, dim), torch.ones(()).expand(batch, dim)):
            yield "fm_interaction_grad", (grad.to(x.dtype), x)


@pytest.mark.parametrize("op", OPS)
def test_compiles_whole_for_inference_and_training(op: str) -> None:
    function = OPS[op][0]
    x = fields_of(8, 5, 6).requires_grad_()
    compiled = torch.compile(lambda x: (function(x * 2) ** 2).sum(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), (function(x * 2) ** 2).sum())
    (got,) = torch.autograd.grad(compiled(x), x)
    (want,) = torch.autograd.grad((function(x * 2) ** 2).sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_exports_with_a_dynamic_batch(op: str, needs_grad: bool) -> None:
    class Model(torch.nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function = function
            self.scale = torch.nn.Parameter(torch.ones(6), requires_grad=needs_grad)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x * self.scale)

    model, x = Model(OPS[op][0]), fields_of(8, 5, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    other = fields_of(11, 5, 6)
    assert torch.equal(exported.module()(other), model(other))
    assert f"deeprec.{op}_interaction.default" in str(exported.graph)


@given(
    batch=st.integers(0, 40),
    fields=st.integers(0, 30),
    dim=st.integers(1, 150),
    dtype=st.sampled_from(DTYPES),
    op=st.sampled_from(sorted(OPS)),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_reference(batch: int, fields: int, dim: int, dtype: torch.dtype, op: str, seed: int) -> None:
    _, reference, operator = OPS[op]
    x = fields_of(batch, fields, dim, dtype, seed)
    wide = x.double()
    assert_as_accurate(operator(x), reference(x), reference(wide), pair_terms(wide, op))
    grad = fields_of(batch, 1, dim, dtype, seed + 1)[:, 0] if op == "bi" else fields_of(batch, 1, 1, dtype)[:, 0, 0]
    got = torch.ops.deeprec.fm_interaction_grad(grad, x)
    exact = fm_interaction_grad_reference(grad.double(), wide)
    assert_as_accurate(got, fm_interaction_grad_reference(grad, x), exact, grad_terms(grad, wide))


ISA_PROBE = """
import sys, torch
from deeprec.kernels import _library
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction
data = torch.load(sys.argv[1])
outs = [(fm_interaction(x), bi_interaction(x), torch.ops.deeprec.fm_interaction_grad(g, x)) for x, g in data]
torch.save((_library.cpu_isa(), outs), sys.argv[2])
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])  # the best of this machine serves the other tests
def test_lesser_instruction_sets_match_the_reference(isa: str, tmp_path: Path) -> None:
    shapes = [(5, 26, 16), (3, 4, 63), (2, 3, 1), (3, 5, 75)]
    data = [
        (fields_of(*shape, dtype), fields_of(shape[0], 1, shape[2], dtype)[:, 0])
        for shape in shapes
        for dtype in DTYPES
    ]
    torch.save(data, tmp_path / "in.pt")
    command = [sys.executable, "-c", ISA_PROBE, tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run(command, env={**os.environ, "DEEPREC_ISA": isa}, check=True, cwd=Path(__file__).parents[2])
    ran, outs = torch.load(tmp_path / "out.pt")
    if ran != isa:
        pytest.skip(f"this processor or build has no {isa} kernels, {ran or 'the reference'} ran")
    for (x, grad), (fm, bi, grad_x) in zip(data, outs, strict=True):
        wide = x.double()
        assert_as_accurate(fm, fm_interaction_reference(x), fm_interaction_reference(wide), pair_terms(wide, "fm"))
        assert_as_accurate(bi, bi_interaction_reference(x), bi_interaction_reference(wide), pair_terms(wide, "bi"))
        exact = fm_interaction_grad_reference(grad.double(), wide)
        assert_as_accurate(grad_x, fm_interaction_grad_reference(grad, x), exact, grad_terms(grad, wide))


@pytest.mark.gpu
def test_gpu_captures_in_a_cuda_graph() -> None:
    x = fields_of(64, 26, 16).cuda()
    fm_interaction(x)  # Triton compiles on the first call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fm_interaction(x)
    x.copy_(fields_of(64, 26, 16, seed=5))
    graph.replay()
    torch.testing.assert_close(out, fm_interaction_reference(x), rtol=1e-5, atol=1e-4)
