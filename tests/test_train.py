"""Whole runs as a user starts them: python, torchrun and torchx, on real processes."""

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
from stem_torchrec.config.files import load_config
from stem_torchrec.train import main

ROOT = Path(__file__).parent.parent
TINY = ["--recipe", "tiny", "--train.epochs", "2"]


def run(*command: str | Path, cwd: Path = ROOT, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command of the environment that runs the tests, from the repository's root."""
    bin_ = Path(sys.executable).parent
    # Without OMP_NUM_THREADS, as a user's shell has it; MASTER_ADDR and the like must not leak in from elsewhere.
    env = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY")}
    env["PATH"] = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, text=True, capture_output=True, timeout=300
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic log with missing labels, as datasets/synthetic.py writes it."""
    folder = tmp_path_factory.mktemp("log") / "log"
    sizes = ["--train-rows", "4096", "--valid-rows", "1003", "--test-rows", "517", "--missing", "0.1", "0.2"]
    run("python", "datasets/synthetic.py", "--out", folder, *sizes)
    return folder


@pytest.fixture(scope="module")
def finished(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "two-ranks"
    line = ["torchrun", "--nproc-per-node", "2", "stem_torchrec/train.py", *TINY]
    result = run(*line, "--data.path", log, "--output-dir", folder, "--train.eval-every", "3")
    assert "gAUC" in result.stdout.splitlines()[-4]
    return folder


def test_the_run_folder_holds_what_the_readme_says(finished: Path, log: Path) -> None:
    assert load_config(str(finished / "config.yaml")).data.path == str(log)
    plan = json.loads((finished / "plan.json").read_text())
    assert plan["world_size"] == 2
    assert len(plan["tables"]) == 3 * 5
    steps = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in steps if "valid/like/auc" in line]
    assert evaluated == [3, 6, 9, 12, 15, 16]
    best = max(
        (line for line in steps if "valid/like/auc" in line), key=lambda s: s["valid/like/auc"] + s["valid/finish/auc"]
    )
    final = json.loads((finished / "metrics.json").read_text())
    assert final["step"] == best["step"]
    assert final["valid"]["like"]["auc"] == best["valid/like/auc"]
    assert list((finished / "tensorboard").iterdir())


@pytest.mark.parametrize("launch", [["python"], ["torchrun", "--nproc-per-node", "3", "--"]])
def test_the_saved_run_evaluates_to_the_same_numbers_on_any_number_of_ranks(
    finished: Path, tmp_path: Path, launch: list[str]
) -> None:
    run(*launch, "stem_torchrec/evaluate.py", "--run", finished, "--json", tmp_path / "metrics.json")
    again = json.loads((tmp_path / "metrics.json").read_text())["valid"]
    for task, metrics in json.loads((finished / "metrics.json").read_text())["valid"].items():
        # Another number of ranks sums pooled embeddings in another order, so logits differ in the last bit.
        assert again[task] == pytest.approx(metrics, rel=1e-5)


def test_predictions_are_the_rows_of_the_split_and_give_the_same_auc(finished: Path, log: Path, tmp_path: Path) -> None:
    line = [
        "torchrun",
        "--nproc-per-node",
        "2",
        "--",
        "stem_torchrec/evaluate.py",
        "--run",
        finished,
        "--split",
        "test",
    ]
    run(*line, "--json", tmp_path / "metrics.json", "--predictions", tmp_path / "predictions")
    rows = pq.read_table(tmp_path / "predictions").to_pydict()
    split = pq.read_table(log / "test").to_pydict()
    assert rows["row"] == list(range(517))
    assert rows["group_user_id"] == split["group_user_id"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())["test"]
    for task in ("finish", "like"):
        assert rows[f"label/{task}"] == split[task]
        known = [
            (y, p) for y, p in zip(rows[f"label/{task}"], rows[f"prediction/{task}"], strict=True) if y is not None
        ]
        assert metrics[task]["rows"] == len(known) < 517
        assert metrics[task]["auc"] == pytest.approx(roc_auc_score(*zip(*known, strict=True)), abs=1e-9)


def test_a_written_configuration_runs_again_with_the_same_result(finished: Path, tmp_path: Path) -> None:
    line = ["torchrun", "--nproc-per-node", "2", "stem_torchrec/train.py", "--config", finished / "config.yaml"]
    run(*line, "--output-dir", tmp_path / "again")
    assert (tmp_path / "again" / "metrics.json").read_text() == (finished / "metrics.json").read_text()


def test_a_run_folder_is_not_overwritten(
    finished: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {file: (finished / file).read_text() for file in ("config.yaml", "metrics.json", "metrics.jsonl")}
    line = ["train.py", *TINY, "--data.path", str(log), "--output-dir", str(finished)]
    for options, sentence in (
        (["--seed", "3"], "holds a run of other options; give another --output-dir."),
        (["--resume", "never"], "holds a run already; give another --output-dir, or --resume auto to go on."),
    ):
        monkeypatch.setattr(sys, "argv", [*line, *options])
        with pytest.raises(SystemExit, match=r"^2$"):
            main()
        assert sentence in capfd.readouterr().err
    assert {file: (finished / file).read_text() for file in before} == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.path", "nowhere"], "holds no schema.json"),
        (["--resume", "nowhere"], "--resume nowhere holds no checkpoint; give one, as RUN/checkpoints/step-000000100"),
        (["--sparse.name", "adam"], "FBGEMM does not fuse adam on CPU; choose sgd, adagrad or rowwise_adagrad"),
        (["--sparse.name", "adam", "--sharding.kernel", "dense"], "labels are missing in this log"),
        (["--train.log-every", "0"], "--train.log-every is 0, but must be at least 1"),
        (["--seed", "-1"], "--seed is -1, but must be from 0"),
        (["--data.labels", "finish", "lik"], "the log has no label 'lik', only finish, like; did you mean 'like'?"),
        (
            ["--sparse.group-learning-rates", "finish", "0.1", "like", "-0.1"],
            "--sparse.group-learning-rates is -0.1, but must be from 0 to 1e+06",
        ),
        (["--sharding.hbm-gb", "-1"], "--sharding.hbm-gb is -1.0, but must be from 0.001 to 1e+06"),
        (["--model.dropout", "2"], "--model.dropout is 2.0, but must be from 0 to 0.999"),
        (["--output-dir", "/proc/nowhere/run"], "the run folder /proc/nowhere/run cannot be written"),
        (["--train.metric", "acc"], "--train.metric is 'acc'"),
    ],
)
def test_what_cannot_run_says_so_before_it_writes_anything(
    log: Path,
    tmp_path: Path,
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # In this process, which has imported torch already; the test below starts one of its own.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--data.path", str(log), *options])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capfd.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_recipe_for_a_log_of_your_own_asks_for_it(tmp_path: Path) -> None:
    line = ["python", ROOT / "stem_torchrec/train.py", "--recipe", "tiktok"]
    error = run(*line, cwd=tmp_path, status=2).stderr
    assert "give --data.path DIR" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


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


def test_the_installed_command_trains_outside_of_the_repository(tmp_path: Path) -> None:
    run("stem-train", "--recipe", "tiny", "--train.max-steps", "2", "--output-dir", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert [folder.name[:9] for folder in (tmp_path / "data").iterdir() if folder.is_dir()] == ["synthetic"]


def test_torchx_starts_the_script_on_all_ranks(log: Path, tmp_path: Path) -> None:
    # The README's line has no --rdzv_port; here another job may hold the default one.
    line = [
        "torchx",
        "run",
        "dist.ddp",
        "-j",
        "2x8",
        "--rdzv_port",
        str(get_free_port()),
        "stem_torchrec/train.py",
        *TINY,
    ]
    run(*line, "--data.path", log, "--train.max-steps", "1", "--output-dir", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["world_size"] == 16


def test_a_rank_without_rows_trains_and_evaluates(tmp_path: Path) -> None:
    """One training row and three of validation, which are those of two ranks."""
    rows = ["--data.synthetic.train-rows", "1", "--data.synthetic.valid-rows", "3", "--data.synthetic.test-rows", "1"]
    line = ["torchrun", "--nproc-per-node", "2", ROOT / "stem_torchrec/train.py", *TINY, *rows]
    run(*line, "--train.metric", "logloss", "--output-dir", tmp_path / "run", cwd=tmp_path)
    [*_, last] = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert (last["step"], last["valid/like/rows"]) == (2, 3)
    assert last["valid/like/logloss"] > 0
