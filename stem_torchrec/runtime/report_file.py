"""A report with text, tables and plots: as Markdown, and as one HTML file that contains its plots."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import markdown
from markdown.extensions.toc import TocExtension
from tabulate import tabulate

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.themed_svg import PRINT_THEME, SVG_STYLE, THEME, standalone, svg_of
from stem_torchrec.runtime.whole_file import whole_file

if TYPE_CHECKING:
    # Its import takes most of a second.
    from matplotlib.figure import Figure

_STYLE = f"""\
{THEME}{SVG_STYLE}
html {{ background: var(--paper); color: var(--ink); scroll-behavior: smooth; }}
body {{ font: 15px/1.55 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; }}
body {{ overflow-wrap: anywhere; }}
h1 {{ font-size: 1.7em; }} h2 {{ margin-top: 2em; padding-top: .6em; border-top: 1px solid var(--line); }}
a {{ color: var(--c0); }} :focus-visible {{ outline: 2px solid var(--c0); outline-offset: 2px; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2em 1.2em; padding: 0; list-style: none; }}
.table {{ overflow-x: auto; margin: 1em 0; }} table {{ border-collapse: collapse; }}
td, th {{ padding: .25em .6em; border-bottom: 1px solid var(--line); vertical-align: baseline; overflow-wrap: normal; }}
td {{ font-variant-numeric: tabular-nums; }} th {{ font-weight: 600; font-size: .9em; }}
th {{ overflow-wrap: anywhere; min-width: 4.7em; }}
td:first-child {{ overflow-wrap: anywhere; min-width: 9em; }}
.skip {{ position: absolute; left: -99em; background: var(--paper); padding: .4em .8em; }} .skip:focus {{ left: 1em; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1em 1.5em; }}
figure {{ margin: 0; min-width: 0; }} figure.wide {{ grid-column: 1 / -1; overflow-x: auto; }}
figure.wide svg {{ min-width: 44rem; }} svg {{ width: 100%; height: auto; }}
figcaption {{ font-weight: 600; font-size: .93em; margin-bottom: .3em; }}
pre, code {{ background: var(--code); }} pre {{ padding: .6em .8em; white-space: pre-wrap; }}
summary {{ cursor: pointer; padding: .3em 0; }}
@media (max-width: 700px) {{
  th {{ overflow-wrap: normal; }} td {{ min-width: 4em; }} td:first-child {{ min-width: 7em; }}
  .table {{ border-right: 1px dashed var(--line); }}
  td:first-child, th:first-child {{ position: sticky; left: 0; background: var(--paper); }}
}}
@media print {{
  {PRINT_THEME} nav, .skip {{ display: none; }} body {{ max-width: none; margin: 0; font-size: 10pt; }}
  figure, tr {{ break-inside: avoid; }} h2, figcaption {{ break-after: avoid; }} .table {{ overflow: visible; }}
  .charts {{ grid-template-columns: 1fr 1fr; }} td, th {{ padding: .2em .4em; min-width: 0; }}
}}"""


GENERATOR = "stem_torchrec"
"""What a page names as the program that wrote it."""
_CONTENTS = "[CONTENTS]"
_WIDE = 400
"""Points; a wider figure has a line of its own."""


class Report:
    """Collects text, tables and plots; `write` writes the files.

    Args:
        title: of the page, Markdown.
        style: CSS besides that of all reports.
        lines: what a pointer on a line of a plot shows, by the line's gid, as `{"run-0": "seed_0"}`.
    """

    def __init__(self, title: str, *, style: str = "", lines: Mapping[str, str] | None = None) -> None:
        self.parts = [f"# {title}"]
        self._style, self._lines = style, dict(lines or {})
        self._plots: dict[str, str] = {}

    def text(self, *paragraphs: str) -> None:
        """Adds paragraphs or headings of Markdown; `escape` the parts that are not."""
        self.parts += paragraphs

    def table(self, rows: Sequence[Mapping[str, str]], *, text_columns: int = 1) -> None:
        """Adds a table with a column for each key of the first row; all but the first ones are aligned right.

        Without rows there is none.
        """
        if not rows:
            return
        names = list(rows[0])
        aligned = ["left"] * text_columns + ["right"] * (len(names) - text_columns)
        cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
        titles = [escape(name) for name in names]
        self.parts.append(tabulate(cells, titles, tablefmt="pipe", disable_numparse=True, colalign=aligned))

    def folded_table(self, summary: str, rows: Sequence[Mapping[str, str]], *, text_columns: int = 1) -> None:
        """Adds a table that opens by a click on its summary, or the key Enter."""
        self.parts.append(f'<details markdown="1"><summary>{html.escape(summary)}</summary>')
        self.table(rows, text_columns=text_columns)
        self.parts.append("</details>")

    def plot(self, name: str, figure: "Figure", caption: str) -> None:
        """Adds a plot, which `write` saves as `name.svg`; plots that follow one another stand side by side."""
        self._plots[name] = svg_of(figure, name, caption, lines=self._lines)
        image = f"![{escape(caption)}]({name}.svg)"
        if self.parts[-1].startswith("!["):
            self.parts[-1] += f"\n{image}"
        else:
            self.parts.append(image)

    def write(self, folder: Path) -> None:
        """Writes report.md with its plots beside it, and report.html, which contains them."""
        for name, svg in self._plots.items():
            with whole_file(folder / f"{name}.svg") as new:
                new.write_text(standalone(svg))
        with whole_file(folder / "report.md") as new:
            new.write_text(self._markdown())
        self.write_page(folder / "report.html")

    def write_page(self, file: Path) -> None:
        """Writes the page alone."""
        with whole_file(file) as new:
            new.write_text(self.page())

    def page(self) -> str:
        """The report as one HTML file, which needs no other one and runs no script."""
        # The extension writes the list of contents where this mark stands.
        title, *rest = self.parts
        text = "\n\n".join([title, _CONTENTS, *rest])
        body = markdown.markdown(
            text, extensions=["tables", "md_in_html", TocExtension(marker=_CONTENTS, toc_depth="2-2")]
        )
        body = re.sub(r'<div class="toc">(.*?)</div>', r'<nav aria-label="contents">\1</nav>', body, flags=re.DOTALL)
        body = re.sub(r"<p>(<img [^>]*>(?:\s*<img [^>]*>)*)</p>", r'<div class="charts">\1</div>', body)
        body = re.sub(r'<img alt="([^"]*)" src="([\w-]+)\.svg" />', self._figure, body)
        # A table that does not fit a narrow screen moves inside its frame, also by the keyboard.
        frame = r'<div class="table" role="region" tabindex="0" aria-label="table of \2">\1'
        body = re.sub(r"(<table>\s*<thead>\s*<tr>\s*<th[^>]*>([^<]*)</th>)", frame, body)
        body = body.replace("</table>", "</table></div>")
        # Where a cell has two lines, `0.71 ± 0.02` breaks behind the sign, and `p 0.04, 0.2` stays together.
        body = re.sub(r"\bp ([\d.]+), (?=[\d.])", "p\u00a0\\1,\u00a0", body.replace(" ± ", "\u00a0± "))
        name = html.escape(re.sub(r"\\(.)", r"\1", html.unescape(self.parts[0].removeprefix("# "))))
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="generator" content="{GENERATOR}"><title>{name}</title>'
            f"<style>{_STYLE}{self._style}</style>"
        )
        # By the keyboard, past the contents.
        body = f'<a class="skip" href="#report">Skip to the report</a>{body}'
        body = body.replace("</nav>", '</nav><main id="report" tabindex="-1">', 1) + "</main>"
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'

    def _figure(self, image: re.Match[str]) -> str:
        svg = self._plots[image[2]]
        box = re.search(r'viewBox="0 0 ([\d.]+)', svg)
        wide = ' class="wide" tabindex="0"' if box and float(box[1]) > _WIDE else ""
        return f"<figure{wide}><figcaption>{image[1]}</figcaption>{svg}</figure>"

    def _markdown(self) -> str:
        return "\n\n".join(self.parts) + "\n"


def check_page_file(file: Path) -> None:
    """Raises UserError for a file that exists and is no page of a report, which `--out` would replace."""
    if file.is_file() and file.stat().st_size:
        with file.open("rb") as opened:
            begin = opened.read(1024)
        if f'<meta name="generator" content="{GENERATOR}">'.encode() not in begin:
            raise UserError(f"--out {file} exists, and no report is in it; give another.")


class Markup(str):
    """Text of a cell that is Markdown already and is not escaped."""


def escape(text: str) -> str:
    """A user's text, such as a name or a description, on one line and with the marks of Markdown and HTML escaped."""
    text = re.sub(r"[\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_])", lambda mark: f"\\{mark[0]}", " ".join(text.split()))
    return html.escape(text, quote=False)


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)
