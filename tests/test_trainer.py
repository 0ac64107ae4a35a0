"""A run that is taken step by step, and what callbacks see of it."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from stem_torchrec.checkpoints.folder import complete_steps
from stem_torchrec.config import CheckpointConfig, LoopConfig, TrainConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import local_shards, sharded_collections
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.recipes import RECIPES
from stem_torchrec.training.state import TrainState
from stem_torchrec.training.trainer import Trainer, train
from stem_torchrec.training.watched_metric import Metrics

from distributed import run_ranks
from recovery.train_runs import differences
from runs import this_process

ROOT = Path(__file__).parent.parent


def config_in(folder: Path) -> TrainConfig:
    """Two epochs of ten steps on two ranks, with dropout, which draws random numbers in each step."""
    tiny = RECIPES["tiny"]()
    return replace(
        tiny,
        data=replace(tiny.data, path=str(folder.parent / "data")),
        model=replace(tiny.model, dropout=0.1),
        train=LoopConfig(epochs=2, eval_every=8, log_every=4),
        checkpoint=CheckpointConfig(minutes=None, steps=20),
        output_dir=str(folder),
    )


def all_at_once(folder: Path) -> None:
    train(config_in(folder), this_process())


def step_by_step(folder: Path) -> tuple[list[int], list[bool]]:
    """Evaluates and saves where `run` would not; returns the steps, and whether the pipeline was empty, at each."""
    trainer = Trainer(config_in(folder), this_process())
    steps, empty = [], []
    for stop in (3, 6, 13):
        while trainer.state.step < stop:
            trainer.train_step()
        steps.append(trainer.state.step)
        empty.append(trainer.loop.pipeline_is_empty)
        trainer._validate()
        trainer.save()
        if trainer.state.evaluate:
            trainer.evaluate()
    trainer.run()
    return steps, empty


def in_two_parts(folder: Path) -> None:
    """Six steps by hand, saved; then another Trainer resumes."""
    trainer = Trainer(config_in(folder), this_process())
    while trainer.state.step < 6:
        trainer.train_step()
    trainer.save()
    trainer.close()
    train(config_in(folder), this_process())


def three_ways(folder: Path) -> tuple[list[int], list[bool]]:
    all_at_once(folder / "whole")
    in_two_parts(folder / "parts")
    return step_by_step(folder / "stepped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    rows = replace(RECIPES["tiny"]().data.synthetic, train_rows=5120, valid_rows=512, test_rows=1)
    generate(rows, str(folder / "data"))
    return folder


@pytest.fixture(scope="module")
def stepped(folder: Path) -> list[tuple[list[int], list[bool]]]:
    """Makes the same run in three ways; of each rank what `step_by_step` returns."""
    return run_ranks(2, three_ways, folder)


def test_evaluating_and_saving_between_any_two_steps_changes_no_bit_of_the_run(
    folder: Path, stepped: list[tuple[list[int], list[bool]]]
) -> None:
    for steps, empty in stepped:
        assert steps == [3, 6, 13]
        assert empty == [False, False, False]  # Batches that were read ahead waited meanwhile.
    # By hand the evaluation at step 8 is left out, so the logs differ.
    parts = [line for line in differences(folder / "stepped", folder / "whole") if line.startswith("checkpoints")]
    assert parts == []


def test_a_run_resumes_from_a_checkpoint_that_was_saved_by_hand_with_the_same_bits(
    folder: Path, stepped: list[tuple[list[int], list[bool]]]
) -> None:
    assert differences(folder / "parts", folder / "whole") == []


def edit_after_resuming(folder: Path) -> list[float]:
    """Saves after two steps; another Trainer resumes, edits a row and saves; returns the row that a third one has."""
    config = config_in(folder)
    rows = []
    for part in range(3):
        trainer = Trainer(config, this_process())
        while trainer.state.step < 2:
            trainer.train_step()
        [(_, collection)] = sharded_collections(trainer.model)
        row = next(shard.weight[7] for shard in local_shards(collection) if shard.table == "like/user_id")
        rows.append(row.tolist())
        if part == 1:
            row.detach().fill_(0.5)
        trainer.save()
        trainer.close()
    return rows[-1]


def test_an_edit_between_resuming_and_the_first_step_is_saved(folder: Path) -> None:
    assert run_ranks(1, edit_after_resuming, folder / "edited") == [[0.5] * 8]


class Recorder(Callback):
    every = 6

    def __init__(self) -> None:
        self.calls: list[str] = []

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        assert isinstance(output.losses, Tensor)
        assert output.logits.shape == (len(output.batch.labels), 2)
        self.calls.append(f"step {loop.state.step}")
        return loop.state.step == 2

    def on_pause(self, loop: TrainLoop) -> None:
        assert loop.pipeline_is_empty
        self.calls.append(f"pause {loop.state.step}")

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        self.calls.append(f"evaluation {loop.state.step} of {', '.join(metrics)}")
        loop.state.stopped = loop.state.step >= 8


def hooks_of(folder: Path) -> tuple[list[str], str]:
    config = config_in(folder)
    recorder = Recorder()
    trainer = Trainer(replace(config, train=replace(config.train, eval_every=8)), this_process(), callbacks=[recorder])
    trainer.run()
    short = replace(config, output_dir=f"{folder}-short", train=LoopConfig(max_steps=1))
    trainer = Trainer(short, this_process())
    trainer.train_step()
    with pytest.raises(UserError) as error:
        trainer.train_step()
    trainer.close()
    return recorder.calls, str(error.value)


def test_callbacks_are_called_after_steps_on_pauses_and_after_evaluations_and_can_pause_and_stop(folder: Path) -> None:
    for calls, error in run_ranks(2, hooks_of, folder / "hooks"):
        steps = [call for call in calls if call.startswith("step")]
        assert steps == [f"step {step}" for step in range(1, 9)]
        # Step 2 asked for a pause, so the two batches that were read ahead come first; 6 is due by `every`.
        assert [call for call in calls if not call.startswith("step")] == [
            "pause 4",
            "pause 6",
            "evaluation 8 of finish, like",
        ]
        assert "all 1 steps of the run are made" in error


def stopped_early(folder: Path) -> tuple[list[int], int]:
    """A run that learns nothing is killed when it has stopped; returns its checkpoints, and the step where it ends."""
    config = config_in(folder)
    config = replace(
        config,
        sparse=replace(config.sparse, learning_rate=0.0),
        dense=replace(config.dense, learning_rate=0.0),
        train=LoopConfig(eval_every=4, patience=1),
        checkpoint=CheckpointConfig(),
    )
    trainer = Trainer(config, this_process())
    trainer.loop.run()
    trainer.close()
    checkpoints = complete_steps(str(folder / "checkpoints"))
    trainer = Trainer(config, this_process())
    trainer.run()
    return checkpoints, trainer.state.step


def test_early_stopping_keeps_the_last_state_and_a_run_that_is_killed_then_makes_no_more_steps(folder: Path) -> None:
    assert run_ranks(1, stopped_early, folder / "early") == [([8, 4], 8)]


def test_a_state_comes_back_from_its_dictionary() -> None:
    state, other = TrainState(step=120, epoch=1, epoch_end=200, evaluate=True), TrainState()
    other.load_state_dict(state.state_dict())
    assert other == state
    assert state.left == 80


def test_a_step_fits_on_a_screen_and_no_method_of_training_is_longer_than_40_lines() -> None:
    lengths = {}
    for file in sorted((ROOT / "stem_torchrec" / "training").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                start = body[0].lineno if body else node.lineno
                lengths[f"{file.stem}.{node.name}"] = (node.end_lineno or start) - start + 1
    assert lengths["loop.train_step"] <= 15
    assert lengths["trainer.train_step"] <= 15
    assert {name: length for name, length in lengths.items() if length > 40} == {}
