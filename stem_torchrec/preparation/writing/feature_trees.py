"""The last steps from values to the columns of a log, as trees: an engine and serving take the same ones."""

from stem_torchrec.expressions.expression import Call, Expression, Literal, Parameter
from stem_torchrec.expressions.value_types import LISTS, ValueType
from stem_torchrec.preparation.specs.expression_reader import from_sql
from stem_torchrec.preparation.specs.spec import Feature

_HASHED_AS = {ValueType.BOOL: "cast(value as int)", ValueType.DATE: "days(value)"}


def identity_or_hash(feature: Feature, value: Expression, kind: ValueType) -> Expression:
    """The ids of a value without a vocabulary: the value itself, or its hashes."""
    if feature.hash is None:
        return value
    if kind in _HASHED_AS:
        value = from_sql(_HASHED_AS[kind], value=value)
    constants: dict[str, Parameter] = {"buckets": feature.hash.buckets, "salt": feature.hash.salt}
    if feature.hash.hashes == 1:
        return Call("hash_id", (value,), constants)
    return Call("hash_ids", (value,), {**constants, "hashes": feature.hash.hashes})


def with_missing(feature: Feature, ids: Expression, kind: ValueType, missing: int | None) -> Expression:
    """The ids with that of a missing value, where it gets one.

    Args:
        feature: what a missing value gets.
        ids: of a row, one or a list.
        kind: type of the values.
        missing: the id of a missing value; None for none.
    """
    if missing is None:
        return ids
    if not has_list(feature, kind):
        return Call("coalesce", (ids, Literal(missing)))
    return Call("or_single", (ids,), {"value": missing}) if _fills_lists(feature, kind) else ids


def weights_of(feature: Feature, weights: Expression, value: Expression, kind: ValueType) -> Expression:
    """The weights that stand beside the ids of a feature, one for each.

    Args:
        feature: has weights.
        weights: one, or a list of them.
        value: of the feature.
        kind: type of the value.
    """
    if kind not in LISTS and (feature.missing == "none" or has_list(feature, kind)):
        # Without an id there is no weight.
        weights = from_sql("case when value is not null then weight end", value=value, weight=weights)
    if feature.hash is not None and feature.hash.hashes > 1:
        numbers = weights if kind in LISTS else Call("cast", (weights,), {"to": "float"})
        weights = Call("repeat", (numbers,), {"count": feature.hash.hashes})
    return Call("or_single", (weights,), {"value": 1}) if _fills_lists(feature, kind) else weights


def has_list(feature: Feature, kind: ValueType) -> bool:
    """Whether a row has a list of ids, by the type of its value."""
    return kind in LISTS or (feature.hash is not None and feature.hash.hashes > 1)


def _fills_lists(feature: Feature, kind: ValueType) -> bool:
    """Whether a missing or empty list becomes one with the id of a missing value."""
    return has_list(feature, kind) and (feature.missing == "own" or (kind not in LISTS and feature.missing != "none"))


def is_missing(value: Expression) -> Expression:
    """1 where a number is missing, else 0."""
    return from_sql("cast(value is null as float)", value=value)
