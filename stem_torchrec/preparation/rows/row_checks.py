"""Checks of the kept rows before anything is fitted: labels are of their kind, ids and weights are in their ranges."""

from dataclasses import dataclass
from typing import Any

import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Column, Expression
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.rows.refused_cells import first_place
from stem_torchrec.preparation.rows.sources import read_source
from stem_torchrec.preparation.specs.spec import Label, Spec
from stem_torchrec.preparation.specs.spec_expressions import SPLIT, SpecExpressions
from stem_torchrec.runtime.errors import UserError

_LARGEST = 3.4e38
"""Within 32-bit floats."""


@dataclass(frozen=True)
class _Check:
    place: str
    column: str
    wrong: ir.BooleanValue
    words: str
    """What the values must be."""
    tree: Expression | None = None
    """What computes the values."""


def check_rows(spec: Spec, expressions: SpecExpressions, rows: ir.Table, engine: Engine) -> dict[int, int]:
    """Returns the rows of each split, 0 to 2.

    Raises UserError for an empty train or valid, for a value that its place does not take, and for a label of which
    train has one kind only, from which nothing can be learned.
    """
    counts: dict[int, int] = dict(engine.rows(rows.group_by(SPLIT).aggregate(rows=rows.count())))
    if not counts:
        raise UserError(_no_rows(spec, engine))
    for i, name in enumerate(("train", "valid")):
        if not counts.get(i):
            sizes = ", ".join(f"{split} {counts.get(j, 0)}" for j, split in enumerate(("train", "valid", "test")))
            raise UserError(f"split leaves {name} without rows ({sizes}); move its limits.")
    checks = [*_checks(spec, expressions, rows)]
    if checks:
        wrong = {f"wrong {i}": check.wrong.sum() for i, check in enumerate(checks)}
        [number] = engine.rows(rows.aggregate(**wrong))
        for check, times in zip(checks, number, strict=True):
            if times:
                [(value,)] = engine.rows(rows.filter(check.wrong).select(check.column).limit(1))
                place = _first_place(spec, check.tree, value)
                rows_ = f"{times} row{'s' if times > 1 else ''}"
                what = "missing" if value is None else repr(value)
                raise UserError(f"{check.place} is {what} in {rows_}{place}, but must be {check.words}.")
    train = rows.filter(rows[SPLIT] == 0)
    kinds = {
        name: train[f"label {name}"].cast("float64" if label.kind == "number" else "int64")
        for name, label in spec.tasks.items()
    }
    ends = {f"{end} {name}": getattr(kinds[name], end)() for name in kinds for end in ("min", "max")}
    known = {f"known {name}": _has_value(train[f"feature {name}"]).sum() for name in spec.features}
    [values] = engine.rows(train.aggregate(**ends, **known))
    pairs = zip(values[: len(ends) : 2], values[1 : len(ends) : 2], strict=True)
    for name, (least, greatest) in zip(kinds, pairs, strict=True):
        if least == greatest:
            only = "no label" if least is None else f"only the label {least}"
            raise UserError(f"labels[{name}] has {only} in train, so nothing can be learned from it; leave it out.")
    for name, number in zip(spec.features, values[len(ends) :], strict=True):
        if not number:
            raise UserError(
                f"features[{name}] has no value in train, as after a join of which no key fits; correct it, or "
                "leave it out."
            )
    return counts


def _has_value(column: ir.Value) -> ir.BooleanValue:
    return (column.length().fill_null(0) > 0) if column.type().is_array() else column.notnull()


def _no_rows(spec: Spec, engine: Engine) -> str:
    """Why no row has a split."""
    source = read_source(engine, spec.log, spec.sources[spec.log])
    [(rows,)] = engine.rows(source.aggregate(rows=source.count()))
    if not rows:
        return f"sources[{spec.log}] has no rows in {spec.sources[spec.log].files}; give the right files."
    return f"where and split keep none of the {rows} rows of sources[{spec.log}]; correct them."


def _first_place(spec: Spec, tree: Expression | None, value: Any) -> str:
    """`, first in FILE, line 7`, for a column of the log as it is."""
    if not isinstance(tree, Column):
        return ""
    return ", ".join(["", *(f"first in {place}" for place in first_place(spec, tree.name, value))])


def _wrong_labels(labels: ir.Value, label: Label) -> tuple[ir.BooleanValue, str]:
    """Which labels are none of their kind, and what they must be."""
    if label.kind == "number":
        # NaN is above all numbers.
        return ~(labels.cast("float64").abs() <= _LARGEST), "a finite 32-bit float or missing"
    if label.kind == "ordinal":
        assert label.levels is not None
        return ~labels.isin(list(range(label.levels))), f"a level from 0 to {label.levels - 1} or missing"
    return ~labels.isin([0, 1]), "0, 1 or missing"


def _checks(spec: Spec, expressions: SpecExpressions, rows: ir.Table) -> list[_Check]:
    checks = []
    for name, label in spec.tasks.items():
        if not rows[f"label {name}"].type().is_boolean():
            wrong, words = _wrong_labels(rows[f"label {name}"], label)
            checks.append(_Check(f"labels[{name}]", f"label {name}", wrong, words, expressions.labels[name].tree))
    for name, feature in spec.id_features.items():
        if feature.identity is not None:
            ids, column = rows[f"feature {name}"], f"feature {name}"
            wrong = (
                ids.filter(lambda each, n=feature.identity: (each < 0) | (each >= n)).length() > 0
                if ids.type().is_array()
                else (ids < 0) | (ids >= feature.identity)
            )
            words = f"an id from 0 to {feature.identity - 1}, as identity says"
            checks.append(_Check(f"features[{name}]", column, wrong, words, expressions.features[name].tree))
        if feature.weights is not None:
            checks.append(_check_of_weights(name, rows[f"feature {name}"], rows[f"weights of {name}"]))
    weights = [f"weight of {name}" for name, label in spec.tasks.items() if label.weight is not None]
    for column in [*weights, *(["weight"] if spec.weight is not None else [])]:
        wrong = rows[column].isnull() | (rows[column].cast("float64") < 0)
        place = column if column == "weight" else f"labels[{column.removeprefix('weight of ')}].weight"
        checks.append(_Check(place, column, wrong, "a weight of at least 0"))
    if spec.group is not None:
        checks.append(_Check("group", "group", rows["group"].isnull(), "a value, as gAUC leaves no row out"))
    return checks


def _check_of_weights(name: str, ids: ir.Value, weights: ir.Value) -> _Check:
    if not ids.type().is_array():
        return _Check(f"features[{name}].weights", f"weights of {name}", weights.isnull(), "a number")
    wrong = weights.length().fill_null(0) != ids.length().fill_null(0)
    return _Check(f"features[{name}].weights", f"weights of {name}", wrong, "a list with a weight for each id")
