"""What each day's model is trained on, and what it starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PolicyName = Literal["continue", "continue_best", "fresh", "scratch"]


@dataclass(frozen=True)
class Policy:
    """How a day's model comes about; the first day always starts anew."""

    about: str
    """For the report."""
    start: str | None
    """What follows the folder of yesterday's run in --start-from; None to start anew."""
    so_far: bool = False
    """Whether it is trained on all days so far, with vocabularies of their own, and not on the day alone."""


POLICIES: Mapping[PolicyName, Policy] = {
    "continue": Policy("on from yesterday's last checkpoint, on the day alone", start=""),
    "continue_best": Policy("on from yesterday's best weights with fresh states, on the day alone", start=":best"),
    "fresh": Policy("anew on the day alone", start=None),
    "scratch": Policy("anew on all days so far", start=None, so_far=True),
}


@dataclass(frozen=True)
class Walker:
    """A policy with a seed, which walks the days, and where its files are."""

    folder: Path
    """The folder of the results."""
    policy: PolicyName
    seed: int

    def run(self, day: int) -> Path:
        """The run that was trained on a day, or on the days up to it."""
        return self.folder / "runs" / self.policy / f"seed_{self.seed}" / str(day)

    def predictions(self, day: int) -> Path:
        """The predictions for the rows of a day, by the run of the day before."""
        return self.folder / "predictions" / self.policy / f"seed_{self.seed}" / str(day)
