"""The names of a schema: labels in the long form, the columns of the files by name, and the spaces of tasks."""

from collections.abc import Iterator, Mapping, Sequence

from stem_torchrec.data.schema import DenseFeature, Label, Schema, SparseFeature
from stem_torchrec.runtime.errors import UserError, nearest


def long_labels(schema: Schema) -> list[Label]:
    """The labels, all in the long form."""
    return [Label(label) if isinstance(label, str) else label for label in schema.labels]


def spaces_of(spaces: Mapping[str, str], labels: Sequence[str], schema: Schema) -> dict[str, str]:
    """The spaces, checked; raises UserError for one that names no binary label, or a label as its own."""
    known = [label.name for label in long_labels(schema) if label.kind == "binary"]
    for task, label in spaces.items():
        if task not in labels:
            raise UserError(
                f"--data.spaces names the task {task!r}, but the tasks are {', '.join(labels)}"
                f"{nearest(task, labels) or '.'}"
            )
        if label not in known or label == task:
            others = [each for each in known if each != task]
            raise UserError(
                f"--data.spaces has {label!r} for {task!r}, but must have one of {', '.join(others) or 'no label'}"
                f"{nearest(label, others) or '.'}"
            )
    return dict(spaces)


def files_of(schema: Schema) -> dict[str, str]:
    """The column by name, where it is called something else; raises UserError for a name that two columns have."""
    columns: dict[str, str] = {}
    for name, column in _named(schema):
        if columns.setdefault(name, column) != column:
            raise UserError(
                f"schema.json gives the name {name!r} to the columns {columns[name]!r} and {column!r}; give each "
                "a name of its own. datasets/README.md describes the file."
            )
    return {name: column for name, column in columns.items() if name != column}


def _named(schema: Schema) -> Iterator[tuple[str, str]]:
    """Name and column of each feature and label."""
    entries: list[str | SparseFeature | DenseFeature | Label] = [
        *schema.sparse_features,
        *schema.labels,
        *schema.dense_features,
    ]
    for entry in entries:
        yield (entry, entry) if isinstance(entry, str) else (entry.name, entry.column or entry.name)
