"""`schema.json`: what the columns of a Parquet log mean. datasets/README.md documents the format."""

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import Discriminator, Tag

from stem_torchrec.config.fields import MAPPING, TEXT
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.file_systems import g_pathmgr

SCHEMA_FILE = "schema.json"
SCHEMA_FORMAT = 1
"""Format version of schema.json."""

Pooling = Literal["sum", "mean"]
"""How the embeddings of a row's ids become one."""
LabelKind = Literal["binary", "number", "ordinal"]
Count = Annotated[int, Interval(ge=0, le=2**63 - 1)]
_LARGEST_FILL = 1e38
"""Within 32-bit floats."""
_LONGEST_NAME = 200
"""Bytes of a column's name, which names folders and files of a run as well."""


@dataclass(frozen=True)
class SparseFeature:
    """An integer column, or a column of integer lists, with ids in [0, num_embeddings), and what its tables are.

    Example::

        SparseFeature("tags", 48, pooling="mean", weights="tag_weights")
        # tags    tag_weights   pooled embedding
        # [3, 7]  [2.0, 1.0]    (2.0 * e_3 + 1.0 * e_7) / 2
        # []      []            0
    """

    name: str
    num_embeddings: Annotated[int, Interval(ge=1, le=2**40)]
    """Rows of the embedding table: the vocabulary size, with id 0 for unseen values."""
    pooling: Pooling = "sum"
    """sum adds up the embeddings of a row's ids, each times its weight; mean divides that sum by the number of ids."""
    weights: str | None = None
    """Float column, or column of float lists, with a weight for each id of the row; every weight is 1 if None."""
    embedding_dim: Annotated[int, Interval(ge=4, le=16_384)] | None = None
    """Width of a group's embedding of the feature; the model's --model.embedding-dim if None."""
    column: str | None = None
    """Column of the files, if it is not called `name`, which tables and parts of the model are called."""


@dataclass(frozen=True)
class DenseFeature:
    """A column of numbers, already scaled; its name alone says the same where it has no other field.

    Example::

        DenseFeature("price", fill=0.0)
        # price   what the model sees
        # 3       3.0
        # null    0.0
    """

    name: str
    fill: Annotated[float, Interval(ge=-_LARGEST_FILL, le=_LARGEST_FILL)] | None = None
    """Takes the place of null and NaN, which are errors if None."""
    column: str | None = None
    """Column of the files, if it is not called `name`."""


@dataclass(frozen=True)
class Label:
    """A column of labels, null or NaN where the feedback was not asked for; its name alone is one of 0 and 1."""

    name: str
    """Of the task."""
    column: str | None = None
    """Column of the files, if it is not called `name`."""
    kind: LabelKind = "binary"
    """What the values are: 0 and 1, finite numbers, or levels in an order."""
    levels: Annotated[int, Interval(ge=2, le=256)] | None = None
    """Number of levels of an ordinal label: 5 for 0, 1, 2, 3 and 4."""


def _form(value: Any) -> str:
    return TEXT if isinstance(value, str | int | float | bool | None) else MAPPING


DenseEntry = Annotated[Annotated[str, Tag(TEXT)] | Annotated[DenseFeature, Tag(MAPPING)], Discriminator(_form)]
LabelEntry = Annotated[Annotated[str, Tag(TEXT)] | Annotated[Label, Tag(MAPPING)], Discriminator(_form)]


@dataclass(frozen=True)
class LabelCounts:
    """How often a label is 1, or above 0 if it is not binary, and how often it is null in one split."""

    positives: Count
    missing: Count


@dataclass(frozen=True)
class Split:
    """One of the folders `train/`, `valid/`, `test/`."""

    rows: Count
    labels: dict[str, LabelCounts]


@dataclass(frozen=True)
class Schema:
    """The columns of a log and the sizes of its splits.

    Example::

        schema = load_schema("data/kuairand_pure")
        schema.labels                  # ("long_view", "is_like")
        schema.splits["train"].rows    # 149732
    """

    sparse_features: tuple[SparseFeature, ...]
    labels: tuple[LabelEntry, ...]
    """Columns of labels, null where the feedback was not asked for; each is a task."""
    splits: dict[str, Split] = field(default_factory=dict)
    """Sizes by split, checked against the files where given."""
    dense_features: tuple[DenseEntry, ...] = ()
    """Columns of numbers, already scaled."""
    group: str | None = None
    """Column of integers or text whose rows are ranked against each other in gAUC, usually the user."""
    weight: str | None = None
    """Column of weights from 0 on, one for each row, by which the row counts in losses and metrics."""
    label_weights: dict[str, str] = field(default_factory=dict)
    """Columns of weights by label, for its loss and metrics alone; they multiply `weight`."""
    description: str = ""
    """How the log and its split were made."""
    facts: dict[str, float] | None = None
    """What the maker of the log knows beyond it, such as the best reachable AUC of a synthetic one."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(_name(label) for label in self.labels)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """The dense features by name."""
        return tuple(_name(feature) for feature in self.dense_features)


def _name(entry: str | DenseFeature | Label) -> str:
    return entry if isinstance(entry, str) else entry.name


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """The schema as JSON holds it: columns have only the fields that differ from their defaults.

    Weights are left out where a log has none, as earlier versions refuse a field that they do not know.
    """
    values = to_dict(schema)
    defaults = to_dict(SparseFeature("", 0)) | to_dict(DenseFeature("")) | to_dict(Label(""))
    for entry in [*values["sparse_features"], *values["dense_features"], *values["labels"]]:
        for name in [] if isinstance(entry, str) else [*entry]:
            if name not in ("name", "num_embeddings") and entry[name] == defaults[name]:
                del entry[name]
    for kind in ("dense_features", "labels"):
        values[kind] = [_shortened(entry) for entry in values[kind]]
    return {name: value for name, value in values.items() if value or name not in ("weight", "label_weights")}


def _shortened(entry: Any) -> Any:
    return entry["name"] if not isinstance(entry, str) and [*entry] == ["name"] else entry


def save_schema(schema: Schema, folder: str) -> None:
    """Writes `folder/schema.json`."""
    with g_pathmgr.open(posixpath.join(folder, SCHEMA_FILE), "w") as file:
        file.write(schema_to_json(schema))


def schema_to_json(schema: Schema) -> str:
    """The text of schema.json."""
    return json.dumps(with_format(schema_to_dict(schema), SCHEMA_FORMAT), indent=2) + "\n"


def load_schema(folder: str) -> Schema:
    """Reads `folder/schema.json`; a file without a format version, as people write it, is read as well.

    Raises UserError with the file and the field that is wrong, or for a file in a newer format.
    """
    path = posixpath.join(folder, SCHEMA_FILE)
    if not g_pathmgr.isfile(path):
        raise UserError(
            f"{folder} holds no {SCHEMA_FILE}: datasets/README.md describes the file, "
            "and the scripts in datasets/ write it."
        )
    with g_pathmgr.open(path, "rb") as file:
        content = file.read()
    try:
        schema = from_dict(Schema, without_format(parse_json(content), SCHEMA_FORMAT, path))
        _check_contents(schema)
    except FormatError:
        raise
    # ValueError: not JSON, not text, or a wrong field.
    except ValueError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}. datasets/README.md describes the file.") from error
    return schema


def _check_contents(schema: Schema) -> None:
    """Raises UserError for a name that no column can have, weights of no label, and counts that no split can have."""
    for place, name in _names_in(schema):
        if not name.isprintable() or not 0 < len(name.encode()) <= _LONGEST_NAME:
            raise UserError(
                f"{place} is {name[:_LONGEST_NAME]!r}, but must be 1 to {_LONGEST_NAME} bytes of printable text."
            )
    for entry in schema.labels:
        if not isinstance(entry, str) and (entry.kind == "ordinal") != (entry.levels is not None):
            fix = "give" if entry.kind == "ordinal" else "leave out"
            raise UserError(f"the label {entry.name!r} is {entry.kind}; {fix} levels, the number of an ordinal one's.")
    for label in schema.label_weights:
        if label not in schema.label_names:
            raise UserError(f"label_weights[{label}] is of no label{nearest(label, schema.label_names)}")
    for name, split in schema.splits.items():
        for label, counts in split.labels.items():
            place = f"splits[{name}].labels[{label}]"
            if label not in schema.label_names:
                raise UserError(f"{place} is of no label{nearest(label, schema.label_names)}")
            if counts.positives + counts.missing > split.rows:
                raise UserError(f"{place} counts more than the {split.rows} rows of the split.")


def _names_in(schema: Schema) -> Iterator[tuple[str, str]]:
    """The names of columns, each with its place in schema.json."""
    for kind in ("sparse_features", "dense_features", "labels"):
        for i, entry in enumerate(getattr(schema, kind)):
            if isinstance(entry, str):
                yield f"{kind}[{i}]", entry
            else:
                fields = {name: getattr(entry, name) for name in ("name", "column", "weights") if hasattr(entry, name)}
                yield from ((f"{kind}[{i}].{name}", value) for name, value in fields.items() if value is not None)
    yield from ((f"label_weights[{label}]", column) for label, column in schema.label_weights.items())
    yield from ((name, value) for name in ("group", "weight") if (value := getattr(schema, name)) is not None)
