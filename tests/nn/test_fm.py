"""Claims about the factorisation-machine layers."""

from __future__ import annotations

import itertools

import torch

from deeprec.nn import BiInteraction, FMInteraction


def test_interaction_layers_sum_the_products_of_all_pairs_of_fields() -> None:
    x = torch.randn(9, 5, 7)
    pairs = torch.stack([x[:, f] * x[:, g] for f, g in itertools.combinations(range(5), 2)]).sum(0)
    torch.testing.assert_close(BiInteraction()(x), pairs)
    torch.testing.assert_close(FMInteraction()(x), pairs.sum(1))


def test_interaction_layers_have_no_state() -> None:
    assert not FMInteraction().state_dict()
    assert not BiInteraction().state_dict()
