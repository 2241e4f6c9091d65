"""What bench.gpu_static reads from machine code and calculates from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from deeprec.kernels._gpu_code import loads

SASS = """
        /*0000*/                   LDG.E.64 R2, desc[UR4][R8.64] ;
        /*0010*/              @!P0 LDG.E.128 R12, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128 R16, desc[UR4][R20.64] ;
        /*0030*/                   FADD R4, R4, R13 ;
        /*0040*/                   LDG.E.128.CONSTANT R24, desc[UR4][R20.64+0x10] ;
        /*0050*/                   STG.E.128 desc[UR4][R20.64], R24 ;
        /*0060*/                   EXIT ;
"""


@pytest.fixture(scope="module")
def gpu_static() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import bench.gpu_static

    yield bench.gpu_static
    sys.path.pop(0)


def test_loads_in_flight_end_where_one_is_read() -> None:
    assert loads(SASS) == {"widest_load_bits": 128, "vector_loads": 3, "loads_in_flight": 2}
    apart = SASS.replace("R4, R4, R13", "R4, R4, R5")
    assert loads(apart)["loads_in_flight"] == 3
    chained = SASS.replace("R16, desc[UR4][R20.64]", "R16, desc[UR4][R14.64]").replace("R20.64+0x10", "R18.64")
    assert loads(chained)["loads_in_flight"] == 1
    assert loads("") == {"widest_load_bits": 0, "vector_loads": 0, "loads_in_flight": 0}


def test_a_gathered_row_costs_the_sectors_it_straddles(gpu_static: ModuleType) -> None:
    assert gpu_static.sectors(64) == 64
    assert gpu_static.sectors(16) == 32  # at 0 or 16: one sector
    assert gpu_static.sectors(4) == 32
    assert gpu_static.sectors(28) == 56  # seven of eight places straddle two, but for the first two: 1.75 sectors
    assert gpu_static.touched(1, 100) == pytest.approx(1)
    assert gpu_static.touched(1000, 10) == pytest.approx(0.01)


def test_occupancy_is_what_the_scarcest_resource_allows(gpu_static: ModuleType) -> None:
    assert gpu_static.occupancy(32, 4, 0) == 64  # threads
    assert gpu_static.occupancy(32, 1, 0) == 32  # programs
    assert gpu_static.occupancy(128, 4, 0) == 16  # registers
    assert gpu_static.occupancy(97, 4, 0) == 16  # which are handed out eight at a time: 104
    assert gpu_static.occupancy(32, 4, 100_000) == 8  # shared memory


def test_every_case_with_rows_has_its_bytes_and_none_beats_the_floor(gpu_static: ModuleType) -> None:
    names = ["bags_gather_fp32_d16", "bags_sum_bf16_d16", "bags_update_adam_fp32_d16", "bags_grad_fp32_d128"]
    names += ["embedding_fm_fwd_plain_fp32_d16", "embedding_fm_update_sgd_fp32_d16", "adam_update_fp32"]
    names += [
        "sampled_linear_loss_sigmoid_squared_fp32_d500",
        "fm_interaction_grad_fp32_d16",
        "embedding_fwd_fp32_i32",
        "embedding_fm_norm_fp32_d7",
    ]
    for name in names:
        work = gpu_static.work_of(name)
        assert work is not None, name
        assert work.moved >= work.floor > 0, name
    assert gpu_static.work_of("bags_plan_keys_i32") is None
    assert gpu_static.work_of("bags_gather_fp32_d16").floor == 16 * 4 * 2 + 8
    assert gpu_static.work_of("adam_update_fp32").moved == 8 + 3 * 256 + 4 * 256
