"""Which model to take, in one line: chosen by the validation split, and confirmed or not by the test rows.

The model that validates best is the only one whose test result decides, so no test result chooses among models. It is
taken if it is better than the base in some task and worse in none, by AUC, with the p-values of the whole report; else
the base is.

A run that keeps the best weights of each task (--train.best-by-task) is judged as the others are, by its evaluation of
the best mean: of one training, T evaluations that are each the best of a task are never below the best mean of one, by
chance as well. So validation does not choose between the two forms of a model. The form with the weights of each task
is taken where the test rows confirm it over the other one in the same way.
"""

import math
from collections.abc import Mapping
from statistics import fmean

from stem_torchrec.comparison.costs import Cost
from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.result_sections import Comparisons
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.metrics.multi_task import from_json
from stem_torchrec.training.run_folder import read_metrics
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric


def recommendation(comparison: Comparison, family: Comparisons, costs: Mapping[str, Cost]) -> str:
    """The line: the model, by how much on the test rows, at which cost, and when the base is the better choice.

    Where no model validates better than the base, the numbers are those of the next one.

    Args:
        comparison: of models, one of them the base.
        family: its differences on the test rows.
        costs: of each model.

    Example::

        # Take stem, which validates best (auc 0.7214, single_task 0.7201): AUC over single_task +0.0044 [+0.0021,
        # +0.0066] in finish (better), +0.0003 [-0.0012, +0.0018] in like (within noise). stem takes 6.0 MiB ...
    """
    base, metric, forms = comparison.config.base, comparison.train.train.metric, comparison.forms_by_task
    scores = {
        model: fmean(validation_score(run, metric) for run in comparison.runs_of(model))
        for model in comparison.models
        if model not in forms.values()
    }
    # Equal to the base is no reason to leave it.
    best, *others = sorted(scores, key=lambda model: (scores[model], model == base), reverse=True)
    chosen, of_forms = best, ""
    if best in forms:
        over_best = _differences(family, forms[best], best)
        chosen = forms[best] if _confirmed(over_best) else best
        of_forms = f" {forms[best]}, the form with the weights of each task, {_result(over_best)}: " + _measured(
            over_best, best
        )
    if chosen == base:
        behind = f", then {others[0]} {abs(scores[others[0]]):.4f}" if others else ""
        line = f"Take {base}: no other model validates better ({metric} {abs(scores[base]):.4f}{behind})."
        if others:
            measured = _measured(_differences(family, others[0], base), base)
            line += f" {others[0]}: {measured} {_cost(others[0], base, costs)}."
        return line + of_forms
    over_base = _differences(family, chosen, base)
    validates = f"validates best ({metric} {abs(scores[best]):.4f}, {base} {abs(scores[base]):.4f})"
    facts = f"{_measured(over_base, base)} {_cost(chosen, base, costs)}"
    if not _confirmed(over_base):
        return f"Take {base}: {chosen} {validates}, but on the test rows it {_result(over_base)}: {facts}.{of_forms}"
    rest = " or ".join(task for task, each in over_base.items() if each.verdict != "better")
    return (
        f"Take {chosen}, which {validates}: {facts}; {base} is the better choice where that counts for more"
        f"{f', or only {rest} does' if rest else ''}.{of_forms}"
    )


def validation_score(run: Run, metric: str) -> float:
    """The watched metric of a run's best evaluation over the tasks of all of its parts; higher is better.

    Of a run that keeps the weights of each task, it is the evaluation of the best mean as well.
    """
    metrics: Metrics = {}
    for folder in run.folders():
        metrics |= from_json(read_metrics(folder).valid)
    return WatchedMetric(metric, list(metrics)).score(metrics)


def _differences(family: Comparisons, model: str, over: str) -> dict[str, Interval]:
    """By task, how much the AUC of a model is above that of another; the family may have them the other way round."""
    forward = {task: each for (task, *key), each in family.items() if key == ["AUC", model, over]}
    return forward or {task: each.reversed for (task, *key), each in family.items() if key == ["AUC", over, model]}


def _confirmed(differences: Mapping[str, Interval]) -> bool:
    verdicts = {each.verdict for each in differences.values()}
    return "better" in verdicts and "worse" not in verdicts


def _result(differences: Mapping[str, Interval]) -> str:
    verdicts = {each.verdict for each in differences.values()}
    if "worse" in verdicts:
        return "is worse in some task"
    return "is better in some task and worse in none" if "better" in verdicts else "is better in none beyond noise"


def _measured(differences: Mapping[str, Interval], over: str) -> str:
    return f"AUC over {over} {', '.join(_in_task(task, each) for task, each in differences.items())}."


def _in_task(task: str, difference: Interval) -> str:
    bounds = "" if math.isnan(difference.low) else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    verdict = "no interval" if difference.verdict == "undefined" else difference.verdict
    return f"{difference.value:+.4f}{bounds} in {task} ({verdict})"


def _cost(model: str, base: str, costs: Mapping[str, Cost]) -> str:
    """As `stem takes 6.0 MiB of weights (1.50 times those of single_task), scores a row with 1 model of all tasks
    (single_task: one model of each task), and takes 12.3 s to train on a million samples (0.80 times)`."""
    own, other = costs[model], costs[base]
    times = own.mib_of_weights / other.mib_of_weights
    text = (
        f"{model} takes {own.mib_of_weights:.1f} MiB of weights ({times:.2f} times those of {base}), scores a row with "
        f"{_scoring(own)} ({base}: {_scoring(other)})"
    )
    if math.isnan(own.seconds) or math.isnan(other.seconds):
        return text
    return (
        f"{text}, and takes {own.seconds:.1f} s to train on a million samples ({own.seconds / other.seconds:.2f} times)"
    )


def _scoring(cost: Cost) -> str:
    """What a row is scored with, mean over the runs: `2.5 models of all tasks`, or `one model of each task`."""
    if cost.parts > 1:
        return "one model of each task"
    return f"{cost.kept:.1f}".removesuffix(".0") + f" model{'s' * (cost.kept != 1)} of all tasks"
