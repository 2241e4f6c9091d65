"""The layers and torch's beside each other, call by call: the same results and gradients, and errors where torch errs.

What PyTorch's own suites assert of nn.Embedding and nn.EmbeddingBag, as differential tests. Where ours differ on
purpose, `is_exception_of_ours` says how.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deeprec.nn import Embedding, EmbeddingBag

ROWS, DIM = 9, 4
INDEX = (torch.int32, torch.int64)
# What ours raise where torch raises: theirs are often RuntimeError or AssertionError for a wrong argument.
KINDS = {
    ValueError: (ValueError, TypeError),  # torch's ValueError for a missing offsets tensor of the wrong type
    AssertionError: (ValueError,),
    NotImplementedError: (ValueError,),
    IndexError: (IndexError, ValueError),  # torch's comes first where a shape is wrong as well
    TypeError: (TypeError,),
    RuntimeError: (ValueError, TypeError, IndexError),
}


def outcome(layer: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """What a call gives: values and gradients, or its exception."""
    try:
        out = layer(*arguments)
    except Exception as error:
        return error
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape))
    results = [out.detach(), layer.weight.detach(), layer.weight.grad.to_dense()]
    scale = arguments[2] if len(arguments) > 2 else None
    if scale is not None:
        results.append(scale.grad)
    return results


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Exception):
        allowed = next(kinds for kind, kinds in KINDS.items() if isinstance(theirs, kind))
        assert isinstance(ours, allowed), f"{ours!r} where torch has {theirs!r}"
        return
    if isinstance(ours, Exception):
        raise AssertionError(f"ours raises {ours!r} where torch gives {theirs}") from ours
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def own(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.clone().requires_grad_()


@st.composite
def bag_calls(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Options, and arguments of which any may be wrong, one in ten each."""

    def one_of(right: list[Any], wrong: list[Any]) -> Any:
        return draw(st.sampled_from(wrong if draw(st.integers(0, 9)) == 0 else right))

    lengths = draw(st.lists(st.integers(0, 4), max_size=5))
    options = {
        "mode": draw(st.sampled_from(["sum", "mean", "max"])),
        "include_last_offset": draw(st.booleans()),
        "padding_idx": draw(st.none() | st.integers(-ROWS, ROWS - 1)),
        "max_norm": draw(st.none() | st.just(0.5)),
        "sparse": draw(st.booleans()),
    }
    torch.manual_seed(draw(st.integers(0, 99)))
    count, by_row = sum(lengths), draw(st.booleans())
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    shape = one_of([(3, 2)] if by_row else [(count,)], [(), (2, 1), (count,), (1, 2, 3)])
    ids = torch.randint(0, ROWS, shape).to(one_of([*INDEX], [torch.int16, torch.float32]))
    if ids.numel():
        ids.view(-1)[-1] = one_of([1], [-1, ROWS, ROWS + 100])
    right = None if by_row else bounds if options["include_last_offset"] else bounds[:-1]
    wrong = [None, bounds, bounds.float(), bounds[None], bounds + 1, bounds[:0], bounds + (bounds == count) * 7]
    offsets = one_of([right], wrong)
    if offsets is not None and offsets.dtype == torch.int64:
        offsets = offsets.to(draw(st.sampled_from(INDEX)))
    numbers = [None, torch.randn(shape)] if options["mode"] == "sum" else [None]
    scale = one_of(numbers, [torch.randn(shape), torch.randn(*shape, 1), torch.randn(shape, dtype=torch.float64)])
    return options, (ids, offsets, scale)


def is_exception_of_ours(options: dict[str, Any], ids: Tensor, offsets: Tensor | None) -> bool:
    """What ours refuse on purpose and torch 2.13 takes.

    - Ids that no bag holds. torch leaves them out without a word where there is no bag at all, and where the last of
      include_last_offset's offsets lies before the end.
    - Ids of another integer type, which torch converts where there are offsets of int32 or int64, and any type of ids
      and offsets where there is nothing to be read.
    """
    if ids.dtype not in INDEX and offsets is not None:
        return True
    if not ids.numel() and offsets is not None and offsets.dtype not in INDEX:
        return True
    if offsets is None or ids.dim() != 1 or offsets.dim() != 1:
        return False
    if options["include_last_offset"]:
        return len(offsets) > 0 and int(offsets[-1]) < len(ids)
    return len(offsets) == 0


@settings(max_examples=300)
@given(bag_calls())
def test_any_call_of_embedding_bag_ends_as_torchs_does(call: tuple[dict[str, Any], tuple[Any, ...]]) -> None:
    options, (ids, offsets, scale) = call
    assume(not is_exception_of_ours(options, ids, offsets))
    theirs = nn.EmbeddingBag(ROWS, DIM, **{**options, "sparse": False})
    ours = EmbeddingBag(ROWS, DIM, **options)
    ours.load_state_dict(theirs.state_dict())
    results = [outcome(layer, (ids, offsets, own(scale))) for layer in (ours, theirs)]
    assert_same(*results)


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    index=st.sampled_from([*INDEX * 3, torch.int16, torch.bool, torch.float32]),
    bad=st.none() | st.sampled_from([-1, ROWS, 2**31 - 1]),
    padding_idx=st.none() | st.integers(-ROWS, ROWS - 1),
    max_norm=st.none() | st.just(0.5),
    sparse=st.booleans(),
)
def test_any_call_of_embedding_ends_as_torchs_does(
    shape: list[int], index: torch.dtype, bad: int | None, sparse: bool, **options: Any
) -> None:
    theirs, ours = nn.Embedding(ROWS, DIM, **options), Embedding(ROWS, DIM, sparse=sparse, **options)
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, ROWS, shape).to(index)
    if bad is not None and ids.numel() and index in INDEX:
        ids.view(-1)[-1] = bad
    assert_same(*(outcome(layer, (ids,)) for layer in (ours, theirs)))


@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": ROWS},
        {"padding_idx": -ROWS - 1},
        {"_weight": torch.ones(2, 3)},
        {"_weight": torch.ones(ROWS, DIM), "_freeze": True},
    ],
    ids=str,
)
def test_constructors_refuse_and_take_what_torchs_do(options: dict[str, Any]) -> None:
    def make(kind: Any, some: dict[str, Any]) -> Any:
        try:
            return [kind(ROWS, DIM, **some).weight.requires_grad]
        except Exception as error:
            return error

    for ours, theirs in ((Embedding, nn.Embedding), (EmbeddingBag, nn.EmbeddingBag)):
        some = {key: value for key, value in options.items() if key != "_freeze" or ours is Embedding}
        got, want = make(ours, some), make(theirs, some)
        if isinstance(want, Exception):
            assert_same(got, want)
        else:
            assert got == want


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_low_precision_are_no_worse_than_torchs(dtype: torch.dtype, sparse: bool, mode: str) -> None:
    torch.manual_seed(0)
    weight, ids = torch.randn(50, 16).to(dtype), torch.randint(0, 50, (40, 30))
    scale = torch.randn(40, 30).to(dtype) if mode == "sum" else None
    grads = []
    for kind, of in ((EmbeddingBag, dtype), (nn.EmbeddingBag, dtype), (nn.EmbeddingBag, torch.float64)):
        layer = kind.from_pretrained(weight.to(of), freeze=False, mode=mode, sparse=sparse and kind is EmbeddingBag)
        x = None if scale is None else scale.to(of, copy=True).requires_grad_()
        # Distinct values in each column: at most one entry of a bag is the largest, in every precision.
        layer(ids, None, x).backward(torch.linspace(-1, 1, 640).reshape(40, 16).to(dtype).to(of))
        grads.append([layer.weight.grad.to_dense().double(), *([] if x is None else [x.grad.double()])])
    for got, rival, exact in zip(*grads, strict=True):
        error, allowed = (got - exact).abs().max(), (rival - exact).abs().max()
        assert error <= allowed + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("offsets_type", INDEX)
@pytest.mark.parametrize("ids_type", INDEX)
@pytest.mark.parametrize("sparse", [False, True])
def test_ids_and_offsets_of_any_two_index_types_train_alike(
    ids_type: torch.dtype, offsets_type: torch.dtype, sparse: bool
) -> None:
    results = []
    for kind in (EmbeddingBag, nn.EmbeddingBag):
        torch.manual_seed(0)
        layer = kind(ROWS, DIM, mode="mean", sparse=sparse)
        ids, offsets = torch.tensor([1, 5, 5, 8, 1], dtype=ids_type), torch.tensor([0, 0, 3], dtype=offsets_type)
        out = layer(ids, offsets)
        out.square().sum().backward()
        results.append((out, layer.weight.grad.to_dense()))
    torch.testing.assert_close(*results)


def test_from_pretrained_passes_every_option_on() -> None:
    weight = torch.randn(ROWS, DIM)
    shared = {"max_norm": 2.0, "norm_type": 1.5, "scale_grad_by_freq": True, "sparse": True, "padding_idx": -2}
    for ours, theirs, options in (
        (Embedding, nn.Embedding, shared),
        (EmbeddingBag, nn.EmbeddingBag, {**shared, "mode": "sum", "include_last_offset": True}),
    ):
        for freeze in (True, False):
            a, b = (kind.from_pretrained(weight, freeze=freeze, **options) for kind in (ours, theirs))
            assert all(getattr(a, key) == getattr(b, key) for key in b.__constants__)
            assert a.weight.requires_grad == b.weight.requires_grad
            assert a.weight.data_ptr() == weight.data_ptr()
            assert repr(a) == repr(b)


def test_max_norm_of_repeated_unsorted_ids_clips_each_row_once() -> None:
    for ours, theirs in ((Embedding, nn.Embedding), (EmbeddingBag, nn.EmbeddingBag)):
        a, b = (kind(ROWS, DIM, max_norm=0.3) for kind in (ours, theirs))
        a.load_state_dict(b.state_dict())
        ids = torch.tensor([[8, 2, 8], [0, 2, 8]])
        with torch.no_grad():
            torch.testing.assert_close(a(ids), b(ids))
        torch.testing.assert_close(a.weight, b.weight)
        assert a.weight[[0, 2, 8]].norm(dim=1).max() <= 0.3 + 1e-6
        assert a.weight[[1, 3]].norm(dim=1).max() > 0.3


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_of_several_calls_add_up_as_torchs_do(sparse: bool) -> None:
    grads = []
    for kinds in ((Embedding, EmbeddingBag), (nn.Embedding, nn.EmbeddingBag)):
        torch.manual_seed(0)
        single, bag = kinds[0](ROWS, DIM, sparse=sparse), kinds[1](ROWS, DIM, mode="sum", sparse=sparse)
        bag.weight = single.weight
        ids = torch.tensor([[1, 2], [2, 2]])
        for _ in range(2):  # without zero_grad in between
            (single(ids).square().sum() + bag(ids).square().sum() + bag(ids[:1]).sum()).backward()
        grads.append(single.weight.grad.to_dense())
    torch.testing.assert_close(*grads)


def test_hooks_on_the_table_see_and_change_its_gradient() -> None:
    for sparse in (False, True):
        layer, seen = EmbeddingBag(ROWS, DIM, mode="sum", sparse=sparse), []
        layer.weight.register_hook(lambda grad, seen=seen: (seen.append(grad.is_sparse), grad * 2)[1])
        layer(torch.tensor([[1, 1]])).sum().backward()
        assert seen == [sparse]
        assert layer.weight.grad.to_dense()[1].tolist() == [4.0] * DIM
