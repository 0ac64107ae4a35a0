"""The ASGI application: its endpoints, what it answers to errors, and what stands before it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from stem_torchrec.server.bodies import json_answer, refusal
from stem_torchrec.server.gate import FAILED, Gate
from stem_torchrec.server.protocol_routes import protocol_routes
from stem_torchrec.server.refusals import RefusedError
from stem_torchrec.server.schemas import openapi_of
from stem_torchrec.server.score_routes import score_routes
from stem_torchrec.server.service import Service
from stem_torchrec.server.state_routes import state_routes


def build_application(service: Service, *, token: str | None) -> Gate:
    """The application of a server.

    Args:
        service: what its endpoints share.
        token: that requests must send, unless it is None.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # The pages of /docs load scripts from the network.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for router in (score_routes(service), state_routes(service), protocol_routes(service)):
        app.include_router(router)
    documents: dict[str, dict[str, Any]] = {}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        served = service.current.served
        if served.version not in documents:
            documents.clear()
            documents[served.version] = openapi_of(app, served, token=token is not None)
        return json_answer(documents[served.version])

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return refusal(
            RefusedError(error.status_code, f"{error.detail}: {request.url.path}", headers=error.headers or {})
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refusal(RefusedError(422, f"the request is not valid: {error.errors()[0]['msg']}."))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal(FAILED)

    return Gate(app, service.metrics, token=token, seconds=service.limits.seconds)
