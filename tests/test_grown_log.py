"""Another day's log is evaluated by yesterday's run: ids that the log has added to the vocabularies are unseen."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log

from prepared_logs import prepared, raw_rows, spec_of, split
from small_runs import run_script

FEATURES: dict[str, Any] = {
    "user": None,
    "tags": {"value": "split(tags, '|')"},
    "city": {"hash": {"buckets": 9}},
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, the run that was trained on it, and a later log: grown, and with the same ids."""
    folder, rows = tmp_path_factory.mktemp("days"), raw_rows()
    early = {"by": "time", "train_until": 49, "valid_until": 99}
    first = prepared(folder, rows, features=FEATURES, split={"time": early})
    spec = spec_of(folder, rows, features=FEATURES)
    for name, grow in (("same", False), ("grown", True)):
        prepare_log(PrepareOptions(spec=str(spec), out=str(folder / name), vocabularies=str(first), grow=grow))
    options = ("--model.expert-hidden", "8", "--model.embedding-std", "0.5", "--data.batch-size", "16")
    run_script("stem_torchrec/train.py", "--data.path", first, "--output-dir", folder / "run", *options)
    return folder


def evaluated(logs: Path, log: str, *options: str | Path, status: int = 0, ranks: int = 1) -> str:
    line = ("--run-dir", logs / "run", "--data.path", logs / log, "--split", "train", *options)
    return run_script("stem_torchrec/evaluate.py", *line, status=status, ranks=ranks)


def test_ids_that_are_newer_than_the_run_are_read_as_unseen_and_counted(logs: Path, tmp_path: Path) -> None:
    for log in ("same", "grown"):
        text = evaluated(logs, log, "--predictions", tmp_path / log, "--json", tmp_path / f"{log}.json", ranks=2)
        assert ("were read as unseen" in text) == (log == "grown")
    size = {feature.name: feature.num_embeddings for feature in load_schema(str(logs / "run")).sparse_features}
    rows = split(logs / "grown", "train")
    users = sum(user >= size["user"] for user in rows["user"])
    tags = sum(tag >= size["tags"] for tags in rows["tags"] for tag in tags or [])
    assert users > 0
    note = "note: ids that the log has added to the run's vocabularies were read as unseen:"
    named = [f"{count} of {name}" for name, count in (("user", users), ("tags", tags)) if count]
    assert f"{note} {', '.join(named)}\n" in text
    same, grown = (pq.read_table(tmp_path / log).sort_by("row") for log in ("same", "grown"))
    assert grown.equals(same)
    assert json.loads((tmp_path / "grown.json").read_text()) == json.loads((tmp_path / "same.json").read_text())


def without_transforms(log: Path) -> None:
    (log / "transforms.json").unlink()


def with_a_larger_hash(log: Path) -> None:
    change_schema(log, lambda features: features[0].update(num_embeddings=99))


def without_users(log: Path) -> None:
    change_schema(log, lambda features: features.pop(2))


def without_a_label(log: Path) -> None:
    schema = (log / "schema.json").read_text()
    (log / "schema.json").write_text(schema.replace('"click"', '"other"'))


def change_schema(log: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Changes the features of a log: city, tags and user."""
    schema = json.loads((log / "schema.json").read_text())
    change(schema["sparse_features"])
    (log / "schema.json").write_text(json.dumps(schema))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_transforms, "is not a log like that of .*: num_embeddings of user is"),
        (with_a_larger_hash, "is not a log like that of .*: num_embeddings of city is 99, not"),
        (
            without_users,
            "the log has no sparse feature 'user', which .* reads, only city, tags; give a log that",
        ),
        (without_a_label, "the log has no label '.*', which .* reads, only other; give a log that has it."),
    ],
)
def test_other_logs_are_refused_still(change: Callable[[Path], None], words: str, logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs / "grown", tmp_path / "log")
    change(tmp_path / "log")
    assert re.search(f"error: .*{words}", evaluated(logs, str(tmp_path / "log"), status=2))
