"""Which groups have a table of which feature, and how wide it is: between one table for each feature and T+1.

    all           finish/uid  like/uid  shared/uid  finish/tags  like/tags  shared/tags
    own uid       finish/uid  like/uid  shared/uid                          shared/tags
    buy, pay      conversion/uid        shared/uid  conversion/tags         shared/tags

What a group reads in the place of a table that it does not have stands in inputs.py.

Source: Pan et al., "Ads Recommendation in a Collapsed and Entangled World", KDD 2024, arXiv 2403.00793, whose AME has
sets of tables of different widths, not one for each task.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from stem_torchrec.data.task_names import SHARED, check_task_names
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.tables.names import table_name


@dataclass(frozen=True)
class TableChoice:
    """The tables of a model with a group for each task and a shared one; by default every group has every feature's.

    Example::

        choice = TableChoice(own=["uid"], groups={"buy": "conversion", "pay": "conversion"}, widths={"like": 8})
        choice.groups_of_tables(["buy", "pay", "like", "shared"])  # ("conversion", "like", "shared")
        choice.width("like", "uid", 16), choice.width("like", "tags", 16)  # (8, 0)
    """

    own: Sequence[str] = ()
    """Features with a table for every group; of others, only the shared group has one. All features if empty."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """The group whose tables a task reads and trains, where it has none of its own name; `shared` for no others."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Columns by `group/feature` or by group where they differ from the feature's; 0 by `group/feature` is no table."""

    def groups_of_tables(self, groups: Sequence[str]) -> tuple[str, ...]:
        """The groups of tables that the groups of a model have."""
        own = [(group, self.groups.get(group, group)) for group in groups]
        return tuple(dict.fromkeys(of_tables for group, of_tables in own if of_tables != SHARED or group == SHARED))

    def read_by(self, group: str, having: Container[str]) -> str:
        """The group whose table of a feature a group of a model reads, among those that have one."""
        own = self.groups.get(group, group)
        return own if own in having else SHARED

    def width(self, group: str, feature: str, default: int) -> int:
        """The columns of a table, of which the feature's are `default`; 0 if the group has none of the feature."""
        table = table_name(group, feature)
        if table in self.widths:
            return self.widths[table]
        if self.own and feature not in self.own and group != SHARED:
            return 0
        return self.widths.get(group, default)


ALL_TABLES = TableChoice()
"""Every group has every feature's table."""


def check_choice(choice: TableChoice, groups: Sequence[str], features: Sequence[str]) -> None:
    """Raises UserError for a choice that names what there is not, that no group can have, or that is ambiguous.

    Args:
        choice: what is checked.
        groups: of the model: its tasks and shared.
        features: its sparse features.
    """
    for feature in choice.own:
        if feature not in features:
            known = f"{', '.join(features)}{nearest(feature, features)}"
            raise UserError(f"--model.own-tables names {feature!r}, but the features are {known}")
    _check_groups(choice, [group for group in groups if group != SHARED])
    of_tables = choice.groups_of_tables(groups)
    for name, width in choice.widths.items():
        group, _, feature = name.partition("/")
        for kind, each, having in (("group", group, of_tables), ("feature", feature or features[0], features)):
            if each not in having:
                raise UserError(
                    f"--model.table-widths names the {kind} {each!r}, but there are tables only of "
                    f"{', '.join(having)}{nearest(each, having) or '.'}"
                )
        least = 0 if feature and group != SHARED else 4
        if width < least or width % 4:
            raise UserError(
                f"--model.table-widths gives {name} {width} columns, but must give a multiple of 4 from {least} on; a "
                "task has no tables of its own with --model.table-groups TASK shared."
            )
    for group in of_tables:
        if not any(choice.width(group, feature, 4) for feature in features):
            raise UserError(
                f"--model.own-tables and --model.table-widths leave no table to {group!r}; say so by "
                f"--model.table-groups {group} {SHARED}."
            )


def _check_groups(choice: TableChoice, tasks: Sequence[str]) -> None:
    for task, group in choice.groups.items():
        if task not in tasks:
            known = f"{', '.join(tasks)}{nearest(task, tasks)}"
            raise UserError(f"--model.table-groups names the task {task!r}, but the tasks are {known}")
        if group != SHARED:
            check_task_names([group])
        if group != task and group in tasks and choice.groups.get(group, group) != group:
            raise UserError(
                f"--model.table-groups gives {task} the tables of {group}, which has those of {choice.groups[group]}; "
                f"give both {choice.groups[group]}."
            )
