"""The report of a walk: who wins in each task, and what every day's model costs and reaches."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from stem_torchrec.comparison.intervals import Interval

from common.output import write_table, write_whole
from prequential.collisions import ABOUT, HEADERS, hashed_values
from prequential.day_logs import DayLogs
from prequential.day_runs import cost_of
from prequential.options import DaysOptions
from prequential.policies import POLICIES, PolicyName, Walker
from prequential.scores import TaskScores, read_tested, score_days

_LEGEND = """A day is tested by the models that were trained up to the day before, on the rows that are trained on next
(95 % of the day; the others are for validation), and then trained on. Intervals are of 95 %, paired, over users of all
days and over seeds, each by itself. Seconds are of one seed, in the mean, with building the model, validation and the
last checkpoint; CPU s are those of all processors in rank 0. Preparation is that of the log that is trained on. New ids
are those of all features that the log of the day has beyond that of the day before."""


def write_report(options: DaysOptions, logs: DayLogs, head: Mapping[str, str]) -> None:
    """Writes days.md and days.parquet.

    Args:
        options: the days, policies and seeds, all of which are done.
        logs: their logs.
        head: of the report.
    """
    scores = {task: score_days(days, options.draws) for task, days in read_tested(options, logs).items()}
    costs = {name: [_cost(options, logs, name, day) for day in options.days[:-1]] for name in options.policies}
    rows = _rows(options, logs, scores, costs)
    write_table(logs.folder / "days.parquet", pa.Table.from_pylist(rows))
    facts = json.loads(Path(options.facts).read_text()) if options.facts else {}
    lines = [f"- {name}: {value}" for name, value in head.items()]
    text = ["# Day after day", "", *lines, "", *_sentences(options, scores, costs), ""]
    text += [_totals(options, scores, costs), "", _LEGEND, ""]
    for task, of_task in scores.items():
        text += [f"## {task}", "", _by_day(options, task, of_task, facts), ""]
    text += ["## Cost", "", _costs_by_day(options, logs, costs), ""]
    if options.hashed:
        hashed = [each.cells for each in hashed_values(logs)]
        text += ["## Hashed ids", "", _table(hashed, HEADERS), "", ABOUT, ""]
    write_whole(logs.folder / "days.md", "\n".join(text))
    print("\n".join(text[text.index("") :]), f"\nreport: {logs.folder / 'days.md'}", flush=True)


def _cost(options: DaysOptions, logs: DayLogs, name: PolicyName, day: int) -> dict[str, float]:
    """What the model of a day took: rows, seconds of training, also of the processors, and of preparation."""
    costs = [cost_of(Walker(logs.folder, name, seed).run(day)) for seed in options.seeds]
    return {
        "rows": costs[0]["rows"],
        "train": float(np.mean([each["seconds"] for each in costs])),
        "cpu": float(np.mean([each["cpu_seconds"] for each in costs])),
        "prepare": logs.seconds(day, POLICIES[name].log_of(day, options.switch)),
    }


def _rows(
    options: DaysOptions,
    logs: DayLogs,
    scores: Mapping[str, TaskScores],
    costs: Mapping[PolicyName, Sequence[Mapping[str, float]]],
) -> list[dict[str, Any]]:
    """A row of days.parquet for each tested day, task and policy."""
    over, tested = options.policies[-1], options.days[1:]
    new_ids = {day: dict(logs.new_ids(day)) for day in tested}
    unseen = {
        (name, day): dict(logs.unseen(day, POLICIES[name].log_of(logs.before(day), options.switch)))
        for name in options.policies
        for day in tested
    }
    return [
        {
            "day": day,
            "task": task,
            "policy": name,
            "rows": of_task.rows[day],
            "positives": of_task.positives[day],
            "auc": list(of_task.seeds[day][name]),
            f"over_{over}": of_task.days[day].difference(name, over).numbers,
            "trained_rows": int(cost["rows"]),
            "train_seconds": cost["train"],
            "train_cpu_seconds": cost["cpu"],
            "prepare_seconds": cost["prepare"],
            "new_ids": new_ids[day],
            "unseen": unseen[name, day],
        }
        for task, of_task in scores.items()
        for name in options.policies
        for day, cost in zip(tested, costs[name], strict=True)
    ]


def _sentences(
    options: DaysOptions, scores: Mapping[str, TaskScores], costs: Mapping[PolicyName, Sequence[Mapping[str, float]]]
) -> list[str]:
    """Who wins in each task, by how much, and at which cost."""
    *others, over = options.policies
    total = {name: sum(cost["train"] for cost in days) for name, days in costs.items()}
    sentences = []
    for name in others:
        verdicts = [
            f"in {task} it {verdict_of(of_task.mean.difference(name, over), over)}" for task, of_task in scores.items()
        ]
        sentences.append(
            f"- **{name}** ({POLICIES[name].about}) trains for {total[name]:.0f} s, {total[name] / total[over]:.0%} of "
            f"the {total[over]:.0f} s of {over} ({POLICIES[over].about}); {', '.join(verdicts)}."
        )
    return sentences


def verdict_of(difference: Interval, over: str) -> str:
    """What a difference of mean AUC says in words, also where it is a loss.

    Example::

        verdict_of(..., "scratch")  # "loses to scratch by 0.0102 [0.0080, 0.0121]"
    """
    ends = sorted([abs(difference.low), abs(difference.high)])
    match difference.verdict:
        case "better":
            return f"beats {over} by {difference.value:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"
        case "worse":
            return f"loses to {over} by {-difference.value:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"
        case _:
            return f"cannot be told from {over}, {show(difference)}"


def show(difference: Interval) -> str:
    """`+0.0012 [-0.0003, +0.0027]`, or the difference alone where it has no interval."""
    if np.isnan(difference.low):
        return f"{difference.value:+.4f}"
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _totals(
    options: DaysOptions, scores: Mapping[str, TaskScores], costs: Mapping[PolicyName, Sequence[Mapping[str, float]]]
) -> str:
    over = options.policies[-1]
    lines = []
    for name in options.policies:
        cells = []
        for of_task in scores.values():
            cells.append(f"{of_task.mean.whole[name]:.4f}")
            cells.append("" if name == over else show(of_task.mean.difference(name, over)))
        seconds = (f"{sum(cost[kind] for cost in costs[name]):.0f}" for kind in ("train", "cpu", "prepare"))
        lines.append([name, *cells, f"{int(sum(cost['rows'] for cost in costs[name])):,}", *seconds])
    headers = ["policy", *(text for task in scores for text in (f"mean AUC, {task}", f"over {over}"))]
    return _table(lines, [*headers, "rows trained on", "s, training", "CPU s", "s, preparation"])


def _by_day(options: DaysOptions, task: str, scores: TaskScores, facts: Mapping[str, Any]) -> str:
    *others, over = options.policies
    lines = []
    for day in options.days[1:]:
        aucs = [f"{scores.days[day].whole[name]:.4f}" for name in options.policies]
        differences = [show(scores.days[day].difference(name, over)) for name in others]
        best = [f"{facts[str(day)][kind][task]:.4f}" for kind in ("best_auc", "stale_auc") if facts]
        lines.append([str(day), f"{scores.rows[day]:,}", f"{scores.positives[day]:,}", *aucs, *differences, *best])
    headers = ["day", "rows", "positives", *options.policies, *(f"{name} over {over}" for name in others)]
    return _table(lines, headers + ["best reachable", "best of yesterday's truth"] * bool(facts))


def _costs_by_day(
    options: DaysOptions, logs: DayLogs, costs: Mapping[PolicyName, Sequence[Mapping[str, float]]]
) -> str:
    """A line for each day whose model is trained: its rows, seconds, and seconds of all days so far."""
    lines = []
    for i, day in enumerate(options.days[:-1]):
        new = f"{sum(logs.new_ids(day).values()):,}" if i else ""
        cells = []
        for days in costs.values():
            cells += [f"{int(days[i]['rows']):,}", f"{days[i]['prepare']:.1f}", f"{days[i]['train']:.1f}"]
            cells.append(f"{sum(cost['train'] for cost in days[: i + 1]):.0f}")
        lines.append([str(day), new, *cells])
    headers = ["day", "new ids"]
    for name in options.policies:
        headers += [f"{name}: rows", "s, preparation", "s, training", "s, training so far"]
    return _table(lines, headers)


def _table(lines: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)
