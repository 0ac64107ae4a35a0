"""The shapes of answers and of small requests, as OpenAPI shows them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class WrongRowAnswer(BaseModel):
    """A row that was not scored."""

    row: int = Field(description="Its place in the request, from 0.", ge=0)
    column: str | None = Field(description="The column that is wrong.")
    value: str | None = Field(description="The wrong value, shortened.")
    reason: str


class ScoreAnswer(BaseModel):
    """Predictions in the order of the rows."""

    version: str = Field(description="Of the bundle that has scored.")
    predictions: list[dict[str, float] | None] = Field(
        description="For each row the prediction of each task; null for a wrong row."
    )
    errors: list[WrongRowAnswer] = Field(description="The wrong rows.")


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    error: str
    kind: str = Field(description="The kind of the error, as [STEM-SERVER] in docs/errors.md.", pattern="^STEM-[A-Z]+$")
    errors: list[WrongRowAnswer] = Field(default=[], description="The wrong rows, if it is for them; up to 100.")


class StateAnswer(BaseModel):
    """A probe."""

    status: str


class ReadyAnswer(StateAnswer):
    """Which bundle answers."""

    version: str
    bundle: str


class SwapRequest(BaseModel):
    """Which bundle shall answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bundle: str | None = Field(
        default=None, description="Its name in the folder of bundles; by default the last swap's, or --bundle."
    )
    allow_changes: bool = Field(default=False, description="Take it even if it lacks a task or reads other columns.")


class ServerMetadata(BaseModel):
    """The server in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of the model."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The model in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelState(BaseModel):
    """A model of the repository."""

    name: str
    version: str
    state: str
    reason: str


class Tensor(BaseModel):
    """A tensor; in a request its data may also come as bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] = []


class InferenceAnswer(BaseModel):
    """The answer of an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]
