"""Small logs that the command `stem-prepare` makes of raw files, for tests."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.runtime.errors import UserError

CSV = "user,day,click\n" + "".join(f"{user},{day},{(user + day) % 2}\n" for day in (1, 2, 3) for user in (1, 2, 3, 4))
"""Twelve rows of three days."""
SPEC: Mapping[str, Any] = {
    "sources": {"log": {"files": "log.csv", "columns": {"user": "int", "day": "int", "click": "int"}}},
    "split": {"time": {"by": "day", "train_until": 2, "valid_until": 3}},
    "labels": {"click": "click"},
    "features": {"user": {}},
    "order": "source",
}
"""Reads CSV."""


def spec_with(**fields: Any) -> dict[str, Any]:
    """SPEC with other fields."""
    return {**SPEC, **fields}


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files of text or bytes into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def prepare(folder: Path, spec: Any = SPEC, files: Mapping[str, str | bytes] | None = None, /, **options: Any) -> Path:
    """The log that the command makes in a folder of its files and its spec, which may be text."""
    write_files(folder, {"log.csv": CSV} if files is None else files)
    (folder / "spec.yaml").write_text(spec if isinstance(spec, str) else to_yaml(spec))
    before = Path.cwd()
    os.chdir(folder)
    try:
        prepare_log(PrepareOptions(**{"spec": "spec.yaml", "out": "made", "memory": 0.25, "threads": 1, **options}))
    finally:
        os.chdir(before)
    return folder / "made"


def refusal(folder: Path, spec: Any = SPEC, files: Mapping[str, str | bytes] | None = None, /, **options: Any) -> str:
    """The sentence with which the command refuses; nothing of the log may be left."""
    with pytest.raises(UserError) as error:
        prepare(folder, spec, files, **options)
    left = sorted(path.name for path in folder.iterdir() if path.name == "made" or path.name.startswith("."))
    assert left == []
    return str(error.value)


def column(log: Path, name: str) -> list[Any]:
    """The values of a column in all splits of a log."""
    splits = [log / split for split in ("train", "valid", "test") if (log / split).exists()]
    return [value for split in splits for value in pq.read_table(split).column(name).to_pylist()]
