"""What a bundle reads from a request: its columns, the types of their values, and an example."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stem_torchrec.expressions.expression import Call, Column, Expression, columns_of
from stem_torchrec.expressions.value_types import (
    BOOL,
    DATE,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    TEXT,
    TEXTS,
    TIMESTAMP,
    ValueType,
)
from stem_torchrec.serving.bundle import Bundle

_EXAMPLES: dict[ValueType, Any] = {
    BOOL: True,
    INT: 1,
    FLOAT: 0.5,
    TEXT: "text",
    TIMESTAMP: "2026-11-27T12:00:00Z",
    DATE: "2026-11-27",
    INTS: [1],
    FLOATS: [0.5],
    TEXTS: ["text"],
}


@dataclass(frozen=True)
class InputColumn:
    """A column of a request."""

    kind: ValueType
    or_one: bool = False
    """Whether one value may stand for a list of it, as with the ids of a log."""


def input_columns(bundle: Bundle) -> dict[str, InputColumn]:
    """The columns that a bundle scores: raw ones as its transforms have them, or ids, their weights and numbers.

    Example::

        input_columns(load_bundle("bundles/adult"))  # {"age": InputColumn(INT), "education": InputColumn(TEXT), ...}
    """
    if bundle.transforms is not None:
        return {name: InputColumn(kind) for name, kind in bundle.raw_types.items()}
    columns = bundle.columns
    dense = {columns.column_of(name) for name in columns.dense}
    kinds = {name: InputColumn(FLOAT) for name in dense}
    for name in columns.sparse:
        weights = columns.weights.get(name)
        # A number that also weighs ids has one value in each row, and so has the feature.
        single = weights is not None and columns.column_of(weights) in dense
        kinds[columns.column_of(name)] = InputColumn(INT) if single else InputColumn(INTS, or_one=True)
        if weights is not None:
            kinds.setdefault(columns.column_of(weights), InputColumn(FLOATS, or_one=True))
    return {name: kinds[name] for name in bundle.input_columns}


def example_row(bundle: Bundle) -> dict[str, Any]:
    """A row that the bundle scores, as JSON has it; where a vocabulary has values, with one of them."""
    row = {name: _EXAMPLES[column.kind] for name, column in input_columns(bundle).items()}
    if bundle.transforms is None:
        return row
    for tree in bundle.transforms.columns.values():
        for call in _vocabulary_calls(tree):
            values = bundle.transforms.vocabularies[str(call.parameters["name"])]
            for name in columns_of(call)[:1]:
                if len(values):
                    row[name] = _like(row[name], values[0].as_py(), whole=call.arguments[0] == Column(name))
    return row


def _vocabulary_calls(tree: Expression) -> Iterator[Call]:
    if isinstance(tree, Call):
        if tree.function == "vocabulary":
            yield tree
        for argument in tree.arguments:
            yield from _vocabulary_calls(argument)


def _like(example: Any, value: Any, *, whole: bool) -> Any:
    """A value of a vocabulary in the form of an example; the example where it has another type or is computed."""
    if isinstance(example, list):
        return [value] if whole and isinstance(value, type(example[0])) else example
    return value if type(value) is type(example) and (whole or isinstance(value, str)) else example
