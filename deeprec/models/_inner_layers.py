"""The layers between the first and the last hidden one of a deep autoencoder, and their pre-training."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from deeprec.device import to_device

_LAYER_BATCH, _LAYER_LR = 256, 0.003


class InnerLayers(nn.Module):
    """Dense layers hidden -> inner -> ... -> hidden, the same activation after each; side information into each."""

    def __init__(
        self,
        hidden: int,
        inner: tuple[int, ...],
        num_features: int,
        activation: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        widths = (hidden, *inner, *inner[-2::-1], hidden)
        self.activation = activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for below, above in pairwise(widths):
            bound = (below + num_features) ** -0.5
            weight = torch.empty(below + num_features, above).uniform_(-bound, bound, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(above)))

    def forward(self, codes: Tensor, features: Tensor) -> Tensor:
        """[b, hidden] from codes [b, hidden] and side information [b, P]."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            codes = self.activation(torch.addmm(bias, torch.cat([codes, features], 1), weight))
        return codes

    def fit_greedily(self, codes: Tensor, features: Tensor, epochs: int, seed: int) -> None:
        """Each layer with its mirror image as an autoencoder of the codes below it, by Adam on the squared error."""
        generator = torch.Generator().manual_seed(seed)
        for level in range(len(self.weights) // 2):
            places = (level, len(self.weights) - 1 - level)
            parameters = [stack[place] for place in places for stack in (self.weights, self.biases)]
            optimizer = torch.optim.Adam(parameters, lr=_LAYER_LR)

            def through(x: Tensor, z: Tensor, place: int) -> Tensor:
                x = torch.cat([x, z], 1)
                return self.activation(torch.addmm(self.biases[place], x, self.weights[place]))

            for _ in range(epochs):
                order = to_device(torch.randperm(len(codes), generator=generator), codes.device)
                for rows in order.split(_LAYER_BATCH):
                    x, z = codes[rows], features[rows]
                    loss = (through(through(x, z, places[0]), z, places[1]) - x).square().sum(1).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                codes = through(codes, features, places[0])
