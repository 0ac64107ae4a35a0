"""Health, readiness, metrics and the swap to another bundle."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from stem_torchrec.runtime.errors import reason_of
from stem_torchrec.server.answers import ErrorAnswer, ReadyAnswer, StateAnswer, SwapRequest
from stem_torchrec.server.bodies import JSON_TYPE, json_answer, media_type
from stem_torchrec.server.json_rows import parse_object
from stem_torchrec.server.refusals import RefusedError
from stem_torchrec.server.served_bundle import ServedBundle
from stem_torchrec.server.service import Service

_REFUSED = {"model": ErrorAnswer, "description": "The request is refused; the present bundle goes on."}


def state_routes(service: Service) -> APIRouter:
    """The endpoints for operators."""
    router = APIRouter()

    @router.get("/health", summary="Whether the process lives", response_model=StateAnswer)
    async def health() -> Response:
        return json_answer({"status": "live"})

    @router.get(
        "/ready",
        summary="Whether requests are wanted",
        response_model=ReadyAnswer,
        responses={503: {"model": ErrorAnswer}},
    )
    async def ready() -> Response:
        check_ready(service)
        return json_answer({"status": "ready"} | _bundle(service.current.served))

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.post(
        "/admin/swap",
        summary="Let another bundle answer",
        response_model=ReadyAnswer,
        responses={status: _REFUSED for status in (400, 401, 403, 408, 409, 413, 415, 422, 503)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/SwapRequest"}}},
            }
        },
    )
    async def swap(request: Request) -> Response:
        """Loads a bundle, warms it up and lets it answer; if it cannot be loaded, the present one goes on."""
        check_no_page(request)
        media_type(request, known=(JSON_TYPE,))
        async with service.bodies.read(request) as body:
            content = parse_object(body or b"{}")
        try:
            wanted = SwapRequest.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise RefusedError(422, f"{place}: {reason_of(ValueError(problem['msg']))}.") from error
        served = await service.current.swap(wanted.bundle, allow_changes=wanted.allow_changes)
        return json_answer({"status": "ready"} | _bundle(served))

    return router


def check_ready(service: Service) -> None:
    """Raises RefusedError if the server is about to end."""
    if service.ending:
        raise RefusedError(503, "the server is about to end.", headers={"Retry-After": "1"})


def check_no_page(request: Request) -> None:
    """Raises RefusedError for a request of a web page, which a browser on this machine may send without a token."""
    if "origin" in request.headers:
        raise RefusedError(403, "web pages may not change the server.")


def _bundle(served: ServedBundle) -> dict[str, str]:
    return {"version": served.version, "bundle": str(served.bundle.folder)}
