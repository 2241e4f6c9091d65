"""Adam and AdamW, on touched rows only or as on the dense gradient; see `deeprec.train.optim`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeprec.kernels.sums import add_rows
from deeprec.train._dense_step import State, make_flat, new_state, state_dtype, step_dense, step_tensors
from deeprec.train._options import Group, Shared, require
from deeprec.train._replay import CatchUp, Rule, StepReplay, share_rates, table_lists
from deeprec.train._row_grad import RowGrad
from deeprec.train._row_optimizer import Params, RowOptimizer, RowRule, Tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ops = torch.ops.deeprec


def _adam_rule(group: Group) -> Rule:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"])


class Adam(RowOptimizer):
    """Adam, lazy or dense-equivalent for parameters with sparse gradients.

    mode="lazy" updates weights and moments of touched rows only, like torch.optim.SparseAdam (whose eps is not
    bias-corrected). mode="dense" gives what torch.optim.Adam gives on the dense gradient (weights within 1e-5 after
    1,000 steps), at about the price of the touched rows: a row catches up on the steps it missed just before it is read
    or updated. For that the optimizer leaves `_deeprec_catch_up` on the parameter, which deeprec.nn.Embedding and the
    fused losses call with the rows they are about to read for training. The layers of deeprec.nn bring their tables up
    to date where these are saved, loaded, copied or moved as a whole; call `flush()` before reading, or writing to, a
    table yourself: before evaluation, for instance. Learning rates may change at every step; a change of betas, eps or
    weight_decay flushes. With weight decay each missed step is replayed one by one. With amsgrad or
    decoupled_weight_decay, or a table that is not contiguous, dense mode steps the whole table.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: learning rate, >= 0.
        betas: decay rates of the moments, in [0, 1).
        eps: > 0.
        weight_decay: >= 0; L2.
        amsgrad: divide by the root of the largest second moment so far (Reddi et al. 2018, arXiv 1904.09237); of a row
            in lazy mode: the largest of its own steps.
        decoupled_weight_decay: w <- (1 - lr weight_decay) w in place of L2 (AdamW); in lazy mode a row decays when it
            is touched.
        mode: "lazy" or "dense", also by group; stochastic_rounding goes with "lazy" only.
        shared: options that all optimizers have.
    Raises:
        ValueError: an option is unknown or out of range.
    Reference: Kingma, Ba 2015 (arXiv 1412.6980), algorithm 1; Loshchilov, Hutter 2019 (arXiv 1711.05101), algorithm 2.
    """

    RULE = 3
    STATES = ("exp_avg", "exp_avg_sq")
    FIRST = "exp_avg"
    DENSE = (*STATES, "max_exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        mode: str = "lazy",
        **shared: Unpack[Shared],
    ) -> None:
        self._replays: dict[Tensor, StepReplay] = {}
        rule = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, shared, lr=lr, **rule, decoupled_weight_decay=decoupled_weight_decay, mode=mode)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        both = options["mode"] == "dense" and options["stochastic_rounding"]
        requirement = 'stochastic_rounding must be off with mode="dense", it is not supported'
        require(not both, type(self).__name__, requirement, True)

    def _has_no_kernel(self, group: Group) -> bool:
        return bool(group["amsgrad"] or (group["decoupled_weight_decay"] and group["weight_decay"]))

    def _start_rows(self, param: Tensor, state: State, group: Group) -> None:
        self._start_dense(param, state, group)
        if "last_step" in state and group["mode"] == "lazy":  # it was "dense"
            self._forget(param)
            del state["last_step"]
        make_flat(state, param)
        if group["mode"] == "dense":
            # 0 says "no gradient so far": such a row need not catch up, its moments are zero.
            state["last_step"] = torch.full((param.shape[0],), state["step"], dtype=torch.int32, device=param.device)
            self._remember(param, state, group)

    def _is_started(self, state: State, group: Group) -> bool:
        return ("last_step" in state) is (group["mode"] == "dense")

    def start_rows(self, param: Tensor, group: Group) -> State:
        """As `RowOptimizer.start_rows`."""
        state = super().start_rows(param, group)
        if group["mode"] == "dense" and not hasattr(param, "_deeprec_catch_up"):
            if param in self._replays:  # torch.utils.swap_tensors, that a module may be moved by, takes attributes away
                param._deeprec_catch_up = CatchUp(self._replays[param])  # type: ignore[attr-defined]
            else:  # it is in the place of another tensor
                self._remember(param, state, group)
        return state

    def _remember(self, param: Tensor, state: State, group: Group) -> None:
        replay = StepReplay(param, state, _adam_rule(group))
        self._replays[param] = replay
        param._deeprec_catch_up = CatchUp(replay)  # type: ignore[attr-defined]

    def _forget(self, param: Tensor) -> None:
        """Bring all rows up to date, and leave the parameter alone."""
        replay = self._replays.pop(param, None)
        if replay is not None:
            CatchUp(replay).release()

    @torch.no_grad()
    def flush(self) -> None:
        """Bring every row of every parameter in dense mode up to date; the tables may then be read as a whole."""
        for replay in self._replays.values():
            replay.flush()

    def state_dict(self) -> dict[str, Any]:
        """The state, after a flush: save the weights of tables outside deeprec.nn's layers after this call."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `RowOptimizer.load_state_dict`; the weights stay as they are, what is loaded needs no catching up."""
        super().load_state_dict(state_dict)
        for replay in self._replays.values():
            last, step = replay.state["last_step"], replay.state["step"]
            if last.dtype != torch.int32 or not bool(((last == 0) | (last == step)).all()):  # torch took steps since
                replay.state["last_step"] = torch.full(last.shape, step, dtype=torch.int32, device=last.device)

    def replace_params(self, before: list[Tensor], after: list[Tensor]) -> None:
        """As `RowOptimizer.replace_params`; rows of the former tensors are brought up to date, with their states."""
        for param in before:
            self._forget(param)
        super().replace_params(before, after)

    def move_state(self, param: Tensor) -> None:
        """As `RowOptimizer.move_state`."""
        super().move_state(param)
        if "last_step" in self.state[param]:
            replay = self._replays.get(param)
            if replay is None or replay.rates.values.device != param.device:
                group = next(group for group in self.param_groups if any(param is member for member in group["params"]))
                self._remember(param, self.state[param], group)

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for param in getattr(self, "_replays", {}):
            param._deeprec_catch_up = None  # what is loaded needs no catching up
        self._replays = {}
        for group in self.param_groups:
            for param in group["params"]:
                if "last_step" in self.state.get(param, {}):
                    self._remember(param, self.state[param], group)

    def _shape_of(self, name: str, param: Tensor, state: Mapping[str, Any]) -> torch.Size | None:
        return param.shape[:1] if name == "last_step" else super()._shape_of(name, param, state)

    def _step_tables(self, grads: list[RowGrad], group: Group) -> None:
        if group["mode"] != "dense" or len(grads) == 1 or not self._step_together(grads, group):
            super()._step_tables(grads, group)

    def _step_together(self, grads: list[RowGrad], group: Group) -> bool:
        """One call for all tables; False, and nothing done, where they have not taken the same steps."""
        if self._has_no_kernel(group) or not all(grad.param.is_contiguous() for grad in grads):
            return False
        states = [self.start_rows(grad.param, group) for grad in grads]
        replays = [self._replays[grad.param] for grad in grads if grad.param in self._replays]
        rule = _adam_rule(group)
        if len(replays) < len(grads) or replays[0].rule != rule or not share_rates(replays):
            return False
        first = replays[0]
        step = states[0]["step"] + 1
        first.rates.put(step - 1 - first.start, float(group["lr"]))
        rows, values = [grad.rows for grad in grads], [grad.values for grad in grads]
        try:
            _ops.adam_dense_update_tables_(
                *table_lists(replays), rows, values, first.rates.values, first.start, step, *rule
            )
        except RuntimeError as error:
            if "strictly ascending" not in str(error):
                raise
            return False
        for state in states:
            state["step"] = step
        return True

    def _step_rows(self, grad: RowGrad, group: Group) -> None:
        if group["mode"] == "dense":
            self.start_rows(grad.param, group)
            replay = self._replays[grad.param]
            if self._has_no_kernel(group) or not grad.param.is_contiguous():
                self._step_whole(grad, replay, group)
                return
            rule = _adam_rule(group)
            if replay.rule != rule:
                replay.change_rule(rule)
        super()._step_rows(grad, group)

    def _step_whole(self, grad: RowGrad, replay: StepReplay, group: Group) -> None:
        """One step on all rows, those without a gradient too."""
        replay.flush()
        param, state = grad.param, replay.state
        wide = torch.zeros(param.shape, dtype=state_dtype(param), device=param.device)
        add_rows(wide, grad.rows.long(), grad.values.to(wide.dtype))
        step_dense("Adam", [param], [wide], [state], {**group, "maximize": False}, self._step_flat, self.DENSE)
        state["last_step"].fill_(state["step"])
        replay.start, replay.rule = state["step"], _adam_rule(group)

    def rule_options(self, group: Group) -> list[float] | None:
        """`RowUpdate.options` of a group; None in dense mode, with amsgrad and with decoupled weight decay."""
        beta1, beta2, eps, decay = _adam_rule(group)
        return None if group["mode"] == "dense" or self._has_no_kernel(group) else [eps, decay, beta1, beta2]

    def row_states(self, states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
        """The first and the second moments."""
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    def _row_rule(self, param: Tensor, state: State, group: Group, seed: int) -> RowRule:
        step, lr, moments = state["step"] + 1, float(group["lr"]), (state["exp_avg"], state["exp_avg_sq"])
        if group["mode"] == "lazy":
            return _ops.adam_update_, moments, (step, lr, *_adam_rule(group), seed)
        replay = self._replays[param]
        replay.record(step, lr)
        replayed = (replay.learning_rates, replay.start, step, *replay.rule)
        return _ops.adam_dense_update_, (*moments, state["last_step"]), replayed

    def _start_dense(self, param: Tensor, state: State, group: Group) -> None:
        if "exp_avg" not in state:
            state.update(step=0, exp_avg=new_state(param), exp_avg_sq=new_state(param))

    def _step_flat(self, weights: Tensors, grads: Tensors, states: list[State], group: Group) -> None:
        beta1, beta2, eps, decay = _adam_rule(group)
        largest = []
        if group["amsgrad"]:
            for weight, state in zip(weights, states, strict=True):
                if "max_exp_avg_sq" not in state:
                    state["max_exp_avg_sq"] = torch.zeros_like(weight)
                largest.append(state["max_exp_avg_sq"])
        update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        update(
            weights,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            largest,
            step_tensors(states, weights[0].device),
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=group["amsgrad"],
            maximize=False,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay, see there: w <- (1 - lr weight_decay) w, whatever the gradient.

    Args: as `Adam`'s, without decoupled_weight_decay. Any state that is loaded goes on with decoupled weight decay, as
        in torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        mode: str = "lazy",
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, mode=mode, **shared
        )

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        is_decoupled = options["decoupled_weight_decay"]
        require(is_decoupled, "AdamW", "decoupled_weight_decay must be True, Adam is without", is_decoupled)

    def _completed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._completed(group), "decoupled_weight_decay": True}
