"""What each day's model is trained on, and what it starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LogKind = Literal["days", "so_far", "hashed", "hashed_twice"]
"""Logs of single days, of all days so far, and of single days in which some features have hashed ids, one or two."""
PolicyName = Literal[
    "continue", "continue_best", "fresh", "scratch", "hashed", "hashed_twice", "to_hashed", "from_hashed"
]


@dataclass(frozen=True)
class Policy:
    """How a day's model comes about; the first day always starts anew."""

    about: str
    """For the report."""
    start: str | None
    """What follows the folder of yesterday's run in --start-from; None to start anew."""
    logs: tuple[LogKind, LogKind] = ("days", "days")
    """What it is trained on: before the day --switch, and from this day on."""

    def log_of(self, day: int, switch: int) -> LogKind:
        """What the model of a day is trained on."""
        return self.logs[day >= switch]

    @property
    def switches(self) -> bool:
        """Whether it goes from one kind of ids to another."""
        return self.logs[0] != self.logs[1]


POLICIES: Mapping[PolicyName, Policy] = {
    "continue": Policy("on from yesterday's last checkpoint, on the day alone", start=""),
    "continue_best": Policy("on from yesterday's best weights with fresh states, on the day alone", start=":best"),
    "fresh": Policy("anew on the day alone", start=None),
    "scratch": Policy("anew on all days so far", start=None, logs=("so_far", "so_far")),
    "hashed": Policy("as continue, with hashed ids", start="", logs=("hashed", "hashed")),
    "hashed_twice": Policy("with two hashed ids for each value", start="", logs=("hashed_twice", "hashed_twice")),
    "to_hashed": Policy("as continue, and with hashed ids from --switch on", start="", logs=("days", "hashed")),
    "from_hashed": Policy("with hashed ids, and as continue from --switch on", start="", logs=("hashed", "days")),
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
