"""ncf_loss, which PyTorch's own operators serve on a GPU: loss and every gradient of GMF, MLP and NeuMF."""

from __future__ import annotations

from typing import Any

import torch
from gpu_arguments import ncf_arguments
from gpu_parity import INDICES, LAYOUTS, check, grid, on_gpu

# Groups, negatives, D of the GMF part, of the MLP's two sides, widths of its layers.
SHAPES = [(9, 2, 3, (4, 4), [6, 5]), (5, 1, 7, (0, 0), []), (1, 4, 0, (3, 5), [8]), (0, 2, 3, (4, 4), [6])]
SHAPES += on_gpu((1024, 4, 64, (64, 64), [256, 128, 64]))


@grid(shape=SHAPES, index=INDICES, layout=LAYOUTS)
def test_loss_and_gradients(shape: Any, index: torch.dtype, layout: str) -> None:
    arguments = ncf_arguments(shape, index, layout)
    for bfloat16 in (False, True):
        check("ncf_loss", *arguments, 0.5, bfloat16, terms=64.0 + shape[0])
