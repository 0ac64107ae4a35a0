"""Which checkpoint a run resumes from, where its checkpoints lie, and what is refused before it has a folder."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from stem_torchrec.checkpoints.folder import publish
from stem_torchrec.checkpoints.resume import candidates, check_resume, checkpoints_folder
from stem_torchrec.config import CheckpointConfig, DeltaConfig, ShardingConfig, TrainConfig
from stem_torchrec.config.files import dump_config
from stem_torchrec.config.synthetic import SyntheticConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import train

from distributed import run_ranks
from logs import SCHEMA
from runs import progress_after, this_process


def test_a_run_resumes_from_its_own_checkpoints_before_those_of_resume(tmp_path: Path) -> None:
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


def test_checkpoints_lie_in_the_run_folder_or_in_the_folder_of_the_option() -> None:
    assert checkpoints_folder(CheckpointConfig(), Path("run")) == "run/checkpoints"
    assert checkpoints_folder(CheckpointConfig(folder="s3://bucket/run/"), Path("run")) == "s3://bucket/run"


def test_a_run_whose_folder_has_no_name_yet_has_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "None/checkpoints/step-000000010"
    path.mkdir(parents=True)
    publish(str(path), progress_after(10))
    check_resume(TrainConfig(resume="never"), SCHEMA, {}, models=all_options())
    with pytest.raises(UserError, match="--resume nowhere holds no checkpoint"):
        check_resume(TrainConfig(resume="nowhere"), SCHEMA, {}, models=all_options())
    with pytest.raises(UserError, match="None/checkpoints holds a run's checkpoints"):
        check_resume(TrainConfig(resume="never", output_dir="None"), SCHEMA, {}, models=all_options())


def test_a_written_configuration_starts_another_run(tmp_path: Path) -> None:
    """With this run's --resume and --checkpoint.folder it would resume this run."""
    config = TrainConfig(checkpoint=CheckpointConfig(folder="s", keep=5), resume="elsewhere", output_dir="run", seed=3)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == TrainConfig(
        model=STEMOptions(), checkpoint=CheckpointConfig(keep=5), seed=3
    )


def refusals_without_a_folder(folder: Path) -> list[str]:
    """The errors of runs that may not be as their options say, each by a dry run and a run."""
    config = tiny()
    config = replace(
        config,
        data=replace(config.data, path=str(folder / "log"), features=("user_id", "tags"), batch_size=64),
        output_dir=str(folder / "run"),
    )
    by_columns = ShardingConfig(rules=("*=column_wise:rank=0,0",))
    cut, messages = replace(config, sharding=by_columns, delta=DeltaConfig(steps=9, precision="int8")), list[str]()
    for trackers, refused in (("", cut), ("wandb", config)):
        os.environ["STEM_TRACKERS"] = trackers
        for dry_run in (True, False):
            with pytest.raises(UserError) as error:
                train(replace(refused, dry_run=dry_run), this_process())
            messages.append(str(error.value))
            assert not (folder / "run").exists(), messages
    return messages


def test_options_that_do_not_fit_are_refused_before_the_run_has_a_folder(tmp_path: Path) -> None:
    generate(SyntheticConfig(train_rows=512, valid_rows=64, test_rows=16), str(tmp_path / "log"))
    [messages] = run_ranks(1, refusals_without_a_folder, tmp_path)
    assert messages[0] == messages[1]
    assert messages[0].startswith("--delta.precision int8 has one scale for a row, but finish/")
    assert messages[0].endswith(" is cut by columns; choose fp32 or fp16, or another --sharding.type for it.")
    assert messages[2:4] == ["STEM_TRACKERS names 'wandb', but must name mlflow or torchx."] * 2
