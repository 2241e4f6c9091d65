"""What a column is drafted as: codes, amounts, bags, keys, dates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from deeprec.data.columns.guesses import guess
from deeprec.data.columns.schema import Bag, Categorical, FeatureSchema, Numeric
from deeprec.data.columns.schema_inference import infer
from deeprec.data.reading.tables import typed
from deeprec.data.sets.click_datasets import load_clicks

N = 4000
random = np.random.default_rng(0)
LONG_TAIL = random.permutation(1 / np.arange(1, 201)) / (1 / np.arange(1, 201)).sum()
HASHES = random.integers(2**40, 2**63, 100)


def drawn(values: Any, **options: Any) -> Any:
    return random.choice(values, N, **options)


CODES = {
    "device": drawn(["phone", "tablet"]),
    "hour": drawn(24),
    "with_missing": np.where(random.random(N) < 0.1, np.nan, drawn(5)),
    "hashed": drawn([84.0, 16.0, 3.0, 19.0, 1e19]),
    "c1": drawn(HASHES),
    "c2": drawn(HASHES).astype(float),
    "C20": drawn(np.arange(100_000, 100_250)),
    "productId": drawn(900),
    "city_code": drawn(70),
    "age_group": drawn(40),
    "numbered": random.integers(0, 1500, N),
    "zip": [f"{number:05}" for number in drawn(3000)],
    "postal": drawn([f"0{number}" for number in range(60)]),
    "long": drawn([f"{number}123456789" for number in HASHES]),
    "is_new": random.random(N) < 0.5,
    "word": drawn(["NA", "FR", "DE"]),
}
AMOUNTS = {
    "age": random.integers(18, 90, N),
    "num_items": random.integers(0, 300, N),
    "price": random.lognormal(0, 1, N),
    "x": random.poisson(40, N),
    "views": random.lognormal(3, 1, N).astype(int),
    "y": random.lognormal(8, 1, N).astype(int) % 100_000 // 7,
    "rated": drawn(["1.5", "2.75", "NA", r"\N"]),
    "aged": [str(age) if age % 9 else "?" for age in random.normal(40, 12, N).clip(0).astype(int)],
    "score": random.random(N),
}
LEFT_OUT = {
    "row": np.arange(N),
    "nearly": [f"k{number}" for number in random.integers(0, 500_000, N)],
    "constant": ["same"] * N,
    "empty": pl.Series([None] * N, dtype=pl.Float64),
    "iso": drawn(["2024-02-01", "2024-02-03"]),
    "local": drawn(["01/02/2024 10:00", "03/02/2024 11:00"]),
    "written": drawn(["01-Jan-1995", "3 March 1996"]),
    "epoch": drawn(np.arange(1_700_000_000, 1_700_100_000, 100)),
    "timestamp": drawn(np.arange(400_000_000, 400_100_000, 100)),
    "lists": drawn(["['a', 'b']", "['c']"]),
    "day": pl.Series(drawn(9)).cast(pl.Date),
    "record": [{"a": 1}, {"a": 2}] * (N // 2),
    "": np.arange(N),
    "Unnamed: 0": np.arange(N),
}


def kinds(column: pl.Series) -> set[str]:
    return {feature.kind for feature in guess(column).features}


@pytest.mark.parametrize("name", CODES)
def test_codes_are_categories(name: str) -> None:
    assert kinds(pl.Series(name, CODES[name], nan_to_null=True)) == {"categorical"}


@pytest.mark.parametrize("name", AMOUNTS)
def test_amounts_are_numbers(name: str) -> None:
    assert kinds(pl.Series(name, AMOUNTS[name])) == {"numeric"}


def test_what_may_be_either_is_both() -> None:
    made = guess(pl.Series("c", random.choice(200, N, p=LONG_TAIL)))
    assert made.features == (Categorical("c"), Numeric("c_amount", column="c"))
    assert "codes or amounts, so both" in made.note


def test_each_column_has_a_reason_and_what_says_nothing_is_left_out() -> None:
    table = pl.DataFrame(
        {**LEFT_OUT, "a": drawn(["x", "y"]), "c": random.choice(200, N, p=LONG_TAIL), "label": drawn(2)}
    )
    for frame in (table, table.lazy(), table.drop("record").to_pandas()):
        schema = infer(frame)
        assert [feature.name for feature in schema.features] == ["a", "c", "c_amount"]
        left = {name for name, note in schema.notes.items() if note.startswith("left out, ")}
        assert left == set(LEFT_OUT) & set(schema.notes)
        assert len(left) >= len(LEFT_OUT) - 1
        lines = str(schema).splitlines()
        assert all(lines[at - 1].lstrip().startswith("#") for at, line in enumerate(lines) if line.startswith("  - "))
        assert FeatureSchema.from_yaml(str(schema)) == schema


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["a|b", "c", "a|c|d"], "|"),
        (["x,y", "z", "y"], ","),
        (["x; y", "z", "y"], ";"),
        (["N1 N2", "N3", "N2 N3"], " "),
        (["a fine day, he said", "no, not yet"], None),
        (["United States", "South Africa"], None),
        (["1,234", "12", "1,000,234"], None),
        (["12,5", "0,25"], None),
        (["12,5,7", "7,12", "5"], ","),
        (["Doe, John", "Roe, Jane", "Poe, Edgar"], None),
    ],
)
def test_bags_are_told_by_a_separator_only_where_it_is_plain(cells: list[str], separator: str | None) -> None:
    made = guess(pl.Series("tags", drawn(cells))).features
    assert made == ((Bag("tags", separator),) if separator else (Categorical("tags"),))


def test_mixed_columns_of_pandas_are_text_and_objects_are_left_out() -> None:
    frame = pd.DataFrame({"mix": [1, "a"] * 20, "made": [object()] * 40, "label": [0, 1] * 20})
    schema = infer(frame)
    assert schema.features == (Categorical("mix"),)
    assert schema.notes["made"].startswith("left out, values of type Object")


def test_text_stays_text_where_a_number_would_lose_something() -> None:
    frame = typed(
        pl.DataFrame(
            {
                "zip": ["01234", "99999"],
                "long": ["12345678901234567890", "1"],
                "whole": ["1", r"\N"],
                "half": ["0.5", "NA"],
                "zero": ["0", "-1"],
                "missing": ["NA", "?"],
            }
        )
    )
    assert frame.schema == {
        "zip": pl.String, "long": pl.String, "whole": pl.Int64, "half": pl.Float64, "zero": pl.Int64,
        "missing": pl.String,
    }  # fmt: skip


def test_a_log_without_a_schema_is_read_by_the_draft(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.csv"
    pl.DataFrame(
        {"": range(N), "hour": drawn(24), "price": AMOUNTS["price"], "n": AMOUNTS["aged"], "clicked": drawn(2)}
    ).write_csv(path)
    with caplog.at_level(logging.WARNING, "deeprec"):
        log = load_clicks(path, label="clicked")
    schema = infer(path, "clicked")
    assert log.schema == schema
    assert log.sha256 == load_clicks(path, schema).sha256
    assert "`deeprec schema` writes it" in caplog.text
    assert load_clicks(path, schema, label="clicked").sha256 == log.sha256
    with pytest.raises(ValueError, match="the label of the schema is 'clicked', got label 'hour'"):
        load_clicks(path, schema, label="hour")
