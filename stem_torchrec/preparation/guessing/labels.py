"""The labels of a guessed spec: those of the command line, and the columns that could be some."""

from collections.abc import Iterator, Mapping, Sequence

import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Column, columns_of
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.sql import parse_expression
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.guessing.column_names import feature_name, names_feedback, names_result
from stem_torchrec.preparation.guessing.facts import Facts
from stem_torchrec.preparation.specs.expression_reader import ExpressionReader, Value
from stem_torchrec.runtime.errors import UserError, nearest

_T = ValueType
_MOST_CANDIDATES = 10
_NUMBERS = (_T.INT, _T.FLOAT, _T.BOOL)


def column_text(name: str) -> str:
    """A column in an expression: its name, in double quotes where SQL needs them.

    Example::

        column_text("marital-status")  # '"marital-status"'
    """
    try:
        if parse_expression(name) == Column(name):
            return name
    except UserError:
        pass
    return '"' + name.replace('"', '""') + '"'


def parse_labels(options: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """The expressions of `--label NAME=EXPRESSION` by name; NAME alone is the column of that name.

    Raises UserError for an option without a name, and for a name that two of them have.

    Example::

        parse_labels(["income=income = '>50K'", "click"], ["income", "click"])
        # {"income": "income = '>50K'", "click": "click"}
    """
    labels: dict[str, str] = {}
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        if not equals and name in columns:
            name, text = feature_name(name), column_text(name)
        elif not equals and name.isidentifier():
            hint = nearest(name, list(columns)) or f"; the files have {', '.join(columns)}."
            raise UserError(f"--label {option}: no column is called {name!r}{hint}")
        if not name.isidentifier() or not text or (equals and not _reads_column(text)):
            raise UserError(
                f'--label {option} has no name or expression; write --label NAME="EXPRESSION", as in '
                "--label income=\"income = '>50K'\"."
            )
        if name in labels:
            raise UserError(f"--label {name} is given twice; give each label a name of its own.")
        labels[name] = text
    return labels


def _reads_column(text: str) -> bool:
    """Whether an expression has a column; one that is no expression is refused later, with its own sentence."""
    try:
        return bool(columns_of(parse_expression(text)))
    except UserError:
        return True


def label_values(labels: Mapping[str, str], types: Mapping[str, ValueType]) -> dict[str, Value]:
    """The trees of the labels.

    Raises UserError with the option for an unknown column, with the nearest one, and for what is no number.
    """
    reader = ExpressionReader(types)
    values = {}
    for name, text in labels.items():
        try:
            values[name] = reader.value(text, f"--label {name}", _NUMBERS, "a label")
        except UserError as error:
            quoted = [each for each in types if not each.isidentifier() and each in text and f'"{each}"' not in text]
            hint = f' The column {quoted[0]} is written "{quoted[0]}" in an expression.' if quoted else ""
            raise UserError(f"{error}{hint}") from error
    return values


def label_columns(values: Mapping[str, Value]) -> dict[str, str]:
    """The columns from which labels are made, with the labels."""
    labels: dict[str, list[str]] = {}
    for name, value in values.items():
        for column in columns_of(value.tree):
            labels.setdefault(column, []).append(name)
    return {column: ", ".join(names) for column, names in labels.items()}


def positive_shares(
    engine: Engine, sample: ir.Table, types: Mapping[str, ValueType], values: Mapping[str, Value]
) -> dict[str, float]:
    """The share of rows in which each label is 1.

    Raises UserError for a label that has one value only, or others than 0 and 1.
    """
    columns = {name: sample[name] for name in types}
    shares = {}
    for name, value in values.items():
        label = to_ibis(value.tree, columns, types, engine="duckdb").cast("float64")
        table = sample.select(label=label)
        [(least, greatest, mean, kinds)] = engine.rows(
            table.aggregate(a=table.label.min(), b=table.label.max(), c=table.label.mean(), d=table.label.nunique())
        )
        if kinds < 2:
            only = "no value" if least is None else f"only the value {least:g}"
            raise UserError(f"--label {name} has {only} in the rows that were read; correct its expression.")
        if kinds > 2 or (least, greatest) != (0, 1):
            raise UserError(
                f"--label {name} has values from {least:g} to {greatest:g}, but must have 0, 1 or nothing; compare it, "
                f'as in --label {name}="{column_text(next(iter(columns_of(value.tree))))} >= {greatest:g}".'
            )
        shares[name] = mean
    return shares


def candidates(facts: Mapping[str, Facts]) -> list[str]:
    """Options for columns that could be labels, those whose name tells it first.

    Example::

        candidates(facts)  # ["--label click=click", "--label income=\\"income = '>50K'\\""]
    """
    ranked = sorted(_candidates(facts), key=lambda pair: pair[0])
    return [option for _, option in ranked[:_MOST_CANDIDATES]]


def _candidates(facts: Mapping[str, Facts]) -> Iterator[tuple[int, str]]:
    last = next(reversed(list(facts)), None)
    for name, each in facts.items():
        told, short, column = names_feedback(name) or names_result(name), feature_name(name), column_text(name)
        if each.is_binary:
            yield (0 if told else 2), _option(short, column)
        elif names_result(name) and each.type in (_T.INT, _T.FLOAT) and each.distinct > 1:
            yield 1, _option(short, f"{column} >= {each.greatest if each.distinct <= 20 else each.median:g}")
        elif each.type == _T.TEXT and each.distinct == 2 and not each.missing:
            # The last column is the usual place of what is to be predicted.
            text = str(each.greatest).replace("'", "''")
            yield (0 if told else 2 if name == last else 3), _option(short, f"{column} = '{text}'")
        elif name == last and each.type == _T.INT and 2 < each.distinct <= 10 and each.least == 0:
            yield 2, _option(short, f"{column} >= 1")


def _option(name: str, expression: str) -> str:
    if name == expression:
        return f"--label {name}"
    escaped = expression.replace('"', '\\"')
    return f'--label {name}="{escaped}"'
