"""What the report says, section by section, from the runs of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import count_positives, group_rows, name_groups
from stem_torchrec.comparison.report import METRICS, Report, dots, show, spread, write_parquet
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.statistics import Interval, Ranking, auc_differences
from stem_torchrec.data.files import Columns, find_row_groups, read_row_group
from stem_torchrec.data.schema import load_schema


@dataclass(frozen=True)
class Comparison:
    """Runs that are trained and tested, and what to make of them; see CompareConfig."""

    folder: Path
    runs: Sequence[Run]
    path: str
    """Folder of the log."""
    split: str
    base: str
    resamples: int
    confidence: float
    pair: tuple[str, str] | None
    edges: Sequence[float]
    item: str
    chosen: Sequence[Mapping[str, Any]] = ()
    """A line for each model and value that was tried for it; see `choices.Grid.rows`."""

    @property
    def models(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(run.model for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """Each once, in order."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def of(self, model: str) -> list[Run]:
        """The runs of a model, by seed."""
        return [run for run in self.runs if run.model == model]


class Tested:
    """The test rows of a comparison, and what every run says of them."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.columns = Columns.select(load_schema(comparison.path))
        first, *_ = comparison.runs
        predicted = first.predictions()
        self.tasks = [name.partition("/")[2] for name in predicted if name.startswith("label/")]
        self.labels = {task: predicted[f"label/{task}"] for task in self.tasks}
        self.rows = predicted["row"]
        # Without a group column each row is drawn for itself.
        self.drawn = "users" if self.columns.group else "rows"
        self.users: NDArray[np.int64] = predicted.get(self.columns.group or "", self.rows)
        self.scores: dict[str, dict[str, list[NDArray[np.float64]]]] = {task: {} for task in self.tasks}
        for run in comparison.runs:
            predicted = run.predictions()
            for task in self.tasks:
                self.scores[task].setdefault(run.model, []).append(predicted[f"prediction/{task}"])

    def differences(self, task: str, rows: NDArray[np.bool_] | None = None) -> dict[str, Interval]:
        """AUC of each model less that of the base, over the rows that have a label, or those of them in `rows`."""
        known = ~np.isnan(self.labels[task]) if rows is None else rows & ~np.isnan(self.labels[task])
        return auc_differences(
            {model: [scores[known] for scores in by_seed] for model, by_seed in self.scores[task].items()},
            self.labels[task][known] == 1,
            self.users[known],
            base=self.comparison.base,
            resamples=self.comparison.resamples,
            confidence=self.comparison.confidence,
        )

    def aucs(self, task: str, model: str, rows: NDArray[np.bool_]) -> list[float]:
        """By seed, over those of `rows` that have a label."""
        known = rows & ~np.isnan(self.labels[task])
        positive = self.labels[task][known] == 1
        return [Ranking(s[known], positive).auc(np.ones(known.sum())) for s in self.scores[task][model]]


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
    differences = {task: tested.differences(task) for task in tested.tasks}
    write_parquet(
        comparison.folder / "differences.parquet",
        [
            {"task": task, "model": model, "over": comparison.base, **asdict(interval)}
            for task, by_model in differences.items()
            for model, interval in by_model.items()
        ],
    )
    report.text("## Results")
    for task in tested.tasks:
        report.text(f"### {task}")
        rows = []
        for model in comparison.models:
            tests = [found[run]["metrics"][task] for run in comparison.of(model)]
            over = "" if model == comparison.base else show(differences[task][model])
            spreads = {name: spread([test[name] for test in tests]) for name in METRICS}
            rows.append({"model": model, **spreads, f"AUC over {comparison.base}": over})
        report.table(rows)
        report.text(verdict(comparison, differences[task]))
    by_model = {
        model: {task: differences[task][model] for task in tested.tasks}
        for model in comparison.models
        if model != comparison.base
    }
    if by_model:
        report.plot("differences", dots(by_model, f"AUC over {comparison.base}"), "differences with their intervals")


def verdict(comparison: Comparison, differences: Mapping[str, Interval]) -> str:
    """Who is better, worse or neither, in words."""
    said: dict[str, list[str]] = {}
    for model, interval in differences.items():
        if model != comparison.base:
            said.setdefault(interval.says, []).append(model)
    parts = [
        f"{what}: {', '.join(said[what])}" for what in ("better", "worse", "within noise", "undefined") if what in said
    ]
    return f"Beside {comparison.base}, " + "; ".join(parts) + "." if parts else ""


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


def comparable_samples(report: Report, comparison: Comparison, tested: Tested) -> None:
    """Test rows grouped by the ratio of a user's, then an item's, positives in the training log."""
    assert comparison.pair is not None
    keys = {"user": tested.columns.group, "item": comparison.item}
    raw: list[dict[str, Any]] = []
    for kind, key in keys.items():
        if not key:
            continue
        first, second = comparison.pair
        report.text(
            f"## Comparable samples, by {kind}",
            f"Test rows by how much more of their {key}'s positives in the training log are of {first} than of "
            f"{second}, over the same ratio of the whole log: 1 is as everybody.",
        )
        columns = Columns(sparse={}, dense=(), labels=comparison.pair, group=key)
        schema = load_schema(comparison.path)
        positives = count_positives(find_row_groups(comparison.path, "train", schema, columns), key, comparison.pair)
        values = tested.users if kind == "user" else _column(comparison, key)[tested.rows]
        groups = group_rows(positives.ratios(values), comparison.edges)
        for task in comparison.pair:
            report.text(f"### {task}")
            lines = []
            for number, name in enumerate(name_groups(comparison.pair, comparison.edges)):
                rows = groups == number
                labels = tested.labels[task][rows]
                line = {f"{first} : {second}": name, "rows": f"{rows.sum():,}", "positives": f"{(labels == 1).sum():,}"}
                differences = tested.differences(task, rows) if (labels == 1).any() and (labels == 0).any() else {}
                for model in comparison.models:
                    aucs = tested.aucs(task, model, rows) if differences else [np.nan]
                    interval = differences.get(model)
                    line[model] = "-" if interval is None else f"{np.mean(aucs):.4f}"
                    if interval is not None and model != comparison.base:
                        line[model] += f" ({show(interval)})"
                    raw.append(
                        {
                            "by": kind, "task": task, "group": name, "rows": int(rows.sum()),
                            "positives": int((labels == 1).sum()), "model": model, "auc": float(np.mean(aucs)),
                            **(asdict(interval) if interval else dict.fromkeys(("value", "low", "high"), np.nan)),
                        }
                    )  # fmt: skip
                lines.append(line)
            report.table(lines)
    if raw:
        write_parquet(comparison.folder / "comparable.parquet", raw)


def _column(comparison: Comparison, name: str) -> NDArray[np.int64]:
    """A column of integers of the test split, in the order of the log."""
    columns = Columns(sparse={}, dense=(), labels=(), group=name)
    found = find_row_groups(comparison.path, comparison.split, load_schema(comparison.path), columns)
    return np.concatenate([read_row_group(group, columns).column(name).to_numpy() for group in found])
