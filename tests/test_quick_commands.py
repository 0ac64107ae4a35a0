"""A comparison, a search, a rank that stops and a sweep: the other half of a walk through all packages (make quick)."""

import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec import load_config
from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.runtime.exit_status import ExitStatus

from small_runs import run_script, start

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    generate(SyntheticConfig(train_rows=2048, valid_rows=512, test_rows=512), str(folder))
    return folder


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


def test_a_rank_that_stops_ends_the_run(tmp_path: Path) -> None:
    run = start(tmp_path / "stopped", "--train.epochs", "500", "--train.timeout", "4", ranks=2)
    run.wait_for("step 10  ")
    run.send(signal.SIGSTOP, 1)
    try:
        assert run.processes[0].wait(60) == ExitStatus.LOST_RANK
    finally:
        run.processes[1].kill()
    _, output = run.end()
    assert "error: rank 1 has stopped: for " in output
    assert output.count("error:") == 1


def test_the_sweep_measures_a_case(tmp_path: Path) -> None:
    case = ["--cases", "row_wise/split/once/T2/adagrad", "--steps", "3", "--warmup", "1"]
    run_script("benchmarks/sharding.py", "--recipe", "tiny", *case, "--out", "out", ranks=2, cwd=tmp_path)
    [row] = pq.read_table(tmp_path / "out" / "report.parquet").to_pylist()
    assert row["status"] == "ok", row["reason"]
    assert min(row["p50_ms"], row["ids_bytes"], row["embeddings_bytes"]) > 0
