"""The report of a throughput run: ratios between contestants that took turns, then every contestant, and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure
from tabulate import tabulate

from stem_torchrec.runtime.process import trains_on_gpu

from common.load import cores, is_loaded
from common.output import write_figure, write_table, write_whole
from contest.problem import MALLOC, Problem
from contest.ratios import ratios
from contest.shares import share_of_bandwidth, share_of_peak
from contest.turns import Failure, Score

_HOW_TO_READ = """\
- **ours**: this project as training assembles it. **stock**: the same model in loops of nn.Linear on TorchRec's own
  modules. **dense**: plain PyTorch, nn.Embedding, Adam over everything, L2 on whole tables.
- What follows **ours** is what it has instead of the defaults. A model has its name in `stem-compare --models`; if all
  its tables are shared, their rows are as long as those of all groups of STEM together.
- Limits of the machine: **gemm**, the fastest of square matrix products of 4096, and on a GPU of 8192, and the products
  of the experts; **products**, only the products with weights of a step, in their shapes; **copy**, a copy of 256 MiB;
  **tables**, lookup and update without the model.
- All sides of a contest are built before the first turn, and take turns; every other round runs backward. **P50, P90**:
  ms of a step over all turns. A ratio compares the median steps of the same turn; it is shown as the median over the
  turns, with the lowest and the highest in brackets.
- **G/s**: 10^9 operations per second at P50, in the matrix products with weights, forward and backward. The time
  includes everything else that a step does. For copy and tables it is 10^9 bytes per second.
- **of peak**, on a GPU: G/s over those of gemm in the same precision. **of bandwidth**: bytes per second over those of
  copy; of ours and stock only what a step has to move for the tables if it touches each number once.
- **peak**: MiB of a rank, resident on CPU, allocated on a GPU. **faults**: page faults in a step.
- **malloc kept**: the process keeps freed memory, which this project sets on CPU by two calls of mallopt and which any
  program can set. The first column of ratios is with it on all sides; **malloc as it is**, the second, on none.
- **others busy**: cores that processes outside of the contest kept busy meanwhile.
"""


@dataclass(frozen=True)
class Result:
    """A contest that was result."""

    scores: Sequence[Score]
    failures: Sequence[Failure]
    busy: float
    """Cores that others kept busy meanwhile."""


def write_report(folder: Path, head: Mapping[str, str], contests: Mapping[str, Result], problem: Problem) -> None:
    """Writes report.md, report.parquet and, if `others` was held, step_time.png.

    Args:
        folder: exists.
        head: of the report, in order.
        contests: those so far, by name.
        problem: what was trained; contestants have the sizes of their tables and batches.
    """
    scores = [score for result in contests.values() for score in result.scores]
    if scores:
        rows = [row(name, score, scores, problem) for name, result in contests.items() for score in result.scores]
        table = pa.Table.from_pylist(rows)
        write_table(
            folder / "report.parquet", table.replace_schema_metadata({key: str(value) for key, value in head.items()})
        )
    lines = ["# Throughput", "", *(f"- {key}: {value}" for key, value in head.items()), ""]
    if loaded := [name for name, result in contests.items() if is_loaded(result.busy, cores())]:
        lines += [f"**Warning: other processes were busy during {', '.join(loaded)}; measure again for times.**", ""]
    lines += [*_ratio_tables(contests), _HOW_TO_READ]
    for name, result in contests.items():
        lines += [f"## {name}", "", f"Others busy: {result.busy:.2f} of {cores()} cores.", ""]
        lines += [format_scores([row(name, score, scores, problem) for score in result.scores]), ""]
    if failures := [(name, failure) for name, result in contests.items() for failure in result.failures]:
        lines += ["## Not measured", "", format_failures(failures), ""]
    by_rows = [score for name, result in contests.items() if name.startswith("others") for score in result.scores]
    if by_rows:
        write_figure(folder / "step_time.png", plot(by_rows))
        lines += ["![step time by rows](step_time.png)", ""]
    write_whole(folder / "report.md", "\n".join(lines))


def _ratio_tables(contests: Mapping[str, Result]) -> list[str]:
    """The ratios, in a table for each batch size."""
    sizes = dict.fromkeys(score.contestant.batch_size for result in contests.values() for score in result.scores)
    lines = []
    for size in sizes:
        same = {
            name: [score for score in result.scores if score.contestant.batch_size == size]
            for name, result in contests.items()
        }
        lines += [f"Batches of {size:,} rows:", ""] if len(sizes) > 1 else []
        lines += [tabulate(ratios(same), ["what", *MALLOC.values()], tablefmt="github"), ""]
    return lines


def format_scores(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of report.parquet as Markdown; the batch size where it differs, and shares of the limits on a GPU."""
    columns = {
        "side": ("side", ""),
        "batch": ("batch_size", ",d"),
        "rows": ("rows", ",d"),
        "P50": ("p50_ms", ".2f"),
        "P90": ("p90_ms", ".2f"),
        "samples/s": ("samples_per_second", ",.0f"),
        "G/s": ("work_per_second", ".0f"),
        "of peak": ("share_of_peak", ".1%"),
        "of bandwidth": ("share_of_bandwidth", ".1%"),
        "peak": ("peak_mib", ",.0f"),
        "faults": ("faults_per_step", ",.0f"),
        "first loss": ("first_loss", ".4f"),
    }
    if len({row["batch_size"] for row in rows}) < 2:
        del columns["batch"]
    if not trains_on_gpu():
        del columns["of peak"], columns["of bandwidth"]
    cells = [["" if row[key] is None else f"{row[key]:{form}}" for key, form in columns.values()] for row in rows]
    aligned = ["left", *["right"] * (len(columns) - 1)]
    return tabulate(cells, list(columns), tablefmt="github", disable_numparse=True, colalign=aligned if cells else None)


def format_failures(failures: Sequence[tuple[str, Failure]]) -> str:
    """Contests and those who left them, with the reasons, as Markdown."""
    rows = [
        [name, f.contestant.name, f"{f.contestant.rows:,}", f"{f.contestant.batch_size:,}", f.reason.replace("|", "/")]
        for name, f in failures
    ]
    return tabulate(rows, ["contest", "side", "rows", "batch", "why"], tablefmt="github", disable_numparse=True)


def row(contest: str, score: Score, scores: Sequence[Score], problem: Problem) -> dict[str, Any]:
    """A row of report.parquet: what was measured of a contestant, and of the limits among `scores`."""
    p50, batch_size = score.quantile(0.5), score.contestant.batch_size
    return {
        "contest": contest,
        "side": score.contestant.name,
        "precision": score.contestant.precision,
        "rows": score.contestant.rows,
        "batch_size": batch_size,
        "ranks": score.contestant.ranks,
        "p50_ms": p50,
        "p90_ms": score.quantile(0.9),
        "samples_per_second": batch_size * score.contestant.ranks / p50 * 1000 if score.losses else None,
        "work_per_second": score.work / p50 / 1e6,
        "share_of_peak": share_of_peak(score, scores),
        "share_of_bandwidth": share_of_bandwidth(score, scores, problem),
        "peak_mib": score.peak_mib,
        "faults_per_step": score.faults_per_step,
        "first_loss": score.losses[0] if score.losses else None,
        "step_ms": [list(times) for times in score.step_ms],
    }


def plot(scores: Sequence[Score]) -> Figure:
    """Step time by rows, with a line for each side and batch size."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    sizes = {score.contestant.batch_size for score in scores}
    lines: dict[str, list[Score]] = {}
    for score in sorted(scores, key=lambda score: score.contestant.rows):
        size = f", batch {score.contestant.batch_size:,}" * (len(sizes) > 1)
        lines.setdefault(f"{score.contestant.name}{size}", []).append(score)
    for name, line in lines.items():
        axes.plot([s.contestant.rows for s in line], [s.quantile(0.5) for s in line], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rows of each feature's tables")
    axes.set_ylabel("ms of a training step, median")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="both", alpha=0.2)
    return figure
