"""The command line of benchmarks/days.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.config import parse_known_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFile, LocalOutput
from stem_torchrec.training.configuration import config_from_command_line

from common.output import check_out
from prequential.policies import POLICIES, PolicyName


@dataclass(frozen=True)
class DaysOptions:
    """Which days to walk; options of train.py are taken as well, and count for all policies."""

    spec: str = ""
    """The spec of the raw files, as stem-prepare takes it: a file, or the name of an installed one."""
    set: tuple[str, ...] = ()
    """NAME=TEXT for the spec, as stem-prepare takes it."""
    day: str = ""
    """A column of the raw files, or an expression, whose value is the day of a row."""
    days: tuple[Annotated[int, Interval(ge=-(2**62), le=2**62)], ...] = ()
    """The days in order, as values of it. The first one is not tested, and the last one not trained on."""
    policies: tuple[PolicyName, ...] = ("continue", "scratch")
    """How a day's model comes about: continue, from yesterday's last checkpoint; continue_best, from yesterday's best
    weights with fresh states; fresh, anew on the day; scratch, anew on all days so far; hashed and hashed_twice, as
    continue with one or two hashed ids for each value; to_hashed and from_hashed, which change the kind of ids on the
    day --switch. The others are compared with the last one."""
    hashed: tuple[str, ...] = ()
    """Features with a vocabulary that have hashed ids under the policies named so, in tables of as many rows as those
    that the vocabulary takes on the last day that is trained on."""
    switch: Annotated[int, Interval(ge=-(2**62), le=2**62)] = 0
    """The first day on whose ids to_hashed and from_hashed train after the change."""
    seeds: tuple[Annotated[int, Interval(ge=0, le=2**32 - 1)], ...] = (0,)
    """Every policy walks the days with each."""
    facts: LocalFile = ""
    """facts.json of synthetic days, whose best AUC the report shows beside."""
    draws: Annotated[int, Interval(ge=1, le=10**6)] = 1000
    """Draws of users, or of rows where the log has no groups, behind an interval."""
    out: LocalOutput = ""
    """Folder for the logs, runs and predictions, and for days.md and days.parquet. The same command resumes an
    interrupted walk, and days, policies and seeds may be added."""


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[DaysOptions, list[str]]:
    """Which days to walk, and options of train.py; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    options, rest = parse_known_arguments(DaysOptions(), args, description=description or "")
    check_out(options.out)
    for name in ("spec", "day"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; --help shows what it takes.")
    if len(options.days) < 2 or list(options.days) != sorted(set(options.days)):
        raise UserError(f"--days is {_words(options.days)}, but must be two days or more, in order.")
    for name in ("policies", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{name} is {_words(values)}, but needs values, each of them once.")
    names = [name for name in options.policies if set(POLICIES[name].logs) & {"hashed", "hashed_twice"}]
    if names and not options.hashed:
        raise UserError(f"--hashed is empty, but {names[0]} needs the features whose ids it hashes.")
    names = [name for name in options.policies if POLICIES[name].switches]
    if names and options.switch not in options.days[1:-1]:
        raise UserError(
            f"--switch is {options.switch}, but must be one of --days, behind the first and before the last, for "
            f"{names[0]}."
        )
    for option in ("--data.path", "--output-dir", "--seed", "--start-from"):
        if any(argument.partition("=")[0] == option for argument in rest):
            raise UserError(f"{option} is chosen for each day; leave it out.")
    if not any(argument.partition("=")[0] in ("--recipe", "--config") for argument in rest):
        # A run that starts from another's would take its batch size, which follows from the rows of a day.
        rest = ["--recipe", "log", *rest]
    config_from_command_line([*rest, "--data.path", "LOG"])
    return options, rest


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values)) or "empty"
