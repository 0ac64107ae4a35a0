"""Guesses a spec from raw files: what their columns are, and what becomes of them, each with its reason."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ibis.expr.types as ir

from stem_torchrec.expressions.value_types import ValueType, type_of_ibis
from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.engines.engine import ROW, Engine
from stem_torchrec.preparation.guessing.column_names import user_rank
from stem_torchrec.preparation.guessing.document import Guessed, document
from stem_torchrec.preparation.guessing.facts import Facts, facts_of
from stem_torchrec.preparation.guessing.features import Choice, Known, choose, is_used
from stem_torchrec.preparation.guessing.labels import (
    candidates,
    column_text,
    label_columns,
    label_values,
    parse_labels,
    positive_shares,
)
from stem_torchrec.preparation.guessing.leaks import leaks_and_suspects, lone_aucs
from stem_torchrec.preparation.guessing.source import SAMPLE_ROWS, RawSource, guess_source
from stem_torchrec.preparation.guessing.split import guess_split
from stem_torchrec.preparation.guessing.times import time_column
from stem_torchrec.preparation.rows.sources import read_source
from stem_torchrec.runtime.errors import UserError, nearest

_T = ValueType


@dataclass(frozen=True)
class Wishes:
    """What the command line says about raw files."""

    labels: tuple[str, ...] = ()
    """`NAME=EXPRESSION`, or the name of a column."""
    drop: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    header_from: str = ""


@dataclass(frozen=True)
class Guess:
    """A spec with its comments."""

    text: str
    candidates: list[str]
    """Options for columns that could be labels."""
    notes: list[str]
    """What a user should look at."""


def guess_spec(inputs: Sequence[str], wishes: Wishes, *, memory: str = "1GiB", threads: int | None = None) -> Guess:
    """The spec of raw files.

    Args:
        inputs: paths, folders and patterns.
        wishes: labels, and what else is known.
        memory: limit of DuckDB.
        threads: of DuckDB.

    Raises UserError for files that cannot be read, and for a label or column that they lack.

    Example::

        print(guess_spec(["log.csv"], Wishes(labels=("click",))).text)
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = DuckDBEngine(Path(folder), memory=memory, threads=threads)
        try:
            return _guess(engine, inputs, wishes)
        finally:
            engine.close()


def _guess(engine: Engine, inputs: Sequence[str], wishes: Wishes) -> Guess:
    raw, sample = guess_source(engine, inputs, columns=wishes.columns, header_from=wishes.header_from)
    types = {name: type_of_ibis(kind, name) for name, kind in sample.schema().items() if name != ROW}
    for name in wishes.drop:
        if name not in types:
            hint = nearest(name, list(types)) or f"; {raw.files[0]} has {', '.join(types)}."
            raise UserError(f"--drop {name} is no column{hint}")
    facts = facts_of(engine, sample, types)
    texts = parse_labels(wishes.labels, list(types))
    labels = label_values(texts, types)
    positives = positive_shares(engine, sample, types, labels)
    of_labels = label_columns(labels)
    usable = [each for name, each in facts.items() if name not in of_labels and name not in wishes.drop]
    rows = sample if raw.is_whole else read_source(engine, "log", raw.source)
    split = guess_split(engine, rows, types, usable)
    group = _group(usable)
    known = Known(
        of_labels, frozenset(wishes.drop), time=split.time, days=split.days, split_by=split.column, group=group
    )
    looked_at = [each.name for each in usable if time_column(each) is None and is_used(each, known)]
    aucs = lone_aucs(engine, sample, types, labels, looked_at) if labels else {}
    leaks, suspects = leaks_and_suspects(aucs, [group] if group else [])
    known = replace(known, leaks=leaks, suspects=suspects)
    columns = facts.values()
    choices = _with_own_names([choice for each in columns for choice in choose(each, known)], set(texts))
    if not any(choice.kind == "features" for choice in choices):
        raise UserError(f"{raw.files[0]} has no column for a feature; a log needs one with ids, texts or few values.")
    guessed = Guessed(
        raw=raw,
        facts=facts,
        split=split,
        choices=choices,
        labels={name: (texts[name], positives[name]) for name in texts},
        group=group,
        candidates=candidates({each.name: each for each in usable}),
        rows=_rows_in_words(engine, rows, raw),
    )
    notes = [f"{name} {words}; see whether it is known before, or --drop it." for name, words in suspects.items()]
    return Guess(document(guessed), guessed.candidates, notes)


def _rows_in_words(engine: Engine, rows: ir.Table, raw: RawSource) -> str:
    if not raw.is_whole and raw.source.type != "parquet":
        return f"the first {SAMPLE_ROWS:,} rows"
    [(number,)] = engine.rows(rows.aggregate(rows=rows.count()))
    return f"{number:,} rows" if raw.is_whole else f"the first {SAMPLE_ROWS:,} of {number:,} rows"


def _group(facts: Sequence[Facts]) -> str | None:
    """The column of the user, if all rows have one and some user has several."""
    users = [
        (rank, each.name)
        for each in facts
        if (rank := user_rank(each.name)) is not None
        and each.type in (_T.INT, _T.TEXT)
        and not each.missing
        and 1 < each.distinct < each.rows
    ]
    return min(users)[1] if users else None


def _with_own_names(choices: Sequence[Choice], taken: set[str]) -> list[Choice]:
    """The choices with a name of its own for each feature: labels and earlier features keep theirs."""
    result, used = [], set(taken)
    for choice in choices:
        if choice.kind != "left out":
            number = next(i for i in range(len(used) + 1) if _numbered(choice.name, i) not in used)
            if number:
                content = {"value": column_text(choice.name), **(choice.content or {})}
                choice = replace(choice, name=_numbered(choice.name, number), content=content)
            used.add(choice.name)
        result.append(choice)
    return result


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number + 1}" if number else name
