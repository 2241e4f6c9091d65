"""The limits' kernels compiled for an H200: 16-byte loads, several in flight, nothing spilled. By test_gpu_bench.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.limits_gpu import compile_cases
from deeprec.kernels._gpu_code import TARGETS, nvidia

for case in compile_cases():
    arguments = list(case.signature)
    attrs = {(arguments.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(fn=case.kernel, signature=case.signature, constexprs=case.constexprs, attrs=attrs)
    options = {"num_warps": case.num_warps}
    for target in ("sm_80", "sm_90"):
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
        found = nvidia(compiled.asm["cubin"], with_loads=True)
        print(case.name, target, found)
        assert found["spill_bytes"] == 0, case.name
        assert found["widest_load_bits"] == 128, case.name
        assert found["loads_in_flight"] >= 4, case.name
