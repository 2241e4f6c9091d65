"""DQN: targets, duelling values and pairs by hand, the network that follows, exploration, and a world with planning."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from deeprec.batches.feedback import FeedbackBatch
from deeprec.contract import Schema
from deeprec.models.dqn import DQN, competitors, interleaved
from deeprec.simulate import Sessions, World, best_policy, optimum, simulate, uniform_policy, value
from deeprec.train.loop import train_epoch
from deeprec.train.optimizers import Optimizers

REWARDS = [[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.0, 1.0]]


def small(**options: object) -> DQN:
    model = DQN(Schema(4, 6), factors=3, length=8, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0.0, 0.5, generator=generator)
    return model.double().eval()


def batch() -> FeedbackBatch:
    items = torch.tensor([[3, 1, 4, 1], [-1, -1, 5, 0], [-1, 2, 2, 5]])
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    return FeedbackBatch(torch.tensor([2, 0, 3]), items, rewards, rewards, None, items >= 0, 9)


def all_values(reader: torch.nn.Module, heads: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Q [n, N] of states [n, D], written out."""
    advantages = states @ heads.advantage.weight.T @ heads.actions.weight.T + heads.action_bias.weight[:, 0]
    worth = states @ heads.worth.weight.T + heads.worth.bias
    return worth + advantages - advantages.mean(1, keepdim=True)


@pytest.mark.parametrize("two_sided", [False, True])
def test_double_targets_and_duelling_values_are_those_written_out(two_sided: bool) -> None:
    model, events = small(discount=0.7, two_sided=two_sided), batch()
    states = model.states(events)
    online = all_values(model.reader, model.heads, states.after)
    later = model.states(events, model.target["reader"]).after
    there = all_values(model.target["reader"], model.target["heads"], later)
    best = online.argmax(1)
    assert (best != there.argmax(1)).any()  # the online network chooses, the other one values
    expected = events.rewards.flatten() + 0.7 * there[torch.arange(12), best] * torch.tensor([1.0, 1, 1, 0] * 3)
    torch.testing.assert_close(model.targets(events, states), expected)
    values = all_values(model.reader, model.heads, states.before)
    taken = values[torch.arange(12), states.items]
    torch.testing.assert_close(model.heads.values(states.before, states.items), taken)
    mask = events.mask.flatten()
    torch.testing.assert_close(model.loss(events), ((expected - taken)[mask] ** 2).mean())


def test_states_after_an_event_are_those_before_the_next() -> None:
    model = small(two_sided=True)
    states = model.states(batch())
    before, after = (part.view(3, 4, 3) for part in (states.before, states.after))
    torch.testing.assert_close(after[:, :-1], before[:, 1:])
    assert (before[0, 0] == 0).all()


def test_no_gradient_runs_through_the_targets() -> None:
    model = small(discount=0.7)
    model.loss(batch()).backward()
    assert all(weight.grad is None for weight in model.target.parameters())
    assert not any(weight.requires_grad for weight in model.target.parameters())
    states = model.states(batch())
    fixed = model.targets(batch(), states)
    plain = (fixed - model.heads.values(states.before, states.items)).square()
    expected = torch.autograd.grad((plain * states.mask).sum() / 9, list(model.heads.parameters()), retain_graph=True)
    for weight, gradient in zip(model.heads.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_the_target_network_begins_alike_and_follows() -> None:
    model = DQN(Schema(4, 6), factors=3, target_rate=0.25, generator=torch.Generator().manual_seed(1))
    pairs = [*zip([*model.reader.parameters(), *model.heads.parameters()], model.target.parameters(), strict=True)]
    assert all(torch.equal(one, other) for one, other in pairs)
    before = [other.clone() for _, other in pairs]
    with torch.no_grad():
        for one, _ in pairs:
            one.add_(1.0)
    model.backward(batch())
    for old, (_, kept) in zip(before, pairs, strict=True):
        torch.testing.assert_close(kept, old + 0.25)


def test_competitors_by_hand() -> None:
    liked = torch.tensor([[True, False, False, True, True, False]])
    places, has_one = competitors(liked, torch.tensor([[True] * 6]))
    assert has_one.tolist() == [0, 1, 1, 1, 1, 1]
    assert places.tolist() == [0, 0, 0, 2, 2, 4]
    places, has_one = competitors(torch.tensor([[False, False], [False, True]]), torch.tensor([[False, True]] * 2))
    assert has_one.tolist() == [0, 0, 0, 0]
    assert places.tolist() == [0, 1, 2, 3]


def test_pairs_are_parted_up_to_the_margin() -> None:
    events = batch()
    plain, paired = small(discount=0.0), small(discount=0.0, pair_weight=0.3, pair_margin=0.8)
    paired.load_state_dict(plain.state_dict())
    states = plain.states(events)
    values = all_values(plain.reader, plain.heads, states.before)
    terms = []
    for row, place, other in ((0, 1, 0), (0, 2, 1), (0, 3, 2), (1, 3, 2), (2, 2, 1), (2, 3, 2)):
        at = row * 4 + place
        own, rival = int(events.items[row, place]), int(events.items[row, other])
        terms.append(min((values[at, own] - values[at, rival]).item() ** 2, 0.64))
    assert paired.loss(events).item() == pytest.approx(plain.loss(events).item() - 0.3 * sum(terms) / 9)


def test_scores_rank_as_values_do() -> None:
    model = small()
    items = torch.tensor([3, 0, 5])
    (row,) = model.history_rows(torch.tensor([0, 3]), items)
    state = model.reader.last(items[None], torch.ones(1, 3, dtype=torch.bool))
    vectors, bias = model.output_items()
    scores, values = row @ vectors.T + bias, all_values(model.reader, model.heads, state)
    torch.testing.assert_close(scores - scores.mean(), values - values.mean())


def test_explorers_are_near_and_steps_go_towards_them() -> None:
    model = small()
    before = copy.deepcopy(model)
    other = model.explorer(torch.Generator().manual_seed(3), scale=0.1)
    pairs = zip(before.heads.parameters(), other.heads.parameters(), strict=True)
    assert all((abs(two - one) <= 0.1 * abs(one) + 1e-12).all() for one, two in pairs)
    model.step_towards(other, rate=0.05)
    for old, explored, new in zip(
        before.reader.parameters(), other.reader.parameters(), model.reader.parameters(), strict=True
    ):
        torch.testing.assert_close(new, old + 0.05 * (explored - old))
    with pytest.raises(ValueError, match="scale must be > 0"):
        model.explorer(torch.Generator(), scale=0.0)
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\]"):
        model.step_towards(other, rate=2.0)


def test_exploration_finds_the_better_weights() -> None:
    # Feedback on a quadratic: the explorer wins where it is nearer; the steps come near without a gradient.
    model, goal = small(), small()
    with torch.no_grad():
        for weight in goal.heads.parameters():
            weight.mul_(1.5)

    def distance(each: DQN) -> float:
        pairs = zip(each.heads.parameters(), goal.heads.parameters(), strict=True)
        return sum(float((one - other).square().sum()) for one, other in pairs)

    generator, begun = torch.Generator().manual_seed(0), distance(model)
    for _ in range(300):
        other = model.explorer(generator)
        if distance(other) < distance(model):
            model.step_towards(other, rate=1.0)
    assert distance(model) < 0.2 * begun


def test_interleaved_lists_take_turns() -> None:
    counts = np.zeros(2)
    for seed in range(200):
        made = interleaved([1, 2, 3, 4], [3, 1, 5, 6], 4, torch.Generator().manual_seed(seed))
        assert len(set(made.items)) == 4
        assert sorted(made.owners) == [0, 0, 1, 1]
        assert made.items[0] == (1, 3)[made.owners[0]]
        counts[made.owners[0]] += 1
    assert 70 < counts[0] < 130
    assert interleaved([1], [1], 3, torch.Generator()).items == [1]
    with pytest.raises(ValueError, match="k must be >= 1"):
        interleaved([1], [2], 0, torch.Generator())


def test_it_plans_where_the_best_item_of_each_step_does_not() -> None:
    # Item 0 is clicked most now; item 1 moves the user to where item 2 is clicked for sure.
    world = World(np.array([[1.0, 0.0]]), np.array([[0.5, 0.0], [0.2, 6.0], [-9.0, 6.0]]), drift=1.0)
    log = simulate(world, uniform_policy(world), np.zeros(1500, dtype=np.int64), steps=3, seed=1)
    data = log.interactions()
    shares = {}
    for discount in (0.0, 1.0):
        model = DQN(
            Schema(data.num_users, 3), generator=torch.Generator().manual_seed(0), factors=8, lr=0.01, length=3,
            batch_size=32, discount=discount, two_sided=True, target_rate=0.02,
        )  # fmt: skip
        torch.manual_seed(0)
        optimizers, batches = Optimizers(model), model.batches(data, 0)
        for epoch in range(25):
            train_epoch(model, optimizers, batches, epoch)
        model.eval()

        def policy(sessions: Sessions, model: DQN = model) -> np.ndarray:
            clicks = torch.from_numpy(sessions.clicks[..., 0].astype(np.float32))
            (rows,) = model.feedback_rows(torch.from_numpy(sessions.items[..., 0]), clicks)
            vectors, bias = model.output_items()
            return np.eye(3)[(rows @ vectors.T + bias).argmax(1).numpy()]

        shares[discount] = value(world, policy, steps=3)[0] / optimum(world, steps=3).values[0]
    greedy = value(world, best_policy(world), steps=3)[0] / optimum(world, steps=3).values[0]
    assert shares[1.0] > 0.95
    assert shares[1.0] > shares[0.0] + 0.05
    assert shares[1.0] > greedy + 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_rate": 0.0}, r"target_rate must lie in \(0, 1\]"),
        ({"pair_weight": -1.0}, "pair_weight must be >= 0"),
        ({"pair_weight": 1.0, "pair_margin": 0.0}, "pair_margin must be > 0"),
        ({"pair_margin": 2.0}, "pair_margin has no effect here, got 2.0"),
        ({"discount": -0.1}, r"discount must lie in \[0, 1\]"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DQN(**options)  # type: ignore[arg-type]
