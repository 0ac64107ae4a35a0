"""The sections of the report on the results: the metrics of every model, and who is better than whom."""

from collections.abc import Mapping
from itertools import permutations

from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.multiplicity import adjust, describe_family
from stem_torchrec.comparison.report import METRICS, METRICS_OF_VALUES, dots, show, spread, write_parquet
from stem_torchrec.comparison.scored_rows import Scored
from stem_torchrec.comparison.task_scores import LOWER_IS_BETTER
from stem_torchrec.runtime.report_file import Report, escape

Comparisons = Mapping[tuple[str, str, str, str], Interval]
"""Differences by task, metric, model and the model that it is compared with."""

_PHRASES = {
    "better": "better than",
    "within noise": "within noise of",
    "worse": "worse than",
    "undefined": "without an interval against",
}
"""The verdicts of an interval, in the words of the report."""


def results(report: Report, scored: Scored) -> Comparisons:
    """Adds the metrics of every model by task, and the differences to the base and of the first model to the others.

    Returns the comparisons of the report.
    """
    comparison, base = scored.comparison, scored.comparison.config.base
    metrics = {run: run.test_results()["metrics"] for run in comparison.runs}
    # Tasks of one kind have metrics that those of another have not.
    columns = dict.fromkeys(name for by_task in metrics.values() for task in scored.tasks for name in by_task[task])
    write_parquet(
        comparison.folder / "results.parquet",
        [
            {"model": run.model, "log": run.log, "seed": run.seed, "task": task}
            | {name: by_task[task].get(name) for name in columns}
            for run, by_task in metrics.items()
            for task in scored.tasks
        ],
    )
    family, draws = _compare(scored)
    report.text("## Results")
    if family:
        config = comparison.config
        report.text(describe_family(family, config.correction, draws=draws, confidence=config.confidence))
    others = [model for model in comparison.models if model != base]
    for task in scored.tasks:
        report.text(f"### {escape(task)}")
        shown = METRICS if scored.columns.is_binary(task) else METRICS_OF_VALUES
        rows = []
        for model in comparison.models:
            of_seeds = [metrics[run][task] for run in comparison.runs_of(model)]
            row = {"model": model} | {name: spread([values[name] for values in of_seeds]) for name in shown}
            for name in scored.measures[task]:
                row[f"{name} over {base}"] = show(family[task, name, model, base]) if model != base else ""
            rows.append(row)
        report.table(rows)
        for name in scored.measures[task] if others else ():
            verdicts = verdict_sentence({model: family[task, name, model, base] for model in others}, base)
            report.text(f"{name}: {verdicts}")
    by_model = {
        model: {
            f"{name}, {task}": family[task, name, model, base]
            for task in scored.tasks
            for name in scored.measures[task]
        }
        for model in others
    }
    if by_model:
        lower = [name for name in LOWER_IS_BETTER if any(name in names for names in scored.measures.values())]
        caption = f"differences with their intervals; more is better, except for {', '.join(lower)}"
        report.plot("differences", dots(by_model, f"over {base}", width=4), caption)
    _rivals(report, scored, family)
    return family


def _compare(scored: Scored) -> tuple[Comparisons, int]:
    """The comparisons of the report, adjusted together, and their number of draws.

    They are those of each model with the base, and of the first model with each other one; with --recommend those of
    the two forms of a model as well. differences.parquet gets those of all pairs, for which only the raw p-value is
    known.
    """
    comparison = scored.comparison
    first, base = comparison.models[0], comparison.config.base
    pairs = [(model, base) for model in comparison.models if model != base]
    if first != base:
        pairs += [(first, model) for model in comparison.models if model not in (first, base)]
    if comparison.config.recommend:
        forms = [(form, model) for model, form in comparison.forms_by_task.items()]
        pairs += [pair for pair in forms if not {pair, pair[::-1]} & {*pairs}]
    measured = [(task, name) for task in scored.tasks for name in scored.measures[task]]
    draws = scored.draws_for(len(pairs) * len(measured))
    resampled = {(task, name): scored.resample(task, name, draws=draws) for task, name in measured}
    family = adjust(
        {(*key, model, over): resampled[key].difference(model, over) for key in measured for model, over in pairs},
        comparison.config.correction,
    )
    raw = []
    for task, name in measured:
        for model, over in permutations(comparison.models, 2):
            member = family.get((task, name, model, over)) or family.get((task, name, over, model))
            row = {"task": task, "metric": name, "model": model, "over": over}
            numbers = resampled[task, name].difference(model, over).numbers
            raw.append({**row, **numbers, "p_adjusted": member.adjusted if member else None})
    write_parquet(comparison.folder / "differences.parquet", raw)
    return family, draws


def _rivals(report: Report, scored: Scored, family: Comparisons) -> None:
    """Adds the differences of the first model to each other one, unless the first table has them already."""
    first, *others = scored.comparison.models
    if first == scored.comparison.config.base or len(others) < 2:
        return
    report.text(f"## Does {first} win?", f"Difference of {first} to each other model; of the same family.")
    titles = {f"{name}, {task}": (task, name) for task in scored.tasks for name in scored.measures[task]}
    report.table(
        [
            {"over": model, **{title: show(family[*key, first, model]) for title, key in titles.items()}}
            for model in others
        ]
    )
    for title, key in titles.items():
        models = by_verdict({model: family[*key, first, model] for model in others})
        parts = [f"{phrase} {', '.join(models[v])}" for v, phrase in _PHRASES.items() if v in models]
        report.text(f"{escape(title)}: {first} is {'; '.join(parts)}.")


def verdict_sentence(differences: Mapping[str, Interval], over: str) -> str:
    """Names the models that are better than `over`, within noise of it, and worse."""
    models = by_verdict(differences)
    return "; ".join(f"{phrase} {over}: {', '.join(models[v])}" for v, phrase in _PHRASES.items() if v in models) + "."


def by_verdict(differences: Mapping[str, Interval]) -> dict[str, list[str]]:
    """The models by the verdict of their interval."""
    models: dict[str, list[str]] = {}
    for model, interval in differences.items():
        models.setdefault(interval.verdict, []).append(model)
    return models
