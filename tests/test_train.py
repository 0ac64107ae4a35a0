"""Whole runs as a user starts them, by train.py and evaluate.py, and the files that they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from torch.distributed.elastic.utils.distributed import get_free_port

from stem_torchrec import evaluate
from stem_torchrec.config import dump_config
from stem_torchrec.train import main
from stem_torchrec.training.configuration import config_from_command_line, load_config

from small_runs import ROOT, run_script

TINY = ["--recipe", "tiny", "--train.epochs", "2"]
TRAIN = "stem_torchrec/train.py"
EARLIER_CHART = "events.out.tfevents.1"


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Runs a command of the environment that runs the tests."""
    # Without OMP_NUM_THREADS, as a user's shell has it; MASTER_ADDR and the like must not leak in from elsewhere.
    kept = ("HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name in kept}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = [str(word) for word in command]
    result = subprocess.run(line, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic log with missing labels, as datasets/synthetic.py writes it."""
    folder = tmp_path_factory.mktemp("log") / "log"
    sizes = ["--train-rows", "4096", "--valid-rows", "1003", "--test-rows", "517", "--missing", "0.1", "0.2"]
    run_script("datasets/synthetic.py", "--out", folder, *sizes)
    return folder


@pytest.fixture(scope="module")
def finished(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks, in which an earlier attempt without a checkpoint left a chart."""
    folder = tmp_path_factory.mktemp("runs") / "two-ranks"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / EARLIER_CHART).touch()
    options = [*TINY, "--data.path", str(log), "--train.eval-every", "3"]
    (folder / "config.yaml").write_text(dump_config(config_from_command_line(options)))
    output = run_script(TRAIN, *options, "--output-dir", folder, ranks=2)
    assert "gAUC" in output.splitlines()[-4]
    return folder


def test_a_run_folder_has_the_configuration_the_plan_and_the_best_evaluation(finished: Path, log: Path) -> None:
    assert load_config(str(finished / "config.yaml")).data.path == str(log)
    plan = json.loads((finished / "plan.json").read_text())
    assert plan["world_size"] == 2
    assert len(plan["tables"]) == 3 * 5
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "valid/like/auc" in line]
    assert [line["step"] for line in evaluations] == [3, 6, 9, 12, 15, 16]
    best = max(evaluations, key=lambda line: line["valid/like/auc"] + line["valid/finish/auc"])
    final = json.loads((finished / "metrics.json").read_text())
    assert final["step"] == best["step"]
    assert final["valid"]["like"]["auc"] == best["valid/like/auc"]
    charts = [path.name for path in (finished / "tensorboard").iterdir()]
    assert charts
    assert EARLIER_CHART not in charts


def test_another_number_of_ranks_evaluates_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    run_script("stem_torchrec/evaluate.py", "--run", finished, "--json", tmp_path / "metrics.json", ranks=3)
    again = json.loads((tmp_path / "metrics.json").read_text())["valid"]
    for task, metrics in json.loads((finished / "metrics.json").read_text())["valid"].items():
        # Another number of ranks sums pooled embeddings in another order, so logits differ in the last bit.
        assert again[task] == pytest.approx(metrics, rel=1e-5)


def test_predictions_are_the_rows_of_the_split_and_give_the_same_auc(finished: Path, log: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "metrics.json", "--predictions", tmp_path / "predictions"]
    run_script("stem_torchrec/evaluate.py", "--run", finished, "--split", "test", *files, ranks=2)
    rows = pq.read_table(tmp_path / "predictions").to_pydict()
    split = pq.read_table(log / "test").to_pydict()
    assert rows["row"] == list(range(517))
    assert rows["group_user_id"] == split["group_user_id"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())["test"]
    for task in ("finish", "like"):
        labels, predictions = rows[f"label/{task}"], rows[f"prediction/{task}"]
        assert labels == split[task]
        known = [(y, p) for y, p in zip(labels, predictions, strict=True) if y is not None]
        assert metrics[task]["rows"] == len(known) < 517
        assert metrics[task]["auc"] == pytest.approx(roc_auc_score(*zip(*known, strict=True)), abs=1e-9)


def test_predictions_of_two_evaluations_are_not_mixed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate.py", "--run", str(finished), "--split", "test", "--predictions", str(tmp_path / "p")]
    monkeypatch.setattr(sys, "argv", line)
    evaluate.main()
    before = [(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "p").iterdir()]
    with pytest.raises(SystemExit, match=r"^2$"):
        evaluate.main()
    assert "holds predictions already" in capfd.readouterr().err
    assert [(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "p").iterdir()] == before


def test_a_written_configuration_trains_again_to_the_same_result(finished: Path, tmp_path: Path) -> None:
    run_script(TRAIN, "--config", finished / "config.yaml", "--output-dir", tmp_path / "again", ranks=2)
    assert (tmp_path / "again" / "metrics.json").read_text() == (finished / "metrics.json").read_text()


def test_a_finished_run_is_not_overwritten(
    finished: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {file: (finished / file).read_text() for file in ("config.yaml", "metrics.json", "metrics.jsonl")}
    line = ["train.py", *TINY, "--data.path", str(log), "--output-dir", str(finished)]
    for options, fix in (
        (["--seed", "3"], "give another --output-dir"),
        (["--resume", "never"], "give another --output-dir, or --resume auto"),
    ):
        monkeypatch.setattr(sys, "argv", [*line, *options])
        with pytest.raises(SystemExit, match=r"^2$"):
            main()
        error = capfd.readouterr().err
        assert f"{finished} holds a run" in error or f"{finished} is of another run" in error
        assert fix in error
    assert {file: (finished / file).read_text() for file in before} == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.path", "nowhere"], "holds no schema.json"),
        (["--resume", "nowhere"], "--resume nowhere holds no checkpoint; give one, as RUN/checkpoints/step-000000100"),
        (["--sparse.name", "adam"], "FBGEMM does not fuse adam on CPU; choose sgd, adagrad or rowwise_adagrad"),
        (["--sparse.name", "adam", "--sharding.kernel", "dense"], "labels are missing in this log"),
        (["--seed", "-1"], "--seed is -1, but must be from 0"),
        (["--data.labels", "finish", "lik"], "the log has no label 'lik', only finish, like; did you mean 'like'?"),
        (["--output-dir", "/proc/nowhere/run"], "--output-dir /proc/nowhere/run is in a folder of the system"),
        (["--train.metric", "acc"], "--train.metric is 'acc'"),
    ],
)
def test_a_run_that_cannot_start_fails_in_one_sentence_and_writes_nothing(
    log: Path,
    tmp_path: Path,
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--data.path", str(log), *options])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capfd.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_recipe_for_a_log_of_your_own_names_the_missing_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--recipe", "tiktok"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capfd.readouterr().err
    assert "give --data.path DIR" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_installed_command_trains_outside_of_the_repository(tmp_path: Path) -> None:
    run("stem-train", "--recipe", "tiny", "--train.max-steps", "2", "--output-dir", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert [folder.name[:9] for folder in (tmp_path / "data").iterdir() if folder.is_dir()] == ["synthetic"]


@pytest.mark.parametrize("hosts", ["2x1", pytest.param("2x8", marks=pytest.mark.long)])
def test_torchx_starts_the_script_on_all_ranks(log: Path, tmp_path: Path, hosts: str) -> None:
    # The README's line has no --rdzv_port; another job on this machine may hold the default one.
    launch = ["torchx", "run", "dist.ddp", "-j", hosts, "--rdzv_port", str(get_free_port()), TRAIN, *TINY]
    run(*launch, "--data.path", log, "--train.max-steps", "1", "--output-dir", tmp_path / "run")
    nodes, ranks = map(int, hosts.split("x"))
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["world_size"] == nodes * ranks


def test_a_rank_without_rows_trains_and_evaluates(tmp_path: Path) -> None:
    """Two ranks share one training row and three validation rows."""
    rows = ["--data.synthetic.train-rows", "1", "--data.synthetic.valid-rows", "3", "--data.synthetic.test-rows", "1"]
    run_script(TRAIN, *TINY, *rows, "--train.metric", "logloss", "--output-dir", "run", ranks=2, cwd=tmp_path)
    [*_, last] = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert (last["step"], last["valid/like/rows"]) == (2, 3)
    assert last["valid/like/logloss"] > 0
