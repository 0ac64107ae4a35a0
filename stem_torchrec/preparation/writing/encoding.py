"""From the kept rows to the columns of a log: values become ids and scaled numbers."""

from collections.abc import Mapping

import ibis
import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Column
from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import INT, INTS, LISTS
from stem_torchrec.preparation.engines.engine import ROW
from stem_torchrec.preparation.fitting.fit import Fitted
from stem_torchrec.preparation.fitting.id_spaces import IdSpace
from stem_torchrec.preparation.fitting.vocabularies import Vocabularies
from stem_torchrec.preparation.specs.spec import Feature, Spec
from stem_torchrec.preparation.specs.spec_expressions import ORDER, SPLIT, SpecExpressions
from stem_torchrec.preparation.writing.feature_trees import identity_or_hash, is_missing, weights_of, with_missing

_LABEL_TYPES = {"binary": "int8", "number": "float32", "ordinal": "int16"}
_SMALL = 2**31
"""Ids below it are written as int32."""


def is_positive(label: ir.Value) -> ir.Value:
    """1 where a label is above 0, as a binary one is 1, else 0; null where it is missing."""
    return (label.cast("float64") > 0).cast("int64")


def num_embeddings(name: str, feature: Feature, vocabularies: Vocabularies) -> int:
    """The rows of the tables of a feature."""
    space = vocabularies.of(name)
    if space is not None:
        return vocabularies.sizes[space]
    if feature.hash is not None:
        return feature.hash.buckets + 1
    assert feature.identity is not None
    return feature.identity + (feature.missing == "own")


def encode(
    spec: Spec,
    expressions: SpecExpressions,
    fitted: Fitted,
    vocabularies: Vocabularies,
    rows: ir.Table,
    *,
    engine: EngineName,
) -> ir.Table:
    """The columns of the log for each row, with SPLIT, ORDER and ROW.

    Args:
        spec: what to make.
        expressions: with the types of the values.
        fitted: the constants of train.
        vocabularies: the ids of values.
        rows: with the columns of `expressions.outputs` and ROW.
    """
    values = {name: rows[name] for name in expressions.outputs}
    types = {name: value.type for name, value in expressions.outputs.items()}
    columns: dict[str, ir.Value] = {SPLIT: rows[SPLIT], ROW: rows[ROW]}
    columns |= {ORDER: rows[ORDER]} if ORDER in types else {}
    for name, feature in spec.id_features.items():
        value = fitted.feature(name, Column(f"feature {name}"))
        kind, tree = type_of(value, types), value
        if vocabularies.of(name) is None:
            missing = missing_id(feature, None)
            tree = with_missing(feature, identity_or_hash(feature, value, kind), kind, missing)
        columns[name] = to_ibis(tree, values, types, engine=engine)
        if feature.weights is not None:
            weights = weights_of(feature, Column(f"weights of {name}"), value, kind)
            columns[f"{name}_weights"] = _float32(to_ibis(weights, values, types, engine=engine))
    for name, number in spec.numbers.items():
        value = Column(f"dense {name}")
        columns[name] = _float32(to_ibis(fitted.number(name, value), values, types, engine=engine))
        if number.missing.flag:
            columns[f"{name}_missing"] = _float32(to_ibis(is_missing(value), values, types, engine=engine))
    columns |= {name: rows[f"label {name}"].cast(_LABEL_TYPES[label.kind]) for name, label in spec.tasks.items()}
    columns |= {f"{name}_weight": _float32(rows[f"weight of {name}"]) for name in expressions.label_weights}
    columns |= {name: rows[f"kept {name}"] for name in expressions.kept}
    columns |= {expressions.group_column: rows["group"]} if expressions.group is not None else {}
    columns |= {"weight": _float32(rows["weight"])} if expressions.weight is not None else {}
    lists = {
        name: rows.select(list=columns[name]) for name, value in expressions.features.items() if value.type in LISTS
    }
    return _with_ids(spec, expressions, vocabularies, rows.select(**columns), lists, engine=engine)


def _with_ids(
    spec: Spec,
    expressions: SpecExpressions,
    vocabularies: Vocabularies,
    table: ir.Table,
    lists: Mapping[str, ir.Table],
    *,
    engine: EngineName,
) -> ir.Table:
    """Puts ids in the place of values: one query that joins all vocabularies.

    Args:
        lists: the values of a feature alone, in the column `list`; a part of `table`, which engines read anew for each.
    """
    joined, ids, space_of = table, {}, {}
    for name in spec.features:
        space = vocabularies.of(name)
        if space is not None:
            value, id_column = f"value of {name}", f"id of {name}"
            side = vocabularies.tables[space].select(**{value: "value", id_column: "id"})
            if expressions.features[name].type in LISTS:
                side = _ids_of_lists(lists[name], side, value, id_column)
            joined = joined.left_join(side, table[name] == side[value])
            ids[name], space_of[name] = id_column, vocabularies.spaces[space]
    columns: dict[str, ir.Value] = {}
    for name in table.columns:
        column = joined[name]
        if name in ids:
            feature, kind = spec.id_features[name], expressions.features[name].type
            missing = missing_id(feature, space_of[name])
            if missing == 0 and kind not in LISTS:
                # A missing value is as one without an id.
                column = joined[ids[name]].fill_null(0)
            else:
                tree = with_missing(feature, Column("ids"), kind, missing)
                column = _known_ids(column, joined[ids[name]])
                if tree != Column("ids"):
                    column = to_ibis(tree, {"ids": column}, {"ids": INTS if kind in LISTS else INT}, engine=engine)
        if name in spec.features:
            small = num_embeddings(name, spec.id_features[name], vocabularies) <= _SMALL
            size = "int32" if small else "int64"
            column = column.cast(f"array<{size}>" if column.type().is_array() else size)
        columns[name] = column
    return joined.select(**columns)


def _known_ids(value: ir.Value, ids: ir.Value) -> ir.Value:
    """The ids of values by what a left join gave: 0 for a value without an id, no ids for an empty list."""
    kind = "array<int64>" if value.type().is_array() else "int64"
    none = ibis.literal([], type=kind) if value.type().is_array() else ibis.literal(0, type=kind)
    return ibis.ifelse(value.isnull(), ibis.null(kind), ids.fill_null(none))


def _ids_of_lists(lists: ir.Table, ids: ir.Table, value: str, id_column: str) -> ir.Table:
    """The list of ids of each different list of values; an empty list, which has none, is not among them."""
    lists = lists.distinct()
    elements = lists.mutate(element=lists["list"]).unnest("element", offset="position")
    joined = elements.left_join(ids, elements["element"] == ids[value])
    pair = ibis.struct({"position": joined["position"], "id": joined[id_column].fill_null(0)})
    pairs = joined.group_by("list").aggregate(pairs=pair.collect())
    return pairs.select(**{value: "list", id_column: pairs["pairs"].sort().map(lambda pair: pair["id"])})


def _float32(value: ir.Value) -> ir.Value:
    return value.cast("array<float32>" if value.type().is_array() else "float32")


def missing_id(feature: Feature, space: IdSpace | None) -> int | None:
    """The id of a missing value; None leaves the row without an id of the feature."""
    if feature.missing == "none":
        return None
    if feature.hash is not None:
        return feature.hash.buckets
    if feature.identity is not None and feature.missing == "own":
        return feature.identity
    return space.missing_id if space is not None and feature.missing == "own" else 0
