"""From bodies to rows: values of JSON, streams of Arrow and tensors, right and wrong, without a server."""

import json
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.server.arrow_rows import read_stream, write_stream
from stem_torchrec.server.input_columns import InputColumn
from stem_torchrec.server.json_rows import parse_rows, rows_of_json
from stem_torchrec.server.refusals import RefusedError, sentence_of
from stem_torchrec.server.request_rows import RequestRows, within
from stem_torchrec.server.tensor_rows import table_of_tensors
from stem_torchrec.server.tensors import parse_request

from served import stream_of

KINDS = {
    "age": ValueType.INT,
    "price": ValueType.FLOAT,
    "sold": ValueType.BOOL,
    "at": ValueType.TIMESTAMP,
    "day": ValueType.DATE,
    "tags": ValueType.TEXTS,
    "sizes": ValueType.FLOATS,
}
COLUMNS = {name: InputColumn(kind) for name, kind in KINDS.items()}
ROW = {
    "age": 39,
    "price": 2,
    "sold": True,
    "at": "1970-01-02T00:00:00.000001+01:00",
    "day": "1970-01-11",
    "tags": ["a", None, "b"],
    "sizes": [1, 2.5],
}


def test_values_of_json_become_columns_of_their_types() -> None:
    rows = rows_of_json([ROW, dict.fromkeys(ROW), ROW | {"at": 5, "day": 7, "tags": []}], COLUMNS)
    assert rows.wrong == []
    assert rows.table.to_pydict() == {
        "age": [39, None, 39],
        "price": [2.0, None, 2.0],
        "sold": [True, None, True],
        "at": [23 * 3600 * 10**6 + 1, None, 5],
        "day": [10, None, 7],
        "tags": [["a", None, "b"], None, []],
        "sizes": [[1.0, 2.5], None, [1.0, 2.5]],
    }


@pytest.mark.parametrize(
    ("column", "value", "need"),
    [
        ("age", True, "a whole number of 64 bits"),
        ("age", -(2**63) - 1, "a whole number of 64 bits"),
        ("age", 2.5, "a whole number of 64 bits"),
        ("age", 2.0**60, "a whole number of 64 bits"),
        ("price", float("inf"), "a finite number"),
        ("price", 10**400, "a finite number"),
        ("sold", 1, "true or false"),
        ("at", "yesterday", "a time such as 2026-11-27T12:00:00Z"),
        ("at", 1.5, "a time such as"),
        ("day", "2026-13-01", "a date such as"),
        ("tags", "a", "a list"),
        ("tags", ["a", 1], "a list, each of it text"),
        ("sizes", [[1.0]], "a list, each of it a finite number"),
    ],
)
def test_a_wrong_value_of_json_makes_its_row_wrong(column: str, value: Any, need: str) -> None:
    rows = rows_of_json([ROW, ROW | {column: value}, ROW], COLUMNS)
    assert [(each.row, each.column) for each in rows.wrong] == [(1, column)]
    assert f"but must be {need}" in rows.wrong[0].reason
    assert (rows.count, len(rows.table), rows.kept.tolist()) == (3, 2, [0, 2])


def test_an_id_of_a_log_may_stand_alone_or_in_a_list() -> None:
    columns = {"uid": InputColumn(ValueType.INTS, or_one=True)}
    rows = rows_of_json([{"uid": 3}, {"uid": [4, 5.0]}, {"uid": None}, {"uid": "x"}], columns)
    assert rows.table["uid"].to_pylist() == [[3], [4, 5], None]
    assert rows.wrong[0].reason == "uid is 'x', but must be a whole number of 64 bits, or a list."


def test_similar_names_are_looked_for_in_a_hundred_rows_and_names_only() -> None:
    columns = {"city": InputColumn(ValueType.TEXT), "age": InputColumn(ValueType.INT)}
    late = {f"{i:050d}": 1 for i in range(100)} | {"citi": "rome"}
    rows = rows_of_json([{"citi": "rome"}] * 99 + [late] + [{"citi": "rome"}] * 900, columns)
    assert [each.column for each in rows.wrong] == ["city"] * 1000
    guessed = [each.row for each in rows.wrong if "did you mean 'citi'?" in each.reason]
    assert guessed == list(range(99))
    assert sentence_of(rows.wrong[:1]) == "row 0: the row has no 'city'; did you mean 'citi'?"


def test_a_number_beyond_all_floats_is_wrong_and_a_long_value_is_shortened() -> None:
    rows = rows_of_json(parse_rows(b'{"rows": [{"x": 1e999}, {"x": 1}]}'), {"x": InputColumn(ValueType.FLOAT)})
    assert [each.reason for each in rows.wrong] == ["x is inf, but must be a finite number."]
    rows = rows_of_json([{"x": "y" * 10_000}], {"x": InputColumn(ValueType.INT)})
    assert len(rows.wrong[0].reason) < 200


def test_a_row_with_a_longer_list_than_allowed_is_wrong() -> None:
    table = pa.table({"tags": [["a"], ["a"] * 3, None], "age": [1, 2, 3]})
    rows = within(RequestRows(3, table, np.arange(3), []), list_items=2, unfolded=100)
    assert [each.reason for each in rows.wrong] == ["tags has 3 values, but --limits.list-items allows 2."]
    assert rows.table["age"].to_pylist() == [1, 3]
    with pytest.raises(RefusedError, match="have 4 bytes or values, but only 3 are allowed"):
        within(RequestRows(3, table, np.arange(3), []), list_items=9, unfolded=3)


def test_a_few_bytes_of_arrow_cannot_stand_for_many() -> None:
    text = pa.array(["x" * 1000])
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), text)
    lists = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([[1] * 1000]))
    views = pa.array(["x" * 1000]).cast(pa.string_view())
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1000], pa.int32()), text)
    for column, status in ((repeated, 413), (lists, 422), (views, 422), (runs, 422)):
        table = pa.table({"x": column})
        with pytest.raises(RefusedError) as refused:
            within(RequestRows(len(table), table, np.arange(len(table)), []), list_items=10**6, unfolded=100_000)
        assert refused.value.status == status


def test_columns_that_share_their_bytes_count_each() -> None:
    text = pa.array(["x" * 1000])
    table = pa.table({"a": text, "b": text})
    with pytest.raises(RefusedError, match="the columns up to 'b' have 2000 bytes or values"):
        within(RequestRows(1, table, np.arange(1), []), list_items=10, unfolded=1500)


def test_a_damaged_stream_of_arrow_is_refused_and_never_read_wrongly() -> None:
    table = pa.table({"a": [1, 2, 3], "b": ["x", "yy", None], "c": [[1], [], [2, 3]]})
    body, rng = stream_of(table), np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(body)
        changed[rng.integers(len(body))] = rng.integers(256)
        try:
            read = read_stream(bytes(changed), max_rows=10)
        except RefusedError:
            continue
        read.validate(full=True)
    for end in range(0, len(body) - 8, 7):
        with pytest.raises(RefusedError):
            read_stream(body[:end], max_rows=10)


def test_an_answer_of_arrow_has_nulls_and_reasons_in_wrong_rows() -> None:
    scores = np.array([[0.25], [np.nan]], np.float32)
    table = pa.ipc.open_stream(write_stream(scores, ("error",), {1: "wrong."})).read_all()
    assert table.to_pydict() == {"error": [0.25, None], "error_": [None, "wrong."]}


TENSORS = {"uid": InputColumn(ValueType.INT), "tags": InputColumn(ValueType.INTS), "city": InputColumn(ValueType.TEXT)}


def tensor(name: str, datatype: str, data: Any, shape: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
    entry = {"name": name, "datatype": datatype, "shape": shape or [len(data)]}
    return entry | ({"parameters": parameters} if parameters else {"data": data})


INPUTS = [
    tensor("uid", "INT64", [1, 2]),
    tensor("tags.values", "INT32", [7, 8, 9]),
    tensor("tags.offsets", "INT64", [0, 0, 3]),
    tensor("city", "BYTES", ["rome", "ö"]),
]


def table_of(inputs: list[Any], columns: dict[str, InputColumn] = TENSORS) -> pa.Table:
    return table_of_tensors(parse_request(json.dumps({"inputs": inputs}).encode(), None), columns)


def test_tensors_become_columns_from_json_and_from_bytes() -> None:
    expected = {"uid": [1, 2], "tags": [[], [7, 8, 9]], "city": ["rome", "ö"]}
    assert table_of(INPUTS).to_pydict() == expected
    nested = [tensor("uid", "INT64", [[1], [2]], [2, 1]), *INPUTS[1:]]
    assert table_of(nested).to_pydict() == expected
    parts = [
        np.array([1, 2], "<i8").tobytes(),
        np.array([7, 8, 9], "<i4").tobytes(),
        np.array([0, 0, 3], "<i8").tobytes(),
        b"".join(struct.pack("<I", len(text)) + text for text in (b"rome", "ö".encode())),
    ]
    inputs = [
        tensor(entry["name"], entry["datatype"], None, entry["shape"], binary_data_size=len(part))
        for entry, part in zip(INPUTS, parts, strict=True)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    request = parse_request(head + b"".join(parts), len(head))
    assert table_of_tensors(request, TENSORS).to_pydict() == expected


def test_missing_values_are_null_or_told_by_a_tensor() -> None:
    inputs = [
        tensor("uid", "INT64", [None, 2]),
        *INPUTS[1:],
        tensor("tags.missing", "BOOL", [True, False]),
        tensor("city.missing", "BOOL", [False, True]),
    ]
    assert table_of(inputs).to_pydict() == {"uid": [None, 2], "tags": [None, [7, 8, 9]], "city": ["rome", None]}


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([*INPUTS[:2], tensor("tags.offsets", "INT64", [0, 2, 1]), INPUTS[3]], "must rise from 0 to 3"),
        ([*INPUTS[:2], tensor("tags.offsets", "INT64", [0, 0, 4]), INPUTS[3]], "must rise from 0 to 3"),
        ([*INPUTS[:2], tensor("tags.offsets", "INT64", [-1, 0, 3]), INPUTS[3]], "must rise from 0 to 3"),
        ([*INPUTS[:2], tensor("tags.offsets", "UINT64", [0, 2**64 - 1, 3]), INPUTS[3]], "must rise from 0 to 3"),
        ([*INPUTS[:2], tensor("tags.offsets", "INT64", [0, 3]), INPUTS[3]], "'tags' has 1 rows, and 'uid' has 2."),
        ([*INPUTS[:2], tensor("tags.offsets", "INT64", [], [0]), INPUTS[3]], "one more than there are rows"),
        (INPUTS[1:], "the input 'uid' is missing."),
        ([*INPUTS, tensor("uidd", "INT64", [1, 2])], "no input 'uidd'; did you mean 'uid'?"),
        ([*INPUTS, INPUTS[0]], "the input 'uid' stands twice."),
        ([tensor("uid", "INT64", [1], [2]), *INPUTS[1:]], "has the shape [2], but 1 values."),
        ([tensor("uid", "INT64", [1, 2], [2, -1]), *INPUTS[1:]], "must be a list of sizes"),
        ([tensor("uid", "INT64", [1, 2], [2, 2**63]), *INPUTS[1:]], "must be a list of sizes, at most 8."),
        ([tensor("uid", "INT64", [1, 2], [2] + [1] * 8), *INPUTS[1:]], "must be a list of sizes, at most 8."),
        ([tensor("uid", "INT64", [1, 2, 3, 4], [2, 2]), *INPUTS[1:]], "has 4 values in 2 rows"),
        ([tensor("uid", "INT65", [1, 2]), *INPUTS[1:]], "the datatype of 'uid' is 'INT65'"),
        ([tensor("uid", "INT8", [1, 200]), *INPUTS[1:]], "are not of int8"),
        ([tensor("uid", "UINT64", [1, 2**63]), *INPUTS[1:]], "beyond 64 bits"),
        ([tensor("uid", "INT64", [1, "2"]), *INPUTS[1:]], "have '2', which is no int64"),
        ([tensor("uid", "BYTES", ["1", "2"]), *INPUTS[1:]], "is string, but must be INT64"),
        ([tensor("uid", "INT64", [1, [2]]), *INPUTS[1:]], "lists and values beside each other"),
        ([tensor("uid", "INT64", None, [2], binary_data_size=16), *INPUTS[1:]], "but 0 bytes are left"),
        ([{"name": 3}], "must have a text"),
        ({"a": 1}, "must be a list of tensors"),
    ],
)
def test_tensors_that_lie_are_refused(inputs: Any, sentence: str) -> None:
    with pytest.raises(RefusedError) as refused:
        table_of(inputs)
    assert refused.value.status == 400
    assert sentence in refused.value.sentence


@pytest.mark.parametrize("texts", [b"\x05\0\0\0rome", b"\x04\0\0", b"\x01\0\0\0\xff", b"\xff\xff\xff\xffx"])
def test_bytes_that_are_no_texts_are_refused(texts: bytes) -> None:
    inputs = [tensor("city", "BYTES", None, [1], binary_data_size=len(texts))]
    head = json.dumps({"inputs": inputs}).encode()
    with pytest.raises(RefusedError, match="are no texts in UTF-8"):
        parse_request(head + texts, len(head))
    for length in (len(head) + len(texts) + 1, len(head) - 1):
        with pytest.raises(RefusedError):
            parse_request(head + texts, length)
