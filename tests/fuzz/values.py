"""Values that users write by mistake, on command lines and in structured files."""

import itertools
import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = ("0", "1", "-1", "2", "3", "7", "0.5", "-0.0", "1e-3", "1e-320", "1e309", "nan", "inf", "-inf", "4294967296")
NUMBERS += (
    "9223372036854775808",
    "9" * 5000,
    "1_0",
    "0x10",
    "010",
    "+1",
    "1.",
    "1,5",
    "\uff11\uff12",
    "1e",
    "--1",
    "1/2",
)
TEXTS = ("", " ", "None", "null", "true", "False", "auto", "a", "ü", "🙂", "\t", "a b", "a,b", "[1]", "{}", "'", '"')
TEXTS += (
    "--",
    "-",
    "=",
    "*",
    "?",
    "..",
    "log",
    "log/schema.json",
    "run",
    "none",
    "~",
    "~/x",
    "shared",
    "like",
    "finish",
)
TEXTS += (
    "uid",
    "tags",
    "auc/like",
    "auc/likes",
    "gauc",
    "x" * 300,
    "a/b",
    "\x1b[0m",
    "%s",
    "$HOME",
    "`id`",
    "foo://a/b",
)
words = st.sampled_from([*NUMBERS, *TEXTS])
texts = words | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=8)

_LEAVES = (None, True, False, 0, 1, -1, 2, 3, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**62, 2**64, -(2**63))
_LEAVES += (10**20, "", "0", "1", "like", "shared", "uid", "a/b", "x.y", "é", "x" * 300, [], {}, [[]], {"": 0}, [1, 1])
leaves = st.sampled_from(_LEAVES)
values = st.recursive(
    leaves | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=2),
    max_leaves=4,
)


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """A copy of JSON content in which one node is another value, gone, doubled or under another key."""
    content = json.loads(json.dumps(content))
    node, path = content, []
    while isinstance(node, dict | list) and node and (not path or draw(st.integers(0, 3))):
        path.append((node, draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))))
        node = node[path[-1][1]]
    if not path:
        return draw(values)
    parent, key = path[-1]
    match draw(st.sampled_from(["replace", "replace", "replace", "delete", "double", "rename", "wrap", "text"])):
        case "replace":
            parent[key] = draw(values)
        case "delete":
            del parent[key]
        case "double" if isinstance(parent, list):
            parent.append(node)
        case "rename" if isinstance(parent, dict):
            parent[draw(words)] = parent.pop(key)
        case "wrap":
            parent[key] = [node]
        case "text":
            parent[key] = str(node)
    return content


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """Text that is cut, has a line twice or not at all, or other characters somewhere."""
    where = draw(st.integers(0, len(text)))
    lines = text.splitlines(keepends=True)
    i = draw(st.integers(0, max(0, len(lines) - 1)))
    match draw(
        st.sampled_from(["cut", "insert", "drop line", "repeat line", "swap lines", "deep", "bytes", "aliases"])
    ):
        case "cut":
            return text[:where]
        case "insert":
            return (
                text[:where]
                + draw(st.sampled_from(list('{}[],:"\\#&*!|>%@`\n\t -\x00\ufeff') + list(TEXTS)))
                + text[where:]
            )
        case "drop line":
            return "".join(lines[:i] + lines[i + 1 :])
        case "repeat line":
            return "".join(lines[: i + 1] + lines[i:])
        case "swap lines":
            return "".join(lines[i:] + lines[:i])
        case "deep":
            return draw(st.sampled_from(["[", '{"a":', "- "])) * draw(st.sampled_from([50, 2000, 100_000])) + text
        case "bytes":
            return (
                text[:where] + draw(st.sampled_from(["\udcff", "\udc80\udc80", "\r", "\x85", "\u2028"])) + text[where:]
            )
        case _:
            names = "abcdefghi"
            pairs = itertools.pairwise(names)
            return "".join(["a: &a [x]\n", *(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in pairs)]) + text
