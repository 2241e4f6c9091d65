"""Optimizers that update only the rows a sparse gradient touches, and dense parameters as `torch.optim` does.

A parameter whose gradient is `torch.sparse_coo` (deeprec.nn.Embedding, torch.nn.Embedding(sparse=True), the fused
losses) goes through one fused kernel per step (deeprec.kernels.sparse_update); all others go through torch's own
fused updates. Row updates work on [R, D] parameters. States are float32 (float64 for float64 weights), and so is the
arithmetic; 16-bit weights are rounded once a step. Parameters may be views of any memory order.
`weight_decay` is L2; in all but Adam's dense mode it reaches a row when the row is touched. FTRL has l1 and l2.

Options of torch.optim mean what they mean there. Of a parameter with sparse gradients, what the rule does to an
element is done to the touched rows, and the others, their states too, stand still (but for Adam's dense mode). Rows
stepped with nesterov, dampening, amsgrad or decoupled_weight_decay have no kernel: PyTorch steps them, more slowly.

Gradients accumulated over several backward passes, repeated rows, parameter groups, learning rate schedulers,
closures and state_dict / load_state_dict work as in torch.optim; resuming from a state dict is bit for bit. States of
torch.optim's SGD, Adagrad, Adam, AdamW and SparseAdam load into ours and ours into theirs, and training goes on by the
rule and the options that were saved. (RowWiseAdagrad's sums by row are of no use to torch.)

All take:
    maximize: go up instead of down.
    foreach, fused: torch's, about its speed alone: taken and not used. differentiable: False only.
    capturable: tables that are updated in the backward pass keep learning rate and count of steps on their device, and
        a CUDA graph of that pass goes on counting; the rate is set by `group["lr"].fill_(rate)`, as torch's schedulers
        do. `step()` itself cannot be captured, and says so.
and for parameters with sparse gradients:
    max_grad_norm: the gradients of a group's tables together are scaled down to this norm (over their touched rows);
        None: as they are. `clip_grad_norm_` clips sparse and dense gradients together.
    stochastic_rounding: round bfloat16 weights up or down with the probability that makes it right on average, so that
        updates below half a unit in the last place are not lost.
    seed: of that rounding; the random bits are a function of seed, step, table, row and column alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeprec.train._adam import Adam, AdamW
from deeprec.train._dense_step import State, make_flat, new_state, state_dtype, step_tensors
from deeprec.train._options import Group, Shared, is_at_least, require
from deeprec.train._row_grad import RowGrad
from deeprec.train._row_optimizer import Params, RowOptimizer, RowRule, Tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FTRL", "SGD", "Adagrad", "Adam", "AdamW", "RowWiseAdagrad", "clip_grad_norm_"]

_ops = torch.ops.deeprec


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of all parameters together, sparse ones too, down to a norm.

    `torch.nn.utils.clip_grad_norm_` refuses sparse gradients. Here they are coalesced first: their norm is that of the
    dense gradient they stand for.

    Args:
        parameters: parameters with sparse, dense or no gradients.
        max_norm: > 0.
    Returns:
        The norm before, a scalar in float64.
    Raises:
        ValueError: max_norm is not a finite number > 0, or a sparse gradient has more than one sparse dimension.
    """
    require(is_at_least(max_norm, 0) and max_norm > 0, "clip_grad_norm_", "max_norm must be finite and > 0", max_norm)
    dense: list[Tensor] = []
    squares: list[Tensor] = []
    by_row: list[RowGrad] = []
    for param in [parameters] if isinstance(parameters, Tensor) else parameters:
        grad = param.grad
        if grad is None:
            continue
        if not grad.is_sparse:
            dense.append(grad)
            squares.append(grad.to(state_dtype(grad)).square().sum(dtype=torch.float64))
            continue
        require(
            grad.sparse_dim() == 1, "clip_grad_norm_", "sparse gradients must have one sparse dimension", grad.shape
        )
        by_row.append(RowGrad(len(by_row), param, grad._indices()[0], grad._values()).coalesced())
        squares.append(by_row[-1].square_sum())
    norm = torch.stack([square.cpu() for square in squares]).sum().sqrt() if squares else torch.zeros(()).double()
    if norm > max_norm:
        factor = float(max_norm / norm)
        for grad in dense:
            grad.mul_(factor)
        for part in by_row:
            rows, values = part.rows.long().unsqueeze(0), part.scaled(factor).values
            part.param.grad = torch.sparse_coo_tensor(
                rows, values, part.param.shape, is_coalesced=True, check_invariants=False
            )
    return norm


class SGD(RowOptimizer):
    """Stochastic gradient descent with momentum: buffer <- momentum buffer + (1 - dampening) g; w <- w - lr buffer.

    A parameter's first gradient is not dampened, as in torch. Of a parameter with sparse gradients, the buffers of
    untouched rows stand still.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: learning rate, >= 0.
        momentum: >= 0.
        weight_decay: L2, >= 0.
        dampening: of the gradient in the buffer.
        nesterov: w <- w - lr (g + momentum buffer); with momentum, without dampening.
        shared: options that all optimizers have.
    Raises:
        ValueError: an option is unknown or out of range.
    """

    RULE = 0
    STATES = ()
    FIRST = "momentum_buffer"
    DENSE = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        rule = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, shared, lr=lr, weight_decay=weight_decay, **rule)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        fits = not options["nesterov"] or (options["momentum"] > 0 and options["dampening"] == 0)
        got = f"momentum {options['momentum']}, dampening {options['dampening']}"
        require(fits, "SGD", "nesterov must have momentum > 0 and dampening 0", got)

    def _has_no_kernel(self, group: Group) -> bool:
        return bool(group["momentum"]) and (group["nesterov"] or group["dampening"] != 0)

    def _start_rows(self, param: Tensor, state: State, group: Group) -> None:
        state.setdefault("step", 0)
        make_flat(state, param)
        if "momentum_buffer" not in state and group["momentum"] and not self._has_no_kernel(group):
            state["momentum_buffer"] = new_state(param)

    def _is_started(self, state: State, group: Group) -> bool:
        return not group["momentum"] or "momentum_buffer" in state or self._has_no_kernel(group)

    def _row_rule(self, param: Tensor, state: State, group: Group, seed: int) -> RowRule:
        momentum = float(group["momentum"])
        buffer = state["momentum_buffer"] if momentum else None
        return _ops.sgd_update_, (buffer,), (float(group["lr"]), momentum, float(group["weight_decay"]), seed)

    def rule_options(self, group: Group) -> list[float] | None:
        """`RowUpdate.options` of a group; None with nesterov or dampening."""
        momentum, decay = float(group["momentum"]), float(group["weight_decay"])
        return None if self._has_no_kernel(group) else [0.0, decay, momentum, 0.0]

    def row_states(self, states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
        """The momentum buffers, where there are."""
        return [state["momentum_buffer"] for state in states if "momentum_buffer" in state], []

    def _start_dense(self, param: Tensor, state: State, group: Group) -> None:
        """`_step_flat` makes the buffer, for it must know which are new."""

    def _step_flat(self, weights: Tensors, grads: Tensors, states: list[State], group: Group) -> None:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        kinds: dict[bool, list[int]] = {}
        for place, (weight, state) in enumerate(zip(weights, states, strict=True)):
            is_new = bool(momentum) and "momentum_buffer" not in state
            if is_new:
                state["momentum_buffer"] = torch.zeros_like(weight)
            # A new buffer is all zeros, so its first gradient is special where it would be dampened only.
            kinds.setdefault(is_new and dampening != 0, []).append(place)
        for is_first_step, places in kinds.items():
            torch._fused_sgd_(
                [weights[place] for place in places],
                [grads[place] for place in places],
                [states[place]["momentum_buffer"] for place in places] if momentum else [],
                weight_decay=float(group["weight_decay"]),
                momentum=momentum,
                lr=float(group["lr"]),
                dampening=dampening,
                nesterov=group["nesterov"],
                maximize=False,
                is_first_step=is_first_step,
            )


class Adagrad(RowOptimizer):
    """Adagrad: sum <- sum + g^2; buffer <- momentum buffer - lr g / (sqrt(sum) + eps); w <- w + buffer.

    Without momentum, as usual, there is no buffer; with it, rows have no kernel, and PyTorch steps them. An epsilon
    inside the root, sqrt(sum + c), is an initial_accumulator_value of c.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: learning rate, >= 0; of step t it is lr / (1 + (t - 1) lr_decay).
        lr_decay: >= 0.
        weight_decay: L2, >= 0.
        initial_accumulator_value: of the sums, >= 0.
        eps: > 0.
        momentum: of the steps, >= 0; those of rows without a gradient stand still.
        shared: options that all optimizers have.
    Raises:
        ValueError: an option is unknown or out of range.
    Reference: Duchi, Hazan, Singer 2011, JMLR 12; the momentum as in the authors' code of GRU4Rec.
    """

    RULE = 1
    OPERATOR = "adagrad_update_"
    STATES = ("sum",)
    DENSE = ("sum", "momentum_buffer")
    FIRST = "sum"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        momentum: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        rule = {"eps": eps, "weight_decay": weight_decay, "initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, shared, lr=lr, lr_decay=lr_decay, momentum=momentum, **rule)

    def _is_started(self, state: State, group: Group) -> bool:
        return not group["momentum"] or "momentum_buffer" in state

    def _has_no_kernel(self, group: Group) -> bool:
        return bool(group["momentum"])

    def _start_rows(self, param: Tensor, state: State, group: Group) -> None:
        self._start_dense(param, state, group)
        make_flat(state, param)

    def _row_rule(self, param: Tensor, state: State, group: Group, seed: int) -> RowRule:
        lr = float(group["lr"]) / (1 + state["step"] * float(group["lr_decay"]))
        numbers = (lr, float(group["eps"]), float(group["weight_decay"]), seed)
        return getattr(_ops, self.OPERATOR), (state["sum"],), numbers

    def rule_options(self, group: Group) -> list[float] | None:
        """`RowUpdate.options` of a group; None with lr_decay or momentum."""
        return (
            None
            if group["lr_decay"] or group["momentum"]
            else [float(group["eps"]), float(group["weight_decay"]), 0.0, 0.0]
        )

    def row_states(self, states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
        """The sums of squares."""
        return [state["sum"] for state in states], []

    def _start_dense(self, param: Tensor, state: State, group: Group) -> None:
        if "sum" not in state:
            state["step"] = 0
            state["sum"] = new_state(param, float(group["initial_accumulator_value"]))
        if group["momentum"] and "momentum_buffer" not in state:
            state["momentum_buffer"] = new_state(param)

    def _step_flat(self, weights: Tensors, grads: Tensors, states: list[State], group: Group) -> None:
        if group["momentum"]:
            for weight, grad, state in zip(weights, grads, states, strict=True):
                rate = float(group["lr"]) / (1 + (state["step"] - 1) * float(group["lr_decay"]))
                grad = grad.add(weight, alpha=float(group["weight_decay"])) if group["weight_decay"] else grad
                root = state["sum"].addcmul_(grad, grad).sqrt().add_(float(group["eps"]))
                buffer = state["momentum_buffer"].mul_(float(group["momentum"])).addcdiv_(grad, root, value=-rate)
                weight.add_(buffer)
            return
        torch._fused_adagrad_(
            weights,
            grads,
            [state["sum"] for state in states],
            step_tensors(states, weights[0].device),
            lr=float(group["lr"]),
            lr_decay=float(group["lr_decay"]),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The state, which parameters without a gradient so far have too: torch.optim.Adagrad asks for it."""
        self._follow()
        for group in self.param_groups:
            for param in group["params"]:
                if not self.state.get(param) and not param.is_meta:
                    self._start_dense(param, self.state[param], group)
        return super().state_dict()


class RowWiseAdagrad(Adagrad):
    """Adagrad with one accumulator a row: sum <- sum + mean_d g_d^2; w <- w - lr g / (sqrt(sum) + eps).

    For parameters with sparse gradients; dense ones get Adagrad. Options as in Adagrad. A state of torch.optim.Adagrad
    goes on from its mean over the row.
    Reference: the rule of FBGEMM's EXACT_ROWWISE_ADAGRAD.
    """

    RULE = 2
    OPERATOR = "rowwise_adagrad_update_"

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        require(not options["momentum"], "RowWiseAdagrad", "momentum must be 0, take Adagrad", options["momentum"])

    def _start_rows(self, param: Tensor, state: State, group: Group) -> None:
        state.setdefault("step", 0)
        if "sum" in state:  # dense steps came before
            state["sum"] = state["sum"].to(param.device, state_dtype(param)).mean(1)
        else:
            state["sum"] = new_state(param[:, 0], float(group["initial_accumulator_value"]))

    def _shape_of(self, name: str, param: Tensor, state: Mapping[str, Any]) -> torch.Size | None:
        return param.shape[:1] if name == "sum" and "is_sparse" in state else super()._shape_of(name, param, state)

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        return RowOptimizer.state_dict(self)


def _ftrl_rule(group: Group) -> tuple[float, float, float, float]:
    return float(group["lr"]), float(group["l1"]), float(group["l2"]), float(group["beta"])


class FTRL(RowOptimizer):
    """FTRL-proximal: Adagrad's learning rates with an L1 that makes weights exactly zero.

        sigma = (sqrt(n + g^2) - sqrt(n)) / lr;  z <- z + g - sigma w;  n <- n + g^2
        w <- 0 where |z| <= l1, else -(z - sign(z) l1) / ((beta + sqrt(n)) / lr + l2)

    n stands in the state as `sum`, z as `linear`. A zero gradient changes nothing, so rows that a batch leaves out need
    no work.

    The paper starts at w = 0, z = 0. A weight that is not zero at its first gradient gets the z that gives this weight,
    -w (beta / lr + l2) - sign(w) l1: it goes on from where it is, and l1 counts from there. Weights that are to end at
    zero should start at zero. A learning rate that changes rescales what has been learnt, for w is computed anew from
    z: keep lr constant (n makes the steps smaller by itself).

    Args:
        params: parameters or groups, as in torch.optim.
        lr: alpha of the paper, > 0.
        l1: >= 0; the larger, the more weights are zero.
        l2: >= 0.
        beta: >= 0; the first steps are smaller the larger it is.
        shared: options that all optimizers have.
    Raises:
        ValueError: an option is unknown or out of range.
        RuntimeError: at a step, where a schedule has taken lr to 0.
    Reference: McMahan et al. 2013, Ad Click Prediction: a View from the Trenches (KDD), algorithm 1.
    """

    RULE = 4
    STATES = DENSE = ("sum", "linear")
    FIRST = "sum"

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 1.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, shared, lr=lr, l1=l1, l2=l2, beta=beta)

    def _check(self, options: dict[str, Any]) -> None:
        decay = options.get("weight_decay", 0)
        require(not decay, "FTRL", "weight_decay must be 0, l2 is what it has", decay)
        super()._check({key: value for key, value in options.items() if key != "weight_decay"})
        require(options["lr"] > 0, "FTRL", "lr must be a finite number > 0", options["lr"])

    def _start_rows(self, param: Tensor, state: State, group: Group) -> None:
        self._start_dense(param, state, group)

    def _row_rule(self, param: Tensor, state: State, group: Group, seed: int) -> RowRule:
        return _ops.ftrl_update_, (state["sum"], state["linear"]), (*_ftrl_rule(group), seed)

    def rule_options(self, group: Group) -> list[float] | None:
        """`RowUpdate.options` of a group."""
        return [float(group["beta"]), 0.0, float(group["l1"]), float(group["l2"])]

    def row_states(self, states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
        """The sums of squares and the linear terms."""
        return [state["sum"] for state in states], [state["linear"] for state in states]

    def _start_dense(self, param: Tensor, state: State, group: Group) -> None:
        if "sum" not in state:
            state.update(step=0, sum=new_state(param), linear=new_state(param))

    def _step_flat(self, weights: Tensors, grads: Tensors, states: list[State], group: Group) -> None:
        """The kernel of the rows on all elements, whatever the shape."""
        rule = _ftrl_rule(group)
        for weight, grad, state in zip(weights, grads, states, strict=True):
            count = weight.numel()
            width = math.gcd(count, 1024)
            shape = (count // width, width) if width >= 16 else (1, count)  # rows go to threads
            every = torch.arange(shape[0], device=weight.device)
            matrix, sums, linear = (x.detach().view(shape) for x in (weight, state["sum"], state["linear"]))
            _ops.ftrl_update_(matrix, sums, linear, every, grad.view(shape), *rule)
