"""Columns that alone tell a label: what the exposure has produced, mostly, and not what was known before it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ibis.expr.types as ir
import numpy as np
from numpy.typing import NDArray

from stem_torchrec.data.pair_auc import pair_auc
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import ROW, Engine
from stem_torchrec.preparation.guessing.facts import NUMBERS
from stem_torchrec.preparation.report.leak_rule import BUCKETS, LEAST_ROWS, SMOOTHING, leaks_of
from stem_torchrec.preparation.specs.expression_reader import Value

_ROWS = 20_000


def lone_aucs(
    engine: Engine,
    sample: ir.Table,
    types: Mapping[str, ValueType],
    labels: Mapping[str, Value],
    columns: Sequence[str],
) -> dict[str, dict[str, float]]:
    """For each label, the AUC of each column alone: of the mean label that its value has in the other half of the rows.

    Args:
        engine: keeps the sample.
        sample: rows, with a column ROW.
        types: of its columns.
        labels: by name.
        columns: to look at.
    """
    [(rows,)] = engine.rows(sample.aggregate(rows=sample.count()))
    some = sample.filter(sample[ROW] % max(1, rows // _ROWS) == 0)
    read = {name: some[name] for name in types}
    values = {f"label {name}": to_ibis(value.tree, read, types, engine=engine.name) for name, value in labels.items()}
    fetched = engine.rows(some.select(**values, **{f"column {name}": some[name] for name in columns}))
    cells = list(zip(*fetched, strict=True))
    keys = {name: _keys(cells[len(labels) + i], in_bins=types[name] in NUMBERS) for i, name in enumerate(columns)}
    scores = {}
    for i, name in enumerate(labels):
        label = np.array([np.nan if each is None else float(each) for each in cells[i]])
        scores[name] = {column: score for column in columns if (score := _score(keys[column], label)) is not None}
    return scores


def _keys(cells: Sequence[Any], *, in_bins: bool) -> NDArray[np.int64]:
    """A number for each different value; numbers of many values are put into bins."""
    if in_bins:
        numbers = np.array([np.nan if each is None else float(each) for each in cells])
        kinds = np.unique(numbers)
        if len(kinds) > BUCKETS:
            edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, BUCKETS + 1)))
            return np.where(np.isnan(numbers), -1, np.searchsorted(edges, numbers, side="right")) + 1
        cells = list(numbers)
    index: dict[str, int] = {}
    return np.array([index.setdefault(str(each), len(index)) for each in cells], dtype=np.int64)


def _score(keys: NDArray[np.int64], label: NDArray[np.float64]) -> float | None:
    """The AUC on every second row of the mean label of a value in the others; None where too few rows tell."""
    known = ~np.isnan(label)
    keys, label = keys[known], label[known]
    fitted, scored = (keys[::2], label[::2]), (keys[1::2], label[1::2])
    if min(each.sum() for _, each in (fitted, scored)) < LEAST_ROWS:
        return None
    if min((1 - each).sum() for _, each in (fitted, scored)) < LEAST_ROWS:
        return None
    size = int(keys.max()) + 1
    count, positive = np.bincount(fitted[0], minlength=size), np.bincount(fitted[0], fitted[1], size)
    mean = (positive + SMOOTHING * fitted[1].mean()) / (count + SMOOTHING)
    return pair_auc(mean[scored[0]], scored[1])


def leaks_and_suspects(
    scores: Mapping[str, Mapping[str, float]], groups: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """What to say of columns that leak a label, and of those that may do so, by the rule of the report.

    Args:
        scores: AUCs by label and by column.
        groups: columns that are the group of gAUC.
    """
    leaks: dict[str, str] = {}
    suspects: dict[str, str] = {}
    for label, by_column in scores.items():
        for column, leak in leaks_of(by_column, groups).items():
            words = f"alone has an AUC of {leak.auc:.3f} for {label}"
            (leaks if leak.certain else suspects).setdefault(column, words)
    return leaks, {column: words for column, words in suspects.items() if column not in leaks}
