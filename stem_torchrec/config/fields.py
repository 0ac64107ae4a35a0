"""What a field takes: the limits in its annotation, and the sentence for a value that it does not take.

Limits stand with their field, as annotated-types writes them; pydantic checks them:

    batch_size: Annotated[int, Interval(ge=1, le=2**24)] = 4096
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval
from pydantic import ValidationError

from stem_torchrec.runtime.errors import nearest

_OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
"""pydantic's names for a number outside of its limits."""
_UNKNOWN = "unexpected_keyword_argument"
_WORDS = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping of fields",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a field of each type takes, by pydantic's name for another type."""
TEXT, MAPPING = "as text", "as a mapping"
"""Tags of the two forms of an entry that is a name alone, or a mapping of fields (`data/schema.py`)."""


def limits_in(annotation: Any) -> Interval | None:
    """The limits of a number, or of the numbers in a list or mapping; None for a field without.

    Example::

        limits_in(tuple[Annotated[int, Interval(ge=1, le=64)], ...] | None)  # Interval(ge=1, le=64)
    """
    if get_origin(annotation) is Annotated:
        for metadata in annotation.__metadata__:
            if isinstance(metadata, Interval):
                return metadata
    return next((limits for part in get_args(annotation) if (limits := limits_in(part)) is not None), None)


def limits_text(limits: Interval) -> str:
    """`from 1 to 65536`, or `above 0 and below 1`."""
    if limits.ge is not None and limits.le is not None:
        return f"from {_number(limits.ge)} to {_number(limits.le)}"
    bounds = {"at least": limits.ge, "above": limits.gt, "at most": limits.le, "below": limits.lt}
    return " and ".join(f"{words} {_number(bound)}" for words, bound in bounds.items() if bound is not None)


def _number(bound: Any) -> str:
    return str(bound) if isinstance(bound, int) or float(f"{bound:g}") != bound else f"{bound:g}"


def sentence_of(error: ValidationError, kind: type, *, as_option: bool = False) -> str:
    """The first problem of a dictionary that is not a `kind`.

    Args:
        error: what pydantic raised.
        kind: the dataclass.
        as_option: names the field as the command line does, `--model.expert-hidden`, and not as a file does,
            `model.expert_hidden[1]`.

    Example::

        model.dropout is 3.0, but must be from 0 to 0.999.
    """
    first = _first_of(error.errors())
    place, annotation, siblings = _place(kind, first["loc"])
    if first["type"] == _UNKNOWN:
        return f"there is no field {place!r}{nearest(str(first['loc'][-1]), list(siblings)) or '.'}"
    if as_option:
        place = "--" + place.partition("[")[0].replace("_", "-")
    if first["type"] == "missing":
        return f"{place} is missing."
    limits = limits_in(annotation)
    words = []
    if first["type"] not in _OUTSIDE:
        words.append(_WORDS.get(first["type"], first["msg"].removeprefix("Input should be ")))
    if limits is not None:
        words += [*(["of numbers"] if first["type"] in ("tuple_type", "dict_type") else []), limits_text(limits)]
    return f"{place or 'the content'} is {reprlib.repr(first['input'])}, but must be {' '.join(words)}."


def _first_of(errors: Sequence[Any]) -> Any:
    """The first error; of a value that may be of several types, the one that looks deepest into it."""
    first = errors[0]
    beside = [each for each in errors if each["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]]
    deeper = [each for each in beside if len(each["loc"]) > len(first["loc"])]
    return next((each for each in deeper if each["type"] == _UNKNOWN), deeper[0] if deeper else first)


def _place(kind: type, path: tuple[int | str, ...]) -> tuple[str, Any, Mapping[str, Any]]:
    """The name of the field at a path, its annotation, and the annotations of the fields beside it."""
    annotation: Any = kind
    name, siblings = "", dict[str, Any]()
    for part in path:
        if part in (TEXT, MAPPING):
            continue
        members = _members(annotation)
        inner = next((each for each in members if is_dataclass(each)), members[0])
        if part in [getattr(each, "__name__", "") for each in members if each is not kind] and len(members) > 1:
            # pydantic's name for one of several types.
            annotation = next(each for each in members if getattr(each, "__name__", "") == part)
        elif len(members) > 1 and str(part).startswith("constrained-"):
            continue  # Likewise, of a number with limits, which limits_in finds in all types together.
        elif len(members) > 1 and str(part).startswith(("dict[", "tuple[")):
            annotation = next(each for each in members if get_origin(each) is (dict if "dict[" in str(part) else tuple))
        elif is_dataclass(inner):
            siblings = get_type_hints(inner, include_extras=True)
            name, annotation = f"{name}.{part}", siblings.get(str(part))
        else:
            name += f"[{part}]"
            arguments = next((get_args(each) for each in members if get_origin(each) in (dict, tuple, list)), ())
            annotation = arguments[1 if len(arguments) > 1 and arguments[1] is not ... else 0] if arguments else None
    return name.removeprefix("."), annotation, siblings


def _members(annotation: Any) -> list[Any]:
    """The types of which a value may have one."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [annotation]
