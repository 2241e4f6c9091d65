"""Where the operators meet higher derivatives, forward mode, torch.func and ONNX.

A kernel computes a value and its first gradient. Whatever asks for more is served by a *composite*: the operator's
formula in PyTorch's own operators, which every transform of PyTorch goes through.

- A public function that is called inside a transform (`is_transformed`) returns its composite.
- A Function whose backward pass is recorded (`create_graph=True`) or batched (`is_grads_batched=True`) takes the
  gradient of the composite: `differentiable` and `gradient_of`.
- An optimizer's step in the backward pass has no derivative: it is a `Refusal`, raised where one would be taken.

torch's `once_differentiable` is no refusal: it cuts the graph at the gradients it returns, so `torch.autograd.grad`,
which visits only what leads to its inputs, never meets the error and takes the missing part for zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeprec.kernels.sums import take

_is_in_functorch: Callable[[], bool] = torch._C._are_functorch_transforms_active
# What is_grads_batched makes: torch's older vmap, apart from torch.func.
_is_batched: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", torch._C._functorch.is_batchedtensor
)


def is_transformed() -> bool:
    """Whether torch.func (or vmap), forward-mode differentiation or ONNX export is at work around the caller."""
    if _is_in_functorch() or forward_ad._current_level >= 0:
        return True
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def _is_inside_transform(grads: Sequence[Tensor]) -> bool:
    return is_transformed() or any(map(_is_batched, grads))


class Refusal(NamedTuple):
    """Says that there is no second derivative.

    Attributes:
        message: operator, reason and remedy.
        inputs: what the gradients depend on beside the incoming ones.
    """

    message: str
    inputs: tuple[Tensor | None, ...] = ()


class _Refused(torch.autograd.Function):
    """The first `count` of the tensors; whoever differentiates them by any of the tensors gets the error."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.message)


def step_refusal(function: str, *inputs: Tensor | None) -> Refusal:
    """The refusal of a step that is taken in the backward pass."""
    return Refusal(
        f"{function}: a step taken in the backward pass (update, optimizer_in_backward) has no second derivative, and "
        "torch.func and forward mode do not go through it; leave it out and call the optimizer's step() instead",
        inputs,
    )


def refuse_update(function: str) -> None:
    """Raise RuntimeError for a step in the backward pass inside a transform; ONNX export takes the values alone."""
    if not torch.compiler.is_compiling():
        raise RuntimeError(step_refusal(function).message)


def refuse_derivative(function: str) -> None:
    """Raise RuntimeError inside a transform that differentiates; vmap alone does not."""
    if not is_transformed() or torch.compiler.is_compiling():
        return
    levels = torch._C._functorch.get_interpreter_stack() or []
    kinds = torch._C._functorch.TransformType
    if forward_ad._current_level >= 0 or any(level.key() in (kinds.Grad, kinds.Jvp) for level in levels):
        raise RuntimeError(f"{function}: has no derivative; call it outside torch.func and forward mode")


Backward = Callable[..., Any]


def differentiable(again: Callable[..., tuple[Tensor | None, ...] | Refusal]) -> Callable[[Backward], Backward]:
    """Decorate the fast `backward` of a Function, which nobody can differentiate, with the one for those who want to.

    Args:
        again: takes the arguments of backward and returns its result, differentiable, or a Refusal.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *grads: Tensor) -> Any:
            if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or _is_inside_transform(grads)):
                return backward(ctx, *grads)
            grads_again = again(ctx, *grads)
            return _refused(grads_again, ctx, backward, grads) if isinstance(grads_again, Refusal) else grads_again

        wrapper.again = again  # type: ignore[attr-defined]  # what the test over all Functions asks for
        return wrapper

    return decorate


def _refused(refusal: Refusal, ctx: Any, backward: Backward, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if _is_inside_transform(grads):
        raise RuntimeError(refusal.message)
    with torch.no_grad():
        first: tuple[Tensor | None, ...] = backward(ctx, *grads)
    present = [grad for grad in first if grad is not None]
    sources = [source for source in (*grads, *refusal.inputs) if source is not None]
    linked = iter(_Refused.apply(refusal.message, len(present), *present, *sources))  # type: ignore[no-untyped-call]
    return tuple(None if grad is None else next(linked) for grad in first)


def remember(ctx: Any, *inputs: Tensor | None) -> None:
    """Keep what only a differentiable gradient reads; unlike save_for_backward it may change before any other."""
    ctx.remembered, ctx.versions = inputs, _versions(inputs)


def recall(ctx: Any, function: str) -> list[Any]:
    """What `remember` kept.

    Raises:
        RuntimeError: a tensor has been changed in place since.
    """
    if _versions(ctx.remembered) != ctx.versions:
        raise RuntimeError(
            f"{function}: its inputs must stay as they were until a backward pass with create_graph=True, got one that "
            "was modified by an inplace operation; take the step after the backward pass"
        )
    return list(ctx.remembered)


def _versions(tensors: Sequence[Tensor | None]) -> list[int]:
    if torch.compiler.is_compiling():
        return []
    try:
        return [0 if tensor is None else tensor._version for tensor in tensors]
    except RuntimeError:  # tensors of inference_mode have none
        return []


def gradient_of(
    ctx: Any, grads: Sequence[Tensor | None], composite: Callable[..., Sequence[Tensor]], inputs: Sequence[Any]
) -> list[Any]:
    """The gradients of a Function, differentiable any number of times: those of its composite.

    Args:
        ctx: the Function's.
        grads: of the outputs.
        composite: makes the differentiable outputs from the inputs; may make fewer than there are grads.
        inputs: those of the Function, in order.
    Returns:
        one an input, None where it needs none.
    """
    needed = [place for place, is_needed in enumerate(ctx.needs_input_grad) if is_needed]
    is_recorded = torch.is_grad_enabled()
    own = list(inputs)
    with torch.enable_grad():
        for place in needed:
            own[place] = inputs[place].view_as(inputs[place])  # a tensor that is given twice has two gradients
        pairs = [
            (out, grad)
            for out, grad in zip(composite(*own), grads, strict=False)
            if grad is not None and out.requires_grad
        ]
    result: list[Any] = [None] * len(own)
    if not pairs:  # a table that no feature looks up in
        return result
    outputs, given = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(
        outputs, [own[place] for place in needed], given, create_graph=is_recorded, allow_unused=True
    )
    for place, grad in zip(needed, gradients, strict=True):
        result[place] = grad
    return result


def sparse_rows(grad: Tensor | None, rows: Tensor) -> Tensor | None:
    """The rows of a dense gradient as a sparse one; itself in a batch and in torch.func, which have none.

    Args:
        grad: [R, ...], or None.
        rows: [U], distinct and ascending.
    """
    if grad is None or _is_batched(grad) or _is_in_functorch():
        return grad
    at = rows.to(torch.int64)
    return torch.sparse_coo_tensor(
        at.unsqueeze(0), take(grad, 0, at), grad.shape, is_coalesced=True, check_invariants=False
    )
