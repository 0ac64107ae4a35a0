"""Bad input of `stem-prepare`, each with the sentence that refuses it; docs/prepare.md lists them."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from preparations import CSV, SPEC, spec_with


@dataclass(frozen=True)
class BadInput:
    """A spec and its files, one of which is wrong."""

    what: str
    """For the page."""
    sentence: str
    spec: Any = field(default_factory=lambda: SPEC)
    files: Mapping[str, str | bytes] = field(default_factory=lambda: {"log.csv": CSV})
    options: Mapping[str, Any] = field(default_factory=dict)


LOG = SPEC["sources"]["log"]
MANY = "user,day,click,t\n" + "1,1,1,a\n1,2,0,a\n1,3,0,a\n" * 2000
"""6,000 rows, so that a wrong line stands behind the first piece that is read."""


def source(**fields: Any) -> dict[str, Any]:
    """SPEC with other fields of its source."""
    return spec_with(sources={"log": {**LOG, **fields}})


def joined(users: str, *, join: Mapping[str, Any] | None = None, kind: str = "int") -> dict[str, Any]:
    """SPEC with a side table."""
    side = {"files": "users.csv", "columns": {"user": kind}}
    spec = spec_with(
        sources={"log": LOG, "users": side},
        joins=[{"source": "users", "on": "user", **(join or {})}],
        features={"user": {}, "city": {}},
    )
    return {"spec": spec, "files": {"log.csv": CSV, "users.csv": users}}


BAD_FILES = [
    BadInput(
        "a line with fewer or more cells",
        "log.csv, line 8: the line has 2 cells, not 3; correct it, or the delimiter and quote of the source.",
        files={"log.csv": CSV.replace("3,2,1", "3,2")},
    ),
    BadInput(
        "another delimiter",
        "sources[log].columns names 'user', which log.csv lacks, as its first line has one cell, 'user;day;click'; is "
        "the delimiter ';'?",
        files={"log.csv": CSV.replace(",", ";")},
    ),
    BadInput(
        "a byte that is not UTF-8",
        "log.csv, line 6002: the byte 0xe9 at position 48023 is not utf-8; name the encoding of the source, such as "
        "latin-1 or gb18030.",
        spec=spec_with(features={"t": {}}),
        files={"log.csv": MANY.encode() + b"1,2,1,\xe9\n"},
    ),
    BadInput(
        "a byte that is not of the encoding",
        "log.csv, line 14: the byte 0xff at position 91 is not gb18030; name the encoding of the source, such as "
        "latin-1 or gb18030.",
        spec=source(encoding="gb18030"),
        files={"log.csv": CSV.encode() + b"1,2,\xff\n"},
    ),
    BadInput(
        "a quote that is not closed",
        "log.csv, line 2: a quote is not closed, or text follows it; correct it, or say quote: '' if quotes are no "
        "more than characters.",
        files={"log.csv": CSV.replace("1,1,0", '1,"1,0')},
    ),
    BadInput(
        "a cell that is no whole number",
        "log.csv, line 8: column 'user' has 'x3', which is not a whole number; correct it or its type.",
        files={"log.csv": CSV.replace("3,2,1", "x3,2,1")},
    ),
    BadInput(
        "a cell that would have to be rounded",
        "log.csv, line 8: column 'user' has '3.5', which is not a whole number; correct it or its type.",
        files={"log.csv": CSV.replace("3,2,1", "3.5,2,1")},
    ),
    BadInput(
        "a number of more than 64 bits",
        "log.csv, line 8: column 'user' has '9223372036854775808', which is not a whole number from -2^63 to "
        "2^63 - 1; correct it or its type.",
        files={"log.csv": CSV.replace("3,2,1", "9223372036854775808,2,1")},
    ),
    BadInput(
        "a cell that is no time",
        "log.csv, line 2: column 'user' has '3 May', which is not a time such as 2022-05-03 10:00:00; correct it or "
        "its type.",
        spec=source(columns={"user": "timestamp", "day": "int", "click": "int"})
        | {"features": {"hour": {"value": "hour(user)"}}},
        files={"log.csv": CSV.replace("1,1,0", "3 May,1,0")},
    ),
    BadInput(
        "a column twice",
        "log.csv names the column 'user' twice; give its columns names of their own.",
        files={"log.csv": CSV.replace("user,day,click", "user,user,day,click")},
    ),
    BadInput(
        "two columns whose names differ in capitals",
        "log.csv names the columns 'user' and 'User', which differ in case alone; rename one.",
        files={"log.csv": CSV.replace("user,day,click", "user,User,day,click")},
    ),
    BadInput(
        "a column that the file lacks",
        "sources[log].columns names 'user', which log.csv lacks; did you mean 'usr'?",
        files={"log.csv": CSV.replace("user", "usr")},
    ),
    BadInput(
        "an empty file",
        "log.csv is empty; a CSV file begins with the names of its columns, or say header: false.",
        files={"log.csv": ""},
    ),
    BadInput(
        "a file without rows",
        "sources[log] has no rows in log.csv; give the right files.",
        files={"log.csv": "user,day,click\n"},
    ),
    BadInput(
        "a part with another column",
        "log_2.csv lacks the column 'click' of log_1.csv and has the column 'like', which log_1.csv lacks; the files "
        "of sources[log] must have the same columns in the same order.",
        spec=source(files="log_*.csv"),
        files={"log_1.csv": CSV, "log_2.csv": CSV.replace("click", "like")},
    ),
    BadInput(
        "a part with its columns in another order",
        "log_2.csv has the column 'day' in another place than log_1.csv; the files of sources[log] must have the same "
        "columns in the same order.",
        spec=source(files="log_*.csv"),
        files={"log_1.csv": CSV, "log_2.csv": CSV.replace("user,day", "day,user")},
    ),
    BadInput(
        "a path without a file",
        "sources[log].files is 'lgo.csv', of which no file exists; correct the path.",
        spec=source(files="lgo.csv"),
    ),
    BadInput(
        "an archive", "log.zip is an archive, which is not read; unpack it.", source(files="log.zip"), {"log.zip": "PK"}
    ),
    BadInput(
        "a folder that lacks a partition",
        "sources[log].partitions names 'date', which the path log.csv lacks; such a folder is called date=VALUE.",
        spec=source(partitions={"date": "date"}),
    ),
    BadInput(
        "a partition of another type",
        "part_x.csv: the partition 'part' is 'x', which is not a whole number; correct it or its type.",
        spec=source(files="part_{part}.csv", partitions={"part": "int"}),
        files={"part_x.csv": CSV},
    ),
    BadInput(
        "a line of JSON lines that is cut",
        "log.jsonl, line 2: the line is no JSON (Expecting value at character 9); correct it.",
        spec=source(files="log.jsonl", type="json"),
        files={"log.jsonl": '{"user": 1, "day": 1, "click": 0}\n{"user":\n'},
    ),
    BadInput(
        "a value of JSON lines of another type",
        "log.jsonl, line 2: column 'user' has \"x\", which is not a number; correct it or its type.",
        spec=source(files="log.jsonl", type="json"),
        files={"log.jsonl": '{"user": 1, "day": 1, "click": 0}\n{"user": "x", "day": 1, "click": 0}\n'},
    ),
    BadInput(
        "a file that is not Parquet",
        "log.parquet is no Parquet file, or damaged (Parquet file size is 2 bytes, smaller than the minimum file "
        "footer (8 bytes)).",
        spec=source(files="log.parquet", type="parquet"),
        files={"log.parquet": "zz"},
    ),
    BadInput(
        "lines with two kinds of ends",
        "log.csv, line 3 ends with CRLF, but the first one with LF; give all lines the same end.",
        files={"log.csv": CSV.replace("2,1,1\n", "2,1,1\r\n")},
    ),
    BadInput(
        "a blank line in front of the names",
        "log.csv begins with a blank line, but the first one has the names of its columns; delete it.",
        files={"log.csv": "\n" + CSV},
    ),
    BadInput(
        "a line that is too long",
        "log.csv, line 14: the line has more than 2 MiB; shorten it, or correct the quote of the source.",
        spec=spec_with(keep=["t"]),
        files={"log.csv": "user,day,click,t\n" + "1,1,1,\n" * 12 + "1,2,1," + "x" * 2**22 + "\n1,2,1,\n"},
    ),
    BadInput(
        "a packed file that is cut",
        "log.csv.gz cannot be read (Unexpected end of GZIP stream: log.csv.gz).",
        spec=source(files="log.csv.gz"),
        files={"log.csv.gz": gzip.compress(CSV.encode(), mtime=0)[:-9]},
    ),
    BadInput(
        "a Parquet file that is read as CSV",
        "sources[log].type is csv, but log.parquet ends as parquet does; say type: parquet.",
        spec=source(files="log.parquet"),
        files={"log.parquet": "PAR1"},
    ),
    BadInput(
        "JSON of several lines",
        "log.json, line 1: the line is [{'user': 1}, {'user': 2}], not an object in braces; correct it.",
        spec=source(files="log.json", type="json"),
        files={"log.json": '[{"user": 1}, {"user": 2}]'},
    ),
    BadInput(
        "JSON lines of another encoding",
        "log.json, line 2: the line has the byte 0xe9, which is not utf-8, as JSON is; convert the file.",
        spec=spec_with(
            sources={"log": {"files": "log.json", "type": "json", "columns": {"user": "text", "click": "int"}}},
            split={"random": {}},
        ),
        files={"log.json": b'{"user": "a", "click": 1}\n{"user": "\xe9", "click": 0}\n'},
    ),
    BadInput(
        "a column with a name of this program",
        "log.csv names the column '__row', which this program has for itself; rename it.",
        files={"log.csv": CSV.replace("user", "user,__row").replace("1,", "1,1,")},
    ),
]
"""Files that cannot be read as the spec says."""

BAD_ROWS = [
    BadInput(
        "a label that is not 0, 1 or missing",
        "labels[click] is 2 in 1 row, first in log.csv, line 8, but must be 0, 1 or missing.",
        files={"log.csv": CSV.replace("3,2,1", "3,2,2")},
    ),
    BadInput(
        "a label of one class",
        "labels[click] has only the label 1 in train, so nothing can be learned from it; leave it out.",
        spec=spec_with(labels={"click": "1"}),
    ),
    BadInput(
        "a split without rows",
        "split leaves valid without rows (train 12, valid 0, test 0); move its limits.",
        spec=spec_with(split={"time": {"by": "day", "train_until": 5, "valid_until": 6}}),
    ),
    BadInput(
        "rows drawn by a number with a fraction",
        "split.random.by names 'x', which is float, but rows are drawn by int, text, bool.",
        spec=spec_with(columns={"x": "day / 2"}, split={"random": {"by": ["x"]}}),
    ),
    BadInput(
        "a condition that no row fulfills",
        "where and split keep none of the 12 rows of sources[log]; correct them.",
        spec=spec_with(where="user > 100"),
    ),
    BadInput(
        "an id beyond `identity`",
        "features[user] is 4 in 3 rows, first in log.csv, line 5, but must be an id from 0 to 3, as identity says.",
        spec=spec_with(features={"user": {"identity": 4}}),
    ),
    BadInput(
        "a negative weight",
        "weight is -1 in 3 rows, but must be a weight of at least 0.",
        spec=spec_with(weight="user - 2"),
    ),
    BadInput(
        "a missing weight",
        "labels[click].weight is missing in 3 rows, but must be a weight of at least 0.",
        spec=spec_with(labels={"click": {"value": "click", "weight": "nullif(user, 2)"}}),
    ),
    BadInput(
        "weights that are more or fewer than the ids",
        "features[l].weights is [1] in 12 rows, but must be a list with a weight for each id.",
        spec=spec_with(
            columns={"l": "ints(split('1,2', ','))", "w": "ints(split('1', ','))"}, features={"l": {"weights": "w"}}
        ),
    ),
    BadInput(
        "a feature without a value",
        "features[city] has no value in train, as after a join of which no key fits; correct it, or leave it out.",
        **joined("user,city\n11,a\n12,b\n"),
    ),
    BadInput(
        "a number without a value",
        "dense[n] has no value in train, so nothing can be fitted; leave it out.",
        spec=spec_with(columns={"n": "nullif(day, day)"}, dense={"n": {"quantiles": 4}}),
    ),
    BadInput(
        "a join that would multiply rows",
        "joins[0]: 'users' has 2 rows with user 1, which would multiply rows of the log; say repeats: first or last.",
        **joined("user,city\n1,a\n2,b\n1,c\n"),
    ),
    BadInput(
        "a join whose key is of two types",
        "joins[0].on names 'user', which is int in 'log' and text in 'users'; give both the same type under sources.",
        **joined("user,city\n1,a\n", kind="text"),
    ),
    BadInput(
        "two sources with a column of one name",
        "'users' has the column 'click', which what it is joined to has as well; rename one of them where they are "
        "written.",
        **joined("user,city,click\n1,a,1\n"),
    ),
    BadInput(
        "two features with one id space and two types",
        "features[t] is text, but 'user', whose ids it has by vocabulary.of, is int; give both the same type.",
        spec=spec_with(columns={"t": "cast(day as text)"}, features={"user": {}, "t": {"vocabulary": {"of": "user"}}}),
    ),
    BadInput(
        "a missing group",
        "group is missing in 3 rows, but must be a value, as gAUC leaves no row out.",
        spec=spec_with(group="nullif(user, 1)"),
    ),
]
"""Rows that cannot become a log."""

BAD_SPECS = [
    BadInput(
        "a file that is not YAML",
        "spec.yaml cannot be read as a spec (line 2: expected the node content, but found '<stream end>').",
        spec="a: [\n",
    ),
    BadInput(
        "a spec of a newer format",
        "spec.yaml has the format 2, but this stem_torchrec reads formats up to 1; install a newer stem_torchrec to "
        "use it.",
        spec={**SPEC, "format": 2},
    ),
    BadInput(
        "an unknown field",
        "spec.yaml: there is no field 'features[user].vocabulary.min_cuont'; did you mean 'min_count'?",
        spec=spec_with(features={"user": {"vocabulary": {"min_cuont": 3}}}),
    ),
    BadInput(
        "an unknown value",
        "spec.yaml: features[user].missing is 'unsen', but must be 'unseen', 'own' or 'none'.",
        spec=spec_with(features={"user": {"missing": "unsen"}}),
    ),
    BadInput(
        "a number outside of its limits",
        "spec.yaml: features[user].vocabulary.min_count is 0, but must be from 1 to 1099511627776.",
        spec=spec_with(features={"user": {"vocabulary": {"min_count": 0}}}),
    ),
    BadInput(
        "two splits",
        "spec.yaml: split has time and random, but must have one of time, random and column.",
        spec=spec_with(split={"random": {}, "time": {"by": "day", "train_until": 1, "valid_until": 2}}),
    ),
    BadInput(
        "a vocabulary of an unknown feature",
        "spec.yaml: features[day].vocabulary.of is 'usr', which is no feature with a vocabulary of its own; did you "
        "mean 'user'?",
        spec=spec_with(features={"user": {}, "day": {"vocabulary": {"of": "usr"}}}),
    ),
    BadInput(
        "a join of an unknown source",
        "spec.yaml: joins[0].source is 'user', which is no side table of the sources; did you mean 'users'?",
        **joined("user,city\n1,a\n", join={"source": "user"}),
    ),
    BadInput(
        "an unknown column in an expression",
        "labels[click] is 'clik': no column is called 'clik'; did you mean 'click'?",
        spec=spec_with(labels={"click": "clik"}),
    ),
    BadInput(
        "an unknown function",
        "columns[x] is 'hourr(day)': expression 'hourr(day)' calls 'hourr', which is no function; did you mean 'hour'?",
        spec=spec_with(columns={"x": "hourr(day)"}),
    ),
    BadInput(
        "an argument of another type",
        "columns[x] is \"day + 'a'\": expression add(day, 'a'): add takes int or float, but its argument 2, 'a', is "
        "text.",
        spec=spec_with(columns={"x": "day + 'a'"}),
    ),
    BadInput(
        "a variable without a value",
        "spec.yaml: the variable 'raw' has no value; give one with --set raw=TEXT.",
        spec={**SPEC, "variables": {"raw": None}},
    ),
    BadInput(
        "`--set` of an unknown name",
        "--set rw=x: spec.yaml has no variable 'rw'; did you mean 'raw'?",
        spec={**SPEC, "variables": {"raw": "."}},
        options={"set": ("rw=x",)},
    ),
    BadInput(
        "two columns of the log with one name",
        "spec.yaml: 'User' is a label and a feature, as 'user' with other capitals; give one of them another name.",
        spec=spec_with(labels={"user": "click"}, features={"User": {"value": "user"}}),
    ),
    BadInput(
        "a name that is no file name",
        "spec.yaml: '../user' is a feature, but a name has 1 to 200 bytes of printable text without `/`.",
        spec=spec_with(features={"../user": {"value": "user"}}),
    ),
    BadInput(
        "a list in CSV",
        "spec.yaml: sources[log].columns[user] is list<int>, but a cell of CSV is one value; call it text and split "
        "it under columns, as in ints(split(user, ',')).",
        spec=source(columns={"user": "list<int>"}),
    ),
    BadInput(
        "an unknown encoding",
        "spec.yaml: sources[log].encoding is 'latin1x', which Python does not know; did you mean 'latin-1'?",
        spec=source(encoding="latin1x"),
    ),
    BadInput("no `--out`", "--out is missing; name the folder of the log, as in --out DIR.", options={"out": ""}),
    BadInput(
        "a value of two splits",
        "spec.yaml: split.column has 2 in train and valid; leave one of them out.",
        spec=spec_with(split={"column": {"by": "day", "train": [1, 2], "valid": [2, 3]}}),
    ),
]
"""Specs and options that are refused, most before a file is read."""
