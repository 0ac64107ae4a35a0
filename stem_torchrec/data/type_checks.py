"""Whether the types of a file's columns serve, and what all files of a split have in common."""

from collections.abc import Iterator

import pyarrow as pa

from stem_torchrec.data.column_types import is_list, is_number, is_text, item_type
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import LabelKind
from stem_torchrec.runtime.errors import UserError

_LABELS: dict[LabelKind, str] = {
    "binary": "a label needs 0, 1 or null",
    "number": "a label that is a number needs numbers or nulls",
    "ordinal": "an ordinal label needs whole numbers or nulls",
}


def check_types(schema: pa.Schema, path: str, columns: Columns) -> None:
    """Raises UserError for a column of `columns` that `schema` lacks or holds in a type that does not serve."""
    for name in columns.names:
        column = columns.column_of(name)
        count = schema.names.count(column)
        if not count and any(part.startswith(f"{column}=") for part in path.split("/")):
            raise UserError(f"{path} has the column {column!r} only in the name of its folder; write it into the file.")
        if count != 1:
            several = "several columns" if count else "no column"
            raise UserError(f"{path} has {several} {column!r}; schema.json names it.")
        kind = schema.field(column).type
        # A column of nulls serves wherever a null does, which the rows tell.
        if pa.types.is_null(kind):
            continue
        # A column may serve twice, as the user does who is a feature and the group.
        for met, need in _needs(name, schema, columns):
            if not met:
                raise UserError(f"column {column!r} is {kind} in {path}; {need}. datasets/README.md shows the schema.")


def _needs(name: str, schema: pa.Schema, columns: Columns) -> Iterator[tuple[bool, str]]:
    """What a column must be, each with whether it is that."""
    kind = schema.field(columns.column_of(name)).type
    item = item_type(kind)
    number, value = is_number(item), kind if is_list(kind) else item
    if name in columns.sparse:
        yield number or _is_empty(kind), "a sparse feature needs integers or lists of integers"
    if name in columns.dense:
        yield is_number(value) or pa.types.is_boolean(value), "a dense feature needs numbers"
    if columns.labeled and name in columns.read_labels:
        yield is_number(value) or pa.types.is_boolean(value), _LABELS[columns.kind_of(name)]
    if name == columns.group:
        yield is_number(value) or is_text(value), "the group of gAUC needs integers or text"
    if name in columns.row_weights:
        yield is_number(value), "weights of rows need numbers"
    for feature in (feature for feature, weights in columns.weights.items() if weights == name):
        of_ids = schema.field(columns.column_of(feature)).type
        lists = is_list(kind) if pa.types.is_null(of_ids) else is_list(of_ids)
        floats = (pa.types.is_floating(item) or _is_empty(kind)) and is_list(kind) == lists
        yield floats, f"the weights of {feature!r} need {'lists of floats' if lists else 'floats'}"


def _is_empty(kind: pa.DataType) -> bool:
    """Whether a type is that of lists that have no item."""
    return is_list(kind) and pa.types.is_null(kind.value_type)


def kinds_of(schema: pa.Schema, columns: Columns) -> dict[str, str]:
    """What the rows of all files must have in common, by column; a column of nulls goes with any."""
    kinds = {name: "a list" if is_list(type_of(name, schema, columns)) else "no list" for name in columns.sparse}
    if columns.group is not None:
        group = group_type(schema, columns)
        kinds[columns.group] = "text" if is_text(group) else str(group)
    return {
        columns.column_of(name): kind
        for name, kind in kinds.items()
        if not pa.types.is_null(type_of(name, schema, columns))
    }


def group_type(schema: pa.Schema, columns: Columns) -> pa.DataType:
    """The type in which the group is read from files of these types: text, or uint64 as hashes are, or int64."""
    assert columns.group is not None
    kind = item_type(type_of(columns.group, schema, columns))
    if columns.group not in columns.sparse and is_text(kind):
        return pa.large_string()
    unsigned = columns.group not in columns.sparse and pa.types.is_uint64(kind)
    return pa.uint64() if unsigned else pa.int64()


def type_of(name: str, schema: pa.Schema, columns: Columns) -> pa.DataType:
    """The type in which a file has a column of `columns`."""
    return schema.field(columns.column_of(name)).type
