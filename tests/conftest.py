"""Files that take longest come first, so that the workers of `make test` end at about the same time."""

from pathlib import Path

import pytest

LONGEST = ("resume", "train", "comparison", "heartbeat", "faults_benchmark", "reader", "once", "metrics", "sweep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(Path(item.path).name, len(names)))
