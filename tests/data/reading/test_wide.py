"""A hundred thousand columns: nothing looks through all columns for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec._suggest import did_you_mean, listed
from deeprec.data.clicks.log import in_memory
from deeprec.data.columns.inputs import Field, Inputs
from deeprec.data.columns.schema import Categorical, FeatureSchema, Numeric
from deeprec.data.columns.schema_inference import infer
from deeprec.data.interactions.build import from_frame
from deeprec.data.reading.chunks import ColumnsToRead
from deeprec.data.reading.sources import open_source

MANY = 100_000


class Name(str):
    """A name that counts how often names are compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _log(path: Path, columns: int) -> Path:
    header = ",".join(["label", *(f"c{n}" for n in range(columns))])
    rows = [",".join([str(label), *(str((label + n) % 7) for n in range(columns))]) for label in (0, 1, 0, 1)]
    path.write_text("\n".join([header, *rows, ""]))
    return path


def _comparisons(path: Path, columns: int) -> int:
    names = [Name(name) for name in ["label", *(f"c{n}" for n in range(columns))]]
    Name.compared = 0
    source = open_source(_log(path, columns), columns=names)
    kinds = [Categorical if n % 2 else Numeric for n in range(columns)]
    schema = FeatureSchema(tuple(kind(name) for kind, name in zip(kinds, names[1:], strict=True)))
    log = in_memory(source, schema)
    assert len(log.inputs.fields) + len(log.inputs.numerics) == columns
    infer(source)
    return Name.compared


def test_comparisons_of_names_grow_with_the_columns_not_their_square(tmp_path: Path) -> None:
    few, more = _comparisons(tmp_path / "few.csv", 250), _comparisons(tmp_path / "more.csv", 2000)
    assert 0 < more <= 10 * few


def test_a_hundred_thousand_columns_are_read(tmp_path: Path) -> None:
    source = open_source(_log(tmp_path / "wide.csv", MANY))
    assert len(source.columns) == MANY + 1
    names = tuple(source.columns[1:])
    (chunk,) = source.chunks(ColumnsToRead(numeric=("label", *names)))
    assert chunk.numbers["c99999"].tolist() == [(label + 99_999) % 7 for label in (0, 1, 0, 1)]
    FeatureSchema(tuple(Categorical(name) for name in names))
    Inputs(tuple(Field(name, 2) for name in names))


def test_a_wide_header_with_a_name_twice_is_refused_in_one_line(tmp_path: Path) -> None:
    path = _log(tmp_path / "wide.csv", 20_000)
    path.write_text(path.read_text().replace(",c19999", ",c0"))
    with pytest.raises(ValueError, match=r"wide\.csv must have a name of its own, got \['c0'\] more than once"):
        open_source(path)


def test_messages_about_wide_tables_stay_short(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(MANY)]
    assert listed(["a", "b"]) == "['a', 'b']"
    assert listed(names[:30]).endswith("'c19', ... 10 more]")
    assert did_you_mean("zzz", names[:30]).endswith("c26, ... 10 more")
    source = open_source(_log(tmp_path / "wide.csv", 5000))
    for call in (
        lambda: source.check(ColumnsToRead(numeric=("zzzz",))),
        lambda: from_frame(source.head()),
        lambda: infer(source, label="zzzz"),
    ):
        with pytest.raises(ValueError, match=r"more") as got:
            call()
        assert len(str(got.value)) < 600
