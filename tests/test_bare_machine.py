"""Training, evaluating and benchmarks need the listed packages only, neither optuna nor torchx, and print no warnings.

A machine with a GPU may have no package registry: it has what is listed, and nothing else of this environment.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parent.parent

ELSEWHERE = {
    *("calibration", "comparison", "deltas", "inspection", "run_report", "server", "serving", "tracking", "tuning"),
    *("preparation", "expressions", "simplex.py"),
    *("calibrate.py", "inspect_run.py", "prepare.py", "report.py", "report_file.py", "serve.py"),
}
"""What such a machine need not run: calibrations, MGDA and CAGrad (balance/simplex.py) need scipy, comparisons and
reports statsmodels and markdown, searches optuna, raw logs an engine, deltas safetensors, trackers their own
packages."""
PACKAGES = """
    torch functorch torchgen triton filelock fsspec jinja2 markupsafe mpmath networkx sympy typing_extensions
    fbgemm_gpu torchrec pyre_extensions typing_inspect mypy_extensions iopath portalocker tqdm
    tensordict cloudpickle importlib_metadata orjson packaging pyvers zipp torchmetrics lightning_utilities
    numpy pyarrow tabulate psutil ruamel hostlist
    pydantic pydantic_core annotated_types typing_inspection
    tyro dacite docstring_parser typeguard
    tensorboard tensorboard_data_server absl google grpc werkzeug
    matplotlib mpl_toolkits contourpy cycler dateutil fontTools kiwisolver PIL pylab pyparsing six
"""
"""Top-level packages, on one line with the library that needs them; docs/gpu.md names those that we import."""

BENCHMARKS = ("common", "contest", "planning", "sweep")
PLACES = ("stem_torchrec", *(f"benchmarks/{name}" for name in BENCHMARKS))
SCRIPTS = ("plan.py", "sharding.py", "throughput.py", "studies/gpu_report.py")

# A package that is hidden in this way is missing for whoever imports it, as on a machine that does not have it.
HIDE = f"""
import sys
from importlib.machinery import PathFinder

LISTED = set({PACKAGES!r}.split()) | {{"stem_torchrec", "studies", *{BENCHMARKS!r}}}

class ListedOnly(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        standard = name in sys.stdlib_module_names or name.startswith("_sysconfigdata")
        if path is None and name not in LISTED and not standard:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = ListedOnly
"""

SIZES = [f"--data.synthetic.{split}-rows=256" for split in ("train", "valid", "test")]
RUN = f"""
import importlib, pkgutil, runpy, sys

def run(script, *options):
    sys.argv = [script, *options]
    runpy.run_path(f"{ROOT}/stem_torchrec/{{script}}", run_name="__main__")

for name in ("optuna", "torchx", "pytest"):
    assert importlib.util.find_spec(name) is None, name
run("train.py", "--recipe", "tiny", "--train.epochs", "1", "--data.batch-size", "128", "--output-dir", "run", *{SIZES})
run("evaluate.py", "--run", "run")
for package in {BENCHMARKS}:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
importlib.import_module("studies.gpu_report")
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Of RUN under torchrun."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text(HIDE)
    (folder / "run.py").write_text(RUN)
    path = os.pathsep.join(map(str, (folder / "hidden", ROOT, ROOT / "benchmarks")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([*launcher, "run.py"], cwd=folder, env=environment, text=True, capture_output=True)


@pytest.mark.long
def test_torchrun_trains_and_evaluates_and_benchmarks_import_with_the_listed_packages_only(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert result.returncode == 0, result.stdout + result.stderr
    assert "valid split of" in result.stdout


def test_users_see_no_warning_of_a_library(result: subprocess.CompletedProcess[str]) -> None:
    assert "warn" not in (result.stdout + result.stderr).lower()


@pytest.mark.parametrize("place", [*PLACES, *(f"benchmarks/{name}" for name in SCRIPTS)])
def test_no_function_imports_an_unlisted_package_later(place: str) -> None:
    files = [path for path in python_files(ROOT / place) if not ELSEWHERE & {*path.relative_to(ROOT).parts}]
    listed = {*PACKAGES.split(), "stem_torchrec", "studies", *BENCHMARKS, *sys.stdlib_module_names}
    assert files
    assert [(str(path), name) for path in files for name in imported(path) if name not in listed] == []


def test_the_page_on_gpus_names_the_packages_that_are_imported() -> None:
    paths = [path for place in PLACES for path in python_files(ROOT / place)]
    names = {name for path in paths if not ELSEWHERE & {*path.parts} for name in imported(path)}
    ours = {"stem_torchrec", "studies", *BENCHMARKS, *sys.stdlib_module_names}
    written = (ROOT / "docs/gpu.md").read_text().lower().replace("-", "_").replace("python_hostlist", "hostlist")
    assert sorted(name for name in names - ours if not re.search(rf"\b{name}\b", written)) == []


def python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all imports, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
