"""From the kept rows to the columns of a log: values become ids and scaled numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engine import ROW
from stem_torchrec.preparation.expression import Call, Column, Expression
from stem_torchrec.preparation.expressions_of_spec import ORDER, SPLIT, SpecExpressions
from stem_torchrec.preparation.fitting import Fitted
from stem_torchrec.preparation.function import Engine as EngineName
from stem_torchrec.preparation.id_spaces import IdSpace
from stem_torchrec.preparation.relational import to_ibis
from stem_torchrec.preparation.spec import Feature, Spec
from stem_torchrec.preparation.value_types import LISTS

VALUE_OF, ID_OF = "__value", "__id"
_SMALL = 2**31
"""Ids below it are written as int32."""


@dataclass(frozen=True)
class Vocabularies:
    """The id spaces with their kept tables, by the feature that they were made for."""

    spaces: Mapping[str, IdSpace]
    tables: Mapping[str, ir.Table]
    sizes: Mapping[str, int]
    """Ids of each space, with 0 and that of a missing value."""

    def of(self, feature: str) -> str | None:
        """The space of a feature; None for a feature without a vocabulary."""
        return next((name for name, space in self.spaces.items() if feature in space.features), None)


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
    for name in ("group", "weight"):
        if name in types:
            columns[name] = _float32(rows[name]) if name == "weight" else rows[name]
    table = rows.select(**columns)
    for name in spec.features:
        space = vocabularies.of(name)
        if space is not None:
            ids = vocabularies.tables[space].select(**{VALUE_OF: "value", ID_OF: "id"})
            encode_values = _encode_lists if expressions.features[name].type in LISTS else _encode_scalars
            table = encode_values(table, name, ids)
    final = {
        name: _final_ids(table[name], feature, vocabularies, name) for name, feature in spec.id_features.items()
    }
    return table.mutate(**final)


def _float32(value: ir.Value) -> ir.Value:
    return value.cast("array<float32>" if value.type().is_array() else "float32")


def _encode_scalars(table: ir.Table, column: str, ids: ir.Table) -> ir.Table:
    """Puts the id of each value into a column: 0 for one without, and null for null."""
    joined = table.left_join(ids, table[column] == ids[VALUE_OF])
    new = joined[column].isnull().ifelse(ibis.null("int64"), joined[ID_OF].fill_null(0))
    return joined.mutate(**{column: new}).drop(VALUE_OF, ID_OF)


def _encode_lists(table: ir.Table, column: str, ids: ir.Table) -> ir.Table:
    """Puts lists of ids in the place of lists of values; each different list is encoded once."""
    lists = table.select(**{VALUE_OF: column}).distinct()
    elements = lists.mutate(element=lists[VALUE_OF]).unnest("element", offset="position")
    renamed = ids.rename(element_value=VALUE_OF)
    joined = elements.left_join(renamed, elements["element"] == renamed["element_value"])
    pair = ibis.struct({"position": joined["position"], "id": joined[ID_OF].fill_null(0)})
    encoded = joined.group_by(VALUE_OF).aggregate(pairs=pair.collect())
    encoded = encoded.select(VALUE_OF, **{ID_OF: encoded["pairs"].sort().map(lambda pair: pair["id"])})
    result = table.left_join(encoded, table[column] == encoded[VALUE_OF])
    # An empty list has no elements, so it stays as it is.
    new = result[ID_OF].fill_null(result[column].isnull().ifelse(ibis.null("array<int64>"), ibis.array([], type="array<int64>")))
    return result.mutate(**{column: new}).drop(VALUE_OF, ID_OF)


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
