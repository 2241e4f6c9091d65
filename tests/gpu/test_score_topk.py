"""score_topk and score_items of both scorers: every k, dtypes, shapes, layouts, seen items, ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from gpu_arguments import dot_of, network_of, seen_of
from gpu_parity import (
    DEVICE,
    HAS_GPU,
    INDICES,
    LAYOUTS,
    OPERATORS,
    check,
    grid,
    integers,
    laid_out,
    launched,
    moved,
    on_gpu,
)
from torch import Tensor

DOT, NCF = "_score_topk_dot_kernel", "_score_topk_ncf_kernel"
MOST = 64  # what the kernels keep; more is the reference's
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KS = [*range(1, MOST + 7), 100] if HAS_GPU else [1, 2, 5, MOST, MOST + 1, 100]
# B, N, D.
DOTS = [(3, 123, 7), (17, 33, 33), (1, 1, 1), (2, 65, 16), (3, 64, 1)]
DOTS += on_gpu((49, 20_011, 64), (241, 1000, 300), (17, 70, 33), (5, 123, 7))
# B, N, D of the factors, widths of the layers.
NETWORKS = [
    *[(2, 70, 8, [33, 17, 9]), (2, 33, 0, [7, 5, 3, 1]), (1, 65, 4, []), (2, 64, 3, [6]), (1, 1, 1, [1, 1])],
    *on_gpu((20, 3001, 32, [128, 64, 32]), (50, 65, 5, [7, 5, 3, 1]), (3, 5000, 64, [256, 128, 64])),
]


def expected_of(scores: Tensor, k: int, seen: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Best values [B, k] and ids by the float64 scores, the lower id first; -inf and -1 after the last."""
    scores = scores.clone()
    indptr, indices, rows = seen
    if indptr is not None and indices is not None:
        for user in range(scores.shape[0]):
            row = user if rows is None else int(rows[user])
            scores[user, indices[indptr[row] : indptr[row + 1]].long()] = -torch.inf
    values, ids = scores.sort(dim=1, descending=True, stable=True)
    short = max(0, k - scores.shape[1])
    values = torch.nn.functional.pad(values[:, :k], (0, short), value=-torch.inf)
    ids = torch.nn.functional.pad(ids[:, :k], (0, short), value=-1)
    return values, torch.where(values == -torch.inf, -1, ids)


def check_topk(
    name: str,
    scorer: list[Any],
    k: int,
    seen: Sequence[Tensor | None] = (None, None, None),
    kernel: str = "",
    tolerance: float = 1e-5,
) -> None:
    """Values of the float64 scores; ids whose score that is, each once and none of them seen; twice the same bits."""
    dense = OPERATORS[name.replace("topk", "items")].reference
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in scorer]
    # Of the network in its own precision; of the dot product exactly.
    scores = dense(*scorer).double() if "ncf" in name else wide[0] @ wide[1].T + (0 if wide[2] is None else wide[2])
    values, ids = expected_of(scores, k, seen)
    with launched(*([kernel] if kernel and OPERATORS[name].implementation("cuda")[0] == "triton" else [])):
        got = getattr(torch.ops.deeprec, name)(*moved(scorer), k, *moved(list(seen)))
    again = getattr(torch.ops.deeprec, name)(*moved(scorer), k, *moved(list(seen)))
    assert all(map(torch.equal, got, again))
    assert [(x.dtype, x.shape) for x in got] == [(torch.float32, ids.shape), (torch.int64, ids.shape)]
    got_values, got_ids = (x.cpu() for x in got)
    assert torch.equal(got_ids < 0, ids < 0)
    torch.testing.assert_close(got_values.double(), values, rtol=tolerance, atol=tolerance * 8)
    if scores.numel():
        own = scores.gather(1, got_ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        torch.testing.assert_close(own, got_values.double(), rtol=tolerance, atol=tolerance * 8)
    indptr, indices, rows = seen
    for user, row in enumerate(got_ids.tolist()):
        kept = [i for i in row if i >= 0]
        assert len(set(kept)) == len(kept)
        if indptr is not None and indices is not None:
            line = user if rows is None else int(rows[user])
            assert not set(kept) & set(indices[indptr[line] : indptr[line + 1]].tolist())


def kernel_for(kernel: str, k: int) -> str:
    return kernel if 0 < k <= MOST else ""


@pytest.mark.parametrize("k", KS)
def test_every_k_of_the_dot_product(k: int) -> None:
    check_topk("score_topk", dot_of(2, 67, 5), k, (*seen_of(2, 67), None), kernel_for(DOT, k))


@pytest.mark.parametrize("k", KS)
def test_every_k_of_the_network(k: int) -> None:
    check_topk("score_topk_ncf", network_of(2, 70, 3, [6, 4]), k, (*seen_of(2, 70), None), kernel_for(NCF, k))


@grid(shape=DOTS, dtype=DTYPES, k=[3, 10, 1, *on_gpu(64)], seen=["rows", "all", "none"], rows=INDICES)
def test_dot_product(shape: tuple[int, int, int], dtype: torch.dtype, k: int, seen: str, rows: torch.dtype) -> None:
    num_users, num_items, _ = shape
    lists: Any = (None, None, None)
    if seen == "rows":  # lists of others too, and one user's list for another
        lists = (*seen_of(num_users + 2, num_items, 1.0), integers(num_users + 2, num_users, dtype=rows))
    elif seen == "all":
        lists = (*seen_of(num_users, num_items, 1.0), None)
    check_topk("score_topk", dot_of(*shape, dtype), k, lists, DOT)


@grid(layout=LAYOUTS, of_users=[*LAYOUTS, "expanded"])
def test_dot_product_of_any_layout(layout: str, of_users: str) -> None:
    users, items, bias = dot_of(3, 40, 12)
    check_topk("score_topk", [laid_out(users, of_users), laid_out(items, layout), laid_out(bias, layout)], 2)


def test_users_and_items_of_two_dtypes() -> None:
    users, items, _ = dot_of(3, 40, 12)
    check_topk("score_topk", [users, items.bfloat16(), None], 2, kernel=DOT)


@grid(shape=NETWORKS, use_bfloat16=[False, True], k=[10, 1, *on_gpu(64)], has_seen=[True, False])
def test_network(shape: tuple[int, int, int, list[int]], use_bfloat16: bool, k: int, has_seen: bool) -> None:
    num_users, num_items, _, layers = shape
    scorer = network_of(*shape, use_bfloat16)
    # The interpreter truncates to bfloat16 where hardware rounds.
    tolerance = 1e-2 if use_bfloat16 else 2e-5
    is_held = 0 < len(layers) <= 4
    seen: Any = (*seen_of(num_users, num_items), None) if has_seen else (None, None, None)
    check_topk("score_topk_ncf", scorer, k, seen, NCF if is_held else "", tolerance)
    like = OPERATORS["score_items_ncf"].reference(*scorer)
    with launched(*([NCF] if is_held and OPERATORS["score_items_ncf"].implementation("cuda")[0] == "triton" else [])):
        got = torch.ops.deeprec.score_items_ncf(*moved(scorer))
    torch.testing.assert_close(got.cpu(), like, rtol=tolerance, atol=tolerance * 8)


def test_a_network_too_deep_or_wide_for_the_kernel_is_the_references() -> None:
    for layers in ([8, 7, 6, 5, 4], [300, 4]):
        check_topk("score_topk_ncf", network_of(2, 30, 4, layers), 5, tolerance=2e-5)


@pytest.mark.parametrize(("num_users", "num_items", "k"), [(0, 9, 3), (4, 0, 3), (4, 9, 0), (0, 0, 0), (2, 3, 9)])
def test_nothing_to_choose_from(num_users: int, num_items: int, k: int) -> None:
    check_topk("score_topk", dot_of(num_users, num_items, 4), k)
    check_topk("score_topk_ncf", network_of(num_users, num_items, 4, [8, 4]), k)


def test_ties_nan_and_signed_zero_follow_the_rule() -> None:
    bias = torch.tensor([0.0, torch.nan, -0.0, -torch.inf, torch.inf, -1.0, 0.0])
    given = [torch.zeros(1, 2), torch.zeros(7, 2), bias]
    values, ids = torch.ops.deeprec.score_topk(*moved(given), 6)
    assert ids.tolist() == [[4, 0, 2, 6, 5, -1]]
    assert values.tolist() == [[torch.inf, 0.0, 0.0, 0.0, -1.0, -torch.inf]]
    for num_items in (150, *on_gpu(50_000)):  # a part of the catalogue, and several that are merged
        steps = (torch.arange(num_items) % 3).float()[:, None].to(DEVICE)
        _, ids = torch.ops.deeprec.score_topk(torch.ones(2, 1, device=DEVICE), steps, None, 5)
        assert ids.tolist() == [[2, 5, 8, 11, 14]] * 2


@grid(shape=DOTS, dtype=DTYPES, layout=LAYOUTS)
def test_dense_scores(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    users, items, bias = dot_of(*shape, dtype)
    for given in ([users, items, bias], [users, items, None]):
        check("score_items", *(None if x is None else laid_out(x, layout) for x in given), terms=64.0 + shape[2])


def scores_of(similarity: int, users: Tensor, items: Tensor) -> Tensor:
    """In float64."""
    u, v = users.double(), items.double()
    if similarity == 2:
        return -(u[:, None] - v).square().sum(2)
    return u @ v.T / (u.norm(dim=1)[:, None] * v.norm(dim=1) if similarity else 1.0)


@grid(shape=DOTS[:3], dtype=DTYPES, similarity=[0, 1, 2], of=["all", "each", "none"], has_seen=[True, False])
def test_allowed_items_of_each_similarity(
    shape: tuple[int, int, int], dtype: torch.dtype, similarity: int, of: str, has_seen: bool
) -> None:
    """The operator with lists of allowed items: values of the float64 scores, and items whose scores these are."""
    num_users, num_items, _ = shape
    users, items, _ = dot_of(*shape, dtype)
    seen: Any = (*seen_of(num_users, num_items), None) if has_seen else (None, None, None)
    indptr, indices = seen_of(num_users, num_items, 0.7)
    allowed: Any = {"none": (None, None), "each": (indptr, indices), "all": (None, indices[: int(indptr[1])])}[of]
    scores = scores_of(similarity, users, items)
    if of != "none":
        is_in = torch.zeros(num_users, num_items, dtype=torch.bool)
        for user in range(num_users):
            row = allowed[1] if of == "all" else indices[indptr[user] : indptr[user + 1]]
            is_in[user, row.long()] = True
        scores = scores.masked_fill(~is_in, -torch.inf)
    kernel = [DOT] if similarity < 2 and of != "each" and (of == "none" or allowed[1].numel()) else []
    with launched(*(kernel if OPERATORS["score_topk"].implementation("cuda")[0] == "triton" else [])):
        got = torch.ops.deeprec.score_topk(*moved([users, items, None]), 5, *moved([*seen, *allowed]), similarity)
    values, ids = expected_of(scores, 5, seen)
    got_values, got_ids = (x.cpu() for x in got)
    assert torch.equal(got_ids < 0, ids < 0)
    torch.testing.assert_close(got_values.double(), values, rtol=1e-5, atol=1e-4)
    own = scores.gather(1, got_ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    torch.testing.assert_close(own, got_values.double(), rtol=1e-5, atol=1e-4)
