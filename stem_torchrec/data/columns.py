"""The columns that a run reads: their names in tables and models, and the columns of the files that they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from stem_torchrec.data.names import files_of, long_labels, spaces_of
from stem_torchrec.data.schema import DenseFeature, Label, LabelKind, Schema, SparseFeature
from stem_torchrec.runtime.errors import UserError, nearest

_DENSE, _WEIGHTS = "a dense feature", "the weights of a feature"
_SPARSE, _GROUP = "a sparse feature", "the group"
_TOGETHER = ([_SPARSE, _GROUP], [_DENSE, _WEIGHTS])
"""What a column can be at once: the user who is a feature, and a price that also weighs another feature."""


@dataclass(frozen=True)
class Columns:
    """The columns of a log that a run reads, by name: that of the feature or label, or else that of the column."""

    sparse: dict[str, SparseFeature]
    """The sparse features by name, in the order in which the model sees them."""
    dense: tuple[str, ...]
    labels: tuple[str, ...]
    group: str | None
    fills: Mapping[str, float] = field(default_factory=dict)
    """What takes the place of nulls, by dense feature, of those that have such a number."""
    weight: str | None = None
    """The weights of rows."""
    label_weights: Mapping[str, str] = field(default_factory=dict)
    """The weights of labels, by label."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The column of the files by name, where it is called something else."""
    spaces: Mapping[str, str] = field(default_factory=dict)
    """By label, another label that must be 1: in other rows the label is missing."""
    numbers: tuple[str, ...] = ()
    """The labels that are numbers."""
    levels: Mapping[str, int] = field(default_factory=dict)
    """The number of levels of each ordinal label; what is in neither is binary."""
    labeled: bool = True
    """False for files without labels, whose rows are predicted."""
    ids_of_log: Mapping[str, int] = field(default_factory=dict)
    """The number of ids in the log by sparse feature, where it has more than the tables have rows: those beyond are
    read as unseen (unseen_ids.py)."""

    @classmethod
    def select(
        cls,
        schema: Schema,
        *,
        features: Sequence[str] = (),
        labels: Sequence[str] = (),
        spaces: Mapping[str, str] | None = None,
        reader: str = "",
    ) -> "Columns":
        """The columns of `schema`, of its sparse features and labels only those named, if any are.

        Args:
            schema: of a log.
            features: names of sparse features.
            labels: names of labels.
            spaces: by label, the label without which it has none; none by default.
            reader: the run that reads the columns named, if an option cannot name others.

        Raises UserError for a name that the schema lacks or that is given twice, for a space of no label or of itself,
        and for a column that cannot serve in two ways, as a label cannot be a feature.
        """
        sparse, dense = {feature.name: feature for feature in schema.sparse_features}, schema.dense_names
        for kind, names, known in (
            ("sparse feature", features, [feature.name for feature in schema.sparse_features]),
            ("label", labels, schema.label_names),
            ("dense feature", (), dense),
        ):
            if not known and kind != "dense feature":
                raise UserError(f"schema.json names no {kind}; a log needs one. datasets/README.md describes the file.")
            for name in names:
                if name not in known:
                    if reader:
                        raise UserError(
                            f"the log has no {kind} {name!r}, which {reader} reads, only {', '.join(known)}; give a "
                            "log that has it."
                        )
                    near, given = nearest(name, known), f"--data.labels {' '.join(known)}" if kind == "label" else ""
                    fix = given and (f" Give {given}." if near else f"; give {given}.")
                    raise UserError(f"the log has no {kind} {name!r}, only {', '.join(known)}{near}{fix}")
            for each in (names, known):
                if len(set(each)) < len(each):
                    raise UserError(f"a {kind} is named twice in {', '.join(each)}.")
        chosen = tuple(labels or schema.label_names)
        features = features or tuple(sparse)
        selected = cls(
            sparse={name: sparse[name] for name in features},
            dense=dense,
            labels=chosen,
            group=schema.group,
            fills={
                each.name: each.fill
                for each in schema.dense_features
                if isinstance(each, DenseFeature) and each.fill is not None
            },
            weight=schema.weight,
            label_weights={label: column for label, column in schema.label_weights.items() if label in chosen},
            files=files_of(schema),
            spaces=spaces_of(spaces or {}, chosen, schema),
            numbers=tuple(each.name for each in long_labels(schema) if each.kind == "number"),
            levels={each.name: each.levels for each in long_labels(schema) if each.levels is not None},
        )
        selected.check_roles()
        return selected

    def differences(self, other: "Columns") -> list[str]:
        """The differences from `other`, which has sparse features of the same names; of labels only kinds count.

        Example::

            columns.differences(other)  # ["num_embeddings of uid is 1000, not 999", "group is None, not 'user'"]
        """
        pairs: list[tuple[str, Any, Any]] = [
            (f"{field.name} of {name}", getattr(feature, field.name), getattr(other.sparse[name], field.name))
            for name, feature in self.sparse.items()
            for field in fields(feature)
            if field.name != "column"
        ]
        for name in self.labels:
            pairs += [(f"kind of {name}", self.kind_of(name), other.kind_of(name))]
            pairs += [(f"levels of {name}", self.levels.get(name), other.levels.get(name))]
        pairs += [("dense_features", self.dense, other.dense), ("group", self.group, other.group)]
        pairs += [(f"fill of {name}", self.fills.get(name), other.fills.get(name)) for name in self.dense]
        return [f"{name} is {value!r}, not {expected!r}" for name, value, expected in pairs if value != expected]

    def check_roles(self) -> None:
        """Raises UserError for a column that serves in two ways, of which one excludes the other."""
        roles: dict[str, Any] = {
            "a label": self.read_labels,
            _SPARSE: self.sparse,
            _DENSE: self.dense,
            _WEIGHTS: self.weights.values(),
            _GROUP: [self.group],
            "the weight of rows": [self.weight],
            "the weights of a label": self.label_weights.values(),
        }
        for column in dict.fromkeys(map(self.column_of, self.names)):
            of_column = [
                role for role, names in roles.items() if column in (self.column_of(name) for name in names if name)
            ]
            if len(of_column) > 1 and of_column not in _TOGETHER:
                raise UserError(
                    f"schema.json names the column {column!r} as {' and as '.join(of_column)}, which it cannot be at "
                    "once; leave it out of one. datasets/README.md describes the file."
                )

    def column_of(self, name: str) -> str:
        """The column of the files that has the name of a feature or label, or is called so itself."""
        return self.files.get(name, name)

    def num_ids(self, name: str) -> int:
        """The number of ids that a sparse feature may have in the files."""
        return self.ids_of_log.get(name, self.sparse[name].num_embeddings)

    def kind_of(self, label: str) -> LabelKind:
        """What the values of a label are."""
        return "number" if label in self.numbers else "ordinal" if label in self.levels else "binary"

    def is_binary(self, label: str) -> bool:
        """Whether the values of a label are 0 and 1."""
        return self.kind_of(label) == "binary"

    @property
    def label_entries(self) -> tuple[Label, ...]:
        """The labels that are read as schema.json has them."""
        return tuple(Label(name, kind=self.kind_of(name), levels=self.levels.get(name)) for name in self.read_labels)

    @property
    def task_levels(self) -> dict[str, int | None]:
        """The tasks whose labels are not 0 and 1, with the number of their levels, None for numbers."""
        return {label: self.levels.get(label) for label in self.not_binary}

    @property
    def not_binary(self) -> dict[str, LabelKind]:
        """The tasks whose labels are not 0 and 1, with what they are."""
        return {label: kind for label in self.labels if (kind := self.kind_of(label)) != "binary"}

    @property
    def weights(self) -> dict[str, str]:
        """The column of weights by sparse feature, of the features that have one."""
        return {name: feature.weights for name, feature in self.sparse.items() if feature.weights is not None}

    @property
    def weighs_rows(self) -> bool:
        """Whether rows or labels have weights."""
        return self.labeled and bool(self.weight or self.label_weights)

    def weights_of(self, label: str) -> list[str]:
        """The columns whose product weighs the rows of a task; none where every row weighs 1."""
        return [name for name in (self.weight, self.label_weights.get(label)) if name] if self.labeled else []

    @property
    def row_weights(self) -> list[str]:
        """Every column that weighs the rows of some task, once."""
        return list(dict.fromkeys(name for label in self.labels for name in self.weights_of(label)))

    @property
    def names(self) -> list[str]:
        """Every name once."""
        groups, labels = [self.group] if self.group else [], self.read_labels if self.labeled else ()
        return list(
            dict.fromkeys([*self.sparse, *self.weights.values(), *self.dense, *labels, *groups, *self.row_weights])
        )

    @property
    def read_labels(self) -> tuple[str, ...]:
        """The labels, then those that only tell where others count."""
        return tuple(dict.fromkeys([*self.labels, *self.spaces.values()]))
