"""POST /score: rows as JSON or as a stream of Arrow, and their predictions in the same form."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from stem_torchrec.server.answers import ErrorAnswer, ScoreAnswer
from stem_torchrec.server.arrow_rows import ARROW_TYPE, read_stream, write_stream
from stem_torchrec.server.bodies import JSON_TYPE, media_type
from stem_torchrec.server.json_rows import parse_rows, rows_of_json
from stem_torchrec.server.refusals import RefusedError, sentence_of
from stem_torchrec.server.request_rows import RequestRows, rows_of_table
from stem_torchrec.server.scoring import Scores
from stem_torchrec.server.served_bundle import ServedBundle
from stem_torchrec.server.service import ANSWER_BYTES, Service

_BODIES = {
    JSON_TYPE: {"schema": {"$ref": "#/components/schemas/ScoreRequest"}},
    ARROW_TYPE: {"schema": {"type": "string", "contentEncoding": "binary"}},
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ScoreAnswer,
        "description": "At least one row was scored, or there was none.",
        "content": {ARROW_TYPE: {"schema": {"type": "string", "contentEncoding": "binary"}}},
    },
    **{
        status: {"model": ErrorAnswer, "description": text}
        for status, text in {
            400: "The body is not what its type says.",
            401: "The token is missing or wrong.",
            408: "The body did not come in time.",
            413: "The body or the number of rows is too large.",
            415: "The type of the body is not known.",
            422: "Every row is wrong, or a column of Arrow.",
            500: "The server failed.",
            503: "Too many rows wait; ask again after Retry-After.",
        }.items()
    },
}


def score_routes(service: Service) -> APIRouter:
    """The endpoint that scores rows."""
    router = APIRouter()

    @router.post(
        "/score",
        summary="Score rows",
        responses=_ANSWERS,
        openapi_extra={"requestBody": {"required": True, "content": _BODIES}},
    )
    async def score(request: Request) -> Response:
        """Returns the prediction of each task for each row; a wrong row gets its reason, and the others are scored."""
        kind = media_type(request, known=(JSON_TYPE, ARROW_TYPE))
        read = _read_json if kind == JSON_TYPE else _read_arrow
        async with service.bodies.read(request) as body:
            served = service.current.served
            rows = await service.read(len(body), lambda: read(service, served, body))
            scores = await service.score(served, rows)
        if scores.wrong and len(scores.wrong) == rows.count:
            raise RefusedError(422, sentence_of(scores.wrong), scores.wrong)
        write = _write_json if kind == JSON_TYPE else _write_arrow
        return Response(await service.read(rows.count * ANSWER_BYTES, lambda: write(scores)), media_type=kind)

    return router


def _read_json(service: Service, served: ServedBundle, body: bytearray) -> RequestRows:
    rows = parse_rows(body)
    service.check_count(len(rows))
    return service.checked(rows_of_json(rows, served.columns))


def _read_arrow(service: Service, served: ServedBundle, body: bytearray) -> RequestRows:
    table = read_stream(body, max_rows=service.limits.rows)
    return service.checked(rows_of_table(served.bundle, table))


def _write_json(scores: Scores) -> bytes:
    wrong, tasks = {each.row for each in scores.wrong}, scores.tasks
    predictions = [
        None if i in wrong else dict(zip(tasks, row, strict=True)) for i, row in enumerate(scores.predictions.tolist())
    ]
    errors = [asdict(each) for each in scores.wrong]
    return to_json({"version": scores.served.version, "predictions": predictions, "errors": errors})


def _write_arrow(scores: Scores) -> bytes:
    return write_stream(scores.predictions, scores.tasks, {each.row: each.reason for each in scores.wrong})
