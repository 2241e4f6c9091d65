"""Users held out who are new to one domain and known from another: the split, its negatives and its figures."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec import data
from deeprec.data import Domains, Interactions, domains_of, new_users_holdout
from deeprec.data.interactions.new_users import HeldOut, is_new
from deeprec.evaluate import evaluate, protocol, rank
from deeprec.evaluate.metrics import gain
from deeprec.models import Popularity


@pytest.fixture(scope="module")
def made() -> Interactions:
    return data.synthetic(400, 150, 9_000, domains=2)  # books and films


def rule(**options: Any) -> Any:
    return protocol("cross-domain", **{"domain": "films", **options})


def in_films(part: Interactions) -> np.ndarray:
    names, codes = domains_of(part)
    return codes[part.items] == names.index("films")


def test_new_users_have_no_row_of_the_domain_in_training_old_ones_half_of_theirs(made: Interactions) -> None:
    split = new_users_holdout(made, HeldOut(0.3, 0.2, 0.25, 0.5), domain="films")
    assert split.notes["items_left_out"] == 0
    parts = (split.train, split.validation, split.test)
    np.testing.assert_array_equal(np.sort(np.concatenate([part.pair_keys() for part in parts])),
                                  np.sort(made.pair_keys()))  # fmt: skip
    own = np.bincount(made.users[in_films(made)], minlength=400)
    elsewhere = made.user_counts() - own
    given = np.bincount(split.train.users[in_films(split.train)], minlength=400)
    np.testing.assert_array_equal(split.train.user_counts() - given, elsewhere)  # other domains are known
    testable = int(((own > 0) & (elsewhere > 0)).sum())
    for part, share in ((split.validation, 0.2), (split.test, 0.3)):
        assert in_films(part).all()
        users = np.unique(part.users)
        new = is_new(split.train, users, "films")
        assert new.sum() == round(round(testable * share) * 0.25)
        np.testing.assert_array_equal(given[users[~new]], np.ceil(own[users[~new]] * 0.5))
        assert (elsewhere[users] > 0).all()
    assert not np.intersect1d(split.validation.users, split.test.users).size
    assert split.notes["new_users"] == is_new(split.train, np.unique(split.test.users), "films").sum()


def test_the_split_goes_by_ids_and_seed_not_by_the_order_of_rows(made: Interactions) -> None:
    shuffled = made.take(np.random.default_rng(0).permutation(len(made)))
    one, other = (
        set(rule().split(each).test.to_frame().select("user_id", "item_id").rows()) for each in (made, shuffled)
    )
    assert one == other
    assert one != set(rule(seed=1).split(made).test.to_frame().select("user_id", "item_id").rows())


def test_negatives_are_unmet_items_of_the_domain_that_were_trained_on(made: Interactions) -> None:
    split = rule().split(made)
    names, codes = domains_of(made)
    met = set(made.pair_keys().tolist())
    for part, lists in ((split.test, split.test_negatives), (split.validation, split.validation_negatives)):
        assert lists.shape == (len(part), 9)
        assert (codes[lists] == names.index("films")).all()
        assert (split.train.item_counts()[lists] > 0).all()
        assert not met & set((part.users[:, None].astype(np.int64) * made.num_items + lists).ravel().tolist())


def test_rows_of_items_that_nobody_was_trained_on_are_left_out() -> None:
    rows = [(user, f"b{user % 3}", "books") for user in range(20)] + [(user, f"f{user}", "films") for user in range(20)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "shop"], orient="row")
    split = new_users_holdout(Domains.from_frame(frame, "shop").joined(), HeldOut(0.2, 0.1, 1.0), domain="films")
    assert (len(split.test), len(split.validation)) == (0, 0)  # nobody else has the film of a user
    assert split.notes == {"new_users": 4, "items_left_out": 6, "rows_left_out": 6}
    assert len(split.train) == 34


class Oracle:
    """Knows the films of new users, and nothing of others."""

    def __init__(self, test: Interactions, new: set[int]) -> None:
        self.pairs, self.new, self.num_items = set(test.pair_keys().tolist()), new, test.num_items

    def score_pairs(self, users: Any, items: Any) -> Any:
        keys = (users * self.num_items + items).tolist()
        hits = [key in self.pairs and user in self.new for key, user in zip(keys, users.tolist(), strict=True)]
        return users.new_tensor(hits).float()


def test_figures_are_of_all_held_out_users_and_of_new_ones_alone(made: Interactions) -> None:
    asked = rule()
    split = asked.split(made)
    new = {int(user) for user in np.unique(split.test.users) if is_new(split.train, np.array([user]), "films")[0]}
    figures = evaluate(Oracle(split.test, new), split, asked)
    assert list(figures) == [f"{of}{name}" for of in ("", "new_") for name in
                             ("mrr@10", "mrr@1", "precision@10", "precision@1")]  # fmt: skip
    share = np.isin(split.test.users, list(new)).mean()
    assert figures["new_mrr@10"] == figures["new_precision@1"] == 1.0
    assert figures["precision@1"] == pytest.approx(share)
    assert figures["mrr@10"] == pytest.approx(share + (1 - share) / 10)  # ties rank last
    assert gain("new_rmse", 1.0) == -1.0
    without = asked.changed(new_share=0.0)
    assert list(evaluate(Oracle(split.test, new), without.split(made), without)) == list(figures)[:4]


def test_chance_is_what_the_page_says(made: Interactions) -> None:
    class Guess:
        def score_pairs(self, users: Any, items: Any) -> Any:
            mixed = (users * 1_000_003 + items * 7_919) * 2_654_435_761 % 4_294_967_296
            return (mixed ^ (mixed >> 13)).float()

    asked = rule(test_share=0.9, validation_share=0.05)
    ranks = rank(Guess(), asked.split(made), asked).ranks
    assert len(ranks) > 1_000
    assert (1 / ranks).mean() == pytest.approx(0.2929, abs=0.03)
    assert (ranks == 1).mean() == pytest.approx(0.1, abs=0.03)


def test_a_model_is_trained_and_measured_by_it(made: Interactions) -> None:
    asked = rule()
    figures = Popularity().fit(made, protocol=asked).evaluate()
    assert figures["mrr@10"] > 0.35
    assert {"new_mrr@10", "new_precision@1"} <= set(figures)


def test_without_domains_users_are_held_out_of_all_items() -> None:
    plain = data.synthetic(200, 80, 2_000)
    split = protocol("cross-domain", test_share=0.2).split(plain)
    new = is_new(split.train, np.unique(split.test.users), None)
    assert new.sum() == 8
    assert split.test_negatives.shape == (len(split.test), 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "film"}, r"domain must be one of \['books', 'films'\], got 'film'; did you mean 'films'"),
        ({"domain": None}, r"domain to which users are new must be one of \['books', 'films'\], got None"),
        ({"domain": 3}, "domain must be a name or None, got 3"),
        ({"candidates": "all"}, "ranked against a number of others, got candidates='all'"),
        ({"new_share": 1.5}, r"new_share must lie in \[0, 1\], got 1.5"),
        ({"given_share": 1.0}, r"given_share must lie in \[0, 1\), got 1.0"),
        ({"test_share": 0.0001}, "test must be one user at least"),
        ({"task": "rating", "metrics": ("rmse",)}, "users held out whole can be ranked only"),
        ({"candidates": 90}, "each user needs 90 items not yet met"),
    ],
)
def test_what_does_not_go_is_refused(made: Interactions, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(**options).split(made)


def test_options_of_held_out_users_have_no_effect_elsewhere(made: Interactions) -> None:
    with pytest.raises(ValueError, match="domain has no effect on a ranking protocol with holdout='leave_one_out'"):
        protocol("full", domain="films")
    assert protocol("full").same_as(replace(protocol("full"), new_share=0.5))
    assert not rule().same_as(rule(domain="books"))
    with pytest.raises(ValueError, match="must be shares in"):
        new_users_holdout(made, HeldOut(0.5, 0.6))


@pytest.mark.parametrize(
    ("name", "domain", "size"), [("sport-phone", "phone", 500), ("electronic-cloth", "cloth", 1576)]
)
def test_the_sets_of_amazon(name: str, domain: str, size: int) -> None:
    if not os.environ.get("DEEPREC_DATA") or data.find(f"cross-{name}") is None:
        pytest.skip("cross-domain is not at hand: set DEEPREC_DATA to a folder that holds it")
    read = data.load(f"cross-{name}")
    info = data.info(f"cross-{name}")
    assert (len(read), read.num_users, read.num_items) == (info.rows, info.users, info.items)
    assert (read.user_counts() > 0).all()
    split = rule(domain=domain).split(read)
    assert size - 30 <= len(np.unique(split.test.users)) <= size
    assert len(split.train) + len(split.validation) + len(split.test) + split.notes["rows_left_out"] == len(read)
