"""The rows of a log before anything is fitted: read, joined, filtered, without repeats, with the values it needs."""

from collections.abc import Mapping

import ibis
import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Column, Expression
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import ValueType, type_of_ibis
from stem_torchrec.preparation.engines.engine import ROW, Engine, RefusedCellError
from stem_torchrec.preparation.rows.refused_cells import is_inexact, with_place
from stem_torchrec.preparation.rows.sources import read_source
from stem_torchrec.preparation.specs.spec import Join, Spec
from stem_torchrec.preparation.specs.spec_expressions import SPLIT, SpecExpressions, read_expressions
from stem_torchrec.runtime.errors import UserError, nearest

ROWS = "rows"
"""Name under which an engine keeps the rows."""
_LOG = "log"


def keep_rows(spec: Spec, engine: Engine) -> tuple[ir.Table, SpecExpressions, dict[str, ValueType], dict[str, int]]:
    """Keeps a row for each row of the log that has a split.

    Returns the rows, with a column for each of `SpecExpressions.outputs` and ROW; the expressions; the types of the
    columns of the joined sources; and the rows that are left after each step.

    Raises UserError for what is wrong in the spec or the sources.
    """
    try:
        return _kept_rows(spec, engine, exact=False)
    except RefusedCellError as error:
        if not is_inexact(error):
            raise with_place(error, spec) from error
    try:
        return _kept_rows(spec, engine, exact=True)
    except RefusedCellError as error:
        raise with_place(error, spec) from error


def _kept_rows(
    spec: Spec, engine: Engine, *, exact: bool
) -> tuple[ir.Table, SpecExpressions, dict[str, ValueType], dict[str, int]]:
    """The rows; with `exact`, whole numbers may be above 2^53."""
    sources = {name: read_source(engine, name, spec.sources[name], exact=exact) for name in _used_sources(spec)}
    log = sources[spec.log]
    types = joined_types(spec, sources)
    expressions = read_expressions(spec, types)
    if spec.joins or spec.deduplicate:
        # Joins need not keep the order of rows, so it is numbered before; and files are read once for several queries.
        log = engine.keep(_LOG, log)
    source = log
    for i, join in enumerate(spec.joins):
        log = _joined(log, sources[join.source], join, engine, f"joins[{i}]")

    def value(tree: Expression) -> ir.Value:
        return to_ibis(tree, {name: log[name] for name in types}, types, engine=engine.name)

    steps: dict[str, int] = {}
    if expressions.where is not None:
        where = value(expressions.where)
        steps |= _counted(engine, "where", log.aggregate(source=log.count(), where=log.count(where=where)))
        log = log.filter(where)
    elif expressions.deduplicate:
        steps |= _counted(engine, "source", source.aggregate(source=source.count()))
    if expressions.deduplicate:
        keys = {f"key {i}": value(each.tree) for i, each in enumerate(expressions.deduplicate)}
        first = engine.keep("first rows", log.group_by(**keys).aggregate(first_row=log[ROW].min()).select("first_row"))
        steps |= _counted(engine, "deduplicate", first.aggregate(deduplicate=first.count()))
        log = log.semi_join(first, log[ROW] == first["first_row"])
    repeated = _repeated(expressions)
    values = {name: value(each.tree) for name, each in expressions.outputs.items() if name not in repeated}
    rows = log.select(**values, **({ROW: log[ROW]} if ROW in log.columns else {}))
    # Rows of no split are kept as well, as it takes no further look at the files to count them.
    kept = engine.keep(ROWS, rows)
    kept = kept.mutate(**{name: kept[first] for name, first in repeated.items()})
    counted = kept.aggregate(rows=kept.count(), split=kept[SPLIT].count())
    return (
        kept.filter(kept[SPLIT].notnull()),
        expressions,
        types,
        _steps(spec, steps, _counted(engine, "split", counted)),
    )


def _repeated(expressions: SpecExpressions) -> dict[str, str]:
    """The outputs that are the same column of a source as an output before them, which alone is kept.

    Example::

        {"group": "feature user"}
    """
    trees = {name: each.tree for name, each in expressions.outputs.items() if isinstance(each.tree, Column)}
    first = {tree: name for name, tree in reversed(trees.items())}
    return {name: first[tree] for name, tree in trees.items() if first[tree] != name}


def _counted(engine: Engine, step: str, counts: ir.Table) -> dict[str, int]:
    """The one row of a query, which an interrupted call need not run again."""
    names = counts.columns
    [numbers] = engine.rows(engine.keep(f"rows of {step}", counts).select(*names))
    return {name: int(number or 0) for name, number in zip(names, numbers, strict=True)}


def _steps(spec: Spec, counts: Mapping[str, int], of_split: Mapping[str, int]) -> dict[str, int]:
    """The rows after each step that the spec has, in order; a join keeps each row once."""
    source = counts.get("source", of_split["rows"])
    steps = {"source": source}
    steps |= {f"join {join.source}": source for join in spec.joins}
    steps |= {name: counts[name] for name in ("where", "deduplicate") if name in counts}
    return steps | {"split": of_split["split"]}


def _used_sources(spec: Spec) -> list[str]:
    return list(dict.fromkeys([spec.log, *(join.source for join in spec.joins)]))


def joined_types(spec: Spec, sources: Mapping[str, ir.Table]) -> dict[str, ValueType]:
    """The types of the columns of the log and of what is joined to it.

    Raises UserError if a join's key is missing, or two sources have a column of the same name.
    """
    types = _types(sources[spec.log])
    for i, join in enumerate(spec.joins):
        keys, side = _keys(join), _types(sources[join.source])
        for key in keys:
            for name, columns in ((spec.log, types), (join.source, side)):
                if key not in columns:
                    hint = nearest(key, list(columns)) or f"; it has {', '.join(columns)}."
                    raise UserError(f"joins[{i}].on names {key!r}, which {name!r} lacks{hint}")
            if types[key] != side[key]:
                raise UserError(
                    f"joins[{i}].on names {key!r}, which is {types[key]} in {spec.log!r} and {side[key]} in "
                    f"{join.source!r}; give both the same type under sources."
                )
        # Capitals do not tell columns apart in an engine.
        known = {name.lower() for name in types}
        for name in side:
            if name.lower() in known and name not in keys:
                raise UserError(
                    f"{join.source!r} has the column {name!r}, which what it is joined to has as well; rename one of "
                    "them where they are written."
                )
        types |= side
    return types


def _types(table: ir.Table) -> dict[str, ValueType]:
    return {name: type_of_ibis(kind, name) for name, kind in table.schema().items() if name != ROW}


def _keys(join: Join) -> tuple[str, ...]:
    return (join.on,) if isinstance(join.on, str) else join.on


def _joined(log: ir.Table, side: ir.Table, join: Join, engine: Engine, place: str) -> ir.Table:
    """The log with the columns of a side table; every row of the log stays, once."""
    keys = _keys(join)
    side = engine.keep(f"side {join.source}", side)
    repeated = side.group_by(*keys).aggregate(rows=side.count())
    # A row without a key belongs to no row of the log, so it multiplies none.
    known = [repeated[key].notnull() for key in keys]
    repeated = repeated.filter(repeated["rows"] > 1, *known).order_by(ibis.desc("rows"), *keys).limit(1)
    if join.repeats == "error":
        for row in engine.rows(repeated):
            value = ", ".join(map(repr, row[:-1]))
            raise UserError(
                f"{place}: {join.source!r} has {row[-1]} rows with {', '.join(keys)} {value}, which would multiply "
                "rows of the log; say repeats: first or last."
            )
    else:
        kept_row = side[ROW].min() if join.repeats == "first" else side[ROW].max()
        one = side.group_by(*keys).aggregate(kept_row=kept_row)
        side = side.semi_join(one, side[ROW] == one["kept_row"])
    renamed = {f"key {key}": key for key in keys}
    side = side.drop(ROW).rename(renamed)
    joined = log.left_join(side, [log[key] == side[new] for new, key in renamed.items()])
    return joined.drop(*renamed)
