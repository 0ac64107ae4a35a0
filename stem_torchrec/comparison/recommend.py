"""Which model to take, in one line: chosen by the validation split, and confirmed or not by the test rows.

The model that validates best is the only one whose test result decides, so no test result chooses among models. It is
taken if it is better than the base in some task and worse in none, with the p-values of the whole report; else the base
is. The test rows decide by the metric that chose, where the report has it of a task, and by AUC where it has not.
"""

import math
from collections.abc import Mapping
from statistics import fmean

from stem_torchrec.comparison.costs import Cost
from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.result_sections import Comparisons
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.training.best_by_task import best_metrics
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric


def recommendation(comparison: Comparison, family: Comparisons, costs: Mapping[str, Cost]) -> str:
    """The line: the model, by how much on the test rows, at which cost, and when the base is the better choice.

    Args:
        comparison: of models, one of them the base.
        family: its differences on the test rows.
        costs: of each model.

    Example::

        # Take stem, which validates best (auc 0.7214, single_task 0.7201): AUC over single_task +0.0044 [+0.0021,
        # +0.0066] in finish (better), +0.0003 [-0.0012, +0.0018] in like (within noise). stem takes 6.0 MiB ...
    """
    base, metric = comparison.config.base, comparison.train.train.metric
    scores = {
        model: fmean(validation_score(run, metric) for run in comparison.runs_of(model)) for model in comparison.models
    }
    # Equal to the base is no reason to leave it.
    best = max(scores, key=lambda model: (scores[model], model == base))
    if best == base:
        others = [model for model in scores if model != base]
        next_best = max(others, key=scores.__getitem__, default=base)
        behind = f", then {next_best} {abs(scores[next_best]):.4f}" if others else ""
        return f"Take {base}: no other model validates better ({metric} {abs(scores[base]):.4f}{behind})."
    differences = deciding(family, metric, best, base)
    measured = _measured(differences, base)
    validates = f"validates best ({metric} {abs(scores[best]):.4f}, {base} {abs(scores[base]):.4f})"
    cost = f"{best} takes {_cost(costs[best], costs[base], base)}"
    verdicts = {task: interval.verdict for (task, _), interval in differences.items()}
    if "better" not in verdicts.values() or "worse" in verdicts.values():
        why = "is worse in some task" if "worse" in verdicts.values() else "is better in none beyond noise"
        return f"Take {base}: {best} {validates}, but on the test rows it {why}: {measured}. {cost}."
    rest = " or ".join(task for task, verdict in verdicts.items() if verdict != "better")
    return (
        f"Take {best}, which {validates}: {measured}. {cost}; {base} is the better choice where that "
        f"counts for more{f', or only {rest} does' if rest else ''}."
    )


def validation_score(run: Run, metric: str) -> float:
    """The watched metric of a run's best evaluation over the tasks of all of its parts; higher is better."""
    metrics: Metrics = {}
    for folder in run.folders():
        metrics |= best_metrics(folder)
    return WatchedMetric(metric, list(metrics)).score(metrics)


def deciding(family: Comparisons, metric: str, model: str, over: str) -> dict[tuple[str, str], Interval]:
    """The differences between two models by task and measure: the watched one, or AUC where a task has none of it."""
    by_measure = {(task, name): each for (task, name, *models), each in family.items() if models == [model, over]}
    watched = metric.partition("/")[0]
    return {
        (task, name): each
        for (task, name), each in by_measure.items()
        if name == next((own for of, own in by_measure if of == task and own.lower() == watched), "AUC")
    }


def _measured(differences: Mapping[tuple[str, str], Interval], over: str) -> str:
    """As `AUC over single_task +0.0044 [+0.0021, +0.0066] in like (better); RMSE over single_task ...`."""
    by_measure: dict[str, list[str]] = {}
    for (task, name), each in differences.items():
        by_measure.setdefault(name, []).append(_in_task(task, each))
    return "; ".join(f"{name} over {over} {', '.join(tasks)}" for name, tasks in by_measure.items())


def _in_task(task: str, difference: Interval) -> str:
    bounds = "" if math.isnan(difference.low) else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    verdict = "no interval" if difference.verdict == "undefined" else difference.verdict
    return f"{difference.value:+.4f}{bounds} in {task} ({verdict})"


def _cost(own: Cost, base: Cost, name: str) -> str:
    """As `6.0 MiB of weights (1.50 times those of single_task) and 12.3 s for a million samples (0.80 times)`."""
    times = own.mib_of_weights / base.mib_of_weights
    text = f"{own.mib_of_weights:.1f} MiB of weights ({times:.2f} times those of {name})"
    if math.isnan(own.seconds) or math.isnan(base.seconds):
        return text
    return f"{text} and {own.seconds:.1f} s to train on a million samples ({own.seconds / base.seconds:.2f} times)"
