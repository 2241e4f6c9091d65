"""Every case of every operator's bench, as a GPU would get it but small, on a device in name only.

Tensors there hold their values on the CPU and call themselves "meta"; an operation that takes a CPU tensor beside them
is an error, as it is on a GPU. What needs torch.compile or a package of its own stays out.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten
MAY_MIX = {aten.copy_.default, aten._to_copy.default}
OPS = (
    "als_solve",
    "embedding",
    "embedding_bag",
    "embedding_fm",
    "fm_interaction",
    "masked_autoencoder_loss",
    "ncf_loss",
    "prefilter_topk",
    "sample_negatives",
    "sampled_linear_loss",
    "score_topk",
    "softmax_loss",
    "sparse_linear",
    "sparse_update",
)


class Elsewhere(Tensor):
    """A tensor of the device: `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        memory = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            **(memory if held.layout == torch.strided else {}),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property  # torch knows no gradient that is sparse and "meta"
    def grad(self) -> Tensor | None:
        return self.__dict__.get("sparse_grad", Tensor.grad.__get__(self))

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.__dict__.pop("sparse_grad", None)
        if value is not None and value.is_sparse:
            self.__dict__["sparse_grad"] = value
        else:
            Tensor.grad.__set__(self, value)

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class FromData(TorchFunctionMode):
    """torch.tensor and its like leave no values in what is made on "meta": on the CPU, then, and over."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor) or torch.device(kwargs.get("device") or "cpu") != DEVICE:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


class Device(TorchDispatchMode):
    """While inside, what is made on DEVICE is `Elsewhere`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, Elsewhere)]
    stray = [x for x in given if not isinstance(x, Elsewhere) and x.dim()]
    if there and stray and func not in MAY_MIX:
        raise AssertionError(f"{func} takes a tensor of the CPU, {tuple(stray[0].shape)}, beside those of the device")
    is_there = bool(there)
    if func is aten.copy_.default:
        is_there = isinstance(args[0], Elsewhere)
    elif kwargs.get("device") is not None:
        is_there, kwargs = torch.device(kwargs["device"]) == DEVICE, {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(Elsewhere, lambda x: x.held, (args, kwargs))
    out = func(*args, **kwargs)
    if not is_there:
        return out
    known = {id(x.held): x for x in there}  # changed in place, it is the same tensor
    return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else Elsewhere(x), out)


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], Any]]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    yield lambda name: importlib.import_module(f"bench.{name}")
    sys.path.pop(0)


@pytest.fixture
def small(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases of the least sizes, with the contenders that need nothing but torch and deeprec."""
    tables = bench("workloads").Tables(50, 32)
    one = bench("workloads").Tables(40, 12, 1)
    for name, attribute, value in (
        ("workloads", "Tables.on", staticmethod(lambda device: tables)),
        ("embedding", "Size.on", staticmethod(lambda device, dim: bench("embedding").Size(60, 40))),
        ("score_topk", "Size.on", staticmethod(lambda device: bench("score_topk").Size(6, 300, 2))),
        ("prefilter_topk", "SIZES", ((300, 5),)),
        ("als_solve", "Size.on", staticmethod(lambda device: bench("als_solve").Size(20, 60, 10))),
        ("embedding_bag", "POOLED", {"cpu": one, "cuda": one}),
        ("embedding_bag_layer", "DROP_IN", {"cpu": one, "cuda": one}),
        ("embedding_bag_layer", "BATCH", {"cpu": 8, "cuda": 8}),
        ("embedding_bag_layer", "TABLE_ROWS", (100,)),
        ("embedding_bag_layer", "DIMS", (1, 3)),
        ("fm_interaction", "BATCH", {"cpu": 8, "cuda": 8}),
        ("ncf_loss", "GPU_TIMES", 1),
        ("ncf_loss", "SHAPES", bench("ncf_loss").SHAPES[-1:]),
        ("sample_negatives", "SIZES", (64,)),
        ("sample_negatives", "GPU_TIMES", 1),
        ("sample_negatives", "NUM_USERS", 50),
        ("autoencoders", "ML_1M", (20, 30, 100)),
        ("autoencoders", "BATCH", 8),
        ("autoencoders", "WIDE", 200),
        ("softmax_loss", "SHAPES", (("100k items", 8, 40, 16),)),
        ("softmax_loss", "DRAWN", {"cpu": (8, 40), "cuda": (8, 40)}),
    ):
        monkeypatch.setattr(bench(name), attribute, value) if "." not in attribute else monkeypatch.setattr(
            getattr(bench(name), attribute.split(".")[0]), attribute.split(".")[1], value
        )
    for name, attribute in itertools.product(OPS, ("fbgemm_tables", "torchrec_tables", "faiss_topk")):
        if hasattr(bench(name), attribute):
            monkeypatch.setattr(bench(name), attribute, _refuse)
    monkeypatch.setattr(bench("softmax_loss"), "linear_losses", lambda device: {})
    for name in OPS:
        if hasattr(bench(name), "compiled"):
            monkeypatch.setattr(bench(name), "compiled", lambda function, **_: function)
    fused = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], fused, lambda: [DEVICE.type])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def _refuse(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("not on a device in name only")


@pytest.mark.parametrize("op", OPS)
def test_every_case_keeps_to_its_device(bench: Callable[[str], Any], small: None, op: str) -> None:
    harness, seen = bench("harness"), set()
    for case in bench(op).cases("cuda"):
        torch.manual_seed(0)
        with Device(), FromData():
            with torch.device(DEVICE):
                trial = case.build()
            assert all(isinstance(expected, Elsewhere) for expected in trial.expected), case.name
            for contender in trial.contenders:
                if "SparseAdam" in contender.name:  # which makes sparse tensors in a way that "meta" does not know
                    continue
                try:
                    harness.check_parity(contender, trial)
                except harness.ParityError:  # not compiled, or without autocast to say how much it may err
                    assert contender.name != harness.OURS
                contender.step()
                seen.add(contender.name)
    assert harness.OURS in seen
    assert len(seen) > 1


def test_a_tensor_of_the_cpu_among_others_is_an_error() -> None:
    with Device():
        x = torch.ones(3, device=DEVICE)
        with pytest.raises(AssertionError, match="takes a tensor of the CPU"):
            x + torch.ones(3)
        assert float((x + 1).sum()) == 6
