"""`deeprec doctor` tells the truth about who serves what."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from rich.console import Console

from deeprec import doctor
from deeprec.kernels import _library


@pytest.fixture(scope="module")
def facts():
    return doctor.report()


def test_report_is_json(facts):
    assert json.loads(json.dumps(facts)) == facts


def test_every_operator_has_an_implementation_on_every_device(facts):
    assert set(facts["operators"]) == {operator.name for operator in _library.operators()}
    for row in facts["operators"].values():
        for device in ("cpu", "cuda"):
            assert row[device]["implementation"]
            assert (row[device]["implementation"] == "reference") == bool(row[device]["reason"])


@pytest.mark.skipif(bool(_library.load_error()), reason="compiled kernels are missing")
def test_compiled_kernels_are_reported_with_their_instruction_set(facts):
    assert facts["operators"]["embedding"]["cpu"]["implementation"] == f"c++ ({_library.cpu_isa()})"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_the_reason_given(facts):
    assert "no GPU" in facts["operators"]["embedding"]["cuda"]["reason"]
    assert not facts["cuda"]["available"]


def test_tables_name_every_operator(facts):
    console = Console(file=io.StringIO(), width=200)
    console.print(doctor.render(facts))
    text = console.file.getvalue()
    assert all(name in text for name in facts["operators"])
    assert facts["versions"]["torch"] in text


def test_report_and_tables_come_without_polars(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "deeprec.data", None)  # as where importing it fails
    monkeypatch.delattr("deeprec.data", raising=False)
    facts = doctor.report()
    assert "not installed" in facts["data"]["reason"]
    console = Console(file=io.StringIO(), width=200)
    console.print(doctor.render(facts))
    assert "fm_interaction" in console.file.getvalue()
    assert "not installed" in console.file.getvalue()
