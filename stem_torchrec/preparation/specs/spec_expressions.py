"""The expressions of a spec as trees over the columns of its sources, each of a type that its place takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stem_torchrec.expressions.expression import Column, Expression
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.value_types import LISTS, ValueType
from stem_torchrec.preparation.specs.expression_reader import ExpressionReader, Value, from_sql
from stem_torchrec.preparation.specs.row_order import ORDERED, read_order, read_split
from stem_torchrec.preparation.specs.spec import Feature, Spec
from stem_torchrec.runtime.errors import UserError

SPLIT, ORDER = "__split", "__order"

_T = ValueType
_NUMBERS = (_T.INT, _T.FLOAT, _T.BOOL)
_IDS = (_T.INT, _T.TEXT, _T.BOOL, _T.DATE, _T.INTS, _T.TEXTS)


@dataclass(frozen=True)
class SpecExpressions:
    """The expressions of a spec over the columns of its sources."""

    where: Expression | None
    split: Value
    """0, 1, 2 for train, valid and test; null for rows of no split."""
    order: Value | None
    """None keeps the order of the source."""
    deduplicate: tuple[Value, ...]
    features: dict[str, Value]
    feature_weights: dict[str, Value]
    dense: dict[str, Value]
    labels: dict[str, Value]
    label_weights: dict[str, Value]
    group: Value | None
    group_column: str
    """Column of the log for the group."""
    weight: Value | None
    kept: dict[str, Value]

    @property
    def outputs(self) -> dict[str, Value]:
        """The values of a row by the column that keeps them, such as `feature user_id`."""
        single = {"group": self.group, "weight": self.weight, ORDER: self.order, SPLIT: self.split}
        by_role = {
            "feature": self.features,
            "weights of": self.feature_weights,
            "dense": self.dense,
            "label": self.labels,
            "weight of": self.label_weights,
            "kept": self.kept,
        }
        named = {f"{role} {name}": value for role, values in by_role.items() for name, value in values.items()}
        return named | {name: value for name, value in single.items() if value is not None}


def read_expressions(spec: Spec, types: Mapping[str, ValueType]) -> SpecExpressions:
    """The expressions of a spec.

    Args:
        spec: what to make.
        types: of the columns of the joined sources.

    Raises UserError with the place of an expression that cannot be read, names an unknown column or has a type that
    its place does not take.
    """
    reader = ExpressionReader(types)
    for name, text in spec.columns.items():
        reader.derive(name, text)
    labels, label_weights = {}, {}
    for name, label in spec.tasks.items():
        value = reader.value(label.value, f"labels[{name}]", _NUMBERS, "a label")
        if label.where is not None:
            condition = reader.value(label.where, f"labels[{name}].where", (_T.BOOL,), "a condition").tree
            value = Value(from_sql("case when held then value end", held=condition, value=value.tree), value.type)
        labels[name] = value
        if label.weight is not None:
            label_weights[name] = reader.value(label.weight, f"labels[{name}].weight", _NUMBERS, "a weight")
    features, feature_weights = {}, {}
    for name, feature in spec.id_features.items():
        features[name] = _feature(reader, name, feature)
        if feature.weights is not None:
            kinds = (_T.FLOATS, _T.INTS) if features[name].type in LISTS else _NUMBERS
            feature_weights[name] = reader.value(feature.weights, f"features[{name}].weights", kinds, "the weights")
    _check_shared(spec, features)
    dense = {}
    for name, number in spec.numbers.items():
        place = f"dense[{name}]"
        tree = reader.column(name, place) if number.value is None else reader.tree(number.value, place)
        value = reader.typed(tree, place, _NUMBERS, "a number", number.value or name)
        if value.type == _T.BOOL:
            value = Value(from_sql("cast(x as float)", x=value.tree), _T.FLOAT)
        dense[name] = value
    where = None if spec.where is None else reader.value(spec.where, "where", (_T.BOOL,), "a condition").tree
    group = None if spec.group is None else reader.value(spec.group, "group", (_T.INT, _T.TEXT), "a group")
    kept = {name: reader.column(name, f"keep[{i}]") for i, name in enumerate(spec.keep)}
    return SpecExpressions(
        where=where,
        split=read_split(reader, spec),
        order=read_order(reader, spec),
        deduplicate=_keys(reader, spec.deduplicate.by if spec.deduplicate else (), "deduplicate.by"),
        features=features,
        feature_weights=feature_weights,
        dense=dense,
        labels=labels,
        label_weights=label_weights,
        group=group,
        group_column=f"group_{group.tree.name}" if group and isinstance(group.tree, Column) else "group",
        kept={name: Value(tree, type_of(tree, types)) for name, tree in kept.items()},
        weight=None if spec.weight is None else reader.value(spec.weight, "weight", _NUMBERS, "a weight"),
    )


def _feature(reader: ExpressionReader, name: str, feature: Feature) -> Value:
    place = f"features[{name}]"
    tree = reader.column(name, place) if feature.value is None else reader.tree(feature.value, f"{place}.value")
    kinds = (_T.INT, _T.FLOAT) if feature.buckets else (_T.INT, _T.INTS) if feature.identity else _IDS
    what = "what is put into buckets" if feature.buckets else "an id" if feature.identity else "the value of a feature"
    return reader.typed(tree, place, kinds, what, feature.value or name)


def _check_shared(spec: Spec, features: Mapping[str, Value]) -> None:
    """Raises UserError for a feature with the ids of another, whose values are of another type."""
    for name, feature in spec.id_features.items():
        of = feature.vocabulary.of if feature.vocabulary else None
        if of is not None:
            own, other = (LISTS.get(features[each].type, features[each].type) for each in (name, of))
            if own != other:
                raise UserError(
                    f"features[{name}] is {own}, but {of!r}, whose ids it has by vocabulary.of, is {other}; give both "
                    "the same type."
                )


def _keys(reader: ExpressionReader, names: Sequence[str], place: str) -> tuple[Value, ...]:
    return tuple(
        reader.typed(reader.column(name, f"{place}[{i}]"), f"{place}[{i}]", (*_IDS, *ORDERED), "a key", name)
        for i, name in enumerate(names)
    )
