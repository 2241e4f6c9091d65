"""What stands before every request: its size, a key, a limit for each client, and the clock."""

from __future__ import annotations

import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_OPEN = ("/health", "/ready", "/")  # asked by machines that know no key; the page asks for one
_MOST_CLIENTS = 10_000


@dataclass(frozen=True)
class Limits:
    """What a client may do.

    Attributes:
        api_key: that requests carry in X-API-Key, or behind "Authorization: Bearer "; "": none.
        requests_per_second: of a client (its key, or its address), > 0; 0: any number.
        burst: requests that may come at once, >= 1.
        max_bytes: of a request, >= 1.
    """

    api_key: str = ""
    requests_per_second: float = 0.0
    burst: int = 50
    max_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.requests_per_second < 0 or self.burst < 1 or self.max_bytes < 1:
            raise ValueError(
                "serve: requests_per_second must be >= 0, burst and max_bytes >= 1, got "
                f"{self.requests_per_second}, {self.burst} and {self.max_bytes}; leave them out"
            )


@dataclass
class _Body:
    """What has come of a request.

    Attributes:
        received: bytes.
        is_too_large: whether that is more than may come.
    """

    received: int = 0
    is_too_large: bool = False


class Guard:
    """ASGI middleware.

    Args:
        app: what answers.
        limits: what a client may do.
        observe: told (path of the route, status, seconds) of each answer.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        observe: Callable[[str, int, float], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.limits, self.observe, self.now = app, limits, observe, now
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        headers, body = dict(scope["headers"]), _Body()
        begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status, begun
            if body.is_too_large and not begun:
                return  # what the application says of half a body is not what went wrong
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        try:
            refused = self._refusal(scope, headers)
            if refused is not None:
                await _refuse(sending, *refused)
            else:
                await self.app(scope, self._bounded(receive, body), sending)
            if body.is_too_large and not begun:
                status, words = 413, f"a request may have {self.limits.max_bytes:,} bytes, this one has more"
                await _refuse(send, status, words, {})
        finally:
            route = scope.get("route")
            self.observe(getattr(route, "path", "other"), status, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, dict[str, str]] | None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.max_bytes:
            words = f"a request may have {self.limits.max_bytes:,} bytes, this one has {length.decode('latin-1')[:20]}"
            return 413, words, {}
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        key = self.limits.api_key
        if key and scope["path"] not in _OPEN and not hmac.compare_digest(given, key.encode()):
            return 401, "a key is needed in the header X-API-Key", {"www-authenticate": "Bearer"}
        rate = self.limits.requests_per_second
        if rate and scope["path"] not in _OPEN:
            client = scope.get("client")
            wait = self._wait("key " + given.decode("latin-1") if key else client[0] if client else "", rate)
            if wait > 0:
                return 429, f"{rate:g} requests a second are allowed", {"retry-after": str(max(1, round(wait)))}
        return None

    def _wait(self, client: str, rate: float) -> float:
        """Seconds until the client may ask again; 0: now, and then it has asked. A bucket of tokens for each."""
        now = self.now()
        tokens, then = self._tokens.pop(client, (float(self.limits.burst), now))
        tokens = min(float(self.limits.burst), tokens + (now - then) * rate)
        is_allowed = tokens >= 1
        self._tokens[client] = (tokens - 1 if is_allowed else tokens, now)
        while len(self._tokens) > _MOST_CLIENTS:
            self._tokens.popitem(last=False)
        return 0.0 if is_allowed else (1 - tokens) / rate

    def _bounded(self, receive: Receive, body: _Body) -> Receive:
        """What comes without a length is counted on the way, and is over where it is too much."""

        async def receiving() -> MutableMapping[str, Any]:
            message = await receive()
            body.received += len(message.get("body", b""))
            if body.received > self.limits.max_bytes:
                body.is_too_large = True
                return {"type": "http.request", "body": b"", "more_body": False}
            return message

        return receiving


async def _refuse(send: Send, status: int, words: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": words}).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
