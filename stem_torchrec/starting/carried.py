"""What a new run takes over from the state that it starts from, as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tabulate import tabulate

Status = Literal["carried", "grown", "fresh", "dropped"]
"""carried: as it was; grown: with positions that are new; fresh: as a run without a start has it; dropped: not read."""
States = Literal["carried", "fresh", ""]
"""Optimizer states; "" where an optimizer has none, and for what is dropped."""
_NAMED = 6
"""Groups that a line of the text names."""
_NAMED_FEATURES = 4
"""Features that a line of the text names at most."""
_TABLES = "tables of "


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
        # what                      of            status   states      rows    new rows  details
        # tables of uid             like, shared  grown    carried   27,285       8,185  new rows as initialized
        # tables of city, 4 others  like, shared  carried  carried      312           0
        # layers.0.experts          like, shared  grown    carried                       16 new input columns
        # towers                    like          carried  carried
    """

    source: str
    """What the run starts from, as the user gave it."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    """What else is not as it was, a sentence each."""
    table_steps: int = 0
    """The count by which the tables' optimizer corrects the bias of its moments, at step 0 of the new run."""

    def format(self) -> str:
        """The table, in which features that fare alike and have no new rows share a line, and the notes below it."""
        names = ("what", "of", "status", "states", "rows", "new rows", "details")
        cells = [
            (line.item, _some(line.of), line.status, line.states, _number(line.rows), _number(line.new_rows),
             line.details)
            for line in _short(self.lines)
        ]  # fmt: skip
        aligned = ("left", "left", "left", "left", "right", "right", "left")
        table = tabulate(cells, names, disable_numparse=True, colalign=aligned if cells else None)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def _short(lines: Sequence[Line]) -> list[Line]:
    """The lines, those of features that fare alike and have no new rows as one, with the sum of their rows."""
    alike: dict[Line, list[Line]] = {}
    for line in lines:
        may_share = line.item.startswith(_TABLES) and not line.new_rows
        key = replace(line, item=_TABLES, rows=None) if may_share else line
        alike.setdefault(key, []).append(line)
    return [first if not others else _with_others(first, others) for first, *others in alike.values()]


def _with_others(line: Line, others: Sequence[Line]) -> Line:
    names = [other.item.removeprefix(_TABLES) for other in others]
    more = ", ".join(names) if len(names) < _NAMED_FEATURES else f"{len(names)} others"
    rows = None if line.rows is None else line.rows + sum(other.rows or 0 for other in others)
    return replace(line, item=f"{line.item}, {more}", rows=rows)


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
