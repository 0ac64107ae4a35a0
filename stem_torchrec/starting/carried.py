"""What a new run takes over from the state that it starts from, as a table."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from tabulate import tabulate

Status = Literal["carried", "grown", "fresh", "dropped"]
"""carried: as it was; grown: with positions that are new; fresh: as a run without a start has it; dropped: not read."""
States = Literal["carried", "fresh", ""]
"""Optimizer states; "" where an optimizer has none, and for what is dropped."""
_NAMED = 6
"""Groups that a line of the text names."""


@dataclass(frozen=True)
class Line:
    """The tables of a feature, or parts of the model, that fare alike."""

    item: str
    """`tables of uid`, or a part of the model, as `layers.0.experts`."""
    of: tuple[str, ...]
    """The groups of the tables, or the parts of that name, as tasks."""
    status: Status
    states: States = ""
    rows: int | None = None
    """Rows of a table that continue old ones."""
    new_rows: int | None = None
    """Rows of a table that do not."""
    details: str = ""


@dataclass(frozen=True)
class Carried:
    """What is carried into a run, grown, fresh and dropped; the same on all ranks.

    Example::

        print(carried.format())
        # what              of                    status    states       rows    new rows  details
        # tables of uid     finish, like, shared  grown     carried    27,285       8,185  8185 new ids
        # layers.0.experts  finish, like, shared  grown     carried                        16 new input columns
        # towers            finish, like          carried   carried
    """

    source: str
    """What the run starts from, as the user gave it."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    """What else is not as it was, a sentence each."""
    table_steps: int = 0
    """The count by which the tables' optimizer corrects the bias of its moments, at step 0 of the new run."""

    def format(self) -> str:
        """The table, and the notes below it."""
        names = ("what", "of", "status", "states", "rows", "new rows", "details")
        cells = [
            (line.item, _some(line.of), line.status, line.states, _number(line.rows), _number(line.new_rows),
             line.details)
            for line in self.lines
        ]  # fmt: skip
        aligned = ("left", "left", "left", "left", "right", "right", "left")
        table = tabulate(cells, names, disable_numparse=True, colalign=aligned if cells else None)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def together(lines: Iterable[Line]) -> list[Line]:
    """The lines, those that differ only in what they are of as one, at the place of the first.

    Example::

        together([Line("towers", ("finish",), "carried"), Line("towers", ("like",), "carried")])
        # [Line("towers", ("finish", "like"), "carried")]
    """
    parts: dict[Line, list[str]] = {}
    for line in lines:
        parts.setdefault(replace(line, of=()), []).extend(line.of)
    return [replace(line, of=tuple(of)) for line, of in parts.items()]
