"""What is fitted on train: edges of buckets, quantiles, means and vocabularies; and the trees that have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Call, Column, Expression, Literal
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.fitting.statistics_of_train import (
    mean_and_deviation,
    quantiles,
    quantiles_at,
    rising,
)
from stem_torchrec.preparation.specs.expression_reader import from_sql, substituted
from stem_torchrec.preparation.specs.spec import Buckets, Dense, Spec
from stem_torchrec.preparation.specs.spec_expressions import SPLIT, SpecExpressions
from stem_torchrec.runtime.errors import UserError

VALUE = Column("value")
"""Stands for the value in a fitted step."""


@dataclass(frozen=True)
class Fitted:
    """The steps with constants of train, as trees over VALUE."""

    features: Mapping[str, Expression]
    """From the value of a feature to what its ids are of, such as the edge of its bucket."""
    dense: Mapping[str, Expression]
    """From a number to the number that the model sees, of dense features by name."""

    def feature(self, name: str, value: Expression) -> Expression:
        """The step of a feature after a value."""
        return substituted(self.features[name], {VALUE.name: value})

    def number(self, name: str, value: Expression) -> Expression:
        """The steps of a dense feature after a value."""
        return substituted(self.dense[name], {VALUE.name: value})


def fit(spec: Spec, expressions: SpecExpressions, rows: ir.Table, engine: Engine, known: Fitted) -> Fitted:
    """Fits the constants of all features on the rows of train, but of those that are known.

    Raises UserError where train has no value.
    """
    train = rows.filter(rows[SPLIT] == 0)
    features: dict[str, Expression] = {}
    for name, feature in spec.id_features.items():
        if name in known.features:
            features[name] = known.features[name]
            continue
        steps = _Steps(train, f"feature {name}", expressions.features[name].type, engine, f"features[{name}]")
        if feature.buckets is not None:
            steps.put_into_buckets(feature.buckets)
        features[name] = steps.tree
    dense: dict[str, Expression] = {}
    for name, number in spec.numbers.items():
        if name in known.dense:
            dense[name] = known.dense[name]
            continue
        steps = _Steps(train, f"dense {name}", expressions.dense[name].type, engine, f"dense[{name}]")
        steps.scale(number)
        dense[name] = steps.tree
    return Fitted(features, dense)


class _Steps:
    """The steps of one feature: each is fitted on what the ones before it give for the rows of train."""

    def __init__(self, train: ir.Table, column: str, kind: ValueType, engine: Engine, place: str) -> None:
        self._values = train.select(value=train[column])
        self._kind, self._engine, self._place = kind, engine, place
        self.tree: Expression = VALUE

    def put_into_buckets(self, buckets: Buckets) -> None:
        if buckets.edges is not None:
            edges = rising(buckets.edges)
        else:
            assert buckets.quantiles is not None
            # The last edge is the greatest value, which belongs to the bucket before it.
            edges = rising(self._required(quantiles(self._engine, self._values, "value", buckets.quantiles))[:-1])
        self._append("bucket", edges=tuple(edges))

    def scale(self, number: Dense) -> None:
        if number.log:
            signed = "case when x < 0 then -log1p(abs(x)) else log1p(abs(x)) end"
            self.tree = from_sql(signed, x=self.tree)
        if number.clip is not None:
            low, high = self._required(quantiles_at(self._engine, self._now(), "value", number.clip))
            self._append("clip", low=low, high=high)
        if number.quantiles is not None:
            edges = self._required(quantiles(self._engine, self._now(), "value", number.quantiles))
            self._append("interpolate", edges=tuple(float(edge) for edge in edges))
        mean, deviation = mean_and_deviation(self._engine, self._now(), "value")
        if number.standardize:
            self._append("standardize", mean=mean, deviation=deviation)
            mean = 0.0
        fill = mean if number.missing.fill == "mean" else number.missing.fill
        self.tree = Call("coalesce", (self.tree, Literal(float(fill))))

    def _append(self, function: str, **constants: Any) -> None:
        self.tree = Call(function, (self.tree,), constants)

    def _now(self) -> ir.Table:
        """What the steps so far give for the rows of train."""
        columns, types = {VALUE.name: self._values["value"]}, {VALUE.name: self._kind}
        return self._values.select(value=to_ibis(self.tree, columns, types, engine=self._engine.name))

    def _required(self, edges: list[float]) -> list[float]:
        if not edges:
            raise UserError(f"{self._place} has no value in train, so nothing can be fitted; leave it out.")
        return edges
