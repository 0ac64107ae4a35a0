"""Comparisons of models on tasks whose labels are numbers or levels: measures against loops, refusals, a small one."""

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stem_torchrec import compare
from stem_torchrec.comparison.intervals import (
    Floats,
    Interval,
    Ints,
    LabelUsers,
    UserCounts,
    auc_of,
    different_labels,
    gauc_of,
)
from stem_torchrec.comparison.options import Request, read_command_line
from stem_torchrec.comparison.recommend import deciding
from stem_torchrec.comparison.resolved import resolve_log
from stem_torchrec.comparison.several_logs import requests_by_log
from stem_torchrec.comparison.task_scores import TaskScores, resample_together
from stem_torchrec.comparison.value_measures import mae_of, ordered_auc_of, ordered_gauc_of, rmse_of
from stem_torchrec.data.schema import Label, Schema, save_schema
from stem_torchrec.runtime.errors import UserError

from gains.sources import Source, comparisons_on
from logs import write_split
from mixed_logs import LABELS, SCHEMA, TASKS, mixed_table

Rows = tuple[Floats, Floats, Ints]
"""Scores, labels and users."""


def some_rows(rows: int, *, levels: int | None = None, users: int = 25, seed: int = 0) -> Rows:
    """Scores and labels with ties, of users of whom some have one row or one label; levels have no other ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, levels, rows).astype(float) if levels else (random.normal(size=rows) * 4).round() / 4
    scores = labels + random.normal(size=rows) * 2
    user = np.unique(np.minimum(random.geometric(0.1, rows), users), return_inverse=True)[1]
    return scores if levels else (scores * 2).round() / 2, labels, user


def share_by_loops(scores: Floats, labels: Floats, amounts: Floats) -> float:
    """The share of pairs with different labels in the right order; NaN without a pair."""
    right = pairs = 0.0
    for i, j in itertools.permutations(range(len(scores)), 2):
        if labels[i] < labels[j]:
            pairs += amounts[i] * amounts[j]
            right += amounts[i] * amounts[j] * (1 if scores[i] < scores[j] else 0.5 if scores[i] == scores[j] else 0)
    return right / pairs if pairs else math.nan


def by_loops(scores: Floats, labels: Floats, user: Ints, weights: Floats, draws: Ints) -> dict[Callable, float]:
    """The equations, in which a row counts as often as its user is drawn."""
    amounts = draws[user] * weights
    shares = {u: share_by_loops(*(each[user == u] for each in (scores, labels, weights))) for u in set(user.tolist())}
    of_users = {u: (draws[u] * weights[user == u].sum(), share) for u, share in shares.items() if share == share}
    assert 3 < len(of_users) < len(shares)
    rows = list(zip(amounts, scores, labels, strict=True))
    return {
        ordered_auc_of: share_by_loops(scores, labels, amounts),
        ordered_gauc_of: sum(a * s for a, s in of_users.values()) / sum(a for a, _ in of_users.values()),
        rmse_of: math.sqrt(sum(a * (s - y) ** 2 for a, s, y in rows) / sum(amounts)),
        mae_of: sum(a * abs(s - y) for a, s, y in rows) / sum(amounts),
    }


@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_measures_are_their_equations_under_any_draw_of_users(levels: int | None, weighted: bool) -> None:
    scores, labels, user = some_rows(120, levels=levels)
    random = np.random.default_rng(1)
    weights = random.random(len(user)) + 0.1 if weighted else None
    measures = {of: of(scores, labels, user, weights) for of in (ordered_auc_of, ordered_gauc_of, rmse_of, mae_of)}
    # Users beyond the last one, as on other logs, have no rows.
    for draws in random.integers(0, 3, (3, user.max() + 3)):
        expected = by_loops(scores, labels, user, np.ones(len(user)) if weights is None else weights, draws)
        assert {of: measure(draws) for of, measure in measures.items()} == pytest.approx(expected, rel=1e-12)


def test_labels_0_and_1_have_the_measures_and_users_of_a_binary_task() -> None:
    scores, numbers, user = some_rows(2000, users=90)
    random = np.random.default_rng(2)
    positive, draws = numbers > 0.5, random.integers(0, 3, user.max() + 1)
    for weights in (None, random.random(2000)):
        for own, other in ((ordered_auc_of, auc_of), (ordered_gauc_of, gauc_of)):
            value = own(scores, positive.astype(float), user, weights)(draws)
            assert value == pytest.approx(other(scores, positive, user, weights)(draws), rel=1e-12)
    counts, users = UserCounts.count(positive, user), LabelUsers.count(positive, user)
    assert users == LabelUsers(min(counts.positives, counts.negatives), counts.both)
    assert 0 < users.mixed < users.others < user.max() + 1


def test_without_a_pair_of_different_labels_there_is_no_auc() -> None:
    scores, labels, user = np.array([0.1, 0.7, 0.3]), np.array([2.0, 2.0, 5.0]), np.array([0, 1, 1])
    for weights in (None, np.array([0.1, 0.2, 0.3])):
        auc, gauc = (of(scores, labels, user, weights) for of in (ordered_auc_of, ordered_gauc_of))
        assert auc(np.array([1, 2])) < 1
        assert (auc(np.array([0, 1])), gauc(np.array([3, 1]))) == (0, 0)  # 0.7 of label 2 is above 0.3 of label 5.
        assert math.isnan(auc(np.array([4, 0])))
        assert math.isnan(gauc(np.array([4, 0])))
    nothing, nobody = np.empty(0), np.empty(0, dtype=int)
    for of in (ordered_auc_of, ordered_gauc_of, rmse_of, mae_of):
        assert math.isnan(of(nothing, nothing, nobody)(nobody))
    assert LabelUsers.count(nothing, nobody) == LabelUsers(0, 0)


def test_users_who_tell_labels_apart_have_another_label_than_most() -> None:
    user = np.array([0, 0, 1, 2, 2, 4, 4, 5])
    labels = np.array([7.0, 7.0, 7.0, 7.0, 3.0, 9.0, 9.0, 3.0])
    # All but users 0 and 1 have another label than 7; user 2 has two.
    assert LabelUsers.count(labels, user) == LabelUsers(others=3, mixed=1)
    owner, label = different_labels(labels, user)
    assert list(zip(owner.tolist(), label.tolist(), strict=True)) == [(0, 1), (1, 1), (2, 0), (2, 1), (4, 2), (5, 0)]


def test_a_task_of_which_few_users_tell_labels_apart_has_no_interval_and_less_error_is_better() -> None:
    scores, labels, user = some_rows(600, users=60)
    of_models = {"a": [scores], "b": [labels]}
    drawn = TaskScores(labels, user, None, of_models, binary=False).resample("RMSE", draws=60, confidence=0.95)
    assert drawn.difference("b", "a").verdict == "better"
    assert drawn.difference("b", "a").value == pytest.approx(-math.sqrt(np.mean((scores - labels) ** 2)))
    same = np.where(user < 19, labels, 0.0)
    few = TaskScores(same, user, None, of_models, binary=False)
    assert few.resample("AUC", draws=60, confidence=0.95).difference("b", "a").verdict == "undefined"


def test_logs_count_by_their_pairs_of_numbers_and_by_rows() -> None:
    logs, rows = [], [some_rows(40, seed=seed) for seed in (0, 1)]
    for (scores, labels, user), times in zip(rows, (1.0, 3.0), strict=True):
        logs.append(TaskScores(labels, user, np.full(40, times), {"a": [scores]}, binary=False))
    for measure, of in (("AUC", ordered_auc_of), ("MAE", mae_of)):
        amounts = []
        for (_, labels, _), times in zip(rows, (1.0, 3.0), strict=True):
            pairs = sum(times**2 for a, b in itertools.combinations(labels, 2) if a != b)
            amounts.append(pairs if measure == "AUC" else times * 40)
        each = [of(*columns)(np.ones(40, dtype=int)) for columns in rows]
        pooled = resample_together(logs, measure, draws=1, confidence=0.95)
        assert pooled.whole["a"] == pytest.approx(np.average(each, weights=amounts), rel=1e-12)


def interval(p: float) -> Interval:
    return Interval(0.1, 0.05, 0.15, p, p, 0.05)


def test_the_watched_metric_decides_on_the_test_rows_where_a_task_has_it() -> None:
    names = {"like": ("AUC", "logloss"), "watch": ("AUC", "RMSE")}
    family = {
        (task, name, model, "base"): interval(0.01)
        for task, of_task in names.items()
        for name in of_task
        for model in ("a", "b")
    }
    for metric, expected in (
        ("auc", ["AUC", "AUC"]),
        ("rmse/watch", ["AUC", "RMSE"]),
        ("logloss", ["logloss", "AUC"]),
        ("ne", ["AUC", "AUC"]),  # The report has no differences of it.
    ):
        assert list(deciding(family, metric, "a", "base")) == list(zip(names, expected, strict=True))


def write_log(folder: Path, schema: Schema = SCHEMA) -> str:
    for seed, split in enumerate(("train", "valid", "test")):
        write_split(folder, mixed_table(300, seed=seed), split=split)
    save_schema(replace(schema, group="user"), str(folder))
    return str(folder)


def request_of(folder: Path, *options: str, models: str = "stem,single_task") -> Request:
    line = ["--recipe", "tiny", "--data.path", str(folder), "--out", str(folder / "out"), "--models", models]
    return resolve_log(read_command_line([*line, *options]))


@pytest.mark.parametrize(
    ("models", "options", "sentence"),
    [
        (
            "stem,single_task",
            ["--pair", "like,watch"],
            "--pair is 'like,watch', but the label of 'watch' is of kind number, and the comparable samples count "
            "positives, which binary labels alone have; leave it out.",
        ),
        (
            "stem,single_task",
            ["--train.metric", "rmse/watch"],
            "--train.metric is 'rmse/watch', but each single-task model is judged by its own task, and not all of "
            "like, watch, stars have rmse; give --train.metric auc or gauc.",
        ),
        (
            "esmm,single_task",
            [],
            "esmm: the label of 'watch' is of kind number, but --model.arch esmm, which multiplies",
        ),
        (
            "dcmt,single_task",
            [],
            "dcmt: the label of 'watch' is of kind number, but --model.arch dcmt, which multiplies",
        ),
        (
            "stem_jrc,single_task",
            [],
            "stem_jrc: --loss.kinds has 'jrc' for 'watch', whose label is of kind number, but",
        ),
        ("stem_pairs,single_task", [], "stem_pairs: --loss.kinds has 'pairs' for 'watch', whose label is of kind num"),
    ],
)
def test_what_takes_binary_tasks_alone_is_refused_before_training(
    tmp_path: Path, models: str, options: list[str], sentence: str
) -> None:
    write_log(tmp_path)
    with pytest.raises(UserError) as error:
        request_of(tmp_path, *options, models=models)
    assert str(error.value).startswith(sentence)
    assert not (tmp_path / "out").exists()


def test_comparable_samples_are_of_two_binary_tasks_or_none(tmp_path: Path) -> None:
    write_log(tmp_path)
    assert request_of(tmp_path).pair is None
    liked = Label("liked", column="like")
    write_log(tmp_path, replace(SCHEMA, labels=(*LABELS[1:], LABELS[0], liked)))
    assert request_of(tmp_path).pair == ("like", "liked")
    with pytest.raises(UserError, match=r"of kind ordinal, .*; give two of like, liked, or leave it out"):
        request_of(tmp_path, "--pair", "stars,like")


def test_logs_whose_labels_are_of_other_kinds_are_refused_and_so_are_numbers_by_pays(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / "a"), write_log(tmp_path / "b", replace(SCHEMA, labels=(*LABELS[:2], "stars")))]
    line = ["--recipe", "tiny", "--models", "stem,single_task"]
    with pytest.raises(
        UserError, match=r"b has the tasks like, watch \(number\), stars, and .*a like, watch \(number\)"
    ):
        requests_by_log(read_command_line([*line, "--logs", *logs, "--out", str(tmp_path / "out")]))
    with pytest.raises(UserError, match=r"source shop: the label of 'watch' is of kind number, but pays\.py takes"):
        comparisons_on({"shop": Source((logs[0],))}, line, out=str(tmp_path / "out"), split="test")


@pytest.mark.parametrize("base", ["shared_bottom", pytest.param("single_task", marks=pytest.mark.long)])
def test_a_comparison_has_intervals_and_metrics_of_tasks_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: str
) -> None:
    log = write_log(tmp_path / "log")
    line = ["--recipe", "tiny", "--data.path", log, "--out", str(tmp_path / "out"), "--seeds", "0"]
    line += ["--models", f"omoe,{base}", "--base", base, "--train.max-steps", "2", "--resamples", "20", "--recommend"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *line])
    compare.main()
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("Take ")
    results = {(row["model"], row["task"]): row for row in pq.read_table(tmp_path / "out/results.parquet").to_pylist()}
    differences = pq.read_table(tmp_path / "out/differences.parquet").to_pylist()
    compared = {(row["task"], row["metric"]) for row in differences}
    of_values = {"AUC", "gAUC", "RMSE", "MAE"}
    expected = {"like": {"AUC", "gAUC", "logloss"}, "watch": of_values, "stars": of_values}
    assert compared == {(task, name) for task in TASKS for name in expected[task]}
    for row in differences:
        # The metrics of the runs are those of all ranks (tests/test_value_metrics.py).
        own, over = (results[model, row["task"]][row["metric"].lower()] for model in (row["model"], row["over"]))
        assert row["value"] == pytest.approx(own - over, rel=1e-6, abs=1e-9)
        assert row["low"] <= row["value"] <= row["high"]
    assert (results[base, "like"]["rmse"], results[base, "watch"]["logloss"]) == (None, None)
    report = (tmp_path / "out/report.md").read_text()
    assert "Labels are not 0 and 1 in watch (number), stars (ordinal): AUC is the share of pairs" in report
    assert "The family has 11 comparisons" in report
    of_watch = report.partition("### watch")[2].partition("###")[0]
    assert f"RMSE over {base}" in of_watch
    assert "logloss" not in of_watch
    assert "Comparable samples" not in report
