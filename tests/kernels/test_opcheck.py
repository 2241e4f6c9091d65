"""Every operator passes `torch.library.opcheck`, none of whose checks is expected to fail.

The arguments come from `opcheck_samples()` in each operator's test file; an operator without one fails here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deeprec.kernels import _library


@pytest.mark.parametrize("name", [operator.name for operator in _library.operators()])
def test_operator_passes_opcheck(name: str, samples: dict[str, list[tuple[Any, ...]]]) -> None:
    assert name in samples, f"no test file has opcheck_samples() that yield arguments of {name}"
    for arguments in samples[name]:
        torch.library.opcheck(getattr(torch.ops.deeprec, name).default, arguments)
