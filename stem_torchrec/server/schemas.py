"""The OpenAPI of the server, with the features of the bundle that answers and a row that it scores."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stem_torchrec.expressions.value_types import (
    BOOL,
    DATE,
    FLOAT,
    GREATEST_INT,
    INT,
    LEAST_INT,
    LISTS,
    TEXT,
    TIMESTAMP,
    ValueType,
)
from stem_torchrec.server.answers import SwapRequest, Tensor
from stem_torchrec.server.gate import OPEN
from stem_torchrec.server.input_columns import InputColumn
from stem_torchrec.server.served_bundle import ServedBundle

_INT = {"type": "integer", "minimum": LEAST_INT, "maximum": GREATEST_INT}
_SCHEMAS: dict[ValueType, dict[str, Any]] = {
    BOOL: {"type": "boolean"},
    INT: _INT,
    FLOAT: {"type": "number"},
    TEXT: {"type": "string"},
    TIMESTAMP: {"description": "A time of ISO 8601, or microseconds since 1970.", "oneOf": [{"type": "string"}, _INT]},
    DATE: {"description": "A date of ISO 8601, or days since 1970.", "oneOf": [{"type": "string"}, _INT]},
}
_NULL = {"type": "null"}


def openapi_of(app: FastAPI, served: ServedBundle, *, token: bool) -> dict[str, Any]:
    """The document of /openapi.json.

    Args:
        app: whose routes it describes.
        served: the bundle that answers.
        token: whether requests need one.
    """
    content = get_openapi(
        title="stem-serve",
        version=served.version,
        summary=f"Scores {', '.join(served.bundle.tasks)}",
        routes=app.routes,
    )
    schemas = content.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {
        "Row": {
            "type": "object",
            "description": "The features of a row; null where a value is missing. Other columns are not read.",
            "required": list(served.columns),
            "properties": {name: _schema_of(column) for name, column in served.columns.items()},
            "example": served.example,
        },
        "ScoreRequest": {
            "description": "Rows, or one row.",
            "anyOf": [
                {
                    "type": "object",
                    "required": ["rows"],
                    "properties": {"rows": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}}},
                    "additionalProperties": False,
                },
                {"$ref": "#/components/schemas/Row"},
            ],
            "example": {"rows": [served.example]},
        },
        "SwapRequest": SwapRequest.model_json_schema(),
        "Tensor": Tensor.model_json_schema(),
        "InferenceRequest": _inference_request(),
    }
    if token:
        content["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        content["security"] = [{"token": []}]
        for path in OPEN:
            content["paths"][path]["get"]["security"] = []
    return content


def _schema_of(column: InputColumn) -> dict[str, Any]:
    if column.kind not in LISTS:
        return {"anyOf": [_SCHEMAS[column.kind], _NULL]}
    item = _SCHEMAS[LISTS[column.kind]]
    lists = [{"type": "array", "items": item}, _NULL]
    return {"anyOf": [item, *lists] if column.or_one else lists}


def _inference_request() -> dict[str, Any]:
    parameters = {"type": "object"}
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "parameters": parameters},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": parameters,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {"type": "array", "items": output},
        },
    }
