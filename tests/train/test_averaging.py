"""The average of weights: the epochs' of `fit`, and torch's exponential one by steps."""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deeprec.train.averaging import WeightAverage
from deeprec.train.optim import Adam


def a_network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.randn(16, 5)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_by_steps_it_is_the_averaged_model_of_torch(decay):
    network = a_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    expected = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average = WeightAverage(decay)
    assert len(average) == 0
    for _ in range(30):
        step(network, optimizer)
        expected.update_parameters(network)
        average.update(network.state_dict())
    found = average.state_dict()
    assert found.keys() == network.state_dict().keys()
    for name, value in expected.module.state_dict().items():
        if name == "1.num_batches_tracked":  # torch averages the counter too
            assert torch.equal(found[name], torch.tensor(30))
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.8])
def test_by_epochs_it_is_the_average_of_fit_bit_for_bit(decay):
    network = a_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    average, expected = WeightAverage(decay), {}
    for _ in range(10):
        step(network, optimizer)
        weights = {name: value.detach().clone() for name, value in network.named_parameters()}
        expected = {key: torch.lerp(value, expected.get(key, value), decay) for key, value in weights.items()}
        average.update(dict(network.named_parameters()))
    for name, value in average.state_dict().items():
        assert torch.equal(value, expected[name])
        assert not value.requires_grad


def test_it_goes_on_from_its_state():
    weights = [{"a": torch.randn(4, 3), "count": torch.tensor(at)} for at in range(6)]
    whole, first, second = WeightAverage(0.7), WeightAverage(0.7), WeightAverage(0.7)
    for each in weights:
        whole.update(each)
    for each in weights[:3]:
        first.update(each)
    second.load_state_dict(first.state_dict(), "cpu")
    first.update(weights[0])  # the copy does not follow
    for each in weights[3:]:
        second.update(each)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    empty = WeightAverage(0.7)
    empty.load_state_dict(WeightAverage(0.7).state_dict())
    assert len(empty) == 0


def test_what_was_taken_in_may_change_afterwards():
    weight = torch.ones(2)
    average = WeightAverage(0.5)
    average.update({"a": weight})
    weight.fill_(3.0)
    assert average.state_dict()["a"].tolist() == [1.0, 1.0]
    average.update({"a": weight})
    assert average.state_dict()["a"].tolist() == [2.0, 2.0]


def test_of_rows_that_lag_behind_it_is_right_after_a_flush():
    """Two tables, one trained by dense gradients: with flush() before each update the averages agree."""
    torch.manual_seed(0)
    start = torch.randn(20, 4)
    averages = []
    for is_sparse in (True, False):
        table = torch.nn.Embedding(20, 4, sparse=is_sparse, _weight=start.clone())
        options = {"mode": "dense"} if is_sparse else {}
        optimizer = (Adam if is_sparse else torch.optim.Adam)(table.parameters(), lr=0.1, **options)
        average = WeightAverage(0.9)
        for at in range(12):
            optimizer.zero_grad()
            table(torch.tensor([at % 5, 7])).square().sum().backward()
            optimizer.step()
            if is_sparse:
                optimizer.flush()
            average.update(table.state_dict())
        averages.append(average.state_dict()["weight"])
    torch.testing.assert_close(averages[0], averages[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got"):
        WeightAverage(decay)


@pytest.mark.parametrize(
    "other", [{"b": torch.ones(2)}, {"a": torch.ones(1)}, {"a": torch.ones(2), "b": torch.ones(1)}]
)
def test_weights_of_another_model_are_refused(other):
    average = WeightAverage(0.5)
    average.update({"a": torch.ones(2)})
    with pytest.raises(ValueError, match="the weights must be those of the update before, got another"):
        average.update(other)
    assert average.state_dict()["a"].tolist() == [1.0, 1.0]
