"""A GPU in name only: launchers run on tensors that say they are on one, and what they launch is kept, not run.

The tensors' values lie on the CPU, where PyTorch's operators work on them; memory that a kernel would have filled
holds zeros. So a launcher goes all its way, and three things are seen that the interpreter cannot show: how Triton
specialises every argument of every launch (see `Launch`), tensors of the CPU that reach a kernel or are mixed with
those of the GPU, and where the host waits for the GPU. For processes without TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from deeprec.kernels import _library
from deeprec.kernels._door import launcher

GPU = torch.device("cuda", 0)
_setup_privateuseone_for_python_backend("shadow")
ANY = torch.device("shadow", 0)
aten = torch.ops.aten
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
# Their sizes depend on values, so the host waits for them.
OF_UNKNOWN_SIZE = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.repeat_interleave}
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # of a grid, by CUDA


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGPU:
        kept = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made: OnGPU = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=ANY, **kept)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor in name only, outside of its mode")

    @property
    def device(self) -> torch.device:
        """The GPU, to Python; to PyTorch itself a device that it can guard without CUDA."""
        return GPU

    def data_ptr(self) -> int:
        """As a GPU would place it: memory begins at multiples of 512 bytes."""
        return (1 << 20) + self.inner.storage_offset() * self.inner.element_size()

    def tolist(self) -> Any:
        """By way of a copy, as of any tensor of a GPU."""
        return self.cpu().tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"OnGPU({self.inner.dtype}, {list(self.inner.shape)})"


class Pointer:
    """What Triton sees of a tensor."""

    def __init__(self, dtype: torch.dtype, address: int) -> None:
        self.dtype, self.address = dtype, address

    def data_ptr(self) -> int:
        return self.address


class Launch(NamedTuple):
    """One specialisation of a kernel, as Triton compiles it at its first launch.

    Attributes:
        kernel: the `@triton.jit` function.
        signature: Triton types of its arguments: "constexpr" of integers that are 1, too.
        constants, attributes: by place: values of constants; what is a multiple of 16.
        options: warps, registers and the like.
        target: what it is for.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any
    target: GPUTarget

    def compile(self) -> Any:
        """As `JITFunction.run` would."""
        source = triton.compiler.ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        return triton.compile(source, target=self.target, options=self.options.__dict__)

    def words(self) -> str:
        """Kernel, types and constants, in a line; one for each specialisation."""
        given = {".".join(map(str, place)): value for place, value in self.constants.items()}
        aligned = [place[0] for place, what in self.attributes.items() if what]
        kinds = [kind for kind in self.signature.values() if kind != "constexpr"]
        more = f"num_warps={self.options.num_warps} maxnreg={self.options.maxnreg}"
        return f"{self.kernel.__name__}({', '.join(kinds)}) {given} aligned={aligned} {more}"


class GPUInName(TorchDispatchMode):
    """PyTorch's operators on tensors `OnGPU`; factories make them where a GPU is asked for.

    Attributes:
        waits: the functions of the package that waited for the GPU, by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # PyTorch then looks for no driver
        self.waits: Counter[str] = Counter()
        self.operators = {operator.name: operator for operator in _library.operators()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "deeprec":
            return self._call(func, args, kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # below autograd these come whole
                return func.decompose(*args, **kwargs)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        here = [isinstance(x, OnGPU) for x in tensors]
        packet = func.overloadpacket
        makes = "device" in kwargs and kwargs["device"] is not None
        goes = torch.device(kwargs["device"]).type == "cuda" if makes else any(here)
        is_copy = packet in (aten._to_copy, aten.copy_)
        if any(here):
            self._look(func, args, kwargs, here, is_copy, goes)
        if makes:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        names = {id(x.inner): x for x in tensors if isinstance(x, OnGPU)}
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, OnGPU) else x, (args, kwargs))
        result = func(*args, **kwargs)
        if packet in EMPTY:
            result.zero_()
        if packet is aten._local_scalar_dense or (packet is aten.copy_ and not here[0]):
            return result

        def named(x: Any) -> Any:
            if not isinstance(x, Tensor) or id(x) in names:
                return names.get(id(x), x)
            return OnGPU(x) if goes else x

        return tree_map(named, result)

    def _look(self, func: Any, args: Any, kwargs: Any, here: list[bool], is_copy: bool, goes: bool) -> None:
        packet = func.overloadpacket
        if is_copy:
            is_back = not goes if packet is aten._to_copy else not here[0]
            is_queued = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if is_back and not is_queued:
                self._waits(func)
            return
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        apart = [x for x in tensors if not isinstance(x, OnGPU) and x.dim() > 0]
        if apart and packet is not aten.index:
            raise RuntimeError(f"{func}: tensors of the GPU and of the CPU, the latter {list(apart[0].shape)}")
        masks = packet in (aten.index, aten.index_put_) and any(x.dtype == torch.bool for x in tensors[1:])
        if packet is aten._local_scalar_dense or packet is aten.equal or packet in OF_UNKNOWN_SIZE or masks:
            self._waits(func)

    def _waits(self, func: Any) -> None:
        ours = [f for f in traceback.extract_stack() if "/kernels/" in f.filename and "/tests/" not in f.filename]
        last = ours[-1] if ours else traceback.extract_stack(limit=3)[0]
        self.waits[f"{'/'.join(last.filename.split('/')[-2:])}:{last.lineno} {last.name} ({func})"] += 1

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator that a launcher calls: its own launches, then the values that it has on the CPU."""
        name, arguments = call_of(func, args, kwargs)
        operator = self.operators[name]
        serve = launcher(operator.triton, name) if operator.triton else operator.reference
        with self:
            serve(*tree_map(lambda x: OnGPU(copied(x.inner)) if isinstance(x, OnGPU) else x, arguments))
        inner = tree_map(lambda x: x.inner if isinstance(x, OnGPU) else x, arguments)
        return tree_map(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, func(*inner))


class Driver:
    """Triton's driver of a GPU of which only the kind is known."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def copied(x: Tensor) -> Tensor:
    """With the memory around it, in the same layout."""
    count = x.untyped_storage().nbytes() // x.element_size()
    memory = x.detach().as_strided((count,), (1,), 0).clone()
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


def call_of(func: Any, args: Any, kwargs: Any) -> tuple[str, list[Any]]:
    """Name of an operator of ours, and all its arguments in their order."""
    more = func._schema.arguments[len(args) :]
    name = func._schema.name.split("::")[1]
    return name, [*args, *(kwargs.get(a.name, a.default_value) for a in more)]


def on_gpu(value: Any) -> Any:
    """A copy of a tensor as one of the GPU; of all tensors of lists too. A single number stays on the CPU."""
    if isinstance(value, Tensor):
        return OnGPU(copied(value)) if value.dim() else value.clone()
    return [on_gpu(part) for part in value] if isinstance(value, (list, tuple)) else value


class Recorder:
    """Keeps the launches of operators for one kind of GPU.

    Attributes:
        launches: each specialisation once, by its words.
        waits: who waited for the GPU; see `GPUInName`.
        calls: operators that were called.
    """

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.launches: dict[str, Launch] = {}
        self.mode = GPUInName()
        self.calls: Counter[str] = Counter()
        driver.set_active(Driver(target))

    @property
    def waits(self) -> Counter[str]:
        return self.mode.waits

    def call(self, name: str, arguments: Sequence[Any]) -> None:
        """Let the launcher of an operator launch all that it has for these arguments, given on the CPU."""
        operator = self.mode.operators[name]
        if not operator.triton:
            return
        self.calls[name] += 1
        given = on_gpu(list(arguments))
        with self._patched(), self.mode:
            launcher(operator.triton, name)(*given)

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        run, recorder, make = JITFunction.run, self, torch.tensor

        def run_none(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            wide = [f"{n} programs" for n, most in zip(grid, MOST_PROGRAMS, strict=False) if n > most]
            assert not wide, f"{kernel.__name__}: {wide[0]} in a dimension of the grid {grid}"
            seen = [_seen(kernel, x) for x in args]
            named = {key: _seen(kernel, x) for key, x in kwargs.items()}
            run(kernel, *seen, grid=grid, warmup=True, **named)

        def keep(
            kernel: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attrs: Any, warmup: bool
        ) -> None:
            launch = Launch(kernel, signature, constants, attrs, options, recorder.target)
            recorder.launches[launch.words()] = launch

        def make_unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
            return make(*args, **kwargs)

        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with (
                mock.patch.object(JITFunction, "run", run_none),
                mock.patch.object(JITFunction, "_do_compile", keep),
                mock.patch.object(torch, "tensor", make_unpinned),
                mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()),
                mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
            ):
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def _seen(kernel: Any, value: Any) -> Any:
    if isinstance(value, OnGPU):
        return Pointer(value.dtype, value.data_ptr())
    if isinstance(value, Tensor):
        raise TypeError(f"{kernel.__name__}: a tensor [{list(value.shape)}] of the CPU is given to a kernel")
    return value


class Watch(TorchDispatchMode):
    """Shows every operator that is called on the CPU to a recorder, before it runs."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "deeprec":
            self.recorder.call(*call_of(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))
