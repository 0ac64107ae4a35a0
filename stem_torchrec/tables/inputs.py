"""What the groups of a model read: put together from the tables of their own group and, where it has none, the shared.

With E_{g,f} the table of group g and feature f and own(t) the features of which task t's group has one,

    x_t = [E_{t,f} if f in own(t) else E_{s,f}  for each feature f],     x_s = [E_{s,f}  for each feature f]

The shared columns in x_t are read and trained. Task t's loss reaches them through its own experts as it does through
the shared ones; another task's does not, as it stops at the experts of t. So the tables of a task still learn from its
labels alone, and the shared ones from all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from stem_torchrec.data.task_names import SHARED
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables.checks import Columns, check_same_columns
from stem_torchrec.tables.choice import ALL_TABLES, TableChoice


@dataclass(frozen=True)
class _Run:
    """Columns of a group of tables that stand side by side in an input, and the zeros behind them."""

    group: str
    start: int
    stop: int
    zeros: int = 0


class GroupInputs:
    """Maps the pooled embeddings of the groups of tables, each (B, its columns), to the inputs of a model's groups.

    All inputs are (B, width): of each feature, the columns of its widest table. Narrower ones are filled up by zeros,
    so that the sum over groups, which gates read, adds what belongs together.

    Args:
        columns: features and widths of each group of tables, in the order of its columns.
        groups: of the model.
        choice: which groups have which tables, as the tables were built.

    Raises UserError for tables that are not those of the choice.

    Example::

        inputs = GroupInputs(sparse_arch.columns, ["like", "shared"], TableChoice(own=["uid"]))
        x = inputs({"like": torch.randn(5, 16), "shared": torch.randn(5, 32)})
        torch.equal(x["like"][:, 16:], x["shared"][:, 16:])  # True: the columns of tags, which like has no table of
    """

    def __init__(self, columns: Columns, groups: Sequence[str], choice: TableChoice) -> None:
        self._tables = {group: choice.read_by(group, columns) for group in groups}
        self.columns = list(columns[SHARED if SHARED in columns else groups[0]])
        """Features and widths of an input, in the order of its columns."""
        if choice == ALL_TABLES:
            check_same_columns(columns)
        else:
            _check_columns(columns, choice)
            widest = {f: max(dict(each).get(f, 0) for each in columns.values()) for f, _ in self.columns}
            self.columns = list(widest.items())
        self.width = sum(width for _, width in self.columns)
        having = {f: [group for group, of_group in columns.items() if f in dict(of_group)] for f, _ in self.columns}
        self.sources = {group: {f: choice.read_by(group, having[f]) for f, _ in self.columns} for group in groups}
        """For each group of the model, the group whose table of a feature it reads."""
        self._runs = {
            group: _runs_of(self.columns, self.sources[group], columns)
            for group, own in self._tables.items()
            if list(columns[own]) != self.columns
        }

    def __call__(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            group: torch.cat([_cut(pooled[run.group], run) for run in self._runs[group]], dim=1)
            if group in self._runs
            else pooled[own]
            for group, own in self._tables.items()
        }

    def keep(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Drops the inputs of other groups; returns the groups of tables that are still read."""
        self._tables = {group: self._tables[group] for group in groups}
        read = {source for group in groups for source in self.sources[group].values()}
        return (*sorted(read - {SHARED}, key=list(self._tables.values()).index), *(SHARED for _ in read & {SHARED}))


def _runs_of(features: Sequence[tuple[str, int]], sources: Mapping[str, str], columns: Columns) -> list[_Run]:
    """The runs of columns of an input, as few as there can be."""
    places: dict[tuple[str, str], range] = {}
    for group, of_group in columns.items():
        start = 0
        for feature, width in of_group:
            places[group, feature] = range(start, start + width)
            start += width
    runs: list[_Run] = []
    for feature, width in features:
        group = sources[feature]
        place = places[group, feature]
        run = _Run(group, place.start, place.stop, width - len(place))
        if runs and runs[-1].group == group and runs[-1].stop == run.start and not runs[-1].zeros:
            runs[-1] = _Run(group, runs[-1].start, run.stop, run.zeros)
        else:
            runs.append(run)
    return runs


def _cut(pooled: Tensor, run: _Run) -> Tensor:
    columns = pooled[:, run.start : run.stop]
    return pad(columns, (0, run.zeros)) if run.zeros else columns


def _check_columns(columns: Columns, choice: TableChoice) -> None:
    """Raises UserError for tables that are not those of the choice."""
    shared = [feature for feature, _ in columns.get(SHARED, ())]
    for group, of_group in columns.items():
        own = [feature for feature, _ in of_group]
        for feature in own:
            if own.count(feature) > 1:
                raise UserError(f"the group {group!r} has several tables of {feature!r}; give it one.")
        chosen = [feature for feature in shared if choice.width(group, feature, 4)]
        if own != chosen:
            raise UserError(
                f"the group {group!r} has tables of {', '.join(own)}, but the table choice wants those of "
                f"{', '.join(chosen) or 'the shared group'}; give embedding_bag_configs and the model the same choice."
            )
