"""Whether tables fit a model and a batch fits the tables; nothing here waits for a device."""

from collections.abc import Mapping, Sequence

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.runtime.errors import UserError, nearest

Columns = Mapping[str, Sequence[tuple[str, int]]]
"""For each group, its features and their widths, in the order of its columns."""


def check_groups(groups: Sequence[str], with_tables: Sequence[str]) -> None:
    """Raises UserError for the first of `groups` that no table has columns for."""
    for group in groups:
        if group not in with_tables:
            make_them = f"; embedding_bag_configs(features, {list(groups)}) makes the tables."
            raise UserError(
                f"no table has columns for the group {group!r}, only for {', '.join(with_tables)}"
                f"{nearest(group, with_tables) or make_them}"
            )


def check_same_columns(columns: Columns) -> None:
    """Raises UserError for groups that differ in their features, or in the order or width of the features."""
    first, *others = columns
    for group in others:
        for one, other in ((first, group), (group, first)):
            features = [feature for feature, _ in columns[other]]
            for feature, _ in columns[one]:
                if feature not in features:
                    raise UserError(
                        f"the group {other!r} has no table for the feature {feature!r}, which {one!r} has"
                        f"{nearest(feature, features) or '; all groups need the same features.'}"
                    )
        if columns[group] != columns[first]:
            raise UserError(
                f"the tables of {first!r} have the widths {dict(columns[first])} and those of {group!r} "
                f"{dict(columns[group])}; all groups need the same features in the same order and width."
            )


def check_features(features: KeyedJaggedTensor, num_embeddings: Mapping[str, int], is_weighted: bool) -> None:
    """Raises UserError for a batch without one of the tables' features, or with weights where the tables have none.

    Args:
        features: the ids of a batch.
        num_embeddings: rows of the tables, by feature.
        is_weighted: whether the tables weight ids.
    """
    keys = features.keys()
    for feature in num_embeddings.keys() - set(keys):
        raise UserError(
            f"the batch has no feature {feature!r}, which the tables look up, only {', '.join(keys)}"
            f"{nearest(feature, keys) or '; give it, empty if there are no ids.'}"
        )
    if is_weighted != (features.weights_or_none() is not None):
        raise UserError(
            "the batch has no weights of ids, but its tables are weighted; give every id a weight."
            if is_weighted
            else "the batch has weights of ids, which its tables would ignore; build EmbeddingBagCollection with "
            "is_weighted=True, or leave the weights out."
        )


def check_ids(features: KeyedJaggedTensor, num_embeddings: Mapping[str, int]) -> None:
    """Raises UserError for ids on the CPU that the tables do not have; costs a pass over all ids."""
    if features.values().device.type != "cpu":
        return
    for feature, rows in num_embeddings.items():
        ids = features[feature].values()
        outside = ids[(ids < 0) | (ids >= rows)]
        if len(outside):
            raise UserError(f"the batch has the id {outside[0].item()} of {feature!r}, which is not in [0, {rows}).")
