"""A figure of matplotlib as SVG whose colors follow the page: light or dark."""

import html
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Its import takes most of a second.
    from matplotlib.figure import Figure

_COLORS = {
    "#000000": "ink",
    "#ffffff": "paper",
    "#808080": "muted",
    "#b0b0b0": "line",
    "#cccccc": "line",
    **{
        color: f"c{i}"
        for i, color in enumerate(
            (
                "#1f77b4",
                "#ff7f0e",
                "#2ca02c",
                "#d62728",
                "#9467bd",
                "#8c564b",
                "#e377c2",
                "#7f7f7f",
                "#bcbd22",
                "#17becf",
            )
        )
    },
}
"""Matplotlib's own colors, by the variable of the page that takes their place."""
_NAMES = ("ink", "paper", "muted", "line", "code", *(f"c{i}" for i in range(10)))
_LIGHT = """
    #1b1f24 #ffffff #59636e #d3d9df #f3f5f7
    #1f6fb2 #a84d08 #24783a #c92a2a #7a4fb5 #7a5230 #b83280 #5c636a #6b6900 #0a7285"""
_DARK = """
    #e6e9ed #14171a #9aa4af #3a424a #20252b
    #6cb6ff #f0a35e #6bc46d #ff8a80 #c297ff #c9a27e #f28fc4 #9aa4af #d4cf4a #4fd1e0"""


def _variables(colors: str) -> str:
    return " ".join(f"--{name}: {color};" for name, color in zip(_NAMES, colors.split(), strict=True))


THEME = f"""\
:root {{ color-scheme: light dark; {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
"""
"""CSS variables of both themes; text has a contrast of 7 on paper, and every color of a line at least 4.5."""
PRINT_THEME = f":root {{ color-scheme: light; {_variables(_LIGHT)} }}"
"""The light variables, for paper."""
_STYLE = "svg { fill: var(--ink); } svg * { stroke-linejoin: round; stroke-linecap: butt; }"


def svg_of(figure: "Figure", name: str, caption: str, *, lines: Mapping[str, str] | None = None) -> str:
    """The figure as an `<svg>` for a page that has THEME.

    Lines and other parts whose gid is `run-N` have this as their class.

    Args:
        figure: with matplotlib's own colors.
        name: of the figure; no other one of the page has it.
        caption: what a reader gets who does not see the figure.
        lines: the text that a pointer on a line shows, by its gid.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = file.getvalue()
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>", "", body, flags=re.DOTALL)
    for gid, text in (lines or {}).items():
        body = body.replace(f' id="{gid}">', f' id="{gid}"><title>{html.escape(text)}</title>')
    body = re.sub(r' id="(run-\d+)"', r' class="\1"', body)
    body = re.sub(r' id="(?!run-)[a-zA-Z]+[\w.]*_\d+"', "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", body)
    body = re.sub(r"\n\s*", "\n", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda color: _themed(color[0]), body)
    label = caption.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg role="img" aria-label="{label}" {size[0]}>{body}'.rstrip()


def _themed(color: str) -> str:
    return f"var(--{_COLORS[color]})" if color in _COLORS else color


def standalone(svg: str) -> str:
    """What `svg_of` returned as a file of its own."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f"<style>{THEME}svg {{ background: var(--paper); }} {_STYLE}</style>"
    head, _, body = svg.partition(">")
    return f"{head.replace('<svg', f'<svg {spaces}')}>{style}{body}\n"


SVG_STYLE = _STYLE
"""CSS that a page with figures has besides THEME."""
