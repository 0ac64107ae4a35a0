"""A report with text, tables and plots: as Markdown, and as one HTML file that contains its plots."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import markdown
from tabulate import tabulate

from stem_torchrec.runtime.whole_file import whole_file

if TYPE_CHECKING:
    # Its import takes most of a second.
    from matplotlib.figure import Figure

_STYLE = """\
:root { color-scheme: light dark; --line: #ddd; --code: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --code: #2a2a2a; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; white-space: nowrap; }
td, th { padding: .25em .7em; border-bottom: 1px solid var(--line); } td { font-variant-numeric: tabular-nums; }
th { white-space: normal; overflow-wrap: anywhere; min-width: 3.5em; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
img { max-width: 100%; background: white; } code { background: var(--code); }"""


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

    def plot(self, name: str, figure: "Figure", caption: str) -> None:
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
