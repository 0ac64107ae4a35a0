"""The section on the tables of two runs: how far they are from each other."""

from collections.abc import Sequence

import numpy as np

from stem_torchrec.inspection.inspected_run import InspectedRun
from stem_torchrec.inspection.sections import Section, Table
from stem_torchrec.inspection.two_runs import FeatureChange, TableChange


def change_section(run: InspectedRun, other: InspectedRun, changes: Sequence[FeatureChange]) -> Section:
    """The tables of a run beside those of the other run."""
    section = Section(f"Tables of {run.name} beside those of {other.name}")
    tables = [table for each in changes for table in each.tables]
    if not tables:
        section.parts.append("The runs have no table of the same name and width.")
        return section
    groups = dict.fromkeys(table.group for table in tables)
    section.parts += [
        "Of the tables that both have: the share of rows that differ, the distance of the tables as a share of the "
        f"length of that in {other.name}, and their similarity (linear CKA), which does not see rotations. Runs that "
        "were trained apart differ in all rows, and their distances say little.",
        Table([_mean(group, [table for table in tables if table.group == group]) for group in groups]),
        Table(
            [
                {"feature": table.feature, "group": table.group, "rows of both": f"{table.rows:,}"} | _numbers([table])
                for table in tables
            ],
            2,
            summary="Table by table",
        ),
    ]
    return section


def _mean(group: str, tables: Sequence[TableChange]) -> dict[str, str]:
    return {"group": group, "tables": f"{len(tables)}", "rows of both": f"{sum(t.rows for t in tables):,}"} | _numbers(
        tables
    )


def _numbers(tables: Sequence[TableChange]) -> dict[str, str]:
    """The share of rows that differ over all rows, and the medians of the others over the tables."""
    changed = sum(table.changed * table.rows for table in tables) / sum(table.rows for table in tables)
    similar = [table.similarity for table in tables if not np.isnan(table.similarity)]
    return {
        "rows changed": f"{changed:.1%}",
        "distance": f"{np.median([table.distance for table in tables]):#.3g}",
        "similarity": f"{np.median(similar):.3f}" if similar else "-",
    }
