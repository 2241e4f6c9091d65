"""A pipeline folder, a model folder, and a client of a service that is warm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from fastapi.testclient import TestClient

import deeprec
from deeprec.data import Interactions, synthetic
from deeprec.http import EventStore, Limits, Service, ServiceOptions, create_app
from deeprec.pipeline import ItemToItem, ModelSource, Pipeline, PipelineConfig, Popularity

CASER = {"name": "caser", "metrics": ["ndcg", "recall"], "cutoffs": [10]}


@pytest.fixture(scope="session")
def data() -> Interactions:
    return synthetic(num_users=200, num_items=150, num_interactions=8_000, seed=5)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="session")
def folder(data: Interactions, root: Path) -> Path:
    sources = (ModelSource("ease", "ease", quota=60), Popularity(quota=40), ItemToItem("ease", quota=30))
    made = Pipeline.fit(PipelineConfig(sources, protocol=CASER), data, measure=False)
    return made.save(root / "pipeline")


@pytest.fixture(scope="session")
def model_folder(data: Interactions, root: Path) -> Path:
    return deeprec.models.EASE().fit(data, baselines=False).save(root / "ease")


Client = Callable[..., Any]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Client]:
    """A function that serves a folder and gives a client when it is ready."""
    clients: list[TestClient] = []

    def start(
        folder: Path, *, state: str | Path = ":memory:", limits: Limits | None = None, **options: Any
    ) -> TestClient:
        store = EventStore(state)
        service = Service(folder, store, ServiceOptions(**{"timeout": 30.0, "warm_up": 5, **options}))
        client = TestClient(create_app(service, limits), raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        for _ in range(1000):
            if service.is_ready:
                return client
            time.sleep(0.02)
        raise AssertionError("never ready")

    yield start
    for client in clients:
        client.__exit__(None, None, None)
