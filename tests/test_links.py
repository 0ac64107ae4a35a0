"""What the pages name exists: the aims of their links, options, files, and the models."""

import re
from pathlib import Path

import pytest

from stem_torchrec import TrainConfig
from stem_torchrec.config import option_names
from stem_torchrec.models.table import MODELS
from stem_torchrec.tables import SHARED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "datasets/README.md", *sorted(ROOT.glob("benchmarks/results/**/*.md"))]


def without_code(page: Path) -> str:
    """The text of a page without its blocks of code, where brackets are not links."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    known = {name for line in MODELS.values() for name in option_names(TrainConfig(model=line.options()))}
    sections = "|".join({option[2:].partition(".")[0] for option in known if "." in option})
    options = re.findall(rf"--(?:{sections})\.[a-z0-9.-]*[a-z0-9]", text)
    # --train.no-fresh-tables turns off what --train.fresh-tables turns on.
    assert sorted({option.replace(".no-", ".") for option in options} - known) == []
    paths = re.findall(r"(?<![\w/])(?:stem_torchrec|benchmarks|datasets|examples|launch|tests|docs)/[\w./]*\w", text)
    assert sorted(path for path in set(paths) if not (ROOT / path).exists()) == []


def test_the_readme_fits_on_three_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_models_has_the_table_of_models() -> None:
    tables = {("a", SHARED): "each task, shared", ("a",): "each task", (SHARED,): "shared"}
    rows = [f"| `{name}` | {tables[tuple(line.groups(['a']))]} | {line.about} |" for name, line in MODELS.items()]
    assert "\n".join(rows) in (ROOT / "docs/compare_and_tune.md").read_text()
