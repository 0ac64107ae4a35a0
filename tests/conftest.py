"""Settings of all tests: threads, and the order of the files."""

import os
from pathlib import Path

import pytest

# Before torch is imported. Two pytest workers and their ranks share two cores, where threads that spin slow all others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LONGEST = ("resume", "train", "comparison", "heartbeat", "faults_benchmark", "reader", "once", "metrics", "sweep")
"""The files that take longest come first, so that the workers of `make test` end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(Path(item.path).name, len(order)))
