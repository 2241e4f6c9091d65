from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from deeprec.evaluate import Card, compare, protocol, read_card, summarise


def _card(**changes) -> Card:
    values = {
        "model": "gmf",
        "config": {"factors": 8},
        "data": {"name": "toy", "sha256": "ab" * 32, "users": 3, "items": 4, "interactions": 5},
        "protocol": protocol("ncf").as_dict(),
        "metrics": {"hr@10": 0.5, "ndcg@10": 0.25},
        "seed": 1,
        "seconds": 2.0,
    }
    return Card(**{**values, **changes})


def test_card_goes_to_a_file_and_back(tmp_path) -> None:
    card = _card(best_on_test={"epoch": 3, "metrics": {"hr@10": 0.6}}, history=[{"epoch": 1, "loss": np.float32(0.5)}])
    card.write(tmp_path / "card.json")
    assert read_card(tmp_path).as_dict() == card.as_dict()
    assert read_card(tmp_path / "card.json").history == [{"epoch": 1, "loss": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_card_says_where_it_ran() -> None:
    written = _card().as_dict()
    assert {"deeprec", "python", "torch", "numpy"} <= set(written["versions"])
    assert {"cpu", "cores", "isa", "gpu"} <= set(written["hardware"])
    assert next(iter(written)) == "schema_version"


def test_reading_does_not_fill_in_the_reader_as_the_place_of_the_run(tmp_path) -> None:
    values = _card().as_dict()
    del values["hardware"]
    (tmp_path / "card.json").write_text(json.dumps(values))
    assert read_card(tmp_path).hardware == {}


def test_numbers_json_cannot_hold_become_null(tmp_path) -> None:
    _card(metrics={"auc": float("nan")}).write(tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text())["metrics"] == {"auc": None}


def test_failed_write_leaves_the_old_card_and_no_rest(tmp_path, monkeypatch) -> None:
    path = tmp_path / "card.json"
    _card(seed=1).write(path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        _card(seed=2).write(path)
    assert read_card(path).seed == 1
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1', "must be JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "its schema_version is None"),
        ('{"schema_version": 99}', "upgrade deeprec-torch"),
        ('{"schema_version": 1, "model": "gmf"}', "config is missing"),
        ("\udcff", "must be JSON"),
    ],
)
def test_bad_card_file_is_a_clear_error(tmp_path, text, message) -> None:
    (tmp_path / "card.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path)


def test_missing_card_names_the_command_that_writes_one(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="deeprec train"):
        read_card(tmp_path)


def test_compare_puts_the_best_first_and_leaves_gaps() -> None:
    rows = compare([_card(), _card(model="neumf", metrics={"hr@10": 0.7, "mrr@10": 0.1})])
    assert [row["model"] for row in rows] == ["neumf", "gmf"]
    assert rows[0]["ndcg@10"] is None
    assert rows[1]["hr@10"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": protocol("ncf", ties="authors").as_dict()}, "protocol ties: 'pessimistic' / 'authors'"),
        ({"protocol": protocol("full").as_dict()}, "protocol candidates: 99 / 'all'|protocol holdout"),
        ({"data": {"name": "toy2", "sha256": "cd" * 32}}, "data sha256: toy abababababab / toy2 cdcdcdcdcdcd"),
    ],
)
def test_cards_of_different_protocols_or_data_are_refused(changes, message) -> None:
    for function in (compare, summarise):
        with pytest.raises(ValueError, match=message):
            function([_card(), _card(**changes)])


def test_cards_of_different_splits_of_the_same_data_are_refused() -> None:
    data = dict(_card().data)
    with pytest.raises(ValueError, match="data split_sha256: toy 1 / toy 2"):
        compare([_card(data={**data, "split_sha256": "1"}), _card(data={**data, "split_sha256": "2"})])
    compare([_card(data={**data, "split_sha256": "1"}), _card()])


def test_no_cards_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one card"):
        compare([])


def test_summary_gives_mean_and_sample_spread_over_seeds() -> None:
    cards = [_card(seed=s, metrics={"hr@10": v}) for s, v in ((1, 0.4), (2, 0.5), (3, 0.6))]
    rows = summarise([*cards, _card(config={"factors": 16}, metrics={"hr@10": 0.9})])
    assert [row["config"]["factors"] for row in rows] == [16, 8]
    assert rows[0]["hr@10"] == {"mean": pytest.approx(0.9), "std": None}
    assert rows[1]["seeds"] == [1, 2, 3]
    assert rows[1]["hr@10"] == {"mean": pytest.approx(0.5), "std": pytest.approx(0.1)}


def test_summary_refuses_the_same_seed_twice() -> None:
    with pytest.raises(ValueError, match="each seed may come once"):
        summarise([_card(), _card()])


def test_card_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _card().seed = 2
