"""Where the benchmarks live: front scripts that nothing imports, and packages whose names are free on any path."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
FRONT_SCRIPTS = {path.stem for path in BENCHMARKS.glob("*.py")}
PACKAGES = {path.parent.name for path in BENCHMARKS.glob("*/__init__.py")}
MODULES = [path for package in PACKAGES for path in (BENCHMARKS / package).rglob("*.py")]


def imported_names(path: Path) -> Iterator[str]:
    """First part of every name that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_nothing_imports_a_front_script() -> None:
    files = [*MODULES, *BENCHMARKS.glob("*.py"), *(ROOT / "tests").glob("*.py")]
    assert [path.name for path in files if FRONT_SCRIPTS & set(imported_names(path))] == []


def test_packages_front_scripts_and_tests_have_different_names() -> None:
    tests = {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert not PACKAGES & FRONT_SCRIPTS
    assert not tests & (PACKAGES | FRONT_SCRIPTS)


def test_no_name_is_one_of_the_standard_library() -> None:
    names = {path.stem for path in [*BENCHMARKS.rglob("*"), *(ROOT / "tests").rglob("*")]}
    assert not names & sys.stdlib_module_names


def test_a_package_has_a_docstring_and_the_folder_itself_is_none() -> None:
    assert not (BENCHMARKS / "__init__.py").exists()
    for package in PACKAGES:
        text = ast.get_docstring(ast.parse((BENCHMARKS / package / "__init__.py").read_text())) or ""
        missing = [path.name for path in (BENCHMARKS / package).glob("[!_]*.py") if path.name not in text]
        assert missing == [], f"{package}/__init__.py does not name them"


def test_every_front_script_puts_its_folder_first_on_the_path() -> None:
    line = "sys.path.insert(0, str(Path(__file__).resolve().parent))\n"
    assert [script for script in FRONT_SCRIPTS if line not in (BENCHMARKS / f"{script}.py").read_text()] == []


@pytest.mark.long
def test_the_launcher_starts_a_front_script_in_any_folder(tmp_path: Path) -> None:
    # Folders of results with the names of packages, such as `--out sweep` makes.
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    line = [sys.executable, str(ROOT / "launch/run.py"), str(BENCHMARKS / "sharding.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--out" in result.stdout
