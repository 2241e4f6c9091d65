"""Text from data as it may be put on a terminal or into a comment: nothing in it acts, everything can be seen."""

from __future__ import annotations

import re

# Control characters, ends of lines and paragraphs, marks that turn the direction of text, halves of surrogate pairs.
_ACTS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(value: object, limit: int | None = None) -> str:
    r"""`str(value)` with escapes (\n, \x1b, \u202e) for the characters that a terminal would obey.

    Args:
        limit: of more characters the first are shown, and how many there are.

    >>> visible("a\nb")
    'a\\nb'
    >>> visible("a" * 100, 10)
    'aaaaaaaaaa... (100 characters)'
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        return f"{visible(text[:limit])}... ({len(text):,} characters)"
    return _ACTS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)
