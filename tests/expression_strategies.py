"""Random expressions over random rows: trees of every type, and a batch of the columns that they read."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from stem_torchrec.expressions.expression import Call, Column, Expression, Literal
from stem_torchrec.expressions.time_zones import zone_parameters
from stem_torchrec.expressions.value_types import (
    BOOL,
    DATE,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    TEXT,
    TEXTS,
    TIMESTAMP,
    ValueType,
)

ROWS = 8
_INTS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1, 2**31, 10**12, 19_000]),
    st.integers(-(2**63), 2**63 - 1),
)
_FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.5, -2.5, 1e308, -1e308, 9.007199254740993e15, 2.0**63, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
# Words that casts, dates and separators read, and letters of one to four bytes.
_WORDS = [
    "",
    "a",
    "B",
    " x\n",
    "12",
    "-7",
    "007",
    "1.5",
    ".5",
    "1e5",
    "1e999",
    "12\n",
    "+1",
    "true",
    "0",
    "a,b,,1",
    "3,-4",
]
_TEXTS = st.one_of(
    st.sampled_from([*_WORDS, "2022-05-03", "2020-02-29", "2021-02-29", "0000-01-01", "\u00c9\U0001f600", "9" * 25]),
    st.text(st.sampled_from("aZ1,-. \t\u00e9\u00df\u0130\u4e2d\U0001f600"), max_size=6),
)
_SECONDS = st.integers(-62_135_596_800, 253_402_300_799)
_VALUES: dict[ValueType, st.SearchStrategy[Any]] = {
    BOOL: st.booleans(),
    INT: _INTS,
    FLOAT: st.one_of(_FLOATS, st.sampled_from([float("nan"), float("inf"), float("-inf")])),
    TEXT: _TEXTS,
    TIMESTAMP: st.one_of(_SECONDS, st.integers(0, 2**32)).map(lambda second: second * 1_000_000 + second % 1_000_000),
    DATE: st.integers(-719_162, 2_932_896),
    INTS: st.lists(st.none() | _INTS, max_size=4),
    FLOATS: st.lists(st.none() | _FLOATS, max_size=4),
    TEXTS: st.lists(st.none() | _TEXTS, max_size=4),
}
_ARROW = {
    BOOL: pa.bool_(),
    INT: pa.int64(),
    FLOAT: pa.float64(),
    TEXT: pa.string(),
    TIMESTAMP: pa.timestamp("us"),
    DATE: pa.date32(),
    INTS: pa.list_(pa.int64()),
    FLOATS: pa.list_(pa.float64()),
    TEXTS: pa.list_(pa.string()),
}
COLUMNS = {f"{kind.replace('<', '_').rstrip('>')}_{i}": kind for kind in _VALUES for i in range(2)}
"""Two columns of each type."""


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    """Rows of all columns, among them nulls, and NaN and infinity, which count as null."""
    return pa.record_batch(
        {
            name: pa.array(draw(st.lists(st.none() | _VALUES[kind], min_size=ROWS, max_size=ROWS)), _ARROW[kind])
            for name, kind in COLUMNS.items()
        }
    )


Draw = Callable[[ValueType], Expression]
_COMPARISONS = ("equal", "not_equal", "less", "less_or_equal", "greater", "greater_or_equal")
_ANY = (BOOL, INT, FLOAT, TEXT, TIMESTAMP, DATE, INTS, FLOATS, TEXTS)
_CASTS = {INT: (BOOL, INT, FLOAT, TEXT), FLOAT: (BOOL, INT, FLOAT, TEXT), TEXT: (BOOL, INT, TEXT), BOOL: (INT, TEXT)}
_SAME = {
    INT: ("add subtract multiply quotient remainder least greatest", "negate abs floor ceil round"),
    FLOAT: ("add subtract multiply divide least greatest", "negate abs ln log1p exp sqrt"),
    TEXT: ("concat cross least greatest", "lower upper trim"),
    BOOL: ("and or", "not"),
}
"""Functions of two and of one argument of the result's type."""
_OF_ONE = {
    INT: [
        *((name, FLOAT) for name in ("floor", "ceil", "round")),
        *((name, kind) for name in ("hour", "weekday", "year", "days", "date_number") for kind in (TIMESTAMP, DATE)),
        *(("len", kind) for kind in (INTS, FLOATS, TEXTS)),
        *((name, TIMESTAMP) for name in ("minute", "day", "month")),
        ("length", TEXT),
    ],
    TIMESTAMP: [("from_unix_s", INT), ("from_unix_ms", INT), ("from_unix_us", INT)],
    DATE: [("to_date", TEXT)],
    INTS: [("ints", TEXTS), ("ints", INTS)],
    FLOATS: [("floats", TEXTS), ("floats", INTS)],
    BOOL: [("is_null", kind) for kind in _ANY],
}
_ELEMENTS = {INT: INTS, FLOAT: FLOATS, TEXT: TEXTS}
_EDGES = st.lists(st.integers(-5, 15), min_size=1, max_size=9).map(lambda edges: tuple(sorted(edges)))
_ZONES = st.sampled_from(["Asia/Shanghai", "Asia/Kolkata", "UTC"])


@st.composite
def trees(draw: st.DrawFn, kind: ValueType | None = None, depth: int = 3) -> Expression:
    """An expression of a type, or of any."""
    wanted = kind or draw(st.sampled_from(_ANY))
    leaves = [Column(name) for name, each in COLUMNS.items() if each == wanted]
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        literals = _FLOATS if wanted == FLOAT else _VALUES[wanted]
        return (
            draw(st.sampled_from(leaves) | literals.map(Literal)) if wanted in _CASTS else draw(st.sampled_from(leaves))
        )

    def inner(each: ValueType) -> Expression:
        return draw(trees(each, depth - 1))

    return draw(st.sampled_from([*_general(wanted, inner, draw), *_special(wanted, inner, draw)]))()


def _general(kind: ValueType, inner: Draw, draw: st.DrawFn) -> list[Callable[[], Expression]]:
    """Calls that many types have."""
    choices = [
        lambda: Call("coalesce", (inner(kind), inner(kind))),
        lambda: Call("case", (inner(BOOL), inner(kind), inner(BOOL), inner(kind), inner(kind))),
    ]
    for count, names in zip((2, 1), _SAME.get(kind, ("", "")), strict=True):
        choices += [
            lambda name=name, count=count: Call(name, tuple(inner(kind) for _ in range(count)))
            for name in names.split()
        ]
    choices += [
        lambda name=n, of=of: Call(name, (inner(of),)) for n, of in draw(st.permutations(_OF_ONE.get(kind, [])))[:4]
    ]
    if kind in _CASTS:
        choices += [lambda of=of: Call("cast", (inner(of),), {"to": str(kind)}) for of in _CASTS[kind]]
        choices.append(lambda: Call("nullif", (inner(kind), inner(kind))))
    if kind in _ELEMENTS:
        index = draw(st.sampled_from([-2, -1, 1, 2]))
        choices.append(lambda: Call("element", (inner(_ELEMENTS[kind]),), {"index": index}))
    if kind in _ELEMENTS.values():
        choices += [lambda n=n: Call(n, (inner(kind),), {"count": draw(st.integers(1, 3))}) for n in ("first", "last")]
    return choices


def _special(kind: ValueType, inner: Draw, draw: st.DrawFn) -> list[Callable[[], Expression]]:
    """Calls of one type, mostly with parameters."""
    text = draw(st.sampled_from([",", "a", "1", "-", "a,", "."]))
    if kind == BOOL:
        of = draw(st.sampled_from([INT, FLOAT, TEXT, TIMESTAMP, DATE]))
        literals = [Literal(draw(_FLOATS if of == FLOAT else _VALUES[of])) for _ in range(3)]
        return [
            lambda: Call(draw(st.sampled_from(_COMPARISONS)), (inner(of), inner(of))),
            lambda: Call("in", (inner(of), *literals)) if of in _CASTS else Call("is_null", (inner(of),)),
            lambda: Call("starts_with", (inner(TEXT),), {"start": text}),
            lambda: Call("contains", (inner(TEXT),), {"part": text}),
        ]
    if kind == TEXT:
        count = {"start": draw(st.integers(1, 4)), "count": draw(st.integers(0, 4))}
        return [
            lambda: Call("substr", (inner(TEXT),), count),
            lambda: Call("replace", (inner(TEXT),), {"old": text, "new": "x\\1"}),
            lambda: Call("cross", (inner(INT), inner(TEXT))),
        ]
    edges = draw(_EDGES)
    if kind == INT:
        return [
            lambda: Call("bucket", (inner(INT),), {"edges": edges}),
            lambda: Call("hash_id", (inner(draw(st.sampled_from([INT, TEXT]))),), {"buckets": 97, "salt": text}),
        ]
    if kind == FLOAT:
        return [
            lambda: Call("bucket", (inner(FLOAT),), {"edges": edges}),
            lambda: Call("interpolate", (inner(FLOAT),), {"edges": edges}),
            lambda: Call("clip", (inner(FLOAT),), {"low": -1.5, "high": 3}),
            lambda: Call("standardize", (inner(FLOAT),), {"mean": 1.0, "deviation": 3.0}),
            lambda: Call("divide", (inner(INT), inner(INT))),
        ]
    if kind == TIMESTAMP:
        return [lambda: Call("in_zone", (inner(TIMESTAMP),), zone_parameters(draw(_ZONES)))]
    if kind == INTS:
        hashes = {"buckets": 97, "salt": text, "hashes": draw(st.integers(1, 3))}
        return [
            lambda: Call("hash_id", (inner(TEXTS),), {"buckets": 97, "salt": text}),
            lambda: Call("hash_ids", (inner(draw(st.sampled_from([INT, TEXT, TEXTS]))),), hashes),
            lambda: Call("or_single", (inner(INTS),), {"value": 5}),
            lambda: Call("repeat", (inner(draw(st.sampled_from([INT, INTS]))),), {"count": draw(st.integers(1, 3))}),
        ]
    if kind == FLOATS:
        return [
            lambda: Call("or_single", (inner(FLOATS),), {"value": 1}),
            lambda: Call("repeat", (inner(draw(st.sampled_from([FLOAT, FLOATS]))),), {"count": 2}),
        ]
    return [lambda: Call("split", (inner(TEXT),), {"separator": text})] if kind == TEXTS else []
