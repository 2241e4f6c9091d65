"""Files of tensors are what safetensors reads, and are replaced whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from deeprec import _tensors
from deeprec._tensors import write_tensors


def some_tensors() -> dict[str, Tensor]:
    """Every dtype, odd sizes first, views, a scalar and nothing at all."""
    base = torch.arange(24).reshape(4, 6)
    found = {f"z.{str(dtype)[6:]}": torch.arange(5).to(dtype) for dtype in _tensors._DTYPES}
    return {
        "a.odd": torch.tensor([1, 2, 3], dtype=torch.int8),
        **found,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.t(),
        "strided": base[:, ::2],
        "shared": base,
        "grad": torch.randn(3, 2, requires_grad=True),
    }


def test_safetensors_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensors, "_PIECE", 7)
    wanted = some_tensors()
    path = tmp_path / "some.safetensors"
    digest = write_tensors(path, wanted, {"deeprec": '{"ä": 1}'})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == {"deeprec": '{"ä": 1}'}


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    class Broken(torch.Tensor):
        def cpu(self) -> Tensor:  # type: ignore[override]
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_tensors(path, {"a": torch.zeros(3), "b": torch.zeros(2).as_subclass(Broken)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.safetensors"]
