"""Why a request or one of its rows is not scored, as clients read it."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stem_torchrec.runtime.error_kinds import ErrorKind
from stem_torchrec.runtime.errors import UserError

_SHOWN = 100
"""Wrong rows that the answer to a refused request lists."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class WrongRow:
    """A row that is not scored."""

    row: int
    """Its place in the request, from 0."""
    column: str | None
    """The column that is wrong; None if the row as a whole is."""
    value: str | None
    """The wrong value, shortened; None if there is none."""
    reason: str
    """A sentence with the value and what it must be."""


@dataclass
class RefusedError(Exception):
    """A request that is not answered with scores.

    Example::

        RefusedError(413, "the body has 20 MiB, but --limits.body-mib allows 16.")
    """

    status: int
    """The status of HTTP."""
    sentence: str
    wrong: Sequence[WrongRow] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> ErrorKind:
        """That of the error which it was raised from; else ROW where rows are wrong, and SERVER."""
        if isinstance(self.__cause__, UserError):
            return self.__cause__.kind
        return ErrorKind.ROW if self.wrong else ErrorKind.SERVER

    def content(self) -> dict[str, Any]:
        """The body of the answer; the Open Inference Protocol knows its `error`."""
        content: dict[str, Any] = {"error": self.sentence, "kind": self.kind}
        if self.wrong:
            content["errors"] = [asdict(row) for row in self.wrong[:_SHOWN]]
        return content


def shortened(value: Any) -> str:
    """A value in an error, in one line."""
    return _SHORT.repr(value)


def sentence_of(wrong: Sequence[WrongRow]) -> str:
    """One sentence about wrong rows: the first, and how many more.

    Example::

        sentence_of(rows)  # "row 3: user is 'anna', but must be a whole number of 64 bits (and 2 more wrong rows)."
    """
    more = len(wrong) - 1
    others = f" (and {more} more wrong row{'s' * (more > 1)})" if more else ""
    sentence = f"row {wrong[0].row}: {wrong[0].reason.removesuffix('.')}{others}"
    return sentence if sentence.endswith("?") else f"{sentence}."
