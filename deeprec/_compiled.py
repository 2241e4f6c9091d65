"""deeprec._host where it is there and as new as the Python beside it; None, and slower Python, otherwise."""

from __future__ import annotations

import logging
from typing import Any

LOG_VERSION = 2  # csrc/host/log.cpp has the same number: raised when the arguments or results of its functions change


def _load() -> Any:
    try:
        from deeprec import _host  # type: ignore[attr-defined, unused-ignore]
    except ImportError:  # no compiler at installation
        return None
    if getattr(_host, "LOG_VERSION", 0) != LOG_VERSION:
        logging.getLogger("deeprec").warning(
            "deeprec._host is of another version than the Python sources, so that logs are read thirty times slower; "
            "run make build, or install again"
        )
        return None
    return _host


host = _load()


def host_function(name: str) -> Any:
    """A function of `host`; None where there is none, or a build that is older than the function."""
    return getattr(host, name, None)
