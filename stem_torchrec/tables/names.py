"""What tables are called, and which groups' columns they hold, in both layouts.

    split    finish/uid  like/uid  shared/uid     D columns each
    packed   finish+like+shared/uid               3 * D columns, looked up at once

A table's name lists its groups in the order of its columns, so the name alone says which layout a table has.
"""

from collections.abc import Sequence

from stem_torchrec.data.task_names import SHARED, check_task_names
from stem_torchrec.runtime.errors import UserError


def groups_of(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks, then the shared group; raises UserError for a label that cannot name a group."""
    check_task_names(tasks)
    return (*tasks, SHARED)


def table_name(group: str, feature: str) -> str:
    """`group/feature`, the table's name in plans, rules and weights."""
    return f"{group}/{feature}"


def table_group(table: str) -> str:
    """What comes before the feature in the name of a table: its group, or the groups of a packed table joined by +."""
    return table.partition("/")[0]


def table_feature(table: str) -> str:
    """The feature in the name of a table; empty for a name of another stack."""
    return table.partition("/")[2]


def table_groups(table: str) -> tuple[str, ...]:
    """The groups whose columns a table holds side by side, in the order of the columns."""
    return tuple(table_group(table).split("+")) if "/" in table else (table,)


def split_columns(table: str, width: int) -> dict[str, range]:
    """The tables of the split layout that a table of `width` columns holds side by side, and where in its columns.

    Raises UserError for a name that does not fit the width.

    Example::

        split_columns("finish+like/uid", 32)  # {"finish/uid": range(0, 16), "like/uid": range(16, 32)}
    """
    groups = table_groups(table)
    if len(groups) == 1:
        return {table: range(width)}
    if width % len(groups) or len(set(groups)) < len(groups):
        raise UserError(
            f"the table {table!r} cannot hold {', '.join(groups)} side by side in {width} columns; each group needs "
            "the same number of them, once."
        )
    feature, dim = table_feature(table), width // len(groups)
    return {table_name(group, feature): range(i * dim, (i + 1) * dim) for i, group in enumerate(groups)}
