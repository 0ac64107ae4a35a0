"""Each task keeps the weights of its own best evaluation: on disk, through a resume, in evaluations and in a bundle."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stem_torchrec.config import CheckpointConfig, LoopConfig, TrainConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.run_report.projector import write_projector
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.write_report import page_of
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.training.best_by_task import note_of_mean, read_by_task, weights_of_step
from stem_torchrec.training.recipes import RECIPES
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import Trainer, train
from stem_torchrec.training.watched_metric import WatchedMetric
from stem_torchrec.transfer.convert_layout import ConvertConfig, convert_run
from stem_torchrec.transfer.weight_source import open_source

from distributed import run_ranks
from recovery.train_runs import differences, tensors_of
from runs import this_process

TASKS = ("finish", "like")
SCORES = {4: (0.6, 0.6), 8: (0.7, 0.5), 12: (0.65, 0.55), 16: (0.6, 0.7), 20: (0.5, 0.5), 24: (0.4, 0.4)}
"""AUC of both tasks by step, as an evaluation is told to find them: the first is best at 8, the second at 16."""


def config_in(folder: Path, **options: Any) -> TrainConfig:
    tiny = RECIPES["tiny"]()
    return replace(
        tiny,
        data=replace(tiny.data, path=str(folder.parent / "data")),
        train=LoopConfig(epochs=3, eval_every=4, best_by_task=True, **options),
        checkpoint=CheckpointConfig(minutes=None, steps=10),
        output_dir=str(folder),
    )


class Scripted(Trainer):
    """A run whose evaluations find SCORES."""

    def _validate(self) -> Any:
        metrics = super()._validate()
        values = zip(TASKS, SCORES[self.state.step], strict=True)
        return {task: replace(metrics[task], auc=auc) for task, auc in values}


def train_scripted(folder: Path, stop: int | None = None) -> dict[str, float]:
    """Trains to the end, or to a step after which the run is left as if it were killed; returns the best AUCs."""
    trainer = Scripted(config_in(folder, patience=2), this_process())
    if stop is None:
        return {task: metrics.auc for task, metrics in trainer.run().items()}
    while trainer.state.step < stop:
        trainer.train_step()
        if trainer.state.evaluate:
            trainer.evaluate()
        if trainer.state.step == 10:
            trainer.save()
    trainer.close()
    return {}


def evaluated(folder: Path) -> tuple[Any, Any, Any]:
    """The metrics of the validation split from all weights, those of the run in the other layout, and from those of
    each task's step alone.
    """
    process, stored = this_process(), read_by_task(folder)
    assert stored is not None
    both = evaluate_run(EvaluateConfig(run=str(folder), predictions=str(folder.parent / "predictions")), process)
    convert_run(ConvertConfig(run=str(folder), out=str(folder.parent / "packed")), process)
    packed = evaluate_run(EvaluateConfig(run=str(folder.parent / "packed")), process)
    (folder / "best_by_task").rename(folder / "aside")
    (folder / "best").rename(folder / "best_of_mean")
    alone = {}
    for task, step in stored.steps.items():
        (folder / "best").symlink_to(folder / "aside" / f"step-{step:09d}")
        alone[task] = evaluate_run(EvaluateConfig(run=str(folder)), process)[task]
        (folder / "best").unlink()
    (folder / "aside").rename(folder / "best_by_task")
    (folder / "best_of_mean").rename(folder / "best")
    return both, packed, alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by_task")
    generate(RECIPES["tiny"]().data.synthetic, str(folder / "data"))
    assert run_ranks(1, train_scripted, folder / "run") == [{"finish": 0.7, "like": 0.7}]
    return folder


def test_each_task_keeps_its_own_step_and_the_run_ends_when_no_task_gets_better(folder: Path) -> None:
    run = folder / "run"
    stored = read_by_task(run, TASKS)
    assert stored is not None
    assert stored.steps == {"finish": 8, "like": 16}
    assert {task: values["auc"] for task, values in stored.valid.items()} == {"finish": 0.7, "like": 0.7}
    assert {path.name for path in (run / "best_by_task").iterdir()} == {
        "step-000000008",
        "step-000000016",
        "tasks.json",
    }
    # Like has waited twice at step 24; finish, which waited twice at 16, did not end the run.
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 24
    assert json.loads((run / "metrics.json").read_text())["step"] == 16  # Of the mean.


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_that_resumes_keeps_the_same_bits_for_each_task(folder: Path, ranks: int) -> None:
    own, other = folder / f"resumed_{ranks}", folder / "run"
    if ranks > 1:
        other = folder / "whole"
        run_ranks(ranks, train_scripted, other)
    run_ranks(ranks, train_scripted, own, 14)
    run_ranks(ranks, train_scripted, own)
    assert differences(own, other) == []
    assert read_by_task(own) == read_by_task(other)
    for step in (8, 16):
        weights, expected = (tensors_of(Path(str(weights_of_step(run, step)))) for run in (own, other))
        assert weights.keys() == expected.keys()
        assert all(weights[name].equal(expected[name]) for name in weights)


def test_an_evaluation_predicts_each_task_from_its_own_weights_also_of_a_converted_run(folder: Path) -> None:
    [(both, packed, alone)] = run_ranks(1, evaluated, folder / "run")
    assert both == alone
    assert packed == alone
    assert read_by_task(folder / "packed") == read_by_task(folder / "run")


def started(run: Path) -> str:
    """What a dry run prints that starts from the best weights of a run."""
    with redirect_stdout(io.StringIO()) as output:
        train(replace(config_in(run.parent / "next"), start_from=f"{run}:best", dry_run=True), this_process())
    return output.getvalue()


def test_what_reads_the_weights_of_the_mean_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, note = folder / "run", "are predicted from weights of their own, in best_by_task/; "
    assert f"{note}this run starts from those of the best mean, in best/" in run_ranks(1, started, run)[0]
    open_source(run)
    assert f"{note}read are those of the best mean, in best/" in capsys.readouterr().out
    page = page_of([RunRecord.read(run, "run")]).parts
    assert any(f"{note}the best step and metrics here are those of the best mean" in str(part) for part in page)
    assert f"{note}the projector has those of the best mean" in write_projector(
        RunRecord.read(run, "run"), ["like/item_id"], rows=3
    )
    assert note_of_mean(tmp_path, "read are") is None


@pytest.mark.long
def test_a_bundle_predicts_each_task_from_its_own_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (folder / "predictions").exists():
        run_ranks(1, evaluated, folder / "run")
    table = pq.read_table(folder / "predictions").sort_by("row")
    export_run(ExportConfig(run=str(folder / "run"), out=str(folder / "bundle")))
    bundle = load_bundle(folder / "bundle")
    assert "2 models, as the tasks have weights of their own (finish; like)" in capsys.readouterr().out
    rows = pq.read_table(folder / "data" / "valid")
    scores = bundle.score(rows)
    assert bundle.manifest.run["steps"] == {"finish": 8, "like": 16}
    for task in TASKS:
        predicted = table.column(f"prediction/{task}").to_numpy()
        # fp32: FBGEMM and torch add up a bag in another order.
        np.testing.assert_allclose(scores.column(task).to_numpy(), predicted, atol=1e-6)


def test_the_metric_of_one_task_does_not_go_with_weights_of_each() -> None:
    with pytest.raises(UserError, match=r"--train.metric is 'auc/like', which judges by one task, but --train\.best"):
        WatchedMetric("auc/like", TASKS).by_task()


def test_tasks_json_that_was_changed_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "best_by_task" / "tasks.json"
    file.parent.mkdir()
    for text in ("{", '{"format": 1, "steps": {"like": 3}, "valid": {}}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"tasks\.json is damaged .* counts as the best of each task"):
            read_by_task(tmp_path)
    file.write_text('{"format": 9}')
    with pytest.raises(UserError, match="format 9"):
        read_by_task(tmp_path)
