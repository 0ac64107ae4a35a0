"""What is true of every file: where it lies, what it is called, and which old names are gone."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stem_torchrec

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stem_torchrec"
COMMANDS = {
    *("apply_delta", "calibrate", "compare", "convert", "evaluate", "export", "inspect_run", "prepare"),
    *("report", "score", "serve", "train", "tune"),
}
PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
ROOMS = sorted(str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.glob("*/**/__init__.py"))
"""The packages, and the packages inside of them as `preparation/rows`."""

LONG_FILES: set[str] = set()
"""Files that may have more than MAX_LINES lines."""
MAX_LINES = 250

NO_BINDINGS = {"there", "here", "said", "found", "mine", "held", "most", "theirs"}
"""Names that tell nothing about what they are bound to."""
OLD_MODULES = """
    activity add_tasks assembly auc best_weights cli config_file early_stopping errors evaluation exchange heartbeat
    layers layout limits literals log loop memory meter nonfinite optim phases plain predictions process profiling
    progress recipes remote resume run_checkpoints run_folder saved search_space sorted_rows stack task_chunk
    warm_start checkpoints/signals comparison/statistics config/literals config/limits config/recipes
"""
"""Modules of the package that have moved or got another name, mostly out of the package's own folder."""
OLD_NAMES = """
    Place Saved SavedInMemory SavedOnDisk asks asks_to_end check_stack from_plain log_folder say stack_problem to_plain
"""
"""Functions and classes that have got another name."""
CODE = ("stem_torchrec", "tests", "benchmarks", "datasets")
PAGES = ("README.md", "CONTRIBUTING.md", "docs", "examples")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_the_package_holds_commands_and_packages_only() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *COMMANDS}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == PACKAGES
    assert not COMMANDS & PACKAGES


def test_no_file_or_folder_has_the_name_of_a_standard_module() -> None:
    # A script run by path has its own folder first on sys.path: an inspect.py beside it would break `import torch`.
    names = {path.stem for path in python_files("stem_torchrec")} | {Path(room).name for room in ROOMS}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", ROOMS)
def test_a_package_says_which_files_it_has_and_what_it_may_import(package: str) -> None:
    text = " ".join((ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text())) or "").split())
    purpose, _, imports = text.partition("May import ")
    listed = re.findall(r"(?<![\w/])\w+\.py", purpose)
    assert set(listed) == {path.name for path in (PACKAGE / package).glob("*.py")} - {"__init__.py"}
    assert imports
    # Packages high in the list say which ones they may not import.
    if "all" not in imports and "every" not in imports:
        assert imported_by(package) <= set(re.findall(r"`(\w+)`", imports))


def imported_by(package: str) -> set[str]:
    """The other packages that it imports, and of the package around it the modules and packages."""
    *around, own = package.split("/")
    imports = {
        tuple(node.module.split(".")[1:])
        for path in (PACKAGE / package).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stem_torchrec.")
    }
    return {names[1] if around == [names[0]] else names[0] for names in imports} - {own}


@pytest.mark.quick
def test_every_module_and_public_name_imports() -> None:
    for path in python_files("stem_torchrec"):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for name in stem_torchrec.__all__:
        assert getattr(stem_torchrec, name).__name__ == name


def test_old_modules_do_not_come_back() -> None:
    assert not [name for name in OLD_MODULES.split() if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).exists()]


@pytest.mark.parametrize("place", [*CODE, *PAGES])
def test_every_module_path_that_is_written_exists(place: str) -> None:
    left = []
    for path in files_of(place):
        for words in re.findall(r"\bstem_torchrec((?:\.\w+)+)", path.read_text()):
            modules = words.strip(".").split(".")
            # What follows a package's name may also be a name that it has; what follows a module's is not looked at.
            if not exists(modules):
                left.append(f"{path.relative_to(ROOT)}: stem_torchrec{words}")
        for file in re.findall(r"\bstem_torchrec/[\w/]+\.py\b", path.read_text()):
            if not (ROOT / file).exists():
                left.append(f"{path.relative_to(ROOT)}: {file}")
    assert not left


def files_of(place: str) -> list[Path]:
    path = ROOT / place
    files = [path] if path.is_file() else [*path.rglob("*.py"), *path.rglob("*.md")]
    return sorted(file for file in files if file != Path(__file__) and "results" not in file.parts)


def exists(modules: list[str]) -> bool:
    """Whether `.data.reader` is a module of the package, or a name in one."""
    folder = PACKAGE
    for name in modules:
        if (folder / f"{name}.py").exists():
            return True
        if not (folder / name).is_dir():
            return name.startswith("__") or name in identifiers((folder / "__init__.py").read_text())
        folder /= name
    return True


@pytest.mark.parametrize("folder", CODE)
def test_no_old_name_is_left(folder: str) -> None:
    old = set(OLD_NAMES.split())
    names = {path: identifiers(path.read_text()) & old for path in python_files(folder)}
    assert not {str(path.relative_to(ROOT)): left for path, left in names.items() if left}


def identifiers(text: str) -> set[str]:
    """Every name that the code reads, binds, imports or takes an attribute by."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return names


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, argument, attribute, function and class that the code binds."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name


def empty_bindings(path: Path) -> list[str]:
    place = path.relative_to(ROOT)
    return [
        f"{place}:{line}: {name}"
        for line, name in bindings(ast.parse(path.read_text()))
        if name.strip("_") in NO_BINDINGS
    ]


def test_names_tell_what_they_are_bound_to() -> None:
    left = [
        binding for path in python_files("stem_torchrec", "benchmarks", "datasets") for binding in empty_bindings(path)
    ]
    assert not left


def test_a_binding_is_recognized_wherever_it_stands() -> None:
    code = (
        "def mine(there, *, here=1):\n    self._held = said = 1\n    for found in []:\n        theirs: int = 2\nx.most"
    )
    names = [name for _, name in bindings(ast.parse(code))]
    assert sorted(names) == ["_held", "found", "here", "mine", "said", "theirs", "there"]


def test_files_are_short_enough_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in python_files("stem_torchrec", "benchmarks", "datasets")
    }
    assert {name for name, length in lengths.items() if length > MAX_LINES} == LONG_FILES
