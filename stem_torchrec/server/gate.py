"""What stands before every endpoint: the token, the clock, the counters, and an answer to whatever is raised."""

import asyncio
import hmac
import sys
import time
import traceback
from collections.abc import MutableMapping
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from stem_torchrec.server.bodies import refusal
from stem_torchrec.server.metrics import Metrics
from stem_torchrec.server.refusals import RefusedError

OPEN = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token, as probes send none."""
LOADING = ("/admin/swap", "/v2/repository/")
"""Where the paths begin of requests that load bundles."""
_SLOWEST = 3
"""Times --limits.seconds after which a request is dropped: for its body, its scores, and sending the answer."""


FAILED = RefusedError(500, "the server failed; its log has the reason.")


class Gate:
    """An ASGI application before another.

    Args:
        app: whose routes name the endpoints in metrics.
        metrics: which count the answers.
        token: that requests must send, unless it is None.
        seconds: of --limits.seconds.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, token: str | None, seconds: float) -> None:
        self._app = app
        self._metrics = metrics
        self._token = None if token is None else token.encode()
        self._seconds = seconds
        self.cut_off = 0
        """Requests that the end of the server left without an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            # A large bundle takes longer to load than any row to score.
            loads = scope["path"].startswith(LOADING)
            async with asyncio.timeout(None if loads else _SLOWEST * self._seconds):
                await self._answer(scope, receive, counted)
        except TimeoutError:
            # The client does not read its answer; uvicorn closes the connection.
            if status:
                raise
            await refusal(RefusedError(503, "the request took too long."))(scope, receive, counted)
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        # What no endpoint foresees must not tell a client about the server.
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not status:
                await refusal(FAILED)(scope, receive, counted)
        finally:
            endpoint = _endpoint(scope)
            self._metrics.requests.labels(endpoint, status).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._token is not None and scope["path"] not in OPEN and not self._may_pass(scope):
            error = RefusedError(
                401, "send the token: Authorization: Bearer TOKEN.", headers={"WWW-Authenticate": "Bearer"}
            )
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        assert self._token is not None
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = sent.partition(b" ")
        # In a time that does not depend on how much of it is right.
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


def _endpoint(scope: Scope) -> str:
    """The path of the route that has answered, so that there are few; `other` for an unknown path."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else "other"
