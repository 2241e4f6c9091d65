"""sample_negatives: the same numbers everywhere, the right distribution, never a seen item."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deeprec.kernels.sample_negatives import alias_table, sample_negatives, sample_negatives_reference
from deeprec.kernels.sample_negatives.reference import philox4x32_10

Lists = tuple[Tensor, Tensor]


def csr(lists: list[list[int]]) -> Lists:
    lengths = torch.tensor([0] + [len(items) for items in lists])
    return lengths.cumsum(0), torch.tensor([i for items in lists for i in sorted(items)], dtype=torch.int32)


def random_lists(num_users: int, num_items: int, seed: int, max_fraction: float = 0.5) -> Lists:
    rng = np.random.default_rng(seed)
    most = min(num_items - 1, int(num_items * max_fraction))
    return csr([rng.choice(num_items, rng.integers(0, most + 1), replace=False).tolist() for _ in range(num_users)])


def chi_square_p(counts: np.ndarray, expected: np.ndarray) -> float:
    """Upper tail of the chi-square distribution (Wilson and Hilferty's normal approximation)."""
    keep = expected > 0
    assert counts[~keep].sum() == 0, "an impossible item was drawn"
    statistic = float((((counts - expected) ** 2)[keep] / expected[keep]).sum())
    freedom = int(keep.sum()) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    return float(0.5 * torch.special.erfc(torch.tensor(z / 2**0.5, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple[int, ...], seed: int, expected: tuple[int, ...]) -> None:
    """Known-answer vectors of Random123 (kat_vectors, philox4x32 10)."""
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox4x32_10((c0, c1, c2, c3), seed)) == expected


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("num_users", "num_items", "rows", "num_negatives"),
    [(1, 2, 1, 1), (5, 123, 17, 3), (40, 1000, 333, 5), (7, 64, 4096, 4), (3, 65, 16, 1), (2, 100_003, 50, 9)],
)
def test_equals_reference(
    num_users: int, num_items: int, rows: int, num_negatives: int, weighted: bool, dtype: torch.dtype
) -> None:
    indptr, indices = random_lists(num_users, num_items, seed=num_items)
    users = torch.randint(num_users, (rows,)).to(dtype)
    table = alias_table(torch.rand(num_items) + 0.01) if weighted else None
    got = sample_negatives(
        users, indptr, indices, num_items, num_negatives, seed=2**40 + 3, offset=99, popularity=table
    )
    expected = sample_negatives_reference(
        users, indptr, indices, num_items, num_negatives, 2**40 + 3, 99, *(table or ())
    )
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equals_reference_on_any_shape(data: st.DataObject) -> None:
    num_users, num_items = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 90))
    indptr, indices = random_lists(num_users, num_items, data.draw(st.integers(0, 99)), max_fraction=1.0)
    users = torch.tensor(data.draw(st.lists(st.integers(0, num_users - 1), max_size=30)), dtype=torch.int64)
    num_negatives = data.draw(st.integers(0, 9))
    seed, offset = data.draw(st.integers(-(2**63), 2**63 - 1)), data.draw(st.integers(0, 2**40))
    table = alias_table(torch.rand(num_items) + 0.1) if data.draw(st.booleans()) else None
    got = sample_negatives(users, indptr, indices, num_items, num_negatives, seed=seed, offset=offset, popularity=table)
    expected = sample_negatives_reference(
        users, indptr, indices, num_items, num_negatives, seed, offset, *(table or ())
    )
    assert torch.equal(got, expected)
    for user, row in zip(users.tolist(), got.tolist(), strict=True):
        assert not set(row) & set(indices[indptr[user] : indptr[user + 1]].tolist())


@pytest.mark.parametrize("weighted", [False, True])
def test_same_for_any_number_of_threads_and_any_split(weighted: bool) -> None:
    indptr, indices = random_lists(50, 300, seed=0)
    users = torch.randint(50, (60_000,))
    table = alias_table(torch.rand(300)) if weighted else None
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(sample_negatives(users, indptr, indices, 300, 5, seed=7, offset=11, popularity=table))
    torch.set_num_threads(before)
    # Small parts take the binary search where the whole call takes the bitmap.
    parts, start = [], 0
    for size in (1, 2, 3, 100, 59_894):
        part = users[start : start + size]
        parts.append(sample_negatives(part, indptr, indices, 300, 5, seed=7, offset=11 + start, popularity=table))
        start += size
    assert all(torch.equal(results[0], other) for other in [*results[1:], torch.cat(parts)])


def test_fewer_negatives_are_a_prefix_and_another_seed_differs() -> None:
    indptr, indices = random_lists(9, 200, seed=0)
    users = torch.randint(9, (500,))
    five = sample_negatives(users, indptr, indices, 200, 5, seed=1)
    assert torch.equal(sample_negatives(users, indptr, indices, 200, 3, seed=1), five[:, :3])
    assert not torch.equal(sample_negatives(users, indptr, indices, 200, 5, seed=2), five)
    assert not torch.equal(sample_negatives(users, indptr, indices, 200, 5, seed=1 + (1 << 32)), five)


def test_uniform_over_the_unseen() -> None:
    indptr, indices = csr([[], list(range(0, 97, 3))])
    for user in (0, 1):
        drawn = sample_negatives(torch.full((200_000,), user), indptr, indices, 97, 3, seed=5).flatten()
        expected = np.ones(97)
        expected[indices[indptr[user] : indptr[user + 1]].numpy()] = 0
        expected *= drawn.numel() / expected.sum()
        assert chi_square_p(np.bincount(drawn, minlength=97), expected) > 1e-4


def test_neighbouring_negatives_are_independent() -> None:
    indptr, indices = csr([[]])
    pair = sample_negatives(torch.zeros(300_000, dtype=torch.int64), indptr, indices, 16, 5, seed=5)
    for a, b in ((0, 1), (3, 4)):  # words of one block, and of two blocks
        counts = np.bincount(pair[:, a] * 16 + pair[:, b], minlength=256)
        assert chi_square_p(counts, np.full(256, counts.sum() / 256)) > 1e-4
    counts = np.bincount(pair[1:, 0] * 16 + pair[:-1, 0], minlength=256)
    assert chi_square_p(counts, np.full(256, counts.sum() / 256)) > 1e-4


def test_popularity_follows_the_weights_among_the_unseen() -> None:
    weights = torch.arange(1, 81, dtype=torch.float64)
    weights[[3, 50]] = 0
    table = alias_table(weights, exponent=0.75)
    indptr, indices = csr([[], [0, 7, 50, 79]])
    for user in (0, 1):
        drawn = sample_negatives(
            torch.full((200_000,), user), indptr, indices, 80, 3, seed=6, popularity=table
        ).flatten()
        expected = weights.pow(0.75).numpy()
        expected[indices[indptr[user] : indptr[user + 1]].numpy()] = 0
        expected *= drawn.numel() / expected.sum()
        assert chi_square_p(np.bincount(drawn, minlength=80), expected) > 1e-4


@pytest.mark.parametrize("weighted", [False, True])
def test_nearly_full_user_ends_with_the_right_distribution(weighted: bool) -> None:
    """5,000 items of which 4 are left: most draws come from the choice by rank."""
    left = [0, 17, 18, 4_999]
    indptr, indices = csr([[i for i in range(5_000) if i not in left]])
    weights = torch.ones(5_000, dtype=torch.float64)
    weights[18] = 5.0
    table = alias_table(weights) if weighted else None
    users = torch.zeros(3_000, dtype=torch.int64)
    drawn = sample_negatives(users, indptr, indices, 5_000, 5, seed=1, popularity=table).flatten()
    expected = weights.numpy().copy() if weighted else np.ones(5_000)
    expected[[i for i in range(5_000) if i not in left]] = 0
    expected *= drawn.numel() / expected.sum()
    assert chi_square_p(np.bincount(drawn, minlength=5_000), expected) > 1e-4
    few = sample_negatives_reference(users[:30], indptr, indices, 5_000, 5, 1, 0, *(table or ()))
    assert torch.equal(few.flatten(), drawn[:150])


def test_alias_table_is_exact_in_its_units() -> None:
    table = alias_table(torch.tensor([0.0, 1.0, 2.0, 5.0, 0.0]))
    by_column = torch.zeros(5, dtype=torch.int64)
    by_column.index_add_(0, torch.arange(5), table.threshold)
    by_column.index_add_(0, table.alias.long(), (1 << 32) - table.threshold)
    assert torch.equal(by_column, table.cumulative.diff())
    assert int(table.cumulative[-1]) == 5 << 32
    torch.testing.assert_close(
        table.probabilities(), torch.tensor([0, 1, 2, 5, 0], dtype=torch.float64) / 8, rtol=0, atol=2**-31
    )


@pytest.mark.parametrize("weights", [[], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="alias_table: weights must be"):
        alias_table(torch.tensor(weights))


def test_user_who_has_seen_everything_is_named() -> None:
    indptr, indices = csr([[0, 1], [0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="user 1 has seen all 5 items"):
        sample_negatives(torch.tensor([0, 0, 1]), indptr, indices, 5, 2, seed=0)
    table = alias_table(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="user 0 has seen every item of positive weight"):
        sample_negatives(torch.tensor([0]), indptr, indices, 5, 2, seed=0, popularity=table)
    with pytest.raises(ValueError, match="user 0 has seen every item of positive weight"):
        sample_negatives_reference(torch.tensor([0]), indptr, indices, 5, 2, 0, 0, *table)


def test_unknown_user_is_named_with_its_position() -> None:
    indptr, indices = csr([[0, 1], [2]])
    for bad in (2, -1):
        with pytest.raises(IndexError, match=rf"users must lie in \[0, 2\), got {bad} at position 1"):
            sample_negatives(torch.tensor([0, bad]), indptr, indices, 5, 2, seed=0)


def test_item_outside_the_catalogue_is_refused_before_it_is_written() -> None:
    indptr, indices = torch.tensor([0, 2]), torch.tensor([0, 10**6], dtype=torch.int32)
    with pytest.raises(IndexError, match="indices must lie in"):
        sample_negatives(torch.zeros(100, dtype=torch.int64), indptr, indices, 5, 2, seed=0)


def test_bad_arguments_are_refused() -> None:
    indptr, indices = csr([[0]])
    users = torch.tensor([0])
    with pytest.raises(TypeError, match="indices int32"):
        sample_negatives(users, indptr, indices.long(), 5, 2, seed=0)
    with pytest.raises(ValueError, match="num_items must lie in"):
        sample_negatives(users, indptr, indices, 0, 2, seed=0)
    with pytest.raises(ValueError, match="offset in"):
        sample_negatives(users, indptr, indices, 5, 2, seed=0, offset=-1)
    with pytest.raises(ValueError, match="popularity must describe 5 items"):
        sample_negatives(users, indptr, indices, 5, 2, seed=0, popularity=alias_table(torch.ones(4)))
    with pytest.raises(ValueError, match="indptr must rise"):
        sample_negatives(users, torch.tensor([0, 9]), indices, 5, 2, seed=0)


def test_empty_batch_and_zero_negatives_return_empty() -> None:
    indptr, indices = csr([[0]])
    assert sample_negatives(torch.empty(0, dtype=torch.int32), indptr, indices, 5, 4, seed=0).shape == (0, 4)
    assert sample_negatives(torch.tensor([0]), indptr, indices, 5, 0, seed=0).shape == (1, 0)


def opcheck_samples() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments for test_opcheck.py."""
    indptr, indices = random_lists(4, 30, seed=0)
    users = torch.tensor([0, 3, 1])
    for table in (alias_table(torch.rand(30)), (None, None, None)):
        yield "sample_negatives", (users, indptr, indices, 30, 3, 5, 0, *table)


def test_compiles_to_one_graph_for_any_seed() -> None:
    indptr, indices = random_lists(4, 30, seed=0)
    users = torch.tensor([0, 3, 1])

    @torch.compile(fullgraph=True)
    def draw(users: Tensor, seed: int) -> Tensor:
        return sample_negatives(users, indptr, indices, 30, 3, seed=seed) + 0

    for seed in (1, 2, 3):
        assert torch.equal(draw(users, seed), sample_negatives(users, indptr, indices, 30, 3, seed=seed))


@pytest.mark.parametrize("isa", ["portable", "avx2"])  # the best of this machine serves the other tests
def test_lesser_instruction_sets_give_the_same_numbers(isa: str) -> None:
    code = """
import torch
from deeprec.kernels.sample_negatives import sample_negatives
indptr = torch.arange(0, 51, 5)
indices = torch.arange(50, dtype=torch.int32)
users = torch.arange(10).repeat(100)
print(int((sample_negatives(users, indptr, indices, 50, 7, seed=3) * torch.arange(7000).view(1000, 7)).sum()))
"""
    environment = {**os.environ, "DEEPREC_ISA": isa}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    users = torch.arange(10).repeat(100)
    expected = sample_negatives_reference(
        users, torch.arange(0, 51, 5), torch.arange(50, dtype=torch.int32), 50, 7, 3, 0
    )
    assert int(printed.stdout) == int((expected * torch.arange(7000).view(1000, 7)).sum())


def test_avoids_the_training_items_of_movielens_1m() -> None:
    root = os.environ.get("DEEPREC_DATA")
    path = Path(root or "") / "ml-1m" / "ratings_rank.dat.gz"
    if not root or not path.exists():
        pytest.skip("DEEPREC_DATA is not set to a folder with ml-1m/ratings_rank.dat.gz")
    with gzip.open(path, "rt") as file:
        pairs = np.array([line.split("::")[:2] for line in file], dtype=np.int64)
    users, items = pairs[:, 0] - 1, np.unique(pairs[:, 1], return_inverse=True)[1]
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    order = np.lexsort((items, users))
    indptr = torch.from_numpy(np.concatenate([[0], np.bincount(users, minlength=num_users).cumsum()]))
    indices = torch.from_numpy(items[order].astype(np.int32))
    drawn = sample_negatives(torch.from_numpy(users), indptr, indices, num_items, 4, seed=1).numpy()
    seen = np.zeros((num_users, num_items), dtype=bool)
    seen[users, items] = True
    assert not seen[users[:, None], drawn].any()
    few = torch.from_numpy(users[::997].copy())
    assert torch.equal(
        sample_negatives(few, indptr, indices, num_items, 4, seed=1),
        sample_negatives_reference(few, indptr, indices, num_items, 4, 1, 0),
    )
