"""The options of an inspection, checked before a model is built."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Interval

from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import PathOption, checked_path
from stem_torchrec.runtime.paths import check_writable
from stem_torchrec.runtime.report_file import check_page_file
from stem_torchrec.training.evaluation_outputs import check_apart
from stem_torchrec.training.run_evaluation import EvaluationData

LocalFile = Annotated[str, PathOption("file", writes=True, local=True)]


@dataclass(frozen=True)
class InspectOptions:
    """Which run to look at, and how."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The run folder that training wrote, and another run to compare it with; local or in a store."""
    split: str = "valid"
    """Folder of the log whose rows the runs predict."""
    data: EvaluationData = field(default_factory=EvaluationData)
    """The log with these rows."""
    rows: Annotated[int, Interval(ge=1, le=2**62)] | None = None
    """Rows at most, of this split to predict and of the training split to count ids in: the first ones."""
    tasks: tuple[str, ...] = ()
    """The tasks to show, all by default; with the shared tables."""
    tables_only: bool = False
    """Leaves out gates and metrics, for which a run predicts rows, and looks at its tables alone; this needs no log."""
    top: Annotated[int, Interval(ge=0, le=1000)] = 10
    """Ids of each feature to list, those that have changed the most."""
    out: LocalFile = ""
    """The HTML file; one that an earlier report wrote is replaced."""
    json: LocalFile = ""
    """File for all numbers as JSON; one that an earlier inspection wrote is replaced."""


def checked(options: InspectOptions) -> InspectOptions:
    """The options with their paths as the program takes them; makes the folders of the files.

    Raises UserError for no run or more than two, and for a file that is a part of a run or holds something else.
    """
    if not 1 <= len(options.runs) <= 2:
        number = len(options.runs) or "no"
        raise UserError(f"{number} runs are given; give one, or two to compare: stem-inspect RUN RUN2 --out FILE.html.")
    options = with_paths(options)
    runs = tuple(checked_path(run, PathOption("folder")) for run in options.runs)
    if len(set(runs)) < len(runs):
        raise UserError(f"{runs[0]} is given twice; give it once, or another run to compare it with.")
    if options.tables_only and (options.data.path or options.split != InspectOptions.split):
        raise UserError("--tables-only predicts no rows; leave out --data.path and --split.")
    for option, path in (("--out", options.out), ("--json", options.json)):
        if path:
            for run in runs:
                check_apart(path, run, option)
            check_writable(Path(path).parent)
    if options.out:
        check_page_file(Path(options.out))
    return replace(options, runs=runs)
