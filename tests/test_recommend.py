"""The line of `--recommend`: what validation chooses, what the test rows confirm, and what is told of either."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.costs import Cost
from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.options import read_command_line
from stem_torchrec.comparison.recommend import recommendation, validation_score
from stem_torchrec.comparison.runs import TEST_FILE
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.comparison.variants import forms_by_task, variant
from stem_torchrec.metrics.task_metrics import TaskMetrics
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.training.best_by_task import StoredByTask, write_by_task
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_folder import BEST_BY_TASK, METRICS_FILE, StoredMetrics, write_metrics

TASKS = ("a", "b")
NUMBERS = {"better": (0.02, 0.001), "worse": (-0.02, 0.001), "within noise": (0.01, 0.5)}


def metrics_of(a: float, b: float) -> dict[str, dict[str, float | int | None]]:
    """An evaluation with these AUCs."""
    others: dict[str, float | int | None] = {each.name: None for each in fields(TaskMetrics) if each.default is MISSING}
    return {task: {**others, "auc": auc} for task, auc in zip(TASKS, (a, b), strict=True)}


def compared(folder: Path, base: str, aucs: Mapping[str, tuple[float, float]]) -> Comparison:
    """Runs with these AUCs at the evaluation of the best mean; a task of a form by task has another .05 at its own."""
    line = ["--recipe", "tiny", "--models", ",".join(aucs), "--base", base, "--seeds", "0", "--recommend"]
    request = read_command_line([*line, "--out", str(folder)])
    for run in request.runs:
        run.folder.mkdir(parents=True)
        write_metrics(run.folder / METRICS_FILE, StoredMetrics(2, metrics_of(*aucs[run.model])))
        results = {"parts": ["."], "metrics": {}, "gates": {}, "samples_per_second": 1.0}
        write_json(run.folder / TEST_FILE, results)
        if run.model.endswith("by_task"):
            a, b = aucs[run.model]
            (run.folder / BEST_BY_TASK).mkdir()
            write_by_task(run.folder, StoredByTask({"a": 1, "b": 3}, metrics_of(a + 0.05, b + 0.05)))
    return Comparison(request.config, request.train, request.runs, None, variants=request.variants)


def family_of(differences: Mapping[tuple[str, str], Sequence[str]]) -> dict[tuple[str, str, str, str], Interval]:
    """Differences in AUC with these verdicts, by model and the one that it is compared with."""
    family = {}
    for (model, over), verdicts in differences.items():
        for task, verdict in zip(TASKS, verdicts, strict=True):
            value, p = NUMBERS[verdict]
            family[task, "AUC", model, over] = Interval(value, value - 0.005, value + 0.005, p, p, 0.05)
    return family


COSTS = {
    "single_task": Cost(1000, 100, 0, kept=1.0, parts=2, speeds=[1e5]),
    "duet": Cost(2000, 200, 0, kept=1.0, parts=1, speeds=[5e4]),
    "duet_by_task": Cost(2000, 200, 0, kept=1.5, parts=1, speeds=[5e4]),
    "stem": Cost(2000, 100, 0, kept=1.0, parts=1, speeds=[5e4]),
}


def test_a_run_with_the_weights_of_each_task_is_judged_by_its_best_mean(tmp_path: Path) -> None:
    comparison = compared(tmp_path, "duet", {"duet": (0.6, 0.7), "duet_by_task": (0.6, 0.7)})
    assert {run.model: validation_score(run, "auc") for run in comparison.runs} == {
        "duet": pytest.approx(0.65), "duet_by_task": pytest.approx(0.65)
    }  # fmt: skip
    # A form by task without the other form gains nothing by its own evaluations either.
    alone = compared(tmp_path / "alone", "stem", {"stem": (0.66, 0.68), "duet_by_task": (0.64, 0.66)})
    line = recommendation(alone, family_of({("duet_by_task", "stem"): ("better", "better")}), COSTS)
    assert line.startswith("Take stem: no other model validates better (auc 0.6700, then duet_by_task 0.6500).")


@pytest.mark.parametrize(
    ("over_duet", "taken"),
    [
        (("better", "within noise"), "duet_by_task"),
        (("within noise", "within noise"), "duet"),
        (("better", "worse"), "duet"),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_form_with_the_weights_of_each_task_is_taken_only_where_the_test_rows_confirm_it(
    tmp_path: Path, over_duet: Sequence[str], taken: str, reverse: bool
) -> None:
    # As of the same training, the form by task has the same best mean or, as it trains on, a higher one.
    aucs = {"single_task": (0.6, 0.6), "duet": (0.7, 0.7), "duet_by_task": (0.71, 0.71)}
    family = family_of({(model, "single_task"): ("better", "better") for model in ("duet", "duet_by_task")})
    forms = family_of({("duet_by_task", "duet"): over_duet})
    # A first model of --models stands in front, whichever form it is.
    forms = {(t, m, o, n): each.reversed for (t, m, n, o), each in forms.items()} if reverse else forms
    line = recommendation(compared(tmp_path, "single_task", aucs), {**family, **forms}, COSTS)
    assert line.startswith(f"Take {taken}, which validates best (auc 0.7000, single_task 0.6000): AUC over single_task")
    assert f"AUC over duet {NUMBERS[over_duet[0]][0]:+.4f} [" in line
    assert ("duet_by_task, the form with the weights of each task, is better in some task" in line) == (taken != "duet")
    assert "\n" not in line


def test_the_form_with_the_weights_of_each_task_of_the_base_is_one_that_may_be_taken(tmp_path: Path) -> None:
    comparison = compared(tmp_path, "duet", {"duet": (0.7, 0.7), "duet_by_task": (0.7, 0.7)})
    for verdict, taken in (("better", "duet_by_task"), ("within noise", "duet")):
        family = family_of({("duet_by_task", "duet"): (verdict, "within noise")})
        assert recommendation(comparison, family, COSTS).startswith(f"Take {taken}")


def test_the_line_tells_what_the_next_model_gains_and_costs_where_the_base_validates_best(tmp_path: Path) -> None:
    comparison = compared(tmp_path, "single_task", {"single_task": (0.7, 0.7), "stem": (0.6, 0.6), "duet": (0.5, 0.6)})
    family = family_of({(model, "single_task"): ("better", "within noise") for model in ("stem", "duet")})
    line = recommendation(comparison, family, COSTS)
    assert line.startswith(
        "Take single_task: no other model validates better (auc 0.7000, then stem 0.6000). stem: AUC"
    )
    assert "+0.0200 [+0.0150, +0.0250] in a (better), +0.0100 [+0.0050, +0.0150] in b (within noise)." in line
    assert "(1.91 times those of single_task)" in line
    assert "20.0 s to train on a million samples (2.00 times)" in line


def test_the_line_tells_by_how_many_models_a_row_is_scored(tmp_path: Path) -> None:
    aucs = {"single_task": (0.6, 0.6), "duet_by_task": (0.7, 0.7)}
    family = family_of({("duet_by_task", "single_task"): ("better", "better")})
    line = recommendation(compared(tmp_path, "single_task", aucs), family, COSTS)
    assert "scores a row with 1.5 models of all tasks (single_task: one model of each task)" in line


def test_two_models_are_forms_of_one_if_they_differ_in_the_weights_that_are_kept_alone() -> None:
    of_file = {
        "wide": variant("wide", {"model.arch": "duet", "model.embedding_dim": 32}),
        "deep": variant("deep", {"model.arch": "stem", "model.num_layers": 2}),
        "deep_by_task": variant("deep_by_task", {"train.best_by_task": True, "model.num_layers": 2}),
        "alone": variant("alone", {"model.arch": "duet", "alone": True}),
    }
    forms = forms_by_task({**built_in(), **of_file}, tiny())
    assert forms == {"stem": "stem_by_task", "duet": "duet_by_task", "deep": "deep_by_task"}
