"""L-BFGS with a state that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

ITERATIONS = 10
_HISTORY = 10
_LISTS = ("old_dirs", "old_stps", "ro")


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS with the strong Wolfe line search, ten iterations a step, the last ten pairs remembered.

    Reference: Nocedal, Wright 2006, "Numerical Optimization", algorithms 7.5, 3.5 and 3.6.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        # A line search may need two evaluations: the limit is on iterations alone.
        super().__init__(
            params, max_iter=ITERATIONS, max_eval=4 * ITERATIONS, history_size=_HISTORY, line_search_fn="strong_wolfe"
        )

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with tensors where it has lists of tensors."""
        result = super().state_dict()
        packed = {}
        for index, state in result["state"].items():
            kept = {key: value for key, value in state.items() if key != "al"}  # scratch of a step
            packed[index] = kept | {key: torch.stack(kept[key]) for key in _LISTS if kept.get(key)}
            for key in _LISTS:
                if key in kept and not kept[key]:
                    del packed[index][key]
        return {**result, "state": packed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for key in _LISTS:
                if state.get("n_iter"):
                    state[key] = list(state[key].unbind()) if key in state else []
