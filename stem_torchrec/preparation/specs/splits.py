"""Which rows of a log are train, valid and test, as a spec says it."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval


@dataclass(frozen=True)
class TimeSplit:
    """train, then valid, then test."""

    by: str
    """Column or expression, such as a day or a time; rows without it belong to no split."""
    train_until: int | float | str
    """Last value of train."""
    valid_until: int | float | str
    """Last value of valid; what comes later is test."""
    gap: Annotated[int, Interval(ge=0, le=2**62)] = 0
    """Rows whose value is at most this much above `train_until` belong to no split."""


@dataclass(frozen=True)
class RandomSplit:
    """Shares of the rows, or of the values of some columns, drawn by their MD5 and a seed."""

    by: tuple[str, ...] = ()
    """Rows that are equal in these columns come into the same split, as all rows of a user; by row if empty."""
    seed: Annotated[int, Interval(ge=0, le=2**62)] = 0
    valid: Annotated[float, Interval(ge=0, le=1)] = 0.1
    test: Annotated[float, Interval(ge=0, le=1)] = 0.1


@dataclass(frozen=True)
class ColumnSplit:
    """The split stands in a column."""

    by: str
    train: tuple[int | str, ...]
    valid: tuple[int | str, ...]
    test: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Split:
    """One of three ways; nothing is fitted outside train."""

    time: TimeSplit | None = None
    random: RandomSplit | None = None
    column: ColumnSplit | None = None
