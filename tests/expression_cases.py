"""Five rows, and what expressions make of them, written by hand: every function is in one of the cases."""

import pyarrow as pa

from stem_torchrec.expressions.expression import Call, Column, Expression
from stem_torchrec.expressions.sql import parse_expression
from stem_torchrec.expressions.value_types import (
    BOOL,
    DATE,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    TEXT,
    TIMESTAMP,
    ValueType,
)

GREATEST, LEAST = 2**63 - 1, -(2**63)
SAMPLE = pa.record_batch(
    {
        "i": pa.array([7, -7, 0, None, GREATEST]),
        "j": pa.array([2, 2, 0, 5, -1], pa.int32()),
        "k": pa.array([LEAST, LEAST, 1, None, 2**53 + 1]),
        "x": pa.array([2.5, -2.5, 0.0, float("nan"), 1e308]),
        "s": pa.array(["Ab", "\tb \n", "", None, "\u00c9\U0001f600z"]),
        "n": pa.array(["12", "-007", "1.5", None, "99999999999999999999"]),
        "m": pa.array(["True", "0", "yes", None, "1e999"]),
        "b": pa.array([True, False, None, True, False]),
        # 1970-01-01, a microsecond earlier, 2022-05-03, null, 2020-02-29 18:30 in UTC.
        "t": pa.array([0, -1, 1_651_536_000_000_000, None, 1_583_001_000_000_001], pa.timestamp("us")),
        "d": pa.array([0, 19115, -1, None, 18321], pa.date32()),
        "w": pa.array(["2022-05-03", "2022-02-30", "22-5-3", None, "0001-01-01"]),
        "c": pa.array(["1|x|-3", "", "|a|", None, "2.5"]),
        "li": pa.array([[3, 1, 2], [], [5], None, [None, 9]]),
        "lx": pa.array([[1.5, float("nan")], [], [None], None, [0.0]]),
    }
)
TYPES: dict[str, ValueType] = {
    **dict.fromkeys(("i", "j", "k"), INT),
    **dict.fromkeys(("s", "n", "m", "w", "c"), TEXT),
    "x": FLOAT,
    "b": BOOL,
    "t": TIMESTAMP,
    "d": DATE,
    "li": INTS,
    "lx": FLOATS,
}

SQL_CASES: dict[str, list[object]] = {
    # Columns
    "i": [7, -7, 0, None, GREATEST],
    "x": [2.5, -2.5, 0.0, None, 1e308],
    "t": [0, -1, 1_651_536_000_000_000, None, 1_583_001_000_000_001],
    "d": [0, 19115, -1, None, 18321],
    "li": [[3, 1, 2], [], [5], None, [9]],
    "lx": [[1.5], [], [], None, [0.0]],
    # Numbers
    "i + 1": [8, -6, 1, None, None],
    "k - i": [None, LEAST + 7, 1, None, 2**53 + 1 - GREATEST],
    "i * j": [14, -14, 0, None, -GREATEST],
    "k * j": [None, None, 0, None, -(2**53) - 1],
    "i + x": [9.5, -9.5, 0.0, None, 1e308],
    "x * 10.0": [25.0, -25.0, 0.0, None, None],
    "x * 10 is null": [False, False, False, True, True],
    "i / j": [3.5, -3.5, None, None, -(2.0**63)],
    "i div j": [3, -3, None, None, -GREATEST],
    "k div (0 - 1)": [None, None, -1, None, -(2**53) - 1],
    "k div 3": [-3074457345618258602, -3074457345618258602, 0, None, 3002399751580331],
    "i % j": [1, -1, None, None, 0],
    "k % -1": [0, 0, 0, None, 0],
    "-k": [None, None, -1, None, -(2**53) - 1],
    "-x": [-2.5, 2.5, 0.0, None, -1e308],
    "abs(k)": [None, None, 1, None, 2**53 + 1],
    "abs(x)": [2.5, 2.5, 0.0, None, 1e308],
    "least(i, j)": [2, -7, 0, 5, -1],
    "greatest(i, x)": [7.0, -2.5, 0.0, None, 1e308],
    "ln(x + 1 - 1.5)": [0.6931471805599453, None, None, None, 709.1962086421661],
    "log1p(x - x)": [0.0, 0.0, 0.0, None, 0.0],
    "exp(x - x)": [1.0, 1.0, 1.0, None, 1.0],
    "exp(i)": [1096.6331584284585, 0.0009118819655545162, 1.0, None, None],
    "sqrt(x * 10)": [5.0, None, 0.0, None, None],
    "floor(x)": [2, -3, 0, None, None],
    "ceil(x)": [3, -2, 0, None, None],
    "round(x)": [3, -3, 0, None, None],
    "round(i)": [7, -7, 0, None, GREATEST],
    "2000000000 + 2000000000": [4_000_000_000] * 5,
    "9223372036854775807 + j": [None, None, GREATEST, None, GREATEST - 1],
    "0.30000000000000004 = 0.1 + 0.2": [True] * 5,
    # Logic
    "i = 7": [True, False, False, None, False],
    "i <> j": [True, True, False, None, True],
    "i < 2.5": [False, True, True, None, False],
    "s <= 'Ab'": [True, True, True, None, False],
    "j > 2": [False, False, False, True, False],
    "d >= date '2020-02-29'": [False, True, False, None, True],
    "b and i > 0": [True, False, False, None, False],
    "b or i > 0": [True, False, None, True, True],
    "not b": [False, True, None, False, True],
    "s is not null": [True, True, True, False, True],
    "i in (7, 0)": [True, False, True, None, False],
    "s not in ('Ab')": [False, True, True, None, True],
    "x in (2.5, 0)": [True, False, True, None, False],
    "i between -7 and 0": [False, True, True, None, False],
    "case when b then i when i = 0 then 2.5 end": [7.0, None, 2.5, None, None],
    "case j when 2 then 'two' else 'other' end": ["two", "two", "other", "other", "other"],
    "if(b, 1 div j, 0)": [0, 0, 0, 0, 0],
    "coalesce(i, j)": [7, -7, 0, 5, GREATEST],
    "coalesce(x / 0, -1.0)": [-1.0] * 5,
    "nullif(i, 0)": [7, -7, None, None, GREATEST],
    "nullif(s, '')": ["Ab", "\tb \n", None, None, "\u00c9\U0001f600z"],
    # Texts
    "lower(s)": ["ab", "\tb \n", "", None, "\u00c9\U0001f600z"],
    "upper(s)": ["AB", "\tB \n", "", None, "\u00c9\U0001f600Z"],
    "trim(s)": ["Ab", "b", "", None, "\u00c9\U0001f600z"],
    "length(s)": [2, 4, 0, None, 3],
    "substr(s, 2, 5)": ["b", "b \n", "", None, "\U0001f600z"],
    "s || '%' || n": ["Ab%12", "\tb \n%-007", "%1.5", None, "\u00c9\U0001f600z%99999999999999999999"],
    "concat(s, 'x')": ["Abx", "\tb \nx", "x", None, "\u00c9\U0001f600zx"],
    "cross(j, n)": ["2\x1f12", "2\x1f-007", "0\x1f1.5", None, "-1\x1f99999999999999999999"],
    "replace(c, '|', '||')": ["1||x||-3", "", "||a||", None, "2.5"],
    "starts_with(s, 'A')": [True, False, False, None, False],
    "contains(c, '.')": [False, False, False, None, True],
    # Types
    "cast(n as int)": [12, -7, None, None, None],
    "cast(n as double)": [12.0, -7.0, 1.5, None, 1e20],
    "cast(m as double)": [None, 0.0, None, None, None],
    "cast(m as boolean)": [True, False, None, None, None],
    "cast(x as bigint)": [None, None, 0, None, None],
    "cast(x * 2 as int)": [5, -5, 0, None, None],
    "cast(i as text)": ["7", "-7", "0", None, str(GREATEST)],
    "cast(k as double)": [-(2.0**63), -(2.0**63), 1.0, None, 2.0**53],
    "cast(b as int)": [1, 0, None, 1, 0],
    "cast(b as double)": [1.0, 0.0, None, 1.0, 0.0],
    "cast(b as text)": ["true", "false", None, "true", "false"],
    "cast(i as boolean)": [True, True, False, None, True],
    # Times
    "from_unix_s(i)": [7_000_000, -7_000_000, 0, None, None],
    "from_unix_ms(i)": [7_000, -7_000, 0, None, None],
    "from_unix_us(i)": [7, -7, 0, None, None],
    "in_zone(t, 'Asia/Shanghai')": [28_800_000_000, 28_799_999_999, 1_651_564_800_000_000, None, 1_583_029_800_000_001],
    "hour(t)": [0, 23, 0, None, 18],
    "hour(t, 'Asia/Kolkata')": [5, 5, 5, None, 0],
    "minute(t, 'Asia/Kolkata')": [30, 29, 30, None, 0],
    "weekday(t)": [3, 2, 1, None, 5],
    "weekday(d)": [3, 1, 2, None, 5],
    "weekday(t, 'Asia/Kolkata')": [3, 3, 1, None, 6],
    "day(t, 'Asia/Shanghai')": [1, 1, 3, None, 1],
    "month(t, 'America/Bogota')": [12, 12, 5, None, 2],
    "year(t)": [1970, 1969, 2022, None, 2020],
    "days(t)": [0, -1, 19115, None, 18321],
    "date_number(t)": [19700101, 19691231, 20220503, None, 20200229],
    "date_number(d)": [19700101, 20220503, 19691231, None, 20200229],
    "to_date(w)": [19115, None, None, None, -719162],
    "to_date_days(w)": [19115, None, None, None, -719162],
    "d = t": [True, False, False, None, False],
    # Lists
    "split(c, '|')": [["1", "x", "-3"], [], ["", "a", ""], None, ["2.5"]],
    "ints(split(c, '|'))": [[1, -3], [], [], None, []],
    "floats(split(c, '|'))": [[1.0, -3.0], [], [], None, [2.5]],
    "floats(li)": [[3.0, 1.0, 2.0], [], [5.0], None, [9.0]],
    "len(li)": [3, 0, 1, None, 1],
    "element(li, 2)": [1, None, None, None, None],
    "element(split(c, '|'), -3)": ["1", None, "", None, None],
    "first(li, 2)": [[3, 1], [], [5], None, [9]],
    "last(li, 2)": [[1, 2], [], [5], None, [9]],
}

_I, _X, _S = Column("i"), Column("x"), Column("s")
_EDGES = (0, 3, 7)
HASHED = {
    "aAb": 465,
    "a\tb \n": 958,
    "a": 251,
    "a\u00c9\U0001f600z": 17,
    "3": 46,
    "1": 882,
    "2": 770,
    "5": 602,
    "9": 599,
    "\x1f13": 275,
    "\x1f11": 865,
    "\x1f12": 477,
    "\x1f15": 276,
    "\x1f19": 102,
}
"""The first 13 digits that the command md5sum gives for a text, modulo 1000."""
FITTED_CASES: list[tuple[Expression, list[object]]] = [
    (Call("bucket", (_I,), {"edges": _EDGES}), [7, 0, 0, None, 7]),
    (Call("bucket", (_X,), {"edges": (-1.0, 2.5)}), [2.5, -1.0, -1.0, None, 2.5]),
    (Call("bucket", (_I,), {"edges": (0.5,)}), [0.5, 0.5, 0.5, None, 0.5]),
    # Quantiles 0, 1/4, 1/2, 3/4, 1: zero is the first two of them, so its quantile is 1/8.
    (Call("interpolate", (_X,), {"edges": (0, 0, 1, 3, 10)}), [0.6875, 0.125, 0.125, None, 1.0]),
    (Call("interpolate", (_X,), {"edges": (4,)}), [0.0, 0.0, 0.0, None, 0.0]),
    (Call("clip", (_X,), {"low": -1, "high": 2}), [2.0, -1.0, 0.0, None, 2.0]),
    (Call("standardize", (_X,), {"mean": 0.5, "deviation": 2.0}), [1.0, -1.5, -0.25, None, 5e307]),
    (
        Call("hash_id", (_S,), {"buckets": 1000, "salt": "a"}),
        [HASHED["aAb"], HASHED["a\tb \n"], HASHED["a"], None, HASHED["a\u00c9\U0001f600z"]],
    ),
    (
        Call("hash_id", (Column("li"),), {"buckets": 1000, "salt": ""}),
        [[HASHED["3"], HASHED["1"], HASHED["2"]], [], [HASHED["5"]], None, [HASHED["9"]]],
    ),
    (
        Call("hash_ids", (Column("li"),), {"buckets": 1000, "salt": "", "hashes": 2}),
        [
            [HASHED["3"], HASHED["\x1f13"], HASHED["1"], HASHED["\x1f11"], HASHED["2"], HASHED["\x1f12"]],
            [],
            [HASHED["5"], HASHED["\x1f15"]],
            None,
            [HASHED["9"], HASHED["\x1f19"]],
        ],
    ),
    (Call("or_single", (Column("li"),), {"value": 7}), [[3, 1, 2], [7], [5], [7], [9]]),
    (Call("repeat", (Column("li"),), {"count": 2}), [[3, 3, 1, 1, 2, 2], [], [5, 5], None, [9, 9]]),
]

CASES: list[tuple[Expression, list[object]]] = [
    *((parse_expression(text), values) for text, values in SQL_CASES.items()),
    *FITTED_CASES,
]
"""Trees and their values in the rows of `SAMPLE`."""
