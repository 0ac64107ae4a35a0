"""What stem-tune searches for, and how: its options beside those of train.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFile, LocalOutput
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.tuning.search_space import Search, published_space, read_space

_DESCRIPTION = """\
Searches for the setting of a model that validates best (--train.metric), with Optuna. The same command resumes an
interrupted search; each rank runs trials of its own.

Unless --train.eval-every is given, trials are evaluated four times in each epoch, or at its end where tables begin anew
with each (--train.fresh-tables, as in the recipe log), so that those that lag behind or diverge end early;
--train.patience counts these evaluations. best.yaml has the setting of the best trial, for one rank, with as many
evaluations. A trial writes no checkpoints.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --model.arch, ...) set what each trial trains;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class What:
    """What stem-tune searches for."""

    what: Literal["options", "tables"] = "options"
    """Options of a space by Optuna, or the tables that features deserve, whose own options --what tables --help
    lists."""


@dataclass(frozen=True)
class TuneConfig(What):
    """How to search, beside the options of train.py."""

    out: LocalOutput = ""
    """Folder for the study, a run folder for each trial, best.yaml and trials.parquet."""
    trials: Annotated[int, Interval(ge=1, le=10**6)] = 50
    """Number of trials, over all ranks and calls, with those that end early, without settings that a run refuses."""
    space: LocalFile | None = None
    """A YAML file of options to choices ([1, 2, 4]) or ranges ({low: 1e-3, high: 5.0, log: true}); by default the
    published space: shared experts 1 to 8, task experts 1 to 4, embedding L2 1e-3 to 5, dropout 0 to 0.3."""
    keep_runs: bool = False
    """Keeps the run folder of every trial, not only of the best."""


def read_command_line(args: Sequence[str] | None = None) -> tuple[TuneConfig, Search]:
    """The search that a command line describes; raises UserError for options that make no sense."""
    config, rest = parse_known_arguments(TuneConfig(), args, description=_DESCRIPTION)
    base = config_from_command_line(rest)
    if not config.out:
        raise UserError("--out is missing; name the folder for the results, as in --out DIR.")
    if base.checkpoint.folder is not None or base.resume != "auto":
        raise UserError(
            "--checkpoint.folder and --resume do not apply, as trials write no checkpoints; leave them out."
        )
    space = read_space(config.space, base) if config.space else published_space(base)
    return config, Search(base, space)
