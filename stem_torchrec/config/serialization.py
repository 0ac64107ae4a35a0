"""Dataclasses to and from what YAML and JSON hold: dictionaries, lists, strings and numbers."""

import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stem_torchrec.config.fields import sentence_of
from stem_torchrec.config.narrowed import kind_of
from stem_torchrec.runtime.errors import UserError, reason_of

DataclassT = TypeVar("DataclassT")


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries, with lists for tuples.

    Example::

        to_dict(ScheduleConfig())  # {"warmup_steps": 0, "decay": "constant"}
    """
    return _lists(asdict(value))


def from_dict(kind: type[DataclassT], value: Any) -> DataclassT:
    """The dataclass that `to_dict` took, with the defaults of the fields that the dictionary lacks.

    A whole number serves where a float belongs, but `true` is not a number, nor is text.

    Raises UserError with the field that is unknown, of the wrong type or outside of its limits.
    """
    try:
        result: DataclassT = _validated(kind, value)
    except ValidationError as error:
        raise UserError(sentence_of(error, kind)) from None
    return result


def check_fields(config: Any) -> None:
    """Raises UserError with the option, its value and the limits for a field with a value that it does not take."""
    kind = kind_of(config)
    try:
        _validated(kind, to_dict(config))
    except ValidationError as error:
        raise UserError(sentence_of(error, kind, as_option=True)) from None


def _validated(kind: Any, value: Any) -> Any:
    # By way of JSON, for which pydantic's strict mode takes lists for tuples and dictionaries for dataclasses.
    # YAML reads a plain 2026-11-26 as a date, which is text in JSON.
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError) as error:
        raise UserError(f"the content has a key that is not text, or contains itself ({reason_of(error)}).") from error
    return _adapter(kind).validate_json(text, strict=True, extra="forbid")


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
