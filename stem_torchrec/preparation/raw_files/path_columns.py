"""Columns that only the names of files and folders have: `date=2022-05-03/`, and `{part}` in a pattern."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from urllib.parse import unquote

from stem_torchrec.preparation.raw_files.cell_types import WORDS
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, nearest

NAMED = re.compile(r"\{(\w+)\}")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_READ: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "text": str,
    "bool": lambda text: _BOOLS[text.lower()],
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
}


def check_partitions(name: str, source: Source, files: Sequence[str]) -> dict[str, ColumnType]:
    """The partitions that are names of folders, with their types.

    Raises UserError for a file that is in no such folder, or whose value is not of the type.
    """
    in_names = {part for pattern in source.patterns for part in NAMED.findall(pattern)}
    for file in files:
        values = name_parts(source, file)
        folders = dict(part.split("=", 1) for part in file.split("/")[:-1] if "=" in part)
        for column, kind in source.partitions.items():
            known = values if column in in_names else folders
            if column not in known:
                hint = nearest(column, list(known)) or f"; such a folder is called {column}=VALUE."
                raise UserError(f"sources[{name}].partitions names {column!r}, which the path {file} lacks{hint}")
            text = unquote(known[column])
            try:
                if text != NO_VALUE:
                    _READ[kind](text)
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{file}: the partition {column!r} is {text!r}, which is not {WORDS.get(kind, kind)}; correct it "
                    "or its type."
                ) from error
    return {column: kind for column, kind in source.partitions.items() if column not in in_names}


def name_parts(source: Source, file: str) -> dict[str, str]:
    """The columns in the name of a file, by the `{part}` of the pattern that it matches.

    Example::

        name_parts(Source("raw/log_{part}.csv"), "raw/log_train.csv")  # {"part": "train"}
    """
    for pattern in source.patterns:
        names = NAMED.findall(pattern)
        text = "".join(
            f"(?P<{piece}>[^/]*)" if i % 2 else re.escape(piece).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            for i, piece in enumerate(NAMED.split(pattern))
        )
        match = re.search(f"{text.removeprefix('~')}$", file) if names else None
        if match is not None:
            return match.groupdict()
    return {}
