"""The search for a setting: trials that go on, side by side, and what they leave."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.data import synthetic
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.recipes import tiny
from stem_torchrec.tune import main

SPACE_FILE = """\
sparse.learning_rate: {low: 1e-2, high: 1e-1, log: true}
model.num_shared_experts: {low: 1, high: 2}
model.gate_input: [sum, task]
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    synthetic.ensure(tiny().data.synthetic, str(folder))
    return folder


def line(log: Path, out: Path, trials: int, *, space: str = SPACE_FILE, steps: str = "8") -> list[str]:
    file = out.with_name("space.yaml")
    file.write_text(space)
    run = ["--recipe", "tiny", "--data.path", str(log), "--train.max-steps", steps]
    return [*run, "--trials", str(trials), "--space", str(file), "--out", str(out)]


def script(*args: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, str(Path(__file__).parent.parent / "stem_torchrec" / "tune.py"), *args]
    return subprocess.run(
        command, text=True, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", *args])
    main()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command says on standard error, ending with status 2."""
    with pytest.raises(SystemExit, match=r"^2$"):
        run(monkeypatch, *args)
    return capsys.readouterr().err


def test_a_study_goes_on_and_leaves_the_best_setting(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    run(monkeypatch, *line(log, out, 2), "--train.eval-every", "3")
    # How often it speaks, and how long it waits, change no result.
    run(monkeypatch, *line(log, out, 3), "--train.eval-every", "3", "--train.log-every", "1", "--train.timeout", "60")
    said = capsys.readouterr().out.splitlines()
    assert [text.split(":")[0] for text in said] == ["trial 0, 1 of 2", "trial 1, 2 of 2", "trial 2, 3 of 3"]
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == 3
    (best,) = (row for row in rows if row["best"])
    assert best["score"] == max(row["score"] for row in rows)
    assert f"(best {best['score']:.5f} of trial {best['trial']})" in said[-1]
    config = load_config(str(out / "best.yaml"))
    assert config.sparse.learning_rate == best["sparse.learning_rate"]
    assert config.model.num_shared_experts == best["model.num_shared_experts"]
    assert config.train.eval_every == 3
    assert [folder.name for folder in (out / "trials").iterdir()] == [f"{best['trial']:04d}"]


def test_ranks_share_the_trials(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    done = script(*line(log, out, 4), "--keep-runs", ranks=2)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    # A rank may have begun another while the fourth ended.
    assert 4 <= sum(row["state"] in ("COMPLETE", "PRUNED") for row in rows) <= 5
    assert len(list((out / "trials").iterdir())) == len(rows)


def test_a_search_chooses_lists_for_longer_than_its_random_trials(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    # The first ten are random.
    run(monkeypatch, *line(log, out, 12, space="model.expert_hidden: [[4], [8, 4]]", steps="1"))
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert {row["model.expert_hidden"] for row in rows} <= {"[4]", "[8, 4]"}
    (best,) = (row for row in rows if row["best"])
    assert list(load_config(str(out / "best.yaml")).model.expert_hidden) == json.loads(best["model.expert_hidden"])
    said = capsys.readouterr().out.splitlines()
    assert [text.partition(")  ")[2] for text in said] == [
        f"model.expert_hidden={row['model.expert_hidden']}" for row in rows
    ]


def test_trials_that_diverge_are_pruned_and_leave_no_connections_open(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    diverging = line(log, out, 8, space="sparse.learning_rate: [1e6]")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A trial needs some 20 files and sockets, of which one that ends early once left 8 open.
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        with pytest.raises(SystemExit, match=r"^2$"):
            run(
                monkeypatch,
                *diverging,
                "--train.eval-every",
                "8",
                "--sparse.name",
                "sgd",
                "--model.embedding-l2",
                "1e6",
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    said, error = capsys.readouterr()
    assert said.splitlines() == [
        f"trial {i}, {i + 1} of 8: pruned  (none finished)  sparse.learning_rate=1e+06" for i in range(8)
    ]
    assert error.startswith(f"error: no trial in {out} has finished: all were pruned, and trials/*/log.txt say why;")
    assert "the trial ends: the loss at step" in (out / "trials/0007/log.txt").read_text()


def test_a_trial_that_cannot_be_trained_ends_the_search_in_one_sentence(log: Path, tmp_path: Path) -> None:
    done = script(*line(log, tmp_path / "study", 2), "--model.task-weights", "1", "2", "3")
    assert done.returncode == 2
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: --model.task-weights")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--train.metric", "acu"], "error: --train.metric is 'acu', but must be auc, "),
        (["--data.labels", "finsh"], "error: the log has no label 'finsh', only "),
        (["--data.features", "uidd"], "error: the log has no sparse feature 'uidd', only "),
        (["--data.path", "nowhere"], "nowhere holds no schema.json"),
        (["--resume", "never"], "error: --checkpoint.folder and --resume would be one for all trials"),
        (["--checkpoint.folder", "there"], "error: --checkpoint.folder and --resume would be one for all trials"),
    ],
)
def test_a_typo_does_not_take_the_folder(
    args: list[str], sentence: str, log: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "study"
    assert sentence in refusal(monkeypatch, capsys, *line(log, out, 1), *args)
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    said = refusal(monkeypatch, capsys, *line(log, tmp_path / "file", 1))
    assert said.startswith(f"error: {tmp_path / 'file'} cannot be written (")


def test_trials_evaluate_four_times_an_epoch_and_write_no_checkpoints(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    # An epoch has 31 steps, so that the last evaluation comes after 31 instead of 32.
    run(monkeypatch, *line(log, out, 1, steps="100"), "--data.batch-size", "265", "--checkpoint.steps", "8")
    lines = [json.loads(text) for text in (out / "trials/0000/metrics.jsonl").read_text().splitlines()]
    assert [values["step"] for values in lines if "valid/finish/auc" in values] == [8, 16, 24, 31]
    best = load_config(str(out / "best.yaml"))
    assert best.train.eval_every == 8
    assert not (out / "trials/0000/checkpoints").exists()
    # Who trains the best setting is interrupted as others are.
    assert best.checkpoint.steps == 8


def test_another_search_does_not_go_into_the_folder(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    run(monkeypatch, *line(log, out, 1))
    said = refusal(monkeypatch, capsys, *line(log, out, 1), "--model.arch", "mmoe")
    assert "holds a search of other options or another space; give another --out." in said
