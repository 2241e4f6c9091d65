from __future__ import annotations

from deeprec._suggest import did_you_mean


def test_close_name_is_suggested_whatever_the_case() -> None:
    assert did_you_mean("NeuFM", ["gmf", "neumf"]) == "did you mean 'neumf'?"


def test_without_a_close_name_all_are_listed_sorted() -> None:
    assert did_you_mean("zzz", ["neumf", "gmf"]) == "choose from gmf, neumf"


def test_no_options_still_gives_a_sentence() -> None:
    assert did_you_mean("x", []) == "there is nothing to choose from"
