"""Files of a run carry a format version: older ones load for ever, newer ones are refused in one sentence."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.planner import Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from stem_torchrec.checkpoints.folder import (
    PROGRESS_FILE,
    Progress,
    checkpoint_path,
    complete_steps,
    publish,
    read_progress,
)
from stem_torchrec.checkpoints.resume import check_resume
from stem_torchrec.config import TrainConfig, dump_config, what_is_trained
from stem_torchrec.config.files import CONFIG_FORMAT
from stem_torchrec.config.formats import FormatError
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.plan_file import read_plan
from stem_torchrec.starting.source import open_source
from stem_torchrec.training.configuration import config_from_command_line, load_config
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run
from stem_torchrec.training.run_folder import METRICS_FORMAT, read_metrics
from stem_torchrec.training.run_start import finished
from stem_torchrec.training.trainer import train

from distributed import run_ranks
from runs import this_process

STORED = Path(__file__).parent / "data"
RUNS = ("run_before_formats", "run_format_1")
STEPS = {"run_before_formats": 6, "run_format_1": 4}
"""The step of each stored checkpoint: at the end of an epoch of 6 steps, and within it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the stored folders, as runs write to theirs."""
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    return tmp_path


def evaluate_and_resume(folder: Path, name: str) -> dict[str, Any]:
    """The metrics of a stored run's best weights, and what it has after it was resumed to its end."""
    process, run, log = this_process(), str(folder / name), str(folder / "log")
    evaluated = evaluate_run(EvaluateConfig(run=run, data=EvaluationData(path=log)), process)
    config = load_config(f"{run}/config.yaml")
    best = train(replace(config, data=replace(config.data, path=log), output_dir=run), process)
    return {"evaluated": asdict_all(evaluated), "best": asdict_all(best)}


def asdict_all(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {task: asdict(each) for task, each in metrics.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_evaluates_to_its_metrics_and_resumes_from_its_checkpoint(name: str, folder: Path) -> None:
    stored = json.loads((folder / name / "metrics.json").read_text())["valid"]
    ((outcome),) = run_ranks(1, functools.partial(evaluate_and_resume, folder, name))
    for task, metrics in stored.items():
        # Other processors round matrix products differently.
        assert outcome["evaluated"][task]["logloss"] == pytest.approx(metrics["logloss"], abs=1e-5)
        assert outcome["evaluated"][task]["auc"] == pytest.approx(metrics["auc"], abs=0.02)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "valid/like/auc" in line]
    assert min(steps) > STEPS[name]
    assert max(steps) == 18
    assert complete_steps(str(folder / name / "checkpoints")) == [18]
    ended = json.loads((folder / name / "metrics.json").read_text())
    assert ended["format"] == METRICS_FORMAT
    assert ended["finished"]
    assert set(ended["rows"]) == {"train", "valid"}
    assert load_config(str(folder / name / "config.yaml")).seed == 3


@pytest.mark.parametrize("name", RUNS)
def test_the_files_of_a_stored_run_are_read(name: str) -> None:
    config = load_config(str(STORED / name / "config.yaml"))
    assert config.data.features == ("item_id", "tags")
    assert config.model.expert_hidden == (4,)
    schema = load_schema(str(STORED / name))
    assert {feature.name: feature.num_embeddings for feature in schema.sparse_features}["item_id"] == 8
    progress = read_progress(checkpoint_path(str(STORED / name / "checkpoints"), STEPS[name]), all_options())
    assert progress.step == STEPS[name]
    assert progress.config["data"]["features"] == ["item_id", "tags"]
    assert set(read_metrics(STORED / name).valid) == {"finish", "like"}
    assert set(placements(STORED / name / "plan.json")) == set(TABLES)


TABLES = {
    f"{group}/{feature}": rows
    for group in ("finish", "like", "shared")
    for feature, rows in {"item_id": 8, "tags": 6}.items()
}


def placements(path: Path) -> dict[str, Any]:
    tables = [EmbeddingBagConfig(num_embeddings=rows, embedding_dim=4, name=name) for name, rows in TABLES.items()]
    return dict(read_plan(str(path), tables, Topology(world_size=1, compute_device="cpu", local_world_size=1)))


def finished_run(folder: Path) -> object:
    return finished(TrainConfig(output_dir=str(folder)), "", Process(0, 1, 1, torch.device("cpu")))


def resumed_run(folder: Path) -> None:
    config = load_config(str(folder / "config.yaml"))
    check_resume(replace(config, output_dir=str(folder)), load_schema(str(folder)), {}, models=all_options())


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("config.yaml", lambda folder: load_config(str(folder / "config.yaml"))),
        ("schema.json", lambda folder: load_schema(str(folder))),
        ("plan.json", lambda folder: placements(folder / "plan.json")),
        ("metrics.json", finished_run),
        ("metrics.json", read_metrics),
        ("checkpoints/step-000000004/progress.json", resumed_run),
    ],
)
@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("9", "has the format 9, but this stem_torchrec reads formats up to {newest}; install a newer stem_torchrec"),
        ("true", "has the format True, but must have a whole number from 1 to {newest}"),
        ("0", "has the format 0, but must have a whole number from 1 to {newest}"),
    ],
)
def test_a_file_of_a_newer_format_is_one_sentence(
    file: str, read: Callable[[Path], object], version: str, problem: str, folder: Path
) -> None:
    path = folder / "run_format_1" / file
    text = path.read_text()
    for old in ("format: 1\n", '"format": 1,'):
        text = text.replace(old, old.replace("1", version))
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read(folder / "run_format_1")
    newest = METRICS_FORMAT if file == "metrics.json" else 1
    assert f"{path} {problem.format(newest=newest)}" in str(error.value)
    assert str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)


def test_the_checkpoints_of_another_run_are_taken_for_the_same_options_only(folder: Path) -> None:
    run = folder / "run_format_1"
    checkpoints = str(run / "checkpoints")
    config, schema, rows = load_config(str(run / "config.yaml")), load_schema(str(run)), {"train": {}}
    moved = replace(config, output_dir=str(folder / "new"), checkpoint=replace(config.checkpoint, folder=checkpoints))
    check_resume(moved, schema, rows, models=all_options())
    other = replace(moved, dense=replace(moved.dense, learning_rate=0.5))
    with pytest.raises(UserError) as error:
        check_resume(other, schema, rows, models=all_options())
    assert str(error.value) == (
        f"{checkpoint_path(checkpoints, STEPS['run_format_1'])} holds a run of other options, which this one would "
        f"replace: dense.learning_rate was {config.dense.learning_rate} and is 0.5; give another --checkpoint.folder, "
        "or the same options."
    )
    # The run itself may go on with another learning rate.
    own = read_progress(checkpoint_path(checkpoints, STEPS["run_format_1"]), all_options()).config["output_dir"]
    check_resume(replace(other, output_dir=own), schema, rows, models=all_options())


def test_a_written_configuration_has_a_format_and_a_configuration_has_none() -> None:
    assert dump_config(TrainConfig()).startswith(f"format: {CONFIG_FORMAT}\n")
    with pytest.raises(UserError, match="unknown option '--format'"):
        config_from_command_line(["--format", "1"])


def test_runs_before_and_since_formats_are_told_to_be_the_same() -> None:
    before, since = (load_config(str(STORED / name / "config.yaml")) for name in RUNS)
    assert what_is_trained(before) == what_is_trained(since)


def test_a_checkpoint_of_a_program_without_some_fields_has_their_defaults(tmp_path: Path) -> None:
    """Then a run whose options are the defaults resumes from it."""
    config = {"model": {"embedding_dim": 4}, "seed": 3}
    schema = {"sparse_features": [], "labels": ["like"]}
    publish(
        str(tmp_path),
        Progress(
            step=1,
            epoch=0,
            left=[],
            evaluate=False,
            best=None,
            waited=0,
            world_size=1,
            config=config,
            schema=schema,
            row_groups="",
        ),
    )
    progress = read_progress(str(tmp_path), all_options())
    assert progress.config["model"]["layout"] == TrainConfig().model.layout
    assert progress.config["model"]["embedding_dim"] == 4
    assert progress.schema["dense_features"] == []


def as_written_by_another_version(run: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The checkpoint of the stored run with another progress.json, whose checksum is right."""
    path = run / "checkpoints/step-000000004"
    content = json.loads((path / PROGRESS_FILE).read_text())
    del content["sha256"]
    change(content)
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode() + (path / ".metadata").read_bytes())
    (path / PROGRESS_FILE).write_text(json.dumps({**content, "sha256": checksum.hexdigest()}))
    return path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda saved: saved["config"]["model"].update(newer=1), "there is no field 'model.newer'"),
        (lambda saved: saved["config"]["model"].update(categories={}), "model.categories is an option of home, not of"),
        (lambda saved: saved["config"]["model"].update(arch="newer"), "model.arch is 'newer', but must be one of "),
        (lambda saved: saved["config"]["train"].update(newer=1), "there is no field 'train.newer'"),
        (lambda saved: saved["schema"].update(newer=1), "there is no field 'newer'"),
        (lambda saved: saved.update(newer=1), "Progress.__init__() got an unexpected keyword argument 'newer'"),
    ],
)
def test_a_checkpoint_with_an_option_that_this_version_does_not_know_is_refused_and_loses_none(
    change: Callable[[dict[str, Any]], object], problem: str, folder: Path
) -> None:
    run = folder / "run_format_1"
    path = as_written_by_another_version(run, change)
    config, schema = load_config(str(run / "config.yaml")), load_schema(str(run))
    fix = "; if a newer stem_torchrec wrote the checkpoint, install that version, else give another checkpoint."
    for read in (
        lambda: check_resume(replace(config, output_dir=str(run)), schema, {}, models=all_options()),
        lambda: check_resume(replace(config, resume=str(path)), schema, {}, models=all_options()),
        lambda: config_from_command_line(["--start-from", str(path)]),
        lambda: open_source(replace(config, start_from=str(path))),
    ):
        with pytest.raises(FormatError) as error:
            read()
        assert str(error.value).startswith(f"{path}/{PROGRESS_FILE}: {problem}")
        assert str(error.value).endswith(fix)
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_before_formats_may_have_the_options_of_other_models_and_no_unknown_ones(folder: Path) -> None:
    def before_formats(saved: dict[str, Any]) -> None:
        del saved["format"]
        saved["config"]["model"]["categories"] = {}

    path = as_written_by_another_version(folder / "run_format_1", before_formats)
    model = read_progress(str(path), all_options()).config["model"]
    assert model == to_dict(load_config(str(folder / "run_format_1/config.yaml")).model)
    as_written_by_another_version(folder / "run_format_1", lambda saved: saved["config"]["model"].update(newer=1))
    with pytest.raises(FormatError, match=r"there is no field 'model\.newer'"):
        read_progress(str(path), all_options())


def test_a_log_is_written_with_a_format_and_read_back_equal(tmp_path: Path) -> None:
    schema = load_schema(str(STORED / "log"))
    save_schema(schema, str(tmp_path))
    assert next(iter(json.loads((tmp_path / "schema.json").read_text()).items())) == ("format", 1)
    assert load_schema(str(tmp_path)) == schema
