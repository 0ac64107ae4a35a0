import json
import math
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.metrics import sorted_rows
from stem_torchrec.metrics.auc import auc_over_ranks, by_score
from stem_torchrec.metrics.collectives import send_rows
from stem_torchrec.metrics.multi_task import MultiTaskMetrics, TaskMetrics, format_table, to_json
from stem_torchrec.runtime.errors import UserError

from distributed import run_ranks

TASKS = ["finish", "like"]
# Sums of float64 in another order differ by a few units in the last place, 1e-16 of the value each.
SUM_ORDER = 1e-12


def some_rows(rows: int = 2000, *, seed: int = 0, tie_step: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with ties, labels that the logits predict a little, some of them missing, and skewed groups."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, len(TASKS), generator=generator)
    labels = (torch.rand(rows, len(TASKS), generator=generator) < (logits - 1).sigmoid()).float()
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = math.nan
    groups = (torch.rand(rows, generator=generator) ** 3 * rows / 8).long() * 6 - 300
    return (logits / tie_step).round() * tie_step, labels, groups


def compute(logits: Tensor, labels: Tensor, groups: Tensor | None = None) -> dict[str, TaskMetrics]:
    metrics = MultiTaskMetrics(TASKS)
    metrics.update(logits, labels, groups)
    return metrics.compute()


def both_tasks(values: list[float]) -> Tensor:
    return torch.tensor(values)[:, None].expand(-1, 2)


def gauc_by_loop(logits: Tensor, labels: Tensor, groups: Tensor) -> tuple[float, int, int]:
    total, users, rows = 0.0, 0, 0
    for group in groups.unique():
        chosen = (groups == group) & ~labels.isnan()
        if labels[chosen].unique().numel() == 2:
            total += int(chosen.sum()) * sklearn.metrics.roc_auc_score(labels[chosen], logits[chosen])
            users, rows = users + 1, rows + int(chosen.sum())
    return total / rows, users, rows


def auc(scores: Tensor, labels: Tensor) -> float:
    known = ~labels.isnan()
    return auc_over_ranks([by_score(scores[known], labels[known] == 1)])


@pytest.mark.parametrize("decimals", [7, 1, 0])
def test_auc_is_that_of_sklearn_with_and_without_ties(decimals: int):
    generator = torch.Generator().manual_seed(decimals)
    scores = torch.randn(5000, generator=generator).round(decimals=decimals)
    labels = (torch.rand(5000, generator=generator) < 0.1).float()
    # sklearn integrates the curve in float64.
    assert auc(scores, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-9)


def test_auc_of_few_rows_is_the_share_of_pairs():
    assert auc(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1])) == 3.5 / 4
    assert auc(torch.tensor([-0.0, 0.0]), torch.tensor([0, 1])) == 0.5
    assert auc(torch.tensor([-math.inf, math.inf, 5.0]), torch.tensor([0, 1, math.nan])) == 1.0
    assert math.isnan(auc(torch.tensor([]), torch.tensor([])))


def test_every_metric_leaves_out_rows_without_a_label():
    logits, labels, groups = some_rows()
    results = compute(logits, labels, groups)
    for column, task in enumerate(TASKS):
        labeled = ~labels[:, column].isnan()
        x, y = logits[labeled, column].double(), labels[labeled, column].double()
        p = x.sigmoid().numpy()
        logloss, base = sklearn.metrics.log_loss(y, p), y.mean().item()
        entropy = sklearn.metrics.log_loss(y, np.full(len(y), base))
        expected = (
            sklearn.metrics.roc_auc_score(y, x),
            gauc_by_loop(logits[:, column], labels[:, column], groups)[0],
            logloss,
            logloss / entropy,
            p.sum() / y.sum().item(),
            len(y),
            y.sum().item(),
            *gauc_by_loop(logits[:, column], labels[:, column], groups)[1:],
        )
        assert astuple(results[task])[:9] == pytest.approx(expected, abs=1e-9)  # sklearn's own rounding
        assert astuple(results[task])[9:] == (None, None)


def test_gauc_of_distinct_logits_is_that_of_a_loop_over_users():
    logits, labels, groups = some_rows(tie_step=1e-6)
    result = compute(logits, labels, groups)["like"]
    expected = gauc_by_loop(logits[:, 1], labels[:, 1], groups)
    assert (result.gauc, result.gauc_groups, result.gauc_rows) == pytest.approx(expected, abs=1e-12)


def test_logloss_of_large_logits_neither_overflows_nor_is_clipped():
    logits = both_tasks([1000.0, -1000.0, 30.0, -1e30])
    result = compute(logits, both_tasks([0.0, 1.0, 1.0, 0.0]))["finish"]
    assert result.logloss == pytest.approx((1000 + 1000 + math.log1p(math.exp(-30))) / 4, rel=1e-15)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_with_one_class_only_what_compares_classes_is_undefined(label: float):
    result = compute(both_tasks([1.0, 2.0]), both_tasks([label, label]), torch.tensor([1, 1]))["like"]
    assert all(math.isnan(value) for value in (result.auc, result.gauc, result.ne))
    assert result.logloss > 0
    assert math.isnan(result.pcoc) == (label == 0)
    assert (result.rows, result.positives, result.gauc_groups) == (2, 2 * label, 0)


def test_without_rows_everything_is_undefined():
    result = MultiTaskMetrics(TASKS).compute()["finish"]
    nan = pytest.approx(math.nan, nan_ok=True)
    assert astuple(result) == (nan, nan, nan, nan, nan, 0, 0, 0, 0, None, None)


def test_a_diverged_model_has_undefined_metrics():
    result = compute(both_tasks([1.0, math.nan]), both_tasks([0.0, 1.0]), torch.tensor([1, 1]))["finish"]
    assert all(math.isnan(value) for value in astuple(result)[:5])


def test_gauc_is_undefined_unless_every_batch_brings_groups():
    logits, labels, groups = some_rows(200)
    metrics = MultiTaskMetrics(TASKS)
    metrics.update(logits, labels, groups)
    assert metrics.compute()["finish"].gauc > 0
    metrics.update(logits, labels)
    assert math.isnan(metrics.compute()["finish"].gauc)


def test_reset_forgets_all_rows():
    metrics = MultiTaskMetrics(TASKS)
    metrics.update(*some_rows(seed=1))
    metrics.reset()
    metrics.update(*some_rows(seed=2))
    assert metrics.compute() == compute(*some_rows(seed=2))


def test_update_keeps_a_copy_without_the_graph():
    logits, labels, groups = some_rows(100)
    expected = compute(logits, labels, groups)
    metrics = MultiTaskMetrics(TASKS)
    metrics.update(logits.requires_grad_(), labels, groups)
    logits.data.zero_()
    labels.zero_()
    assert metrics.compute() == expected


def test_a_wrong_label_or_shape_is_named():
    with pytest.raises(UserError, match="'finish' has 1 labels that are neither 0 nor 1"):
        compute(both_tasks([1.0, 2.0]), both_tasks([0.0, 0.5]))
    with pytest.raises(ValueError, match=r"logits \(2, 3\).*\['finish', 'like'\]"):
        compute(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="one group a row"):
        compute(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3))


def test_undefined_is_null_in_json_and_a_dash_in_the_table():
    results = compute(*some_rows()[:2])
    assert json.loads(json.dumps(to_json(results), allow_nan=False))["like"]["gauc"] is None
    header, _, finish, _ = format_table(results).splitlines()
    assert header.split()[:6] == ["task", "AUC", "gAUC", "logloss", "NE", "PCOC"]
    assert finish.split()[:3] == ["finish", f"{results['finish'].auc:.5f}", "-"]


CASES = {
    "ties": some_rows(),
    "distinct logits": some_rows(5000, seed=3, tie_step=1e-6),
    "one value": (both_tasks([0.5]).expand(500, 2), *some_rows(500)[1:]),
    "signed zeros": (both_tasks([-0.0, 0.0] * 250), *some_rows(500)[1:]),
    "four rows": (
        both_tasks([1.0, 2.0, 2.0, 3.0]),
        both_tasks([0.0, 0.0, 1.0, 1.0]),
        torch.tensor([7, 8, 7, 7]),
    ),
    "one class": (both_tasks([1.0, 2.0, 3.0]), torch.ones(3, 2), torch.arange(3)),
    "no groups": (*some_rows(seed=4)[:2], None),
    "no rows": tuple(part[:0] for part in some_rows(8)),
}
SHARES = {
    1: {"all": [1.0]},
    2: {"even": [0.5, 1.0], "none on rank 0": [0.0, 1.0]},
    3: {"uneven": [0.1, 0.3, 1.0], "none on rank 1": [0.6, 0.6, 1.0]},
}


def compute_all_cases(rows_in_memory: int) -> dict[tuple[str, str], dict[str, TaskMetrics]]:
    """Runs on every rank; `ends` are the positions, as shares of all rows, at which the ranks' rows end."""
    warnings.simplefilter("error")
    results = {}
    for split, ends in SHARES[dist.get_world_size()].items():
        for case, columns in CASES.items():
            metrics = MultiTaskMetrics(TASKS, rows_in_memory=rows_in_memory)
            shares = [0.0, *ends][dist.get_rank() : dist.get_rank() + 2]
            begin, end = (int(share * len(columns[0])) for share in shares)
            for start in range(begin, end, 150):
                batch = slice(start, min(start + 150, end))
                metrics.update(*(column if column is None else column[batch] for column in columns))
            results[split, case] = metrics.compute()
            if case == "ties":
                # compute changes nothing, so that more rows may follow.
                assert repr(metrics.compute()) == repr(results[split, case])
    return results


@pytest.mark.parametrize(
    ("ranks", "rows_in_memory"),
    [
        (2, 300),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [(1, 300), (2, 10**6), (3, 1000), (3, 10**6)]),
    ],
)
def test_any_number_of_ranks_in_memory_or_on_disk_computes_what_one_does(ranks: int, rows_in_memory: int):
    first, *others = run_ranks(ranks, compute_all_cases, rows_in_memory)
    for other in others:
        assert repr(other) == repr(first)
    alone = {case: compute(*columns) for case, columns in CASES.items()}
    for (split, case), results in first.items():
        for task in TASKS:
            expected = asdict(alone[case][task])
            for name, value in asdict(results[task]).items():
                # AUC and the counts come from integers, the others from sums of float64.
                tolerance = SUM_ORDER if name in ("gauc", "logloss", "ne", "pcoc") else 0
                # A binary task has no RMSE and no MAE.
                same = (
                    None
                    if name in ("rmse", "mae")
                    else pytest.approx(expected[name], rel=tolerance, abs=0, nan_ok=True)
                )
                assert value == same, (split, case, task, name)


def count_received_rows(distinct: int) -> list[int]:
    """Returns the number of (score, count) runs that this rank receives of each class."""
    received = []

    def spy(destination: Tensor, *columns: Tensor) -> list[Tensor]:
        outputs = send_rows(destination, *columns)
        received.append(len(outputs[0]))
        return outputs

    sorted_rows.send_rows = spy
    generator = torch.Generator().manual_seed(dist.get_rank())
    # Every rank holds another range of scores, so that nearly all rows must move.
    scores = torch.randint(distinct, (10_000,), generator=generator).float() + dist.get_rank()
    auc_over_ranks([by_score(scores, torch.rand(10_000, generator=generator) < 0.1)])
    return received


def check_balance() -> tuple[list[int], list[int]]:
    return count_received_rows(distinct=1), count_received_rows(distinct=10**7)


def test_no_rank_receives_more_than_its_share():
    ties, distinct = zip(*run_ranks(2, check_balance), strict=True)
    assert all(sum(runs) <= 4 for runs in ties)
    assert all(9_900 <= sum(runs) <= 10_100 for runs in distinct)


def count_rows_read_at_once() -> Counter[Any]:
    """Counts the rows that this process reads from now on, by the limits of each read, for scores and groups."""
    read: Counter[Any] = Counter()
    cut = sorted_rows.SortedRows.cut

    def counted(chunk: sorted_rows.SortedRows, low: Tensor | None, high: Tensor | None) -> list[Tensor]:
        columns = cut(chunk, low, high)
        read[chunk.dtype, *(None if bound is None else bound.item() for bound in (low, high))] += len(columns[0])
        return columns

    sorted_rows.SortedRows.cut = counted
    return read


def read_in_rounds(drift: float) -> tuple[int, int, bool]:
    """On this rank: the most rows read at once, how many more were read than exist, and whether the disk is empty."""
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        read = count_rows_read_at_once()
        logits, labels, _ = some_rows(40_000, seed=dist.get_rank(), tie_step=1e-6)
        groups = torch.arange(40_000) % 5000  # Of few rows each, so that their pieces are even.
        metrics = MultiTaskMetrics(["finish"], rows_in_memory=4000)
        for start in range(0, 40_000, 1000):
            part = slice(start, start + 1000)
            metrics.update(logits[part, :1] + drift * dist.get_rank(), labels[part, :1], groups[part])
        metrics.compute()
        assert list(Path(folder).iterdir())
        metrics.reset()
        left = list(Path(folder).iterdir())
        tempfile.tempdir = None
        return max(read.values()), sum(read.values()) - 2 * int((~labels[:, 0].isnan()).sum()), not left


@pytest.mark.parametrize(
    ("ranks", "drift"),
    [(2, 100.0), *(pytest.param(*each, marks=pytest.mark.long) for each in [(1, 0.0), (2, 0.0)])],
)
def test_about_as_many_rows_as_allowed_are_read_at_once_and_the_disk_is_left_empty(ranks: int, drift: float):
    """Of 32,000 a rank that have a label, in pieces of about 4000, also if each rank has another range of scores."""
    for largest, unread, clean in run_ranks(ranks, read_in_rounds, drift):
        assert 2000 < largest <= 5000
        assert unread == 0
        assert clean


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        UserError, match=r"cannot be written to .* \(No space left on device\); make room there, or let T"
    ):
        MultiTaskMetrics(TASKS, rows_in_memory=10).update(*some_rows(20))
