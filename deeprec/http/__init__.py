"""Serving over HTTP: a model or pipeline folder, events, metrics, and exchange of the model while it is asked."""

from __future__ import annotations

from deeprec._install import install_command

try:
    import fastapi as fastapi
    import prometheus_client as prometheus_client
    import uvicorn as uvicorn
except ImportError as error:
    raise ImportError(
        f"deeprec.http needs fastapi, uvicorn and prometheus-client ({error}); install them: {install_command('serve')}"
    ) from None

from deeprec.http.app import create_app
from deeprec.http.engine import Engine
from deeprec.http.guard import Limits
from deeprec.http.run import run
from deeprec.http.service import Service, ServiceOptions
from deeprec.http.store import Event, EventStore

__all__ = ["Engine", "Event", "EventStore", "Limits", "Service", "ServiceOptions", "create_app", "run"]
