"""Claims about attention over a user's items and an item's components: they are those of plain loops."""

from __future__ import annotations

import pytest
import torch

from deeprec.nn import ComponentAttention, NeighbourAttention


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def score(layer: torch.nn.Module, user: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row in range(layer.attention_factor):
        inner = (layer.user_weight[row] * user).sum() + (layer.weight[row] * x).sum() + layer.bias[row]
        total = total + layer.w[row] * inner.clamp(min=0)
    return total


def weights_of(scores: list[torch.Tensor]) -> list[torch.Tensor]:
    exponentials = [each.exp() for each in scores]
    return [each / torch.stack(exponentials).sum() for each in exponentials]


def require_same(mine: torch.Tensor, theirs: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(mine, theirs)
    upstream = normal(*mine.shape, seed=9).detach()
    ours = torch.autograd.grad((mine * upstream).sum(), leaves)
    others = torch.autograd.grad((theirs * upstream).sum(), leaves)
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("owners", [[0, 0, 2, 2, 2, 3], [2, 0, 2, 3, 0, 2], [1], []])
def test_neighbours_are_summed_as_by_plain_loops(owners: list[int]) -> None:
    layer = NeighbourAttention(3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
    layer.bias.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    users, x, values = normal(4, 3), normal(len(owners), 5, seed=3), normal(len(owners), 2, seed=4)
    rows = []
    for owner in range(4):
        entries = [place for place, each in enumerate(owners) if each == owner]
        alphas = weights_of([score(layer, users[owner], x[place]) for place in entries]) if entries else []
        total = 0 * users.sum() + 0 * values.sum() + torch.zeros(2, dtype=torch.float64)
        for alpha, place in zip(alphas, entries, strict=True):
            total = total + alpha * values[place]
        rows.append(total)
    expected = torch.stack(rows) + 0 * sum(parameter.sum() for parameter in layer.parameters()) + 0 * x.sum()
    got = layer(users, x, torch.tensor(owners, dtype=torch.int64), values)
    require_same(got, expected, [users, x, values, *layer.parameters()])


def test_large_scores_do_not_overflow() -> None:
    layer = NeighbourAttention(1, 1, 1)
    with torch.no_grad():
        for weight in (layer.user_weight, layer.weight, layer.w):
            weight.fill_(1.0)
    out = layer(torch.zeros(1, 1), torch.tensor([[1e4], [1.0]]), torch.zeros(2, dtype=torch.int64), torch.eye(2))
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.0]]))


def test_components_are_summed_as_by_plain_loops() -> None:
    layer = ComponentAttention(3, 4, 2, generator=torch.Generator().manual_seed(1)).double()
    users, x = normal(5, 3), normal(5, 3, 4, seed=3)
    rows = []
    for user, components in zip(users, x, strict=True):
        betas = weights_of([score(layer, user, component) for component in components])
        rows.append(torch.stack([beta * component for beta, component in zip(betas, components, strict=True)]).sum(0))
    require_same(layer(users, x), torch.stack(rows), [users, x, *layer.parameters()])


def test_one_component_is_taken_as_it_is() -> None:
    x = normal(6, 1, 4)
    torch.testing.assert_close(ComponentAttention(2, 4, 3).double()(normal(6, 2), x), x[:, 0])


@pytest.mark.parametrize("kind", [NeighbourAttention, ComponentAttention])
def test_sizes_and_shapes_out_of_range_are_refused(kind: type[torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: the widths .* got 3, 0 and 2"):
        kind(3, 0, 2)
    layer = kind(3, 4, 2)
    rest = (torch.zeros(5, dtype=torch.int64), torch.zeros(5, 1)) if kind is NeighbourAttention else ()
    with pytest.raises(ValueError, match=rf"{kind.__name__}: users must be \["):
        layer(torch.zeros(2, 3), torch.zeros(5, 3), *rest)
