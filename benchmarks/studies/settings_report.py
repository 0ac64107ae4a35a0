"""The report of a trial of settings: metrics on the validation split, and differences with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from stem_torchrec.comparison.report import spread
from stem_torchrec.comparison.resampling import Resampled
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.schema import load_schema
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import CONFIG_FILE, read_metrics

from common.machine import describe_run
from common.output import write_table, write_whole

DRAWS = 1000
"""Draws of users, or of rows where a log has no users, behind an interval."""


def write_report(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes settings.md and settings.parquet.

    Args:
        folder: exists.
        comparisons: one for each log; its runs are named `setting/model`, those of the base first.

    Models that could not be trained are left out with their reason, and so is what would be compared with them.
    """
    head = [f"- {name}: {value}" for name, value in describe_run("settings.py").items()]
    rows: list[dict[str, Any]] = []
    text = ["# Settings on validation splits", "", *head, ""]
    for comparison in comparisons:
        base = _setting(comparison.models[0])
        trained = _without_left_out(comparison)
        of_log = _rows(trained, base) if trained.runs else []
        rows += of_log
        text += _section(trained, base, of_log)
    write_table(folder / "settings.parquet", pa.Table.from_pylist(rows))
    write_whole(folder / "settings.md", "\n".join(text))
    print(f"report: {folder / 'settings.md'}", flush=True)


def _setting(model: str) -> str:
    return model.rpartition("/")[0]


def _without_left_out(comparison: Comparison) -> Comparison:
    """The comparison of the models that could be trained with every seed, with the reasons of the others."""
    left_out = {run.model: f"{_setting(run.model)}: {reason}" for run in comparison.runs if (reason := run.left_out())}
    return replace(comparison, runs=[run for run in comparison.runs if run.model not in left_out], left_out=left_out)


def _rows(comparison: Comparison, base: str) -> list[dict[str, Any]]:
    """A row for each setting and task of a log; None for what would take a model that is left out."""
    scored = ScoredRows(comparison)
    rows: list[dict[str, Any]] = []
    for task in scored.tasks:
        differences = partial(_difference, comparison.models, scored.resample(task, draws=DRAWS))
        for setting in dict.fromkeys(map(_setting, comparison.models)):
            stem, single = f"{setting}/stem", f"{setting}/single_task"
            runs = comparison.runs_of(stem) or comparison.runs_of(single)
            config, passes = _trained(runs, load_schema(comparison.path).splits["train"].rows)
            rows.append(
                {
                    "log": Path(comparison.path).name,
                    "drawn": scored.unit,
                    "setting": setting,
                    "task": task,
                    "batch_size": config.data.batch_size,
                    "passes": passes,
                    "stem": _aucs(comparison.runs_of(stem), task),
                    "single_task": _aucs(comparison.runs_of(single), task),
                    "stem_over_single_task": differences(stem, single),
                    "stem_over_base": differences(stem, f"{base}/stem"),
                    "single_task_over_base": differences(single, f"{base}/single_task"),
                }
            )
    return rows


def _difference(models: Sequence[str], resampled: Resampled, model: str, over: str) -> dict[str, Any] | None:
    return resampled.difference(model, over).numbers if {model, over} <= set(models) else None


def _trained(runs: Sequence[Run], rows: int) -> tuple[TrainConfig, float]:
    """The configuration of the first run, and the mean number of passes over `rows` rows up to the best weights."""
    folders = [folder for run in runs for folder in run.folders()]
    config = load_config(str(folders[0] / CONFIG_FILE))
    steps = float(np.mean([read_metrics(folder).step for folder in folders]))
    return config, steps * config.data.batch_size / rows


def _aucs(runs: Sequence[Run], task: str) -> list[float]:
    """The AUC of each seed."""
    return [run.test_results()["metrics"][task]["auc"] for run in runs]


def _section(comparison: Comparison, base: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    reasons = [f"Left out, as it could not be trained: {reason}" for reason in comparison.left_out.values()]
    head = [f"## {Path(comparison.path).name}", *reasons]
    if not rows:
        return [line for paragraph in head for line in (paragraph, "")]
    lines = [
        [
            row["setting"],
            row["task"],
            f"{row['batch_size']:,}",
            f"{row['passes']:.2f}",
            spread(row["stem"]),
            spread(row["single_task"]),
            *(_show(row[name]) for name in ("stem_over_single_task", "stem_over_base", "single_task_over_base")),
        ]
        for row in rows
    ]
    names = ["setting", "task", "batch", "passes", "AUC of STEM", "AUC of single-task models", "STEM over single-task"]
    names += [f"STEM over {base}", f"single-task over {base}"]
    table = tabulate(lines, names, tablefmt="github", disable_numparse=True)
    paragraphs = [*head, f"Intervals are over {rows[0]['drawn']} and seeds.", table]
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _show(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return "-"
    return f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
