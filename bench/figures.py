"""Figures in words, for the tables of the benches; "-" where there is none."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """With three figures and a fitting unit."""
    if value is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def fraction(value: float | None) -> str:
    """Per cent."""
    return "-" if value is None else f"{value:.0%}"


def ratio(value: float | None) -> str:
    """How many times."""
    return "-" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
