"""What STEM gains over shared embeddings as the tasks of a synthetic log disagree more and more."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval
from matplotlib.figure import Figure
from tabulate import tabulate

from stem_torchrec.comparison.options import read_command_line as read_comparison
from stem_torchrec.comparison.train_all import train_all
from stem_torchrec.comparison.write_report import write_report
from stem_torchrec.config import parse_known_arguments
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.hang_detection import collective_timeout
from stem_torchrec.runtime.path_options import LocalOutput
from stem_torchrec.runtime.process import from_first_rank, join_process_group
from stem_torchrec.runtime.progress import log_rank0

from common.machine import describe_run
from common.output import check_out, make_folder, write_figure, write_table, write_whole


@dataclass(frozen=True)
class ConflictConfig:
    """What to measure; options of compare.py and train.py are taken as well, such as --data.synthetic for the logs."""

    out: LocalOutput = ""
    """Folder for a log and a comparison of each dial, and for conflict.md, conflict.parquet and conflict.png. The same
    command resumes an interrupted one."""
    dials: tuple[Annotated[float, Interval(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """How much the tasks' effects differ, from 0 (they agree) to 1 (they have nothing in common)."""
    models: str = "stem,single_task,shared_bottom,omoe,mmoe,ple"
    """Models to compare, as for compare.py."""
    seeds: str = "0,1,2"
    """Seeds of each model, as for compare.py."""


SHARED = ("shared_bottom", "omoe", "mmoe", "ple", "aitm", "esmm")
"""The models with one set of tables for all tasks."""


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[ConflictConfig, list[str]]:
    """What to measure, and the options of compare.py and train.py; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config, rest = parse_known_arguments(ConflictConfig(), args, description=description or "")
    check_out(config.out)
    if not config.dials:
        raise UserError("--dials is empty; leave it out for the default.")
    names = [name.strip() for name in config.models.split(",")]
    if "stem" not in names or not set(names) & set(SHARED):
        raise UserError(f"--models is {config.models!r}, but needs stem and one of {', '.join(SHARED)}.")
    return config, rest


def measure(config: ConflictConfig, rest: Sequence[str]) -> None:
    """Compares the models on a log for each dial, and writes the table and the plot.

    Args:
        config: the dials, models and seeds.
        rest: further options, of compare.py and train.py.

    Raises UserError for wrong further options, and if so many models cannot be trained that there is no margin to show.
    """
    with join_process_group() as process:
        folder = from_first_rank(partial(make_folder, config.out))
    rows: list[dict[str, Any]] = []
    left_out: set[str] = set()
    for dial in config.dials:
        of_dial = folder / f"conflict_{dial:g}"
        request = read_comparison(["--models", config.models, "--seeds", config.seeds, "--out", str(of_dial), *rest])
        drawn = replace(request.train.data.synthetic, conflict=dial)
        data = replace(request.train.data, path=str(of_dial / "log"))
        with join_process_group(timeout=collective_timeout(request.train.train.timeout)) as process:
            from_first_rank(partial(synthetic.ensure, drawn, str(of_dial / "log")))
            log_rank0(f"\nconflict {dial:g}")
            comparison = train_all(replace(request, train=replace(request.train, data=data)), process)
        if process.is_first:
            write_report(comparison, reports=len(config.dials))
            rows += [{"conflict": dial, **row} for row in pq.read_table(of_dial / "results.parquet").to_pylist()]
            left_out |= set(comparison.left_out)
    if rows:
        write(folder, rows, left_out)


def write(folder: Path, rows: Sequence[Mapping[str, Any]], left_out: Set[str]) -> None:
    """Writes conflict.md, conflict.parquet and conflict.png; the first and the last without models that are left out.

    Args:
        folder: exists.
        rows: of the comparisons, with `conflict` for the dial.
        left_out: names of the models that could not be trained at some dial.

    Raises UserError if that leaves no margin to show.
    """
    write_table(folder / "conflict.parquet", pa.Table.from_pylist([dict(row) for row in rows]))
    models = [model for model in dict.fromkeys(row["model"] for row in rows) if model not in left_out]
    if "stem" not in models or not set(models) & set(SHARED):
        raise UserError(
            f"{', '.join(sorted(left_out))} could not be trained, so there is no margin to show; give other options "
            "and another --out."
        )
    dials = list(dict.fromkeys(row["conflict"] for row in rows))
    lines = []
    for dial in dials:
        means = {model: aucs(rows, model, dial).mean() for model in models}
        best = max((model for model in models if model in SHARED), key=means.__getitem__)
        # By seed, because all models see the same rows in the same order for a seed.
        margin = aucs(rows, "stem", dial) - aucs(rows, best, dial)
        deviation = f" ± {margin.std(ddof=1):.4f}" if len(margin) > 1 else ""
        lines.append([f"{dial:g}", *(f"{means[m]:.4f}" for m in models), f"{margin.mean():+.4f}{deviation} ({best})"])
    table = tabulate(
        lines, ["conflict", *models, "STEM over the best shared"], tablefmt="github", disable_numparse=True
    )
    head = describe_run("conflict.py")
    note = "Test AUC, mean over tasks and seeds; the margin is shown with its standard deviation over seeds."
    if left_out:
        note += f" Left out, as they could not be trained: {', '.join(sorted(left_out))}."
    text = ["# Conflict", "", *(f"- {name}: {value}" for name, value in head.items()), "", note, "", table, ""]
    write_whole(folder / "conflict.md", "\n".join([*text, "![margins by conflict](conflict.png)", ""]))
    write_figure(folder / "conflict.png", plot(rows, models, dials))
    print(f"report: {folder / 'conflict.md'}")


def aucs(rows: Sequence[Mapping[str, Any]], model: str, dial: float) -> np.ndarray:
    """AUC of a model at a dial, by seed: the mean over the tasks."""
    selected = [row for row in rows if row["model"] == model and row["conflict"] == dial]
    seeds = sorted({row["seed"] for row in selected})
    return np.array([np.mean([row["auc"] for row in selected if row["seed"] == seed]) for seed in seeds])


def plot(rows: Sequence[Mapping[str, Any]], models: Sequence[str], dials: Sequence[float]) -> Figure:
    """The margin of STEM's AUC over each other model by dial, with the standard deviation over seeds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for model in models:
        if model != "stem":
            margins = [aucs(rows, "stem", dial) - aucs(rows, model, dial) for dial in dials]
            deviations = [margin.std(ddof=1) if len(margin) > 1 else 0 for margin in margins]
            axes.errorbar(dials, [m.mean() for m in margins], deviations, marker="o", capsize=3, label=f"over {model}")
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("conflict between the tasks")
    axes.set_ylabel("STEM's test AUC minus another model's")
    axes.legend()
    axes.grid(visible=True, alpha=0.2)
    return figure
