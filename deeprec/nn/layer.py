"""What every layer's `forward` has around it: a leaf for torch.fx, and errors that name the layer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy

_Layer = TypeVar("_Layer", bound=nn.Module)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_KINDS = (IndexError, TypeError, ValueError, RuntimeError, NotImplementedError)
_FUNCTION = re.compile(r"[a-z_][a-z0-9_]*: ")
_LAYER = re.compile(r"[A-Z]\w*: ")


def layer_forward(
    forward: Callable[Concatenate[_Layer, _Arguments], _Result],
) -> Callable[Concatenate[_Layer, _Arguments], _Result]:
    """Make the `forward` of a layer a leaf of `torch.fx.symbolic_trace`, and let its errors name the layer.

    fx looks into every module that is not of torch.nn, and ours read what a traced value does not have. Where an
    argument is such a value the call is recorded as one of the module, as it would be for torch's own layers.

    An error that a kernel raises begins with the kernel's name, and torch's own with none: the user called neither.
    Graphs of torch.compile and torch.export hold `forward` as it is.
    """
    owner = forward.__qualname__.partition(".")[0]

    @functools.wraps(forward)
    def call(self: _Layer, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        is_plain = not kwargs
        for value in args:
            is_plain = is_plain and (value is None or type(value) is Tensor)
        proxy = None if is_plain else _proxy_in((*args, *kwargs.values()))
        if proxy is not None:
            if type(self).forward is not call or "forward" in vars(self):
                raise TypeError(
                    f"{owner}: torch.fx cannot look into {type(self).__name__}.forward, which calls it; trace with a "
                    "torch.fx.Tracer whose is_leaf_module says that it is one"
                )
            return cast("_Result", _call_module(self, proxy.tracer, args, kwargs))
        try:
            return forward(self, *args, **kwargs)
        except _KINDS as error:
            _raise_as(owner, error)

    return cast("Callable[Concatenate[_Layer, _Arguments], _Result]", call)


def _proxy_in(values: Iterable[Any]) -> Proxy | None:
    for value in values:
        if value is None or isinstance(value, Tensor):
            continue
        if isinstance(value, Proxy):
            return value
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
        proxy = _proxy_in(inner)
        if proxy is not None:
            return proxy
    return None


def _call_module(layer: nn.Module, tracer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    path = tracer.path_of_module(layer)
    if not path:  # the layer is what is traced: its graph needs a module to hold it
        holder = nn.Module()
        holder.layer = layer
        tracer.root, path = holder, "layer"
    return tracer.create_proxy("call_module", path, args, kwargs)


def _raise_as(owner: str, error: Exception) -> NoReturn:
    text = str(error)
    if type(error) in _KINDS and not _LAYER.match(text):
        error.args = (f"{owner}: {_FUNCTION.sub('', text, count=1) if _FUNCTION.match(text) else text}",)
    raise error


def check_device(owner: str, table: Tensor, name: str, given: Tensor) -> None:
    """Raise ValueError where `given` is not where the table is: of a meta tensor the kernels would make another."""
    if not (given.is_cpu and table.is_cpu) and given.device != table.device:
        raise ValueError(
            f"{owner}: {name} must be on {table.device} like the table, got {given.device}; move them with "
            f".to({str(table.device)!r})"
        )


def check_floating(owner: str, x: Tensor) -> None:
    """Raise TypeError where x is not of a floating-point dtype: layers that take copies of their parameters in the
    dtype of x would make integers of them."""
    if not x.is_floating_point():
        raise TypeError(f"{owner}: x must be of a floating-point dtype, got {x.dtype}; convert with x.float()")
