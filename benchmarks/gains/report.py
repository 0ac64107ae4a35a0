"""The report on all sources: pays.md, pays.parquet and runs.parquet."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from tabulate import tabulate

from stem_torchrec.comparison.costs import Cost
from stem_torchrec.comparison.intervals import MIN_USERS
from stem_torchrec.comparison.report import show

from common.machine import describe_run
from common.output import write_table, write_whole
from gains.averages import averages
from gains.done import Done
from gains.family import MEAN, Family, Gain
from gains.runs_done import rows_of_runs

_ON_VALID = (
    "**This is the validation split**, by which the weights of each run were kept: it screens models, and its "
    "intervals prove nothing. What is chosen by it has to be measured with `--split test` and another --out."
)


def write_report(
    folder: Path, sources: Sequence[Done], family: Family, *, models: Mapping[str, str], split: str
) -> None:
    """Writes pays.md, pays.parquet of the comparisons, and runs.parquet of the runs.

    Args:
        folder: exists.
        sources: what is done of each.
        family: all comparisons.
        models: the options of each model, by name.
        split: the split that is reported on.
    """
    costs = {(done.name, name, seeds): done.cost(name, seeds) for done, name, seeds in _costed(sources, family.gains)}
    rows = [_row(gain, costs, split=split) for gain in family.gains]
    if rows:
        write_table(folder / "pays.parquet", pa.Table.from_pylist(rows))
    if runs := [row for done in sources for row in rows_of_runs(done)]:
        write_table(folder / "runs.parquet", pa.Table.from_pylist(runs))
    base = sources[0].base
    head = [f"- {name}: {value}" for name, value in describe_run("pays.py").items()]
    text = ["# Models on several sources", "", *head, "", *([_ON_VALID, ""] if split == "valid" else [])]
    text += [
        f"AUC of each model over {' and over '.join(_others(family.gains)) or base} on the rows of the {split} split, "
        "with the interval over draws of users, or of rows where a log has no users, and of seeds; then the p-value of "
        f"no difference from the same draws, raw and adjusted. {family.text} All sources, tasks and models of this "
        "page are that one family; bold is what stays different. There is no interval where fewer than "
        f"{MIN_USERS} users have a label of a kind. Costs are times those of the same: MiB of the weights that "
        "predict, MiB in training, and seconds of training for a million rows.",
        "",
        *(line for over in _others(family.gains) for line in _summary(family.gains, list(models), over)),
        "## Models",
        "",
        *[f"- `{name}`: {options}" for name, options in models.items()],
        "",
    ]
    for done in sources:
        text += _section(done, [gain for gain in family.gains if gain.source == done.name], costs)
    write_whole(folder / "pays.md", "\n".join(text))
    print(f"report: {folder / 'pays.md'}", flush=True)


Costs = Mapping[tuple[str, str, tuple[int, ...]], Cost]
"""By source, model and seeds."""


def _costed(sources: Sequence[Done], gains: Sequence[Gain]) -> list[tuple[Done, str, tuple[int, ...]]]:
    """What costs are shown of: every model that is compared, and the other one with its seeds."""
    by_name = {done.name: done for done in sources}
    keys = {(gain.source, name, gain.seeds) for gain in gains for name in (gain.model, gain.over)}
    return [(by_name[source], name, seeds) for source, name, seeds in sorted(keys)]


def _others(gains: Sequence[Gain]) -> list[str]:
    """The models that others are compared with, the base before two of its runs."""
    return sorted({gain.over for gain in gains}, key=len)


def _row(gain: Gain, costs: Costs, *, split: str) -> dict[str, Any]:
    """A comparison as the file has it."""
    own, other = (costs[gain.source, name, gain.seeds] for name in (gain.model, gain.over))
    return {
        "source": gain.source,
        "task": gain.task,
        "model": gain.model,
        "base": gain.over,
        "split": split,
        "seeds": list(gain.seeds),
        "drawn": gain.unit,
        "auc": gain.auc,
        "auc_of_base": gain.other_auc,
        **gain.difference.numbers,
        "p_adjusted": gain.difference.adjusted,
        "verdict": gain.difference.verdict,
        "weights": own.tables + own.dense,
        "mib_of_weights": own.mib_of_weights,
        "mib_in_training": own.mib_in_training,
        "seconds": own.seconds,
        "mib_of_weights_of_base": other.mib_of_weights,
        "mib_in_training_of_base": other.mib_in_training,
        "seconds_of_base": other.seconds,
    }


def _summary(gains: Sequence[Gain], models: Sequence[str], over: str) -> list[str]:
    """A line for each model: in how many tasks it is better and worse, and what its intervals tell by themselves, which
    screens models where a family is too large for any to stand out."""
    lines = []
    for model in models:
        own = [gain for gain in gains if (gain.model, gain.over) == (model, over)]
        if not own:
            continue
        verdicts = Counter(gain.difference.verdict for gain in own)
        above, below = sum(gain.difference.low > 0 for gain in own), sum(gain.difference.high < 0 for gain in own)
        counts = [
            len(own),
            *(verdicts[name] for name in ("better", "worse", "within noise", "undefined")),
            above,
            below,
        ]
        mean = f"{fmean(gain.difference.value for gain in own):+.4f}"
        lines.append([model, *counts, mean, _places(own, "better"), _places(own, "worse")])
    headers = [
        *("model", "tasks", "better", "worse", "within noise", "no interval"),
        *("above by its interval alone", "below", "mean", "better in", "worse in"),
    ]
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return [f"## Over {over} in all", "", table, ""] if lines else []


def _places(gains: Sequence[Gain], verdict: str) -> str:
    return ", ".join(f"{gain.source}/{gain.task}" for gain in gains if gain.difference.verdict == verdict)


def _section(done: Done, gains: Sequence[Gain], costs: Costs) -> list[str]:
    logs = ", ".join(Path(log).name for log in done.source.logs)
    options = f" Options: `{done.source.options}`." if done.source.options else ""
    unit = f", drawn by {gains[0].unit}" if gains else ""
    lines = [f"## {done.name}", "", f"{len(done.source.logs)} log(s): {logs}{unit}.{options}", ""]
    for over in _others(gains):
        lines += [_table(done, [gain for gain in gains if gain.over == over], over, costs), ""]
    if gains:
        lines += _of_two(done, gains)
    lines += _settings(done.settings(), seed=done.asked[0])
    for reason in done.left_out.values():
        lines += [f"Left out, as it could not be trained: {reason}", ""]
    if missing := done.missing():
        lines += [f"Not done yet: {', '.join(missing)}.", ""]
    return lines


def _settings(chosen: Mapping[str, Counter[str]], *, seed: int) -> list[str]:
    """A line for each model, or single-task model of a task, with what `--tune` chose, and on how many logs."""
    if not chosen:
        return []
    lines = [
        f"- `{name}`: {', '.join(f'{setting} on {logs}' for setting, logs in of_logs.most_common())}"
        for name, of_logs in chosen.items()
    ]
    return [f"Settings chosen by validation with seed {seed}, and on how many logs:", "", *lines, ""]


def _of_two(done: Done, gains: Sequence[Gain]) -> list[str]:
    """A line for each model with the AUC of one run and that of two together."""
    models = dict.fromkeys([done.base, *(gain.model for gain in gains if gain.model != done.of_two)])
    by_model = {name: averages(done, name) for name in models}
    if not all(by_model.values()):
        return []
    if done.source.tasks == "mean":
        by_model = {name: {MEAN: _means(each.values())} for name, each in by_model.items()}
    tasks = list(by_model[done.base])
    rows = [[name, *(f"{auc:.4f}" for task in tasks for auc in each[task])] for name, each in by_model.items()]
    headers = ["model", *(name for task in tasks for name in (f"{task}: AUC of a run", "of two averaged"))]
    about = "Two runs averaged, by their logits, are what a second model of the same kind would gain by itself:"
    return [about, "", tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]


def _means(of_tasks: Iterable[tuple[float, float]]) -> tuple[float, float]:
    one, two = zip(*of_tasks, strict=True)
    return fmean(one), fmean(two)


def _table(done: Done, gains: Sequence[Gain], over: str, costs: Costs) -> str:
    """A line for each model, with the AUC of the one that it is compared with, of the same seeds, in front."""
    tasks = list(dict.fromkeys(gain.task for gain in gains))
    headers = ["model", "seeds"]
    for task in tasks:
        headers += [f"{task}: AUC of {over}", "over it"]
    lines = []
    for model in dict.fromkeys(gain.model for gain in gains):
        by_task = {gain.task: gain for gain in gains if gain.model == model}
        seeds = next(iter(by_task.values())).seeds
        own, other = (costs[done.name, name, seeds] for name in (model, over))
        cells = [model, ",".join(map(str, seeds))]
        for task in tasks:
            cells += [f"{by_task[task].other_auc:.4f}", str(show(by_task[task].difference))]
        times = [
            own.mib_of_weights / other.mib_of_weights,
            own.mib_in_training / other.mib_in_training,
            own.seconds / other.seconds,
        ]
        lines.append([*cells, *(f"{each:.2f}" for each in times)])
    headers += ["weights", "training memory", "time"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)
