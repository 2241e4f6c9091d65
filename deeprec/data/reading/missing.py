"""Which texts are a missing value.

    everywhere              the empty text, also after the blanks around it are taken away
    where numbers stand     besides: na, n/a, #n/a, <na>, nan, null, none, \\N, ? and -, in small letters or capitals
    `missing=` of readers   texts that mean it in every column, also of categories and bags

A category may be called "NA" (Namibia) or "-", so there the second row holds only where `missing=` says so; what is
missing is a value of a category like others, so nothing is lost by either.
"""

from __future__ import annotations

# csrc/host/log_values.h has the same.
MISSING_NUMBERS = frozenset(("na", "n/a", "#n/a", "<na>", "nan", "null", "none", "\\n", "?", "-"))

# Text that stays text although it could be numbers: postcodes such as 01234, and ids that a float would change.
LEADING_ZEROS = r"^[+-]?0\d"
LONG_NUMBERS = r"^[+-]?\d{16,}$"


def means_no_number(text: str) -> bool:
    """Whether a text without blanks around it stands for a missing number; "" does too."""
    return not text or text.lower() in MISSING_NUMBERS
