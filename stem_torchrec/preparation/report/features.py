"""Measures the features of a log that is written: ids from its files, numbers and values from the kept rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from stem_torchrec.data.new_log import SPLITS
from stem_torchrec.data.schema import Schema
from stem_torchrec.expressions.expression import Column
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.fitting.fit import Fitted
from stem_torchrec.preparation.report.counts import count_ids, leading_digits, number_of_digits, with_labels
from stem_torchrec.preparation.report.facts import (
    MOST_FREQUENT,
    SHARES,
    Collisions,
    FeatureFacts,
    NumberFacts,
    divergence,
)
from stem_torchrec.preparation.report.leak_check import (
    LoneAuc,
    auc_of_scores,
    in_buckets,
    scores_of_ids,
    scores_of_lists,
)
from stem_torchrec.preparation.specs.spec import Feature, Spec
from stem_torchrec.preparation.specs.spec_expressions import SPLIT, SpecExpressions
from stem_torchrec.preparation.writing.encoding import is_positive
from stem_torchrec.preparation.writing.feature_trees import identity_or_hash

_ELEMENTS = {ValueType.INTS: ValueType.INT, ValueType.TEXTS: ValueType.TEXT}


@dataclass(frozen=True)
class WrittenLog:
    """A log whose splits are written.

    Args:
        spec: what it was made from.
        expressions: those of the spec.
        fitted: the constants of train.
        rows: the kept rows, with the columns of `expressions.outputs`.
        parts: the rows of each split as they are written.
        schema: that of the log.
        known: what an earlier log has fitted, of the features that a model has learned from it.
    """

    spec: Spec
    expressions: SpecExpressions
    fitted: Fitted
    rows: ir.Table
    parts: Mapping[str, ir.Table]
    schema: Schema
    known: Fitted

    @property
    def rates(self) -> list[float]:
        """The mean of each label in train."""
        train = self.schema.splits["train"]
        return [each.positives / max(train.rows - each.missing, 1) for each in train.labels.values()]


class FeatureMeasures:
    """Measures features one after another; each needs memory for its own ids alone."""

    def __init__(self, log: WrittenLog, engine: Engine) -> None:
        self._log, self._engine = log, engine
        self._labels, self._rates = log.schema.label_names, log.rates
        self._filled = self._rows_with_values()

    def feature(self, name: str) -> FeatureFacts:
        """The facts of a feature with ids."""
        engine, log = self._engine, self._log
        feature, column = log.spec.id_features[name], log.parts["train"][name]
        counts = count_ids(
            {k: with_labels(part, part[name], self._labels) for k, part in log.parts.items()}, self._tasks
        )
        counts = engine.keep(f"counts of feature {name}", counts)
        if column.type().is_array():
            valid = log.parts["valid"]
            labels = {f"label_{i}": is_positive(valid[label]) for i, label in enumerate(self._labels)}
            lists = count_ids({"valid": valid.select(id=valid[name].fill_null(_none(column)), **labels)}, self._tasks)
            scores = scores_of_lists(lists, counts, self._rates)
        else:
            scores = scores_of_ids(counts, self._rates)
        sizes = next(each.num_embeddings for each in log.schema.sparse_features if each.name == name)
        ids_of_train, unseen = self._ids(name, feature, counts)
        return FeatureFacts(
            ids=sizes,
            ids_of_train=ids_of_train,
            coverage={split: self._filled[split][f"feature {name}"] / self._split_rows(split) for split in log.parts},
            unseen=unseen,
            drift=self._drift(counts),
            aucs=self._aucs(scores),
            collisions=None if feature.hash is None else self._collisions(name, feature),
        )

    def number(self, name: str) -> NumberFacts:
        """The facts of a dense feature."""
        log, rows = self._log, self._log.rows
        key = leading_digits(rows[f"dense {name}"])
        labels = {f"label_{i}": is_positive(rows[f"label {label}"]) for i, label in enumerate(self._labels)}
        table = rows.select(SPLIT, id=key, **labels)
        parts = {split: table.filter(table[SPLIT] == SPLITS.index(split)).drop(SPLIT) for split in log.parts}
        counts = self._engine.keep(f"counts of dense {name}", count_ids(parts, self._tasks))
        filled = {split: self._filled[split][f"dense {name}"] for split in log.parts}
        buckets = in_buckets(counts, self._tasks, filled["train"])
        times = [f"rows_{split}" for split in log.parts]
        by_key = self._engine.rows(counts.filter(counts["id"].notnull()).order_by("id").select("id", *times))
        by_bucket = self._engine.rows(buckets.select(*times))
        spread = {split: [row[i] for row in by_bucket] for i, split in enumerate(log.parts)}
        return NumberFacts(
            missing={split: 1 - filled[split] / self._split_rows(split) for split in log.parts},
            quantiles={
                split: _quantiles([(row[0], row[1 + i]) for row in by_key]) for i, split in enumerate(log.parts)
            },
            drift={split: divergence(spread["train"], spread[split]) for split in log.parts if split != "train"},
            aucs=self._aucs(scores_of_ids(buckets, self._rates)),
        )

    @property
    def _tasks(self) -> int:
        return len(self._labels)

    def _split_rows(self, split: str) -> int:
        return self._log.schema.splits[split].rows

    def _rows_with_values(self) -> dict[str, dict[str, int]]:
        """For each split, the rows that have a value in each of the columns of features."""
        rows = self._log.rows
        sums = {}
        for name in [name for name in self._log.expressions.outputs if name.startswith(("feature ", "dense "))]:
            value = rows[name]
            filled = value.notnull() & (value.length() > 0) if value.type().is_array() else value.notnull()
            sums[name] = filled.cast("int64").sum()
        numbers = self._engine.rows(rows.group_by(SPLIT).aggregate(**sums))
        return {SPLITS[int(row[0])]: dict(zip(sums, map(int, row[1:]), strict=True)) for row in numbers}

    def _aucs(self, scores: ir.Table) -> dict[str, LoneAuc]:
        return {
            self._labels[int(task)]: LoneAuc(won / (positives * negatives), int(positives), int(negatives))
            for task, won, positives, negatives in self._engine.rows(auc_of_scores(scores).order_by("task"))
            if positives and negatives
        }

    def _ids(self, name: str, feature: Feature, counts: ir.Table) -> tuple[int, dict[str, float]]:
        """How many ids train has, and the share of unseen ones by split."""
        with_id = counts.filter(counts["id"].notnull())
        in_train, vocabulary = with_id["rows_train"] > 0, feature.hash is None and feature.identity is None
        new = with_id["id"] == 0 if vocabulary else ~in_train
        sums: dict[str, ir.Value] = {"ids": in_train.cast("int64").sum()}
        for split in self._log.parts:
            times = with_id[f"rows_{split}"]
            sums |= {f"all {split}": times.sum(), f"new {split}": ibis.ifelse(new, times, 0).sum()}
        [(ids, *numbers)] = self._engine.rows(with_id.aggregate(**sums))
        unseen = {}
        for i, split in enumerate(self._log.parts):
            total, unknown = (int(number or 0) for number in numbers[2 * i : 2 * i + 2])
            scalar = self._log.expressions.features[name].type not in _ELEMENTS
            if vocabulary and scalar and feature.missing == "unseen":
                # A missing value has id 0 as well, and is no unseen one.
                missing = self._split_rows(split) - self._filled[split][f"feature {name}"]
                total, unknown = total - missing, unknown - missing
            unseen[split] = unknown / total if total else 0.0
        return int(ids or 0), unseen

    def _drift(self, counts: ir.Table) -> dict[str, float]:
        times = [f"rows_{split}" for split in self._log.parts]
        [totals] = self._engine.rows(counts.aggregate(**{each: counts[each].sum() for each in times}))
        order = [ibis.desc("rows_train"), ibis.asc("id")]
        frequent = self._engine.rows(counts.order_by(order).limit(MOST_FREQUENT).select(*times))
        by_split = {}
        for i, split in enumerate(self._log.parts):
            known = [int(row[i]) for row in frequent]
            by_split[split] = [*known, int(totals[i] or 0) - sum(known)]
        return {split: divergence(by_split["train"], by_split[split]) for split in by_split if split != "train"}

    def _collisions(self, name: str, feature: Feature) -> Collisions:
        """Of the values of train and their ids."""
        assert feature.hash is not None
        log, column = self._log, f"feature {name}"
        kind = log.expressions.features[name].type
        train = log.rows.filter(log.rows[SPLIT] == 0)
        value = to_ibis(
            log.fitted.feature(name, Column(column)), {column: train[column]}, {column: kind}, engine=self._engine.name
        )
        values = train.select(value=value.unnest() if value.type().is_array() else value)
        values = values.filter(values["value"].notnull())
        values = values.group_by("value").aggregate(times=values.count())
        scalar = _ELEMENTS.get(kind, kind)
        # With several hashes, values are one only if they share all ids.
        tree = identity_or_hash(feature, Column("value"), scalar)
        hashed = to_ibis(tree, {"value": values["value"]}, {"value": scalar}, engine=self._engine.name)
        values = values.mutate(id=hashed)
        ids = values.group_by("id").aggregate(
            values=values.count(), times=values["times"].sum(), largest=values["times"].max()
        )
        shared = ids["values"] > 1
        [numbers] = self._engine.rows(
            ids.aggregate(
                values=ids["values"].sum(),
                rows=ids["times"].sum(),
                shared_values=ibis.ifelse(shared, ids["values"], 0).sum(),
                shared_rows=ibis.ifelse(shared, ids["times"], 0).sum(),
                lesser=(ids["times"] - ids["largest"]).sum(),
            )
        )
        return Collisions(feature.hash.buckets, *(int(number or 0) for number in numbers))


def _none(column: ir.Value) -> ir.Value:
    return ibis.literal([], type=column.type())


def _quantiles(spans: list[tuple[int, int]]) -> list[float]:
    """The values at SHARES of the rows, each the `lower` quantile, from how often each rising key occurs."""
    total, values, end = sum(times for _, times in spans), list[float](), 0
    positions = [int(share * (total - 1)) for share in SHARES]
    for key, times in spans if total else ():
        end += times
        while len(values) < len(positions) and positions[len(values)] < end:
            values.append(number_of_digits(key))
    return values
