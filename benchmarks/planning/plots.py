"""The plot of growth: memory and estimated step of the fullest rank by tasks and by rows, as far as plans fit."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.output import write_figure
from planning.strategies import Planned


def write_growth(by_tasks: Sequence[Planned], by_rows: Sequence[Planned], path: Path) -> None:
    """Writes a figure with a column for tasks and one for rows, each with GiB above ms."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw(axes[:, 0], by_tasks, "tasks", "tasks")
    _draw(axes[:, 1], by_rows, "rows", "rows of all features in one group, in billions")
    axes[0, 0].set_ylabel("GiB of the fullest rank")
    axes[1, 0].set_ylabel("planner's estimate, ms")
    write_figure(path, figure)


def _draw(column: Sequence[Axes], planned: Sequence[Planned], size: str, label: str) -> None:
    memory, time = column
    able = [each for each in planned if each.plan is not None]
    sizes = [getattr(each, size) / (1e9 if size == "rows" else 1) for each in able]
    for value, name in (("memory", "GPU"), ("host_memory", "host"), ("weights", "weights alone")):
        memory.plot(sizes, [each.peak(value) / 1024 for each in able], marker="o", label=name)
    time.plot(sizes, [each.peak("estimate") for each in able], marker="o", color="black")
    memory.legend()
    for axis in column:
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.2)
