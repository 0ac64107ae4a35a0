"""Sections of an inspection: sentences, tables and charts, as text and on a page."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from matplotlib.figure import Figure
from tabulate import tabulate

from stem_torchrec.runtime.report_file import Report, escape

_WIDTH = 118
"""Columns of the text."""


@dataclass(frozen=True)
class Table:
    """A table with a column for each key of the first row; there is one."""

    rows: Sequence[Mapping[str, str]]
    text_columns: int = 1
    """Columns that are aligned left: the first ones."""
    summary: str = ""
    """Where it is not empty, the page folds the table below it, and the text leaves the table out."""


def of_runs(rows: Iterable[Mapping[str, str]], runs: int, *, text_columns: int = 2, summary: str = "") -> Table:
    """A table whose rows name their run, without that column where it would be the same in all.

    Rows of several runs that have the other texts in common stand together.

    Args:
        rows: with a column `run`.
        runs: that are looked at.
        text_columns: with that column.
        summary: see Table.
    """
    if runs > 1:
        together: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        for row in rows:
            texts = tuple(cell for name, cell in list(row.items())[:text_columns] if name != "run")
            together.setdefault(texts, []).append(row)
        return Table(list(chain.from_iterable(together.values())), text_columns, summary)
    return Table([{n: cell for n, cell in row.items() if n != "run"} for row in rows], text_columns - 1, summary)


@dataclass(frozen=True)
class Chart:
    """A chart of the page, which the text leaves out."""

    name: str
    figure: Figure
    caption: str


@dataclass
class Section:
    """A heading and what stands below it, to which parts are added."""

    title: str
    parts: list[str | Table | Chart] = field(default_factory=list)


def as_text(sections: Sequence[Section]) -> str:
    """The sections for a terminal."""
    lines = []
    for section in sections:
        lines.append(f"\n{section.title}\n{'=' * len(section.title)}")
        for part in section.parts:
            if isinstance(part, str):
                lines.append(textwrap.fill(part, _WIDTH))
            elif isinstance(part, Table) and not part.summary:
                names = list(part.rows[0])
                aligned = ["left"] * part.text_columns + ["right"] * (len(names) - part.text_columns)
                # Bold on the page.
                cells = [[row.get(name, "").replace("**", "") for name in names] for row in part.rows]
                lines.append(tabulate(cells, names, disable_numparse=True, colalign=aligned) + "\n")
    return "\n".join(lines)


def as_page(title: str, sections: Sequence[Section], *, style: str = "") -> Report:
    """The sections as a page."""
    report = Report(escape(title), style=style)
    for section in sections:
        report.text(f"## {escape(section.title)}")
        for part in section.parts:
            match part:
                case str():
                    report.text(escape(part))
                case Table(rows, text_columns, ""):
                    report.table(rows, text_columns=text_columns)
                case Table(rows, text_columns, summary):
                    report.folded_table(summary, rows, text_columns=text_columns)
                case Chart(name, figure, caption):
                    report.plot(name, figure, caption)
    return report
