"""Checks of the kept rows before anything is fitted: labels are 0, 1 or null, ids and weights are in their ranges."""

from dataclasses import dataclass

import ibis.expr.types as ir

from stem_torchrec.preparation.engine import Engine
from stem_torchrec.preparation.expressions_of_spec import SPLIT, SpecExpressions
from stem_torchrec.preparation.spec import Spec
from stem_torchrec.runtime.errors import UserError


@dataclass(frozen=True)
class _Check:
    place: str
    column: str
    wrong: ir.BooleanValue
    words: str
    """What the values must be."""


def check_rows(spec: Spec, expressions: SpecExpressions, rows: ir.Table, engine: Engine) -> dict[int, int]:
    """Returns the rows of each split, 0 to 2.

    Raises UserError for an empty train or valid, for a value that its place does not take, and for a label of which
    train has one kind only, from which nothing can be learned.
    """
    counts: dict[int, int] = dict(engine.rows(rows.group_by(SPLIT).aggregate(rows=rows.count())))
    for i, name in enumerate(("train", "valid")):
        if not counts.get(i):
            sizes = ", ".join(f"{split} {counts.get(j, 0)}" for j, split in enumerate(("train", "valid", "test")))
            raise UserError(f"split leaves {name} without rows ({sizes}); move its limits.")
    checks = [*_checks(spec, rows)]
    if checks:
        wrong = {f"wrong {i}": check.wrong.sum() for i, check in enumerate(checks)}
        [number] = engine.rows(rows.aggregate(**wrong))
        for check, times in zip(checks, number, strict=True):
            if times:
                [(value,)] = engine.rows(rows.filter(check.wrong).select(check.column).limit(1))
                raise UserError(f"{check.place} is {value!r} in {times} rows, but must be {check.words}.")
    train = rows.filter(rows[SPLIT] == 0)
    kinds = {name: train[f"label {name}"].cast("int64") for name in spec.labels}
    ends = {f"{end} {name}": getattr(kinds[name], end)() for name in kinds for end in ("min", "max")}
    [values] = engine.rows(train.aggregate(**ends))
    for name, (least, greatest) in zip(kinds, zip(values[::2], values[1::2], strict=True), strict=True):
        if least == greatest:
            only = "no label" if least is None else f"only the label {least}"
            raise UserError(f"labels[{name}] has {only} in train, so nothing can be learned from it; leave it out.")
    return counts


def _checks(spec: Spec, rows: ir.Table) -> list[_Check]:
    checks = []
    for name in spec.labels:
        label = rows[f"label {name}"]
        if not label.type().is_boolean():
            checks.append(_Check(f"labels[{name}]", f"label {name}", ~label.isin([0, 1]), "0, 1 or missing"))
    for name, feature in spec.id_features.items():
        if feature.identity is not None:
            ids, column = rows[f"feature {name}"], f"feature {name}"
            wrong = (
                ids.filter(lambda each, n=feature.identity: (each < 0) | (each >= n)).length() > 0
                if ids.type().is_array()
                else (ids < 0) | (ids >= feature.identity)
            )
            words = f"an id from 0 to {feature.identity - 1}, as identity says"
            checks.append(_Check(f"features[{name}]", column, wrong, words))
    weights = [f"weight of {name}" for name, label in spec.tasks.items() if label.weight is not None]
    for column in [*weights, *(["weight"] if spec.weight is not None else [])]:
        wrong = rows[column].isnull() | (rows[column].cast("float64") < 0)
        checks.append(_Check(column, column, wrong, "a weight of at least 0"))
    return checks
