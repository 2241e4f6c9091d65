"""What surrounds a call to a model stays outside: modes of torch, default types, another type of weights, a fork.

`trained` and `served` wrap the functions that take a model and do whole pieces of work with it: fit, evaluate,
recommend, predict. Inside them tensors are float32, gradients are what the function says, and nothing is autocast or an
inference tensor, so that no model needs to think of it. `forward` and the other tensor methods are plain PyTorch and
follow their surroundings.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

from deeprec.kernels.faults import raise_faults

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Model = TypeVar("_Model", bound=nn.Module)


def trained(function: _Function) -> _Function:
    """A function that builds or trains its model: in float32 and with gradients, whatever surrounds the call.

    Like `served` it has waited for the GPU when it ends, and raises what kernels have reported there.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _plain_torch():
            result = function(*args, **options)
        raise_faults()
        return result

    return cast(_Function, call)


def served(function: _Function) -> _Function:
    """A function that asks its first argument, a model: in float32, without gradients, and also in a forked process.

    A model with weights of another type (`.bfloat16()`, `.half()`, `.double()`) is asked through a copy in float32,
    which is kept until the weights change.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _plain_torch(), torch.no_grad(), _fork_safe():
            if args:
                args = (in_float32(args[0]), *args[1:])
            elif "model" in options:
                options["model"] = in_float32(options["model"])
            result = function(*args, **options)
        raise_faults()
        return result

    return cast(_Function, call)


def computed(function: _Function) -> _Function:
    """A function that is no model's: as `served`, with its arguments as they are."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _plain_torch(), torch.no_grad(), _fork_safe():
            result = function(*args, **options)
        raise_faults()
        return result

    return cast(_Function, call)


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_default_dtype)
        yield


class _Float32ByDefault:
    """While any thread is inside, torch's default type, which is one for all threads, is float32."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._outside = torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._outside = torch.get_default_dtype()
                if self._outside != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._outside != torch.float32:
                torch.set_default_dtype(self._outside)


_default_dtype = _Float32ByDefault()
_survivor: int | None = None  # the thread that a forked process begins with


def _after_fork() -> None:
    """A lock that another thread held at the fork would be held for ever."""
    global _default_dtype, _survivor
    _default_dtype, _survivor = _Float32ByDefault(), threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _fork_safe() -> Iterator[None]:
    """One thread in the thread that a forked process begins with.

    It has its parent's OpenMP team without its threads: a second one would be waited for, for ever. Threads that were
    started after the fork make teams of their own.
    """
    threads = torch.get_num_threads()
    if threads == 1 or threading.get_ident() != _survivor:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fork_safe(function: _Function) -> _Function:
    """A tensor method that is also asked in a forked process, by itself: `served` sees to those that call it."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _fork_safe():
            return function(*args, **options)

    return cast(_Function, call)


_Versions = tuple[tuple[int, int], ...]
_copies: weakref.WeakKeyDictionary[nn.Module, tuple[_Versions, nn.Module]] = weakref.WeakKeyDictionary()


def in_float32(model: _Model) -> _Model:
    """The model itself, or, where it has numbers of another type, a copy of it in float32.

    The copy has its own weights and shares the rest (ids, what it was fitted on) with the model.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.dtype == torch.float32 or not tensor.is_floating_point() for tensor in tensors):
        return model
    versions = tuple((t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors)
    kept = _copies.get(model)
    if kept is None or kept[0] != versions:
        registered = ("_parameters", "_buffers", "_modules")
        shared = {id(value): value for name, value in vars(model).items() if name not in registered}
        made: nn.Module = copy.deepcopy(model, shared).float()
        kept = _copies[model] = versions, made
    return kept[1]  # type: ignore[return-value]
