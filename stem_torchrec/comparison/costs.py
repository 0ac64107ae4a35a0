"""What the models of a comparison cost: weights, memory in training, and speed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from stem_torchrec.comparison.diagnostics import count_weights
from stem_torchrec.comparison.report import spread, write_parquet
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.runtime.report_file import Report
from stem_torchrec.training.best_by_task import best_metrics, weights_of_tasks
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import CONFIG_FILE
from stem_torchrec.training.sparse_optimizers import states_of_tables


@dataclass(frozen=True)
class Cost:
    """What a model costs; single-task models are added up."""

    tables: int
    """Weights in tables."""
    dense: int
    """Other weights."""
    states: int
    """Numbers that the optimizer of the tables keeps."""
    kept: float
    """Models that the tasks are predicted from, mean over the runs: 1, more with --train.best-by-task."""
    parts: int
    """Models that are trained by themselves: 1, or one for each task."""
    speeds: Sequence[float | None]
    """Samples a second in the training of each run; None for one too short to tell."""

    @property
    def mib_of_weights(self) -> float:
        """MiB in fp32 of all weights that the tasks are predicted from."""
        return 4 * self.kept * (self.tables + self.dense) / 2**20

    @property
    def mib_in_training(self) -> float:
        """MiB of weights, optimizer states and dense gradients in fp32 on one rank."""
        # A dense weight has a gradient and two moments.
        return 4 * (self.tables + self.states + 4 * self.dense) / 2**20

    @property
    def seconds(self) -> float:
        """Seconds of training for a million samples, mean over the runs; NaN if none tells."""
        known = [1e6 / speed for speed in self.speeds if speed]
        return fmean(known) if known else math.nan


def cost_of(comparison: Comparison, model: str) -> Cost:
    """What a model of a comparison costs."""
    runs = comparison.runs_of(model)
    table_sizes, dense = count_weights(runs[0].folders())
    kept = [len(weights_of_tasks(folder, list(best_metrics(folder)))) for run in runs for folder in run.folders()]
    return Cost(
        tables=sum(torch.Size(size).numel() for size in table_sizes),
        dense=dense,
        states=states_of_tables(table_sizes, load_config(str(runs[0].folders()[0] / CONFIG_FILE)).sparse.name),
        kept=fmean(kept),
        parts=len(runs[0].folders()),
        speeds=[run.test_results()["samples_per_second"] for run in runs],
    )


def costs(report: Report, comparison: Comparison) -> dict[str, Cost]:
    """Adds the weights, memory and speed of every model; returns them."""
    report.text(
        "## What each costs",
        "MiB of weights are those that the tasks are predicted from: of one model, or with --train.best-by-task of one "
        "for each evaluation that is some task's best. MiB in training are weights, optimizer states and dense "
        "gradients in fp32 on one rank; several ranks share the tables, and each has the whole dense part. Activations "
        "are not counted. Single-task models are added up, though they train one after another.",
    )
    of_models = {model: cost_of(comparison, model) for model in comparison.models}
    report.table(
        [
            {
                "model": model,
                "weights in tables": f"{cost.tables:,}",
                "dense weights": f"{cost.dense:,}",
                "MiB of weights": f"{cost.mib_of_weights:.1f}",
                "MiB in training": f"{cost.mib_in_training:.1f}",
                "samples/s": spread(cost.speeds, digits=0),
            }
            for model, cost in of_models.items()
        ]
    )
    raw = [
        {
            "model": model, "log": run.log, "seed": run.seed, "tables": cost.tables, "dense": cost.dense,
            "states_of_tables": cost.states, "models_kept": cost.kept, "samples_per_second": speed,
        }
        for model, cost in of_models.items()
        for run, speed in zip(comparison.runs_of(model), cost.speeds, strict=True)
    ]  # fmt: skip
    write_parquet(comparison.folder / "costs.parquet", raw)
    return of_models
