"""Triton launchers accept and refuse what references do, and give the same results; run by test_triton.py.

As test_same_arguments.py has it for the compiled kernels, one argument spoiled at a time. Whoever refuses has changed
nothing. What a GPU finds out only in the kernel, an id out of range, is asked for after each call.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.kernels import _library
from deeprec.kernels._door import check_of, launcher, launches
from deeprec.kernels.faults import raise_faults

_spec = importlib.util.spec_from_file_location("same_arguments", Path(__file__).with_name("test_same_arguments.py"))
assert _spec is not None
assert _spec.loader is not None
same = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = same
_spec.loader.exec_module(same)


# Of these only what is accepted is compared: per-sample weights beside other modes than "sum" have no meaning, and the
# interpreter truncates to bfloat16 where hardware rounds.
_MEANINGLESS = {*same._MEANINGLESS, "modes", "use_bfloat16"}
_TWO_SAMPLES = ("embedding_bag", "embedding", "fm_interaction")
OPERATORS = [
    operator for operator in _library.operators() if operator.triton and check_of(operator.triton, operator.name)
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_reference_and_launcher_agree_on_spoiled_arguments(
    operator: _library.Operator, samples: dict[str, list[tuple[Any, ...]]]
) -> None:
    start = launcher(operator.triton, operator.name)

    def launch(*arguments: Any) -> Any:
        result = start(*arguments)
        raise_faults()
        return result

    names = [argument.name for argument in getattr(torch.ops.deeprec, operator.name).default._schema.arguments]
    launches.clear()
    count = 0
    own = samples[operator.name]
    # The last has most of what there is; where the interpreter is quick, or that one has no entries, the first as well.
    for sample in own[:1] + own[-1:] if operator.triton in _TWO_SAMPLES else own[-1:]:
        for place, right in enumerate(sample):
            # The interpreter is slow: a quarter of the ways to spoil an argument, other ones for the next argument.
            for how, spoiled in list(same._spoiled(right))[place % 4 :: 4]:
                arguments = [*sample[:place], spoiled, *sample[place + 1 :]]
                mine, refused, after = same._outcome(launch, arguments)
                other, other_refused, other_after = same._outcome(operator.reference, arguments)
                case = f"{operator.name}, {names[place]}: {how}: launcher {refused!r}, reference {other_refused!r}"
                assert (refused is None) == (other_refused is None), case
                if refused is not None:
                    assert same._is_close(after, arguments), f"{case}: the launcher changed something first"
                elif names[place] not in _MEANINGLESS and same._is_finite(spoiled):
                    assert same._is_close(mine, other), case
                    assert same._is_close(after, other_after), f"{case}: left other values behind"
                count += 1
    assert count > 6, f"no arguments of {operator.name} were spoiled"
    assert launches, f"no kernel of {operator.name} was started"
