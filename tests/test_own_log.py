"""A log of one's own trains with the recipe `log`, unless another recipe or options are given."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stem_torchrec.config import SyntheticConfig, TrainConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.training.configuration import config_from_command_line, load_config
from stem_torchrec.training.trainer import Trainer, train

from distributed import run_ranks
from runs import this_process
from small_runs import run_script

SMALL = ("--model.expert-hidden", "8", "--model.num-shared-experts", "1", "--model.embedding-dim", "4")
"""Sizes with which a step takes no time."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "log"
    generate(SyntheticConfig(train_rows=9000, valid_rows=600, test_rows=100), str(folder))
    return folder


def test_a_log_without_a_recipe_trains_with_the_recipe_log_and_says_so_in_a_line(log: Path, tmp_path: Path) -> None:
    options = (*SMALL, "--data.path", log, "--train.max-steps", "3", "--output-dir", tmp_path / "run")
    output = run_script("stem_torchrec/train.py", *options, ranks=2)
    assert re.findall("^settings.*$", output, re.MULTILINE) == [
        "settings: recipe log (the default with --data.path): batches of 128 for 9,000 rows on 2 ranks, an evaluation "
        "after each epoch of 36 steps, tables begin anew with each epoch, stops after 2 without a gain"
    ]
    trained = load_config(str(tmp_path / "run" / "config.yaml"))
    assert (trained.recipe, trained.data.batch_size, trained.train.eval_every) == ("log", 128, None)
    assert trained.sparse.eps == 0.1 / 256


def test_options_and_other_recipes_come_before_what_rows_decide(log: Path) -> None:
    assert config_from_command_line(["--data.path", str(log)]).recipe == "log"
    assert config_from_command_line([f"--data.path={log}", "--recipe", "tiny"]).recipe == "tiny"
    assert config_from_command_line([]).recipe == "synthetic"
    config = config_from_command_line(["--data.path", str(log), "--data.batch-size", "100", "--train.patience", "9"])
    assert (config.data.batch_size, config.train.patience) == (100, 9)


def test_a_recipe_for_other_labels_names_the_option_and_the_labels_of_the_log(log: Path, tmp_path: Path) -> None:
    line = ("--recipe", "kuairand_pure", "--data.path", log)
    output = run_script("stem_torchrec/train.py", *line, status=2, cwd=tmp_path)
    assert output == (
        "error: the log has no label 'long_view', only finish, like; give --data.labels finish like. [STEM-LOG]\n"
    )
    near = run_script("stem_torchrec/train.py", *line, "--data.labels", "lik", status=2, cwd=tmp_path)
    assert near == (
        "error: the log has no label 'lik', only finish, like; did you mean 'like'? Give --data.labels finish like. "
        "[STEM-LOG]\n"
    )


def _options(log: Path, folder: Path, *options: str) -> TrainConfig:
    line = ["--data.path", str(log), "--output-dir", str(folder), "--checkpoint.minutes", "None", *SMALL, *options]
    return config_from_command_line(line)


def _interrupted(config: TrainConfig) -> None:
    trainer = Trainer(config, this_process())
    for _ in range(3):
        trainer.train_step()
    trainer.save()
    trainer.close()


def _resumed(config: TrainConfig) -> tuple[int, int | None, int]:
    """Batch size, steps between evaluations and the step at which the run resumes."""
    trainer = Trainer(config, this_process())
    trainer.close()
    return trainer.config.data.batch_size, trainer.config.train.eval_every, trainer.state.step


def test_a_run_that_resumes_takes_what_it_had_and_on_other_ranks_as_many_rows_in_a_step(
    log: Path, tmp_path: Path
) -> None:
    run_ranks(2, _interrupted, _options(log, tmp_path / "run", "--data.batch-size", "50", "--train.eval-every", "7"))
    again = _options(log, tmp_path / "run", "--train.eval-every", "0")
    assert run_ranks(2, _resumed, again) == [(50, 7, 3)] * 2
    assert run_ranks(1, _resumed, again) == [(100, 7, 3)]
    # A run in another folder that starts from its checkpoint.
    other = replace(again, output_dir=str(tmp_path / "other"), resume=str(tmp_path / "run" / "checkpoints"))
    assert run_ranks(2, _resumed, other) == [(50, 7, 3)] * 2


def _trained(config: TrainConfig) -> int:
    return next(iter(train(config, this_process()).values())).rows


def test_a_run_that_has_ended_is_known_by_its_folder_whatever_its_rows_decided(log: Path, tmp_path: Path) -> None:
    short = ("--train.max-steps", "2", "--data.batch-size", "50")
    run_ranks(1, _trained, _options(log, tmp_path / "run", *short))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run_ranks(1, _trained, _options(log, tmp_path / "run", "--train.max-steps", "2"))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.long
def test_a_comparison_takes_the_recipe_log_for_all_models_and_is_continued_by_the_same_command(
    log: Path, tmp_path: Path
) -> None:
    options = ("--data.path", log, *SMALL, "--train.max-steps", "2", "--seeds", "0", "--resamples", "5")
    command = ("stem_torchrec/compare.py", *options, "--models", "stem,single_task", "--out", tmp_path / "out")
    assert run_script(*command).count("settings: recipe log (the default with --data.path): batches of 256 for") == 1
    assert "2 of 2 runs are done already" in run_script(*command)
    configs = [load_config(str(each)) for each in (tmp_path / "out" / "runs").rglob("config.yaml")]
    assert {(each.model.arch, each.data.batch_size) for each in configs} == {("stem", 256), ("single_task", 256)}
