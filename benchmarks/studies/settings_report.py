"""The report of a trial of settings: metrics on the validation split, and differences with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from stem_torchrec.comparison.report import spread
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
    """
    rows = [row for comparison in comparisons for row in _rows(comparison)]
    write_table(folder / "settings.parquet", pa.Table.from_pylist(rows))
    head = [f"- {name}: {value}" for name, value in describe_run("settings.py").items()]
    text = ["# Settings on validation splits", "", *head, ""]
    for comparison in comparisons:
        text += _section(Path(comparison.path).name, [row for row in rows if row["log"] == Path(comparison.path).name])
    write_whole(folder / "settings.md", "\n".join(text))
    print(f"report: {folder / 'settings.md'}", flush=True)


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each setting and task of a log."""
    scored = ScoredRows(comparison)
    settings = list(dict.fromkeys(model.rpartition("/")[0] for model in comparison.models))
    rows: list[dict[str, Any]] = []
    for task in scored.tasks:
        resampled = scored.resample(task, draws=DRAWS)
        for setting in settings:
            stem, single = f"{setting}/stem", f"{setting}/single_task"
            config, passes = _trained(comparison.runs_of(stem), load_schema(comparison.path).splits["train"].rows)
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
                    "stem_over_single_task": resampled.difference(stem, single).numbers,
                    "stem_over_base": resampled.difference(stem, f"{settings[0]}/stem").numbers,
                    "single_task_over_base": resampled.difference(single, f"{settings[0]}/single_task").numbers,
                }
            )
    return rows


def _trained(runs: Sequence[Run], rows: int) -> tuple[TrainConfig, float]:
    """The configuration of the first run, and the mean number of passes over `rows` rows up to the best weights."""
    folders = [folder for run in runs for folder in run.folders()]
    config = load_config(str(folders[0] / CONFIG_FILE))
    steps = float(np.mean([read_metrics(folder).step for folder in folders]))
    return config, steps * config.data.batch_size / rows


def _aucs(runs: Sequence[Run], task: str) -> list[float]:
    """The AUC of each seed."""
    return [run.test_results()["metrics"][task]["auc"] for run in runs]


def _section(log: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    base, drawn = rows[0]["setting"], rows[0]["drawn"]
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
    return [f"## {log}", "", f"Intervals are over {drawn} and seeds.", "", table, ""]


def _show(difference: Mapping[str, float]) -> str:
    return f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
