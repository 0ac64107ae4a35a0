"""What a run folder says: which checkpoint a run goes on from, and the lines of its log."""

import json
from pathlib import Path

import pytest

from stem_torchrec.checkpoints.folder import publish
from stem_torchrec.checkpoints.resume import candidates, check_resume, checkpoints_folder
from stem_torchrec.config import CheckpointConfig, TrainConfig
from stem_torchrec.config.files import dump_config
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.metrics_log import METRICS_LOG, MetricsLog

from distributed import run_ranks
from logs import SCHEMA
from runs import progress_after


def test_a_run_prefers_its_own_checkpoints_to_those_it_may_start_from(tmp_path: Path) -> None:
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    for path in (elsewhere / "step-000000010", elsewhere / "step-000000020"):
        path.mkdir(parents=True)
        publish(str(path), progress_after(10))
    assert candidates("auto", str(own)) == []
    assert candidates("never", str(elsewhere)) == []
    assert candidates(str(elsewhere), str(own)) == [
        str(elsewhere / name) for name in ("step-000000020", "step-000000010")
    ]
    assert candidates(str(elsewhere / "step-000000010"), str(own)) == [str(elsewhere / "step-000000010")]
    with pytest.raises(UserError, match="holds no checkpoint"):
        candidates(str(own), str(own))
    (own / "step-000000005").mkdir(parents=True)
    publish(str(own / "step-000000005"), progress_after(5))
    assert candidates(str(elsewhere / "step-000000010"), str(own)) == [
        str(own / "step-000000005"),
        str(elsewhere / "step-000000010"),
    ]
    assert candidates(str(own), str(own)) == [str(own / "step-000000005")]


def test_checkpoints_lie_in_the_run_folder_or_where_the_run_wants_them() -> None:
    assert checkpoints_folder(CheckpointConfig(), Path("run")) == "run/checkpoints"
    assert checkpoints_folder(CheckpointConfig(folder="s3://bucket/run/"), Path("run")) == "s3://bucket/run"


def test_a_run_whose_folder_has_no_name_yet_has_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "None/checkpoints/step-000000010"
    path.mkdir(parents=True)
    publish(str(path), progress_after(10))
    check_resume(TrainConfig(resume="never"), SCHEMA)
    with pytest.raises(UserError, match="--resume nowhere holds no checkpoint"):
        check_resume(TrainConfig(resume="nowhere"), SCHEMA)
    with pytest.raises(UserError, match="None/checkpoints holds a run's checkpoints"):
        check_resume(TrainConfig(resume="never", output_dir="None"), SCHEMA)


def log_twice(folder: Path) -> list[list[tuple[int, bool]]]:
    """Step and whether it is an evaluation of each line, after each start of a run."""
    found = []
    for after, evaluate in ((0, False), (20, True), (20, False)):
        log = MetricsLog(folder, after=after, evaluate=evaluate)
        lines = map(json.loads, (folder / METRICS_LOG).read_text().splitlines())
        found.append([(line["step"], "valid/a/auc" in line) for line in lines])
        for step, values in ((20, {"train/a": 1.0}), (20, {"valid/a/auc": 0.5}), (30, {"train/a": 1.0}))[after // 20 :]:
            log.write(step, values)
        log.close()
    return found


def test_lines_of_steps_to_come_go_and_no_evaluation_is_logged_twice(tmp_path: Path) -> None:
    ((first, evaluated, after),) = run_ranks(1, log_twice, tmp_path)
    assert first == []
    assert evaluated == [(20, False)]
    assert after == [(20, False), (20, True)]


def test_a_written_configuration_starts_another_run(tmp_path: Path) -> None:
    """One that named this run's checkpoints would go on with it."""
    config = TrainConfig(checkpoint=CheckpointConfig(folder="s", keep=5), resume="elsewhere", output_dir="run", seed=3)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == TrainConfig(
        model=STEMOptions(), checkpoint=CheckpointConfig(keep=5), seed=3
    )


def test_a_run_from_its_beginning_keeps_no_charts_of_an_earlier_attempt(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_text("")
    MetricsLog(tmp_path).close()
    assert not (tmp_path / "tensorboard" / "events.out.tfevents.1").exists()
