"""Where a model is trained and asked: which device a word names, which one a module lives on, and the way there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

Device: TypeAlias = str | torch.device
_Batch = TypeVar("_Batch")

_REMEDY = "pass 'auto', 'cpu', 'cuda' or 'cuda:1'"


def resolve_device(device: Device, function: str) -> torch.device:
    """The device that `device` names: "auto" (a GPU where torch sees one, else the CPU), "cpu", "cuda", "cuda:1".

    Args:
        function: begins the message of an error.
    Returns:
        "cpu", or "cuda" with its number.
    Raises:
        TypeError: neither a text nor a torch.device.
        ValueError: no such device, or a GPU that torch does not see.
    """
    if not isinstance(device, str | torch.device):
        raise TypeError(f"{function}: device must be a text or a torch.device, got {device!r}; {_REMEDY}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in ("cpu", "cuda"):
        raise ValueError(f"{function}: device must be the CPU or a CUDA GPU, got {str(device)!r}; {_REMEDY}")
    if parsed.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ValueError(
            f"{function}: device {str(device)!r} needs a GPU, torch {torch.__version__} sees none; pass 'cpu' or "
            "'auto', or install a torch with CUDA and the driver of the GPU"
        )
    number = torch.cuda.current_device() if parsed.index is None else parsed.index
    if number >= count:
        raise ValueError(
            f"{function}: device must be one of the {count} GPUs that torch sees, got {str(device)!r}; pass 'cuda:0' "
            f"to 'cuda:{count - 1}'"
        )
    return torch.device("cuda", number)


def device_of(model: Any) -> torch.device:
    """Where a module's parameters live, or else its buffers; the CPU for anything that has neither."""
    if not isinstance(model, nn.Module):
        return torch.device("cpu")
    first = next(model.parameters(), None)
    buffer = next(model.buffers(), None) if first is None else first
    return torch.device("cpu") if buffer is None else buffer.device


@contextmanager
def placed(model: Any, device: Device, function: str) -> Iterator[None]:
    """While inside, the model lives on `device`; "auto": where it is.

    Raises:
        ValueError, TypeError: as `resolve_device`; and ValueError for what cannot be moved.
    """
    if device == "auto":
        yield
        return
    target, before = resolve_device(device, function), device_of(model)
    if target == before:
        yield
        return
    if not isinstance(model, nn.Module):
        raise ValueError(f"{function}: device goes with an nn.Module, got {type(model).__name__}; leave it out")
    model.to(target)
    try:
        yield
    finally:
        model.to(before)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU over pinned memory, and without waiting for it."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def ahead(batches: Iterable[_Batch], move: Callable[[_Batch], _Batch], device: torch.device) -> Iterator[_Batch]:
    """The batches on a device: each is on its way while the step of the one before it is computed there.

    Args:
        move: brings a batch to the device, without waiting.
        device: the CPU leaves the batches as they are.
    """
    if device.type == "cpu":
        yield from batches
        return
    waiting: list[_Batch] = []
    for batch in batches:
        waiting.append(move(batch))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
