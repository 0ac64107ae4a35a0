"""The text of a guessed spec: YAML with a comment behind each line that was chosen."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

_COMMENT_COLUMN = 44
_LINE = 10**6
"""Longer than any line, as a comment stands at the end of one."""


def in_one_line(value: Any) -> Any:
    """The value with braces and brackets instead of lines."""
    flow: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        flow = CommentedMap({_quoted(key): in_one_line(item) for key, item in value.items()})
    elif isinstance(value, list | tuple):
        flow = CommentedSeq([in_one_line(item) for item in value])
    else:
        return _quoted(value)
    flow.fa.set_flow_style()
    return flow


def _quoted(value: Any) -> Any:
    """Text with a line break or another control character in quotes, within which it is escaped."""
    return DoubleQuotedScalarString(value) if isinstance(value, str) and not value.isprintable() else value


def lines(content: Mapping[str, Any], comments: Mapping[str, str]) -> CommentedMap:
    """A mapping with a line and a comment for each key; mappings that `lines` has made stay as they are."""
    result = CommentedMap()
    for key, value in content.items():
        result[_quoted(key)] = value if isinstance(value, CommentedMap) else in_one_line(value)
    for key, comment in comments.items():
        if not comment.strip():
            continue
        result.yaml_add_eol_comment(printable(comment), key, column=_COMMENT_COLUMN)
    return result


def printable(comment: str) -> str:
    """A comment on one line, without characters that YAML refuses."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(comment.split()))


def text_of(spec: Mapping[str, Any], *, head: Sequence[str], above: Mapping[str, str], foot: Sequence[str]) -> str:
    """The text of a spec.

    Args:
        spec: what `lines` has made by section.
        head: comments above all.
        above: comments above sections.
        foot: comments below all.
    """
    root = CommentedMap(spec)
    for section, comment in above.items():
        root.yaml_set_comment_before_after_key(section, before=f"\n{printable(comment)}")
    writer = YAML()
    writer.width, writer.allow_unicode = _LINE, True
    text = io.StringIO()
    writer.dump(root, text)
    top, bottom = ("".join(f"# {_indented(line)}\n" for line in block) for block in (head, foot))
    return top + text.getvalue() + (f"\n{bottom}" if bottom else "")


def _indented(line: str) -> str:
    return " " * (len(line) - len(line.lstrip(" "))) + printable(line)
