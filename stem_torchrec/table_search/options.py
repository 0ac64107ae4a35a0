"""The options of a search for tables, beside those of train.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import InputFolder, LocalOutput
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.tuning.options import What

_DESCRIPTION = """\
Finds which features deserve a table for each task within a memory budget (--what tables), in one process.

It trains the model with all tables, measures on half of the validation users how much worse the tasks would be without
each table of a task, keeps those that are worth the most for their bytes, trains the model with these and one with
shared tables alone, and compares the three on the other half. best.yaml has the choice. The same command continues.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --model.arch, ...) set what is trained;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class TableSearch(What):
    """How to search, beside the options of train.py."""

    out: LocalOutput = ""
    """Folder for the runs, report.md, worth.parquet and best.yaml."""
    budget_gb: Annotated[float, Interval(gt=0, le=1e9)] | None = None
    """Memory for all tables and the states of their optimizer, over all ranks, in GB (10^9 bytes); without it the
    tables are kept that save more loss than two standard errors."""
    run: InputFolder | None = None
    """A trained run with all tables, on any number of ranks, to measure instead of training one here."""
    rows: Annotated[int, Interval(ge=1, le=2**62)] = 200_000
    """Validation rows to measure and compare on at most: the first ones."""
    trains_choice: bool = True
    """Trains the choice and the model with shared tables alone, and compares; without it only best.yaml is written."""


def read_command_line(args: Sequence[str]) -> tuple[TableSearch, TrainConfig]:
    """The search that a command line describes; raises UserError for options that make no sense."""
    search, rest = parse_known_arguments(TableSearch(), args, description=_DESCRIPTION)
    base = config_from_command_line([*rest, *(("--config", f"{search.run}/config.yaml") if search.run else ())])
    if not search.out:
        raise UserError("--out is missing; name the folder for the results, as in --out DIR.")
    if not isinstance(base.model, OwnTableOptions):
        raise UserError(
            f"--what tables chooses among the tables of tasks beside shared ones, which {base.model.arch} does not "
            "have; give --model.arch stem."
        )
    if search.run is not None:
        base = replace(base, output_dir=None, resume="auto", checkpoint=replace(base.checkpoint, folder=None))
    if base.output_dir is not None or base.checkpoint.folder is not None or base.resume != "auto":
        raise UserError(
            "--output-dir, --checkpoint.folder and --resume do not apply, as the runs are kept below --out; leave them "
            "out."
        )
    return search, base
