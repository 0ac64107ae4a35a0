"""Small raw files, specs for them and the logs that they give."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log

Rows = dict[str, list[Any]]

ROWS = 400
"""Rows of the raw file; more than 20 % of them have no city."""


def raw_rows() -> Rows:
    rng = np.random.default_rng(0)
    city = rng.choice(["rome", "oslo", "bonn", ""], ROWS, p=[0.4, 0.2, 0.15, 0.25])
    return {
        "user": (rng.zipf(1.5, ROWS) % 50).tolist(),
        "city": city.tolist(),
        "tags": ["|".join(map(str, rng.integers(0, 9, n))) for n in rng.integers(0, 4, ROWS)],
        "price": np.round(rng.lognormal(2, 1, ROWS), 3).tolist(),
        "time": rng.permutation(ROWS).tolist(),
        "click": rng.integers(0, 2, ROWS).tolist(),
    }


def spec_of(folder: Path, rows: Rows, **fields: Any) -> Path:
    """Writes the rows as CSV and a spec with some fields of its own."""
    csv.write_csv(pa.table(rows), folder / "raw.csv", csv.WriteOptions(quoting_style="none"))
    content: dict[str, Any] = {
        "sources": {
            "log": {
                "files": str(folder / "raw.csv"),
                "columns": {"user": "int", "price": "float", "time": "int", "click": "int"},
            }
        },
        "split": {"time": {"by": "time", "train_until": 299, "valid_until": 399}},
        "order": "time",
        "labels": {"click": "click"},
        "features": {"user": None},
    }
    path = folder / "spec.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(content | fields, file)
    return path


def prepared(folder: Path, rows: Rows, **fields: Any) -> Path:
    """The log of a spec."""
    log = folder / "log"
    prepare_log(PrepareOptions(spec=str(spec_of(folder, rows, **fields)), out=str(log)))
    return log


def split(log: Path, name: str) -> Rows:
    table: Rows = pq.read_table(log / name).to_pydict()
    return table


def in_time(rows: Rows, column: str) -> list[Any]:
    """A column of the raw file in the order of time."""
    return [value for _, value in sorted(zip(rows["time"], rows[column], strict=True))]
