"""Lists for many users in a file: whole, resumed after a kill, for users whom the model does not know."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from deeprec.data import Interactions
from deeprec.models import recommenders
from deeprec.serve import recommend_file

module = importlib.import_module("deeprec.serve.recommend_file")
FIRST = 3_000_000_000
READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".tsv": lambda path: pl.read_csv(path, separator="\t"),
    ".jsonl": pl.read_ndjson,
}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven users a part."""
    monkeypatch.setattr(module, "_USERS_A_PART", 7)


class Killed(Exception):
    """What ends a run in a test."""


def _kill_after(users: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done >= users:
            raise Killed

    return on_progress


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("name", ["gmf", "item-knn"])
@pytest.mark.usefixtures("small_parts")
def test_the_file_holds_what_recommend_gives(name: str, suffix: str, fitted: Any, tmp_path: Path) -> None:
    model, path = fitted(name), tmp_path / f"lists{suffix}"
    steps: list[tuple[int, int]] = []
    rows = model.recommend_file(path, 4, deny=[FIRST + 1], on_progress=lambda *step: steps.append(step))
    expected = model.recommend(model.user_ids.values, 4, deny=[FIRST + 1])
    written = READERS[suffix](path)
    assert rows == len(written)
    kinds = {column: kind for column, kind in expected.schema.items() if column != "score"}
    assert_frame_equal(written.cast(kinds).cast({"score": pl.Float32}), expected, rel_tol=1e-4, abs_tol=1e-5)
    assert steps == [(min(done, 40), 40) for done in range(7, 43, 7)]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.usefixtures("small_parts")
def test_a_resumed_run_writes_the_same_file(suffix: str, fitted: Any, tmp_path: Path) -> None:
    model = fitted("gmf")
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    rows = recommend_file(model, whole, 5)
    with pytest.raises(Killed):
        recommend_file(model, broken, 5, on_progress=_kill_after(14))
    assert not broken.exists()
    kept = sorted((tmp_path / f"{broken.name}.parts").glob("[0-9]*"))
    assert len(kept) == 2
    times = [part.stat().st_mtime_ns for part in kept]
    with pytest.raises(Killed):
        recommend_file(model, broken, 5, resume=True, on_progress=_kill_after(21))
    assert [part.stat().st_mtime_ns for part in kept] == times
    assert recommend_file(model, broken, 5, resume=True) == rows
    if suffix == ".parquet":
        assert_frame_equal(pl.read_parquet(broken), pl.read_parquet(whole))
    else:
        assert broken.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"{broken.name}.parts").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"k": 4}, "k"), ({"deny": [FIRST]}, "deny"), ({"exclude_seen": False}, "exclude_seen"),
     ({"users": ["user-1"] * 40}, "users")],
)  # fmt: skip
@pytest.mark.usefixtures("small_parts")
def test_parts_of_other_arguments_are_refused(change: dict[str, Any], named: str, fitted: Any, tmp_path: Path) -> None:
    model, path = fitted("gmf"), tmp_path / "lists.csv"
    with pytest.raises(Killed):
        recommend_file(model, path, 5, on_progress=_kill_after(7))
    with pytest.raises(ValueError, match=f"got another {named}; give the same, or start anew without resume"):
        recommend_file(model, path, **{"k": 5, **change}, resume=True)
    with pytest.raises(ValueError, match="got another model"):
        recommend_file(fitted("mf"), path, 5, resume=True)
    # Without resume the parts are made anew.
    assert recommend_file(model, path, **{"k": 5, **change}) == len(pl.read_csv(path))


@pytest.mark.parametrize("users", [[], ["user-7"]])
def test_few_users_give_a_file_with_all_columns(users: list[str], fitted: Any, tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        path = tmp_path / f"lists{suffix}"
        assert recommend_file(fitted("gmf"), path, 3, users=users) == 3 * len(users)
        assert READERS[suffix](path).columns == ["user_id", "rank", "item_id", "score"]


@pytest.mark.parametrize("name", recommenders())
def test_unknown_users_get_what_is_popular(name: str, fitted: Any, ratings: Interactions) -> None:
    model = fitted(name)
    asked = ["user-3", "nobody", "user-5", "nobody", "else"]
    listed = model.recommend(asked, 4, unknown="popularity", deny=[FIRST])
    assert listed["fallback"].to_list() == [user in ("nobody", "else") for user in asked for _ in range(4)]
    assert listed["user_id"].to_list() == [user for user in asked for _ in range(4)]
    known = model.recommend(["user-3", "user-5"], 4, deny=[FIRST])
    assert_frame_equal(listed.filter(~pl.col("fallback")).drop("fallback"), known, rel_tol=1e-4, abs_tol=1e-5)
    counts = dict(zip(ratings.item_ids.values.to_list(), ratings.item_counts().tolist(), strict=True))
    for user in ("nobody", "else"):
        first = listed.filter(pl.col("user_id") == user).head(4)
        assert first["score"].to_list() == [counts[item] for item in first["item_id"]]
        others = {item: count for item, count in counts.items() if item != FIRST}
        assert first["score"].to_list() == sorted(others.values(), reverse=True)[:4]


def test_unknown_users_are_skipped_or_named(fitted: Any, tmp_path: Path) -> None:
    model, asked = fitted("gmf"), ["user-3", "nobody", "user-5"]
    skipped = model.recommend(asked, 2, unknown="skip")
    assert_frame_equal(skipped, model.recommend(["user-3", "user-5"], 2))
    assert model.recommend(["nobody"], 2, unknown="skip").schema == skipped.schema
    with pytest.raises(ValueError, match="1 unknown: 'nobody'; pass unknown='popularity' or 'skip'"):
        model.recommend(asked, 2)
    with pytest.raises(ValueError, match="1 unknown: 'nobody'"):
        model.recommend_file(tmp_path / "lists.csv", 2, users=asked)
    with pytest.raises(ValueError, match="unknown must be one of raise, popularity, skip, got 'popular'; did you mean"):
        model.recommend(asked, 2, unknown="popular")
    path = tmp_path / "lists.parquet"
    assert model.recommend_file(path, 2, users=asked, unknown="popularity") == 6
    assert_frame_equal(pl.read_parquet(path), model.recommend(asked, 2, unknown="popularity"))
    assert model.recommend_file(path, 2, users=asked, unknown="skip") == 4


def test_a_model_that_keeps_no_interactions_says_so(fitted: Any, tmp_path: Path) -> None:
    model = copy.copy(fitted("gmf"))
    model.seen = None
    with pytest.raises(ValueError, match=r"needs a model that keeps its interactions, got gmf without; .*'skip'"):
        model.recommend(["nobody"], unknown="popularity")
    assert len(model.recommend(["nobody"], unknown="skip")) == 0
    assert model.recommend_file(tmp_path / "lists.csv", 2) == 80


def test_an_output_that_cannot_be_is_refused(fitted: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .parquet, .csv, .tsv, .jsonl, got lists.txt"):
        recommend_file(fitted("gmf"), tmp_path / "lists.txt")
    with pytest.raises(ValueError, match="must lie in a folder there is"):
        recommend_file(fitted("gmf"), tmp_path / "no" / "lists.csv")


def test_parts_are_few_and_of_bounded_rows() -> None:
    for users, k in ((0, 1), (6040, 10), (10**7, 10), (10**7, 1000), (50_000, 10**6)):
        size = module._users_a_part(users, k)
        assert size == 1 or size * k <= module._ROWS_A_PART
        assert size * module._MOST_PARTS >= users or size * k > module._ROWS_A_PART // 2
    assert np.ceil(10**6 / module._users_a_part(10**6, 10)) <= module._MOST_PARTS
