"""`compile=True`: the dense part of a model runs through torch.compile while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """While inside, `model.dense_parts()` run through torch.compile; weights, names and what is saved stay as they are.

    Raises:
        ValueError: the model has no dense part.
    """
    parts: list[torch.nn.Module] = list(model.dense_parts())
    if not parts:
        raise ValueError(
            f"fit: compile must be False, as {model.name} has no dense part with these options; leave it out"
        )
    for part in parts:
        part.compile()
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # what compile() sets; torch has no way back
