"""The Transformer over histories: against a plain one in float64, and what no place may see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.nn import SequenceEncoder
from deeprec.nn.sequence_encoder import BLOCKS, POSITIONS, Places, at_left, in_line, positions_from_end

DIM = 8
CASES = [
    {"block": block, "positions": positions, "heads": heads, "causal": causal}
    for block in BLOCKS
    for positions, heads, causal in (("learned", 1, True), ("rotary", 2, False), ("none", 4, True))
]


def encoder(**options: Any) -> SequenceEncoder:
    given = {"dropout": 0.0, "hidden": 12, "generator": torch.Generator().manual_seed(1), **options}
    made = SequenceEncoder(DIM, 7, **given).double()
    with torch.no_grad():  # biases and norms that are not what they are at first
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).double() * 0.1)
    return made


def reference(made: SequenceEncoder, x: Tensor, scale: bool = True) -> Tensor:
    """The states [l, D] of one history, place by place and head by head."""
    count = len(x)
    x = x * math.sqrt(DIM) if scale else x
    if made.position_vectors is not None:
        x = x + made.position_vectors[torch.arange(count - 1, -1, -1)]
    for block in made.blocks:
        x = block_reference(block, x, made.causal)
    return x if made.norm is None else norm(x, made.norm)


def norm(x: Tensor, layer: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-8).sqrt() * layer.weight + layer.bias


def attention(block: Any, queries: Tensor, values: Tensor, causal: bool) -> Tensor:
    count, width = len(queries), DIM // block.heads
    q, both = block.query(queries), block.key_value(values)
    k, v = both[:, :DIM], both[:, DIM:]
    heads = []
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for t in range(count):
            seen = range(t + 1) if causal else range(count)
            logits = []
            for s in seen:
                a, b = q[t, part], k[s, part]
                if block.rotary:  # what counts is how far apart they are
                    a = turn(a, t - s)
                logits.append(a @ b / math.sqrt(width))
            weights = torch.stack(logits).softmax(0)
            rows.append(sum(w * v[s, part] for w, s in zip(weights, seen, strict=True)))
        heads.append(torch.stack(rows))
    return block.out(torch.cat(heads, 1))


def turn(x: Tensor, by: int) -> Tensor:
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = by * 10_000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return out


def block_reference(block: Any, x: Tensor, causal: bool) -> Tensor:
    def network(y: Tensor) -> Tensor:
        if block.kind == "ligr":
            width = block.outer.weight.shape[1]
            first, second = block.inner.weight[:width], block.inner.weight[width:]
            gate = y @ first.T
            return (gate / (1 + (-gate).exp()) * (y @ second.T)) @ block.outer.weight.T
        return block.outer(F.relu(block.inner(y)))

    first, second = block.first_norm, block.second_norm
    if block.kind == "sasrec":
        y = norm(x, first) + attention(block, norm(x, first), x, causal)
        return norm(y, second) + network(norm(y, second))
    if block.kind == "post-norm":
        y = norm(x + attention(block, x, x, causal), first)
        return norm(y + network(y), second)
    change = attention(block, norm(x, first), norm(x, first), causal)
    if block.kind == "pre-norm":
        y = x + change
        return y + network(norm(y, second))
    y = x + torch.sigmoid(block.first_gate(x)) * change
    return y + torch.sigmoid(block.second_gate(y)) * network(norm(y, second))


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))
def test_states_and_gradients_match_the_reference(options: dict[str, Any]) -> None:
    made = encoder(**options)
    x = torch.randn(3, 6, DIM, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    lengths = torch.tensor([4, 6, 1])
    weights = torch.randn(3, 6, DIM, generator=torch.Generator().manual_seed(4)).double()
    states = made(x, lengths)
    ours = torch.autograd.grad((states * weights).sum(), [x, *made.parameters()], allow_unused=True)
    expected = [reference(made, x[row, :count]) for row, count in enumerate(lengths.tolist())]
    for row, each in enumerate(expected):
        torch.testing.assert_close(states[row, : len(each)], each)
        assert not states[row, len(each) :].any()
    total = sum((each * weights[row, : len(each)]).sum() for row, each in enumerate(expected))
    theirs = torch.autograd.grad(total, [x, *made.parameters()], allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [*CASES, {"blocks": 0}], ids=lambda options: "-".join(map(str, options.values())))
def test_the_last_states_alone_are_those_of_all(options: dict[str, Any]) -> None:
    made = encoder(**options)
    x = torch.randn(4, 6, DIM, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    lengths = torch.tensor([4, 6, 1, 0])
    states, last = made(x, lengths), made.last(x, lengths)
    every = states[torch.arange(4), (lengths - 1).clamp(min=0)]
    torch.testing.assert_close(last, every)
    assert not last[3].any()
    grads = [torch.autograd.grad(each.square().sum(), x)[0] for each in (last, every)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_no_place_sees_what_comes_after_it(block: str, positions: str) -> None:
    made = encoder(block=block, positions=positions).float()
    x = torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([7, 5])
    before = made(x, lengths)
    for t in range(6):
        changed = x.clone()
        changed[:, t + 1] += 10.0
        after = made(changed, lengths)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[0, t + 1], before[0, t + 1])


@pytest.mark.parametrize("causal", [True, False])
def test_a_history_is_the_same_in_a_wider_batch(causal: bool) -> None:
    made = encoder(causal=causal, block="post-norm").float()
    x = torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(6))
    x[0, 3:] = torch.nan  # whatever stands behind it
    alone, among = made(x[:1, :3], torch.tensor([3])), made(x, torch.tensor([3, 7]))
    torch.testing.assert_close(among[:1, :3], alone, rtol=1e-6, atol=1e-6)
    assert not among[0, 3:].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.5])
def test_empty_histories_are_zeros_with_finite_gradients(causal: bool, attention_dropout: float) -> None:
    made = encoder(causal=causal, attention_dropout=attention_dropout).float()
    x = torch.randn(3, 4, DIM, generator=torch.Generator().manual_seed(7)).requires_grad_()
    states = made(x, torch.tensor([0, 2, 0]))
    states.square().sum().backward()
    assert not states[[0, 2]].any()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[[0, 2]].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_dropped_attention_is_right_on_average() -> None:
    """With our dropout, which takes another way than PyTorch's attention."""
    made = encoder(blocks=1, attention_dropout=0.3, block="pre-norm").float()
    block: Any = made.blocks[0]
    x = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(8))
    torch.manual_seed(0)
    drawn = torch.stack([block._attend(x, x, None, None) for _ in range(4000)])
    made.eval()
    expected = block._attend(x, x, None, None)
    assert float((drawn.std(0) / 4000**0.5).max()) < 0.02
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0, atol=0.08)


def test_entries_in_line_are_those_of_the_rows_and_their_gradient_goes_back() -> None:
    lengths = torch.tensor([2, 0, 4, 1])
    x = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    places = Places.of(lengths, 5, 7)
    expected = torch.cat([x[row, :count] for row, count in enumerate(lengths.tolist())])
    assert torch.equal(in_line(x, places), expected)
    assert places.owners.tolist() == [0, 0, 2, 2, 2, 2, 3]
    assert torch.autograd.gradcheck(lambda x: in_line(x, places), x)
    assert torch.autograd.gradgradcheck(lambda x: in_line(x, places).square(), x)


def test_windows_are_moved_to_the_left() -> None:
    items = torch.tensor([[-1, 4, 5], [7, 8, 9], [-1, -1, -1], [-1, -1, 3]])
    assert at_left(items, torch.tensor([2, 3, 0, 1])).tolist() == [[4, 5, 4], [7, 8, 9], [0, 0, 0], [3, 3, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "multiple of heads"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"block": "gpt"}, "block must be one of"),
        ({"positions": "rotary", "heads": 8}, "rotary positions turn pairs"),
        ({"hidden": 0}, "hidden must be >= 1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SequenceEncoder: .*{message}"):
        SequenceEncoder(DIM, 7, **options)


def test_inputs_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"SequenceEncoder: x must be \[B, l, 8\] with l <= 7"):
        encoder()(torch.zeros(2, 8, DIM, dtype=torch.float64), torch.tensor([1, 2]))


def test_positions_count_from_the_end_and_so_do_their_gradients() -> None:
    lengths = torch.tensor([2, 0, 4])
    table = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    rows = positions_from_end(table, lengths, 4)
    assert torch.equal(rows[0, :2], table[[1, 0]])
    assert torch.equal(rows[2], table[[3, 2, 1, 0]])
    there = (torch.arange(4) < lengths.unsqueeze(1)).unsqueeze(2)

    def shown(table: Tensor) -> Tensor:
        return torch.where(there, positions_from_end(table, lengths, 4), 0.0)

    assert torch.autograd.gradcheck(shown, table)
    assert torch.autograd.gradgradcheck(lambda table: shown(table).square(), table)


def test_chosen_entries_are_those_of_the_rows() -> None:
    lengths = torch.tensor([2, 1, 4])
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    whole = Places.of(lengths, 4, 7)
    flags = torch.tensor([False, True, True, False, False, True, True])
    part = whole.chosen(flags)
    assert torch.equal(in_line(x, part), in_line(x, whole)[flags])
    assert part.owners.tolist() == [0, 1, 2, 2]
    last = Places.last(lengths, 4)
    assert torch.equal(in_line(x, last), torch.stack([x[0, 1], x[1, 0], x[2, 3]]))
    for places in (part, last):
        assert torch.autograd.gradcheck(lambda x, at=places: in_line(x, at), x)
