"""Format versions: every file of a run that a later program reads carries one, as its first entry.

The module that reads and writes a kind of file has its number: `CONFIG_FORMAT` in files.py, `SCHEMA_FORMAT`,
`PLAN_FORMAT`, `PROGRESS_FORMAT`, `METRICS_FORMAT`, `START_FORMAT`. It rises when an older program could not read the
file any more, or would read it wrongly; a new field with a default does not need it.
"""

from collections.abc import Mapping
from typing import Any

from stem_torchrec.runtime.error_kinds import ErrorKind
from stem_torchrec.runtime.errors import UserError

_KEY = "format"


class FormatError(UserError):
    """A file in a format that this program does not read."""

    of_class = ErrorKind.FORMAT


def with_format(content: Mapping[str, Any], version: int) -> dict[str, Any]:
    """`{"format": version, **content}`."""
    return {_KEY: version, **content}


def without_format(content: Any, version: int, path: str) -> Any:
    """What `with_format` took; content without a version was written before files had one, and is returned as it is.

    Args:
        content: what the file holds.
        version: the newest that the caller reads.
        path: the file, for errors.

    Raises FormatError for a newer version, or one that is not a whole number above 0.
    """
    if not isinstance(content, dict) or _KEY not in content:
        return content
    written, fields = content[_KEY], {name: value for name, value in content.items() if name != _KEY}
    if type(written) is not int or written < 1:
        raise FormatError(f"{path} has the format {written!r}, but must have a whole number from 1 to {version}.")
    if written > version:
        raise FormatError(
            f"{path} has the format {written}, but this stem_torchrec reads formats up to {version}; install a newer "
            "stem_torchrec to use it."
        )
    return fields
