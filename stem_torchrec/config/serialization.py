"""Dataclasses to and from what YAML and JSON can say: dictionaries, lists, strings and numbers."""

from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, get_origin, get_type_hints

import dacite

DataclassT = TypeVar("DataclassT")


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries, with lists for tuples."""
    return _lists(asdict(value))


def from_dict(kind: type[DataclassT], value: Any) -> DataclassT:
    """The dataclass that `to_dict` took; raises dacite.DaciteError with the field that is wrong or unknown."""
    if not isinstance(value, dict):
        raise dacite.DaciteError(f"{value!r} is no mapping of fields")
    _check_lists(kind, value)
    # A person writes 1 where a float belongs.
    return dacite.from_dict(kind, _tuples(value), dacite.Config(strict=True, type_hooks={float: float}))


def _check_lists(kind: type, value: dict[str, Any], path: str = "") -> None:
    """Refuses a string where a list belongs, of which dacite would take the letters."""
    for name, hint in get_type_hints(kind).items():
        given = value.get(name)
        if get_origin(hint) is tuple and name in value and not isinstance(given, list):
            raise dacite.DaciteError(f'field "{path}{name}" is {given!r}, which is no list')
        if is_dataclass(hint) and isinstance(given, dict):
            assert isinstance(hint, type)
            _check_lists(hint, given, f"{path}{name}.")


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
