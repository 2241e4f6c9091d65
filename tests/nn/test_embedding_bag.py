"""Claims about deeprec.nn.EmbeddingBag beside torch.nn.EmbeddingBag."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprec.nn import EmbeddingBag


def twins(num_embeddings: int, embedding_dim: int, **options: Any) -> tuple[EmbeddingBag, torch.nn.EmbeddingBag]:
    """Ours and torch's with the same weights; torch's with dense gradients, which it has for every option."""
    ours = EmbeddingBag(num_embeddings, embedding_dim, **options)
    # torch 2.13 divides by the frequency of another row than the gradient's, see the test of that option.
    options |= {"sparse": False, "scale_grad_by_freq": False}
    theirs = torch.nn.EmbeddingBag(num_embeddings, embedding_dim, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], Tensor, Tensor | None, Tensor | None]:
    """Options of the layer, ids, offsets, per-sample weights."""
    rows, mode = draw(st.integers(1, 12)), draw(st.sampled_from(["sum", "mean", "max"]))
    options = {
        "num_embeddings": rows,
        "embedding_dim": draw(st.sampled_from([1, 2, 3, 8, 17, 33])),
        "mode": mode,
        "sparse": draw(st.booleans()),
        "padding_idx": draw(st.none() | st.integers(-rows, rows - 1)),
        "max_norm": draw(st.none() | st.just(0.7)),
        "norm_type": draw(st.sampled_from([1.0, 2.0, 3.5])),
        "scale_grad_by_freq": mode != "max" and draw(st.booleans()),
        "include_last_offset": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }
    lengths = draw(st.lists(st.integers(0, 5), min_size=0, max_size=7))
    torch.manual_seed(draw(st.integers(0, 999)))
    index = draw(st.sampled_from([torch.int32, torch.int64]))
    if draw(st.booleans()):
        ids, offsets = torch.randint(0, rows, (len(lengths), draw(st.integers(1, 4)))).to(index), None
    else:
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(index)
        ids = torch.randint(0, rows, (sum(lengths),)).to(index)
        offsets = bounds if options["include_last_offset"] else bounds[:-1]
        if not options["include_last_offset"] and not lengths:
            ids = ids[:0]
    scale = torch.randn(ids.shape, dtype=options["dtype"]) if mode == "sum" and draw(st.booleans()) else None
    return options, ids, offsets, scale


@given(calls())
def test_equals_torch_in_value_and_gradients(call: tuple[dict[str, Any], Tensor, Tensor | None, Tensor | None]) -> None:
    options, ids, offsets, scale = call
    results = []
    counts = torch.bincount(ids.flatten(), minlength=options["num_embeddings"]).clamp(min=1).unsqueeze(1)
    layers = twins(options.pop("num_embeddings"), options.pop("embedding_dim"), **options)
    for layer in layers:
        weights = scale.clone().requires_grad_() if scale is not None else None
        out = layer(ids, offsets, weights)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape))
        grad = layer.weight.grad.to_dense()
        if options["scale_grad_by_freq"] and layer is layers[1]:
            grad = grad / counts
        results.append((out.detach(), layer.weight.detach(), grad, *([] if weights is None else [weights.grad])))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_scale_grad_by_freq_divides_each_row_by_its_own_frequency(mode: str, sparse: bool) -> None:
    layer = EmbeddingBag(5, 2, mode=mode, sparse=sparse, scale_grad_by_freq=True)
    bags = torch.tensor([[0, 0, 2], [2, 4, 2]])
    layer(bags).sum().backward()
    # Each of the 6 entries brings 1 (or 1/3) to its row, so every touched row ends with the same.
    want = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]) / (1 if mode == "sum" else 3)
    torch.testing.assert_close(layer.weight.grad.to_dense(), want.unsqueeze(1).expand(5, 2))


def test_gradient_is_dense_or_coalesced_as_asked() -> None:
    ids = torch.tensor([[4, 1, 4], [2, 2, 1]])
    for mode in ("sum", "mean", "max"):
        dense, sparse = EmbeddingBag(9, 3, mode=mode), EmbeddingBag(9, 3, mode=mode, sparse=True)
        sparse.load_state_dict(dense.state_dict())
        for layer in (dense, sparse):
            layer(ids).square().sum().backward()
        assert not dense.weight.grad.is_sparse
        assert sparse.weight.grad._indices()[0].tolist() == [1, 2, 4]
        torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)


def test_same_constructor_and_attributes_as_torch() -> None:
    arguments = (9, 3, 1.5, 1.0, True, "sum", True, torch.ones(9, 3), True, 4)
    ours, theirs = EmbeddingBag(*arguments), torch.nn.EmbeddingBag(*arguments)
    assert isinstance(ours, torch.nn.EmbeddingBag)
    assert repr(ours) == repr(theirs)
    ids = torch.tensor([1, 2, 4, 4])
    assert torch.equal(ours(ids, torch.tensor([0, 3, 4])), theirs(ids, torch.tensor([0, 3, 4])))


def test_state_dict_is_exchangeable_both_ways() -> None:
    ours, theirs = EmbeddingBag(9, 3), torch.nn.EmbeddingBag(9, 3)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("freeze", [True, False])
def test_from_pretrained_keeps_every_row(freeze: bool) -> None:
    weight = torch.randn(5, 3)
    layer = EmbeddingBag.from_pretrained(weight, freeze=freeze, mode="sum", padding_idx=1)
    assert type(layer) is EmbeddingBag
    assert torch.equal(layer.weight, weight)  # the padding row too, as torch does
    assert layer.weight.requires_grad is not freeze
    assert torch.equal(layer(torch.tensor([[1, 2, 1]])), weight[2:3])


def test_padding_row_starts_as_zeros_and_stays_so() -> None:
    layer = EmbeddingBag(6, 4, padding_idx=-2, sparse=True)
    assert layer.padding_idx == 4
    assert not layer.weight[4].any()
    layer(torch.tensor([[4, 1], [4, 4]])).sum().backward()
    assert layer.weight.grad._indices()[0].tolist() == [1]
    layer.reset_parameters()
    assert not layer.weight[4].any()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("sparse", [False, True])
def test_no_ids_and_no_bags_are_normal_input(mode: str, sparse: bool) -> None:
    layer = EmbeddingBag(6, 4, mode=mode, sparse=sparse)
    none = torch.empty(0, dtype=torch.int64)
    for ids, offsets, bags in (
        (none, torch.zeros(3, dtype=torch.int64), 3),
        (none, none, 0),
        (none.reshape(0, 5), None, 0),
        (none.reshape(2, 0), None, 2),
    ):
        layer.zero_grad()
        out = layer(ids, offsets)
        assert out.shape == (bags, 4)
        assert not out.any()
        out.sum().backward()
        assert not layer.weight.grad.to_dense().any()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_layouts_of_input_do_not_matter(mode: str) -> None:
    ours, theirs = twins(30, 5, mode=mode, sparse=True)
    ours.weight = torch.nn.Parameter(torch.randn(5, 30).t())  # columns not adjacent
    theirs.weight = torch.nn.Parameter(ours.weight.detach().contiguous())
    ids = torch.randint(0, 30, (7, 8)).t()[::2]
    grads = torch.ones(1, 5).expand(4, 5)
    for layer in (ours, theirs):
        layer(ids).backward(grads)
    torch.testing.assert_close(ours(ids), theirs(ids))
    torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.weight.grad)


def test_offsets_of_another_index_type_are_taken() -> None:
    ours, theirs = twins(9, 3)
    ids, offsets = torch.tensor([1, 5, 5, 8]), torch.tensor([0, 3], dtype=torch.int32)
    want = theirs(ids, offsets.long())
    torch.testing.assert_close(ours(ids, offsets), want)
    torch.testing.assert_close(ours(ids.int(), offsets.long()), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_low_precision_is_no_worse_than_torch(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = twins(50, 16, mode=mode, dtype=dtype)
    exact = torch.nn.EmbeddingBag(50, 16, mode=mode, _weight=ours.weight.detach().double())
    ids = torch.randint(0, 50, (20, 30))
    want = exact(ids)
    error, rival = ((layer(ids).double() - want).abs().max() for layer in (ours, theirs))
    assert error <= rival + 1e-6


@pytest.mark.parametrize("sparse", [False, True])
def test_max_norm_clips_the_rows_that_are_read_and_no_others(sparse: bool) -> None:
    layer = EmbeddingBag(6, 4, max_norm=0.5, mode="sum", sparse=sparse)
    before = layer.weight.detach().clone()
    out = layer(torch.tensor([[1, 1, 3]]))
    norms = layer.weight.detach().norm(dim=1)
    assert (norms[[1, 3]] <= 0.5 + 1e-6).all()
    assert torch.equal(layer.weight[[0, 2, 4, 5]], before[[0, 2, 4, 5]])
    torch.testing.assert_close(out[0], 2 * layer.weight[1] + layer.weight[3])


def test_bad_id_is_named_and_changes_nothing() -> None:
    for options in ({}, {"max_norm": 0.1}):
        layer = EmbeddingBag(6, 4, name="genre", **options)
        before = layer.weight.detach().clone()
        with pytest.raises(IndexError, match=r"table 'genre' must be in \[0, 6\), got 6 at position 2"):
            layer(torch.tensor([1, 2, 6]), torch.tensor([0]))
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.tensor([1, 2]),),
        (torch.tensor([[[1, 2]]]),),
        (torch.tensor([[1, 2]]), torch.tensor([0])),
        (torch.tensor([1, 2]), torch.tensor([[0]])),
        (torch.tensor([[1, 2]]), None, torch.ones(2)),
        (torch.tensor([[1.0, 2.0]]),),
    ],
)
def test_a_wrong_call_changes_nothing_with_max_norm(arguments: tuple[Any, ...]) -> None:
    layer = EmbeddingBag(6, 4, mode="sum", max_norm=0.1)
    before = layer.weight.detach().clone()
    with pytest.raises((ValueError, TypeError)):
        layer(*arguments)
    assert torch.equal(layer.weight, before)


def test_frozen_table_still_gives_per_sample_weights_their_gradient() -> None:
    layer = EmbeddingBag.from_pretrained(torch.randn(6, 4), mode="sum")
    ids, scale = torch.tensor([[1, 2, 2]]), torch.ones(1, 3, requires_grad=True)
    layer(ids, per_sample_weights=scale).sum().backward()
    torch.testing.assert_close(scale.grad, layer.weight[ids].sum(-1))
    assert layer.weight.grad is None


def test_rows_are_brought_up_to_date_before_they_are_read_for_training() -> None:
    layer, seen = EmbeddingBag(10, 3), []
    layer.weight._deeprec_catch_up = lambda ids: seen.append(ids.tolist())
    layer(torch.tensor([[3, 3], [7, 1]]))
    with torch.no_grad():
        layer(torch.tensor([[2]]))
    assert seen == [[[3, 3], [7, 1]]]


def test_copies_and_pickles() -> None:
    layer = EmbeddingBag(10, 3, mode="max", padding_idx=2, dtype=torch.float64, name="user")
    ids = torch.tensor([[1, 2, 9]])
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert torch.equal(other(ids), layer(ids))
        assert other.name == "user"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EmbeddingBag(0, 3), ValueError, "num_embeddings must be >= 1"),
        (lambda: EmbeddingBag(3, 0), ValueError, "embedding_dim must be >= 1"),
        (lambda: EmbeddingBag(3, 2, padding_idx=3), ValueError, "padding_idx must be in"),
        (lambda: EmbeddingBag(3, 2, padding_idx=-4), ValueError, "padding_idx must be in"),
        (lambda: EmbeddingBag(3, 2, mode="median"), ValueError, "sum, mean or max"),
        (lambda: EmbeddingBag(3, 2, mode="max", scale_grad_by_freq=True), ValueError, "use sum or mean"),
        (lambda: EmbeddingBag(3, 2, _weight=torch.ones(2, 3)), ValueError, "use from_pretrained"),
        (lambda: EmbeddingBag(3, 2)(torch.tensor([1, 2])), ValueError, "without offsets"),
        (lambda: EmbeddingBag(3, 2)(torch.tensor([[1, 2]]), torch.tensor([0])), ValueError, "offsets must be None"),
        (lambda: EmbeddingBag(3, 2)(torch.tensor([1, 2]), torch.tensor([1, 2])), ValueError, "ascend from 0"),
        (lambda: EmbeddingBag(3, 2)(torch.tensor([1, 2]), torch.tensor([0, 3])), ValueError, "ascend from 0"),
        (lambda: EmbeddingBag(3, 2)(torch.tensor([1, 2]), torch.tensor([[0]])), ValueError, "one dimension"),
        (lambda: EmbeddingBag(3, 2)(torch.tensor([[1.0]])), TypeError, "int32 or int64"),
        (
            lambda: EmbeddingBag(3, 2)(torch.tensor([[1]]), per_sample_weights=torch.ones(1, 1)),
            ValueError,
            "mode 'sum'",
        ),
        (
            lambda: EmbeddingBag(3, 2, mode="sum")(torch.tensor([[1]]), per_sample_weights=torch.ones(1, 2)),
            ValueError,
            "per_sample_weights must be",
        ),
        (
            lambda: EmbeddingBag(3, 2, mode="sum")(torch.tensor([[1]]), per_sample_weights=torch.ones(1, 1).double()),
            ValueError,
            "per_sample_weights must be",
        ),
    ],
)
def test_wrong_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
