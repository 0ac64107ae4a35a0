"""Why tyro refuses a command line: a hook for the reasons, and the reasons. Checked with tyro 1.0.17."""

from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    ParseErrorEvent,
    UnrecognizedArgs,
    on_parse_error,
)

__all__ = [
    "BadValue",
    "InstantiationFailure",
    "InvalidChoice",
    "MissingArgs",
    "ParseErrorEvent",
    "UnrecognizedArgs",
    "on_parse_error",
]
