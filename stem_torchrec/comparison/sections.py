"""What the report says, section by section, from the runs of a comparison."""

from collections.abc import Mapping
from dataclasses import asdict

from stem_torchrec.comparison.report import METRICS, Report, dots, show, spread, write_parquet
from stem_torchrec.comparison.statistics import Interval
from stem_torchrec.comparison.tested import Comparison, Tested


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
    differences = {
        (task, measure): tested.differences(task, measure) for task in tested.tasks for measure in tested.measures
    }
    write_parquet(
        comparison.folder / "differences.parquet",
        [
            {"task": task, "metric": measure, "model": model, "over": comparison.base, **asdict(interval)}
            for (task, measure), by_model in differences.items()
            for model, interval in by_model.items()
        ],
    )
    report.text("## Results")
    for task in tested.tasks:
        report.text(f"### {task}")
        rows = []
        for model in comparison.models:
            tests = [found[run]["metrics"][task] for run in comparison.of(model)]
            row = {"model": model} | {name: spread([test[name] for test in tests]) for name in METRICS}
            for measure in tested.measures:
                over = "" if model == comparison.base else show(differences[task, measure][model])
                row[f"{measure} over {comparison.base}"] = over
            rows.append(row)
        report.table(rows)
        for measure in tested.measures:
            report.text(verdict(comparison, measure, differences[task, measure]))
    others = [model for model in comparison.models if model != comparison.base]
    if others:
        by_model = {
            model: {f"{measure}, {task}": found[model] for (task, measure), found in differences.items()}
            for model in others
        }
        report.plot("differences", dots(by_model, f"over {comparison.base}"), "differences with their intervals")


def verdict(comparison: Comparison, measure: str, differences: Mapping[str, Interval]) -> str:
    """Who is better, worse or neither, in words."""
    said: dict[str, list[str]] = {}
    for model, interval in differences.items():
        if model != comparison.base:
            said.setdefault(interval.says, []).append(model)
    parts = [
        f"{what}: {', '.join(said[what])}" for what in ("better", "worse", "within noise", "undefined") if what in said
    ]
    return f"{measure} beside {comparison.base}, " + "; ".join(parts) + "." if parts else ""


def choices(report: Report, comparison: Comparison) -> None:
    """What each model was set to, by the validation split."""
    report.text(
        "## What each was set to",
        f"The best of each model's trials on the validation split, with seed {comparison.seeds[0]}; tuning.parquet has "
        "all of them.",
    )
    rows = [row for row in comparison.chosen if row["chosen"]]
    names = {"model": "model", "learning rate of tables": "learning_rate", "embedding L2": "embedding_l2"}
    report.table(
        [
            {**{title: f"{row[name]}" for title, name in names.items()}, "validation": f"{row['score']:.4f}"}
            for row in rows
        ]
    )
    write_parquet(comparison.folder / "tuning.parquet", comparison.chosen)


def costs(report: Report, comparison: Comparison) -> None:
    """Weights, memory and speed of every model."""
    report.text("## What each costs", "MiB are those of the weights; optimizer states and activations come on top.")
    rows = []
    write_parquet(
        comparison.folder / "costs.parquet",
        [
            {
                "model": run.model,
                "seed": run.seed,
                **test["parameters"],
                "samples_per_second": test["samples_per_second"],
            }
            for run in comparison.runs
            for test in [run.test()]
        ],
    )
    for model in comparison.models:
        tests = [run.test() for run in comparison.of(model)]
        parameters = tests[0]["parameters"]
        rows.append(
            {
                "model": model,
                "weights in tables": f"{parameters['tables']:,}",
                "dense weights": f"{parameters['dense']:,}",
                "MiB": f"{4 * sum(parameters.values()) / 2**20:.1f}",
                "samples/s": spread([test["samples_per_second"] for test in tests], digits=0),
            }
        )
    report.table(rows)
