"""The charts of runs: numbers over steps, and shares of positives over predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from stem_torchrec.run_report.reliability import Reliability
from stem_torchrec.run_report.run_record import Series

MOST_POINTS = 300
"""Points of a line; a longer one shows the means of neighbors."""
_SIZE = (4.7, 2.7)
_FONT = 9
_DASHES = ("-", "--", ":", "-.")
_DASHES_OF_SWATCHES = ("", "8 3.5", "2.2 3.6", "13 3.5 2.2 3.5")
COLORS = 10
"""Colors that lines have; further lines have the same ones in other dashes."""
DASHES = len(_DASHES)


def dash_of(run: int) -> str:
    """Matplotlib's style for the lines of a run, in a chart whose colors tell something else."""
    return _DASHES[run % DASHES]


@dataclass(frozen=True)
class Line:
    """A line of a chart over steps."""

    run: int
    """The number of its run, which the page can hide."""
    series: Series
    group: int = -1
    """The number of its group, in a chart that has one line for each run and group."""
    mark: int | None = None
    """A step whose point gets a dot."""

    @property
    def color(self) -> int:
        """The number of its color."""
        return (self.run if self.group < 0 else self.group) % COLORS

    @property
    def dash(self) -> int:
        """The number of its dash."""
        return (self.run // COLORS if self.group < 0 else self.run) % DASHES


def swatch(color: str, dash: int) -> str:
    """A short piece of a line for a legend, as HTML; the color is a name of `themed_svg`, as `c0` or `ink`."""
    style = f"stroke: var(--{color}); stroke-dasharray: {_DASHES_OF_SWATCHES[dash] or 'none'}"
    return f'<svg class="swatch" viewBox="0 0 30 6" aria-hidden="true"><path d="M0 3H30" style="{style}"/></svg>'


def over_steps(lines: Sequence[Line], what: str, *, level: float | None = None, from_zero: bool = False) -> Figure:
    """Draws numbers over steps.

    The color tells the run, or, in a chart of groups, the group; there the dash tells the run.

    Args:
        lines: not empty.
        what: the label of the vertical axis.
        level: of a thin horizontal line.
        from_zero: whether the vertical axis begins at 0.
    """
    figure, axes = empty_chart()
    if level is not None:
        axes.axhline(level, color="gray", linewidth=0.8)
    for line in lines:
        steps, values = thinned(line.series)
        marked = [0] if len(steps) < 2 else np.flatnonzero(steps == line.mark).tolist()
        axes.plot(
            steps, values, color=f"C{line.color}", linestyle=_DASHES[line.dash], linewidth=1.6, gid=f"run-{line.run}",
            marker="o" if marked else None, markevery=marked or None, markersize=4.5,
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if from_zero:
        axes.set_ylim(bottom=0)
    return figure


def thinned(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values, as means of neighbors where there are more than MOST_POINTS; without NaN.

    Example::

        thinned(Series(np.arange(600), np.ones(600)))  # steps 0.5, 2.5, ..., 300 times the value 1
    """
    known = ~np.isnan(series.values)
    steps, values = series.steps[known].astype(float), series.values[known]
    if len(steps) <= MOST_POINTS:
        return steps, values
    starts = np.linspace(0, len(steps), MOST_POINTS, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def calibration(by_run: dict[int, Reliability]) -> Figure:
    """Draws the share of positives over the mean prediction, by the number of the run; on logarithmic axes.

    A run without a positive has no point; some run has one.
    """
    figure, axes = empty_chart()
    shares = np.concatenate([each for of_run in by_run.values() for each in (of_run.predicted, of_run.observed)])
    low, high = shares[shares > 0].min(), shares.max()
    axes.plot([low, high], [low, high], color="gray", linewidth=0.8)
    for run, points in by_run.items():
        drawn = (points.predicted > 0) & (points.observed > 0)
        axes.plot(
            points.predicted[drawn], points.observed[drawn], marker="o", color=f"C{run % COLORS}", markersize=3.5,
            linewidth=1.2, linestyle=_DASHES[run // COLORS % DASHES], gid=f"run-{run}",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("mean prediction")
    axes.set_ylabel("share of positives")
    return figure


def by_rank(weights: Sequence[float], states: Sequence[float], run: int) -> Figure:
    """Draws the MiB of tables and of their optimizer states on each rank, of the run with this number."""
    figure, axes = empty_chart()
    ranks = np.arange(len(weights))
    axes.bar(ranks, weights, color=f"C{run % COLORS}", label="weights")
    axes.bar(ranks, states, bottom=weights, color=f"C{run % COLORS}", alpha=0.45, label="optimizer states")
    axes.set_xlabel("rank")
    axes.set_ylabel("MiB")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.margins(y=0.25)
    axes.legend(loc="upper right", frameon=False, fontsize=8, ncols=2)
    return figure


def empty_chart() -> tuple[Figure, Axes]:
    """A figure of the size and style of all charts, without lines."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(_FONT)
    axes.yaxis.set_major_formatter(_Thousands(useOffset=False))
    return figure, axes


class _Thousands(ScalarFormatter):
    """`1,500` on an axis that goes to 1,000 or beyond; as many digits as the ticks need on another."""

    def format_ticks(self, values: list[float]) -> list[str]:
        """The labels of the ticks."""
        large = max(map(abs, values), default=0) >= 1000
        return [f"{value:,.0f}" for value in values] if large else super().format_ticks(values)
