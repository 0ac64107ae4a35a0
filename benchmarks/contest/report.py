"""The report of a throughput run: ratios between contestants that took turns, then every contestant, and a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure
from tabulate import tabulate

from common.load import cores, is_loaded
from common.output import write_figure, write_table, write_whole
from contest.problem import MALLOC
from contest.ratios import ratios
from contest.turns import Score

_HOW_TO_READ = """\
- **ours**: this project as training assembles it. **stock**: the same model in loops of nn.Linear on TorchRec's own
  modules. **dense**: plain PyTorch, nn.Embedding, Adam over everything, L2 on whole tables.
- Limits of the machine: **gemm**, the fastest of a square matrix product of 4096 and the products of the experts;
  **products**, only the products with weights of a step, in their shapes; **copy**, a copy of
  256 MiB; **tables**, lookup and update without the model.
- All sides of a contest are built before the first turn, and take turns; every other round runs backward. **P50, P90**:
  ms of a step over all turns. A ratio compares the median steps of the same turn; it is shown as the median over the
  turns, with the lowest and the highest in brackets.
- **G/s**: 10^9 operations per second at P50, in the matrix products with weights, forward and backward. The time
  includes everything else that a step does. For copy and tables it is 10^9 bytes per second.
- **peak**: MiB of a rank, resident on CPU, allocated on a GPU. **faults**: page faults in a step.
- **malloc kept**: the process keeps freed memory, which this project sets on CPU by two calls of mallopt and which any
  program can set. The first column of ratios is with it on all sides; **malloc as it is**, the second, on none.
- **others busy**: cores that processes outside of the contest kept busy meanwhile.
"""


def write_report(
    folder: Path,
    head: Mapping[str, str],
    scores: Mapping[str, Sequence[Score]],
    batch_size: int,
    busy: Mapping[str, float],
) -> None:
    """Writes report.md, report.parquet and, if `others` was held, step_time.png.

    Args:
        folder: exists.
        head: of the report, in order.
        scores: of the contests so far, by name.
        batch_size: rows of a batch, per rank.
        busy: cores that others kept busy during a contest, by its name.
    """
    rows = [row(contest, score, batch_size) for contest, contestants in scores.items() for score in contestants]
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({key: str(value) for key, value in head.items()})
    write_table(folder / "report.parquet", table)
    lines = ["# Throughput", "", *(f"- {key}: {value}" for key, value in head.items()), ""]
    if loaded := [contest for contest, others in busy.items() if is_loaded(others, cores())]:
        lines += [f"**Warning: other processes were busy during {', '.join(loaded)}; measure again for times.**", ""]
    lines += [tabulate(ratios(scores), ["what", *MALLOC.values()], tablefmt="github"), "", _HOW_TO_READ]
    for contest, contestants in scores.items():
        shown = [row(contest, score, batch_size) for score in contestants]
        columns = {
            "side": "side",
            "rows": "rows",
            "P50": "p50_ms",
            "P90": "p90_ms",
            "samples/s": "samples_per_second",
            "G/s": "work_per_second",
            "peak": "peak_mib",
            "faults": "faults_per_step",
            "first loss": "first_loss",
        }
        lines += [
            f"## {contest}",
            "",
            f"Others busy: {busy[contest]:.2f} of {cores()} cores.",
            "",
            tabulate(
                [[one[key] for key in columns.values()] for one in shown],
                list(columns),
                tablefmt="github",
                intfmt=",",
                floatfmt=("", "", ".1f", ".1f", ",.0f", ".0f", ",.0f", ",.0f", ".4f"),
            ),
            "",
        ]
    by_rows = [
        score for contest, contestants in scores.items() if contest.startswith("others") for score in contestants
    ]
    if by_rows:
        write_figure(folder / "step_time.png", plot(by_rows))
        lines += ["![step time by rows](step_time.png)", ""]
    write_whole(folder / "report.md", "\n".join(lines))


def row(contest: str, score: Score, batch_size: int) -> dict[str, Any]:
    """A row of report.parquet: what was measured of a contestant."""
    p50 = score.quantile(0.5)
    return {
        "contest": contest,
        "side": score.contestant.name,
        "precision": score.contestant.precision,
        "rows": score.contestant.rows,
        "ranks": score.contestant.ranks,
        "p50_ms": p50,
        "p90_ms": score.quantile(0.9),
        "samples_per_second": batch_size * score.contestant.ranks / p50 * 1000 if score.losses else None,
        "work_per_second": score.work / p50 / 1e6,
        "peak_mib": score.peak_mib,
        "faults_per_step": score.faults_per_step,
        "first_loss": score.losses[0] if score.losses else None,
        "step_ms": [list(times) for times in score.step_ms],
    }


def plot(scores: Sequence[Score]) -> Figure:
    """Step time by rows, with a line for each side."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(score.contestant.name for score in scores):
        line = sorted((s for s in scores if s.contestant.name == name), key=lambda s: s.contestant.rows)
        axes.plot([s.contestant.rows for s in line], [s.quantile(0.5) for s in line], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rows of each feature's tables")
    axes.set_ylabel("ms of a training step, median")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="both", alpha=0.2)
    return figure
