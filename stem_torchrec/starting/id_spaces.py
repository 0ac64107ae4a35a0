"""What the ids of a log's features mean, so that another log's ids can be compared with them.

`transforms.json` of a log tells whether a feature's ids come from a vocabulary, a hash or the values themselves. A log
of one's own tells nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.config.formats import without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.new_log import TRANSFORMS_FILE, TRANSFORMS_FORMAT, VOCABULARY
from stem_torchrec.data.vocabulary_values import fingerprint
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.scales import calls_of

IdKind = Literal["vocabulary", "hash", "identity", "unknown"]
_HASHES = ("hash_id", "hash_ids")


@dataclass(frozen=True)
class IdSpace:
    """What the ids of a feature are; the fields of other kinds have their defaults.

    Example::

        # values "rome", "oslo" with the ids 1 and 2
        IdSpace("vocabulary", 3, vocabulary="city", type="text", first_id=1, values=2, fingerprint="5f0c...")
        IdSpace("hash", 1001, buckets=1000, hashes=1, missing_id=1000)
    """

    kind: IdKind
    rows: int
    """Rows of the feature's tables."""
    missing_id: int | None = None
    """The id of a missing value; None where it has none of its own."""
    vocabulary: str = ""
    """The feature that the vocabulary was made for, which names its file."""
    type: str = ""
    """Of the values of the vocabulary, as bool, int, float, text or date."""
    first_id: int = 0
    """The id of the first value."""
    values: int = 0
    """Values in the vocabulary."""
    fingerprint: str = ""
    """Of its values in the order of their ids; see `data.vocabulary_values.fingerprint`."""
    buckets: int = 0
    salt: str = ""
    hashes: int = 0
    """Ids that a value has."""


def read_vocabulary(log: AnyPath, name: str) -> pa.Table:
    """The columns value, id and count of a vocabulary in the order of the ids; raises UserError."""
    path = log / VOCABULARY / f"{name}.parquet"
    try:
        with g_pathmgr.open(str(path), "rb") as file:
            return pq.read_table(file, columns=["value", "id", "count"]).sort_by("id").combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); prepare the log again.") from error


def values_of(vocabulary: pa.Table) -> pa.Array:
    """Its values as one array."""
    column = vocabulary["value"]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def read_id_spaces(log: str, columns: Columns) -> dict[str, IdSpace]:
    """What the ids of the features are that a run reads; `unknown` without transforms.json.

    Reads each vocabulary once, so its values must fit in memory.

    Args:
        log: folder of the log.
        columns: of the run.

    Raises UserError where transforms.json or a vocabulary cannot be read, or they and schema.json do not fit.
    """
    folder, rows = path_of(log), {name: feature.num_embeddings for name, feature in columns.sparse.items()}
    path = folder / TRANSFORMS_FILE
    if not path.exists():
        return {name: IdSpace("unknown", count) for name, count in rows.items()}
    try:
        content = without_format(parse_json(path.read_text()), TRANSFORMS_FORMAT, str(path))
        trees, entries = dict(content["features"]), dict(content["vocabularies"])
        vocabularies: dict[str, IdSpace] = {}
        spaces = {}
        for name, count in rows.items():
            space = _space_of(trees.get(columns.column_of(name)), count)
            if space.kind == "vocabulary":
                if space.vocabulary not in vocabularies:
                    vocabularies[space.vocabulary] = _space_of_vocabulary(folder, space, entries[space.vocabulary])
                space = vocabularies[space.vocabulary]
                _check_size(log, name, space, count)
            spaces[name] = space
    except UserError:
        raise
    # KeyError, AttributeError: a section is missing, or is no mapping.
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); prepare the log again.") from error
    return spaces


def _check_size(log: str, feature: str, space: IdSpace, rows: int) -> None:
    if space.rows != rows:
        raise UserError(
            f"{log} does not fit itself: schema.json has num_embeddings {rows} for {feature!r}, but its vocabulary has "
            f"{space.rows} ids; prepare the log again."
        )


def _space_of(tree: Any, rows: int) -> IdSpace:
    """What the ids of a feature are by its tree in transforms.json; None for a column that is not in it."""
    if tree is None:
        return IdSpace("unknown", rows)
    for call in calls_of(tree):
        parameters = call.get("parameters", {})
        if call["call"] == "vocabulary":
            return IdSpace("vocabulary", rows, vocabulary=parameters["name"])
        if call["call"] in _HASHES:
            hashes, buckets = parameters.get("hashes", 1), parameters["buckets"]
            return IdSpace("hash", rows, missing_id=buckets, buckets=buckets, salt=parameters["salt"], hashes=hashes)
    # A missing value with an id of its own has the last one.
    own = rows > 1 and _id_of_missing(tree) == rows - 1
    return IdSpace("identity", rows, missing_id=rows - 1 if own else None)


def _id_of_missing(tree: Mapping[str, Any]) -> Any:
    """What a missing value becomes in the last step of a feature's tree."""
    if tree.get("call") == "or_single":
        return tree["parameters"]["value"]
    return tree["arguments"][-1].get("literal") if tree.get("call") == "coalesce" else None


def _space_of_vocabulary(log: AnyPath, space: IdSpace, entry: Mapping[str, Any]) -> IdSpace:
    table = read_vocabulary(log, space.vocabulary)
    values, ids, first = values_of(table), table["id"].to_numpy(), int(entry["first_id"])
    if not np.array_equal(ids, np.arange(first, first + len(ids))):
        raise UserError(
            f"{log / VOCABULARY}/{space.vocabulary}.parquet has ids other than {first}, {first + 1}, ...; prepare the "
            "log again."
        )
    return IdSpace(
        "vocabulary",
        first + len(ids),
        missing_id=entry.get("missing_id"),
        vocabulary=space.vocabulary,
        type=str(entry["type"]),
        first_id=first,
        values=len(ids),
        fingerprint=fingerprint(values, len(ids)),
    )
