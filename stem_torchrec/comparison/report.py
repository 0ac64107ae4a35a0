"""Numbers with their spread and intervals as text, as plots and as files, for the report of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.runtime.report_file import Markup
from stem_torchrec.runtime.whole_file import whole_file

METRICS = ("auc", "gauc", "logloss", "ne", "pcoc")
"""The metrics of a binary task that a report has."""
METRICS_OF_VALUES = ("auc", "gauc", "rmse", "mae", "pcoc")
"""Those of a task whose labels are numbers or levels."""


def spread(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean ± standard deviation over seeds, with how many are defined if not all are; `-` if none is.

    Example::

        spread([0.5, None, 0.7])  # "0.6000 ± 0.1414 (2 of 3)"
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    only = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{np.mean(known):.{digits}f}{deviation}{only}"


def show(interval: Interval) -> str:
    """`+0.0123 [+0.0040, +0.0201] p 0.002, 0.03`, raw and adjusted, bold by the latter; `+0.0123` without interval."""
    if np.isnan(interval.value):
        return "-"
    if np.isnan(interval.low):
        return f"{interval.value:+.4f}"
    text = f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    bold = interval.verdict in ("better", "worse")
    return Markup(f"{f'**{text}**' if bold else text} p {interval.p:.2g}, {interval.adjusted:.2g}")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of Python values as a Parquet file."""
    with whole_file(path) as new:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), new)


def dots(values: Mapping[str, Mapping[str, Interval]], label: str, *, width: float = 3.2) -> Figure:
    """Plots differences with their intervals.

    Args:
        values: by model, and by measure or bin; a model is a line, a measure or bin is an axis.
        label: of the horizontal axes.
        width: of an axis, in inches.
    """
    panels = list(dict.fromkeys(panel for by_panel in values.values() for panel in by_panel))
    across = min(len(panels), int(14 // width))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.5 + width * across, (1.2 + 0.32 * len(values)) * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    names = list(values)[::-1]
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        for y, name in enumerate(names):
            interval = values[name].get(panel)
            if interval is not None and not np.isnan(interval.low):
                axis.plot([interval.low, interval.high], [y, y], color="tab:blue")
                axis.plot(interval.value, y, "o", color="tab:blue")
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_title(panel)
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(visible=True, axis="x", alpha=0.2)
    axes[0].set_yticks(range(len(names)), names)
    return figure
