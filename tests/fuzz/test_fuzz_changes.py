"""The fuzzer notices damage to the log and to other runs wherever a command writes, and allows what is its own."""

from collections.abc import Sequence

import pytest

from fuzz.case import Case
from fuzz.changes import Snapshot, wrong_changes

CHECKPOINT = "paused/checkpoints/step-000000003/progress.json"
FILES = ("log/schema.json", "log/train/a.parquet", "run/config.yaml", "run/best/.metadata", "paused/config.yaml")
FILES += (CHECKPOINT, "tables.yaml", "run/deltas/000001/manifest.json", "copy/best/delta.json")
BEFORE = Snapshot(dict.fromkeys(FILES, (1, 1, 1)), frozenset({"run"}))
WRONG = [
    ("train", "--output-dir .", "log/schema.json"),
    ("train", "--output-dir log", "log/schema.json"),
    ("train", "--output-dir log/train/new", "log/train/new/config.yaml"),
    ("train", "--output-dir run", "run/config.yaml"),
    ("train", "--output-dir run/best", "run/best/.metadata"),
    ("train", "--output-dir paused/checkpoints", CHECKPOINT),
    ("train", "--output-dir out --checkpoint.folder paused/checkpoints", CHECKPOINT),
    ("train", "--output-dir out", "other/config.yaml"),
    ("evaluate", "--run run --predictions log/train/new", "log/train/new/part-00000.parquet"),
    ("evaluate", "--run run --json run/config.yaml", "run/config.yaml"),
    ("evaluate", "--run run --json None", "None"),
    ("tune", "--out paused", "paused/config.yaml"),
    ("plan", "--out tables.yaml", "tables.yaml"),
    ("synthetic", "--out log", "log/train/a.parquet"),
    ("synthetic", "--out log/train --overwrite", "log/train/a.parquet"),
    ("synthetic", "--out run --overwrite", "run/config.yaml"),
    ("resume", "leave 1", "run/config.yaml"),
    ("apply_delta", "--delta run/deltas --to copy", "run/deltas/000001/manifest.json"),
    ("apply_delta", "--delta run/deltas --to new", "copy/best/delta.json"),
    ("train", "--output-dir out --delta.out run/deltas", "run/deltas/000001/manifest.json"),
]
"""A command, its options and a file that it must not change."""
RIGHT = [
    ("train", "--output-dir out", "out/config.yaml"),
    ("train", "--output-dir ~/new", "home/new/config.yaml"),
    ("train", "", "runs/20260101-000000/config.yaml"),
    ("train", "--output-dir paused", "paused/config.yaml"),
    ("train", "--output-dir ./paused/", CHECKPOINT),
    ("train", "--output-dir run/best", "run/best/config.yaml"),
    ("tune", "--out log", "log/study.yaml"),
    ("synthetic", "--out log --overwrite", "log/train/a.parquet"),
    ("kuairand", "--out out --out log/new --overwrite", "log/new/schema.json"),
    ("resume", "compare 1", "whole/config.yaml"),
    ("apply_delta", "--delta run/deltas --to copy", "copy/best/delta.json"),
]


def changed(command: str, options: str, file: str, after: Sequence[int]) -> list[str]:
    """The wrong changes if a command writes a file, or deletes it."""
    files = {name: state for name, state in {**BEFORE.files, file: tuple(after)}.items() if state}
    return wrong_changes(Case(command, options.split()), BEFORE, Snapshot(files))


@pytest.mark.parametrize(("command", "options", "file"), WRONG)
def test_a_file_that_is_not_the_commands_is_noticed(command: str, options: str, file: str) -> None:
    assert changed(command, options, file, (2, 2, 2)) == [file]
    assert changed(command, options, file, ()) == ([file] if file in FILES else [])


@pytest.mark.parametrize(("command", "options", "file"), RIGHT)
def test_a_file_that_is_the_commands_may_change(command: str, options: str, file: str) -> None:
    assert changed(command, options, file, (2, 2, 2)) == []
    assert changed(command, options, file, ()) == []
