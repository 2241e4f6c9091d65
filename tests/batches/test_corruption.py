"""Claims about the noise that an autoencoder's inputs get: its shares, its weights, and that no row is emptied."""

from __future__ import annotations

import pytest
import torch

from deeprec.batches.corruption import Corruption


def test_corruption_has_its_shares_and_weights() -> None:
    corrupt = Corruption(0.3, 0.2, noise_std=0.5, salt_pepper=0.1, corrupted_weight=2.0, other_weight=0.5)
    rows, width = 200, 100
    targets = torch.full((rows * width,), 0.25)
    offsets = torch.arange(0, rows * width + 1, width)
    inputs, weights = corrupt(targets, offsets, torch.Generator().manual_seed(1))
    assert weights is not None
    is_hidden, is_extreme, is_same = inputs == 0, inputs.abs() == 1, inputs == 0.25
    is_noisy = ~(is_hidden | is_extreme | is_same)
    for kind, share in ((is_hidden, 0.3), (is_noisy, 0.2), (is_extreme, 0.1), (is_same, 0.4)):
        assert float(kind.float().mean()) == pytest.approx(share, abs=0.015)
    assert float((inputs[is_noisy] - 0.25).std()) == pytest.approx(0.5, abs=0.03)
    assert 0.4 < float((inputs[is_extreme] > 0).float().mean()) < 0.6
    assert (weights[is_same] == 0.5).all()
    assert (weights[~is_same] == 2.0).all()


def test_a_row_whose_entries_were_all_drawn_keeps_them() -> None:
    corrupt = Corruption(hide=0.9, other_weight=0.7203)
    lengths = torch.arange(1, 40).repeat(20)
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    inputs, weights = corrupt(torch.ones(int(offsets[-1])), offsets, torch.Generator().manual_seed(0))
    assert weights is not None
    shown = [part.sum() for part in inputs.split(lengths.tolist())]
    assert all(count > 0 for count in shown)
    single = lengths[torch.repeat_interleave(torch.arange(len(lengths)), lengths)] == 1
    assert (inputs[single] == 1).all()
    assert (weights[single] == torch.tensor(0.7203)).all()
    assert float((inputs == 0).float().mean()) > 0.75
