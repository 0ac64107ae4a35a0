"""What has been guessed, as the text of a spec that people edit."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml.comments import CommentedMap

from stem_torchrec.preparation.guessing.commented_yaml import lines, text_of
from stem_torchrec.preparation.guessing.facts import Facts, share
from stem_torchrec.preparation.guessing.features import Choice
from stem_torchrec.preparation.guessing.labels import column_text
from stem_torchrec.preparation.guessing.source import RawSource
from stem_torchrec.preparation.guessing.split import GuessedSplit
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.preparation.specs.spec_file import SPEC_FORMAT

_SOURCE_COMMENTS = {
    "header": "the first line is a row",
    "trim": "blanks stand around cells",
    "nulls": "cells without a value",
    "quote": "no cell is quoted",
    "partitions": "from the names of folders",
}


@dataclass(frozen=True)
class Guessed:
    """A spec before it is written."""

    raw: RawSource
    facts: Mapping[str, Facts]
    split: GuessedSplit
    choices: list[Choice]
    labels: dict[str, tuple[str, float]]
    """Expression and share of positives by name."""
    group: str | None
    candidates: list[str]
    """Options for labels, for the comments of a spec that has none."""
    rows: str
    """How many rows were looked at, in words."""


def document(guessed: Guessed) -> str:
    """The text of the spec; `read_spec` reads it if it has labels."""
    names = ", ".join(os.path.basename(file) for file in guessed.raw.files[:3])
    more = len(guessed.raw.files) - 3
    files = names + (f" and {more} more files" if more > 0 else "")
    sections: dict[str, Any] = {
        "format": SPEC_FORMAT,
        "description": f"Guessed from {files}.",
        "sources": lines({"log": _source(guessed)}, {}),
        "split": _split(guessed.split),
    }
    if guessed.split.order is not None:
        sections["order"] = guessed.split.order
    sections["labels"] = _labels(guessed)
    if guessed.group is not None:
        sections["group"] = column_text(guessed.group)
    for kind in ("features", "dense"):
        chosen = [choice for choice in guessed.choices if choice.kind == kind]
        if chosen:
            contents = {choice.name: choice.content for choice in chosen}
            sections[kind] = lines(contents, {choice.name: choice.reason for choice in chosen})
    head = [
        f"Guessed by stem-prepare from {guessed.rows} of {files}; edit what is wrong.",
        "docs/prepare.md has all fields. Counts are those of the rows that were looked at.",
    ]
    return text_of(sections, head=head, above=_above(guessed), foot=_left_out(guessed))


def _above(guessed: Guessed) -> dict[str, str]:
    texts = {
        "split": "Nothing is fitted outside of train.",
        "features": "Id features, in the order in which the model sees them. Values that occur once are unseen: id 0.",
        "dense": "Numbers, which are features in buckets as well: a bucket has an embedding of its own.",
    }
    if guessed.group is not None:
        texts["group"] = "gAUC is the AUC within the rows of a user."
    if not guessed.labels:
        texts["labels"] = "One label or more, each 0, 1 or nothing; NAME: EXPRESSION."
    return texts


def _source(guessed: Guessed) -> CommentedMap:
    """The fields that are not as by default, then a line for each column."""
    source, default = guessed.raw.source, Source("")
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(source).items()
        if name not in ("columns", "files") and value != getattr(default, name)
    }
    comments = {name: text for name, text in _SOURCE_COMMENTS.items() if name in fields}
    files = source.files if isinstance(source.files, str) else list(source.files)
    if not source.columns:
        return lines({"files": files, **fields}, comments)
    columns = lines(source.columns, {name: _column_comment(name, guessed) for name in source.columns})
    return lines({"files": files, **fields, "columns": columns}, comments)


def _column_comment(name: str, guessed: Guessed) -> str:
    remark = guessed.raw.remarks.get(name)
    return guessed.facts[name].text + (f"; {remark}" if remark else "")


def _split(split: GuessedSplit) -> CommentedMap:
    [(way, fields)] = split.content.items()
    return lines({way: lines(fields, split.comments)}, {})


def _labels(guessed: Guessed) -> CommentedMap | None:
    if guessed.labels:
        texts = {name: text for name, (text, _) in guessed.labels.items()}
        return lines(texts, {name: f"{share(part)} positive" for name, (_, part) in guessed.labels.items()})
    return None


def _left_out(guessed: Guessed) -> list[str]:
    """What is no feature, and why; and the candidates of a spec without labels."""
    left = [f"  {choice.name}: {choice.reason}" for choice in guessed.choices if choice.kind == "left out"]
    left += [f"  {name}: {reason}" for name, reason in guessed.raw.unread.items()]
    options = [f"  {option}" for option in guessed.candidates]
    head = "Columns that could be labels, as the command takes them:"
    return [
        *(["Left out:", *left] if left else []),
        *([head, *options] if options and not guessed.labels else []),
    ]
