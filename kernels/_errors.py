"""Errors of the compiled kernels: they cross PyTorch's stable ABI as RuntimeError; the message names the kind."""

from __future__ import annotations

import re

_KINDS: dict[str, type[Exception]] = {"IndexError": IndexError, "ValueError": ValueError, "TypeError": TypeError}
# What a kernel's only calls into torch, allocations and copies, say when they fail.
_NO_MEMORY = "API call failed at"
_PATTERN = re.compile(rf"\b({'|'.join(_KINDS)}): (.*)")


def translate(error: RuntimeError) -> Exception:
    """The exception that a kernel meant: its message contains "IndexError: ...", "ValueError: ..." or "TypeError: ...".

    Returns:
        that exception, or `error` itself where the message names no kind.

    >>> translate(RuntimeError("IndexError: embedding: ids must lie in [0, 5), got 7 at position 0"))
    IndexError('embedding: ids must lie in [0, 5), got 7 at position 0')
    """
    if _NO_MEMORY in str(error):
        return MemoryError("no memory for the result or for a copy of an argument; ask for less at a time")
    match = _PATTERN.search(str(error))
    return _KINDS[match.group(1)](match.group(2).strip()) if match else error
