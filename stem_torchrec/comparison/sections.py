"""What the report says, section by section, from the runs of a comparison."""

from collections.abc import Mapping
from itertools import permutations

import torch

from stem_torchrec.comparison.diagnostics import weights_of
from stem_torchrec.comparison.intervals import Interval, Resampled
from stem_torchrec.comparison.report import METRICS, Report, dots, escape, show, spread, write_parquet
from stem_torchrec.comparison.tested import Comparison, Tested
from stem_torchrec.training.optimizers import states_of_tables
from stem_torchrec.training.watched_metric import SIGNS

_THAN = {
    "better": "better than",
    "within noise": "within noise of",
    "worse": "worse than",
    "undefined": "without an interval beside",
}
"""Words for what an interval says."""


def results(report: Report, comparison: Comparison, tested: Tested) -> None:
    """Metrics of every model and task, and each model's difference to the base with its interval."""
    found = {run: run.test() for run in comparison.runs}
    write_parquet(
        comparison.folder / "results.parquet",
        [
            {"model": run.model, "seed": run.seed, "task": task, **test["metrics"][task]}
            for run, test in found.items()
            for task in tested.tasks
        ],
    )
    drawn = {(task, measure): tested.resample(task, measure) for task in tested.tasks for measure in tested.measures}
    write_parquet(
        comparison.folder / "differences.parquet",
        [
            {"task": task, "metric": measure, "model": model, "over": over, **here.difference(model, over).numbers}
            for (task, measure), here in drawn.items()
            for model, over in permutations(comparison.models, 2)
        ],
    )
    base = comparison.config.base
    others = [model for model in comparison.models if model != base]
    report.text("## Results")
    for task in tested.tasks:
        report.text(f"### {escape(task)}")
        rows = []
        for model in comparison.models:
            tests = [found[run]["metrics"][task] for run in comparison.of(model)]
            row = {"model": model} | {name: spread([test[name] for test in tests]) for name in METRICS}
            for measure in tested.measures:
                over = show(drawn[task, measure].difference(model, base)) if model != base else ""
                row[f"{measure} over {base}"] = over
            rows.append(row)
        report.table(rows)
        for measure in tested.measures if others else ():
            here = drawn[task, measure]
            report.text(f"{measure}: {verdict({model: here.difference(model, base) for model in others}, base)}")
    if others:
        by_model = {
            model: {f"{measure}, {task}": here.difference(model, base) for (task, measure), here in drawn.items()}
            for model in others
        }
        what = "differences with their intervals; more is better, but for logloss less"
        report.plot("differences", dots(by_model, f"over {base}", width=4), what)
    rivals(report, comparison, {f"{measure}, {task}": here for (task, measure), here in drawn.items()})


def verdict(differences: Mapping[str, Interval], over: str) -> str:
    """Which models are better than `over`, worse or neither, in words."""
    said = by_verdict(differences)
    parts = [f"{word} {over}: {', '.join(said[what])}" for what, word in _THAN.items() if what in said]
    return "; ".join(parts) + "."


def rivals(report: Report, comparison: Comparison, drawn: Mapping[str, Resampled]) -> None:
    """What the first model has more than each other one, by measure; left out where the first table says it."""
    first, *others = comparison.models
    if first == comparison.config.base or len(others) < 2:
        return
    report.text(f"## Does {first} win?", f"What {first} has more than each other model.")
    report.table(
        [{"over": m, **{title: show(here.difference(first, m)) for title, here in drawn.items()}} for m in others]
    )
    for title, here in drawn.items():
        said = by_verdict({model: here.difference(first, model) for model in others})
        parts = [f"{word} {', '.join(said[what])}" for what, word in _THAN.items() if what in said]
        report.text(f"{escape(title)}: {first} is {'; '.join(parts)}.")


def by_verdict(differences: Mapping[str, Interval]) -> dict[str, list[str]]:
    """Models by what their intervals say."""
    said: dict[str, list[str]] = {}
    for model, interval in differences.items():
        said.setdefault(interval.says, []).append(model)
    return said


def choices(report: Report, comparison: Comparison) -> None:
    """What each model was set to, by the validation split."""
    report.text(
        "## What each was set to",
        f"The best of each model's trials on the validation split, with seed {comparison.seeds[0]}; tuning.parquet has "
        "all of them, where a higher score is better (logloss and NE are negated).",
    )
    rows = [row for row in comparison.chosen if row["chosen"]]
    names = {"model": "model", "learning rate of tables": "learning_rate", "embedding L2": "embedding_l2"}
    metric = comparison.train.train.metric
    sign = SIGNS[metric.partition("/")[0]]
    report.table(
        [
            {
                **{title: f"{row[name]}" for title, name in names.items()},
                f"validation {metric}": f"{sign * row['score']:.4f}",
            }
            for row in rows
        ]
    )
    write_parquet(comparison.folder / "tuning.parquet", comparison.chosen)


def costs(report: Report, comparison: Comparison) -> None:
    """Weights, memory and speed of every model."""
    report.text(
        "## What each costs",
        "MiB in training: weights, optimizer states and dense gradients, in fp32, on one rank; several ranks share the "
        "tables, and each has the whole dense part. Activations come on top. Single-task models are added up, though "
        "they train one after another.",
    )
    rows, raw = [], []
    for model in comparison.models:
        runs = comparison.of(model)
        of_tables, dense = weights_of(runs[0].folders())
        state = states_of_tables(of_tables, comparison.train.sparse.name)
        tables = sum(torch.Size(size).numel() for size in of_tables)
        speeds = [run.test()["samples_per_second"] for run in runs]
        rows.append(
            {
                "model": model,
                "weights in tables": f"{tables:,}",
                "dense weights": f"{dense:,}",
                "MiB of weights": f"{4 * (tables + dense) / 2**20:.1f}",
                # A dense weight has a gradient and two moments.
                "MiB in training": f"{4 * (tables + state + 4 * dense) / 2**20:.1f}",
                "samples/s": spread(speeds, digits=0),
            }
        )
        raw += [
            {
                "model": model,
                "seed": run.seed,
                "tables": tables,
                "dense": dense,
                "states_of_tables": state,
                "samples_per_second": speed,
            }
            for run, speed in zip(runs, speeds, strict=True)
        ]
    report.table(rows)
    write_parquet(comparison.folder / "costs.parquet", raw)
