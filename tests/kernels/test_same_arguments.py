"""References and compiled kernels accept and refuse the same arguments, and give the same results for them.

A fast path that relies on an operator refusing an argument would otherwise be wrong without the compiled library. Every
operator is driven with the samples of its opcheck test, of which one argument at a time is spoiled: tensors of another
shape, dtype or layout, indices out of range, numbers without meaning. Whoever refuses has changed nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.embedding import embedding, embedding_plan
from deeprec.kernels.embedding_bag import embedding_bag, embedding_bags, embedding_bags_plan
from deeprec.kernels.embedding_fm import embedding_fm
from deeprec.kernels.fm_interaction import bi_interaction, fm_interaction
from deeprec.kernels.masked_autoencoder_loss import masked_autoencoder_loss
from deeprec.kernels.ncf_loss import ncf_loss
from deeprec.kernels.prefilter_topk import PreparedItems, PreparedScorer, prefilter_topk
from deeprec.kernels.sample_negatives import alias_table, sample_negatives
from deeprec.kernels.sampled_linear_loss import csr_plan, sampled_linear_loss
from deeprec.kernels.score_topk import DotScorer, score_items, score_topk
from deeprec.kernels.softmax_loss import sampled_softmax_loss, softmax_loss
from deeprec.kernels.sparse_linear import sparse_linear

_REFUSALS = (ValueError, IndexError, TypeError, RuntimeError, MemoryError)


def _tensors(given: Tensor) -> Iterator[tuple[str, Any]]:
    given = given.detach()
    yield "float64", given.double()
    yield "float16", given.half()
    yield "int64", given.long()
    yield "bool", given.bool()
    yield "a dimension more", given.unsqueeze(0)
    if given.dim():
        yield "one longer", torch.cat([given, given[:1] if given.shape[0] else given.new_zeros(1, *given.shape[1:])])
        yield "one shorter", given[:-1]
        yield "empty", given[:0]
        yield "flat", given.reshape(-1)
        yield "strided", torch.stack([given, given], -1)[..., 0]
        yield "reversed", given.flip(0)
    if given.dim() == 2:
        yield "one wider", torch.cat([given, given[:, :1]], 1)
        yield "one narrower", given[:, :-1]
        yield "transposed", given.t()
        yield "by columns", given.t().contiguous().t()
    if given.numel():
        numbers = [-1, 0, 1, 1000, 2**31 - 1] if not given.is_floating_point() else [math.nan, math.inf, -1.0]
        if given.dtype == torch.uint8:
            numbers = [0, 1, 255]
        for number in numbers if given.dtype != torch.bool else ():
            spoiled = given.clone(memory_format=torch.contiguous_format)
            spoiled.view(-1)[spoiled.numel() // 2] = number
            yield f"{number} in the middle", spoiled
            spoiled = given.clone(memory_format=torch.contiguous_format)
            spoiled.view(-1)[-1] = number
            yield f"{number} at the end", spoiled


def _spoiled(given: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(given, Tensor):
        yield from _tensors(given)
    elif hasattr(given, "_replace"):
        for field in given._fields:
            for name, some in _spoiled(getattr(given, field)):
                yield f"{field}: {name}", given._replace(**{field: some})
    elif isinstance(given, (list, tuple)):
        yield "no entry", given[:0]
        yield "an entry more", [*given, *given[:1]]
        yield "an entry less", given[:-1]
        for place in {0, len(given) - 1} if given else ():
            for name, some in _spoiled(given[place]):
                if some is not None:
                    yield f"entry {place}: {name}", [*given[:place], some, *given[place + 1 :]]
    elif isinstance(given, bool):
        yield str(not given), not given
    elif isinstance(given, int):
        for number in (-(2**40), -2, -1, 0, 1, 3, 99, 2**40):
            yield str(number), number
    elif isinstance(given, float):
        for value in (math.nan, math.inf, -math.inf, -1.0, 0.0, 1.0, 2.0):
            yield str(value), value


# Whose values mean nothing once they are spoiled, so that only acceptance is compared: a plan that does not group the
# ids, users' lists out of order, a Gram matrix that is none, a compressed copy that is not that of its rows.
_MEANINGLESS = {"rows", "row_offsets", "offsets", "order", "bags", "table_starts", "indices", "seen_indices", "gram"}
_MEANINGLESS |= {"words", "scales", "bounds"}


def _outcome(function: Callable[..., Any], arguments: list[Any]) -> tuple[Any, Exception | None, list[Any]]:
    """Result, refusal, and the arguments as they are afterwards."""
    mine = copy.deepcopy(arguments)
    try:
        return function(*mine), None, mine
    except _REFUSALS as error:
        return None, error, mine


_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def _is_close(mine: Any, other: Any, is_rough: bool = False) -> bool:
    """Whether results agree; is_rough: they come of 16-bit arguments, whose products a kernel may round."""
    if isinstance(mine, Tensor):
        has_shape = mine.shape == other.shape and mine.dtype == other.dtype
        # A kernel rounds a 16-bit weight once, after all steps of a replay.
        rtol, atol = (2e-2, 1e-2) if is_rough or mine.dtype in _SIXTEEN_BITS else (1e-3, 1e-4)
        return has_shape and torch.allclose(mine.double(), other.double(), rtol=rtol, atol=atol, equal_nan=True)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(other) and all(_is_close(*pair, is_rough) for pair in zip(mine, other, strict=True))
    return bool(mine == other or (mine != mine and other != other))


def _is_finite(given: Any) -> bool:
    if isinstance(given, Tensor):
        return bool(given.isfinite().all())
    if isinstance(given, (list, tuple)):
        return all(map(_is_finite, given))
    return not isinstance(given, float) or math.isfinite(given)


@pytest.mark.parametrize("operator", _library.operators(), ids=lambda operator: operator.name)
def test_reference_and_kernel_agree_on_spoiled_arguments(
    operator: _library.Operator, samples: dict[str, list[tuple[Any, ...]]]
) -> None:
    kernel = getattr(torch.ops.deeprec, operator.name)
    names = [argument.name for argument in kernel.default._schema.arguments]
    count = 0
    for sample in samples[operator.name]:
        is_rough = any(isinstance(x, Tensor) and x.dtype in _SIXTEEN_BITS for x in sample)
        for place, right in enumerate(sample):
            for how, spoiled in _spoiled(right):
                arguments = [*sample[:place], spoiled, *sample[place + 1 :]]
                mine, refused, after = _outcome(kernel, arguments)
                other, other_refused, other_after = _outcome(operator.reference, arguments)
                case = f"{operator.name}, {names[place]}: {how}: kernel {refused!r}, reference {other_refused!r}"
                assert (refused is None) == (other_refused is None), case
                if refused is not None:
                    assert _is_close(after, arguments), f"{case}: the kernel changed something first"
                    assert _is_close(other_after, arguments), f"{case}: the reference changed something first"
                elif names[place] not in _MEANINGLESS and _is_finite(spoiled):
                    assert _is_close(mine, other, is_rough), case
                    assert _is_close(after, other_after), f"{case}: left other values behind"
                count += 1
    assert count > 20, f"no arguments of {operator.name} were spoiled"


_USERS, _ITEMS = torch.randn(3, 4), torch.randn(6, 4)
_IDS, _BAGS = torch.tensor([[3, 1, 3], [2, 6, 2]]), torch.tensor([0, 2, 6])
_INDPTR, _COLUMNS, _VALUES = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 4, 0, 1, 3]), torch.randn(5)
_SEEN = (torch.tensor([0, 2, 2, 3]), torch.tensor([1, 4, 0], dtype=torch.int32))


def _table(rows: int = 7, dim: int = 4) -> Tensor:
    return torch.randn(rows, dim, requires_grad=True)


# A valid call of every public function: positional and named arguments.
_CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "als_solve": (als_solve, (_INDPTR, _COLUMNS, _VALUES.abs(), torch.randn(5, 4)), {"ridge": 0.5, "cg_steps": 2}),
    "embedding": (embedding, (_table(), _IDS), {"plan": None}),
    "embedding_plan": (embedding_plan, (_IDS, 7), {}),
    "embedding_bag": (embedding_bag, (_table(), _IDS.reshape(-1), torch.tensor([0, 2])), {"mode": "sum"}),
    "embedding_bags": (embedding_bags, ([_table(), _table()], _IDS), {"tables": [0, 1], "padding_idx": [None, 2]}),
    "embedding_bags_plan": (embedding_bags_plan, (_IDS, None, [7, 7]), {"padding_idx": [None, 2]}),
    "embedding_fm": (embedding_fm, ([_table(), _table()], [_table(7, 1), _table(7, 1)], _IDS), {"tables": [0, 1]}),
    "fm_interaction": (fm_interaction, (torch.randn(3, 4, 5),), {}),
    "bi_interaction": (bi_interaction, (torch.randn(3, 4, 5),), {}),
    "csr_plan": (csr_plan, (_INDPTR, _COLUMNS, 5), {}),
    "sparse_linear": (sparse_linear, (_INDPTR, _COLUMNS, _VALUES, _table(5), torch.randn(4)), {"activation": "tanh"}),
    "sampled_linear_loss": (
        sampled_linear_loss,
        (torch.randn(3, 4), _table(5), torch.randn(5), _INDPTR, _COLUMNS, _VALUES),
        {"loss": "squared"},
    ),
    "masked_autoencoder_loss": (
        masked_autoencoder_loss,
        (_INDPTR, _COLUMNS, _VALUES, _table(5), torch.randn(4), _table(5), torch.randn(5)),
        {"path": "auto"},
    ),
    "ncf_loss": (
        ncf_loss,
        (_table(), _table(), _table(), _table(), _IDS[0], _IDS[1][:, None], torch.ones(3, 1)),
        {"weights": [torch.randn(5, 8)], "biases": [torch.randn(5)], "out_weight": torch.randn(9), "l2": 0.1},
    ),
    "sample_negatives": (
        sample_negatives,
        (torch.tensor([0, 2]), _SEEN[0], _SEEN[1], 6, 3),
        {"seed": 1, "offset": 0},
    ),
    "score_topk": (score_topk, (DotScorer(_USERS, _ITEMS), 2), {"seen_indptr": _SEEN[0], "seen_indices": _SEEN[1]}),
    "prefilter_topk": (
        prefilter_topk,
        (PreparedScorer(torch.randn(3, 4), PreparedItems.of(torch.randn(5000, 4))), 2),
        {"seen_indptr": _SEEN[0], "seen_indices": _SEEN[1], "allow_indices": torch.arange(2000, dtype=torch.int32)},
    ),
    "score_items": (score_items, (DotScorer(_USERS, _ITEMS),), {}),
    "sampled_softmax_loss": (
        sampled_softmax_loss,
        (_table(3), _table(6), torch.tensor([5, 0, 2]), 4),
        {
            "seed": 1,
            "offset": 0,
            "popularity": alias_table(torch.arange(1.0, 7.0)),
            "bias": torch.randn(6),
            "weights": torch.rand(3),
            "seen_indptr": _SEEN[0],
            "seen_indices": _SEEN[1],
            "seen_rows": torch.tensor([0, 2, 1]),
            "gamma": 2.0,
        },
    ),
    "softmax_loss": (
        softmax_loss,
        (_table(3), _table(6), torch.tensor([5, 0, 2])),
        {
            "bias": torch.randn(6),
            "log_q": torch.randn(6),
            "item_ids": torch.tensor([1, 2, 4, 1, 7, 9]),
            "weights": torch.rand(3),
            "seen_indptr": _SEEN[0],
            "seen_indices": _SEEN[1],
            "seen_rows": torch.tensor([0, 2, 1]),
            "gamma": 2.0,
            "label_smoothing": 0.1,
        },
    ),
}


@pytest.mark.parametrize("name", _CALLS)
def test_public_functions_refuse_in_plain_words(name: str) -> None:
    function, positional, named = _CALLS[name]
    function(*positional, **named)
    spoiled = [
        (place, how, ([*positional[:place], some, *positional[place + 1 :]], named))
        for place, right in enumerate(positional)
        for how, some in _spoiled(right)
    ]
    spoiled += [(key, how, (positional, {**named, key: some})) for key in named for how, some in _spoiled(named[key])]
    for place, how, (args, options) in spoiled:
        _, refused, _ = _outcome(lambda *given: function(*given[0], **given[1]), [args, options])
        is_plain = isinstance(refused, (ValueError, IndexError, TypeError, MemoryError))
        is_named = str(refused).startswith(name) and "csrc" not in str(refused)
        assert refused is None or (is_plain and is_named), f"{name}, {place}: {how}: {refused!r}"
