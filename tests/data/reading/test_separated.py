"""Text to columns: against Python's csv module, and the compiled parser against the plain one on any bytes."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec import _compiled as built
from deeprec.data.reading import separated
from deeprec.data.reading.hashing import hash_bytes, hash_text
from deeprec.data.reading.missing import MISSING_NUMBERS
from deeprec.data.reading.rows import split_plain, split_quoted
from deeprec.data.reading.separated import BAG, HASH, NUMBER, Bad, BagChunk, Dialect, Pairs, Parsed

COMMA = Dialect(b",", b'"')
PIECES = [b",", b'"', b"\n", b"\r", b"\r\n", b" ", b"\t", b"|", b":", b"#", b"0", b"1", b"-", b"+", b".", b"e", b"nan"]
PIECES += [b"inf", b"true", b"12.5", b"1e999", b"1e-999", b"NA", b"a", b"\x00", b"\xff", b"3.0", b"123456789012345678"]
# Texts that are nearly rows of a log; pure noise would be bad rows only.
NOISE = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join) | st.binary(max_size=200)


def columns_of(parsed: Parsed | Pairs) -> list[Any]:
    """Something to compare: arrays as lists, NaN as None."""

    def plain(value: Any) -> Any:
        if isinstance(value, BagChunk):
            return [plain(part) for part in value]
        if isinstance(value, np.ndarray):
            return [str(value.dtype), *(None if x != x else x for x in value.tolist())]
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return [plain(part) for part in parsed]


@pytest.fixture
def compiled() -> None:
    if separated._host is None:
        pytest.skip("needs deeprec._host, which is built with a C++ compiler")


@pytest.mark.usefixtures("compiled")
@given(
    NOISE,
    st.sampled_from([b",", b"\t", b"|", b", ", b"::", b"1"]),
    st.sampled_from([b'"', b"", b"a"]),
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.sampled_from([("|", ""), ("|", ":"), ("", ":"), ("::", "1")]),
    st.booleans(),
)
def test_any_text_parses_the_same_compiled_and_plain(
    text: bytes, separator: bytes, quote: bytes, kinds: list[int], bag: tuple[str, str], has_codes: bool
) -> None:
    dialect = Dialect(separator, quote, (hash_bytes(b"NA"), hash_bytes(b"0")))
    bags = [(bag[0].encode(), bag[1].encode()) for kind in kinds if kind & BAG]
    codes = {0: [(hash_bytes(b"a"), 1.0), (hash_bytes(b"12.5"), math.pi)]} if has_codes else {}
    found = separated.parse_log(text, dialect, bytes(kinds), bags, codes)
    expected = separated._parse_log_python(text, dialect, bytes(kinds), bags, codes)
    assert columns_of(found) == columns_of(expected)
    rows = list(separated.split_rows(text, dialect))
    assert found.rows + found.num_bad == len(rows)
    split = split_quoted if quote else split_plain
    assert separated.cut_log(text, dialect) == max([row.end for row in split(text, dialect) if row.has_end], default=0)


@pytest.mark.usefixtures("compiled")
@given(NOISE, st.sampled_from([(0, []), (1, [0, 1, 12]), (1, []), (2, [0, 1]), (2, [])]))
def test_any_text_gives_the_same_pairs_compiled_and_plain(text: bytes, mode: tuple[int, list[int]]) -> None:
    text = text.replace(b",", b" 1:")  # so that some rows are good
    found = separated.parse_pairs(text, *mode)
    assert columns_of(found) == columns_of(separated._parse_pairs_python(text, *mode))


@pytest.mark.usefixtures("compiled")
@given(st.lists(NOISE, max_size=5), st.sampled_from([(b"|", b""), (b",", b":"), (b"", b":"), (b"", b"")]))
def test_any_texts_give_the_same_bags_compiled_and_plain(texts: list[bytes], separators: tuple[bytes, bytes]) -> None:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    dialect = Dialect(b"", missing=(hash_bytes(b"NA"),))
    found = separated.parse_bags(offsets, b"".join(texts), separators, dialect)
    expected = separated._parse_bags_python(offsets, b"".join(texts), separators, dialect)
    assert columns_of(found) == columns_of(expected)


PARSERS = [
    pytest.param(separated.parse_log, id="compiled"),
    pytest.param(lambda *given: separated._parse_log_python(*given, {}), id="plain"),
]
FIELDS = st.text(st.sampled_from(list('ab,"\n \tä|:.')), max_size=6)


@pytest.mark.parametrize("parse", PARSERS)
@given(st.lists(st.lists(FIELDS, min_size=2, max_size=2)), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_quoted_rows_are_what_csv_reads(parse: Any, rows: list[list[str]], end: str, quote_all: bool) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL).writerows(rows)
    parsed = parse(out.getvalue().encode(), COMMA, bytes([HASH, HASH]), [])
    kept = [row for row in csv.reader(io.StringIO(out.getvalue(), newline="")) if row]
    assert kept == rows
    assert (parsed.rows, parsed.num_bad) == (len(rows), 0)
    for column in (0, 1):
        assert parsed.hashes[column].tolist() == hash_text([row[column].strip(" \t") for row in rows]).tolist()


@pytest.mark.parametrize("parse", PARSERS)
@given(st.text(st.sampled_from(list('a,"\n ')), max_size=30))
def test_odd_quotes_are_what_csv_reads(parse: Any, text: str) -> None:
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row and (len(row) > 1 or row[0].strip(" "))]
    # A row with one quoted field of spaces is none for csv's reader to tell from a blank line.
    parsed = parse(text.encode(), COMMA, bytes([HASH]), [])
    good = [row[0].strip(" \t") for row in rows if len(row) == 1]
    found = parsed.hashes[0].tolist()
    is_closed = not any(bad.reason == separated.UNCLOSED for bad in parsed.bad)
    blank = set(hash_text(["", *(" " * n for n in range(1, 31))]).tolist())
    if is_closed and parsed.num_bad <= separated.KEPT_BAD:
        assert [value for value in found if value not in blank] == [
            value for value in hash_text(good).tolist() if value not in blank
        ]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0.0),
        ("-12", -12.0),
        ("+12", 12.0),
        (" 12\t", 12.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e-3", -0.0005),
        ("1E5", 1e5),
        ("123456789012345", 123456789012345.0),
        ("12345678901234567890", 12345678901234567890.0),
        ("0.1", 0.1),
        ("179769313486231570000e288", 1.7976931348623157e308),
        ("1e-400", 0.0),
        ("4.9e-324", 5e-324),
        ("2.2250738585072011e-308", 2.2250738585072011e-308),
        ("", math.nan),
        ("  ", math.nan),
        ("nan", math.nan),
        ("-NaN", math.nan),
        ("mine", math.nan),
        *((text, math.nan) for known in sorted(MISSING_NUMBERS) for text in (known, known.upper(), f" {known} ")),
        ("true", 1.0),
        ("False", 0.0),
    ],
)
def test_numbers_are_rounded_as_python_rounds_them(parse: Any, text: str, value: float) -> None:
    parsed = parse(f"{text},x\n".encode(), Dialect(b",", b"", (hash_bytes(b"mine"),)), bytes([NUMBER, 0]), [])
    np.testing.assert_array_equal(parsed.numbers[0], [value])


@given(st.floats(allow_infinity=False))
def test_every_number_comes_back(value: float) -> None:
    parsed = separated.parse_log(f"{value!r}\n".encode(), COMMA, bytes([NUMBER]), [])
    np.testing.assert_array_equal(parsed.numbers[0], [value])


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text", ["x", "1x", "1 2", "0x10", "1_000", "--1", "+-1", ".", "e5", "1e", "1,5", "+", "TRUE", "١"]
)
def test_what_is_not_a_number_is_bad(parse: Any, text: str) -> None:
    parsed = parse(f'1\n"{text}"\n2\n'.encode(), COMMA, bytes([NUMBER]), [])
    assert parsed.numbers[0].tolist() == [1, 2]
    assert parsed.bad == [Bad(1, 0, separated.NOT_A_NUMBER, text.encode())]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", ["inf", "-Infinity", "+INF", "1e309", "-1e999"])
def test_infinite_numbers_are_bad(parse: Any, text: str) -> None:
    parsed = parse(f"{text}\n".encode(), COMMA, bytes([NUMBER]), [])
    assert parsed.bad == [Bad(0, 0, separated.INFINITE, text.encode())]


@pytest.mark.parametrize("parse", PARSERS)
def test_bad_rows_say_where_and_why(parse: Any) -> None:
    text = b'1,a\n\n2\n"3\n3",b\n4,c,d\n5,"e\n'
    parsed = parse(text, COMMA, bytes([NUMBER, HASH]), [])
    assert parsed.rows == 1
    assert parsed.bad == [
        Bad(2, 1, separated.TOO_FEW, b"1"),
        Bad(3, 0, separated.NOT_A_NUMBER, b"3\n3"),
        Bad(5, 2, separated.TOO_MANY, b"d"),
        Bad(6, 1, separated.UNCLOSED, b"e\n"),
    ]
    assert (parsed.num_bad, parsed.lines) == (4, 7)


@pytest.mark.parametrize("parse", PARSERS)
def test_a_column_may_be_hashed_counted_and_a_bag_at_once(parse: Any) -> None:
    parsed = parse(b"1\n2.0\n\n-3\n", COMMA, bytes([HASH | NUMBER | BAG]), [(b".", b"")])
    assert parsed.hashes[0].tolist() == hash_text([1, 2, -3]).tolist()
    assert parsed.numbers[0].tolist() == [1, 2, -3]
    assert parsed.bags[0].hashes.tolist() == hash_text([1, 2, 0, -3]).tolist()


@pytest.mark.parametrize("parse", PARSERS)
def test_bags_have_weights_after_the_last_separator(parse: Any) -> None:
    text = b"a:b:0.5|c:2||d:-1e-3\n|\nx:nan\ny\n:1\nz:1e39\nw:3.0\n"
    parsed = parse(text, Dialect(b","), bytes([BAG]), [(b"|", b":")])
    bag = parsed.bags[0]
    assert bag.offsets.tolist() == [0, 3, 3, 4]
    assert bag.hashes.tolist() == hash_text(["a:b", "c", "d", "w"]).tolist()
    assert bag.weights is not None
    np.testing.assert_array_equal(bag.weights, np.array([0.5, 2, -0.001, 3], dtype=np.float32))
    assert [(bad.line, bad.text) for bad in parsed.bad] == [(2, b"x:nan"), (3, b"y"), (4, b":1"), (5, b"z:1e39")]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("separator", "quote"), [(b"", b""), (b"\n", b""), (b'"', b'"'), (b"\0", b""), (b",", b"ab")])
def test_a_dialect_that_cannot_be_is_refused(separator: bytes, quote: bytes) -> None:
    with pytest.raises(ValueError, match="parse_log: separator must be"):
        separated.parse_log(b"a,b\n", Dialect(separator, quote), bytes([HASH]), [])


def test_a_module_compiled_from_other_sources_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(built, "LOG_VERSION", -1)
    assert built._load() is None
    assert ("run make build" in caplog.text) == (separated._host is not None)
