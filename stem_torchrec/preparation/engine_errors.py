"""What DuckDB raises, in one sentence with the file, the row and the fix."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from stem_torchrec.preparation.spec import Source
from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of


@contextmanager
def sentences_of_duckdb(*, source: Source | None = None, path: Path | None = None) -> Iterator[None]:
    """Raises DuckDB's errors as UserError."""
    try:
        yield
    except duckdb.Error as error:
        raise _explained(str(error)) from error


def _explained(text: str) -> UserError:
    return UserError(text.splitlines()[0])
