from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deeprec.evaluate import PROTOCOLS, Protocol, protocol


def _data(num_negatives: int | None = None):
    official = None if num_negatives is None else SimpleNamespace(test_negatives=np.zeros((3, num_negatives)))
    return SimpleNamespace(name="some", official=official, num_users=3, num_items=200)


def test_named_protocols_say_what_they_are() -> None:
    ncf, full, random, cdae = (PROTOCOLS[name] for name in ("ncf", "full", "random", "cdae"))
    assert (ncf.candidates, ncf.ties, ncf.headline) == (99, "pessimistic", "hr@10")
    assert (full.candidates, full.holdout, full.mask) == ("all", "leave_one_out", ("train", "validation"))
    assert (random.holdout, random.test_share, random.validation) == ("random", 0.1, "share")
    assert (cdae.holdout, cdae.test_share, cdae.headline) == ("random_by_user", 0.2, "map@10")
    assert cdae.differences(protocol("cdae", test_share=0.3)) == ["test_share: 0.2 / 0.3"]
    following, cold = PROTOCOLS["next-item"], PROTOCOLS["cold-items"]
    assert (following.task, following.holdout, following.validation) == ("next-item", "leave_one_out", "last")
    assert (following.candidates, following.metrics, following.cutoffs) == ("all", ("hr", "ndcg", "mrr"), (10,))
    assert (cold.task, cold.holdout, cold.candidates, cold.cutoffs) == ("ranking", "items", "part", (20,))


def test_protocol_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol("ncf").candidates = 5


@pytest.mark.parametrize("name", PROTOCOLS)
def test_dict_goes_there_and_back(name: str) -> None:
    original = dataclasses.replace(PROTOCOLS[name], seed=3)
    assert Protocol.from_dict(original.as_dict()) == original
    assert isinstance(original.as_dict()["cutoffs"], list)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nfc", {}, "did you mean 'ncf'"),
        ("ncf", {"candidate": 5}, "did you mean 'candidates'"),
        ("ncf", {"ties": "autors"}, "did you mean 'authors'"),
        ("ncf", {"metrics": ("hr", "ndgc")}, "did you mean 'ndcg'"),
        ("full", {"holdout": "leave-one-out"}, "did you mean 'leave_one_out'"),
        ("full", {"cutoffs": (0,)}, "at least 1, got"),
        ("full", {"cutoffs": ()}, "at least 1, got"),
        ("full", {"seed": -1}, "at least 0, got -1"),
        ("full", {"test_share": 1.0}, "in \\(0, 1\\)"),
        ("full", {"test_share": "0.1"}, "test_share must be a finite number, got '0.1'"),
        ("rating", {"default_rating": float("nan")}, "default_rating must be a finite number, got nan"),
        ("rating", {"default_rating": "3"}, "default_rating must be a finite number, got '3'"),
        ("rating", {"clamp": "no"}, "clamp must be True or False, got 'no'"),
        ("full", {"mask": ("test",)}, "unknown mask 'test'"),
        ("full", {"candidates": 0}, "at least 1, got 0"),
        ("full", {"candidates": True}, "at least 1, got True"),
        ("full", {"ties": "authors"}, "sampled candidates"),
        ("full", {"negatives": "seeded"}, "candidates a number"),
        ("ncf", {"negatives": "none"}, "'seeded' or 'auto'"),
        ("full", {"validation": "share"}, "take validation='random'"),
        ("random", {"validation": "last"}, "take validation='share'"),
        ("cdae", {"validation": "last"}, "take validation='share'"),
        ("full", {"candidates": 5, "negatives": "given"}, "official test part"),
        ("next-item", {"holdout": "random"}, "a next item needs what came before it, got holdout='random'"),
        ("next-item", {"validation": "random"}, "validation='random'; take holdout='leave_one_out' with"),
        ("next-item", {"seed": 1}, "seed has no effect on a next-item protocol"),
        ("full", {"holdout": "time", "seed": 1}, "seed has no effect"),
        ("full", {"candidates": "part"}, "goes with holdout='items', got 'leave_one_out'"),
        ("cold-items", {"holdout": "random"}, "take candidates='all'"),
        ("cold-items", {"mask": ("train",)}, "mask has no effect"),
        ("rating", {"holdout": "items"}, "can be ranked only, got task='rating'"),
        ("next_item", {}, "did you mean 'next-item'"),
    ],
)
def test_bad_protocol_is_refused_with_a_remedy(name, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        protocol(name, **overrides)


def test_asking_for_candidates_settles_the_negatives() -> None:
    assert protocol("full", candidates=99).negatives == "seeded"
    assert protocol("ncf", candidates="all").negatives == "none"
    assert protocol("cold-items", candidates=99).negatives == "seeded"


def test_asking_for_a_holdout_settles_the_validation() -> None:
    assert protocol("full", holdout="time").validation == "share"
    assert protocol("next-item", holdout="time").validation == "share"
    assert protocol("random", holdout="leave_one_out").validation == "random"
    assert protocol("random", holdout="time", validation="none").validation == "none"


def test_auto_becomes_what_the_data_has() -> None:
    ncf = protocol("ncf")
    published, plain, other = (ncf.resolve(_data(n)) for n in (99, None, 50))
    assert (published.holdout, published.negatives) == ("official", "given")
    assert (plain.holdout, plain.negatives) == ("leave_one_out", "seeded")
    assert (other.holdout, other.negatives) == ("official", "seeded")
    assert published.resolve(_data(99)) is published


def test_next_items_of_data_without_order_are_refused() -> None:
    data = SimpleNamespace(name="blind", official=None, order=None)
    with pytest.raises(ValueError, match="next items need the order of the interactions, got blind without timestamps"):
        protocol("next-item").resolve(data)


def test_given_parts_that_the_data_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="no official split; take holdout='leave_one_out'"):
        protocol("full", holdout="official").resolve(_data())
    with pytest.raises(ValueError, match="take negatives='seeded'"):
        protocol("ncf", negatives="given").resolve(_data())
    with pytest.raises(ValueError, match="carries lists of 50"):
        protocol("ncf", negatives="given").resolve(_data(50))


def test_what_is_reported_is_no_difference_but_what_is_measured_is() -> None:
    ncf = protocol("ncf")
    assert ncf.same_as(protocol("ncf", metrics=("mrr",), cutoffs=(5,)))
    assert ncf.same_as(dataclasses.replace(ncf, test_share=0.2))  # not used by this hold-out
    assert not protocol("random").same_as(protocol("random", test_share=0.2))
    assert ncf.differences(protocol("ncf", ties="authors", seed=1)) == [
        "ties: 'pessimistic' / 'authors'",
        "seed: 0 / 1",
    ]
    following, cold = protocol("next-item"), protocol("cold-items")
    assert following.differences(protocol("full")) == ["validation: 'last' / 'random'", "task: 'next-item' / 'ranking'"]
    assert following.same_as(dataclasses.replace(following, seed=4, cutoffs=(5,)))
    assert cold.differences(protocol("cold-items", seed=1, candidates="all")) == [
        "candidates: 'part' / 'all'",
        "seed: 0 / 1",
    ]
    assert any(line.startswith("candidates: 99 / 'all'") for line in ncf.differences(protocol("full")))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("ncf", {"test_share": 0.2}),
        ("ncf", {"mask": ("train",)}),
        ("ncf", {"default_rating": 2.0}),
        ("full", {"negatives_seed": 1}),
        ("rating", {"ties": "authors", "candidates": 5}),
        ("rating", {"cutoffs": (5,)}),
    ],
)
def test_an_option_that_changes_nothing_is_refused(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect on a r"):
        protocol(name, **option)
    assert protocol(name, **{key: getattr(protocol(name), key) for key in option}) == protocol(name)


def test_importing_evaluate_brings_torch_and_numpy_only() -> None:
    heavy = ("polars", "pandas", "typer", "matplotlib")
    code = f"import sys, deeprec.evaluate; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
