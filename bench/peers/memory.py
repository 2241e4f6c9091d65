"""Memory of this process, as Linux tells it, MiB; stands alone, for environments of other libraries too."""

from __future__ import annotations

from pathlib import Path


def held() -> float:
    """What it holds now."""
    return _line("VmRSS:")


def high_water() -> float:
    """The most that it has held since `start_high_water`, or since it began."""
    return _line("VmHWM:")


def start_high_water() -> None:
    """Count the most from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _line(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
