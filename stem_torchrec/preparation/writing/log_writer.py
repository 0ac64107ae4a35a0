"""Writes the splits and vocabularies of a log, its schema.json and its transforms.json."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ibis.expr.types as ir

from stem_torchrec.config.formats import with_format
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.new_log import SPLITS, TRANSFORMS_FORMAT, VOCABULARY, WAITING
from stem_torchrec.data.schema import Label, LabelCounts, Schema, SparseFeature, Split
from stem_torchrec.expressions.expression import Call, Expression, to_json
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import ROW, Engine
from stem_torchrec.preparation.fitting.earlier_log import space_entry
from stem_torchrec.preparation.fitting.fit import Fitted
from stem_torchrec.preparation.fitting.vocabularies import COLUMNS, WAITING_COLUMNS, Vocabularies
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.spec_expressions import ORDER, SPLIT, SpecExpressions
from stem_torchrec.preparation.writing.encoding import is_positive, missing_id, num_embeddings
from stem_torchrec.preparation.writing.feature_trees import identity_or_hash, is_missing, weights_of, with_missing

_ROW_GROUP = 1_048_576


def write_splits(
    spec: Spec, table: ir.Table, counts: Mapping[int, int], folder: Path, engine: Engine
) -> dict[str, Split]:
    """Writes the rows of each split that has some, in their order; returns their numbers and those of their labels."""
    order = [ORDER, ROW] if ORDER in table.columns else [ROW]
    splits = {}
    for i, name in enumerate(SPLITS):
        if counts.get(i):
            rows = table.filter(table[SPLIT] == i).order_by(order).drop(*order, SPLIT)
            written = write_folder(rows, folder / name, engine, spec.row_group_size)
            splits[name] = Split(counts[i], _label_counts(spec, written, engine))
    return splits


def write_folder(rows: ir.Table, folder: Path, engine: Engine, row_group_size: int) -> ir.Table:
    """Writes a folder of Parquet files unless it has been written, and returns its rows; it appears when complete."""
    if not folder.exists():
        new = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        engine.write(rows, new, row_group_size=row_group_size)
        new.rename(folder)
    return engine.parquet(folder)


def _label_counts(spec: Spec, rows: ir.Table, engine: Engine) -> dict[str, LabelCounts]:
    positives = {f"positives {name}": is_positive(rows[name]).sum() for name in spec.labels}
    missing = {f"missing {name}": rows[name].isnull().sum() for name in spec.labels}
    [values] = engine.rows(rows.aggregate(**positives, **missing))
    numbers = [int(value or 0) for value in values]
    pairs = zip(numbers[: len(positives)], numbers[len(positives) :], strict=True)
    return {name: LabelCounts(*pair) for name, pair in zip(spec.labels, pairs, strict=True)}


def write_vocabularies(vocabularies: Vocabularies, folder: Path, engine: Engine) -> None:
    """Writes two files for each id space.

    `vocabulary/FEATURE.parquet` has value, id and count, in the order of the ids; `waiting/FEATURE.parquet` has value,
    count and missed, in the order of the values.
    """
    (folder / VOCABULARY).mkdir(parents=True, exist_ok=True)
    for name, table in vocabularies.tables.items():
        rows = table.select(*COLUMNS).order_by("id")
        engine.write_file(rows, folder / VOCABULARY / f"{name}.parquet", row_group_size=_ROW_GROUP)
    for name, table in vocabularies.waiting.items():
        (folder / WAITING).mkdir(exist_ok=True)
        rows = table.select(*WAITING_COLUMNS).order_by("value")
        engine.write_file(rows, folder / WAITING / f"{name}.parquet", row_group_size=_ROW_GROUP)


def schema_of(spec: Spec, expressions: SpecExpressions, vocabularies: Vocabularies, splits: dict[str, Split]) -> Schema:
    """The schema of the log."""
    features = tuple(
        SparseFeature(
            name,
            num_embeddings(name, feature, vocabularies),
            pooling=feature.pooling,
            weights=None if feature.weights is None else f"{name}_weights",
            embedding_dim=feature.embedding_dim,
        )
        for name, feature in spec.id_features.items()
    )
    dense = [
        column
        for name, number in spec.numbers.items()
        for column in (name, *([f"{name}_missing"] if number.missing.flag else []))
    ]
    group = None if expressions.group is None else expressions.group_column
    return Schema(
        features,
        tuple(
            name if label.kind == "binary" else Label(name, kind=label.kind, levels=label.levels)
            for name, label in spec.tasks.items()
        ),
        splits,
        dense_features=tuple(dense),
        group=group,
        weight=None if expressions.weight is None else "weight",
        label_weights={name: f"{name}_weight" for name in expressions.label_weights},
        description=spec.description,
    )


def transforms_of(
    spec: Spec,
    expressions: SpecExpressions,
    fitted: Fitted,
    vocabularies: Vocabularies,
    types: Mapping[str, ValueType],
) -> dict[str, Any]:
    """What serving does with a row of raw values: for each column of the log that a model reads, a tree.

    Example::

        {"format": 1, "columns": {"age": "int"}, "features": {"age": {"call": "vocabulary", ...}}, ...}
    """
    features: dict[str, Expression] = {}
    weights: dict[str, Expression] = {}
    for name, feature in spec.id_features.items():
        value, owner = fitted.feature(name, expressions.features[name].tree), vocabularies.of(name)
        kind, space = type_of(value, types), None if owner is None else vocabularies.spaces[owner]
        if space is None:
            ids = identity_or_hash(feature, value, kind)
        else:
            ids = Call("vocabulary", (value,), {"name": space.name, "first_id": space.first_id, "null_id": -1})
        features[name] = with_missing(feature, ids, kind, missing_id(feature, space))
        if name in expressions.feature_weights:
            weights[f"{name}_weights"] = weights_of(feature, expressions.feature_weights[name].tree, value, kind)
    dense: dict[str, Expression] = {}
    for name, number in expressions.dense.items():
        dense[name] = fitted.number(name, number.tree)
        if spec.numbers[name].missing.flag:
            dense[f"{name}_missing"] = is_missing(number.tree)
    content = {
        "columns": {name: str(kind) for name, kind in types.items()},
        "joins": [to_dict(join) for join in spec.joins],
        "features": {name: to_json(tree) for name, tree in features.items()},
        "weights": {name: to_json(tree) for name, tree in weights.items()},
        "dense": {name: to_json(tree) for name, tree in dense.items()},
        "vocabularies": {
            name: space_entry(space, str(expressions.features[name].type)) | {"ids": vocabularies.sizes[name]}
            for name, space in vocabularies.spaces.items()
        },
        "fitted": {
            "features": {name: to_json(tree) for name, tree in fitted.features.items()},
            "dense": {name: to_json(tree) for name, tree in fitted.dense.items()},
        },
    }
    return with_format(content, TRANSFORMS_FORMAT)
