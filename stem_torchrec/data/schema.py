"""`schema.json`: what the columns of a Parquet log mean. datasets/README.md documents the format."""

import json
import posixpath
from dataclasses import dataclass, field
from typing import Any, Literal

from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.file_systems import g_pathmgr

SCHEMA_FILE = "schema.json"
SCHEMA_FORMAT = 1
"""Format version of schema.json."""

Pooling = Literal["sum", "mean"]
"""How the embeddings of a row's ids become one."""


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
    num_embeddings: int
    """Rows of the embedding table: the vocabulary size, with id 0 for unseen values."""
    pooling: Pooling = "sum"
    """sum adds up the embeddings of a row's ids, each times its weight; mean divides that sum by the number of ids."""
    weights: str | None = None
    """Float column, or column of float lists, with a weight for each id of the row; every weight is 1 if None."""
    embedding_dim: int | None = None
    """Width of a group's embedding of the feature; the model's --model.embedding-dim if None."""


@dataclass(frozen=True)
class LabelCounts:
    """How often a label is 1 and how often it is null in one split."""

    positives: int
    missing: int


@dataclass(frozen=True)
class Split:
    """One of the folders `train/`, `valid/`, `test/`."""

    rows: int
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
    labels: tuple[str, ...]
    """0/1 columns, null where the feedback was not asked for; each is a task."""
    splits: dict[str, Split] = field(default_factory=dict)
    """Sizes by split, checked against the files where given."""
    dense_features: tuple[str, ...] = ()
    """Float columns, already scaled."""
    group: str | None = None
    """Integer column whose rows are ranked against each other in gAUC, usually the user."""
    description: str = ""
    """How the log and its split were made."""
    facts: dict[str, float] | None = None
    """What the maker of the log knows beyond it, such as the best reachable AUC of a synthetic one."""


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """The schema as JSON holds it: a sparse feature has only the fields that differ from their defaults."""
    values = to_dict(schema)
    defaults = to_dict(SparseFeature("", 0))
    for feature in values["sparse_features"]:
        for name, default in defaults.items():
            if name not in ("name", "num_embeddings") and feature[name] == default:
                del feature[name]
    return values


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
    with g_pathmgr.open(path, "r") as file:
        try:
            return from_dict(Schema, without_format(json.load(file), SCHEMA_FORMAT, path))
        except FormatError:
            raise
        # ValueError: not JSON, not text, or a wrong field.
        except ValueError as error:
            raise UserError(f"{path}: {str(error).rstrip('.')}. datasets/README.md describes the file.") from error
