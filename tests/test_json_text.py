"""The strict reader of JSON: what it refuses, and the place that it names."""

import json

import pytest

from stem_torchrec.config.json_text import parse_json


def test_json_is_read_as_the_standard_library_reads_it() -> None:
    text = json.dumps({"a": [1, -2.5e-3, 2**70, "特征 \u2028 \n", None, True, {"b": {}}], "": {}}, indent=1)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    assert type(parse_json("1")) is int
    assert type(parse_json("1e3")) is float


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_json('\ufeff{"a": 1}') == parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "EOF while parsing a value at line 1 column 0"),
        ('{"a": [1,\n 2', "EOF while parsing a list at line 2 column 2"),
        ('{"a": "x', "EOF while parsing a string at line 1 column 8"),
        ('{"a": 1}\n{"a": 1}', "trailing characters at line 2 column 1"),
        ('{"a": NaN}', "expected value at line 1 column 7"),
        ('{"a":\n-Infinity}', "invalid number at line 2 column 2"),
        ('{"a": 1,}', "trailing comma at line 1 column 9"),
        ("{'a': 1}", "key must be a string at line 1 column 2"),
        ("// note\n{}", "expected value at line 1 column 1"),
        ("[" * 3000, "recursion limit exceeded at line 1 column 202"),
        ('{"a":' * 100_000, "recursion limit exceeded at line 1"),
        ('{"a": ' + "9" * 5000 + "}", "number out of range at line 1 column"),
        ('{"a": ' + "9" * 400 + "}", "the number 9999"),
        ('{"a": [-1e999]}', "the number -1e999 is too large"),
        ('{"a": "\\ud800"}', "at line 1 column"),
        ('{"a": "\ud800"}', "not UTF-8 text"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
        ('{"a": {"x": 1, "y": 2, "x": 1}}', r"the key 'x' stands twice in \{'x': 1, 'y': 2\}"),
        ('[{"\\u0061": 1, "a": 2}]', "the key 'a' stands twice"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_its_place(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)
