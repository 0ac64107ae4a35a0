"""A walk through all packages in a minute and a half, which fails where one of them is broken (make quick).

Other tests state the same facts and more, each of one package.
"""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec import add_tasks, load_config, load_schema, warm_start
from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.data.synthetic import generate
from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.errors import HANG_STATUS

from recovery.train_runs import differences
from small_runs import run_script, start

pytestmark = pytest.mark.quick
ONCE = ["--sharding.input-dist", "once"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs, which share a synthetic log in it."""
    return tmp_path_factory.mktemp("quick")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted, profiled run of two ranks."""
    statuses, output = start(folder / "whole", *ONCE, "--train.profile", ranks=2).end()
    assert statuses == [0, 0], output
    return folder / "whole"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    generate(SyntheticConfig(train_rows=2048, valid_rows=512, test_rows=512), str(folder))
    return folder


def test_a_killed_run_resumes_and_ends_with_the_bits_of_an_uninterrupted_and_profiled_one(
    folder: Path, whole: Path
) -> None:
    run = folder / "killed"
    part = start(run, *ONCE, ranks=2)
    part.wait_for("step 25  ")
    part.send(signal.SIGKILL)
    part.end()
    assert list((run / "checkpoints").glob("step-*"))
    statuses, output = start(run, *ONCE, ranks=2).end()
    assert statuses == [0, 0], output
    assert "resuming after step" in output
    assert differences(run, whole) == []
    assert "dense backward" in (whole / "profile" / "summary.txt").read_text()


def test_a_run_converts_to_the_packed_layout_and_predicts_the_same(whole: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    run_script("stem_torchrec/convert.py", "--run", whole, "--layout", "packed", "--out", packed)
    predictions = []
    for run in (whole, packed):
        files = ["--json", tmp_path / f"{run.name}.json", "--predictions", tmp_path / run.name / "predictions"]
        run_script("stem_torchrec/evaluate.py", "--run", run, *files, cwd=whole.parent)
        predictions.append(pq.read_table(tmp_path / run.name / "predictions"))
        evaluated = json.loads((tmp_path / f"{run.name}.json").read_text())["valid"]
        for task, metrics in json.loads((whole / "metrics.json").read_text())["valid"].items():
            # One rank sums pooled embeddings in another order than two.
            assert evaluated[task] == pytest.approx(metrics, rel=1e-5)
    assert predictions[0].equals(predictions[1])


def test_a_trained_model_takes_a_task_and_a_table(whole: Path) -> None:
    columns, config = Columns.select(load_schema(str(whole))), load_config(str(whole / "config.yaml"))
    model = build_model(config.model, replace(columns, labels=(*columns.labels, "share")), table_device="cpu")
    assert add_tasks(model, str(whole), tables_from="shared") == ("share",)
    feature = next(iter(columns.sparse))
    tables = {
        name.split(".")[-2]: weight for name, weight in model.named_parameters() if name.endswith(f"/{feature}.weight")
    }
    assert torch.equal(tables[f"share/{feature}"], tables[f"shared/{feature}"])
    warm_start(model, str(whole / "best"), {f"share/{feature}": f"like/{feature}"})
    assert torch.equal(tables[f"share/{feature}"], tables[f"like/{feature}"])
    assert not torch.equal(tables[f"share/{feature}"], tables[f"shared/{feature}"])


def test_two_models_compare(log: Path, tmp_path: Path) -> None:
    models = ["--models", "stem,single_task", "--seeds", "0", "--resamples", "10"]
    run_script("stem_torchrec/compare.py", "--recipe", "tiny", "--data.path", log, *models, "--out", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["model"] for row in rows} == {"stem", "single_task"}
    assert all(0 < row["auc"] < 1 for row in rows)
    assert "## Results" in (tmp_path / "out" / "report.md").read_text()


def test_a_search_finds_a_setting(log: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("sparse.learning_rate: {low: 1e-2, high: 1e-1, log: true}\n")
    line = ["--recipe", "tiny", "--data.path", log, "--space", tmp_path / "space.yaml", "--trials", "2"]
    run_script("stem_torchrec/tune.py", *line, "--out", tmp_path / "study")
    rows = pq.read_table(tmp_path / "study" / "trials.parquet").to_pylist()
    assert len(rows) == 2
    [best] = [row for row in rows if row["best"]]
    config = load_config(str(tmp_path / "study" / "best.yaml"))
    assert config.sparse.learning_rate == best["sparse.learning_rate"]


def test_a_rank_that_stops_ends_the_run(folder: Path) -> None:
    run = start(folder / "stopped", "--train.epochs", "500", "--train.timeout", "4", ranks=2)
    run.wait_for("step 10  ")
    run.send(signal.SIGSTOP, 1)
    try:
        assert run.processes[0].wait(60) == HANG_STATUS
    finally:
        run.processes[1].kill()
    _, output = run.end()
    assert "error: rank 1 " in output


def test_the_sweep_measures_a_case(tmp_path: Path) -> None:
    case = ["--cases", "row_wise/split/once/T2/adagrad", "--steps", "3", "--warmup", "1"]
    run_script("benchmarks/sharding.py", "--recipe", "tiny", *case, "--out", "out", ranks=2, cwd=tmp_path)
    [row] = pq.read_table(tmp_path / "out" / "report.parquet").to_pylist()
    assert row["status"] == "ok", row["reason"]
    assert min(row["p50_ms"], row["ids_bytes"], row["embeddings_bytes"]) > 0
