"""Logs that stem-prepare makes of small files, with what it prints, and the tables of their reports."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log

Rows = list[dict[str, str]]


def prepare(spec: str | Path, out: Path, settings: Sequence[str] = ()) -> list[str]:
    """Makes a log and returns what the command prints on the way, line by line."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        prepare_log(PrepareOptions(spec=str(spec), out=str(out), set=tuple(settings)))
    return printed.getvalue().splitlines()


def warnings_of(printed: Sequence[str]) -> list[str]:
    return [line.removeprefix("warning: ") for line in printed if line.startswith("warning: ")]


def tables(markdown: str) -> dict[str, list[Rows]]:
    """The tables below each heading, as a list of rows by their column."""
    by_heading: dict[str, list[Rows]] = {}
    for section in markdown.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        blocks = [block.splitlines() for block in body.split("\n\n") if block.lstrip().startswith("|")]
        by_heading[heading] = [_rows(block) for block in blocks]
    return by_heading


def _rows(lines: Sequence[str]) -> Rows:
    names, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines)
    return [dict(zip([name.strip() for name in names], row, strict=True)) for row in rows]


def by(rows: Rows, *keys: str) -> Mapping[tuple[str, ...], dict[str, str]]:
    return {tuple(row[key] for key in keys): row for row in rows}


def number(cell: str) -> float:
    """The number of a cell: `1,234`, `12.5%` or `0.123`, also behind a bar."""
    text = cell.split()[-1].replace(",", "")
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
