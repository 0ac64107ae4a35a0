"""From the kept rows to the columns of a log: values become ids and scaled numbers."""

import ibis
import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Call, Column, Expression
from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import LISTS
from stem_torchrec.preparation.engine import ROW
from stem_torchrec.preparation.expressions_of_spec import ORDER, SPLIT, SpecExpressions
from stem_torchrec.preparation.fitting import Fitted
from stem_torchrec.preparation.id_spaces import IdSpace
from stem_torchrec.preparation.spec import Feature, Spec
from stem_torchrec.preparation.vocabularies import Vocabularies

_SMALL = 2**31
"""Ids below it are written as int32."""


def num_embeddings(name: str, feature: Feature, vocabularies: Vocabularies) -> int:
    """The rows of the tables of a feature."""
    space = vocabularies.of(name)
    if space is not None:
        return vocabularies.sizes[space]
    if feature.hash is not None:
        return feature.hash.buckets + 1
    assert feature.identity is not None
    return feature.identity


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
        tree = fitted.feature(name, Column(f"feature {name}"))
        if vocabularies.of(name) is None:
            tree = identity_or_hash(feature, tree)
        columns[name] = to_ibis(tree, values, types, engine=engine)
        if feature.weights is not None:
            columns[f"{name}_weights"] = _float32(rows[f"weights of {name}"])
    for name, number in spec.numbers.items():
        columns[name] = _float32(to_ibis(fitted.number(name, Column(f"dense {name}")), values, types, engine=engine))
        if number.missing.flag:
            columns[f"{name}_missing"] = rows[f"dense {name}"].isnull().cast("float32")
    columns |= {name: rows[f"label {name}"].cast("int8") for name in spec.labels}
    columns |= {f"{name}_weight": _float32(rows[f"weight of {name}"]) for name in expressions.label_weights}
    columns |= {name: rows[f"kept {name}"] for name in expressions.kept}
    columns |= {expressions.group_column: rows["group"]} if expressions.group is not None else {}
    columns |= {"weight": _float32(rows["weight"])} if expressions.weight is not None else {}
    return _with_ids(spec, expressions, vocabularies, rows.select(**columns))


def _with_ids(spec: Spec, expressions: SpecExpressions, vocabularies: Vocabularies, table: ir.Table) -> ir.Table:
    """Puts ids in the place of values: one query that joins all vocabularies."""
    joined, ids = table, {}
    for name in spec.features:
        space = vocabularies.of(name)
        if space is not None:
            value, id_column = f"value of {name}", f"id of {name}"
            side = vocabularies.tables[space].select(**{value: "value", id_column: "id"})
            if expressions.features[name].type in LISTS:
                side = _ids_of_lists(table, name, side, value, id_column)
            joined = joined.left_join(side, table[name] == side[value])
            ids[name] = id_column
    columns: dict[str, ir.Value] = {}
    for name in table.columns:
        column = joined[name]
        if name in ids:
            column = _found_ids(column, joined[ids[name]])
        if name in spec.features:
            column = _final_ids(column, spec.id_features[name], vocabularies, name)
        columns[name] = column
    return joined.select(**columns)


def _found_ids(value: ir.Value, ids: ir.Value) -> ir.Value:
    """The ids of values by what a left join gave: 0 for a value without an id, no ids for an empty list."""
    kind = "array<int64>" if value.type().is_array() else "int64"
    none = ibis.literal([], type=kind) if value.type().is_array() else ibis.literal(0, type=kind)
    return ibis.ifelse(value.isnull(), ibis.null(kind), ids.fill_null(none))


def _ids_of_lists(table: ir.Table, column: str, ids: ir.Table, value: str, id_column: str) -> ir.Table:
    """The list of ids of each different list of values; an empty list, which has none, is not among them."""
    lists = table.select(**{"list": column}).distinct()
    elements = lists.mutate(element=lists["list"]).unnest("element", offset="position")
    joined = elements.left_join(ids, elements["element"] == ids[value])
    pair = ibis.struct({"position": joined["position"], "id": joined[id_column].fill_null(0)})
    pairs = joined.group_by("list").aggregate(pairs=pair.collect())
    return pairs.select(**{value: "list", id_column: pairs["pairs"].sort().map(lambda pair: pair["id"])})


def _float32(value: ir.Value) -> ir.Value:
    return value.cast("array<float32>" if value.type().is_array() else "float32")


def identity_or_hash(feature: Feature, value: Expression) -> Expression:
    """The ids of a value without a vocabulary: the value itself, or its hash."""
    if feature.hash is None:
        return value
    return Call("hash_id", (value,), {"buckets": feature.hash.buckets, "salt": feature.hash.salt})


def _final_ids(ids: ir.Value, feature: Feature, vocabularies: Vocabularies, name: str) -> ir.Value:
    """The ids as the log has them, with what a missing value gets."""
    small = num_embeddings(name, feature, vocabularies) <= _SMALL
    space = vocabularies.of(name)
    missing = missing_id(feature, None if space is None else vocabularies.spaces[space])
    if ids.type().is_array():
        if feature.missing == "own":
            own = ibis.array([ibis.literal(missing, "int64")])
            ids = ibis.ifelse(ids.isnull() | (ids.length() == 0), own, ids)
        return ids.cast("array<int32>" if small else "array<int64>")
    ids = ids if missing is None else ids.fill_null(missing)
    return ids.cast("int32" if small else "int64")


def missing_id(feature: Feature, space: IdSpace | None) -> int | None:
    """The id of a missing value; None leaves the row without an id of the feature."""
    if feature.missing == "none":
        return None
    if feature.hash is not None:
        return feature.hash.buckets
    return space.missing_id if space is not None and feature.missing == "own" else 0
