"""Vocabularies: the values of a feature that have an id, and the joins that put ids in their place."""

from collections.abc import Mapping
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engine import Engine
from stem_torchrec.preparation.spec import Spec, Vocabulary
from stem_torchrec.preparation.statistics_of_train import count_values

VALUE_COLUMNS = ("value", "id", "count")
"""Columns of a vocabulary's file."""


@dataclass(frozen=True)
class IdSpace:
    """Ids that one or several features share.

    The vocabulary of a feature gives 1, 2, ... by falling count, then by value; 0 is unseen. Where a missing value has
    an id of its own, that is 1, and the others begin at 2.
    """

    name: str
    """The feature that it was made for."""
    vocabulary: Vocabulary
    features: tuple[str, ...]
    missing_id: int | None

    @property
    def first_id(self) -> int:
        """The id of the most frequent value."""
        return 1 if self.missing_id is None else self.missing_id + 1


def id_spaces(spec: Spec) -> dict[str, IdSpace]:
    """The id spaces with a vocabulary, by the feature that they were made for."""
    members: dict[str, list[str]] = {}
    for name, feature in spec.id_features.items():
        if feature.hash is None and feature.identity is None:
            owner = feature.vocabulary.of if feature.vocabulary and feature.vocabulary.of else name
            members.setdefault(owner, []).append(name)
    spaces = {}
    for owner, names in members.items():
        own = any(spec.id_features[name].missing == "own" for name in names)
        vocabulary = spec.id_features[owner].vocabulary or Vocabulary()
        spaces[owner] = IdSpace(owner, vocabulary, tuple(names), 1 if own else None)
    return spaces


def keep_vocabulary(engine: Engine, space: IdSpace, values: Mapping[str, ir.Table]) -> ir.Table:
    """Counts the values of train and keeps those that get an id: columns value, id and count, in the order of the ids.

    Args:
        engine: keeps them.
        space: the ids.
        values: for each feature of the space, a table with its values in train in the column `value`.
    """
    counts = ibis.union(*(count_values(values[name], "value") for name in space.features), distinct=False)
    if len(space.features) > 1:
        counts = counts.group_by("value").aggregate(count=counts["count"].sum())
    counts = counts.filter(counts["count"] >= space.vocabulary.min_count)
    order = [ibis.desc("count"), ibis.asc("value")]
    if space.vocabulary.most_frequent is not None:
        counts = counts.order_by(order).limit(space.vocabulary.most_frequent)
    position = ibis.row_number().over(order_by=order)
    table = counts.mutate(id=(position + space.first_id).cast("int64")).select(*VALUE_COLUMNS)
    return engine.keep(f"vocabulary {space.name}", table.order_by("id"))
