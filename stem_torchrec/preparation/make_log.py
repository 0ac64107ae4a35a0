"""Makes a log from a spec: rows, what is fitted on train, splits and report, each kept until the log is done."""

from collections.abc import Mapping
from pathlib import Path

import ibis.expr.types as ir

from stem_torchrec.data.new_log import TRANSFORMS_FILE
from stem_torchrec.data.schema import Schema, save_schema
from stem_torchrec.expressions.expression import Column
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.fitting.earlier_log import EarlierLog, check_earlier_log
from stem_torchrec.preparation.fitting.fit import Fitted, fit
from stem_torchrec.preparation.fitting.id_spaces import IdSpace, id_spaces
from stem_torchrec.preparation.fitting.vocabularies import keep_vocabularies
from stem_torchrec.preparation.report.features import WrittenLog
from stem_torchrec.preparation.report.write_report import write_report
from stem_torchrec.preparation.rows.kept_rows import keep_rows
from stem_torchrec.preparation.rows.row_checks import check_rows
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.spec_expressions import SPLIT, SpecExpressions
from stem_torchrec.preparation.stages import Stages
from stem_torchrec.preparation.writing.encoding import encode
from stem_torchrec.preparation.writing.log_writer import (
    schema_of,
    transforms_of,
    write_splits,
    write_vocabularies,
)
from stem_torchrec.runtime.paths import write_json


def make_log(
    spec: Spec, engine: Engine, folder: Path, earlier: EarlierLog | None = None, *, report: bool = True
) -> Schema:
    """Makes the log in a folder, which may have what an earlier call with the same spec and files has left.

    Args:
        spec: what to make.
        engine: keeps what is done.
        folder: of the log.
        earlier: a log whose ids and constants this one takes over.
        report: whether to write the report and to look for leaks.

    Returns its schema. Raises UserError for what is wrong in the spec or the sources.
    """
    stages = Stages(engine.progress)
    with stages.stage("rows") as done:
        rows, expressions, types, steps = keep_rows(spec, engine)
        counts = check_rows(spec, expressions, rows, engine)
        done(sum(counts.values()))
    print("  " + ", ".join(f"{step} {left:,}" for step, left in steps.items()))
    with stages.stage("fit"):
        spaces = id_spaces(spec)
        if earlier is not None:
            check_earlier_log(earlier, spec, expressions, spaces)
            if earlier.grows and any(earlier.waiting(name) is None for name in earlier.spaces):
                print(f"note: {earlier.folder} has no counts of values without an id, so min_count begins at this log.")
        known = Fitted({}, {}) if earlier is None else Fitted(earlier.features, earlier.dense)
        fitted = fit(spec, expressions, rows, engine, known)
        train = rows.filter(rows[SPLIT] == 0)
        values = _values(expressions, fitted, spaces, train, engine)
        vocabularies = keep_vocabularies(engine, spaces, values, earlier)
        write_vocabularies(vocabularies, folder, engine)
    with stages.stage("write") as done:
        table = encode(spec, expressions, fitted, vocabularies, rows, engine=engine.name)
        table = engine.settled("encoded", table)
        splits = write_splits(spec, table, counts, folder, engine)
        done(sum(counts.values()))
    schema = schema_of(spec, expressions, vocabularies, splits)
    write_json(folder / TRANSFORMS_FILE, transforms_of(spec, expressions, fitted, vocabularies, types))
    save_schema(schema, str(folder))
    if report:
        with stages.stage("report"):
            parts = {name: engine.parquet(folder / name) for name in splits}
            log = WrittenLog(spec, expressions, fitted, rows, parts, schema, known)
            warnings = write_report(log, steps, engine, folder)
        for warning in warnings:
            print(f"warning: {warning}")
    return schema


def _values(
    expressions: SpecExpressions, fitted: Fitted, spaces: Mapping[str, IdSpace], rows: ir.Table, engine: Engine
) -> dict[str, ir.Table]:
    """For each feature with a vocabulary, what its ids are of, in the column `value`."""
    values = {}
    for feature in [name for space in spaces.values() for name in space.features]:
        column, kind = f"feature {feature}", expressions.features[feature].type
        tree = fitted.feature(feature, Column(column))
        value = to_ibis(tree, {column: rows[column]}, {column: kind}, engine=engine.name)
        values[feature] = rows.select(value=value)
    return values
