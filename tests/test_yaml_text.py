"""The strict reader of YAML and the writer: what they agree on, what is refused, and the place that is named."""

import pytest

from stem_torchrec.config.yaml_text import parse_yaml, to_yaml

LAUGHS = ["a: &a [1, 1, 1]"] + [
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
]


def test_what_is_written_reads_back_equal() -> None:
    looks_like_another = ["1e5", "08", "0o7", "-_1", "1.5e3", "yes", "no", "2026-11-26", "1:30", "null", "~", "<<", "="]
    values = {
        "z": {"labels": [*looks_like_another, "", "a: b", "# c", "- d", "'", "x " * 100, "line\n", "\x07", "特征"]},
        "a": [1e-8, 1e22, 0.001, 1.0, 5, -(2**70), True, None, [], {}],
    }
    assert parse_yaml(to_yaml(values)) == values
    assert list(parse_yaml(to_yaml(values))) == ["z", "a"]
    assert to_yaml(values).isascii()


def test_what_is_written_means_the_same_in_yaml_1_1() -> None:
    # Which most other programs read, and earlier versions of this one.
    text = to_yaml({"labels": ["yes", "1:30"], "eps": 1e-8})
    assert text == "labels:\n- 'yes'\n- '1:30'\neps: 1.0e-08\n"


def test_numbers_and_text_are_those_of_yaml_1_2() -> None:
    assert parse_yaml("[1e-6, 1.5E3, 1_000, 010, yes, on, 1:30, 2026-11-26]") == [
        *(1e-6, 1500.0, 1000, 10, "yes", "on", "1:30", "2026-11-26")
    ]
    assert parse_yaml("%YAML 1.1\n---\n[yes, 010]") == ["yes", 10]
    assert parse_yaml("\ufeffa: 1") == {"a": 1}
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  x: 1\n  x: 2", "line 3: the key 'x' stands twice"),
        ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}", "line 2: the key 'y' stands twice"),
        ("a: 1\n2: 3", "line 2: a key that is not text; put it in quotes"),
        ("? [1, 2]\n: 3", "line 1: a key that is not text"),
        ("a: " + "9" * 5000, "line 1: 9+...9+ is no number, or has too many digits"),
        ("\na: ._", r"line 2: \._ is no number"),
        ("a: !!set {b}", "line 1: the tag tag:yaml.org,2002:set is not read; leave it out"),
        ("a: !!python/object:os.system x", "line 1: the tag .* is not read"),
        ("a: [1,\n 2", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n---\na: 2", "line 2: but found another document"),
        ("a: &a [*a]", r"line 1: \*a stands inside of what it stands for"),
        ("[" * 3000 + "]" * 3000, "line 1: nested deeper than 32 levels"),
        ("- " * 3000 + "x", "line 1: nested deeper than 32 levels"),
        ("\n".join(LAUGHS), "line 4: more than 20 aliases"),
        ("%YAML 1.3\n---\na: 1", "version minor part"),
        ("a: \x00", "unacceptable character #x0000"),
    ],
)
def test_what_is_not_strict_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
