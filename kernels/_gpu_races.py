"""Memory that one thread of a Triton program writes while another may still have to read it, seen in the compiled IR.

Threads of a program that hold the same number all load it, and one of them stores it. Where a program reads and
rewrites a cell that is narrower than its tiles (the step of a row, the sum of a row), a slow warp would read the new
number unless `tl.debug_barrier()` stands between; so would it where a second loop stores rows that a first one read.
Cells of a tile that are read and written in the same turn of a loop are each one thread's own, or of threads whose
result nobody stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_NAME = r"%[\w$.-]+"
# Operations whose result points into what their first operand points to.
_SAME_MEMORY = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.bitcast")
_BY_ELEMENT = ("arith.", "math.", "tt.fp_to_fp", "tt.extern_elementwise")


class _Op(NamedTuple):
    """A line of Triton's IR: what it defines and reads, the rank of the pointers, the loops and branches around it."""

    number: int
    name: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    rank: int
    region: tuple[int, ...]


def _operations(ttir: str) -> list[_Op]:
    """The lines in order, with one name for each value: the printer uses them again in the next loop."""
    ops: list[_Op] = []
    region: list[int] = []
    scopes: list[dict[str, str]] = [{}]
    for number, whole in enumerate(ttir.splitlines()):
        line = re.sub(r"\bloc\([^()]*(\([^()]*\))?\)", "", whole).strip()
        if line.startswith("}"):  # the end of a loop, or of one branch where the next begins
            region.pop()
            scopes.pop()
        left, equals, right = line.partition(" = ")
        left, right = (left, right) if equals and left.startswith("%") else ("", line)
        known = {name: unique for scope in scopes for name, unique in scope.items()}
        if match := re.match(r'"?([\w.]+)"?', right):
            shape = re.search(r"tensor<((?:\d+x)*)!tt\.ptr", right)
            rank = shape.group(1).count("x") if shape else 0
            names = [name.split(":")[0] for name in re.findall(_NAME + r"(?::\d+)?", left)]
            results = tuple(f"{name}@{number}" for name in names)
            operands = tuple(known.get(name, name) for name in re.findall(_NAME, right))
            ops.append(_Op(number, match.group(1), results, operands, rank, tuple(region)))
            scopes[-1] |= dict(zip(names, results, strict=True))
        if line.endswith("{"):
            region.append(number)
            scopes.append({name: f"{name}@{number}" for name in re.findall(_NAME, right) if name not in known})
    return ops


def _stays_private(load: _Op, store: _Op, ops: Iterable[_Op]) -> bool:
    """Whether what is loaded reaches only the store, number by number: only the thread that stores it uses it."""
    known = set(load.results)
    for op in ops:
        if op.number <= load.number or not known.intersection(op.operands):
            continue
        if op.name == "tt.store":
            if op != store or known.intersection((op.operands[0], *op.operands[2:])):
                return False
        elif not op.name.startswith(_BY_ELEMENT):
            return False
        known.update(op.results)
    return True


def unguarded(ttir: str) -> list[str]:
    """Stores to memory that another thread of the program may still have to read, or has yet to see.

    Args:
        ttir: Triton's IR of a kernel, before layouts, as `compiled.asm["ttir"]` has it.
    Returns:
        A sentence for each pair of a load and a store without a barrier between them.
    """
    ops = _operations(ttir)
    makers = {name: op for op in ops for name in op.results}

    def memory(name: str) -> str:
        while (op := makers.get(name)) and op.name in _SAME_MEMORY:
            name = op.operands[0]
        return name

    loads = [op for op in ops if op.name == "tt.load"]
    stores = [op for op in ops if op.name == "tt.store"]
    barriers = [op for op in ops if op.name.endswith("barrier")]
    widest = max((op.rank for op in [*loads, *stores]), default=0)

    def is_guarded(first: _Op, last: _Op, around: tuple[int, ...]) -> bool:
        """Whether all that goes from one to the other, in the next turn of `around` if any, passes a barrier."""
        for op in barriers:
            is_passed = any(at.region[: len(op.region)] == op.region for at in (first, last))
            if around:
                is_between = op.region[: len(around)] == around and not last.number < op.number < first.number
            else:
                is_between = first.number < op.number < last.number
            if is_passed and is_between:
                return True
        return False

    out = []
    for load in loads:
        for store in stores:
            if memory(load.operands[0]) != memory(store.operands[0]):
                continue
            is_one_turn = load.region == store.region and load.rank == store.rank
            is_one_turn &= load.rank == widest or load.operands[0] != store.operands[0]
            around = _loops_of(load, store)
            late = f"{store.operands[0]} is stored where a thread may still have to load {load.results[0]}"
            early = f"{load.results[0]} is loaded where a thread may not have stored {store.operands[0]} yet"
            if load.number < store.number:
                is_fine = is_one_turn or is_guarded(load, store, ()) or _stays_private(load, store, ops)
                out += [] if is_fine else [late]
            else:
                out += [] if is_one_turn or is_guarded(store, load, ()) else [early]
            if around and not is_guarded(store, load, around):
                out.append(early)
    return out


def without_barriers(ttir: str) -> str:
    """The IR as if nobody had written `tl.debug_barrier()`, to see what it is there for."""
    return "\n".join(line for line in ttir.splitlines() if not re.match(r"\s*\w+\.barrier\b", line))


def _loops_of(load: _Op, store: _Op) -> tuple[int, ...]:
    """The regions around both, of whose next turn one may meet the cell of the other; a loop's own turns do not."""
    both = tuple(a for a, b in zip(load.region, store.region, strict=False) if a == b)
    both = both[:-1] if load.region == store.region else both
    return both if len(both) > 2 else ()  # module and function
