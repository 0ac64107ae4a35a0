"""A report's page in headless Chromium: what a reader with a mouse, a keyboard, a phone or a dark screen gets."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_BACKGROUNDS = "getComputedStyle(document.documentElement).backgroundColor"
_COLORS = f"""() => {{
    const names = 'h1, h2, p, td, th, a, summary, label, figcaption, svg text, svg path';
    const drawn = [...document.querySelectorAll(names)];
    const paper = {_BACKGROUNDS};
    return drawn.filter(each => each.checkVisibility()).flatMap(each => {{
        const style = getComputedStyle(each), inSvg = each.closest('svg') !== null;
        const text = each.tagName.toLowerCase() !== 'path';
        const line = style.stroke !== 'none' && !each.closest('defs, clipPath') && style.stroke;
        const color = !inSvg ? style.color : text ? style.fill : line;
        return color ? [[text, color, paper, each.tagName + ' ' + each.textContent.trim().slice(0, 40)]] : [];
    }});
}}"""
_CHARTS = """() => [...document.querySelectorAll('figure svg')].map(svg => {
    const longest = part => Math.max(...[...part.querySelectorAll('path')].map(path => path.getTotalLength()));
    const box = svg.getBoundingClientRect(), name = svg.getAttribute('aria-label');
    const lines = [...svg.querySelectorAll('[class^=run-]')].map(longest);
    return {name, width: box.width, height: box.height, longest: longest(svg), shortest: Math.min(99, ...lines)};
})"""
_TABBABLE = (
    "[...document.querySelectorAll('a[href], input, summary, [tabindex=\"0\"]')].filter(e => e.checkVisibility())"
)
_FOCUS = f"""() => {{
    const each = document.activeElement, style = getComputedStyle(each);
    return each === document.body ? null : [{_TABBABLE}.indexOf(each), style.outlineStyle !== 'none'];
}}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium; skips the test where it or its driver is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, which drives Chromium")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, *, width: int = 1200, scheme: str = "light") -> Iterator[Any]:
    """The page of a file; at the end it must have asked for no other file, and have no error and no message."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert messages == []
    assert requests == [file.as_uri()]


def check_page(browser: Any, file: Path, *, charts: int) -> None:
    """The page fits a desk and a phone, shows its charts, is readable in both themes, and can be used by keyboard."""
    for width, scheme in ((1200, "light"), (400, "dark")):
        with opened(browser, file, width=width, scheme=scheme) as page:
            check_width(page, width)
            check_charts(page, charts)
            check_contrast(page)
    with opened(browser, file) as page:
        check_keyboard(page)
    with opened(browser, file) as page:
        check_skip_link(page)
    with opened(browser, file, scheme="dark") as page:
        check_print(page)


def check_width(page: Any, width: int) -> None:
    """Nothing is wider than the window, and on a desk no table or figure has to be moved sideways in its frame."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    frames = "[...document.querySelectorAll('.table, figure, pre, fieldset')]"
    wide = page.evaluate(
        f"{frames}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80))"
    )
    assert width < 1200 or wide == []


def check_charts(page: Any, count: int) -> None:
    """All charts are drawn: each has a size and axes, and each line of a run goes somewhere."""
    charts = page.evaluate(_CHARTS)
    assert len(charts) == count
    for chart in charts:
        assert chart["width"] > 250, chart
        assert chart["height"] > 100, chart
        assert chart["longest"] > 100, chart
        assert chart["shortest"] > 5, chart


def check_contrast(page: Any) -> None:
    """Text has a contrast of at least 4.5 to the paper and a line of a chart one of 3, but for those of its grid."""
    for is_text, color, paper, what in page.evaluate(_COLORS):
        ratio = contrast(color, paper)
        assert ratio >= (4.5 if is_text else 1.25), (what, color, paper, ratio)
    lines = page.evaluate(
        "[...document.querySelectorAll('figure svg [class^=run-] path')].map(e => getComputedStyle(e).stroke)"
    )
    for color in set(lines):
        assert contrast(color, page.evaluate(_BACKGROUNDS)) >= 3, color


def check_keyboard(page: Any) -> None:
    """Tab reaches each link, box and frame in order, and shows where it is."""
    count = page.evaluate(f"{_TABBABLE}.length")
    reached = []
    for _ in range(count):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(_FOCUS))
    assert reached == [[number, True] for number in range(count)]


def check_skip_link(page: Any) -> None:
    """The first stop of Tab leads past the contents."""
    for key in ("Tab", "Enter", "Tab"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.closest('main') !== null")


def check_print(page: Any) -> None:
    """On paper the page is light, also for a reader with a dark screen, and has no links to click."""
    page.emulate_media(media="print")
    assert page.evaluate(_BACKGROUNDS) == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    check_contrast(page)


def contrast(color: str, other: str) -> float:
    """The contrast of two colors as `rgb(1, 2, 3)`, by WCAG 2.2."""
    low, high = sorted(_luminance(each) for each in (color, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    shares = [int(float(part)) / 255 for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
