"""The hash of text and vocabularies: fixed values, one hash for one value, compiled = NumPy = a few lines of Python."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.reading import hashing
from deeprec.data.reading.hashing import PythonVocabulary, Vocabulary, hash_text

MASK = (1 << 64) - 1
GOLDEN = [0, 18119689086777206668, 11449356412927661723, 8699220765739983894, 8928591170168671772, 9260656408219841379]


def one_hash(text: bytes) -> int:
    """The module's formula, a word at a time."""
    if not text:
        return 0
    h = len(text) * 0x9E3779B97F4A7C15 & MASK
    for start in range(0, len(text), 8):
        h ^= int.from_bytes(text[start : start + 8], "little")
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & MASK
        h = (h ^ h >> 27) * 0x94D049BB133111EB & MASK
        h ^= h >> 31
    return h or 0x9E3779B97F4A7C15


def buffer(texts: list[bytes]) -> tuple[np.ndarray[Any, Any], bytes]:
    return np.cumsum([0, *map(len, texts)], dtype=np.int64), b"".join(texts)


def test_the_hash_never_changes() -> None:
    # Saved encoders hold such numbers: if this fails, the change is wrong, not the test.
    assert hash_text(["", "a", "68fd1e64", "Bachelors", "ein längerer Text", "3"]).tolist() == GOLDEN
    assert hashing.TEXT_HASH_VERSION == 1


@given(st.lists(st.binary(max_size=40)))
def test_compiled_and_numpy_hashes_are_the_formula(texts: list[bytes]) -> None:
    special = {b"True": b"true", b"False": b"false"}
    expected = [one_hash(special.get(text, text)) for text in texts if not text.endswith(b".0")]
    offsets, data = buffer([text for text in texts if not text.endswith(b".0")])
    assert hashing.hash_buffers(offsets, data).tolist() == expected
    assert hashing._hash_buffers_python(offsets, data).tolist() == expected


@given(st.lists(st.text("-0123456789.TrueFals ", max_size=24)))
def test_compiled_and_numpy_make_the_same_spellings_one(texts: list[str]) -> None:
    extra = ["True", "False", "12.0", "-7.0", "0.0", "-0.0", "007.0", "1.00", ".0", "1e3.0", "True.0", "9" * 17 + ".0"]
    offsets, data = buffer([text.encode() for text in texts + extra + [text + ".0" for text in texts]])
    expected = hashing._hash_buffers_python(offsets, data)
    np.testing.assert_array_equal(hashing.hash_buffers(offsets, data), expected)


@pytest.mark.parametrize(
    ("given_values", "text"),
    [
        (["12.0", "-3.0", "0.0"], ["12", "-3", "0"]),
        ([12, -3, 0], ["12", "-3", "0"]),
        ([12.0, -3.0, 0.0], ["12", "-3", "0"]),
        (np.array([2**63 + 1, 2], dtype=np.uint64), [str(2**63 + 1), "2"]),
        (np.array([-(2**63), 2**63 - 1]), [str(-(2**63)), str(2**63 - 1)]),
        (np.array([7, -7], dtype=np.int8), ["7", "-7"]),
        ([True, False, None], ["true", "False", None]),
        (["True", "TRUE"], [True, "TRUE"]),
        (["a", None, ""], ["a", "", None]),
        (np.array([0.5, np.nan, 3]), ["0.5", None, "3"]),
        (pd.Series([3, None, 4]), ["3", "", "4"]),  # pandas makes floats of them
        (pd.Series([3, "3", None, 2.5]), ["3", "3", "", "2.5"]),
        (pd.Series(["x", None, "y"], dtype="category"), ["x", "", "y"]),
        (pl.Series(["x", None, "y"], dtype=pl.Categorical), ["x", "", "y"]),
        (pl.Series(["x", "y"], dtype=pl.Enum(["y", "x"])), ["x", "y"]),
        (pl.Series([b"x", None]), ["x", ""]),
        (pl.Series([None, None]), ["", ""]),
        (pl.Series([], dtype=pl.String), []),
        (np.array(["x", "yy"]), ["x", "yy"]),
        (("ä", "日本"), ["ä", "日本"]),
    ],
)
def test_one_value_has_one_hash(given_values: Any, text: list[Any]) -> None:
    as_text = [None if value is None else str(value) for value in text]
    assert hash_text(given_values).tolist() == hash_text(pl.Series(as_text, dtype=pl.String)).tolist()


def test_other_spellings_stay_apart() -> None:
    texts = ["7", "007", "+7", " 7", "7 ", "7.00", "7.", "-0.0", "0", "a", "A", "true", "TRUE", "1"]
    assert len(set(hash_text(texts).tolist())) == len(texts)


def test_values_that_have_no_text_are_refused() -> None:
    with pytest.raises(TypeError, match="hash_text: values must be text, numbers, booleans or times, got List"):
        hash_text(pl.Series([[1], [2]]))


@pytest.mark.parametrize("offsets", [[], [1, 0], [0, 4], [-1, 2], [[0, 1]]])
def test_offsets_beyond_the_data_are_refused(offsets: list[Any]) -> None:
    with pytest.raises(ValueError, match="hash_buffers: offsets must be"):
        hashing.hash_buffers(np.array(offsets, dtype=np.int64), b"abc")


def test_a_million_values_do_not_collide_and_fill_all_bits() -> None:
    hashes = hash_text(np.arange(1_000_000))
    assert len(np.unique(hashes)) == 1_000_000
    for bit in range(64):
        share = (hashes >> np.uint64(bit) & np.uint64(1)).mean()
        assert abs(share - 0.5) < 0.003  # six standard deviations


@pytest.mark.parametrize("make", [Vocabulary, PythonVocabulary])
@given(values=st.lists(st.lists(st.integers(0, 12)), max_size=5), min_count=st.integers(1, 3), size=st.integers(0, 9))
def test_vocabulary_is_a_counter(make: Any, values: list[list[int]], min_count: int, size: int) -> None:
    vocabulary = make()
    for part in values:
        vocabulary.count(np.array(part, dtype=np.uint64), np.array(part, dtype=np.int64) != 7)
    counts = Counter(value for part in values for value in part if value != 7)
    expected = sorted((-count, value) for value, count in counts.items() if count >= min_count)[:size]
    hashes, kept = vocabulary.finish(min_count, size)
    assert (hashes.dtype, kept.dtype) == (np.uint64, np.int64)
    assert list(zip((-kept).tolist(), hashes.tolist(), strict=True)) == expected
    assert len(vocabulary) == len(counts)
    ids = make(hashes).lookup(np.arange(20, dtype=np.uint64))
    assert ids.dtype == np.int32
    places = {value: place + 1 for place, (_, value) in enumerate(expected)}
    assert ids.tolist() == [places.get(value, 0) for value in range(20)]


def test_vocabulary_of_many_values_grows_and_keeps_within_its_memory() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 300_000, dtype=np.uint64)
    given_values = np.concatenate([values, values[:1000], np.zeros(5, dtype=np.uint64)])
    vocabulary = Vocabulary()
    for part in np.array_split(given_values, 7):
        vocabulary.count(part)
    assert len(vocabulary) == 300_001
    assert vocabulary.nbytes <= 46 * len(vocabulary)
    hashes, counts = vocabulary.finish()
    assert (hashes[0], counts[0], set(counts[1:1001])) == (0, 5, {2})
    np.testing.assert_array_equal(np.sort(hashes), np.unique(given_values))
    np.testing.assert_array_equal(hashes[1001:], np.sort(values[1000:]))
    np.testing.assert_array_equal(Vocabulary(hashes).lookup(hashes), np.arange(1, 300_002))


@pytest.mark.parametrize("make", [Vocabulary, PythonVocabulary])
def test_vocabulary_takes_any_order_and_stride_and_nothing(make: Any) -> None:
    values = np.arange(100, dtype=np.uint64)[::-3]
    vocabulary = make()
    vocabulary.count(np.empty(0, dtype=np.uint64))
    vocabulary.count(values, np.ones(200, dtype=np.bool_)[: 2 * len(values) : 2])
    np.testing.assert_array_equal(vocabulary.finish()[0], np.sort(values))
    assert make(np.empty(0, dtype=np.uint64)).lookup(values).tolist() == [0] * len(values)
    assert make(values[:2]).lookup(values[:3]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("make", [Vocabulary, PythonVocabulary])
def test_vocabulary_refuses_the_other_half_of_its_work(make: Any) -> None:
    values = np.arange(3, dtype=np.uint64)
    with pytest.raises(ValueError, match="this one counts"):
        make().lookup(values)
    with pytest.raises(ValueError, match="this one has its ids"):
        make(values).count(values)
    with pytest.raises(ValueError, match=r"mask must be \(3,\), got \(2,\)"):
        make().count(values, np.ones(2, dtype=np.bool_))
    for twice in ([4, 4], [0, 1, 0]):
        with pytest.raises(ValueError, match="hashes must be distinct"):
            make(np.array(twice, dtype=np.uint64))
