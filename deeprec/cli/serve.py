"""`deeprec serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import deeprec
from deeprec._files import read_regular
from deeprec.cli import folder
from deeprec.cli.console import say
from deeprec.cli.settings import DEVICE_HELP

KEY = "DEEPREC_API_KEY"


def serve(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder, or a pipeline folder.")],
    host: Annotated[str, typer.Option("--host", help="Another than 127.0.0.1 lets others in, and needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    state: Annotated[
        Path | None, typer.Option("--state", help="The SQLite file of events; DIR with .events.sqlite by itself.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help=f"A file with the key that requests carry; or set {KEY}.")
    ] = None,
    is_open: Annotated[bool, typer.Option("--open", help="Let others in without a key.")] = False,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Requests a second of a client; 0: any number.")] = 0,
    burst: Annotated[int, typer.Option("--burst", min=1, help="Requests of a client that may come at once.")] = 50,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Of a request.")] = 1 << 20,
    max_k: Annotated[int, typer.Option("--max-k", min=1, help="Longest list.")] = 200,
    timeout_ms: Annotated[
        float, typer.Option("--timeout-ms", min=1, help="After which popular items are the answer.")
    ] = 250,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Requests computed together.")] = 32,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=1, help="Requests that may wait.")] = 1000,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folders below it may be served by request; that of DIR by itself.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
) -> None:
    """Serve a model or pipeline over HTTP: recommendations, similar items, scores, events, metrics.

    Then: curl http://127.0.0.1:8000/v1/recommend/42
    """
    key = os.environ.get(KEY, "")
    if key_file is not None:
        key = read_regular(key_file, "serve: --api-key-file", "name a file with a key").decode("utf-8").strip()
        if not key:
            raise ValueError(f"serve: --api-key-file {key_file} must hold a key, got nothing; write one into it")
    http = deeprec.http  # here, so that the help waits for nothing
    options = http.ServiceOptions(
        device=device,
        max_k=max_k,
        max_batch=max_batch,
        max_waiting=max_waiting,
        timeout=timeout_ms / 1000,
        root=root,
    )
    limits = http.Limits(key, rate, burst, max_bytes)
    engine = http.Engine.load(
        directory, device=device, max_k=max_k, titles=folder.titles_of
    )  # a wrong folder ends here
    place = state if state is not None else directory.with_name(f"{directory.name}.events.sqlite")
    store = http.EventStore(place, max_users=options.max_users, max_events=options.max_events)
    service = http.Service(directory, store, options, titles=folder.titles_of, engine=engine)
    say(f"serving   {engine.kind} {engine.version} of {directory}, {len(engine.items):,} items")
    say(f"events    {store.count():,} in {place}")
    say(f"listening http://{host}:{port}  (/, /v1/recommend/USER, /metrics, /openapi.json)")
    del engine
    http.run(http.create_app(service, limits), host=host, port=port, limits=limits, is_open=is_open)
