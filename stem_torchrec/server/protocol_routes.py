"""The Open Inference Protocol (KServe v2) over HTTP, with binary tensors and the loading of models.

https://github.com/kserve/open-inference-protocol
"""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from stem_torchrec.server.answers import (
    ErrorAnswer,
    InferenceAnswer,
    ModelMetadata,
    ModelState,
    ServerMetadata,
    StateAnswer,
)
from stem_torchrec.server.bodies import JSON_TYPE, json_answer
from stem_torchrec.server.json_rows import parse_object
from stem_torchrec.server.refusals import RefusedError, sentence_of, shortened
from stem_torchrec.server.request_rows import RequestRows, rows_of_table
from stem_torchrec.server.scoring import Scores
from stem_torchrec.server.service import ANSWER_BYTES, Service
from stem_torchrec.server.state_routes import check_no_page, check_ready
from stem_torchrec.server.tensor_rows import table_of_tensors, tensors_of
from stem_torchrec.server.tensors import InferenceRequest, answer_parts, parse_request

HEADER_BYTES = "Inference-Header-Content-Length"
_BINARY = "application/octet-stream"
_OCTETS = {"schema": {"type": "string", "contentEncoding": "binary"}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 408, 413, 415, 422, 500, 503)
}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}}
_READY: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}, 503: {"model": ErrorAnswer}}
_LOADING: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (403, 409)}
_ANY: dict[str, Any] = {"requestBody": {"required": False, "content": {JSON_TYPE: {"schema": {"type": "object"}}}}}
_INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}, _BINARY: _OCTETS},
    }
}


def protocol_routes(service: Service) -> APIRouter:
    """The endpoints of the protocol."""
    router = APIRouter(prefix="/v2", responses={401: {"model": ErrorAnswer}})
    own_name = service.config.name

    def check_model(name: str, version: str | None = None) -> None:
        if name != own_name:
            raise RefusedError(404, f"there is no model {name!r}, only {own_name!r}.")
        current = service.current.served.version
        if version is not None and version != current:
            raise RefusedError(404, f"{name} has no version {version!r}, only {current!r}.")

    @router.get("", summary="Server metadata", response_model=ServerMetadata)
    async def server() -> Response:
        extensions = ["binary_tensor_data", "model_repository"]
        return json_answer({"name": "stem_torchrec", "version": version("stem_torchrec"), "extensions": extensions})

    @router.get("/health/live", summary="Whether the process lives", response_model=StateAnswer)
    async def live() -> Response:
        return json_answer({"status": "live"})

    @router.get("/health/ready", summary="Whether requests are wanted", response_model=StateAnswer, responses=_READY)
    async def ready() -> Response:
        check_ready(service)
        return json_answer({"status": "ready"})

    @router.get(
        "/models/{name}/ready", summary="Whether the model is ready", response_model=StateAnswer, responses=_READY
    )
    @router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str | None = None) -> Response:
        check_model(name, version)
        check_ready(service)
        return json_answer({"status": "ready"})

    @router.get("/models/{name}", summary="Model metadata", response_model=ModelMetadata, responses=_MISSING)
    @router.get("/models/{name}/versions/{version}", include_in_schema=False)
    async def model(name: str, version: str | None = None) -> Response:
        check_model(name, version)
        served = service.current.served
        return json_answer(
            {
                "name": name,
                "versions": [served.version],
                "platform": "stem_torchrec_bundle",
                "inputs": tensors_of(served.columns),
                "outputs": [{"name": task, "datatype": "FP32", "shape": [-1]} for task in served.bundle.tasks],
            }
        )

    @router.post(
        "/models/{name}/infer",
        summary="Score rows given as tensors",
        response_model=InferenceAnswer,
        responses=_REFUSED,
        openapi_extra=_INFER,
    )
    @router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Returns a tensor of predictions for each task. A wrong row makes the request fail."""
        check_model(name, version)
        length = _header_bytes(request)
        async with service.bodies.read(request) as body:
            # A swap may have come before the body.
            check_model(name, version)
            served = service.current.served

            def read() -> tuple[InferenceRequest, RequestRows]:
                inference = parse_request(body, length)
                table = table_of_tensors(inference, served.columns)
                service.check_count(table.num_rows)
                return inference, service.checked(rows_of_table(served.bundle, table))

            inference, rows = await service.read(len(body), read)
            outputs = _outputs(inference, served.bundle.tasks)
            scores = await service.score(served, rows)
        if scores.wrong:
            raise RefusedError(422, sentence_of(scores.wrong), scores.wrong)
        return await service.read(rows.count * ANSWER_BYTES, lambda: _answer(own_name, inference, outputs, scores))

    @router.post(
        "/repository/index",
        summary="The models",
        response_model=list[ModelState],
        responses=_REFUSED,
        openapi_extra=_ANY,
    )
    async def index(request: Request) -> Response:
        """Lists the model; {"ready": true} leaves it out while the server ends."""
        async with service.bodies.read(request) as body:
            content = parse_object(body or b"{}")
        if not isinstance(content.get("ready", False), bool):
            raise RefusedError(400, f"ready is {shortened(content['ready'])}, but must be true or false.")
        state, reason = ("UNAVAILABLE", "the server is about to end") if service.ending else ("READY", "")
        if service.ending and content.get("ready"):
            return json_answer([])
        version = service.current.served.version
        return json_answer([{"name": own_name, "version": version, "state": state, "reason": reason}])

    @router.post(
        "/repository/models/{name}/load",
        summary="Load the bundle again",
        responses=_REFUSED | _LOADING,
        openapi_extra=_ANY,
    )
    async def load(request: Request, name: str) -> Response:
        """Loads the path of the last swap again, or that of --bundle, as POST /admin/swap does without a name."""
        check_no_page(request)
        check_model(name)
        async with service.bodies.read(request) as body:
            parameters = parse_object(body or b"{}").get("parameters")
        if parameters:
            sentence = f"parameters is {shortened(parameters)}, but a bundle takes none; load it without."
            raise RefusedError(400, sentence)
        await service.current.swap()
        return json_answer({})

    @router.post("/repository/models/{name}/unload", summary="Refused: a bundle always answers", responses=_REFUSED)
    async def unload(name: str) -> Response:
        """Answers 400."""
        check_model(name)
        raise RefusedError(
            400, f"{name} cannot be unloaded, as a bundle always answers; POST /admin/swap takes another."
        )

    return router


def _header_bytes(request: Request) -> int | None:
    text = request.headers.get(HEADER_BYTES)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise RefusedError(400, f"{HEADER_BYTES} is {text!r}, but must be a number of bytes.")
    return int(text)


def _outputs(inference: InferenceRequest, tasks: tuple[str, ...]) -> dict[str, bool]:
    """The tasks that are asked for, and whether each comes as bytes."""
    if inference.outputs is None:
        return dict.fromkeys(tasks, inference.binary_output)
    for output in inference.outputs:
        if output.name not in tasks:
            raise RefusedError(400, f"the model has no output {output.name!r}, only {', '.join(tasks)}.")
    return {output.name: output.binary for output in inference.outputs}


def _answer(name: str, inference: InferenceRequest, outputs: dict[str, bool], scores: Scores) -> Response:
    columns = {task: (scores.predictions[:, scores.tasks.index(task)], binary) for task, binary in outputs.items()}
    content, binary = answer_parts(name, scores.served.version, inference.id, columns)
    text = to_json(content)
    if not binary:
        return Response(text, media_type=JSON_TYPE)
    return Response(text + binary, media_type=_BINARY, headers={HEADER_BYTES: str(len(text))})
