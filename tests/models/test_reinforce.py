"""REINFORCE: gradients against enumeration, the numbers of the notes, states place by place, and a world it solves."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from deeprec.batches import Feedback, FeedbackBatches
from deeprec.batches.feedback import FeedbackBatch, discounted_returns
from deeprec.batches.numbered import Numbered
from deeprec.contract import Schema
from deeprec.data import BanditLog, IdMap, Interactions, LoggedInteractions, from_frame, load, with_propensities
from deeprec.evaluate import off_policy_value
from deeprec.models._policy import policy_weights, top_k_factor
from deeprec.models.reinforce import Reinforce
from deeprec.train.loop import train_epoch
from deeprec.train.optimizers import Optimizers


def small(**options: object) -> Reinforce:
    model = Reinforce(Schema(4, 6), factors=3, length=8, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0.0, 0.5, generator=generator)
    return model.double().eval()


def batch(rewards: list[list[float]], propensities: list[list[float]] | None = None) -> FeedbackBatch:
    items = torch.tensor([[3, 1, 4, 1], [-1, -1, 5, 0], [-1, 2, 2, 5]])
    values = torch.tensor(rewards, dtype=torch.float64)
    chances = None if propensities is None else torch.tensor(propensities, dtype=torch.float64)
    return FeedbackBatch(torch.tensor([2, 0, 3]), items, values, values * 1.5, chances, items >= 0, 9)


REWARDS = [[1.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.0, 1.0]]


def test_top_k_factors_of_the_notes() -> None:
    pi = torch.tensor([0.0, 0.01, 0.1, 0.5], dtype=torch.float64)
    factors = top_k_factor(pi.log(), 16)
    assert factors.tolist() == pytest.approx([16, 13.76, 3.294, 0.000488], rel=1e-3)
    assert top_k_factor(pi.log(), 1).tolist() == [1.0] * 4
    assert top_k_factor(torch.zeros(1), 16).item() == 0.0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_expected_gradient_is_that_of_the_value_by_enumeration(k: int) -> None:
    # J = sum_a (1 - (1 - pi_a)^K) r_a; what events drawn from beta give in the mean must be its gradient.
    torch.manual_seed(k)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    rewards = torch.rand(6, dtype=torch.float64) * 5 - 1
    beta = torch.rand(6, dtype=torch.float64).softmax(0)
    pi = logits.softmax(0)
    (wanted_gradient,) = torch.autograd.grad(((1 - (1 - pi) ** k) * rewards).sum(), logits)
    log_pi = logits.log_softmax(0)
    weights = policy_weights(log_pi.detach(), beta.log(), top_k=k)
    (gradient,) = torch.autograd.grad((beta * weights * rewards * log_pi).sum(), logits)
    torch.testing.assert_close(gradient, wanted_gradient)
    (nothing,) = torch.autograd.grad((logits.softmax(0).detach() * logits.log_softmax(0)).sum(), logits)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing))


def test_weights_are_capped_in_logs_and_normalised_over_events() -> None:
    log_pi, log_beta = torch.tensor([-1.0, -0.1, -90.0, -2.0]), torch.tensor([-1.0, -500.0, -1.0, -1.0])
    weights = policy_weights(log_pi, log_beta, cap=4.0)
    assert weights.tolist() == pytest.approx([1.0, 4.0, math.exp(-89), math.exp(-1)])
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
    normalised = policy_weights(log_pi, log_beta, cap=4.0, mask=mask)
    assert float((normalised * mask).sum() / 3) == pytest.approx(1.0)
    assert policy_weights(log_pi, None, top_k=1).tolist() == [1.0] * 4


def _plain(model: Reinforce, events: FeedbackBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi and log beta of the events, [n], by torch's GRU one history at a time."""
    assert isinstance(model.reader.liked, nn.GRU)
    pi, beta = [], []
    for row in range(len(events.items)):
        liked: list[int] = []
        others: list[int] = []
        for place in range(events.items.shape[1]):
            if not events.mask[row, place]:
                continue
            state = torch.zeros(3, dtype=torch.float64)
            if liked:
                state = state + model.reader.liked(model.reader.items.weight[liked][None])[0][0, -1]
            if others and model.reader.skipped is not None and model.reader.mix is not None:
                state = state + model.reader.mix(
                    model.reader.skipped(model.reader.items.weight[others][None])[0][0, -1]
                )
            item = int(events.items[row, place])
            logits = model.actions.weight @ state + model.action_bias.weight[:, 0]
            pi.append(logits.log_softmax(0)[item])
            if model.logged is not None and model.logged_bias is not None:
                logits = model.logged.weight @ state.detach() + model.logged_bias.weight[:, 0]
                beta.append(logits.log_softmax(0)[item])
            (liked if events.rewards[row, place] > model.config.liked_above else others).append(item)
    return torch.stack(pi), torch.stack(beta) if beta else torch.zeros(0)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"weight_cap": 0.7}, {"normalise": True}, {"baseline": "mean"}])
def test_loss_and_gradients_are_those_of_plain_torch(options: dict[str, object], two_sided: bool) -> None:
    model = small(**{"top_k": 1, **options}, two_sided=two_sided, liked_above=0.5)
    events = batch(REWARDS)
    log_pi, log_beta = _plain(model, events)
    ratio = (log_pi - log_beta).exp().detach().clamp(max=model.config.weight_cap)
    if model.config.normalise:
        ratio = ratio / ratio.mean()
    k = model.config.top_k
    factor = k * (1 - log_pi.detach().exp()) ** (k - 1)
    returns = events.returns[events.mask]
    if model.config.baseline == "mean":
        returns = returns - returns.mean()
    expected = -(ratio * factor * returns * log_pi).mean() - log_beta.mean()
    loss = model.loss(Numbered(events, 0))
    torch.testing.assert_close(loss, expected)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for one, other in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights, materialize_grads=True), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_on_policy_weights_are_one() -> None:
    # With beta = pi, K = 1 and a cap of 1 the gradient is that of plain REINFORCE.
    model = small(top_k=1, weight_cap=1.0)
    assert model.logged is not None
    assert model.logged_bias is not None
    model.logged.weight.data.copy_(model.actions.weight)
    model.logged_bias.weight.data.copy_(model.action_bias.weight)
    events = batch(REWARDS)
    (corrected,) = torch.autograd.grad(model.loss(Numbered(events, 0)), model.actions.weight)
    log_pi, _ = _plain(model, events)
    (plain,) = torch.autograd.grad(-(events.returns[events.mask] * log_pi).mean(), model.actions.weight)
    torch.testing.assert_close(corrected, plain)


def test_logged_propensities_stand_for_beta() -> None:
    chances = [[0.1, 0.2, 0.9, 0.5], [1.0, 1.0, 0.3, 0.4], [1.0, 0.6, 0.2, 0.1]]
    model = small(top_k=1, behaviour="logged", weight_cap=1e9)
    events = batch(REWARDS, chances)
    assert model.logged is None
    log_pi, _ = _plain(model, events)
    assert events.propensities is not None
    ratio = log_pi.detach().exp() / events.propensities[events.mask]
    expected = -(ratio * events.returns[events.mask] * log_pi).mean()
    torch.testing.assert_close(model.loss(Numbered(events, 0)), expected)


def test_a_sampled_softmax_that_draws_all_is_near_the_full_one() -> None:
    full, sampled = small(top_k=1), small(top_k=1, softmax="sampled", num_negatives=20_000)
    sampled.load_state_dict(full.state_dict())
    events = batch(REWARDS)
    losses = [model.loss(Numbered(events, 3)).item() for model in (full, sampled)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_returns_by_hand() -> None:
    rewards = np.array([1.0, 2.0, 4.0, 8.0, 16.0], dtype=np.float32)
    offsets = np.array([0, 3, 3, 5])
    assert discounted_returns(rewards, offsets, 0.5).tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16]
    assert discounted_returns(rewards, offsets, 0.0).tolist() == rewards.tolist()
    assert discounted_returns(rewards, offsets, 1.0).tolist() == [7, 6, 4, 24, 16]


def _log(rewards: list[float] | None, propensities: bool = False) -> Interactions:
    rows = [("a", 3, 1), ("b", 5, 9), ("a", 1, 2), ("a", 3, 3), ("b", 1, 10), ("c", 2, 4)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    if rewards is not None:
        table = table.with_columns(rating=pl.Series(rewards))
    data = from_frame(table, duplicates="keep")
    return with_propensities(data, np.linspace(0.1, 0.6, 6)) if propensities else data


def test_batches_hold_the_last_events_with_rewards_and_propensities() -> None:
    data = _log([1.0, 0.0, 2.0, 0.0, 5.0, 7.0], propensities=True)
    (got,) = FeedbackBatches(data, batch_size=9, length=2, seed=0, discount=0.5).epoch(0)
    rows = {data.user_ids.values[int(user)]: place for place, user in enumerate(got.users)}
    names = data.item_ids.values.to_list()
    assert [names[item] for item in got.items[rows["a"]]] == [1, 3]
    assert got.rewards[rows["a"]].tolist() == [2.0, 0.0]
    assert got.returns[rows["b"]].tolist() == [2.5, 5.0]
    assert got.items[rows["c"]].tolist()[0] == -1
    assert got.mask[rows["c"]].tolist() == [False, True]
    assert got.propensities is not None
    assert got.propensities[rows["c"]].tolist() == pytest.approx([1.0, 0.6])
    assert (len(got), got.num_events) == (5, 5)
    assert Feedback.of(_log(None)).rewards.tolist() == [1.0] * 6
    assert Feedback.of(data, "one").rewards.tolist() == [1.0] * 6


def test_known_users_are_what_they_liked_and_what_they_did_not() -> None:
    data = _log([1.0, 0.0, 2.0, 0.0, 5.0, 7.0])
    for two_sided in (False, True):
        model = Reinforce(Schema(3, 4), factors=3, two_sided=two_sided, generator=torch.Generator().manual_seed(1))
        model.batches(data, 0)
        model.eval()
        (rows,) = model.user_rows(torch.arange(3))
        names = {name: place for place, name in enumerate(data.user_ids.values)}
        events = {"a": ([3, 1, 3], [1.0, 2.0, 0.0]), "b": ([5, 1], [0.0, 5.0]), "c": ([2], [7.0])}
        for name, (items, rewards) in events.items():
            ids = torch.from_numpy(data.item_ids.encode(np.array(items))).long()[None]
            (row,) = model.feedback_rows(ids, torch.tensor([rewards]))
            torch.testing.assert_close(row[0], rows[names[name]])
        (liked,) = model.history_rows(torch.tensor([0, 2]), torch.from_numpy(data.item_ids.encode(np.array([3, 1]))))
        assert torch.allclose(liked[0], rows[names["a"]]) != two_sided


def _train(data: Interactions, epochs: int, **options: object) -> Reinforce:
    model = Reinforce(
        Schema(data.num_users, data.num_items),
        generator=torch.Generator().manual_seed(0),
        factors=8,
        lr=0.05,
        batch_size=64,
        **options,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    optimizers, batches = Optimizers(model), model.batches(data, 0)
    for epoch in range(epochs):
        train_epoch(model, optimizers, batches, epoch)
    return model.eval()


def _toy() -> LoggedInteractions:
    """Rewards 1 to 10, logged with beta ~ 1 / r: 2,000 users with one event each."""
    rng = np.random.default_rng(0)
    rewards = np.arange(1, 11, dtype=np.float32)
    beta = 1 / rewards / (1 / rewards).sum()
    items = rng.choice(10, 4000, p=beta).astype(np.int32)
    maps = (IdMap.from_values(np.arange(size), name) for size, name in ((4000, "user"), (10, "item")))
    users = np.arange(4000, dtype=np.int32)
    return LoggedInteractions(
        users,
        items,
        *maps,
        rewards[items],
        np.zeros(4000, dtype=np.int64),
        "time",
        propensities=beta[items].astype(np.float32),
    )


@pytest.mark.parametrize("behaviour", ["learned", "logged"])
def test_the_correction_reaches_the_best_item_whatever_was_logged(behaviour: str) -> None:
    model = _train(_toy(), 15, top_k=1, behaviour=behaviour, weight_cap=100.0)
    pi = model.action_bias.weight.detach()[:, 0].softmax(0)
    assert int(pi.argmax()) == 9
    assert float(pi[9]) > 0.9


def test_without_the_correction_the_policy_is_what_was_logged_times_its_reward() -> None:
    model = _train(_toy(), 15, top_k=1, correction="none")
    pi = model.action_bias.weight.detach()[:, 0].softmax(0)
    assert pi.tolist() == pytest.approx([0.1] * 10, abs=0.03)  # beta r is the same for all


def test_the_learned_behaviour_is_that_of_the_log() -> None:
    data = _toy()
    model = _train(data, 10, top_k=1)
    assert model.logged_bias is not None
    beta = model.logged_bias.weight.detach()[:, 0].softmax(0)
    assert beta.tolist() == pytest.approx((data.item_counts() / 4000).tolist(), abs=0.05)


def test_top_k_leaves_probability_to_the_second_best() -> None:
    plain, pages = (_train(_toy(), 15, top_k=k, weight_cap=100.0) for k in (1, 3))
    shares = [model.action_bias.weight.detach()[:, 0].softmax(0) for model in (plain, pages)]
    assert shares[1].topk(2).values[1] > 5 * shares[0].topk(2).values[1]
    assert shares[1].topk(3).indices.sort().values.tolist() == [7, 8, 9]


def test_a_policy_is_worth_what_the_log_says_of_it() -> None:
    data = _toy()
    model = _train(data, 15, top_k=1, behaviour="logged", weight_cap=100.0)
    pi = model.action_bias.weight.detach()[:, 0].softmax(0).double().numpy()
    assert data.ratings is not None
    log = BanditLog(data.items, data.ratings.astype(float), data.propensities.astype(float), 10)
    estimate = off_policy_value(log, pi[None] / pi.sum(), "snips")
    assert estimate.low < float(pi @ np.arange(1, 11)) < estimate.high


def test_a_short_fit_on_movielens_ranks_better_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        data = load("sasrec-ml-1m")
    except FileNotFoundError:
        pytest.skip("DEEPREC_DATA has no sasrec-ml-1m")
    few = data.take(data.users < 600)
    model = Reinforce(factors=32, epochs=8, top_k=1, correction="none", lr=0.003, batch_size=32)
    model.fit(few, protocol="next-item", seed=1, baselines=False)
    assert model.evaluate()["hr@10"] > 0.02  # 10 of 3,416 items by chance: 0.003
    best = model.recommend_for_history([few.item_ids.values[0]], 3)
    assert len(best) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"correction": "on"}, "correction must be one of off-policy, none"),
        ({"weight_cap": 0.0}, "weight_cap must be > 0"),
        ({"top_k": 0}, "top_k must be >= 1"),
        ({"discount": 1.5}, r"discount must lie in \[0, 1\]"),
        ({"reward": "stars"}, "reward must be one of rating, one"),
        ({"correction": "none", "weight_cap": 3.0}, "weight_cap has no effect here, got 3.0; leave it out, or take"),
        ({"num_negatives": 3}, "num_negatives has no effect here"),
        ({"behaviour": "given"}, "behaviour must be one of learned, logged"),
        ({"baseline": "median"}, "baseline must be one of none, mean"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Reinforce(**options)  # type: ignore[arg-type]


def test_data_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="behaviour 'logged' needs the propensities of the events"):
        Reinforce(Schema(3, 4), behaviour="logged").batches(_log([1.0] * 6), 0)
    with pytest.raises(ValueError, match=r"liked_above must leave a liked event, got 9 for rewards up to 7"):
        Reinforce(Schema(3, 4), liked_above=9.0).batches(_log([1.0, 0.0, 2.0, 0.0, 5.0, 7.0]), 0)
    without = from_frame(pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]}))
    with pytest.raises(ValueError, match="the data must have an order"):
        Reinforce(Schema(1, 2)).batches(without, 0)
