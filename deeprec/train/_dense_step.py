"""Steps on dense parameters, and on rows that are taken out of a table and stepped as a small dense parameter.

torch's fused updates read flat memory. They take a weight, a gradient and states of one memory order for one order, and
write over the neighbours of a view; of 16-bit weights some move nothing (SGD on the CPU), and the others round the
states to 16 bits. So they get contiguous float32 and float64 only: all else is copied so, stepped, and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deeprec.kernels.sparse_update.reference import round_stochastically

State: TypeAlias = dict[str, Any]
# The rule of an optimizer on contiguous weights, gradients and states of one dtype and device; their "step" is that of
# this step. The gradients are those to go down.
FlatRule: TypeAlias = Callable[[list[Tensor], list[Tensor], list[State], dict[str, Any]], None]


def state_dtype(param: Tensor) -> torch.dtype:
    """float32, float64 for a float64 parameter."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def new_state(param: Tensor, value: float = 0.0) -> Tensor:
    """A contiguous state of the parameter's shape."""
    return torch.full(param.shape, value, dtype=state_dtype(param), device=param.device)


def check_memory(owner: str, param: Tensor) -> None:
    """Raise ValueError where two elements may share memory, as in `x.expand(3, 4)`: no step could be right."""
    reach = 0
    for stride, size in sorted(zip(param.stride(), param.shape, strict=True)):
        if size > 1:
            if stride <= reach and param.numel():
                raise ValueError(
                    f"{owner}: a parameter's elements must each have memory of their own, got shape "
                    f"{tuple(param.shape)} with strides {param.stride()}; use .clone() of the tensor as parameter"
                )
            reach += (size - 1) * stride


_WIDE = (torch.float32, torch.float64)
_is_contiguous, _numel = torch.Tensor.is_contiguous, torch.Tensor.numel
_dtype, _device = attrgetter("dtype"), attrgetter("device")


def _are_flat(params: list[Tensor], grads: list[Tensor], states: list[State], names: Sequence[str]) -> bool:
    """Whether all of them are contiguous, of one dtype that states have, and the parameters on one device."""
    sizes = list(map(_numel, params))  # maps take a third of a loop's time
    tensors = [*params, *grads]
    if list(map(_numel, grads)) != sizes:
        return False
    for name in names:
        column = [state[name] for state in states if name in state]
        if column and list(map(_numel, column)) != sizes:
            return False
        tensors += column
    if params[0].dtype not in _WIDE or not all(map(_is_contiguous, tensors)):
        return False
    return len(set(map(_dtype, tensors))) == 1 and len(set(map(_device, params))) == 1


def _check_shapes(owner: str, param: Tensor, grad: Tensor, state: State, names: Sequence[str]) -> None:
    tensors = {"gradient": grad, **{name: state[name] for name in names if name in state}}
    for name, value in tensors.items():
        if value.shape != param.shape:
            raise ValueError(
                f"{owner}: {name} must have the shape of its parameter, {tuple(param.shape)}, got "
                f"{tuple(value.shape)}; make a new optimizer for a parameter that has been resized"
            )


def _flat(tensor: Tensor, param: Tensor) -> Tensor:
    return tensor.to(param.device, state_dtype(param)).contiguous()


def make_flat(state: State, param: Tensor) -> None:
    """Bring the states of a parameter to its device, into the dtype of states and into contiguous memory."""
    for name, value in state.items():
        if isinstance(value, Tensor) and name != "step":
            value = value.to(param.device)
            state[name] = (value.to(state_dtype(param)) if value.is_floating_point() else value).contiguous()


def step_dense(
    owner: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    group: dict[str, Any],
    rule: FlatRule,
    names: Sequence[str],
) -> None:
    """One step on parameters with dense gradients, of any memory order and floating dtype.

    Args:
        owner: the optimizer, for errors.
        params, grads: of one shape each.
        states: the state of each: tensors of its shape, and "step", which is counted up where there is one.
        group: the options.
        rule: what to do.
        names: of the tensors that a state may have for it.
    Raises:
        ValueError: elements of a parameter share memory, or a state has another shape than its parameter; nothing has
            been changed then.
    """
    kinds = [(params, grads, states)]
    others: list[tuple[Tensor, Tensor, State]] = []
    if not _are_flat(params, grads, states, names):
        by_kind: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor], list[State]]] = {}
        for param, grad, state in zip(params, grads, states, strict=True):
            _check_shapes(owner, param, grad, state, names)
            if _are_flat([param], [grad], [state], names):
                kind = by_kind.setdefault((param.device, param.dtype), ([], [], []))
                kind[0].append(param)
                kind[1].append(grad)
                kind[2].append(state)
            else:
                check_memory(owner, param)
                others.append((param, grad, state))
        kinds = list(by_kind.values())
    for state in states:
        if "step" in state:
            state["step"] += 1
    is_up = group["maximize"]
    for kind_params, kind_grads, kind_states in kinds:
        rule(kind_params, [-grad for grad in kind_grads] if is_up else kind_grads, kind_states, group)
    for param, grad, state in others:  # one at a time, so that there is one copy at a time
        make_flat(state, param)
        weight = torch.empty(param.shape, dtype=state_dtype(param), device=param.device).copy_(param)
        rule([weight], [_flat(-grad if is_up else grad, param)], [state], group)
        param.copy_(weight)


def step_rows_apart(
    param: Tensor, state: State, rows: Tensor, grads: Tensor, group: dict[str, Any], rule: FlatRule, seed: int
) -> None:
    """One step of a rule for dense parameters on some rows of a table; the others and their states stand still.

    Args:
        param: [R, D].
        state: tensors [R, D], and "step", which is counted up. States that the rule adds are zero in other rows.
        rows: distinct rows, [U].
        grads: [U, D], those to go down.
        group: the options.
        rule: what to do.
        seed: of the stochastic rounding of bfloat16; -1: round to nearest.
    """
    index = rows.long()
    weight = _flat(param.detach()[index], param)
    apart = {
        name: _flat(value[index], param) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in state.items()
    }
    apart["step"] = state["step"] = state["step"] + 1
    rule([weight], [_flat(grads, param)], [apart], group)
    for name, value in apart.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            if name not in state:
                state[name] = new_state(param)
            state[name].index_copy_(0, index, value)
    is_stochastic = seed >= 0 and param.dtype == torch.bfloat16
    rounded = round_stochastically(weight, index, seed) if is_stochastic else weight.to(param.dtype)
    param.detach().index_copy_(0, index, rounded)


def step_tensors(states: Sequence[State], device: torch.device) -> list[Tensor]:
    """The step of each state as torch's fused updates want it; one tensor for all that agree."""
    made: dict[int, Tensor] = {}
    for state in states:
        step = state["step"]
        if step not in made:
            made[step] = torch.full((), step, dtype=torch.float32, device=device)
    return [made[state["step"]] for state in states]
