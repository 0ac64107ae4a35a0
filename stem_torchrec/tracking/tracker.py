"""What a tracker is: an object that gets the numbers of a run."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from stem_torchrec.runtime.store_path import AnyPath


class Outcome(StrEnum):
    """How a process has left a run, in MLflow's words."""

    FINISHED = "FINISHED"
    KILLED = "KILLED"
    """It was asked to end; the run resumes."""
    FAILED = "FAILED"
    """An error has ended it."""


class Tracker(Protocol):
    """Gets what metrics.jsonl gets, on rank 0.

    It may raise any error: the run then goes on without it.
    """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Losses and speed every few steps, and the metrics of an evaluation, whose names begin with `valid/`.

        Example::

            write(120, {"train/loss/like": 0.2314})
        """

    def end(self, folder: AnyPath, outcome: Outcome) -> None:
        """The process leaves the run; its folder has config.yaml, and metrics.json and best/ of an evaluation."""
