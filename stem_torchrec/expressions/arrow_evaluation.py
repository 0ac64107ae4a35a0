"""An expression computed on a batch of Arrow: the same values as an engine's, without one."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions.arrow_arrays import finite, map_elements
from stem_torchrec.expressions.expression import Call, Column, Expression, Literal, text_of
from stem_torchrec.expressions.functions import (
    FUNCTIONS,
    may_be_infinite,
    resolve,
    type_of,
    type_of_column,
    type_of_literal,
)
from stem_torchrec.expressions.id_functions import vocabulary_ids
from stem_torchrec.expressions.time_functions import DAY, years_in_arrow
from stem_torchrec.expressions.value_types import (
    DATE,
    FLOAT,
    FLOATS,
    INTS,
    LISTS,
    NULL,
    TIMESTAMP,
    ValueType,
    arrow_type,
    may_carry,
    type_of_arrow,
)
from stem_torchrec.runtime.errors import UserError, nearest

Vocabularies = Mapping[str, pa.Array]


def evaluate(
    tree: Expression,
    batch: pa.RecordBatch,
    types: Mapping[str, ValueType],
    *,
    vocabularies: Vocabularies | None = None,
) -> pa.Array:
    """The values of an expression in all rows of a batch; a timestamp or date is its number of microseconds or days.

    No row raises an error: what cannot be computed is null. Costs a pass of Arrow or numpy for each call.

    Args:
        tree: the expression.
        batch: the columns that it reads.
        types: their types.
        vocabularies: for calls of `vocabulary`, the distinct values in the order of their ids, by name.

    Raises UserError as `type_of` does, and for a column or vocabulary that is missing or holds other values.

    Example::

        evaluate(parse_expression("a % 2"), pa.record_batch({"a": [5, None]}), {"a": ValueType.INT})  # [1, null]
    """
    type_of(tree, types)
    values, kind = _values(tree, batch, types, vocabularies or {})
    return finite(values) if kind == FLOAT and may_be_infinite(tree) else values


def _values(
    tree: Expression, batch: pa.RecordBatch, types: Mapping[str, ValueType], vocabularies: Vocabularies
) -> tuple[pa.Array, ValueType]:
    if isinstance(tree, Column):
        kind = type_of_column(tree, types)
        return read_column(batch, tree.name, kind), kind
    if isinstance(tree, Literal):
        kind = type_of_literal(tree)
        return pa.repeat(pa.scalar(tree.value, arrow_type(kind)), batch.num_rows), kind
    return _call(tree, batch, types, vocabularies)


def _call(
    call: Call, batch: pa.RecordBatch, types: Mapping[str, ValueType], vocabularies: Vocabularies
) -> tuple[pa.Array, ValueType]:
    function = FUNCTIONS[call.function]
    operands = [_values(argument, batch, types, vocabularies) for argument in call.arguments]
    resolved = resolve(call, [kind for _, kind in operands])
    arrays = []
    for (values, kind), argument, wanted in zip(operands, call.arguments, resolved.arguments, strict=True):
        if kind == FLOAT and may_be_infinite(argument) and not function.unbounded:
            values = finite(values)
        arrays.append(_brought(values, kind, wanted))
    if call.function == "vocabulary":
        return _ids(call, arrays[0], vocabularies), resolved.result
    # numpy computes a value in rows that are null, and warns about some of them.
    with np.errstate(all="ignore"):
        return function.arrow(*arrays, **call.parameters), resolved.result


def _ids(call: Call, values: pa.Array, vocabularies: Vocabularies) -> pa.Array:
    name, first_id, null_id = (call.parameters[each] for each in ("name", "first_id", "null_id"))
    assert isinstance(name, str)
    assert isinstance(first_id, int)
    assert isinstance(null_id, int)
    if name not in vocabularies:
        raise UserError(
            f"expression {text_of(call)}: there is no vocabulary {name!r}{nearest(name, list(vocabularies)) or '.'}"
        )
    return vocabulary_ids(values, vocabularies[name], first_id, null_id if null_id >= 0 else None)


def _brought(values: pa.Array, kind: ValueType, wanted: ValueType) -> pa.Array:
    """Values as those of the type that a function wants."""
    if kind == wanted:
        return values
    if kind == NULL:
        return pa.nulls(len(values), arrow_type(wanted))
    if kind == DATE:
        return pc.multiply(values, DAY)
    # Arrow's safe cast refuses ints that a float rounds.
    return pc.cast(values, arrow_type(wanted), safe=False)


def read_column(batch: pa.RecordBatch, name: str, wanted: ValueType) -> pa.Array:
    """The values of a column: null in place of what its type has not, and lists without nulls."""
    if name not in batch.schema.names:
        raise UserError(f"the rows have no column {name!r}{nearest(name, batch.schema.names) or '.'}")
    values = batch.column(name)
    kind = type_of_arrow(values.type, name)
    if not may_carry(wanted, kind):
        raise UserError(f"column {name!r} holds {kind}, but is declared as {wanted}.")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if wanted in (TIMESTAMP, DATE):
        return _read_time(values, kind, wanted)
    values = pc.cast(values, arrow_type(wanted), safe=kind not in (ValueType.INT, INTS))
    if wanted == FLOAT:
        return finite(values)
    if wanted in LISTS:
        flat = finite(values.flatten()) if wanted == FLOATS else values.flatten()
        if flat.null_count:
            return map_elements(values, lambda _: flat)
    return values


def _read_time(values: pa.Array, kind: ValueType, wanted: ValueType) -> pa.Array:
    if kind == TIMESTAMP:
        values = pc.cast(values, pa.timestamp("us", values.type.tz), safe=False)
    elif kind == DATE:
        values = pc.cast(pc.cast(values, pa.date32()), pa.int32())
    return years_in_arrow(pc.cast(values, pa.int64()), DAY if wanted == TIMESTAMP else 1)
