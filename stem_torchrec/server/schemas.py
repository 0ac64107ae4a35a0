"""The OpenAPI of the server, with the features and tasks of the bundle that answers and a row that it scores."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stem_torchrec.data.schema import LabelKind
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
_PREDICTIONS: dict[LabelKind, dict[str, Any]] = {
    "binary": {
        "type": "number", "minimum": 0, "maximum": 1, "description": "The probability that the label is 1.",
    },
    "number": {"type": "number", "description": "The number that the label is expected to be, in its unit."},
    "ordinal": {"type": "number", "minimum": 0, "description": "The level that the label is expected to have, from 0."},
}  # fmt: skip
"""The prediction of a task, by the kind of its label."""


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
        "Prediction": _prediction(served),
        "SwapRequest": SwapRequest.model_json_schema(),
        "Tensor": Tensor.model_json_schema(),
        "InferenceRequest": _inference_request(),
    }
    row = {"anyOf": [{"$ref": "#/components/schemas/Prediction"}, _NULL]}
    schemas["ScoreAnswer"]["properties"]["predictions"]["items"] = row
    if token:
        content["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        content["security"] = [{"token": []}]
        for path in OPEN:
            content["paths"][path]["get"]["security"] = []
    return content


def _prediction(served: ServedBundle) -> dict[str, Any]:
    tasks, kinds = served.bundle.tasks, served.bundle.manifest.kinds
    return {
        "type": "object",
        "description": "What the bundle predicts of a row, by task.",
        "required": list(tasks),
        "properties": {task: _PREDICTIONS[kinds.get(task, "binary")] for task in tasks},
        "additionalProperties": False,
    }


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
