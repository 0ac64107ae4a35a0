"""A bundle has the weights of one training and the transforms of the log that the run was trained on."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stem_torchrec.checkpoints.checksum import weights_checksum
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.manifest import installed_versions
from stem_torchrec.serving.trained_run import unchanged_weights


def change_schema(log: Path, change: Callable[[dict], object]) -> None:
    schema = json.loads((log / "schema.json").read_text())
    change(schema)
    (log / "schema.json").write_text(json.dumps(schema))


def with_other_prices(log: Path) -> None:
    """Other rows, as many as before, in a log whose schema.json counts none."""
    change_schema(log, lambda schema: schema.pop("splits"))
    [file] = (log / "train").rglob("*.parquet")
    table = pq.read_table(file)
    prices = pc.add(table["price"], pa.scalar(1.0, pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("price"), "price", prices), file)


def with_counts(log: Path, split: str, *, rows: int | None = None, positives: int = 0) -> None:
    """Only what a bundle takes of the log, with another number of rows or of labels 1."""
    for each in ("train", "valid"):
        shutil.rmtree(log / each)

    def change(schema: dict) -> None:
        counts = schema["splits"][split]
        if rows is None:
            counts["labels"]["buy"]["positives"] = positives
        else:
            counts["rows"] = rows

    change_schema(log, change)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda log: with_counts(log, "train", rows=301), "train has 301 rows, not 300"),
        (lambda log: with_counts(log, "valid", positives=0), "valid has 0 labels 1 of 'buy', not "),
        (with_other_prices, "train/ has other rows (not the same: range of 'price')"),
    ],
)
def test_another_log_with_tables_of_the_same_sizes_is_refused(
    stem_bundle: Path, tmp_path: Path, change: Callable[[Path], None], difference: str
) -> None:
    shutil.copytree(stem_bundle / "log", tmp_path / "log")
    change(tmp_path / "log")
    options = ExportConfig(run=str(stem_bundle / "stem"), log=str(tmp_path / "log"), out=str(tmp_path / "bundle"))
    with pytest.raises(UserError) as error:
        export_run(options)
    assert str(error.value).startswith(f"{tmp_path}/log is not the log that the run was trained on: {difference}")


def test_weights_that_a_training_replaces_meanwhile_are_refused(stem_bundle: Path, tmp_path: Path) -> None:
    weights = tmp_path / "best"
    shutil.copytree(stem_bundle / "stem/best", weights)
    checksum = weights_checksum(weights)
    with unchanged_weights(tmp_path, ["buy"]) as same:
        assert same == checksum
    [file, *_] = weights.glob("*.distcp")
    with pytest.raises(UserError, match="got other weights meanwhile"), unchanged_weights(tmp_path, ["buy"]):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert load_bundle(stem_bundle / "bundle-stem").manifest.run["weights"] == checksum


def test_a_manifest_has_the_versions_of_nightly_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"stem_torchrec": "0.1.0", "torch": "2.14.0.dev20261120", "torchrec_nightly": "2026.11.20"}
    for name, number in versions.items():
        folder = tmp_path / f"{name}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installed_versions() == {
        "stem_torchrec": "0.1.0",
        "torch": "2.14.0.dev20261120",
        "torchrec": "2026.11.20",
    }
