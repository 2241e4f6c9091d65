"""Claims about dropout."""

from __future__ import annotations

import pytest
import torch

from deeprec.nn import Dropout

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHARES = [0.5, 0.25, 1 / 256, 0.1, 0.3, 0.999]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", SHARES)
def test_drops_the_share_and_scales_the_rest(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(400, 501, dtype=dtype)
    found = Dropout(p)(x)
    dropped = float((found == 0).double().mean())
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 1 / 65536)
    kept = found[found != 0].double()
    assert kept.unique().numel() == 1
    assert float(kept[0]) == pytest.approx(1 / (1 - p), rel=0.01 if dtype == torch.bfloat16 or p > 0.9 else 1e-4)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_elements_are_independent(p):
    """Over rows, columns, and the eight or four elements that one draw serves."""
    torch.manual_seed(1)
    kept = (Dropout(p)(torch.ones(200_000)) != 0).double()
    for distance in (1, 2, 3, 4, 8, 16):
        together = float((kept[:-distance] * kept[distance:]).mean())
        assert together == pytest.approx((1 - p) ** 2, abs=0.005)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_goes_where_the_value_went(dtype):
    torch.manual_seed(2)
    x = (torch.rand(31, 17) + 1).to(dtype).requires_grad_()
    out = Dropout(0.3)(x)
    grad = torch.randn(1, dtype=dtype).expand(31, 17)  # of stride 0
    out.backward(grad)
    kept = out.detach() != 0
    scale = float((out.detach()[kept] / x.detach()[kept]).double().mean())
    assert not x.grad[~kept].any()
    torch.testing.assert_close(x.grad[kept].double(), (grad[kept].double() * scale), rtol=0.01, atol=0.01)


def test_follows_torchs_generator():
    x, drop = torch.ones(100), Dropout(0.5)
    first, second = (torch.manual_seed(7) and drop(x) for _ in "ab")
    assert torch.equal(first, second)
    assert not torch.equal(first, drop(x))


def test_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("p", [0.5, 1.0, 1e-9, 1 - 1e-9])
def test_extremes_and_empty(p):
    x = torch.ones(64, 3)
    found = Dropout(p)(x)
    if p > 0.9:
        assert not found.any()
    if p < 0.1:
        assert torch.equal(found, x)
    assert Dropout(p)(torch.ones(0, 4)).shape == (0, 4)


def test_dropped_elements_are_zero_even_if_not_finite():
    torch.manual_seed(0)
    found = Dropout(0.5)(torch.full((1000,), float("nan")))
    assert 400 < int((found == 0).sum()) < 600


def test_other_layouts_and_dtypes():
    torch.manual_seed(0)
    x = torch.arange(1.0, 13.0).reshape(3, 4).T
    found = Dropout(0.5)(x)
    assert torch.equal(found[found != 0], 2 * x[found != 0])
    assert Dropout(0.5)(x.half()).dtype == torch.float16


def test_passes_torch_compile():
    torch._dynamo.reset()
    compiled = torch.compile(Dropout(0.5), fullgraph=True, backend="aot_eager")
    share = float((compiled(torch.ones(10_000)) == 0).float().mean())
    assert share == pytest.approx(0.5, abs=0.05)
