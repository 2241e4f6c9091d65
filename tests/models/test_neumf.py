"""What is special about NeuMF: the layer sizes and the pre-training."""

from __future__ import annotations

import pytest
import torch

from deeprec.models import GMF, MLP, NeuMF, Schema

ML1M = Schema(6040, 3706)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_the_papers_for_8_factors():
    assert count(GMF(ML1M, factors=8)) == 77_977
    assert count(MLP(ML1M, factors=8)) == 314_625
    assert count(NeuMF(ML1M, factors=8)) == 392_601


def test_paper_layout_halves_the_embeddings():
    assert NeuMF(factors=8).config.widths() == (64, 32, 16, 8)
    assert NeuMF(factors=8, layout="paper").config.widths() == (32, 32, 16, 8)
    assert NeuMF(factors=64).config.widths() == (512, 256, 128, 64)


def test_warm_start_joins_the_halves_by_alpha():
    schema = Schema(11, 13)
    gmf, mlp = GMF(schema, factors=4), MLP(schema, factors=4)
    model = NeuMF(schema, factors=4, alpha=0.3)
    model.start_from(gmf, mlp)
    users, items = torch.randint(11, (20,)), torch.randint(13, (20,))
    expected = 0.3 * gmf(users, items) + 0.7 * mlp(users, items)
    torch.testing.assert_close(model(users, items), expected, rtol=1e-5, atol=1e-6)


def test_mlp_without_hidden_layers_feeds_the_embeddings_to_the_output():
    model = MLP(Schema(5, 6), factors=4, num_layers=0)
    assert model.config.widths() == (8,)
    assert model(torch.tensor([1]), torch.tensor([2])).shape == (1,)


@pytest.mark.parametrize("layers", [(63, 32), (64, 0)])
def test_bad_layers_are_refused(layers):
    with pytest.raises(ValueError, match="layers"):
        NeuMF(layers=layers)


def test_alpha_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        NeuMF(alpha=1.5)
