"""A report with text, tables and plots: as Markdown, and as one HTML file that contains its plots."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate

from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.runtime.whole_file import whole_file

METRICS = ("auc", "gauc", "logloss", "ne", "pcoc")

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; white-space: nowrap; }
td, th { padding: .25em .7em; border-bottom: 1px solid #ddd; }
td { font-variant-numeric: tabular-nums; } img { max-width: 100%; } code { background: #f4f4f4; }"""


class Report:
    """Collects text, tables and plots; `write` writes the files."""

    def __init__(self, title: str) -> None:
        self.parts = [f"# {title}"]
        self.plots: dict[str, Figure] = {}

    def text(self, *paragraphs: str) -> None:
        """Adds paragraphs or headings of Markdown; `escape` the parts that are not."""
        self.parts += paragraphs

    def table(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds a table with a column for each key of the first row; all but the first column are aligned right."""
        names = list(rows[0])
        aligned = ["left", *["right"] * (len(names) - 1)]
        cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
        titles = [escape(name) for name in names]
        self.parts.append(tabulate(cells, titles, tablefmt="pipe", disable_numparse=True, colalign=aligned))

    def plot(self, name: str, figure: Figure, caption: str) -> None:
        """Adds a plot, which `write` saves as `name.png`."""
        self.plots[name] = figure
        self.parts.append(f"![{escape(caption)}]({name}.png)")

    def write(self, folder: Path) -> None:
        """Writes report.md with its plots beside it, and report.html, which contains them."""
        text = "\n\n".join(self.parts) + "\n"
        encoded = {}
        for name, figure in self.plots.items():
            with whole_file(folder / f"{name}.png") as new:
                figure.savefig(new, dpi=110)
            encoded[name] = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        with whole_file(folder / "report.md") as new:
            new.write_text(text)
        body = markdown.markdown(text, extensions=["tables"])
        body = re.sub(r'src="([\w-]+)\.png"', lambda m: f'src="data:image/png;base64,{encoded[m[1]]}"', body)
        title = self.parts[0].removeprefix("# ")
        head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        with whole_file(folder / "report.html") as new:
            new.write_text(f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n")


class Markup(str):
    """Text of a cell that is Markdown already and is not escaped."""


def escape(text: str) -> str:
    """A user's text, such as a name or a description, on one line and with the marks of Markdown and HTML escaped."""
    text = re.sub(r"[\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_])", lambda mark: f"\\{mark[0]}", " ".join(text.split()))
    return html.escape(text, quote=False)


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)


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
