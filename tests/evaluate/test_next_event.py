"""Every held-out event as a question of its own: what the model is told, and how its answers are counted."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from deeprec.contract import NEW_USERS, Queries
from deeprec.data import Interactions, OfficialSplit, from_frame
from deeprec.evaluate import evaluate, protocol, rank
from deeprec.evaluate.events import Events
from deeprec.evaluate.tasks import InteractionTask
from deeprec.models import MF, ItemKNN, Popularity
from deeprec.nn.scoring import BlockScorer

RULE = protocol("next-event", test_share=0.25, validation_share=0.25, holdout="sessions")


def make(rows: list[tuple[int, int, int]]) -> Interactions:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame, duplicates="keep")


def make_sessions(seed: int, num_sessions: int = 40, num_items: int = 12) -> Interactions:
    """Sessions of 2 to 6 events with repeats, many of equal time, that overlap each other."""
    generator = np.random.default_rng(seed)
    rows = []
    for session in range(num_sessions):
        start = 3 * session + int(generator.integers(0, 5))
        items = generator.integers(0, num_items, int(generator.integers(2, 7))).tolist()
        rows += [(session, item, start + 4 * (step // 2)) for step, item in enumerate(items)]
    return make([rows[place] for place in generator.permutation(len(rows))])


class Reader(nn.Module):
    """Scores the item after the last one of the history highest; keeps what it was asked, with whom."""

    reads_history = True

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items, self.asked, self.known = num_items, [], []

    def encode(self, queries: Queries) -> torch.Tensor:
        offsets, items = queries.history
        lists = [items[start:end].tolist() for start, end in pairwise(offsets)]
        self.asked += lists
        self.known += [None] * len(lists) if queries.users is None else queries.users.tolist()
        return torch.tensor([listed[-1] for listed in lists])

    def scorer(self, state: torch.Tensor) -> BlockScorer:
        def scores(start: int, end: int) -> torch.Tensor:
            return -(torch.arange(self.num_items) - state[start:end, None] - 1).abs().float()

        return BlockScorer(len(state), self.num_items, state.device, scores)


class ByUser(nn.Module):
    """Knows users alone: item u is the best of user u."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items

    def score_items(self, users: torch.Tensor) -> torch.Tensor:
        return -(torch.arange(self.num_items) - users[:, None]).abs().float()

    def score_pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return -(items - users).abs().float()


def expected(data: Interactions, split, masked: bool = False) -> tuple[list[list[int]], dict[str, float]]:
    """Histories and figures of `Reader`, an event at a time in plain Python; a tie ranks the target last."""
    parts = [split.train, split.validation, split.test]
    rows = [
        (*row, number)
        for number, part in enumerate(parts)
        for row in zip(part.users, part.order, part.items, strict=True)
    ]
    histories, hits, reciprocal, gains = [], [], [], []
    for user in np.unique(split.test.users).tolist():
        own = sorted((row for row in rows if row[0] == user), key=lambda row: (row[1], row[3]))
        for place, (_, _, item, part) in enumerate(own):
            if part < 2 or not place:
                continue
            history = [int(row[2]) for row in own[:place]]
            histories.append(history)
            scores = {other: -abs(other - history[-1] - 1) for other in range(data.num_items)}
            others = [other for other in scores if other != item and not (masked and other in history)]
            position = 1 + sum(scores[other] >= scores[int(item)] for other in others)
            hits.append(position <= 3)
            reciprocal.append(1 / position if position <= 3 else 0)
            gains.append(1 / math.log2(1 + position) if position <= 3 else 0)
    return histories, {"recall@3": np.mean(hits), "mrr@3": np.mean(reciprocal), "ndcg@3": np.mean(gains)}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_histories_and_figures_agree_with_plain_python(
    seed: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_sessions(seed)
    rule = RULE.changed(cutoffs=(3,), mask=("train", "validation") if masked else ())
    split = rule.split(data)
    histories, figures = expected(data, split, masked)
    assert len(histories) > 10
    for at_once, a_part in ((1024, 1 << 14), (3, 1 << 14), (3, 5)):
        monkeypatch.setattr("deeprec.evaluate.events._EVENTS_AT_ONCE", at_once)
        monkeypatch.setattr("deeprec.evaluate.events._EVENTS_A_PART", a_part)
        model = Reader(data.num_items)
        assert evaluate(model, split, rule) == pytest.approx(figures)
        assert sorted(model.asked) == sorted(histories)
        assert model.known == [None] * len(histories)
        assert [len(each) for each in model.asked] == sorted(map(len, histories))


def test_by_time_known_users_are_named_and_new_ones_are_not() -> None:
    rows = [(user, (user + step) % 7, 10 * step + user) for user in range(4) for step in range(8)]
    rows += [(9, item, 71 + item) for item in range(4)]
    data = make(rows)
    rule = protocol("next-event", holdout="time", test_share=0.2, validation_share=0.2, cutoffs=(1,))
    split, model = rule.split(data), Reader(data.num_items)
    assert split.train.order.max() < split.validation.order.min() <= split.validation.order.max()
    assert split.validation.order.max() < split.test.order.min()
    evaluate(model, split, rule)
    new = data.user_ids.encode(pl.Series([9]))[0]
    asked = list(zip(model.known, model.asked, strict=True))
    assert [each for each in asked if each[0] is None] == [
        (None, data.item_ids.encode(pl.Series(list(range(end)))).tolist()) for end in range(1, 4)
    ]
    for user in range(4):
        own = [items for known, items in asked if known == user]
        every = data.items[data.users == user].tolist()
        first = 8 - int((split.test.users == user).sum())
        assert own == [every[:place] for place in range(first, 8)]
    assert new not in model.known


def test_leave_one_out_agrees_with_users_asked_once() -> None:
    data = make_sessions(5)
    rule = protocol("next-item", cutoffs=(3,))
    split = rule.split(data)
    each = protocol("next-item", targets="events", cutoffs=(3,))
    for part in ("validation", "test"):
        asked = evaluate(Reader(data.num_items), split, rule, part)
        assert evaluate(Reader(data.num_items), each.split(data), each, part) == pytest.approx(asked)


def test_an_event_of_the_future_never_reaches_the_model() -> None:
    data = make_sessions(3)
    split = RULE.split(data)
    target = split.test.take([len(split.test) - 1])
    later = dataclasses.replace(target, items=np.array([0], np.int32), order=np.array([10**6]))
    columns = {
        name: np.concatenate([getattr(split.train, name), getattr(later, name)]) for name in ("users", "items", "order")
    }
    leaky = dataclasses.replace(split, train=dataclasses.replace(split.train, **columns))
    honest, told = Reader(data.num_items), Reader(data.num_items)
    evaluate(honest, split, RULE)
    evaluate(told, leaky, RULE)
    assert sorted(told.asked) == sorted(honest.asked)


def test_nothing_that_trains_is_later_than_the_test_begins() -> None:
    data = make_sessions(4)
    split = RULE.split(data)
    starts = {part: getattr(split, part).order.min() for part in ("train", "validation", "test")}
    assert split.train.order.max() < starts["validation"]
    assert split.validation.order.max() < starts["test"]
    assert split.notes["rows_cut_at_the_moment"] > 0
    users = [set(getattr(split, part).users.tolist()) for part in ("train", "validation", "test")]
    assert not users[0] & users[1] | users[1] & users[2] | users[0] & users[2]
    assert np.bincount(split.test.users)[np.unique(split.test.users)].min() >= 2
    known = {*split.train.items.tolist(), *split.validation.items.tolist()}
    assert set(split.test.items.tolist()) <= known


def test_equal_times_stay_in_the_order_of_the_file() -> None:
    rows = [(1, 5, 1), (1, 3, 1), (1, 4, 1), (2, 3, 0), (2, 4, 0), (2, 5, 0)]
    for order in ([0, 1, 2, 3, 4, 5], [2, 0, 1, 5, 4, 3], [3, 2, 4, 1, 5, 0]):
        data = make([rows[place] for place in order])
        rule = protocol("next-event", holdout="sessions", test_share=0.5, validation="none", mask=())
        events = Events.of(rule.split(data), "test")
        first = [item for user, item, _ in (rows[place] for place in order) if user == 1]
        assert data.item_ids.decode(events.histories(1, 2)[1].numpy()).tolist() == first[:2]
        assert data.item_ids.decode(events.targets).tolist() == first[1:]


def test_constant_scores_put_every_target_last_however_rows_are_shuffled() -> None:
    class Constant(Reader):
        def scorer(self, state: torch.Tensor) -> BlockScorer:
            return BlockScorer(
                len(state), self.num_items, state.device, lambda a, b: torch.zeros(b - a, self.num_items)
            )

    for seed in range(3):
        data = make_sessions(seed)
        ranking = rank(Constant(data.num_items), RULE.split(data), RULE)
        assert (ranking.ranks == data.num_items).all()


def test_models_of_sets_are_asked_with_the_prefix_and_others_by_user() -> None:
    data = make_sessions(6, num_sessions=120)
    task = InteractionTask(data, RULE.changed(cutoffs=(5,)))
    fitted = ItemKNN()
    fitted.fit(task)
    events = Events.of(task.split, "test")
    ranks = rank(fitted, task.split, task.protocol).ranks
    for event in (0, len(events) // 2, len(events) - 1):
        history = events.histories(event, event + 1)
        scores = fitted.scorer(fitted.encode(Queries(history=history))).scores(0, 1)[0]
        target = int(events.targets[event])
        assert ranks[event] == 1 + int((scores >= scores[target]).sum()) - 1
    popular = Popularity()
    popular.fit(task)
    counts = task.split.train.item_counts()
    assert rank(popular, task.split, task.protocol).ranks.tolist() == [
        int((counts >= counts[target]).sum()) for target in events.targets
    ]
    by_user = rank(ByUser(data.num_items), task.split, task.protocol)
    assert by_user.users.tolist() == events.users.tolist()
    distance = abs(np.arange(data.num_items) - events.users[:, None])
    own = abs(events.targets - events.users)
    assert by_user.ranks.tolist() == (distance <= own[:, None]).sum(1).tolist()
    assert NEW_USERS in MF.capabilities


def test_sampled_candidates_are_those_of_each_row() -> None:
    data = make_sessions(7, num_items=60)
    rule = RULE.changed(candidates=4, negatives="seeded", metrics=("hr",), cutoffs=(1,))
    split, model = rule.split(data), Reader(data.num_items)
    ranking, events = rank(model, split, rule), Events.of(split, "test")
    for event, position in enumerate(ranking.ranks.tolist()):
        last = int(events.histories(event, event + 1)[1][-1])
        target, drawn = int(events.targets[event]), split.test_negatives[events.rows[event]].tolist()
        assert position == 1 + sum(abs(each - last - 1) <= abs(target - last - 1) for each in drawn if each != target)


def test_an_official_split_of_sessions_is_kept_and_the_last_of_its_training_validate() -> None:
    data = make_sessions(8)
    is_test = data.users >= data.num_users - 6
    data = dataclasses.replace(data, official=OfficialSplit(np.flatnonzero(~is_test), np.flatnonzero(is_test), None))
    rule = protocol("next-event", validation_share=0.2)
    assert rule.resolve(data).holdout == "official"
    split = rule.split(data)
    assert split.test.sha256 == data.take(is_test).sha256
    assert len(np.unique(split.validation.users)) == round(0.2 * len(np.unique(data.users[~is_test])))
    assert split.train.order.max() < split.validation.order.min()
    assert len(split.train) + len(split.validation) + split.notes["rows_cut_at_the_moment"] == int((~is_test).sum())
    own = dataclasses.replace(
        data.official, validation_index=data.official.train_index[:9], train_index=data.official.train_index[9:]
    )
    split = rule.split(dataclasses.replace(data, official=own))
    assert split.validation.sha256 == data.take(own.validation_index).sha256
    assert rule.resolve(make_sessions(8)).holdout == "sessions"


def test_a_sample_of_users_asks_for_their_events_alone() -> None:
    data = make_sessions(9)
    split = RULE.split(data)
    three = np.unique(split.test.users)[:3]
    ranking = rank(Reader(data.num_items), split, RULE, users=three)
    assert set(ranking.users.tolist()) == set(three.tolist())
    with pytest.raises(ValueError, match="must have a user to evaluate, got none"):
        evaluate(Reader(data.num_items), split, RULE, users=np.array([], dtype=np.int64))


def test_protocols_that_do_not_fit_say_what_does() -> None:
    with pytest.raises(ValueError, match="targets='events' are next items, got task='ranking'"):
        protocol("full", targets="events")
    with pytest.raises(ValueError, match="take the protocol 'next-event'"):
        protocol("next-item", holdout="sessions")
    with pytest.raises(ValueError, match="unknown targets 'event'"):
        protocol("next-item", targets="event")
    assert protocol("next-event", holdout="leave_one_out").validation == "last"
    assert protocol("next-event").headline == "recall@20"
    assert protocol("next-item", targets="events").differences(protocol("next-item")) == ["targets: 'events' / 'users'"]
    blind = from_frame(pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2]}))
    with pytest.raises(ValueError, match="next items need the order"):
        protocol("next-event").split(blind)
    one = make([(1, 1, 0), (2, 1, 0), (3, 2, 0)])
    with pytest.raises(ValueError, match="must start before the first one held out"):
        RULE.split(one)
