"""The remedy half of an error message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 20  # names in a message


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The closest of `options` to `word` as a question, or all of them where none is close.

    Args:
        word: what the caller typed; any case.
        options: the names that would have been accepted.
    Returns:
        "did you mean 'x'?", or "choose from a, b, c" (of many the first), without a final full stop, to be put
        after "; ".

    >>> did_you_mean("neufm", ["gmf", "neumf"])
    "did you mean 'neumf'?"
    >>> did_you_mean("zzz", ["gmf", "neumf"])
    'choose from gmf, neumf'
    """
    names = sorted({str(option) for option in options})
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{by_lower[close[0]]}'?"
    return f"choose from {', '.join(_first(names))}" if names else "there is nothing to choose from"


def listed(names: Iterable[str]) -> str:
    """The names as a Python list, of many the first and how many more there are.

    >>> listed(["a", "b"])
    "['a', 'b']"
    """
    return f"[{', '.join(_first([repr(name) for name in names]))}]"


def _first(words: list[str]) -> list[str]:
    left = len(words) - _MOST
    return words if left <= 0 else [*words[:_MOST], f"... {left:,} more"]
