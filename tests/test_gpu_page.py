"""docs/gpu.md maps every promise to a test that exists, or to an answer, and every test of a GPU to a promise."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/gpu.md"
TEXT = PAGE.read_text()
NAMED = re.findall(r"`(tests/test_\w+\.py)::(\w+)`", TEXT)


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, without their heads."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    heads = [i for i, line in enumerate(lines) if set(line) <= set("| -")]
    body = [line for i, line in enumerate(lines) if i not in heads and i + 1 not in heads]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def names_of_tests(file: Path) -> set[str]:
    """The functions of a file that pytest takes for tests."""
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_the_page_names_exists(file: str) -> None:
    assert {name for named, name in NAMED if named == file} - names_of_tests(ROOT / file) == set()


def test_every_test_of_a_gpu_is_on_the_page() -> None:
    marked = re.compile(r"^pytestmark = \[pytest\.mark\.gpu\b", re.MULTILINE)
    files = [path for path in (ROOT / "tests").glob("test_*.py") if marked.search(path.read_text())]
    assert len(files) == 3
    tests = {(f"tests/{file.name}", name) for file in files for name in names_of_tests(file)}
    assert tests - set(NAMED) == set()


def test_every_promise_has_a_row_with_a_test_or_an_answer() -> None:
    promises = re.findall(r"^\*\*(.+?)\.?\*\*", (ROOT / "docs/promises.md").read_text(), re.MULTILINE)
    assert len(promises) > 10
    rows = [row for row in rows_of("What is promised") if len(row) == 2]
    assert [promise for promise, _ in rows] == promises
    assert all(answer for _, answer in rows)


def test_every_page_that_speaks_of_gpus_has_a_row() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    speaking = {page.name for page in pages if re.search(r"\b(GPUs?|CUDA)\b", page.read_text())}
    rows = [row for row in rows_of("What is promised") if len(row) == 3]
    linked = {name for page, *_ in rows for name in re.findall(r"\]\((?:\.\./)?(\w+\.md)\)", page)}
    # The promises have a table of their own.
    assert speaking - linked == {PAGE.name, "promises.md"}
    assert all(answer for *_, answer in rows)


def test_every_point_that_reading_found_has_an_answer() -> None:
    rows = rows_of("What reading found")
    assert [int(point) for point, _, _ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 9
    assert all(answer for *_, answer in rows)
