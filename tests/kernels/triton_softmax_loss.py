"""Triton kernels of softmax_loss under the interpreter; run by test_triton.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.kernels._door import launcher, launches
from deeprec.kernels.sample_negatives import alias_table
from deeprec.kernels.softmax_loss.reference import softmax_loss_grad_reference, softmax_loss_reference
from deeprec.kernels.softmax_loss.sampled_reference import (
    sampled_softmax_loss_reference,
    sampled_softmax_slopes_reference,
)

_spec = importlib.util.spec_from_file_location("softmax_cases", Path(__file__).with_name("test_softmax_loss.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)

LOSS, GRAD = launcher("softmax_loss", "softmax_loss"), launcher("softmax_loss", "softmax_loss_grad")
# gamma, cosine, smoothing, include_positive, correct_positive
FLAGS = [(1.0, False, 0.0, True, False), (5.0, True, 0.2, False, False), (0.5, False, 0.1, True, True)]


def check(p: cases.Problem, flags: tuple[Any, ...], extras: tuple[str, ...], rows: torch.Tensor | None = None) -> None:
    """Shapes and dtypes of the reference, and its values in float64."""
    dtype = p.queries.dtype
    own = {name: x.detach() for name, x in p.extras().items()}
    given = [p.queries.detach(), p.items.detach(), p.targets, *(own[k] if k in extras else None for k in own), rows]
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in given]
    grads = torch.linspace(-1, 2, len(p.targets))
    want = softmax_loss_reference(*wide, *flags, True)
    wants = (*want, *softmax_loss_grad_reference(*wide, *flags, want[1], grads.double()))
    launches.clear()
    got = LOSS(*given, *flags, True)
    gots = (*got, *GRAD(*given, *flags, got[1], grads))
    assert launches == {"_softmax_part_kernel": 1, "_softmax_items_grad_kernel": 1}
    like = (*softmax_loss_reference(*given, *flags, True), *softmax_loss_grad_reference(*given, *flags, got[1], grads))
    assert [(x.shape, x.dtype) for x in gots] == [(x.shape, x.dtype) for x in like]
    for place, (ours, theirs) in enumerate(zip(gots, wants, strict=True)):
        is_finite = theirs.isfinite()
        assert torch.equal(ours[~is_finite].double(), theirs[~is_finite])
        tolerance = cases.TOLERANCE[dtype] if place >= 3 else 2e-5  # losses and query gradients are float32
        cases.close(ours[is_finite], theirs[is_finite], 2 * tolerance)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(
    "extras",
    [
        (),
        ("bias", "log_q"),
        ("item_ids",),
        ("seen_indptr", "seen_indices"),
        ("bias", "log_q", "item_ids", "seen_indptr", "seen_indices"),
    ],
)
def test_every_option_matches_the_reference(extras: tuple[str, ...], flags: tuple[Any, ...]) -> None:
    check(cases.Problem.make(37, 75, 20, torch.float32), flags, extras)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_type_matches_the_reference(dtype: torch.dtype) -> None:
    check(cases.Problem.make(5, 40, 17, dtype), FLAGS[1], ("bias", "log_q", "item_ids"))


@pytest.mark.parametrize("shape", [(1, 2, 1), (3, 2, 150), (130, 5, 9)])
def test_any_shape_matches_the_reference(shape: tuple[int, int, int]) -> None:
    check(cases.Problem.make(*shape, torch.float32), FLAGS[2], ("bias",))


def test_lists_of_other_rows() -> None:
    check(
        cases.Problem.make(4, 60, 8, torch.float32),
        FLAGS[0],
        ("seen_indptr", "seen_indices"),
        torch.tensor([3, 3, 0, 1]),
    )


def test_a_row_with_everything_masked_and_vectors_of_zeros() -> None:
    p = cases.Problem.make(3, 40, 8, torch.float32)
    p.item_ids[:] = 1
    p.queries.data[1], p.items.data[int(p.targets[2])] = 0, 0
    check(p, FLAGS[1], ("item_ids",))
    check(p, FLAGS[1], ())


def test_nan_is_not_hidden() -> None:
    p = cases.Problem.make(3, 40, 8, torch.float32)
    p.items.data[7] = torch.nan
    losses, _, _ = LOSS(p.queries.detach(), p.items.detach(), p.targets, *[None] * 6, *FLAGS[0], True)
    assert bool(losses.isnan().all())


def test_a_second_run_gives_the_same_bits() -> None:
    p = cases.Problem.make(70, 130, 20, torch.float32)
    given = (p.queries.detach(), p.items.detach(), p.targets, *[None] * 6, *FLAGS[0])
    runs = [LOSS(*given, True) for _ in range(2)]
    runs = [(*run, *GRAD(*given, run[1], torch.ones(70))) for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_no_rows_and_float64_are_the_references() -> None:
    launches.clear()
    for batch, dtype in ((0, torch.float32), (3, torch.float64)):
        p = cases.Problem.make(batch, 5, 4, dtype)
        given = (p.queries.detach(), p.items.detach(), p.targets, *[None] * 6, *FLAGS[0])
        assert all(
            torch.equal(a, b) for a, b in zip(LOSS(*given, True), softmax_loss_reference(*given, True), strict=True)
        )
    assert not launches


DRAWN = launcher("softmax_loss", "sampled_softmax_loss"), launcher("softmax_loss", "sampled_softmax_slopes")


def check_drawn(
    shape: tuple[int, int, int, int], dtype: torch.dtype, flags: tuple[Any, ...], extras: tuple[str, ...]
) -> None:
    """Against the references in float64, which draw by themselves; shape: B, N, D, S."""
    batch, num_items, dim, size = shape
    p, draw = cases.Problem.make(batch, num_items, dim, dtype), torch.Generator().manual_seed(1)
    lists: tuple[torch.Tensor | None, ...] = (None, None, None)
    if "lists" in extras:
        lists = (torch.tensor([0, 0, 2]), torch.tensor([1, 3], dtype=torch.int32), torch.arange(batch) % 2)
    weights = torch.rand(num_items, generator=draw) ** 6 + 1e-4
    table = tuple(alias_table(weights)) if "popularity" in extras else (None, None, None)
    bias = p.bias.detach() if "bias" in extras else None
    given = (p.queries.detach(), p.items.detach(), p.targets, bias, *lists, size, 5, 2**40, *table, *flags)
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    grads = torch.linspace(-1, 2, batch)
    want = sampled_softmax_loss_reference(*wide, True)
    launches.clear()
    got = DRAWN[0](*given, True)
    entries, slopes = DRAWN[1](*given, got[1], grads)
    assert launches == {"_sampled_softmax_kernel": 2}
    want_entries, want_slopes = sampled_softmax_slopes_reference(*wide, want[1], grads.double())
    assert torch.equal(entries, want_entries)
    assert torch.equal(DRAWN[0](*given, False)[0], got[0])
    for ours, theirs in zip((*got, slopes), (*want, want_slopes), strict=True):
        is_finite = theirs.isfinite()
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float32
        assert torch.equal(ours[~is_finite].double(), theirs[~is_finite])
        scale = float(theirs[is_finite].abs().max()) if bool(is_finite.any()) else 0.0
        # A small loss is the difference of larger numbers.
        torch.testing.assert_close(ours[is_finite].double(), theirs[is_finite], rtol=0, atol=2e-5 * scale + 1e-6)


# gamma, cosine, use_log_q, include_positive
@pytest.mark.parametrize(
    "flags", [(1.0, False, True, True), (5.0, True, True, False), (0.5, False, False, True), (2.0, True, False, True)]
)
@pytest.mark.parametrize("extras", [(), ("lists",), ("popularity",), ("bias", "lists", "popularity")])
def test_drawn_negatives_match_the_reference(extras: tuple[str, ...], flags: tuple[Any, ...]) -> None:
    check_drawn((5, 40, 6, 20), torch.float32, flags, extras)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (3, 7, 300, 5), (2, 300, 20, 70), (2, 9, 4, 0)])
def test_drawn_negatives_of_any_shape_and_type(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for flags in ((1.0, False, True, False), (4.0, True, True, True)):
        check_drawn(shape, dtype, flags, ("bias", "popularity"))


def test_drawn_negatives_beside_zeros_and_nan() -> None:
    q, v, at = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 1, 2])
    q[0] = 0
    none = (None,) * 4
    losses, _, grad = DRAWN[0](q, v, at, *none, 8, 1, 0, None, None, None, 3.0, True, False, True, True)
    assert not bool(grad[0].any())
    assert bool(losses.isfinite().all() & grad.isfinite().all())
    v[:] = torch.nan
    losses, _, grad = DRAWN[0](q, v, at, *none, 8, 1, 0, None, None, None, 3.0, False, False, True, True)
    assert bool(losses.isnan().all() & grad[1:].isnan().all())
