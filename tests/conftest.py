"""Threads of all tests, the order of the files, and what is different for `pytest -m gpu` and `pytest -m quick`.

A machine with a GPU may have other versions than the pinned ones, and lack packages that other tests import.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported. Two pytest workers and their ranks share two cores, where threads that spin slow all others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LONGEST = (
    *("resume", "train", "offline_plan", "comparison", "sweep", "faults_benchmark", "trainer", "reader", "stem"),
    *("fuzz_command_lines", "fuzz_logs", "fuzz_run_folders", "fuzz_structured_files", "fuzz_other_commands"),
    *("fuzz_preparations", "apply_delta", "server", "inspect_run", "engines_agree"),
    *("throughput", "metrics_benchmark", "plan", "tune", "layouts", "sharded", "stores", "quick", "quick_commands"),
)
"""The files that take longest come first, so that the workers of `make test` end at about the same time."""

BENCH = ("command_lines", "environments", "logs", "other_commands", "past", "preparations", "run_folders")
TOGETHER = {
    **{f"test_fuzz_{name}.py": "bench" for name in (*BENCH, "structured_files")},
    **{f"test_bundle{name}.py": "stem_bundle" for name in ("", "_compiled", "_lineage", "_models")},
    **{f"test_{name}.py": "stem_bundle" for name in ("apply_delta", "large_tables", "score", "serving_benchmark")},
}
"""Files that share what takes seconds to make, so that it is made on one worker alone: a bench, or `stem_bundle`."""


def pytest_configure(config: pytest.Config) -> None:
    """With `-m gpu`, no warning is an error, also at an import."""
    if config.option.markexpr == "gpu":
        config.addinivalue_line("filterwarnings", "default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` or `-m quick`, imports only the files that have tests with this mark."""
    mark = config.option.markexpr
    if mark in ("gpu", "quick") and collection_path.suffix == ".py":
        return f"pytest.mark.{mark}" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(Path(item.path).name, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, the files of a group in TOGETHER are on one worker like the tests of a file."""
    from xdist.scheduler import LoadFileScheduling

    class LoadGroupsOfFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(Path(file).name, file)

    return LoadGroupsOfFiles(config, log) if config.option.dist == "loadfile" else None


@pytest.fixture(scope="session")
def stem_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, its log of raw rows, its predictions and its bundle; bundles.py has their names."""
    from bundles import train_and_export
    from distributed import run_ranks

    folder = tmp_path_factory.mktemp("bundles")
    run_ranks(1, train_and_export, folder, ["stem"], timeout=300)
    return folder


@pytest.fixture(scope="module")
def gpu_process() -> Iterator[object]:
    """This process, in a process group of its own on a GPU, for the tests of a file; skips them without a GPU."""
    from gpu_runs import one_process, what_is_missing

    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with one_process() as process:
        yield process
