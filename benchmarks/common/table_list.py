"""Table lists: the features of a benchmark in YAML, an entry for each, in place of a log.

    - {name: user, rows: 1_000_000_000, dim: 16}
    - {name: tags, rows: 100_000, dim: 16, pooling: 10, zipf: 1.2}
    - {name: city, rows: 500, dim: 16, own: false}

An entry is a feature: STEM has a table of it for every task and a shared one, or a shared one alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.tables import ALL_TABLES, SHARED, TableChoice, groups_of


@dataclass(frozen=True)
class TableSpec:
    """One feature of a table list."""

    name: str
    """Name of the feature. It becomes part of the tables' names, group/feature, so it contains none of . @ / +"""
    rows: Annotated[int, Interval(ge=1, le=2**63 - 1)]
    """Rows of each of its tables: the number of different ids."""
    dim: Annotated[int, Interval(ge=4, le=2**20)]
    """Columns of each of its tables."""
    pooling: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    """Mean number of ids per row of a batch; sum pooling adds their embeddings."""
    zipf: Annotated[float, Interval(ge=0, le=100)] = 1.05
    """How uneven the ids are: the k-th most frequent one has a share in proportion to k ** -zipf, so 0 is even."""
    own: bool = True
    """Whether every task has a table of it; false leaves the shared one alone, as --model.own-tables without it."""

    def tables(self, tasks: int) -> int:
        """Number of its tables with so many tasks."""
        return tasks + 1 if self.own else 1


def tables_of_now(recorded: Any) -> list[dict[str, Any]]:
    """A table list that some version recorded beside its results, with the defaults of the fields that it lacks.

    Raises UserError with the entry that has an unknown field, or a value that the field does not take.
    """
    if not isinstance(recorded, list):
        raise UserError(f"tables is {recorded!r}, but must be a list.")
    return [to_dict(from_dict(TableSpec, entry)) for entry in recorded]


def read_table_list(path: str | Path) -> list[TableSpec]:
    """The features of a YAML table list; raises UserError with file, entry and fix if an entry is wrong."""
    try:
        entries = parse_yaml(Path(path).read_text())
    # ValueError: not text, or not YAML.
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else reason_of(error)
        raise UserError(f"the table list {path} cannot be read ({reason}); benchmarks/tables/ has examples.") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"the table list {path} is not a list with an entry per feature; write lines like "
            "'- {name: user, rows: 1_000_000, dim: 16}'."
        )
    tables: list[TableSpec] = []
    for number, entry in enumerate(entries, start=1):
        tables.append(_read(entry, number, path, tables))
    return tables


def sparse_features(tables: Sequence[TableSpec]) -> list[SparseFeature]:
    """The features as a schema has them, each of its own width."""
    return [SparseFeature(table.name, table.rows, embedding_dim=table.dim) for table in tables]


def table_choice(tables: Sequence[TableSpec], tasks: Sequence[str]) -> TableChoice:
    """Which features have a table for each task, and which only a shared one."""
    own = [table.name for table in tables if table.own]
    if len(own) == len(tables):
        return ALL_TABLES
    return TableChoice(own) if own else TableChoice(groups=dict.fromkeys(tasks, SHARED))


def name_tasks(labels: Sequence[str], tasks: int) -> tuple[str, ...]:
    """Names for `tasks` tasks: the labels, then task_3, task_4 and so on."""
    return (*labels, *(f"task_{i + 1}" for i in range(len(labels), tasks)))[:tasks]


def check_labels(labels: Sequence[str], tasks: int, option: str) -> None:
    """Raises UserError for labels that cannot name tasks, or with two tasks of one name, up to so many tasks."""
    names = name_tasks(labels, tasks)
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{option} is {' '.join(labels)}, so two of {tasks} tasks would be called {name!r} (tasks without a "
                "label are task_1, task_2, ...); give every task its own name."
            )
    try:
        groups_of(names)
    except UserError as error:
        raise UserError(f"{option} is {' '.join(labels)}: {reason_of(error)}.") from error


def _read(entry: Any, number: int, path: str | Path, earlier: Sequence[TableSpec]) -> TableSpec:
    named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
    place = f"{path}, entry {number}" + (f" ({entry['name']!r})" if named else "")
    try:
        table = from_dict(TableSpec, entry)
    except UserError as error:
        hint = "rows and dim are whole numbers such as 1_000_000, pooling and zipf numbers such as 2.5"
        raise UserError(f"{place}: {reason_of(error)}; {hint}.") from error
    if not table.name or any(sign in table.name for sign in ".@/+"):
        raise UserError(f"{place}: the name is {table.name!r}, but must be a name without . @ / and +; rename it.")
    if table.dim % 4:
        raise UserError(f"{place}: dim is {table.dim}, but must be a multiple of 4, as FBGEMM needs.")
    for other, twin in enumerate(earlier, start=1):
        if twin.name == table.name:
            raise UserError(f"{place}: entry {other} already has this name; give every feature its own.")
    return table
