from __future__ import annotations

SOURCES: dict[str, object] = {}
