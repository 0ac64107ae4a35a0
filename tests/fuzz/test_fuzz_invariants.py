"""The fuzzer notices wrong results: each kind of them, made by hand, fails the check that is there for it."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.config.files import dump_config
from stem_torchrec.training.recipes import tiny

from fuzz.case import Case
from fuzz.invariants import problems
from fuzz.results import rows_trained
from fuzz.resumed import differences
from fuzz.server import Answer
from fuzz.workspace import write_log

OK = Answer(0, "", 1.0)
CASES = {
    "train": Case("train", ["--output-dir", "out"]),
    "resume": Case("train", ["--output-dir", "paused"]),
    "evaluate": Case("evaluate", ["--run", "run", "--data.path", "log", "--json", "o.json", "--predictions", "rows"]),
    "tune": Case("tune", ["--data.path", "log", "--out", "tuned"]),
    "compare": Case("compare", ["--data.path", "log", "--out", "compared"]),
    "convert": Case("convert", ["--run", "run", "--out", "packed"]),
    "synthetic": Case("synthetic", ["--out", "made"]),
}
LINES = [{"step": step, "train/step_ms": 50.0, "train/samples_per_second": 640.0} for step in (1, 2, 3)]
"""Three steps of 32 rows."""


def metrics_of(split: Path) -> dict[str, dict[str, Any]]:
    """Metrics that fit the labels of a split."""
    values = {"auc": 0.5, "gauc": 0.5, "logloss": 0.7, "ne": 1.0, "pcoc": 1.0, "gauc_groups": 13, "gauc_rows": 49}
    labels = pq.read_table(split).select(["finish", "like"]).to_pydict()
    return {task: {**values, "rows": len(of_task), "positives": sum(of_task)} for task, of_task in labels.items()}


def write_run(run: Path, config: str, metrics: dict[str, Any]) -> None:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    (run / "metrics.json").write_text(json.dumps({"valid": metrics, "finished": True}))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace in which every case of CASES ended well."""
    write_log(tmp_path / "log")
    config = replace(tiny(), data=replace(tiny().data, path=str(tmp_path / "log"), batch_size=32))
    packed = dump_config(replace(config, model=replace(config.model, layout="packed")))
    split = dump_config(config)
    metrics = metrics_of(tmp_path / "log/valid")
    for name in ("out", "run", "paused", "packed", "tuned/trials/0000"):
        write_run(tmp_path / name, packed if name == "packed" else split, metrics)
    (tmp_path / "o.json").write_text(json.dumps({"valid": metrics}))
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"row": range(64)}), tmp_path / "rows/part-00000.parquet")
    pq.write_table(pa.table({"trial": [0], "score": [0.5], "best": [True]}), tmp_path / "tuned/trials.parquet")
    (tmp_path / "tuned/best.yaml").write_text(split)
    tested = tmp_path / "compared/runs/stem/seed_0/test.json"
    tested.parent.mkdir(parents=True)
    tested.write_text(json.dumps({"metrics": metrics_of(tmp_path / "log/test")}))
    (tmp_path / "compared/report.md").touch()
    write_log(tmp_path / "made")
    labels = {task: {"positives": values["positives"]} for task, values in metrics.items()}
    schema = {"splits": {"valid": {"rows": 64, "labels": labels}}}
    (tmp_path / "made/schema.json").write_text(json.dumps(schema))
    return tmp_path


Damage = Callable[[Path], object]


def setting(name: str, *keys: str, to: Any) -> Damage:
    """Sets a value in a JSON file of the workspace."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        node = content
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to
        (folder / name).write_text(json.dumps(content))

    return damage


def writing(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def without_a_line(name: str) -> Damage:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace("\nseed: 0\n", "\n"))


def with_rows(name: str, **columns: Any) -> Damage:
    return lambda folder: pq.write_table(pa.table(columns), folder / name)


ONE_ROW_LESS = json.dumps({**LINES[0], "train/samples_per_second": 620.0})
LESS = "\n".join([ONE_ROW_LESS, *map(json.dumps, LINES[1:])])
TEST = "compared/runs/stem/seed_0/test.json"
WRONG: list[tuple[str, Damage, str]] = [
    ("train", setting("out/metrics.json", "valid", "like", "logloss", to=math.nan), "metric: logloss of a task is nan"),
    ("train", setting("out/metrics.json", "valid", "like", "logloss", to=None), "metric: logloss of a task is None"),
    ("train", setting("out/metrics.json", "valid", "like", "auc", to=None), "metric: auc of a task is None"),
    ("train", setting("out/metrics.json", "valid", "like", "rows", to=63), "rows: 63 evaluated rows, the files have"),
    ("train", setting("out/metrics.json", "valid", "like", "positives", to=20), "rows: 20 evaluated positives"),
    ("train", setting("out/metrics.json", "valid", "like", "auc", to=0.9995), "auc: random labels are predicted"),
    ("train", writing("out/metrics.jsonl", LESS), "rows: 95 trained rows, the files have 96"),
    ("train", without_a_line("out/config.yaml"), "config.yaml: reloads as another configuration"),
    ("resume", setting("paused/metrics.json", "valid", "like", "auc", to=0.4), "resume: the metrics differ"),
    ("evaluate", setting("o.json", "valid", "like", "ne", to=math.inf), "metric: ne of a task is inf"),
    ("evaluate", setting("o.json", "valid", "finish", "rows", to=0), "rows: 0 evaluated rows"),
    ("evaluate", with_rows("rows/part-00000.parquet", row=range(63)), "rows: 63 rows of predictions"),
    ("tune", with_rows("tuned/trials.parquet", trial=[0], score=[math.nan], best=[True]), "tune: 1 best trials"),
    ("tune", with_rows("tuned/trials.parquet", trial=[0], score=[0.5], best=[False]), "tune: 0 best trials"),
    ("tune", setting("tuned/trials/0000/metrics.json", "valid", "like", "rows", to=1), "rows: 1 evaluated rows"),
    ("tune", without_a_line("tuned/best.yaml"), "best.yaml: reloads as another configuration"),
    ("compare", setting(TEST, "metrics", "like", "logloss", to=math.nan), "metric: logloss of a task is nan"),
    ("compare", setting(TEST, "metrics", "like", "rows", to=65), "rows: 65 evaluated rows, the files have 64"),
    ("compare", lambda folder: (folder / "compared/report.md").unlink(), "compare: no results or no report"),
    ("convert", setting("packed/metrics.json", "valid", "like", "auc", to=0.4), "convert: the metrics differ"),
    ("convert", without_a_line("packed/config.yaml"), "config.yaml: reloads as another configuration"),
    ("convert", lambda folder: (folder / "packed/config.yaml").write_text((folder / "run/config.yaml").read_text()),
     "convert: the new run has the layout of the old one"),
    ("synthetic", setting("made/schema.json", "splits", "valid", "rows", to=65), "rows: 65 rows of the valid split"),
    ("synthetic", lambda folder: (folder / "made/valid/a.parquet").unlink(), "rows: 31 positives of the valid split"),
]  # fmt: skip
"""A command, what is wrong in the workspace, and the beginning of the problem."""


@pytest.mark.parametrize("name", CASES)
def test_right_results_are_no_problem(name: str, folder: Path) -> None:
    assert list(problems(CASES[name], OK, folder)) == []


@pytest.mark.parametrize(("name", "damage", "problem"), WRONG, ids=[f"{row[0]}: {row[2]}" for row in WRONG])
def test_wrong_results_are_noticed(name: str, damage: Damage, problem: str, folder: Path) -> None:
    damage(folder)
    assert [text for text in problems(CASES[name], OK, folder) if text.startswith(problem)]


def test_rows_that_no_line_counts_are_not_guessed() -> None:
    assert rows_trained(LINES) == pytest.approx(96)
    assert rows_trained(LINES[1:], resumed_after=1) is None
    assert rows_trained([{"step": 2, "valid/like/auc": 0.5}, LINES[2]]) is None


def test_every_bit_of_a_resumed_run_is_compared(tmp_path: Path) -> None:
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    for run in (whole, parts):
        run.mkdir()
        (run / "metrics.json").write_text("{}")
    expected = {"table 0": torch.rand(4, 4), "tower 0": torch.rand(4)}
    resumed = copy.deepcopy(expected)
    assert differences(expected, resumed, whole, parts) == []
    resumed["table 0"][0, 0] = torch.nextafter(resumed["table 0"][0, 0], torch.tensor(2.0))
    del resumed["tower 0"]
    (parts / "metrics.json").write_text("{} ")
    assert differences(expected, resumed, whole, parts) == ["table 0", "tower 0", "metrics.json"]
