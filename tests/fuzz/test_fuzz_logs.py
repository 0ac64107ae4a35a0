"""Schemas and Parquet files that do not fit each other: types, nulls, values, sizes, names and folders."""

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fuzz.case import Case, Edit, train
from fuzz.logs import SCHEMA, TYPES
from fuzz.targets import check, target

COLUMNS = ("uid", "tags", "age", "finish", "like")
NAMES = (
    "c.parquet",
    "c.pq",
    ".c.parquet",
    "_c.parquet",
    "sub/c.parquet",
    "_sub/c.parquet",
    ".sub/c.parquet",
    "day=1/c.parquet",
)
NAMES += ("ü c.parquet", "c.PARQUET", "c.parquet.crc", "c", "a.parquet", "c.parquet/c.parquet", "_SUCCESS")
VALUES = (
    -1,
    0,
    1,
    2,
    8,
    20,
    2**31,
    2**63 - 1,
    -(2**63),
    0.5,
    float("nan"),
    float("inf"),
    "a",
    "",
    [],
    [1],
    [0, 99],
    [None],
)


@st.composite
def parquet(draw: st.DrawFn) -> Edit:
    """A file with columns of other types, other values or other rows."""
    edit: Edit = {
        "do": "parquet",
        "path": f"log/{draw(st.sampled_from(['train', 'valid']))}/{draw(st.sampled_from(['a.parquet', *NAMES]))}",
        "rows": draw(st.sampled_from([0, 1, 2, 31, 32, 33, 64, 100])),
        "seed": draw(st.integers(0, 3)),
        "row_group_size": draw(st.sampled_from([1, 7, 32, 1000])),
        "compression": draw(st.sampled_from(["snappy", "none", "zstd", "gzip"])),
    }
    columns = st.sampled_from(COLUMNS)
    match draw(st.sampled_from(["rows", "types", "types", "nulls", "values", "drop", "rename"])):
        case "types":
            edit["types"] = draw(st.dictionaries(columns, st.sampled_from(sorted(TYPES)), min_size=1, max_size=2))
        case "nulls":
            edit["nulls"] = draw(st.dictionaries(columns, st.sampled_from([0.1, 1.0]), min_size=1, max_size=2))
        case "values":
            edit["values"] = draw(st.dictionaries(columns, st.sampled_from(VALUES), min_size=1, max_size=1))
        case "drop":
            edit["drop"] = [draw(columns)]
        case "rename":
            edit["rename"] = {draw(columns): draw(st.sampled_from([*COLUMNS, "UID", "", "a.b", "a/b", "ü"]))}
    return edit


@st.composite
def file_edits(draw: st.DrawFn) -> Edit:
    """A file of the log cut, changed, copied, moved away or replaced by a folder or a link."""
    path = draw(
        st.sampled_from(["log/train/a.parquet", "log/train/b.parquet", "log/valid/a.parquet", "log/train", "log/valid"])
    )
    do = draw(st.sampled_from(["truncate", "flip", "copy", "delete", "folder", "link"]))
    edit: Edit = {"do": do, "path": path}
    if do in ("truncate", "flip"):
        edit |= {"share": draw(st.floats(0, 1)), "bits": draw(st.integers(1, 255))}
    if do == "copy":
        edit["to"] = f"log/{draw(st.sampled_from(['train', 'valid']))}/{draw(st.sampled_from(NAMES))}"
    if do == "link":
        edit["to"] = draw(st.sampled_from(["a.parquet", "nowhere", "../valid/a.parquet", "..", "/dev/null"]))
    return edit


SCHEMA_CHANGES = ["feature", "size", "pooling", "weights", "dense", "labels", "group", "dim", "splits", "fill", "alias"]
SCHEMA_CHANGES += ["row weights"]


@st.composite
def schemas(draw: st.DrawFn) -> Edit:
    """A schema.json of valid form that fits the files more or less."""
    schema: dict[str, Any] = copy.deepcopy(SCHEMA)
    names = st.sampled_from([*COLUMNS, "nowhere"])
    match draw(st.sampled_from(SCHEMA_CHANGES)):
        case "feature":
            schema["sparse_features"].append({"name": draw(names), "num_embeddings": 20})
        case "size":
            schema["sparse_features"][0]["num_embeddings"] = draw(
                st.sampled_from([1, 2, 19, 20, 21, 1000, 2**31, 2**62])
            )
        case "pooling":
            schema["sparse_features"][1]["pooling"] = draw(st.sampled_from(["mean", "sum", "max", None]))
        case "weights":
            schema["sparse_features"][draw(st.integers(0, 1))]["weights"] = draw(names)
        case "dense":
            schema["dense_features"] = draw(st.lists(names, max_size=3))
        case "labels":
            schema["labels"] = draw(st.lists(names, max_size=3))
        case "group":
            schema["group"] = draw(names | st.none())
        case "dim":
            schema["sparse_features"][0]["embedding_dim"] = draw(st.sampled_from([0, 3, 4, 6, 8, 12, 1024, None]))
        case "fill":
            fill = draw(st.sampled_from([0, -1.5, 1e38, 1e39, "0", None]))
            schema["dense_features"] = [{"name": "age", "fill": fill}]
        case "alias":
            schema["sparse_features"][1] |= {"name": draw(st.sampled_from(["renamed", "a.b"])), "column": draw(names)}
        case "row weights":
            schema |= {"weight": draw(names | st.none()), "dense_features": []}
            schema["label_weights"] = draw(st.dictionaries(st.sampled_from(["like", "nowhere"]), names, max_size=1))
        case "splits":
            counts = {name: {"positives": draw(st.integers(0, 99)), "missing": 0} for name in ("finish", "like")}
            schema["splits"] = {"train": {"rows": draw(st.sampled_from([0, 95, 96, 97])), "labels": counts}}
    return {"do": "write", "path": "log/schema.json", "text": json.dumps(schema)}


@st.composite
def logs(draw: st.DrawFn) -> Case:
    """A training on a changed log."""
    edits = draw(st.lists(parquet() | file_edits() | schemas(), min_size=1, max_size=2))
    options = draw(st.sampled_from([[], [], [], ["--data.on-bad-row", "skip"], ["--data.labels", "like"]]))
    if "skip" in options:
        options = [*options, "--data.max-bad-share", "1"]
    return train(*options, edits=edits)


@target("logs")
@given(logs())
def test_every_log_is_read_whole_or_refused(case: Case) -> None:
    check("logs", case)
