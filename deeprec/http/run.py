"""The server: an application behind uvicorn, on the loopback address unless it is told otherwise."""

from __future__ import annotations

import ipaddress
import logging
import signal
import threading

import uvicorn
from fastapi import FastAPI

from deeprec.http.guard import Limits
from deeprec.http.service import Service

_log = logging.getLogger("deeprec")
_SECONDS_TO_END = 10


def run(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, limits: Limits, is_open: bool = False) -> None:
    """Serve until a signal ends it; what is being answered is answered first, and SIGHUP reads the folder again.

    Args:
        app: of `create_app`.
        host, port: where to listen.
        limits: of the application; another address than loopback needs a key.
        is_open: whether others may ask without a key.
    Raises:
        ValueError: a host that others reach, without a key.
    """
    if not is_loopback(host) and not limits.api_key and not is_open:
        raise ValueError(
            f"serve: host {host} lets others in; give a key (--api-key-file FILE, or DEEPREC_API_KEY), or say --open"
        )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=_SECONDS_TO_END,
        limit_concurrency=4096,
        server_header=False,
    )
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, lambda *_: _reload_soon(app.state.service))
    uvicorn.Server(config).run()


def is_loopback(host: str) -> bool:
    """Whether nobody else reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reload_soon(service: Service) -> None:
    """A signal handler must not wait."""

    def reload() -> None:
        try:
            service.reload()
        except (ValueError, OSError) as error:
            _log.error("serve: still serving what was there: %s", error)

    threading.Thread(target=reload, name="deeprec-reload", daemon=True).start()
