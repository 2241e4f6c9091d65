"""Folksonomies: rows that carry tags through everything, the profiles they make, odd tags."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from deeprec import data
from deeprec.data import Folksonomy, Interactions, OfficialSplit
from deeprec.evaluate import protocol
from deeprec.evaluate.tasks import joined_rows


def assignments(seed: int = 0, rows: int = 400) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    users, items, tags = draw.integers(0, 20, rows), draw.integers(0, 30, rows), draw.integers(0, 12, rows)
    frame = pl.DataFrame({"user_id": users * 3, "item_id": items, "tag": [f"tag {tag}" for tag in tags]})
    return frame.unique(maintain_order=True)


def folksonomy(**options: object) -> Folksonomy:
    made = data.from_frame(assignments(), tag="tag", **options)
    assert isinstance(made, Folksonomy)
    return made


def triples(part: Folksonomy) -> list[tuple[object, ...]]:
    """Rows with the ids and tags that the data came with."""
    return part.to_frame().select("user_id", "item_id", "tag").rows()


def test_rows_are_the_assignments() -> None:
    assert triples(folksonomy()) == assignments().rows()
    assert repr(folksonomy()).startswith("Folksonomy(frame: ")
    assert repr(folksonomy()).endswith(" 12 tags)")


def test_a_column_called_tag_is_taken_only_where_it_is_named() -> None:
    assert type(data.from_frame(assignments())) is Interactions
    with pytest.raises(ValueError, match=r"needs a column 'tags' for the tag.*tag"):
        data.from_frame(assignments(), tag="tags")


@pytest.mark.parametrize("side", ["user", "item"])
def test_profiles_count_the_tags(side: str) -> None:
    made = folksonomy()
    owners = made.users if side == "user" else made.items
    expected = np.zeros((made.num_users if side == "user" else made.num_items, made.num_tags))
    np.add.at(expected, (owners, made.tags), 1)
    terms, dense = made.profiles(side), np.zeros_like(expected)
    dense[np.repeat(np.arange(len(terms)), np.diff(terms.offsets)), terms.ids] = terms.weights
    np.testing.assert_array_equal(dense, expected)
    with pytest.raises(ValueError, match="side must be 'user' or 'item', got 'tag'"):
        made.profiles("tag")


def test_an_assignment_twice_is_one_or_counts_or_is_refused() -> None:
    twice = pl.concat([assignments(), assignments().head(3)])
    once = data.from_frame(twice, tag="tag")
    assert once.repairs == {"duplicate_rows_dropped": 3}
    assert sorted(triples(once)) == sorted(assignments().rows())
    counted = data.from_frame(twice, tag="tag", duplicates="keep")
    assert counted.profiles("user").weights.sum() == len(twice)
    with pytest.raises(ValueError, match="each user, item and tag may meet once"):
        data.from_frame(twice, tag="tag", duplicates="raise")


def test_a_blank_tag_is_none_and_one_tag_is_enough() -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5], "tag": ["jazz", "  ", " jazz"]})
    made = data.from_frame(frame, tag="tag")
    assert made.repairs == {"tags_with_blanks_stripped": 2, "rows_without_a_tag": 1}
    assert made.tags.tolist() == [0, -1, 0]
    assert np.diff(made.profiles("item").offsets).tolist() == [1, 0]
    without = data.from_frame(frame.with_columns(tag=pl.lit(None, pl.String)), tag="tag")
    assert without.num_tags == 0
    assert len(without.profiles("user").ids) == 0


def test_parts_keep_their_tags_and_the_hash_knows_them() -> None:
    made = folksonomy()
    rows = np.array([7, 3, 3])
    assert triples(made.take(rows)) == [triples(made)[row] for row in rows]
    joint = joined_rows(made.take([0, 1]), made.take([2]))
    assert triples(joint) == triples(made)[:3]
    other = replace(made, tags=np.roll(made.tags, 1))
    assert other.sha256 != made.sha256
    with pytest.raises(ValueError, match=r"tags must be in \[0, 12\), or -1 for none, got 1 to 12"):
        replace(made, tags=made.tags + np.int32(1))


def test_shuffled_rows_are_one_folksonomy() -> None:
    first, shuffled = (data.from_frame(frame, tag="tag").canonical() for frame in
                       (assignments(), assignments().sample(fraction=1, shuffle=True, seed=3)))  # fmt: skip
    assert first.sha256 == shuffled.sha256
    assert first.tag_ids.values.is_sorted()
    assert sorted(triples(first)) == sorted(assignments().rows())


def test_a_validation_part_stays_with_the_rows_in_canonical_order() -> None:
    made = folksonomy()
    rows = np.arange(len(made))
    split = OfficialSplit(rows[20:], rows[:10], None, "mine", rows[10:20])
    moved = replace(made, official=split).canonical()
    assert triples(moved.take(moved.official.validation_index)) == triples(made)[10:20]


def test_pairs_are_those_who_met_with_their_published_part() -> None:
    made = folksonomy()
    rows = np.arange(len(made))
    pairs = replace(made, official=OfficialSplit(rows[:300], rows[300:], None)).pairs()
    assert type(pairs) is Interactions
    expected = assignments().select("user_id", "item_id").unique(maintain_order=True)
    assert pairs.to_frame().equals(expected)
    later = set(made.pair_keys()[300:]) - set(made.pair_keys()[:300])
    assert set(pairs.take(pairs.official.test_index).pair_keys()) == later
    assert len(pairs.official.train_index) + len(pairs.official.test_index) == len(pairs)


def test_rare_tags_go_with_users_and_items_that_have_no_others() -> None:
    frame = pl.concat(
        [assignments(), pl.DataFrame({"user_id": [999, 0], "item_id": [0, 999], "tag": ["rare", "rare"]})]
    )
    kept = data.positives(data.from_frame(frame, tag="tag"), min_tag_uses=3)
    assert sorted(triples(kept)) == sorted(assignments().rows())
    assert (kept.num_tags, kept.tag_counts().min() >= 3) == (12, True)
    assert 999 not in [*kept.user_ids.values, *kept.item_ids.values]
    untagged = data.from_frame(pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "tag": ["a", None]}), tag="tag")
    assert len(data.positives(untagged, min_tag_uses=1)) == 1
    assert len(data.positives(untagged, min_interactions=1)) == 2
    with pytest.raises(ValueError, match="min_tag_uses needs tags, got frame without"):
        data.positives(data.from_frame(assignments()), min_tag_uses=2)
    with pytest.raises(ValueError, match=r"no row of frame is left with .*min_tag_uses=1000"):
        data.positives(folksonomy(), min_tag_uses=1000)


def test_files_of_triples_are_read_by_name_or_place(tmp_path) -> None:
    assignments().write_csv(tmp_path / "a.csv")
    by_name = data.load(tmp_path / "a.csv", tag="tag")
    assert triples(by_name) == assignments().rows()
    assignments().write_csv(tmp_path / "b.tsv", separator="\t", include_header=False)
    by_place = data.load(tmp_path / "b.tsv", user=0, item=1, tag=2)
    assert triples(by_place) == assignments().rows()


def test_files_for_testing_take_whole_pairs(tmp_path) -> None:
    frame = assignments()
    frame.head(300).write_csv(tmp_path / "train.csv")
    frame.tail(len(frame) - 300).write_csv(tmp_path / "test.csv")
    made = data.load(tmp_path / "train.csv", test=tmp_path / "test.csv", tag="tag")
    test, train = made.take(made.official.test_index), made.take(made.official.train_index)
    assert triples(test) == frame.rows()[300:]
    assert not set(test.pair_keys()) & set(train.pair_keys())


def test_the_protocol_of_dspr_holds_out_assignments() -> None:
    made, rule = folksonomy(), protocol("dspr")
    split = rule.split(made)
    assert abs(len(split.test) - 0.15 * len(made)) <= made.num_users
    assert sorted(triples(split.train) + triples(split.validation) + triples(split.test)) == sorted(triples(made))
    assert set(split.train.pair_keys()) & set(split.test.pair_keys())  # other tags of the same pair
    dropped = rule.changed(repeats="drop", mask=("train", "validation")).split(made)
    keys = [set(part.pair_keys()) for part in (dropped.train, dropped.validation, dropped.test)]
    assert not keys[0] & keys[1]
    assert not keys[2] & (keys[0] | keys[1])
    assert dropped.notes["repeated_rows_left_out"] == len(made) - sum(
        map(len, (dropped.train, dropped.validation, dropped.test))
    )
    with pytest.raises(ValueError, match="repeats='drop' does not go with given negatives"):
        protocol("ncf", repeats="drop")
