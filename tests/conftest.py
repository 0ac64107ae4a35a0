"""The order of the test files, and what is different for `pytest -m gpu`.

A machine with a GPU may have other versions than the pinned ones, and lack packages that other tests import.
"""

from pathlib import Path

import pytest

LONGEST = ("resume", "train", "comparison", "heartbeat", "faults_benchmark", "reader", "once", "metrics", "sweep")
"""Files that take longest come first, so that the workers of `make test` end at about the same time."""


def pytest_configure(config: pytest.Config) -> None:
    """With `-m gpu`, no warning is an error, also at an import."""
    if config.option.markexpr == "gpu":
        config.addinivalue_line("filterwarnings", "default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, imports only the files that have tests with this mark."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return "pytest.mark.gpu" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(Path(item.path).name, len(names)))
