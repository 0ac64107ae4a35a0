"""Metrics of labels that are numbers or levels: AUC and gAUC over pairs with different labels, RMSE and MAE, exact."""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.metrics.multi_task import MultiTaskMetrics, format_table, from_json, to_json
from stem_torchrec.metrics.task_metrics import TaskMetrics

from distributed import run_ranks

LEVELS = {"watch": None, "stars": 4}
TASKS = ["like", "watch", "stars"]


def some_rows(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with ties, labels with ties of which some are missing, and weights of which some are 0."""
    random = torch.Generator().manual_seed(rows)
    scores = (torch.randn(rows, 3, generator=random) * 4).round() / 4
    numbers = (torch.randn(rows, generator=random) * 3).round() / 2 + scores[:, 1] / 2
    like, stars = (torch.randint(number, (rows,), generator=random).float() for number in (2, 4))
    labels = torch.stack([like, numbers, stars], dim=1)
    labels[torch.rand(rows, 3, generator=random) < 0.2] = torch.nan
    return scores, labels, (torch.rand(rows, 3, generator=random) - 0.1).clamp(min=0)


def users_of(rows: int) -> Tensor:
    """Users of a few rows, of whom some have one row or one label."""
    return torch.randint(rows // 3, (rows,), generator=torch.Generator().manual_seed(rows)) - 9


def computed(rows: int, *, weighted: bool, rows_in_memory: int, part: slice = slice(None)) -> dict[str, TaskMetrics]:
    scores, labels, weights, users = (each[part] for each in (*some_rows(rows), users_of(rows)))
    metrics = MultiTaskMetrics(TASKS, weighted=weighted, levels=LEVELS, rows_in_memory=rows_in_memory)
    for start in range(0, len(scores), 25):
        batch = slice(start, start + 25)
        metrics.update(scores[batch], labels[batch], users[batch], weights[batch] if weighted else None)
    return metrics.compute()


Row = tuple[float, float, float]
"""Score, label and weight."""


def share_by_loops(rows: Sequence[Row]) -> float:
    """The share of pairs with different labels in the right order; NaN without a pair."""
    right = pairs = 0.0
    for (s_i, y_i, w_i), (s_j, y_j, w_j) in product(rows, rows):
        if y_i < y_j:
            pairs += w_i * w_j
            right += w_i * w_j * (1 if s_i < s_j else 0.5 if s_i == s_j else 0)
    return right / pairs if pairs else math.nan


def by_loops(scores: Tensor, labels: Tensor, weights: Tensor, users: Tensor) -> dict[str, float]:
    """The equations, of one task's rows."""
    rows, by_user = list[Row](), dict[int, list[Row]]()
    for s, y, w, user in zip(*(each.tolist() for each in (scores, labels, weights, users)), strict=True):
        if w > 0 and y == y:
            rows.append((s, y, w))
            by_user.setdefault(user, []).append((s, y, w))
    shares = {user: share_by_loops(of_user) for user, of_user in by_user.items()}
    mixed = {user: by_user[user] for user, share in shares.items() if share == share}
    weight_of = {user: sum(w for *_, w in of_user) for user, of_user in mixed.items()}
    total = sum(w for *_, w in rows)
    return {
        "auc": share_by_loops(rows),
        "gauc": sum(weight_of[user] * shares[user] for user in mixed) / sum(weight_of.values()),
        "gauc_groups": len(mixed),
        "gauc_rows": sum(map(len, mixed.values())),
        "rmse": math.sqrt(sum(w * (s - y) ** 2 for s, y, w in rows) / total),
        "mae": sum(w * abs(s - y) for s, y, w in rows) / total,
        "pcoc": sum(w * s for s, _, w in rows) / sum(w * y for _, y, w in rows),
        "rows": len(rows),
        "positives": sum(y > 0 for _, y, _ in rows),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows_in_memory", [40, 10**6])
def test_metrics_of_numbers_and_levels_are_their_equations(weighted: bool, rows_in_memory: int) -> None:
    scores, labels, weights = some_rows(150)
    metrics = computed(150, weighted=weighted, rows_in_memory=rows_in_memory)
    for i, task in enumerate(TASKS[1:], start=1):
        expected = by_loops(scores[:, i], labels[:, i], weights[:, i] if weighted else torch.ones(150), users_of(150))
        assert 0 < expected["gauc_groups"] < len(users_of(150).unique())
        values = asdict(metrics[task])
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-12)
        assert all(math.isnan(values[name]) for name in ("logloss", "ne"))
    # What a binary task has is as it is without the others.
    alone = MultiTaskMetrics(TASKS[:1], weighted=weighted)
    alone.update(scores[:, :1], labels[:, :1], weights=weights[:, :1] if weighted else None)
    assert alone.compute()["like"].auc == pytest.approx(metrics["like"].auc, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_0_and_1_have_the_same_auc_and_gauc_as_numbers(weighted: bool) -> None:
    scores, labels, weights = (each[:, :1] for each in some_rows(300))
    results = []
    for levels in ({}, {"like": None}):
        metrics = MultiTaskMetrics(["like"], weighted=weighted, levels=levels)
        metrics.update(scores, labels, users_of(300), weights if weighted else None)
        result = metrics.compute()["like"]
        results.append((result.auc, result.gauc, result.gauc_groups, result.gauc_rows))
    # Sums of weights in another order.
    assert results[0] == (pytest.approx(results[1], rel=1e-12) if weighted else results[1])


def on_this_rank(rows: int, ends: list[float]) -> list[dict[str, TaskMetrics]]:
    warnings.simplefilter("error")
    begin, end = (int(share * rows) for share in [0.0, *ends][dist.get_rank() : dist.get_rank() + 2])
    return [computed(rows, weighted=weighted, rows_in_memory=100, part=slice(begin, end)) for weighted in (False, True)]


@pytest.mark.parametrize(
    "ends",
    [[0.3, 1.0], *(pytest.param(each, marks=pytest.mark.long) for each in ([0.0, 1.0], [0.1, 0.1, 1.0]))],
)
def test_any_number_of_ranks_computes_what_one_does(ends: list[float]) -> None:
    first, *others = run_ranks(len(ends), on_this_rank, 700, ends)
    assert [repr(other) for other in others] == [repr(first)] * len(others)
    for weighted, results in zip((False, True), first, strict=True):
        alone = computed(700, weighted=weighted, rows_in_memory=10**6)
        for task in TASKS[1:]:
            for name, value in asdict(results[task]).items():
                # Without weights AUC comes from integers; the others are sums of float64.
                counts = ("rows", "positives", "gauc_groups", "gauc_rows")
                tolerance = 1e-12 if weighted or name not in ("auc", *counts) else 0
                assert value == pytest.approx(asdict(alone[task])[name], rel=tolerance, abs=0, nan_ok=True), name


def test_labels_of_one_value_have_no_auc_and_predictions_that_are_no_numbers_have_diverged() -> None:
    metrics = MultiTaskMetrics(["a", "b", "c"], levels={"a": None, "b": 3, "c": None})
    nothing = math.nan
    metrics.update(
        torch.tensor([[1.0, 1.0, nothing], [2.0, 1.0, 1.0]]), torch.tensor([[5.0, nothing, 1.0], [5.0, nothing, 2.0]])
    )
    result = metrics.compute()
    assert math.isnan(result["a"].auc)
    assert math.isnan(result["c"].gauc)  # No row has a group.
    assert result["a"].rmse == pytest.approx(math.sqrt((16 + 9) / 2))
    assert [result[task].has_diverged for task in "abc"] == [False, False, True]
    assert math.isnan(result["b"].rmse)


def test_files_and_tables_have_rmse_and_mae_where_some_task_has_them() -> None:
    metrics = computed(150, weighted=False, rows_in_memory=10**6)
    text = json.dumps(to_json(metrics))
    assert ["rmse" in each for each in json.loads(text).values()] == [False, True, True]
    assert repr(from_json(json.loads(text))) == repr(metrics)
    assert "RMSE" in format_table(metrics)
    assert "RMSE" not in format_table({"like": metrics["like"]})
