"""The FastAPI application: what is asked of the service in HTTP and JSON, described by its own OpenAPI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException as AnyHTTPException

import deeprec
from deeprec.http.engine import Ask, Engine, Listing
from deeprec.http.guard import Guard, Limits
from deeprec.http.service import Service
from deeprec.http.store import Event, Overloaded

_log = logging.getLogger("deeprec")
_MOST_ITEMS = 10_000  # of a history or a list of a request
_MOST_PAIRS = 1000
_MOST_EVENTS = 1000
PAGE = Path(__file__).with_name("page.html")


def _whole_text(text: str) -> str:
    """JSON can hold half a character, which nothing can keep."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text must be Unicode, got half a character") from None
    return text


Text = Annotated[str, AfterValidator(_whole_text)]
Id = Annotated[int | Text, Field(description="As the data has it; numbers and their texts are the same.")]
Ids = Annotated[list[Id], Field(max_length=_MOST_ITEMS)]


class _Body(BaseModel):
    """A request refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


class RecommendRequest(_Body):
    """Who asks: a user, somebody with a history, or a user with what they did in this session."""

    user_id: Id | None = None
    history: Annotated[Ids | None, Field(description="Items in the order they were met.")] = None
    k: int = Field(10, ge=1)
    exclude_seen: bool = True
    allow: Annotated[Ids | None, Field(description="The only items that may come.")] = None
    deny: Annotated[Ids, Field(description="Items that may not come.")] = []
    explain: bool = False

    @model_validator(mode="after")
    def _somebody(self) -> RecommendRequest:
        if self.user_id is None and self.history is None:
            raise ValueError("user_id or history is needed")
        return self


class FeedbackEvent(_Body):
    """Something that a person did."""

    user_id: Id
    item_id: Id
    kind: Text = Field("view", max_length=100)
    time: float | None = Field(None, ge=0, le=1e11, description="Seconds since 1970; now by itself.")
    id: Text | None = Field(None, max_length=200, description="One with the id of another is not kept twice.")


class Feedback(_Body):
    """Events, the latest last."""

    events: list[FeedbackEvent] = Field(min_length=1, max_length=_MOST_EVENTS)


class Pairs(_Body):
    """Pairs of a user and an item."""

    pairs: list[tuple[Id, Id]] = Field(min_length=1, max_length=_MOST_PAIRS)


class Availability(_Body):
    """Items that may or may not be had at present."""

    items: Ids
    available: bool


class Reload(_Body):
    """The folder to serve, relative to that of the first one's; without it the same one, read again."""

    folder: Text | None = Field(None, max_length=4096)


def create_app(service: Service, limits: Limits | None = None, *, page: Path | None = PAGE) -> FastAPI:
    """The application; it starts the service, and ends it.

    Args:
        service: not started yet.
        limits: what a client may do.
        page: an HTML file that is served at "/"; None: no page.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(asyncio.to_thread(service.start))
        starting.add_done_callback(_say_failure)
        app.state.starting = starting
        yield
        with contextlib.suppress(Exception):
            await starting
        await asyncio.to_thread(service.close)

    app = FastAPI(title="deeprec", version=deeprec.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                  description="Recommendations of a trained model or pipeline.")  # fmt: skip
    app.state.service = service
    app.add_middleware(Guard, limits=limits or Limits(), observe=service.metrics.observe)
    _add_errors(app)
    _add_state(app, service)
    _add_recommendations(app, service)
    _add_events(app, service)
    _add_administration(app, service)
    if page is not None:
        _add_page(app, page)
    return app


def _say_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("serve: cannot start: %s", error)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> Response:
        details = [{"where": ".".join(map(str, each["loc"])), "what": each["msg"]} for each in error.errors()[:20]]
        return _json({"error": "the request is wrong", "details": details}, 422)

    @app.exception_handler(AnyHTTPException)
    async def said(request: Request, error: AnyHTTPException) -> Response:
        return _json({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        return _json({"error": str(error)}, 503, {"retry-after": "1"})


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/ready", summary="Whether requests are served: after a warm-up", responses={503: {"description": "not yet"}}
    )
    async def ready() -> Response:
        return _json({"ready": service.is_ready}, 200 if service.is_ready else 503)

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/info", summary="What is served")
    async def info() -> Response:
        engine = _engine(service)
        pipeline = engine.pipeline
        return _json(
            {
                "kind": engine.kind,
                "version": engine.version,
                "folder": str(engine.folder),
                "users": len(pipeline.user_ids),
                "items": len(pipeline.item_ids),
                "sources": pipeline.names,
                "stages": [stage.kind for stage in (pipeline.config.ranking, *pipeline.config.rerank)],
                "max_k": service.options.max_k,
                "events": service.store.count(),
                "can_roll_back": service.has_previous,
            }
        )


def _add_recommendations(app: FastAPI, service: Service) -> None:
    async def answered(request: RecommendRequest) -> Response:
        engine = _engine(service)
        if request.k > service.options.max_k:
            raise HTTPException(422, f"k must be <= {service.options.max_k}, got {request.k:.3g}")
        listing = await service.recommend(
            Ask(
                None if request.user_id is None else str(request.user_id),
                tuple(map(str, request.history or ())),
                request.k,
                request.exclude_seen,
                None if request.allow is None else tuple(map(str, request.allow)),
                tuple(map(str, request.deny)),
                request.explain,
            )
        )
        return _json(_listed(engine, request, listing))

    @app.get("/v1/recommend/{user_id}", summary="Recommend items to a user")
    async def recommend_to_user(
        user_id: str, k: Annotated[int, Query(ge=1)] = 10, exclude_seen: bool = True, explain: bool = False
    ) -> Response:
        return await answered(RecommendRequest(user_id=user_id, k=k, exclude_seen=exclude_seen, explain=explain))

    @app.post("/v1/recommend", summary="Recommend items to a user, or to somebody with a history")
    async def recommend(request: RecommendRequest) -> Response:
        return await answered(request)

    @app.get("/v1/similar/{item_id}", summary="Items that are like an item")
    async def similar(item_id: str, k: Annotated[int, Query(ge=1)] = 10) -> Response:
        engine = _engine(service)
        if k > service.options.max_k:
            raise HTTPException(422, f"k must be <= {service.options.max_k}, got {k:.3g}")
        try:
            near = await asyncio.to_thread(engine.similar, item_id, k)
        except KeyError:
            raise HTTPException(404, f"unknown item {item_id[:100]!r}") from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        items = [{"item_id": item, "score": score, **engine.described(item)} for item, score in near]
        return _json({"item_id": item_id, "items": items, "version": engine.version})

    @app.post("/v1/score", summary="Scores of pairs of a user and an item")
    async def score(request: Pairs) -> Response:
        engine = _engine(service)
        pairs = [(str(user), str(item)) for user, item in request.pairs]
        return _json({"scores": await asyncio.to_thread(engine.scores, pairs), "version": engine.version})


def _listed(engine: Engine, request: RecommendRequest, listing: Listing) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for place, (item, score) in enumerate(zip(listing.items, listing.scores, strict=True)):
        why = listing.reasons[place] if listing.reasons else {}
        items.append({"item_id": item, "score": score, **engine.described(item), **why})
    answer = {"items": items, "is_known": listing.is_known, "fallback": listing.fallback or None}
    if request.user_id is not None:
        answer["user_id"] = request.user_id
    if listing.unknown_items:
        answer["unknown_items"] = listing.unknown_items
    if listing.stages:
        answer["stages"] = [
            {"stage": name, "items": [{"item_id": item, **engine.described(item)} for item in items]}
            for name, items in listing.stages
        ]
    return {**answer, "version": engine.version}


def _add_events(app: FastAPI, service: Service) -> None:
    @app.post("/v1/feedback", summary="What people did; visible to their next request", status_code=201)
    async def feedback(request: Feedback) -> Response:
        events = [
            Event(str(each.user_id), str(each.item_id), each.kind, each.time or 0.0, each.id) for each in request.events
        ]
        kept = await service.written(service.store.add(events))
        return _json({"kept": kept}, 201)

    @app.get("/v1/users/{user_id}/events", summary="Items of a user's last events")
    async def events(user_id: str) -> Response:
        engine, items = service.engine, service.store.of_user(user_id)
        described = (lambda item: {}) if engine is None else engine.described
        return _json({"user_id": user_id, "items": [{"item_id": item, **described(item)} for item in items]})

    @app.get("/v1/users/{user_id}/history", summary="Items that a user met: in the data, then while being served")
    async def history(user_id: str, last: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        engine = _engine(service)
        items = [*engine.met(user_id, last), *service.store.of_user(user_id)][-last:]
        return _json({"user_id": user_id, "items": [{"item_id": item, **engine.described(item)} for item in items]})

    @app.delete("/v1/users/{user_id}/events", summary="Forget what a user did while being served")
    async def forget(user_id: str) -> Response:
        return _json({"forgotten": await service.written(service.store.forget(user_id))})

    @app.post("/v1/availability", summary="Take items out for everybody, or put them back")
    async def availability(request: Availability) -> Response:
        items = [str(item) for item in request.items]
        return _json({"changed": await service.written(service.store.set_available(items, request.available))})


def _add_administration(app: FastAPI, service: Service) -> None:
    @app.post("/v1/reload", summary="Serve another folder, or the same one read again, without a break")
    async def reload(request: Reload) -> Response:
        try:
            place = None if request.folder is None else service.place_of(request.folder)
            engine = await asyncio.to_thread(service.reload, place)
        except (ValueError, OSError) as error:
            raise HTTPException(409, f"still serving what was there: {error}") from None
        return _json({"kind": engine.kind, "version": engine.version, "folder": str(engine.folder)})

    @app.post("/v1/rollback", summary="Serve what was served before the last reload")
    async def rollback() -> Response:
        try:
            engine = service.roll_back()
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        return _json({"kind": engine.kind, "version": engine.version, "folder": str(engine.folder)})


def _add_page(app: FastAPI, page: Path) -> None:
    content = page.read_bytes()

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src *"
        )
        return Response(content, media_type="text/html; charset=utf-8", headers={"content-security-policy": policy})


def _engine(service: Service) -> Engine:
    if service.engine is None:
        raise HTTPException(503, "the model is being loaded", {"retry-after": "1"})
    return service.engine


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(content, status, media_type="application/json", headers=headers)
