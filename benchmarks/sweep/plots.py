"""The plots of a sweep: throughput and memory by case, and the planner's estimate against the measured time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from common.output import write_figure
from sweep.cases import TYPES
from sweep.rows import Row

_COLORS = dict(zip((*TYPES, "auto"), mpl.color_sequences["tab10"], strict=False))
_MARKERS = {("split", "stock"): "o", ("split", "once"): "^", ("packed", "stock"): "s", ("packed", "once"): "D"}


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes throughput.png, memory.png and estimate.png from the cases that ran; returns their paths."""
    ran = [row for row in rows if row.status == "ok"]
    if not ran:
        return []
    figures = {
        "throughput.png": _bars(ran, "samples_per_second", "samples/s; a hatched case learns something else"),
        "memory.png": _bars(ran, "peak_mib", "peak resident MiB of the rank with the most"),
        "estimate.png": _scatter(ran),
    }
    for name, figure in figures.items():
        write_figure(folder / name, figure)
    return [folder / name for name in figures]


def _bars(rows: Sequence[Row], value: str, label: str) -> Figure:
    """A bar for each case, grouped by tasks and optimizer; the highest bar of a group is on top."""
    ordered = sorted(rows, key=lambda row: (row.case.problem, getattr(row, value)))
    figure = Figure(figsize=(9, 1 + 0.24 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.case.name for row in ordered], [getattr(row, value) for row in ordered])
    for bar, row in zip(bars, ordered, strict=True):
        bar.set_color(_COLORS[row.case.type])
        if row.learns == "other":
            bar.set_hatch("//")
            bar.set_edgecolor("white")
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(label)
    axes.margins(x=0.12, y=0.01)
    return figure


def _scatter(rows: Sequence[Row]) -> Figure:
    """A point for each case; its color shows the type, its shape the layout and input distribution."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(row.case.type for row in rows):
        for (layout, dist), marker in _MARKERS.items():
            points = [
                row for row in rows if (row.case.type, row.case.layout, row.case.input_dist) == (kind, layout, dist)
            ]
            if points:
                axes.scatter(
                    [row.lookup_ms for row in points],
                    [row.estimate_ms for row in points],
                    label=f"{kind} {layout} {dist}",
                    color=_COLORS[kind],
                    marker=marker,
                    alpha=0.8,
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured ms of lookup and exchange of embeddings, forward and backward")
    axes.set_ylabel("planner's estimate of the same, ms")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(visible=True, which="both", alpha=0.2)
    return figure
